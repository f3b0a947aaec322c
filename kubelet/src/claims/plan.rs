//! Which claims are prepared, for which Pods, with which devices; and what a Pod's claims are. Pure.

use cox_client::claims::{Named as Claimed, allocation, entries, reserved_for, results};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Namespace and name of a claim.
pub(super) type Key = (String, String);

/// A device that a driver has prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) pool: String,
    pub(crate) name: String,
    /// Tells shares of one device apart.
    pub(crate) share: Option<String>,
    /// The claim's requests that it is for; none: all of them.
    pub(super) requests: Vec<String>,
    /// Its names for the runtime (CDI).
    pub(crate) cdi: Vec<String>,
}

impl Device {
    /// Whether it is for a request of the claim; `None` stands for all requests.
    pub(super) fn is_for(&self, request: Option<&str>) -> bool {
        request.is_none_or(|request| {
            // Drivers know the request alone, not which of its alternatives it was.
            let base = request.split('/').next().unwrap_or(request);
            self.requests.is_empty()
                || self
                    .requests
                    .iter()
                    .any(|one| one == request || one == base)
        })
    }
}

/// A claim that is prepared, or about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    pub(super) uid: String,
    /// The Pods that use it here.
    pub(super) pods: BTreeSet<String>,
    pub(super) drivers: BTreeMap<String, Vec<Device>>,
    /// All its drivers have said so since the kubelet started.
    #[serde(skip)]
    pub(super) is_ready: bool,
    /// Its drivers are asked to clear it away: nobody new may use it.
    #[serde(skip)]
    pub(super) is_ending: bool,
}

/// A claim that a Pod needs prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) drivers: BTreeSet<String>,
}

/// Which claim stands behind one that a Pod names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) claim: String,
    /// It was made for the Pod, and for no other.
    pub(super) is_own: bool,
}

/// All claims that this node knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State(BTreeMap<Key, Prepared>);

#[derive(Serialize, Deserialize)]
struct Line {
    namespace: String,
    name: String,
    #[serde(flatten)]
    claim: Prepared,
}

/// The claims of a Pod, by the names that it gives them. One from a template for which no claim was needed is left out.
pub(super) fn named(pod: &Pod) -> Result<Vec<(String, Named)>, String> {
    let mut all = Vec::new();
    for one in entries(pod) {
        let (claim, is_own) = match cox_client::claims::named(pod, one) {
            Claimed::ByUser(name) => (name, false),
            Claimed::Generated(name) => (name, true),
            Claimed::NotNeeded => continue,
            Claimed::NotMade(_) | Claimed::Unsupported => {
                return Err(format!(
                    "the ResourceClaim of the Pod's claim {} is not made yet",
                    one.name
                ));
            }
        };
        let claim = claim.to_owned();
        all.push((one.name.clone(), Named { claim, is_own }));
    }
    Ok(all)
}

/// The claim that the scheduler made of the Pod's extended resources.
fn of_extended(pod: &Pod) -> Option<Named> {
    let status = pod
        .status
        .as_ref()?
        .extended_resource_claim_status
        .as_ref()?;
    Some(Named {
        claim: status.resource_claim_name.clone(),
        is_own: true,
    })
}

/// The claims that have to be prepared for a Pod.
pub(super) fn to_prepare(pod: &Pod) -> Result<Vec<Named>, String> {
    let named = named(pod)?.into_iter().map(|(_, named)| named);
    Ok(named.chain(of_extended(pod)).collect())
}

/// Claim and request (`None`: all requests) of each claim that a container uses.
pub(super) fn used_by(
    pod: &Pod,
    container: &Container,
) -> Result<Vec<(String, Option<String>)>, String> {
    let named = named(pod)?;
    let resources = container.resources.as_ref();
    let mut used = Vec::new();
    for asked in resources
        .and_then(|one| one.claims.as_ref())
        .into_iter()
        .flatten()
    {
        let known = named.iter().find(|(name, _)| *name == asked.name);
        if let Some((_, known)) = known {
            let request = asked.request.clone().filter(|request| !request.is_empty());
            used.push((known.claim.clone(), request));
        }
    }
    let status = pod.status.as_ref();
    if let Some(extended) = status.and_then(|status| status.extended_resource_claim_status.as_ref())
    {
        let mine = extended
            .request_mappings
            .iter()
            .filter(|one| one.container_name == container.name);
        used.extend(mine.map(|one| {
            (
                extended.resource_claim_name.clone(),
                Some(one.request_name.clone()),
            )
        }));
    }
    Ok(used)
}

