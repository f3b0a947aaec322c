//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: expressions in the cluster that judge and change requests.
//!
//! Input: policies and bindings in the store, their parameters, a request. Output: a refusal, warnings, audit annotations, or
//! the changed object. Expressions are parsed once per change of a policy and run under a budget for each evaluation.

mod mutate;
mod params;
mod policy;
mod scope;
mod status;
mod validate;

use cox_api::status::{ApiStatus, Cause, Reason};
use cox_store::Snapshot;
use serde_json::{Value, json};

use super::configured::Configured;
use super::expressions;
use super::matching::{self, Matched, Shown};
use super::{Operation, Request};
use crate::auth::Authorizer;
use crate::registry::Registry;
use policy::{Binding, Policy};
use scope::{Common, Scope};
pub(crate) use status::run as check_types;
use validate::Failure;

const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

/// All policies.
#[derive(Debug)]
pub(super) struct Policies {
    validating: Configured<Policy>,
    validating_bindings: Configured<Binding>,
    mutating: Configured<Policy>,
    mutating_bindings: Configured<Binding>,
}

impl Default for Policies {
    fn default() -> Self {
        Policies {
            validating: Configured::new("validatingadmissionpolicies"),
            validating_bindings: Configured::new("validatingadmissionpolicybindings"),
            mutating: Configured::new("mutatingadmissionpolicies"),
            mutating_bindings: Configured::new("mutatingadmissionpolicybindings"),
        }
    }
}

/// A refusal of one policy under one binding.
struct Denied {
    policy: String,
    binding: String,
    failure: Failure,
}

impl Policies {
    /// Whether there are any.
    pub(super) fn are_configured(&self, snapshot: &Snapshot) -> bool {
        let of_kind = |kind: &Configured<Policy>| !kind.at(snapshot, Policy::read).is_empty();
        of_kind(&self.mutating) || of_kind(&self.validating)
    }

    /// Lets the mutating policies change the object; of a second round only those that want it. Says whether one did.
    pub(super) async fn mutate(
        &self,
        registry: &Registry,
        authorizer: &Authorizer,
        snapshot: &Snapshot,
        request: &mut Request<'_>,
        again: bool,
    ) -> Result<bool, ApiStatus> {
        let policies = self.mutating.at(snapshot, Policy::read);
        if policies.is_empty()
            || request.object.is_none()
            || request.operation == Operation::Delete
            || matching::is_exempt(request)
        {
            return Ok(false);
        }
        let bindings = self.mutating_bindings.at(snapshot, Binding::read);
        let mut changed = false;
        for policy in policies.iter().filter(|policy| !again || policy.reinvoked) {
            let Some(matched) = policy.matcher.matches(registry, request)? else {
                continue;
            };
            let own = bindings.iter().filter(|one| one.policy == policy.name);
            for binding in own {
                if !is_bound(registry, binding, request)? {
                    continue;
                }
                let params = match params::of(registry, policy, binding, request).await {
                    Ok(params) => params,
                    Err(why) if policy.fails_closed => {
                        let why = format!("failed to configure binding: {why}");
                        return Err(mutate::refusal(request, policy, binding, &why));
                    }
                    Err(_) => continue,
                };
                for params in params {
                    let asked = mutate::Asked {
                        registry,
                        authorizer,
                        policy,
                        binding,
                        matched: &matched,
                        params,
                    };
                    changed |= mutate::run(&asked, request).await?;
                }
            }
        }
        Ok(changed)
    }

