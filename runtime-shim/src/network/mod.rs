//! The Pods' network as guests see it: one seam between what a guest asks for and the sockets of the host.
//!
//! *Virtual* network (design D8): no namespace; each Pod has an address of the node's range, which is loopback on Linux, so nothing
//! has to be set up and no rights are needed. A guest that binds `0.0.0.0` or `localhost` listens on its Pod's address alone; what
//! it connects to sees the Pod's address as the source; `localhost` is its own Pod. The host's own loopback services are out of
//! reach, except those that the configuration names. *netns*: the Pod has a network namespace, and its guests' sockets are made
//! inside it ([`netns`]); nothing is mapped. *Host* network (`hostNetwork: true`) maps nothing either.

mod addresses;
pub(crate) mod bridge;
pub(crate) mod cni;
mod dns;
pub(crate) mod host_ports;
mod http_client;
mod links;
mod masquerade;
mod netlink;
mod netns;
mod policies;
mod resolver;
mod services;
mod sockets;
mod sockets3;
mod told;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

pub(crate) use addresses::{AddressPool, Cidr, Cidr6};
pub use addresses::{Cidr6Error, CidrError};
pub(crate) use bridge::{BridgeNetwork, veth_name};
pub(crate) use host_ports::{HostPorts, plan_host_ports};
pub(crate) use http_client::PodHttp;
pub(crate) use links::{Links, POD_INTERFACE};
pub(crate) use netns::{EachPollInside, Netns};
pub(crate) use policies::Policies;
pub(crate) use resolver::{DnsConfig, ResolveError, Resolver};
pub(crate) use services::{Found, Services};
pub(crate) use sockets::shadow_sockets;
pub(crate) use sockets3::shadow_sockets as shadow_sockets_03;

/// Which addresses are Pods, and which of the host's own are open to them.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) cluster: Vec<Cidr>,
    pub(crate) host_services: Vec<SocketAddr>,
    /// What the node's proxy says of Services.
    pub(crate) services: Services,
    /// What it says of NetworkPolicies.
    pub(crate) policies: Policies,
    /// PEM files of authorities that guests' HTTPS clients trust besides the system's.
    pub(crate) tls_ca_files: Vec<PathBuf>,
    /// Made from them when the first guest needs it.
    pub(crate) tls: OnceLock<Option<Arc<rustls::ClientConfig>>>,
}

/// Where a Pod's sockets live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The Pod's own address in the virtual network.
    Virtual(Ipv4Addr),
    /// A network namespace of the Pod's own; addresses mean there what they say.
    Netns(Netns),
    /// The host's network, unmapped.
    Host,
}

/// The network of one sandbox.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    place: Place,
    policy: Arc<Policy>,
    resolver: Arc<Resolver>,
    /// A hosts file that a container brings along, such as the one that kubelets write.
    hosts: Option<PathBuf>,
    /// By endpoint: the Service's address under which it was asked for.
    asked: Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>,
}

/// Endpoints that are shown under their Service's address at the same time; one more, and it starts anew.
const ASKED_MAX: usize = 4096;

/// For which kind of socket an address is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// A guest asked for an address that is not its to use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error("{0} is not an address of this Pod")]
    Bind(IpAddr),
    #[error("{0} belongs to the host, not to a Pod")]
    HostLoopback(SocketAddr),
    #[error("{0} is a Service that has no endpoint")]
    NoEndpoint(SocketAddr),
    #[error("a network policy does not allow to talk to {0}")]
    Policy(SocketAddr),
}

impl PodNetwork {
    pub(crate) fn new(place: Place, policy: Arc<Policy>, resolver: Resolver) -> Self {
        Self {
            place,
            policy,
            resolver: Arc::new(resolver),
            hosts: None,
            asked: Arc::default(),
        }
    }

