//! `pods/eviction`: deletes a Pod unless a PodDisruptionBudget forbids it.
//!
//! The budgets' `status.disruptionsAllowed` is the authority; with no controller that sets it, a budget allows nothing, as upstream.

use cox_api::selector::LabelSelector;
use cox_api::status::{ApiStatus, Cause};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::body::Body;
use crate::call::Call;
use crate::input::{self, Expected};
use crate::refuse;
use crate::registry::decode_stored;
use crate::render;
use crate::verbs::{delete, read, write};

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
    if needs_budget(&pod) {
        check_budgets(call, &pod)?;
    }
    let dry_run = call.dry_run("CreateOptions")?;
    let admitted = Some(eviction.clone());
    write::admit_other(call, Operation::Create, admitted, None, dry_run).await?;
    delete::evict(call, &eviction["deleteOptions"], dry_run).await?;
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

fn check_budgets(call: &Call<'_>, pod: &Value) -> Result<(), ApiStatus> {
    let labels: Vec<(&str, &str)> = cox_api::meta::labels(pod).collect();
    for budget in call
        .api
        .registry
        .list("policy", "poddisruptionbudgets", call.namespace())
    {
        let budget = decode_stored(&budget.json)?;
        let selector = LabelSelector::from_value(&budget["spec"]["selector"])
            .map_err(|error| refuse::internal(&error.to_string()))?;
        if !selector.matches(labels.iter().copied())
            || budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) > 0
        {
            continue;
        }
        let name = budget["metadata"]["name"].as_str().unwrap_or_default();
        let status = &budget["status"];
        let mut refused = ApiStatus::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            10,
        );
        refused.details.get_or_insert_default().causes.push(Cause {
            reason: "DisruptionBudget".to_owned(),
            message: format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                status["desiredHealthy"].as_i64().unwrap_or(0),
                status["currentHealthy"].as_i64().unwrap_or(0)
            ),
            field: String::new(),
        });
        return Err(refused);
    }
    Ok(())
}
