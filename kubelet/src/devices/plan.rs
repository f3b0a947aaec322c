//! Who has which devices. Pure.

use super::{Counts, ForContainer, proto};
use crate::cri::resources::value;
use crate::pod::containers::{claimed_resources, inits, mains};
use cox_cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a container has of one resource: the devices, and what its plugin answered for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) ids: BTreeSet<String>,
    env: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// Path in the container, on the host, and whether it is for reading only.
    mounts: Vec<(String, String, bool)>,
    /// Path in the container, on the host, and what may be done with it.
    devices: Vec<(String, String, String)>,
    cdi: Vec<String>,
}

impl Given {
    pub(super) fn new(ids: BTreeSet<String>, answer: proto::ContainerAllocateResponse) -> Self {
        let mounts = answer.mounts.into_iter();
        let devices = answer.devices.into_iter();
        Self {
            ids,
            env: answer.envs.into_iter().collect(),
            annotations: answer.annotations.into_iter().collect(),
            mounts: mounts
                .map(|one| (one.container_path, one.host_path, one.read_only))
                .collect(),
            devices: devices
                .map(|one| (one.container_path, one.host_path, one.permissions))
                .collect(),
            cdi: answer.cdi_devices.into_iter().map(|one| one.name).collect(),
        }
    }

    /// Adds what the container is made with.
    pub(super) fn add_to(&self, all: &mut ForContainer) {
        let pair = |(key, value): (&String, &String)| (key.clone(), value.clone());
        all.env.extend(self.env.iter().map(pair));
        all.annotations.extend(self.annotations.iter().map(pair));
        all.mounts.extend(
            self.mounts
                .iter()
                .map(|(inside, host, read_only)| v1::Mount {
                    container_path: inside.clone(),
                    host_path: host.clone(),
                    readonly: *read_only,
                    ..v1::Mount::default()
                }),
        );
        let devices = self.devices.iter();
        all.devices
            .extend(devices.map(|(inside, host, permissions)| v1::Device {
                container_path: inside.clone(),
                host_path: host.clone(),
                permissions: permissions.clone(),
            }));
        let cdi = self.cdi.iter().cloned();
        all.cdi.extend(cdi.map(|name| v1::CdiDevice { name }));
    }
}

type OfContainer = BTreeMap<String, Given>;

/// All devices, and who has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// By resource and name: whether it is well. A resource whose plugin is gone has none.
    devices: BTreeMap<String, BTreeMap<String, bool>>,
    /// By Pod, container and resource.
    given: BTreeMap<String, BTreeMap<String, OfContainer>>,
}

/// What a container asks for of the resources that plugins have, and has not by a claim.
pub(super) fn wanted(pod: &Pod, container: &Container, state: &State) -> Vec<(String, usize)> {
    let limits = container
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    let asked = limits.into_iter().flatten();
    asked
        .filter(|(resource, _)| state.devices.contains_key(*resource))
        .filter(|(resource, _)| !claimed_resources(pod).any(|one| one == *resource))
        .filter_map(|(resource, amount)| {
            Some((resource.clone(), usize::try_from(value(amount)?).ok()?))
        })
        .filter(|(_, number)| *number > 0)
        .collect()
}

/// Which devices are taken: what the plugin prefers as far as that may be, what must be among them first.
pub(super) fn choose(
    number: usize,
    must: &BTreeSet<String>,
    free: &BTreeSet<String>,
    preferred: &[String],
) -> BTreeSet<String> {
    let wishes = preferred
        .iter()
        .filter(|id| must.contains(*id) || free.contains(*id));
    let mut chosen: BTreeSet<String> = BTreeSet::new();
    for id in must.iter().chain(wishes).chain(free) {
        if chosen.len() == number {
            break;
        }
        chosen.insert(id.clone());
    }
    chosen
}

