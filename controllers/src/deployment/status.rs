//! Computes the status of a deployment: counts, and the conditions Available, Progressing and ReplicaFailure. Pure.

use std::time::Duration;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Split, View};
use super::rolling::limits;
use super::sets::{self, total, wanted};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The counts, with the conditions as they were.
pub(super) fn counts(view: &View<'_>, split: &Split) -> DeploymentStatus {
    let before = view.deployment.status.clone().unwrap_or_default();
    let sum = |count: fn(&ReplicaSetStatus) -> i32| -> i32 {
        split
            .all()
            .filter_map(|set| set.status.as_ref())
            .map(count)
            .sum()
    };
    let available = sum(|status| status.available_replicas.unwrap_or_default());
    let updated = split
        .new
        .as_ref()
        .and_then(|set| set.status.as_ref())
        .map_or(0, |status| status.replicas);
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: some(sum(|status| status.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or_default())),
        available_replicas: some(available),
        unavailable_replicas: some((total(split.all()) - available).max(0)),
        terminating_replicas: Some(sum(|status| {
            status.terminating_replicas.unwrap_or_default()
        })),
        collision_count: before.collision_count,
        conditions: before.conditions,
    }
}

/// The status without news of a rollout: while scaling, paused or being deleted.
pub(super) fn plain(view: &View<'_>, split: &Split) -> DeploymentStatus {
    let mut status = counts(view, split);
    let mut conditions = status.conditions.take().unwrap_or_default();
    availability(view, &status, &mut conditions);
    pause(view, &mut conditions);
    status.conditions = Some(conditions).filter(|conditions| !conditions.is_empty());
    status
}

/// The status during and after a rollout, and when the progress deadline is to be checked. `created` names the replica set
/// that is created in this round.
pub(super) fn rollout(
    view: &View<'_>,
    split: &Split,
    created: Option<&str>,
) -> (DeploymentStatus, Option<Duration>) {
    let mut status = counts(view, split);
    let mut conditions = status.conditions.take().unwrap_or_default();
    availability(view, &status, &mut conditions);
    pause(view, &mut conditions);
    let mut next_look = None;
    match deadline(view.deployment) {
        None => {
            conditions::remove(&mut conditions, PROGRESSING);
        }
        Some(deadline) => {
            next_look = progress(view, split, created, &status, &mut conditions, deadline)
        }
    }
    match replica_failure(split) {
        Some(failure) => set(&mut conditions, failure, view.now),
        None => {
            conditions::remove(&mut conditions, REPLICA_FAILURE);
        }
    }
    status.conditions = Some(conditions).filter(|conditions| !conditions.is_empty());
    (status, next_look)
}

/// Everything is new, and everything is there.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let want = wanted(deployment);
    status.updated_replicas.unwrap_or_default() == want
        && status.replicas.unwrap_or_default() == want
        && status.available_replicas.unwrap_or_default() == want
        && status.observed_generation >= deployment.metadata.generation
}

/// Marks that a replica set could not be created.
pub(super) fn creation_failed(status: &mut DeploymentStatus, message: String, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    set(
        conditions,
        condition(PROGRESSING, "False", "ReplicaSetCreateError", message),
        now,
    );
}

