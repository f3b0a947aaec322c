//! Services as the seam knows them, from a table that the node's proxy writes (`network/src/table.rs`).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

use super::Protocol;
use super::told::Told;

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

/// Which client talks to which port of a Service.
type Flow = (IpAddr, Protocol, SocketAddr);

/// The present table.
#[derive(Debug, Default)]
pub(crate) struct Services {
    told: Told<Table>,
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
            told: Told::new(path),
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
        self.told.table(Table::new)
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
