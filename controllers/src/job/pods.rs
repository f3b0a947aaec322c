//! The pods of a job, sorted by what they are to it. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::pod::{is_active, is_terminal, phase};

/// Holds a pod until its end is counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

pub(super) fn is_tracked(pod: &Pod) -> bool {
    let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The pods by state. Those whose end is counted are in none of the lists.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) terminating: Vec<Arc<Pod>>,
    /// Succeeded, and not counted yet.
    pub(super) succeeded: Vec<Arc<Pod>>,
    /// Failed, and not counted yet.
    pub(super) failed: Vec<Arc<Pod>>,
    /// In `uncountedTerminatedPods`, and still held by the finalizer.
    pub(super) held: Vec<Arc<Pod>>,
}

/// A job that replaces only what has failed does not count a pod that is still ending.
pub(super) fn replaces_only_failed(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.pod_failure_policy.is_some()
            || spec.pod_replacement_policy.as_deref() == Some("Failed")
    })
}

pub(super) fn sort(job: &Job, status: &JobStatus, pods: &[Arc<Pod>]) -> Sorted {
    let uncounted = uncounted(status);
    let only_failed = replaces_only_failed(job);
    let mut sorted = Sorted::default();
    for pod in pods {
        let tracked = is_tracked(pod);
        if is_active(pod) {
            sorted.active.push(Arc::clone(pod));
            continue;
        }
        if !is_terminal(pod) {
            sorted.terminating.push(Arc::clone(pod));
        }
        if uncounted.contains(uid(pod)) {
            if tracked {
                sorted.held.push(Arc::clone(pod));
            }
        } else if tracked && phase(pod) == "Succeeded" {
            sorted.succeeded.push(Arc::clone(pod));
        } else if tracked && (phase(pod) == "Failed" || !only_failed) {
            sorted.failed.push(Arc::clone(pod));
        }
    }
    sorted
}

/// The pods that the status names as ended but not in its counters.
fn uncounted(status: &JobStatus) -> BTreeSet<&str> {
    let uncounted = status.uncounted_terminated_pods.as_ref();
    uncounted
        .into_iter()
        .flat_map(|pods| [&pods.succeeded, &pods.failed])
        .flatten()
        .flatten()
        .map(String::as_str)
        .collect()
}

/// Moves into the counters what the finalizer no longer holds. `indexed` jobs count their successes by index.
pub(super) fn flush(status: &mut JobStatus, pods: &[Arc<Pod>], indexed: bool) {
    let held: BTreeSet<&str> = pods
        .iter()
        .filter(|pod| is_tracked(pod))
        .map(|pod| uid(pod))
        .collect();
    let Some(uncounted) = &mut status.uncounted_terminated_pods else {
        return;
    };
    let gone = |uids: &mut Option<Vec<String>>| {
        let before = uids.as_ref().map_or(0, Vec::len);
        if let Some(uids) = uids {
            uids.retain(|uid| held.contains(uid.as_str()));
        }
        i32::try_from(before - uids.as_ref().map_or(0, Vec::len)).unwrap_or_default()
    };
    let (succeeded, failed) = (gone(&mut uncounted.succeeded), gone(&mut uncounted.failed));
    if !indexed {
        *status.succeeded.get_or_insert_default() += succeeded;
    }
    *status.failed.get_or_insert_default() += failed;
}
