//! Wires a node: the runtime shim as a process of its own, and the kubelet that drives it over CRI.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cox_apiserver::pki::PemPair;
use cox_client::{Informers, SystemClock};
use cox_kubelet::ServingPair;
use cox_kubelet::credentials::{CredentialSources, NodeCredentials};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cli::{CpuPolicy, NodeArgs};
use crate::components::Components;
use crate::paths::Paths;
use crate::shim_process::{self, Shim};

/// A node's runtime process, watched over.
#[derive(Debug)]
pub(crate) struct Runtime {
    cancel: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Runtime {
    /// Finds or starts the runtime.
    pub(crate) async fn start(paths: &Paths, node: &NodeArgs) -> Result<Self> {
        let shim = Shim::ensure(paths, shim_process::config(paths, node)?).await?;
        let cancel = CancellationToken::new();
        let keeper = tokio::spawn(shim.keep_running(cancel.clone()));
        Ok(Self { cancel, keeper })
    }

    /// Ends the runtime and what still runs in it.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "The runtime's keeper panicked");
        }
    }
}

/// Who the kubelet is towards the API server and its own clients.
pub(crate) struct Identity {
    pub(crate) client: kube::Client,
    pub(crate) informers: Informers,
    /// The node's certificate, for the kubelet's own server.
    pub(crate) serving: PemPair,
    /// Newer ones, as they come.
    pub(crate) serving_updates: Option<watch::Receiver<ServingPair>>,
    pub(crate) client_ca_pem: String,
}

/// Starts the kubelet as one of `components`; the handle stops its Pods.
pub(crate) fn run_kubelet(
    paths: &Paths,
    node: &NodeArgs,
    identity: Identity,
    cluster_dns: Option<IpAddr>,
    isolation: Option<Isolation>,
    components: &mut Components,
) -> Result<cox_kubelet::Handle> {
    let mut config = cox_kubelet::Config::new(
        &node_name(node)?,
        node.node_ip,
        paths.kubelet(),
        paths.cri_socket(),
    );
    config.listen = SocketAddr::new(node.node_ip, 0);
    config.serving_cert_pem = identity.serving.certificate;
    config.serving_key_pem = identity.serving.key;
    config.serving_updates = identity.serving_updates;
    config.client_ca_pem = identity.client_ca_pem;
    config.static_pod_dir = Some(
        node.static_pods
            .clone()
            .unwrap_or_else(|| paths.manifests()),
    );
    if !rustix::process::geteuid().is_root() {
        // Nothing can be mounted; but the folder of a user's session is in memory already.
        config.memory_dir = paths.state.join("volumes");
    }
    config.pod_cidrs = PodRanges::of(node)?.all;
    config.max_pods = node.max_pods;
    config.isolation = isolation.map(|isolation| Arc::new(isolation) as _);
    config.credentials = Arc::new(credentials(paths, node)?);
    set_up(&mut config, node)?;
    config.cluster_dns.extend(cluster_dns);
    let deps = cox_kubelet::Deps {
        client: identity.client,
        informers: identity.informers,
        clock: Arc::new(SystemClock),
    };
    let (handle, run) = cox_kubelet::prepare(config, deps, &components.cancellation());
    components.spawn(
        "kubelet",
        async move { run.await.map_err(anyhow::Error::from) },
    );
    Ok(handle)
}

/// Whether this node can run Linux containers: it has the rights, and a containerd.
pub(crate) fn runs_linux_containers(node: &NodeArgs) -> bool {
    rustix::process::geteuid().is_root() && node.containerd_socket.exists()
}

/// The node's ranges of Pod addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRanges {
    /// One, or one of each kind; Pods' first addresses are of the first.
    all: Vec<String>,
}

