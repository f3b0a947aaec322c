//! Rolls a Deployment's template out over replica sets.
//!
//! Watched: deployments, replica sets, pods (only for the Recreate strategy, which waits until the old ones are gone).
//! Written: replica sets (created, scaled, annotated, deleted beyond the history limit, adopted, released), the revision
//! annotation and the status of deployments, events. Invariants: one replica set per template; each write to a replica set
//! names the resourceVersion it was decided on, so that a decision on old data is refused and repeated; a rollback is only a
//! template that was there before (`kubectl rollout undo` edits the template); a settled deployment causes no writes.

mod claim;
mod effects;
mod hash;
mod plan;
mod proportional;
mod revision;
mod rolling;
mod sets;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::owners;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use crate::context::{Context, Loop};

pub(crate) use hash::template_hash;

const WORKERS: usize = 5;
/// When to look again after an adoption; the change of the adopted set normally comes first.
const ADOPTION_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub(crate) async fn run(context: Context) {
    let deployments = context.informers.of::<Deployment>();
    let replica_sets = context.informers.of::<ReplicaSet>();
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new("deployment");
    frame.feed(&deployments, |deployment, keys| {
        keys.push(ObjectName::of(deployment))
    });
    let known = deployments.clone();
    frame.feed(&replica_sets, move |set, keys| {
        keys_of_set(set, &known, keys)
    });
    let (known, sets) = (deployments.clone(), replica_sets.clone());
    frame.feed(&pods, move |pod, keys| {
        keys_of_pod(pod, &sets, &known, keys)
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        deployments,
        replica_sets,
        pods,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// A replica set concerns its controller, or, when it has none, every deployment that may adopt it.
fn keys_of_set(set: &ReplicaSet, known: &Informer<Deployment>, keys: &mut Vec<ObjectName>) {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    match owners::controller_of(set) {
        Some(owner) if owner.kind == "Deployment" => {
            keys.push(ObjectName::namespaced(namespace, &owner.name))
        }
        Some(_) => {}
        None => {
            let deployments = known.list_in(namespace);
            let adopting = deployments
                .iter()
                .filter(|deployment| claim::selects(deployment, set));
            keys.extend(adopting.map(|deployment| ObjectName::of(&**deployment)));
        }
    }
}

/// Only Recreate looks at pods.
fn keys_of_pod(
    pod: &Pod,
    sets: &Informer<ReplicaSet>,
    known: &Informer<Deployment>,
    keys: &mut Vec<ObjectName>,
) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let Some(owner) = owners::controller_of(pod).filter(|owner| owner.kind == "ReplicaSet") else {
        return;
    };
    let Some(set) = sets.get(Some(namespace), &owner.name) else {
        return;
    };
    let Some(owner) = owners::controller_of(&*set).filter(|owner| owner.kind == "Deployment")
    else {
        return;
    };
    let deployment = known.get(Some(namespace), &owner.name);
    if deployment.is_some_and(|deployment| plan::is_recreate(&deployment)) {
        keys.push(ObjectName::namespaced(namespace, &owner.name));
    }
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(deployment) = self.deployments.get(Some(&key.namespace), &key.name) else {
            return Verdict::Done;
        };
        let sets = match self.claim(&deployment).await {
            Ok(Some(sets)) => sets,
            Ok(None) => return Verdict::After(ADOPTION_PAUSE),
            Err(error) => return Verdict::Backoff(error.into()),
        };
        let view = plan::View {
            deployment: &deployment,
            running: self.sets_with_pods(&deployment, &sets),
            sets,
            now: self.context.clock.now(),
        };
        let mut plan = plan::plan(&view);
        let (written, failure) = self.carry_out(&deployment, &mut plan).await;
        if let Err(error) = self.publish(&written, &plan.status).await {
            return Verdict::Backoff(error.into());
        }
        match failure {
            Some(failure) => Verdict::Backoff(failure.into()),
            None => plan.next_look.map_or(Verdict::Done, Verdict::After),
        }
    }

    /// The uids of replica sets that still have pods that are not finished, terminating ones included.
    fn sets_with_pods(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Vec<String> {
        if !plan::is_recreate(deployment) {
            return Vec::new();
        }
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let uids = sets.iter().filter_map(|set| set.metadata.uid.clone());
        uids.filter(|uid| {
            self.pods
                .controlled_by(namespace, uid)
                .iter()
                .any(|pod| !crate::pod::is_terminal(pod))
        })
        .collect()
    }
}
