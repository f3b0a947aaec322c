//! Makes the claims of ephemeral volumes: each belongs to its Pod and goes with it.
//!
//! Watched: pods, claims. Written: claims, created only. Invariant: a claim of the name that belongs to somebody else is left
//! alone, and the Pod hears of it.

use std::sync::Arc;

use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Verdict};
use cox_client::{Informer, owners};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::api::{ObjectMeta, PostParams};

use crate::context::{Context, Loop};
use crate::pod::is_terminal;
use cox_client::volumes::claim_of;

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
}

pub(crate) async fn run(context: Context) {
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let mut frame = Loop::new("ephemeral-volume");
    frame.feed(&pods, |pod, keys| {
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        if volumes.into_iter().any(|volume| volume.ephemeral.is_some()) {
            keys.push(ObjectName::of(pod));
        }
    });
    frame.feed(&claims, |claim, keys| {
        let owner = owners::controller_of(claim).filter(|owner| owner.kind == "Pod");
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        keys.extend(owner.map(|owner| ObjectName::namespaced(namespace, &owner.name)));
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        pods,
        claims,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(2, reconcile, cancel).await;
}

impl Controller {
    async fn reconcile(&self, name: &ObjectName) -> Verdict {
        let Some(pod) = self.pods.get(Some(&name.namespace), &name.name) else {
            return Verdict::Done;
        };
        if pod.metadata.deletion_timestamp.is_some() || is_terminal(&pod) {
            return Verdict::Done;
        }
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes.filter(|volume| volume.ephemeral.is_some()) {
            if let Err(error) = self.ensure(&pod, volume).await {
                let message = format!("ephemeral volume {}: {error}", volume.name);
                let (events, kind) = (&self.context.events, EventType::Warning);
                events.event_on(&*pod, kind, "EphemeralVolumeFailed", message);
                return Verdict::Backoff(error);
            }
        }
        Verdict::Done
    }

    async fn ensure(&self, pod: &Pod, volume: &Volume) -> Result<(), cox_client::BoxError> {
        let Some(name) = claim_of(pod, volume) else {
            return Ok(());
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(known) = self.claims.get(Some(namespace), &name) {
            let owner = owners::controller_of(&*known).map(|owner| &owner.uid);
            return if owner == pod.metadata.uid.as_ref() {
                Ok(())
            } else {
                Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
                    pod.metadata.name.as_deref().unwrap_or_default()).into())
            };
        }
        let template = volume
            .ephemeral
            .as_ref()
            .and_then(|source| source.volume_claim_template.clone())
            .ok_or("it has no volumeClaimTemplate")?;
        let of_template = template.metadata.unwrap_or_default();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name),
                labels: of_template.labels,
                annotations: of_template.annotations,
                owner_references: Some(vec![owners::controller_ref(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec),
            status: None,
        };
        let api = self.context.api::<PersistentVolumeClaim>(namespace);
        match api.create(&PostParams::default(), &claim).await {
            Ok(_) => Ok(()),
            // The cache was behind; the next look sees whose it is.
            Err(error) if cox_client::is_already_exists(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
