//! Picks devices for the claims of a Pod on one node. Pure, and the same picks for the same input.
//!
//! One device after the other, in the order of claims, requests and devices; what does not lead to a whole solution is taken back
//! and the next device tried. The first whole solution is taken. Devices of one request are tried in one order only, since
//! others would be the same solution; a bound on the number of tries keeps hopeless searches short.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cox_client::claims::tolerates;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{
    AllocationResult, CapacityRequirements, Device, DeviceClass, DeviceRequest, DeviceSelector,
    DeviceToleration, ResourceClaim, ResourceSlice,
};
use parking_lot::Mutex;

use super::capacity::{self, Amounts};
use super::constraints::Constraint;
use super::counters::Counters;
use super::pools::{self, DeviceId, Pool, Soundness};
use super::results;
use super::selectors::Selectors;

/// Devices that one claim can have.
const RESULTS_MAX: usize = 32;
/// Devices that are tried before the search is given up.
const TRIES_MAX: u32 = 500_000;

/// Why there is no answer; "no solution" is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// This node will not do.
    Node(String),
    /// Something is wrong with the claims: no node will do.
    Claims(String),
}

/// What claims hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Allocated {
    /// Devices that are held as a whole.
    pub(super) whole: HashSet<DeviceId>,
    /// What is taken of devices that can be shared.
    pub(super) shared: HashMap<DeviceId, Amounts>,
}

impl Allocated {
    /// Adds what a claim holds. What is only administered is held by nobody.
    pub(super) fn add(&mut self, allocation: &AllocationResult) {
        let results = allocation.devices.as_ref();
        let results = results.and_then(|devices| devices.results.as_ref());
        for result in results.into_iter().flatten() {
            if result.admin_access == Some(true) {
                continue;
            }
            let id = DeviceId {
                driver: result.driver.clone(),
                pool: result.pool.clone(),
                device: result.device.clone(),
            };
            if result.share_id.is_none() {
                self.whole.insert(id);
                continue;
            }
            let consumed = result.consumed_capacity.iter().flatten();
            let consumed = consumed.map(|(name, own)| (name.clone(), capacity::amount(own)));
            capacity::add(self.shared.entry(id).or_default(), &consumed.collect());
        }
    }

    pub(super) fn has(&self, id: &DeviceId) -> bool {
        self.whole.contains(id) || self.shared.contains_key(id)
    }
}

/// Everything that stays the same from node to node.
pub(super) struct Allocator {
    slices: Vec<Arc<ResourceSlice>>,
    /// Places in `slices`, by addresses.
    place_of: HashMap<usize, usize>,
    /// Slices that name their node, by it; the others are worth a look for any.
    by_node: HashMap<String, Vec<usize>>,
    anywhere: Vec<usize>,
    classes: BTreeMap<String, Arc<DeviceClass>>,
    allocated: Allocated,
    selectors: Arc<Selectors>,
    /// Whether a device meets a request's selectors, by slice, device, class and where the selectors are written.
    met: Mutex<HashMap<[usize; 4], Result<bool, String>>>,
}

impl std::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator")
            .field("slices", &self.slices.len())
            .finish_non_exhaustive()
    }
}

/// What a request, or an alternative of one, asks for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) request: &'a str,
    /// The name of the alternative.
    pub(super) alternative: Option<&'a str>,
    pub(super) class: &'a DeviceClass,
    pub(super) selectors: &'a [DeviceSelector],
    pub(super) tolerations: Option<&'a Vec<DeviceToleration>>,
    pub(super) capacity: Option<&'a CapacityRequirements>,
    pub(super) administers: bool,
    count: usize,
    /// Which devices, where all are wanted.
    all: Option<Vec<usize>>,
}

impl Wanted<'_> {
    /// As results name it.
    pub(super) fn name(&self) -> String {
        match self.alternative {
            Some(alternative) => format!("{}/{alternative}", self.request),
            None => self.request.to_owned(),
        }
    }

    fn own_name(&self) -> &str {
        self.alternative.unwrap_or(self.request)
    }

    fn tolerates_taints(&self, device: &Device) -> bool {
        let mut taints = device.taints.iter().flatten();
        taints.all(|taint| {
            let keeps_off = matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
            let mut tolerations = self.tolerations.into_iter().flatten();
            !keeps_off || tolerations.any(|one| tolerates(one, taint))
        })
    }
}

/// A device that can be tried.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) pool: usize,
    pub(super) slice: &'a ResourceSlice,
    pub(super) device: &'a Device,
    pub(super) id: DeviceId,
    slice_index: usize,
    device_index: usize,
}

