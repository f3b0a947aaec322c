//! Runs pods until enough of them have succeeded.
//!
//! Watched: jobs, pods. Written: pods (created, deleted, adopted, released, their tracking finalizer), the status of jobs, events;
//! finished jobs past their time to live are deleted ([`ttl`]).
//! Invariants: each end of a pod is counted once ([`plan`]); a job acts only on what it has seen of its own writes; a pod is held by
//! the finalizer no longer than its job exists ([`orphans`]); one status write per reconcile, and none when nothing changed.

mod effects;
mod failure;
mod finish;
mod indexes;
mod orphans;
mod plan;
mod pods;
mod status;
#[cfg(test)]
mod tests;
mod ttl;

use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use crate::context::{Context, Loop};
use crate::owned_pods::{self, OwnedPods};

const WORKERS: usize = 5;
/// How soon to look again when the cache has not shown our own writes; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);
const OWN_NAME: &str = "kubernetes.io/job-controller";

pub(crate) use ttl::run as run_ttl;

struct Controller {
    context: Context,
    jobs: Informer<Job>,
    owned: OwnedPods,
}

pub(crate) async fn run(context: Context) {
    let jobs = context.informers.of::<Job>();
    let owned = OwnedPods::new(&context).holding(pods::FINALIZER);
    let mut frame = Loop::new("job");
    frame.feed(&jobs, |job, keys| keys.push(ObjectName::of(job)));
    let known = jobs.clone();
    frame.feed(&owned.pods, move |pod, keys| {
        owned_pods::keys_of_pod(pod, &known, selects, keys);
    });
    let cancel = context.cancel.clone();
    let letting_go = orphans::run(context.clone());
    let controller = Arc::new(Controller {
        context,
        jobs,
        owned,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    tokio::join!(frame.run(WORKERS, reconcile, cancel), letting_go);
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    owned_pods::selects(selector, pod)
}

/// Somebody else runs this job.
fn is_foreign(job: &Job) -> bool {
    let manager = job
        .spec
        .as_ref()
        .and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != OWN_NAME)
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(job) = self.jobs.get(Some(&key.namespace), &key.name) else {
            self.owned.expectations.forget(key);
            return Verdict::Done;
        };
        if is_foreign(&job) {
            return Verdict::Done;
        }
        if !self.owned.is_settled(key) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let owned = match self.owned.claim(&*job, |pod| selects(&job, pod)).await {
            Ok(owned) => owned,
            Err(error) => return Verdict::Backoff(error.into()),
        };
        let plan = plan::plan(&job, &owned, self.context.clock.now());
        let again = plan.again;
        match self.carry_out(key, &job, plan).await {
            Err(error) => Verdict::Backoff(error),
            Ok(()) => again.map_or(Verdict::Done, Verdict::After),
        }
    }
}