impl PodRanges {
    /// As the flag says. Without it Pods get loopback addresses, which need no rights and change nothing on the machine. Where there
    /// are Linux containers that will not do: loopback cannot be routed into a namespace, and virtual Pods and Pods with a
    /// namespace have to meet.
    pub(crate) fn of(node: &NodeArgs) -> Result<Self> {
        let Some(text) = &node.pod_cidr else {
            let ipv4 = match runs_linux_containers(node) {
                true => "10.64.0.0/18",
                false => "127.64.0.0/18",
            };
            return Ok(Self {
                all: vec![ipv4.to_owned()],
            });
        };
        Self::parse(text).with_context(|| {
            format!("--pod-cidr {text} is not one range, or one of IPv4 and one of IPv6 with a comma between them")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let all: Vec<String> = text.split(',').map(|one| one.trim().to_owned()).collect();
        match &all[..] {
            [_] => Some(Self { all }),
            [one, other] if is_ipv6(one) != is_ipv6(other) => Some(Self { all }),
            _ => None,
        }
    }

    pub(crate) fn ipv4(&self) -> Option<&str> {
        self.all
            .iter()
            .find(|one| !is_ipv6(one))
            .map(String::as_str)
    }

    pub(crate) fn ipv6(&self) -> Option<&str> {
        self.all.iter().find(|one| is_ipv6(one)).map(String::as_str)
    }

    /// Pods' IPv6 addresses are their first ones.
    pub(crate) fn is_ipv6_first(&self) -> bool {
        is_ipv6(&self.all[0])
    }
}

fn is_ipv6(range: &str) -> bool {
    range.contains(':')
}

/// Credentials for registries: docker's configuration of the node and of whoever started this, and provider plugins.
fn credentials(paths: &Paths, node: &NodeArgs) -> Result<NodeCredentials> {
    let home = std::env::home_dir().map(|home| home.join(".docker/config.json"));
    let sources = CredentialSources {
        docker_configs: std::iter::once(paths.kubelet().join("config.json"))
            .chain(home)
            .collect(),
        provider_config: node.image_credential_provider_config.clone(),
        provider_bin_dir: node.image_credential_provider_bin_dir.clone(),
    };
    Ok(NodeCredentials::open(&sources)?)
}

/// The Node object as the kubelet would make it, but for what only the runtime knows.
pub(crate) fn early_node(node: &NodeArgs) -> Result<k8s_openapi::api::core::v1::Node> {
    let mut config =
        cox_kubelet::Config::new(&node_name(node)?, node.node_ip, "/".into(), "/".into());
    set_up(&mut config, node)?;
    let machine = cox_kubelet::node::capacity::Machine::read(std::path::Path::new("/"));
    Ok(cox_kubelet::node::status::node(
        &config,
        &machine,
        &cox_kubelet::node::RuntimeFacts::default(),
    ))
}

/// What the flags say of the node as Pods see it.
fn set_up(config: &mut cox_kubelet::Config, node: &NodeArgs) -> Result<()> {
    let pair = |text: &String| {
        let pair = text.split_once('=');
        pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
            .with_context(|| format!("\"{text}\" is not written as key=value"))
    };
    config.labels = node.node_labels.iter().map(pair).collect::<Result<_>>()?;
    config.taints.clone_from(&node.taints);
    config.provider_id.clone_from(&node.provider_id);
    for text in &node.reserved {
        let (resource, amount) = pair(text)?;
        let amount = cox_kubelet::resources::parse(&resource, &amount)
            .with_context(|| format!("\"{text}\" holds no quantity"))?;
        config.reserved.insert(resource, amount);
    }
    if !node.eviction_hard.is_empty() {
        let all = node.eviction_hard.iter();
        config.eviction = all
            .map(|text| cox_kubelet::eviction::thresholds::Threshold::parse(text))
            .collect::<Result<_, _>>()?;
    }
    for text in &node.eviction_soft {
        config
            .eviction
            .push(cox_kubelet::eviction::thresholds::Threshold::parse_soft(
                text,
            )?);
    }
    config.eviction_max_grace = Duration::from_secs(node.eviction_max_pod_grace_period);
    if !node.shutdown.is_empty() {
        let all = node.shutdown.iter();
        config.shutdown = all
            .map(|text| cox_kubelet::shutdown::Group::parse(text))
            .collect::<Result<_, _>>()?;
    }
    let is_root = rustix::process::geteuid().is_root();
    if cox_runtime_shim::CgroupDriver::from(node.cgroup_driver).is_systemd() {
        config.cgroup_driver = cox_kubelet::cgroups::Driver::Systemd("systemctl".into());
    }
    if is_root && !node.no_cgroups_per_qos && node.containerd_socket.exists() {
        config.cgroup_root = Some("/sys/fs/cgroup".into());
    }
    config.pids_per_pod = node.pod_max_pids;
    config.unsafe_sysctls = cox_kubelet::sysctls::Allowed::parse(&node.allowed_unsafe_sysctls)?;
    config.static_cpus = node.cpu_manager_policy == CpuPolicy::Static;
    config.static_pod_url.clone_from(&node.static_pod_url);
    Ok(())
}

/// How the kubelet asks the node's network for its policies to hold.
#[derive(Debug)]
pub(crate) struct Isolation(cox_network::Isolation);

impl cox_kubelet::Isolation for Isolation {
    fn isolate<'a>(&'a self, pod: &'a Pod, ips: &'a [IpAddr]) -> BoxFuture<'a, ()> {
        Box::pin(self.0.isolate(pod, ips))
    }
}

