//! `metrics.k8s.io`: what nodes and Pods use at this moment, so that `kubectl top` and autoscalers work without anything installed.
//!
//! Nothing is stored and nothing is scraped for nobody: a request asks the kubelets it concerns for their summary. An APIService
//! that a user registers for the group (metrics-server) takes its place.

use cox_api::meta;
use cox_api::schema::{Resource, TypeId};
use cox_api::selector::LabelSelector;
use cox_api::status::ApiStatus;
use futures::future::join_all;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use crate::api::Api;
use crate::body::Body;
use crate::query::Query;
use crate::registry::decode_stored;
use crate::render;
use crate::request::RequestInfo;

pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";
/// A kubelet's summary is about a kilobyte per container.
const SUMMARY_BYTES_MAX: usize = 64 << 20;

/// What is served, for discovery.
pub(crate) fn resources() -> Vec<Resource> {
    let row = |plural: &str, kind: &str, namespaced: bool| Resource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        kind: kind.to_owned(),
        singular: String::new(),
        namespaced,
        verbs: vec!["get".to_owned(), "list".to_owned()],
        short_names: Vec::new(),
        categories: Vec::new(),
        storage_prefix: format!("{GROUP}/{plural}"),
        storage_group: GROUP.to_owned(),
        storage_version: VERSION.to_owned(),
        preferred: false,
        type_id: TypeId::default(),
        subresources: Vec::new(),
        plural: plural.to_owned(),
    };
    vec![
        row("nodes", "NodeMetrics", false),
        row("pods", "PodMetrics", true),
    ]
}

/// Answers a request for the group.
pub(crate) async fn answer(
    api: &Api,
    info: &RequestInfo<'_>,
    query: &Query<'_>,
) -> Result<Response<Body>, ApiStatus> {
    if info.version != VERSION || !info.subresource.is_empty() {
        return Err(ApiStatus::unknown_path());
    }
    let is_list = match info.verb {
        "get" => false,
        "list" => true,
        _ => return Err(ApiStatus::method_not_allowed()),
    };
    let selector = query.param("labelSelector");
    let selector = LabelSelector::parse(selector.as_deref().unwrap_or_default())
        .map_err(|error| ApiStatus::bad_request(error.to_string()))?;
    let (kind, items) = match info.resource {
        "nodes" => (
            "NodeMetricsList",
            of_nodes(api, info, is_list, &selector).await?,
        ),
        "pods" => (
            "PodMetricsList",
            of_pods(api, info, is_list, &selector).await?,
        ),
        _ => return Err(ApiStatus::unknown_path()),
    };
    let body = if is_list {
        json!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items})
    } else {
        let found = items.into_iter().next();
        found.ok_or_else(|| ApiStatus::not_found(GROUP, info.resource, info.name))?
    };
    let body = render::to_bytes(&body);
    Ok(render::json_response(StatusCode::OK, body))
}

fn selected(selector: &LabelSelector, object: &Value) -> bool {
    let labels: Vec<_> = meta::labels(object).collect();
    selector.matches(labels.iter().copied())
}

async fn of_nodes(
    api: &Api,
    info: &RequestInfo<'_>,
    is_list: bool,
    selector: &LabelSelector,
) -> Result<Vec<Value>, ApiStatus> {
    let nodes = stored(api, "nodes", "")?;
    let wanted = nodes
        .into_iter()
        .filter(|node| (is_list || meta::name(node) == info.name) && selected(selector, node));
    let found = wanted.map(|node| async move {
        let summary = summary(api, &node).await?;
        Some(node_metrics(&node, &summary))
    });
    Ok(join_all(found).await.into_iter().flatten().collect())
}

