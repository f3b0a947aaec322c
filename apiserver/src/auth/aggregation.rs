//! Keeps aggregated cluster roles the union of their parts.
//!
//! Watches ClusterRoles, writes ClusterRoles that have an aggregation rule, and nothing else. Level-based: any change
//! leads to a look at all of them; a settled cluster causes no write. Runs as one task until cancelled.

use cox_api::codec;
use cox_api::meta;
use cox_api::selector::LabelSelector;
use cox_store::{
    CommitError, Durability, Mutation, NewObject, ObjectKey, Op, Precondition, Revision, Snapshot,
    Store, WatchError,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::rbac::PolicyRule;
use crate::bootstrap::policy;

const PREFIX: &str = "clusterroles";

/// A role whose rules are to be replaced.
#[derive(Debug, PartialEq)]
struct Change {
    name: String,
    at: Revision,
    role: Value,
}

/// Runs until cancelled or until the store is closed.
pub async fn run(store: Store, cancel: CancellationToken) {
    loop {
        let snapshot = store.snapshot();
        let after = snapshot.revision();
        for change in plan(&snapshot) {
            apply(&store, &snapshot, change).await;
        }
        // Both arms may be dropped: the next round looks at everything.
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = next_change(&store, after) => if !changed { return },
        }
    }
}

/// Waits for a write to any cluster role after `after`, our own included; `false` when there will be none.
async fn next_change(store: &Store, after: Revision) -> bool {
    let Ok(mut watch) = store.watch(PREFIX, after) else {
        return true;
    };
    !matches!(watch.next().await, Err(WatchError::Closed))
}

/// The roles that are not what they should be.
fn plan(snapshot: &Snapshot) -> Vec<Change> {
    let roles: Vec<(Revision, Value)> = snapshot
        .range(PREFIX, "", None)
        .filter_map(|object| Some((object.revision, serde_json::from_slice(&object.json).ok()?)))
        .collect();
    let mut changes = Vec::new();
    for (revision, role) in &roles {
        let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array() else {
            continue;
        };
        let selectors: Vec<LabelSelector> = selectors
            .iter()
            .filter_map(|selector| LabelSelector::from_value(selector).ok())
            .collect();
        let name = meta::name(role);
        let parts: Vec<PolicyRule> = roles
            .iter()
            .map(|(_, part)| part)
            .filter(|part| meta::name(part) != name)
            .filter(|part| selectors.iter().any(|selector| selects(selector, part)))
            .flat_map(rules)
            .collect();
        let wanted = policy::union(parts.iter());
        if wanted != rules(role) {
            let mut role = role.clone();
            role["rules"] = json!(wanted);
            changes.push(Change {
                name: name.to_owned(),
                at: *revision,
                role,
            });
        }
    }
    changes
}

fn selects(selector: &LabelSelector, role: &Value) -> bool {
    let labels: Vec<(&str, &str)> = meta::labels(role).collect();
    selector.matches(labels.iter().copied())
}

fn rules(role: &Value) -> Vec<PolicyRule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

async fn apply(store: &Store, snapshot: &Snapshot, change: Change) {
    let Some(old) = snapshot.get(PREFIX, &change.name) else {
        return;
    };
    let encoded = codec::encode_stored(&change.role);
    let mutation = Mutation {
        key: ObjectKey::new(PREFIX, change.name.as_str()),
        precondition: Precondition::Revision(change.at),
        op: Op::Put(NewObject {
            json: encoded.json,
            revision_at: encoded.revision_at,
            attrs: old.attrs.clone(),
        }),
        durability: Durability::Durable,
    };
    match store.commit(mutation).await {
        // Whoever was faster has caused another look.
        Ok(_) | Err(CommitError::Conflict(_) | CommitError::NotFound(_) | CommitError::Closed) => {}
        Err(error) => {
            tracing::warn!(%error, role = change.name, "Aggregated cluster role not written")
        }
    }
}
