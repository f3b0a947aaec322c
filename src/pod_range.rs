//! Which Pod addresses a node that joins has, where its flags do not say: those that its Node object has, or that the control plane
//! gives it now. The runtime needs them before the kubelet registers, so the Node is made here, without a status. What was learned is
//! kept on the node, with the address of the cluster's DNS: a node that starts while the control plane is away goes by that.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;

use crate::cli::NodeArgs;
use crate::node;
use crate::paths::write_private;

/// What a node that joined knows of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Known {
    /// The node's own Pod addresses.
    pod_ranges: Option<String>,
    cluster_dns: Option<IpAddr>,
}

impl Known {
    /// What was kept; nothing where nothing was, or where it cannot be read.
    pub(crate) fn read(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Keeps what is new.
    fn keep(&self, file: &Path) -> Result<()> {
        if Self::read(file) == *self {
            return Ok(());
        }
        write_private(file, &serde_json::to_string(self)?)
    }
}

/// How long the control plane may take where it is known what it would say.
const OFFLINE_AFTER: Duration = Duration::from_secs(5);
/// How long the control plane may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Sets `--pod-cidr` where it is missing and other machines are to reach the Pods. A node without rights, or one that others know by a
/// loopback address, runs Wasm alone on loopback addresses.
pub(crate) async fn ensure(client: &kube::Client, args: &mut NodeArgs, kept: &Path) -> Result<()> {
    let is_reachable = rustix::process::geteuid().is_root() && !args.node_ip.is_loopback();
    if args.pod_cidr.is_some() || !(is_reachable || node::runs_linux_containers(args)) {
        return Ok(());
    }
    let known = Known::read(kept);
    let Some(before) = known.pod_ranges.clone() else {
        let ranges = ask(client, args).await?;
        return take(args, known, ranges, kept);
    };
    match tokio::time::timeout(OFFLINE_AFTER, ask(client, args)).await {
        Ok(Ok(ranges)) => take(args, known, ranges, kept),
        Ok(Err(error)) => {
            tracing::warn!(%error, ranges = before, "The control plane does not say which Pod addresses this node has: it keeps those that it had");
            args.pod_cidr = Some(before);
            Ok(())
        }
        Err(_) => {
            tracing::warn!(
                ranges = before,
                "The control plane does not answer: this node keeps the Pod addresses that it had"
            );
            args.pod_cidr = Some(before);
            Ok(())
        }
    }
}

fn take(args: &mut NodeArgs, mut known: Known, ranges: String, kept: &Path) -> Result<()> {
    tracing::info!(ranges, "The node's Pod addresses");
    known.pod_ranges = Some(ranges.clone());
    args.pod_cidr = Some(ranges);
    known.keep(kept)
}

/// The address of the cluster's DNS; while the control plane is away the one that was known.
pub(crate) async fn cluster_dns(client: &kube::Client, kept: &Path) -> Option<IpAddr> {
    let mut known = Known::read(kept);
    let asked = tokio::time::timeout(OFFLINE_AFTER, cox_network::cluster_dns(client)).await;
    let error = match asked {
        Ok(Ok(found)) => {
            known.cluster_dns = found;
            if let Err(error) = known.keep(kept) {
                tracing::warn!(%error, "What this node knows of its cluster is not kept");
            }
            return found;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    match known.cluster_dns {
        Some(_) => {
            tracing::info!(error, "The cluster's DNS is taken to be where it was");
        }
        None => {
            tracing::warn!(
                error,
                "The cluster's DNS is not known: Pods that start now resolve as the node does"
            );
        }
    }
    known.cluster_dns
}

/// The Pod addresses that the control plane has for this node, which registers if it has not.
async fn ask(client: &kube::Client, args: &NodeArgs) -> Result<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let name = node::node_name(args)?;
    if nodes.get_opt(&name).await?.is_none() {
        let node = node::early_node(args)?;
        match nodes.create(&PostParams::default(), &node).await {
            Ok(_) => {}
            Err(error) if cox_client::is_already_exists(&error) => {}
            Err(error) => return Err(error).context("the node could not register"),
        }
    }
    match tokio::time::timeout(PATIENCE, given(&nodes, &name)).await {
        Ok(ranges) => Ok(ranges?),
        Err(_) => anyhow::bail!(
            "the control plane gave {name} no range of Pod addresses (see `kubectl describe node {name}`): give one with --pod-cidr"
        ),
    }
}

/// Waits until the Node has ranges.
async fn given(nodes: &Api<Node>, name: &str) -> Result<String, kube::Error> {
    loop {
        let spec = nodes.get(name).await?.spec.unwrap_or_default();
        let ranges = spec.pod_cidrs.unwrap_or_default();
        if !ranges.is_empty() {
            return Ok(ranges.join(","));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_knows_of_its_cluster_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster.json");
        assert_eq!(Known::read(&file), Known::default(), "nothing yet");
        let known = Known {
            pod_ranges: Some("10.64.0.0/20,fd00::/64".into()),
            cluster_dns: Some("10.96.0.10".parse().unwrap()),
        };
        known.keep(&file).unwrap();
        assert_eq!(Known::read(&file), known);
        std::fs::write(&file, "{\"pod_ranges\":").unwrap();
        assert_eq!(Known::read(&file), Known::default(), "cut off");
    }
}
