//! The controllers of the control plane, one folder each over the shared runner of `cox-client`: they read shared informers,
//! decide with pure functions (`plan.rs`, `status.rs`) and write through the API server (`effects.rs`).
//!
//! Inputs: [`Config`], [`Deps`]. Tasks: one scope that holds all of them, ended by the token. A settled cluster causes no
//! writes. No controller talks to another one, to a node or to a store.

#![warn(missing_docs)]

mod certificates;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taints;
mod discovery;
mod disrupt;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod expectations;
mod garbage_collector;
mod job;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod owned_pods;
mod pod;
mod pod_gc;
mod replicaset;
mod resource_claim;
mod resource_quota;
mod revisions;
mod root_ca;
mod service_cidr;
mod service_lb;
mod service_pods;
mod serviceaccount;
mod statefulset;
#[cfg(test)]
mod testing;
mod volume;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cox_client::tasks::TaskScope;
use cox_client::{Clock, Informers};
use tokio_util::sync::CancellationToken;

pub use certificates::Signer;
use context::Context;
pub use node_ipam::{NodeRanges, NodeRangesError};

/// How long controllers may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// What the controllers are told. [`Config::new`] has upstream's values.
#[derive(Clone)]
pub struct Config {
    /// The cluster CA in PEM, published in each namespace.
    pub root_ca_pem: String,
    /// A node that was not heard of for so long is Unknown.
    pub node_monitor_grace: Duration,
    /// Finished Pods beyond this number are deleted, oldest first; 0 keeps all.
    pub terminated_pods_max: usize,
    /// How long a node must be gone before its Pods are deleted.
    pub orphaned_pod_quarantine: Duration,
    /// Whether Services of type LoadBalancer get the addresses of the nodes; otherwise a provider outside is waited for.
    pub service_lb: bool,
    /// Ranges of Pod addresses for nodes that bring none; empty: somebody else gives them.
    pub node_ranges: NodeRanges,
    /// Signs with the cluster's authority; without it, certificate signing requests wait for somebody else.
    pub signer: Option<Signer>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("node_monitor_grace", &self.node_monitor_grace)
            .field("terminated_pods_max", &self.terminated_pods_max)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Upstream's values.
    #[must_use]
    pub fn new(root_ca_pem: impl Into<String>) -> Self {
        Self {
            root_ca_pem: root_ca_pem.into(),
            node_monitor_grace: Duration::from_secs(50),
            terminated_pods_max: 12_500,
            orphaned_pod_quarantine: Duration::from_secs(40),
            service_lb: true,
            node_ranges: NodeRanges::default(),
            signer: None,
        }
    }
}

/// Makes the client of one controller, given its service account's name in `kube-system`, such as `replicaset-controller`.
pub type ClientFor = Arc<dyn Fn(&str) -> kube::Client + Send + Sync>;

