//! Chooses a node for a Pod, or says why there is none. Pure.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::cache::Cache;
use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, PreFilter, Profile, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Below this many nodes that can take the Pod, all nodes are looked at.
const FEASIBLE_MIN: usize = 100;

/// Why no node can take a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoFit {
    pub(crate) message: String,
    /// What can help.
    pub(crate) helped_by: ClusterEvents,
}

/// What stays from one choice to the next: fairness between nodes.
#[derive(Debug)]
pub(crate) struct Chooser {
    /// Where the search for the next Pod begins.
    start: usize,
    /// State of a small generator that breaks ties.
    random: u64,
}

impl Chooser {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            start: 0,
            random: seed | 1,
        }
    }

    /// The name of the best node.
    pub(crate) fn choose(
        &mut self,
        pod: &PodInfo,
        cache: &Cache,
        profile: &Profile,
    ) -> Result<String, NoFit> {
        let nodes = cache.nodes();
        if nodes.is_empty() {
            let message = "no nodes available to schedule pods".to_owned();
            return Err(NoFit {
                message,
                helped_by: ClusterEvents::NODE_ADDED,
            });
        }
        let mut search = match Search::new(pod, cache, profile) {
            Ok(search) => search,
            Err((plugin, why)) => {
                return Err(NoFit {
                    message: format!("0/{} nodes are available: {why}.", nodes.len()),
                    helped_by: plugin.helped_by(),
                });
            }
        };
        match search.only.take() {
            Some((plugin, names)) => {
                let named: Vec<&NodeInfo> =
                    names.iter().filter_map(|name| cache.node(name)).collect();
                let others = nodes.len() - named.len();
                if others > 0 {
                    search.note(
                        plugin,
                        others,
                        format!("node(s) didn't satisfy plugin(s) [{}]", plugin.name()).into(),
                    );
                }
                for node in named {
                    search.look_at(node);
                    if search.failed.is_some() {
                        break;
                    }
                }
            }
            None => {
                let enough = feasible_enough(nodes.len());
                let start = self.start % nodes.len();
                let mut looked_at = 0;
                for node in nodes[start..].iter().chain(&nodes[..start]) {
                    search.look_at(node);
                    looked_at += 1;
                    if search.feasible.len() >= enough || search.failed.is_some() {
                        break;
                    }
                }
                self.start = (start + looked_at) % nodes.len();
            }
        }
        if let Some(no_fit) = search.failed.take() {
            return Err(no_fit);
        }
        if search.feasible.is_empty() {
            return Err(search.no_fit(nodes.len()));
        }
        let best = self.best(pod, &search.feasible, profile);
        Ok(best.facts.name().to_owned())
    }

    fn best<'a>(
        &mut self,
        pod: &PodInfo,
        feasible: &[&'a NodeInfo],
        profile: &Profile,
    ) -> &'a NodeInfo {
        if let [only] = feasible {
            return only;
        }
        let mut totals = vec![0; feasible.len()];
        let mut scores = Vec::with_capacity(feasible.len());
        for (plugin, weight) in profile
            .scores
            .iter()
            .filter(|(plugin, _)| !plugin.skip(pod))
        {
            scores.clear();
            scores.extend(feasible.iter().map(|node| plugin.score(pod, node)));
            plugin.normalize(&mut scores);
            totals
                .iter_mut()
                .zip(&scores)
                .for_each(|(total, score)| *total += score * weight);
        }
        let mut best = 0;
        let mut ties = 1;
        for index in 1..totals.len() {
            if totals[index] > totals[best] {
                (best, ties) = (index, 1);
            } else if totals[index] == totals[best] {
                ties += 1;
                // Each of the equals is as likely as the others.
                if self.next_random().is_multiple_of(ties) {
                    best = index;
                }
            }
        }
        feasible[best]
    }

    /// xorshift: quick, and good enough to spread Pods.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// How many nodes that can take the Pod are enough to choose from: all of few, a smaller share of many.
