//! Host ports without CNI: a listener on the node per port, that passes on to the Pod what comes.
//!
//! In user space, so that it needs no rights, is the same for both Pod networks, answers on `localhost` too, and is gone with its
//! sandbox. What it costs: the Pod sees the node as the peer, and bytes pass through this process. With a CNI configuration the
//! plugin `portmap` does this instead.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::{PortMapping, Protocol};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Connections through one host port at the same time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// UDP peers of one host port that are remembered at the same time; a further one's datagrams are dropped.
const PEERS_MAX: usize = 1024;
/// A UDP peer is forgotten after this long without an answer, as conntrack does.
const PEER_IDLE: Duration = Duration::from_secs(60);
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// A host port that cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPortError {
    #[error("host port {addr}/{protocol} cannot be opened: {source}")]
    Open {
        addr: SocketAddr,
        protocol: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Invalid(String),
}

/// One port of the node that leads to a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    udp: bool,
    /// None: all addresses of the node, of the kinds that the Pod has.
    host_ip: Option<IpAddr>,
    port: u16,
    container_port: u16,
}

impl HostPort {
    /// Where to listen, and whom in the Pod that leads to.
    fn ways(&self, pod: &[IpAddr]) -> Vec<(SocketAddr, SocketAddr)> {
        let way = |from: IpAddr, to: IpAddr| {
            (
                SocketAddr::new(from, self.port),
                SocketAddr::new(to, self.container_port),
            )
        };
        match self.host_ip {
            None => pod.iter().map(|ip| way(any(*ip), *ip)).collect(),
            Some(own) => {
                let same = pod.iter().find(|ip| ip.is_ipv4() == own.is_ipv4());
                // Bytes are passed on: the Pod's address may be of the other kind.
                let to = same.or(pod.first());
                to.map(|ip| way(own, *ip)).into_iter().collect()
            }
        }
    }
}

/// Every address of the kind of `like`.
fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The host ports that a Pod asks for.
pub(crate) fn plan_host_ports(mappings: &[PortMapping]) -> Result<Vec<HostPort>, HostPortError> {
    let wanted = mappings.iter().filter(|mapping| mapping.host_port != 0);
    wanted
        .map(|mapping| {
            let port = |value: i32, what: &str| {
                u16::try_from(value)
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| HostPortError::Invalid(format!("{what} {value} is not a port")))
            };
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    HostPortError::Invalid(format!("host IP {text:?} is not an address"))
                })?),
            };
            if mapping.protocol() == Protocol::Sctp {
                return Err(HostPortError::Invalid(
                    "host ports for SCTP need a CNI configuration with the plugin portmap".into(),
                ));
            }
            Ok(HostPort {
                udp: mapping.protocol() == Protocol::Udp,
                host_ip,
                port: port(mapping.host_port, "host port")?,
                container_port: port(mapping.container_port, "container port")?,
            })
        })
        .collect()
}

/// The open host ports of one sandbox; they close when this goes.
#[derive(Debug)]
pub(crate) struct HostPorts {
    _open: DropGuard,
}

