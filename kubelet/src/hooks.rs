//! Carries out lifecycle hooks: postStart and preStop by exec, HTTP or sleep. The error is for the log; events say only that a hook
//! failed, so that nothing of a container's output leaks into them.

use crate::pod::containers::display;
use crate::probes::{self, exec, http};
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use std::time::Duration;

/// How long an HTTP hook may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// What came of a hook that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Plainly,
    /// The server did not speak TLS, and HTTP worked.
    FellBackToHttp,
}

/// Runs a hook to its end. Whoever calls it bounds it by the grace period.
pub async fn run(
    pod: &Pod,
    subject: &probes::Subject<'_>,
    handler: &LifecycleHandler,
) -> Result<Done, String> {
    let name = &subject.container.name;
    let about = format!(
        "for Container \"{name}\" in Pod \"{}\" failed - error:",
        display(pod)
    );
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match exec::run(subject.runtime, subject.id, command, Duration::ZERO).await {
            Ok(ended) if ended.code == 0 => Ok(Done::Plainly),
            Ok(ended) => Err(format!(
                "Exec lifecycle hook ([{shown}]) {about} command '{shown}' exited with {}, message: \"{}\"",
                ended.code, ended.output
            )),
            Err(error) => Err(format!("Exec lifecycle hook ([{shown}]) {about} {error}")),
        };
    }
    if let Some(action) = &handler.http_get {
        let mut url = http::Url::of(action, subject.container, subject.pod_ip)?;
        let path = action.path.as_deref().unwrap_or_default();
        let headers = http::headers(action, "kube-lifecycle/1.36");
        let tried = tokio::time::timeout(HTTP_TIMEOUT, http::get(&url, headers.clone())).await;
        let failed =
            |error: &dyn std::fmt::Display| format!("HTTP lifecycle hook ({path}) {about} {error}");
        return match tried {
            // Whatever the server answers, it was told.
            Ok(Ok(_)) => Ok(Done::Plainly),
            Ok(Err(error)) if url.is_https && error.is_not_tls() => {
                url.is_https = false;
                let mut headers = headers;
                headers.remove(::http::header::AUTHORIZATION);
                match tokio::time::timeout(HTTP_TIMEOUT, http::get(&url, headers)).await {
                    Ok(Ok(_)) => Ok(Done::FellBackToHttp),
                    Ok(Err(_)) | Err(_) => Err(failed(&error)),
                }
            }
            Ok(Err(error)) => Err(failed(&error)),
            Err(elapsed) => Err(failed(&elapsed)),
        };
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0).unsigned_abs())).await;
        return Ok(Done::Plainly);
    }
    Err("Cannot run handler: invalid handler".to_owned())
}
