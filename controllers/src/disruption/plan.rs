//! What a budget allows: how many pods there should be, how many are healthy, how many may go. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_client::conditions;
use cox_client::events::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};

use crate::pod::is_ready;
use crate::revisions::scaled_up;

/// An eviction that was granted so long ago and is not seen did not happen.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

/// How many pods their owners want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) count: i32,
    /// Some pods have no owner that says a number.
    pub(super) unmanaged: bool,
}

/// What to publish.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: PodDisruptionBudgetStatus,
    pub(super) tell: Vec<(EventType, &'static str, String)>,
    /// Pods whose eviction was granted and which did not go.
    pub(super) not_deleted: Vec<Arc<Pod>>,
    /// When the next granted eviction is given up.
    pub(super) again: Option<Duration>,
}

/// Whether the pod is the budget's. No selector selects nothing, an empty one everything.
pub(super) fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    let Some(selector) = selector else {
        return false;
    };
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    Selector::try_from(selector).is_ok_and(|selector| selector.matches(labels))
}

/// Whether the number of pods there should be is asked of their owners; a plain `minAvailable` needs none.
pub(super) fn asks_owners(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else {
        return false;
    };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Decides; `expected` is what the owners say, or why they cannot be asked.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: Result<&Expected, &str>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let generation = budget.metadata.generation;
    let expected = match expected {
        Ok(expected) => expected,
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            let reason = "CalculateExpectedPodCountFailed";
            plan.tell.push((EventType::Warning, reason, message));
            plan.status = budget.status.clone().unwrap_or_default();
            plan.status.disruptions_allowed = Some(0);
            set_condition(&mut plan.status, "SyncFailed", why, now);
            return plan;
        }
    };
    tell_of(&mut plan, budget, pods, expected);
    let (count, desired) = desired(budget, pods, expected.count);
    granted(&mut plan, budget, pods, now);
    let disrupted = plan.status.disrupted_pods.clone().unwrap_or_default();
    let is_healthy = |pod: &&Arc<Pod>| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(name) && is_ready(pod)
    };
    let healthy = i32::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i32::MAX);
    let allowed = if count > 0 {
        (healthy - desired).max(0)
    } else {
        0
    };
    let status = &mut plan.status;
    status.current_healthy = Some(healthy);
    status.desired_healthy = Some(desired);
    status.expected_pods = Some(count);
    status.disruptions_allowed = Some(allowed);
    status.observed_generation = generation;
    status.conditions = budget
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let reason = if allowed > 0 {
        "SufficientPods"
    } else {
        "InsufficientPods"
    };
    set_condition(status, reason, "", now);
    plan
}

fn tell_of(plan: &mut Plan, budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: &Expected) {
    if pods.is_empty() {
        let message = "No matching pods found".to_owned();
        plan.tell.push((EventType::Normal, "NoPods", message));
    }
    if expected.unmanaged {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        let selector = serde_json::to_string(&selector).unwrap_or_default();
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the \
             status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these \
             pods please set \".spec.minAvailable\" field of the PDB to an integer value."
        );
        plan.tell
            .push((EventType::Warning, "UnmanagedPods", message));
    }
}

/// How many pods there should be, and how many of them healthy.
fn desired(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: i32) -> (i32, i32) {
    let Some(spec) = &budget.spec else {
        return (0, 0);
    };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            let most = scaled_up(unavailable, expected);
            (expected, (expected - most).max(0))
        }
        (None, Some(IntOrString::Int(least))) => {
            (i32::try_from(pods.len()).unwrap_or(i32::MAX), *least)
        }
        (None, Some(percent)) => (expected, scaled_up(percent, expected)),
        (None, None) => (0, 0),
    }
}

/// Which evictions that were granted are still under way.
fn granted(plan: &mut Plan, budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) {
    let before = budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.as_ref());
    let Some(before) = before else { return };
    let mut kept: BTreeMap<String, Time> = BTreeMap::new();
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(since) = before.get(name) else {
            continue;
        };
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let left = DELETION_TIMEOUT - now.duration_since(since.0);
        match Duration::try_from(left) {
            Ok(left) => {
                kept.insert(name.to_owned(), since.clone());
                plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
            }
            Err(_) => plan.not_deleted.push(Arc::clone(pod)),
        }
    }
    plan.status.disrupted_pods = Some(kept);
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: if status.disruptions_allowed > Some(0) {
            "True"
        } else {
            "False"
        }
        .to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: Time(now),
    };
    let generation = status.observed_generation;
    let all = status.conditions.get_or_insert_default();
    conditions::set(all, condition, now);
    // What else is the same may still be of an older generation.
    for present in all.iter_mut().filter(|present| present.type_ == ALLOWED) {
        present.observed_generation = generation;
    }
}

