//! The proxy in user space: a listener for each address of a Service and for each node port.
//!
//! For what the kernel cannot do here, above all for clusters without root: loopback addresses are everyone's to listen on. Ports
//! below 1024 are not, unless the machine says so (`net.ipv4.ip_unprivileged_port_start`); Wasm Pods do not come this way and
//! reach them all the same. Endpoints see this process as their peer.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::plan::{Protocol, Rule};
use crate::sockets::{self, OwnRanges};

/// Connections through one listener at the same time; more wait in its backlog.
const CONNECTIONS_MAX: usize = 4096;
/// How long an endpoint may take to accept before the next one is tried.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A UDP client is forgotten after this long without an answer, as conntrack does.
const CLIENT_IDLE: Duration = Duration::from_secs(60);
const CLIENTS_MAX: usize = 4096;
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// Where a listener listens.
type Place = (Protocol, SocketAddr);

/// All listeners.
#[derive(Debug, Default)]
pub(crate) struct Userspace {
    open: HashMap<Place, Listener>,
    /// Places that could not be opened, so that each is said once.
    refused: HashMap<Place, io::ErrorKind>,
    /// Where Services' addresses are the node's own.
    own: OwnRanges,
    /// Ranges of the node's Pods.
    pub(crate) pods: Vec<IpNet>,
}

#[derive(Debug)]
struct Listener {
    backends: Arc<Backends>,
    _end: DropGuard,
}

/// Where a listener's traffic goes; shared with its connections.
#[derive(Debug, Default)]
struct Backends {
    now: RwLock<Target>,
    /// Which endpoint a client has, and since when it was last seen.
    clients: Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Target {
    /// The Service's port.
    name: String,
    endpoints: Vec<SocketAddr>,
    /// Where the node and its Pods are brought instead.
    own: Option<OwnTarget>,
    affinity: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnTarget {
    endpoints: Vec<SocketAddr>,
    /// Whose: the node's address, and the ranges of its Pods.
    node: IpAddr,
    pods: Vec<IpNet>,
}

impl OwnTarget {
    fn is_for(&self, client: IpAddr) -> bool {
        client.is_loopback()
            || client == self.node
            || self.pods.iter().any(|range| range.contains(&client))
    }
}

impl Target {
    fn of(&self, client: IpAddr) -> &[SocketAddr] {
        match &self.own {
            Some(own) if own.is_for(client) => &own.endpoints,
            Some(_) | None => &self.endpoints,
        }
    }

    fn is_empty(&self) -> bool {
        let own = self.own.iter().flat_map(|own| &own.endpoints);
        self.endpoints.iter().chain(own).next().is_none()
    }
}

impl Backends {
    /// Endpoints in the order to try them.
    fn order(&self, client: IpAddr) -> Vec<SocketAddr> {
        let target = self.now.read().clone();
        let mut endpoints = target.of(client).to_vec();
        if endpoints.is_empty() {
            return endpoints;
        }
        let first = rand::random_range(0..endpoints.len());
        endpoints.rotate_left(first);
        if let Some(timeout) = target.affinity {
            let clients = self.clients.lock();
            if let Some((kept, seen)) = clients.get(&client)
                && seen.elapsed() < timeout
                && let Some(at) = endpoints.iter().position(|one| one == kept)
            {
                endpoints.swap(0, at);
            }
        }
        endpoints
    }

    fn remember(&self, client: IpAddr, endpoint: SocketAddr) {
        let Some(timeout) = self.now.read().affinity else {
            return;
        };
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|_, (_, seen)| seen.elapsed() < timeout);
        }
        clients.insert(client, (endpoint, Instant::now()));
    }
}

