//! What a Pod's claims come to on one node. Pure: reads what is known, writes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cox_api::quantity::Quantity;
use cox_client::volumes::{
    SELECTED_NODE, annotation, best, class_of, fits, is_bound, is_for, reachable, selects,
};
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};

use super::key_of;
use crate::pod_info::PodInfo;
use crate::pod_volumes::{ClaimKey, ClaimUse};
use crate::storage::Storage;

const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
const NO_SPACE: &str = "node(s) did not have enough free storage";
const VOLUME_GONE: &str =
    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
/// What classes name whose volumes nobody makes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What Pods whose binding is under way were promised.
#[derive(Clone, Debug, Default)]
pub(super) struct SetAside {
    /// Volumes, and for which claim.
    pub(super) volumes: HashMap<String, ClaimKey>,
    pub(super) volume_of: HashMap<ClaimKey, String>,
    /// The nodes for which claims get a volume made.
    pub(super) node_of: HashMap<ClaimKey, String>,
}

/// The claims of a Pod, sorted by what is to be done about them.
#[derive(Debug, Default)]
pub(super) struct PodClaims {
    bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Smallest first, so that large volumes are left for those who need them.
    delayed: Vec<Arc<PersistentVolumeClaim>>,
    /// Of the classes of those.
    free: Vec<Arc<PersistentVolume>>,
    aside: SetAside,
}

impl PodClaims {
    /// An error says what has to happen before any node is worth a look.
    pub(super) fn of(
        pod: &PodInfo,
        storage: &dyn Storage,
        aside: SetAside,
    ) -> Result<Self, String> {
        let mut found = Self {
            aside,
            ..Self::default()
        };
        let mut unbound = false;
        for own in pod.volumes.iter().flat_map(|volumes| &volumes.claims) {
            let claim = claim_for(pod, own, storage)?;
            if is_bound(&claim) {
                found.bound.push(claim);
            } else if waits_for_consumer(&claim, storage)? {
                found.delayed.push(claim);
            } else {
                unbound = true;
            }
        }
        if unbound {
            return Err(UNBOUND.to_owned());
        }
        found
            .delayed
            .sort_by_cached_key(|claim| bytes_asked(claim).unwrap_or(0));
        found
            .delayed
            .dedup_by(|a, b| a.metadata.uid == b.metadata.uid);
        if !found.delayed.is_empty() {
            found.free = storage.volumes();
            let delayed = &found.delayed;
            let classes: Vec<&str> = delayed.iter().map(|claim| class(claim)).collect();
            found.free.retain(|volume| {
                let spec = volume.spec.as_ref();
                let own = class_of(spec.and_then(|spec| spec.storage_class_name.as_ref()));
                classes.contains(&own)
            });
        }
        Ok(found)
    }
}

fn claim_for(
    pod: &PodInfo,
    own: &ClaimUse,
    storage: &dyn Storage,
) -> Result<Arc<PersistentVolumeClaim>, String> {
    let ClaimKey { namespace, name } = &own.key;
    let claim = storage.claim(namespace, name).ok_or_else(|| {
        if own.is_ephemeral {
            format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
        } else {
            format!("persistentvolumeclaim \"{name}\" not found")
        }
    })?;
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if phase == Some("Lost") {
        let spec = claim.spec.as_ref();
        let volume = spec
            .and_then(|spec| spec.volume_name.as_deref())
            .unwrap_or_default();
        return Err(format!(
            "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
        ));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
    }
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if own.is_ephemeral && !owners.any(|owner| *owner.uid == *pod.uid) {
        let pod = pod.names().1;
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
        ));
    }
    Ok(claim)
}

fn class(claim: &PersistentVolumeClaim) -> &str {
    class_of(
        claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.as_ref()),
    )
}

/// Whether the claim waits for the scheduler; one that names its volume does not.
fn waits_for_consumer(
    claim: &PersistentVolumeClaim,
    storage: &dyn Storage,
) -> Result<bool, String> {
    let spec = claim.spec.as_ref();
    let names_volume = spec
        .and_then(|spec| spec.volume_name.as_ref())
        .is_some_and(|name| !name.is_empty());
    let name = class(claim);
    if name.is_empty() || names_volume {
        return Ok(false);
    }
    let class = storage
        .class(name)
        .ok_or_else(|| format!("storageclass.storage.k8s.io \"{name}\" not found"))?;
    Ok(class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

fn bytes_asked(claim: &PersistentVolumeClaim) -> Option<i64> {
    let asked = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Quantity::parse(&asked.get("storage")?.0)
        .ok()
        .map(|asked| asked.as_i64())
}

/// What the unbound claims get on a node.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) bindings: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    pub(super) provisions: Vec<Arc<PersistentVolumeClaim>>,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.bindings.is_empty() && self.provisions.is_empty()
    }
}

/// What the claims get on this node, or every reason why it cannot be.
pub(super) fn find(
    claims: &PodClaims,
    node: &Node,
    storage: &dyn Storage,
) -> Result<Found, Vec<&'static str>> {
    let mut reasons: Vec<&'static str> = at_bound(&claims.bound, node, storage)
        .err()
        .into_iter()
        .collect();
    let mut found = Found::default();
    match unbound(claims, node, storage, &mut found) {
        Ok(()) if reasons.is_empty() => return Ok(found),
        Ok(()) => {}
        Err(reason) => reasons.push(reason),
    }
    Err(reasons)
}

