//! Effects on running containers: probes, and hooks around start and stop, with the events that upstream records for them.

use super::effects::{NotResized, Outcome, Subject};
use crate::hooks::{self, Done};
use crate::pod::ContainerId;
use crate::pod::containers::{named, spec};
use crate::pod::probe::{ProbeKind, timeout};
use crate::pod::resize::is_bound_by_pod;
use crate::probes::metrics::Probed;
use crate::probes::{self, Found};
use crate::resources::of_pod;
use cox_client::events::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::time::Duration;

/// A container gets at least this long between the end of its preStop hook and the kill.
const GRACE_MIN_SECS: i64 = 2;

impl Subject {
    fn probed<'a>(&'a self, id: &'a ContainerId, container: &'a Container) -> probes::Subject<'a> {
        probes::Subject {
            runtime: &self.shared.runtime,
            container,
            id,
            pod_ip: self
                .addresses
                .pod_ips
                .first()
                .map_or("", |address| address.as_str()),
        }
    }

    /// Makes one probe.
    pub(super) async fn probe(
        self,
        id: ContainerId,
        name: String,
        kind: ProbeKind,
        began: Timestamp,
    ) -> Outcome {
        let result = self.probe_once(&id, &name, kind).await;
        Outcome::Probed {
            id,
            container: name,
            kind,
            began,
            result,
        }
    }

    async fn probe_once(&self, id: &ContainerId, name: &str, kind: ProbeKind) -> Option<bool> {
        let container = named(&self.pod, name)?;
        let probe = kind.of(container)?;
        let began = std::time::Instant::now();
        let found = probes::run(&self.probed(id, container), probe, timeout(probe)).await;
        let title = kind.title();
        let warn = |reason: &str, message: String| {
            self.events
                .container(name, EventType::Warning, reason, message);
        };
        let result = match found {
            Ok(Found::Success) => Some(true),
            Ok(Found::Warning(text)) => {
                warn("ProbeWarning", format!("{title} probe warning: {text}"));
                Some(true)
            }
            Ok(Found::Failure(text)) => {
                warn("Unhealthy", format!("{title} probe failed: {text}"));
                Some(false)
            }
            Err(error) => {
                let message =
                    format!("{title} probe errored and resulted in unknown state: {error}");
                warn("Unhealthy", message);
                None
            }
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let who = Probed {
            kind,
            namespace: text(&self.pod.metadata.namespace),
            pod: text(&self.pod.metadata.name),
            uid: text(&self.pod.metadata.uid),
            container: name.to_owned(),
        };
        self.shared
            .probe_metrics
            .count(who, result, began.elapsed());
        result
    }

    /// Gives a running container other resources.
    pub(super) async fn resize(self, id: ContainerId, name: String, restart: bool) -> Outcome {
        let container = named(&self.pod, &name);
        let resources = container.and_then(|container| container.resources.clone());
        let result = match (container, self.allowed()) {
            (None, _) => Ok(()),
            (Some(_), Err(refused)) => Err(refused),
            (Some(_), Ok(())) if restart => Err(NotResized::NeedsRestart),
            (Some(container), Ok(())) => {
                let memory = self.shared.allocatable.memory_bytes;
                let wanted = crate::cri::resources::linux(&self.pod, container, memory);
                self.resize_within_pod(&id, wanted)
                    .await
                    .map_err(NotResized::Failed)
            }
        };
        Outcome::Resized {
            id,
            container: name,
            resources,
            generation: self.pod.metadata.generation,
            result,
        }
    }

    /// Gives the Pod as a whole other resources, and those of its containers that have no limits but the Pod's.
    pub(super) async fn resize_pod(self) -> Outcome {
        let result = match self.allowed() {
            Ok(()) => self.resize_whole().await.map_err(NotResized::Failed),
            Err(refused) => Err(refused),
        };
        Outcome::PodResized {
            resources: spec(&self.pod).resources.clone(),
            generation: self.pod.metadata.generation,
            result,
        }
    }

    async fn resize_whole(&self) -> Result<(), String> {
        self.widen_cgroup().await?;
        let memory = self.shared.allocatable.memory_bytes;
        let bound_by_pod = |container: &Container| {
            let mut resources = ["cpu", "memory"].into_iter();
            resources.any(|resource| is_bound_by_pod(container, resource))
        };
        for (name, id) in &self.running {
            let Some(container) = named(&self.pod, name).filter(|one| bound_by_pod(one)) else {
                continue;
            };
            let wanted = crate::cri::resources::linux(&self.pod, container, memory);
            let answer = self.shared.runtime.update_resources(id, wanted).await;
            answer.map_err(|error| error.to_string())?;
        }
        self.fit_cgroup().await
    }

    /// Takes what the Pod asks for from the node, if it has it.
    fn allowed(&self) -> Result<(), NotResized> {
        let allocations = &self.shared.allocations;
        if let Some(why) = self.infeasible() {
            allocations.refuse(self.pod.metadata.uid.as_deref().unwrap_or_default());
            return Err(NotResized::Infeasible(why));
        }
        let node = self.shared.node_view().allocatable;
        allocations
            .resize(&self.pod, &node, self.shared.clock.now())
            .map_err(NotResized::Deferred)
    }

    /// Why the node could never give what the Pod asks for.
    fn infeasible(&self) -> Option<String> {
        let node = self.shared.allocatable;
        let asked = of_pod(&self.pod);
        for (name, node) in [("cpu", node.cpu_millis), ("memory", node.memory_bytes)] {
            let asked = asked.get(name).copied().unwrap_or(0);
            if node > 0 && asked > node {
                return Some(format!(
                    "Node didn't have enough capacity: {name}, requested: {asked}, capacity: {node}"
                ));
            }
        }
        None
    }

    /// Runs the postStart hook.
    pub(super) async fn post_start(self, id: ContainerId, name: String) -> Outcome {
        let container = named(&self.pod, &name);
        let hook = container.and_then(|spec| spec.lifecycle.as_ref()?.post_start.as_ref());
        let failed = match (container, hook) {
            (Some(container), Some(hook)) => {
                let result = self.hook(&id, container, hook).await;
                self.tell_hook(&name, "PostStart", result)
            }
            _ => false,
        };
        Outcome::PostStarted {
            id,
            container: name,
            failed,
        }
    }

    /// Runs the preStop hook within the grace; the answer is what is left of it.
    pub(super) async fn pre_stop(&self, id: &ContainerId, name: &str, grace_secs: i64) -> i64 {
        let container = named(&self.pod, name);
        let hook = container.and_then(|spec| spec.lifecycle.as_ref()?.pre_stop.as_ref());
        let (Some(container), Some(hook)) = (container, hook) else {
            return grace_secs;
        };
        if grace_secs <= 0 {
            return grace_secs;
        }
        let began = self.shared.clock.now();
        let grace = Duration::from_secs(grace_secs.unsigned_abs());
        match tokio::time::timeout(grace, self.hook(id, container, hook)).await {
            Ok(result) => {
                self.tell_hook(name, "PreStop", result);
            }
            Err(_) => tracing::debug!(
                container = name,
                grace_secs,
                "PreStop hook did not end within the grace"
            ),
        }
        let spent = self.shared.clock.now().duration_since(began).as_secs();
        (grace_secs - spent).max(GRACE_MIN_SECS)
    }

    async fn hook(
        &self,
        id: &ContainerId,
        container: &Container,
        hook: &LifecycleHandler,
    ) -> Result<Done, String> {
        hooks::run(&self.pod, &self.probed(id, container), hook).await
    }

    /// Says what came of a hook. True when it failed.
    fn tell_hook(&self, container: &str, kind: &str, result: Result<Done, String>) -> bool {
        match result {
            Ok(Done::Plainly) => false,
            Ok(Done::FellBackToHttp) => {
                let message =
                    "request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded";
                self.events
                    .pod(EventType::Warning, "LifecycleHTTPFallback", message);
                false
            }
            Err(error) => {
                tracing::debug!(container, error, "Hook failed");
                // Not the message itself: secrets of the container must not leak into events.
                let reason = format!("Failed{kind}Hook");
                let message = format!("{kind}Hook failed");
                self.events
                    .container(container, EventType::Warning, &reason, message);
                true
            }
        }
    }
}
