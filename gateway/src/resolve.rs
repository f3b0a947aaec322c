//! What routes name, looked up: the port of a Service becomes a backend, a Secret a certificate. What is missing becomes one clear
//! sentence, which the client gets as an answer and the object as an Event.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Secret, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;

use crate::backend::{BackendKey, Outside, Protocol, Registry, ServiceKey};
use crate::data::tls;
use crate::table::Target;

/// On a Service: after how long without a request its Deployment goes to 0 replicas.
pub(crate) const SCALE_TO_ZERO: &str = "coxswain.dev/scale-to-zero";

/// Something that its owner should know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) object: ObjectReference,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// A port as a route names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortRef {
    Name(String),
    Number(i32),
}

impl PortRef {
    fn is(&self, port: &ServicePort) -> bool {
        match self {
            Self::Name(name) => port.name.as_ref() == Some(name),
            Self::Number(number) => port.port == *number,
        }
    }
}

impl std::fmt::Display for PortRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A lookup by namespace and name.
pub(crate) type Lookup<'a, K> = &'a dyn Fn(&str, &str) -> Option<Arc<K>>;

/// Where things are looked up, and what was asked for: a change of the latter needs a new table.
pub(crate) struct Resolver<'a> {
    pub(crate) services: Lookup<'a, Service>,
    pub(crate) secrets: Lookup<'a, Secret>,
    pub(crate) registry: &'a Registry,
    pub(crate) certificates: &'a Certificates,
    pub(crate) named: Mutex<Named>,
}

/// The objects that a table depends on.
#[derive(Debug, Default)]
pub(crate) struct Named {
    pub(crate) services: HashSet<ServiceKey>,
    /// Whether any Secret was asked for.
    pub(crate) secrets: bool,
}

impl Resolver<'_> {
    fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.named.lock().services.insert(key.clone());
        (self.services)(&key.namespace, &key.name)
    }

    /// The Service of the cluster that one of type ExternalName is another name of.
    pub(crate) fn stands_for(&self, namespace: &str, name: &str) -> Option<ServiceKey> {
        let service = self.service(&ServiceKey::new(namespace, name))?;
        in_cluster(external_name(&service)?)
    }

    /// Who answers on a port of a Service, by what the port says or the caller makes of it; the reason where nobody can.
    pub(crate) fn backend(
        &self,
        namespace: &str,
        name: &str,
        port: &PortRef,
        protocol: &dyn Fn(Protocol) -> Protocol,
    ) -> Result<Target, String> {
        let mut key = ServiceKey::new(namespace, name);
        let missing = |key: &ServiceKey| format!("Service {key} does not exist.");
        let mut service = self.service(&key).ok_or_else(|| missing(&key))?;
        if let Some(host) = external_name(&service) {
            match in_cluster(host) {
                None => return self.outside(key, &service, host, port, protocol),
                Some(meant) => {
                    service = self.service(&meant).ok_or_else(|| missing(&meant))?;
                    if external_name(&service).is_some() {
                        return Err(format!(
                            "Service {key} is a name of {meant}, which is a mere name itself."
                        ));
                    }
                    key = meant;
                }
            }
        }
        let spec = service.spec.as_ref();
        let ports = spec
            .and_then(|spec| spec.ports.as_deref())
            .unwrap_or_default();
        let found = ports.iter().find(|one| port.is(one));
        let found = found.ok_or_else(|| format!("Service {key} has no port {port}."))?;
        let backend = self.registry.backend(&BackendKey {
            service: key,
            port: found.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(Protocol::of_port(found)),
            outside: None,
        });
        let after = sleeps_after(&service).unwrap_or(0);
        self.registry.set_sleeps_after(&backend.service, after);
        Ok(Target::Backend(backend))
    }

    /// A name outside the cluster. Such Services often list no ports: a number is the port there.
    fn outside(
        &self,
        service: ServiceKey,
        object: &Service,
        host: &str,
        port: &PortRef,
        protocol: &dyn Fn(Protocol) -> Protocol,
    ) -> Result<Target, String> {
        let ports = object.spec.as_ref().and_then(|spec| spec.ports.as_deref());
        let found = ports.unwrap_or_default().iter().find(|one| port.is(one));
        let number = match (found, port) {
            (Some(found), _) => match found.target_port {
                Some(IntOrString::Int(target)) => target,
                _ => found.port,
            },
            (None, PortRef::Number(number)) => *number,
            (None, PortRef::Name(_)) => {
                return Err(format!("Service {service} has no port {port}."));
            }
        };
        let number = u16::try_from(number)
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("Service {service} has no port {port}."))?;
        let backend = self.registry.backend(&BackendKey {
            service,
            port: number.to_string().into(),
            protocol: protocol(found.map(Protocol::of_port).unwrap_or_default()),
            outside: Some(Outside {
                host: host.into(),
                port: number,
            }),
        });
        Ok(Target::Backend(backend))
    }

    /// The certificate in a Secret.
    pub(crate) fn certificate(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<CertifiedKey>, String> {
        self.named.lock().secrets = true;
        let secret = (self.secrets)(namespace, name).ok_or_else(|| {
            format!("Secret {namespace}/{name} of type kubernetes.io/tls does not exist.")
        })?;
        self.certificates.get(&secret)
    }
}