/// Starts the node's network (Services, names and policies) as one of `components`. `None`: it holds no policies.
pub(crate) fn run_network(
    paths: &Paths,
    node: &NodeArgs,
    identity: &Identity,
    components: &mut Components,
) -> Result<Option<Isolation>> {
    let mut config =
        cox_network::Config::new(&node_name(node)?, node.node_ip, paths.services_file());
    config.mode = node.proxy_mode.into();
    config.ipvs = cox_network::IpvsSettings {
        scheduler: node.ipvs_scheduler.clone(),
        strict_arp: node.ipvs_strict_arp,
    };
    config.policy_file = (!node.no_network_policy).then(|| paths.policies_file());
    config.linux_containers = node.containerd_socket.exists();
    config.stub_domains.clone_from(&node.stub_domains);
    config.node_network = node.node_network.into();
    config.wireguard_key = paths.wireguard_key();
    config.wireguard_port = node.wireguard_port;
    config.check()?;
    let isolation = Isolation(config.isolation.clone());
    let deps = cox_network::Deps {
        client: identity.client.clone(),
        informers: identity.informers.clone(),
    };
    let run = cox_network::run(config, deps, components.cancellation());
    components.spawn("network", async move {
        run.await;
        Ok(())
    });
    Ok((!node.no_network_policy).then_some(isolation))
}

/// Starts the gateway for requests from outside as one of `components`.
pub(crate) fn run_gateway(
    node: &NodeArgs,
    gateway_api: bool,
    activator: bool,
    client: kube::Client,
    informers: Informers,
    components: &mut Components,
) -> Result<()> {
    let choice = |port: Option<u16>| {
        let chosen = port.map(cox_gateway::Choice::Exactly);
        chosen.unwrap_or(cox_gateway::Choice::Usual)
    };
    // Endpoints may not have loopback addresses but those of Pods: the first of their range, which no Pod gets.
    let ranges = PodRanges::of(node)?;
    let base = ranges.ipv4().and_then(|range| range.split('/').next());
    let base = base.and_then(|ip| ip.parse().ok());
    let config = cox_gateway::Config {
        node_name: node_name(node)?,
        node_ip: node.node_ip,
        gateway_api,
        activator,
        activator_ip: Some(node.node_ip).filter(|ip| !ip.is_loopback()).or(base),
        http: choice(node.ingress_http_port),
        https: choice(node.ingress_https_port),
    };
    let deps = cox_gateway::Deps {
        client,
        informers,
        clock: Arc::new(SystemClock),
    };
    let run = cox_gateway::run(config, deps, components.cancellation());
    components.spawn("gateway", async move {
        run.await;
        Ok(())
    });
    Ok(())
}

/// A node that took requests from outside in an earlier start and does not now.
pub(crate) fn retire_gateway(
    node: &NodeArgs,
    client: kube::Client,
    components: &mut Components,
) -> Result<()> {
    let retiring = cox_gateway::retire(client, node_name(node)?);
    let cancel = components.cancellation();
    components.spawn("gateway", async move {
        cancel.run_until_cancelled(retiring).await;
        cancel.cancelled().await;
        Ok(())
    });
    Ok(())
}

/// The name under which the node registers.
pub(crate) fn node_name(node: &NodeArgs) -> Result<String> {
    if let Some(name) = &node.node_name {
        return Ok(name.clone());
    }
    let uname = rustix::system::uname();
    let name = uname
        .nodename()
        .to_str()
        .context("the machine's host name is not text: give one with --node-name")?;
    Ok(name.to_lowercase())
}

/// Names and addresses that the node's certificate is valid for.
pub(crate) fn sans(name: &str, node: &NodeArgs) -> Vec<String> {
    vec![name.to_owned(), node.node_ip.to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_each_kind() {
        for (text, expected) in [
            ("10.1.0.0/24", Some((Some("10.1.0.0/24"), None))),
            (
                "10.1.0.0/24,fd00::/64",
                Some((Some("10.1.0.0/24"), Some("fd00::/64"))),
            ),
            (
                "fd00::/64, 10.1.0.0/24",
                Some((Some("10.1.0.0/24"), Some("fd00::/64"))),
            ),
            ("fd00::/64", Some((None, Some("fd00::/64")))),
            ("10.1.0.0/24,10.2.0.0/24", None),
            ("fd00::/64,fd01::/64", None),
            ("10.1.0.0/24,fd00::/64,fd01::/64", None),
        ] {
            let parsed = PodRanges::parse(text);
            let found = parsed.as_ref().map(|ranges| (ranges.ipv4(), ranges.ipv6()));
            assert_eq!(found, expected, "{text}");
            if let Some(parsed) = parsed {
                let order = parsed.all.join(",");
                assert_eq!(order, text.replace(' ', ""), "in their order");
            }
        }
    }
}
