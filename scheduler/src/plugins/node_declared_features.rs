//! NodeDeclaredFeatures: a Pod goes only to nodes that declare what it needs of them.

use cox_api::declared_features::missing;

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct NodeDeclaredFeatures;

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }
}

impl FilterPlugin for NodeDeclaredFeatures {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        if pod.features.is_empty() {
            PreFilter::Skip
        } else {
            PreFilter::All
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if missing(&pod.features, node.facts.declared_features()).is_empty() {
            Ok(())
        } else {
            Err(Rejection::because(
                "node(s) didn't match Pod's required features",
            ))
        }
    }

    /// What the Pod needs does not change while it waits.
    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED.or(ClusterEvents::NODE_FEATURES)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{node, pod, pod_of};

    const RESTART_ALL: &str = "n feature=RestartAllContainersOnContainerExits";

    #[test]
    fn filter_table() {
        let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let container =
            json!([{"name": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]);
        let in_init = pod_of(json!({"initContainers": container}));
        let on_host = pod_of(json!({"hostNetwork": true, "hostUsers": false}));
        let cases = [
            ("no needs", pod("p"), "n", true),
            (
                "a container's rule, not declared",
                pod("p restart-all"),
                "n",
                false,
            ),
            (
                "a container's rule, declared",
                pod("p restart-all"),
                RESTART_ALL,
                true,
            ),
            (
                "among others",
                pod("p restart-all"),
                "n feature=A feature=RestartAllContainersOnContainerExits",
                true,
            ),
            ("an init container's rule", in_init, "n feature=A", false),
            (
                "users of its own on the node's network",
                on_host,
                RESTART_ALL,
                false,
            ),
        ];
        for (name, pod, on, expected) in cases {
            let found = NodeDeclaredFeatures.filter(&pod, &node(on));
            assert_eq!(found.is_ok(), expected, "case: {name}");
        }
        let skips = NodeDeclaredFeatures.pre_filter(&pod("p"), &ClaimUses::default());
        assert_eq!(skips, PreFilter::Skip);
    }
}
