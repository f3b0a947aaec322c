use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::identity;
use super::plan::{Plan, Seen, plan};
use crate::revisions::HASH;
use crate::testing::{NOW, pod as plain_pod, time};

fn set(spec: Value, status: Value) -> StatefulSet {
    let mut whole = json!({ "replicas": 3, "selector": {}, "template": {},
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } } });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let meta = json!({ "name": "s", "namespace": "n", "uid": "u" });
    serde_json::from_value(json!({ "metadata": meta, "spec": whole, "status": status })).unwrap()
}

/// Pods as in [`crate::testing::pod`], named by their place: `0+ 1-`. With `*` they are of the revision updated to.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    let pods = text.split_whitespace().map(|word| {
        let (word, hash) = match word.strip_suffix('*') {
            Some(word) => (word, "new"),
            None => (word, "old"),
        };
        let mut pod = plain_pod(word);
        let name = pod.metadata.name.clone().unwrap();
        pod.metadata.name = Some(format!("s-{name}"));
        pod.metadata.labels = Some([(HASH.to_owned(), format!("s-{hash}"))].into());
        Arc::new(pod)
    });
    pods.collect()
}

/// What a plan does: `+` and places (`*` of the new revision), `-` and pods.
fn shown(plan: &Plan) -> String {
    let created = plan.create.iter().map(|wanted| {
        format!(
            "+{}{}",
            wanted.ordinal,
            if wanted.updated { "*" } else { "" }
        )
    });
    let deleted = plan
        .delete
        .iter()
        .map(|pod| format!("-{}", pod.metadata.uid.clone().unwrap()));
    created.chain(deleted).collect::<Vec<_>>().join(" ")
}

fn planned(set: &StatefulSet, text: &str, current: &str) -> Plan {
    plan(&Seen {
        set,
        pods: &pods(text),
        current,
        update: "new",
        now: time(NOW),
    })
}

#[test]
fn pods_come_and_go_in_order() {
    let parallel = json!({ "podManagementPolicy": "Parallel" });
    let cases = [
        ("the first", json!({}), "", "+0*"),
        ("the next only when it is ready", json!({}), "0-*", ""),
        ("then", json!({}), "0+*", "+1*"),
        ("a gap is filled first", json!({}), "0+* 2+*", "+1*"),
        ("one that ends is waited for", json!({}), "0+* 1x*", ""),
        ("one that failed makes room", json!({}), "0+* 1f*", "-1"),
        ("settled", json!({}), "0+* 1+* 2+*", ""),
        (
            "the highest goes first",
            json!({ "replicas": 1 }),
            "0+* 1+* 2+*",
            "-2",
        ),
        (
            "one after the other",
            json!({ "replicas": 1 }),
            "0+* 1+* 2x*",
            "",
        ),
        (
            "not while another is not ready",
            json!({ "replicas": 1 }),
            "0-* 1+* 2+*",
            "",
        ),
        (
            "unless it is itself what is not ready",
            json!({ "replicas": 1 }),
            "0+* 1+* 2-*",
            "-2",
        ),
        (
            "all at once in parallel",
            parallel.clone(),
            "",
            "+0* +1* +2*",
        ),
        ("whatever the others do", parallel.clone(), "0-* 2x*", "+1*"),
        (
            "and away at once",
            json!({ "podManagementPolicy": "Parallel", "replicas": 0 }),
            "0-* 1+*",
            "-1 -0",
        ),
        (
            "places begin where they are told to",
            json!({ "ordinals": { "start": 5 } }),
            "0+*",
            "+5*",
        ),
    ];
    for (case, spec, text, expected) in cases {
        assert_eq!(
            shown(&planned(&set(spec, json!({})), text, "new")),
            expected,
            "case: {case}"
        );
    }
}

#[test]
fn updates_go_from_the_highest_down_to_the_partition() {
    let partition = |at: i32| json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": at } } });
    let by_hand = json!({ "updateStrategy": { "type": "OnDelete" } });
    let cases = [
        ("the highest", json!({}), "0+ 1+ 2+", "-2"),
        ("is made anew", json!({}), "0+ 1+", "+2*"),
        ("and waited for", json!({}), "0+ 1+ 2-*", ""),
        ("then the next", json!({}), "0+ 1+ 2+*", "-1"),
        ("none below the partition", partition(2), "0+ 1+ 2+*", ""),
        (
            "which are made again as they were",
            partition(2),
            "0+ 2+*",
            "+1",
        ),
        ("by hand only", by_hand.clone(), "0+ 1+ 2+", ""),
        (
            "where what was taken away comes back new",
            by_hand,
            "0+ 1+",
            "+2*",
        ),
    ];
    for (case, spec, text, expected) in cases {
        let status = json!({ "replicas": 3, "currentReplicas": 2 });
        assert_eq!(
            shown(&planned(&set(spec, status), text, "old")),
            expected,
            "case: {case}"
        );
    }
}

#[test]
fn the_status_ends_the_update_when_all_are_new_and_ready() {
    let status = planned(&set(json!({}), json!({})), "0+ 1-* 2+*", "old").status;
    let counts = (
        status.replicas,
        status.ready_replicas,
        status.current_replicas,
        status.updated_replicas,
    );
    assert_eq!(counts, (3, Some(2), Some(1), Some(2)));
    assert_eq!(status.current_revision.as_deref(), Some("s-old"));
    let status = planned(&set(json!({}), json!({})), "0+* 1+* 2+*", "old").status;
    assert_eq!(
        (status.current_revision.as_deref(), status.current_replicas),
        (Some("s-new"), Some(3))
    );
}

#[test]
fn places_are_read_from_names() {
    let set = set(json!({}), json!({}));
    for (name, expected) in [
        ("s-0", Some(0)),
        ("s-12", Some(12)),
        ("s-01", None),
        ("s--1", None),
        ("t-0", None),
        ("s-x", None),
    ] {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        assert_eq!(identity::ordinal(&set, &pod), expected, "case: {name}");
    }
}
