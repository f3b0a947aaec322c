use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Taint, Toleration};

use super::eviction::deadline;
use super::plan::{Plan, plan};
use crate::testing::{NOW, time};

const GRACE: Duration = Duration::from_secs(50);

fn now() -> Timestamp {
    time(NOW)
}

/// A node with conditions as in `Ready=True MemoryPressure=False`.
fn node(conditions: &str) -> Node {
    let conditions = conditions
        .split_whitespace()
        .map(|text| text.split_once('=').unwrap());
    let conditions = conditions.map(|(kind, status)| NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        ..NodeCondition::default()
    });
    Node {
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            conditions: Some(conditions.collect()),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

fn taints(plan: &Plan) -> String {
    let list = plan.taints.iter().flatten();
    let texts: Vec<_> = list
        .map(|taint| {
            format!(
                "{}:{}",
                taint.key.trim_start_matches("node.kubernetes.io/"),
                taint.effect
            )
        })
        .collect();
    texts.join(" ")
}

#[test]
fn a_healthy_node_needs_nothing_but_another_look_before_its_grace_ends() {
    let plan = plan(
        &node("Ready=True MemoryPressure=False"),
        Duration::from_secs(10),
        GRACE,
        true,
        now(),
    );
    let expected = Plan {
        conditions: None,
        taints: None,
        silent: false,
        next_look: Some(Duration::from_secs(40)),
    };
    assert_eq!(plan, expected);
}

#[test]
fn taints_follow_conditions() {
    let cases = [
        (
            "not ready",
            "Ready=False",
            true,
            "not-ready:NoSchedule not-ready:NoExecute",
        ),
        (
            "not ready like all others",
            "Ready=False",
            false,
            "not-ready:NoSchedule",
        ),
        (
            "unknown",
            "Ready=Unknown",
            true,
            "unreachable:NoSchedule unreachable:NoExecute",
        ),
        (
            "under pressure",
            "Ready=True MemoryPressure=True",
            true,
            "memory-pressure:NoSchedule",
        ),
        ("not reported yet", "", true, "not-ready:NoSchedule"),
    ];
    for (name, conditions, some_ready, expected) in cases {
        let plan = plan(&node(conditions), Duration::ZERO, GRACE, some_ready, now());
        assert_eq!(taints(&plan), expected, "case: {name}");
    }
}

#[test]
fn a_node_that_is_ready_again_loses_our_taints_and_keeps_those_of_others() {
    let mut node = node("Ready=True");
    let taint = |key: &str, effect: &str| Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    };
    let list = vec![
        taint("node.kubernetes.io/unreachable", "NoExecute"),
        taint("node.kubernetes.io/not-ready", "NoSchedule"),
        taint("example.com/gpu", "NoSchedule"),
    ];
    node.spec.as_mut().unwrap().taints = Some(list);
    assert_eq!(
        taints(&plan(&node, Duration::ZERO, GRACE, true, now())),
        "example.com/gpu:NoSchedule"
    );
}

#[test]
fn a_silent_node_becomes_unknown_once() {
    let mut node = node("Ready=True MemoryPressure=False DiskPressure=False");
    let first = plan(&node, GRACE, GRACE, true, now());
    let conditions = first.conditions.clone().unwrap();
    assert!(
        conditions
            .iter()
            .all(|condition| condition.status == "Unknown")
    );
    let reasons: Vec<_> = conditions
        .iter()
        .map(|condition| condition.reason.as_deref().unwrap())
        .collect();
    assert_eq!(
        reasons,
        [
            "NodeStatusUnknown",
            "NodeStatusUnknown",
            "NodeStatusUnknown",
            "NodeStatusNeverUpdated"
        ]
    );
    assert_eq!(
        taints(&first),
        "unreachable:NoSchedule unreachable:NoExecute"
    );
    node.status.as_mut().unwrap().conditions = Some(conditions);
    node.spec.as_mut().unwrap().taints = first.taints;
    let second = plan(&node, GRACE * 2, GRACE, true, now() + GRACE);
    assert_eq!(
        (second.conditions, second.taints, second.next_look),
        (None, None, None)
    );
    assert!(second.silent);
}

#[test]
fn tolerations_say_when_a_pod_must_go() {
    let taint = |key: &str| Taint {
        key: key.to_owned(),
        effect: "NoExecute".to_owned(),
        ..Taint::default()
    };
    let toleration = |key: &str, secs: Option<i64>| Toleration {
        key: Some(key.to_owned()).filter(|key| !key.is_empty()),
        operator: Some("Exists".to_owned()),
        toleration_seconds: secs,
        ..Toleration::default()
    };
    let after = |secs| Some(now() + Duration::from_secs(secs));
    let cases = [
        (
            "nothing is tolerated",
            vec![taint("a")],
            vec![],
            Some(Timestamp::MIN),
        ),
        (
            "tolerated for ever",
            vec![taint("a")],
            vec![toleration("a", None)],
            None,
        ),
        (
            "everything is tolerated",
            vec![taint("a"), taint("b")],
            vec![toleration("", None)],
            None,
        ),
        (
            "tolerated for a while",
            vec![taint("a")],
            vec![toleration("a", Some(300))],
            after(300),
        ),
        (
            "the shortest counts",
            vec![taint("a"), taint("b")],
            vec![toleration("a", Some(300)), toleration("b", Some(5))],
            after(5),
        ),
        (
            "one of two is not tolerated",
            vec![taint("a"), taint("b")],
            vec![toleration("a", None)],
            Some(Timestamp::MIN),
        ),
        (
            "not for a moment",
            vec![taint("a")],
            vec![toleration("a", Some(-1))],
            after(0),
        ),
    ];
    for (name, taints, tolerations, expected) in cases {
        assert_eq!(
            deadline(&taints, &tolerations, now()),
            expected,
            "case: {name}"
        );
    }
}
