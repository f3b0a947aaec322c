//! The scheduler without the world: changes and time in, decisions out. No client, no clock, no waiting.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::cache::Cache;
use crate::event::ClusterEvents;
use crate::framework::{Profile, Rejection};
use crate::plugins::dynamic_resources;
use crate::pod_info::{PodInfo, has_ended, node_name, uid_of};
use crate::queue::{BackoffLimits, Queue};
use crate::schedule::{Chooser, NoFit};

/// What is to be done about a Pod.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Bind it; the outcome is to be told by [`Core::bound`] or [`Core::bind_failed`].
    Bind {
        /// The Pod.
        pod: Arc<PodInfo>,
        /// The node's name.
        node: Arc<str>,
    },
    /// Tell the Pod's owner that no node can take it, and why.
    Unschedulable {
        /// The Pod.
        pod: Arc<PodInfo>,
        /// Why.
        message: String,
    },
}

/// See the module's description.
#[derive(Debug)]
pub struct Core {
    scheduler_name: String,
    profile: Profile,
    cache: Cache,
    queue: Queue,
    chooser: Chooser,
}

impl Core {
    /// Knows nothing yet. `seed` decides ties between equal nodes.
    #[must_use]
    pub fn new(scheduler_name: &str, profile: Profile, limits: BackoffLimits, seed: u64) -> Self {
        Self {
            scheduler_name: scheduler_name.to_owned(),
            profile,
            cache: Cache::default(),
            queue: Queue::new(limits),
            chooser: Chooser::new(seed),
        }
    }

    /// A Pod came or changed.
    pub fn pod_applied(&mut self, pod: &Arc<Pod>, now: Duration) {
        let uid = uid_of(pod);
        let events = if node_name(pod).is_some() {
            self.queue.remove(&uid);
            self.cache.apply_pod(pod)
        } else if self.wants(pod) {
            if self.cache.is_assumed(&uid) {
                // Its binding is under way: should that fail, the new state is the one to try again with.
                self.queue.refresh(pod);
            } else {
                self.queue.apply(pod, now);
            }
            ClusterEvents::NONE
        } else {
            self.queue.remove(&uid);
            self.cache.remove_pod(&uid)
        };
        self.queue.event(events, now);
    }

    /// A Pod is gone.
    pub fn pod_deleted(&mut self, uid: &str, now: Duration) {
        self.queue.remove(uid);
        let events = self.cache.remove_pod(uid);
        self.queue.event(events, now);
    }

    /// A node came or changed.
    pub fn node_applied(&mut self, node: &Arc<Node>, now: Duration) {
        let events = self.cache.apply_node(node);
        self.queue.event(events, now);
    }

    /// A node is gone.
    pub fn node_deleted(&mut self, name: &str) {
        self.cache.remove_node(name);
    }

    /// These are all Pods: those not among them are gone.
    pub fn pods_listed(&mut self, pods: &[Arc<Pod>], now: Duration) {
        let there: std::collections::HashSet<Arc<str>> =
            pods.iter().map(|pod| uid_of(pod)).collect();
        let known = self.cache.pod_uids().chain(self.queue.uids());
        let gone: Vec<Arc<str>> = known.filter(|uid| !there.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.pod_deleted(uid, now));
        pods.iter().for_each(|pod| self.pod_applied(pod, now));
    }

    /// These are all nodes: those not among them are gone.
    pub fn nodes_listed(&mut self, nodes: &[Arc<Node>], now: Duration) {
        let there: std::collections::HashSet<&str> = nodes
            .iter()
            .filter_map(|node| node.metadata.name.as_deref())
            .collect();
        let gone: Vec<Arc<str>> = self
            .cache
            .node_names()
            .filter(|name| !there.contains(&***name))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.node_deleted(name));
        nodes.iter().for_each(|node| self.node_applied(node, now));
    }

    /// Storage changed: a claim, by namespace and name, or something that concerns any Pod.
    pub fn storage_changed(
        &mut self,
        events: ClusterEvents,
        claim: Option<(&str, &str)>,
        now: Duration,
    ) {
        self.queue.event_for(events, now, |pod| {
            let claims = pod.volumes.iter().flat_map(|volumes| &volumes.claims);
            let keys = claims.map(|own| (&*own.key.namespace, &*own.key.name));
            pod.volumes.is_some()
                && claim.is_none_or(|claim| keys.into_iter().any(|own| own == claim))
        });
    }

    /// What there is of devices changed: a claim, by namespace and name, or something that concerns any Pod with claims.
    pub fn devices_changed(
        &mut self,
        events: ClusterEvents,
        claim: Option<(&str, &str)>,
        now: Duration,
    ) {
        self.queue.event_for(events, now, |pod| match claim {
            Some((namespace, name)) => {
                pod.names().0 == namespace && dynamic_resources::claims::means(&pod.pod, name)
            }
            None => {
                let listed = dynamic_resources::claims::entries(&pod.pod);
                // Devices may stand behind extended resources.
                !listed.is_empty() || !pod.requests.asked.scalars.is_empty()
            }
        });
    }

    /// The scheduling cycle of the Pod whose turn it is.
    pub fn next(&mut self, now: Duration) -> Option<Decision> {
        let pod = self.queue.pop(now)?;
        let chosen = self
            .chooser
            .choose(&pod, &self.cache, &self.profile)
            .and_then(|node| {
                self.reserve(&pod, &node)?;
                Ok(node)
            });
        Some(match chosen {
            Ok(node) => {
                self.cache.assume(&pod, &node);
                Decision::Bind {
                    pod,
                    node: node.into(),
                }
            }
            Err(NoFit { message, helped_by }) => {
                self.queue.give_back_unschedulable(&pod.uid, helped_by, now);
                Decision::Unschedulable { pod, message }
            }
        })
    }

    /// The binding was accepted. The Pod is seen on its node soon.
    pub fn bound(&mut self, uid: &str) {
        self.queue.remove(uid);
        for plugin in &self.profile.reserves {
            plugin.bound(uid);
        }
    }

    /// The binding failed: what was set aside is given back, and the Pod tries again later.
    pub fn bind_failed(&mut self, pod: &PodInfo, node: &str, now: Duration) {
        self.unreserve(pod, node, self.profile.reserves.len());
        let events = self.cache.forget(&pod.uid);
        if !self.cache.is_counted(&pod.uid) {
            self.queue.give_back_failed(&pod.uid, now);
        }
        self.queue.event(events, now);
    }

    /// Whether [`next`](Self::next) has something to do at once.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.queue.has_active()
    }

    /// When [`next`](Self::next) has something to do again even if nothing happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        self.queue.next_wake()
    }

    fn wants(&self, pod: &Pod) -> bool {
        let name = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.scheduler_name.as_deref());
        let ours = name.unwrap_or("default-scheduler") == self.scheduler_name;
        ours && pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), NoFit> {
        let Some(info) = self.cache.node(node) else {
            return Ok(());
        };
        for (index, plugin) in self.profile.reserves.iter().enumerate() {
            if let Err(Rejection(reasons)) = plugin.reserve(pod, info) {
                self.unreserve(pod, node, index + 1);
                let message = format!(
                    "running Reserve plugin \"{}\": {}",
                    plugin.name(),
                    reasons.join(", ")
                );
                return Err(NoFit {
                    message,
                    helped_by: ClusterEvents::NONE,
                });
            }
        }
        Ok(())
    }

    /// Last reserved, first given back.
    fn unreserve(&self, pod: &PodInfo, node: &str, count: usize) {
        self.profile.reserves[..count]
            .iter()
            .rev()
            .for_each(|plugin| plugin.unreserve(pod, node));
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
