//! The five conditions that tell why a namespace is still there. Pure.

use std::collections::BTreeMap;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};

use super::content::Pass;

/// The conditions after a pass, the ones of before kept where nothing changed.
pub(super) fn conditions(
    namespace: &Namespace,
    discovery: Option<&kube::Error>,
    pass: &Pass,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let mut list = namespace
        .status
        .clone()
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let mut set = |kind: &str, status: &str, reason: &str, message: String| {
        let condition = NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: None,
        };
        conditions::set(&mut list, condition, now);
    };
    match discovery {
        None => set(
            "NamespaceDeletionDiscoveryFailure",
            "False",
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        Some(error) => {
            let message = format!("Discovery failed for some groups: {error}");
            set(
                "NamespaceDeletionDiscoveryFailure",
                "True",
                "DiscoveryFailed",
                message,
            );
            // Nothing was looked at, so nothing else is known.
            return list;
        }
    }
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        "False",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed".to_owned(),
    );
    if pass.errors.is_empty() {
        let message = "All content successfully deleted, may be waiting on finalization".to_owned();
        set(
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            message,
        );
    } else {
        let message = format!(
            "Failed to delete all resource types, {} remaining: {}",
            pass.errors.len(),
            pass.errors.join(", ")
        );
        set(
            "NamespaceDeletionContentFailure",
            "True",
            "ContentDeletionFailed",
            message,
        );
    }
    if pass.remaining.is_empty() {
        set(
            "NamespaceContentRemaining",
            "False",
            "ContentRemoved",
            "All content successfully removed".to_owned(),
        );
    } else {
        let message = format!(
            "Some resources are remaining: {}",
            counts(&pass.remaining, "has")
        );
        set(
            "NamespaceContentRemaining",
            "True",
            "SomeResourcesRemain",
            message,
        );
    }
    if pass.finalizers.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        set(
            "NamespaceFinalizersRemaining",
            "False",
            "ContentHasNoFinalizers",
            message,
        );
    } else {
        let message = format!(
            "Some content in the namespace has finalizers remaining: {}",
            counts(&pass.finalizers, "in")
        );
        set(
            "NamespaceFinalizersRemaining",
            "True",
            "SomeFinalizersRemain",
            message,
        );
    }
    list
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
