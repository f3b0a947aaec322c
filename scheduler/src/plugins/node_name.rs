//! NodeName: a Pod that names its node goes there and nowhere else.

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }
}

impl FilterPlugin for NodeName {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        if pod.node_name().is_some() {
            PreFilter::All
        } else {
            PreFilter::Skip
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match pod.node_name() {
            Some(name) if name != node.facts.name() => Err(Rejection::because(
                "node(s) didn't match the requested node name",
            )),
            _ => Ok(()),
        }
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
    }
}
