//! Decides what a job needs: pods to create and delete, pods to let go, its next status. Pure.
//!
//! The end of each pod is counted once: its uid goes into `uncountedTerminatedPods`, then the finalizer is taken from the pod, and
//! when the cache shows it without, the uid moves into the counters. A crash in between loses and doubles nothing.

use std::sync::Arc;
use std::time::Duration;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::failure::{self, Judgement};
use super::finish::{self, Finish};
use super::indexes::{self, Indexes};
use super::pods::{self, Sorted};
use super::status;
use crate::pod::is_ready;

/// At most so many pods are created or deleted in one reconcile.
const BURST_MAX: usize = 500;

/// A pod to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of an Indexed job.
    pub(super) index: Option<i32>,
    /// How often pods of this index failed before, and how often that was ignored; only where failures count per index.
    pub(super) failures: Option<(i32, i32)>,
}

/// Writes to make now, and the status to publish.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) create: Vec<Wanted>,
    pub(super) status: JobStatus,
    /// Whose ends are in the status above: the finalizer may go once it is written.
    pub(super) let_go: Vec<Arc<Pod>>,
    /// When time alone changes something.
    pub(super) again: Option<Duration>,
}

/// What is known of a job after its pods were counted.
pub(super) struct Known<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    pub(super) sorted: Sorted,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) status: JobStatus,
    /// Of an Indexed job.
    pub(super) completed: Indexes,
    pub(super) failed_indexes: Indexes,
    /// A pod failure policy ends the job.
    pub(super) verdict: Option<String>,
    pub(super) now: Timestamp,
}

impl Known<'_> {
    pub(super) fn is_indexed(&self) -> bool {
        is_indexed(self.spec)
    }

    /// Successes, counted or about to be.
    pub(super) fn succeeded(&self) -> i32 {
        if self.is_indexed() {
            return self.completed.len();
        }
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        let uncounted = uncounted.and_then(|pods| pods.succeeded.as_ref());
        self.status.succeeded.unwrap_or_default() + len(uncounted)
    }

    /// Failures, counted or about to be.
    pub(super) fn failed(&self) -> i32 {
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        let uncounted = uncounted.and_then(|pods| pods.failed.as_ref());
        self.status.failed.unwrap_or_default() + len(uncounted)
    }
}

fn len(uids: Option<&Vec<String>>) -> i32 {
    uids.map_or(0, |uids| i32::try_from(uids.len()).unwrap_or(i32::MAX))
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// `pods` are the job's own, as cached.
pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else {
        return Plan::default();
    };
    let mut known = count(job, spec, pods, now);
    let mut plan = Plan::default();
    let sorted = &known.sorted;
    let ended = sorted
        .succeeded
        .iter()
        .chain(&sorted.failed)
        .chain(&sorted.held);
    plan.let_go = ended.cloned().collect();
    if finish::is_finished(&known.status) {
        let tracked = pods.iter().filter(|pod| pods::is_tracked(pod));
        plan.let_go = tracked.cloned().collect();
        plan.status = known.status;
        return plan;
    }
    let suspended = spec.suspend == Some(true);
    status::start_or_suspend(&mut known.status, suspended, now);
    match finish::finish(&known) {
        Some(finish) => end(&mut known, &mut plan, &finish),
        None if job.metadata.deletion_timestamp.is_some() => {}
        None if suspended => plan.delete.clone_from(&known.sorted.active),
        None => manage(&known, &mut plan),
    }
    plan.delete.truncate(BURST_MAX);
    plan.again = shorter(plan.again, deadline(&known));
    let active = known.sorted.active.len() + plan.create.len() - plan.delete.len();
    let ready = known
        .sorted
        .active
        .iter()
        .filter(|pod| is_ready(pod))
        .count();
    status::counts(&mut known, active, ready);
    plan.status = known.status;
    plan
}