    /// Judges the request.
    pub(super) async fn validate(
        &self,
        registry: &Registry,
        authorizer: &Authorizer,
        snapshot: &Snapshot,
        request: &Request<'_>,
    ) -> Result<(), ApiStatus> {
        let policies = self.validating.at(snapshot, Policy::read);
        if policies.is_empty() || matching::is_exempt(request) {
            return Ok(());
        }
        let bindings = self.validating_bindings.at(snapshot, Binding::read);
        let (mut denied, mut audited) = (Vec::new(), Vec::new());
        for policy in policies.iter() {
            let Some(matched) = policy.matcher.matches(registry, request)? else {
                continue;
            };
            let own = bindings.iter().filter(|one| one.policy == policy.name);
            for binding in own {
                if !is_bound(registry, binding, request)? {
                    continue;
                }
                for failure in
                    judge(registry, authorizer, policy, binding, &matched, request).await?
                {
                    act(policy, binding, failure, request, &mut denied, &mut audited);
                }
            }
        }
        if !audited.is_empty() {
            request
                .notes
                .audit(FAILURES, Value::from(audited).to_string());
        }
        match denied.into_iter().next() {
            Some(denied) => Err(refusal(request, &denied)),
            None => Ok(()),
        }
    }
}

/// A binding narrows what its policy is about.
fn is_bound(
    registry: &Registry,
    binding: &Binding,
    request: &Request<'_>,
) -> Result<bool, ApiStatus> {
    match &binding.matcher {
        None => Ok(true),
        Some(matcher) if matcher.has_rules() => Ok(matcher.matches(registry, request)?.is_some()),
        Some(matcher) => {
            Ok(!matcher.excludes(registry, request) && matcher.selects(registry, request)?)
        }
    }
}

async fn judge(
    registry: &Registry,
    authorizer: &Authorizer,
    policy: &Policy,
    binding: &Binding,
    matched: &Matched,
    request: &Request<'_>,
) -> Result<Vec<Failure>, ApiStatus> {
    let params = match params::of(registry, policy, binding, request).await {
        Ok(params) => params,
        Err(_) if !policy.fails_closed => return Ok(Vec::new()),
        Err(why) => {
            return Ok(vec![Failure {
                index: 0,
                message: format!("failed to configure binding: {why}"),
                reason: String::new(),
            }]);
        }
    };
    let shown = Shown::new(registry, request, matched);
    let object = match &request.object {
        Some(object) => shown.show(object).await?,
        None => Value::Null,
    };
    let old = match request.old {
        Some(old) => shown.show(old).await?,
        None => Value::Null,
    };
    let asked = expressions::request_value(request, shown.entry());
    let namespace = params::namespace_object(registry, request);
    let common = Common::new(authorizer, request, asked, namespace);
    let mut failures = Vec::new();
    for params in &params {
        let mut scope = Scope::new(policy, &common, &object, &old, params);
        let outcome = validate::evaluate(policy, &mut scope);
        failures.extend(outcome.failures);
        for (key, value) in outcome.annotations {
            request.notes.audit(format!("{}/{key}", policy.name), value);
        }
    }
    Ok(failures)
}

/// Does with a failure what the binding says.
fn act(
    policy: &Policy,
    binding: &Binding,
    failure: Failure,
    request: &Request<'_>,
    denied: &mut Vec<Denied>,
    audited: &mut Vec<Value>,
) {
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => denied.push(Denied {
                policy: policy.name.clone(),
                binding: binding.name.clone(),
                failure: failure.clone(),
            }),
            "Warn" => request.notes.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, failure.message
            )),
            "Audit" => audited.push(json!({
                "message": failure.message, "policy": policy.name, "binding": binding.name,
                "expressionIndex": failure.index, "validationActions": binding.actions,
            })),
            _ => {}
        }
    }
}

fn refusal(request: &Request<'_>, denied: &Denied) -> ApiStatus {
    let message = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        denied.policy, denied.binding, denied.failure.message
    );
    let mut status = request.forbidden(&message);
    status.reason = match denied.failure.reason.as_str() {
        "Forbidden" => Reason::Forbidden,
        "Unauthorized" => Reason::Unauthorized,
        "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
        _ => Reason::Invalid,
    };
    status.code = status.reason.code();
    let details = status.details.get_or_insert_default();
    details.causes.push(Cause {
        reason: String::new(),
        message,
        field: String::new(),
    });
    status
}
