use super::*;
use crate::registry::catalog;

const NOW: &str = "2026-01-01T00:00:00Z";

fn planned(plural: &str, old: &Value, options: &Options) -> Plan {
    let entry = catalog::builtin().entry("", "v1", plural).unwrap();
    plan(entry, old, options, NOW.parse().unwrap())
}

fn running_pod() -> Value {
    json!({
        "metadata": {"name": "p", "generation": 1},
        "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"},
    })
}

fn with(mut value: Value, path: &str, new: Value) -> Value {
    let (parent, field) = path.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[field] = new;
    value
}

/// What a plan does, in short: `remove`, `nothing`, or the fields that a mark sets.
fn short(plan: &Plan) -> String {
    match plan {
        Plan::Nothing => "nothing".into(),
        Plan::Remove => "remove".into(),
        Plan::Mark(value) => {
            let metadata = &value["metadata"];
            format!(
                "mark {} grace={} finalizers={}",
                metadata["deletionTimestamp"].as_str().unwrap_or("-"),
                metadata["deletionGracePeriodSeconds"],
                metadata["finalizers"]
            )
        }
    }
}

fn marked_pod() -> Value {
    let at = with(
        running_pod(),
        "/metadata/deletionTimestamp",
        json!("2026-01-01T00:00:30Z"),
    );
    with(at, "/metadata/deletionGracePeriodSeconds", json!(30))
}

fn check_pod(name: &str, old: &Value, grace_secs: Option<i64>, expected: &str) {
    let options = Options {
        grace_secs,
        ..Options::default()
    };
    assert_eq!(
        short(&planned("pods", old, &options)),
        expected,
        "case: {name}"
    );
}

#[test]
fn pods_get_their_grace_period() {
    let pod = running_pod();
    let unscheduled = with(running_pod(), "/spec/nodeName", json!(""));
    let finished = with(running_pod(), "/status/phase", json!("Succeeded"));
    check_pod(
        "its own",
        &pod,
        None,
        "mark 2026-01-01T00:00:30Z grace=30 finalizers=null",
    );
    check_pod(
        "a shorter one",
        &pod,
        Some(5),
        "mark 2026-01-01T00:00:05Z grace=5 finalizers=null",
    );
    check_pod(
        "negative is one second",
        &pod,
        Some(-1),
        "mark 2026-01-01T00:00:01Z grace=1 finalizers=null",
    );
    check_pod("at once when asked", &pod, Some(0), "remove");
    check_pod("unscheduled: at once", &unscheduled, None, "remove");
    check_pod("finished: at once", &finished, None, "remove");
}

#[test]
fn repeated_deletes_of_pods_only_shorten() {
    let marked = marked_pod();
    let held = with(marked_pod(), "/metadata/finalizers", json!(["a/b"]));
    check_pod("the same", &marked, None, "nothing");
    check_pod("longer", &marked, Some(60), "nothing");
    check_pod(
        "shorter",
        &marked,
        Some(10),
        "mark 2026-01-01T00:00:10Z grace=10 finalizers=null",
    );
    check_pod(
        "with zero, by the kubelet: gone",
        &marked,
        Some(0),
        "remove",
    );
    check_pod(
        "held by a finalizer",
        &held,
        Some(0),
        "mark 2026-01-01T00:00:00Z grace=0 finalizers=[\"a/b\"]",
    );
}

#[test]
fn other_kinds_go_at_once_unless_a_finalizer_holds_them() {
    let plain = json!({"metadata": {"name": "c"}});
    let held = json!({"metadata": {"name": "c", "finalizers": ["a/b"]}});
    let waiting = json!({"metadata": {"name": "c", "finalizers": ["a/b"], "deletionTimestamp": NOW, "deletionGracePeriodSeconds": 0}});
    let cases = [
        ("plain", &plain, None, "remove"),
        ("a grace period means nothing", &plain, None, "remove"),
        (
            "held by a finalizer",
            &held,
            None,
            "mark 2026-01-01T00:00:00Z grace=0 finalizers=[\"a/b\"]",
        ),
        ("already waiting", &waiting, None, "nothing"),
        (
            "orphan",
            &plain,
            Some(Propagation::Orphan),
            "mark 2026-01-01T00:00:00Z grace=0 finalizers=[\"orphan\"]",
        ),
        (
            "foreground",
            &plain,
            Some(Propagation::Foreground),
            "mark 2026-01-01T00:00:00Z grace=0 finalizers=[\"foregroundDeletion\"]",
        ),
        (
            "background",
            &plain,
            Some(Propagation::Background),
            "remove",
        ),
        (
            "already waiting, now in the foreground too",
            &waiting,
            Some(Propagation::Foreground),
            "mark 2026-01-01T00:00:00Z grace=0 finalizers=[\"a/b\",\"foregroundDeletion\"]",
        ),
    ];
    for (name, old, propagation, expected) in cases {
        let options = Options {
            grace_secs: Some(30),
            propagation,
            ..Options::default()
        };
        assert_eq!(
            short(&planned("configmaps", old, &options)),
            expected,
            "case: {name}"
        );
    }
}

#[test]
fn namespaces_wait_for_their_own_finalizers() {
    let namespace = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
    let Plan::Mark(marked) = planned("namespaces", &namespace, &Options::default()) else {
        panic!("must be marked")
    };
    assert_eq!(marked["status"]["phase"], "Terminating");
    assert_eq!(marked["metadata"]["deletionTimestamp"], NOW);
    let emptied = with(marked, "/spec/finalizers", json!([]));
    assert_eq!(
        planned("namespaces", &emptied, &Options::default()),
        Plan::Remove
    );
}
