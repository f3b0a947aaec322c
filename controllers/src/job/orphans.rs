//! Lets go of pods whose job is gone: nobody else would take the finalizer from them.

use std::time::Duration;

use cox_client::owners;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use super::{pods, selects};
use crate::context::{Context, Loop};
use crate::owned_pods::OwnedPods;

const WORKERS: usize = 2;
/// A pod that somebody may still adopt is looked at again.
const LATER: Duration = Duration::from_secs(30);

pub(super) async fn run(context: Context) {
    let jobs = context.informers.of::<Job>();
    let owned = OwnedPods::new(&context).holding(pods::FINALIZER);
    let mut frame = Loop::new("job-orphans");
    frame.feed(&owned.pods, |pod: &Pod, keys| {
        if pods::is_tracked(pod) {
            keys.push(ObjectName::of(pod));
        }
    });
    let of_job = owned.pods.clone();
    let known = jobs.clone();
    frame.feed(&jobs, move |job: &Job, keys| {
        let meta = &job.metadata;
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else {
            return;
        };
        if known.get(Some(namespace), name).is_none() {
            let uid = meta.uid.as_deref().unwrap_or_default();
            let left = of_job.controlled_by(namespace, uid);
            keys.extend(left.iter().map(|pod| ObjectName::of(&**pod)));
        }
    });
    let cancel = context.cancel.clone();
    let shared = std::sync::Arc::new((context, jobs, owned));
    let reconcile = move |key: ObjectName| {
        let shared = shared.clone();
        async move {
            let (context, jobs, owned) = &*shared;
            let Some(pod) = owned.pods.get(Some(&key.namespace), &key.name) else {
                return Verdict::Done;
            };
            if !pods::is_tracked(&pod) {
                return Verdict::Done;
            }
            match owners::controller_of(&*pod) {
                Some(owner) if owner.kind != "Job" => {}
                Some(owner) => {
                    let is_owner = |job: &Job| job.metadata.uid.as_ref() == Some(&owner.uid);
                    if jobs
                        .get(Some(&key.namespace), &owner.name)
                        .is_some_and(|job| is_owner(&job))
                    {
                        return Verdict::Done;
                    }
                    // The cache may be behind.
                    match context
                        .api::<Job>(&key.namespace)
                        .get_opt(&owner.name)
                        .await
                    {
                        Ok(Some(job)) if is_owner(&job) => return Verdict::Done,
                        Ok(_) => {}
                        Err(error) => return Verdict::Backoff(error.into()),
                    }
                }
                None => {
                    if jobs
                        .list_in(&key.namespace)
                        .iter()
                        .any(|job| selects(job, &pod))
                    {
                        return Verdict::After(LATER);
                    }
                }
            }
            owned.let_go(&pod).await.into()
        }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}
