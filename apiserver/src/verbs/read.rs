//! get and list.
//!
//! Both read a snapshot of the store and send stored bytes. A list that is cut by `limit` keeps its snapshot for the next page
//! (bounded by the store), so all pages show one revision.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cox_api::status::ApiStatus;
use cox_store::{Object, Revision, Snapshot};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::body::{Body, Item, ListBody};
use crate::call::Call;
use crate::content::Form;
use crate::refuse;
use crate::render;
use crate::selection::Selection;
use crate::verbs::options;

/// Answers one object.
pub(crate) async fn get(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let snapshot = call.api.registry.store().snapshot();
    if let Some(wanted) = call.query.resource_version.as_deref() {
        check_not_in_future(&snapshot, revision(wanted)?)?;
    }
    let object = find(call, &snapshot)?;
    let object = call.api.registry.in_version(call.entry, object).await?;
    render::object(call, StatusCode::OK, &object)
}

/// The object that the request names.
pub(crate) fn find(call: &Call<'_>, snapshot: &Snapshot) -> Result<Arc<Object>, ApiStatus> {
    let path = call.entry.path(call.namespace(), call.info.name);
    snapshot
        .get(&call.entry.prefix, &path)
        .ok_or_else(|| refuse::not_found(call.entry, call.info.name))
}

/// Answers a collection.
pub(crate) async fn list(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let selection = Selection::parse(call.entry, call.query)?;
    let page = Page::read_in_version(call, &selection).await?;
    let body = match call.form {
        Form::Object => list_body(call, page)?,
        Form::Metadata(_) => {
            return Err(refuse::not_acceptable(format!(
                "you requested PartialObjectMetadata, but the requested object is a list (*{}.{}List)",
                call.entry.resource.version, call.entry.resource.kind
            )));
        }
        Form::MetadataList(version) => {
            let items: Result<Vec<Item>, ApiStatus> = page
                .objects
                .iter()
                .map(|object| render::metadata_bytes(object, version).map(Item::Made))
                .collect();
            let head = list_head(
                "PartialObjectMetadataList",
                &format!("meta.k8s.io/{version}"),
                &page,
                "items",
            );
            Body::List(Box::new(ListBody::new(head, items?)))
        }
        Form::Table(version) => table_body(call, &page, version)?,
    };
    Ok(render::json_response(StatusCode::OK, body))
}

fn list_body(call: &Call<'_>, page: Page) -> Result<Body, ApiStatus> {
    let head = list_head(
        &call.entry.list_kind(),
        &call.entry.api_version,
        &page,
        "items",
    );
    let items: Result<Vec<Item>, ApiStatus> = page
        .objects
        .into_iter()
        .map(|object| {
            if call.entry.as_stored {
                Ok(Item::Stored(object))
            } else {
                render::served(call.entry, &object).map(Item::Made)
            }
        })
        .collect();
    let list = ListBody::new(head, items?);
    Ok(Body::List(Box::new(match &call.entry.custom {
        None => list.without_types(call.entry.type_head()),
        Some(_) => list,
    })))
}

fn table_body(call: &Call<'_>, page: &Page, version: &str) -> Result<Body, ApiStatus> {
    let include = render::include_object(call);
    let mut rows = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        let value = render::decoded(call.entry, object)?;
        let row = render::row(call.entry, &value, include, version, call.now);
        rows.push(Item::Made(render::to_bytes(&row).into()));
    }
    let columns = render::to_bytes(&render::column_definitions(call.entry));
    let mut head = list_head(
        "Table",
        &format!("meta.k8s.io/{version}"),
        page,
        "columnDefinitions",
    );
    head.pop();
    head.extend_from_slice(&columns);
    head.extend_from_slice(b",\"rows\":[");
    Ok(Body::List(Box::new(ListBody::new(head, rows))))
}

/// The beginning of a list, up to and with the bracket that opens `field`.
pub(crate) fn list_head(kind: &str, api_version: &str, page: &Page, field: &str) -> Vec<u8> {
    let mut head = format!(
        "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{{\"resourceVersion\":\"{}\"",
        page.revision
    );
    if let Some(token) = &page.next {
        head.push_str(&format!(",\"continue\":\"{token}\""));
    }
    if let Some(count) = page.remaining {
        head.push_str(&format!(",\"remainingItemCount\":{count}"));
    }
    head.push_str(&format!("}},\"{field}\":["));
    head.into_bytes()
}

