//! WireGuard between nodes: this node's key, and the kernel's interface (family `wireguard` of generic netlink).
//!
//! The key is made once and stays on the node; the kernel works out the public one, which an annotation of the Node tells the others.
//! Nobody but a node's own credentials may write there (NodeRestriction).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use rand::TryRngCore;

use super::plan::Peer;
use crate::netlink::{Attrs, Family, IPV4, IPV6, attr, attr_u16, attrs, read_ip};

/// Where a node tells its public key.
pub(crate) const ANNOTATION: &str = "coxswain.dev/wireguard-public-key";
/// Where it tells its port, if that is another than [`PORT`].
pub(crate) const PORT_ANNOTATION: &str = "coxswain.dev/wireguard-port";
pub(crate) const INTERFACE: &str = "cox-wg";
/// The port that WireGuard's own documents have.
pub const PORT: u16 = 51_820;
/// What WireGuard adds to a packet, at most: its own head and end, UDP, and IPv6.
pub(crate) const OVERHEAD: u32 = 80;

const FAMILY: &str = "wireguard";
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
mod device {
    pub(super) const NAME: u16 = 2;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const PUBLIC_KEY: u16 = 4;
    pub(super) const PORT: u16 = 6;
    pub(super) const PEERS: u16 = 8;
}
mod peer {
    pub(super) const KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const ALLOWED: u16 = 9;
    /// Values of `FLAGS`.
    pub(super) const REMOVE: u32 = 1;
    pub(super) const REPLACE_ALLOWED: u32 = 2;
}
mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDR: u16 = 2;
    pub(super) const BITS: u16 = 3;
}
const KEY_BYTES: usize = 32;

