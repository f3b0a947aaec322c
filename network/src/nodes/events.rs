//! Says that routes or interfaces changed, from the kernel's own notices. What changed is looked up, not read here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x40 | 0x400;
const NOTICE_BYTES_MAX: usize = 32 << 10;

/// A socket that hears them, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Watcher {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Watcher {
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types that could swap their descriptor; OwnedFd cannot"
    )]
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self {
            socket: AsyncFd::new(socket)?,
            buffer: vec![0; NOTICE_BYTES_MAX],
        })
    }

    /// Waits for a notice that concerns more than a Pod's own interface, then takes all that are there.
    ///
    /// # Cancel safety
    /// Safe: a notice that was not returned is still in the socket, or was of no concern.
    pub(crate) async fn changed(&mut self) {
        let mut concerns = false;
        while !concerns {
            let Ok(mut ready) = self.socket.readable().await else {
                return std::future::pending().await;
            };
            loop {
                match recv(self.socket.get_ref(), &mut *self.buffer, RecvFlags::empty()) {
                    Ok((len, _)) => concerns |= !is_of_a_pod(&self.buffer[..len]),
                    // Too many for the socket: something did change.
                    Err(rustix::io::Errno::NOBUFS) => concerns = true,
                    Err(_) => break,
                }
            }
            ready.clear_ready();
        }
    }
}

/// Pods come and go: the node's ends of their pairs are called `veth…`.
fn is_of_a_pod(notice: &[u8]) -> bool {
    notice.windows(4).any(|bytes| bytes == b"veth")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_s_notices_can_be_heard() {
        let mut watcher = Watcher::open().unwrap();
        assert!(is_of_a_pod(b"..veth1234.."));
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(1), watcher.changed());
        // Whether something changes just now is not ours to say; that the socket can be waited on is.
        drop(quiet.await);
    }
}
