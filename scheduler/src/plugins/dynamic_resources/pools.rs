//! The pools of devices that a node can reach, as drivers publish them in slices. Pure.
//!
//! Of a pool only the newest generation counts. A pool of which slices are missing is incomplete: nothing is allocated from it,
//! and nobody gets "all" devices while it is so. One that contradicts itself is invalid, with the same effect.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cox_client::placement::NodeTerm;
use k8s_openapi::api::core::v1::{Node, NodeSelector};
use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourceSlice, ResourceSliceSpec};

/// A device, by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DeviceId {
    /// Who drives it.
    pub(super) driver: String,
    /// Its pool.
    pub(super) pool: String,
    /// Its name there.
    pub(super) device: String,
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// Whether a pool can be allocated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Soundness {
    Sound,
    Incomplete,
    Invalid,
}

/// A pool as one node sees it.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) driver: &'a str,
    pub(super) name: &'a str,
    pub(super) soundness: Soundness,
    /// Slices with devices, those that the node can reach, by name.
    pub(super) slices: Vec<&'a ResourceSlice>,
    /// Slices of devices elsewhere. What they take of shared counters counts.
    pub(super) elsewhere: Vec<&'a ResourceSlice>,
    pub(super) counters: BTreeMap<&'a str, &'a CounterSet>,
}

impl Pool<'_> {
    fn waits_for_conditions(&self) -> bool {
        let mut devices = self.slices.iter().flat_map(|slice| devices(slice));
        devices.any(|device| device.binding_conditions.is_some())
    }
}

/// The devices of a slice.
pub(super) fn devices(slice: &ResourceSlice) -> &[Device] {
    slice.spec.devices.as_deref().unwrap_or_default()
}

/// Whether one of a selector's terms is met.
pub(super) fn selects(selector: &NodeSelector, node: &Node) -> bool {
    let (name, labels) = (&node.metadata.name, &node.metadata.labels);
    let label = |key: &str| labels.as_ref()?.get(key).map(String::as_str);
    let terms = selector.node_selector_terms.iter().map(NodeTerm::of);
    let mut terms = terms.into_iter();
    terms.any(|term| term.matches(name.as_deref().unwrap_or_default(), label))
}

/// Whether what says where it is can be reached from the node.
fn reaches(
    node: &Node,
    name: Option<&str>,
    all: Option<bool>,
    selector: Option<&NodeSelector>,
) -> bool {
    match (name.filter(|name| !name.is_empty()), all, selector) {
        (Some(name), _, _) => node.metadata.name.as_deref() == Some(name),
        (None, Some(true), _) => true,
        (None, _, Some(selector)) => selects(selector, node),
        (None, _, None) => false,
    }
}

/// Whether a device that says itself where it is can be reached from the node.
pub(super) fn reaches_device(node: &Node, device: &Device) -> bool {
    reaches(
        node,
        device.node_name.as_deref(),
        device.all_nodes,
        device.node_selector.as_ref(),
    )
}

fn shares_counters(spec: &ResourceSliceSpec) -> bool {
    let counters = spec.shared_counters.as_ref();
    counters.is_some_and(|counters| !counters.is_empty())
}

fn is_relevant(slice: &ResourceSlice, node: &Node) -> bool {
    let spec = &slice.spec;
    if shares_counters(spec) {
        // Needed for its pool wherever the node is.
        return true;
    }
    if spec.per_device_node_selection == Some(true) {
        return devices(slice)
            .iter()
            .any(|device| reaches_device(node, device));
    }
    let (name, selector) = (spec.node_name.as_deref(), spec.node_selector.as_ref());
    reaches(node, name, spec.all_nodes, selector)
}

