//! The Pods that wait for a node. Pure: time comes in as a duration since the start.
//!
//! ```text
//!            ┌──────────── an event that can help, backoff over ────────────┐
//!            ▼                                                              │
//! add ──► active ── pop ──► in flight ── no node fits ──► unschedulable ─── event ──► backoff
//!  │                            │                                                       ▲
//!  └─► gated ─ gates gone ─►    └───────────────── binding failed ──────────────────────┘
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodResourceClaimStatus};

use crate::event::ClusterEvents;
use crate::pod_info::{PodInfo, is_gated};

/// How long Pods wait between attempts.
#[derive(Clone, Copy, Debug)]
pub struct BackoffLimits {
    /// After the first attempt; doubles with each.
    pub initial: Duration,
    /// Never longer than this.
    pub max: Duration,
}

/// Pods that nothing helped are tried again after this, in case that an event was not recognized as help.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

/// Where a Pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Waits for its turn.
    Active { priority: Reverse<i32>, turn: u64 },
    /// Waits for the time to come.
    Backoff { until: Duration },
    /// Waits for an event that can help.
    Unschedulable {
        since: Duration,
        until: Duration,
        helped_by: ClusterEvents,
    },
    /// Waits for its gates to go.
    Gated,
    /// Taken out and not given back.
    InFlight,
}

#[derive(Debug)]
struct Queued {
    info: Arc<PodInfo>,
    attempts: u32,
    place: Place,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: BackoffLimits,
    pods: HashMap<Arc<str>, Queued>,
    active: BTreeSet<(Reverse<i32>, u64, Arc<str>)>,
    backoff: BTreeSet<(Duration, Arc<str>)>,
    /// Oldest first.
    unschedulable: BTreeSet<(Duration, Arc<str>)>,
    next_turn: u64,
}

impl Queue {
    pub(crate) fn new(limits: BackoffLimits) -> Self {
        Self {
            limits,
            pods: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            next_turn: 0,
        }
    }

    /// Takes a new Pod, or a new state of one that waits.
    pub(crate) fn apply(&mut self, pod: &Arc<Pod>, now: Duration) {
        let info = Arc::new(PodInfo::new(pod));
        let uid = Arc::clone(&info.uid);
        let gated = is_gated(pod);
        let Some(queued) = self.pods.get_mut(&uid) else {
            self.pods.insert(
                Arc::clone(&uid),
                Queued {
                    info,
                    attempts: 0,
                    place: Place::Gated,
                },
            );
            if !gated {
                self.activate(&uid);
            }
            return;
        };
        let changed = asks_differently(&queued.info.pod, pod);
        let moved = queued.info.priority != info.priority;
        queued.info = info;
        let place = queued.place;
        match place {
            Place::InFlight => {}
            _ if gated => self.set_place(&uid, Place::Gated),
            Place::Gated => self.activate(&uid),
            // Its own change may have been what it waited for.
            Place::Unschedulable { until, .. } if changed => {
                self.back_off_or_activate(&uid, until, now)
            }
            Place::Active { turn, .. } if moved => {
                let priority = Reverse(queued.info.priority);
                self.set_place(&uid, Place::Active { priority, turn });
            }
            Place::Active { .. } | Place::Backoff { .. } | Place::Unschedulable { .. } => {}
        }
    }

    /// Takes a new state of a Pod that is in flight; one that was not given back is not waited for any more.
    pub(crate) fn refresh(&mut self, pod: &Arc<Pod>) {
        let info = Arc::new(PodInfo::new(pod));
        if let Some(queued) = self.pods.get_mut(&info.uid) {
            queued.info = info;
        }
    }

    /// Forgets a Pod.
    pub(crate) fn remove(&mut self, uid: &str) {
        if let Some((uid, _)) = self.pods.get_key_value(uid) {
            let uid = Arc::clone(uid);
            self.leave_place(&uid);
            self.pods.remove(&uid);
        }
    }

