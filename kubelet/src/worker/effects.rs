//! Carries out one step of a plan. One match, no decisions: what an outcome means is decided in the actor's fold.

use super::events::PodEvents;
use super::last_words;
use super::shared::Shared;
use crate::cri::client::CriError;
use crate::cri::container_config::{Resolved, container_config};
use crate::cri::env::EnvSources;
use crate::cri::hosts_file;
use crate::cri::images::{Found, Missing};
use crate::cri::sandbox_config::{domain, hostname, log_dir, sandbox_config};
use crate::cri::{env, observe, security};
use crate::pod::containers::{any_named, spec, spec_hash, target_of};
use crate::pod::fields::PodAddresses;
use crate::pod::history::{ImageState, ResolvedImage};
use crate::pod::plan::PodNetwork;
use crate::pod::probe::ProbeKind;
use crate::pod::view::{ContainerPhase, ContainerView, SandboxView};
use crate::pod::{ContainerId, SandboxId};
use cox_client::events::EventType;
use cox_cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What came of a step.
#[derive(Debug)]
pub enum Outcome {
    Volumes(Result<Option<Timestamp>, String>),
    /// The node cannot give what the Pod needs, found out only now.
    Refused(String),
    Image {
        container: String,
        result: Result<Found, Missing>,
    },
    Sandbox(Result<MadeSandbox, String>),
    Started {
        container: String,
        /// What it was made with.
        resources: Option<ResourceRequirements>,
        result: Result<ContainerView, NotStarted>,
    },
    Resized {
        id: ContainerId,
        container: String,
        resources: Option<ResourceRequirements>,
        generation: Option<i64>,
        result: Result<(), NotResized>,
    },
    PodResized {
        resources: Option<ResourceRequirements>,
        generation: Option<i64>,
        result: Result<(), NotResized>,
    },
    Stopped {
        id: ContainerId,
        result: Result<Option<ContainerView>, String>,
    },
    PostStarted {
        id: ContainerId,
        container: String,
        failed: bool,
    },
    Probed {
        id: ContainerId,
        container: String,
        kind: ProbeKind,
        began: Timestamp,
        /// `None`: the probe could not be made.
        result: Option<bool>,
    },
    SandboxStopped {
        id: SandboxId,
        result: Result<(), String>,
    },
    ContainerRemoved {
        id: ContainerId,
        result: Result<(), String>,
    },
    SandboxRemoved {
        id: SandboxId,
        result: Result<(), String>,
    },
    Unmounted(Result<(), String>),
}

/// A sandbox that was just made.
#[derive(Debug)]
pub struct MadeSandbox {
    pub view: SandboxView,
    pub network: PodNetwork,
}

/// Why a container did not come up.
#[derive(Debug)]
pub struct NotStarted {
    pub reason: &'static str,
    pub message: String,
    /// It was made, but did not start.
    pub made: Option<ContainerView>,
}

/// Why resources did not change.
#[derive(Debug)]
pub enum NotResized {
    /// It has to be restarted for that.
    NeedsRestart,
    /// The node is too small for it.
    Infeasible(String),
    /// Others hold what it needs.
    Deferred(String),
    /// The runtime could not do it now.
    Failed(String),
}

/// What the steps of one Pod need to know about it.
#[derive(Clone, Debug)]
pub struct Subject {
    pub shared: Arc<Shared>,
    pub pod: Arc<Pod>,
    pub events: PodEvents,
    pub addresses: PodAddresses,
    /// The containers that run, by name.
    pub running: Vec<(String, ContainerId)>,
}

impl Subject {
    /// Makes or refreshes the volumes.
    pub async fn volumes(self) -> Outcome {
        if let Err(why) = self.shared.devices.allocate(&self.pod).await {
            return Outcome::Refused(why);
        }
        self.take_over_cgroup().await;
        let now = self.shared.clock.now();
        let result = self
            .shared
            .volumes
            .sync(&self.pod, &self.addresses, now)
            .await;
        Outcome::Volumes(result.map_err(|error| error.to_string()))
    }

