//! `nodes/proxy` without a port of its own: what the node's kubelet answers under the rest of the path, as it is. A request for a
//! connection that is to be upgraded is not passed on: `pods/exec` and its like are for that.

use cox_api::status::ApiStatus;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Response};

use super::target;
use crate::body::Body;
use crate::call::Call;
use crate::kubelet::proxied;

/// Passes the request on to the kubelet.
pub(super) async fn answer(call: &Call<'_>, rest: &str) -> Result<Response<Body>, ApiStatus> {
    let node = target::node(call)?;
    let path = super::with_query(if rest.is_empty() { "/" } else { rest }, call);
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
