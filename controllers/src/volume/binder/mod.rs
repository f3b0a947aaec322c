//! Binds claims to volumes, makes volumes of the class `local-path`, and frees or deletes volumes whose claim is gone.
//!
//! Watched: claims, volumes, classes, nodes, pods. Written: both sides of a binding, their statuses, volumes of our own provisioner.
//! Invariants: a volume names its claim before the claim names the volume, so that two claims never share one; what is decided
//! about a claim that seems gone is decided by what the API server says, not the cache; nothing is deleted that was not made here.
//!
//! A class that waits for its first consumer gets the node that the scheduler chose (annotation), else the node that the first Pod
//! with the claim is on.

mod effects;
mod plan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use cox_client::runner::{ObjectName, Verdict};
use cox_client::{BoxError, Informer};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use super::phase_of;
use crate::context::{Context, Loop};
use cox_client::volumes::{SELECTED_NODE, annotation, claims_of};
use plan::ClaimInput;

const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(ObjectName),
    Volume(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(name) => write!(f, "claim {name}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

struct Binder {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

pub(crate) async fn run(context: Context) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let classes = context.informers.of::<StorageClass>();
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new("persistentvolume-binder");
    follow(&mut frame, &claims, &volumes, &classes, &pods);
    let (known, users) = (claims.clone(), pods.clone());
    // A chosen node that goes away is not waited for; one that is heard of after the Pod on it is.
    frame.feed(&nodes, move |node, keys| {
        let name = node.metadata.name.as_deref();
        let waiting = unbound(&known, |claim| {
            match annotation(&claim.metadata, SELECTED_NODE) {
                Some(chosen) => Some(chosen) == name,
                None => first_user(&users, claim).is_some_and(|pod| on_node(&pod) == name),
            }
        });
        keys.extend(waiting);
    });
    let cancel = context.cancel.clone();
    let binder = Arc::new(Binder {
        context,
        claims,
        volumes,
        classes,
        nodes,
        pods,
    });
    let reconcile = move |key: Key| {
        let binder = binder.clone();
        async move {
            let result = match &key {
                Key::Claim(name) => binder.look_at_claim(name).await,
                Key::Volume(name) => binder.look_at_volume(name).await,
            };
            match result {
                Ok(verdict) => verdict,
                Err(error) => Verdict::Backoff(error),
            }
        }
    };
    // One at a time: two claims must not be promised the same volume.
    frame.run(1, reconcile, cancel).await;
}

/// What has to be looked at when something changes.
fn follow(
    frame: &mut Loop<Key>,
    claims: &Informer<PersistentVolumeClaim>,
    volumes: &Informer<PersistentVolume>,
    classes: &Informer<StorageClass>,
    pods: &Informer<Pod>,
) {
    let known = volumes.clone();
    frame.feed(claims, move |claim, keys| {
        keys.push(Key::Claim(ObjectName::of(claim)));
        let named = known.list().into_iter().filter(|volume| {
            let reference = volume
                .spec
                .as_ref()
                .and_then(|spec| spec.claim_ref.as_ref());
            reference.is_some_and(|reference| {
                reference.name == claim.metadata.name
                    && reference.namespace == claim.metadata.namespace
            })
        });
        keys.extend(named.filter_map(|volume| volume.metadata.name.clone().map(Key::Volume)));
    });
    let known = claims.clone();
    frame.feed(volumes, move |volume, keys| {
        keys.extend(volume.metadata.name.clone().map(Key::Volume));
        let reference = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        match reference {
            Some(reference) => keys.push(Key::Claim(ObjectName::namespaced(
                reference.namespace.as_deref().unwrap_or_default(),
                reference.name.as_deref().unwrap_or_default(),
            ))),
            None => keys.extend(unbound(&known, |_| true)),
        }
    });
    let known = claims.clone();
    frame.feed(classes, move |_, keys| {
        keys.extend(unbound(&known, |_| true))
    });
    let known = claims.clone();
    frame.feed(pods, move |pod, keys| {
        if on_node(pod).is_none() {
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for name in claims_of(pod) {
            let claim = known.get(Some(namespace), &name);
            if claim.is_some_and(|claim| phase_of(&claim) != "Bound") {
                keys.push(Key::Claim(ObjectName::namespaced(namespace, &name)));
            }
        }
    });
}

fn unbound(
    claims: &Informer<PersistentVolumeClaim>,
    which: impl Fn(&PersistentVolumeClaim) -> bool,
) -> Vec<Key> {
    let waiting = claims
        .list()
        .into_iter()
        .filter(|claim| phase_of(claim) != "Bound" && which(claim));
    waiting
        .map(|claim| Key::Claim(ObjectName::of(&*claim)))
        .collect()
}

fn on_node(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty()).then_some(node)
}

impl Binder {
    async fn look_at_claim(&self, name: &ObjectName) -> Result<Verdict, BoxError> {
        let Some(claim) = self.claims.get(Some(&name.namespace), &name.name) else {
            return Ok(Verdict::Done);
        };
        let class_name = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.clone());
        let volumes = self.volumes.list();
        let input = ClaimInput {
            claim: &claim,
            volumes: &volumes,
            class: class_name.and_then(|name| self.classes.get(None, &name)),
            default_class: self.default_class(),
            node: self.node_for(&claim),
        };
        let step = plan::plan_claim(&input);
        self.carry_out(&claim, step, input.class.as_deref()).await?;
        Ok(Verdict::WaitForChange)
    }

    async fn look_at_volume(&self, name: &str) -> Result<Verdict, BoxError> {
        let Some(volume) = self.volumes.get(None, name) else {
            return Ok(Verdict::Done);
        };
        let reference = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        let claim = reference.and_then(|reference| {
            let name = reference.name.as_deref().unwrap_or_default();
            self.claims.get(reference.namespace.as_deref(), name)
        });
        let step = plan::plan_volume(&volume, claim.as_deref());
        self.settle_volume(&volume, step).await?;
        Ok(Verdict::WaitForChange)
    }

    /// The newest of the classes that say they are the default.
    fn default_class(&self) -> Option<String> {
        let is_default = |class: &Arc<StorageClass>| {
            let annotations = class.metadata.annotations.as_ref();
            annotations.is_some_and(|all| {
                IS_DEFAULT
                    .iter()
                    .any(|key| all.get(*key).is_some_and(|value| value == "true"))
            })
        };
        let found = self.classes.list().into_iter().filter(is_default);
        let newest = found.max_by(|a, b| {
            let (a, b) = (&a.metadata, &b.metadata);
            let time =
                |meta: &kube::api::ObjectMeta| meta.creation_timestamp.as_ref().map(|time| time.0);
            time(a).cmp(&time(b)).then_with(|| b.name.cmp(&a.name))
        });
        newest.and_then(|class| class.metadata.name.clone())
    }

    /// The node chosen for a claim, or that its first Pod is on.
    fn node_for(&self, claim: &PersistentVolumeClaim) -> Option<Arc<Node>> {
        if let Some(chosen) = annotation(&claim.metadata, SELECTED_NODE) {
            return self.nodes.get(None, chosen);
        }
        let pod = first_user(&self.pods, claim)?;
        self.nodes.get(None, on_node(&pod)?)
    }
}

/// The first of the Pods on nodes that use a claim.
fn first_user(pods: &Informer<Pod>, claim: &PersistentVolumeClaim) -> Option<Arc<Pod>> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let users = pods.list_in(namespace).into_iter();
    users
        .filter(|pod| on_node(pod).is_some() && claims_of(pod).any(|claim| claim == name))
        .min_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}
