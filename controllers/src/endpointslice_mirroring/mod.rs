//! Shows Endpoints that people write themselves as EndpointSlices, for those who read only these.
//!
//! Watched: endpoints, services, endpoint slices. Written: endpoint slices, owned by the Endpoints. Invariants: only Endpoints of a
//! Service without selector are mirrored, and none that say `skip-mirror`; only slices that this controller made are touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::context::{Context, Loop};
use crate::endpointslice::slices::{self, Group, Template};
use crate::endpointslice::{
    MANAGED_BY, SERVICE_NAME, Written, carry_out, managed_by, own_slices, service_of,
};
use crate::service_pods::{family, selector};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Addresses of one subset that are mirrored.
const ADDRESSES_MAX: usize = 1000;
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    written: Written,
}

pub(crate) async fn run(context: Context) {
    let endpoints = context.informers.of::<Endpoints>();
    let services = context.informers.of::<Service>();
    let slices = context.informers.of::<EndpointSlice>();
    let mut frame = Loop::new("endpointslice-mirroring");
    frame.feed(&endpoints, |endpoints, keys| {
        keys.push(ObjectName::of(endpoints))
    });
    frame.feed(&services, |service, keys| {
        keys.push(ObjectName::of(service))
    });
    frame.feed(&slices, |slice, keys| {
        if managed_by(slice) == MANAGER {
            keys.extend(service_of(slice));
        }
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        endpoints,
        services,
        slices,
        written: Written::default(),
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(2, reconcile, cancel).await;
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        if !self.written.seen(key, &self.slices) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let existing = own_slices(&self.slices, key, MANAGER);
        let service = self.services.get(Some(&key.namespace), &key.name);
        let endpoints = self.endpoints.get(Some(&key.namespace), &key.name);
        let mirrored = endpoints.filter(|endpoints| {
            is_wanted(endpoints)
                && service
                    .as_ref()
                    .is_some_and(|service| selector(service).is_none())
        });
        let changes = match &mirrored {
            Some(endpoints) if endpoints.metadata.deletion_timestamp.is_some() => {
                return Verdict::Done;
            }
            Some(endpoints) => slices::plan(groups(endpoints), &existing, &template(endpoints)),
            None => slices::Changes {
                delete: existing
                    .iter()
                    .filter_map(|slice| slice.metadata.name.clone())
                    .collect(),
                ..slices::Changes::default()
            },
        };
        let api = self.context.api::<EndpointSlice>(&key.namespace);
        carry_out(&api, key, changes, &self.written).await.into()
    }
}

fn is_wanted(endpoints: &Endpoints) -> bool {
    let (labels, annotations) = (
        endpoints.metadata.labels.as_ref(),
        endpoints.metadata.annotations.as_ref(),
    );
    labels
        .and_then(|labels| labels.get(SKIP))
        .map(String::as_str)
        != Some("true")
        && annotations.is_none_or(|annotations| !annotations.contains_key(LEADER))
}

fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for wanted in ["IPv4", "IPv6"] {
            let found = subset_endpoints(subset, wanted);
            if !found.is_empty() {
                groups.push(Group {
                    family: wanted.to_owned(),
                    ports: ports(subset),
                    endpoints: found,
                });
            }
        }
    }
    groups
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten();
    ports
        .map(|port| EndpointPort {
            app_protocol: port.app_protocol.clone(),
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        })
        .collect()
}

fn subset_endpoints(subset: &EndpointSubset, wanted: &str) -> Vec<Endpoint> {
    let ready = subset.addresses.iter().flatten().map(|one| (one, true));
    let not_ready = subset.not_ready_addresses.iter().flatten();
    ready
        .chain(not_ready.map(|one| (one, false)))
        .filter(|(address, _)| family(&address.ip) == wanted)
        .take(ADDRESSES_MAX)
        .map(|(address, ready)| endpoint(address, ready))
        .collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn template(endpoints: &Endpoints) -> Template {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> =
        endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    for own in [LAST_APPLIED, TRIGGER] {
        annotations.remove(own);
    }
    Template {
        namespace: endpoints.metadata.namespace.clone().unwrap_or_default(),
        labels,
        annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
        owner: OwnerReference {
            api_version: "v1".into(),
            kind: "Endpoints".into(),
            name: name.clone(),
            uid: endpoints.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        },
        service: name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_people_write_is_mirrored() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "u", "annotations": {LAST_APPLIED: "x", "note": "kept"}},
            "subsets": [
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
            ],
        }))
        .unwrap();
        let groups = groups(&endpoints);
        let told: Vec<String> = groups
            .iter()
            .flat_map(|group| &group.endpoints)
            .map(|one| {
                format!(
                    "{}={}",
                    one.addresses[0],
                    one.conditions.as_ref().unwrap().ready.unwrap()
                )
            })
            .collect();
        assert_eq!(
            told,
            ["192.0.2.1=true", "192.0.2.2=false", "2001:db8::1=true"]
        );
        assert_eq!(groups[0].ports[0].port, Some(5432));
        let annotations = template(&endpoints).annotations.unwrap();
        assert_eq!(
            annotations,
            BTreeMap::from([("note".to_owned(), "kept".to_owned())])
        );
        assert!(is_wanted(&endpoints));
        let mut skipped = endpoints;
        skipped.metadata.labels = Some(BTreeMap::from([(SKIP.to_owned(), "true".to_owned())]));
        assert!(!is_wanted(&skipped));
    }
}
