//! How far a workload has come, in the words of its own status. Pure: object in, progress out.

use serde_json::Value;

/// What a live line says of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) ready: bool,
    /// `2/3 ready`, `waiting: ImagePullBackOff: …`.
    pub(crate) text: String,
}

impl Progress {
    fn ready(text: impl Into<String>) -> Self {
        Self {
            ready: true,
            text: text.into(),
        }
    }
    fn waiting(text: impl Into<String>) -> Self {
        Self {
            ready: false,
            text: text.into(),
        }
    }
}

/// Whether `cox up` waits for objects of this kind.
pub(crate) fn is_awaited(kind: &str) -> bool {
    matches!(
        kind,
        "Pod"
            | "Deployment"
            | "ReplicaSet"
            | "StatefulSet"
            | "DaemonSet"
            | "Job"
            | "ReplicationController"
    )
}

/// Reads the progress of one object as the API server holds it.
pub(crate) fn of(object: &Value) -> Progress {
    match object["kind"].as_str().unwrap_or_default() {
        "Pod" => of_pod(object),
        "Job" => of_job(object),
        "DaemonSet" => of_replicas(
            object,
            count(&object["status"]["desiredNumberScheduled"]),
            "numberReady",
            "updatedNumberScheduled",
        ),
        "Deployment" => of_replicas(
            object,
            desired(object),
            "availableReplicas",
            "updatedReplicas",
        ),
        "StatefulSet" => of_replicas(object, desired(object), "readyReplicas", "updatedReplicas"),
        _ => of_replicas(object, desired(object), "readyReplicas", "replicas"),
    }
}

/// Why a Pod does not run, if its status knows: the first container that waits for more than its turn.
pub(crate) fn trouble(pod: &Value) -> Option<String> {
    for list in ["initContainerStatuses", "containerStatuses"] {
        for container in pod["status"][list].as_array().into_iter().flatten() {
            let waiting = &container["state"]["waiting"];
            let reason = waiting["reason"].as_str().unwrap_or_default();
            if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
                return Some(sentence(reason, waiting["message"].as_str()));
            }
        }
    }
    let unscheduled = pod["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?;
    Some(sentence(
        unscheduled["reason"].as_str().unwrap_or("Unschedulable"),
        unscheduled["message"].as_str(),
    ))
}

fn of_pod(pod: &Value) -> Progress {
    let containers = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    let statuses = pod["status"]["containerStatuses"].as_array();
    let running = statuses
        .into_iter()
        .flatten()
        .filter(|status| status["ready"] == true)
        .count();
    match pod["status"]["phase"].as_str().unwrap_or_default() {
        "Succeeded" => return Progress::ready("completed"),
        "Failed" => {
            let reason = pod["status"]["reason"]
                .as_str()
                .unwrap_or("its containers ended with an error");
            return Progress::waiting(sentence(
                "failed",
                pod["status"]["message"].as_str().or(Some(reason)),
            ));
        }
        _ => {}
    }
    let is_ready = pod["status"]["conditions"].as_array().is_some_and(|c| {
        c.iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    });
    if is_ready {
        return Progress::ready(format!("{running}/{containers} ready"));
    }
    match trouble(pod) {
        Some(trouble) => Progress::waiting(format!("{running}/{containers} ready, {trouble}")),
        None => Progress::waiting(format!("{running}/{containers} ready")),
    }
}

fn of_job(job: &Value) -> Progress {
    let wanted = job["spec"]["completions"].as_u64().unwrap_or(1);
    let text = format!("{}/{wanted} completed", count(&job["status"]["succeeded"]));
    let complete = job["status"]["conditions"].as_array().is_some_and(|c| {
        c.iter()
            .any(|c| c["type"] == "Complete" && c["status"] == "True")
    });
    if complete {
        Progress::ready(text)
    } else {
        Progress::waiting(text)
    }
}

fn of_replicas(object: &Value, wanted: u64, ready: &str, updated: &str) -> Progress {
    let status = &object["status"];
    let observed = count(&status["observedGeneration"]) >= count(&object["metadata"]["generation"]);
    let (ready, updated) = (count(&status[ready]), count(&status[updated]));
    let text = format!("{ready}/{wanted} ready");
    if observed && ready >= wanted && updated >= wanted {
        Progress::ready(text)
    } else {
        Progress::waiting(text)
    }
}

fn desired(object: &Value) -> u64 {
    object["spec"]["replicas"].as_u64().unwrap_or(1)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn sentence(reason: &str, message: Option<&str>) -> String {
    match message.filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    #[allow(
        clippy::too_many_lines,
        reason = "a table of cases is as long as it has cases"
    )]
    fn progress_table() {
        let pod =
            |status: Value| json!({"kind": "Pod", "spec": {"containers": [{}]}, "status": status});
        let deployment = |observed: u64, ready: u64, updated: u64| {
            json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 3},
                   "status": {"observedGeneration": observed, "availableReplicas": ready, "updatedReplicas": updated}})
        };
        let cases = [
            (
                "a new pod waits",
                pod(json!({"phase": "Pending"})),
                false,
                "0/1 ready",
            ),
            (
                "a ready pod is ready",
                pod(
                    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"ready": true}]}),
                ),
                true,
                "1/1 ready",
            ),
            (
                "a container that cannot start says why",
                pod(
                    json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}),
                ),
                false,
                "0/1 ready, ErrImagePull: no such image",
            ),
            (
                "a container whose turn has not come is no trouble",
                pod(
                    json!({"containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
                ),
                false,
                "0/1 ready",
            ),
            (
                "a pod without a node says why",
                pod(
                    json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available."}]}),
                ),
                false,
                "0/1 ready, Unschedulable: 0/1 nodes are available.",
            ),
            (
                "a completed pod is done",
                pod(json!({"phase": "Succeeded"})),
                true,
                "completed",
            ),
            (
                "a deployment that is seen and full is ready",
                deployment(2, 3, 3),
                true,
                "3/3 ready",
            ),
            (
                "an older generation does not count",
                deployment(1, 3, 3),
                false,
                "3/3 ready",
            ),
            (
                "old replicas do not count",
                deployment(2, 3, 1),
                false,
                "3/3 ready",
            ),
            (
                "zero replicas are ready at once",
                json!({"kind": "ReplicaSet", "metadata": {}, "spec": {"replicas": 0}}),
                true,
                "0/0 ready",
            ),
        ];
        for (name, object, ready, text) in cases {
            assert_eq!(
                of(&object),
                Progress {
                    ready,
                    text: text.into()
                },
                "case: {name}"
            );
        }
    }
}
