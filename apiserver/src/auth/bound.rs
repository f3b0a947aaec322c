//! Whether the objects that a token is bound to still exist. Reads snapshots of the store, writes nothing.

use cox_store::Snapshot;
use serde::Deserialize;

use super::tokens::{Bound, Claims, Reference, TokenError};

/// A token outlives the deletion of its object by this much, for what a pod does while it stops.
const AFTER_DELETION_SECS: i64 = 60;

#[derive(Deserialize)]
struct Stored {
    metadata: StoredMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredMeta {
    #[serde(default)]
    uid: String,
    deletion_timestamp: Option<jiff::Timestamp>,
}

/// What was found to hold: the revisions it was found at, and until when it holds while they stay.
#[derive(Clone, Debug, Default)]
pub(super) struct Holding {
    seen: Vec<(&'static str, String, u64)>,
    until_secs: Option<i64>,
}

impl Holding {
    /// Whether nothing has changed since, so that it need not be looked at again.
    pub(super) fn still(&self, snapshot: &Snapshot, now_secs: i64) -> bool {
        self.until_secs.is_none_or(|until| now_secs <= until)
            && self.seen.iter().all(|(resource, path, revision)| {
                snapshot
                    .get(resource, path)
                    .is_some_and(|object| object.revision.0 == *revision)
            })
    }
}

/// Checks that each object the token is bound to is there, is the same one, and is not long deleted.
pub(super) fn check(
    snapshot: &Snapshot,
    claims: &Claims,
    now_secs: i64,
) -> Result<Holding, TokenError> {
    let bound = &claims.kubernetes;
    let mut holding = Holding::default();
    let inside = |name: &str| format!("{}/{name}", bound.namespace);
    for (kind, resource, path, reference) in objects(bound, inside) {
        one(
            snapshot,
            (kind, resource, &path),
            reference,
            now_secs,
            &mut holding,
        )?;
    }
    Ok(holding)
}

fn objects(
    bound: &Bound,
    inside: impl Fn(&str) -> String,
) -> Vec<(&'static str, &'static str, String, &Reference)> {
    let account = &bound.serviceaccount;
    let mut all = vec![(
        "serviceaccount",
        "serviceaccounts",
        inside(&account.name),
        account,
    )];
    if let Some(pod) = &bound.pod {
        all.push(("pod", "pods", inside(&pod.name), pod));
    }
    if let Some(secret) = &bound.secret {
        all.push(("secret", "secrets", inside(&secret.name), secret));
    }
    // Beside a pod the node is information: the pod falls with it soon enough.
    if let (Some(node), None) = (&bound.node, &bound.pod) {
        all.push(("node", "minions", node.name.clone(), node));
    }
    all
}

fn one(
    snapshot: &Snapshot,
    (kind, resource, path): (&'static str, &'static str, &str),
    reference: &Reference,
    now_secs: i64,
    holding: &mut Holding,
) -> Result<(), TokenError> {
    let gone = || TokenError::Unbound {
        kind,
        name: reference.name.clone(),
    };
    let object = snapshot.get(resource, path).ok_or_else(gone)?;
    let stored: Stored = serde_json::from_slice(&object.json).map_err(|_| gone())?;
    if stored.metadata.uid != reference.uid {
        return Err(gone());
    }
    if let Some(deleted) = stored.metadata.deletion_timestamp {
        let until = deleted.as_second().saturating_add(AFTER_DELETION_SECS);
        if now_secs > until {
            return Err(gone());
        }
        holding.until_secs = Some(holding.until_secs.map_or(until, |other| other.min(until)));
    }
    holding
        .seen
        .push((resource, path.to_owned(), object.revision.0));
    Ok(())
}