async fn of_pods(
    api: &Api,
    info: &RequestInfo<'_>,
    is_list: bool,
    selector: &LabelSelector,
) -> Result<Vec<Value>, ApiStatus> {
    let pods = stored(api, "pods", info.namespace)?;
    let pods: Vec<Value> = pods
        .into_iter()
        .filter(|pod| (is_list || meta::name(pod) == info.name) && selected(selector, pod))
        .filter(|pod| pod["status"]["phase"] == "Running")
        .collect();
    let on = |pod: &Value| {
        pod["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let nodes: std::collections::BTreeSet<String> = pods.iter().map(on).collect();
    let asked = nodes.into_iter().map(|name| async move {
        let node = api.registry.value("", "nodes", "", &name)?;
        let summary = summary(api, &node).await?;
        Some((name, summary))
    });
    let summaries: std::collections::BTreeMap<String, Value> =
        join_all(asked).await.into_iter().flatten().collect();
    let metrics = pods
        .iter()
        .filter_map(|pod| pod_metrics(pod, summaries.get(&on(pod))?));
    Ok(metrics.collect())
}

fn stored(api: &Api, plural: &str, namespace: &str) -> Result<Vec<Value>, ApiStatus> {
    let objects = api.registry.list("", plural, namespace);
    objects
        .iter()
        .map(|object| decode_stored(&object.json))
        .collect()
}

/// What a node's kubelet says; `None`: it does not answer, and is left out, as others do.
async fn summary(api: &Api, node: &Value) -> Option<Value> {
    let answer = api.kubelets.get(node, "/stats/summary").await;
    let answer = answer
        .inspect_err(|status| tracing::debug!(message = status.message, "Kubelet has no figures"))
        .ok()?;
    if !answer.status().is_success() {
        return None;
    }
    let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX)
        .collect()
        .await
        .ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}

fn usage(cpu: &Value, memory: &Value) -> Value {
    json!({
        "cpu": format!("{}n", cpu["usageNanoCores"].as_u64().unwrap_or(0)),
        "memory": format!("{}Ki", memory["workingSetBytes"].as_u64().unwrap_or(0) / 1024),
    })
}

/// Times in answers have no fractions.
fn whole_seconds(time: &Value) -> Value {
    let time = time
        .as_str()
        .and_then(|time| time.parse::<jiff::Timestamp>().ok());
    time.map_or(Value::Null, |time| {
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
    })
}

fn head(kind: &str, object: &Value, time: &Value) -> Value {
    let mut metadata =
        json!({"name": meta::name(object), "creationTimestamp": whole_seconds(time)});
    for key in ["namespace", "labels"] {
        if !object["metadata"][key].is_null() {
            metadata[key] = object["metadata"][key].clone();
        }
    }
    json!({
        "kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata,
        "timestamp": whole_seconds(time), "window": "10s",
    })
}

fn node_metrics(node: &Value, summary: &Value) -> Value {
    let of = &summary["node"];
    let mut shown = head("NodeMetrics", node, &of["cpu"]["time"]);
    shown["usage"] = usage(&of["cpu"], &of["memory"]);
    shown
}

fn pod_metrics(pod: &Value, summary: &Value) -> Option<Value> {
    let pods = summary["pods"].as_array()?;
    let of = pods
        .iter()
        .find(|of| of["podRef"]["uid"] == pod["metadata"]["uid"])?;
    let containers = of["containers"].as_array()?;
    let time = &containers.first()?["cpu"]["time"];
    let mut shown = head("PodMetrics", pod, time);
    shown["containers"] = containers
        .iter()
        .map(|one| json!({"name": one["name"], "usage": usage(&one["cpu"], &one["memory"])}))
        .collect();
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_becomes_usage() {
        let pod =
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}}});
        let summary = json!({"pods": [{"podRef": {"uid": "u"}, "containers": [{"name": "c",
            "cpu": {"time": "2026-01-01T00:00:01.5Z", "usageNanoCores": 1500}, "memory": {"workingSetBytes": 4096}}]}]});
        let shown = pod_metrics(&pod, &summary).unwrap();
        assert_eq!(shown["timestamp"], "2026-01-01T00:00:01Z");
        assert_eq!(shown["metadata"]["labels"]["a"], "b");
        assert_eq!(
            shown["containers"],
            json!([{"name": "c", "usage": {"cpu": "1500n", "memory": "4Ki"}}])
        );
        let other = json!({"metadata": {"name": "q", "uid": "v"}});
        assert_eq!(pod_metrics(&other, &summary), None);
    }
}
