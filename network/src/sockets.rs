//! Sockets on Services' addresses: each for one kind of address alone, for SCTP where the kernel has it, and for addresses that are the
//! node's by a route to its whole range.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use rustix::net::{
    AddressFamily, Protocol as Ip, SocketFlags, SocketType, ipproto, socket_with, sockopt,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::plan::Protocol;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The ranges of which every address is this node's by one route.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnRanges(Vec<IpNet>);

impl OwnRanges {
    pub(crate) fn add(&mut self, range: IpNet) {
        self.0.push(range);
    }

    /// Lets a socket be bound to such an address. IPv4 may by itself; of IPv6 addresses Linux takes those alone that are on an
    /// interface, unless the socket says that it knows better. It is said of no other address: nothing would come there.
    fn allow(&self, socket: &OwnedFd, ip: IpAddr) -> io::Result<()> {
        if ip.is_ipv6() && self.0.iter().any(|range| range.contains(&ip)) {
            sockopt::set_ipv6_freebind(socket, true)?;
        }
        Ok(())
    }
}

/// Listens for connections of TCP or SCTP.
pub(crate) fn listen(
    protocol: Protocol,
    addr: SocketAddr,
    own: &OwnRanges,
) -> io::Result<TcpListener> {
    let socket = socket(protocol, addr)?;
    own.allow(&socket, addr.ip())?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr)?;
    rustix::net::listen(&socket, BACKLOG)?;
    TcpListener::from_std(std::net::TcpListener::from(socket))
}

/// Takes datagrams.
pub(crate) fn receive(addr: SocketAddr, own: &OwnRanges) -> io::Result<UdpSocket> {
    let socket = socket(Protocol::Udp, addr)?;
    own.allow(&socket, addr.ip())?;
    rustix::net::bind(&socket, &addr)?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Connects by TCP or SCTP.
pub(crate) async fn connect(protocol: Protocol, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(protocol, addr)?;
    // Not connected yet: the type only carries the descriptor, as its documentation has it.
    TcpSocket::from_std_stream(std::net::TcpStream::from(socket))
        .connect(addr)
        .await
}

fn socket(protocol: Protocol, addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let (kind, ip): (SocketType, Ip) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, Some(ip))?;
    if addr.is_ipv6() {
        // The other kind has a listener of its own on the same port.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// Whether a socket could not be made because the kernel has no such protocol.
pub(crate) fn is_unknown(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(
        errno,
        Some(rustix::io::Errno::PROTONOSUPPORT | rustix::io::Errno::AFNOSUPPORT)
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::lab::Lab;
    use crate::netlink::within;
    use crate::proxy::userspace::tests::rule;
    use crate::proxy::userspace::{Problem, Userspace};

    /// Asks once over TCP and once over UDP.
    const CLIENT: &str = r#"
import socket
tcp = socket.create_connection(('fd96::7', 80), 5)
print(tcp.recv(100).decode())
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.settimeout(5)
udp.sendto(b'abc', ('fd96::7', 80))
print(*udp.recvfrom(100))
"#;

    /// The one endpoint of both Services, on loopback.
    async fn endpoint() -> SocketAddr {
        let tcp = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(addr).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                stream.write_all(b"served").await.ok();
            }
        });
        tokio::spawn(async move {
            let mut buffer = [0; 16];
            while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
                udp.send_to(&buffer[..len], from).await.ok();
            }
        });
        addr
    }

    #[test]
    fn ipv6_addresses_of_a_local_range_are_served_to_everybody() {
        let test = "ipv6_addresses_of_a_local_range_are_served_to_everybody";
        let Some(mut lab) = Lab::new(test) else {
            return;
        };
        let (node, _) = (lab.host("node"), lab.host("out"));
        lab.cable(
            ("node", "eth0", "fd01::1/64"),
            ("out", "eth0", "fd01::9/64"),
        );
        lab.ip("node", "route add local fd96::/112 dev lo");
        lab.ip("out", "route add default via fd01::1");
        let (ready_tx, ready_rx) = mpsc::channel::<Vec<Problem>>();
        let (end_tx, end_rx) = tokio::sync::oneshot::channel::<()>();
        let serve = async move {
            let addr: SocketAddr = "[fd96::7]:80".parse().unwrap();
            let refused = listen(Protocol::Tcp, addr, &OwnRanges::default());
            let kind = refused.map_err(|error| error.kind());
            assert_eq!(kind.unwrap_err(), io::ErrorKind::AddrNotAvailable);
            let mut own = OwnRanges::default();
            own.add("fd96::/112".parse().unwrap());
            let elsewhere = receive("[fd97::7]:80".parse().unwrap(), &own);
            let kind = elsewhere.map_err(|error| error.kind());
            assert_eq!(kind.unwrap_err(), io::ErrorKind::AddrNotAvailable);
            let backend = endpoint().await;
            let rules = [Protocol::Tcp, Protocol::Udp].map(|one| rule(one, addr, &[backend], None));
            let mut proxy = Userspace::on(own);
            ready_tx
                .send(proxy.sync(&rules, "fd01::1".parse().unwrap()))
                .unwrap();
            end_rx.await.ok();
        };
        let serving = std::thread::spawn(move || {
            within(Some(&node), move || {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build().unwrap();
                runtime.block_on(serve);
            })
        });
        assert_eq!(ready_rx.recv().unwrap(), []);
        for host in ["node", "out"] {
            let said = lab.inside(host, &format!("python3 -c \"{CLIENT}\""));
            assert_eq!(
                said, "served\nb'abc' ('fd96::7', 80, 0, 0)\n",
                "{host}: the answer comes from whom was asked"
            );
        }
        end_tx.send(()).unwrap();
        serving.join().unwrap().unwrap();
    }
}