    /// The same network for a container that mounts a hosts file of its own.
    pub(crate) fn with_hosts(&self, file: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            place: self.place.clone(),
            policy: Arc::clone(&self.policy),
            resolver: Arc::clone(&self.resolver),
            hosts: Some(file),
            asked: Arc::clone(&self.asked),
        })
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The Pod's address in the virtual network; elsewhere its sockets say `0.0.0.0` and mean it.
    pub(crate) fn virtual_ip(&self) -> Option<Ipv4Addr> {
        match self.place {
            Place::Virtual(ip) => Some(ip),
            Place::Netns(_) | Place::Host => None,
        }
    }

    /// The namespace in which sockets have to be made, where there is one.
    pub(crate) fn netns(&self) -> Option<&Netns> {
        match &self.place {
            Place::Netns(netns) => Some(netns),
            Place::Virtual(_) | Place::Host => None,
        }
    }

    /// A TCP socket of the Pod's, for the family of `addr`.
    pub(crate) fn tcp_socket(&self, addr: SocketAddr) -> io::Result<TcpSocket> {
        self.make(|| {
            if addr.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
        })
    }

    /// Runs `act`, which makes a socket and does not wait, where the Pod's sockets belong.
    pub(crate) fn make<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.netns() {
            Some(netns) => netns.run(act)?,
            None => act(),
        }
    }

    /// Connects to what listens on `port` in the Pod, as one of its own would to `localhost`.
    pub(crate) async fn connect_local(&self, port: u16) -> io::Result<TcpStream> {
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let refused = match self.connect_to(v4).await {
            Ok(stream) => return Ok(stream),
            Err(err) => err,
        };
        if self.virtual_ip().is_some() {
            return Err(refused);
        }
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        self.connect_to(v6).await.map_err(|_| refused)
    }

    /// Connects to `wanted` as a guest would.
    async fn connect_to(&self, wanted: SocketAddr) -> io::Result<TcpStream> {
        let remote = self
            .map_remote(wanted, Protocol::Tcp)
            .map_err(|err| io::Error::new(io::ErrorKind::ConnectionRefused, err))?;
        self.dial(remote).await
    }

    /// Connects to `remote` (already mapped) from the Pod's address.
    async fn dial(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.tcp_socket(remote)?;
        if let Some(source) = self.source_for(remote) {
            socket.bind(source)?;
        }
        let stream = socket.connect(remote).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Addresses of `name` as the container sees names, in the order to try them.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Some(file) = &self.hosts {
            // Read each time: kubelets rewrite it in place.
            let text = tokio::fs::read_to_string(file).await.unwrap_or_default();
            let found = resolver::in_hosts(&text, name);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let place = |server, protocol| self.map_server(server, protocol);
        self.resolver.resolve_via(name, self.netns(), &place).await
    }

    /// Where a name server of the Pod's really is: the cluster's DNS is a Service too.
    fn map_server(&self, server: SocketAddr, protocol: Protocol) -> SocketAddr {
        match self.find_service(server, protocol) {
            Found::Endpoint(endpoint) => endpoint,
            Found::NoService | Found::NoEndpoint => server,
        }
    }

    /// In a namespace the kernel brings Services to their endpoints; elsewhere the seam does.
    fn find_service(&self, wanted: SocketAddr, protocol: Protocol) -> Found {
        let client = match &self.place {
            Place::Netns(_) => return Found::NoService,
            Place::Virtual(ip) => IpAddr::V4(*ip),
            Place::Host => Ipv4Addr::UNSPECIFIED.into(),
        };
        self.policy.services.find(client, wanted, protocol)
    }

    /// The loopback address that is this Pod's alone: what a guest of a virtual Pod binds to `localhost` listens there, and no
    /// other Pod may connect to it.
    fn private(ip: Ipv4Addr) -> Ipv4Addr {
        const BASE: u32 = 0x7fc0_0000;
        const OWN: u32 = 0x003f_ffff;
        (BASE | (u32::from(ip) & OWN)).into()
    }

    /// What the guest is told that an address is: it never sees the one behind its `localhost`.
    pub(crate) fn show(&self, real: SocketAddr) -> SocketAddr {
        match (self.virtual_ip(), real.ip()) {
            (Some(ip), IpAddr::V4(real_ip)) if real_ip == Self::private(ip) => {
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), real.port())
            }
            _ => self.asked.lock().get(&real).copied().unwrap_or(real),
        }
    }

    /// The address to listen on when the guest asks for `wanted`.
    pub(crate) fn map_bind(&self, wanted: SocketAddr) -> Result<SocketAddr, Refused> {
        let Some(ip) = self.virtual_ip() else {
            return Ok(wanted);
        };
        match wanted.ip() {
            IpAddr::V4(asked) if asked.is_unspecified() || asked == ip => {
                Ok(SocketAddr::new(ip.into(), wanted.port()))
            }
            IpAddr::V4(asked) if asked == Ipv4Addr::LOCALHOST || asked == Self::private(ip) => {
                Ok(SocketAddr::new(Self::private(ip).into(), wanted.port()))
            }
            // The Pod has no IPv6 address: `[::]` would be every address of the host.
            other => Err(Refused::Bind(other)),
        }
    }

    /// The address to talk to when the guest asks for `wanted`.
    pub(crate) fn map_remote(
        &self,
        wanted: SocketAddr,
        protocol: Protocol,
    ) -> Result<SocketAddr, Refused> {
        let remote = self.locate(wanted, protocol)?;
        // In a namespace the kernel holds the policies, and Pods of the host's network have none.
        match self.virtual_ip() {
            Some(ip)
                if remote.ip() != Self::private(ip)
                    && !self.policy.policies.allow(ip.into(), remote, protocol) =>
            {
                Err(Refused::Policy(wanted))
            }
            Some(_) | None => Ok(remote),
        }
    }

    fn locate(&self, wanted: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Refused> {
        let canonical = SocketAddr::new(wanted.ip().to_canonical(), wanted.port());
        match self.find_service(canonical, protocol) {
            Found::Endpoint(endpoint) => {
                let mut asked = self.asked.lock();
                if asked.len() >= ASKED_MAX {
                    asked.clear();
                }
                asked.insert(endpoint, canonical);
                return Ok(endpoint);
            }
            Found::NoEndpoint => return Err(Refused::NoEndpoint(wanted)),
            Found::NoService => {}
        }
        let Some(ip) = self.virtual_ip() else {
            return Ok(wanted);
        };
        if self.policy.host_services.contains(&canonical) {
            return Ok(wanted);
        }
        match canonical.ip() {
            IpAddr::V4(asked) if asked == Ipv4Addr::LOCALHOST => {
                let private = SocketAddr::new(Self::private(ip).into(), wanted.port());
                Ok(if is_listened_on(private, protocol) {
                    private
                } else {
                    SocketAddr::new(ip.into(), wanted.port())
                })
            }
            IpAddr::V4(asked) if asked == Self::private(ip) => Ok(canonical),
            IpAddr::V4(asked) if asked.is_unspecified() => Err(Refused::HostLoopback(wanted)),
            IpAddr::V4(asked)
                if asked.is_loopback()
                    && !self.policy.cluster.iter().any(|cidr| cidr.contains(asked)) =>
            {
                Err(Refused::HostLoopback(wanted))
            }
            IpAddr::V6(asked) if asked.is_loopback() || asked.is_unspecified() => {
                Err(Refused::HostLoopback(wanted))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => Ok(wanted),
        }
    }

    /// The source to bind before talking to `remote` (already mapped): the Pod's address, for what is local to the node.
    pub(crate) fn source_for(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let (ip, IpAddr::V4(remote)) = (self.virtual_ip()?, remote.ip()) else {
            return None;
        };
        // A loopback address means nothing to Pods behind the bridge: to them the node is the source.
        let inside = remote.is_loopback()
            || !ip.is_loopback() && self.policy.cluster.iter().any(|cidr| cidr.contains(remote));
        let source = if remote == Self::private(ip) {
            remote
        } else {
            ip
        };
        inside.then(|| SocketAddr::new(source.into(), 0))
    }

    /// Gives a guest its sockets. The check behind them is the second line: the mapping in [`sockets`] comes first.
    pub(crate) fn grant(self: &Arc<Self>, wasi: &mut WasiCtxBuilder) {
        let network = Arc::clone(self);
        wasi.allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true)
            .socket_addr_check(move |addr, purpose| {
                let allowed = network.allows(addr, purpose);
                Box::pin(async move { allowed })
            });
    }

    fn allows(&self, addr: SocketAddr, purpose: SocketAddrUse) -> bool {
        match purpose {
            // Port 0 of the unspecified address is the implicit bind of a connect.
            SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
                (addr.ip().is_unspecified() && addr.port() == 0) || self.map_bind(addr) == Ok(addr)
            }
            SocketAddrUse::TcpListen => self.map_bind(addr) == Ok(addr),
            SocketAddrUse::TcpConnect => self.may_reach(addr, Protocol::Tcp),
            SocketAddrUse::UdpSend => self.may_reach(addr, Protocol::Udp),
            SocketAddrUse::TcpAccept | SocketAddrUse::UdpReceive => true,
        }
    }
}

