//! Whether a job has come to its end, and which. Pure.

use cox_client::conditions;
use k8s_openapi::api::batch::v1::JobStatus;

use super::failure;
use super::indexes::Indexes;
use super::plan::Known;

/// The end of a job and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finish {
    pub(super) succeeded: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Finish {
    fn success(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self {
            succeeded: true,
            reason: reason.to_owned(),
            message: message.into(),
        })
    }

    fn failure(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self {
            succeeded: false,
            reason: reason.to_owned(),
            message: message.into(),
        })
    }
}

/// Complete or Failed: nothing more happens to the job.
pub(super) fn is_finished(status: &JobStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    ["Complete", "Failed"]
        .iter()
        .any(|kind| conditions::is_true(conditions, kind))
}

/// The end that is announced already, or the first that applies.
pub(super) fn finish(known: &Known<'_>) -> Option<Finish> {
    announced(&known.status)
        .or_else(|| failed(known))
        .or_else(|| by_success_policy(known))
        .or_else(|| completed(known))
}

fn announced(status: &JobStatus) -> Option<Finish> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    [("FailureTarget", false), ("SuccessCriteriaMet", true)]
        .into_iter()
        .find_map(|(kind, succeeded)| {
            let found =
                conditions::find(conditions, kind).filter(|found| found.status == "True")?;
            Some(Finish {
                succeeded,
                reason: found.reason.clone().unwrap_or_default(),
                message: found.message.clone().unwrap_or_default(),
            })
        })
}

fn failed(known: &Known<'_>) -> Option<Finish> {
    let spec = known.spec;
    if let Some(why) = &known.verdict {
        return Finish::failure("PodFailurePolicy", why.clone());
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if known.failed() > limit || failure::restarts_over_limit(known.job, &known.sorted.active) {
        return Finish::failure(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        );
    }
    let started = known
        .status
        .start_time
        .as_ref()
        .filter(|_| spec.suspend != Some(true));
    if let (Some(deadline), Some(start)) = (spec.active_deadline_seconds, started)
        && known.now.duration_since(start.0).as_secs() >= deadline
    {
        return Finish::failure(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        );
    }
    let max = spec.max_failed_indexes;
    if max.is_some_and(|max| known.failed_indexes.len() > max) {
        return Finish::failure(
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        );
    }
    let completions = spec.completions.unwrap_or_default();
    let all =
        known.is_indexed() && known.completed.len() + known.failed_indexes.len() >= completions;
    if all && !known.failed_indexes.is_empty() {
        return Finish::failure("FailedIndexes", "Job has failed indexes");
    }
    None
}

fn by_success_policy(known: &Known<'_>) -> Option<Finish> {
    let policy = known
        .spec
        .success_policy
        .as_ref()
        .filter(|_| known.is_indexed())?;
    let completions = known.spec.completions.unwrap_or_default();
    let met = policy.rules.iter().position(|rule| {
        let named = rule
            .succeeded_indexes
            .as_deref()
            .map(|text| Indexes::parse(text, completions));
        let (done, all) = match &named {
            Some(named) => (named.common(&known.completed), named.len()),
            None => (known.completed.len(), completions),
        };
        done >= rule.succeeded_count.unwrap_or(all)
    })?;
    Finish::success("SuccessPolicy", format!("Matched rules at index {met}"))
}

fn completed(known: &Known<'_>) -> Option<Finish> {
    let done = match known.spec.completions {
        None => known.succeeded() > 0 && known.sorted.active.is_empty(),
        Some(completions) => known.succeeded() >= completions,
    };
    let message = "Reached expected number of succeeded pods";
    done.then(|| Finish::success("CompletionsReached", message))
        .flatten()
}
