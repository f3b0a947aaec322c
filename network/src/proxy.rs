//! Takes what comes to Services and brings it to their endpoints: in the kernel ([`nftables`], [`iptables`], [`ipvs`]) or in this
//! process ([`userspace`]). [`Proxy`] is the one that runs.

pub(crate) mod flows;
pub(crate) mod iptables;
pub(crate) mod ipvs;
pub(crate) mod nftables;
pub(crate) mod userspace;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use crate::nft::{NftError, has_program};
use crate::nodes::events::Watcher;
use crate::plan::Rule;
use crate::sockets::OwnRanges;
use crate::{Config, LOOK_PAUSE, ProxyMode, rights};
use iptables::Iptables;
use ipvs::{Ipvs, IpvsError};
use nftables::Nftables;
use userspace::{Problem, Userspace};

/// The proxy that runs.
#[derive(Debug)]
pub(crate) enum Proxy {
    Nftables(Nftables),
    Iptables(Iptables),
    /// And what tells of new addresses of the node.
    Ipvs(Box<Ipvs>, Option<Watcher>),
    Userspace(Userspace),
    None,
}

/// What a proxy has to know of its node.
#[derive(Clone, Debug)]
pub(crate) struct Around<'a> {
    pub(crate) node_ip: IpAddr,
    pub(crate) bridge: &'a str,
    /// Ranges of its Pods.
    pub(crate) pods: Vec<IpNet>,
    /// Addresses of other nodes.
    pub(crate) others: BTreeSet<IpAddr>,
    /// Where this node answers for names.
    pub(crate) dns: Option<IpAddr>,
}

/// What could not be done in the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error(transparent)]
    Program(#[from] NftError),
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
}

impl Proxy {
    /// The proxy, and which ranges of Service addresses are the node's own now.
    pub(crate) async fn start(config: &Config, ranges: &[String]) -> (Self, OwnRanges) {
        let routed: Vec<IpNet> = ranges
            .iter()
            .filter_map(|range| range.parse().ok())
            .filter(|range: &IpNet| !range.network().is_loopback())
            .collect();
        let able = config.linux_containers && rights() && has_program("nft");
        let mode = match config.mode {
            ProxyMode::Auto if !routed.is_empty() && able => ProxyMode::Nftables,
            ProxyMode::Auto => ProxyMode::Userspace,
            mode => mode,
        };
        let mut own = OwnRanges::default();
        // Without need nothing of the node's network is touched: Wasm Pods reach Services all the same.
        let kernels = [ProxyMode::Nftables, ProxyMode::Iptables, ProxyMode::Ipvs];
        if kernels.contains(&mode)
            || mode == config.mode && mode == ProxyMode::Userspace && rights()
        {
            for range in routed {
                match nftables::make_local(range).await {
                    Ok(()) => own.add(range),
                    Err(error) => {
                        tracing::warn!(%error, %range, "Service addresses cannot be made local to the node");
                    }
                }
            }
        }
        went_over(&config.table_file.with_file_name("proxy-mode"), mode).await;
        tracing::info!(?mode, ?ranges, "Services are served");
        let proxy = match mode {
            ProxyMode::Nftables => Self::Nftables(Nftables::new(&config.bridge)),
            ProxyMode::Iptables => Self::Iptables(Iptables::new(&config.bridge, None)),
            ProxyMode::Ipvs => {
                let proxy = Ipvs::new(&config.bridge, config.ipvs.clone(), None);
                let watcher = Watcher::open().inspect_err(|error| {
                    tracing::warn!(%error, "The kernel does not say when addresses change: node ports follow when a Service changes");
                });
                Self::Ipvs(Box::new(proxy), watcher.ok())
            }
            ProxyMode::Userspace => Self::Userspace(Userspace::on(own.clone())),
            ProxyMode::None | ProxyMode::Auto => Self::None,
        };
        (proxy, own)
    }

    pub(crate) async fn sync(
        &mut self,
        rules: &[Arc<Rule>],
        around: &Around<'_>,
    ) -> Result<Vec<Problem>, ProxyError> {
        let mut problems = Vec::new();
        match self {
            Self::Nftables(proxy) => proxy.sync(rules).await?,
            Self::Iptables(proxy) => proxy.sync(rules).await?,
            Self::Ipvs(proxy, _) => {
                problems = proxy.sync(rules, &around.others, around.dns).await?;
                proxy.drain()?;
            }
            Self::Userspace(proxy) => {
                proxy.pods.clone_from(&around.pods);
                problems = proxy.sync(rules, around.node_ip);
            }
            Self::None => {}
        }
        self.prepare_bridge(around.bridge);
        Ok(problems)
    }

    /// Called whenever the Pods' bridge may be new.
    pub(crate) fn prepare_bridge(&self, bridge: &str) {
        match self {
            Self::Nftables(_) | Self::Iptables(_) | Self::Ipvs(..) => {
                nftables::prepare_bridge(bridge);
            }
            Self::Userspace(_) | Self::None => {}
        }
    }

    /// Waits until a sync is due that no object asks for.
    ///
    /// # Cancel safety
    /// Safe: what is due then is looked at by the next sync.
    pub(crate) async fn due(&mut self) {
        let Self::Ipvs(proxy, watcher) = self else {
            return std::future::pending().await;
        };
        let changed = async {
            match watcher {
                Some(watcher) => watcher.changed().await,
                None => std::future::pending().await,
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        };
        if !proxy.is_draining() {
            return changed.await;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(ipvs::DRAIN_PAUSE) => {}
        }
    }
}

/// Removes what another mode of an earlier run left in the kernel: two that translate the same packets are one too many. `file` says
/// which one that was.
async fn went_over(file: &Path, mode: ProxyMode) {
    let name = format!("{mode:?}");
    let last = std::fs::read_to_string(file).unwrap_or_default();
    if last == name {
        return;
    }
    let removed: Result<(), ProxyError> = match last.as_str() {
        "Iptables" => iptables::remove(None).await.map_err(Into::into),
        "Nftables" => nftables::remove().await.map_err(Into::into),
        "Ipvs" => ipvs::remove(None).await.map_err(Into::into),
        _ => Ok(()),
    };
    if let Err(error) = removed {
        tracing::warn!(%error, last, "What the last mode of the proxy left in the kernel was not removed");
    }
    if let Err(error) = std::fs::write(file, name) {
        tracing::debug!(%error, "The proxy's mode is not remembered");
    }
}
