//! LimitRanger: containers get the defaults of their namespace's LimitRanges, and nobody asks for less or more than these allow.

use cox_api::meta;
use cox_api::status::ApiStatus;
use cox_api::totals::{self, Amounts, amounts, containers};
use cox_store::Snapshot;
use serde_json::{Value, json};

use super::{Operation, Request, items};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
const MAX_RATIO: &str = "maxLimitRequestRatio";

pub(super) fn admit(request: &mut Request<'_>, snapshot: &Snapshot) {
    if !is_limited(request) || request.resource.plural != "pods" {
        return;
    }
    let ranges = ranges(request, snapshot);
    if let Some(pod) = &mut request.object {
        for range in &ranges {
            set_defaults(range, pod);
        }
    }
}

pub(super) fn validate(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    let Some(object) = request.object.as_ref().filter(|_| is_limited(request)) else {
        return Ok(());
    };
    for range in ranges(request, snapshot) {
        let mut wrong = Vec::new();
        for limit in items(&range["spec"]["limits"]) {
            if request.resource.plural == "pods" {
                check_pod(limit, object, &mut wrong);
            } else {
                check_claim(limit, object, &mut wrong);
            }
        }
        if !wrong.is_empty() {
            return Err(request.forbidden(aggregate(&wrong)));
        }
    }
    Ok(())
}

/// One sentence stands for itself; several stand in brackets.
pub(super) fn aggregate(sentences: &[String]) -> String {
    match sentences {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

fn is_limited(request: &Request<'_>) -> bool {
    let resource = request.resource;
    let limited = resource.group.is_empty()
        && match (resource.plural.as_str(), request.subresource) {
            ("pods", "") => request.operation == Operation::Create,
            ("pods", "resize") => request.operation == Operation::Update,
            ("persistentvolumeclaims", "") => {
                matches!(request.operation, Operation::Create | Operation::Update)
            }
            _ => false,
        };
    limited && !request.old.is_some_and(meta::is_deleting)
}

fn ranges(request: &Request<'_>, snapshot: &Snapshot) -> Vec<Value> {
    let prefix = format!("{}/", request.namespace);
    let found = snapshot.range("limitranges", &prefix, None);
    found
        .filter_map(|object| serde_json::from_slice(&object.json).ok())
        .collect()
}

fn set_defaults(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for limit in items(&range["spec"]["limits"]).filter(|limit| limit["type"] == "Container") {
        requests.extend(amounts(&limit["defaultRequest"]));
        limits.extend(amounts(&limit["default"]));
    }
    let mut set = Vec::new();
    for (list, what) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let all = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in all.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            // What is set is told requests first, as upstream has it.
            let of_limits = fill(container, "limits", &limits);
            let of_requests = fill(container, "requests", &requests);
            for (names, field) in [(of_requests, "request"), (of_limits, "limit")] {
                if !names.is_empty() {
                    set.push(format!("{} {field} for {what} {name}", names.join(", ")));
                }
            }
        }
    }
    if !set.is_empty() {
        let text = format!("LimitRanger plugin set: {}", set.join("; "));
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

/// Sets what is missing; answers the names of what was set, sorted.
fn fill(container: &mut Value, field: &str, defaults: &Amounts) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults {
        if container["resources"][field][name].is_null() {
            if !container["resources"].is_object() {
                container["resources"] = json!({});
            }
            if !container["resources"][field].is_object() {
                container["resources"][field] = json!({});
            }
            container["resources"][field][name] = amount.to_string().into();
            set.push(name.clone());
        }
    }
    set
}

fn check_pod(limit: &Value, pod: &Value, wrong: &mut Vec<String>) {
    let spec = &pod["spec"];
    match limit["type"].as_str() {
        Some("Container") => {
            for container in
                containers(spec, "containers").chain(containers(spec, "initContainers"))
            {
                let requests = amounts(&container["resources"]["requests"]);
                let limits = amounts(&container["resources"]["limits"]);
                check(limit, "Container", &requests, &limits, wrong);
            }
        }
        Some("Pod") => {
            let sum = |field: &str| {
                let mut sum = totals::of_containers(spec, field);
                totals::override_with_pod_level(&mut sum, spec, field);
                sum
            };
            check(limit, "Pod", &sum("requests"), &sum("limits"), wrong);
        }
        _ => {}
    }
}

fn check_claim(limit: &Value, claim: &Value, wrong: &mut Vec<String>) {
    let kind = "PersistentVolumeClaim";
    if limit["type"] != kind {
        return;
    }
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for (name, least) in amounts(&limit["min"]) {
        check_least(kind, &name, least, &requests, &Amounts::new(), wrong);
    }
    for (name, most) in amounts(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match requests.get(&name) {
            None => wrong.push(format!("{head}.  No request is specified")),
            Some(asked) if *asked > most => wrong.push(format!("{head}, but request is {asked}")),
            Some(_) => {}
        }
    }
}

fn check(limit: &Value, kind: &str, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
    for (name, least) in amounts(&limit["min"]) {
        check_least(kind, &name, least, requests, limits, wrong);
    }
    for (name, most) in amounts(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => wrong.push(format!("{head}.  No limit is specified")),
            (Some(limited), _) if *limited > most => {
                wrong.push(format!("{head}, but limit is {limited}"));
            }
            (_, Some(asked)) if *asked > most => {
                wrong.push(format!("{head}, but request is {asked}"));
            }
            _ => {}
        }
    }
    for (name, most) in amounts(&limit[MAX_RATIO]) {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        let given = |list: &Amounts| list.get(&name).copied().filter(|amount| !amount.is_zero());
        let sentence = match (given(requests), given(limits)) {
            (None, _) => ", but no request is specified or request is 0".to_owned(),
            (_, None) => ", but no limit is specified or limit is 0".to_owned(),
            (Some(asked), Some(limited)) => {
                let ratio = limited.as_f64() / asked.as_f64();
                if ratio <= most.as_f64() {
                    continue;
                }
                format!(", but provided ratio is {ratio:.6}")
            }
        };
        wrong.push(format!("{head}{sentence}"));
    }
}

fn check_least(
    kind: &str,
    name: &str,
    least: cox_api::quantity::Quantity,
    requests: &Amounts,
    limits: &Amounts,
    wrong: &mut Vec<String>,
) {
    let head = format!("minimum {name} usage per {kind} is {least}");
    match (requests.get(name), limits.get(name)) {
        (None, _) => wrong.push(format!("{head}.  No request is specified")),
        (Some(asked), _) if *asked < least => {
            wrong.push(format!("{head}, but request is {asked}"));
        }
        (_, Some(limited)) if *limited < least => {
            wrong.push(format!("{head}, but limit is {limited}"));
        }
        _ => {}
    }
}
