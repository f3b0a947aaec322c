//! DynamicResources: a Pod goes where the devices are that its claims have, or where those can be had that they ask for.
//!
//! `allocate.rs` decides about one node and is pure. What is chosen is set aside from the decision on, so that two Pods are never
//! promised one device, until it is written (`write.rs`, before the Pod is bound) and seen.

mod allocate;
mod capacity;
pub(crate) mod claims;
mod conditions;
mod constraints;
mod counters;
pub(crate) mod extended;
mod pools;
mod results;
mod selectors;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cox_client::Clock;
use k8s_openapi::api::core::v1::ContainerExtendedResourceRequest;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};
use parking_lot::{Mutex, MutexGuard};

use crate::devices::Devices;
use crate::event::ClusterEvents;
use crate::framework::{
    FilterPlugin, Plugin, PreFilter, Rejection, ReservePlugin, ScorePlugin, normalize_by_highest,
};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;
use allocate::{Allocated, Allocator, Failure};
use claims::{allocation, is_reserved_for, reserved_for, revision, uid_of};
use conditions::Readiness;
use selectors::Selectors;
pub(crate) use write::ClaimWriter;

/// Alternatives that a request can have; an earlier one scores higher.
const ALTERNATIVES_MAX: i64 = 8;

/// What has to be written before a Pod is bound.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The node.
    pub node: Arc<str>,
    /// All claims of the Pod.
    pub claims: Vec<PlannedClaim>,
    /// The claim to be made for its extended resources.
    pub extended: Option<PlannedExtended>,
}

/// A claim that is made for a Pod when it has a node.
#[derive(Clone, Debug)]
pub struct PlannedExtended {
    /// As it is to be made; later, as it was.
    pub claim: Arc<ResourceClaim>,
    /// What it gets.
    pub allocation: AllocationResult,
    /// Which container gets which request.
    pub mappings: Vec<ContainerExtendedResourceRequest>,
    /// It was made.
    pub is_made: bool,
}

/// A claim of a Pod that has a node.
#[derive(Clone, Debug)]
pub struct PlannedClaim {
    /// As it was when the node was chosen.
    pub claim: Arc<ResourceClaim>,
    /// What it gets; none: it has it already.
    pub allocation: Option<AllocationResult>,
    /// The Pod stands in its `reservedFor`.
    pub is_reserved: bool,
}

/// What is to be done about a Pod's claims when it got no node, or lost it.
#[derive(Clone, Debug)]
pub enum FollowUp {
    /// Take the Pod out of `reservedFor`.
    Unreserve(Arc<ResourceClaim>),
    /// Give the devices back: they keep the Pod off all nodes.
    Deallocate(Arc<ResourceClaim>),
    /// Delete what was made for extended resources.
    Delete(Arc<ResourceClaim>),
}

/// See the module's description.
#[derive(Clone)]
pub struct DynamicResources {
    inner: Arc<Inner>,
}

struct Inner {
    devices: Arc<dyn Devices>,
    selectors: Arc<Selectors>,
    clock: Arc<dyn Clock>,
    /// How long drivers may take to make devices ready.
    binding_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The Pod that is being looked at.
    current: Option<Current>,
    /// Claims that get devices just now, by their identities.
    pending: HashMap<String, Pending>,
    /// By the Pods' identities.
    planned: HashMap<Arc<str>, Planned>,
    follow_ups: HashMap<Arc<str>, Vec<FollowUp>>,
}

struct Current {
    uid: Arc<str>,
    claims: Vec<Arc<ResourceClaim>>,
    /// None: all claims have their devices.
    allocator: Option<Allocator>,
    /// Classes behind what the Pod asks for by amount, by the names of resources.
    extended: BTreeMap<String, Arc<DeviceClass>>,
    /// What an earlier attempt made for those, and that is in the way.
    stale: Option<Arc<ResourceClaim>>,
    /// What was found, by node.
    found: HashMap<String, Found>,
    /// Claims whose devices keep the Pod off a node.
    unavailable: BTreeSet<usize>,
    /// What is wrong with the claims.
    failed: Option<String>,
}

/// What was found for a node.
#[derive(Default)]
struct Found {
    /// For the claims that have no devices yet, then for that of extended resources.
    results: Vec<AllocationResult>,
    extended: Option<(ResourceClaim, Vec<ContainerExtendedResourceRequest>)>,
}

