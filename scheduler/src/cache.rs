//! What is where: nodes, the Pods on them, and the Pods that are assumed to be on them because their binding is under way.
//!
//! Kept current change by change, so that looking at all nodes needs no copying. Invariant: a node's usage is the sum of
//! what the Pods counted on it take, each Pod counted once, wherever it was seen last.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::event::{ClusterEvents, of_node_change};
use crate::node_info::{NodeFacts, NodeInfo, Taken, Usage};
use crate::pod_info::{PodInfo, has_ended, node_name, uid_of};
use crate::pod_volumes::ClaimUses;

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// Nodes that exist, in no particular order.
    nodes: Vec<NodeInfo>,
    index: HashMap<Arc<str>, usize>,
    /// What is taken on nodes that do not exist (yet, or any more).
    elsewhere: HashMap<Arc<str>, Usage>,
    pods: HashMap<Arc<str>, Counted>,
    claim_uses: ClaimUses,
}

#[derive(Debug)]
struct Counted {
    node: Arc<str>,
    taken: Taken,
    assumed: bool,
}

impl Cache {
    pub(crate) fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub(crate) fn claim_uses(&self) -> &ClaimUses {
        &self.claim_uses
    }

    pub(crate) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|index| &self.nodes[*index])
    }

    /// Takes a new state of a node; tells what that can help with.
    pub(crate) fn apply_node(&mut self, node: &Arc<Node>) -> ClusterEvents {
        let facts = NodeFacts::new(node);
        if let Some(index) = self.index.get(facts.name()) {
            let old = std::mem::replace(&mut self.nodes[*index].facts, facts);
            return of_node_change(&old, &self.nodes[*index].facts);
        }
        let name: Arc<str> = facts.name().into();
        let usage = self.elsewhere.remove(&name).unwrap_or_default();
        self.index.insert(name, self.nodes.len());
        self.nodes.push(NodeInfo { facts, usage });
        ClusterEvents::NODE_ADDED
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some((name, index)) = self.index.remove_entry(name) else {
            return;
        };
        let gone = self.nodes.swap_remove(index);
        if let Some(moved) = self.nodes.get(index) {
            self.index.insert(moved.facts.name().into(), index);
        }
        if gone.usage.pods > 0 {
            self.elsewhere.insert(name, gone.usage);
        }
    }

    /// Takes a new state of a Pod that has a node; tells whether it left one.
    pub(crate) fn apply_pod(&mut self, pod: &Arc<Pod>) -> ClusterEvents {
        let Some(node) = node_name(pod).filter(|_| !has_ended(pod)) else {
            return self.remove_pod(&uid_of(pod));
        };
        let info = PodInfo::new(pod);
        let taken = Taken::by(&info);
        if let Some(counted) = self.pods.get_mut(&info.uid)
            && *counted.node == *node
            && counted.taken == taken
        {
            counted.assumed = false;
            return ClusterEvents::NONE;
        }
        let left = self.remove_pod(&info.uid);
        self.count(info.uid, node.into(), taken, false);
        left
    }

    /// Forgets a Pod, assumed or not; tells whether it left a node.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> ClusterEvents {
        let Some(counted) = self.pods.remove(uid) else {
            return ClusterEvents::NONE;
        };
        if let Some(volumes) = &counted.taken.volumes {
            self.claim_uses.subtract(volumes);
        }
        if let Some(index) = self.index.get(&counted.node) {
            self.nodes[*index].usage.subtract(&counted.taken);
        } else if let Some(usage) = self.elsewhere.get_mut(&counted.node) {
            usage.subtract(&counted.taken);
            if usage.pods == 0 {
                self.elsewhere.remove(&counted.node);
            }
        }
        ClusterEvents::POD_LEFT
    }

    /// Counts a Pod on the node that was chosen for it.
    pub(crate) fn assume(&mut self, pod: &PodInfo, node: &str) {
        self.remove_pod(&pod.uid);
        self.count(Arc::clone(&pod.uid), node.into(), Taken::by(pod), true);
    }

    /// Takes an assumption back, unless the Pod was seen on its node meanwhile.
    pub(crate) fn forget(&mut self, uid: &str) -> ClusterEvents {
        if self.is_assumed(uid) {
            self.remove_pod(uid)
        } else {
            ClusterEvents::NONE
        }
    }

    /// Whether the Pod's binding is under way, or done and not seen yet.
    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|counted| counted.assumed)
    }

    pub(crate) fn is_counted(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    pub(crate) fn pod_uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
    }

    pub(crate) fn node_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.index.keys()
    }

    fn count(&mut self, uid: Arc<str>, node: Arc<str>, taken: Taken, assumed: bool) {
        if let Some(volumes) = &taken.volumes {
            self.claim_uses.add(volumes);
        }
        match self.index.get(&node) {
            Some(index) => self.nodes[*index].usage.add(&taken),
            None => self
                .elsewhere
                .entry(Arc::clone(&node))
                .or_default()
                .add(&taken),
        }
        self.pods.insert(
            uid,
            Counted {
                node,
                taken,
                assumed,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{node_object, pod, pod_object};

    fn usage(cache: &Cache, node: &str) -> (i64, i64) {
        let usage = &cache.node(node).unwrap().usage;
        (usage.pods, usage.requests.asked.cpu_millis)
    }

    #[test]
    fn a_pod_is_counted_once_wherever_it_was_seen_last() {
        let mut cache = Cache::default();
        cache.apply_node(&node_object("a cpu=4"));
        cache.apply_node(&node_object("b cpu=4"));
        cache.assume(&pod("p cpu=1"), "a");
        assert_eq!(usage(&cache, "a"), (1, 1000));
        assert!(cache.is_assumed("p"));
        assert!(
            cache.apply_pod(&pod_object("p cpu=1 node=a")).is_none(),
            "confirmed where it was assumed"
        );
        assert!(!cache.is_assumed("p"));
        assert!(
            cache.forget("p").is_none(),
            "what was seen is not forgotten"
        );
        assert_eq!(usage(&cache, "a"), (1, 1000));
        cache.assume(&pod("q cpu=2"), "a");
        assert!(
            !cache.apply_pod(&pod_object("q cpu=2 node=b")).is_none(),
            "somebody else bound it elsewhere"
        );
        assert_eq!(
            (usage(&cache, "a"), usage(&cache, "b")),
            ((1, 1000), (1, 2000))
        );
        assert!(!cache.remove_pod("p").is_none());
        assert!(cache.remove_pod("p").is_none());
        assert_eq!(usage(&cache, "a"), (0, 0));
    }

    #[test]
    fn pods_may_come_before_their_node_and_outlive_it() {
        let mut cache = Cache::default();
        cache.apply_pod(&pod_object("p cpu=1 node=a"));
        cache.apply_node(&node_object("a cpu=4"));
        cache.apply_node(&node_object("b cpu=4"));
        assert_eq!(usage(&cache, "a"), (1, 1000));
        cache.remove_node("a");
        assert!(cache.node("a").is_none() && cache.node("b").is_some());
        cache.apply_node(&node_object("a cpu=4"));
        assert_eq!(
            usage(&cache, "a"),
            (1, 1000),
            "it came back and its Pod was there all the time"
        );
        cache.remove_node("a");
        cache.remove_pod("p");
        cache.apply_node(&node_object("a cpu=4"));
        assert_eq!(usage(&cache, "a"), (0, 0));
    }

    #[test]
    fn node_changes_tell_what_they_help_with() {
        let mut cache = Cache::default();
        let cases: &[(&str, &str, ClusterEvents)] = &[
            ("a new node", "a cpu=1", ClusterEvents::NODE_ADDED),
            ("no change", "a cpu=1", ClusterEvents::NONE),
            ("more CPU", "a cpu=2", ClusterEvents::NODE_ALLOCATABLE),
            ("a label", "a cpu=2 label=k=v", ClusterEvents::NODE_LABELS),
            (
                "a feature",
                "a cpu=2 label=k=v feature=F",
                ClusterEvents::NODE_FEATURES,
            ),
            (
                "a feature that goes",
                "a cpu=2 label=k=v",
                ClusterEvents::NODE_FEATURES,
            ),
            (
                "a taint",
                "a cpu=2 label=k=v taint=a=b:NoSchedule",
                ClusterEvents::NODE_TAINTS,
            ),
            (
                "cordoned",
                "a cpu=2 label=k=v taint=a=b:NoSchedule cordoned",
                ClusterEvents::NONE,
            ),
            (
                "uncordoned",
                "a cpu=2 label=k=v taint=a=b:NoSchedule",
                ClusterEvents::NODE_TAINTS,
            ),
        ];
        for (name, node, expected) in cases {
            assert_eq!(
                cache.apply_node(&node_object(node)),
                *expected,
                "case: {name}"
            );
        }
    }
}