fn feasible_enough(nodes: usize) -> usize {
    if nodes < FEASIBLE_MIN {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(FEASIBLE_MIN)
}

/// The search for one Pod.
struct Search<'a> {
    pod: &'a PodInfo,
    /// With the reason for which it rejects every node, if it does.
    filters: Vec<(&'a dyn FilterPlugin, Option<&'static str>)>,
    only: Option<(&'a dyn FilterPlugin, std::collections::BTreeSet<String>)>,
    feasible: Vec<&'a NodeInfo>,
    reasons: HashMap<Cow<'static, str>, usize>,
    helped_by: ClusterEvents,
    /// Something is wrong with the Pod itself.
    failed: Option<NoFit>,
}

impl<'a> Search<'a> {
    /// Or the plugin that knows already that no node can do, and why.
    fn new(
        pod: &'a PodInfo,
        cache: &Cache,
        profile: &'a Profile,
    ) -> Result<Self, (&'a dyn FilterPlugin, String)> {
        let mut filters = Vec::new();
        let mut only: Option<(&dyn FilterPlugin, _)> = None;
        for plugin in profile.filters.iter().map(|plugin| &**plugin) {
            let mut always = None;
            match plugin.pre_filter(pod, cache.claim_uses()) {
                PreFilter::Skip => continue,
                PreFilter::All => {}
                PreFilter::Nowhere(reason) => always = Some(reason),
                PreFilter::Reject(why) => return Err((plugin, why)),
                PreFilter::Only(names) => {
                    only = Some(match only {
                        Some((first, known)) => (first, &known & &names),
                        None => (plugin, names),
                    });
                }
            }
            filters.push((plugin, always));
        }
        Ok(Self {
            pod,
            filters,
            only,
            feasible: Vec::new(),
            reasons: HashMap::new(),
            helped_by: ClusterEvents::NONE,
            failed: None,
        })
    }

    fn look_at(&mut self, node: &'a NodeInfo) {
        for index in 0..self.filters.len() {
            let (plugin, always) = self.filters[index];
            let looked = match always {
                Some(reason) => Err(Rejection::because(reason)),
                None => plugin.filter(self.pod, node),
            };
            if let Err(Rejection(reasons)) = looked {
                self.failed = plugin.failure().map(|why| NoFit {
                    message: format!("running \"{}\" filter plugin: {why}", plugin.name()),
                    helped_by: plugin.helped_by(),
                });
                for reason in reasons {
                    self.note(plugin, 1, reason);
                }
                return;
            }
        }
        self.feasible.push(node);
    }

    fn note(&mut self, plugin: &dyn FilterPlugin, nodes: usize, reason: Cow<'static, str>) {
        *self.reasons.entry(reason).or_default() += nodes;
        self.helped_by = self.helped_by.or(plugin.helped_by());
    }

    /// In upstream's words: reasons with their counts, sorted as text.
    fn no_fit(&self, nodes: usize) -> NoFit {
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort_unstable();
        let message = format!("0/{nodes} nodes are available: {}.", reasons.join(", "));
        NoFit {
            message,
            helped_by: self.helped_by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{no_devices, no_volumes, node_object, pod, pod_object, pod_of};
    use crate::plugins::default_profile;
    use serde_json::json;

    fn cache(nodes: &[&str], pods: &[&str]) -> Cache {
        let mut cache = Cache::default();
        for node in nodes {
            cache.apply_node(&node_object(node));
        }
        for pod in pods {
            cache.apply_pod(&pod_object(pod));
        }
        cache
    }

    fn choose(pod: &PodInfo, cache: &Cache) -> String {
        Chooser::new(7)
            .choose(pod, cache, &default_profile(&no_volumes(), &no_devices()))
            .unwrap_or_else(|no_fit| no_fit.message)
    }

    #[test]
    #[allow(clippy::type_complexity, reason = "one table of cases")]
    fn choose_table() {
        let cases: &[(&str, &str, &[&str], &[&str], &str)] = &[
            (
                "no nodes",
                "p",
                &[],
                &[],
                "no nodes available to schedule pods",
            ),
            ("the only node", "p cpu=1", &["a cpu=2"], &[], "a"),
            (
                "the emptier one",
                "p cpu=1 mem=1Gi",
                &["a cpu=4 mem=4Gi", "b cpu=4 mem=4Gi"],
                &["x cpu=1 mem=1Gi node=a"],
                "b",
            ),
            (
                "the one without a taint that only asks",
                "p",
                &[
                    "a cpu=4 mem=4Gi taint=k=v:PreferNoSchedule",
                    "b cpu=1 mem=1Gi",
                ],
                &[],
                "b",
            ),
            (
                "untolerated taint",
                "p",
                &["a cpu=1 taint=k=v:NoSchedule"],
                &[],
                "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
            ),
            (
                "reasons are counted and sorted",
                "p cpu=2 mem=2Gi select=x=y",
                &[
                    "a cpu=1 mem=1Gi label=x=y",
                    "b cpu=1 mem=9Gi label=x=y",
                    "c cpu=9 mem=9Gi",
                    "d cordoned",
                ],
                &[],
                "0/4 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable, 2 Insufficient cpu.",
            ),
            (
                "ports",
                "p port=80",
                &["a cpu=1", "b cpu=1 cordoned"],
                &["x port=80 node=a"],
                "0/2 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, 1 node(s) were unschedulable.",
            ),
            (
                "a cordoned node for those who tolerate it",
                "p tolerate=node.kubernetes.io/unschedulable:NoSchedule",
                &["a cpu=1 cordoned"],
                &[],
                "a",
            ),
        ];
        for (name, wanted, nodes, pods, expected) in cases {
            assert_eq!(
                choose(&pod(wanted), &cache(nodes, pods)),
                *expected,
                "case: {name}"
            );
        }
    }

    #[test]
    fn a_pod_that_names_its_nodes_is_not_looked_for_elsewhere() {
        let daemon = pod_of(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}),
        );
        assert_eq!(choose(&daemon, &cache(&["a", "b", "c"], &[])), "b");
        let expected = "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't satisfy plugin(s) [NodeAffinity].";
        assert_eq!(
            choose(&daemon, &cache(&["a", "b cordoned", "c"], &[])),
            expected
        );
    }

    #[test]
    fn equal_nodes_share_equal_pods() {
        let nodes: Vec<String> = (0..10)
            .map(|number| format!("n{number} cpu=1000 mem=1000Gi"))
            .collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let cache = cache(&nodes, &[]);
        let (profile, mut chooser) = (
            default_profile(&no_volumes(), &no_devices()),
            Chooser::new(1),
        );
        let mut counts = HashMap::new();
        for _ in 0..1000 {
            *counts
                .entry(chooser.choose(&pod("p"), &cache, &profile).unwrap())
                .or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 10);
        assert!(
            counts.values().all(|count| (50..200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn of_many_nodes_a_share_is_enough() {
        let cases = [
            (1, 1),
            (99, 99),
            (100, 100),
            (200, 100),
            (1000, 420),
            (5000, 500),
            (10_000, 500),
        ];
        for (nodes, expected) in cases {
            assert_eq!(feasible_enough(nodes), expected, "{nodes} nodes");
        }
    }
}