/// Whether a Pod may use a claim on this node; answers what has to be prepared.
pub(super) fn check(pod: &Pod, named: &Named, claim: &ResourceClaim) -> Result<Needed, String> {
    let name = &named.claim;
    let meta = &claim.metadata;
    let pod_uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut owners = meta.owner_references.iter().flatten();
    if named.is_own && !owners.any(|owner| owner.controller == Some(true) && owner.uid == pod_uid) {
        return Err(format!(
            "ResourceClaim {name} was not created for pod {pod_name} (pod is not owner)"
        ));
    }
    let uid = meta.uid.clone().unwrap_or_default();
    let mut users = reserved_for(claim).iter();
    if !users.any(|one| one.resource == "pods" && one.uid == pod_uid) {
        return Err(format!(
            "pod {pod_name} ({pod_uid}) is not allowed to use ResourceClaim {name} ({uid})"
        ));
    }
    let allocation =
        allocation(claim).ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    Ok(Needed {
        key: (namespace, name.clone()),
        uid,
        drivers: results(allocation)
            .iter()
            .map(|result| result.driver.clone())
            .collect(),
    })
}

impl State {
    pub(super) fn text(&self) -> String {
        let line = |((namespace, name), claim): (&Key, &Prepared)| Line {
            namespace: namespace.clone(),
            name: name.clone(),
            claim: claim.clone(),
        };
        let lines: Vec<Line> = self.0.iter().map(line).collect();
        serde_json::to_string(&lines).expect("claims are plain data")
    }

