//! Checks the expressions of ValidatingAdmissionPolicies against the types of what they are about, and says in their status
//! what will not work.
//!
//! Watches the policies in the store; writes nothing but `status.observedGeneration` and `status.typeChecking`.

use std::time::Duration;

use cox_api::cel::admission::{Declared, Declares, Gives, compile, variables};
use cox_api::cel::{self, Type};
use cox_store::{CommitError, EventKind, Object, Precondition, WatchError, WatchItem};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::admission::items;
use crate::registry::{Registry, decode_stored};

const GROUP: &str = "admissionregistration.k8s.io";
const PLURAL: &str = "validatingadmissionpolicies";
/// Types that one policy is checked against at most.
const TYPES_MAX: usize = 10;
const AGAIN: Duration = Duration::from_millis(100);

/// Follows the policies until cancelled.
pub(crate) async fn run(registry: Registry, cancel: CancellationToken) {
    loop {
        let after = registry.store().snapshot().revision();
        if let Ok(mut watch) = registry.watch(GROUP, PLURAL, after) {
            for object in registry.list(GROUP, PLURAL, "") {
                check(&registry, &object).await;
            }
            loop {
                let item = tokio::select! {
                    // Cancel safe by the store's contract.
                    item = watch.next() => item,
                    () = cancel.cancelled() => return,
                };
                match item {
                    Ok(WatchItem::Event(event)) if event.kind != EventKind::Deleted => {
                        check(&registry, &event.object).await;
                    }
                    Ok(_) => {}
                    Err(WatchError::Lagged) => break,
                    Err(_) => return,
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn check(registry: &Registry, object: &Object) {
    let Ok(mut policy) = decode_stored(&object.json) else {
        return;
    };
    let generation = policy["metadata"]["generation"].clone();
    if !policy["metadata"]["deletionTimestamp"].is_null()
        || (policy["status"]["observedGeneration"] == generation
            && policy["status"]["typeChecking"].is_object())
    {
        return;
    }
    let types = types(registry, &policy);
    let warnings = warnings(&policy["spec"], &types);
    let mut checking = json!({});
    if !warnings.is_empty() {
        checking["expressionWarnings"] = warnings.into();
    }
    if !policy["status"].is_object() {
        policy["status"] = json!({});
    }
    policy["status"]["observedGeneration"] = generation;
    policy["status"]["typeChecking"] = checking;
    let Some(entry) = registry.catalog().stored(GROUP, PLURAL) else {
        return;
    };
    let at = Precondition::Revision(object.revision);
    match registry
        .commit_put(entry, "", &object.key.path, &policy, at)
        .await
    {
        // Whoever was faster has caused another event.
        Ok(_) | Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => {}
        Err(error) => {
            tracing::warn!(%error, policy = %object.key.path, "Status of an admission policy not written");
        }
    }
}

/// The kinds that a policy names without wildcards, with their types.
fn types(registry: &Registry, policy: &Value) -> Vec<(String, Type)> {
    let mut found = Vec::new();
    for rule in items(&policy["spec"]["matchConstraints"]["resourceRules"]) {
        let texts = |field: &str| -> Vec<&str> {
            items(&rule[field])
                .filter_map(Value::as_str)
                .filter(|text| *text != "*")
                .collect()
        };
        for group in texts("apiGroups") {
            for version in texts("apiVersions") {
                for plural in texts("resources") {
                    let Some(entry) = registry.lookup(group, version, plural) else {
                        continue;
                    };
                    let type_ = match &entry.custom {
                        Some(custom) => custom.version().cel_type(),
                        None => cel::builtin::type_of(registry.schema(), entry.resource.type_id),
                    };
                    found.push((
                        format!("{}, Kind={}", entry.api_version, entry.resource.kind),
                        type_,
                    ));
                }
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.dedup_by(|a, b| a.0 == b.0);
    found.truncate(TYPES_MAX);
    found
}

fn warnings(spec: &Value, types: &[(String, Type)]) -> Vec<Value> {
    let declares = Declares {
        params: spec["paramKind"].is_object(),
        authorizer: true,
        policy: true,
        patches: false,
    };
    let mut found = Vec::new();
    for (at, validation) in items(&spec["validations"]).enumerate() {
        for (field, gives) in [
            ("expression", Gives::Bool),
            ("messageExpression", Gives::Text),
        ] {
            let Some(source) = validation[field].as_str().filter(|text| !text.is_empty()) else {
                continue;
            };
            let mut text = String::new();
            for (kind, type_) in types {
                let declared = declared(spec, declares, type_);
                let names = variables(declares, type_, &Type::Dyn, &declared);
                if let Err(why) = compile(source, &names, gives) {
                    let why = why.strip_prefix("compilation failed: ").unwrap_or(&why);
                    text.push_str(&format!("{kind}: {why}\n"));
                }
            }
            if !text.is_empty() {
                let place = format!("spec.validations[{at}].{field}");
                found.push(json!({"fieldRef": place, "warning": text}));
            }
        }
    }
    found
}

/// The types of the policy's variables over objects of a type.
fn declared(spec: &Value, declares: Declares, object: &Type) -> Declared {
    let mut declared = Declared::new();
    for variable in items(&spec["variables"]) {
        let name = variable["name"].as_str().unwrap_or_default().to_owned();
        let source = variable["expression"].as_str().unwrap_or_default();
        let names = variables(declares, object, &Type::Dyn, &declared);
        let type_ = compile(source, &names, Gives::Any).unwrap_or(Type::Dyn);
        declared.push((name, type_));
    }
    declared
}
