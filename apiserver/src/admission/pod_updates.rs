//! What a Pod's node has to say to a change of the Pod: NodeDeclaredFeatureValidator and PodResizeValidator.

use std::sync::Arc;

use cox_api::declared_features::{missing, needed_to_change};
use cox_api::meta;
use cox_api::quantity::Quantity;
use cox_api::status::{ApiStatus, Cause};
use cox_api::totals::{amounts, pod_requests};
use cox_store::Snapshot;
use serde_json::Value;

use super::decoded::known;
use super::{Operation, Request, items};

/// A change that needs a feature is for nodes that declare it; a resize is for nodes of Linux that could ever hold the result.
pub(super) fn validate(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    let is_change = request.operation == Operation::Update
        && request.resource.group.is_empty()
        && request.resource.plural == "pods"
        && matches!(request.subresource, "" | "resize");
    let Some((new, old)) = request.object.as_ref().zip(request.old) else {
        return Ok(());
    };
    let node = new["spec"]["nodeName"].as_str().unwrap_or_default();
    if !is_change || node.is_empty() || new["spec"] == old["spec"] {
        return Ok(());
    }
    let found = || {
        known(snapshot, "minions", node)
            .ok_or_else(|| request.forbidden(format!("node {node:?} not found")))
    };
    let needed = needed_to_change(&old["spec"], &new["spec"]);
    if !needed.is_empty() {
        let object = found()?;
        let declared = items(&object["status"]["declaredFeatures"]);
        let declared: Vec<&str> = declared.filter_map(Value::as_str).collect();
        let missing = missing(&needed, &declared);
        if !missing.is_empty() {
            return Err(request.forbidden(format!(
                "pod update requires features {} which are not available on node {node:?}",
                missing.join(", ")
            )));
        }
    }
    if request.subresource == "resize" {
        let refused = |(why, reason): (String, &str)| {
            let mut status = request.forbidden(why);
            status.details.get_or_insert_default().causes.push(Cause {
                reason: reason.to_owned(),
                message: String::new(),
                field: String::new(),
            });
            status
        };
        resize(new, &found()?).map_err(refused)?;
    }
    Ok(())
}

/// Whether the node could hold the Pod if it were alone there; else why not, and the reason for programs.
fn resize(pod: &Value, node: &Arc<Value>) -> Result<(), (String, &'static str)> {
    let os = meta::label(node, "kubernetes.io/os").unwrap_or("linux");
    if os != "linux" {
        let name = meta::name(node);
        let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
        return Err((why, "UnsupportedPlatform"));
    }
    let (asked, has) = (
        pod_requests(&pod["spec"]),
        amounts(&node["status"]["allocatable"]),
    );
    let mut short = Vec::new();
    for name in ["cpu", "memory"] {
        let asked = asked.get(name).copied().unwrap_or(Quantity::ZERO);
        let has = has.get(name).copied().unwrap_or(Quantity::ZERO);
        if asked > has {
            let in_units = |amount: Quantity| match name {
                "cpu" => amount.as_millis(),
                _ => amount.as_i64(),
            };
            short.push(format!(
                "{name}, requested: {}, allocatable: {}",
                in_units(asked),
                in_units(has)
            ));
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    let why = format!(
        "node didn't have enough allocatable resources: {}",
        short.join("; ")
    );
    Err((why, "NodeCapacity"))
}
