//! Says in the status of each PodDisruptionBudget how many of its pods may go now, which evictions ask.
//!
//! Watched: budgets, pods, and what owns pods and says how many there should be. Written: the status of budgets, events, and
//! the condition `DisruptionTarget` of pods that were to go and did not ([`stale`]). Where the number cannot be found out, a
//! budget allows nothing and says why.

mod plan;
mod scale;
mod stale;

use std::sync::Arc;

use cox_client::Informer;
use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::context::{Context, Loop};

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: scale::Scales,
}

pub(crate) async fn run(context: Context) {
    let budgets = context.informers.of::<PodDisruptionBudget>();
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new("disruption");
    frame.feed(&budgets, |budget, keys| keys.push(ObjectName::of(budget)));
    let known = budgets.clone();
    frame.feed(&pods, move |pod: &Pod, keys| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let of_pod = known.list_in(namespace).into_iter();
        keys.extend(
            of_pod
                .filter(|budget| plan::selects(budget, pod))
                .map(|budget| ObjectName::of(&*budget)),
        );
    });
    let scales = scale::Scales::new(&context);
    // A number of replicas that changes changes what a percentage is of; which pods come or go is told by the pods.
    feed_owners(&mut frame, &budgets, &context.informers.of::<ReplicaSet>());
    feed_owners(&mut frame, &budgets, &context.informers.of::<StatefulSet>());
    feed_owners(&mut frame, &budgets, &context.informers.of::<Deployment>());
    let controllers = context.informers.of::<ReplicationController>();
    feed_owners(&mut frame, &budgets, &controllers);
    let cancel = context.cancel.clone();
    let stale = stale::run(context.clone());
    let controller = Arc::new(Controller {
        context,
        budgets,
        pods,
        scales,
    });
    let reconcile = move |key: ObjectName| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    tokio::join!(frame.run(WORKERS, reconcile, cancel), stale);
}

/// Budgets of a namespace whose number depends on owners are looked at when one of those changes.
fn feed_owners<K: crate::owned_pods::Owner>(
    frame: &mut Loop<ObjectName>,
    budgets: &Informer<PodDisruptionBudget>,
    owners: &Informer<K>,
) {
    let known = budgets.clone();
    frame.feed(owners, move |owner: &K, keys| {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let of_owner = known.list_in(namespace).into_iter();
        keys.extend(
            of_owner
                .filter(|budget| plan::asks_owners(budget))
                .map(|budget| ObjectName::of(&*budget)),
        );
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(budget) = self.budgets.get(Some(&key.namespace), &key.name) else {
            return Verdict::Done;
        };
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| plan::selects(&budget, pod));
        let expected = if plan::asks_owners(&budget) {
            self.scales.expected(&key.namespace, &pods).await
        } else {
            Ok(plan::Expected::default())
        };
        let now = self.context.clock.now();
        let plan = plan::plan(
            &budget,
            &pods,
            expected.as_ref().map_err(String::as_str),
            now,
        );
        if plan::is_settled(&budget, &plan.status) {
            return plan.again.map_or(Verdict::Done, Verdict::After);
        }
        for (kind, reason, message) in plan.tell {
            self.context
                .events
                .event_on(&*budget, kind, reason, message);
        }
        for pod in plan.not_deleted {
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            let events = &self.context.events;
            events.event_on(&*pod, EventType::Warning, "NotDeleted", message);
        }
        let mut next = (*budget).clone();
        next.status = Some(plan.status);
        match self.context.replace_status(&next).await {
            Err(error) => Verdict::Backoff(error.into()),
            Ok(()) => plan.again.map_or(Verdict::Done, Verdict::After),
        }
    }
}