impl Candidate<'_> {
    pub(super) fn is_shareable(&self) -> bool {
        self.device.allow_multiple_allocations == Some(true)
    }
}

/// A device that was picked.
#[derive(Clone, Debug)]
pub(super) struct Picked {
    pub(super) candidate: usize,
    pub(super) request: usize,
    pub(super) alternative: usize,
    /// What is taken of it, where it is shared.
    pub(super) share: Option<Amounts>,
}

impl Allocator {
    /// `classes` are those that the claims name.
    #[must_use]
    pub(super) fn new(
        slices: Vec<Arc<ResourceSlice>>,
        classes: BTreeMap<String, Arc<DeviceClass>>,
        allocated: Allocated,
        selectors: Arc<Selectors>,
    ) -> Self {
        let (mut by_node, mut anywhere) = (HashMap::<String, Vec<usize>>::new(), Vec::new());
        for (index, slice) in slices.iter().enumerate() {
            let spec = &slice.spec;
            let shares = spec.shared_counters.as_ref();
            let name = spec.node_name.as_ref().filter(|name| !name.is_empty());
            match name.filter(|_| shares.is_none_or(Vec::is_empty)) {
                Some(name) => by_node.entry(name.clone()).or_default().push(index),
                None => anywhere.push(index),
            }
        }
        let places = slices.iter().enumerate();
        let places = places.map(|(place, slice)| (Arc::as_ptr(slice).addr(), place));
        Self {
            place_of: places.collect(),
            slices,
            by_node,
            anywhere,
            classes,
            allocated,
            selectors,
            met: Mutex::default(),
        }
    }

    /// One result for each claim; none: the node cannot have them all. `share_id` names shares.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) fn allocate(
        &self,
        node: &Node,
        claims: &[Arc<ResourceClaim>],
        share_id: &mut dyn FnMut() -> String,
    ) -> Result<Option<Vec<AllocationResult>>, Failure> {
        let own = node.metadata.name.as_ref();
        let own = own.and_then(|name| self.by_node.get(name));
        let near = own.into_iter().flatten().chain(&self.anywhere);
        let near = near.map(|index| &*self.slices[*index]);
        let pools = pools::gather(node, near, &self.slices);
        let candidates = self.candidates(&pools);
        let mut search = Search {
            allocator: self,
            node,
            claims,
            pools: &pools,
            counters: Counters::new(&pools, &self.allocated),
            taking: vec![Vec::new(); candidates.len()],
            candidates,
            wanted: Vec::new(),
            constraints: Vec::new(),
            picked: vec![Vec::new(); claims.len()],
            tries_left: TRIES_MAX,
        };
        search.prepare()?;
        match search.claim(0)? {
            Step::Done => Ok(Some(results::build(&search, share_id)?)),
            Step::Stuck | Step::TooMany => {
                if pools
                    .iter()
                    .any(|pool| pool.soundness == Soundness::Invalid)
                {
                    let why = "invalid resource pools were encountered";
                    return Err(Failure::Node(why.to_owned()));
                }
                Ok(None)
            }
        }
    }

    fn candidates<'a>(&'a self, pools: &[Pool<'a>]) -> Vec<Candidate<'a>> {
        let mut candidates = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            if pool.soundness != Soundness::Sound {
                continue;
            }
            for slice in &pool.slices {
                let slice_index = self.place_of[&std::ptr::from_ref(*slice).addr()];
                for (device_index, device) in pools::devices(slice).iter().enumerate() {
                    candidates.push(Candidate {
                        pool: index,
                        slice,
                        device,
                        id: DeviceId {
                            driver: pool.driver.to_owned(),
                            pool: pool.name.to_owned(),
                            device: device.name.clone(),
                        },
                        slice_index,
                        device_index,
                    });
                }
            }
        }
        candidates
    }
}

/// Where a try led.
enum Step {
    /// To a whole solution.
    Done,
    /// Nowhere.
    Stuck,
    /// To more devices than a claim can have, whatever is picked.
    TooMany,
}

pub(super) struct Search<'a> {
    allocator: &'a Allocator,
    pub(super) node: &'a Node,
    pub(super) claims: &'a [Arc<ResourceClaim>],
    pools: &'a [Pool<'a>],
    pub(super) candidates: Vec<Candidate<'a>>,
    /// By claim, request and alternative.
    pub(super) wanted: Vec<Vec<Vec<Wanted<'a>>>>,
    constraints: Vec<Vec<Constraint<'a>>>,
    counters: Counters<'a>,
    /// The claims that take a device as a whole, by candidate.
    taking: Vec<Vec<usize>>,
    /// By claim.
    pub(super) picked: Vec<Vec<Picked>>,
    tries_left: u32,
}

