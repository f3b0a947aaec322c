//! Who answers: the ports of Services that routes lead to, with the endpoints that are ready now.
//!
//! A backend outlives the tables that name it: its endpoints change without a new table, and its counts go on.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ServiceKey {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl ServiceKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How a backend is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    #[default]
    Http,
    /// HTTP/2 without TLS, from the first byte.
    H2c,
    Https,
    /// HTTP/2 over TLS.
    H2,
}

impl Protocol {
    /// What the port of a Service says of itself.
    pub(crate) fn of_port(port: &ServicePort) -> Self {
        match port.app_protocol.as_deref() {
            Some("kubernetes.io/h2c" | "grpc" | "h2c") => Self::H2c,
            Some("https") => Self::Https,
            _ => Self::Http,
        }
    }

    /// The same over HTTP/2, as gRPC needs it.
    pub(crate) fn over_http2(self) -> Self {
        match self {
            Self::Http | Self::H2c => Self::H2c,
            Self::Https | Self::H2 => Self::H2,
        }
    }

    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::H2)
    }
}

/// Somebody outside the cluster, looked up anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outside {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum To {
    Endpoint(SocketAddr),
    Outside(Outside),
}

impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Endpoint(addr) => addr.fmt(f),
            Self::Outside(Outside { host, port }) => write!(f, "{host}:{port}"),
        }
    }
}

/// A port of a Service, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BackendKey {
    pub(crate) service: ServiceKey,
    /// Its name in the Service, empty where it has none: slices carry the same.
    pub(crate) port: Arc<str>,
    pub(crate) protocol: Protocol,
    /// Who answers for a Service that is a mere name (ExternalName).
    pub(crate) outside: Option<Outside>,
}

/// What is known of a Service as a whole.
#[derive(Debug)]
pub(crate) struct ServiceState {
    in_flight: AtomicUsize,
    /// Milliseconds since [`ServiceState::born`].
    last_active: AtomicU64,
    born: Instant,
    /// Milliseconds without a request after which it may sleep; 0: never.
    sleeps_after: AtomicU64,
}

impl ServiceState {
    fn new() -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            last_active: AtomicU64::new(0),
            born: Instant::now(),
            sleeps_after: AtomicU64::new(0),
        }
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        self.touch();
        InFlight(Arc::clone(self))
    }

    pub(crate) fn touch(&self) {
        self.last_active.store(self.now(), Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// For how long nobody asked; `None` while somebody does.
    pub(crate) fn idle_millis(&self) -> Option<u64> {
        let busy = self.in_flight.load(Ordering::SeqCst) > 0;
        (!busy).then(|| {
            self.now()
                .saturating_sub(self.last_active.load(Ordering::SeqCst))
        })
    }

    pub(crate) fn set_sleeps_after(&self, millis: u64) {
        self.sleeps_after.store(millis, Ordering::Relaxed);
    }

    /// Whether somebody has to be woken when there is no endpoint.
    pub(crate) fn may_sleep(&self) -> bool {
        self.sleeps_after.load(Ordering::Relaxed) > 0
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<ServiceState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.touch();
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A port of a Service with who answers for it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) key: BackendKey,
    pub(crate) service: Arc<ServiceState>,
    endpoints: watch::Sender<Arc<[SocketAddr]>>,
    next: AtomicUsize,
}

impl Backend {
    /// The endpoints as of now.
    pub(crate) fn endpoints(&self) -> Arc<[SocketAddr]> {
        self.endpoints.borrow().clone()
    }

    /// Where the next attempt goes; `None`: there is nobody yet.
    pub(crate) fn next(&self, tried: &[To]) -> Option<To> {
        if let Some(outside) = &self.key.outside {
            return Some(To::Outside(outside.clone()));
        }
        let endpoint = |to: &To| match to {
            To::Endpoint(addr) => Some(*addr),
            To::Outside(_) => None,
        };
        let tried: Vec<SocketAddr> = tried.iter().filter_map(endpoint).collect();
        self.pick(&tried).map(To::Endpoint)
    }

    /// The endpoint whose turn it is, one of `tried` only when there is no other.
    pub(crate) fn pick(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let all = self.endpoints();
        if all.is_empty() {
            return None;
        }
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let mut turns = (0..all.len()).map(|step| all[start.wrapping_add(step) % all.len()]);
        turns
            .find(|one| !tried.contains(one))
            .or_else(|| all.get(start % all.len()).copied())
    }

    /// Waits until there is an endpoint.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn ready(&self) {
        let mut changes = self.endpoints.subscribe();
        // The sender lives in self.
        changes.wait_for(|all| !all.is_empty()).await.ok();
    }
}

