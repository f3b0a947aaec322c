//! Builders for the tests of this crate.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The present of tests that need no clock.
pub(crate) const NOW: &str = "2026-06-01T12:00:00Z";

/// A point in time from its text.
pub(crate) fn time(text: &str) -> Timestamp {
    text.parse().expect("a timestamp")
}

/// A pod from a word: name, state, node and properties, as in `web+@node/ready=10/cost=5`. The name is one letter. States: `+`
/// ready, `-` running but not ready, `?` pending, `x` terminating, `f` failed, `s` succeeded. `ready` and `age` are in seconds
/// before [`NOW`] and default to 1000; uids are the names.
pub(crate) fn pod(word: &str) -> Pod {
    let mut parts = word.split('/');
    let head = parts.next().unwrap();
    let (head, node) = head
        .split_once('@')
        .map_or((head, None), |(head, node)| (head, Some(node)));
    let (name, state) = head.split_at(1);
    let (mut ready_secs, mut age_secs, mut restarts, mut cost) = (1000, 1000, 0, None);
    for (key, value) in parts.map(|part| part.split_once('=').unwrap()) {
        match key {
            "ready" => ready_secs = value.parse().unwrap(),
            "age" => age_secs = value.parse().unwrap(),
            "restarts" => restarts = value.parse().unwrap(),
            "cost" => cost = Some(value.to_owned()),
            other => panic!("unknown property {other}"),
        }
    }
    let ago = |secs| Some(Time(time(NOW) - Duration::from_secs(secs)));
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.uid = Some(name.to_owned());
    pod.metadata.creation_timestamp = ago(age_secs);
    pod.metadata.deletion_timestamp = (state == "x").then(|| Time(time(NOW)));
    pod.metadata.annotations = cost.map(|cost| {
        [(
            "controller.kubernetes.io/pod-deletion-cost".to_owned(),
            cost,
        )]
        .into()
    });
    pod.spec = Some(PodSpec {
        node_name: node.map(str::to_owned),
        ..PodSpec::default()
    });
    let phase = match state {
        "f" => "Failed",
        "s" => "Succeeded",
        "?" => "Pending",
        _ => "Running",
    };
    pod.status = Some(PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".to_owned(),
            status: if state == "+" { "True" } else { "False" }.to_owned(),
            last_transition_time: ago(ready_secs),
            ..PodCondition::default()
        }]),
        container_statuses: Some(vec![ContainerStatus {
            restart_count: restarts,
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
    pod
}
