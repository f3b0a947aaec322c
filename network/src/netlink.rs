//! The kernel's generic netlink, for what no program of every machine can do: messages, their attributes, and a socket that asks.
//!
//! The kernel answers before `send` returns, so nothing here waits for anybody. Families are asked for by name; asking makes the
//! kernel load the module of that name where it has one.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::net::{netlink, recv, send, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const MESSAGE_HEAD: usize = 16;
const GENERIC_HEAD: usize = 4;
/// Attributes begin at multiples of four bytes, and so do messages.
const ALIGN: usize = 4;
const NESTED: u16 = 0x8000;
/// The bits of an attribute's kind that are flags.
const KIND_MASK: u16 = 0x3fff;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;

/// Who knows the other families: `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and two of its attributes.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// Kinds of addresses, as the kernel numbers them (`AF_INET`, `AF_INET6`).
pub(crate) const IPV4: u16 = 2;
pub(crate) const IPV6: u16 = 10;

/// The kernel writes no more than this into one answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// It never takes that long; a lost answer must not stop a node's network for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The address that `bytes` begin with; `None` where they are too few, or of another kind.
pub(crate) fn read_ip(kind: u16, bytes: &[u8]) -> Option<IpAddr> {
    match kind {
        IPV4 => bytes.first_chunk::<4>().map(|octets| (*octets).into()),
        IPV6 => bytes.first_chunk::<16>().map(|octets| (*octets).into()),
        _ => None,
    }
}

/// Attributes of a message, as they are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attrs(Vec<u8>);

impl Attrs {
    pub(crate) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + ALIGN).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    pub(crate) fn u16(self, kind: u16, value: u16) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A text as C has it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
}

/// The attributes that bytes hold, by their kinds; what is cut off ends them.
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(ALIGN..len)?;
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind & KIND_MASK, value))
    })
}

/// The first attribute of that kind.
pub(crate) fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes)
        .find(|(one, _)| *one == kind)
        .map(|(_, value)| value)
}

pub(crate) fn attr_u16(bytes: &[u8], kind: u16) -> Option<u16> {
    Some(u16::from_ne_bytes(attr(bytes, kind)?.try_into().ok()?))
}

pub(crate) fn attr_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attr(bytes, kind)?.try_into().ok()?))
}

/// A family of messages, in one network namespace.
#[derive(Debug)]
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
    sequence: u32,
}

impl Family {
    /// Not found where the kernel has no such family. `netns` is a name of `ip netns`; none: the one of this process.
    pub(crate) fn open(netns: Option<&str>, name: &str) -> io::Result<Self> {
        let mut family = Self {
            socket: within(netns, open_socket)??,
            id: CONTROL,
            sequence: 0,
        };
        let asked = Attrs::default().text(FAMILY_NAME, name);
        let answers = family.get(GET_FAMILY, &asked)?;
        let id = answers.iter().find_map(|one| attr_u16(one, FAMILY_ID));
        family.id = id.ok_or(io::ErrorKind::NotFound)?;
        Ok(family)
    }

    /// Asks for something to be done.
    pub(crate) fn tell(&mut self, command: u8, attrs: &Attrs) -> io::Result<()> {
        self.exchange(command, ACK, attrs).map(drop)
    }

    /// Asks for one thing; answers are the attributes of each message.
    pub(crate) fn get(&mut self, command: u8, attrs: &Attrs) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(command, ACK, attrs)
    }

    /// Asks for all there are.
    pub(crate) fn dump(&mut self, command: u8, attrs: &Attrs) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(command, DUMP, attrs)
    }

    fn exchange(&mut self, command: u8, flags: u16, attrs: &Attrs) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(self.id, command, (REQUEST | flags, self.sequence), attrs);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let (len, _) = recv(&self.socket, &mut *buffer, RecvFlags::empty())?;
            if take(&buffer[..len], self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::GENERIC);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

fn message(family: u16, command: u8, (flags, sequence): (u16, u32), attrs: &Attrs) -> Vec<u8> {
    const VERSION: u8 = 1;
    let len = MESSAGE_HEAD + GENERIC_HEAD + attrs.0.len();
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // Whose it is: the kernel fills that in.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([command, VERSION, 0, 0]);
    bytes.extend(&attrs.0);
    bytes
}

/// Takes what belongs to the request of that number; whether that was all of it.
fn take(mut bytes: &[u8], sequence: u32, answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    while let (Some(len), Some(number)) = (word(bytes, 0), word(bytes, 8)) {
        let len = usize::try_from(len).unwrap_or_default();
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let Some(body) = bytes.get(MESSAGE_HEAD..len) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if number == sequence {
            match kind {
                DONE => return Ok(true),
                ERROR => {
                    let code = word(body, 0).map_or(0, u32::cast_signed);
                    return match code {
                        0 => Ok(true),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => answers.push(body.get(GENERIC_HEAD..).unwrap_or_default().to_vec()),
            }
        }
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    Ok(false)
}

/// Does something in a network namespace of that name, where there is one: a thread of its own goes there.
pub(crate) fn within<T: Send + 'static>(
    netns: Option<&str>,
    what: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let Some(name) = netns else {
        return Ok(what());
    };
    let place = File::open(format!("/run/netns/{name}"))?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(what())
    });
    thread
        .join()
        .map_err(|_| io::Error::other("the thread in the namespace panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attrs::default().u32(7, 0xdead_beef).text(8, "rr");
        let outer = Attrs::default().u16(1, 2).nest(3, &inner).put(4, b"x");
        assert_eq!(outer.0.len() % 4, 0);
        assert_eq!(attr_u16(&outer.0, 1), Some(2));
        let nested = attr(&outer.0, 3).unwrap();
        assert_eq!(attr_u32(nested, 7), Some(0xdead_beef));
        assert_eq!(attr(nested, 8), Some(&b"rr\0"[..]));
        assert_eq!(attr(&outer.0, 4), Some(&b"x"[..]));
        assert_eq!(attr(&outer.0, 5), None);
        assert_eq!(attrs(&outer.0[..outer.0.len() - 4]).count(), 2, "cut off");
        assert_eq!(attrs(&[3, 0, 0]).count(), 0);
    }

    #[test]
    fn answers_are_taken_from_their_messages() {
        let body = Attrs::default().u16(1, 9);
        let mut bytes = message(20, 1, (0, 5), &body);
        bytes.extend(message(20, 1, (0, 4), &body));
        let mut answers = Vec::new();
        assert!(!take(&bytes, 5, &mut answers).unwrap(), "there is more");
        assert_eq!(answers.len(), 1, "of this request alone");
        assert_eq!(answers[0], body.0);
        let mut error = message(ERROR, 0, (0, 5), &Attrs::default());
        error[16..20].copy_from_slice(&(-2_i32).to_ne_bytes());
        let told = take(&error, 5, &mut answers).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::NotFound);
        error[16..20].fill(0);
        assert!(take(&error, 5, &mut answers).unwrap(), "done");
        error[0] = 200;
        assert!(take(&error, 5, &mut answers).is_err(), "cut off");
    }

    #[test]
    fn the_kernel_knows_its_own_families() {
        assert_eq!(Family::open(None, "nlctrl").unwrap().id, CONTROL);
        let none = Family::open(None, "coxswain").unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
