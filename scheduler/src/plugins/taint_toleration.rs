//! TaintToleration: a node's taints keep away Pods that do not tolerate them; `PreferNoSchedule` only counts against it.

use cox_client::placement::tolerates;
use k8s_openapi::api::core::v1::Taint;

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, Rejection, ScorePlugin, normalize_by_highest};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }
}

impl FilterPlugin for TaintToleration {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let forbidding = node
            .facts
            .taints()
            .iter()
            .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
        if untolerated(pod, forbidding) > 0 {
            return Err(Rejection::because("node(s) had untolerated taint(s)"));
        }
        Ok(())
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED.or(ClusterEvents::NODE_TAINTS)
    }
}

impl ScorePlugin for TaintToleration {
    /// How many taints that only ask to stay away the Pod does not tolerate.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        untolerated(
            pod,
            node.facts
                .taints()
                .iter()
                .filter(|taint| taint.effect == "PreferNoSchedule"),
        )
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_highest(scores, true);
    }
}

fn untolerated<'a>(pod: &PodInfo, taints: impl Iterator<Item = &'a Taint>) -> i64 {
    let tolerations = pod.tolerations();
    taints
        .filter(|taint| {
            !tolerations
                .iter()
                .any(|toleration| tolerates(toleration, taint))
        })
        .map(|_| 1)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{node, pod};

    #[test]
    fn filter_table() {
        let cases: &[(&str, &str, &str, bool)] = &[
            ("no taints", "p", "n", true),
            ("a taint", "p", "n taint=a=b:NoSchedule", false),
            (
                "tolerated by value",
                "p tolerate=a=b:NoSchedule",
                "n taint=a=b:NoSchedule",
                true,
            ),
            (
                "tolerated with another value",
                "p tolerate=a=c:NoSchedule",
                "n taint=a=b:NoSchedule",
                false,
            ),
            (
                "tolerated with any value",
                "p tolerate=a:NoSchedule",
                "n taint=a=b:NoSchedule",
                true,
            ),
            (
                "tolerated for another effect",
                "p tolerate=a:NoExecute",
                "n taint=a=b:NoSchedule",
                false,
            ),
            (
                "tolerated for all effects",
                "p tolerate=a:",
                "n taint=a=b:NoExecute",
                true,
            ),
            (
                "everything tolerated",
                "p tolerate=:",
                "n taint=a=b:NoSchedule taint=c=d:NoExecute",
                true,
            ),
            (
                "one of two tolerated",
                "p tolerate=a:",
                "n taint=a=b:NoSchedule taint=c=d:NoExecute",
                false,
            ),
            (
                "a preference forbids nothing",
                "p",
                "n taint=a=b:PreferNoSchedule",
                true,
            ),
        ];
        for (name, pod_text, node_text, expected) in cases {
            assert_eq!(
                TaintToleration
                    .filter(&pod(pod_text), &node(node_text))
                    .is_ok(),
                *expected,
                "case: {name}"
            );
        }
    }

    #[test]
    fn fewer_untolerated_preferences_score_higher() {
        let pod = pod("p tolerate=a:");
        let nodes = [
            "n",
            "n taint=a=1:PreferNoSchedule",
            "n taint=b=1:PreferNoSchedule",
            "n taint=b=1:PreferNoSchedule taint=c=1:PreferNoSchedule",
        ];
        let mut scores: Vec<i64> = nodes
            .iter()
            .map(|text| TaintToleration.score(&pod, &node(text)))
            .collect();
        TaintToleration.normalize(&mut scores);
        assert_eq!(scores, [100, 100, 50, 0]);
    }
}