    /// The Pod whose turn it is. It stays in flight until it is given back or removed.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Arc<PodInfo>> {
        self.wake(now);
        let (_, _, uid) = self.active.first()?.clone();
        self.set_place(&uid, Place::InFlight);
        let queued = self.pods.get_mut(&uid)?;
        queued.attempts += 1;
        Some(Arc::clone(&queued.info))
    }

    /// Gives back a Pod that no node can take now.
    pub(crate) fn give_back_unschedulable(
        &mut self,
        uid: &str,
        helped_by: ClusterEvents,
        now: Duration,
    ) {
        if let Some((uid, until)) = self.in_flight(uid, now) {
            self.set_place(
                &uid,
                Place::Unschedulable {
                    since: now,
                    until,
                    helped_by,
                },
            );
        }
    }

    /// Gives back a Pod whose binding failed.
    pub(crate) fn give_back_failed(&mut self, uid: &str, now: Duration) {
        if let Some((uid, until)) = self.in_flight(uid, now) {
            self.set_place(&uid, Place::Backoff { until });
        }
    }

    /// Something happened: Pods that it can help get another try, once their time is over.
    pub(crate) fn event(&mut self, events: ClusterEvents, now: Duration) {
        self.event_for(events, now, |_| true);
    }

    /// Something happened that concerns only some Pods.
    pub(crate) fn event_for(
        &mut self,
        events: ClusterEvents,
        now: Duration,
        concerns: impl Fn(&PodInfo) -> bool,
    ) {
        if events.is_none() {
            return;
        }
        let waiting: Vec<Arc<str>> = self
            .unschedulable
            .iter()
            .map(|(_, uid)| Arc::clone(uid))
            .collect();
        for uid in waiting {
            if let Some(Queued {
                info,
                place:
                    Place::Unschedulable {
                        until, helped_by, ..
                    },
                ..
            }) = self.pods.get(&uid)
                && helped_by.meets(events)
                && concerns(info)
            {
                self.back_off_or_activate(&uid, *until, now);
            }
        }
    }

    /// When there is something to do again without any event.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let unschedulable = self
            .unschedulable
            .first()
            .map(|(since, _)| *since + UNSCHEDULABLE_MAX);
        backoff.into_iter().chain(unschedulable).min()
    }

    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub(crate) fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
    }

    /// Moves on what has waited long enough.
    fn wake(&mut self, now: Duration) {
        while let Some((until, uid)) = self.backoff.first()
            && *until <= now
        {
            let uid = Arc::clone(uid);
            self.activate(&uid);
        }
        while let Some((since, uid)) = self.unschedulable.first()
            && *since + UNSCHEDULABLE_MAX <= now
        {
            let uid = Arc::clone(uid);
            self.activate(&uid);
        }
    }

    fn in_flight(&self, uid: &str, now: Duration) -> Option<(Arc<str>, Duration)> {
        let (uid, queued) = self.pods.get_key_value(uid)?;
        (queued.place == Place::InFlight)
            .then(|| (Arc::clone(uid), now + self.backoff_of(queued.attempts)))
    }

    fn backoff_of(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        self.limits
            .initial
            .saturating_mul(1 << doublings)
            .min(self.limits.max)
    }

    fn back_off_or_activate(&mut self, uid: &Arc<str>, until: Duration, now: Duration) {
        if until > now {
            self.set_place(uid, Place::Backoff { until });
        } else {
            self.activate(uid);
        }
    }

    fn activate(&mut self, uid: &Arc<str>) {
        self.next_turn += 1;
        let priority = Reverse(self.pods.get(uid).map_or(0, |queued| queued.info.priority));
        self.set_place(
            uid,
            Place::Active {
                priority,
                turn: self.next_turn,
            },
        );
    }

    fn set_place(&mut self, uid: &Arc<str>, place: Place) {
        self.leave_place(uid);
        let Some(queued) = self.pods.get_mut(uid) else {
            return;
        };
        queued.place = place;
        match place {
            Place::Active { priority, turn } => {
                self.active.insert((priority, turn, Arc::clone(uid)));
            }
            Place::Backoff { until } => {
                self.backoff.insert((until, Arc::clone(uid)));
            }
            Place::Unschedulable { since, .. } => {
                self.unschedulable.insert((since, Arc::clone(uid)));
            }
            Place::Gated | Place::InFlight => {}
        }
    }

    fn leave_place(&mut self, uid: &Arc<str>) {
        let Some(queued) = self.pods.get(uid) else {
            return;
        };
        match queued.place {
            Place::Active { priority, turn } => {
                self.active.remove(&(priority, turn, Arc::clone(uid)));
            }
            Place::Backoff { until } => {
                self.backoff.remove(&(until, Arc::clone(uid)));
            }
            Place::Unschedulable { since, .. } => {
                self.unschedulable.remove(&(since, Arc::clone(uid)));
            }
            Place::Gated | Place::InFlight => {}
        }
    }
}

/// The claims that were made for a Pod.
fn made_claims(pod: &Pod) -> Option<&Vec<PodResourceClaimStatus>> {
    pod.status.as_ref()?.resource_claim_statuses.as_ref()
}