/// Under what a claim that is not made yet is set aside.
fn extended_key(pod: &str) -> String {
    format!("extended resources of {pod}")
}

/// How long a claim that was made may stay unseen before it counts as gone again.
const UNSEEN_MAX: Duration = Duration::from_secs(60);

/// A claim with the devices that it gets.
struct Pending {
    pod: Arc<str>,
    claim: Arc<ResourceClaim>,
    /// When it was written, if it was.
    written: Option<jiff::Timestamp>,
}

impl Pending {
    fn new(pod: &PodInfo, claim: &ResourceClaim, held: &AllocationResult) -> Self {
        let mut promised = claim.clone();
        promised.status.get_or_insert_default().allocation = Some(held.clone());
        Self {
            pod: Arc::clone(&pod.uid),
            claim: Arc::new(promised),
            written: None,
        }
    }
}

impl DynamicResources {
    /// Reads from here.
    #[must_use]
    pub fn new(
        devices: Arc<dyn Devices>,
        clock: Arc<dyn Clock>,
        binding_timeout: Duration,
    ) -> Self {
        let (selectors, state) = (Arc::default(), Mutex::default());
        Self {
            inner: Arc::new(Inner {
                devices,
                selectors,
                clock,
                binding_timeout,
                state,
            }),
        }
    }

    /// Where it reads from.
    #[must_use]
    pub fn devices(&self) -> &Arc<dyn Devices> {
        &self.inner.devices
    }

    /// What has to be written before the Pod is bound; `None`: nothing.
    #[must_use]
    pub fn planned(&self, uid: &str) -> Option<Planned> {
        self.state().planned.get(uid).cloned()
    }

    /// What is to be done after a Pod got no node, or lost it.
    #[must_use]
    pub fn take_follow_ups(&self, pod: &PodInfo) -> Vec<FollowUp> {
        let mut state = self.state();
        let mut all = state.follow_ups.remove(&pod.uid).unwrap_or_default();
        let current = state.current.take_if(|current| current.uid == pod.uid);
        all.extend(current.and_then(|current| {
            if let Some(stale) = current.stale {
                return Some(FollowUp::Delete(stale));
            }
            let mut unavailable = current.unavailable.iter();
            let claim = unavailable.find_map(|index| {
                let claim = &current.claims[*index];
                let free = reserved_for(claim).all(|own| *own == *pod.uid);
                (free && reserved_for(claim).count() <= 1).then_some(claim)
            });
            claim.map(|claim| FollowUp::Deallocate(Arc::clone(claim)))
        }));
        all
    }

    /// A claim of the Pod was written.
    pub(crate) fn written(&self, pod: &PodInfo, claim: &Arc<ResourceClaim>) {
        let mut state = self.state();
        let uid = uid_of(claim);
        let is_extended = extended::is_for(claim, &pod.pod);
        let key = match is_extended {
            true => extended_key(&pod.uid),
            false => uid.clone(),
        };
        if let Some(pending) = state.pending.get_mut(&key) {
            pending.claim = Arc::clone(claim);
            pending.written = Some(self.inner.clock.now());
        }
        if let Some(planned) = state.planned.get_mut(&pod.uid) {
            if let Some(own) = planned.extended.as_mut().filter(|_| is_extended) {
                own.claim = Arc::clone(claim);
            }
            let mut own = planned.claims.iter_mut();
            if let Some(own) = own.find(|own| uid_of(&own.claim) == uid) {
                own.claim = Arc::clone(claim);
                own.is_reserved = true;
            }
        }
    }

    /// The claim for the Pod's extended resources was made.
    pub(crate) fn made(&self, pod: &PodInfo, claim: &Arc<ResourceClaim>) {
        let mut state = self.state();
        let planned = state.planned.get_mut(&pod.uid);
        if let Some(own) = planned.and_then(|planned| planned.extended.as_mut()) {
            own.claim = Arc::clone(claim);
            own.is_made = true;
        }
    }