impl State {
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("devices are plain data")
    }

    /// What was written down. The devices themselves are not well before their plugin has said so.
    pub(super) fn restore(text: &[u8]) -> Result<Self, serde_json::Error> {
        let mut state: Self = serde_json::from_slice(text)?;
        state.devices.values_mut().for_each(BTreeMap::clear);
        Ok(state)
    }

    pub(super) fn counts(&self) -> Counts {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let of = |(resource, devices): (&String, &BTreeMap<String, bool>)| {
            let well = devices.values().filter(|well| **well).count();
            (resource.clone(), (count(devices.len()), count(well)))
        };
        self.devices.iter().map(of).collect()
    }

    /// The devices that are well, by resource and name.
    pub(super) fn well(&self) -> Vec<(String, String)> {
        let all = self.devices.iter();
        all.flat_map(|(resource, devices)| {
            let well = devices.iter().filter(|(_, well)| **well);
            well.map(|(id, _)| (resource.clone(), id.clone()))
        })
        .collect()
    }

    /// What a plugin has now; whether that is news.
    pub(super) fn set(&mut self, resource: &str, devices: BTreeMap<String, bool>) -> bool {
        let known = self.devices.entry(resource.to_owned()).or_default();
        let is_news = *known != devices;
        *known = devices;
        is_news
    }

    /// What is known of the devices that a container has; of those whose plugin is gone, nothing.
    pub(super) fn health(
        &self,
        uid: &str,
        container: &str,
        answers: impl Fn(&str) -> bool,
    ) -> Vec<ResourceStatus> {
        let of = |resource: &str, id: &String| {
            let well = self.devices.get(resource).and_then(|known| known.get(id));
            let health = match well.filter(|_| answers(resource)) {
                None => "Unknown",
                Some(true) => "Healthy",
                Some(false) => "Unhealthy",
            };
            ResourceHealth {
                health: Some(health.to_owned()),
                resource_id: id.clone(),
                ..ResourceHealth::default()
            }
        };
        let given = self.given.get(uid).and_then(|of_pod| of_pod.get(container));
        let status = |(resource, given): (&String, &Given)| ResourceStatus {
            name: resource.clone(),
            resources: Some(given.ids.iter().map(|id| of(resource, id)).collect()),
        };
        given.into_iter().flatten().map(status).collect()
    }

    /// The Pods that have a device of a resource.
    pub(super) fn users(&self, resource: &str) -> BTreeSet<String> {
        let users = self.given.iter().filter(|(_, of_pod)| {
            let mut containers = of_pod.values();
            containers.any(|given| given.contains_key(resource))
        });
        users.map(|(uid, _)| uid.clone()).collect()
    }

    /// The plugin of a resource does not answer: nothing of it is well.
    pub(super) fn lost(&mut self, resource: &str) {
        for well in self
            .devices
            .get_mut(resource)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
        {
            *well = false;
        }
    }

    /// Whether some container of the Pod has not yet what it asks for.
    pub(super) fn lacks(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        inits(pod).iter().chain(mains(pod)).any(|container| {
            wanted(pod, container, self)
                .iter()
                .any(|(resource, _)| self.given(uid, &container.name, resource).is_none())
        })
    }

    pub(super) fn given(&self, uid: &str, container: &str, resource: &str) -> Option<&Given> {
        self.given.get(uid)?.get(container)?.get(resource)
    }

    pub(super) fn of(&self, uid: &str, container: &str) -> OfContainer {
        let given = self.given.get(uid).and_then(|of_pod| of_pod.get(container));
        given.cloned().unwrap_or_default()
    }

    /// What has to be among the devices that are given, and what else is free.
    pub(super) fn choice(
        &self,
        resource: &str,
        number: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<(BTreeSet<String>, BTreeSet<String>), String> {
        let taken: BTreeSet<&String> = self
            .given
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|of_container| of_container.get(resource))
            .flat_map(|given| &given.ids)
            .collect();
        let devices = self.devices.get(resource);
        let free: BTreeSet<String> = devices
            .into_iter()
            .flatten()
            .filter(|(id, well)| **well && !taken.contains(id))
            .map(|(id, _)| id.clone())
            .collect();
        let must: BTreeSet<String> = reusable.iter().take(number).cloned().collect();
        let available = free.len() + must.len();
        if available < number {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {number}, Available: {available}"
            ));
        }
        Ok((must, free))
    }

    pub(super) fn give(&mut self, uid: &str, container: &str, resource: &str, given: Given) {
        let of_pod = self.given.entry(uid.to_owned()).or_default();
        let of_container = of_pod.entry(container.to_owned()).or_default();
        of_container.insert(resource.to_owned(), given);
    }

    /// True: the Pod had something.
    pub(super) fn take_back(&mut self, uid: &str) -> bool {
        self.given.remove(uid).is_some()
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &str> {
        self.given.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GPU: &str = "example.com/gpu";

    fn state(devices: &[(&str, bool)]) -> State {
        let mut state = State::default();
        let devices = devices.iter().map(|(id, well)| ((*id).to_owned(), *well));
        state.set(GPU, devices.collect());
        state
    }

    fn ids(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn given(text: &str) -> Given {
        Given::new(ids(text), proto::ContainerAllocateResponse::default())
    }

    #[test]
    fn only_what_is_well_and_free_is_given() {
        let mut state = state(&[("a", true), ("b", false), ("c", true)]);
        assert_eq!(state.counts()[GPU], (3, 2));
        let (must, free) = state.choice(GPU, 2, &ids("")).unwrap();
        assert_eq!((must, free), (ids(""), ids("a c")));
        state.give("u", "main", GPU, given("a"));
        let short = state.choice(GPU, 2, &ids("")).unwrap_err();
        assert_eq!(
            short,
            "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
        );
        let (must, free) = state.choice(GPU, 2, &ids("a")).unwrap();
        assert_eq!(
            (must, free),
            (ids("a"), ids("c")),
            "what an init container had goes on"
        );
        assert!(state.take_back("u") && !state.take_back("u"));
        assert!(state.choice(GPU, 2, &ids("")).is_ok());
    }

    #[test]
    fn a_plugins_wishes_count_within_what_may_be() {
        let cases = [
            ("no wish", "", "", "a"),
            ("a wish", "", "c", "c"),
            ("one that is not free", "", "x b", "b"),
            ("what must be goes first", "b", "c", "b"),
        ];
        for (case, must, preferred, expected) in cases {
            let preferred: Vec<String> = ids(preferred).into_iter().collect();
            let chosen = choose(1, &ids(must), &ids("a b c"), &preferred);
            assert_eq!(chosen, ids(expected), "case: {case}");
        }
    }

    #[test]
    fn what_was_given_outlives_the_kubelet_and_the_devices_are_counted_anew() {
        let mut before = state(&[("a", true)]);
        before.give("u", "main", GPU, given("a"));
        let mut after = State::restore(before.text().as_bytes()).unwrap();
        assert_eq!(after.counts()[GPU], (0, 0));
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "main", "resources": {"limits": {GPU: "1"}}}]}}))
            .unwrap();
        assert!(!after.lacks(&pod), "it has what it asks for");
        after.set(GPU, [("a".to_owned(), true)].into());
        assert!(after.choice(GPU, 1, &ids("")).is_err(), "and keeps it");
        after.lost(GPU);
        assert_eq!(after.counts()[GPU], (1, 0));
    }
}