    pub(super) fn restore(text: &[u8]) -> Result<Self, serde_json::Error> {
        let lines: Vec<Line> = serde_json::from_slice(text)?;
        let entry = |line: Line| ((line.namespace, line.name), line.claim);
        Ok(Self(lines.into_iter().map(entry).collect()))
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Prepared> {
        self.0.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The Pods that use a device.
    pub(super) fn users(&self, driver: &str, is_it: impl Fn(&Device) -> bool) -> BTreeSet<String> {
        let has = |claim: &&Prepared| {
            claim
                .drivers
                .get(driver)
                .is_some_and(|all| all.iter().any(&is_it))
        };
        self.0
            .values()
            .filter(has)
            .flat_map(|claim| claim.pods.iter().cloned())
            .collect()
    }

    pub(super) fn is_used_by(&self, pod: &str) -> bool {
        self.0.values().any(|claim| claim.pods.contains(pod))
    }

    /// All Pods that use claims.
    pub(super) fn pods(&self) -> BTreeSet<String> {
        self.0
            .values()
            .flat_map(|claim| claim.pods.iter().cloned())
            .collect()
    }

    /// A Pod uses claims from now on, all of them or none; answers those whose drivers have to be asked.
    pub(super) fn refer(&mut self, pod: &str, needed: &[Needed]) -> Result<Vec<Needed>, String> {
        for one in needed {
            let name = &one.key.1;
            let Some(known) = self.0.get(&one.key) else {
                continue;
            };
            if known.uid != one.uid {
                return Err(format!(
                    "old ResourceClaim with same name {name} and different UID {} still exists (previous pod force-deleted?!)",
                    known.uid
                ));
            }
            if known.is_ending {
                return Err(format!(
                    "ResourceClaim {name} is being cleared away after its last Pod"
                ));
            }
        }
        let mut asked = Vec::new();
        for one in needed {
            let known = self.0.entry(one.key.clone()).or_insert_with(|| Prepared {
                uid: one.uid.clone(),
                ..Prepared::default()
            });
            known.pods.insert(pod.to_owned());
            for driver in &one.drivers {
                known.drivers.entry(driver.clone()).or_default();
            }
            if !known.is_ready {
                asked.push(one.clone());
            }
        }
        Ok(asked)
    }

    /// A driver has prepared its part of a claim.
    pub(super) fn prepared(&mut self, key: &Key, driver: &str, devices: Vec<Device>) {
        if let Some(known) = self.0.get_mut(key) {
            known.drivers.insert(driver.to_owned(), devices);
        }
    }

    /// All drivers have prepared theirs.
    pub(super) fn ready(&mut self, needed: &[Needed]) {
        for one in needed {
            if let Some(known) = self.0.get_mut(&one.key) {
                known.is_ready = true;
            }
        }
    }

    /// A Pod is over. What it shares with others only loses it; the claims that it was the last to use are answered, and are
    /// ending from now on.
    pub(super) fn leave(&mut self, pod: &str) -> Result<Vec<Needed>, String> {
        let mut last = Vec::new();
        for (key, claim) in &mut self.0 {
            if !claim.pods.contains(pod) {
                continue;
            }
            if claim.pods.len() > 1 {
                claim.pods.remove(pod);
                continue;
            }
            if claim.is_ending {
                return Err(format!(
                    "ResourceClaim {} is being cleared away already",
                    key.1
                ));
            }
            last.push(Needed {
                key: key.clone(),
                uid: claim.uid.clone(),
                drivers: claim.drivers.keys().cloned().collect(),
            });
        }
        for one in &last {
            if let Some(claim) = self.0.get_mut(&one.key) {
                claim.is_ending = true;
                // If it comes to nothing, they have to be asked again.
                claim.is_ready = false;
            }
        }
        Ok(last)
    }

    /// What came of clearing claims away.
    pub(super) fn left(&mut self, last: &[Needed], is_done: bool) {
        for one in last {
            if is_done {
                self.0.remove(&one.key);
            } else if let Some(claim) = self.0.get_mut(&one.key) {
                claim.is_ending = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::containers::spec;
    use serde_json::json;

    fn pod(uid: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "p", "uid": uid},
            "spec": {
                "resourceClaims": [
                    {"name": "shared", "resourceClaimName": "s"},
                    {"name": "own", "resourceClaimTemplateName": "t"},
                    {"name": "none", "resourceClaimTemplateName": "t"},
                ],
                "containers": [
                    {"name": "a", "resources": {"claims": [{"name": "own", "request": "gpu"}, {"name": "shared"}, {"name": "none"}]}},
                    {"name": "b"},
                ],
            },
            "status": {
                "resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-ext",
                    "requestMappings": [{"containerName": "b", "resourceName": "example.com/oar", "requestName": "r0"}]},
            },
        }))
        .unwrap()
    }