    /// A claim as it is known now, but not older than this.
    pub(crate) fn newest(&self, claim: &Arc<ResourceClaim>) -> Result<Arc<ResourceClaim>, String> {
        let meta = &claim.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match self.inner.devices.claim(namespace, name) {
            Some(known) if uid_of(&known) != uid_of(claim) => Err(format!(
                "claim {namespace}/{name} got deleted in the meantime"
            )),
            Some(known) if revision(&known) > revision(claim) => Ok(known),
            Some(_) => Ok(Arc::clone(claim)),
            // Just made, and not seen yet.
            None if extended::is_marked(claim) => Ok(Arc::clone(claim)),
            None => Err(format!(
                "resourceclaim.resource.k8s.io \"{name}\" not found"
            )),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock()
    }

    /// What claims hold, those included that are only about to.
    fn allocated(&self, state: &State) -> Allocated {
        let mut allocated = Allocated::default();
        let pending = state.pending.values();
        let pending: BTreeSet<String> = pending.map(|own| uid_of(&own.claim)).collect();
        for claim in self.inner.devices.claims() {
            if let Some(held) = allocation(&claim)
                && !pending.contains(&uid_of(&claim))
            {
                allocated.add(held);
            }
        }
        for pending in state.pending.values() {
            if let Some(held) = allocation(&pending.claim) {
                allocated.add(held);
            }
        }
        allocated
    }

    /// What was written is not set aside any more once it is seen; no claim, no devices.
    fn forget_seen(&self, state: &mut State) {
        let now = self.inner.clock.now();
        state.pending.retain(|_, pending| {
            let Some(written) = pending.written else {
                return true;
            };
            let meta = &pending.claim.metadata;
            let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
            let known = self
                .inner
                .devices
                .claim(namespace.unwrap_or_default(), name.unwrap_or_default());
            match known.filter(|known| uid_of(known) == uid_of(&pending.claim)) {
                Some(known) => revision(&known) < revision(&pending.claim),
                None => {
                    let waited = Duration::try_from(now.duration_since(written));
                    extended::is_marked(&pending.claim)
                        && waited.is_ok_and(|waited| waited < UNSEEN_MAX)
                }
            }
        });
    }

    /// What is known of the Pod before nodes are looked at; or why none has to be.
    fn look_at(&self, pod: &PodInfo, state: &State) -> Result<Option<Current>, String> {
        let devices = &*self.inner.devices;
        let mut claims = claims::of(pod, devices)?;
        let extended = extended::classes(pod, devices);
        if claims.is_empty() && extended.is_empty() {
            return Ok(None);
        }
        let mut classes = BTreeMap::new();
        for class in extended.values() {
            let name = class.metadata.name.clone().unwrap_or_default();
            classes.insert(name, Arc::clone(class));
        }
        for claim in &mut claims {
            if let Some(pending) = state.pending.get(&uid_of(claim)) {
                if pending.written.is_none() {
                    let shown = allocate::shown(claim);
                    return Err(format!(
                        "resource claim {shown} is in the process of being allocated"
                    ));
                }
                *claim = Arc::clone(&pending.claim);
            }
            if allocation(claim).is_none() {
                self.classes_of(claim, &mut classes)?;
            }
        }
        let stale = match extended.is_empty() {
            true => None,
            false => {
                let mut all = devices.claims().into_iter();
                all.find(|claim| extended::is_for(claim, &pod.pod))
            }
        };
        let wants = claims.iter().any(|claim| allocation(claim).is_none());
        let wants = wants || !extended.is_empty();
        let allocator = wants.then(|| {
            let selectors = Arc::clone(&self.inner.selectors);
            Allocator::new(devices.slices(), classes, self.allocated(state), selectors)
        });
        Ok(Some(Current {
            uid: Arc::clone(&pod.uid),
            claims,
            allocator,
            extended,
            stale,
            found: HashMap::new(),
            unavailable: BTreeSet::new(),
            failed: None,
        }))
    }

    fn classes_of(
        &self,
        claim: &ResourceClaim,
        classes: &mut BTreeMap<String, Arc<DeviceClass>>,
    ) -> Result<(), String> {
        for request in allocate::requests(claim) {
            let exactly = request.exactly.iter();
            let exactly = exactly.map(|own| (request.name.clone(), &own.device_class_name));
            let alternatives = request.first_available.iter().flatten();
            let alternatives = alternatives.map(|own| {
                let name = format!("{}/{}", request.name, own.name);
                (name, &own.device_class_name)
            });
            for (name, class) in exactly.chain(alternatives) {
                let found = self.inner.devices.class(class);
                let found = found.ok_or_else(|| {
                    format!("request {name}: device class {class} does not exist")
                })?;
                classes.insert(class.clone(), found);
            }
        }
        Ok(())
    }

    /// Whether an allocated claim lets the Pod be on the node.
    fn is_available(&self, claim: &ResourceClaim, node: &NodeInfo) -> bool {
        let Some(held) = allocation(claim) else {
            return true;
        };
        let selector = held.node_selector.as_ref();
        if selector.is_some_and(|selector| !pools::selects(selector, &node.facts.node)) {
            return false;
        }
        match conditions::of(claim) {
            Readiness::Ready => true,
            Readiness::Failed(_) => false,
            Readiness::Waiting => {
                let (now, timeout) = (self.inner.clock.now(), self.inner.binding_timeout);
                !conditions::is_overdue(claim, now, timeout)
            }
        }
    }
}

/// A name for a share of a device that no other share has.
fn new_share_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl std::fmt::Debug for DynamicResources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DynamicResources").finish_non_exhaustive()
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }
}