    /// Gets the image of a container onto the node.
    pub async fn image(self, name: String) -> Outcome {
        let result = self.resolve_image(&name).await;
        match &result {
            Ok(found) => self.tell_pulled(&name, found),
            Err(missing) => self.tell_missing(&name, missing),
        }
        Outcome::Image {
            container: name,
            result,
        }
    }

    async fn resolve_image(&self, name: &str) -> Result<Found, Missing> {
        let failed = |message: String| Missing {
            reason: "ErrImagePull",
            message,
        };
        let container = any_named(&self.pod, name)
            .ok_or_else(|| failed(format!("container {name} is gone")))?;
        let mut container = container.into_owned();
        // It ran with this image before the power was cut; nobody can be asked whether there is a newer one.
        if self.shared.keeper.is_offline()
            && container.image_pull_policy.as_deref() == Some("Always")
        {
            container.image_pull_policy = Some("IfNotPresent".to_owned());
        }
        let handler = self.shared.handler(&self.pod).await.map_err(failed)?;
        let secrets = self.shared.pull_secrets(&self.pod).await;
        let sandbox = self.sandbox_message(0, PodNetwork::Namespace);
        let image = container.image.clone().unwrap_or_default();
        let pulling = || {
            self.events.container(
                name,
                EventType::Normal,
                "Pulling",
                format!("Pulling image \"{image}\""),
            );
        };
        self.shared
            .images
            .resolve(&container, &handler, &secrets, sandbox, pulling)
            .await
    }

    fn image_name(&self, container: &str) -> String {
        any_named(&self.pod, container)
            .and_then(|container| container.image.clone())
            .unwrap_or_default()
    }

    fn tell_pulled(&self, name: &str, found: &Found) {
        let image = self.image_name(name);
        let message = match found.pulled {
            None => format!(
                "Container image \"{image}\" already present on machine and can be accessed by the pod"
            ),
            Some((took, bytes)) => {
                let took = took_text(took);
                format!(
                    "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {bytes} bytes."
                )
            }
        };
        self.events
            .container(name, EventType::Normal, "Pulled", message);
    }

    fn tell_missing(&self, name: &str, missing: &Missing) {
        let image = self.image_name(name);
        let warn = |reason: &str, message: String| {
            self.events
                .container(name, EventType::Warning, reason, message)
        };
        match missing.reason {
            "ErrImagePull" => warn(
                "Failed",
                format!("Failed to pull image \"{image}\": {}", missing.message),
            ),
            "ErrImageNeverPull" => warn("ErrImageNeverPull", missing.message.clone()),
            "InvalidImageName" => warn("InspectFailed", missing.message.clone()),
            _ => warn("Failed", missing.message.clone()),
        }
        warn("Failed", format!("Error: {}", missing.reason));
    }

    pub(super) fn sandbox_message(
        &self,
        attempt: u32,
        network: PodNetwork,
    ) -> v1::PodSandboxConfig {
        let mut message = sandbox_config(
            &self.shared.config,
            &self.pod,
            attempt,
            network,
            &self.shared.resolv_conf,
        );
        if let Some(linux) = message
            .linux
            .as_mut()
            .filter(|_| network == PodNetwork::Namespace)
        {
            linux.cgroup_parent = self.shared.cgroups.parent(&self.pod);
        }
        message
    }

    /// Makes the sandbox.
    pub async fn create_sandbox(self, attempt: u32, network: PodNetwork) -> Outcome {
        if let Err(error) = self.shared.claims.prepare(&self.pod).await {
            let message =
                format!("Failed to prepare dynamic resources: prepare dynamic resources: {error}");
            self.events
                .pod(EventType::Warning, "FailedPrepareDynamicResources", message);
            return Outcome::Sandbox(Err(error));
        }
        let result = self.try_create_sandbox(attempt, network).await;
        if let (Ok(view), Some(isolation)) = (&result, &self.shared.config.isolation) {
            let ips: Vec<IpAddr> = view.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if !ips.is_empty() {
                isolation.isolate(&self.pod, &ips).await;
            }
        }
        if let Err(message) = &result {
            let message = format!("Failed to create pod sandbox: {message}");
            self.events
                .pod(EventType::Warning, "FailedCreatePodSandBox", message);
        }
        Outcome::Sandbox(result.map(|view| MadeSandbox { view, network }))
    }

