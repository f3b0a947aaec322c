//! Priority: turns the name of a priority class into a number, and sees to it that one class at most is the default.

use cox_api::meta;
use cox_api::status::ApiStatus;
use cox_store::Snapshot;
use serde_json::Value;

use super::decoded::{all_known, known};
use super::{Operation, Request};

const PREFIX: &str = "priorityclasses";
const PREEMPT: &str = "PreemptLowerPriority";

/// What a class gives a Pod.
#[derive(Debug, PartialEq, Eq)]
struct Resolved {
    class: String,
    value: i64,
    policy: String,
}

pub(super) fn admit(request: &mut Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    if !request.is("", "pods") {
        return Ok(());
    }
    match request.operation {
        Operation::Create => {
            let Some(mut pod) = request.object.take() else {
                return Ok(());
            };
            let outcome = resolve_into(&mut pod["spec"], snapshot);
            request.object = Some(pod);
            outcome.map_err(|why| request.forbidden(why))
        }
        Operation::Update => {
            keep(request);
            Ok(())
        }
        Operation::Delete | Operation::Connect => Ok(()),
    }
}

/// Who updates without what admission computed means no change to it.
fn keep(request: &mut Request<'_>) {
    let (Some(pod), Some(old)) = (&mut request.object, request.old) else {
        return;
    };
    for field in ["priority", "preemptionPolicy"] {
        if pod["spec"].get(field).is_none_or(Value::is_null) && old["spec"].get(field).is_some() {
            pod["spec"][field] = old["spec"][field].clone();
        }
    }
}

fn resolve_into(spec: &mut Value, snapshot: &Snapshot) -> Result<(), String> {
    let resolved = resolve(
        spec["priorityClassName"].as_str().unwrap_or_default(),
        snapshot,
    )?;
    if let Some(given) = spec["priority"].as_i64()
        && given != resolved.value
    {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {} from the given PriorityClass name",
            resolved.value
        ));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str()
        && given != resolved.policy
    {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {} from the given PriorityClass name",
            resolved.policy
        ));
    }
    if !resolved.class.is_empty() {
        spec["priorityClassName"] = resolved.class.into();
    }
    spec["priority"] = resolved.value.into();
    spec["preemptionPolicy"] = resolved.policy.into();
    Ok(())
}

fn resolve(name: &str, snapshot: &Snapshot) -> Result<Resolved, String> {
    if !name.is_empty() {
        let class = known(snapshot, PREFIX, name)
            .ok_or_else(|| format!("no PriorityClass with name {name} was found"))?;
        return Ok(of_class(&class));
    }
    // Two defaults can meet only by a race; the lower one wins then.
    let default = all_known(snapshot, PREFIX)
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64());
    Ok(default.map_or_else(
        || Resolved {
            class: String::new(),
            value: 0,
            policy: PREEMPT.to_owned(),
        },
        |class| of_class(&class),
    ))
}

fn of_class(class: &Value) -> Resolved {
    Resolved {
        class: meta::name(class).to_owned(),
        value: class["value"].as_i64().unwrap_or_default(),
        policy: class["preemptionPolicy"]
            .as_str()
            .unwrap_or(PREEMPT)
            .to_owned(),
    }
}

pub(super) fn validate(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    if !request.is("scheduling.k8s.io", PREFIX)
        || !matches!(request.operation, Operation::Create | Operation::Update)
    {
        return Ok(());
    }
    let Some(class) = &request.object else {
        return Ok(());
    };
    if class["globalDefault"] != true {
        return Ok(());
    }
    let other = all_known(snapshot, PREFIX)
        .find(|other| other["globalDefault"] == true && meta::name(other) != meta::name(class));
    match other {
        Some(other) => Err(request.forbidden(format!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            meta::name(&other)
        ))),
        None => Ok(()),
    }
}