impl FilterPlugin for DynamicResources {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        let mut state = self.state();
        state.current = None;
        if claims::entries(&pod.pod).is_empty() && pod.requests.asked.scalars.is_empty() {
            return PreFilter::Skip;
        }
        self.forget_seen(&mut state);
        match self.look_at(pod, &state) {
            Ok(None) => PreFilter::Skip,
            Ok(current) => {
                state.current = current;
                PreFilter::All
            }
            Err(why) => PreFilter::Reject(why),
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let mut state = self.state();
        let current = state.current.as_mut();
        let Some(current) = current.filter(|current| current.uid == pod.uid) else {
            return Ok(());
        };
        if current.stale.is_some() {
            return Err(Rejection::because(
                "cannot schedule extended resource claim",
            ));
        }
        let has = |name: &str| node.facts.allocatable.scalar(name);
        let missing = extended::missing(&current.extended, has);
        if current.claims.is_empty() && missing.is_empty() {
            // The node has it all itself.
            return Ok(());
        }
        let extended = pod.pod.spec.as_ref().filter(|_| !missing.is_empty());
        let extended = extended.map(|spec| {
            let (requests, mappings) = extended::requests(spec, &missing);
            (extended::claim(&pod.pod, requests), mappings)
        });
        let claims = current.claims.iter().enumerate();
        let unavailable = claims.filter(|(_, claim)| !self.is_available(claim, node));
        let unavailable: Vec<usize> = unavailable.map(|(index, _)| index).collect();
        let found = current.allocator.as_ref().map(|allocator| {
            let wanting = current.claims.iter();
            let wanting = wanting.filter(|claim| allocation(claim).is_none());
            let special = extended.iter().map(|(claim, _)| Arc::new(claim.clone()));
            let wanting: Vec<_> = wanting.cloned().chain(special).collect();
            allocator.allocate(&node.facts.node, &wanting, &mut new_share_id)
        });
        let found = match found {
            None => None,
            Some(Ok(Some(found))) => Some(found),
            Some(Ok(None)) => return Err(Rejection::because("cannot allocate all claims")),
            Some(Err(Failure::Node(why))) => return Err(Rejection(vec![why.into()])),
            Some(Err(Failure::Claims(why))) => {
                current.failed = Some(why.clone());
                return Err(Rejection(vec![why.into()]));
            }
        };
        if !unavailable.is_empty() {
            current.unavailable.extend(unavailable);
            return Err(Rejection::because(
                "resourceclaim not available on the node",
            ));
        }
        if let Some(results) = found {
            let found = Found { results, extended };
            current.found.insert(node.facts.name().to_owned(), found);
        }
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.state().current.as_ref()?.failed.clone()
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
            .or(ClusterEvents::NODE_LABELS)
            .or(ClusterEvents::NODE_ALLOCATABLE)
            .or(ClusterEvents::DEVICE_CLAIM)
            .or(ClusterEvents::DEVICE_CLASS)
            .or(ClusterEvents::DEVICE_SLICE)
    }
}

