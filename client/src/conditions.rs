//! One rule for the condition lists of all kinds: a condition's `lastTransitionTime` moves only when its status does.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    DaemonSetCondition, DeploymentCondition, ReplicaSetCondition, StatefulSetCondition,
};
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::{NamespaceCondition, NodeCondition, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The fields that all condition types share.
pub trait AnyCondition {
    /// `type`.
    fn kind(&self) -> &str;
    /// `status`: True, False or Unknown.
    fn status(&self) -> &str;
    /// `reason`, empty when absent.
    fn reason(&self) -> &str;
    /// `message`, empty when absent.
    fn message(&self) -> &str;
    /// `lastTransitionTime`.
    fn transitioned(&self) -> Option<Timestamp>;
    /// Sets `lastTransitionTime`.
    fn set_transitioned(&mut self, at: Timestamp);
}

macro_rules! any_condition {
    ($($type:ty),*) => { $(
        impl AnyCondition for $type {
            fn kind(&self) -> &str {
                &self.type_
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn reason(&self) -> &str {
                self.reason.as_deref().unwrap_or_default()
            }
            fn message(&self) -> &str {
                self.message.as_deref().unwrap_or_default()
            }
            fn transitioned(&self) -> Option<Timestamp> {
                self.last_transition_time.as_ref().map(|time| time.0)
            }
            fn set_transitioned(&mut self, at: Timestamp) {
                self.last_transition_time = Some(Time(at));
            }
        }
    )* };
}

any_condition!(
    DaemonSetCondition,
    DeploymentCondition,
    JobCondition,
    ReplicaSetCondition,
    StatefulSetCondition,
    NamespaceCondition,
    NodeCondition,
    PodCondition
);

impl AnyCondition for Condition {
    fn kind(&self) -> &str {
        &self.type_
    }
    fn status(&self) -> &str {
        &self.status
    }
    fn reason(&self) -> &str {
        &self.reason
    }
    fn message(&self) -> &str {
        &self.message
    }
    fn transitioned(&self) -> Option<Timestamp> {
        Some(self.last_transition_time.0)
    }
    fn set_transitioned(&mut self, at: Timestamp) {
        self.last_transition_time = Time(at);
    }
}

/// The condition of a type.
#[must_use]
pub fn find<'a, C: AnyCondition>(conditions: &'a [C], kind: &str) -> Option<&'a C> {
    conditions.iter().find(|condition| condition.kind() == kind)
}

/// Whether the condition of a type is present with status True.
#[must_use]
pub fn is_true<C: AnyCondition>(conditions: &[C], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status() == "True")
}

/// Adds or replaces the condition of its type. `lastTransitionTime` becomes `now` when the status differs from before and
/// stays as it was otherwise. Returns whether status, reason or message changed.
pub fn set<C: AnyCondition>(conditions: &mut Vec<C>, mut condition: C, now: Timestamp) -> bool {
    let Some(present) = conditions
        .iter_mut()
        .find(|present| present.kind() == condition.kind())
    else {
        condition.set_transitioned(now);
        conditions.push(condition);
        return true;
    };
    let same_status = present.status() == condition.status();
    if same_status
        && present.reason() == condition.reason()
        && present.message() == condition.message()
    {
        return false;
    }
    condition.set_transitioned(
        present
            .transitioned()
            .filter(|_| same_status)
            .unwrap_or(now),
    );
    *present = condition;
    true
}

/// Removes the condition of a type. Returns whether there was one.
pub fn remove<C: AnyCondition>(conditions: &mut Vec<C>, kind: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|condition| condition.kind() != kind);
    conditions.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &str, reason: &str) -> NodeCondition {
        NodeCondition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            ..NodeCondition::default()
        }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let (early, late): (Timestamp, Timestamp) = (
            "2026-01-01T00:00:00Z".parse().unwrap(),
            "2026-01-02T00:00:00Z".parse().unwrap(),
        );
        let mut conditions = Vec::new();
        assert!(set(&mut conditions, ready("True", "A"), early));
        assert!(
            !set(&mut conditions, ready("True", "A"), late),
            "nothing changed"
        );
        assert!(set(&mut conditions, ready("True", "B"), late));
        assert_eq!(conditions[0].transitioned(), Some(early));
        assert!(set(&mut conditions, ready("False", "B"), late));
        assert_eq!(conditions[0].transitioned(), Some(late));
        assert!(remove(&mut conditions, "Ready") && conditions.is_empty());
    }
}
