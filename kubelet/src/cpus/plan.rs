//! Which cores go to whom. Pure.

use super::set::CpuSet;
use crate::cri::resources::milli_value;
use crate::pod::containers::spec;
use crate::pod::status::qos;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A logical core and where it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Core {
    pub package: u32,
    /// Logical cores of one number share a physical one.
    pub physical: u32,
    pub number: u32,
}

impl Core {
    /// One that shares nothing.
    #[must_use]
    pub fn alone(number: u32) -> Self {
        Self {
            package: 0,
            physical: number,
            number,
        }
    }
}

/// The cores below `/sys/devices/system/cpu` that are online.
pub(super) fn cores(root: &Path) -> Vec<Core> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let online = CpuSet::parse(&read(&root.join("online"))).unwrap_or_default();
    let number = |path: &Path| read(path).trim().parse().ok();
    let mut cores: Vec<Core> = online
        .0
        .iter()
        .map(|core| {
            let topology = root.join(format!("cpu{core}/topology"));
            Core {
                package: number(&topology.join("physical_package_id")).unwrap_or(0),
                physical: number(&topology.join("core_id")).unwrap_or(*core),
                number: *core,
            }
        })
        .collect();
    cores.sort();
    cores
}

/// How many cores a container has for itself: whole ones, in a guaranteed Pod.
pub(super) fn exclusive(pod: &Pod, container: &Container) -> usize {
    if qos::of(spec(pod)) != "Guaranteed" {
        return 0;
    }
    let resources = container.resources.as_ref();
    let asked = resources.and_then(|resources| resources.requests.as_ref()?.get("cpu"));
    let limit = resources.and_then(|resources| resources.limits.as_ref()?.get("cpu"));
    let millis = asked.or(limit).and_then(milli_value).unwrap_or(0);
    if millis % 1000 == 0 {
        usize::try_from(millis / 1000).unwrap_or(0)
    } else {
        0
    }
}

/// Who has what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    cores: Vec<Core>,
    reserved: BTreeSet<u32>,
    /// By the Pod's uid and the container's name.
    given: BTreeMap<String, BTreeMap<String, CpuSet>>,
}

impl State {
    /// The first cores, with their siblings, are the system's.
    pub(super) fn new(cores: &[Core], reserved: usize) -> Self {
        let mut cores = cores.to_vec();
        cores.sort();
        Self {
            reserved: cores
                .iter()
                .take(reserved)
                .map(|core| core.number)
                .collect(),
            cores,
            given: BTreeMap::new(),
        }
    }

    fn taken(&self) -> BTreeSet<u32> {
        let sets = self.given.values().flat_map(BTreeMap::values);
        sets.flat_map(|set| set.0.iter().copied()).collect()
    }

    /// What nobody has for himself.
    fn shared(&self) -> CpuSet {
        let taken = self.taken();
        let all = self.cores.iter().map(|core| core.number);
        CpuSet(all.filter(|core| !taken.contains(core)).collect())
    }

    /// What a container has for itself.
    pub(super) fn own(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.given.get(uid)?.get(container)
    }

    /// What can be given away.
    pub(super) fn allocatable(&self) -> CpuSet {
        let all = self.cores.iter().map(|core| core.number);
        CpuSet(all.filter(|core| !self.reserved.contains(core)).collect())
    }

    pub(super) fn of(&self, uid: &str, container: &str) -> CpuSet {
        let own = self.own(uid, container).cloned();
        own.unwrap_or_else(|| self.shared())
    }

