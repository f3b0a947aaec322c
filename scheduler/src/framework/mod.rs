//! The points at which plugins take part in scheduling, named as upstream names them.
//!
//! In the scheduling cycle, one Pod at a time and without waiting: PreFilter, Filter, Score, Reserve. In the binding
//! cycle, many at a time: Bind. Plugins are pure but for Bind; what they need of a Pod stands in its [`PodInfo`].

use std::borrow::Cow;
use std::collections::BTreeSet;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;

use crate::event::ClusterEvents;
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;

/// Best score that a plugin gives a node.
pub const MAX_NODE_SCORE: i64 = 100;

/// What every plugin has.
pub trait Plugin: Send + Sync {
    /// Its name, as upstream spells it.
    fn name(&self) -> &'static str;
}

/// What a Pod alone decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreFilter {
    /// Every node must be looked at.
    All,
    /// This plugin's filter has nothing to say about the Pod.
    Skip,
    /// Only the nodes of these names can do.
    Only(BTreeSet<String>),
    /// This plugin's filter rejects every node, for this reason.
    Nowhere(&'static str),
    /// No node has to be looked at to know that none can do, and why.
    Reject(String),
}

/// Why a node cannot take a Pod: each reason as it is counted in the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection(pub Vec<Cow<'static, str>>);

impl Rejection {
    /// For one reason that is always the same.
    #[must_use]
    pub fn because(reason: &'static str) -> Self {
        Self(vec![Cow::Borrowed(reason)])
    }
}

/// Decides which nodes can take a Pod.
pub trait FilterPlugin: Plugin {
    /// Looks at the Pod before any node is looked at; `uses` are of all Pods that have a node.
    fn pre_filter(&self, _pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        PreFilter::All
    }

    /// Whether this node can take the Pod.
    ///
    /// # Errors
    /// Why it cannot.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;

    /// What is wrong with the Pod that was looked at last, if its filter found out so much: then no node is chosen for it.
    fn failure(&self) -> Option<String> {
        None
    }

    /// The events after which a Pod that was rejected by this plugin is worth another try.
    fn helped_by(&self) -> ClusterEvents;
}

/// Decides which of the nodes that can take a Pod is best.
pub trait ScorePlugin: Plugin {
    /// Whether the scores would all be the same, so that they need not be worked out.
    fn skip(&self, _pod: &PodInfo) -> bool {
        false
    }

    /// How good the node is; any number unless [`normalize`](Self::normalize) is left as it is.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Brings the scores of all nodes into `0..=MAX_NODE_SCORE`.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Keeps account of what is set aside for a Pod between the decision and the binding.
pub trait ReservePlugin: Plugin {
    /// Sets something aside.
    ///
    /// # Errors
    /// Why it cannot be; what other plugins set aside is then given back.
    fn reserve(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;

    /// Gives it back. Called also when [`reserve`](Self::reserve) of this or a later plugin failed.
    fn unreserve(&self, pod: &PodInfo, node: &str);

    /// The Pod is bound: what was set aside is taken.
    fn bound(&self, _uid: &str) {}
}

/// Tells the world about the decision.
pub trait BindPlugin: Plugin {
    /// Binds the Pod to the node.
    fn bind<'a>(&'a self, pod: &'a Pod, node: &'a str) -> BoxFuture<'a, Result<(), kube::Error>>;
}

/// Spreads scores over `0..=MAX_NODE_SCORE` by the highest of them; reversed, the highest becomes the lowest.
pub(crate) fn normalize_by_highest(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 {
            0
        } else {
            *score * MAX_NODE_SCORE / highest
        };
        *score = if reverse {
            MAX_NODE_SCORE - scaled
        } else {
            scaled
        };
    }
}

/// The plugins of a profile, in the order in which they are asked.
pub struct Profile {
    /// Asked until one of them rejects the node.
    pub filters: Vec<Box<dyn FilterPlugin>>,
    /// Weighted and added up.
    pub scores: Vec<(Box<dyn ScorePlugin>, i64)>,
    /// Asked once the node is chosen.
    pub reserves: Vec<Box<dyn ReservePlugin>>,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let filters: Vec<&str> = self.filters.iter().map(|plugin| plugin.name()).collect();
        f.debug_struct("Profile")
            .field("filters", &filters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalize_table() {
        let cases: &[(&str, &[i64], bool, &[i64])] = &[
            ("the highest becomes 100", &[1, 2, 4], false, &[25, 50, 100]),
            (
                "reversed, the lowest is best",
                &[0, 2, 4],
                true,
                &[100, 50, 0],
            ),
            ("all zero stays zero", &[0, 0], false, &[0, 0]),
            ("reversed, all zero is all best", &[0, 0], true, &[100, 100]),
        ];
        for (name, scores, reverse, expected) in cases {
            let mut scores = scores.to_vec();
            normalize_by_highest(&mut scores, *reverse);
            assert_eq!(scores, *expected, "case: {name}");
        }
    }
}
