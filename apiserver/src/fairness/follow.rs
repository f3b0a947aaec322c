//! Follows the FlowSchemas and PriorityLevelConfigurations in the store, and says of each schema whether its level exists.

use std::sync::Arc;
use std::time::Duration;

use cox_api::meta;
use cox_store::{CommitError, Object, Precondition, Watch};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Fairness;
use super::defaults::GROUP;
use crate::registry::{Registry, decode_stored};

const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
const AGAIN: Duration = Duration::from_millis(100);

/// Works until cancelled.
pub(crate) async fn run(fairness: Arc<Fairness>, registry: Registry, cancel: CancellationToken) {
    loop {
        let after = registry.store().snapshot().revision();
        let watches = registry
            .watch(GROUP, SCHEMAS, after)
            .and_then(|schemas| Ok((schemas, registry.watch(GROUP, LEVELS, after)?)));
        if let Ok((mut schemas, mut levels)) = watches {
            loop {
                take_over(&fairness, &registry).await;
                tokio::select! {
                    () = cancel.cancelled() => return,
                    // A change that is not taken here is in the next list.
                    goes_on = next(&mut schemas) => if !goes_on { break },
                    goes_on = next(&mut levels) => if !goes_on { break },
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Waits for a change, and takes along those that have come with it.
async fn next(watch: &mut Watch) -> bool {
    if watch.next().await.is_err() {
        return false;
    }
    loop {
        match watch.try_next() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Takes over what there is, and brings the status of all schemas up to date at once.
pub(crate) async fn take_over(fairness: &Fairness, registry: &Registry) {
    let read = |plural| -> Vec<(Arc<Object>, Value)> {
        registry
            .list(GROUP, plural, "")
            .into_iter()
            .filter_map(|object| {
                let value = decode_stored(&object.json).ok()?;
                Some((object, value))
            })
            .collect()
    };
    let (schemas, levels) = (read(SCHEMAS), read(LEVELS));
    let values = |of: &[(Arc<Object>, Value)]| -> Vec<Value> {
        of.iter().map(|(_, value)| value.clone()).collect()
    };
    fairness.configure(&values(&schemas), &values(&levels));
    let now = meta::format_time(registry.now());
    let changed = schemas.iter().filter_map(|(object, schema)| {
        let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
        let exists = levels
            .iter()
            .any(|(_, one)| one["metadata"]["name"] == *level);
        Some((object, with_condition(schema, exists, &now)?))
    });
    let writes = changed.map(|(object, changed)| async move {
        write(registry, object, &changed).await;
    });
    futures::future::join_all(writes).await;
}

/// The schema with the condition as it should be, if it is not.
fn with_condition(schema: &Value, exists: bool, now: &str) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"]
        .as_str()
        .unwrap_or_default();
    let (status, reason, message) = if exists {
        (
            "False",
            "Found",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists"
            ),
        )
    } else {
        (
            "True",
            "NotFound",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {level:?} but there is no such object"
            ),
        )
    };
    let conditions = schema["status"]["conditions"].as_array();
    let present = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Dangling");
    if present.is_some_and(|one| one["status"] == status && one["message"] == *message) {
        return None;
    }
    let same_status = present.filter(|one| one["status"] == status);
    let since = same_status.map_or(json!(now), |one| one["lastTransitionTime"].clone());
    let condition = json!({"type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    let mut all: Vec<Value> = conditions
        .into_iter()
        .flatten()
        .filter(|one| one["type"] != "Dangling")
        .cloned()
        .collect();
    all.push(condition);
    let mut changed = schema.clone();
    if !changed["status"].is_object() {
        changed["status"] = json!({});
    }
    changed["status"]["conditions"] = all.into();
    Some(changed)
}

async fn write(registry: &Registry, object: &Object, changed: &Value) {
    let Some(entry) = registry.catalog().stored(GROUP, SCHEMAS) else {
        return;
    };
    let at = Precondition::Revision(object.revision);
    match registry
        .commit_put(entry, "", &object.key.path, changed, at)
        .await
    {
        // Whoever was faster has caused another event.
        Ok(_) | Err(CommitError::Conflict(_) | CommitError::NotFound(_) | CommitError::Closed) => {}
        Err(error) => {
            tracing::warn!(%error, schema = %object.key.path, "Status of a FlowSchema not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_written_once_and_its_time_is_of_the_change() {
        let schema = json!({"metadata": {"name": "s"}, "spec": {"priorityLevelConfiguration": {"name": "l"}}});
        let dangling = with_condition(&schema, false, "1").unwrap();
        let condition = &dangling["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("True"), &json!("NotFound"))
        );
        assert_eq!(with_condition(&dangling, false, "2"), None, "settled");
        let found = with_condition(&dangling, true, "3").unwrap();
        let condition = &found["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["lastTransitionTime"]),
            (&json!("False"), &json!("3"))
        );
        assert_eq!(found["status"]["conditions"].as_array().unwrap().len(), 1);
    }
}
