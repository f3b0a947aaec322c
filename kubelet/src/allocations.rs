//! What the Pods of the node hold of it until they are over: ports of the host, and of its resources what each was given when it
//! was admitted or resized, which is less than its spec asks for while a resize waits for room.
//!
//! Resizes that wait are granted when room comes, in upstream's order: those that ask for no more than the Pod holds, then by
//! priority, by class of service (the guaranteed first), by how long they have waited.

use crate::holdings::{Holdings, host_ports};
use crate::pod::containers::spec;
use crate::pod::resize::RESIZABLE;
use crate::pod::status::qos;
use crate::resources::{Amounts, of_pod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// A resize that waits for room.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiting {
    wanted: Amounts,
    priority: i32,
    class: u8,
    since: Timestamp,
}

#[derive(Debug, Default)]
struct Inner {
    held: Holdings,
    waiting: BTreeMap<String, Waiting>,
    /// Pods that hold less than their spec says.
    pending: BTreeSet<String>,
    /// Granted, and not yet told.
    granted: Vec<String>,
    allocatable: Amounts,
}

/// The ledger of a node.
#[derive(Debug, Default)]
pub struct Allocations {
    inner: Mutex<Inner>,
    news: Notify,
}

/// The Pod as it was given resources: where its status says less than its spec, the status is right.
#[must_use]
pub fn as_given(pod: &Pod) -> Pod {
    let mut given = pod.clone();
    let mut status = pod.status.clone().unwrap_or_default();
    let whole = status.allocated_resources.take();
    let known = status.container_statuses.into_iter().flatten();
    let inits = status.init_container_statuses.into_iter().flatten();
    let allocated: BTreeMap<String, _> = known
        .chain(inits)
        .filter_map(|one| Some((one.name, one.allocated_resources?)))
        .collect();
    let Some(spec) = &mut given.spec else {
        return given;
    };
    let all = spec.containers.iter_mut();
    let all = all.chain(spec.init_containers.iter_mut().flatten());
    for container in all {
        if let Some(allocated) = allocated.get(&container.name) {
            correct(container.resources.as_mut(), allocated);
        }
    }
    if let Some(allocated) = whole {
        correct(spec.resources.as_mut(), &allocated);
    }
    given
}

/// Requests that can be resized are those that were given.
fn correct(asked: Option<&mut ResourceRequirements>, given: &BTreeMap<String, Quantity>) {
    let requests = asked.and_then(|own| own.requests.as_mut());
    for (name, amount) in requests.into_iter().flatten() {
        if let Some(given) = given.get(name).filter(|_| RESIZABLE.contains(&&**name)) {
            amount.clone_from(given);
        }
    }
}

impl Inner {
    /// Why the Pod's wish does not fit beside what others hold.
    fn lacks(&self, uid: &str, wanted: &Amounts) -> Option<String> {
        let held = self.held.of_pod(uid);
        RESIZABLE.iter().find_map(|resource| {
            let capacity = *self.allocatable.get(*resource)?;
            let asked = wanted.get(*resource).copied().unwrap_or(0);
            let has = held.and_then(|held| held.get(*resource)).copied();
            let has = has.unwrap_or(0);
            // Whoever asks for no more than it holds always fits.
            if asked <= has || capacity == 0 {
                return None;
            }
            let used = self.held.used(resource).saturating_sub(has);
            (asked > capacity.saturating_sub(used)).then(|| {
                format!(
                    "Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {capacity}"
                )
            })
        })
    }

    /// Gives what was freed to those that wait.
    fn grant(&mut self) -> bool {
        let grows = |inner: &Self, uid: &str, wanted: &Amounts| {
            let held = inner.held.of_pod(uid);
            RESIZABLE
                .iter()
                .any(|resource| wanted.get(*resource) > held.and_then(|held| held.get(*resource)))
        };
        let mut order: Vec<(String, Waiting)> = self
            .waiting
            .iter()
            .map(|(uid, waiting)| (uid.clone(), waiting.clone()))
            .collect();
        order.sort_by_key(|(uid, waiting)| {
            let grows = grows(self, uid, &waiting.wanted);
            (
                grows,
                Reverse(waiting.priority),
                waiting.class,
                waiting.since,
            )
        });
        let before = self.granted.len();
        for (uid, waiting) in order {
            if self.lacks(&uid, &waiting.wanted).is_none() {
                self.held.resize(&uid, waiting.wanted);
                self.waiting.remove(&uid);
                self.pending.remove(&uid);
                self.granted.push(uid);
            }
        }
        self.granted.len() > before
    }
}

impl Allocations {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// A Pod was admitted.
    pub fn admit(&self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let held = of_pod(&as_given(pod));
        let mut inner = self.inner();
        if held == of_pod(pod) {
            inner.pending.remove(&uid);
        } else {
            inner.pending.insert(uid.clone());
        }
        inner.held.put(&uid, held, host_ports(pod));
    }

    /// A Pod holds nothing any more.
    pub fn release(&self, uid: &str) {
        let mut inner = self.inner();
        inner.pending.remove(uid);
        inner.waiting.remove(uid);
        let freed = inner.held.remove(uid);
        if freed && inner.grant() {
            drop(inner);
            self.news.notify_one();
        }
    }

