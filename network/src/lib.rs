//! The network of a node beyond its Pods' own: Services and names.
//!
//! Inputs: [`Config`], [`Deps`] (services, endpoint slices, nodes, this node's Pods). Outputs: the proxy's rules in the kernel or
//! listeners in this process, cluster DNS on its well-known address, and the file from which the runtime shim knows Services (for
//! Pods that have no network of the kernel's). Tasks: one that syncs, one for DNS, one for policies, one for routes to other nodes. It
//! writes nothing to the API server but events and its node's WireGuard key, and leaves the kernel's rules in place when it ends: Pods go on without it.

#![warn(missing_docs)]

mod dns;
mod health;
#[cfg(test)]
mod lab;
mod netlink;
mod nft;
mod nodes;
mod plan;
mod policy;
mod proxy;
mod sockets;
mod table;
mod view;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cox_client::events::{EventType, Recorder};
use cox_client::{Informer, Informers, Subscription, SystemClock};
use k8s_openapi::api::core::v1::{EventSource, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use dns::forward::Forwarder;
pub use dns::forward::{StubDomain, StubDomainError};
use dns::server::{Dns, Listeners};
use health::HealthPorts;
pub use nodes::NodeNetwork;
pub use nodes::wireguard::PORT as WIREGUARD_PORT;
use plan::{Planner, Rule};
pub use policy::Isolation;
pub use proxy::ipvs::IpvsSettings;
use proxy::userspace::Problem;
use proxy::{Around, Proxy, ProxyError};
use sockets::OwnRanges;
use table::TableFile;
use view::View;

/// Changes that come together are one sync.
const SYNC_PAUSE: Duration = Duration::from_millis(10);
/// After a sync that failed, and between attempts to read what is needed at start.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks that the kernel's own events ask for.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
const DNS_PORT: u16 = 53;

/// How Services are brought to their endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// In the kernel where Pods with a network namespace need it and this process may; else in user space.
    #[default]
    Auto,
    /// By the kernel's nftables, through the program `nft`.
    Nftables,
    /// By the kernel, through `iptables-restore`.
    Iptables,
    /// By the kernel's virtual servers (IPVS).
    Ipvs,
    /// By listeners of this process.
    Userspace,
    /// By somebody else; the shim still learns of Services.
    None,
}

/// What the network of a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node_name: String,
    /// Its address: node ports are open there; everywhere, unless it is a loopback address.
    pub node_ip: IpAddr,
    /// The proxy.
    pub mode: ProxyMode,
    /// How [`ProxyMode::Ipvs`] behaves.
    pub ipvs: IpvsSettings,
    /// Where the runtime shim looks for Services.
    pub table_file: PathBuf,
    /// Where it looks for NetworkPolicies; `None`: somebody else holds them.
    pub policy_file: Option<PathBuf>,
    /// Who starts Pods here asks by it for policies to hold first. Nobody answers without `policy_file`.
    pub isolation: Isolation,
    /// Whether Pods with a network namespace may run here: then [`ProxyMode::Auto`] may change the node's network.
    pub linux_containers: bool,
    /// Their bridge.
    pub bridge: String,
    /// Whether this node answers for the cluster's DNS.
    pub dns: bool,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Names whom to ask for other names.
    pub resolv_conf: PathBuf,
    /// Domains that others know.
    pub stub_domains: Vec<StubDomain>,
    /// How Pods reach Pods of other nodes.
    pub node_network: NodeNetwork,
    /// Where the node keeps its key for [`NodeNetwork::Wireguard`]; made when it is needed first.
    pub wireguard_key: PathBuf,
    /// Where its WireGuard listens; the others are told.
    pub wireguard_port: u16,
}

impl Config {
    /// The usual values.
    #[must_use]
    pub fn new(node_name: &str, node_ip: IpAddr, table_file: PathBuf) -> Self {
        Self {
            node_name: node_name.to_owned(),
            node_ip,
            wireguard_key: table_file.with_file_name("wireguard.key"),
            mode: ProxyMode::Auto,
            ipvs: IpvsSettings::default(),
            table_file,
            policy_file: None,
            isolation: Isolation::default(),
            linux_containers: false,
            bridge: "cox0".into(),
            dns: true,
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            stub_domains: Vec::new(),
            node_network: NodeNetwork::None,
            wireguard_port: WIREGUARD_PORT,
        }
    }

