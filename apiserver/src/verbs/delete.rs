//! delete and deletecollection: graceful deletion of Pods, finalizers, propagation, namespaces.
//!
//! What a delete does to an object is decided by [`plan`], which is pure; the rest reads, writes and answers.

use std::sync::Arc;

use cox_api::codec;
use cox_api::custom;
use cox_api::status::ApiStatus;
use cox_store::{CommitError, Object, Precondition};
use futures::{StreamExt, TryStreamExt, stream};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::admission::{self, Operation};
use crate::body::{Body, Item, ListBody};
use crate::call::{Call, check_dry_run};
use crate::content::{self, Format};
use crate::refuse;
use crate::registry::{Entry, Registry, decode_stored, prepare};
use crate::render;
use crate::selection::Selection;
use crate::verbs::read::{Page, list_head};
use crate::verbs::write::{self, RACE_ATTEMPTS};

const OPTIONS: &str = "DeleteOptions";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const POD_GRACE_SECS: i64 = 30;

/// Objects of a collection that are being deleted at the same time: they share the store's batches.
const DELETIONS_AT_ONCE: usize = 16;

/// DELETE of one object.
pub(crate) async fn delete(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let options = Options::read(call)?;
    let deleted = delete_named(call, call.info.name, &options).await?;
    answer(call, &deleted).await
}

/// DELETE of a collection, or of the page of it that `limit` and `continue` name: answers what was found.
pub(crate) async fn delete_collection(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let options = Options::read(call)?;
    let selection = Selection::parse(call.entry, call.query)?;
    let page = Page::read_in_version(call, &selection).await?;
    let deleted: Vec<Option<Item>> = {
        let (call, options) = (&*call, &options);
        stream::iter(page.objects.iter().map(Arc::clone))
            .map(|object| async move {
                let name = object.key.path.rsplit('/').next().unwrap_or_default();
                match delete_named(call, name, options).await {
                    Ok(_) if call.entry.as_stored => Ok(Some(Item::Stored(object))),
                    Ok(_) => render::served(call.entry, &object).map(|made| Some(Item::Made(made))),
                    // Somebody else has deleted it meanwhile, which is as good.
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(status),
                }
            })
            .buffered(DELETIONS_AT_ONCE)
            .try_collect()
            .await?
    };
    let head = list_head(
        &call.entry.list_kind(),
        &call.entry.api_version,
        &page,
        "items",
    );
    let items = deleted.into_iter().flatten().collect();
    Ok(render::json_response(
        StatusCode::OK,
        Body::List(Box::new(ListBody::new(head, items))),
    ))
}

/// Deletes the Pod of an eviction, with the eviction's options, after `mark` has written into it why. With `at`, only while it is
/// of this resource version.
pub(crate) async fn evict(
    call: &Call<'_>,
    options: &Value,
    dry_run: bool,
    at: Option<&str>,
    mark: impl Fn(&mut Value),
) -> Result<(), ApiStatus> {
    let mut options = Options::of(options)?;
    options.dry_run |= dry_run;
    if options.resource_version.is_none() {
        options.resource_version = at.map(str::to_owned);
    }
    if !options.dry_run {
        let written = mark_pod(call, &options, mark).await?;
        if options.resource_version.is_some() {
            options.resource_version = Some(written.revision.to_string());
        }
    }
    delete_named(call, call.info.name, &options)
        .await
        .map(|_| ())
}

async fn mark_pod(
    call: &Call<'_>,
    options: &Options,
    mark: impl Fn(&mut Value),
) -> Result<Arc<Object>, ApiStatus> {
    let (entry, name) = (call.entry, call.info.name);
    let (registry, namespace) = (&call.api.registry, call.namespace());
    for _ in 0..RACE_ATTEMPTS {
        let path = entry.path(namespace, name);
        let object = registry.store().snapshot().get(&entry.prefix, &path);
        let object = object.ok_or_else(|| refuse::not_found(entry, name))?;
        let before = decode_stored(&object.json)?;
        options.check_preconditions(entry, name, &before)?;
        let mut marked = before.clone();
        mark(&mut marked);
        if marked == before {
            return Ok(object);
        }
        let at = Precondition::Revision(object.revision);
        match registry
            .commit_put(entry, namespace, name, &marked, at)
            .await
        {
            Ok(object) => return Ok(object),
            Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => {}
            Err(error) => return Err(refuse::commit(entry, name, error)),
        }
    }
    Err(refuse::modified(entry, name))
}

