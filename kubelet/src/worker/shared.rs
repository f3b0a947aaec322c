//! What all Pod workers of a node share.

use crate::admission::NodeView;
use crate::affected::Affected;
use crate::allocations::Allocations;
use crate::cgroups::Cgroups;
use crate::claims::Claims;
use crate::config::Config;
use crate::cpus::CpuManager;
use crate::cri::client::Runtime;
use crate::cri::images::Images;
use crate::devices::Devices;
use crate::keep::Keeper;
use crate::pod::containers::{inits, mains};
use crate::pod::fields::NodeAllocatable;
use crate::pod::status::NodeFacts;
use crate::probes::metrics::ProbeMetrics;
use crate::resources::Amounts;
use crate::volumes::Volumes;
use cox_client::events::Recorder;
use cox_client::{Clock, Informer};
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a container waits for the first list of services.
const SERVICES_WAIT: Duration = Duration::from_secs(5);

/// Shared by all workers; each field is safe to use from any of them.
#[derive(Debug)]
pub struct Shared {
    pub config: Config,
    pub client: ClientHandle,
    pub runtime: Runtime,
    pub images: Images,
    pub volumes: Volumes,
    pub cgroups: Arc<Cgroups>,
    /// What Pods hold of the node.
    pub allocations: Allocations,
    /// Devices of plugins.
    pub devices: Arc<Devices>,
    /// Resource claims.
    pub claims: Arc<Claims>,
    /// Pods whose devices' health has changed.
    pub(crate) affected: Arc<Affected>,
    /// Cores that belong to single containers, where the node gives such.
    pub cpus: Option<Arc<CpuManager>>,
    /// Pages of each size that Pods may have.
    pub huge_pages: Amounts,
    pub services: Informer<Service>,
    pub runtime_classes: Informer<RuntimeClass>,
    pub clock: Arc<dyn Clock>,
    pub recorder: Recorder,
    /// Bounds sandboxes and containers that are starting.
    pub starts: Semaphore,
    /// Bounds writes to the API server.
    pub writes: Semaphore,
    /// The runtime's name, once it answered.
    pub runtime_name: OnceLock<String>,
    /// Whether the runtime's mounts can be read-only all the way down, once a Pod asked for that.
    pub read_only_below: AtomicBool,
    /// The host's resolver configuration.
    pub resolv_conf: String,
    pub allocatable: NodeAllocatable,
    /// The Node object.
    pub node: Informer<Node>,
    /// What is kept of the Pods over a power cut.
    pub keeper: Arc<Keeper>,
    /// Logs that were rotated.
    pub(crate) log_rotations: crate::files::Writes,
    /// What `/metrics/probes` shows.
    pub probe_metrics: ProbeMetrics,
}

/// A client that can be shown in debug output.
#[derive(Clone)]
pub struct ClientHandle(pub kube::Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Shared {
    /// What of the node shows in a Pod's status.
    #[must_use]
    pub fn node_facts(&self, pod: &Pod) -> NodeFacts {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let health = inits(pod).iter().chain(mains(pod)).filter_map(|container| {
            let mut all = self.devices.health(uid, &container.name);
            all.extend(self.claims.health(pod, container));
            (!all.is_empty()).then(|| (container.name.clone(), all))
        });
        NodeFacts {
            health: health.collect(),
            host_ip: self.config.node_ip.to_string(),
            read_only_below: self.read_only_below.load(Ordering::Relaxed),
            runtime_name: self
                .runtime_name
                .get()
                .cloned()
                .unwrap_or_else(|| "cri".to_owned()),
        }
    }

    /// The node as Pods have to fit it; before the API server was heard, what the node would say of itself.
    #[must_use]
    pub fn node_view(&self) -> NodeView {
        let known = self.node.get(None, &self.config.node_name);
        let spec = known.as_ref().and_then(|node| node.spec.as_ref());
        let labels = known.as_ref().and_then(|node| node.metadata.labels.clone());
        let mut allocatable = Amounts::from([
            ("cpu".to_owned(), self.allocatable.cpu_millis),
            ("memory".to_owned(), self.allocatable.memory_bytes),
            (
                "ephemeral-storage".to_owned(),
                self.allocatable.ephemeral_bytes,
            ),
        ]);
        allocatable.extend(self.huge_pages.clone());
        let devices = self.devices.counts();
        let devices = devices.borrow();
        let well = devices
            .iter()
            .map(|(name, (_, well))| (name.clone(), *well));
        allocatable.extend(well);
        NodeView {
            name: self.config.node_name.clone(),
            labels: labels.unwrap_or_else(|| self.config.labels.clone()),
            taints: spec
                .and_then(|spec| spec.taints.clone())
                .unwrap_or_default(),
            allocatable,
            pods_max: self.config.max_pods,
            unsafe_sysctls: self.config.unsafe_sysctls.clone(),
            is_rootless: !rustix::process::geteuid().is_root(),
        }
    }

    /// The runtime's handler for a Pod, by its runtime class.
    pub async fn handler(&self, pod: &Pod) -> Result<String, String> {
        let name = crate::pod::containers::spec(pod)
            .runtime_class_name
            .as_deref();
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        let kept = self.keeper.handler(name);
        // What was kept stands in while the API server is away; without it there is nothing but to wait.
        match &kept {
            Some(_) if self.keeper.is_offline() => {}
            Some(_) => self.wait_briefly(self.runtime_classes.synced()).await,
            None => self.runtime_classes.synced().await,
        }
        let known = self.runtime_classes.get(None, name);
        let known = known.map(|class| class.handler.clone());
        let synced = self.runtime_classes.is_synced();
        match known.or_else(|| kept.filter(|_| !synced)) {
            Some(handler) => Ok(handler),
            None => Err(format!(
                "failed to get RuntimeClass: runtimeclass.node.k8s.io \"{name}\" not found"
            )),
        }
    }

    /// The services that a Pod's environment shows.
    pub async fn services_of(&self, namespace: &str) -> Vec<Arc<Service>> {
        if !self.keeper.is_offline() {
            self.wait_briefly(self.services.synced()).await;
        }
        // A static Pod starts without the API server too, only without links; another with those it had before.
        if !self.services.is_synced() {
            return self.keeper.services(namespace);
        }
        self.services_now(namespace)
    }

    /// Waits for a cache, but not for an API server that is away.
    async fn wait_briefly(&self, synced: impl Future<Output = ()>) {
        if tokio::time::timeout(SERVICES_WAIT, synced).await.is_err() {
            tracing::debug!("The API server has not answered yet");
        }
    }

    /// The services in the cache that a namespace sees.
    #[must_use]
    pub fn services_now(&self, namespace: &str) -> Vec<Arc<Service>> {
        let mut services = self.services.list_in(namespace);
        if namespace != "default" {
            services.extend(self.services.get(Some("default"), "kubernetes"));
        }
        services
    }

    /// The Pod's pull secrets; one that does not exist is left out, as upstream does.
    pub async fn pull_secrets(&self, pod: &Pod) -> Vec<Arc<Secret>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut secrets = Vec::new();
        for reference in crate::pod::containers::spec(pod)
            .image_pull_secrets
            .iter()
            .flatten()
        {
            match self.volumes.secrets.get(namespace, &reference.name).await {
                Ok(secret) => secrets.extend(secret),
                Err(error) => tracing::debug!(
                    secret = reference.name,
                    error,
                    "Pull secret is not to be had"
                ),
            }
        }
        secrets
    }
}