    /// Whether this node can do what it is told, before anything is started.
    ///
    /// # Errors
    /// When its kernel or this process's rights do not allow it.
    pub fn check(&self) -> Result<(), Unsupported> {
        const IPVS: &str = "the proxy mode ipvs";
        const WIREGUARD: &str = "the node network wireguard";
        let ipvs = (self.mode == ProxyMode::Ipvs).then_some((IPVS, ["ip", "nft"]));
        let wireguard = self.node_network == NodeNetwork::Wireguard;
        let wireguard = wireguard.then_some((WIREGUARD, ["ip", "bridge"]));
        for (what, programs) in ipvs.into_iter().chain(wireguard) {
            if !rights() {
                return Err(Unsupported::Rights(what));
            }
            if let Some(program) = programs.into_iter().find(|name| !nft::has_program(name)) {
                return Err(Unsupported::Program(what, program));
            }
        }
        if ipvs.is_some() && !proxy::ipvs::is_there() {
            return Err(Unsupported::Kernel(IPVS, "IPVS (module ip_vs)"));
        }
        if wireguard.is_some() && !nodes::wireguard::is_there() {
            return Err(Unsupported::Kernel(
                WIREGUARD,
                "WireGuard (module wireguard)",
            ));
        }
        Ok(())
    }
}

/// Why a node cannot do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// Not root.
    #[error("{0} needs the right to change the node's network (CAP_NET_ADMIN)")]
    Rights(&'static str),
    /// A program is missing.
    #[error("{0} needs the program {1}, which is not installed")]
    Program(&'static str, &'static str),
    /// A part of the kernel is missing.
    #[error("{0} needs {1}, which the kernel of this node does not have")]
    Kernel(&'static str, &'static str),
}

/// What it works with.
#[derive(Clone)]
pub struct Deps {
    /// For what is read once.
    pub client: kube::Client,
    /// Reads.
    pub informers: Informers,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}

/// The address of the cluster's DNS: that of the Service `kube-dns`, if there is one.
///
/// # Errors
/// When the API server does not say.
pub async fn cluster_dns(client: &kube::Client) -> Result<Option<IpAddr>, kube::Error> {
    let services = kube::Api::<Service>::namespaced(client.clone(), "kube-system");
    let service = services.get_opt("kube-dns").await?;
    Ok(service.and_then(|service| view::cluster_ips(&service).first().copied()))
}

/// Runs until `cancel` is cancelled.
pub async fn run(config: Config, deps: Deps, cancel: CancellationToken) {
    let source = EventSource {
        component: Some("kube-proxy".to_owned()),
        host: Some(config.node_name.clone()),
    };
    let clock = Arc::new(SystemClock);
    let events = Recorder::on_host(deps.client.clone(), source, clock, &cancel);
    cancel
        .run_until_cancelled(Box::pin(serve(config, deps, events)))
        .await;
}

