//! The Node object: registers it, keeps its status and its lease.
//!
//! Writes: the Node once (created, or its labels patched), its status when it changes and every five minutes, a lease in
//! kube-node-lease every ten seconds. The first status is part of the registration, so the node is Ready with the first write
//! after the runtime answered.

pub mod capacity;
pub mod status;

use crate::config::Config;
use crate::cri::client::Runtime;
use crate::devices::Counts;
use crate::eviction::Pressure;
use cox_client::Clock;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the lease is renewed and the machine is looked at.
const BEAT: Duration = Duration::from_secs(10);
/// An unchanged status is written again after this.
const STATUS_EVERY_SECS: i64 = 300;
/// Images are listed every so many beats.
const IMAGES_EVERY_BEATS: u32 = 6;
/// How long the lease holds.
const LEASE_SECS: i32 = 40;
/// First and longest wait after the API server refused or did not answer.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Keeps one Node.
pub struct NodeKeeper {
    /// What runs out.
    pub pressure: watch::Receiver<Pressure>,
    /// Attached volumes that are in use.
    pub in_use: watch::Receiver<BTreeSet<String>>,
    /// Devices of plugins.
    pub(crate) devices: watch::Receiver<Counts>,
    pub config: Config,
    pub client: kube::Client,
    pub runtime: Runtime,
    pub clock: Arc<dyn Clock>,
    /// Port of the kubelet's own server.
    pub port: u16,
    pub machine: capacity::Machine,
}

impl std::fmt::Debug for NodeKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKeeper")
            .field("node", &self.config.node_name)
            .finish_non_exhaustive()
    }
}

/// A runtime handler and what it can.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handler {
    /// Empty: the one of Pods without a runtime class.
    pub name: String,
    /// `None`: it does not say.
    pub features: Option<HandlerFeatures>,
}

/// What a runtime handler can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandlerFeatures {
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

impl Handler {
    /// What a runtime says of its handlers, by their names.
    #[must_use]
    pub fn of(status: &cox_cri::v1::StatusResponse) -> Vec<Self> {
        let handler = |said: &cox_cri::v1::RuntimeHandler| Self {
            name: said.name.clone(),
            features: said.features.as_ref().map(|features| HandlerFeatures {
                recursive_read_only_mounts: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            }),
        };
        let mut handlers: Vec<Self> = status.runtime_handlers.iter().map(handler).collect();
        handlers.sort();
        handlers
    }
}

/// What of the runtime shows in the Node.
#[derive(Clone, Debug, Default)]
pub struct RuntimeFacts {
    pub version: String,
    pub handlers: Vec<Handler>,
    /// Whether groups of the image can be kept away from containers.
    pub supplemental_groups_policy: Option<bool>,
    pub images: Vec<k8s_openapi::api::core::v1::ContainerImage>,
    /// Why the runtime cannot run Pods; `None`: it can.
    pub problem: Option<String>,
}

impl RuntimeFacts {
    fn run_wasm(&self) -> bool {
        self.handlers.iter().any(|handler| handler.name == "wasm")
    }
}

impl NodeKeeper {
    /// Registers the node and keeps it until cancelled.
    pub async fn run(self, mut runtime_up: watch::Receiver<bool>, cancel: CancellationToken) {
        tokio::select! {
            // The node is left as it is: its lease runs out, or the next start takes it over.
            () = self.keep(&mut runtime_up) => {}
            () = cancel.cancelled() => {}
        }
    }

    async fn keep(&self, runtime_up: &mut watch::Receiver<bool>) {
        // Registering a little later as Ready is sooner Ready than registering at once and patching.
        let ready = runtime_up.wait_for(|up| *up);
        if tokio::time::timeout(Duration::from_millis(500), ready)
            .await
            .is_err()
        {
            tracing::info!("Runtime does not answer yet; the node registers as not ready");
        }
        let up = *runtime_up.borrow_and_update();
        let mut facts = self.runtime_facts(up, RuntimeFacts::default(), true).await;
        let mut node = self.register(&facts).await;
        let mut pressure = self.pressure.clone();
        let mut in_use = self.in_use.clone();
        let mut devices = self.devices.clone();
        tracing::info!(node = self.config.node_name, "Node registered");
        let mut labelled = facts.run_wasm();
        let mut written_at = self.clock.now();
        let mut beats: u32 = 0;
        let mut retry = RETRY.0;
        loop {
            let lease = self.renew_lease(&node).await;
            let status = self.write_status(&facts, &mut node, &mut written_at).await;
            let label = self.label(&facts, &mut labelled).await;
            let wait = match lease.and(status).and(label) {
                Ok(()) => {
                    retry = RETRY.0;
                    BEAT
                }
                Err(error) => {
                    tracing::debug!(%error, "Node could not be written");
                    if cox_client::is_not_found(&error) {
                        node = self.register(&facts).await;
                        labelled = facts.run_wasm();
                    }
                    retry = (retry * 2).min(RETRY.1);
                    retry
                }
            };
            tokio::select! {
                // All only wait; a change that is missed here is seen by the next call.
                turned = pressure.changed() => if turned.is_err() { return },
                counted = devices.changed() => if counted.is_err() { return },
                used = in_use.changed() => if used.is_err() { return },
                changed = runtime_up.changed() => if changed.is_err() { return },
                () = self.clock.sleep(wait) => beats = beats.wrapping_add(1),
            }
            let up = *runtime_up.borrow_and_update();
            facts = self
                .runtime_facts(up, facts, beats.is_multiple_of(IMAGES_EVERY_BEATS))
                .await;
        }
    }

