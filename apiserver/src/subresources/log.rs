//! `pods/log`: passed on from the kubelet of the Pod's node.

use cox_api::status::ApiStatus;
use http::{HeaderValue, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::body::Body;
use crate::call::Call;
use crate::refuse;
use crate::registry::decode_stored;
use crate::verbs::read;

/// Options that the kubelet reads under the same names.
const PASSED_ON: [&str; 8] = [
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "tailLines",
    "limitBytes",
    "timestamps",
    "stream",
];

/// GET of a container's log.
pub(crate) async fn get(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let registry = &call.api.registry;
    let pod = decode_stored(&read::find(call, &registry.store().snapshot())?.json)?;
    let name = call.info.name;
    let container = container(&pod, name, call.query.param("container").as_deref())?;
    let Some(node_name) = pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty())
    else {
        // Upstream answers an unscheduled Pod with an empty log.
        return Ok(plain(Response::new(Body::from(Vec::new()))));
    };
    let node = registry
        .value("", "nodes", "", node_name)
        .ok_or_else(|| ApiStatus::not_found("", "nodes", node_name))?;
    let mut path = format!("/containerLogs/{}/{name}/{container}", call.namespace());
    let mut separator = '?';
    for option in PASSED_ON {
        if let Some(value) = call.query.param(option) {
            path.push_str(&format!(
                "{separator}{option}={}",
                utf8_percent_encode(&value, NON_ALPHANUMERIC)
            ));
            separator = '&';
        }
    }
    let response = call.api.kubelets.get(&node, &path).await?;
    pass_on(response).await
}

/// A log as it is; a complaint of the kubelet as a Status.
pub(super) async fn pass_on(response: Response<Body>) -> Result<Response<Body>, ApiStatus> {
    use http_body_util::BodyExt;
    if response.status().is_success() {
        return Ok(plain(Response::new(response.into_body())));
    }
    let code = response.status().as_u16();
    let text = http_body_util::Limited::new(response.into_body(), 64 * 1024)
        .collect()
        .await;
    let text = text
        .map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned())
        .unwrap_or_default();
    Err(match code {
        404 => ApiStatus::new(cox_api::status::Reason::NotFound, text),
        400..=499 => refuse::bad_request(text),
        _ => ApiStatus::internal(text),
    })
}

fn plain(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain"),
    );
    response
}

/// The container asked for, or the only one, or the one that the Pod's annotation names.
pub(super) fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, ApiStatus> {
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["name"].as_str())
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    match asked.filter(|asked| !asked.is_empty()) {
        Some(asked)
            if main.contains(&asked) || init.contains(&asked) || ephemeral.contains(&asked) =>
        {
            Ok(asked.to_owned())
        }
        Some(asked) => Err(refuse::bad_request(format!(
            "container {asked} is not valid for pod {name}"
        ))),
        None if main.len() == 1 => Ok(main[0].to_owned()),
        None => {
            let default =
                pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
            if let Some(default) = default.filter(|default| main.contains(default)) {
                return Ok(default.to_owned());
            }
            let init_text = if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            };
            Err(refuse::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]{init_text}",
                main.join(" ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_chosen_as_upstream_chooses() {
        let one =
            json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let cases = [
            (&one, None, Ok("a")),
            (&one, Some("i"), Ok("i")),
            (&one, Some("x"), Err("container x is not valid for pod p")),
            (
                &two,
                None,
                Err("a container name must be specified for pod p, choose one of: [a b]"),
            ),
            (&two, Some("b"), Ok("b")),
        ];
        for (pod, asked, expected) in cases {
            let got = container(pod, "p", asked).map_err(|status| status.message);
            assert_eq!(
                got.as_deref().map_err(String::as_str),
                expected,
                "case: {asked:?}"
            );
        }
    }
}
