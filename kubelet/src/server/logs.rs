//! `/containerLogs/NAMESPACE/POD/CONTAINER`: finds the log of the right attempt and streams it.

use super::{Body, Routes, stream, text};
use crate::cri::sandbox_config::log_dir;
use crate::logs::read::{Options, OptionsError, follow};
use crate::pod::containers::any_named;
use http::{Response, StatusCode};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

impl Routes {
    pub(super) async fn container_logs(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &str,
    ) -> Response<Body> {
        let Some(pod) = self.dispatcher.pod(namespace, name) else {
            return text(
                StatusCode::NOT_FOUND,
                &format!("pod \"{name}\" does not exist"),
            );
        };
        if any_named(&pod, container).is_none() {
            let message = format!("container {container} not found in pod {name}_{namespace}");
            return text(StatusCode::NOT_FOUND, &message);
        }
        let options = match Options::parse(query, self.clock.now()) {
            Ok(options) => options,
            Err(OptionsError(message)) => return text(StatusCode::UNPROCESSABLE_ENTITY, &message),
        };
        let live = self.dispatcher.status_of(&pod);
        let attempt = match attempt(live.as_deref(), &pod, container, options.previous) {
            Ok(attempt) => attempt,
            Err(message) => return text(StatusCode::BAD_REQUEST, &message),
        };
        let folder = log_dir(&self.config, &pod).join(container);
        let log = folder.join(format!("{attempt}.log"));
        let over = self.dispatcher.ended(&pod, container, attempt);
        match follow(log, options, over).await {
            Ok(chunks) => stream(chunks),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("failed to open the log: {error}"),
            ),
        }
    }
}

/// Which attempt's log is asked for; an error is upstream's sentence.
fn attempt(
    live: Option<&k8s_openapi::api::core::v1::PodStatus>,
    pod: &Pod,
    container: &str,
    previous: bool,
) -> Result<i32, String> {
    let status = live.or(pod.status.as_ref());
    let found: Option<&ContainerStatus> =
        status.and_then(|status| crate::pod::plan::previous_container(status, container));
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let waiting = |reason: &str| {
        format!("container \"{container}\" in pod \"{pod_name}\" is waiting to start: {reason}")
    };
    let Some(found) = found else {
        return Err(waiting("ContainerCreating"));
    };
    let ran_before = found
        .last_state
        .as_ref()
        .is_some_and(|state| state.terminated.is_some());
    let state = found.state.clone().unwrap_or_default();
    let runs_or_ran = state.running.is_some() || state.terminated.is_some();
    match (previous, runs_or_ran, ran_before) {
        (false, true, _) => Ok(found.restart_count),
        // It waits for its next start: the last attempt's log is the current one.
        (false, false, true) => Ok(found.restart_count),
        (false, false, false) => {
            let reason = state
                .waiting
                .and_then(|waiting| waiting.reason)
                .unwrap_or_else(|| "ContainerCreating".into());
            Err(match reason.as_str() {
                "ImagePullBackOff" | "ErrImagePull" => waiting("trying and failing to pull image"),
                "ErrImageNeverPull" => waiting("image can't be pulled"),
                reason => waiting(reason),
            })
        }
        (true, true, true) => Ok((found.restart_count - 1).max(0)),
        // The attempt that ended is the previous one while the next has not started.
        (true, false, true) => Ok(found.restart_count),
        (true, _, false) => Err(format!(
            "previous terminated container \"{container}\" in pod \"{pod_name}\" not found"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(
        clippy::too_many_lines,
        reason = "a table of cases is as long as it has cases"
    )]
    fn attempts_table() {
        let ended = serde_json::json!({"terminated": {"exitCode": 1}});
        let running = serde_json::json!({"running": {}});
        let waiting = |reason: &str| serde_json::json!({"waiting": {"reason": reason}});
        let none = serde_json::json!({});
        let not_yet = "container \"c\" in pod \"p\" is waiting to start: ";
        let cases = [
            (
                "running first",
                0,
                running.clone(),
                none.clone(),
                false,
                Ok(0),
            ),
            (
                "running again",
                2,
                running.clone(),
                ended.clone(),
                false,
                Ok(2),
            ),
            (
                "the one before",
                2,
                running.clone(),
                ended.clone(),
                true,
                Ok(1),
            ),
            (
                "waiting after a crash",
                2,
                waiting("CrashLoopBackOff"),
                ended.clone(),
                false,
                Ok(2),
            ),
            (
                "the one before, waiting after a crash",
                2,
                waiting("CrashLoopBackOff"),
                ended.clone(),
                true,
                Ok(2),
            ),
            ("ended", 0, ended, none.clone(), false, Ok(0)),
            (
                "not started",
                0,
                waiting("ContainerCreating"),
                none.clone(),
                false,
                Err(format!("{not_yet}ContainerCreating")),
            ),
            (
                "no image",
                0,
                waiting("ImagePullBackOff"),
                none.clone(),
                false,
                Err(format!("{not_yet}trying and failing to pull image")),
            ),
            (
                "none before",
                0,
                running,
                none,
                true,
                Err("previous terminated container \"c\" in pod \"p\" not found".into()),
            ),
        ];
        for (name, count, state, last, previous, expected) in cases {
            let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": count, "state": state, "lastState": last}]}}))
            .unwrap();
            assert_eq!(attempt(None, &pod, "c", previous), expected, "case: {name}");
        }
    }
}