    async fn try_create_sandbox(
        &self,
        attempt: u32,
        network: PodNetwork,
    ) -> Result<SandboxView, String> {
        let _permit = self.shared.starts.acquire().await;
        let handler = self.shared.handler(&self.pod).await?;
        if network == PodNetwork::Namespace {
            let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
            let made = tokio::task::spawn_blocking(move || cgroups.ensure(&pod)).await;
            let made = made.map_err(|error| error.to_string())?;
            made.map_err(|error| format!("cgroup of the Pod: {error}"))?;
        }
        let dir = log_dir(&self.shared.config, &self.pod);
        tokio::fs::create_dir_all(&dir)
            .await
            .map_err(|error| format!("log folder {}: {error}", dir.display()))?;
        let runtime = &self.shared.runtime;
        let id = runtime
            .run_sandbox(self.sandbox_message(attempt, network), &handler)
            .await
            .map_err(text)?;
        let status = runtime.sandbox_status(&id).await.map_err(text)?;
        Ok(observe::sandbox(&status))
    }

    /// Makes and starts a container.
    pub async fn start(
        self,
        sandbox: SandboxId,
        network: PodNetwork,
        container: String,
        attempt: u32,
        image: ImageState,
    ) -> Outcome {
        let result = self
            .try_start(&sandbox, network, &container, attempt, image)
            .await;
        if let Err(failure) = &result {
            let message = format!("Error: {}", failure.message);
            self.events
                .container(&container, EventType::Warning, "Failed", message);
        }
        let resources = any_named(&self.pod, &container).and_then(|spec| spec.resources.clone());
        Outcome::Started {
            container,
            resources,
            result,
        }
    }

    #[allow(clippy::too_many_lines, reason = "the steps of a start, in order")]
    async fn try_start(
        &self,
        sandbox: &SandboxId,
        network: PodNetwork,
        name: &str,
        attempt: u32,
        image: ImageState,
    ) -> Result<ContainerView, NotStarted> {
        let config_error = |message: String| NotStarted {
            reason: "CreateContainerConfigError",
            message,
            made: None,
        };
        let container = any_named(&self.pod, name)
            .ok_or_else(|| config_error(format!("container {name} is gone")))?;
        let container = container.as_ref();
        let ImageState::Resolved(image) = image else {
            return Err(config_error("the image is not resolved".into()));
        };
        if let Some(refusal) = security::refusal(&self.pod, container, &image.user) {
            return Err(config_error(refusal));
        }
        let sources = self.env_sources(container).await.map_err(config_error)?;
        let variables = env::environment(&self.pod, container, &sources).map_err(config_error)?;
        let mut mounts = self.mounts_of(container, network, &variables).await?;
        // A Wasm guest finds names through its network; a mount would cost each idle one a file descriptor.
        let aliases = spec(&self.pod).host_aliases.as_ref();
        if network == PodNetwork::Namespace || aliases.is_some_and(|aliases| !aliases.is_empty()) {
            mounts.extend(self.hosts_file(container).await.map_err(config_error)?);
        }
        let words = last_words::mount(&self.last_words_dir(), container, attempt, image.kind)
            .map_err(config_error)?;
        mounts.extend(words);
        let logs = log_dir(&self.shared.config, &self.pod).join(name);
        tokio::fs::create_dir_all(&logs)
            .await
            .map_err(|error| config_error(format!("log folder {}: {error}", logs.display())))?;
        let plugged = self.plugged(container, image.kind).await;
        let plugged = plugged.map_err(config_error)?;
        mounts.extend(plugged.mounts);
        let resolved = Resolved {
            attempt,
            image: &image,
            // What the Pod says itself wins.
            env: plugged.env.into_iter().chain(variables).collect(),
            mounts,
            devices: plugged.devices,
            cdi: plugged.cdi,
            target: self.target_of(name),
            node_memory: self.shared.allocatable.memory_bytes,
        };
        let mut config = container_config(&self.pod, container, resolved);
        config.annotations.extend(plugged.annotations);
        if let (Some(cpus), PodNetwork::Namespace) = (&self.shared.cpus, network) {
            let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
            let own = cpus.of(uid, name).to_string();
            let linux = config.linux.get_or_insert_default();
            linux.resources.get_or_insert_default().cpuset_cpus = own;
        }
        // It may start with more than the one before it had.
        self.widen_cgroup()
            .await
            .map_err(|error| config_error(format!("cgroup of the Pod: {error}")))?;
        let _permit = self.shared.starts.acquire().await;
        let made = self
            .shared
            .runtime
            .create_container(sandbox, config, self.sandbox_message(0, network))
            .await
            .map_err(|error| NotStarted {
                reason: "CreateContainerError",
                message: error.to_string(),
                made: None,
            })?;
        let view = self.view(&made, sandbox, container, attempt, &image);
        self.events
            .container(name, EventType::Normal, "Created", "Container created");
        if let Err(error) = self.shared.runtime.start_container(&made).await {
            return Err(NotStarted {
                reason: "RunContainerError",
                message: error.to_string(),
                made: Some(view),
            });
        }
        self.events
            .container(name, EventType::Normal, "Started", "Container started");
        self.refit_cgroup().await;
        let started_at = self.shared.clock.now();
        Ok(ContainerView {
            state: ContainerPhase::Running { started_at },
            ..view
        })
    }