/// Counts what has ended since the last time.
fn count<'a>(job: &'a Job, spec: &'a JobSpec, pods: &'a [Arc<Pod>], now: Timestamp) -> Known<'a> {
    let mut status = job.status.clone().unwrap_or_default();
    pods::flush(&mut status, pods, is_indexed(spec));
    let sorted = pods::sort(job, &status, pods);
    let completions = spec.completions.unwrap_or_default();
    let read =
        |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), completions);
    let mut known = Known {
        job,
        spec,
        completed: read(&status.completed_indexes),
        failed_indexes: read(&status.failed_indexes),
        sorted,
        pods,
        status,
        verdict: None,
        now,
    };
    let uncounted = known
        .status
        .uncounted_terminated_pods
        .get_or_insert_default();
    for pod in &known.sorted.succeeded {
        match indexes::of(pod) {
            _ if !is_indexed(spec) => {
                uncounted
                    .succeeded
                    .get_or_insert_default()
                    .push(pods::uid(pod).to_owned());
            }
            Some(index) if index < completions && known.completed.insert(index) => {}
            // No index of this job, or one that another pod has completed.
            _ => {}
        }
    }
    for pod in &known.sorted.failed {
        match failure::judge(job, pod) {
            Judgement::Ignore => continue,
            Judgement::FailJob(why) => known.verdict = known.verdict.or(Some(why)),
            Judgement::FailIndex => {
                known.failed_indexes = with(known.failed_indexes, indexes::of(pod));
            }
            Judgement::Count => {
                let limit = spec.backoff_limit_per_index;
                if limit.is_some_and(|limit| failure::count(pod, failure::FAILURE_COUNT) >= limit) {
                    known.failed_indexes = with(known.failed_indexes, indexes::of(pod));
                }
            }
        }
        uncounted
            .failed
            .get_or_insert_default()
            .push(pods::uid(pod).to_owned());
    }
    known
}

fn with(mut indexes: Indexes, index: Option<i32>) -> Indexes {
    if let Some(index) = index {
        indexes.insert(index);
    }
    indexes
}

/// The job has come to an end: what still runs goes, and the last condition waits for it.
fn end(known: &mut Known<'_>, plan: &mut Plan, finish: &Finish) {
    plan.delete.clone_from(&known.sorted.active);
    let sorted = &known.sorted;
    let all_gone =
        sorted.active.is_empty() && sorted.terminating.is_empty() && plan.let_go.is_empty();
    let uncounted = known.status.uncounted_terminated_pods.as_ref();
    let is_empty = |uids: &Option<Vec<String>>| uids.as_ref().is_none_or(Vec::is_empty);
    let counted = uncounted.is_none_or(|pods| is_empty(&pods.succeeded) && is_empty(&pods.failed));
    let kind = match (finish.succeeded, all_gone && counted) {
        (true, true) => "Complete",
        (true, false) => "SuccessCriteriaMet",
        (false, true) => "Failed",
        (false, false) => "FailureTarget",
    };
    let mut set = |kind: &str| {
        let condition = status::condition(kind, "True", &finish.reason, &finish.message, known.now);
        conditions::set(
            known.status.conditions.get_or_insert_default(),
            condition,
            known.now,
        );
    };
    // The last condition never comes alone.
    match kind {
        "Complete" => set("SuccessCriteriaMet"),
        "Failed" => set("FailureTarget"),
        _ => {}
    }
    set(kind);
    if kind == "Complete" {
        known.status.completion_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            known.now,
        ));
    }
}

/// Brings the number of running pods to what it should be.
fn manage(known: &Known<'_>, plan: &mut Plan) {
    let (spec, sorted) = (known.spec, &known.sorted);
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let active = i32::try_from(sorted.active.len()).unwrap_or(i32::MAX);
    let wanted = match spec.completions {
        // Once one has succeeded no new ones begin; the others are waited for.
        None if known.succeeded() > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let left = completions - known.succeeded() - known.failed_indexes.len();
            left.max(0).min(parallelism)
        }
    };
    let surplus = usize::try_from(active - wanted).unwrap_or_default();
    let doubles = doubled(known);
    if surplus > 0 || !doubles.is_empty() {
        plan.delete = to_remove(known, doubles, surplus);
        return;
    }
    let mut missing = wanted - active;
    if pods::replaces_only_failed(known.job) {
        missing -= i32::try_from(sorted.terminating.len()).unwrap_or(i32::MAX);
    }
    let missing = usize::try_from(missing).unwrap_or_default().min(BURST_MAX);
    if missing == 0 {
        return;
    }
    if known.is_indexed() {
        create_indexes(known, missing, plan);
        return;
    }
    let (failures, last) = failures_in_a_row(known.pods.iter());
    match failure::backoff(failures, last, known.now) {
        Some(left) => plan.again = Some(left),
        None => plan.create = vec![Wanted::default(); missing],
    }
}

/// Pods of an index that another one runs for already, or that is done.
fn doubled(known: &Known<'_>) -> Vec<Arc<Pod>> {
    if !known.is_indexed() {
        return Vec::new();
    }
    let completions = known.spec.completions.unwrap_or_default();
    let mut seen = Indexes::default();
    let mut ordered: Vec<_> = known.sorted.active.iter().collect();
    // Of two the one that is ready stays.
    ordered.sort_by_key(|pod| (indexes::of(pod), !is_ready(pod), pods::uid(pod).to_owned()));
    let useless = |pod: &&Arc<Pod>| match indexes::of(pod) {
        Some(index) => {
            index >= completions
                || known.completed.contains(index)
                || known.failed_indexes.contains(index)
                || !seen.insert(index)
        }
        None => true,
    };
    ordered.into_iter().filter(useless).cloned().collect()
}

