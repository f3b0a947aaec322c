//! NodeUnschedulable: a cordoned node takes only Pods that tolerate its taint.

use cox_client::placement::tolerates;
use k8s_openapi::api::core::v1::Taint;

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }
}

impl FilterPlugin for NodeUnschedulable {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.facts.is_unschedulable() {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if pod
            .tolerations()
            .iter()
            .any(|toleration| tolerates(toleration, &taint))
        {
            Ok(())
        } else {
            Err(Rejection::because("node(s) were unschedulable"))
        }
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED.or(ClusterEvents::NODE_TAINTS)
    }
}
