//! Which finished pods are too many. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::is_terminal;

/// The finished pods beyond `max`, oldest first, then by name; none when `max` is 0.
pub(super) fn surplus(pods: &[Arc<Pod>], max: usize) -> Vec<Arc<Pod>> {
    let mut finished: Vec<_> = pods
        .iter()
        .filter(|pod| is_terminal(pod) && pod.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    if max == 0 || finished.len() <= max {
        return Vec::new();
    }
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    finished.sort_by(|a, b| (created(a), &a.metadata.name).cmp(&(created(b), &b.metadata.name)));
    finished.truncate(finished.len() - max);
    finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn the_oldest_finished_pods_beyond_the_limit_go() {
        let words = ["as/age=30", "bf/age=40", "c+/age=90", "ds/age=20"];
        let pods: Vec<_> = words.iter().map(|word| Arc::new(pod(word))).collect();
        let names = |max| -> Vec<_> {
            surplus(&pods, max)
                .iter()
                .map(|pod| pod.metadata.name.clone().unwrap())
                .collect()
        };
        assert_eq!(names(1), ["b", "a"]);
        assert_eq!(names(3), [""; 0]);
        assert_eq!(names(0), [""; 0]);
    }
}
