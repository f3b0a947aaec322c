use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use super::plan::{Plan, plan};
use super::status;
use crate::testing::{NOW, pod, time};

fn replica_set(replicas: i32) -> ReplicaSet {
    let mut set = ReplicaSet::default();
    set.metadata.name = Some("rs".to_owned());
    set.spec = Some(ReplicaSetSpec {
        replicas: Some(replicas),
        template: Some(PodTemplateSpec::default()),
        ..ReplicaSetSpec::default()
    });
    set
}

/// Pods by short texts, see [`pod`].
fn pods(text: &str) -> Vec<Arc<Pod>> {
    text.split_whitespace()
        .map(|word| Arc::new(pod(word)))
        .collect()
}

fn now() -> Timestamp {
    time(NOW)
}

#[test]
fn plan_table() {
    let cases = [
        ("settled", 2, "a+@n b+@n", Ok(0)),
        ("one is missing", 3, "a+@n b+@n", Ok(1)),
        (
            "terminating and finished pods do not count",
            2,
            "a+@n bx@n cf@n ds@n",
            Ok(1),
        ),
        ("an unbound pod goes first", 1, "a+@n b-", Err("b")),
        ("then one that is pending", 1, "a+@n b?@n", Err("b")),
        ("then one that is not ready", 1, "a+@n b-@n", Err("b")),
        ("then the cheaper one", 1, "a+@n b+@n/cost=-5", Err("b")),
        (
            "then from the more crowded node",
            2,
            "a+@n b+@m c+@m/restarts=3",
            Err("c"),
        ),
        (
            "then the one that is ready for a shorter time",
            1,
            "a+@n/ready=100000 b+@n/ready=10",
            Err("b"),
        ),
        (
            "then the one that restarted more",
            1,
            "a+@n b+@n/restarts=2",
            Err("b"),
        ),
        (
            "then the younger one",
            1,
            "a+@n/age=100000 b+@n/age=10",
            Err("b"),
        ),
        ("all of them, in any order", 0, "a+@n b+@n", Err("a b")),
    ];
    for (name, want, text, expected) in cases {
        let owned = pods(text);
        let got = match plan(&replica_set(want), &owned, &owned, now()) {
            Plan::Nothing => Ok(0),
            Plan::Create(missing) => Ok(missing),
            Plan::Delete(surplus) => Err(surplus
                .iter()
                .map(|pod| pod.metadata.name.clone().unwrap())
                .collect::<Vec<_>>()
                .join(" ")),
        };
        assert_eq!(got, expected.map_err(str::to_owned), "case: {name}");
    }
}

#[test]
fn a_replica_set_that_is_being_deleted_does_nothing() {
    let mut set = replica_set(5);
    set.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    assert_eq!(plan(&set, &[], &[], now()), Plan::Nothing);
}

#[test]
fn at_most_500_at_once() {
    assert_eq!(plan(&replica_set(2000), &[], &[], now()), Plan::Create(500));
}

#[test]
fn status_counts_ready_available_and_terminating_pods() {
    let mut set = replica_set(3);
    set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    let owned = pods("a+@n/ready=100 b+@n/ready=10 c-@n dx@n");
    let status = status::desired(&set, &owned, None, now());
    assert_eq!(
        (
            status.replicas,
            status.ready_replicas,
            status.available_replicas,
            status.terminating_replicas
        ),
        (3, Some(2), Some(1), Some(1))
    );
    let next = status::next_look(&set, &owned, &status, now()).unwrap();
    assert_eq!(
        next,
        Duration::from_millis(20_050),
        "b is available when it has been ready for 30 s"
    );
}

#[test]
fn the_status_of_a_settled_set_is_stable() {
    let mut set = replica_set(1);
    let owned = pods("a+@n");
    let first = status::desired(&set, &owned, None, now());
    set.status = Some(first.clone());
    assert_eq!(
        status::desired(&set, &owned, None, now() + Duration::from_secs(60)),
        first
    );
}
