//! patch: JSON patch, merge patch, strategic merge patch and server-side apply.
//!
//! A patch that names no resourceVersion is tried again on the newest object when another write came between.

use std::borrow::Cow;
use std::sync::Arc;

use cox_api::codec::{self, Decoded, FieldProblem, ProblemKind};
use cox_api::managed::{self, ApplyError, ApplyOptions};
use cox_api::patch::{self, PatchError};
use cox_api::status::ApiStatus;
use cox_store::Object;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::admission::Operation;
use crate::body::Body;
use crate::call::{Call, FieldValidation};
use crate::content::{self, PatchType};
use crate::input::{self, Expected};
use crate::refuse;
use crate::verbs::write::{self, Outcome, Ownership, Phase, RACE_ATTEMPTS, WriteError};

const OPTIONS: &str = "PatchOptions";

/// PATCH of an object or of one of its parts.
pub(crate) async fn patch(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let dry_run = call.dry_run(OPTIONS)?;
    let validation = call.field_validation(OPTIONS)?;
    let kind = content::patch_type(call.headers, call.entry.custom.is_some())?;
    let body = Patch::read(call, kind, validation)?;
    let entry = call.entry;
    for _ in 0..RACE_ATTEMPTS {
        let snapshot = call.api.registry.store().snapshot();
        let Some(old) = snapshot.get(&entry.prefix, &entry.path(call.namespace(), call.info.name))
        else {
            return create_by_apply(call, &body, dry_run).await;
        };
        drop(snapshot);
        let old_value = call.api.registry.current(entry, &old).await?;
        let patched = if entry.as_stored {
            body.on(call, &old_value, validation)?
        } else {
            let served = entry.from_storage(Value::clone(&old_value));
            Patched::changed(body.on(call, &served, validation)?, &served)
        };
        let (new, ownership) = match patched {
            Patched::Changed(new, ownership) => (new, ownership),
            Patched::Unchanged => {
                if let Some(outcome) = unchanged(call, &old, &old_value, dry_run).await? {
                    return write::respond(call, StatusCode::OK, outcome).await;
                }
                (Value::clone(&old_value), Ownership::Settled)
            }
        };
        let wanted = new["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let current = old.revision.0.to_string();
        if !wanted.is_empty() && wanted != current {
            return Err(refuse::modified(entry, call.info.name));
        }
        let new = entry.to_storage(new);
        match write::change(call, &old, &old_value, new, dry_run, ownership).await {
            Ok(outcome) => return write::respond(call, StatusCode::OK, outcome).await,
            Err(WriteError::Refused(status)) => return Err(status),
            Err(WriteError::Raced) if body.pins_revision() => {
                return Err(refuse::modified(entry, call.info.name));
            }
            Err(WriteError::Raced) => {}
        }
    }
    Err(refuse::modified(entry, call.info.name))
}

/// Apply makes what is not there; no other patch does, and no subresource.
async fn create_by_apply(
    call: &mut Call<'_>,
    body: &Patch,
    dry_run: bool,
) -> Result<Response<Body>, ApiStatus> {
    let Patch::Apply(applied) = body else {
        return Err(refuse::not_found(call.entry, call.info.name));
    };
    if call.sub.is_some() {
        return Err(refuse::not_found(call.entry, call.info.name));
    }
    if applied["metadata"]["uid"]
        .as_str()
        .is_some_and(|uid| !uid.is_empty())
    {
        let why =
            "uid mismatch: the provided object specified uid but no existing object was found";
        return Err(refuse::conflict(call.entry, call.info.name, why));
    }
    let merged = apply(call, None, applied)?.into_owned();
    let outcome = write::create_value(call, merged, dry_run, Ownership::Settled).await?;
    write::respond(call, StatusCode::CREATED, outcome).await
}

/// What an apply that changes nothing leads to. Admission sees it as any other write; the stored object is as valid as it was,
/// so unless admission changes it nothing is left to do and the answer is the stored one. None where others than our own
/// plugins have a say, who are to see all of the object: then it goes the long way.
async fn unchanged(
    call: &Call<'_>,
    old: &Arc<Object>,
    old_value: &Value,
    dry_run: bool,
) -> Result<Option<Outcome>, ApiStatus> {
    let snapshot = call.api.registry.store().snapshot();
    let is_going = old_value["metadata"]["deletionTimestamp"].is_string();
    if call.sub.is_some() || is_going || call.api.admission.asks_others(&snapshot) {
        return Ok(None);
    }
    drop(snapshot);
    let admit = async |object, phase| {
        let (operation, old) = (Operation::Update, Some(old_value));
        write::admit(call, operation, object, old, dry_run, phase).await
    };
    let object = admit(managed::without_owners(old_value), Phase::Mutate).await?;
    if !managed::same_apart_from_owners(old_value, &object) {
        return Ok(None);
    }
    write::warn(call, &object, Some(old_value));
    admit(object, Phase::Validate).await?;
    Ok(Some(Outcome::Stored(Arc::clone(old))))
}

/// What a patch makes of an object, in the served version.
enum Patched {
    /// An apply that the object has seen before.
    Unchanged,
    /// The object, and whether its owners are settled.
    Changed(Value, Ownership),
}

impl Patched {
    /// The same with an object in any case.
    fn changed(self, old: &Value) -> Self {
        match self {
            Patched::Unchanged => Patched::Changed(old.clone(), Ownership::Settled),
            changed @ Patched::Changed(..) => changed,
        }
    }
}

/// A parsed patch.
enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Patch {
    fn read(
        call: &mut Call<'_>,
        kind: PatchType,
        validation: FieldValidation,
    ) -> Result<Self, ApiStatus> {
        if kind != PatchType::Apply {
            if call.query.force.is_some() {
                return Err(refuse::option_forbidden(
                    OPTIONS,
                    "force",
                    "may not be specified for non-apply patch",
                ));
            }
            let value: Value = serde_json::from_slice(&call.body)
                .map_err(|error| refuse::bad_request(format!("error decoding patch: {error}")))?;
            return Ok(match kind {
                PatchType::Json => Patch::Json(value),
                PatchType::Merge => Patch::Merge(value),
                PatchType::Strategic | PatchType::Apply => Patch::Strategic(value),
            });
        }
        if call.query.field_manager.is_none() {
            return Err(refuse::option_required(
                OPTIONS,
                "fieldManager",
                "is required for apply patch",
            ));
        }
        let expected = Expected::object(call);
        let decoded = match &call.entry.custom {
            Some(custom) => custom.version().decode_applied(&call.body),
            None => {
                let schema = call.api.registry.schema();
                codec::decode_applied_yaml(schema, expected.type_id, &call.body)
            }
        };
        let Decoded {
            mut value,
            problems,
        } = decoded.map_err(|error| input::decode_error(&call.body, expected, &error))?;
        for field in ["apiVersion", "kind"] {
            if value[field].as_str().is_none_or(str::is_empty) {
                return Err(refuse::bad_request(format!(
                    "invalid object type: {field} must be set in an apply patch"
                )));
            }
        }
        input::complete_type(&mut value, expected)?;
        write::check_names(call, &mut value)?;
        check_applied(call, validation, &value, &problems)?;
        Ok(Patch::Apply(value))
    }

    /// Carries the patch out.
    fn on(
        &self,
        call: &mut Call<'_>,
        old: &Value,
        validation: FieldValidation,
    ) -> Result<Patched, ApiStatus> {
        let expected = Expected::object(call);
        let schema = call.entry.schema();
        let patched = match self {
            Patch::Apply(applied) => {
                return Ok(match apply(call, Some(old), applied)? {
                    Cow::Borrowed(_) => Patched::Unchanged,
                    Cow::Owned(new) => Patched::Changed(new, Ownership::Settled),
                });
            }
            Patch::Json(operations) => patch::json_patch(old, operations),
            Patch::Merge(change) => patch::merge_patch(old, change),
            Patch::Strategic(change) => {
                patch::strategic_merge(schema, expected.type_id, old, change)
            }
        }
        .map_err(|error| patch_error(call, &error))?;
        let Decoded {
            mut value,
            problems,
        } = call.entry.canonicalize(patched).map_err(|error| {
            refuse::unprocessable(call.entry, call.info.name, &error.to_string())
        })?;
        input::complete_type(&mut value, expected)?;
        input::judge(call, validation, expected, &problems)?;
        write::check_names(call, &mut value)?;
        Ok(Patched::Changed(value, Ownership::Record))
    }

    /// The patch itself says which revision it is for.
    fn pins_revision(&self) -> bool {
        match self {
            Patch::Merge(value) | Patch::Strategic(value) | Patch::Apply(value) => {
                value["metadata"]["resourceVersion"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty())
            }
            Patch::Json(operations) => operations
                .as_array()
                .into_iter()
                .flatten()
                .any(|operation| operation["path"].as_str() == Some("/metadata/resourceVersion")),
        }
    }
}

/// A configuration may name no field that the type lacks, whatever the client says about validation; what comes twice is
/// judged as it says.
fn check_applied(
    call: &mut Call<'_>,
    validation: FieldValidation,
    applied: &Value,
    problems: &[FieldProblem],
) -> Result<(), ApiStatus> {
    let unknown: Vec<String> = problems
        .iter()
        .filter(|problem| problem.kind == ProblemKind::Unknown)
        .map(|problem| format!(".{}: field not declared in schema", problem.path))
        .collect();
    if !unknown.is_empty() {
        let text = |field: &str| applied["metadata"][field].as_str().unwrap_or_default();
        let resource = &call.entry.resource;
        let all = match &unknown[..] {
            [one] => one.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        };
        return Err(refuse::bad_request(format!(
            "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {all}",
            text("namespace"),
            text("name"),
            resource.group,
            resource.version,
            resource.kind
        )));
    }
    if validation == FieldValidation::Ignore || problems.is_empty() {
        return Ok(());
    }
    match codec::yaml_duplicate(&call.body) {
        Some(why) if validation == FieldValidation::Strict => Err(refuse::bad_request(format!(
            "error strict decoding YAML: {why}"
        ))),
        Some(why) => {
            call.warnings.push(why);
            Ok(())
        }
        None => Ok(()),
    }
}

/// Merges a configuration; the outcome is in the canonical form, which the configuration itself is not.
pub(crate) fn apply<'v>(
    call: &Call<'_>,
    live: Option<&'v Value>,
    applied: &Value,
) -> Result<Cow<'v, Value>, ApiStatus> {
    let manager = call.manager();
    let options = ApplyOptions {
        writer: write::writer(call, &manager),
        force: call.query.force.unwrap_or(false),
    };
    let schema = call.entry.schema();
    let type_id = call.entry.resource.type_id;
    let merged = managed::apply(schema, type_id, live, applied, &options).map_err(|error| {
        if let ApplyError::Conflicts(conflicts) = &error {
            refuse::apply_conflicts(&error.to_string(), conflicts)
        } else {
            refuse::bad_request(error.to_string())
        }
    })?;
    if call.entry.custom.is_none() {
        return Ok(merged);
    }
    // A definition has defaults, and fields that it does not know.
    let decoded = call.entry.canonicalize(merged.into_owned());
    let decoded = decoded.map_err(|error| refuse::bad_request(error.to_string()))?;
    Ok(Cow::Owned(decoded.value))
}

fn patch_error(call: &Call<'_>, error: &PatchError) -> ApiStatus {
    refuse::patch(call.entry, call.info.name, error)
}
