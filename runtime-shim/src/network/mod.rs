//! The Pods' network as guests see it: one seam between what a guest asks for and the sockets of the host.
//!
//! *Virtual* network (design D8): no namespace; each Pod has an address of the node's range, which is loopback on Linux, so nothing
//! has to be set up and no rights are needed; where the node has a range of IPv6 and may use it, one of those too
//! ([`pod_addresses`]). A guest that binds `0.0.0.0`, `::` or `localhost` listens on its Pod's address alone; what it connects to sees
//! the Pod's address as the source; `localhost` is its own Pod. The host's own loopback services are out of reach, except those that
//! the configuration names. *netns*: the Pod has a network namespace, and its guests' sockets are made
//! inside it ([`netns`]); nothing is mapped. *Host* network (`hostNetwork: true`) maps nothing either.

mod addresses;
pub(crate) mod bridge;
pub(crate) mod cni;
mod dns;
mod forwarding;
pub(crate) mod host_ports;
mod http_client;
mod links;
mod masquerade;
mod netlink;
mod netns;
mod pod_addresses;
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

pub(crate) use addresses::{AddressPool, Cidr, Cidr6, NodeRanges};
pub use addresses::{Cidr6Error, CidrError};
pub(crate) use bridge::{BridgeNetwork, veth_name};
pub(crate) use host_ports::{HostPorts, plan_host_ports};
pub(crate) use http_client::PodHttp;
pub(crate) use links::{Links, POD_INTERFACE};
pub(crate) use masquerade::{
    Family, Inside, Range as MasqueradeRange, ensure_masquerade, remove_masquerade,
};
pub(crate) use netns::{EachPollInside, Netns};
pub(crate) use pod_addresses::{PodAddresses, behind_localhost};
pub(crate) use policies::Policies;
pub(crate) use resolver::{DnsConfig, ResolveError, Resolver};
pub(crate) use services::{Found, Services};
pub(crate) use sockets::shadow_sockets;
pub(crate) use sockets3::shadow_sockets as shadow_sockets_03;