/// As upstream prints objects of a namespace.
pub(super) fn shown(claim: &ResourceClaim) -> String {
    let meta = &claim.metadata;
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    format!(
        "{}/{}",
        namespace.unwrap_or_default(),
        name.unwrap_or_default()
    )
}

/// The requests of a claim.
pub(super) fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    let devices = claim.spec.devices.as_ref();
    let requests = devices.and_then(|devices| devices.requests.as_deref());
    requests.unwrap_or_default()
}

impl<'a> Search<'a> {
    /// Works out what is wanted, "all" included.
    fn prepare(&mut self) -> Result<(), Failure> {
        let claims = self.claims;
        for claim in claims {
            let mut of_claim = Vec::new();
            let mut least = 0;
            for request in requests(claim) {
                let mut alternatives = self.alternatives(claim, request)?;
                for (wanted, mode) in &mut alternatives {
                    if *mode == "All" {
                        let all = self.all_of(claim, wanted)?;
                        wanted.count = all.len();
                        wanted.all = Some(all);
                    }
                }
                let alternatives: Vec<Wanted<'a>> =
                    alternatives.into_iter().map(|(wanted, _)| wanted).collect();
                least += alternatives.iter().map(|own| own.count).min().unwrap_or(0);
                of_claim.push(alternatives);
            }
            if least > RESULTS_MAX {
                return Err(Failure::Claims(format!(
                    "claim {}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}",
                    shown(claim)
                )));
            }
            self.wanted.push(of_claim);
            let devices = claim.spec.devices.as_ref();
            let written = devices.and_then(|devices| devices.constraints.as_ref());
            let constraints = written.into_iter().flatten().enumerate();
            let constraints = constraints.map(|(place, written)| {
                Constraint::of(written).ok_or_else(|| {
                    let why = "empty constraint (unsupported constraint type?)";
                    let claim = shown(claim);
                    Failure::Claims(format!("claim {claim}, constraint #{place}: {why}"))
                })
            });
            self.constraints
                .push(constraints.collect::<Result<_, _>>()?);
        }
        Ok(())
    }