/// What a list answers.
pub(crate) struct Page {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) revision: u64,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    /// Reads the page that the request asks for, with the objects in its version where a webhook is needed for that.
    pub(crate) async fn read_in_version(
        call: &Call<'_>,
        selection: &Selection,
    ) -> Result<Self, ApiStatus> {
        if selection.needs_version() {
            return Self::read_converting(call, selection).await;
        }
        let mut page = Self::read(call, selection)?;
        if call.entry.needs_webhook() {
            for object in &mut page.objects {
                let registry = &call.api.registry;
                *object = registry.in_version(call.entry, Arc::clone(object)).await?;
            }
        }
        Ok(page)
    }

    /// The page whose objects can only be chosen once they are converted: up to one more than the limit are asked for.
    async fn read_converting(call: &Call<'_>, selection: &Selection) -> Result<Self, ApiStatus> {
        let start = Start::find(call)?;
        let entry = call.entry;
        let prefix = entry.path_prefix(call.namespace());
        let candidates: Vec<Arc<Object>> = start
            .snapshot
            .range(&entry.prefix, &prefix, start.after.as_deref())
            .filter(|object| selection.may_match(object))
            .cloned()
            .collect();
        let revision = start.snapshot.revision().0;
        let mut page = Page {
            objects: Vec::new(),
            revision,
            next: None,
            remaining: None,
        };
        let limit = call.query.limit;
        for object in candidates {
            let object = call.api.registry.in_version(entry, object).await?;
            if !selection.matches(&object) {
                continue;
            }
            if limit > 0 && page.objects.len() == limit {
                let last = page.objects.last();
                page.next = last.map(|last| Token::new(revision, &last.key.path).encode());
                call.api.registry.store().retain(&start.snapshot);
                break;
            }
            page.objects.push(object);
        }
        Ok(page)
    }

    /// Reads the page that the request asks for, as it is stored.
    fn read(call: &Call<'_>, selection: &Selection) -> Result<Self, ApiStatus> {
        let start = Start::find(call)?;
        let entry = call.entry;
        let prefix = entry.path_prefix(call.namespace());
        let revision = start.snapshot.revision().0;
        if let (Some(name), false) = (
            selection.name(),
            entry.resource.namespaced && call.namespace().is_empty(),
        ) {
            let found = start
                .snapshot
                .get(&entry.prefix, &entry.path(call.namespace(), name));
            let objects = found
                .into_iter()
                .filter(|object| selection.matches(object))
                .collect();
            return Ok(Page {
                objects,
                revision,
                next: None,
                remaining: None,
            });
        }
        let limit = call.query.limit;
        let mut matching = start
            .snapshot
            .range(&entry.prefix, &prefix, start.after.as_deref())
            .filter(|object| selection.is_empty() || selection.matches(object));
        if limit == 0 {
            let objects = matching.cloned().collect();
            return Ok(Page {
                objects,
                revision,
                next: None,
                remaining: None,
            });
        }
        let objects: Vec<Arc<Object>> = matching.by_ref().take(limit).cloned().collect();
        let (mut next, mut remaining) = (None, None);
        if matching.next().is_some()
            && let Some(last) = objects.last()
        {
            let passed = start.passed.map(|passed| passed + objects.len());
            let token = Token {
                n: passed,
                ..Token::new(revision, &last.key.path)
            };
            next = Some(token.encode());
            // As upstream: known only when no selector hides how many of the rest match.
            remaining = passed.filter(|_| selection.is_empty()).map(|passed| {
                let all = start.snapshot.count(&entry.prefix, &prefix);
                all.saturating_sub(passed)
            });
            call.api.registry.store().retain(&start.snapshot);
        }
        Ok(Page {
            objects,
            revision,
            next,
            remaining,
        })
    }
}

/// Where a list begins: the state it shows and the path after which it goes on.
struct Start {
    snapshot: Snapshot,
    after: Option<String>,
    /// How many objects of this state earlier pages have shown, if it is the state that they were of.
    passed: Option<usize>,
}

