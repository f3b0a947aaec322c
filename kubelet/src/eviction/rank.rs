//! Which Pod goes first when something runs out, and what it is told. Pure.

use super::thresholds::{Seen, Signal, Threshold};
use crate::pod::containers::spec;
use crate::resources::of_pod;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// What a Pod uses of what runs out.
#[derive(Clone, Debug)]
pub struct User {
    pub pod: Arc<Pod>,
    pub used: u64,
}

/// Pods of this priority and above keep the node alive.
const CRITICAL: i32 = 2_000_000_000;

/// Whether a Pod is never taken away for what runs out.
#[must_use]
pub fn is_critical(pod: &Pod) -> bool {
    crate::sources::mirror::is_static(pod) || spec(pod).priority.unwrap_or(0) >= CRITICAL
}

/// What the Pod asked for of the resource.
fn request(pod: &Pod, signal: Signal) -> u64 {
    let asked = of_pod(pod).get(signal.resource()).copied().unwrap_or(0);
    u64::try_from(asked).unwrap_or(0)
}

/// The Pod that has to go: one that uses more than it asked for before one that does not, then by priority, then the one that
/// uses most beyond its request.
#[must_use]
pub fn victim(users: &[User], signal: Signal) -> Option<&User> {
    let candidates = users.iter().filter(|user| !is_critical(&user.pod));
    candidates.min_by_key(|user| {
        let asked = request(&user.pod, signal);
        // Nobody asks for processes or inodes: all are alike there.
        let within =
            user.used <= asked && matches!(signal.resource(), "memory" | "ephemeral-storage");
        let beyond = i128::from(user.used) - i128::from(asked);
        (
            within,
            spec(&user.pod).priority.unwrap_or(0),
            -beyond,
            user.pod.metadata.uid.clone(),
        )
    })
}

/// The sentence that the Pod fails with.
#[must_use]
pub fn message(user: &User, threshold: &Threshold, seen: Seen) -> String {
    let resource = threshold.signal.resource();
    let shown = |amount: u64| match resource {
        "memory" | "ephemeral-storage" => format!("{}Ki", amount / 1024),
        _ => amount.to_string(),
    };
    let least = shown(threshold.amount(seen.capacity));
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {least}, available: {}. ",
        shown(seen.available)
    );
    if matches!(resource, "memory" | "ephemeral-storage") {
        let name = user.pod.metadata.name.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "Pod {name} was using {}, request is {}. ",
            shown(user.used),
            shown(request(&user.pod, threshold.signal))
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(name: &str, priority: i32, request: &str, used: u64) -> User {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}});
        User {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            used,
        }
    }

    #[test]
    fn victims_table() {
        let cases = [
            (
                "who uses more than it asked for goes before who does not, whatever the priorities",
                vec![
                    user("modest", 0, "100", 90),
                    user("greedy", 1000, "100", 110),
                ],
                "greedy",
            ),
            (
                "then the lower priority",
                vec![user("low", 1, "0", 10), user("high", 2, "0", 99)],
                "low",
            ),
            (
                "then the larger excess",
                vec![user("little", 0, "100", 110), user("much", 0, "0", 60)],
                "much",
            ),
            (
                "critical ones stay",
                vec![
                    user("critical", 2_000_001_000, "0", 500),
                    user("other", 0, "100", 1),
                ],
                "other",
            ),
        ];
        for (name, users, expected) in cases {
            let found = victim(&users, Signal::MemoryAvailable).unwrap();
            assert_eq!(
                found.pod.metadata.name.as_deref(),
                Some(expected),
                "case: {name}"
            );
        }
        let critical = [user("critical", 2_000_001_000, "0", 500)];
        assert!(victim(&critical, Signal::MemoryAvailable).is_none());
    }

    #[test]
    fn the_sentence_names_numbers() {
        let threshold = Threshold::parse("memory.available<100Ki").unwrap();
        let seen = Seen {
            available: 50 << 10,
            capacity: 1 << 20,
        };
        assert_eq!(
            message(&user("p", 0, "1Ki", 8 << 10), &threshold, seen),
            "The node was low on resource: memory. Threshold quantity: 100Ki, available: 50Ki. Pod p was using 8Ki, request is 1Ki. "
        );
    }
}