impl PodNetwork {
    /// Whether an address that was mapped already is open to the Pod.
    fn may_reach(&self, addr: SocketAddr, protocol: Protocol) -> bool {
        let endpoint = self.policy.services.is_endpoint(addr);
        match self.virtual_ip() {
            Some(ip) if endpoint => self.policy.policies.allow(ip.into(), addr, protocol),
            Some(_) | None => endpoint || self.map_remote(addr, protocol) == Ok(addr),
        }
    }
}

/// Whether something listens at `addr`, which is one of this host's: the kernel's own table, asked by trying to take its place.
fn is_listened_on(addr: SocketAddr, protocol: Protocol) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let taken = || -> rustix::io::Result<()> {
        let probe = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        if protocol == Protocol::Tcp {
            // Connections of an earlier listener that are still closing do not count, only a listener does.
            sockopt::set_socket_reuseaddr(&probe, true)?;
        }
        bind(&probe, &addr)
    };
    taken() == Err(rustix::io::Errno::ADDRINUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodNetwork {
        let policy = Policy {
            cluster: vec!["127.64.0.0/10".parse().unwrap()],
            host_services: vec!["127.0.0.1:6443".parse().unwrap()],
            ..Policy::default()
        };
        PodNetwork::new(
            Place::Virtual(Ipv4Addr::new(127, 64, 0, 7)),
            Arc::new(policy),
            Resolver::default(),
        )
    }

    #[test]
    fn binding() {
        let pod = pod();
        for (case, wanted, expected) in [
            (
                "any address is the Pod's",
                "0.0.0.0:80",
                Some("127.64.0.7:80"),
            ),
            (
                "localhost is an address of the Pod's alone",
                "127.0.0.1:80",
                Some("127.192.0.7:80"),
            ),
            ("another Pod's localhost", "127.192.0.8:80", None),
            ("its own", "127.64.0.7:80", Some("127.64.0.7:80")),
            ("another Pod's", "127.64.0.8:80", None),
            ("the host's", "10.0.0.1:80", None),
            ("every IPv6 address of the host", "[::]:80", None),
        ] {
            let mapped = pod.map_bind(wanted.parse().unwrap()).ok();
            assert_eq!(
                mapped,
                expected.map(|text| text.parse().unwrap()),
                "case: {case}"
            );
        }
    }

    #[test]
    fn connecting() {
        let pod = pod();
        for (case, wanted, expected) in [
            (
                "localhost is the own Pod",
                "127.0.0.1:80",
                Some("127.64.0.7:80"),
            ),
            ("another Pod", "127.64.9.8:80", Some("127.64.9.8:80")),
            ("another Pod's localhost", "127.192.9.8:80", None),
            ("outside", "93.184.216.34:80", Some("93.184.216.34:80")),
            (
                "a named service of the host",
                "127.0.0.1:6443",
                Some("127.0.0.1:6443"),
            ),
            ("the host's resolver", "127.0.0.53:53", None),
            ("IPv6 loopback", "[::1]:80", None),
            ("IPv4 loopback in disguise", "[::ffff:127.0.0.53]:53", None),
        ] {
            let mapped = pod.map_remote(wanted.parse().unwrap(), Protocol::Tcp).ok();
            assert_eq!(
                mapped,
                expected.map(|text| text.parse().unwrap()),
                "case: {case}"
            );
        }
    }

    #[test]
    fn the_source_is_the_pod_inside_the_node_only() {
        let pod = pod();
        assert_eq!(
            pod.source_for("127.64.9.8:80".parse().unwrap()),
            Some("127.64.0.7:0".parse().unwrap())
        );
        assert_eq!(pod.source_for("93.184.216.34:80".parse().unwrap()), None);
    }
}