    /// Writes the Pod's `/etc/hosts` and mounts it, unless the container has one of its own.
    async fn hosts_file(&self, container: &Container) -> Result<Option<v1::Mount>, String> {
        let ips = &self.addresses.pod_ips;
        if !hosts_file::is_wanted(container, ips) {
            return Ok(None);
        }
        let config = &self.shared.config;
        let node = std::fs::read_to_string(hosts_file::PATH).unwrap_or_default();
        let name = hostname(config, &self.pod);
        let short = name.split('.').next().unwrap_or_default();
        let domain = domain(config, &self.pod);
        let text = hosts_file::content(&self.pod, ips, short, domain.as_deref(), &node);
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = self.shared.volumes.pod_dir(uid);
        let file = dir.join("etc-hosts");
        let failed = |error: std::io::Error| format!("{}: {error}", file.display());
        tokio::fs::create_dir_all(&dir).await.map_err(failed)?;
        tokio::fs::write(&file, text).await.map_err(failed)?;
        Ok(Some(v1::Mount {
            container_path: hosts_file::PATH.to_owned(),
            host_path: file.to_string_lossy().into_owned(),
            ..v1::Mount::default()
        }))
    }

    fn last_words_dir(&self) -> PathBuf {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        self.shared.volumes.pod_dir(uid).join("containers")
    }

    /// The running container whose processes an ephemeral one sees.
    fn target_of(&self, name: &str) -> Option<ContainerId> {
        let target = target_of(&self.pod, name)?;
        self.running
            .iter()
            .find(|(running, _)| running == target)
            .map(|(_, id)| id.clone())
    }

    fn view(
        &self,
        id: &ContainerId,
        sandbox: &SandboxId,
        container: &Container,
        attempt: u32,
        image: &ResolvedImage,
    ) -> ContainerView {
        ContainerView {
            id: id.clone(),
            sandbox: sandbox.clone(),
            name: container.name.clone(),
            attempt,
            state: ContainerPhase::Created,
            created_at: self.shared.clock.now(),
            image: container.image.clone().unwrap_or_default(),
            image_ref: image.image_ref.clone(),
            image_id: image.image_id.clone(),
            spec_hash: spec_hash(container),
            user: None,
        }
    }

