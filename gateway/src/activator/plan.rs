//! Who may sleep, and which Deployments are meant. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;

use super::Sleeper;
use crate::backend::ServiceKey;

/// A Service that asks to sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wished {
    pub(super) key: ServiceKey,
    pub(super) uid: String,
    pub(super) after: Duration,
    /// The names of its TCP ports.
    pub(super) ports: Vec<Arc<str>>,
    /// Whether it has an address that proxies serve.
    pub(super) has_address: bool,
}

impl Wished {
    pub(super) fn of(service: &Service, after: Duration) -> Self {
        let meta = &service.metadata;
        let spec = service.spec.as_ref();
        let ports = spec
            .and_then(|spec| spec.ports.as_deref())
            .unwrap_or_default();
        let tcp = ports
            .iter()
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let address = spec
            .and_then(|spec| spec.cluster_ip.as_deref())
            .unwrap_or_default();
        Self {
            key: ServiceKey::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            uid: meta.uid.clone().unwrap_or_default(),
            after,
            ports: tcp
                .map(|port| port.name.as_deref().unwrap_or_default().into())
                .collect(),
            has_address: !address.is_empty() && address != "None",
        }
    }

    /// Whether a sleeper is this one, as it is wished.
    pub(super) fn is(&self, known: &Sleeper) -> bool {
        known.uid == self.uid
            && known.after == self.after
            && known.doors.iter().map(|door| &door.port).eq(&self.ports)
    }
}

/// The Deployments whose Pods a Service selects.
pub(super) fn behind<'a>(
    service: &Service,
    all: &'a [Arc<Deployment>],
) -> Vec<&'a Arc<Deployment>> {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
        return Vec::new();
    };
    let holds = |labels: &BTreeMap<String, String>| {
        selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    };
    let fits = |deployment: &&Arc<Deployment>| {
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        let meta = template.and_then(|template| template.metadata.as_ref());
        meta.and_then(|meta| meta.labels.as_ref())
            .is_some_and(holds)
    };
    let mut found: Vec<_> = all.iter().filter(fits).collect();
    found.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    found
}

/// How many replicas a Deployment asks for.
pub(super) fn replicas(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let service =
            json!({"metadata": {"namespace": "default", "name": "web", "uid": "u"}, "spec": spec});
        serde_json::from_value(service).unwrap()
    }

    #[test]
    fn whose_pods_are_meant() {
        let deployment = |name: &str, labels: Value| -> Arc<Deployment> {
            let spec = json!({"selector": {}, "template": {"metadata": {"labels": labels}}});
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap(),
            )
        };
        let all = [
            deployment("b", json!({"app": "web", "track": "stable"})),
            deployment("a", json!({"app": "web"})),
            deployment("c", json!({"app": "other"})),
        ];
        for (case, selector, expected) in [
            ("all that have the labels", json!({"app": "web"}), "a b"),
            (
                "those that have more than one",
                json!({"app": "web", "track": "stable"}),
                "b",
            ),
            ("nobody is meant by nothing", json!({}), ""),
        ] {
            let service = service(json!({"selector": selector}));
            let names: Vec<_> = behind(&service, &all)
                .iter()
                .filter_map(|one| one.metadata.name.as_deref())
                .collect();
            assert_eq!(names.join(" "), expected, "{case}");
        }
        assert_eq!(replicas(&all[0]), 1, "one where nobody says");
    }

    #[test]
    fn what_a_service_asks_for() {
        let wished = Wished::of(
            &service(
                json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
            ),
            Duration::from_secs(30),
        );
        assert_eq!(wished.ports, ["http".into()], "datagrams cannot be held");
        assert!(wished.has_address);
        let headless = Wished::of(
            &service(json!({"clusterIP": "None"})),
            Duration::from_secs(30),
        );
        assert!(!headless.has_address && headless.ports.is_empty());
    }
}
