//! `scale`: an autoscaling/v1 Scale read out of and written into an object's replicas.

use std::sync::Arc;

use cox_api::codec;
use cox_api::schema::TypeId;
use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::body::Body;
use crate::call::Call;
use crate::content::{self, PatchType};
use crate::input::{self, Expected};
use crate::refuse;
use crate::render;
use crate::verbs::write::{self, Outcome, Ownership, RACE_ATTEMPTS, WriteError};
use crate::verbs::{patch, read};

const API_VERSION: &str = "autoscaling/v1";

/// GET of the scale.
pub(crate) async fn get(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let object = read::find(call, &call.api.registry.store().snapshot())?;
    let current = call.api.registry.current(call.entry, &object).await?;
    let scale = scale_of(call, &current)?;
    Ok(render::value(call, StatusCode::OK, &scale))
}

/// PUT of the scale.
pub(crate) async fn update(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let dry_run = call.dry_run("UpdateOptions")?;
    let expected = expected(call)?;
    let mut scale = input::decode(call, expected, "UpdateOptions")?;
    write::check_names(call, &mut scale)?;
    change(call, dry_run, |call, object| scaled(call, object, &scale)).await
}

/// PATCH of the scale, of any of the four types.
pub(crate) async fn patch(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let dry_run = call.dry_run("PatchOptions")?;
    let kind = content::patch_type(call.headers, call.entry.custom.is_some())?;
    let expected = expected(call)?;
    let schema = call.api.registry.schema();
    if kind == PatchType::Apply {
        let decoded = codec::decode_applied_yaml(schema, expected.type_id, &call.body);
        let applied = decoded
            .map_err(|error| input::decode_error(&call.body, expected, &error))?
            .value;
        return change(call, dry_run, |call, object| {
            let configuration = call.entry.scale_configuration(object, &applied);
            Ok((
                patch::apply(call, Some(object), &configuration)?.into_owned(),
                Ownership::Settled,
            ))
        })
        .await;
    }
    let parsed: Value = serde_json::from_slice(&call.body)
        .map_err(|error| refuse::bad_request(format!("error decoding patch: {error}")))?;
    change(call, dry_run, |call, object| {
        let scale = scale_of(call, object)?;
        let patched = match kind {
            PatchType::Json => cox_api::patch::json_patch(&scale, &parsed),
            PatchType::Merge => cox_api::patch::merge_patch(&scale, &parsed),
            PatchType::Strategic | PatchType::Apply => {
                cox_api::patch::strategic_merge(schema, expected.type_id, &scale, &parsed)
            }
        };
        let patched = patched.map_err(|error| refuse::patch(call.entry, call.info.name, &error))?;
        let decoded = codec::canonicalize(schema, expected.type_id, patched).map_err(|error| {
            refuse::unprocessable(call.entry, call.info.name, &error.to_string())
        })?;
        scaled(call, object, &decoded.value)
    })
    .await
}

/// The object with the replicas of a scale, which may say for which revision it is.
fn scaled(call: &Call<'_>, object: &Value, scale: &Value) -> Result<(Value, Ownership), ApiStatus> {
    let wanted = scale["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    if !wanted.is_empty() && object["metadata"]["resourceVersion"] != wanted {
        return Err(refuse::modified(call.entry, call.info.name));
    }
    if scale["spec"]["replicas"].as_i64().unwrap_or(0) < 0 {
        let why = "must be greater than or equal to 0";
        let errors = vec![FieldError::invalid(
            "spec.replicas",
            scale["spec"]["replicas"].clone(),
            why,
        )];
        return Err(ApiStatus::invalid(
            "autoscaling",
            "Scale",
            call.info.name,
            errors,
        ));
    }
    let mut new = object.clone();
    call.entry.set_scale(&mut new, scale);
    Ok((new, Ownership::Record))
}

/// Reads, lets `edit` make the new object, writes; again when somebody else was faster.
async fn change<F>(call: &mut Call<'_>, dry_run: bool, edit: F) -> Result<Response<Body>, ApiStatus>
where
    F: Fn(&Call<'_>, &Value) -> Result<(Value, Ownership), ApiStatus> + Send,
{
    for _ in 0..RACE_ATTEMPTS {
        let old = read::find(call, &call.api.registry.store().snapshot())?;
        let old_value = call.api.registry.current(call.entry, &old).await?;
        let (new, ownership) = edit(call, &old_value)?;
        match write::change(call, &old, &old_value, new, dry_run, ownership).await {
            Ok(outcome) => {
                let value = match outcome {
                    Outcome::Stored(object) => {
                        call.api.registry.current(call.entry, &object).await?
                    }
                    Outcome::Dry(value) => Arc::new(value),
                };
                return Ok(render::value(
                    call,
                    StatusCode::OK,
                    &scale_of(call, &value)?,
                ));
            }
            Err(WriteError::Refused(status)) => return Err(status),
            // A scale for a certain revision finds out on the next look that it is not the present one.
            Err(WriteError::Raced) => {}
        }
    }
    Err(refuse::modified(call.entry, call.info.name))
}

fn scale_of(call: &Call<'_>, value: &Value) -> Result<Value, ApiStatus> {
    call.entry
        .scale_of(value)
        .ok_or_else(|| refuse::not_found(call.entry, call.info.name))
}

fn expected(call: &Call<'_>) -> Result<Expected<'static>, ApiStatus> {
    let type_id: Option<TypeId> =
        call.api
            .registry
            .schema()
            .kind_type("autoscaling", "v1", "Scale");
    let type_id =
        type_id.ok_or_else(|| refuse::internal("the schema has no autoscaling/v1 Scale"))?;
    Ok(Expected {
        kind: "Scale",
        api_version: API_VERSION,
        type_id,
    })
}