/// Which addresses are Pods, and which of the host's own are open to them.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) cluster: Vec<Cidr>,
    pub(crate) cluster6: Vec<Cidr6>,
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
    /// The Pod's own addresses in the virtual network.
    Virtual(PodAddresses),
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

    /// The Pod's addresses in the virtual network; elsewhere its sockets say `0.0.0.0` and mean it.
    pub(crate) fn virtual_ips(&self) -> Option<PodAddresses> {
        match self.place {
            Place::Virtual(addresses) => Some(addresses),
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
            Place::Virtual(addresses) => addresses.towards(wanted.ip()),
            Place::Host => Ipv4Addr::UNSPECIFIED.into(),
        };
        self.policy.services.find(client, wanted, protocol)
    }

    /// What the guest is told that an address is: it never sees the one behind its `localhost`.
    pub(crate) fn show(&self, real: SocketAddr) -> SocketAddr {
        match self.virtual_ips() {
            Some(own) if own.is_private(real.ip()) => {
                SocketAddr::new(pod_addresses::localhost(real.ip()), real.port())
            }
            _ => self.asked.lock().get(&real).copied().unwrap_or(real),
        }
    }

    /// The address to listen on when the guest asks for `wanted`.
    pub(crate) fn map_bind(&self, wanted: SocketAddr) -> Result<SocketAddr, Refused> {
        let Some(addresses) = self.virtual_ips() else {
            return Ok(wanted);
        };
        let asked = wanted.ip();
        let mapped = match addresses.like(asked) {
            Some(own) if asked.is_unspecified() || asked == own => {
                Some(SocketAddr::new(own, wanted.port()))
            }
            Some(_) if asked == pod_addresses::localhost(asked) || addresses.is_private(asked) => {
                addresses.private(asked, wanted.port())
            }
            Some(_) => None,
            // With IPv6 alone there is IPv4 behind `localhost`, as in every network namespace.
            None if asked.is_unspecified() || asked == pod_addresses::localhost(asked) => {
                addresses.private(asked, wanted.port())
            }
            None if addresses.is_private(asked) => Some(wanted),
            None => None,
        };
        mapped.ok_or(Refused::Bind(asked))
    }

    /// Where a socket for the kind of address of `like` listens that nobody bound: nowhere but in its Pod.
    pub(crate) fn any_port(&self, like: IpAddr) -> Result<Option<SocketAddr>, Refused> {
        match self.virtual_ips() {
            Some(addresses) => {
                let own = addresses.like(like).map(|own| SocketAddr::new(own, 0));
                let own = own.or_else(|| addresses.private(like, 0));
                Ok(Some(own.ok_or(Refused::Bind(like))?))
            }
            None => Ok(None),
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
        match self.virtual_ips() {
            Some(own) if !own.is_private(remote.ip()) && !self.allow(own, remote, protocol) => {
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
        let Some(own) = self.virtual_ips() else {
            return Ok(wanted);
        };
        if self.policy.host_services.contains(&canonical) {
            return Ok(wanted);
        }
        let asked = canonical.ip();
        if own.is_private(asked) {
            return own
                .private(asked, wanted.port())
                .ok_or(Refused::HostLoopback(wanted));
        }
        if asked == pod_addresses::localhost(asked) {
            let Some(private) = own.private(asked, wanted.port()) else {
                return Err(Refused::HostLoopback(wanted));
            };
            return Ok(match own.like(asked) {
                Some(ip) if !is_listened_on(private, protocol) => {
                    SocketAddr::new(ip, wanted.port())
                }
                Some(_) | None => private,
            });
        }
        let is_host = match (asked, wanted) {
            (IpAddr::V4(asked), _) => {
                asked.is_unspecified()
                    || asked.is_loopback()
                        && !self.policy.cluster.iter().any(|cidr| cidr.contains(asked))
            }
            (IpAddr::V6(_), SocketAddr::V6(wanted)) => pod_addresses::is_on_loopback(wanted),
            // What is no IPv6 address is not made one.
            (IpAddr::V6(_), SocketAddr::V4(_)) => true,
        };
        if is_host {
            Err(Refused::HostLoopback(wanted))
        } else {
            Ok(wanted)
        }
    }

    /// The source to bind before talking to `remote` (already mapped): the Pod's address, for what is local to the node.
    pub(crate) fn source_for(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let addresses = self.virtual_ips()?;
        if addresses.is_private(remote.ip()) {
            return addresses.private(remote.ip(), 0);
        }
        let own = addresses.like(remote.ip())?;
        // A loopback address means nothing to Pods behind the bridge: to them the node is the source.
        let inside = match remote.ip() {
            IpAddr::V4(remote) => {
                remote.is_loopback()
                    || !own.is_loopback()
                        && self.policy.cluster.iter().any(|cidr| cidr.contains(remote))
            }
            IpAddr::V6(remote) => self
                .policy
                .cluster6
                .iter()
                .any(|cidr| cidr.contains(remote)),
        };
        inside.then(|| SocketAddr::new(own, 0))
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
        match self.virtual_ips() {
            Some(own) if endpoint => self.allow(own, addr, protocol),
            Some(_) | None => endpoint || self.map_remote(addr, protocol) == Ok(addr),
        }
    }

    /// What the policies say of the Pod with the addresses `own`, and of `remote`.
    fn allow(&self, own: PodAddresses, remote: SocketAddr, protocol: Protocol) -> bool {
        let source = own.towards(remote.ip());
        self.policy.policies.allow(source, remote, protocol)
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
        let family = if addr.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let probe = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
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
        pod_of(None)
    }

    /// The same with an IPv6 address.
    fn dual() -> PodNetwork {
        pod_of(Some("fd00:64::7f40:7".parse().unwrap()))
    }

    /// With that alone.
    fn six() -> PodNetwork {
        let v6 = "fd00:64::7".parse().unwrap();
        of(PodAddresses::ipv6_alone(Ipv4Addr::new(0, 0, 0, 7), v6))
    }

    fn pod_of(v6: Option<Ipv6Addr>) -> PodNetwork {
        of(PodAddresses::new(Ipv4Addr::new(127, 64, 0, 7), v6))
    }

    fn of(addresses: PodAddresses) -> PodNetwork {
        let policy = Policy {
            cluster: vec!["127.64.0.0/10".parse().unwrap()],
            cluster6: vec![
                "fd00:60::/48".parse().unwrap(),
                "fd00:64::/64".parse().unwrap(),
            ],
            host_services: vec!["127.0.0.1:6443".parse().unwrap()],
            ..Policy::default()
        };
        PodNetwork::new(
            Place::Virtual(addresses),
            Arc::new(policy),
            Resolver::default(),
        )
    }

    #[test]
    fn binding() {
        let cases: [(&str, &str, Option<&str>); 7] = [
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
        ];
        check(&pod(), PodNetwork::map_bind, &cases);
        // With an IPv6 address it is the same for that.
        check(&dual(), PodNetwork::map_bind, &cases[..6]);
        let cases = [
            (
                "any address is the Pod's",
                "[::]:80",
                Some("[fd00:64::7f40:7]:80"),
            ),
            (
                "localhost is an address of the Pod's alone",
                "[::1]:80",
                Some("[fe80::636f:7800:7f40:7%1]:80"),
            ),
            (
                "another Pod's localhost",
                "[fe80::636f:7800:7f40:8%1]:80",
                None,
            ),
            (
                "its own",
                "[fd00:64::7f40:7]:80",
                Some("[fd00:64::7f40:7]:80"),
            ),
            ("another Pod's", "[fd00:64::7f40:8]:80", None),
            ("the host's", "[2001:db8::1]:80", None),
            ("IPv4 in disguise", "[::ffff:127.64.0.7]:80", None),
        ];
        check(&dual(), PodNetwork::map_bind, &cases);
        let cases = [
            ("IPv6 alone", "[::]:80", Some("[fd00:64::7]:80")),
            (
                "without IPv4 any address is localhost",
                "0.0.0.0:80",
                Some("127.192.0.7:80"),
            ),
            ("localhost", "127.0.0.1:80", Some("127.192.0.7:80")),
            ("IPv6's", "[::1]:80", Some("[fe80::636f:7800:0:7%1]:80")),
            ("its number is no address", "0.0.0.7:80", None),
            ("another Pod's localhost", "127.192.0.8:80", None),
            ("the host's", "10.0.0.1:80", None),
        ];
        check(&six(), PodNetwork::map_bind, &cases);
    }

    fn check(
        pod: &PodNetwork,
        map: impl Fn(&PodNetwork, SocketAddr) -> Result<SocketAddr, Refused>,
        cases: &[(&str, &str, Option<&str>)],
    ) {
        for (case, wanted, expected) in cases {
            let mapped = map(pod, wanted.parse().unwrap()).ok();
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(mapped, expected, "case: {case}");
            if let Some(mapped) = mapped {
                assert_eq!(
                    map(pod, mapped),
                    Ok(mapped),
                    "twice is the same, case: {case}"
                );
            }
        }
    }

    #[test]
    fn sockets_that_nobody_bound() {
        let any_port = |pod: PodNetwork, like: &str| {
            let found = pod.any_port(like.parse().unwrap());
            found.map(|found| found.map(|addr| addr.to_string()))
        };
        assert_eq!(
            any_port(dual(), "::"),
            Ok(Some("[fd00:64::7f40:7]:0".into()))
        );
        assert_eq!(any_port(dual(), "0.0.0.0"), Ok(Some("127.64.0.7:0".into())));
        let none = Ipv6Addr::UNSPECIFIED.into();
        assert_eq!(any_port(pod(), "::"), Err(Refused::Bind(none)));
        assert_eq!(any_port(six(), "::"), Ok(Some("[fd00:64::7]:0".into())));
        assert_eq!(any_port(six(), "0.0.0.0"), Ok(Some("127.192.0.7:0".into())));
    }

    #[test]
    fn guests_see_their_localhost() {
        for (real, shown) in [
            ("[fe80::636f:7800:7f40:7%1]:80", "[::1]:80"),
            ("127.192.0.7:80", "127.0.0.1:80"),
            ("[fd00:64::7f40:7]:80", "[fd00:64::7f40:7]:80"),
        ] {
            let told = dual().show(real.parse().unwrap());
            assert_eq!(told, shown.parse().unwrap());
        }
    }

    #[test]
    fn connecting() {
        let cases: [(&str, &str, Option<&str>); 8] = [
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
            ("IPv4 loopback in disguise", "[::ffff:127.0.0.53]:53", None),
            ("IPv6 loopback", "[::1]:80", None),
        ];
        let map = |pod: &PodNetwork, wanted| pod.map_remote(wanted, Protocol::Tcp);
        check(&pod(), map, &cases);
        // With an IPv6 address it is the same for that.
        check(&dual(), map, &cases[..7]);
        let cases = [
            (
                "localhost is the own Pod",
                "[::1]:80",
                Some("[fd00:64::7f40:7]:80"),
            ),
            (
                "another Pod",
                "[fd00:64::7f40:908]:80",
                Some("[fd00:64::7f40:908]:80"),
            ),
            (
                "another Pod's localhost",
                "[fe80::636f:7800:7f40:8%1]:80",
                None,
            ),
            ("on whatever link", "[fe80::636f:7800:7f40:8%2]:80", None),
            ("the host's loopback interface", "[fe80::1%1]:80", None),
            ("a neighbour", "[fe80::1%2]:80", Some("[fe80::1%2]:80")),
            ("nobody in particular", "[::]:80", None),
            ("outside", "[2001:db8::1]:80", Some("[2001:db8::1]:80")),
        ];
        check(&dual(), map, &cases);
        let cases = [
            ("IPv6 alone, localhost", "[::1]:80", Some("[fd00:64::7]:80")),
            ("that of IPv4", "127.0.0.1:80", Some("127.192.0.7:80")),
            ("the host's resolver", "127.0.0.53:53", None),
            ("another Pod's localhost", "127.192.9.8:80", None),
            (
                "outside, from the node's address",
                "93.184.216.34:80",
                Some("93.184.216.34:80"),
            ),
        ];
        check(&six(), map, &cases);
    }

    #[test]
    fn the_source_is_the_pod_inside_the_node_only() {
        let pod = pod();
        assert_eq!(
            pod.source_for("127.64.9.8:80".parse().unwrap()),
            Some("127.64.0.7:0".parse().unwrap())
        );
        assert_eq!(pod.source_for("93.184.216.34:80".parse().unwrap()), None);
        let source = |remote: &str| {
            let source = dual().source_for(remote.parse().unwrap());
            source.map(|source| source.to_string())
        };
        assert_eq!(six().source_for("127.64.9.8:80".parse().unwrap()), None);
        for (case, remote, expected) in [
            (
                "a Pod of this node",
                "[fd00:64::7f40:8]:80",
                Some("[fd00:64::7f40:7]:0"),
            ),
            (
                "a Pod of another node",
                "[fd00:60:0:7::8]:80",
                Some("[fd00:64::7f40:7]:0"),
            ),
            ("outside", "[2001:db8::1]:80", None),
            (
                "the own localhost",
                "[fe80::636f:7800:7f40:7%1]:80",
                Some("[fe80::636f:7800:7f40:7%1]:0"),
            ),
        ] {
            assert_eq!(source(remote).as_deref(), expected, "case: {case}");
        }
    }
}
