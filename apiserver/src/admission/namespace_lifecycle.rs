//! NamespaceLifecycle: nothing new in a namespace that is missing or going, and some namespaces never go.

use cox_api::meta;
use cox_api::status::{ApiStatus, Cause, Details};
use cox_store::Snapshot;

use super::decoded::known;
use super::{Operation, Request};

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) fn admit(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    if request.resource.plural == "namespaces" && request.resource.group.is_empty() {
        let immortal = IMMORTAL.contains(&request.name);
        if request.operation == Operation::Delete && request.subresource.is_empty() && immortal {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        return Ok(());
    }
    let asks_about_access = request.resource.group == "authorization.k8s.io";
    if request.namespace.is_empty()
        || asks_about_access
        || matches!(request.operation, Operation::Delete | Operation::Connect)
    {
        return Ok(());
    }
    let Some(namespace) = known(snapshot, "namespaces", request.namespace) else {
        return Err(ApiStatus::not_found("", "namespaces", request.namespace));
    };
    let terminating =
        namespace["status"]["phase"] == "Terminating" || meta::is_deleting(&namespace);
    if request.operation == Operation::Create && terminating {
        return Err(is_terminating(request));
    }
    Ok(())
}

fn is_terminating(request: &Request<'_>) -> ApiStatus {
    let namespace = request.namespace;
    let mut status = request.forbidden(format!(
        "unable to create new content in namespace {namespace} because it is being terminated"
    ));
    let details = status
        .details
        .get_or_insert_with(|| Box::new(Details::default()));
    details.causes.push(Cause {
        reason: "NamespaceTerminating".to_owned(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".to_owned(),
    });
    status
}
