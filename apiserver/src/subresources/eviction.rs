//! `pods/eviction`: deletes a Pod unless a PodDisruptionBudget forbids it.
//!
//! The budget's `status.disruptionsAllowed` is the authority and is charged here, so that two evictions never take the same one;
//! a budget that its controller has not looked at yet allows nothing.

use cox_api::selector::LabelSelector;
use cox_api::status::{ApiStatus, Cause};
use cox_store::{CommitError, Precondition, Revision};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::admission::Operation;
use crate::body::Body;
use crate::call::Call;
use crate::input::{self, Expected};
use crate::refuse;
use crate::registry::{decode_stored, prepare};
use crate::render;
use crate::verbs::write::RACE_ATTEMPTS;
use crate::verbs::{delete, read, write};

/// More evictions that nobody has confirmed are refused.
const DISRUPTED_MAX: usize = 2000;

/// POST of an Eviction.
pub(crate) async fn create(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let schema = call.api.registry.schema();
    let type_id = schema
        .kind_type("policy", "v1", "Eviction")
        .ok_or_else(|| refuse::internal("the schema has no Eviction"))?;
    let expected = Expected {
        kind: "Eviction",
        api_version: "policy/v1",
        type_id,
    };
    let mut eviction = input::decode(call, expected, "CreateOptions")?;
    write::check_names(call, &mut eviction)?;
    let object = read::find(call, &call.api.registry.store().snapshot())?;
    let pod = decode_stored(&object.json)?;
    let dry_run = call.dry_run("CreateOptions")?;
    let admitted = Some(eviction.clone());
    write::admit_other(call, Operation::Create, admitted, None, dry_run).await?;
    let granted = if needs_budget(&pod) {
        ask_budget(call, &pod, dry_run).await?
    } else {
        Granted::Freely
    };
    let at = match &granted {
        Granted::Unhealthy(_) => pod["metadata"]["resourceVersion"].as_str(),
        Granted::Freely => None,
    };
    let mark = |pod: &mut Value| announce(pod, call.now);
    let evicted = delete::evict(call, &eviction["deleteOptions"], dry_run, at, mark).await;
    match (evicted, granted) {
        // It may have become healthy meanwhile.
        (Err(refused), Granted::Unhealthy(budget)) if refused.code == 409 => {
            return Err(processed_still(&budget));
        }
        (evicted, _) => evicted?,
    }
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(render::json_response(
        StatusCode::CREATED,
        render::to_bytes(&success),
    ))
}

/// Pods that run nothing (pending, finished, already going) cost no budget anything.
fn needs_budget(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_string()
        && !matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed" | "Pending")
        )
}

/// How an eviction was granted.
enum Granted {
    /// No budget covers the Pod, or the budget was charged.
    Freely,
    /// The Pod is not healthy as it is seen now, so this budget is not charged.
    Unhealthy(String),
}

