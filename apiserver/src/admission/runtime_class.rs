//! RuntimeClass: a Pod's class exists, its overhead is the class's, and the Pod goes where the class can run.

use std::sync::Arc;

use cox_api::status::ApiStatus;
use cox_store::Snapshot;
use serde_json::{Map, Value};

use super::decoded::known;
use super::{Request, items, push};

pub(super) fn admit(request: &mut Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    if !request.creates_pod() {
        return Ok(());
    }
    let Some(mut pod) = request.object.take() else {
        return Ok(());
    };
    let outcome = match class_of(&pod, snapshot) {
        Ok(Some(class)) => set_overhead(&mut pod["spec"], &class)
            .and_then(|()| set_scheduling(&mut pod["spec"], &class)),
        Ok(None) => Ok(()),
        Err(why) => Err(why),
    };
    request.object = Some(pod);
    outcome.map_err(|why| request.forbidden(why))
}

pub(super) fn validate(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    let Some(pod) = request.object.as_ref().filter(|_| request.creates_pod()) else {
        return Ok(());
    };
    let class = class_of(pod, snapshot).map_err(|why| request.forbidden(why))?;
    let given = filled_map(&pod["spec"]["overhead"]);
    let fixed = class
        .as_ref()
        .and_then(|class| filled_map(&class["overhead"]["podFixed"]));
    match (given, fixed) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(request.forbidden(
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        )),
        (Some(given), Some(fixed)) if given == fixed => Ok(()),
        (Some(_), Some(_)) => Err(request.forbidden(
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        )),
    }
}

fn class_of(pod: &Value, snapshot: &Snapshot) -> Result<Option<Arc<Value>>, String> {
    match pod["spec"]["runtimeClassName"].as_str() {
        None | Some("") => Ok(None),
        Some(name) => known(snapshot, "runtimeclasses", name)
            .map(Some)
            .ok_or_else(|| format!("pod rejected: RuntimeClass {name:?} not found")),
    }
}

fn set_overhead(spec: &mut Value, class: &Value) -> Result<(), String> {
    let Some(fixed) = filled_map(&class["overhead"]["podFixed"]) else {
        return Ok(());
    };
    match filled_map(&spec["overhead"]) {
        Some(given) if given != fixed => {
            return Err(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
                    .to_owned(),
            );
        }
        Some(_) | None => {}
    }
    spec["overhead"] = Value::Object(fixed.clone());
    Ok(())
}

fn set_scheduling(spec: &mut Value, class: &Value) -> Result<(), String> {
    let scheduling = &class["scheduling"];
    if let Some(wanted) = filled_map(&scheduling["nodeSelector"]) {
        let mut selector = spec["nodeSelector"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        for (key, value) in wanted {
            if let Some(given) = selector.get(key).filter(|given| *given != value) {
                let (given, value) = (
                    given.as_str().unwrap_or_default(),
                    value.as_str().unwrap_or_default(),
                );
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {given}"
                ));
            }
            selector.insert(key.clone(), value.clone());
        }
        spec["nodeSelector"] = Value::Object(selector);
    }
    for toleration in items(&scheduling["tolerations"]) {
        if !items(&spec["tolerations"]).any(|given| given == toleration) {
            push(&mut spec["tolerations"], toleration.clone());
        }
    }
    Ok(())
}

fn filled_map(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object().filter(|map| !map.is_empty())
}