    async fn runtime_facts(
        &self,
        up: bool,
        mut facts: RuntimeFacts,
        with_images: bool,
    ) -> RuntimeFacts {
        if !up {
            facts.problem = Some("container runtime is down".to_owned());
            return facts;
        }
        match (self.runtime.version().await, self.runtime.status().await) {
            (Ok(version), Ok(status)) => {
                facts.version = format!("{}://{}", version.name, version.version);
                facts.handlers = Handler::of(&status);
                facts.supplemental_groups_policy = status
                    .features
                    .as_ref()
                    .map(|features| features.supplemental_groups_policy);
                let conditions = status.status.unwrap_or_default().conditions;
                let failing: Vec<_> = conditions
                    .iter()
                    .filter(|condition| {
                        !condition.status
                            && matches!(condition.r#type.as_str(), "RuntimeReady" | "NetworkReady")
                    })
                    .map(|condition| {
                        let kind = if condition.r#type == "RuntimeReady" {
                            "runtime"
                        } else {
                            "container runtime network"
                        };
                        format!(
                            "{kind} not ready: {} reason:{} message:{}",
                            condition.r#type, condition.reason, condition.message
                        )
                    })
                    .collect();
                facts.problem = (!failing.is_empty()).then(|| failing.join(", "));
            }
            (Err(error), _) | (_, Err(error)) => {
                facts.problem = Some(format!("container runtime is down: {error}"))
            }
        }
        if with_images && let Ok(images) = self.runtime.list_images().await {
            facts.images = status::images(&images);
        }
        facts
    }

    fn wanted_status(
        &self,
        facts: &RuntimeFacts,
        previous: Option<&NodeStatus>,
        now: Timestamp,
    ) -> NodeStatus {
        let in_use = self.in_use.borrow().iter().cloned().collect();
        let mut status = NodeStatus {
            volumes_in_use: Some(in_use),
            ..status::build(
                &self.config,
                &self.machine,
                *self.pressure.borrow(),
                facts,
                self.port,
                previous,
                now,
            )
        };
        status::add_devices(&mut status, &self.devices.borrow());
        status
    }

    /// Creates the Node, or takes over the one that is there.
    async fn register(&self, facts: &RuntimeFacts) -> Node {
        let mut wait = RETRY.0;
        loop {
            match self.try_register(facts).await {
                Ok(node) => return node,
                Err(error) => {
                    tracing::debug!(%error, "Node could not be registered yet");
                    self.clock.sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn try_register(&self, facts: &RuntimeFacts) -> Result<Node, kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut node = status::node(&self.config, &self.machine, facts);
        node.status = Some(self.wanted_status(facts, None, self.clock.now()));
        match api.create(&PostParams::default(), &node).await {
            Ok(made) => Ok(made),
            Err(error) if cox_client::is_already_exists(&error) => {
                let meta = &node.metadata;
                let patch = json!({ "metadata": { "labels": meta.labels, "annotations": meta.annotations } });
                api.patch(
                    &self.config.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await
            }
            Err(error) => Err(error),
        }
    }

    /// A runtime that answers only after the node was registered tells late that it runs Wasm. The label is set once: whoever takes
    /// it away later wants no Wasm there.
    async fn label(&self, facts: &RuntimeFacts, labelled: &mut bool) -> Result<(), kube::Error> {
        if *labelled || !facts.run_wasm() {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({ "metadata": { "labels": { status::WASM_LABEL: "true" } } });
        api.patch(
            &self.config.node_name,
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
        *labelled = true;
        Ok(())
    }

    async fn write_status(
        &self,
        facts: &RuntimeFacts,
        node: &mut Node,
        written_at: &mut Timestamp,
    ) -> Result<(), kube::Error> {
        let now = self.clock.now();
        let wanted = self.wanted_status(facts, node.status.as_ref(), now);
        let is_due = now.duration_since(*written_at).as_secs() >= STATUS_EVERY_SECS;
        let Some(patch) = status::diff(node.status.as_ref(), &wanted, is_due) else {
            return Ok(());
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let patch: Value = json!({ "status": patch });
        *node = api
            .patch_status(
                &self.config.node_name,
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await?;
        *written_at = now;
        Ok(())
    }

    async fn renew_lease(&self, node: &Node) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let name = &self.config.node_name;
        let now = MicroTime(self.clock.now());
        let patch = json!({ "spec": { "renewTime": now, "holderIdentity": name, "leaseDurationSeconds": LEASE_SECS } });
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) if cox_client::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some("kube-node-lease".into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        match api.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(()),
            // Another process of this node was faster, or the namespace is not there yet: the next beat renews it.
            Err(error) if cox_client::is_already_exists(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