/// Nothing but ways to write it differs.
pub(super) fn is_settled(budget: &PodDisruptionBudget, next: &PodDisruptionBudgetStatus) -> bool {
    let normal = |status: &PodDisruptionBudgetStatus| {
        let mut status = status.clone();
        status.disrupted_pods = status.disrupted_pods.filter(|pods| !pods.is_empty());
        for count in [
            &mut status.current_healthy,
            &mut status.desired_healthy,
            &mut status.expected_pods,
            &mut status.disruptions_allowed,
        ] {
            *count = Some(count.unwrap_or_default());
        }
        status
    };
    let before = budget.status.clone().unwrap_or_default();
    normal(&before) == normal(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, pod, time};
    use serde_json::{Value, json};

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let mut spec = spec;
        spec["selector"] = json!({});
        let meta = json!({ "name": "b", "generation": 2 });
        serde_json::from_value(json!({ "metadata": meta, "spec": spec, "status": status })).unwrap()
    }

    fn status(granted: Value) -> Value {
        json!({ "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0, "disruptedPods": granted })
    }

    fn pods(words: &str) -> Vec<Arc<Pod>> {
        words
            .split_whitespace()
            .map(|word| Arc::new(pod(word)))
            .collect()
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn a_budget_allows_what_is_healthy_beyond_what_must_be() {
        let cases = [
            (
                "one of three may go",
                json!({ "minAvailable": 2 }),
                "a+ b+ c+",
                0,
                (3, 2, 3, 1),
            ),
            (
                "one that is not ready counts for nothing",
                json!({ "minAvailable": 2 }),
                "a+ b+ c-",
                0,
                (2, 2, 3, 0),
            ),
            (
                "nor one that goes",
                json!({ "minAvailable": 1 }),
                "a+ bx",
                0,
                (1, 1, 2, 0),
            ),
            (
                "less than must be is no debt",
                json!({ "minAvailable": 5 }),
                "a+",
                0,
                (1, 5, 1, 0),
            ),
            (
                "no pods allow nothing",
                json!({ "minAvailable": 0 }),
                "",
                0,
                (0, 0, 0, 0),
            ),
            (
                "a share of what owners want, rounded up",
                json!({ "minAvailable": "50%" }),
                "a+ b+ c+",
                5,
                (3, 3, 5, 0),
            ),
            (
                "so many may lack of what owners want",
                json!({ "maxUnavailable": 1 }),
                "a+ b+ c+",
                3,
                (3, 2, 3, 1),
            ),
            (
                "also as a share, rounded up",
                json!({ "maxUnavailable": "30%" }),
                "a+ b+ c+",
                3,
                (3, 2, 3, 1),
            ),
            (
                "those that are not there yet lack already",
                json!({ "maxUnavailable": 1 }),
                "a+ b+",
                3,
                (2, 2, 3, 0),
            ),
        ];
        for (case, spec, words, wanted, expected) in cases {
            let owners = Expected {
                count: wanted,
                unmanaged: false,
            };
            let plan = plan(
                &budget(spec, Value::Null),
                &pods(words),
                Ok(&owners),
                time(NOW),
            );
            let found = plan.status;
            let count = |figure: Option<i32>| figure.unwrap();
            let figures = (
                count(found.current_healthy),
                count(found.desired_healthy),
                count(found.expected_pods),
                count(found.disruptions_allowed),
            );
            assert_eq!(figures, expected, "case: {case}");
            let condition = &found.conditions.unwrap()[0];
            let allowed = if expected.3 > 0 { "True" } else { "False" };
            assert_eq!(
                (condition.status.as_str(), condition.observed_generation),
                (allowed, Some(2)),
                "case: {case}"
            );
        }
    }

    #[test]
    fn a_granted_eviction_counts_until_it_is_seen_or_given_up() {
        let recent = json!({ "a": "2026-06-01T11:59:00Z", "gone": "2026-06-01T11:59:00Z", "x": "2026-06-01T11:59:00Z" });
        let before = budget(json!({ "minAvailable": 1 }), status(recent));
        let found = plan(
            &before,
            &pods("a+ b+ xx"),
            Ok(&Expected::default()),
            time(NOW),
        );
        assert_eq!(found.status.current_healthy, Some(1));
        assert_eq!(found.again, Some(Duration::from_secs(60)));
        let kept: Vec<String> = found.status.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!(kept, ["a"]);
        let old = budget(
            json!({ "minAvailable": 1 }),
            status(json!({ "a": "2026-06-01T11:50:00Z" })),
        );
        let found = plan(&old, &pods("a+ b+"), Ok(&Expected::default()), time(NOW));
        assert_eq!(
            (
                found.status.current_healthy,
                found.not_deleted.len(),
                found.again
            ),
            (Some(2), 1, None)
        );
    }

    #[test]
    fn what_cannot_be_counted_allows_nothing_and_what_is_settled_stays() {
        let before = budget(json!({ "maxUnavailable": 1 }), Value::Null);
        let failed = plan(&before, &pods("a+"), Err("nobody knows"), time(NOW));
        assert_eq!(failed.status.disruptions_allowed, Some(0));
        let condition = &failed.status.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", "nobody knows")
        );
        let owners = Expected {
            count: 1,
            unmanaged: false,
        };
        let first = plan(&before, &pods("a+"), Ok(&owners), time(NOW));
        assert!(!is_settled(&before, &first.status));
        let mut after = before;
        after.status = Some(first.status);
        let again = plan(
            &after,
            &pods("a+"),
            Ok(&owners),
            time("2026-06-01T13:00:00Z"),
        );
        assert!(is_settled(&after, &again.status));
    }
}