fn at_bound(
    claims: &[Arc<PersistentVolumeClaim>],
    node: &Node,
    storage: &dyn Storage,
) -> Result<(), &'static str> {
    for claim in claims {
        let name = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref());
        let volume = storage
            .volume(name.unwrap_or_default())
            .ok_or(VOLUME_GONE)?;
        if !reachable(&volume, node) {
            return Err(NODE_CONFLICT);
        }
    }
    Ok(())
}

fn unbound(
    claims: &PodClaims,
    node: &Node,
    storage: &dyn Storage,
    found: &mut Found,
) -> Result<(), &'static str> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut to_make = Vec::new();
    for claim in &claims.delayed {
        let aside = claims.aside.node_of.get(&key_of(claim)).map(String::as_str);
        let chosen = aside.or_else(|| annotation(&claim.metadata, SELECTED_NODE));
        match chosen.filter(|chosen| !chosen.is_empty()) {
            Some(chosen) if chosen != name => return Err(BIND_CONFLICT),
            Some(_) => to_make.push(claim),
            None => match pick(claims, claim, node, found) {
                Some(volume) => found.bindings.push((volume, Arc::clone(claim))),
                None => to_make.push(claim),
            },
        }
    }
    for claim in to_make {
        can_be_made(claim, node, storage)?;
        found.provisions.push(Arc::clone(claim));
    }
    Ok(())
}

/// The volume for a claim: that which is its own already, or the best of those that are free.
fn pick(
    claims: &PodClaims,
    claim: &PersistentVolumeClaim,
    node: &Node,
    found: &Found,
) -> Option<Arc<PersistentVolume>> {
    let key = key_of(claim);
    let name = |volume: &PersistentVolume| volume.metadata.name.clone().unwrap_or_default();
    let promised = claims.aside.volume_of.get(&key);
    let own = claims.free.iter().find(|volume| {
        promised.is_some_and(|promised| *promised == name(volume))
            || (is_for(volume, claim) && fits(volume, claim))
    });
    if let Some(own) = own {
        return reachable(own, node).then(|| Arc::clone(own));
    }
    let is_free = |volume: &PersistentVolume| {
        let status = volume.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let name = name(volume);
        phase == Some("Available")
            && !claims.aside.volumes.contains_key(&name)
            && !found
                .bindings
                .iter()
                .any(|(taken, _)| taken.metadata.name.as_ref() == Some(&name))
    };
    let free: Vec<_> = claims
        .free
        .iter()
        .filter(|volume| is_free(volume))
        .cloned()
        .collect();
    best(claim, &free, Some(node))
}

/// Whether a volume can be made for the claim that this node can reach.
fn can_be_made(
    claim: &PersistentVolumeClaim,
    node: &Node,
    storage: &dyn Storage,
) -> Result<(), &'static str> {
    let class = storage.class(class(claim)).ok_or(BIND_CONFLICT)?;
    let nobody_makes = class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER;
    if nobody_makes
        || !allows(
            class.allowed_topologies.as_deref().unwrap_or_default(),
            node,
        )
    {
        return Err(BIND_CONFLICT);
    }
    if has_room(claim, &class, node, storage) {
        Ok(())
    } else {
        Err(NO_SPACE)
    }
}

/// One of the terms has to fit; none at all fit always.
fn allows(terms: &[TopologySelectorTerm], node: &Node) -> bool {
    let empty = BTreeMap::new();
    let own = node.metadata.labels.as_ref().unwrap_or(&empty);
    let meets = |term: &TopologySelectorTerm| {
        let mut all = term.match_label_expressions.iter().flatten();
        term.match_label_expressions
            .as_ref()
            .is_some_and(|all| !all.is_empty())
            && all.all(|one| {
                own.get(&one.key)
                    .is_some_and(|value| one.values.contains(value))
            })
    };
    terms.is_empty() || terms.iter().any(meets)
}

/// Whether the driver says that there is room, if it is one that says so.
fn has_room(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    storage: &dyn Storage,
) -> bool {
    let Some(asked) = bytes_asked(claim) else {
        return true;
    };
    let tells = storage
        .driver(&class.provisioner)
        .is_some_and(|driver| driver.spec.storage_capacity == Some(true));
    let class_name = class.metadata.name.as_deref();
    !tells
        || storage.capacities().iter().any(|capacity| {
            Some(capacity.storage_class_name.as_str()) == class_name
                && largest(capacity).is_some_and(|largest| largest >= asked)
                && is_for_node(capacity, node)
        })
}

/// The largest volume that can be made; a limit of single volumes is more exact than what is left.
fn largest(capacity: &CSIStorageCapacity) -> Option<i64> {
    let limit = capacity
        .maximum_volume_size
        .as_ref()
        .or(capacity.capacity.as_ref())?;
    Quantity::parse(&limit.0).ok().map(|limit| limit.as_i64())
}

fn is_for_node(capacity: &CSIStorageCapacity, node: &Node) -> bool {
    let topology = capacity.node_topology.as_ref();
    topology.is_some_and(|selector| selects(selector, &node.metadata))
}