/// What became of an object.
enum Deleted {
    /// It is gone; this was its last state.
    Gone(Arc<Object>),
    /// It is marked and waits for its finalizers or its grace period.
    Marked(Arc<Object>),
    /// A dry run; this is what it would be.
    Dry { value: Value, gone: bool },
}

async fn answer(call: &Call<'_>, deleted: &Deleted) -> Result<Response<Body>, ApiStatus> {
    let resource = &call.entry.resource;
    let success = |value: &Value| {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
        let status =
            ApiStatus::success(&resource.group, &resource.plural, text("name"), text("uid"));
        Ok(render::json_response(
            StatusCode::OK,
            render::to_bytes(&status),
        ))
    };
    match deleted {
        Deleted::Gone(object) if !call.entry.returns_deleted => {
            success(&decode_stored(&object.json)?)
        }
        Deleted::Gone(object) | Deleted::Marked(object) => {
            let object = Arc::clone(object);
            let object = call.api.registry.in_version(call.entry, object).await?;
            render::object(call, StatusCode::OK, &object)
        }
        Deleted::Dry { value, gone: true } if !call.entry.returns_deleted => success(value),
        Deleted::Dry { value, .. } => Ok(render::value(
            call,
            StatusCode::OK,
            &call.entry.from_storage(value.clone()),
        )),
    }
}

async fn delete_named(
    call: &Call<'_>,
    name: &str,
    options: &Options,
) -> Result<Deleted, ApiStatus> {
    let entry = call.entry;
    let registry = &call.api.registry;
    let namespace = call.namespace();
    for _ in 0..RACE_ATTEMPTS {
        let object = registry
            .store()
            .snapshot()
            .get(&entry.prefix, &entry.path(namespace, name));
        let object = object.ok_or_else(|| refuse::not_found(entry, name))?;
        let value = decode_stored(&object.json)?;
        options.check_preconditions(entry, name, &value)?;
        admit(call, name, &value, options).await?;
        let at = Precondition::Revision(object.revision);
        let committed = match plan(entry, &value, options, call.now) {
            Plan::Nothing if options.dry_run => return Ok(Deleted::Dry { value, gone: false }),
            Plan::Nothing => return Ok(Deleted::Marked(object)),
            Plan::Remove if options.dry_run => return Ok(Deleted::Dry { value, gone: true }),
            Plan::Mark(marked) if options.dry_run => {
                return Ok(Deleted::Dry {
                    value: marked,
                    gone: false,
                });
            }
            Plan::Remove => registry
                .commit_delete(entry, namespace, name, at)
                .await
                .map(Deleted::Gone),
            Plan::Mark(marked) => registry
                .commit_put(entry, namespace, name, &marked, at)
                .await
                .map(Deleted::Marked),
        };
        match committed {
            Ok(deleted) => return Ok(deleted),
            // The next look finds out whether the preconditions still hold.
            Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => {}
            Err(error) => return Err(refuse::commit(entry, name, error)),
        }
    }
    Err(refuse::modified(entry, name))
}

/// Deletes an object without a request: finalizers hold it as they always do.
pub(crate) async fn delete_stored(
    registry: &Registry,
    entry: &Entry,
    object: &Object,
) -> Result<(), ApiStatus> {
    let value = decode_stored(&object.json)?;
    let (namespace, name) = prepare::names(entry, &value);
    let at = Precondition::Revision(object.revision);
    let committed = match plan(entry, &value, &Options::default(), registry.now()) {
        Plan::Nothing => return Ok(()),
        Plan::Remove => registry.commit_delete(entry, &namespace, &name, at).await,
        Plan::Mark(marked) => {
            registry
                .commit_put(entry, &namespace, &name, &marked, at)
                .await
        }
    };
    committed
        .map(|_| ())
        .map_err(|error| refuse::commit(entry, &name, error))
}

