//! What a MutatingAdmissionPolicy makes of an object.

use cox_api::cel::{Cel, EvalError};
use cox_api::managed::{self, ApplyOptions, Writer};
use cox_api::patch;
use cox_api::status::ApiStatus;
use serde_json::Value;

use super::params;
use super::policy::{Binding, Mutation, Policy};
use super::scope::{Common, Scope};
use crate::admission::Request;
use crate::admission::expressions;
use crate::admission::matching::{Matched, Shown};
use crate::auth::Authorizer;
use crate::registry::{Entry, Registry};

/// Of no consequence: ownership is recorded after admission.
const MANAGER: &str = "admission";

/// One policy under one binding, with one parameter object.
pub(super) struct Asked<'a> {
    pub(super) registry: &'a Registry,
    pub(super) authorizer: &'a Authorizer,
    pub(super) policy: &'a Policy,
    pub(super) binding: &'a Binding,
    pub(super) matched: &'a Matched,
    pub(super) params: Value,
}

/// Runs the mutations, each on what the one before it made. Says whether the object changed.
pub(super) async fn run(asked: &Asked<'_>, request: &mut Request<'_>) -> Result<bool, ApiStatus> {
    let Asked {
        registry,
        policy,
        binding,
        ..
    } = asked;
    let Some(before) = &request.object else {
        return Ok(false);
    };
    let shown = Shown::new(registry, request, asked.matched);
    let first = shown.show(before).await?;
    let old = match request.old {
        Some(old) => shown.show(old).await?,
        None => Value::Null,
    };
    let about = expressions::request_value(request, shown.entry());
    let namespace = params::namespace_object(registry, request);
    let common = Common::new(asked.authorizer, request, about, namespace);
    let mut object = first.clone();
    let mut scope = Scope::new(policy, &common, &object, &old, &asked.params);
    let values = scope.values();
    match expressions::all_hold(&policy.conditions, &values, &mut scope.budget) {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(why) if policy.fails_closed => return Err(refusal(request, policy, binding, &why)),
        Err(_) => return Ok(false),
    }
    for mutation in &policy.mutations {
        let budget = scope.budget;
        scope = Scope::new(policy, &common, &object, &old, &asked.params);
        scope.budget = budget;
        match mutated(shown.entry(), &object, mutation, &mut scope) {
            Ok(next) => object = next,
            Err(why) if policy.fails_closed => {
                return Err(refusal(request, policy, binding, &why));
            }
            Err(_) => return Ok(false),
        }
    }
    if object == first {
        return Ok(false);
    }
    let next = match shown.take_back(request, object).await {
        Ok(next) => next,
        Err(status) if policy.fails_closed => {
            return Err(refusal(request, policy, binding, &status.message));
        }
        Err(_) => return Ok(false),
    };
    let changed = request.object.as_ref() != Some(&next);
    request.object = Some(next);
    Ok(changed)
}

fn mutated(
    entry: &Entry,
    object: &Value,
    mutation: &Mutation,
    scope: &mut Scope,
) -> Result<Value, String> {
    match mutation {
        Mutation::Patch(expression) => {
            let made = scope.evaluate(expression).map_err(text)?;
            let operations = made
                .to_json()
                .filter(Value::is_array)
                .ok_or("JSONPatch expression must evaluate to a list of JSONPatch")?;
            patch::json_patch(object, &operations)
                .map_err(|error| format!("JSON Patch: error applying patch: {error}"))
        }
        Mutation::Apply(expression) => {
            let made = scope.evaluate(expression).map_err(text)?;
            let Cel::Map(_) = made else {
                return Err("must evaluate to Object".to_owned());
            };
            let configuration = made
                .to_json()
                .ok_or("the configuration holds what no object can")?;
            applied(entry, object, configuration)
        }
    }
}

fn text(error: EvalError) -> String {
    error.to_string()
}

/// The object with a configuration merged in, lists by their keys.
fn applied(entry: &Entry, object: &Value, mut configuration: Value) -> Result<Value, String> {
    for path in ["apiVersion", "kind"] {
        if !configuration[path].is_null() {
            return Err(format!("ApplyConfiguration may not set {path}"));
        }
        configuration[path] = object[path].clone();
    }
    for field in ["name", "namespace", "generateName", "uid", "managedFields"] {
        if !configuration["metadata"][field].is_null() {
            return Err(format!("ApplyConfiguration may not set metadata.{field}"));
        }
    }
    let mut live = object.clone();
    let owners = live
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .and_then(|metadata| metadata.remove("managedFields"));
    let options = ApplyOptions {
        writer: Writer {
            manager: MANAGER,
            subresource: "",
            api_version: &entry.api_version,
            now: jiff::Timestamp::UNIX_EPOCH,
        },
        force: true,
    };
    let type_id = entry.resource.type_id;
    let merged = managed::apply(
        entry.schema(),
        type_id,
        Some(&live),
        &configuration,
        &options,
    );
    let mut merged = merged.map_err(|error| error.to_string())?.into_owned();
    if let Some(metadata) = merged.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(owners) = owners {
            metadata.insert("managedFields".to_owned(), owners);
        }
    }
    Ok(merged)
}

pub(super) fn refusal(
    request: &Request<'_>,
    policy: &Policy,
    binding: &Binding,
    why: &str,
) -> ApiStatus {
    let mut status = request.forbidden(format!(
        "policy '{}' with binding '{}' denied request: {why}",
        policy.name, binding.name
    ));
    status.reason = cox_api::status::Reason::Invalid;
    status.code = status.reason.code();
    status
}
