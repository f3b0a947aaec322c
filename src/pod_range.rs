//! Which Pod addresses a node that joins has, where its flags do not say: those that its Node object has, or that the control plane
//! gives it now. The runtime needs them before the kubelet registers, so the Node is made here, without a status.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;

use crate::cli::NodeArgs;
use crate::node;

/// How long the control plane may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Sets `--pod-cidr` where it is missing and other machines are to reach the Pods. A node without rights, or one that others know by a
/// loopback address, runs Wasm alone on loopback addresses.
pub(crate) async fn ensure(client: &kube::Client, args: &mut NodeArgs) -> Result<()> {
    let is_reachable = rustix::process::geteuid().is_root() && !args.node_ip.is_loopback();
    if args.pod_cidr.is_some() || !(is_reachable || node::runs_linux_containers(args)) {
        return Ok(());
    }
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
    let ranges = tokio::time::timeout(PATIENCE, given(&nodes, &name)).await;
    match ranges {
        Ok(ranges) => {
            let ranges = ranges?;
            tracing::info!(ranges, "The node's Pod addresses");
            args.pod_cidr = Some(ranges);
        }
        Err(_) => anyhow::bail!(
            "the control plane gave {name} no range of Pod addresses (see `kubectl describe node {name}`): give one with --pod-cidr"
        ),
    }
    Ok(())
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