/// The name that a Service of type ExternalName stands for.
fn external_name(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref()?;
    let name = spec.external_name.as_deref().unwrap_or_default();
    (spec.type_.as_deref() == Some("ExternalName")).then(|| name.trim_end_matches('.'))
}

/// The Service that a name of the cluster's own domain means.
fn in_cluster(host: &str) -> Option<ServiceKey> {
    let host = host.strip_suffix(".cluster.local").unwrap_or(host);
    let (name, namespace) = host.strip_suffix(".svc")?.split_once('.')?;
    (!namespace.contains('.')).then(|| ServiceKey::new(namespace, name))
}

/// Milliseconds, where a Service asks to sleep.
pub(crate) fn sleeps_after(service: &Service) -> Option<u64> {
    let annotations = service.metadata.annotations.as_ref()?;
    let text = annotations.get(SCALE_TO_ZERO)?;
    duration_millis(text).filter(|millis| *millis > 0)
}

/// `30s`, `5m`, `1h30m`, `250ms`, or bare seconds.
pub(crate) fn duration_millis(text: &str) -> Option<u64> {
    if let Ok(secs) = text.parse::<u64>() {
        return secs.checked_mul(1000);
    }
    let mut rest = text.trim();
    let mut total = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let end = unit
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(unit.len());
        let factor = match &unit[..end] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let number: u64 = number.parse().ok()?;
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = &unit[end..];
    }
    Some(total)
}

/// Where a Secret stands: namespace and name.
type Place = (String, String);
/// A certificate, or why it is none, of one version of a Secret.
type Parsed = (Option<String>, Result<Arc<CertifiedKey>, String>);

/// Certificates that were read once, for as long as their Secrets stay as they are.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    known: Mutex<HashMap<Place, Parsed>>,
    fallback: Mutex<Option<Arc<CertifiedKey>>>,
}