    /// Gives a container cores: first those that init containers of its Pod had before it, then free ones.
    pub(super) fn take(
        &mut self,
        uid: &str,
        container: &str,
        count: usize,
        reusable: &BTreeSet<u32>,
    ) -> Result<CpuSet, String> {
        if let Some(own) = self.own(uid, container) {
            return Ok(own.clone());
        }
        let taken = self.taken();
        let is_free = |core: &u32| {
            reusable.contains(core) || !taken.contains(core) && !self.reserved.contains(core)
        };
        let mut free: Vec<Core> = self
            .cores
            .iter()
            .filter(|core| is_free(&core.number))
            .copied()
            .collect();
        if free.len() < count {
            return Err(format!(
                "not enough cpus available to satisfy request: requested={count}, available={}",
                free.len()
            ));
        }
        // Whole physical cores first, so that nobody shares one with a stranger where that can be helped.
        let siblings = |cores: &[Core], core: &Core| {
            let is_sibling =
                |other: &&Core| (other.package, other.physical) == (core.package, core.physical);
            cores.iter().filter(is_sibling).count()
        };
        let whole = |core: &Core| siblings(&free, core) == siblings(&self.cores, core);
        let mut order: Vec<(bool, bool, Core)> = free
            .iter()
            .map(|core| (!reusable.contains(&core.number), !whole(core), *core))
            .collect();
        order.sort();
        free = order.into_iter().map(|(_, _, core)| core).collect();
        let set = CpuSet(free.iter().take(count).map(|core| core.number).collect());
        self.given
            .entry(uid.to_owned())
            .or_default()
            .insert(container.to_owned(), set.clone());
        Ok(set)
    }

    pub(super) fn give_back(&mut self, uid: &str) -> bool {
        self.given.remove(uid).is_some()
    }

    /// As upstream writes it.
    pub(super) fn text(&self) -> String {
        let entries: BTreeMap<&String, BTreeMap<&String, String>> = self
            .given
            .iter()
            .map(|(uid, pod)| {
                let sets = pod.iter().map(|(name, set)| (name, set.to_string()));
                (uid, sets.collect())
            })
            .collect();
        json!({ "policyName": "static", "defaultCpuSet": self.shared().to_string(), "entries": entries })
            .to_string()
    }

    /// Takes over what an earlier kubelet gave away.
    pub(super) fn restore(&mut self, text: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value["policyName"] != "static" {
            return Err("it was written for another policy".to_owned());
        }
        let all: BTreeSet<u32> = self.cores.iter().map(|core| core.number).collect();
        for (uid, pod) in value["entries"].as_object().into_iter().flatten() {
            for (name, set) in pod.as_object().into_iter().flatten() {
                let set = set.as_str().and_then(CpuSet::parse);
                let set = set.ok_or_else(|| format!("{name} has no list of cores"))?;
                if !set.0.is_subset(&all) || !set.0.is_disjoint(&self.reserved) {
                    return Err(format!(
                        "{name} has the cores {set}, which are not to be given"
                    ));
                }
                let pod = self.given.entry(uid.clone()).or_default();
                pod.insert(name.clone(), set);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_physical_cores_go_first() {
        // Two threads each: 0 and 4, 1 and 5, 2 and 6, 3 and 7.
        let cores: Vec<Core> = (0..8)
            .map(|number| Core {
                package: 0,
                physical: number % 4,
                number,
            })
            .collect();
        let mut state = State::new(&cores, 1);
        let none = BTreeSet::new();
        state.take("a", "c", 2, &none).unwrap();
        assert_eq!(
            state.of("a", "c").to_string(),
            "1,5",
            "not the sibling of a reserved one"
        );
        state.take("b", "c", 1, &none).unwrap();
        state.take("c", "c", 2, &none).unwrap();
        assert_eq!(state.of("b", "c").to_string(), "2");
        assert_eq!(state.of("c", "c").to_string(), "3,7");
    }

    #[test]
    fn only_whole_cores_of_guaranteed_pods_are_exclusive() {
        let of = |resources: Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
                {"name": "c", "resources": resources}]}}))
            .unwrap();
            exclusive(&pod, &spec(&pod).containers[0])
        };
        let both = |cpu: &str| json!({"cpu": cpu, "memory": "1Mi"});
        assert_eq!(of(json!({"requests": both("2"), "limits": both("2")})), 2);
        assert_eq!(of(json!({"limits": both("2000m")})), 2);
        assert_eq!(of(json!({"limits": both("1500m")})), 0);
        assert_eq!(of(json!({"requests": both("1"), "limits": both("2")})), 0);
    }
}