/// All backends that some table names.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Whether the door of a Service that sleeps is an endpoint like others: somebody else wakes it.
    through_doors: bool,
    backends: Mutex<HashMap<BackendKey, Weak<Backend>>>,
    services: Mutex<HashMap<ServiceKey, Weak<ServiceState>>>,
}

impl Registry {
    pub(crate) fn new(through_doors: bool) -> Self {
        Self {
            through_doors,
            ..Self::default()
        }
    }

    /// Makes known for how long nobody has to ask a Service until it may sleep.
    pub(crate) fn set_sleeps_after(&self, service: &ServiceState, millis: u64) {
        service.set_sleeps_after(if self.through_doors { 0 } else { millis });
    }

    /// The backend of a key; a new one has no endpoints until the next [`Registry::refresh`].
    pub(crate) fn backend(&self, key: &BackendKey) -> Arc<Backend> {
        let mut backends = self.backends.lock();
        if let Some(known) = backends.get(key).and_then(Weak::upgrade) {
            return known;
        }
        let backend = Arc::new(Backend {
            key: key.clone(),
            service: self.service(&key.service),
            endpoints: watch::Sender::new(Arc::default()),
            next: AtomicUsize::new(rand::random_range(0..1024)),
        });
        backends.insert(key.clone(), Arc::downgrade(&backend));
        backend
    }

    /// What is known of a Service.
    pub(crate) fn service(&self, key: &ServiceKey) -> Arc<ServiceState> {
        let mut services = self.services.lock();
        if let Some(known) = services.get(key).and_then(Weak::upgrade) {
            return known;
        }
        let service = Arc::new(ServiceState::new());
        services.insert(key.clone(), Arc::downgrade(&service));
        service
    }

    /// Whether any backend is of this Service.
    pub(crate) fn knows(&self, key: &ServiceKey) -> bool {
        self.services.lock().contains_key(key)
    }

    /// Tells every backend its endpoints, and forgets those that no table names any more.
    pub(crate) fn refresh(&self, slices_of: impl Fn(&ServiceKey) -> Vec<Arc<EndpointSlice>>) {
        let alive: Vec<Arc<Backend>> = {
            let mut backends = self.backends.lock();
            backends.retain(|_, backend| backend.strong_count() > 0);
            backends.values().filter_map(Weak::upgrade).collect()
        };
        for backend in alive {
            let mut slices = slices_of(&backend.key.service);
            slices.retain(|slice| self.through_doors || !is_activator(slice));
            let found: Arc<[SocketAddr]> =
                endpoints(&slices, &backend.key.port, !backend.service.may_sleep()).into();
            backend.endpoints.send_if_modified(|known| {
                let changed = **known != *found;
                if changed {
                    *known = found;
                }
                changed
            });
        }
        self.services
            .lock()
            .retain(|_, service| service.strong_count() > 0);
    }
}

/// The label by which the activator's own slices are known: they lead back to the gateway.
pub(crate) const ACTIVATOR: &str = "activator.coxswain.dev";
/// The label that says whose a slice is.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Who answers on a named port: endpoints that are ready; when none is, those that end but still serve, unless somebody else can be
/// started. Pure.
pub(crate) fn endpoints(
    slices: &[Arc<EndpointSlice>],
    port: &str,
    or_draining: bool,
) -> Vec<SocketAddr> {
    let of = |family: &str, fits: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for slice in slices.iter().filter(|slice| slice.address_type == family) {
            let named = slice.ports.iter().flatten().find(|one| {
                one.name.as_deref().unwrap_or_default() == port
                    && one.protocol.as_deref().unwrap_or("TCP") == "TCP"
            });
            let Some(number) = named.and_then(|one| u16::try_from(one.port?).ok()) else {
                continue;
            };
            let endpoints = slice.endpoints.iter().flatten().filter(|one| fits(one));
            let addresses =
                endpoints.filter_map(|one| one.addresses.first()?.parse::<IpAddr>().ok());
            all.extend(addresses.map(|ip| SocketAddr::new(ip, number)));
        }
        all.sort_unstable();
        all.dedup();
        all
    };
    let ready = |one: &Endpoint| {
        let conditions = one.conditions.as_ref();
        conditions.and_then(|all| all.ready).unwrap_or(true)
    };
    let draining = |one: &Endpoint| {
        let conditions = one.conditions.as_ref();
        conditions.is_some_and(|all| all.serving == Some(true) && all.terminating == Some(true))
    };
    let choices: [&dyn Fn(&Endpoint) -> bool; 2] = [&ready, &draining];
    for fits in &choices[..1 + usize::from(or_draining)] {
        for family in ["IPv4", "IPv6"] {
            let found = of(family, *fits);
            if !found.is_empty() {
                return found;
            }
        }
    }
    Vec::new()
}

