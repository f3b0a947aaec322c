//! Discovery: which groups, versions and resources there are, in both of upstream's forms.
//!
//! All documents are made once at start from the resource table; the aggregated ones carry an ETag over their content.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use cox_api::schema::{self, Resource, Subresource, join_group_version};
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregator::{Remote, Remotes};
use crate::body::Body;
use crate::node_metrics;
use crate::registry::customs::{CustomCatalog, Customs};
use crate::render;

/// Paths at `/` that are not API groups.
const ROOT_PATHS: &[&str] = &[
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/",
    "/readyz",
    "/version",
];

/// All discovery documents, ready to send.
#[derive(Debug)]
pub(crate) struct Discovery {
    documents: HashMap<String, Bytes>,
    aggregated: HashMap<&'static str, Aggregated>,
}

#[derive(Debug)]
struct Aggregated {
    /// v2 and v2beta1.
    bodies: [Bytes; 2],
    etag: HeaderValue,
}

/// A group with its versions, the preferred one first.
struct Group<'a> {
    name: &'a str,
    versions: Vec<&'a str>,
}

/// The documents of what is served now: built in and defined. They are made anew when the catalog of definitions is another.
#[derive(Debug)]
pub(crate) struct Served {
    made: ArcSwap<Made>,
}

impl Served {
    /// The documents of the built-in kinds and these.
    pub(crate) fn new(customs: Arc<Customs>) -> Self {
        Served {
            made: ArcSwap::from_pointee(make(customs, Arc::default())),
        }
    }

    /// Answers a discovery path, if it is one.
    pub(crate) fn respond(
        &self,
        customs: &CustomCatalog,
        remotes: &Remotes,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        let (customs, remotes) = (customs.present(), remotes.all());
        let made = self.made.load();
        if Arc::ptr_eq(&made.customs, &customs) && Arc::ptr_eq(&made.remotes, &remotes) {
            return made.discovery.respond(path, headers);
        }
        let made = Arc::new(make(customs, remotes));
        self.made.store(Arc::clone(&made));
        made.discovery.respond(path, headers)
    }
}

/// Documents, and what they are of.
#[derive(Debug)]
struct Made {
    customs: Arc<Customs>,
    remotes: Arc<BTreeMap<String, Arc<Remote>>>,
    discovery: Discovery,
}

fn make(customs: Arc<Customs>, remotes: Arc<BTreeMap<String, Arc<Remote>>>) -> Made {
    let entries = customs.entries();
    let builtin = schema::builtin().resources().iter();
    // Whoever registers a server for the group serves it instead.
    let own = format!("{}.{}", node_metrics::VERSION, node_metrics::GROUP);
    let metrics = if remotes.contains_key(&own) {
        Vec::new()
    } else {
        node_metrics::resources()
    };
    let resources: Vec<&Resource> = builtin
        .chain(entries.iter().map(|entry| &*entry.resource))
        .chain(remotes.values().flat_map(|remote| remote.resources()))
        .chain(&metrics)
        .collect();
    let discovery = Discovery::new(&resources);
    drop(resources);
    Made {
        customs,
        remotes,
        discovery,
    }
}

impl Discovery {
    /// Makes the documents.
    #[must_use]
    pub(crate) fn new(resources: &[&Resource]) -> Self {
        let groups = groups(resources);
        let mut documents = HashMap::new();
        let mut put = |path: String, value: Value| {
            documents.insert(path, Bytes::from(render::to_bytes(&value)))
        };
        put(
            "/api".into(),
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        );
        let named: Vec<&Group<'_>> = groups
            .iter()
            .filter(|group| !group.name.is_empty())
            .collect();
        let list: Vec<Value> = named.iter().map(|group| group_value(group)).collect();
        put(
            "/apis".into(),
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}),
        );
        for group in &named {
            let mut value = group_value(group);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            put(format!("/apis/{}", group.name), value);
        }
        let mut paths = vec![
            "/api".to_owned(),
            "/api/v1".to_owned(),
            "/apis".to_owned(),
            "/apis/".to_owned(),
        ];
        for group in &groups {
            if !group.name.is_empty() {
                paths.push(format!("/apis/{}", group.name));
            }
            for version in &group.versions {
                let path = version_path(group.name, version);
                put(path.clone(), resource_list(resources, group.name, version));
                paths.push(path);
            }
        }
        paths.extend(ROOT_PATHS.iter().map(|path| (*path).to_owned()));
        paths.sort();
        paths.dedup();
        put("/".into(), json!({"paths": paths}));
        let (core, rest): (Vec<_>, Vec<_>) = groups.iter().partition(|group| group.name.is_empty());
        let aggregated = HashMap::from([
            ("/api", Aggregated::new(resources, &core)),
            ("/apis", Aggregated::new(resources, &rest)),
        ]);
        Discovery {
            documents,
            aggregated,
        }
    }

    /// Answers a discovery path, if it is one.
    pub(crate) fn respond(&self, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
        let path = if path.len() > 1 {
            path.trim_end_matches('/')
        } else {
            path
        };
        if let Some(aggregated) = self.aggregated.get(path)
            && let Some(version) = wants_aggregated(headers)
        {
            return Some(aggregated.respond(version, headers));
        }
        let body = self.documents.get(path)?;
        let mut response = render::json_response(StatusCode::OK, body.clone());
        if self.aggregated.contains_key(path) {
            response
                .headers_mut()
                .insert(VARY, HeaderValue::from_static("Accept"));
        }
        Some(response)
    }
}

