//! Follows the logs of what `cox up` applied: every container of every Pod that a workload has or gets.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Result;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::task::JoinSet;

use super::apply::Applied;
use crate::console::Console;

/// Prints the logs until the cluster ends.
pub(crate) async fn follow(
    client: Client,
    applied: Vec<Applied>,
    console: Arc<Console>,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for one in applied {
        if let Some((namespace, config)) = pods_of(&one) {
            tasks.spawn(follow_pods(
                Api::namespaced(client.clone(), &namespace),
                config,
                Arc::clone(&console),
            ));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Which Pods belong to a workload: itself, or those that its selector names.
fn pods_of(one: &Applied) -> Option<(String, watcher::Config)> {
    let namespace = one.object.metadata.namespace.clone()?;
    let name = one.object.metadata.name.clone()?;
    if one.kind == "Pod" {
        return Some((
            namespace,
            watcher::Config::default().fields(&format!("metadata.name={name}")),
        ));
    }
    let labels = one
        .object
        .data
        .pointer("/spec/selector/matchLabels")
        .and_then(Value::as_object)?;
    let selector: Vec<String> = labels
        .iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    Some((
        namespace,
        watcher::Config::default().labels(&selector.join(",")),
    ))
}

async fn follow_pods(pods: Api<Pod>, config: watcher::Config, console: Arc<Console>) -> Result<()> {
    let mut seen = HashSet::new();
    let mut streams = JoinSet::new();
    let mut changes = watcher(pods.clone(), config)
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(pod) = changes.try_next().await? {
        for started in started_containers(&pod) {
            if seen.insert(started.clone()) {
                streams.spawn(print_log(pods.clone(), started, Arc::clone(&console)));
            }
        }
    }
    Ok(())
}

/// One run of one container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Run {
    pod: String,
    pod_uid: String,
    container: String,
    alone: bool,
    restarts: i32,
}

fn started_containers(pod: &Pod) -> Vec<Run> {
    let (Some(status), Some(spec)) = (&pod.status, &pod.spec) else {
        return Vec::new();
    };
    let alone = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len) == 1;
    let statuses = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten());
    statuses
        .filter(|status| {
            status
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        })
        .map(|status| Run {
            pod: pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            container: status.name.clone(),
            alone,
            restarts: status.restart_count,
        })
        .collect()
}

async fn print_log(pods: Api<Pod>, run: Run, console: Arc<Console>) {
    let params = LogParams {
        container: Some(run.container.clone()),
        follow: true,
        ..LogParams::default()
    };
    let prefix = if run.alone {
        run.pod.clone()
    } else {
        format!("{}/{}", run.pod, run.container)
    };
    let stream = match pods.log_stream(&run.pod, &params).await {
        Ok(stream) => stream,
        Err(error) => {
            // The Pod may be gone again: its log is not worth the user's attention.
            tracing::debug!(pod = run.pod, %error, "No log to follow");
            return;
        }
    };
    let mut lines = stream.lines();
    while let Ok(Some(line)) = lines.try_next().await {
        console.line(&format!("{prefix} │ {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_a_new_run_and_a_waiting_container_is_none() {
        let pod = |restarts: i32, state: Value| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [{"name": "c"}]},
                "status": {"containerStatuses": [{"name": "c", "restartCount": restarts, "state": state, "ready": true, "image": "", "imageID": ""}]}
            }))
            .unwrap()
        };
        assert!(started_containers(&pod(0, serde_json::json!({"waiting": {}}))).is_empty());
        let first = started_containers(&pod(0, serde_json::json!({"running": {}})));
        let second = started_containers(&pod(1, serde_json::json!({"running": {}})));
        assert!(first[0].alone);
        assert_ne!(first, second);
    }
}