async fn admit(
    call: &Call<'_>,
    name: &str,
    value: &Value,
    options: &Options,
) -> Result<(), ApiStatus> {
    let admission = &call.api.admission;
    let mut request = write::request(call, Operation::Delete, name, options.dry_run);
    request.subresource = "";
    request.old = Some(value);
    if let Some(body) = &options.body {
        request.options = admission::Options::Body(body.clone());
    }
    admission.mutate(&mut request).await?;
    admission.validate(&request).await
}

/// What to do about dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Default)]
struct Options {
    grace_secs: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
    /// As they were sent in a body.
    body: Option<Value>,
}

impl Options {
    /// The body wins over the query, as upstream has it.
    fn read(call: &Call<'_>) -> Result<Self, ApiStatus> {
        if call.body.is_empty() {
            let query = call.query;
            return Ok(Options {
                grace_secs: query.grace_period_seconds,
                propagation: propagation(
                    query.propagation_policy.as_deref(),
                    query.orphan_dependents,
                )?,
                dry_run: call.dry_run(OPTIONS)?,
                ..Options::default()
            });
        }
        let schema = call.api.registry.schema();
        let type_id = schema
            .kind_type("", "v1", OPTIONS)
            .ok_or_else(|| refuse::internal("the schema has no DeleteOptions"))?;
        let decoded = match content::format(call.headers)? {
            Format::Json => codec::decode_json(schema, type_id, &call.body),
            Format::Yaml => codec::decode_yaml(schema, type_id, &call.body),
            Format::Protobuf => codec::decode_proto(schema, type_id, &call.body),
        };
        let body = decoded
            .map_err(|error| refuse::bad_request(error.to_string()))?
            .value;
        let mut options = Options::of(&body)?;
        options.dry_run |= call.dry_run(OPTIONS)?;
        options.grace_secs = options.grace_secs.or(call.query.grace_period_seconds);
        Ok(options)
    }

