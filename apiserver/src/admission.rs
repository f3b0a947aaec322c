//! Admission: what a write must become, and whether it may happen, after authorization and before validation.
//!
//! Plugins run in upstream's order, each a pure function over the request and a snapshot of the store. Output: the changed
//! object, or a refusal in upstream's words. Nothing here writes. The one wait (for the `default` service account of a
//! namespace that was just made) is bounded and ends with the account's write.

mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod taint_nodes;
#[cfg(test)]
mod tests;
mod toleration_seconds;

pub(crate) use node_restriction::check_token as check_node_token;

use cox_api::meta;
use cox_api::schema::Resource;
use cox_api::status::ApiStatus;
use cox_store::{Snapshot, Store};
use serde_json::Value;

use crate::auth::{Authorizer, UserInfo};

/// What a request does to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes it.
    Create,
    /// Changes it: update, patch and apply on an object that is there.
    Update,
    /// Removes it.
    Delete,
    /// Connects to it: exec, attach, proxy.
    Connect,
}

/// A write on its way in.
#[derive(Debug)]
pub struct Request<'a> {
    /// What it does.
    pub operation: Operation,
    /// To which resource.
    pub resource: &'a Resource,
    /// To which subresource, or empty.
    pub subresource: &'a str,
    /// In which namespace, or empty.
    pub namespace: &'a str,
    /// To which object; empty when the name is still to be generated.
    pub name: &'a str,
    /// The new object, which plugins may change; `None` for deletions.
    pub object: Option<Value>,
    /// The present object, for updates and deletions.
    pub old: Option<&'a Value>,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Whether nothing will be written in the end.
    pub dry_run: bool,
    /// The options sent along, such as `DeleteOptions`.
    pub options: Option<&'a Value>,
}

impl Request<'_> {
    /// Whether this is about `plural` of `group` itself and not a subresource.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.group == group
            && self.resource.plural == plural
            && self.subresource.is_empty()
    }

    /// Whether this makes a Pod.
    fn creates_pod(&self) -> bool {
        self.operation == Operation::Create && self.is("", "pods")
    }

    /// A refusal that names the object.
    pub(crate) fn forbidden(&self, why: impl std::fmt::Display) -> ApiStatus {
        let of_object = self
            .object
            .as_ref()
            .map_or("", |object| match meta::name(object) {
                "" => meta::generate_name(object),
                name => name,
            });
        let name = if self.name.is_empty() {
            of_object
        } else {
            self.name
        };
        ApiStatus::forbidden(&self.resource.group, &self.resource.plural, name, why)
    }
}

/// The chain of plugins.
#[derive(Clone, Debug)]
pub struct Admission {
    store: Store,
    authorizer: Authorizer,
}

impl Admission {
    /// A chain that looks at `store` and asks `authorizer` where a plugin depends on what the user may do.
    pub fn new(store: Store, authorizer: Authorizer) -> Self {
        Self { store, authorizer }
    }

    /// Whether any plugin looks at such a request; where none does the caller need not put one together.
    pub fn handles(&self, operation: Operation, resource: &Resource, _subresource: &str) -> bool {
        // NamespaceLifecycle looks at whatever is made or changed in a namespace, and at namespaces that are to go.
        let by_namespace = match operation {
            Operation::Create | Operation::Update => resource.namespaced,
            Operation::Delete => resource.group.is_empty() && resource.plural == "namespaces",
            Operation::Connect => false,
        };
        by_namespace || looks_at(resource)
    }

    /// Changes the object as the plugins want it.
    ///
    /// # Errors
    /// The refusal of the first plugin that refuses.
    pub async fn mutate(&self, request: &mut Request<'_>) -> Result<(), ApiStatus> {
        if request.creates_pod() {
            service_account::wait_for_default(&self.store, request).await;
        }
        let snapshot = self.store.snapshot();
        mutate_at(&snapshot, request)
    }

    /// Judges the object as it would be written.
    ///
    /// # Errors
    /// The refusal of the first plugin that refuses.
    pub async fn validate(&self, request: &Request<'_>) -> Result<(), ApiStatus> {
        let snapshot = self.store.snapshot();
        node_restriction::validate(request, &snapshot)?;
        priority::validate(request, &snapshot)?;
        runtime_class::validate(request, &snapshot)?;
        rbac_escalation::validate(request, &self.authorizer)
    }
}

/// The resources that plugins beside NamespaceLifecycle look at.
fn looks_at(resource: &Resource) -> bool {
    matches!(
        (resource.group.as_str(), resource.plural.as_str()),
        ("", "pods" | "nodes" | "serviceaccounts")
            | ("scheduling.k8s.io", "priorityclasses")
            | ("rbac.authorization.k8s.io", _)
            | ("coordination.k8s.io", "leases")
            | ("storage.k8s.io", "csinodes")
    )
}

/// The mutating plugins, in upstream's order.
fn mutate_at(snapshot: &Snapshot, request: &mut Request<'_>) -> Result<(), ApiStatus> {
    namespace_lifecycle::admit(request, snapshot)?;
    service_account::admit(request, snapshot)?;
    taint_nodes::admit(request);
    priority::admit(request, snapshot)?;
    toleration_seconds::admit(request);
    runtime_class::admit(request, snapshot)
}

/// Whether the Pod mirrors a static Pod of a node.
fn is_mirror_pod(pod: &Value) -> bool {
    meta::annotation(pod, "kubernetes.io/config.mirror").is_some()
}

/// The decoded object at a path of the store.
fn stored(snapshot: &Snapshot, prefix: &str, path: &str) -> Option<Value> {
    serde_json::from_slice(&snapshot.get(prefix, path)?.json).ok()
}

/// All decoded objects of a resource.
fn all_stored(snapshot: &Snapshot, prefix: &str) -> impl Iterator<Item = Value> {
    snapshot
        .range(prefix, "", None)
        .filter_map(|object| serde_json::from_slice(&object.json).ok())
}

/// The items of a list field; none when it is absent.
fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Appends to a list field, making it where it is absent.
fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(all) => all.push(item),
        other => *other = Value::Array(vec![item]),
    }
}
