//! Questions about identity and permission, and service account tokens: decoded here, answered by [`crate::auth`].

use cox_api::status::ApiStatus;
use http::{Response, StatusCode};

use crate::auth::{reviews, token_request};
use crate::body::Body;
use crate::call::Call;
use crate::input::{self, Expected};
use crate::refuse;
use crate::render;

/// POST of a review.
pub(crate) async fn create(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let body = input::decode(call, Expected::object(call), "CreateOptions")?;
    let api = call.api;
    let answer = reviews::create(
        &api.authn,
        &api.authz,
        call.user,
        &call.entry.resource.plural,
        call.namespace(),
        body,
    )
    .await?;
    Ok(render::value(call, StatusCode::CREATED, &answer))
}

/// POST of a TokenRequest.
pub(crate) fn create_token(call: &mut Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let schema = call.api.registry.schema();
    let type_id = schema
        .kind_type("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| refuse::internal("the schema has no TokenRequest"))?;
    let expected = Expected {
        kind: "TokenRequest",
        api_version: "authentication.k8s.io/v1",
        type_id,
    };
    let body = input::decode(call, expected, "CreateOptions")?;
    let api = call.api;
    let answer = token_request::create(
        &api.authn,
        call.user,
        call.namespace(),
        call.info.name,
        body,
    )?;
    Ok(render::value(call, StatusCode::CREATED, &answer))
}
