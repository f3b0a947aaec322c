//! What routes name, looked up: the port of a Service becomes a backend, a Secret a certificate. What is missing becomes one clear
//! sentence, which the client gets as an answer and the object as an Event.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Secret, Service};
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;

use crate::backend::{BackendKey, Protocol, Registry, ServiceKey};
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
    /// Who answers on a port of a Service; the reason where nobody can.
    pub(crate) fn backend(
        &self,
        namespace: &str,
        name: &str,
        port: &PortRef,
        protocol: Option<Protocol>,
    ) -> Result<Target, String> {
        let key = ServiceKey::new(namespace, name);
        self.named.lock().services.insert(key.clone());
        let service = (self.services)(namespace, name)
            .ok_or_else(|| format!("Service {namespace}/{name} does not exist."))?;
        let spec = service.spec.as_ref();
        if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            return Err(format!(
                "Service {namespace}/{name} is a mere name (ExternalName) and has no Pods to route to."
            ));
        }
        let ports = spec
            .and_then(|spec| spec.ports.as_deref())
            .unwrap_or_default();
        let found = ports.iter().find(|one| match port {
            PortRef::Name(name) => one.name.as_deref() == Some(name),
            PortRef::Number(number) => one.port == *number,
        });
        let found =
            found.ok_or_else(|| format!("Service {namespace}/{name} has no port {port}."))?;
        let backend = self.registry.backend(&BackendKey {
            service: key,
            port: found.name.as_deref().unwrap_or_default().into(),
            protocol: protocol.unwrap_or_else(|| Protocol::of_port(found)),
        });
        backend
            .service
            .set_sleeps_after(sleeps_after(&service).unwrap_or(0));
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
    use super::*;

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