/// What the controllers work with.
#[derive(Clone)]
pub struct Deps {
    /// Reads: one cache per kind for the whole process.
    pub informers: Informers,
    /// Writes: a client per controller, so that each acts with its own identity.
    pub client_for: ClientFor,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Deps {
    /// All controllers share one client and so one identity.
    #[must_use]
    pub fn new(client: kube::Client, informers: Informers, clock: Arc<dyn Clock>) -> Self {
        Self {
            informers,
            client_for: Arc::new(move |_| client.clone()),
            clock,
        }
    }
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps")
            .field("informers", &self.informers)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// Why the controllers ended other than as told.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// These did not stop in time and were aborted.
    #[error("controllers did not stop in time: {}", .0.join(", "))]
    Late(Vec<&'static str>),
}

/// The controllers of Services.
fn spawn_networking(scope: &TaskScope, config: &Config, context: impl Fn(&str, &str) -> Context) {
    let endpoints = context(endpoints::OWNER, "endpoint-controller");
    scope.spawn("endpoints", endpoints::run(endpoints));
    let slices = context("endpointslice-controller", "endpoint-slice-controller");
    scope.spawn("endpointslice", endpointslice::run(slices));
    let name = "endpointslicemirroring-controller";
    let mirroring = context(name, "endpoint-slice-mirroring-controller");
    scope.spawn(
        "endpointslice-mirroring",
        endpointslice_mirroring::run(mirroring),
    );
    let cidrs = context("service-cidrs-controller", "service-cidrs-controller");
    scope.spawn("service-cidr", service_cidr::run(cidrs));
    if !config.node_ranges.is_empty() {
        let nodes = context("node-controller", "cidrAllocator");
        scope.spawn(
            "node-ipam",
            node_ipam::run(nodes, config.node_ranges.clone()),
        );
    }
    if config.service_lb {
        let balancer = context("service-controller", "service-controller");
        scope.spawn("service-lb", service_lb::run(balancer));
    }
}

/// Runs all controllers until `cancel` is cancelled.
pub async fn run(config: Config, deps: Deps, cancel: CancellationToken) -> Result<(), RunError> {
    let scope = TaskScope::new("controllers", &cancel);
    let context = |service_account: &str, component: &str| {
        Context::new(&deps, service_account, component, scope.cancellation())
    };
    let sa = context("service-account-controller", "serviceaccount-controller");
    scope.spawn("serviceaccount", serviceaccount::run(sa));
    let root_ca = context("root-ca-cert-publisher", "root-ca-cert-publisher");
    scope.spawn(
        "root-ca-cert-publisher",
        root_ca::run(root_ca, config.root_ca_pem.clone()),
    );
    spawn_workloads(&scope, context);
    scope.spawn(
        "namespace",
        namespace::run(context("namespace-controller", "namespace-controller")),
    );
    let gc = context("generic-garbage-collector", "garbage-collector-controller");
    scope.spawn("garbage-collector", garbage_collector::run(gc));
    let node = context("node-controller", "node-controller");
    scope.spawn(
        "node-lifecycle",
        node_lifecycle::run(node, config.node_monitor_grace),
    );
    let pod_gc = context("pod-garbage-collector", "pod-garbage-collector");
    scope.spawn("pod-garbage-collector", pod_gc::run(pod_gc, config.clone()));
    spawn_volumes(&scope, context);
    spawn_networking(&scope, &config, context);
    let claims = context("resource-claim-controller", "resource_claim");
    scope.spawn("resource-claim", resource_claim::run(claims));
    let name = "device-taint-eviction-controller";
    let taints = context(name, "device-taint-eviction");
    scope.spawn("device-taint-eviction", device_taints::run(taints));
    let quota = context("resourcequota-controller", "resourcequota-controller");
    scope.spawn("resourcequota", resource_quota::run(quota));
    if let Some(signer) = config.signer.clone() {
        let certificates = context("certificate-controller", "certificate-controller");
        scope.spawn("certificates", certificates::run(certificates, signer));
    }
    tracing::info!("Controllers started");
    cancel.cancelled().await;
    let late = scope.shutdown(STOP_DEADLINE).await;
    if late.is_empty() {
        Ok(())
    } else {
        Err(RunError::Late(late))
    }
}

/// The controllers of what runs Pods.
fn spawn_workloads(scope: &TaskScope, context: impl Fn(&str, &str) -> Context) {
    scope.spawn(
        "replicaset",
        replicaset::run(context("replicaset-controller", "replicaset-controller")),
    );
    let replication = context("replication-controller", "replication-controller");
    scope.spawn(
        "replicationcontroller",
        replicaset::run_replication_controllers(replication),
    );
    scope.spawn(
        "deployment",
        deployment::run(context("deployment-controller", "deployment-controller")),
    );
    let daemons = context("daemon-set-controller", "daemonset-controller");
    scope.spawn("daemonset", daemonset::run(daemons));
    let stateful = context("statefulset-controller", "statefulset-controller");
    scope.spawn("statefulset", statefulset::run(stateful));
    let jobs = context("job-controller", "job-controller");
    scope.spawn("job", job::run(jobs));
    let crons = context("cronjob-controller", "cronjob-controller");
    scope.spawn("cronjob", cronjob::run(crons));
    let budgets = context("disruption-controller", "controllermanager");
    scope.spawn("disruption", disruption::run(budgets));
    let ttl = context(
        "ttl-after-finished-controller",
        "ttl-after-finished-controller",
    );
    scope.spawn("ttl-after-finished", job::run_ttl(ttl));
}

/// The controllers of persistent volumes.
fn spawn_volumes(scope: &TaskScope, context: impl Fn(&str, &str) -> Context) {
    let binder = context("persistent-volume-binder", "persistentvolume-controller");
    scope.spawn("persistentvolume-binder", volume::binder::run(binder));
    let attach = context("attachdetach-controller", "attachdetach-controller");
    scope.spawn("attach-detach", volume::attach::run(attach));
    let claims = context("pvc-protection-controller", "pvc-protection-controller");
    scope.spawn("pvc-protection", volume::protection::run_claims(claims));
    let volumes = context("pv-protection-controller", "pv-protection-controller");
    scope.spawn("pv-protection", volume::protection::run_volumes(volumes));
    let ephemeral = context("ephemeral-volume-controller", "ephemeral-volume-controller");
    scope.spawn("ephemeral-volume", volume::ephemeral::run(ephemeral));
}
