//! From verb and subresource to the code that answers.

use cox_api::status::ApiStatus;
use http::Response;

use crate::body::Body;
use crate::call::Call;
use crate::subresources;
use crate::verbs::{delete, patch, read, watch, write};

/// Answers an authorized request for a resource.
pub(crate) async fn route(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let resource = &call.entry.resource;
    let verbs = call.sub.map_or(&resource.verbs, |sub| &sub.verbs);
    let verb = call.info.verb;
    // OPTIONS has no verb of its own; behind a proxy it is a method like others.
    let proxied = call.info.subresource == "proxy" && *call.method == http::Method::OPTIONS;
    if !proxied && !verbs.iter().any(|has| has == verb) {
        return Err(
            if call.sub.is_none() && verb == "create" && !call.info.name.is_empty() {
                ApiStatus::method_not_allowed()
            } else {
                ApiStatus::method_not_supported(&resource.group, &resource.plural, verb)
            },
        );
    }
    if let Some(custom) = &call.entry.custom {
        if verb == "create" && custom.terminating {
            let mut refused =
                ApiStatus::method_not_supported(&resource.group, &resource.plural, verb);
            refused.message =
                format!("{verb} not allowed while custom resource definition is terminating");
            return Err(refused);
        }
        if let Some(warning) = &custom.version().deprecation {
            call.warnings.push(warning.clone());
        }
    }
    if call.sub.is_some() {
        return subresources::route(call).await;
    }
    if subresources::is_virtual(call) {
        return subresources::create_virtual(call).await;
    }
    match verb {
        "get" => read::get(call).await,
        "list" => read::list(call).await,
        "watch" => watch::watch(call),
        "create" if !call.info.name.is_empty() => Err(ApiStatus::method_not_allowed()),
        "create" => write::create(call).await,
        "update" => write::update(call).await,
        "patch" => patch::patch(call).await,
        "delete" => delete::delete(call).await,
        "deletecollection" => delete::delete_collection(call).await,
        _ => Err(ApiStatus::method_not_allowed()),
    }
}