impl Start {
    fn find(call: &Call<'_>) -> Result<Self, ApiStatus> {
        let query = call.query;
        options::check_list(query)?;
        let store = call.api.registry.store();
        let latest = store.snapshot();
        let wanted = query
            .resource_version
            .as_deref()
            .map(revision)
            .transpose()?;
        if let Some(token) = query.continue_token.as_deref() {
            if wanted.is_some_and(|wanted| wanted > 0) {
                return Err(refuse::bad_request(
                    "specifying resource version is not allowed when using continue".to_owned(),
                ));
            }
            let token = Token::decode(token)?;
            if token.rv < 0 {
                // How many came before is not what earlier pages showed: it is counted in the state that is shown now.
                let (kind, prefix) = (&call.entry.prefix, call.entry.path_prefix(call.namespace()));
                let left = latest.range(kind, &prefix, Some(&token.start)).count();
                let passed = latest.count(kind, &prefix).saturating_sub(left);
                return Ok(Start {
                    snapshot: latest,
                    after: Some(token.start),
                    passed: Some(passed),
                });
            }
            return match store.snapshot_at(Revision(token.rv.unsigned_abs())) {
                Ok(snapshot) => Ok(Start {
                    snapshot,
                    after: Some(token.start),
                    passed: token.n,
                }),
                Err(_) => Err(refuse::continue_expired(
                    Token {
                        rv: -1,
                        n: None,
                        ..token
                    }
                    .encode(),
                )),
            };
        }
        match (query.resource_version_match.as_deref(), wanted) {
            (Some("Exact"), Some(wanted)) => exact(call, latest, wanted),
            // Upstream's rule from before resourceVersionMatch: a limit makes a plain resourceVersion exact.
            (None, Some(wanted)) if query.limit > 0 && wanted > 0 => exact(call, latest, wanted),
            (_, wanted) => {
                check_not_in_future(&latest, wanted.unwrap_or_default())?;
                Ok(Start {
                    snapshot: latest,
                    after: None,
                    passed: Some(0),
                })
            }
        }
    }
}

fn exact(call: &Call<'_>, latest: Snapshot, wanted: u64) -> Result<Start, ApiStatus> {
    check_not_in_future(&latest, wanted)?;
    match call.api.registry.store().snapshot_at(Revision(wanted)) {
        Ok(snapshot) => Ok(Start {
            snapshot,
            after: None,
            passed: Some(0),
        }),
        Err(_) => Err(refuse::expired(&format!(
            "The resourceVersion for the provided list is too old: {wanted}"
        ))),
    }
}

/// A resourceVersion that a client sent.
pub(crate) fn revision(text: &str) -> Result<u64, ApiStatus> {
    text.parse().map_err(|_| {
        refuse::option_invalid("ListOptions", "resourceVersion", text, "must be a number")
    })
}

/// Refuses revisions that were never given out (by this store).
pub(crate) fn check_not_in_future(snapshot: &Snapshot, wanted: u64) -> Result<(), ApiStatus> {
    let current = snapshot.revision().0;
    if wanted > current {
        Err(refuse::too_large_resource_version(wanted, current))
    } else {
        Ok(())
    }
}

/// Where the next page begins; upstream's form, opaque to clients.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// -1: from the present state, with gaps.
    rv: i64,
    start: String,
    /// How many objects came before; upstream counts what is left instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
}

impl Token {
    fn new(revision: u64, after: &str) -> Self {
        Token {
            v: "meta.k8s.io/v1".to_owned(),
            rv: i64::try_from(revision).unwrap_or(i64::MAX),
            start: after.to_owned(),
            n: None,
        }
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(serde_json::to_vec(self).expect("strings and numbers serialize into memory"))
    }

    fn decode(text: &str) -> Result<Self, ApiStatus> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let token = bytes.and_then(|bytes| serde_json::from_slice::<Token>(&bytes).ok());
        token.filter(|token| token.v == "meta.k8s.io/v1").ok_or_else(|| {
            refuse::bad_request("continue key is not valid: it must be the token of an earlier answer to the same list".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_are_read_back_and_forgeries_refused() {
        let token = Token::decode(&Token::new(7, "ns/name").encode()).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "ns/name"));
        for bad in ["", "!", "e30", "eyJ2IjoieCJ9"] {
            assert_eq!(
                Token::decode(bad).err().map(|status| status.code),
                Some(400),
                "case: {bad}"
            );
        }
    }
}