/// Whether a slice leads back to the gateway.
pub(crate) fn is_activator(slice: &EndpointSlice) -> bool {
    label(slice, MANAGED_BY) == Some(ACTIVATOR)
}

/// Whose endpoints a slice holds.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ServiceKey> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    Some(ServiceKey::new(namespace, label(slice, SERVICE_NAME)?))
}

fn label<'a>(slice: &'a EndpointSlice, name: &str) -> Option<&'a str> {
    Some(slice.metadata.labels.as_ref()?.get(name)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(family: &str, manager: &str, endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        let slice = json!({"metadata": {"labels": {MANAGED_BY: manager}}, "addressType": family,
            "ports": [{"name": "web", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}], "endpoints": endpoints});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    #[test]
    fn who_answers() {
        let up = json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.1"]}]);
        let down = json!([{"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]);
        let ending = json!([{"addresses": ["10.0.0.4"],
            "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        let both = [
            slice("IPv4", "c", up.clone()),
            slice("IPv4", "c", down.clone()),
        ];
        for (case, slices, port, expected) in [
            (
                "those that are ready, and those of whom nobody says",
                &both[..],
                "web",
                "10.0.0.1:8080 10.0.0.2:8080",
            ),
            ("a port of another name", &both[..], "other", ""),
            ("a port that is not TCP", &both[..], "dns", ""),
            (
                "none is ready",
                &[slice("IPv4", "c", down.clone())],
                "web",
                "",
            ),
            (
                "one that ends still serves",
                &[slice("IPv4", "c", ending.clone())],
                "web",
                "10.0.0.4:8080",
            ),
            (
                "not while one is ready",
                &[slice("IPv4", "c", ending), slice("IPv4", "c", up)],
                "web",
                "10.0.0.1:8080 10.0.0.2:8080",
            ),
            (
                "the other family",
                &[slice("IPv6", "c", json!([{"addresses": ["fd00::1"]}]))],
                "web",
                "[fd00::1]:8080",
            ),
        ] {
            let found: Vec<String> = endpoints(slices, port, true)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found.join(" "), expected, "{case}");
        }
    }

    #[test]
    fn one_that_ends_is_not_asked_where_another_can_be_started() {
        let ending = json!([{"addresses": ["10.0.0.4"],
            "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        assert!(endpoints(&[slice("IPv4", "c", ending)], "web", false).is_empty());
    }

    #[test]
    fn the_door_of_one_that_sleeps_is_asked_by_others_only() {
        let up = json!([{"addresses": ["10.0.0.1"]}]);
        for (through_doors, expected) in [(false, 0), (true, 1)] {
            let registry = Registry::new(through_doors);
            let backend = registry.backend(&BackendKey {
                service: ServiceKey::new("default", "web"),
                port: "web".into(),
                protocol: Protocol::Http,
                outside: None,
            });
            registry.set_sleeps_after(&backend.service, 1000);
            registry.refresh(|_| vec![slice("IPv4", ACTIVATOR, up.clone())]);
            assert_eq!(backend.endpoints().len(), expected);
            assert_eq!(backend.service.may_sleep(), !through_doors);
        }
    }

    #[test]
    fn turns_and_counts() {
        let registry = Registry::default();
        let key = BackendKey {
            service: ServiceKey::new("default", "web"),
            port: "web".into(),
            protocol: Protocol::Http,
            outside: None,
        };
        let backend = registry.backend(&key);
        assert_eq!(backend.pick(&[]), None);
        let up = json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]);
        registry.refresh(|_| vec![slice("IPv4", "c", up.clone())]);
        let (first, second) = (backend.pick(&[]).unwrap(), backend.pick(&[]).unwrap());
        assert_ne!(first, second);
        assert_eq!(backend.pick(&[first]), Some(second));
        assert_eq!(backend.pick(&[second]), Some(first));
        assert!(
            backend.pick(&[first, second]).is_some(),
            "better one again than none"
        );
        let guard = backend.service.begin();
        assert_eq!(registry.service(&key.service).idle_millis(), None);
        drop(guard);
        assert!(backend.service.idle_millis().is_some());
        drop(backend);
        registry.refresh(|_| Vec::new());
        assert!(registry.backends.lock().is_empty() && registry.services.lock().is_empty());
    }
}
