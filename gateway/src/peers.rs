//! The gateways of a cluster: each marks its Node with a label. What only one of them may say is said by the first by name; where
//! requests are taken, each says for itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

/// On Nodes where requests from outside are taken.
const LABEL: &str = "coxswain.dev/gateway";
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The nodes that are ready and take requests, with their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    own: String,
    live: BTreeMap<String, Vec<IpAddr>>,
}

impl Peers {
    pub(crate) fn new(own: &str) -> Self {
        Self {
            own: own.to_owned(),
            live: BTreeMap::new(),
        }
    }

    /// Whether something is different from before.
    pub(crate) fn read(&mut self, nodes: &[Arc<Node>]) -> bool {
        let live = nodes
            .iter()
            .filter(|node| is_marked(node) && is_ready(node));
        let live = live
            .map(|node| (node.metadata.name.clone().unwrap_or_default(), ips(node)))
            .collect();
        std::mem::replace(&mut self.live, live) != self.live
    }

    /// Whether this one speaks for all of them.
    pub(crate) fn speaks(&self) -> bool {
        self.live
            .keys()
            .next()
            .is_none_or(|first| *first == self.own)
    }

    /// Whether this one is among those that others count on; as long as nobody is, it is.
    pub(crate) fn counts(&self) -> bool {
        self.live.is_empty() || self.live.contains_key(&self.own)
    }

    /// Whether an address that another one said may stay.
    pub(crate) fn keeps(&self, ip: IpAddr) -> bool {
        self.live.is_empty() || self.live.values().flatten().any(|one| *one == ip)
    }

    /// Where requests are taken, by all of them; `own` is this one's address.
    pub(crate) fn ips(&self, own: IpAddr) -> Vec<IpAddr> {
        if self.live.is_empty() {
            return vec![own];
        }
        let of = |(name, ips): (&String, &Vec<IpAddr>)| match *name == self.own {
            true => Some(own),
            false => ips.first().copied(),
        };
        self.live.iter().filter_map(of).collect()
    }
}

fn is_marked(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key(LABEL))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut all = conditions.into_iter().flatten();
    all.any(|one| one.type_ == "Ready" && one.status == "True")
}

fn ips(node: &Node) -> Vec<IpAddr> {
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    let internal = addresses
        .into_iter()
        .flatten()
        .filter(|one| one.type_ == "InternalIP");
    internal
        .filter_map(|one| one.address.parse().ok())
        .collect()
}

/// Marks this node, once it is there. Whether that has to be tried again.
pub(crate) async fn mark(client: &kube::Client, own: &str, nodes: &[Arc<Node>]) -> bool {
    let is_own = |node: &&Arc<Node>| node.metadata.name.as_deref() == Some(own);
    let Some(node) = nodes.iter().find(is_own) else {
        return false;
    };
    if is_marked(node) {
        return false;
    }
    let marked = label(client, own, Some("true")).await;
    if let Err(error) = &marked {
        tracing::debug!(%error, "This node was not marked as one that takes requests from outside");
    }
    marked.is_err()
}

async fn label(client: &kube::Client, node: &str, value: Option<&str>) -> Result<(), kube::Error> {
    let patch = Patch::Merge(json!({"metadata": {"labels": {LABEL: value}}}));
    let api: Api<Node> = Api::all(client.clone());
    api.patch(node, &PatchParams::default(), &patch)
        .await
        .map(drop)
}

/// Takes the mark of an earlier start away from a node that takes no requests from outside any more.
pub async fn retire(client: kube::Client, node: String) {
    let api: Api<Node> = Api::all(client.clone());
    loop {
        let done = match api.get_opt(&node).await {
            Ok(Some(known)) if is_marked(&known) => label(&client, &node, None).await,
            Ok(_) => return,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, "Whether this node is marked as a gateway is not known yet")
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, marked: bool, ready: bool, ip: &str) -> Arc<Node> {
        let labels = if marked {
            json!({LABEL: "true"})
        } else {
            json!({})
        };
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn who_speaks_and_who_counts() {
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let (a, b) = (
            node("a", true, true, "192.0.2.1"),
            node("b", true, true, "192.0.2.2"),
        );
        let (lost, other) = (
            node("a", true, false, "192.0.2.1"),
            node("a", false, true, "192.0.2.1"),
        );
        for (case, nodes, speaks, counts, kept, ips) in [
            ("nobody yet", vec![], true, true, true, vec![ip(2)]),
            ("alone", vec![&b], true, true, false, vec![ip(2)]),
            (
                "the second",
                vec![&a, &b],
                false,
                true,
                true,
                vec![ip(1), ip(2)],
            ),
            (
                "the first is lost",
                vec![&lost, &b],
                true,
                true,
                false,
                vec![ip(2)],
            ),
            (
                "the first is no gateway",
                vec![&other, &b],
                true,
                true,
                false,
                vec![ip(2)],
            ),
            (
                "it is not ready itself",
                vec![&a],
                false,
                false,
                true,
                vec![ip(1)],
            ),
        ] {
            let mut peers = Peers::new("b");
            let nodes: Vec<Arc<Node>> = nodes.into_iter().cloned().collect();
            assert_eq!(peers.read(&nodes), !peers.live.is_empty(), "{case}");
            assert!(!peers.read(&nodes), "{case}: nothing is new");
            assert_eq!((peers.speaks(), peers.counts()), (speaks, counts), "{case}");
            assert_eq!(peers.keeps(ip(1)), kept, "{case}");
            assert_eq!(peers.ips(ip(2)), ips, "{case}");
        }
    }
}