    /// The options that a DeleteOptions object says.
    fn of(body: &Value) -> Result<Self, ApiStatus> {
        let text = |value: &Value| {
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let dry_run = body["dryRun"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        Ok(Options {
            grace_secs: body["gracePeriodSeconds"].as_i64(),
            propagation: propagation(
                body["propagationPolicy"].as_str(),
                body["orphanDependents"].as_bool(),
            )?,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run: check_dry_run(OPTIONS, dry_run)?,
            body: body.is_object().then(|| body.clone()),
        })
    }

    fn check_preconditions(
        &self,
        entry: &Entry,
        name: &str,
        value: &Value,
    ) -> Result<(), ApiStatus> {
        for (what, wanted, field) in [
            ("UID", &self.uid, "uid"),
            ("ResourceVersion", &self.resource_version, "resourceVersion"),
        ] {
            let found = value["metadata"][field].as_str().unwrap_or_default();
            if let Some(wanted) = wanted
                && wanted != found
            {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(refuse::conflict(entry, name, &why));
            }
        }
        Ok(())
    }
}

fn propagation(
    policy: Option<&str>,
    orphan: Option<bool>,
) -> Result<Option<Propagation>, ApiStatus> {
    match (policy, orphan) {
        (Some(_), Some(_)) => Err(refuse::option_invalid(
            OPTIONS,
            "propagationPolicy",
            policy.unwrap_or_default(),
            "orphanDependents and deletionPropagation cannot be both set",
        )),
        (Some("Background"), None) | (None, Some(false)) => Ok(Some(Propagation::Background)),
        (Some("Foreground"), None) => Ok(Some(Propagation::Foreground)),
        (Some("Orphan"), None) | (None, Some(true)) => Ok(Some(Propagation::Orphan)),
        (Some(other), None) => Err(refuse::option_unsupported(
            OPTIONS,
            "propagationPolicy",
            other,
            &["Background", "Foreground", "Orphan"],
        )),
        (None, None) => Ok(None),
    }
}

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It is being deleted already, no later than asked.
    Nothing,
    /// Write this.
    Mark(Value),
    /// Take it away.
    Remove,
}

/// Decides. `old` is the stored object; the plan for a repeated delete only ever shortens.
fn plan(entry: &Entry, old: &Value, options: &Options, now: Timestamp) -> Plan {
    let mut new = old.clone();
    let mut finalizers = finalizers_for(old, options.propagation);
    let definition = entry.resource.kind == "CustomResourceDefinition";
    if definition && old["metadata"]["deletionTimestamp"].is_null() {
        // Its objects go first.
        finalizers.push(custom::status::CLEANUP.to_owned());
        new = custom::status::terminating(&new, false, &prepare::time_text(now));
    }
    let waits = !finalizers.is_empty()
        || (entry.resource.kind == "Namespace" && has_items(&old["spec"]["finalizers"]));
    set_finalizers(&mut new, &finalizers);
    let grace = if entry.resource.kind == "Pod" {
        pod_grace(old, options.grace_secs)
    } else {
        0
    };
    let marked_at = old["metadata"]["deletionTimestamp"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    if let Some(marked_at) = marked_at {
        let present = old["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        if grace >= present {
            // Only what the propagation policy changes is left to write; without finalizers and grace it is overdue.
            return match (present == 0 && !waits, new == *old) {
                (true, _) => Plan::Remove,
                (false, true) => Plan::Nothing,
                (false, false) => Plan::Mark(new),
            };
        }
        if grace == 0 && !waits {
            return Plan::Remove;
        }
        let sooner = marked_at
            .checked_sub(SignedDuration::from_secs(present - grace))
            .unwrap_or(now);
        mark(&mut new, sooner, grace);
        return Plan::Mark(new);
    }
    if grace == 0 && !waits {
        return Plan::Remove;
    }
    mark(
        &mut new,
        now.checked_add(SignedDuration::from_secs(grace))
            .unwrap_or(now),
        grace,
    );
    if grace > 0 || entry.resource.kind != "Pod" {
        let generation = new["metadata"]["generation"].as_i64();
        if let Some(generation) = generation {
            new["metadata"]["generation"] = (generation + 1).into();
        }
    }
    if entry.resource.kind == "Namespace" {
        new["status"]["phase"] = "Terminating".into();
    }
    Plan::Mark(new)
}

fn mark(value: &mut Value, at: Timestamp, grace: i64) {
    value["metadata"]["deletionTimestamp"] = prepare::time_text(at).into();
    value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
}

/// Unscheduled and finished Pods have nothing to wind down.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let scheduled = pod["spec"]["nodeName"]
        .as_str()
        .is_some_and(|node| !node.is_empty());
    let finished = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if !scheduled || finished {
        return 0;
    }
    let own = || {
        pod["spec"]["terminationGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(POD_GRACE_SECS)
    };
    // A negative period means the shortest one that is not "now", as upstream has it.
    match asked.unwrap_or_else(own) {
        secs if secs < 0 => 1,
        secs => secs,
    }
}

fn finalizers_for(old: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let present = old["metadata"]["finalizers"].as_array();
    let mut all: Vec<String> = present
        .into_iter()
        .flatten()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect();
    let Some(propagation) = propagation else {
        return all;
    };
    all.retain(|one| one != ORPHAN && one != FOREGROUND);
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => all.push(FOREGROUND.to_owned()),
        Propagation::Orphan => all.push(ORPHAN.to_owned()),
    }
    all
}

fn set_finalizers(value: &mut Value, finalizers: &[String]) {
    let metadata = prepare::metadata(value);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
}

fn has_items(list: &Value) -> bool {
    list.as_array().is_some_and(|items| !items.is_empty())
}

#[cfg(test)]
mod tests;
