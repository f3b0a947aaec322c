//! NodePorts: two Pods of one node cannot have the same port of it.

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::{HostPort, PodInfo};
use crate::pod_volumes::ClaimUses;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }
}

impl FilterPlugin for NodePorts {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        if pod.host_ports.is_empty() {
            PreFilter::Skip
        } else {
            PreFilter::All
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let taken = &node.usage.host_ports;
        if pod
            .host_ports
            .iter()
            .any(|port| taken.iter().any(|own| clash(port, own)))
        {
            return Err(Rejection::because(
                "node(s) didn't have free ports for the requested pod ports",
            ));
        }
        Ok(())
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED.or(ClusterEvents::POD_LEFT)
    }
}

/// The same port on addresses of which one is the other or stands for all.
fn clash(one: &HostPort, other: &HostPort) -> bool {
    let all = |port: &HostPort| &*port.ip == "0.0.0.0";
    one.port == other.port
        && one.protocol == other.protocol
        && (one.ip == other.ip || all(one) || all(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{node_with, pod};

    #[test]
    fn filter_table() {
        let cases: &[(&str, &str, &str, bool)] = &[
            ("nobody has it", "p port=80", "q port=81", true),
            ("somebody has it", "p port=80", "q port=80", false),
            ("another protocol", "p port=80/UDP", "q port=80", true),
            (
                "another address",
                "p port=127.0.0.1:80",
                "q port=127.0.0.2:80",
                true,
            ),
            (
                "all addresses against one",
                "p port=80",
                "q port=127.0.0.2:80",
                false,
            ),
            (
                "one address against all",
                "p port=127.0.0.1:80",
                "q port=80",
                false,
            ),
            ("one of two", "p port=80 port=81", "q port=81", false),
            ("none wanted", "p", "q port=81", true),
        ];
        for (name, wanted, there, expected) in cases {
            let node = node_with("n", &[there]);
            assert_eq!(
                NodePorts.filter(&pod(wanted), &node).is_ok(),
                *expected,
                "case: {name}"
            );
        }
        assert_eq!(
            NodePorts.pre_filter(&pod("p"), &ClaimUses::default()),
            PreFilter::Skip
        );
    }
}