/// The pools that the node can reach, by driver and name; those with devices that have to be waited for come last. `candidates` are
/// the slices that can be relevant for the node, `all` are all of them.
pub(super) fn gather<'a>(
    node: &Node,
    candidates: impl Iterator<Item = &'a ResourceSlice>,
    all: &'a [Arc<ResourceSlice>],
) -> Vec<Pool<'a>> {
    let mut found: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
    for slice in candidates.filter(|slice| is_relevant(slice, node)) {
        let spec = &slice.spec;
        let known = found.entry((&spec.driver, &spec.pool.name)).or_default();
        let generation = known.first().map(|first| first.spec.pool.generation);
        match generation {
            Some(newest) if spec.pool.generation < newest => continue,
            Some(newest) if spec.pool.generation > newest => known.clear(),
            _ => {}
        }
        known.push(slice);
    }
    let pools = found.into_iter();
    let pools = pools.filter_map(|(id, slices)| whole_pool(id, slices, all));
    let (late, mut ready): (Vec<_>, Vec<_>) = pools.partition(Pool::waits_for_conditions);
    ready.extend(late);
    ready
}

/// None for a pool of which a newer generation exists where the node cannot see it.
fn whole_pool<'a>(
    (driver, name): (&'a str, &'a str),
    mut slices: Vec<&'a ResourceSlice>,
    all: &'a [Arc<ResourceSlice>],
) -> Option<Pool<'a>> {
    let pool = &slices.first()?.spec.pool;
    let expected = usize::try_from(pool.resource_slice_count).unwrap_or(0);
    let name_of = |slice: &&ResourceSlice| slice.metadata.name.clone().unwrap_or_default();
    slices.sort_by_key(name_of);
    let mut elsewhere = Vec::new();
    if slices.len() != expected {
        let of_pool =
            |slice: &&ResourceSlice| slice.spec.driver == driver && slice.spec.pool.name == name;
        let (mut seen, names): (usize, HashSet<String>) = (0, slices.iter().map(name_of).collect());
        for slice in all.iter().map(|slice| &**slice).filter(of_pool) {
            let generation = slice.spec.pool.generation;
            if generation > pool.generation {
                return None;
            }
            if generation == pool.generation {
                seen += 1;
                if !names.contains(&name_of(&slice)) {
                    elsewhere.push(slice);
                }
            }
        }
        if seen != expected {
            return Some(Pool {
                driver,
                name,
                soundness: Soundness::Incomplete,
                slices: Vec::new(),
                elsewhere: Vec::new(),
                counters: BTreeMap::new(),
            });
        }
    }
    let (counting, slices): (Vec<_>, Vec<_>) = slices
        .into_iter()
        .partition(|slice| shares_counters(&slice.spec));
    let sets = counting
        .iter()
        .flat_map(|slice| slice.spec.shared_counters.iter().flatten());
    let (mut counters, mut twice) = (BTreeMap::new(), false);
    for set in sets {
        twice |= counters.insert(set.name.as_str(), set).is_some();
    }
    let sound = !twice
        && names_differ(&slices)
        && slices
            .iter()
            .chain(&elsewhere)
            .all(|slice| counts(slice, &counters));
    Some(Pool {
        driver,
        name,
        soundness: if sound {
            Soundness::Sound
        } else {
            Soundness::Invalid
        },
        slices,
        elsewhere,
        counters,
    })
}

fn names_differ(slices: &[&ResourceSlice]) -> bool {
    let mut names = HashSet::new();
    let mut all = slices.iter().flat_map(|slice| devices(slice));
    all.all(|device| names.insert(device.name.as_str()))
}

/// Whether the counters that devices take of exist.
fn counts(slice: &ResourceSlice, counters: &BTreeMap<&str, &CounterSet>) -> bool {
    let mut taken = devices(slice)
        .iter()
        .flat_map(|device| device.consumes_counters.iter().flatten());
    taken.all(|taken| {
        let set = counters.get(taken.counter_set.as_str());
        set.is_some_and(|set| {
            let mut names = taken.counters.keys();
            names.all(|name| set.counters.contains_key(name))
        })
    })
}
