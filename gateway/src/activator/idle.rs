//! When a Service may sleep: nobody asked through us for long enough, and its Pods did not work either.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Shared, Sleeper, plan};
use crate::backend::{ServiceKey, is_activator, service_of};

/// How often, at most and at least, somebody is looked at.
const LOOK_MIN: Duration = Duration::from_millis(500);
const LOOK_MAX: Duration = Duration::from_secs(15);
/// CPU time that is no work: what probes take, in nanoseconds a second.
const REST_NANOS_PER_SEC: u128 = 1_000_000;

/// What was seen of one Service's Pods.
#[derive(Clone, Copy, Debug)]
struct Seen {
    cpu_nanos: u128,
    at: Instant,
    quiet_since: Instant,
}

/// Looks after everybody who may sleep.
pub(super) async fn run(shared: Shared) {
    let mut seen: HashMap<ServiceKey, Seen> = HashMap::new();
    loop {
        let sleepers: Vec<Arc<Sleeper>> = shared.sleepers.lock().values().cloned().collect();
        let shortest = sleepers.iter().map(|sleeper| sleeper.after / 2).min();
        tokio::time::sleep(shortest.unwrap_or(LOOK_MAX).clamp(LOOK_MIN, LOOK_MAX)).await;
        seen.retain(|key, _| sleepers.iter().any(|sleeper| sleeper.key == *key));
        for sleeper in &sleepers {
            look(&shared, sleeper, &mut seen).await;
        }
    }
}

async fn look(shared: &Shared, sleeper: &Sleeper, seen: &mut HashMap<ServiceKey, Seen>) {
    let key = &sleeper.key;
    if !is_up(shared, key) {
        seen.remove(key);
        return;
    }
    let idle = sleeper.state.idle_millis().map(Duration::from_millis);
    let cpu_nanos = cpu_nanos(shared, key).await;
    let now = Instant::now();
    let Some(cpu_nanos) = cpu_nanos else {
        // Not known: as if somebody worked.
        seen.remove(key);
        return;
    };
    let last = seen.get(key).copied();
    let worked = last.is_none_or(|last| has_worked(&last, cpu_nanos, now));
    let quiet_since = last
        .filter(|_| !worked)
        .map_or(now, |last| last.quiet_since);
    seen.insert(
        key.clone(),
        Seen {
            cpu_nanos,
            at: now,
            quiet_since,
        },
    );
    let long_enough = |time: Duration| time >= sleeper.after;
    if !idle.is_some_and(long_enough) || !long_enough(now - quiet_since) {
        return;
    }
    match shared.scale(key, 0).await {
        Ok(_) => {
            seen.remove(key);
        }
        Err(error) => tracing::warn!(service = %key, %error, "A Service could not be put to sleep"),
    }
}

fn has_worked(last: &Seen, cpu_nanos: u128, now: Instant) -> bool {
    let allowed = (now - last.at).as_millis() * REST_NANOS_PER_SEC / 1000;
    // Less than before: a Pod is gone, and what the others did cannot be told.
    cpu_nanos < last.cpu_nanos || cpu_nanos - last.cpu_nanos > allowed
}

/// Whether any Deployment behind a Service has replicas.
fn is_up(shared: &Shared, key: &ServiceKey) -> bool {
    let Some(service) = shared.services.get(Some(&key.namespace), &key.name) else {
        return false;
    };
    let all = shared.deployments.list_in(&key.namespace);
    plan::behind(&service, &all)
        .iter()
        .any(|one| plan::replicas(one) > 0)
}

/// The CPU time that the Pods of a Service have used; `None`: a node does not say.
async fn cpu_nanos(shared: &Shared, key: &ServiceKey) -> Option<u128> {
    let (mut nodes, mut pods) = (BTreeSet::new(), BTreeSet::new());
    for slice in shared.slices.list_in(&key.namespace) {
        if service_of(&slice).as_ref() != Some(key) || is_activator(&slice) {
            continue;
        }
        for endpoint in slice.endpoints.iter().flatten() {
            nodes.extend(endpoint.node_name.clone());
            pods.extend(
                endpoint
                    .target_ref
                    .as_ref()
                    .and_then(|pod| pod.name.clone()),
            );
        }
    }
    let mut total = 0;
    for node in nodes {
        let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy/stats/summary"))
            .body(Vec::new());
        let summary: Value = shared.client.request(request.ok()?).await.ok()?;
        total += used(&summary, &key.namespace, &pods)?;
    }
    Some(total)
}

fn used(summary: &Value, namespace: &str, names: &BTreeSet<String>) -> Option<u128> {
    let pods = summary["pods"].as_array()?.iter();
    let ours = pods.filter(|pod| {
        pod["podRef"]["namespace"] == namespace
            && pod["podRef"]["name"]
                .as_str()
                .is_some_and(|name| names.contains(name))
    });
    let nanos = |pod: &Value| {
        pod["cpu"]["usageCoreNanoSeconds"]
            .as_u64()
            .map_or(0, u128::from)
    };
    Some(ours.map(nanos).sum())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_counts_as_work() {
        let begun = Instant::now();
        let last = Seen {
            cpu_nanos: 5_000_000,
            at: begun,
            quiet_since: begun,
        };
        let later = begun + Duration::from_secs(10);
        for (case, now, expected) in [
            ("nothing", 5_000_000, false),
            ("what probes take", 14_000_000, false),
            ("a request that computes", 40_000_000, true),
            ("a Pod is gone", 1_000_000, true),
        ] {
            assert_eq!(has_worked(&last, now, later), expected, "{case}");
        }
    }

    #[test]
    fn the_pods_of_the_service_alone() {
        let pod = |namespace: &str, name: &str, nanos: u64| json!({"podRef": {"namespace": namespace, "name": name}, "cpu": {"usageCoreNanoSeconds": nanos}});
        let summary = json!({"pods": [pod("default", "a", 1), pod("default", "b", 2), pod("other", "a", 4),
            {"podRef": {"namespace": "default", "name": "c"}}]});
        let names = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
        assert_eq!(used(&summary, "default", &names), Some(1));
        assert_eq!(used(&json!({}), "default", &names), None);
    }
}
