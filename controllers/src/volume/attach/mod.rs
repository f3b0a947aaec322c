//! Has volumes attached to the nodes whose Pods use them, and detached when no Pod does: by VolumeAttachments, which the attachers
//! of CSI drivers carry out.
//!
//! Watched: pods, claims, volumes, nodes, VolumeAttachments, CSIDrivers. Written: VolumeAttachments (created, deleted),
//! `status.volumesAttached` of nodes, events. Invariants: a volume is not detached while its node says that it uses it, unless
//! the node is gone, out of service, or silent for long; one for a single node is attached to one only; the status stops
//! naming a volume before it is detached.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Queue, Verdict};
use cox_client::{Informer, attachments};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    AttachedVolume, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Loop};
use crate::owned_pods::reply;
use crate::pod::{is_terminal, node_name};
use cox_client::volumes::claims_of;
use plan::{Plan, Seen, Wanted};

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    attachments: Informer<VolumeAttachment>,
    drivers: Informer<CSIDriver>,
    queue: Queue<ObjectName>,
    memory: Mutex<Memory>,
}

/// What is only needed to tell things once and to wait long enough; a restart forgets it.
#[derive(Default)]
struct Memory {
    /// Since when an attachment is wanted by no Pod.
    unwanted: BTreeMap<String, Timestamp>,
    /// Nodes that wait for another node to let go of a volume.
    waiting: BTreeSet<String>,
    /// What was told of an attachment last.
    told: BTreeMap<String, String>,
}

pub(crate) async fn run(context: Context) {
    let informers = &context.informers;
    let (pods, claims) = (informers.of::<Pod>(), informers.of());
    let (volumes, nodes) = (informers.of(), informers.of::<Node>());
    let (attachments, drivers) = (informers.of(), informers.of());
    let mut frame = Loop::new("attach-detach");
    let controller = Arc::new(Controller {
        queue: frame.queue().clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
        nodes: nodes.clone(),
        attachments: attachments.clone(),
        drivers: drivers.clone(),
        memory: Mutex::default(),
        context,
    });
    frame.feed(&pods, |pod: &Pod, keys| {
        let node = node_name(pod);
        if !node.is_empty() && claims_of(pod).next().is_some() {
            keys.push(ObjectName::cluster(node));
        }
    });
    frame.feed(&nodes, |node: &Node, keys| keys.push(ObjectName::of(node)));
    let known = Arc::clone(&controller);
    frame.feed(&claims, move |claim: &PersistentVolumeClaim, keys| {
        let meta = &claim.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        known.users(
            namespace.unwrap_or_default(),
            name.unwrap_or_default(),
            keys,
        );
    });
    let known = Arc::clone(&controller);
    frame.feed(&volumes, move |volume: &PersistentVolume, keys| {
        let claim = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        if let Some(claim) = claim {
            let (namespace, name) = (claim.namespace.as_deref(), claim.name.as_deref());
            known.users(
                namespace.unwrap_or_default(),
                name.unwrap_or_default(),
                keys,
            );
        }
    });
    let known = Arc::clone(&controller);
    frame.feed(&attachments, move |attachment: &VolumeAttachment, keys| {
        keys.push(ObjectName::cluster(&attachment.spec.node_name));
        let waiting = std::mem::take(&mut known.memory.lock().waiting);
        keys.extend(waiting.iter().map(|node| ObjectName::cluster(node)));
    });
    let known = Arc::clone(&controller);
    frame.feed(&drivers, move |_: &CSIDriver, keys| {
        let nodes = known.nodes.list();
        keys.extend(nodes.iter().map(|node| ObjectName::of(&**node)));
    });
    let cancel = controller.context.cancel.clone();
    let reconcile = move |key: ObjectName| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key.name).await }
    };
    // One at a time: two nodes must not be given the same volume.
    frame.run(1, reconcile, cancel).await;
}

impl Controller {
    /// The nodes of Pods that mean a claim.
    fn users(&self, namespace: &str, claim: &str, keys: &mut Vec<ObjectName>) {
        for pod in self.pods.list_in(namespace) {
            let node = node_name(&pod);
            if !node.is_empty() && claims_of(&pod).any(|name| name == claim) {
                keys.push(ObjectName::cluster(node));
            }
        }
    }