fn availability(
    view: &View<'_>,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
) {
    let needed = wanted(view.deployment) - limits(view.deployment).unavailable;
    let enough = status.available_replicas.unwrap_or_default() >= needed;
    let (value, reason, message) = if enough {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(
        conditions,
        condition(AVAILABLE, value, reason, message.to_owned()),
        view.now,
    );
}

/// The deadline's clock stops while a deployment is paused and starts anew when it is resumed.
fn pause(view: &View<'_>, conditions: &mut Vec<DeploymentCondition>) {
    let present =
        conditions::find(conditions, PROGRESSING).and_then(|present| present.reason.as_deref());
    if deadline(view.deployment).is_none() || matches!(present, Some(TIMED_OUT)) {
        return;
    }
    let paused = view
        .deployment
        .spec
        .as_ref()
        .is_some_and(|spec| spec.paused == Some(true));
    let was_paused = present == Some("DeploymentPaused");
    if paused && !was_paused {
        set(
            conditions,
            condition(
                PROGRESSING,
                "Unknown",
                "DeploymentPaused",
                "Deployment is paused".to_owned(),
            ),
            view.now,
        );
    } else if !paused && was_paused {
        set(
            conditions,
            condition(
                PROGRESSING,
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed".to_owned(),
            ),
            view.now,
        );
    }
}

fn progress(
    view: &View<'_>,
    split: &Split,
    created: Option<&str>,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    deadline: Duration,
) -> Option<Duration> {
    let subject = split.new.as_ref().map_or_else(
        || {
            format!(
                "Deployment \"{}\"",
                view.deployment.metadata.name.as_deref().unwrap_or_default()
            )
        },
        |set| format!("ReplicaSet \"{}\"", sets::name(set)),
    );
    let present = conditions::find(conditions, PROGRESSING).cloned();
    let reason = present
        .as_ref()
        .and_then(|present| present.reason.clone())
        .unwrap_or_default();
    if let Some(name) = created {
        let message = format!("Created new replica set \"{name}\"");
        set(
            conditions,
            condition(PROGRESSING, "True", "NewReplicaSetCreated", message),
            view.now,
        );
        return Some(deadline);
    }
    if reason == NEW_SET_AVAILABLE && status.replicas == status.updated_replicas {
        // A finished rollout stays finished, whatever happens to single pods.
        return None;
    }
    if is_complete(view.deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(
            conditions,
            condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message),
            view.now,
        );
        return None;
    }
    if has_progressed(view.deployment.status.as_ref(), status) || present.is_none() {
        let next = sign_of_life(view, split, &subject, present);
        conditions::remove(conditions, PROGRESSING);
        conditions.push(next);
        return Some(deadline);
    }
    if reason == TIMED_OUT {
        return None;
    }
    let last_sign = present
        .and_then(|present| present.last_update_time)
        .map_or(view.now, |time| time.0);
    let left = (last_sign + deadline).duration_since(view.now);
    if left.is_positive() {
        // Upstream's spare second: timestamps are whole seconds.
        return Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1));
    }
    let message = format!("{subject} has timed out progressing.");
    set(
        conditions,
        condition(PROGRESSING, "False", TIMED_OUT, message),
        view.now,
    );
    None
}

/// Each step counts as life, so the update time moves even if status and reason stay.
fn sign_of_life(
    view: &View<'_>,
    split: &Split,
    subject: &str,
    present: Option<DeploymentCondition>,
) -> DeploymentCondition {
    let (reason, message) = if present.is_none() {
        let name = split.new.as_ref().map_or("", |set| sets::name(set));
        (
            "FoundNewReplicaSet",
            format!("Found new replica set \"{name}\""),
        )
    } else {
        ("ReplicaSetUpdated", format!("{subject} is progressing."))
    };
    let mut next = condition(PROGRESSING, "True", reason, message);
    next.last_update_time = Some(Time(view.now));
    let since = present
        .filter(|present| present.status == "True")
        .and_then(|present| present.last_transition_time);
    next.last_transition_time = since.or(Some(Time(view.now)));
    next
}

/// More new pods, fewer old ones, or more that are ready or available than the published status says.
fn has_progressed(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> bool {
    let numbers = |status: &DeploymentStatus| {
        let updated = status.updated_replicas.unwrap_or_default();
        let old = status.replicas.unwrap_or_default() - updated;
        (
            updated,
            old,
            status.ready_replicas.unwrap_or_default(),
            status.available_replicas.unwrap_or_default(),
        )
    };
    let (before, now) = (before.map(numbers).unwrap_or_default(), numbers(now));
    now.0 > before.0 || now.1 < before.1 || now.2 > before.2 || now.3 > before.3
}

fn deadline(deployment: &Deployment) -> Option<Duration> {
    let secs = deployment
        .spec
        .as_ref()?
        .progress_deadline_seconds
        .filter(|secs| *secs != i32::MAX)?;
    u64::try_from(secs).ok().map(Duration::from_secs)
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..DeploymentCondition::default()
    }
}

/// Same status and reason: nothing is written, whatever the message says.
fn set(
    conditions: &mut Vec<DeploymentCondition>,
    mut condition: DeploymentCondition,
    now: Timestamp,
) {
    let present = conditions::find(conditions, &condition.type_);
    if present.is_some_and(|present| {
        present.status == condition.status && present.reason == condition.reason
    }) {
        return;
    }
    condition.last_update_time = Some(Time(now));
    conditions::set(conditions, condition, now);
}

fn some(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

/// The failure that a replica set reports; the new one's counts before the old ones'.
fn replica_failure(split: &Split) -> Option<DeploymentCondition> {
    let failures = split.all().filter_map(|set| {
        let failure =
            conditions::find(set.status.as_ref()?.conditions.as_deref()?, REPLICA_FAILURE)?;
        let reason = failure.reason.as_deref().unwrap_or_default();
        Some(condition(
            REPLICA_FAILURE,
            &failure.status,
            reason,
            failure.message.clone().unwrap_or_default(),
        ))
    });
    failures.last()
}
