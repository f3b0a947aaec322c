//! Revisions and the annotations that carry them and the deployment's own annotations to its replica sets. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::sets::{DESIRED_REPLICAS, MAX_REPLICAS, annotation, number};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const HISTORY_LEN_MAX: usize = 2000;
/// Belong to one object each and are never copied.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// One more than the highest revision among the old replica sets.
pub(super) fn next_revision(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter()
        .map(|set| number::<i64>(set, REVISION).unwrap_or_default())
        .max()
        .unwrap_or_default()
        .saturating_add(1)
}

/// The annotations of the deployment that its new replica set gets.
pub(super) fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    annotations
}

/// What the present new replica set's annotations lack; empty when nothing.
pub(super) fn missing(
    deployment: &Deployment,
    set: &ReplicaSet,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut missing = inherited(deployment);
    missing.retain(|key, value| annotation(set, key) != Some(value));
    let before = number(set, REVISION).unwrap_or(0_i64);
    if before < revision {
        missing.insert(REVISION.to_owned(), revision.to_string());
        if before > 0 {
            // A template that comes back keeps the list of revisions it had.
            missing.insert(
                REVISION_HISTORY.to_owned(),
                history(annotation(set, REVISION_HISTORY), before),
            );
        }
    }
    missing
}

fn history(present: Option<&str>, revision: i64) -> String {
    let mut revisions: Vec<String> = present
        .unwrap_or_default()
        .split(',')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();
    revisions.push(revision.to_string());
    while revisions.iter().map(|part| part.len() + 1).sum::<usize>() > HISTORY_LEN_MAX {
        revisions.remove(0);
    }
    revisions.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_revision_follows_the_highest_however_large() {
        let set = |revision: &str| {
            let mut set = ReplicaSet::default();
            set.metadata.annotations = Some([(REVISION.to_owned(), revision.to_owned())].into());
            Arc::new(set)
        };
        let cases = [
            ("no sets", vec![], 1),
            ("the highest counts", vec![set("3"), set("2")], 4),
            (
                "larger than 32 bits",
                vec![set("3546343826724305832")],
                3_546_343_826_724_305_833,
            ),
            ("no number", vec![set("x")], 1),
        ];
        for (case, old, expected) in cases {
            assert_eq!(next_revision(&old), expected, "case: {case}");
        }
    }
}