    /// The alternatives of a request with their modes; one, if it has none.
    fn alternatives(
        &self,
        claim: &ResourceClaim,
        request: &'a DeviceRequest,
    ) -> Result<Vec<(Wanted<'a>, &'a str)>, Failure> {
        let count = |count: Option<i64>| usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX);
        let class = |name: &str| {
            let found = self.allocator.classes.get(name);
            found.map(|class| &**class).ok_or_else(|| {
                Failure::Claims(format!(
                    "claim {}, request {}: could not retrieve device class {name}: deviceclass.resource.k8s.io \"{name}\" not found",
                    shown(claim), request.name
                ))
            })
        };
        fn mode(written: &Option<String>) -> &str {
            written.as_deref().unwrap_or("ExactCount")
        }
        if let Some(exactly) = &request.exactly {
            let wanted = Wanted {
                request: &request.name,
                alternative: None,
                class: class(&exactly.device_class_name)?,
                selectors: exactly.selectors.as_deref().unwrap_or_default(),
                tolerations: exactly.tolerations.as_ref(),
                capacity: exactly.capacity.as_ref(),
                administers: exactly.admin_access == Some(true),
                count: count(exactly.count),
                all: None,
            };
            return Ok(vec![(wanted, mode(&exactly.allocation_mode))]);
        }
        let alternatives = request.first_available.iter().flatten();
        alternatives
            .map(|own| {
                let wanted = Wanted {
                    request: &request.name,
                    alternative: Some(&own.name),
                    class: class(&own.device_class_name)?,
                    selectors: own.selectors.as_deref().unwrap_or_default(),
                    tolerations: own.tolerations.as_ref(),
                    capacity: own.capacity.as_ref(),
                    administers: false,
                    count: count(own.count),
                    all: None,
                };
                Ok((wanted, mode(&own.allocation_mode)))
            })
            .collect()
    }

    /// All devices that a request means.
    fn all_of(&self, claim: &ResourceClaim, wanted: &Wanted<'a>) -> Result<Vec<usize>, Failure> {
        for pool in self.pools {
            let why = match pool.soundness {
                Soundness::Sound => continue,
                Soundness::Incomplete => "being updated",
                Soundness::Invalid => "invalid",
            };
            return Err(Failure::Claims(format!(
                "claim {}, request {}: asks for all devices, but resource pool {}/{} is currently {why}",
                shown(claim),
                wanted.own_name(),
                pool.driver,
                pool.name
            )));
        }
        let mut all = Vec::new();
        for index in 0..self.candidates.len() {
            if self.is_selectable(claim, wanted, index)? && self.capacity_fits(wanted, index) {
                all.push(index);
            }
        }
        Ok(all)
    }

    fn claim(&mut self, claim: usize) -> Result<Step, Failure> {
        if claim == self.claims.len() {
            return Ok(Step::Done);
        }
        Ok(match self.request(claim, 0)? {
            // Other picks for the claims before may leave room for an alternative that needs fewer devices.
            Step::TooMany => Step::Stuck,
            step => step,
        })
    }

    fn request(&mut self, claim: usize, request: usize) -> Result<Step, Failure> {
        if request == self.wanted[claim].len() {
            return self.claim(claim + 1);
        }
        let mut step = Step::TooMany;
        for alternative in 0..self.wanted[claim][request].len() {
            match self.device([claim, request, alternative], 0, 0)? {
                Step::Done => return Ok(Step::Done),
                Step::Stuck => step = Step::Stuck,
                Step::TooMany => {}
            }
        }
        Ok(step)
    }

    /// The request's next device, `number` of which are picked, from the candidate `from` on.
    fn device(&mut self, key: [usize; 3], number: usize, from: usize) -> Result<Step, Failure> {
        let [claim, request, alternative] = key;
        let wanted = &self.wanted[claim][request][alternative];
        let all = wanted.all.as_ref().map(|all| all.get(number).copied());
        if wanted.all.is_some() && wanted.count == 0 {
            return Ok(Step::Stuck);
        }
        if number >= wanted.count {
            return self.request(claim, request + 1);
        }
        if self.picked[claim].len() + wanted.count - number > RESULTS_MAX {
            return Ok(Step::TooMany);
        }
        if let Some(only) = all {
            let Some(only) = only else {
                return Ok(Step::Stuck);
            };
            if !self.pick(key, only, true)? {
                return Ok(Step::Stuck);
            }
            let step = self.device(key, number + 1, 0)?;
            if !matches!(step, Step::Done) {
                self.take_back(key, only);
            }
            return Ok(step);
        }
        for candidate in from..self.candidates.len() {
            self.tries_left = self.tries_left.saturating_sub(1);
            if self.tries_left == 0 {
                let node = self.node.metadata.name.as_deref().unwrap_or_default();
                let why = format!("node {node}: timed out trying to allocate devices");
                return Err(Failure::Claims(why));
            }
            if !self.pick(key, candidate, false)? {
                continue;
            }
            match self.device(key, number + 1, candidate + 1)? {
                Step::Done => return Ok(Step::Done),
                Step::Stuck => self.take_back(key, candidate),
                Step::TooMany => {
                    self.take_back(key, candidate);
                    return Ok(Step::TooMany);
                }
            }
        }
        Ok(Step::Stuck)
    }

    /// Picks a device if it can be had. `must`: there is no other to try.
    fn pick(&mut self, key: [usize; 3], index: usize, must: bool) -> Result<bool, Failure> {
        let [claim, request, alternative] = key;
        let wanted = &self.wanted[claim][request][alternative];
        let candidate = &self.candidates[index];
        // What is cheap to find out comes first.
        let taken = if wanted.administers {
            self.taking[index].contains(&claim)
        } else {
            self.allocator.allocated.whole.contains(&candidate.id) || !self.taking[index].is_empty()
        };
        if taken
            || !self.is_selectable(&self.claims[claim], wanted, index)?
            || !self.capacity_fits(wanted, index)
            || !wanted.tolerates_taints(candidate.device)
            || !self.counters_left(index)
        {
            return Ok(false);
        }
        let (name, alternative_name) = (wanted.request, wanted.alternative);
        let with: Vec<_> = self.picked[claim]
            .iter()
            .map(|own| self.seen(claim, own))
            .collect();
        let device = (&candidate.id, candidate.device);
        let holds =
            |constraint: &Constraint<'_>| constraint.holds((name, alternative_name), device, &with);
        if !self.constraints[claim].iter().all(holds) {
            if must {
                return Err(Failure::Claims(format!(
                    "claim {}, request {}: cannot add device {} because a claim constraint would not be satisfied",
                    shown(&self.claims[claim]),
                    wanted.own_name(),
                    candidate.id
                )));
            }
            return Ok(false);
        }
        let share = candidate
            .is_shareable()
            .then(|| capacity::taken(wanted.capacity, candidate.device));
        if share.is_none() {
            self.taking[index].push(claim);
        }
        self.picked[claim].push(Picked {
            candidate: index,
            request,
            alternative,
            share,
        });
        Ok(true)
    }

    fn take_back(&mut self, [claim, ..]: [usize; 3], candidate: usize) {
        if self.picked[claim]
            .pop()
            .is_some_and(|own| own.share.is_none())
            && let Some(at) = self.taking[candidate].iter().rposition(|own| *own == claim)
        {
            self.taking[candidate].remove(at);
        }
    }

    /// What constraints see of a device that was picked before.
    fn seen(&self, claim: usize, picked: &Picked) -> super::constraints::Seen<'_> {
        let wanted = &self.wanted[claim][picked.request][picked.alternative];
        let candidate = &self.candidates[picked.candidate];
        (
            (wanted.request, wanted.alternative),
            (&candidate.id, candidate.device),
        )
    }

    /// Where nothing is picked yet, whether the device itself is big enough.
    fn capacity_fits(&self, wanted: &Wanted<'_>, index: usize) -> bool {
        let candidate = &self.candidates[index];
        let mut used = self.allocator.allocated.shared.get(&candidate.id).cloned();
        for picked in self.picked.iter().flatten() {
            if let Some(share) = picked.share.as_ref().filter(|_| picked.candidate == index) {
                capacity::add(used.get_or_insert_default(), share);
            }
        }
        capacity::fits(wanted.capacity, candidate.device, &used.unwrap_or_default())
    }

    /// Whether the counters of the pool have what the device takes of them. A device that is shared already took it.
    fn counters_left(&self, index: usize) -> bool {
        let candidate = &self.candidates[index];
        let takes = |candidate: &Candidate<'_>| {
            let counters = candidate.device.consumes_counters.as_ref();
            counters.is_some_and(|counters| !counters.is_empty())
        };
        if !takes(candidate) {
            return true;
        }
        let picked: Vec<usize> = self
            .picked
            .iter()
            .flatten()
            .map(|picked| picked.candidate)
            .collect();
        let shared = &self.allocator.allocated.shared;
        if candidate.is_shareable()
            && (shared.contains_key(&candidate.id) || picked.contains(&index))
        {
            return true;
        }
        let mut counted = HashSet::new();
        let others = picked.into_iter().filter(|own| {
            let other = &self.candidates[*own];
            let first = !other.is_shareable() || counted.insert(*own);
            other.pool == candidate.pool && first && !shared.contains_key(&other.id)
        });
        let devices = others.map(|own| self.candidates[own].device);
        self.counters
            .have(candidate.pool, devices.chain([candidate.device]))
    }

    /// Whether a device meets the selectors of class and request, and is where the node can reach it.
    fn is_selectable(
        &self,
        claim: &ResourceClaim,
        wanted: &Wanted<'_>,
        index: usize,
    ) -> Result<bool, Failure> {
        let candidate = &self.candidates[index];
        if candidate.slice.spec.per_device_node_selection == Some(true)
            && !pools::reaches_device(self.node, candidate.device)
        {
            return Ok(false);
        }
        let (slice, device) = (candidate.slice_index, candidate.device_index);
        // Claims and classes stay where they are as long as the allocator; one that is made for each node has no selectors.
        let written = match wanted.selectors {
            [] => 0,
            [first, ..] => std::ptr::from_ref(first).addr(),
        };
        let class = std::ptr::from_ref(wanted.class).addr();
        let key = [slice, device, class, written];
        let mut met = self.allocator.met.lock();
        let answer = met.entry(key).or_insert_with(|| {
            let selectors = &self.allocator.selectors;
            let class_name = wanted.class.metadata.name.as_deref().unwrap_or_default();
            let of_class = wanted.class.spec.selectors.as_deref().unwrap_or_default();
            let device = (candidate.id.driver.as_str(), candidate.device);
            let selected = selectors.all_match(of_class, device);
            match selected.map_err(|why| format!("class {class_name}: {why}"))? {
                true => selectors
                    .all_match(wanted.selectors, device)
                    .map_err(|why| format!("claim {}: {why}", shown(claim))),
                false => Ok(false),
            }
        });
        answer.clone().map_err(Failure::Claims)
    }
}