async fn serve(config: Config, deps: Deps, events: Recorder) {
    let ranges = ranges(&deps.client).await;
    let dns_ip = loop {
        match cluster_dns(&deps.client).await {
            Ok(ip) => break ip.filter(|_| config.dns),
            Err(error) => {
                tracing::debug!(%error, "The DNS Service cannot be read yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    };
    let sources = Sources::new(&deps.informers, &config);
    sources.synced().await;
    let view = Arc::new(RwLock::new(Arc::new(View::default())));
    let (proxy, own) = Proxy::start(&config, &ranges).await;
    let (dns_addr, dns) = start_dns(&config, dns_ip, &own, Arc::clone(&view));
    let policies = keep_policies(&config, &deps, dns_addr);
    let nodes = keep_nodes(&config, &deps);
    let syncing = Syncing {
        table: TableFile::new(config.table_file.clone()),
        config,
        proxy,
        planner: Planner::default(),
        sources,
        view,
        dns_addr,
        health: HealthPorts::default(),
        events,
    };
    tokio::join!(syncing.run(), dns, policies, nodes);
}

/// Keeps routes to the Pods of other nodes, where this node may.
fn keep_nodes(config: &Config, deps: &Deps) -> impl Future<Output = ()> + use<> {
    let able = rights() && nft::has_program("ip") && nft::has_program("bridge");
    let settings = nodes::Settings {
        node: config.node_name.clone(),
        bridge: config.bridge.clone(),
        mode: config.node_network,
        key_file: config.wireguard_key.clone(),
        port: config.wireguard_port,
    };
    let Deps { client, informers } = deps.clone();
    async move {
        if able && settings.mode != NodeNetwork::None {
            nodes::run(settings, informers, client).await;
        }
        std::future::pending().await
    }
}

/// Holds NetworkPolicies, where this node is to.
fn keep_policies(
    config: &Config,
    deps: &Deps,
    dns: Option<SocketAddr>,
) -> impl Future<Output = ()> + use<> {
    let told = config.policy_file.clone().map(|file| policy::Config {
        node: config.node_name.clone(),
        file,
        in_kernel: config.linux_containers && rights() && nft::has_program("nft"),
        dns,
        isolation: config.isolation.clone(),
    });
    let informers = deps.informers.clone();
    async move {
        match told {
            Some(told) => policy::run(told, informers).await,
            None => std::future::pending().await,
        }
    }
}

/// The ranges of Service addresses, read once.
async fn ranges(client: &kube::Client) -> Vec<String> {
    let cidrs = kube::Api::<ServiceCIDR>::all(client.clone());
    loop {
        match cidrs.list(&ListParams::default()).await {
            Ok(list) => {
                let specs = list.items.into_iter().filter_map(|cidr| cidr.spec?.cidrs);
                return specs.flatten().collect();
            }
            Err(error) => {
                tracing::debug!(%error, "The ranges of Service addresses cannot be read yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Opens the sockets of DNS: on its well-known address where that is allowed, else on a free port that the shim is told.
fn start_dns(
    config: &Config,
    ip: Option<IpAddr>,
    own: &OwnRanges,
    view: Arc<RwLock<Arc<View>>>,
) -> (Option<SocketAddr>, impl Future<Output = ()> + use<>) {
    let mut listeners = None;
    if let Some(ip) = ip {
        let free = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        for addr in [SocketAddr::new(ip, DNS_PORT), free] {
            match Listeners::open(addr, own) {
                Ok(open) => {
                    listeners = Some(open);
                    break;
                }
                Err(error) => {
                    tracing::debug!(%addr, %error, "Names are not answered on this address")
                }
            }
        }
        if listeners.is_none() {
            tracing::error!("The cluster's DNS finds no address to listen on");
        }
    }
    let addr = listeners.as_ref().and_then(|open| open.addr().ok());
    if let Some(addr) = addr {
        tracing::info!(%addr, "Answering for the cluster's DNS");
    }
    let dns = Arc::new(Dns {
        view,
        domain: config.cluster_domain.clone(),
        forwarder: Forwarder::new(config.resolv_conf.clone(), config.stub_domains.clone()),
    });
    let run = async move {
        match listeners {
            Some(open) => dns.serve(open).await,
            None => std::future::pending().await,
        }
    };
    (addr, run)
}

/// Whether this process may change the node's network.
pub(crate) fn rights() -> bool {
    const NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << NET_ADMIN) != 0)
}

/// What is read.
#[derive(Debug)]
struct Sources {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    /// Where the addresses of other nodes matter.
    all_nodes: Option<Informer<Node>>,
    pods: Informer<Pod>,
}

impl Sources {
    fn new(informers: &Informers, config: &Config) -> Self {
        let node = &config.node_name;
        Self {
            services: informers.of(),
            slices: informers.of(),
            // The same informers as the kubelet's: a watch each for both.
            nodes: informers.of_selected(&format!("metadata.name={node}")),
            all_nodes: (config.mode == ProxyMode::Ipvs).then(|| informers.of()),
            pods: informers.of_selected(&format!("spec.nodeName={node}")),
        }
    }

    async fn synced(&self) {
        tokio::join!(
            self.services.synced(),
            self.slices.synced(),
            self.nodes.synced(),
            async {
                if let Some(nodes) = &self.all_nodes {
                    nodes.synced().await;
                }
            }
        );
    }

    /// Addresses of nodes but `own`, where they matter.
    fn other_nodes(&self, own: &str) -> BTreeSet<IpAddr> {
        let nodes = self.all_nodes.iter().flat_map(Informer::list);
        let others = nodes.filter(|node| node.metadata.name.as_deref() != Some(own));
        let statuses = others.filter_map(|node| node.status.clone());
        let addresses = statuses.flat_map(|status| status.addresses.unwrap_or_default());
        addresses
            .filter_map(|address| address.address.parse().ok())
            .collect()
    }
}

/// The one that brings everything to the present state.
struct Syncing {
    config: Config,
    proxy: Proxy,
    planner: Planner,
    table: TableFile,
    sources: Sources,
    view: Arc<RwLock<Arc<View>>>,
    dns_addr: Option<SocketAddr>,
    health: HealthPorts,
    events: Recorder,
}

impl Syncing {
    async fn run(mut self) {
        let mut services = self.sources.services.subscribe();
        let mut slices = self.sources.slices.subscribe();
        let mut nodes = self.sources.nodes.subscribe();
        let mut pods = self.sources.pods.subscribe();
        loop {
            // Each arm only waits: a change is taken when it is returned.
            let open = tokio::select! {
                change = services.next() => change.is_some(),
                change = slices.next() => change.is_some(),
                change = nodes.next() => change.is_some(),
                change = pods.next() => {
                    // The first Pod with a namespace brings the bridge.
                    self.proxy.prepare_bridge(&self.config.bridge);
                    if change.is_some() {
                        continue;
                    }
                    false
                }
                () = self.proxy.due() => true,
            };
            if !open {
                // Informers end only when everything does.
                return std::future::pending().await;
            }
            drain(&mut services);
            drain(&mut slices);
            drain(&mut nodes);
            while let Err(error) = self.sync().await {
                tracing::warn!(%error, "Services could not be brought up to date; trying again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            tokio::time::sleep(SYNC_PAUSE).await;
        }
    }

    async fn sync(&mut self) -> Result<(), SyncError> {
        let Sources {
            services,
            slices,
            nodes,
            ..
        } = &self.sources;
        let view = Arc::new(View::read(services, slices, nodes, &self.config.node_name));
        *self.view.write() = Arc::clone(&view);
        if !matches!(self.proxy, Proxy::None) {
            self.health.sync(&view, self.config.node_ip);
        }
        let rules = self.planner.rules(&view);
        self.table.write(&rules, self.dns_addr)?;
        let served = self.dns_addr.is_some();
        let passed: Vec<Arc<Rule>> = rules
            .into_iter()
            .filter(|rule| !(served && table::is_dns(rule) && rule.endpoints.is_empty()))
            .collect();
        let around = Around {
            node_ip: self.config.node_ip,
            bridge: &self.config.bridge,
            pods: view.node.pods.clone(),
            others: self.sources.other_nodes(&self.config.node_name),
            dns: self.dns_addr.map(|addr| addr.ip()),
        };
        for problem in self.proxy.sync(&passed, &around).await? {
            self.say(&view, &problem);
        }
        tracing::debug!(rules = passed.len(), "Services are up to date");
        Ok(())
    }
}

impl Syncing {
    /// Tells the users of a Service.
    fn say(&self, view: &View, problem: &Problem) {
        let name = problem.rule.split(':').next().unwrap_or_default();
        let key = name
            .split_once('/')
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let Some(service) = key.and_then(|key| view.services.get(&key)) else {
            return;
        };
        let node = &self.config.node_name;
        let message = format!("On node {node}: {}", problem.message);
        self.events
            .event_on(&**service, EventType::Warning, "CannotServe", message);
    }
}

fn drain<K>(changes: &mut Subscription<K>) {
    while changes.try_next().is_some() {}
}

/// Why a sync failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("the runtime's table cannot be written: {0}")]
    Table(#[from] std::io::Error),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Policies(#[from] nft::NftError),
}
