//! Aggregation: APIService objects, and the API servers behind them.
//!
//! - `register` keeps an APIService for each group and version that this server serves itself.
//! - `availability` asks remote servers whether they answer, reads what they serve, and writes their Available condition.
//! - `proxy` passes requests on, with the user's name in headers that the remote server trusts.
//!
//! [`Remotes`] is what requests look at: replaced as a whole, read without a lock.

mod availability;
mod proxy;
mod register;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine;
use cox_api::schema::{Resource, Subresource, TypeId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::outside::{Outside, Trust};
use crate::pki::Pki;
use crate::registry::Registry;

pub(crate) use proxy::proxy;

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const PLURAL: &str = "apiservices";
/// The name by which aggregated servers know this one; `extension-apiserver-authentication` tells them.
pub(crate) const FRONT_PROXY: &str = "front-proxy-client";

/// An API server for one group and version.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) group: String,
    pub(crate) version: String,
    namespace: String,
    service: String,
    port: i64,
    trust: Trust,
    /// Why it cannot be asked, if so.
    pub(crate) unavailable: Option<String>,
    /// What it says that it serves.
    resources: Vec<Resource>,
    /// What it says of itself in OpenAPI.
    described: Option<Arc<Described>>,
}

/// The OpenAPI documents of a remote server, as far as they are merged into this one's.
#[derive(Debug)]
pub(crate) struct Described {
    /// Changes when they do.
    pub(crate) hash: String,
    /// The document of version 2, or null.
    pub(crate) v2: Value,
}

/// All remote API servers.
#[derive(Debug, Default)]
pub(crate) struct Remotes {
    present: ArcSwap<BTreeMap<String, Arc<Remote>>>,
}

/// What aggregation works with.
#[derive(Debug)]
pub(crate) struct Aggregator {
    pub(crate) remotes: Remotes,
    outside: Outside,
}

impl Aggregator {
    /// With the certificate that remote servers know this one by.
    pub(crate) fn new(pki: &Pki) -> Self {
        let identity = pki.issue_client(FRONT_PROXY, &[]).ok().and_then(|pair| {
            Outside::with_identity(&pair.certificate, &pair.key)
                .inspect_err(
                    |error| tracing::warn!(%error, "No certificate for aggregated API servers"),
                )
                .ok()
        });
        Aggregator {
            remotes: Remotes::default(),
            outside: identity.unwrap_or_default(),
        }
    }

    /// The remote server of a path below `/apis/GROUP/VERSION`.
    pub(crate) fn remote_of(&self, path: &str) -> Option<Arc<Remote>> {
        let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
        let (group, version) = (parts.next()?, parts.next()?);
        self.remotes.find(group, version)
    }

    /// Makes what is missing of the APIServices of this server's own groups.
    pub(crate) async fn register(registry: &Registry) {
        register::ensure(registry).await;
    }

    /// Keeps APIServices and conditions until cancelled.
    pub(crate) async fn run(self: Arc<Self>, registry: Registry, cancel: CancellationToken) {
        tokio::join!(
            register::run(registry.clone(), cancel.clone()),
            availability::run(self, registry, cancel),
        );
    }
}

impl Remotes {
    /// The server of a group and version.
    pub(crate) fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let present = self.present.load();
        if present.is_empty() {
            return None;
        }
        present.get(&format!("{version}.{group}")).cloned()
    }

    /// All of them, for discovery.
    pub(crate) fn all(&self) -> Arc<BTreeMap<String, Arc<Remote>>> {
        self.present.load_full()
    }

    fn replace(&self, next: BTreeMap<String, Arc<Remote>>) {
        self.present.store(Arc::new(next));
    }
}

impl Remote {
    /// The server that an APIService speaks of; none for those that this one serves.
    fn read(service: &Value) -> Option<Self> {
        let spec = &service["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if !spec["service"].is_object() {
            return None;
        }
        let trust = if spec["insecureSkipTLSVerify"] == true {
            Trust::Anyone
        } else {
            let bundle = spec["caBundle"].as_str().unwrap_or_default();
            Trust::Authorities(
                base64::engine::general_purpose::STANDARD
                    .decode(bundle)
                    .unwrap_or_default(),
            )
        };
        Some(Remote {
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            namespace: text(&spec["service"]["namespace"]),
            service: text(&spec["service"]["name"]),
            port: spec["service"]["port"].as_i64().unwrap_or(443),
            trust,
            unavailable: Some("the server has not been asked yet".to_owned()),
            resources: Vec::new(),
            described: None,
        })
    }

    /// Its OpenAPI documents.
    pub(crate) fn described(&self) -> Option<&Arc<Described>> {
        self.described
            .as_ref()
            .filter(|_| self.unavailable.is_none())
    }

    /// What it serves, as rows for discovery.
    pub(crate) fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Rows from an APIResourceList.
    fn rows(&self, list: &Value) -> Vec<Resource> {
        let all = list["resources"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let texts = |value: &Value| -> Vec<String> {
            let all = value.as_array().into_iter().flatten();
            all.filter_map(|one| one.as_str().map(str::to_owned))
                .collect()
        };
        let own = |given: String, own: &str| {
            if given.is_empty() {
                own.to_owned()
            } else {
                given
            }
        };
        let is_sub = |one: &&Value| one["name"].as_str().is_some_and(|name| name.contains('/'));
        let subs = |plural: &str| {
            let of = all.iter().filter(is_sub).filter_map(|one| {
                let (of, name) = one["name"].as_str()?.split_once('/')?;
                (of == plural).then(|| Subresource {
                    name: name.to_owned(),
                    group: own(text(&one["group"]), &self.group),
                    version: own(text(&one["version"]), &self.version),
                    kind: text(&one["kind"]),
                    verbs: texts(&one["verbs"]),
                    type_id: None,
                })
            });
            of.collect()
        };
        let main = all.iter().filter(|one| !is_sub(one));
        main.map(|one| {
            let plural = text(&one["name"]);
            Resource {
                group: self.group.clone(),
                version: self.version.clone(),
                kind: text(&one["kind"]),
                singular: text(&one["singularName"]),
                namespaced: one["namespaced"] == true,
                verbs: texts(&one["verbs"]),
                short_names: texts(&one["shortNames"]),
                categories: texts(&one["categories"]),
                storage_prefix: format!("{}/{plural}", self.group),
                storage_group: self.group.clone(),
                storage_version: self.version.clone(),
                preferred: false,
                type_id: TypeId::default(),
                subresources: subs(&plural),
                plural,
            }
        })
        .collect()
    }
}

/// The name of the APIService for a group and version.
fn service_name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_remote_server_lists_becomes_rows() {
        let service = json!({"spec": {"group": "wardle.example.com", "version": "v1alpha1", "service": {"namespace": "n", "name": "s"}}});
        let remote = Remote::read(&service).unwrap();
        assert_eq!((remote.port, remote.service.as_str()), (443, "s"));
        let rows = remote.rows(&json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get", "update"]},
        ]}));
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].subresources[0].name, "status");
        assert!(Remote::read(&json!({"spec": {"group": "apps", "version": "v1"}})).is_none());
    }
}