    fn claim(owner: &str, reserved: &str) -> ResourceClaim {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "p-own-x", "uid": "c1",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
            "spec": {},
            "status": {
                "reservedFor": [{"resource": "pods", "name": "p", "uid": reserved}],
                "allocation": {"devices": {"results": [
                    {"request": "gpu", "driver": "d1", "pool": "n", "device": "0"},
                    {"request": "gpu", "driver": "d2", "pool": "n", "device": "0"}]}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_pods_claims_by_every_way_of_naming_them() {
        let pod = pod("u");
        let names: Vec<String> = to_prepare(&pod)
            .unwrap()
            .into_iter()
            .map(|one| one.claim)
            .collect();
        assert_eq!(names, ["s", "p-own-x", "p-ext"]);
        let containers = &spec(&pod).containers;
        assert_eq!(
            used_by(&pod, &containers[0]).unwrap(),
            [
                ("p-own-x".to_owned(), Some("gpu".to_owned())),
                ("s".to_owned(), None)
            ]
        );
        assert_eq!(
            used_by(&pod, &containers[1]).unwrap(),
            [("p-ext".to_owned(), Some("r0".to_owned()))]
        );
        let mut early = pod.clone();
        early.status = None;
        assert_eq!(
            to_prepare(&early).unwrap_err(),
            "the ResourceClaim of the Pod's claim own is not made yet"
        );
    }

    #[test]
    fn a_claim_has_to_be_the_pods_own_reserved_for_it_and_allocated() {
        let pod = pod("u");
        let own = Named {
            claim: "p-own-x".to_owned(),
            is_own: true,
        };
        let needed = check(&pod, &own, &claim("u", "u")).unwrap();
        assert_eq!(needed.drivers.into_iter().collect::<Vec<_>>(), ["d1", "d2"]);
        let refusal = |claim: &ResourceClaim| check(&pod, &own, claim).unwrap_err();
        assert!(refusal(&claim("other", "u")).contains("was not created for pod p"));
        assert!(refusal(&claim("u", "other")).contains("is not allowed to use"));
        let mut bare = claim("u", "u");
        bare.status.as_mut().unwrap().allocation = None;
        assert_eq!(refusal(&bare), "ResourceClaim p-own-x: not allocated");
    }

    fn needed(uid: &str) -> Needed {
        Needed {
            key: ("ns".to_owned(), "c".to_owned()),
            uid: uid.to_owned(),
            drivers: ["d".to_owned()].into(),
        }
    }

    fn device(requests: &[&str]) -> Device {
        Device {
            requests: requests.iter().map(|one| (*one).to_owned()).collect(),
            cdi: vec!["x.y/z=1".to_owned()],
            ..Device::default()
        }
    }

    #[test]
    fn the_last_pod_takes_a_shared_claim_along() {
        let mut state = State::default();
        assert_eq!(state.refer("a", &[needed("c1")]).unwrap(), [needed("c1")]);
        state.prepared(&needed("c1").key, "d", vec![device(&[])]);
        state.ready(&[needed("c1")]);
        assert!(
            state.refer("b", &[needed("c1")]).unwrap().is_empty(),
            "it is prepared already"
        );
        assert!(state.leave("a").unwrap().is_empty(), "b still uses it");
        assert_eq!(state.leave("b").unwrap(), [needed("c1")]);
        assert!(
            state
                .refer("a", &[needed("c1")])
                .unwrap_err()
                .contains("cleared away")
        );
        assert!(state.leave("b").unwrap_err().contains("already"));
        state.left(&[needed("c1")], false);
        assert_eq!(
            state.leave("b").unwrap(),
            [needed("c1")],
            "what failed is tried again"
        );
        state.left(&[needed("c1")], true);
        assert_eq!(state, State::default());
    }

    #[test]
    fn another_claim_of_the_same_name_has_to_wait() {
        let mut state = State::default();
        state.refer("a", &[needed("c1")]).unwrap();
        let before = state.clone();
        let other = Needed {
            key: ("ns".to_owned(), "b".to_owned()),
            ..needed("x")
        };
        assert!(
            state
                .refer("b", &[other, needed("c2")])
                .unwrap_err()
                .contains("different UID c1")
        );
        assert_eq!(state, before, "all or none");
    }

    #[test]
    fn after_a_restart_of_the_kubelet_drivers_are_asked_again() {
        let mut state = State::default();
        state.refer("a", &[needed("c1")]).unwrap();
        state.prepared(&needed("c1").key, "d", vec![device(&["gpu"])]);
        state.ready(&[needed("c1")]);
        let mut again = State::restore(state.text().as_bytes()).unwrap();
        let known = again.get("ns", "c").unwrap();
        assert_eq!(
            known.drivers["d"],
            [device(&["gpu"])],
            "containers can start with it"
        );
        assert_eq!(again.refer("a", &[needed("c1")]).unwrap(), [needed("c1")]);
        assert!(State::restore(b"{").is_err());
    }

    #[test]
    fn devices_are_for_their_requests() {
        for (requests, asked, expected) in [
            (&[][..], Some("gpu"), true),
            (&["gpu"][..], None, true),
            (&["gpu"][..], Some("gpu"), true),
            (&["gpu"][..], Some("gpu/big"), true),
            (&["gpu"][..], Some("nic"), false),
        ] {
            assert_eq!(
                device(requests).is_for(asked),
                expected,
                "{requests:?} {asked:?}"
            );
        }
    }
}