impl ScorePlugin for DynamicResources {
    fn skip(&self, pod: &PodInfo) -> bool {
        let state = self.state();
        let current = state.current.as_ref();
        let current = current.filter(|current| current.uid == pod.uid);
        !current.is_some_and(|current| {
            let mut requests = current
                .claims
                .iter()
                .flat_map(|claim| allocate::requests(claim));
            requests.any(|request| request.first_available.is_some())
        })
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let state = self.state();
        let current = state.current.as_ref();
        let Some(current) = current.filter(|current| current.uid == pod.uid) else {
            return 0;
        };
        let found = current.found.get(node.facts.name());
        let mut found = found.into_iter().flat_map(|found| &found.results);
        let claims = current.claims.iter();
        let scores = claims.map(|claim| {
            let held = allocation(claim).or_else(|| found.next());
            held.map_or(0, |held| score_of(claim, held))
        });
        scores.sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_highest(scores, false);
    }
}

/// The earlier the alternatives that were taken, the more.
fn score_of(claim: &ResourceClaim, held: &AllocationResult) -> i64 {
    let taken: BTreeSet<&str> = claims::results(held)
        .iter()
        .map(|result| result.request.as_str())
        .collect();
    let requests = allocate::requests(claim).iter();
    let alternatives = requests.flat_map(|request| {
        let own = request.first_available.iter().flatten();
        own.zip(0..)
            .map(|(own, place)| (format!("{}/{}", request.name, own.name), place))
    });
    let scores = alternatives.filter(|(name, _)| taken.contains(name.as_str()));
    scores.map(|(_, place)| ALTERNATIVES_MAX - place).sum()
}

impl ReservePlugin for DynamicResources {
    fn reserve(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let mut state = self.state();
        let current = state.current.take_if(|current| current.uid == pod.uid);
        let Some(mut current) = current else {
            return Ok(());
        };
        let found = current.found.remove(node.facts.name());
        if found.is_none() && current.claims.is_empty() {
            return Ok(());
        }
        if current.allocator.is_some() && found.is_none() {
            return Err(Rejection::because("claim allocation not found for node"));
        }
        let Found { results, extended } = found.unwrap_or_default();
        let mut found = results.into_iter();
        let mut planned = Vec::with_capacity(current.claims.len());
        for claim in current.claims {
            let is_reserved = is_reserved_for(&claim, &pod.pod);
            let own = match allocation(&claim) {
                Some(_) => None,
                None => found.next(),
            };
            if let Some(own) = &own {
                let pending = Pending::new(pod, &claim, own);
                state.pending.insert(uid_of(&claim), pending);
            }
            planned.push(PlannedClaim {
                claim,
                allocation: own,
                is_reserved,
            });
        }
        let extended = extended.zip(found.next());
        let extended = extended.map(|((claim, mappings), allocation)| {
            let pending = Pending::new(pod, &claim, &allocation);
            state.pending.insert(extended_key(&pod.uid), pending);
            PlannedExtended {
                claim: Arc::new(claim),
                allocation,
                mappings,
                is_made: false,
            }
        });
        let planned = Planned {
            node: node.facts.name().into(),
            claims: planned,
            extended,
        };
        state.planned.insert(Arc::clone(&pod.uid), planned);
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _node: &str) {
        let mut state = self.state();
        let own = |pending: &Pending| {
            let goes = pending.written.is_none() || extended::is_for(&pending.claim, &pod.pod);
            pending.pod == pod.uid && goes
        };
        state.pending.retain(|_, pending| !own(pending));
        if let Some(planned) = state.planned.remove(&pod.uid) {
            let made = planned.extended.filter(|own| own.is_made);
            let made = made.map(|own| FollowUp::Delete(own.claim));
            let reserved = planned.claims.into_iter().filter(|own| own.is_reserved);
            let all: Vec<_> = reserved
                .map(|own| FollowUp::Unreserve(own.claim))
                .chain(made)
                .collect();
            if !all.is_empty() {
                state.follow_ups.insert(Arc::clone(&pod.uid), all);
            }
        }
    }

    fn bound(&self, uid: &str) {
        let mut state = self.state();
        state.planned.remove(uid);
        self.forget_seen(&mut state);
    }
}
