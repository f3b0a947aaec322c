//! The five conditions that tell why a namespace is still there. Pure.

use std::collections::BTreeMap;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};

use super::content::Pass;

/// Type, status, reason and message.
type Fact = (&'static str, &'static str, &'static str, String);

/// The conditions after a pass, the ones of before kept where nothing changed.
pub(super) fn conditions(
    namespace: &Namespace,
    discovery: Option<&kube::Error>,
    pass: &Pass,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let facts = match discovery {
        // Nothing was looked at, so nothing else is known.
        Some(error) => vec![undiscovered(error)],
        None => vec![
            discovered(),
            parsed(),
            content(pass),
            remaining(pass),
            finalizers(pass),
        ],
    };
    let mut list = namespace
        .status
        .clone()
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    for (kind, status, reason, message) in facts {
        let condition = NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: None,
        };
        conditions::set(&mut list, condition, now);
    }
    list
}

fn undiscovered(error: &kube::Error) -> Fact {
    let message = format!("Discovery failed for some groups: {error}");
    (
        "NamespaceDeletionDiscoveryFailure",
        "True",
        "DiscoveryFailed",
        message,
    )
}

fn discovered() -> Fact {
    let message = "All resources successfully discovered".to_owned();
    (
        "NamespaceDeletionDiscoveryFailure",
        "False",
        "ResourcesDiscovered",
        message,
    )
}

fn parsed() -> Fact {
    let message = "All legacy kube types successfully parsed".to_owned();
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "False",
        "ParsedGroupVersions",
        message,
    )
}

fn content(pass: &Pass) -> Fact {
    if pass.errors.is_empty() {
        let message = "All content successfully deleted, may be waiting on finalization".to_owned();
        return (
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            message,
        );
    }
    let (failed, errors) = (pass.errors.len(), pass.errors.join(", "));
    let message = format!("Failed to delete all resource types, {failed} remaining: {errors}");
    (
        "NamespaceDeletionContentFailure",
        "True",
        "ContentDeletionFailed",
        message,
    )
}

fn remaining(pass: &Pass) -> Fact {
    if pass.remaining.is_empty() {
        let message = "All content successfully removed".to_owned();
        return (
            "NamespaceContentRemaining",
            "False",
            "ContentRemoved",
            message,
        );
    }
    let message = format!(
        "Some resources are remaining: {}",
        counts(&pass.remaining, "has")
    );
    (
        "NamespaceContentRemaining",
        "True",
        "SomeResourcesRemain",
        message,
    )
}

fn finalizers(pass: &Pass) -> Fact {
    if pass.finalizers.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        return (
            "NamespaceFinalizersRemaining",
            "False",
            "ContentHasNoFinalizers",
            message,
        );
    }
    let counts = counts(&pass.finalizers, "in");
    let message = format!("Some content in the namespace has finalizers remaining: {counts}");
    (
        "NamespaceFinalizersRemaining",
        "True",
        "SomeFinalizersRemain",
        message,
    )
}

fn counts(counts: &BTreeMap<String, usize>, verb: &str) -> String {
    let parts: Vec<_> = counts
        .iter()
        .map(|(what, count)| format!("{what} {verb} {count} resource instances"))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, time};

    #[test]
    fn conditions_name_what_remains_and_stay_when_nothing_changes() {
        let pass = Pass {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Pass::default()
        };
        let mut namespace = Namespace::default();
        let first = conditions(&namespace, None, &pass, time(NOW));
        let message = |kind| {
            conditions::find(&first, kind)
                .unwrap()
                .message
                .clone()
                .unwrap()
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        namespace.status.get_or_insert_default().conditions = Some(first.clone());
        let later = time(NOW) + std::time::Duration::from_secs(60);
        assert_eq!(conditions(&namespace, None, &pass, later), first);
        let done = conditions(&namespace, None, &Pass::default(), later);
        assert!(done.iter().all(|condition| condition.status == "False"));
    }
}
