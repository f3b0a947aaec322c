use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::nodes::{Fit, fit, node_of, pin};
use super::plan::{Plan, Seen, next_look, plan};
use crate::revisions::HASH;
use crate::testing::{NOW, pod as plain_pod, time};

fn set(strategy: Value, template: Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": { "name": "d", "namespace": "n", "uid": "u" },
        "spec": { "selector": {}, "template": { "spec": template }, "updateStrategy": strategy, "minReadySeconds": 0 },
    }))
    .unwrap()
}

/// A node from a word: its name, then its labels (`zone=a`) and taints (`NoSchedule`) after slashes.
fn node(word: &str) -> Arc<Node> {
    let mut parts = word.split('/');
    let (name, mut labels, mut taints) = (parts.next().unwrap(), json!({}), Vec::new());
    for part in parts {
        match part.split_once('=') {
            Some((key, value)) => labels[key] = value.into(),
            None => taints.push(json!({ "key": "t", "effect": part })),
        }
    }
    let node =
        json!({ "metadata": { "name": name, "labels": labels }, "spec": { "taints": taints } });
    Arc::new(serde_json::from_value(node).unwrap())
}

/// A pod as in [`crate::testing::pod`]; an upper-case name is of the present revision, a lower-case one of an older.
fn pod(word: &str) -> Arc<Pod> {
    let mut pod = plain_pod(word);
    let is_new = word.starts_with(char::is_uppercase);
    let hash = if is_new { "new" } else { "old" };
    pod.metadata.labels = Some([(HASH.to_owned(), hash.to_owned())].into());
    Arc::new(pod)
}

/// What a plan does: `+` and nodes, `-` and pods.
fn shown(plan: &Plan) -> String {
    let created = plan.create.iter().map(|node| format!("+{node}"));
    let deleted = plan
        .delete
        .iter()
        .map(|pod| format!("-{}", pod.metadata.name.clone().unwrap()));
    created.chain(deleted).collect::<Vec<_>>().join(" ")
}

fn planned(set: &DaemonSet, nodes: &str, pods: &str) -> Plan {
    let nodes: Vec<_> = nodes.split_whitespace().map(node).collect();
    let pods: Vec<_> = pods.split_whitespace().map(pod).collect();
    plan(&Seen {
        set,
        nodes: &nodes,
        pods: &pods,
        hash: "new",
        now: time(NOW),
    })
}

#[test]
fn each_node_has_one_pod() {
    let selective = json!({ "nodeSelector": { "zone": "a" } });
    let cases = [
        ("new nodes get one", json!({}), "n m", "A+@n", "+m"),
        ("settled", json!({}), "n m", "A+@n B?@m", ""),
        (
            "a second one goes, the younger",
            json!({}),
            "n",
            "A+@n/age=9 B+@n/age=99",
            "-A",
        ),
        ("a failed one makes room", json!({}), "n", "Af@n", "-A"),
        ("one that ends is waited for", json!({}), "n", "Ax@n", ""),
        ("a node that is gone", json!({}), "n", "A+@n B+@m", "-B"),
        (
            "only nodes that are selected",
            selective.clone(),
            "n/zone=a m/zone=b",
            "",
            "+n",
        ),
        (
            "a node that is no longer selected",
            selective,
            "n/zone=b",
            "A+@n",
            "-A",
        ),
        (
            "a tainted node takes none and keeps what it has",
            json!({}),
            "n/NoSchedule m/NoSchedule",
            "A+@n",
            "",
        ),
        (
            "one that drives away keeps none",
            json!({}),
            "n/NoExecute",
            "A+@n",
            "-A",
        ),
        (
            "unless it is tolerated",
            json!({ "tolerations": [{ "key": "t", "operator": "Exists" }] }),
            "n/NoExecute m/NoSchedule",
            "",
            "+m +n",
        ),
    ];
    for (case, template, nodes, pods, expected) in cases {
        let plan = planned(&set(json!({}), template), nodes, pods);
        assert_eq!(shown(&plan), expected, "case: {case}");
    }
}

#[test]
fn updates_go_on_within_their_limits() {
    let rolling = |unavailable: Value, surge: Value| json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": unavailable, "maxSurge": surge } });
    let one = rolling(json!(1), json!(0));
    let cases = [
        ("one at a time", one.clone(), "a+@n b+@m", "-b"),
        ("not while one is away", one.clone(), "A-@n b+@m", ""),
        (
            "but what is not available anyway goes at once",
            one.clone(),
            "a-@n b-@m",
            "-b -a",
        ),
        (
            "half of them",
            rolling(json!("50%"), json!(0)),
            "a+@n b+@m",
            "-b",
        ),
        (
            "by hand only",
            json!({ "type": "OnDelete" }),
            "a+@n b+@m",
            "",
        ),
        (
            "a surge makes the new one first",
            rolling(json!(0), json!(1)),
            "a+@n b+@m",
            "+m",
        ),
        (
            "and waits for it",
            rolling(json!(0), json!(1)),
            "a+@n b+@m B-@m",
            "",
        ),
        (
            "before the old one goes",
            rolling(json!(0), json!(1)),
            "a+@n b+@m B+@m",
            "-b",
        ),
        ("done", one, "A+@n B+@m", ""),
    ];
    for (case, strategy, pods, expected) in cases {
        let plan = planned(&set(strategy, json!({})), "n m", pods);
        let mut got: Vec<_> = shown(&plan).split_whitespace().map(str::to_owned).collect();
        let mut expected: Vec<_> = expected.split_whitespace().map(str::to_owned).collect();
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected, "case: {case}");
    }
}

#[test]
fn the_status_counts_nodes() {
    let selective = set(json!({}), json!({ "nodeSelector": { "zone": "a" } }));
    let status = planned(
        &selective,
        "n/zone=a m/zone=a o/zone=a p/zone=b",
        "A+@n b-@m C+@p",
    )
    .status;
    let counts = (
        status.desired_number_scheduled,
        status.current_number_scheduled,
        status.number_misscheduled,
        status.number_ready,
    );
    assert_eq!(counts, (3, 2, 1, 1));
    assert_eq!(
        (
            status.number_available,
            status.number_unavailable,
            status.updated_number_scheduled
        ),
        (Some(1), Some(2), Some(1))
    );
}

#[test]
fn a_pod_that_becomes_available_by_time_is_looked_at_then() {
    let mut set = set(json!({}), json!({}));
    set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    let (nodes, pods) = (vec![node("n")], vec![pod("A+@n/ready=10")]);
    let seen = Seen {
        set: &set,
        nodes: &nodes,
        pods: &pods,
        hash: "new",
        now: time(NOW),
    };
    assert_eq!(next_look(&seen), Some(Duration::from_millis(20_050)));
}

#[test]
fn a_pod_is_pinned_to_its_node() {
    let mut pinned = Pod::default();
    let spec = pinned.spec.get_or_insert_default();
    pin(spec, "n");
    assert_eq!(node_of(&pinned), Some("n"));
    let daemon = set(json!({}), json!(pinned.spec));
    assert_eq!(
        (fit(&daemon, &node("n")), fit(&daemon, &node("m"))),
        (Fit::Runs, Fit::Not)
    );
    pinned.spec.as_mut().unwrap().node_name = Some("bound".to_owned());
    assert_eq!(node_of(&pinned), Some("bound"));
}
