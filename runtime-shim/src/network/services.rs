//! Services as the seam knows them: a file that the node's proxy writes (`network/src/table.rs`), looked at when a guest connects.
//!
//! The file is replaced as a whole, so one of another inode is another table; asking for that costs a microsecond per connection,
//! and there is no watch that could lag behind. Without a file there are no Services.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

use super::Protocol;

/// A UDP client keeps its endpoint as long as it goes on sending, as with conntrack.
const DATAGRAM_FLOW: Duration = Duration::from_secs(60);
/// Clients that are remembered; beyond, old ones are forgotten.
const CLIENTS_MAX: usize = 16_384;

/// What the file holds.
#[derive(Debug, Deserialize)]
struct File {
    services: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    protocol: String,
    addresses: Vec<SocketAddr>,
    affinity_secs: Option<u32>,
    endpoints: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Table {
    ports: HashMap<(Protocol, SocketAddr), Arc<Port>>,
    endpoints: HashSet<SocketAddr>,
}

#[derive(Debug)]
struct Port {
    endpoints: Vec<SocketAddr>,
    sticky: Option<Duration>,
}

/// Which file was read: inode, time and length.
type Version = (u64, i64, i64, u64);

/// Which client talks to which port of a Service.
type Flow = (IpAddr, Protocol, SocketAddr);

/// The present table.
#[derive(Debug, Default)]
pub(crate) struct Services {
    path: Option<PathBuf>,
    read: Mutex<(Option<Version>, Arc<Table>)>,
    clients: Mutex<HashMap<Flow, (SocketAddr, Instant)>>,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No Service's.
    NoService,
    /// A Service's, and this one is to be talked to.
    Endpoint(SocketAddr),
    /// A Service's that has nobody behind it.
    NoEndpoint,
}

impl Services {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            ..Self::default()
        }
    }

    /// Whom `client` talks to when it asks for `wanted`.
    pub(crate) fn find(&self, client: IpAddr, wanted: SocketAddr, protocol: Protocol) -> Found {
        let table = self.table();
        let Some(port) = table.ports.get(&(protocol, wanted)) else {
            return Found::NoService;
        };
        if port.endpoints.is_empty() {
            return Found::NoEndpoint;
        }
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), wanted);
        let count = u64::try_from(port.endpoints.len()).unwrap_or(1);
        let at = usize::try_from(random % count).unwrap_or(0);
        let fresh = port.endpoints[at];
        let Some(timeout) = port.sticky else {
            return Found::Endpoint(fresh);
        };
        let now = Instant::now();
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|_, (_, seen)| now.duration_since(*seen) < timeout);
        }
        let kept = clients
            .entry((client, protocol, wanted))
            .or_insert((fresh, now));
        if now.duration_since(kept.1) >= timeout || !port.endpoints.contains(&kept.0) {
            kept.0 = fresh;
        }
        kept.1 = now;
        Found::Endpoint(kept.0)
    }

    /// Whether a Service leads there: then it is open even where the host's own addresses are not.
    pub(crate) fn is_endpoint(&self, addr: SocketAddr) -> bool {
        self.table().endpoints.contains(&addr)
    }

    fn table(&self) -> Arc<Table> {
        let Some(path) = &self.path else {
            return Arc::default();
        };
        let version = std::fs::metadata(path)
            .ok()
            .map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()));
        let mut read = self.read.lock();
        if version.is_none() || read.0 == version {
            // A proxy that is gone leaves the last table standing.
            return Arc::clone(&read.1);
        }
        let parsed = std::fs::read(path)
            .map_err(|err| err.to_string())
            .and_then(|bytes| {
                serde_json::from_slice::<File>(&bytes).map_err(|err| err.to_string())
            });
        match parsed {
            Ok(file) => *read = (version, Arc::new(Table::new(file))),
            Err(err) => {
                tracing::warn!(error = err, file = %path.display(), "The table of Services cannot be read");
                read.0 = version;
            }
        }
        Arc::clone(&read.1)
    }
}

impl Table {
    fn new(file: File) -> Self {
        let mut table = Self::default();
        for row in file.services {
            let protocol = match row.protocol.as_str() {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => continue,
            };
            let flow = (protocol == Protocol::Udp).then_some(DATAGRAM_FLOW);
            let affinity = row
                .affinity_secs
                .map(|secs| Duration::from_secs(secs.into()));
            table.endpoints.extend(&row.endpoints);
            let port = Arc::new(Port {
                endpoints: row.endpoints,
                sticky: affinity.or(flow),
            });
            for addr in row.addresses {
                table.ports.insert((protocol, addr), Arc::clone(&port));
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_becomes_an_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.json");
        let services = Services::new(Some(path.clone()));
        let client: IpAddr = "127.64.0.7".parse().unwrap();
        let web: SocketAddr = "127.128.0.5:80".parse().unwrap();
        assert_eq!(services.find(client, web, Protocol::Tcp), Found::NoService);
        let write = |endpoints: &str, affinity: &str| {
            let text = format!(
                "{{\"services\":[{{\"protocol\":\"tcp\",\"addresses\":[\"{web}\"],\"affinity_secs\":{affinity},\"endpoints\":[{endpoints}]}}]}}"
            );
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
        };
        write("", "null");
        assert_eq!(services.find(client, web, Protocol::Tcp), Found::NoEndpoint);
        assert_eq!(services.find(client, web, Protocol::Udp), Found::NoService);
        write("\"127.64.0.8:8080\",\"127.64.0.9:8080\"", "null");
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let Found::Endpoint(endpoint) = services.find(client, web, Protocol::Tcp) else {
                panic!("has endpoints")
            };
            assert!(services.is_endpoint(endpoint));
            seen.insert(endpoint);
        }
        assert_eq!(seen.len(), 2, "both take their part");
        write("\"127.64.0.8:8080\",\"127.64.0.9:8080\"", "60");
        let first = services.find(client, web, Protocol::Tcp);
        for _ in 0..50 {
            assert_eq!(
                services.find(client, web, Protocol::Tcp),
                first,
                "a client keeps its endpoint"
            );
        }
        write("\"127.64.0.10:8080\"", "60");
        let last = Found::Endpoint("127.64.0.10:8080".parse().unwrap());
        assert_eq!(
            services.find(client, web, Protocol::Tcp),
            last,
            "unless it is gone"
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            services.find(client, web, Protocol::Tcp),
            last,
            "a gone proxy changes nothing"
        );
    }
}