impl Certificates {
    fn get(&self, secret: &Secret) -> Result<Arc<CertifiedKey>, String> {
        let meta = &secret.metadata;
        let place = (
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        let mut known = self.known.lock();
        if let Some((version, parsed)) = known.get(&place)
            && *version == meta.resource_version
        {
            return parsed.clone();
        }
        let data = |key: &str| {
            let data = secret.data.as_ref().and_then(|data| data.get(key));
            data.map(|bytes| bytes.0.as_slice()).unwrap_or_default()
        };
        let parsed = tls::pair(data("tls.crt"), data("tls.key")).map(Arc::new);
        let (namespace, name) = &place;
        let parsed = parsed
            .map_err(|error| format!("Secret {namespace}/{name} is no certificate: {error}."));
        known.insert(place, (meta.resource_version.clone(), parsed.clone()));
        parsed
    }

    /// Forgets what is not in the cluster any more.
    pub(crate) fn retain(&self, exists: impl Fn(&str, &str) -> bool) {
        self.known
            .lock()
            .retain(|(namespace, name), _| exists(namespace, name));
    }

    /// The one for hosts without a certificate, made when it is first needed.
    pub(crate) fn fallback(&self) -> Option<Arc<CertifiedKey>> {
        let mut fallback = self.fallback.lock();
        if fallback.is_none() {
            *fallback = tls::self_signed();
        }
        fallback.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn who_is_behind_a_mere_name() {
        let service = |namespace: &str, name: &str| -> Option<Arc<Service>> {
            let named = |to: &str, ports: serde_json::Value| json!({"type": "ExternalName", "externalName": to, "ports": ports});
            let spec = match (namespace, name) {
                ("a", "away") => named("www.example.", json!([])),
                ("a", "ports") => named(
                    "www.example",
                    json!([{"name": "web", "port": 80, "targetPort": 8080, "appProtocol": "https"}]),
                ),
                ("a", "neighbour") => named("web.b.svc.cluster.local", json!([])),
                ("a", "short") => named("web.b.svc", json!([])),
                ("a", "chain") => named("away.a.svc.cluster.local", json!([])),
                ("a", "lost") => named("gone.b.svc.cluster.local", json!([])),
                ("b", "web") => json!({"ports": [{"port": 80}]}),
                _ => return None,
            };
            Some(Arc::new(
                serde_json::from_value(json!({"spec": spec})).unwrap(),
            ))
        };
        let (registry, certificates) = (Registry::default(), Certificates::default());
        let resolver = Resolver {
            services: &service,
            secrets: &|_, _| None,
            registry: &registry,
            certificates: &certificates,
            named: Mutex::default(),
        };
        let number = |number| PortRef::Number(number);
        for (case, name, port, expected) in [
            (
                "a name without ports",
                "away",
                number(8443),
                "www.example:8443 Http",
            ),
            (
                "a port that is listed",
                "ports",
                PortRef::Name("web".into()),
                "www.example:8080 Https",
            ),
            (
                "a number that is not listed",
                "ports",
                number(81),
                "www.example:81 Http",
            ),
            (
                "a name of a port needs a list",
                "away",
                PortRef::Name("web".into()),
                "Service a/away has no port web.",
            ),
            (
                "no port at all",
                "away",
                number(0),
                "Service a/away has no port 0.",
            ),
            (
                "a Service of the cluster",
                "neighbour",
                number(80),
                "b/web Http",
            ),
            ("the same, in short", "short", number(80), "b/web Http"),
            (
                "no such port there",
                "neighbour",
                number(81),
                "Service b/web has no port 81.",
            ),
            (
                "one step, no more",
                "chain",
                number(80),
                "Service a/chain is a name of a/away, which is a mere name itself.",
            ),
            (
                "nobody there",
                "lost",
                number(80),
                "Service b/gone does not exist.",
            ),
        ] {
            let found = match resolver.backend("a", name, &port, &|said| said) {
                Ok(Target::Backend(backend)) => {
                    let key = &backend.key;
                    let whom = key
                        .outside
                        .clone()
                        .map_or(key.service.to_string(), |outside| {
                            crate::backend::To::Outside(outside).to_string()
                        });
                    format!("{whom} {:?}", key.protocol)
                }
                Ok(Target::Missing(_, why)) => why.to_string(),
                Err(why) => why,
            };
            assert_eq!(found, expected, "{case}");
        }
        assert_eq!(
            resolver.stands_for("a", "neighbour"),
            Some(ServiceKey::new("b", "web"))
        );
        assert_eq!(resolver.stands_for("a", "away"), None);
        assert!(
            resolver
                .named
                .lock()
                .services
                .contains(&ServiceKey::new("b", "web")),
            "a change of it makes a new table"
        );
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("1h30m", Some(5_400_000)),
            ("250ms", Some(250)),
            ("7", Some(7000)),
            ("", None),
            ("s", None),
            ("3 s", None),
            ("-3s", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(duration_millis(text), expected, "{text}");
        }
    }
}