/// Asks the Pod's budget, and charges it.
async fn ask_budget(call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<Granted, ApiStatus> {
    let registry = &call.api.registry;
    let entry = registry
        .catalog()
        .stored("policy", "poddisruptionbudgets")
        .ok_or_else(|| refuse::internal("the schema has no PodDisruptionBudgets"))?;
    for _ in 0..RACE_ATTEMPTS {
        let Some((revision, mut budget)) = budget_of(call, pod)? else {
            return Ok(Granted::Freely);
        };
        let name = text(&budget["metadata"]["name"]);
        if !is_ready(pod) && leaves_unhealthy(&budget) {
            return Ok(Granted::Unhealthy(name));
        }
        charge(&mut budget, &text(&pod["metadata"]["name"]), call.now)?;
        if dry_run {
            return Ok(Granted::Freely);
        }
        let at = Precondition::Revision(revision);
        match registry
            .commit_put(entry, call.namespace(), &name, &budget, at)
            .await
        {
            Ok(_) => return Ok(Granted::Freely),
            // The next look finds out what it allows now.
            Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => {}
            Err(error) => return Err(refuse::commit(entry, &name, error)),
        }
    }
    Err(ApiStatus::too_many_requests(
        "couldn't update PodDisruptionBudget due to conflicts",
        10,
    ))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The one budget that covers the Pod.
fn budget_of(call: &Call<'_>, pod: &Value) -> Result<Option<(Revision, Value)>, ApiStatus> {
    let labels: Vec<(&str, &str)> = cox_api::meta::labels(pod).collect();
    let mut found = None;
    let registry = &call.api.registry;
    for stored in registry.list("policy", "poddisruptionbudgets", call.namespace()) {
        let budget = decode_stored(&stored.json)?;
        if !budget["spec"]["selector"].is_object() {
            continue;
        }
        let selector = LabelSelector::from_value(&budget["spec"]["selector"])
            .map_err(|error| refuse::internal(&error.to_string()))?;
        if !selector.matches(labels.iter().copied()) {
            continue;
        }
        if found.replace((stored.revision, budget)).is_some() {
            return Err(refuse::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    }
    Ok(found)
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == kind)
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// Whether a Pod that is not ready may go without being charged.
fn leaves_unhealthy(budget: &Value) -> bool {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy"))
}

fn violated(retry_after_secs: u32, why: String) -> ApiStatus {
    let mut refused = ApiStatus::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        retry_after_secs,
    );
    refused.details.get_or_insert_default().causes.push(Cause {
        reason: "DisruptionBudget".to_owned(),
        message: why,
        field: String::new(),
    });
    refused
}

fn processed_still(budget: &str) -> ApiStatus {
    violated(
        10,
        format!("The disruption budget {budget} is still being processed by the server."),
    )
}

/// Takes one disruption from the budget, if it has one.
fn charge(budget: &mut Value, pod: &str, now: Timestamp) -> Result<(), ApiStatus> {
    let name = text(&budget["metadata"]["name"]);
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(processed_still(&name));
    }
    let granted = status["disruptedPods"].as_object().map_or(0, Map::len);
    if granted > DISRUPTED_MAX {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(violated(10, why.to_owned()));
    }
    if number("disruptionsAllowed") <= 0 {
        return Err(violated(0, why_none(budget, &name)));
    }
    let left = number("disruptionsAllowed") - 1;
    let status = &mut budget["status"];
    status["disruptionsAllowed"] = left.into();
    if !status["disruptedPods"].is_object() {
        status["disruptedPods"] = json!({});
    }
    status["disruptedPods"][pod] = prepare::time_text(now).into();
    if left == 0
        && let Some(conditions) = status["conditions"].as_array_mut()
        && let Some(allowed) = conditions
            .iter_mut()
            .find(|one| one["type"] == "DisruptionAllowed" && one["status"] == "True")
    {
        allowed["status"] = "False".into();
        allowed["reason"] = "InsufficientPods".into();
        allowed["lastTransitionTime"] = prepare::time_text(now).into();
    }
    Ok(())
}

fn why_none(budget: &Value, name: &str) -> String {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let failed = condition(budget, "DisruptionAllowed")
        .filter(|allowed| allowed["status"] == "False")
        .map(|allowed| (text(&allowed["reason"]), text(&allowed["message"])))
        .filter(|(_, message)| !message.is_empty());
    let (desired, current) = (number("desiredHealthy"), number("currentHealthy"));
    match failed {
        Some((reason, message)) if reason == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
        ),
        _ if current <= desired => format!(
            "The disruption budget {name} needs {desired} healthy pods and has {current} currently"
        ),
        Some((reason, message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

/// Tells the Pod why it goes.
fn announce(pod: &mut Value, now: Timestamp) {
    let at = prepare::time_text(now);
    let mut target = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": at});
    if let Some(generation) = pod["metadata"]["generation"].as_i64() {
        target["observedGeneration"] = generation.into();
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|one| one["type"] == "DisruptionTarget")
    {
        Some(present) if present["status"] == "True" => {}
        Some(present) => *present = target,
        None => conditions.push(target),
    }
}
