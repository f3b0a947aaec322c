//! Sockets of the proxy in user space: each for one kind of address alone, and for SCTP where the kernel has it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Protocol as Ip, SocketFlags, SocketType, ipproto, socket_with, sockopt,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::plan::Protocol;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens for connections of TCP or SCTP.
pub(super) fn listen(protocol: Protocol, addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(protocol, addr)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr)?;
    rustix::net::listen(&socket, BACKLOG)?;
    TcpListener::from_std(std::net::TcpListener::from(socket))
}

/// Takes datagrams.
pub(super) fn receive(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(Protocol::Udp, addr)?;
    rustix::net::bind(&socket, &addr)?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Connects by TCP or SCTP.
pub(super) async fn connect(protocol: Protocol, addr: SocketAddr) -> io::Result<TcpStream> {
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
pub(super) fn is_unknown(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(
        errno,
        Some(rustix::io::Errno::PROTONOSUPPORT | rustix::io::Errno::AFNOSUPPORT)
    )
}