    /// Gives a Pod what its spec asks for now, or lets it wait and says why.
    pub fn resize(&self, pod: &Pod, allocatable: &Amounts, now: Timestamp) -> Result<(), String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let wanted = of_pod(pod);
        let mut inner = self.inner();
        inner.allocatable.clone_from(allocatable);
        if let Some(why) = inner.lacks(&uid, &wanted) {
            let since = inner.waiting.get(&uid).map_or(now, |waiting| waiting.since);
            let class = match qos::of(spec(pod)) {
                "Guaranteed" => 0,
                "Burstable" => 1,
                _ => 2,
            };
            let waiting = Waiting {
                wanted,
                priority: spec(pod).priority.unwrap_or(0),
                class,
                since,
            };
            inner.waiting.insert(uid.clone(), waiting);
            inner.pending.insert(uid);
            return Err(why);
        }
        inner.waiting.remove(&uid);
        inner.pending.remove(&uid);
        inner.held.resize(&uid, wanted);
        // It may hold less than before.
        if inner.grant() {
            drop(inner);
            self.news.notify_one();
        }
        Ok(())
    }

    /// A Pod's wish can never be met: it keeps what it has.
    pub fn refuse(&self, uid: &str) {
        let mut inner = self.inner();
        inner.waiting.remove(uid);
        inner.pending.insert(uid.to_owned());
    }

    /// Whether a Pod holds less than its spec asks for.
    #[must_use]
    pub fn is_pending(&self, uid: &str) -> bool {
        self.inner().pending.contains(uid)
    }

    /// Looks at what all Pods hold that are not over.
    pub fn look<T>(&self, look: impl FnOnce(&Holdings) -> T) -> T {
        look(&self.inner().held)
    }

    /// Waits for Pods whose resize was granted.
    ///
    /// # Cancel safety
    /// Those that nobody took are answered by the next call.
    pub async fn granted(&self) -> Vec<String> {
        loop {
            let news = self.news.notified();
            let granted = std::mem::take(&mut self.inner().granted);
            if !granted.is_empty() {
                return granted;
            }
            news.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    fn node() -> Amounts {
        Amounts::from([("cpu".to_owned(), 1000), ("memory".to_owned(), 1 << 30)])
    }

    fn pod(uid: &str, cpu: &str, priority: i32) -> Pod {
        let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let spec = json!({"priority": priority, "containers": [container]});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_resize_waits_for_room_and_the_most_important_one_gets_it() {
        let ledger = Allocations::default();
        for uid in ["a", "b", "c", "d"] {
            ledger.admit(&pod(uid, "250m", 0));
        }
        let refused = ledger
            .resize(&pod("a", "500m", 0), &node(), at(1))
            .unwrap_err();
        assert_eq!(
            refused,
            "Node didn't have enough resource: cpu, requested: 500, used: 750, capacity: 1000"
        );
        assert!(ledger.resize(&pod("b", "500m", 7), &node(), at(2)).is_err());
        assert_eq!(ledger.inner().pending.len(), 2);
        assert_eq!(ledger.look(|held| held.of_pod("a").unwrap()["cpu"]), 250);
        // Room for one of them: the later one is more important.
        ledger.release("c");
        assert_eq!(ledger.inner().granted, ["b"]);
        assert_eq!(ledger.look(|held| held.of_pod("b").unwrap()["cpu"]), 500);
        assert_eq!(ledger.inner().pending.len(), 1);
        // One that shrinks makes room for the other.
        ledger.resize(&pod("b", "250m", 7), &node(), at(3)).unwrap();
        assert_eq!(ledger.inner().granted, ["b", "a"]);
        assert!(ledger.inner().pending.is_empty());
        assert!(
            ledger.resize(&pod("a", "500m", 0), &node(), at(4)).is_ok(),
            "what was granted is held"
        );
    }

    #[test]
    fn what_is_over_holds_nothing() {
        let ledger = Allocations::default();
        ledger.admit(&pod("a", "250m", 0));
        ledger.admit(&pod("b", "500m", 0));
        assert_eq!(ledger.look(|held| held.used("cpu")), 750);
        ledger.release("a");
        ledger.release("a");
        assert_eq!(
            ledger.look(|held| (held.pods(), held.used("cpu"))),
            (1, 500)
        );
    }

    #[test]
    fn those_of_the_same_priority_are_served_by_class_and_by_age() {
        let ledger = Allocations::default();
        let guaranteed = |cpu: &str| -> Pod {
            let amount = json!({"cpu": cpu, "memory": "1Mi"});
            let container =
                json!({"name": "c", "resources": {"requests": amount, "limits": amount}});
            serde_json::from_value(
                json!({"metadata": {"uid": "g"}, "spec": {"containers": [container]}}),
            )
            .unwrap()
        };
        for uid in ["a", "b"] {
            ledger.admit(&pod(uid, "100m", 0));
        }
        ledger.admit(&guaranteed("100m"));
        ledger.admit(&pod("full", "700m", 0));
        assert!(ledger.resize(&pod("b", "300m", 0), &node(), at(1)).is_err());
        assert!(ledger.resize(&pod("a", "300m", 0), &node(), at(2)).is_err());
        assert!(ledger.resize(&guaranteed("300m"), &node(), at(3)).is_err());
        ledger.release("full");
        assert_eq!(ledger.inner().granted, ["g", "b", "a"]);
    }

    #[test]
    fn a_pod_that_waited_before_a_restart_holds_what_its_status_says() {
        let mut waiting = pod("a", "500m", 0);
        let status: Value = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "250m"}}]});
        waiting.status = serde_json::from_value(status).unwrap();
        let ledger = Allocations::default();
        ledger.admit(&waiting);
        assert_eq!(ledger.look(|held| held.of_pod("a").unwrap()["cpu"]), 250);
        let mut whole = pod("b", "100m", 0);
        let asked = json!({"requests": {"cpu": "800m"}});
        whole.spec.as_mut().unwrap().resources = serde_json::from_value(asked).unwrap();
        let status: Value = json!({"allocatedResources": {"cpu": "300m"}});
        whole.status = serde_json::from_value(status).unwrap();
        ledger.admit(&whole);
        assert_eq!(ledger.look(|held| held.of_pod("b").unwrap()["cpu"]), 300);
    }
}