impl HostPorts {
    /// Opens `ports` and passes on to `pod`, the addresses of one Pod; all of them, or none and the reason.
    pub(crate) fn open(
        ports: &[HostPort],
        pod: &[IpAddr],
        io: &Handle,
    ) -> Result<Option<Self>, HostPortError> {
        if ports.is_empty() {
            return Ok(None);
        }
        let _entered = io.enter();
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let ways = ports
            .iter()
            .flat_map(|port| port.ways(pod).into_iter().map(|way| (port.udp, way)));
        for (udp, (addr, to)) in ways {
            let failed = |source| HostPortError::Open {
                addr,
                protocol: if udp { "UDP" } else { "TCP" },
                source,
            };
            if udp {
                let socket = receive(addr).map_err(failed)?;
                io.spawn(cancel.clone().run_until_cancelled_owned(pass_datagrams(
                    socket,
                    to,
                    cancel.clone(),
                )));
            } else {
                let listener = listen(addr).map_err(failed)?;
                io.spawn(cancel.clone().run_until_cancelled_owned(pass_connections(
                    listener,
                    to,
                    cancel.clone(),
                )));
            }
        }
        Ok(Some(Self { _open: guard }))
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 1024;
    let socket = socket(addr, SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &addr)?;
    rustix::net::listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn receive(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(addr, SocketType::DGRAM)?;
    bind(&socket, &addr)?;
    UdpSocket::from_std(socket.into())
}

fn socket(addr: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if addr.is_ipv6() {
        // The other kind has a listener of its own on the same port, or none.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

async fn pass_connections(listener: TcpListener, to: SocketAddr, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                let pass = async move {
                    if let Err(err) = pass_connection(stream, to).await {
                        tracing::debug!(error = %err, %from, %to, "A connection through a host port broke");
                    }
                    drop(place);
                };
                tokio::spawn(cancel.clone().run_until_cancelled_owned(pass));
            }
            Err(err) => {
                // Mostly a lack of descriptors: give others time to close theirs.
                tracing::warn!(error = %err, "A connection to a host port could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn pass_connection(mut from: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut pod = TcpStream::connect(to).await?;
    from.set_nodelay(true)?;
    pod.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut from, &mut pod).await?;
    Ok(())
}

type Peers = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

async fn pass_datagrams(socket: UdpSocket, to: SocketAddr, cancel: CancellationToken) {
    let (socket, peers) = (Arc::new(socket), Peers::default());
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer: the socket itself goes on.
            continue;
        };
        let known = peers.lock().get(&from).cloned();
        let towards = match known {
            Some(towards) => towards,
            None if peers.lock().len() >= PEERS_MAX => continue,
            None => match towards_pod(to).await {
                Ok(towards) => {
                    let towards = Arc::new(towards);
                    peers.lock().insert(from, Arc::clone(&towards));
                    let answers = pass_answers(
                        Arc::clone(&socket),
                        Arc::clone(&towards),
                        Arc::clone(&peers),
                        from,
                    );
                    tokio::spawn(cancel.clone().run_until_cancelled_owned(answers));
                    towards
                }
                Err(err) => {
                    tracing::debug!(error = %err, %to, "A datagram to a host port could not be passed on");
                    continue;
                }
            },
        };
        if let Err(err) = towards.send(&buffer[..len]).await {
            tracing::debug!(error = %err, %to, "A datagram to a host port could not be passed on");
        }
    }
}

async fn towards_pod(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((any(to.ip()), 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

async fn pass_answers(socket: Arc<UdpSocket>, pod: Arc<UdpSocket>, peers: Peers, to: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while let Ok(Ok(len)) = tokio::time::timeout(PEER_IDLE, pod.recv(&mut buffer)).await {
        if socket.send_to(&buffer[..len], to).await.is_err() {
            break;
        }
    }
    peers.lock().remove(&to);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(
        host_port: i32,
        container_port: i32,
        host_ip: &str,
        protocol: Protocol,
    ) -> PortMapping {
        PortMapping {
            host_port,
            container_port,
            host_ip: host_ip.into(),
            protocol: protocol.into(),
        }
    }

    #[test]
    fn host_ports_are_what_the_pod_asks_for() {
        let plan = |mapping| plan_host_ports(&[mapping]);
        assert!(
            plan(mapping(0, 80, "", Protocol::Tcp)).unwrap().is_empty(),
            "no host port"
        );
        let wanted = plan(mapping(8080, 80, "", Protocol::Tcp))
            .unwrap()
            .remove(0);
        assert!(!wanted.udp);
        let wanted = plan(mapping(53, 53, "127.0.0.1", Protocol::Udp))
            .unwrap()
            .remove(0);
        assert!(wanted.udp);
        let (four, six) = ("10.64.0.7", "fd64::7");
        for (host_ip, pod, expected) in [
            ("", &[four][..], &["0.0.0.0:80 10.64.0.7:8080"][..]),
            ("", &[six], &["[::]:80 [fd64::7]:8080"]),
            (
                "",
                &[six, four],
                &["[::]:80 [fd64::7]:8080", "0.0.0.0:80 10.64.0.7:8080"],
            ),
            ("127.0.0.1", &[six, four], &["127.0.0.1:80 10.64.0.7:8080"]),
            ("fd01::1", &[four, six], &["[fd01::1]:80 [fd64::7]:8080"]),
            ("127.0.0.1", &[six], &["127.0.0.1:80 [fd64::7]:8080"]),
        ] {
            let wanted = plan(mapping(80, 8080, host_ip, Protocol::Tcp))
                .unwrap()
                .remove(0);
            let pod: Vec<IpAddr> = pod.iter().map(|ip| ip.parse().unwrap()).collect();
            let ways = wanted.ways(&pod).into_iter();
            let ways: Vec<String> = ways.map(|(from, to)| format!("{from} {to}")).collect();
            assert_eq!(ways, expected, "{host_ip:?} of {pod:?}");
        }
        for (case, bad) in [
            ("not a port", mapping(70_000, 80, "", Protocol::Tcp)),
            ("no container port", mapping(80, 0, "", Protocol::Tcp)),
            ("not an address", mapping(80, 80, "host", Protocol::Tcp)),
            ("SCTP", mapping(80, 80, "", Protocol::Sctp)),
        ] {
            assert!(plan(bad).is_err(), "case: {case}");
        }
    }
}