/// Where node ports of one kind of address are open: on a loopback node nothing is opened to the outside.
fn node_ports(node: IpAddr, is_ipv4: bool) -> IpAddr {
    match (node.is_loopback(), is_ipv4) {
        (true, _) if node.is_ipv4() == is_ipv4 => node,
        (true, true) => Ipv4Addr::LOCALHOST.into(),
        (true, false) => Ipv6Addr::LOCALHOST.into(),
        (false, true) => Ipv4Addr::UNSPECIFIED.into(),
        (false, false) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Which listeners there should be, and where their traffic goes. Pure. `node` is the node's address, `pods` are its Pods'.
fn wanted(rules: &[impl Borrow<Rule>], node: IpAddr, pods: &[IpNet]) -> HashMap<Place, Target> {
    let mut all = HashMap::new();
    for rule in rules.iter().map(Borrow::borrow) {
        let affinity = rule
            .affinity_secs
            .map(|secs| Duration::from_secs(secs.into()));
        let target = |endpoints: &[SocketAddr]| Target {
            name: rule.name.clone(),
            endpoints: endpoints.to_vec(),
            own: None,
            affinity,
        };
        let own = rule.own_endpoints.as_ref().map(|endpoints| OwnTarget {
            endpoints: endpoints.clone(),
            node,
            pods: pods.to_vec(),
        });
        for addr in &rule.cluster {
            all.insert((rule.protocol, *addr), target(&rule.endpoints));
        }
        let everywhere = node_ports(node, rule.cluster[0].is_ipv4());
        let node_port = rule.node_port.map(|port| SocketAddr::new(everywhere, port));
        for addr in rule.external.iter().copied().chain(node_port) {
            let outside = Target {
                own: own.clone(),
                ..target(&rule.external_endpoints)
            };
            all.insert((rule.protocol, addr), outside);
        }
    }
    all
}

impl Userspace {
    pub(crate) fn on(own: OwnRanges) -> Self {
        Self {
            own,
            ..Self::default()
        }
    }

    /// Brings the listeners to what the rules say; connections that are there go on. Answers what its users should hear, each
    /// once.
    pub(crate) fn sync(&mut self, rules: &[impl Borrow<Rule>], node: IpAddr) -> Vec<Problem> {
        let mut problems = Vec::new();
        // A listener without endpoints would accept what it cannot serve: closed, it refuses.
        let mut wanted = wanted(rules, node, &self.pods);
        wanted.retain(|_, target| !target.is_empty());
        self.open.retain(|place, _| wanted.contains_key(place));
        self.refused.retain(|place, _| wanted.contains_key(place));
        for (place, target) in wanted {
            if let Some(listener) = self.open.get(&place) {
                *listener.backends.now.write() = target;
                continue;
            }
            let name = target.name.clone();
            match open(place, target, &self.own) {
                Ok(listener) => {
                    self.refused.remove(&place);
                    self.open.insert(place, listener);
                }
                Err(error) if self.refused.insert(place, error.kind()) != Some(error.kind()) => {
                    problems.extend(refused(name, place, &error));
                }
                Err(_) => {}
            }
        }
        problems
    }
}

/// Why a port of a Service is not served on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The port, as in its rule.
    pub(crate) rule: String,
    pub(crate) message: String,
}

fn refused(rule: String, (protocol, addr): Place, error: &io::Error) -> Option<Problem> {
    let protocol = protocol.name();
    if sockets::is_unknown(error) {
        let message = format!(
            "{addr} is not served: the kernel of this node has no {}",
            protocol.to_uppercase()
        );
        return Some(Problem { rule, message });
    }
    let kinds = [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::AddrNotAvailable,
    ];
    if kinds.contains(&error.kind()) {
        // Without root: a port below 1024, or an address that is not the node's. Wasm Pods do not come this way.
        tracing::debug!(%addr, protocol, %error, "Programs of this machine cannot reach a Service");
    } else {
        tracing::warn!(%addr, protocol, %error, "A Service's address cannot be listened on");
        if error.kind() == io::ErrorKind::AddrInUse {
            let message = format!("{addr} is not served: another program listens there");
            return Some(Problem { rule, message });
        }
    }
    None
}

fn open(place: Place, target: Target, own: &OwnRanges) -> io::Result<Listener> {
    let (protocol, addr) = place;
    let backends = Arc::new(Backends::default());
    *backends.now.write() = target;
    let cancel = CancellationToken::new();
    let end = cancel.clone().drop_guard();
    match protocol {
        Protocol::Udp => {
            let socket = sockets::receive(addr, own)?;
            let run = pass_datagrams(socket, Arc::clone(&backends), cancel.clone());
            tokio::spawn(cancel.run_until_cancelled_owned(run));
        }
        Protocol::Tcp | Protocol::Sctp => {
            let listener = sockets::listen(protocol, addr, own)?;
            let run = pass_connections(protocol, listener, Arc::clone(&backends));
            tokio::spawn(cancel.run_until_cancelled_owned(run));
        }
    }
    Ok(Listener {
        backends,
        _end: end,
    })
}

/// Ends with its listener; the connections it took go on until they end themselves.
async fn pass_connections(protocol: Protocol, listener: TcpListener, backends: Arc<Backends>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let backends = Arc::clone(&backends);
                tokio::spawn(async move {
                    if let Err(error) =
                        pass_connection(protocol, stream, from.ip(), &backends).await
                    {
                        tracing::debug!(%error, %from, "A connection to a Service broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Mostly a lack of descriptors: give others time to close theirs.
                tracing::warn!(%error, "A connection to a Service could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn pass_connection(
    protocol: Protocol,
    mut client: TcpStream,
    from: IpAddr,
    backends: &Backends,
) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for endpoint in backends.order(from) {
        let connecting = sockets::connect(protocol, endpoint);
        let connected = tokio::time::timeout(CONNECT_PATIENCE, connecting).await;
        match connected {
            Ok(Ok(mut stream)) => {
                backends.remember(from, endpoint);
                if protocol == Protocol::Tcp {
                    client.set_nodelay(true)?;
                    stream.set_nodelay(true)?;
                }
                let passed = tokio::io::copy_bidirectional(&mut client, &mut stream).await;
                if passed.is_err() {
                    // A connection that breaks on one side breaks on the other: an end would make half an answer look whole, and
                    // leave a port to each endpoint taken for a minute (TIME_WAIT).
                    stream.set_zero_linger()?;
                    client.set_zero_linger()?;
                }
                return passed.map(|_| ());
            }
            // It may have gone a moment ago: the next one takes it.
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    // As near to a refusal as an accepted connection comes.
    client.set_zero_linger()?;
    Err(last)
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

async fn pass_datagrams(socket: UdpSocket, backends: Arc<Backends>, cancel: CancellationToken) {
    let socket = Arc::new(socket);
    let clients = Clients::default();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "A datagram to a Service could not be received");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let known = clients.lock().get(&from).cloned();
        // An endpoint that has gone does not keep its clients.
        let known = known.filter(|way| {
            let target = backends.now.read();
            let endpoints = target.of(from.ip());
            way.peer_addr().is_ok_and(|peer| endpoints.contains(&peer))
        });
        let way = match known {
            Some(way) => way,
            None => match new_way(&socket, from, &backends, &clients, &cancel).await {
                Ok(Some(way)) => way,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(%error, %from, "A datagram has no way to an endpoint");
                    continue;
                }
            },
        };
        if let Err(error) = way.send(&buffer[..len]).await {
            tracing::debug!(%error, %from, "A datagram could not be passed on");
        }
    }
}

async fn new_way(
    socket: &Arc<UdpSocket>,
    from: SocketAddr,
    backends: &Backends,
    clients: &Clients,
    cancel: &CancellationToken,
) -> io::Result<Option<Arc<UdpSocket>>> {
    let Some(endpoint) = backends.order(from.ip()).first().copied() else {
        return Ok(None);
    };
    if clients.lock().len() >= CLIENTS_MAX {
        return Ok(None);
    }
    let any: SocketAddr = if endpoint.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let way = Arc::new(UdpSocket::bind(any).await?);
    way.connect(endpoint).await?;
    backends.remember(from.ip(), endpoint);
    clients.lock().insert(from, Arc::clone(&way));
    let (socket, clients, back) = (Arc::clone(socket), Arc::clone(clients), Arc::clone(&way));
    tokio::spawn(cancel.clone().run_until_cancelled_owned(async move {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while let Ok(Ok(len)) = tokio::time::timeout(CLIENT_IDLE, back.recv(&mut buffer)).await {
            if socket.send_to(&buffer[..len], from).await.is_err() {
                break;
            }
        }
        let mut clients = clients.lock();
        if clients
            .get(&from)
            .is_some_and(|way| Arc::ptr_eq(way, &back))
        {
            clients.remove(&from);
        }
    }));
    Ok(Some(way))
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    pub(crate) fn rule(
        protocol: Protocol,
        addr: SocketAddr,
        endpoints: &[SocketAddr],
        affinity: Option<u32>,
    ) -> Rule {
        Rule {
            name: "ns/x:".into(),
            protocol,
            cluster: vec![addr],
            external: Vec::new(),
            node_port: None,
            affinity_secs: affinity,
            source_ranges: Vec::new(),
            endpoints: endpoints.to_vec(),
            external_endpoints: endpoints.to_vec(),
            external_local: false,
            own_endpoints: None,
        }
    }

    /// Answers each connection with its own address.
    async fn backend() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(addr.to_string().as_bytes()).await.ok();
            }
        });
        addr
    }

    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
    }

    async fn ask(addr: SocketAddr) -> io::Result<String> {
        let mut text = String::new();
        TcpStream::connect(addr)
            .await?
            .read_to_string(&mut text)
            .await?;
        Ok(text)
    }

    #[tokio::test]
    async fn connections_go_to_endpoints_that_are_there() {
        let (one, two, gone) = (backend().await, backend().await, free().await);
        let addr = free().await;
        let node = "127.0.0.1".parse().unwrap();
        let mut proxy = Userspace::default();
        proxy.sync(&[rule(Protocol::Tcp, addr, &[one, gone], None)], node);
        for _ in 0..8 {
            assert_eq!(
                ask(addr).await.unwrap(),
                one.to_string(),
                "the dead one is passed over"
            );
        }
        proxy.sync(&[rule(Protocol::Tcp, addr, &[one, two], Some(60))], node);
        let first = ask(addr).await.unwrap();
        for _ in 0..16 {
            assert_eq!(
                ask(addr).await.unwrap(),
                first,
                "a client keeps its endpoint"
            );
        }
        let other = if first == one.to_string() { two } else { one };
        proxy.sync(&[rule(Protocol::Tcp, addr, &[other], Some(60))], node);
        assert_eq!(
            ask(addr).await.unwrap(),
            other.to_string(),
            "unless it is gone"
        );
        proxy.sync(&[rule(Protocol::Tcp, addr, &[], None)], node);
        tokio::task::yield_now().await;
        let mut refused = ask(addr).await;
        while refused.is_ok() {
            tokio::task::yield_now().await;
            refused = ask(addr).await;
        }
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused,
            "no endpoint, no listener"
        );
    }

    #[test]
    fn the_node_and_its_pods_go_to_any_endpoint() {
        let [here, there] = ["10.64.0.7:80", "10.64.64.7:80"].map(|addr| addr.parse().unwrap());
        let mut rule = rule(
            Protocol::Tcp,
            "10.96.0.7:80".parse().unwrap(),
            &[here, there],
            None,
        );
        (rule.node_port, rule.external_local) = (Some(30_080), true);
        (rule.external_endpoints, rule.own_endpoints) = (vec![], Some(vec![here, there]));
        let pods = ["10.64.0.0/18".parse().unwrap()];
        let all = wanted(&[rule], "192.0.2.1".parse().unwrap(), &pods);
        let place = (Protocol::Tcp, "0.0.0.0:30080".parse().unwrap());
        let target = &all[&place];
        assert!(!target.is_empty(), "it listens for those who may");
        for (client, count) in [
            ("127.0.0.1", 2),
            ("192.0.2.1", 2),
            ("10.64.0.9", 2),
            ("10.64.64.9", 0),
            ("198.51.100.1", 0),
        ] {
            let endpoints = target.of(client.parse().unwrap());
            assert_eq!(endpoints.len(), count, "{client}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_breaks_on_one_side_breaks_on_the_other() {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = backend.local_addr().unwrap();
        let addr = free().await;
        let node = "127.0.0.1".parse().unwrap();
        let mut proxy = Userspace::default();
        proxy.sync(&[rule(Protocol::Tcp, addr, &[endpoint], None)], node);
        for breaks_at_client in [true, false] {
            let mut client = TcpStream::connect(addr).await.unwrap();
            let (mut server, _) = backend.accept().await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), b'x');
            server.write_all(b"half an ans").await.unwrap();
            let mut said = [0; 11];
            client.read_exact(&mut said).await.unwrap();
            let (broken, mut other) = if breaks_at_client {
                (client, server)
            } else {
                (server, client)
            };
            broken.set_zero_linger().unwrap();
            drop(broken);
            let seen = other.read_u8().await.unwrap_err();
            assert_eq!(
                seen.kind(),
                io::ErrorKind::ConnectionReset,
                "the client broke it: {breaks_at_client}"
            );
        }
        drop(backend);
        let mut client = TcpStream::connect(addr).await.unwrap();
        let seen = client.read_u8().await.unwrap_err();
        assert_eq!(
            seen.kind(),
            io::ErrorKind::ConnectionReset,
            "nobody is there"
        );
    }

    #[tokio::test]
    async fn both_kinds_of_address_share_a_port() {
        let backend = backend().await;
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let endpoint6 = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"six").await.ok();
            }
        });
        let port = free().await.port();
        let rule = |addr: &str, endpoint| Rule {
            node_port: Some(port),
            ..rule(Protocol::Tcp, addr.parse().unwrap(), &[endpoint], None)
        };
        let mut proxy = Userspace::default();
        let service = free().await.to_string();
        let service6 = format!("[::1]:{}", free().await.port());
        let rules = [rule(&service, backend), rule(&service6, endpoint6)];
        assert_eq!(proxy.sync(&rules, "192.0.2.1".parse().unwrap()), []);
        let four = ask(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await;
        assert_eq!(four.unwrap(), backend.to_string());
        let six = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        assert_eq!(ask(six).await.unwrap(), "six");
        assert_eq!(ask(service6.parse().unwrap()).await.unwrap(), "six");
    }

    #[tokio::test]
    async fn sctp_is_served_where_the_kernel_has_it_and_else_refused_once() {
        let addr = free().await;
        let endpoint = free().await;
        let backend = sockets::listen(Protocol::Sctp, endpoint, &OwnRanges::default());
        let mut proxy = Userspace::default();
        let rules = [rule(Protocol::Sctp, addr, &[endpoint], None)];
        let problems = proxy.sync(&rules, Ipv4Addr::LOCALHOST.into());
        let Ok(backend) = backend else {
            let message = format!("{addr} is not served: the kernel of this node has no SCTP");
            let rule = "ns/x:".to_owned();
            assert_eq!(problems, [Problem { rule, message }]);
            assert_eq!(proxy.sync(&rules, Ipv4Addr::LOCALHOST.into()), []);
            return;
        };
        assert_eq!(problems, []);
        tokio::spawn(async move {
            let (mut stream, _) = backend.accept().await.unwrap();
            let mut buffer = [0; 16];
            let len = stream.read(&mut buffer).await.unwrap();
            stream.write_all(&buffer[..len]).await.unwrap();
        });
        let mut client = sockets::connect(Protocol::Sctp, addr).await.unwrap();
        client.write_all(b"over sctp").await.unwrap();
        let mut buffer = [0; 9];
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"over sctp");
    }

    #[tokio::test]
    async fn datagrams_come_back_to_their_client() {
        let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let endpoint = backend.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((len, from)) = backend.recv_from(&mut buffer).await {
                buffer[..len].reverse();
                backend.send_to(&buffer[..len], from).await.ok();
            }
        });
        let addr = UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let mut proxy = Userspace::default();
        proxy.sync(
            &[rule(Protocol::Udp, addr, &[endpoint], None)],
            "127.0.0.1".parse().unwrap(),
        );
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(addr).await.unwrap();
        client.send(b"abc").await.unwrap();
        let mut buffer = [0; 64];
        let len = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"cba");
    }
}
