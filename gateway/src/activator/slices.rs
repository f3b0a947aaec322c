//! The EndpointSlices by which proxies find the doors of those that sleep.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::{Place, Sleeper};
use crate::backend::{ACTIVATOR, MANAGED_BY, SERVICE_NAME, ServiceKey};

/// What was written, by Service.
#[derive(Debug, Default)]
pub(super) struct Published {
    known: HashMap<ServiceKey, Value>,
}

impl Published {
    /// With slices of an earlier start, whose doors are closed: they are written anew, or deleted.
    pub(super) fn with(left: Vec<ServiceKey>) -> Self {
        Self {
            known: left.into_iter().map(|key| (key, Value::Null)).collect(),
        }
    }

    /// Writes what differs. Whether something could not be written.
    pub(super) async fn sync(
        &mut self,
        client: &kube::Client,
        place: &Place,
        sleepers: &[Arc<Sleeper>],
    ) -> bool {
        let mut failed = false;
        for sleeper in sleepers {
            let Some(wished) = slice(place, sleeper) else {
                continue;
            };
            if self.known.get(&sleeper.key) == Some(&wished) {
                continue;
            }
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &sleeper.key.namespace);
            let params = PatchParams::apply("coxswain-activator").force();
            match api
                .patch(&name(place, &sleeper.key), &params, &Patch::Apply(&wished))
                .await
            {
                Ok(_) => {
                    self.known.insert(sleeper.key.clone(), wished);
                }
                Err(error) => {
                    tracing::debug!(service = %sleeper.key, %error, "The way to wake a Service was not written");
                    failed = true;
                }
            }
        }
        let gone: Vec<ServiceKey> = self
            .known
            .keys()
            .filter(|key| !sleepers.iter().any(|sleeper| sleeper.key == **key))
            .cloned()
            .collect();
        for key in gone {
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
            match api
                .delete(&name(place, &key), &DeleteParams::default())
                .await
            {
                Err(error) if !cox_client::is_not_found(&error) => failed = true,
                Ok(_) | Err(_) => {
                    self.known.remove(&key);
                }
            }
        }
        failed
    }
}

/// The Services of which this node has slices from an earlier start.
pub(crate) async fn left(
    client: &kube::Client,
    node: &str,
) -> Result<Vec<ServiceKey>, kube::Error> {
    let selector = format!("{MANAGED_BY}={ACTIVATOR}");
    let all = Api::<EndpointSlice>::all(client.clone());
    let all = all.list(&ListParams::default().labels(&selector)).await?;
    let of_node = |slice: &EndpointSlice| -> Option<ServiceKey> {
        let name = slice.metadata.name.as_deref()?;
        let service = name.strip_suffix(&format!("-activator-{node}"))?;
        Some(ServiceKey::new(
            slice.metadata.namespace.as_deref()?,
            service,
        ))
    };
    Ok(all.items.iter().filter_map(of_node).collect())
}

fn name(place: &Place, service: &ServiceKey) -> String {
    format!("{}-activator-{}", service.name, place.node)
}

/// The slice of a Service: it names the doors as long as no Pod is ready. `None`: it has no door.
fn slice(place: &Place, sleeper: &Sleeper) -> Option<Value> {
    let ip = sleeper.doors.iter().find_map(|door| door.addr)?.ip();
    let ports: Vec<Value> = sleeper
        .doors
        .iter()
        .filter_map(|door| {
            Some(json!({"name": &*door.port, "port": door.addr?.port(), "protocol": "TCP"}))
        })
        .collect();
    let endpoints = match sleeper.is_awake() {
        true => json!([]),
        false => {
            json!([{"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": place.node}])
        }
    };
    Some(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name(place, &sleeper.key),
            "labels": {SERVICE_NAME: &*sleeper.key.name, MANAGED_BY: ACTIVATOR},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": &*sleeper.key.name, "uid": sleeper.uid}],
        },
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": ports,
        "endpoints": endpoints,
    }))
}
