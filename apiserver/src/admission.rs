//! Admission: what a write must become, and whether it may happen, after authorization and before validation.
//!
//! Plugins run in upstream's order, most of them a pure function over the request and a snapshot of the store. Output: the changed
//! object, or a refusal in upstream's words, and [`Notes`] for the client and the audit log. Nothing here writes but quotas' charges. The
//! wait for the `default` service account of a namespace that was just made is bounded and ends with the account's write.

mod certificates;
mod configured;
mod decoded;
mod devices;
mod expressions;
mod ingress_class;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod notes;
mod pod_certificates;
mod pod_security;
mod pod_updates;
mod policies;
mod priority;
mod quota;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod storage;
mod taint_nodes;
#[cfg(test)]
mod tests;
mod toleration_seconds;
mod webhooks;

pub(crate) use node_restriction::check_token as check_node_token;
pub use notes::Notes;
pub(crate) use policies::check_types;

use std::path::Path;
use std::sync::Arc;

use cox_api::meta;
use cox_api::schema::Resource;
use cox_api::status::ApiStatus;
use cox_store::Snapshot;
use serde_json::Value;

use crate::auth::{Authorizer, UserInfo};
use crate::config_file::ConfigError;
use crate::query::Query;
use crate::registry::{Entry, Registry};
use pod_security::PodSecurity;
use policies::Policies;
use quota::Charges;
use webhooks::Webhooks;

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
    /// To which resource, in the version that was asked for.
    pub entry: &'a Entry,
    /// The same in the version that objects have here.
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
    /// The options sent along.
    pub options: Options<'a>,
    /// What is to be said beside the answer.
    pub notes: Notes,
}

/// The options of a request.
#[derive(Clone, Debug, Default)]
pub enum Options<'a> {
    /// None that matter.
    #[default]
    None,
    /// Those of a query, as an object of this kind.
    Query(&'static str, Box<Written<'a>>),
    /// Those of a body.
    Body(Value),
}

/// What a query may say about a write.
#[derive(Clone, Debug)]
pub struct Written<'a> {
    dry_run: bool,
    field_manager: Option<&'a str>,
    field_validation: Option<&'a str>,
    force: Option<bool>,
}

impl<'a> Options<'a> {
    /// The options of a write.
    pub(crate) fn of_query(kind: &'static str, query: &'a Query<'_>) -> Self {
        let written = Written {
            dry_run: !query.dry_run.is_empty(),
            field_manager: query.field_manager.as_deref(),
            field_validation: query.field_validation.as_deref(),
            force: query.force,
        };
        Options::Query(kind, Box::new(written))
    }

    /// As an object.
    pub fn to_value(&self) -> Value {
        match self {
            Options::None => Value::Null,
            Options::Body(value) => value.clone(),
            Options::Query(kind, written) => {
                let mut value = serde_json::json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
                if written.dry_run {
                    value["dryRun"] = serde_json::json!(["All"]);
                }
                for (name, text) in [
                    ("fieldManager", written.field_manager),
                    ("fieldValidation", written.field_validation),
                ] {
                    if let Some(text) = text {
                        value[name] = text.into();
                    }
                }
                if let Some(force) = written.force {
                    value["force"] = force.into();
                }
                value
            }
        }
    }
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
    registry: Registry,
    authorizer: Authorizer,
    charges: Arc<Charges>,
    webhooks: Arc<Webhooks>,
    policies: Arc<Policies>,
    pod_security: Arc<PodSecurity>,
}

impl Admission {
    /// A chain that looks at what `registry` holds and asks `authorizer` where a plugin depends on what the user may do.
    pub fn new(registry: Registry, authorizer: Authorizer) -> Self {
        Self {
            registry,
            authorizer,
            charges: Arc::default(),
            webhooks: Arc::default(),
            policies: Arc::default(),
            pod_security: Arc::default(),
        }
    }

    /// Takes what upstream's AdmissionConfiguration in this file says of plugins.
    ///
    /// # Errors
    /// The place of what is wrong in it.
    pub fn configure(&mut self, file: &Path) -> Result<(), ConfigError> {
        self.pod_security = Arc::new(PodSecurity::read(file)?);
        Ok(())
    }

    /// Whether anybody but our own plugins has a say: webhooks or policies.
    pub(crate) fn asks_others(&self, snapshot: &Snapshot) -> bool {
        self.webhooks.are_configured(snapshot) || self.policies.are_configured(snapshot)
    }

    /// Changes the object as the plugins want it.
    ///
    /// # Errors
    /// The refusal of the first plugin that refuses.
    pub async fn mutate(&self, request: &mut Request<'_>) -> Result<(), ApiStatus> {
        if request.creates_pod() {
            service_account::wait_for_default(self.registry.store(), request).await;
        }
        let snapshot = self.registry.store().snapshot();
        mutate_at(&snapshot, request)?;
        let (registry, authorizer) = (&self.registry, &self.authorizer);
        let (webhooks, policies) = (&self.webhooks, &self.policies);
        let changed = policies
            .mutate(registry, authorizer, &snapshot, request, false)
            .await?;
        let mut first = webhooks
            .mutate(registry, authorizer, &snapshot, request, None)
            .await?;
        if !changed && !first.changed {
            return Ok(());
        }
        // What was changed the plugins look at once more, and the policies and webhooks that asked for it what others changed after
        // them.
        let before = request.object.clone();
        mutate_at(&snapshot, request)?;
        policies
            .mutate(registry, authorizer, &snapshot, request, true)
            .await?;
        if request.object != before {
            first.object_changed();
        }
        webhooks
            .mutate(registry, authorizer, &snapshot, request, Some(&first))
            .await
            .map(|_| ())
    }

    /// Judges the object as it would be written.
    ///
    /// # Errors
    /// The refusal of the first plugin that refuses.
    pub async fn validate(&self, request: &Request<'_>) -> Result<(), ApiStatus> {
        let snapshot = self.registry.store().snapshot();
        limit_ranger::validate(request, &snapshot)?;
        node_restriction::validate(request, &snapshot)?;
        pod_security::validate(request, &snapshot, &self.pod_security)?;
        priority::validate(request, &snapshot)?;
        storage::validate(request, &snapshot)?;
        runtime_class::validate(request, &snapshot)?;
        certificates::validate(request, &self.authorizer)?;
        pod_updates::validate(request, &snapshot)?;
        rbac_escalation::validate(request, &self.authorizer)?;
        devices::validate(request, &snapshot, &self.authorizer).await?;
        self.policies
            .validate(&self.registry, &self.authorizer, &snapshot, request)
            .await?;
        self.webhooks
            .validate(&self.registry, &self.authorizer, &snapshot, request)
            .await?;
        self.charges
            .validate(&self.registry, request, &snapshot)
            .await
    }
}

/// The mutating plugins, in upstream's order.
fn mutate_at(snapshot: &Snapshot, request: &mut Request<'_>) -> Result<(), ApiStatus> {
    namespace_lifecycle::admit(request, snapshot)?;
    limit_ranger::admit(request, snapshot);
    service_account::admit(request, snapshot)?;
    taint_nodes::admit(request);
    priority::admit(request, snapshot)?;
    toleration_seconds::admit(request);
    storage::admit(request, snapshot);
    runtime_class::admit(request, snapshot)?;
    ingress_class::admit(request, snapshot);
    Ok(())
}

/// Whether the Pod mirrors a static Pod of a node.
fn is_mirror_pod(pod: &Value) -> bool {
    meta::annotation(pod, "kubernetes.io/config.mirror").is_some()
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