    async fn env_sources(&self, container: &Container) -> Result<EnvSources, String> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let needs = env::needs(container);
        let mut sources = EnvSources {
            services: self.shared.services_of(namespace).await,
            addresses: self.addresses.clone(),
            allocatable: self.shared.allocatable,
            ..EnvSources::default()
        };
        for name in needs.config_maps {
            if let Some(map) = self
                .shared
                .volumes
                .config_maps
                .get(namespace, &name)
                .await?
            {
                sources.config_maps.insert(name, map);
            }
        }
        for name in needs.secrets {
            if let Some(secret) = self.shared.volumes.secrets.get(namespace, &name).await? {
                sources.secrets.insert(name, secret);
            }
        }
        for (volume, path) in needs.files {
            let volumes = &self.shared.volumes;
            if let Some(text) = volumes.env_file(&self.pod, &volume, &path).await? {
                sources.files.insert((volume, path), text);
            }
        }
        Ok(sources)
    }

    /// Stops a container, after its preStop hook if `hook` names it, and looks how it ended.
    pub async fn stop(
        self,
        id: ContainerId,
        sandbox: SandboxId,
        hook: Option<String>,
        grace_secs: i64,
    ) -> Outcome {
        let grace_secs = match hook {
            Some(container) => self.pre_stop(&id, &container, grace_secs).await,
            None => grace_secs,
        };
        let runtime = &self.shared.runtime;
        let result = match runtime.stop_container(&id, grace_secs).await {
            Ok(()) => match runtime.container_status(&id).await {
                Ok(status) => Ok(Some(observe::container(&sandbox, &status))),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(text(error)),
            },
            Err(error) => Err(text(error)),
        };
        Outcome::Stopped { id, result }
    }

    /// Stops a sandbox.
    pub async fn stop_sandbox(self, id: SandboxId) -> Outcome {
        let result = self.shared.runtime.stop_sandbox(&id).await.map_err(text);
        Outcome::SandboxStopped { id, result }
    }

    /// Removes a dead container and its log.
    pub async fn remove_container(self, id: ContainerId, name: String, attempt: u32) -> Outcome {
        let result = self
            .shared
            .runtime
            .remove_container(&id)
            .await
            .map_err(text);
        if result.is_ok() {
            let log = log_dir(&self.shared.config, &self.pod).join(format!("{name}/{attempt}.log"));
            crate::logs::rotate::remove_all(&log).await;
            last_words::remove(&self.last_words_dir(), &name, attempt).await;
        }
        Outcome::ContainerRemoved { id, result }
    }

    /// Removes a sandbox.
    pub async fn remove_sandbox(self, id: SandboxId) -> Outcome {
        let result = self.shared.runtime.remove_sandbox(&id).await.map_err(text);
        // A node that stops keeps the volumes, and comes to no other end than this.
        if result.is_ok()
            && let Err(error) = self.clear_cgroup().await
        {
            tracing::debug!(%error, "Cgroup of a Pod stays for now");
        }
        Outcome::SandboxRemoved { id, result }
    }

    /// Deletes the volumes.
    pub async fn unmount(self) -> Outcome {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let cleared_away = self.shared.claims.unprepare(&uid).await;
        let removed = self.shared.volumes.remove(&uid).await;
        self.shared.devices.release(&uid);
        self.shared.allocations.release(&uid);
        if let Some(cpus) = &self.shared.cpus
            && cpus.release(&uid)
        {
            cpus.move_others(&self.shared.runtime).await;
        }
        let cleared = self.clear_cgroup().await;
        let cleared = removed.and(cleared).map_err(|error| error.to_string());
        Outcome::Unmounted(cleared_away.and(cleared))
    }
}

fn text(error: CriError) -> String {
    error.to_string()
}

/// A duration as Go prints it, to the millisecond.
fn took_text(took: Duration) -> String {
    if took < Duration::from_secs(1) {
        format!("{}ms", took.as_millis())
    } else {
        format!("{:.3}s", took.as_secs_f64())
    }
}