    async fn reconcile(&self, node: &str) -> Verdict {
        let known = self.nodes.get(None, node);
        let attachments = self.attachments.list();
        let now = self.context.clock.now();
        let plan = plan::plan(&Seen {
            name: node,
            node: known.as_deref(),
            wanted: &self.wanted(node),
            attachments: &attachments,
            volumes: &|name| self.volumes.get(None, name),
            unwanted: &self.memory.lock().unwanted.clone(),
            now,
        });
        self.remember(node, &plan, &attachments);
        match self.carry_out(node, known.as_deref(), &plan).await {
            Err(error) => Verdict::Backoff(error.into()),
            Ok(()) => plan.again.map_or(Verdict::Done, Verdict::After),
        }
    }

    /// The volumes that the Pods of a node use and that have to be attached, each with its Pods.
    fn wanted(&self, node: &str) -> Vec<Wanted> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for pod in self.pods.list() {
            if node_name(&pod) != node || is_terminal(&pod) {
                continue;
            }
            for volume in self.volumes_of(&pod) {
                let spec = volume.spec.as_ref();
                let Some(source) = spec.and_then(|spec| spec.csi.clone()) else {
                    continue;
                };
                let driver = self.drivers.get(None, &source.driver);
                let attaches = driver.is_none_or(|one| one.spec.attach_required.unwrap_or(true));
                if !attaches {
                    continue;
                }
                let modes = spec.and_then(|spec| spec.access_modes.clone());
                let shared = ["ReadWriteMany", "ReadOnlyMany"];
                let name = volume.metadata.name.clone().unwrap_or_default();
                let entry = wanted.entry(name.clone()).or_insert_with(|| Wanted {
                    volume: name,
                    driver: source.driver,
                    handle: source.volume_handle,
                    is_shared: modes.iter().flatten().any(|mode| shared.contains(&&**mode)),
                    pods: Vec::new(),
                });
                entry.pods.push(Arc::clone(&pod));
            }
        }
        wanted.into_values().collect()
    }

    /// The persistent volumes that a Pod's claims are bound to.
    fn volumes_of(&self, pod: &Pod) -> Vec<Arc<PersistentVolume>> {
        let namespace = pod.metadata.namespace.as_deref();
        let bound = claims_of(pod).filter_map(|name| {
            let claim = self.claims.get(namespace, &name)?;
            let volume = claim.spec.as_ref()?.volume_name.clone()?;
            let volume = self.volumes.get(None, &volume)?;
            let back = volume.spec.as_ref()?.claim_ref.as_ref()?;
            (back.uid.is_some() && back.uid == claim.metadata.uid).then_some(volume)
        });
        bound.collect()
    }

    fn remember(&self, node: &str, plan: &Plan, attachments: &[Arc<VolumeAttachment>]) {
        let mut memory = self.memory.lock();
        for attachment in attachments.iter().filter(|one| one.spec.node_name == node) {
            let name = attachment.metadata.name.as_deref().unwrap_or_default();
            if !plan.unwanted.contains_key(name) {
                memory.unwanted.remove(name);
            }
        }
        memory.unwanted.extend(plan.unwanted.clone());
        let there: BTreeSet<&str> = attachments
            .iter()
            .filter_map(|one| one.metadata.name.as_deref())
            .collect();
        memory
            .unwanted
            .retain(|name, _| there.contains(name.as_str()));
        memory
            .told
            .retain(|name, _| there.contains(name.as_str()) || name.starts_with('/'));
        if !plan.taken.is_empty() {
            memory.waiting.insert(node.to_owned());
        }
    }

    async fn carry_out(
        &self,
        name: &str,
        node: Option<&Node>,
        plan: &Plan,
    ) -> Result<(), kube::Error> {
        let api = self.context.cluster_api::<VolumeAttachment>();
        for wanted in &plan.attach {
            let attachment = attachment(wanted, name);
            match api.create(&PostParams::default(), &attachment).await {
                Err(error) if cox_client::is_already_exists(&error) => {}
                Err(error) => {
                    let message = format!(
                        "AttachVolume.Attach failed for volume {:?} : {}",
                        wanted.volume,
                        reply(&error)
                    );
                    self.tell(wanted, EventType::Warning, "FailedAttachVolume", &message);
                    return Err(error);
                }
                Ok(_) => {}
            }
        }
        for (wanted, nodes) in &plan.taken {
            let message = format!(
                "Multi-Attach error for volume {:?} Volume is already exclusively attached to one node ({}) and can't be attached to another",
                wanted.volume,
                nodes.join(", ")
            );
            self.tell(wanted, EventType::Warning, "FailedAttachVolume", &message);
        }
        for (wanted, why) in &plan.failed {
            let message = format!(
                "AttachVolume.Attach failed for volume {:?} : {why}",
                wanted.volume
            );
            self.tell(wanted, EventType::Warning, "FailedAttachVolume", &message);
        }
        if let Some(node) = node {
            self.publish(name, node, plan).await?;
        }
        for attachment in &plan.detach {
            match api.delete(attachment, &DeleteParams::default()).await {
                Err(error) if cox_client::is_not_found(&error) => {}
                result => drop(result?),
            }
        }
        self.look_again(plan);
        Ok(())
    }

    /// Nodes that wait for what was just given back.
    fn look_again(&self, plan: &Plan) {
        if plan.detach.is_empty() {
            return;
        }
        for node in std::mem::take(&mut self.memory.lock().waiting) {
            self.queue.add(ObjectName::cluster(&node));
        }
    }

    /// Says in the Node what is attached, where that changed.
    async fn publish(&self, name: &str, node: &Node, plan: &Plan) -> Result<(), kube::Error> {
        let before = node
            .status
            .as_ref()
            .and_then(|status| status.volumes_attached.clone())
            .unwrap_or_default();
        if before == plan.attached {
            return Ok(());
        }
        let patch = json!({ "status": { "volumesAttached": plan.attached } });
        let api = self.context.cluster_api::<Node>();
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(error) if cox_client::is_not_found(&error) => return Ok(()),
            result => drop(result?),
        }
        let is_new = |wanted: &&Wanted| {
            let shown = attachments::in_status(&wanted.handle, &wanted.driver);
            let named = |all: &[AttachedVolume]| all.iter().any(|one| one.name == shown);
            named(&plan.attached) && !named(&before)
        };
        for wanted in plan.kept.iter().filter(is_new) {
            let message = format!(
                "AttachVolume.Attach succeeded for volume {:?} ",
                wanted.volume
            );
            self.tell(
                wanted,
                EventType::Normal,
                "SuccessfulAttachVolume",
                &message,
            );
        }
        Ok(())
    }

    /// Tells the Pods of a volume, the same thing once.
    fn tell(&self, wanted: &Wanted, kind: EventType, reason: &str, message: &str) {
        for pod in &wanted.pods {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let key = format!("/{uid}/{}", wanted.volume);
            let before = self.memory.lock().told.insert(key, message.to_owned());
            if before.as_deref() != Some(message) {
                let events = &self.context.events;
                events.event_on(&**pod, kind, reason, message.to_owned());
            }
        }
        let mut memory = self.memory.lock();
        if memory.told.len() > TOLD_MAX {
            memory.told.clear();
        }
    }
}

/// More than that is not remembered; then things may be told twice.
const TOLD_MAX: usize = 10_000;

fn attachment(wanted: &Wanted, node: &str) -> VolumeAttachment {
    VolumeAttachment {
        metadata: ObjectMeta {
            name: Some(attachments::name(&wanted.handle, &wanted.driver, node)),
            ..ObjectMeta::default()
        },
        spec: VolumeAttachmentSpec {
            attacher: wanted.driver.clone(),
            node_name: node.to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: Some(wanted.volume.clone()),
                ..VolumeAttachmentSource::default()
            },
        },
        status: None,
    }
}
