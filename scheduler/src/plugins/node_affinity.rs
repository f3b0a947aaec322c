//! NodeAffinity: the Pod's nodeSelector and node affinity, required and preferred, against a node's labels and name.

use std::collections::BTreeSet;

use cox_client::placement::NodeTerm;
use k8s_openapi::api::core::v1::PodSpec;

use crate::event::ClusterEvents;
use crate::framework::{
    FilterPlugin, Plugin, PreFilter, Rejection, ScorePlugin, normalize_by_highest,
};
use crate::node_info::{NodeFacts, NodeInfo};
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct NodeAffinity;

/// Which nodes a Pod can and would like to be on.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    selector: Vec<(String, String)>,
    /// One of these must match. `None` asks for nothing; an empty list matches nothing.
    required: Option<Vec<NodeTerm>>,
    preferred: Vec<(i64, NodeTerm)>,
}

impl Affinity {
    /// Takes it out of a Pod's spec.
    #[must_use]
    pub fn of(spec: &PodSpec) -> Self {
        let affinity = spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let preferred = affinity.and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let preferred = preferred
            .into_iter()
            .flatten()
            .filter(|term| term.weight != 0);
        Self {
            selector: spec
                .node_selector
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            required: required.map(|required| {
                required
                    .node_selector_terms
                    .iter()
                    .map(NodeTerm::of)
                    .collect()
            }),
            preferred: preferred
                .map(|term| (i64::from(term.weight), NodeTerm::of(&term.preference)))
                .collect(),
        }
    }

    fn allows(&self, node: &NodeFacts) -> bool {
        self.selector
            .iter()
            .all(|(key, value)| node.label(key) == Some(value))
            && self
                .required
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| meets(node, term)))
    }

    /// The only nodes that can match, where every required term names its nodes: what DaemonSets ask for.
    fn names(&self) -> Option<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for term in self.required.as_ref()? {
            names.extend(term.names()?.iter().cloned());
        }
        Some(names)
    }
}

/// The node's side of a term.
fn meets(node: &NodeFacts, term: &NodeTerm) -> bool {
    term.matches(node.name(), |key| node.label(key))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
}

impl FilterPlugin for NodeAffinity {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        if pod.affinity.selector.is_empty() && pod.affinity.required.is_none() {
            return PreFilter::Skip;
        }
        pod.affinity.names().map_or(PreFilter::All, PreFilter::Only)
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.affinity.allows(&node.facts) {
            Ok(())
        } else {
            Err(Rejection::because(
                "node(s) didn't match Pod's node affinity/selector",
            ))
        }
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED.or(ClusterEvents::NODE_LABELS)
    }
}

impl ScorePlugin for NodeAffinity {
    fn skip(&self, pod: &PodInfo) -> bool {
        pod.affinity.preferred.is_empty()
    }

    /// The weights of the preferences that the node meets.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let met = pod
            .affinity
            .preferred
            .iter()
            .filter(|(_, term)| meets(&node.facts, term));
        met.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_highest(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{node, pod, pod_of};
    use serde_json::{Value, json};

    fn with_terms(terms: Value) -> PodInfo {
        pod_of(json!({"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
    }

    #[test]
    fn selector_table() {
        let cases: &[(&str, &str, &str, bool)] = &[
            ("nothing asked", "p", "n", true),
            (
                "the label is there",
                "p select=disk=ssd",
                "n label=disk=ssd",
                true,
            ),
            (
                "another value",
                "p select=disk=ssd",
                "n label=disk=hdd",
                false,
            ),
            ("the label is missing", "p select=disk=ssd", "n", false),
            (
                "one of two",
                "p select=disk=ssd select=zone=a",
                "n label=disk=ssd",
                false,
            ),
        ];
        for (name, pod_text, node_text, expected) in cases {
            assert_eq!(
                NodeAffinity
                    .filter(&pod(pod_text), &node(node_text))
                    .is_ok(),
                *expected,
                "case: {name}"
            );
        }
        assert_eq!(
            NodeAffinity.pre_filter(&pod("p"), &ClaimUses::default()),
            PreFilter::Skip
        );
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "one table of cases")]
    fn required_table() {
        let expression = |operator: &str, values: Value| json!([{"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}]);
        let cases = [
            (
                "In",
                expression("In", json!(["a", "b"])),
                "n label=k=b",
                true,
            ),
            (
                "In, without the label",
                expression("In", json!(["a"])),
                "n",
                false,
            ),
            (
                "NotIn",
                expression("NotIn", json!(["a"])),
                "n label=k=a",
                false,
            ),
            (
                "NotIn, without the label",
                expression("NotIn", json!(["a"])),
                "n",
                true,
            ),
            (
                "Exists",
                expression("Exists", json!(null)),
                "n label=k=a",
                true,
            ),
            (
                "DoesNotExist",
                expression("DoesNotExist", json!(null)),
                "n label=k=a",
                false,
            ),
            ("Gt", expression("Gt", json!(["3"])), "n label=k=4", true),
            (
                "Gt, equal",
                expression("Gt", json!(["3"])),
                "n label=k=3",
                false,
            ),
            ("Lt", expression("Lt", json!(["3"])), "n label=k=2", true),
            (
                "Lt, not a number",
                expression("Lt", json!(["3"])),
                "n label=k=x",
                false,
            ),
            (
                "an operator that does not exist",
                expression("Near", json!(["3"])),
                "n label=k=3",
                false,
            ),
            ("a term that asks for nothing", json!([{}]), "n", false),
            ("no terms", json!([]), "n", false),
            (
                "one of two terms",
                json!([{}, {"matchExpressions": [{"key": "k", "operator": "Exists"}]}]),
                "n label=k=1",
                true,
            ),
            (
                "by name",
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
                "n",
                true,
            ),
            (
                "by another name",
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]),
                "n",
                false,
            ),
        ];
        for (name, terms, node_text, expected) in cases {
            assert_eq!(
                NodeAffinity
                    .filter(&with_terms(terms), &node(node_text))
                    .is_ok(),
                expected,
                "case: {name}"
            );
        }
    }

    #[test]
    fn terms_that_name_nodes_narrow_the_search() {
        let named = |names: Value| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": names}]});
        let pre_filter = |terms| NodeAffinity.pre_filter(&with_terms(terms), &ClaimUses::default());
        let only = pre_filter(json!([named(json!(["a"])), named(json!(["b"]))]));
        assert_eq!(
            only,
            PreFilter::Only(["a".to_owned(), "b".to_owned()].into())
        );
        let other = json!({"matchExpressions": [{"key": "k", "operator": "Exists"}]});
        let all = pre_filter(json!([named(json!(["a"])), other]));
        assert_eq!(all, PreFilter::All, "another term may match other nodes");
    }

    #[test]
    fn met_preferences_score_by_their_weights() {
        let term = |weight: i64, value: &str| {
            json!({"weight": weight, "preference":
            {"matchExpressions": [{"key": "k", "operator": "In", "values": [value, "both"]}]}})
        };
        let pod = pod_of(json!({"affinity": {"nodeAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution": [term(30, "a"), term(10, "b")]}}}));
        let nodes = ["n label=k=a", "n label=k=b", "n label=k=both", "n"];
        let mut scores: Vec<i64> = nodes
            .iter()
            .map(|text| NodeAffinity.score(&pod, &node(text)))
            .collect();
        assert_eq!(scores, [30, 10, 40, 0]);
        NodeAffinity.normalize(&mut scores);
        assert_eq!(scores, [75, 25, 100, 0]);
    }
}