/// Whether a Pod asks for something else than before; what others report about it does not matter.
fn asks_differently(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations
        || made_claims(old) != made_claims(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod_object;

    const LIMITS: BackoffLimits = BackoffLimits {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(10),
    };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn queue(pods: &[&str]) -> Queue {
        let mut queue = Queue::new(LIMITS);
        pods.iter()
            .for_each(|pod| queue.apply(&pod_object(pod), secs(0)));
        queue
    }

    /// Names of all that can be popped.
    fn drain(queue: &mut Queue, now: Duration) -> String {
        std::iter::from_fn(|| queue.pop(now))
            .map(|info| info.uid.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn order_table() {
        let cases: &[(&str, &[&str], &str)] = &[
            ("first come, first served", &["a", "b", "c"], "a b c"),
            (
                "higher priority first, then by time",
                &["a", "b priority=5", "c priority=5", "d priority=-1"],
                "b c a d",
            ),
            ("gated Pods wait", &["a gate", "b"], "b"),
            (
                "a changed priority changes the place",
                &["a", "b", "c", "b priority=1", "a"],
                "b a c",
            ),
            ("gates that go", &["a gate", "b", "a"], "b a"),
            ("gates that come", &["a", "b", "a gate"], "b"),
        ];
        for (name, pods, expected) in cases {
            assert_eq!(drain(&mut queue(pods), secs(0)), *expected, "case: {name}");
        }
    }

    #[test]
    fn only_what_can_help_brings_a_pod_back_and_not_before_its_time() {
        let mut queue = queue(&["a", "b"]);
        assert_eq!(drain(&mut queue, secs(0)), "a b");
        queue.give_back_unschedulable("a", ClusterEvents::POD_LEFT, secs(0));
        queue.give_back_unschedulable("b", ClusterEvents::NODE_LABELS, secs(0));
        queue.event(ClusterEvents::NODE_TAINTS, secs(0));
        assert_eq!(
            (drain(&mut queue, secs(5)), queue.next_wake()),
            (String::new(), Some(secs(300)))
        );
        queue.event(ClusterEvents::POD_LEFT, secs(0));
        assert_eq!(
            (drain(&mut queue, secs(0)), queue.next_wake()),
            (String::new(), Some(secs(1)))
        );
        assert_eq!(drain(&mut queue, secs(1)), "a", "after its backoff");
        queue.event(ClusterEvents::NODE_LABELS, secs(2));
        assert_eq!(
            drain(&mut queue, secs(2)),
            "b",
            "at once, its backoff is over"
        );
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut queue = queue(&["a"]);
        let mut now = secs(0);
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert_eq!(drain(&mut queue, now), "a");
            queue.give_back_failed("a", now);
            let next = queue.next_wake().unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_pod_that_nothing_helped_is_tried_again_after_five_minutes() {
        let mut queue = queue(&["a"]);
        queue.pop(secs(0));
        queue.give_back_unschedulable("a", ClusterEvents::NONE, secs(0));
        assert_eq!(drain(&mut queue, secs(299)), "");
        assert_eq!(drain(&mut queue, secs(300)), "a");
    }

    #[test]
    fn its_own_change_brings_a_pod_back_and_a_change_of_status_does_not() {
        let mut queue = queue(&["a cpu=9"]);
        queue.pop(secs(0));
        queue.give_back_unschedulable("a", ClusterEvents::NONE, secs(0));
        let mut reported = (*pod_object("a cpu=9")).clone();
        reported.status = Some(Default::default());
        queue.apply(&Arc::new(reported), secs(5));
        assert_eq!(drain(&mut queue, secs(5)), "");
        queue.apply(&pod_object("a cpu=1"), secs(5));
        assert_eq!(drain(&mut queue, secs(5)), "a");
    }

    #[test]
    fn removed_pods_are_gone_from_everywhere() {
        let mut queue = queue(&["a", "b", "c", "d", "e gate"]);
        for uid in ["b", "c", "d"] {
            queue.remove(uid);
        }
        assert_eq!(drain(&mut queue, secs(0)), "a");
        queue.give_back_unschedulable("a", ClusterEvents::POD_LEFT, secs(0));
        queue.remove("a");
        queue.remove("e");
        queue.remove("never there");
        queue.event(ClusterEvents::POD_LEFT, secs(9));
        assert_eq!(
            (
                drain(&mut queue, secs(999)),
                queue.next_wake(),
                queue.uids().count()
            ),
            (String::new(), None, 0)
        );
    }
}
