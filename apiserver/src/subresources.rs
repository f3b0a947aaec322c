//! Subresources that are more than an update of a part: scale, binding, eviction, logs, tokens; and the resources that are
//! questions and never stored.

mod binding;
pub(crate) mod connect;
mod eviction;
mod log;
mod proxy;
mod reviews;
mod scale;

use cox_api::schema::Resource;
use cox_api::status::ApiStatus;
use http::Response;

use crate::body::Body;
use crate::call::Call;
use crate::verbs::{patch, read, write};

/// Answers a request for a subresource.
pub(crate) async fn route(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    match (call.sub_name(), call.info.verb) {
        ("scale", "get") => scale::get(call).await,
        ("scale", "update") => scale::update(call).await,
        ("scale", "patch") => scale::patch(call).await,
        ("binding", "create") => binding::create(call).await,
        ("eviction", "create") => eviction::create(call).await,
        ("token", "create") => reviews::create_token(call),
        ("log", "get") => log::get(call).await,
        ("exec" | "attach" | "portforward", _) => connect::connect(call).await,
        ("proxy", _) => proxy::answer(call).await,
        (_, "get") => read::get(call).await,
        (_, "update") => write::update(call).await,
        (_, "patch") => patch::patch(call).await,
        _ => Err(ApiStatus::method_not_allowed()),
    }
}

/// The resource is never stored: creating one asks a question or does something else.
pub(crate) fn is_virtual(call: &Call<'_>) -> bool {
    let resource = &call.entry.resource;
    matches!(
        resource.group.as_str(),
        "authentication.k8s.io" | "authorization.k8s.io"
    ) || (resource.group.is_empty()
        && matches!(resource.plural.as_str(), "bindings" | "componentstatuses"))
}

/// Such a resource that has nothing to list either.
pub(crate) fn is_question(resource: &Resource) -> bool {
    matches!(
        resource.group.as_str(),
        "authentication.k8s.io" | "authorization.k8s.io"
    ) || (resource.group.is_empty() && resource.plural == "bindings")
}

/// Answers a request for such a resource.
pub(crate) async fn create_virtual(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    match call.entry.resource.plural.as_str() {
        "bindings" => binding::create(call).await,
        // Upstream answers these from health checks of parts that this server does not have apart from itself.
        "componentstatuses" if call.info.verb == "list" => read::list(call).await,
        "componentstatuses" => read::get(call).await,
        _ => reviews::create(call).await,
    }
}