/// Why there is no WireGuard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireguardError {
    #[error("the key file {0} cannot be {1}: {2}")]
    KeyFile(String, &'static str, #[source] io::Error),
    #[error("the key file {0} holds no key: remove it, and a new one is made")]
    NoKey(String),
    #[error("the kernel's WireGuard cannot be had: {0}")]
    Open(#[source] io::Error),
    #[error("WireGuard's interface {INTERFACE} cannot be {0}: {1}")]
    Device(&'static str, #[source] io::Error),
}

/// A node's own key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PrivateKey([u8; KEY_BYTES]);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl PrivateKey {
    /// The one in the file; a new one where there is no file.
    pub(crate) fn kept(path: &Path) -> Result<Self, WireguardError> {
        let name = || path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => {
                let key = decode(text.trim());
                key.map(Self).ok_or_else(|| WireguardError::NoKey(name()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key =
                    Self::new().map_err(|error| WireguardError::KeyFile(name(), "made", error))?;
                key.keep(path)
                    .map_err(|error| WireguardError::KeyFile(name(), "written", error))?;
                Ok(key)
            }
            Err(error) => Err(WireguardError::KeyFile(name(), "read", error)),
        }
    }

    /// Any 32 bytes are a key: the kernel sets the bits that the curve wants.
    fn new() -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        rand::rngs::OsRng
            .try_fill_bytes(&mut bytes)
            .map_err(io::Error::other)?;
        Ok(Self(bytes))
    }

    /// As a whole or not at all, for its owner alone.
    fn keep(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        writeln!(file, "{}", STANDARD.encode(self.0))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }
}

fn decode(text: &str) -> Option<[u8; KEY_BYTES]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Whether this kernel has WireGuard.
pub(crate) fn is_there() -> bool {
    Family::open(None, FAMILY).is_ok()
}

/// The interface in one network namespace; it exists.
#[derive(Debug)]
pub(crate) struct Device {
    family: Family,
}

impl Device {
    pub(crate) fn open(netns: Option<&str>) -> Result<Self, WireguardError> {
        let family = Family::open(netns, FAMILY).map_err(WireguardError::Open)?;
        Ok(Self { family })
    }

    /// Gives it the node's key and port; answers the public key. What it has already changes nothing.
    pub(crate) fn set_up(&mut self, key: &PrivateKey, port: u16) -> Result<String, WireguardError> {
        let failed = |error| WireguardError::Device("set up", error);
        let told = name()
            .put(device::PRIVATE_KEY, &key.0)
            .u16(device::PORT, port);
        self.family.tell(SET_DEVICE, &told).map_err(failed)?;
        let answers = self.family.dump(GET_DEVICE, &name()).map_err(failed)?;
        let keys = answers.iter();
        let public = keys.filter_map(|answer| attr(answer, device::PUBLIC_KEY));
        let public = public.map(|key| STANDARD.encode(key)).next();
        public.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    /// Makes its peers those that are wanted; answers how many were changed.
    pub(crate) fn sync(
        &mut self,
        wanted: &BTreeMap<String, Peer>,
    ) -> Result<usize, WireguardError> {
        let read = self.family.dump(GET_DEVICE, &name());
        let present = peers(&read.map_err(|error| WireguardError::Device("read", error))?);
        let steps = difference(&present, wanted);
        for step in &steps {
            // One message each: a cluster's peers together are larger than a message may be.
            let list = Attrs::default().nest(0, step);
            let told = name().nest(device::PEERS, &list);
            let done = self.family.tell(SET_DEVICE, &told);
            done.map_err(|error| WireguardError::Device("given a peer", error))?;
        }
        Ok(steps.len())
    }
}

fn name() -> Attrs {
    Attrs::default().text(device::NAME, INTERFACE)
}

/// A peer that the kernel has; its endpoint may have moved, or never have been there.
type Present = BTreeMap<String, (Option<SocketAddr>, Vec<IpNet>)>;

/// The peers to be changed, as the kernel wants them: first those that go, whose ranges others may get.
fn difference(present: &Present, wanted: &BTreeMap<String, Peer>) -> Vec<Attrs> {
    let mut steps = Vec::new();
    for key in present.keys().filter(|key| !wanted.contains_key(*key)) {
        let bytes = decode(key).unwrap_or_default();
        steps.push(
            Attrs::default()
                .put(peer::KEY, &bytes)
                .u32(peer::FLAGS, peer::REMOVE),
        );
    }
    for (key, peer) in wanted {
        let known = present.get(key).is_some_and(|(endpoint, allowed)| {
            let mut allowed = allowed.clone();
            allowed.sort_unstable();
            *endpoint == Some(peer.endpoint) && allowed.iter().eq(&peer.allowed)
        });
        // Who tells something else than a key is no peer.
        if let Some(bytes) = decode(key)
            && !known
        {
            steps.push(encode(&bytes, peer));
        }
    }
    steps
}

fn encode(key: &[u8; KEY_BYTES], peer: &Peer) -> Attrs {
    let mut ranges = Attrs::default();
    for range in &peer.allowed {
        let one = Attrs::default();
        let one = match range.network() {
            IpAddr::V4(ip) => one
                .u16(allowed::FAMILY, IPV4)
                .put(allowed::ADDR, &ip.octets()),
            IpAddr::V6(ip) => one
                .u16(allowed::FAMILY, IPV6)
                .put(allowed::ADDR, &ip.octets()),
        };
        ranges = ranges.nest(0, &one.put(allowed::BITS, &[range.prefix_len()]));
    }
    Attrs::default()
        .put(peer::KEY, key)
        .u32(peer::FLAGS, peer::REPLACE_ALLOWED)
        .put(peer::ENDPOINT, &sockaddr(peer.endpoint))
        .nest(peer::ALLOWED, &ranges)
}

/// As C has it.
fn sockaddr(addr: SocketAddr) -> Vec<u8> {
    let port = addr.port().to_be_bytes();
    match addr.ip() {
        IpAddr::V4(ip) => [&IPV4.to_ne_bytes()[..], &port, &ip.octets(), &[0; 8]].concat(),
        IpAddr::V6(ip) => [
            &IPV6.to_ne_bytes()[..],
            &port,
            &[0; 4],
            &ip.octets(),
            &[0; 4],
        ]
        .concat(),
    }
}

fn read_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let at = if family == IPV4 { 4 } else { 8 };
    Some(SocketAddr::new(read_ip(family, bytes.get(at..)?)?, port))
}

/// The peers that messages tell of; one with many ranges goes on in the next message.
fn peers(messages: &[Vec<u8>]) -> Present {
    let mut all = Present::new();
    let lists = messages.iter().filter_map(|one| attr(one, device::PEERS));
    for (_, bytes) in lists.flat_map(attrs) {
        let Some(key) = attr(bytes, peer::KEY) else {
            continue;
        };
        let entry = all.entry(STANDARD.encode(key)).or_default();
        entry.0 = attr(bytes, peer::ENDPOINT)
            .and_then(read_sockaddr)
            .or(entry.0);
        let ranges = attr(bytes, peer::ALLOWED).into_iter().flat_map(attrs);
        entry.1.extend(ranges.filter_map(|(_, range)| {
            let ip = read_ip(
                attr_u16(range, allowed::FAMILY)?,
                attr(range, allowed::ADDR)?,
            )?;
            IpNet::new(ip, *attr(range, allowed::BITS)?.first()?).ok()
        }));
    }
    all
}

#[cfg(test)]
mod packets;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_to_oneself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let key = PrivateKey::kept(&path).unwrap();
        assert_eq!(PrivateKey::kept(&path).unwrap(), key);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(format!("{key:?}"), "PrivateKey");
        fs::write(&path, "not a key\n").unwrap();
        assert!(matches!(
            PrivateKey::kept(&path),
            Err(WireguardError::NoKey(_))
        ));
    }

    #[test]
    fn peers_are_changed_by_what_is_different() {
        let key = |byte: u8| STANDARD.encode([byte; KEY_BYTES]);
        let peer = |endpoint: &str, allowed: &[&str]| Peer {
            endpoint: endpoint.parse().unwrap(),
            allowed: allowed.iter().map(|range| range.parse().unwrap()).collect(),
        };
        let wanted = BTreeMap::from([
            (
                key(1),
                peer("192.0.2.2:51820", &["10.64.64.0/18", "fd64:1::/64"]),
            ),
            (key(2), peer("[fd01::3]:51820", &["10.64.128.0/18"])),
            ("nonsense".to_owned(), peer("192.0.2.9:51820", &[])),
        ]);
        let steps = difference(&Present::new(), &wanted);
        assert_eq!(steps.len(), 2);
        // The kernel tells them in the same form.
        let mut list = Attrs::default();
        for step in &steps {
            list = list.nest(0, step);
        }
        let told = name().nest(device::PEERS, &list);
        let present = peers(&[told.bytes().to_vec()]);
        assert_eq!(present.len(), 2);
        assert!(difference(&present, &wanted).is_empty(), "settled");
        let moved = BTreeMap::from([(key(1), peer("192.0.2.7:51820", &["10.64.64.0/18"]))]);
        let steps = difference(&present, &moved);
        let flags: Vec<Option<u32>> = steps
            .iter()
            .map(|step| crate::netlink::attr_u32(step.bytes(), peer::FLAGS))
            .collect();
        assert_eq!(flags, [Some(peer::REMOVE), Some(peer::REPLACE_ALLOWED)]);
    }
}
