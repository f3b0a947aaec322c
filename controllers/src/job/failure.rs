//! What the failure of a pod means for its job: pod failure policies, limits per index, back-off. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pod::{phase, ready_condition};

/// How often pods of this index failed before this one, and how often that was ignored.
pub(super) const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const IGNORED_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(10 * 60);

/// What a policy says of one failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It counts towards the back-off limit.
    Count,
    /// It does not.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The job has failed, for this reason in words.
    FailJob(String),
}

/// Looks for the first rule that matches.
pub(super) fn judge(job: &Job, pod: &Pod) -> Judgement {
    let policy = job
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_failure_policy.as_ref());
    let rules = policy
        .map(|policy| policy.rules.as_slice())
        .unwrap_or_default();
    for (at, rule) in rules.iter().enumerate() {
        let Some(what) = matches(rule, pod) else {
            continue;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return match rule.action.as_str() {
            "FailJob" => Judgement::FailJob(match what {
                Matched::Exit { container, code } => format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} matching FailJob rule at index {at}"
                ),
                Matched::Condition(kind) => format!(
                    "Pod {namespace}/{name} has condition {kind} matching FailJob rule at index {at}"
                ),
            }),
            "FailIndex" => Judgement::FailIndex,
            "Ignore" => Judgement::Ignore,
            _ => Judgement::Count,
        };
    }
    Judgement::Count
}

/// What of a pod a rule matched.
enum Matched<'a> {
    Exit { container: &'a str, code: i32 },
    Condition(&'a str),
}

fn matches<'a>(rule: &'a PodFailurePolicyRule, pod: &'a Pod) -> Option<Matched<'a>> {
    if let Some(exit) = &rule.on_exit_codes {
        return containers(pod).find_map(|container| {
            let asked = exit.container_name.as_deref();
            let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
            let listed = exit.values.contains(&code);
            let wanted = match exit.operator.as_str() {
                "In" => listed,
                _ => !listed,
            };
            let hit = code != 0 && wanted && asked.is_none_or(|asked| asked == container.name);
            hit.then_some(Matched::Exit {
                container: &container.name,
                code,
            })
        });
    }
    let conditions = pod
        .status
        .as_ref()?
        .conditions
        .as_deref()
        .unwrap_or_default();
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    patterns.iter().find_map(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let hit = |one: &&k8s_openapi::api::core::v1::PodCondition| {
            one.type_ == pattern.type_ && one.status == wanted
        };
        conditions
            .iter()
            .find(hit)
            .map(|one| Matched::Condition(&one.type_))
    })
}

/// The statuses of init and main containers.
fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_deref());
    let main = status.and_then(|status| status.container_statuses.as_deref());
    main.into_iter().chain(init).flatten()
}

/// A number in an annotation of the pod.
pub(super) fn count(pod: &Pod, annotation: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(annotation));
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Containers that restart in place count against the limit too.
pub(super) fn restarts_over_limit(job: &Job, pods: &[std::sync::Arc<Pod>]) -> bool {
    let spec = job.spec.as_ref();
    let limit = spec.and_then(|spec| spec.backoff_limit).unwrap_or(6);
    let in_place = spec
        .and_then(|spec| spec.template.spec.as_ref()?.restart_policy.as_deref())
        .is_some_and(|policy| policy == "OnFailure");
    let living = pods
        .iter()
        .filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    let restarts: i32 = living
        .flat_map(|pod| containers(pod))
        .map(|one| one.restart_count)
        .sum();
    in_place
        && if limit == 0 {
            restarts > 0
        } else {
            restarts >= limit
        }
}

/// When the pod ended, as well as its status tells.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let ends = containers(pod).filter_map(|one| {
        Some(
            one.state
                .as_ref()?
                .terminated
                .as_ref()?
                .finished_at
                .as_ref()?
                .0,
        )
    });
    let unready = || {
        ready_condition(pod)?
            .last_transition_time
            .as_ref()
            .map(|time| time.0)
    };
    let meta = &pod.metadata;
    ends.max()
        .or_else(unready)
        .or_else(|| meta.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| meta.creation_timestamp.as_ref().map(|time| time.0))
}

/// How much longer to wait after so many failures in a row, the last of them then.
pub(super) fn backoff(failures: i32, last: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let doublings = u32::try_from(failures.checked_sub(1)?).ok()?.min(16);
    let pause = BACKOFF_FIRST
        .saturating_mul(1 << doublings)
        .min(BACKOFF_MAX);
    let due = last?.checked_add(pause).ok()?;
    Duration::try_from(due.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())
}
