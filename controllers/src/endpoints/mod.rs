//! Keeps the Endpoints of Services with a selector, for the clients that read the older kind.
//!
//! Watched: services, pods, endpoints. Written: endpoints of the Service's name. Invariants: what belongs to a Service without
//! selector is left alone; a settled Service causes no write.

mod plan;

use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use kube::api::{DeleteParams, PostParams};

use crate::context::{Context, Loop};
use crate::endpointslice::services_of;
use crate::service_pods::{selector, selects};

const WORKERS: usize = 5;
pub(crate) const OWNER: &str = "endpoint-controller";
const OWNED: &str = "endpoints.kubernetes.io/managed-by";

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub(crate) async fn run(context: Context) {
    let services = context.informers.of::<Service>();
    let pods = context.informers.of::<Pod>();
    let endpoints = context.informers.of::<Endpoints>();
    let mut frame = Loop::new("endpoints");
    frame.feed(&services, |service, keys| {
        keys.push(ObjectName::of(service))
    });
    let known = services.clone();
    frame.feed(&pods, move |pod, keys| services_of(pod, &known, keys));
    frame.feed(&endpoints, |endpoints, keys| {
        keys.push(ObjectName::of(endpoints))
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        services,
        pods,
        endpoints,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(OWNED))
        .map(String::as_str)
        == Some(OWNER)
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let present = self.endpoints.get(Some(&key.namespace), &key.name);
        let api = self.context.api::<Endpoints>(&key.namespace);
        let Some(service) = self.services.get(Some(&key.namespace), &key.name) else {
            let result = match present.filter(|present| is_ours(present)) {
                Some(_) => api
                    .delete(&key.name, &DeleteParams::default())
                    .await
                    .map(drop),
                None => Ok(()),
            };
            return match result {
                Err(error) if cox_client::is_not_found(&error) => Verdict::Done,
                result => result.into(),
            };
        };
        if selector(&service).is_none() {
            return Verdict::Done;
        }
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        let wished = plan::endpoints(&service, &pods);
        let result = match present.as_deref() {
            None => api.create(&PostParams::default(), &wished).await,
            Some(present) if plan::is_same(present, &wished) => return Verdict::Done,
            Some(present) => {
                let mut next = present.clone();
                next.metadata.labels = wished.metadata.labels;
                next.subsets = wished.subsets;
                let annotations = next.metadata.annotations.get_or_insert_default();
                annotations.remove(plan::OVER_CAPACITY);
                annotations.extend(wished.metadata.annotations.into_iter().flatten());
                api.replace(&key.name, &PostParams::default(), &next).await
            }
        };
        match result {
            Ok(_) => Verdict::Done,
            Err(error)
                if cox_client::is_namespace_terminating(&error)
                    || cox_client::is_already_exists(&error) =>
            {
                Verdict::Done
            }
            Err(error) => Verdict::Backoff(error.into()),
        }
    }
}
