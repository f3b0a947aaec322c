//! NodeResourcesBalancedAllocation: prefers the node on which the Pod leaves CPU and memory used to the same degree.

use crate::framework::{MAX_NODE_SCORE, Plugin, ScorePlugin};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl ScorePlugin for NodeResourcesBalancedAllocation {
    /// A Pod that asks for nothing balances nothing.
    fn skip(&self, pod: &PodInfo) -> bool {
        pod.requests.asked.cpu_millis == 0 && pod.requests.asked.memory == 0
    }

    /// 100 less the distance between the two degrees of use, in half percents: the deviation from their mean.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (has, taken, wanted) = (
            &node.facts.allocatable,
            &node.usage.requests.asked,
            &pod.requests.asked,
        );
        // In thousandths: fine enough for a score of a hundred, and exact.
        let degree =
            |has: i64, used: i64| (has > 0).then(|| (used.min(has)).saturating_mul(1000) / has);
        let degrees = (
            degree(has.cpu_millis, taken.cpu_millis + wanted.cpu_millis),
            degree(has.memory, taken.memory + wanted.memory),
        );
        match degrees {
            (Some(cpu), Some(memory)) => MAX_NODE_SCORE - (cpu - memory).abs() / 20,
            _ => MAX_NODE_SCORE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{node_with, pod};

    #[test]
    fn score_table() {
        let cases: &[(&str, &str, &str, &[&str], i64)] = &[
            (
                "both half used",
                "p cpu=1 mem=1Gi",
                "n cpu=2 mem=2Gi",
                &[],
                100,
            ),
            ("all CPU, no memory", "p cpu=2", "n cpu=2 mem=2Gi", &[], 50),
            (
                "the Pod makes it even",
                "p mem=1Gi",
                "n cpu=2 mem=2Gi",
                &["a cpu=1"],
                100,
            ),
            (
                "the Pod makes it uneven",
                "p cpu=1",
                "n cpu=4 mem=4Gi",
                &["a cpu=1"],
                75,
            ),
        ];
        for (name, wanted, has, there, expected) in cases {
            let (pod, node) = (pod(wanted), node_with(has, there));
            assert_eq!(
                NodeResourcesBalancedAllocation.score(&pod, &node),
                *expected,
                "case: {name}"
            );
        }
        assert!(NodeResourcesBalancedAllocation.skip(&pod("p")));
    }
}
