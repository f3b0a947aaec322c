//! Keeps the EndpointSlices of Services with a selector: which Pods are behind each, and in which state.
//!
//! Watched: services, pods, nodes (for zones), endpoint slices. Written: endpoint slices, by at most a hundred endpoints each.
//! Invariants: only slices that this controller made are touched; it acts only on what it has seen of its own writes; a
//! settled Service causes no write.

mod plan;
pub(crate) mod slices;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use parking_lot::Mutex;

use crate::context::{Context, Loop};
use crate::service_pods::{selector, selects};
pub(crate) use plan::{HEADLESS, MANAGED_BY, SERVICE_NAME};
use slices::Changes;

const WORKERS: usize = 5;
/// How soon to look again when the cache has not shown our own writes; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);

/// The last revision that was written for a key: nothing is decided before the cache is there.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<HashMap<ObjectName, u64>>);

impl Written {
    pub(crate) fn seen(&self, key: &ObjectName, slices: &Informer<EndpointSlice>) -> bool {
        let mut written = self.0.lock();
        let seen = written
            .get(key)
            .is_none_or(|revision| slices.revision() >= *revision);
        if seen {
            written.remove(key);
        }
        seen
    }

    fn note(&self, key: &ObjectName, slice: &EndpointSlice) {
        let revision = slice.metadata.resource_version.as_deref();
        if let Some(revision) = revision.and_then(|text| text.parse::<u64>().ok()) {
            let mut written = self.0.lock();
            let last = written.entry(key.clone()).or_default();
            *last = revision.max(*last);
        }
    }
}

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    written: Written,
}

pub(crate) async fn run(context: Context) {
    let services = context.informers.of::<Service>();
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let slices = context.informers.of::<EndpointSlice>();
    let mut frame = Loop::new("endpointslice");
    frame.feed(&services, |service, keys| {
        keys.push(ObjectName::of(service))
    });
    let known = services.clone();
    frame.feed(&pods, move |pod, keys| services_of(pod, &known, keys));
    frame.feed(&slices, |slice, keys| {
        if managed_by(slice) == plan::MANAGER {
            keys.extend(service_of(slice));
        }
    });
    frame.needs(&nodes);
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        services,
        pods,
        nodes,
        slices,
        written: Written::default(),
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// The Services that a Pod may be behind.
pub(crate) fn services_of(pod: &Pod, known: &Informer<Service>, keys: &mut Vec<ObjectName>) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    keys.extend(
        known
            .list_in(namespace)
            .iter()
            .filter(|service| selects(service, pod))
            .map(|service| ObjectName::of(&**service)),
    );
}

/// The Service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    Some(ObjectName::namespaced(namespace, name))
}

/// Who made a slice.
pub(crate) fn managed_by(slice: &EndpointSlice) -> &str {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY))
        .map_or("", String::as_str)
}

/// The slices of a Service that `manager` made.
pub(crate) fn own_slices(
    slices: &Informer<EndpointSlice>,
    key: &ObjectName,
    manager: &str,
) -> Vec<Arc<EndpointSlice>> {
    let mut own = slices.list_in(&key.namespace);
    own.retain(|slice| managed_by(slice) == manager && service_of(slice).as_ref() == Some(key));
    own
}

/// Writes what a plan says; the first error ends it, and the next look finds what is left.
pub(crate) async fn carry_out(
    api: &Api<EndpointSlice>,
    key: &ObjectName,
    changes: Changes,
    written: &Written,
) -> Result<(), kube::Error> {
    for name in &changes.delete {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(error) if cox_client::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    for slice in &changes.update {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        let done = api.replace(name, &PostParams::default(), slice).await?;
        written.note(key, &done);
    }
    for slice in &changes.create {
        match api.create(&PostParams::default(), slice).await {
            Ok(done) => written.note(key, &done),
            Err(error) if cox_client::is_namespace_terminating(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        if !self.written.seen(key, &self.slices) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let existing = own_slices(&self.slices, key, plan::MANAGER);
        let api = self.context.api::<EndpointSlice>(&key.namespace);
        let service = self.services.get(Some(&key.namespace), &key.name);
        let Some(service) = service.filter(|service| selector(service).is_some()) else {
            // A Service that lost its selector keeps what it has, as upstream has it; one that is gone, nothing.
            return Verdict::Done;
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Verdict::Done;
        }
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let node = |name: &str| self.nodes.get(None, name);
        let groups = plan::groups(&service, &pods, &node);
        let changes = slices::plan(groups, &existing, &plan::template(&service));
        carry_out(&api, key, changes, &self.written).await.into()
    }
}