/// The doubled ones, then those that cost least: not ready before ready, high indexes before low ones.
fn to_remove(known: &Known<'_>, doubles: Vec<Arc<Pod>>, surplus: usize) -> Vec<Arc<Pod>> {
    let more = surplus.saturating_sub(doubles.len());
    let is_doubled = |pod: &Arc<Pod>| doubles.iter().any(|one| pods::uid(one) == pods::uid(pod));
    let mut rest: Vec<_> = known
        .sorted
        .active
        .iter()
        .filter(|pod| !is_doubled(pod))
        .cloned()
        .collect();
    rest.sort_by_key(|pod| {
        (
            std::cmp::Reverse(indexes::of(pod)),
            is_ready(pod),
            pods::uid(pod).to_owned(),
        )
    });
    doubles
        .iter()
        .cloned()
        .chain(rest.into_iter().take(more))
        .collect()
}

/// The lowest indexes that nothing runs for.
fn create_indexes(known: &Known<'_>, missing: usize, plan: &mut Plan) {
    let sorted = &known.sorted;
    let only_failed = pods::replaces_only_failed(known.job);
    let ending = sorted.terminating.iter().filter(|_| only_failed);
    let mut taken = Indexes::default();
    for pod in sorted.active.iter().chain(ending) {
        taken = with(taken, indexes::of(pod));
    }
    let (failures, last) = failures_in_a_row(known.pods.iter());
    let whole = failure::backoff(failures, last, known.now);
    let per_index = known.spec.backoff_limit_per_index.is_some();
    if let (Some(left), false) = (whole, per_index) {
        plan.again = Some(left);
        return;
    }
    for index in 0..known.spec.completions.unwrap_or_default() {
        if plan.create.len() == missing {
            return;
        }
        if taken.contains(index)
            || known.completed.contains(index)
            || known.failed_indexes.contains(index)
        {
            continue;
        }
        let mut wanted = Wanted {
            index: Some(index),
            failures: None,
        };
        if per_index {
            let of_index = known
                .pods
                .iter()
                .filter(|pod| indexes::of(pod) == Some(index));
            let (failed, ignored, last) = history(known.job, of_index);
            if let Some(left) = failure::backoff(failed + ignored, last, known.now) {
                plan.again = shorter(plan.again, Some(left));
                continue;
            }
            wanted.failures = Some((failed, ignored));
        }
        plan.create.push(wanted);
    }
}

/// How many pods have failed since the last one that succeeded, and when the last of them did.
fn failures_in_a_row<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>) -> (i32, Option<Timestamp>) {
    let (mut success, mut failures) = (None, Vec::new());
    for pod in pods {
        match crate::pod::phase(pod) {
            "Succeeded" => success = success.max(failure::ended_at(pod)),
            "Failed" => failures.extend(failure::ended_at(pod)),
            _ => {}
        }
    }
    failures.retain(|end| Some(*end) > success);
    let number = i32::try_from(failures.len()).unwrap_or(i32::MAX);
    (number, failures.into_iter().max())
}

/// What the next pod of an index must say of those before it: the newest one that failed knows, apart from itself.
fn history<'a>(
    job: &Job,
    pods: impl Iterator<Item = &'a Arc<Pod>>,
) -> (i32, i32, Option<Timestamp>) {
    let failed =
        pods.filter(|pod| crate::pod::phase(pod) == "Failed" || crate::pod::is_terminating(pod));
    let before = |pod: &Pod| {
        let counts = (
            failure::count(pod, failure::FAILURE_COUNT),
            failure::count(pod, failure::IGNORED_COUNT),
        );
        (counts, failure::ended_at(pod))
    };
    let Some(last) = failed.max_by_key(|pod| before(pod)) else {
        return (0, 0, None);
    };
    let ((failures, ignored), end) = before(last);
    match failure::judge(job, last) {
        Judgement::Ignore => (failures, ignored + 1, end),
        _ => (failures + 1, ignored, end),
    }
}

/// When the job's time is over.
fn deadline(known: &Known<'_>) -> Option<Duration> {
    let secs = u64::try_from(known.spec.active_deadline_seconds?).ok()?;
    let start = known.status.start_time.as_ref()?.0;
    let due = start.checked_add(Duration::from_secs(secs)).ok()?;
    Some(
        Duration::try_from(due.duration_since(known.now)).unwrap_or_default()
            + Duration::from_millis(50),
    )
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
