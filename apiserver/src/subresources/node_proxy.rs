//! `nodes/proxy`: what a node's kubelet answers under the rest of the path, as it is. A request for a connection that is to be
//! upgraded is not passed on: `pods/exec` and its like are for that.

use cox_api::status::ApiStatus;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Response};

use crate::body::Body;
use crate::call::Call;
use crate::kubelet::proxied;
use crate::registry::decode_stored;
use crate::verbs::read;

/// Passes the request on to the kubelet.
pub(crate) async fn answer(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let registry = &call.api.registry;
    let node = decode_stored(&read::find(call, &registry.store().snapshot())?.json)?;
    let mut path = format!("/{}", call.info.rest);
    if !call.query.raw.is_empty() {
        path.push('?');
        path.push_str(call.query.raw);
    }
    let mut headers = HeaderMap::new();
    if let Some(accept) = call.headers.get(ACCEPT) {
        headers.insert(ACCEPT, accept.clone());
    }
    let answer = call
        .api
        .kubelets
        .send(&node, call.method.clone(), &path, headers)
        .await?;
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(proxied(body));
    *response.status_mut() = parts.status;
    if let Some(kind) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}
