//! From what went wrong here to the Status that upstream answers: the one table of this crate.

use cox_api::managed::Conflict;
use cox_api::patch::PatchError;
use cox_api::status::{ApiStatus, Cause, Reason};
use cox_api::validation::FieldError;
use cox_store::CommitError;
use serde_json::Value;

use crate::registry::Entry;

/// Group of the kinds that options are.
const META: &str = "meta.k8s.io";

pub(crate) fn not_found(entry: &Entry, name: &str) -> ApiStatus {
    ApiStatus::not_found(&entry.resource.group, &entry.resource.plural, name)
}

pub(crate) fn already_exists(entry: &Entry, name: &str) -> ApiStatus {
    ApiStatus::already_exists(&entry.resource.group, &entry.resource.plural, name)
}

pub(crate) fn generated_name_taken(entry: &Entry, name: &str) -> ApiStatus {
    ApiStatus::generate_name_conflict(&entry.resource.group, &entry.resource.plural, name)
}

/// The object is not the one that the client saw.
pub(crate) fn modified(entry: &Entry, name: &str) -> ApiStatus {
    ApiStatus::conflict(&entry.resource.group, &entry.resource.plural, name)
}

pub(crate) fn conflict(entry: &Entry, name: &str, why: &str) -> ApiStatus {
    ApiStatus::conflict_because(&entry.resource.group, &entry.resource.plural, name, why)
}

pub(crate) fn bad_request(message: impl Into<String>) -> ApiStatus {
    ApiStatus::bad_request(message)
}

/// Refuses an object that validation complains about.
pub(crate) fn invalid_if(
    entry: &Entry,
    value: &Value,
    errors: Vec<FieldError>,
) -> Result<(), ApiStatus> {
    if errors.is_empty() {
        return Ok(());
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiStatus::invalid(
        &entry.resource.group,
        &entry.resource.kind,
        name,
        errors,
    ))
}

pub(crate) fn must_be_specified_for_update(entry: &Entry, name: &str) -> ApiStatus {
    let errors = vec![FieldError::invalid(
        "metadata.resourceVersion",
        0,
        "must be specified for an update",
    )];
    ApiStatus::invalid(&entry.resource.group, &entry.resource.kind, name, errors)
}

/// What a patch left does not decode as its kind.
pub(crate) fn unprocessable(entry: &Entry, name: &str, why: &str) -> ApiStatus {
    let errors = vec![FieldError::invalid("patch", Value::Null, why)];
    ApiStatus::invalid(&entry.resource.group, &entry.resource.kind, name, errors)
}

pub(crate) fn patch(entry: &Entry, name: &str, error: &PatchError) -> ApiStatus {
    match error {
        PatchError::Malformed(why) => bad_request(why.clone()),
        PatchError::TooManyOperations(_) => {
            ApiStatus::new(Reason::RequestEntityTooLarge, error.to_string())
        }
        PatchError::Unprocessable(why) => {
            let status = ApiStatus::new(
                Reason::Invalid,
                "the server rejected our request due to an error in our request",
            );
            tracing::debug!(resource = %entry.resource.plural, name, why, "Patch does not fit its object");
            ApiStatus {
                message: format!("{}: {why}", status.message),
                ..status
            }
        }
    }
}

pub(crate) fn apply_conflicts(message: &str, conflicts: &[Conflict]) -> ApiStatus {
    let cause = |conflict: &Conflict| Cause {
        reason: "FieldManagerConflict".to_owned(),
        message: conflict.cause_message(),
        field: conflict.field(),
    };
    ApiStatus::apply_conflict(message, conflicts.iter().map(cause).collect())
}

pub(crate) fn option_unsupported(
    kind: &str,
    field: &str,
    value: &str,
    supported: &[&str],
) -> ApiStatus {
    ApiStatus::invalid(
        META,
        kind,
        "",
        vec![FieldError::not_supported(field, value, supported)],
    )
}

pub(crate) fn option_forbidden(kind: &str, field: &str, why: &str) -> ApiStatus {
    ApiStatus::invalid(META, kind, "", vec![FieldError::forbidden(field, why)])
}

/// Refuses options that validation complains about.
pub(crate) fn options_if(kind: &str, errors: Vec<FieldError>) -> Result<(), ApiStatus> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiStatus::invalid(META, kind, "", errors))
    }
}

pub(crate) fn option_required(kind: &str, field: &str, why: &str) -> ApiStatus {
    ApiStatus::invalid(META, kind, "", vec![FieldError::required(field, why)])
}

pub(crate) fn option_invalid(kind: &str, field: &str, value: &str, why: &str) -> ApiStatus {
    ApiStatus::invalid(META, kind, "", vec![FieldError::invalid(field, value, why)])
}

pub(crate) fn expired(message: &str) -> ApiStatus {
    ApiStatus::expired(message)
}

/// A continue token whose revision is gone; `fresh` goes on from the present state.
pub(crate) fn continue_expired(fresh: String) -> ApiStatus {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                   the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
                   Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted \
                   between the time the first chunk was returned and now may show up in the list.";
    let mut status = ApiStatus::expired(message);
    status.details.get_or_insert_default().continue_token = fresh;
    status
}

pub(crate) fn internal(what: &str) -> ApiStatus {
    tracing::error!(what, "Request failed for a reason of our own");
    ApiStatus::internal(what)
}

/// A form that the answer does not have.
pub(crate) fn not_acceptable(message: String) -> ApiStatus {
    ApiStatus {
        message,
        ..ApiStatus::not_acceptable(&[])
    }
}

pub(crate) fn unsupported_media_type(accepted: &[&str]) -> ApiStatus {
    ApiStatus::unsupported_media_type(accepted)
}

pub(crate) fn too_large_resource_version(wanted: u64, current: u64) -> ApiStatus {
    ApiStatus::too_large_resource_version(wanted, current)
}

/// A commit that failed for another reason than its precondition (or whose precondition the caller has nothing to say about).
pub(crate) fn commit(entry: &Entry, name: &str, error: CommitError) -> ApiStatus {
    match error {
        CommitError::Exists(_) => already_exists(entry, name),
        CommitError::NotFound(_) => not_found(entry, name),
        CommitError::Conflict(_) => modified(entry, name),
        error => store(&error),
    }
}

/// A store that cannot be read or written as it should.
pub(crate) fn store(error: &CommitError) -> ApiStatus {
    match error {
        CommitError::Closed => {
            ApiStatus::service_unavailable("the server is shutting down").retry_after(1)
        }
        CommitError::Unavailable(_) => {
            tracing::warn!(%error, "Request failed for the store");
            ApiStatus::service_unavailable(error.to_string()).retry_after(1)
        }
        CommitError::Unknown(_) => {
            tracing::warn!(%error, "Request failed for the store");
            ApiStatus::timeout(error, 1)
        }
        error => internal(&error.to_string()),
    }
}
