//! Netlink, as much as a bridge, its ports and one table of nftables need: messages with nested attributes, and the kernel's
//! acknowledgement of each. A socket belongs to the namespace of the thread that opened it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with,
};

const HEADER_BYTES: usize = 16;
const REPLY_BYTES_MAX: usize = 32 << 10;
/// The kernel's answer: an error number, zero for success.
const NLMSG_ERROR: u16 = 2;
const RTM_GETLINK: u16 = 18;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
/// `struct ifinfomsg`.
const LINK_BYTES: usize = 16;
/// In the type of an attribute: it holds attributes.
const NESTED: u16 = 0x8000;

/// The sender wants an answer.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// Flags of messages that make something.
pub(super) const CREATE: u16 = 0x400;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const APPEND: u16 = 0x800;

/// One message that is being written.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(body);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).expect("attributes here are short");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// Big endian, as netfilter has them.
    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// An attribute that holds what `fill` adds.
    pub(super) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut filled = fill(self);
        let len = u16::try_from(filled.bytes.len() - at).expect("attributes here are short");
        filled.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        filled.bytes[at + 2..at + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        filled
    }

    /// Plain bytes inside a nest, such as the header of a veth's peer.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32, acknowledged: bool) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("messages here are short");
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        if acknowledged {
            let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | ACK;
            self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(super) fn route() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, which is what none at all means.
        Self::open(None)
    }

    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one message and waits for the kernel's word.
    pub(super) fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        self.send(&message.finish(self.sequence, true))?;
        self.acknowledged(self.sequence)
    }

    /// Sends messages as one transaction, between `begin` and `end`: all of them happen, or none.
    pub(super) fn transaction(
        &mut self,
        begin: Message,
        messages: Vec<Message>,
        end: Message,
    ) -> io::Result<()> {
        let mut all = Vec::new();
        let mut add = |message: Message, acknowledged| {
            self.sequence += 1;
            all.extend(message.finish(self.sequence, acknowledged));
        };
        add(begin, false);
        let count = messages.len();
        messages.into_iter().for_each(|message| add(message, true));
        add(end, false);
        self.send(&all)?;
        let last = self.sequence - 1;
        let first = last + 1 - u32::try_from(count).expect("a handful of messages");
        (first..=last).try_for_each(|sequence| self.acknowledged(sequence))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.fd, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Reads answers until the one to `sequence`. An error that belongs to an earlier message of a transaction is told too.
    fn acknowledged(&self, sequence: u32) -> io::Result<()> {
        let mut buffer = vec![0_u8; REPLY_BYTES_MAX];
        loop {
            let (len, _) = recv(&self.fd, &mut *buffer, RecvFlags::empty())?;
            let mut rest = &buffer[..len];
            while rest.len() >= HEADER_BYTES + 4 {
                let (size, kind) = (
                    read_u32(rest, 0) as usize,
                    u16::from_ne_bytes([rest[4], rest[5]]),
                );
                if kind == NLMSG_ERROR {
                    let code = read_u32(rest, HEADER_BYTES).cast_signed();
                    if code != 0 {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    if read_u32(rest, 8) == sequence {
                        return Ok(());
                    }
                }
                rest = rest
                    .get(size.next_multiple_of(4).max(HEADER_BYTES)..)
                    .unwrap_or_default();
            }
        }
    }

    /// The index of an interface in this socket's namespace.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.fd, name)?)
    }

    /// The largest packet of an interface in this socket's namespace.
    pub(super) fn mtu(&mut self, name: &str) -> io::Result<u32> {
        self.sequence += 1;
        let message = Message::new(RTM_GETLINK, 0, &[0; LINK_BYTES]).text(IFLA_IFNAME, name);
        self.send(&message.finish(self.sequence, false))?;
        let mut buffer = vec![0_u8; REPLY_BYTES_MAX];
        let (len, _) = recv(&self.fd, &mut *buffer, RecvFlags::empty())?;
        if len < HEADER_BYTES + 4 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if u16::from_ne_bytes([buffer[4], buffer[5]]) == NLMSG_ERROR {
            let code = read_u32(&buffer, HEADER_BYTES).cast_signed();
            return Err(io::Error::from_raw_os_error(-code));
        }
        let mut rest = buffer
            .get(HEADER_BYTES + LINK_BYTES..len)
            .unwrap_or_default();
        while rest.len() >= 8 {
            let size = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            if u16::from_ne_bytes([rest[2], rest[3]]) == IFLA_MTU {
                return Ok(read_u32(rest, 4));
            }
            rest = rest
                .get(size.next_multiple_of(4).max(4)..)
                .unwrap_or_default();
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_are_padded() {
        let message = Message::new(16, CREATE, &[0; 16])
            .text(3, "eth0")
            .nest(18, |info| info.text(1, "veth"));
        let bytes = message.finish(7, true);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(read_u32(&bytes, 0) as usize, bytes.len());
        assert_eq!(read_u32(&bytes, 8), 7);
        assert_eq!(&bytes[32..41], b"\x09\0\x03\0eth0\0");
        // 4 of the nest's own, then "veth\0" with its header, padded to 12.
        assert_eq!(u16::from_ne_bytes([bytes[44], bytes[45]]), 16);
        assert_eq!(u16::from_ne_bytes([bytes[46], bytes[47]]), 18 | NESTED);
    }

    #[test]
    fn the_kernel_answers() {
        let mut socket = Socket::route().unwrap();
        assert_eq!(socket.index("lo").unwrap(), 1);
        assert_eq!(socket.mtu("lo").unwrap(), 65_536);
        assert!(socket.mtu("no-such-link").is_err());
        assert!(socket.index("no-such-link").is_err());
    }
}