/// The aggregated form that the Accept header prefers to the plain one.
fn wants_aggregated(headers: &HeaderMap) -> Option<usize> {
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','));
    for range in ranges.map(str::trim) {
        let is = |part: &str| range.split(';').any(|one| one.trim() == part);
        if !range.starts_with("application/json") {
            continue;
        }
        if !is("as=APIGroupDiscoveryList") {
            return None;
        }
        if is("g=apidiscovery.k8s.io") {
            if is("v=v2") {
                return Some(0);
            }
            if is("v=v2beta1") {
                return Some(1);
            }
        }
    }
    None
}

impl Aggregated {
    fn new(resources: &[&Resource], groups: &[&Group<'_>]) -> Self {
        let items: Vec<Value> = groups
            .iter()
            .map(|group| group_discovery(resources, group))
            .collect();
        let body = |version: &str| {
            let list = json!({
                "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                "metadata": {}, "items": items,
            });
            Bytes::from(render::to_bytes(&list))
        };
        let bodies = [body("v2"), body("v2beta1")];
        let digest: String = Sha256::digest(&bodies[0])
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        let etag = HeaderValue::from_str(&format!("\"{digest}\""))
            .expect("hexadecimal digits are valid in a header");
        Aggregated { bodies, etag }
    }

    fn respond(&self, version: usize, headers: &HeaderMap) -> Response<Body> {
        let unchanged = headers
            .get(IF_NONE_MATCH)
            .is_some_and(|known| *known == self.etag);
        let mut response = if unchanged {
            let mut response = Response::new(Body::from(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            render::json_response(StatusCode::OK, self.bodies[version].clone())
        };
        let content = ["v2", "v2beta1"][version];
        let content =
            format!("application/json;g=apidiscovery.k8s.io;v={content};as=APIGroupDiscoveryList");
        let out = response.headers_mut();
        out.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_str(&content).expect("a constant text is valid in a header"),
        );
        out.insert(ETAG, self.etag.clone());
        out.insert(VARY, HeaderValue::from_static("Accept"));
        response
    }
}

fn version_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// Groups and versions in the order of the table; a group's preferred version comes first.
fn groups<'a>(resources: &[&'a Resource]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for resource in resources {
        let at = match groups.iter().position(|group| group.name == resource.group) {
            Some(at) => at,
            None => {
                groups.push(Group {
                    name: &resource.group,
                    versions: Vec::new(),
                });
                groups.len() - 1
            }
        };
        let versions = &mut groups[at].versions;
        if !versions.contains(&resource.version.as_str()) {
            versions.push(&resource.version);
        }
    }
    for group in &mut groups {
        let preferred = resources
            .iter()
            .find(|one| one.group == group.name && one.preferred);
        if let Some(preferred) = preferred {
            group
                .versions
                .sort_by_key(|version| *version != preferred.version);
        }
    }
    groups
}

fn group_value(group: &Group<'_>) -> Value {
    let version = |version: &&str| json!({"groupVersion": join_group_version(group.name, version), "version": version});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "versions": versions, "preferredVersion": versions[0]})
}

fn resources_of<'a>(
    resources: &[&'a Resource],
    group: &str,
    version: &str,
) -> impl Iterator<Item = &'a Resource> {
    resources
        .iter()
        .copied()
        .filter(move |resource| resource.group == group && resource.version == version)
}

fn resource_list(resources: &[&Resource], group: &str, version: &str) -> Value {
    let mut rows = Vec::new();
    for resource in resources_of(resources, group, version) {
        let mut row = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            row["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            row["categories"] = json!(resource.categories);
        }
        if resource.verbs.iter().any(|verb| verb == "list") {
            row["storageVersionHash"] = storage_version_hash(resource).into();
        }
        rows.push(row);
        rows.extend(
            resource
                .subresources
                .iter()
                .map(|sub| subresource_row(resource, sub)),
        );
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": join_group_version(group, version), "resources": rows})
}

fn subresource_row(resource: &Resource, sub: &Subresource) -> Value {
    let mut row = json!({
        "name": format!("{}/{}", resource.plural, sub.name), "singularName": "", "namespaced": resource.namespaced,
        "kind": sub.kind, "verbs": sub.verbs,
    });
    if (&sub.group, &sub.version) != (&resource.group, &resource.version) {
        row["group"] = sub.group.as_str().into();
        row["version"] = sub.version.as_str().into();
    }
    row
}

/// Clients compare it to see whether the storage version has changed; any stable text per version will do.
fn storage_version_hash(resource: &Resource) -> String {
    use base64::Engine;
    let text = format!(
        "{}/{}/{}",
        resource.storage_group, resource.storage_version, resource.kind
    );
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

fn group_discovery(resources: &[&Resource], group: &Group<'_>) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = resources_of(resources, group.name, version)
                .map(resource_discovery)
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.name.is_empty() {
        json!({"creationTimestamp": null})
    } else {
        json!({"name": group.name, "creationTimestamp": null})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn resource_discovery(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut row = json!({
        "resource": resource.plural, "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular, "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        row["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        row["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind(&sub.group, &sub.version, &sub.kind), "verbs": sub.verbs}))
        .collect();
    if !subresources.is_empty() {
        row["subresources"] = subresources.into();
    }
    row
}
