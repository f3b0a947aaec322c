//! Unmodified kubectl against a running cluster: every command that the README names.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use cox_testkit::{Cluster, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

#[test]
fn kubectl_is_at_home() {
    let cluster = Cluster::up(COX, &["examples/hello"]);
    cluster.wait("condition=Ready", "pod/hello");
    looks(&cluster);
    explains(&cluster);
    logs(&cluster);
    deploys_scales_and_rolls(&cluster);
    applies_and_deletes(&cluster);
}

fn looks(cluster: &Cluster) {
    let nodes = cluster.kubectl(&["get", "nodes"]).ok();
    assert!(
        nodes.contains(" Ready ") && nodes.contains("v1.36"),
        "{nodes}"
    );
    let pods = cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).ok();
    assert!(
        pods.starts_with("NAMESPACE") && pods.contains("NOMINATED NODE"),
        "{pods}"
    );
    assert!(
        pods.lines().any(|line| line.contains("hello")
            && line.contains("1/1")
            && line.contains("Running")
            && line.contains(" 127.")),
        "{pods}"
    );
    let described = cluster.kubectl(&["describe", "pod", "hello"]).ok();
    for word in [
        "Runtime Class Name:",
        "Scheduled",
        "Pulled",
        "Started",
        "Ready             True",
    ] {
        assert!(
            described.contains(word)
                || described.contains(&word.replace("Runtime Class Name:", "Runtime Class")),
            "no {word:?}: {described}"
        );
    }
    cluster.kubectl(&["describe", "node"]).ok();
    let yaml = cluster.kubectl(&["get", "pod", "hello", "-o", "yaml"]).ok();
    assert!(yaml.contains("runtimeClassName: wasm"), "{yaml}");
    assert_eq!(
        cluster
            .kubectl(&["get", "pod", "hello", "-o", "jsonpath={.status.phase}"])
            .ok(),
        "Running"
    );
    assert_eq!(
        cluster.json(&["get", "pod", "hello"])["status"]["qosClass"],
        "Guaranteed"
    );
}

fn explains(cluster: &Cluster) {
    let explained = cluster.kubectl(&["explain", "pod.spec"]).ok();
    assert!(
        explained.contains("FIELDS:") && explained.contains("containers\t<[]Container> -required-"),
        "{explained}"
    );
    assert!(
        cluster
            .kubectl(&["explain", "deployment", "--recursive"])
            .ok()
            .contains("maxSurge")
    );
    for (kind, field) in [
        ("pods", "terminationGracePeriodSeconds"),
        ("services", "sessionAffinityConfig"),
        ("jobs", "podFailurePolicy"),
        ("customresourcedefinitions", "x-kubernetes-validations"),
        ("validatingadmissionpolicies", "matchConditions"),
        ("resourceclaims", "allocationMode"),
        ("flowschemas", "distinguisherMethod"),
        ("horizontalpodautoscalers", "stabilizationWindowSeconds"),
    ] {
        let explained = cluster.kubectl(&["explain", kind, "--recursive"]).ok();
        assert!(explained.contains(field), "{kind}: {explained}");
    }
    let resources = cluster.kubectl(&["api-resources"]).ok();
    for kind in [
        "Pod",
        "Deployment",
        "RuntimeClass",
        "ConfigMap",
        "Ingress",
        "CustomResourceDefinition",
    ] {
        assert!(
            resources.lines().any(|line| line.ends_with(kind)),
            "no {kind}: {resources}"
        );
    }
    assert!(
        cluster
            .kubectl(&["version"])
            .ok()
            .contains("Server Version: v1.36")
    );
}

fn logs(cluster: &Cluster) {
    let log = cluster.kubectl(&["logs", "hello"]).ok();
    assert!(log.contains("Hello, Coxswain!"), "{log}");
    let stamped = cluster
        .kubectl(&["logs", "hello", "--timestamps", "--tail=1"])
        .ok();
    assert!(
        stamped.starts_with("20") && stamped.lines().count() == 1,
        "{stamped}"
    );
    assert_eq!(
        cluster
            .kubectl(&["logs", "hello", "--since=1s", "--tail=0"])
            .ok(),
        ""
    );

    // A Pod that ends: `-f` returns by itself, and `--previous` has what the run before said.
    cluster.apply(&pod("ends", r#"args: [Twice]"#)).ok();
    let refused = cluster.kubectl(&["logs", "ends", "--previous"]).refused();
    assert!(
        refused.contains("previous terminated container"),
        "{refused}"
    );
    let mut follow = cluster.kubectl_command();
    let followed = std::thread::spawn(move || {
        cox_testkit::Output::of(follow.args(["logs", "-f", "--pod-running-timeout=60s", "ends"]))
    });
    cluster.wait("condition=Ready", "pod/ends");
    cluster
        .kubectl(&["delete", "pod", "ends", "--grace-period=1"])
        .ok();
    assert!(followed.join().unwrap().stdout.contains("Hello, Twice!"));
}

fn deploys_scales_and_rolls(cluster: &Cluster) {
    cluster
        .kubectl(&["create", "deployment", "made", "--image=cox.local/hello"])
        .ok();
    cluster
        .kubectl(&["rollout", "status", "deployment/made", "--timeout=60s"])
        .ok();
    cluster
        .kubectl(&["scale", "deployment/made", "--replicas=3"])
        .ok();
    cluster
        .kubectl(&["rollout", "status", "deployment/made", "--timeout=60s"])
        .ok();
    let running = cluster.json(&["get", "pods", "-l", "app=made"]);
    assert_eq!(running["items"].as_array().unwrap().len(), 3);

    cluster
        .kubectl(&["set", "env", "deployment/made", "COLOR=blue"])
        .ok();
    cluster
        .kubectl(&["rollout", "status", "deployment/made", "--timeout=60s"])
        .ok();
    let history = cluster
        .kubectl(&["rollout", "history", "deployment/made"])
        .ok();
    assert!(history.contains("\n2 "), "{history}");
    cluster
        .kubectl(&["rollout", "undo", "deployment/made"])
        .ok();
    cluster
        .kubectl(&["rollout", "status", "deployment/made", "--timeout=60s"])
        .ok();
    let made = cluster.json(&["get", "deployment", "made"]);
    assert!(
        made.pointer("/spec/template/spec/containers/0/env")
            .is_none(),
        "the undo took the variable away"
    );

    cluster.kubectl(&["delete", "deployment", "made"]).ok();
    eventually(
        "the garbage collector to take replica sets and Pods",
        || {
            let left = cluster
                .kubectl(&["get", "replicasets,pods", "-l", "app=made", "--no-headers"])
                .stdout;
            if left.is_empty() { Ok(()) } else { Err(left) }
        },
    );
}

fn applies_and_deletes(cluster: &Cluster) {
    cluster
        .kubectl(&["create", "namespace", "short-lived"])
        .ok();
    let config = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c, namespace: short-lived}}\ndata: {{a: \"{value}\"}}\n"
        )
    };
    assert!(
        cluster
            .apply(&config("1"))
            .ok()
            .contains("configmap/c created")
    );
    assert!(
        cluster
            .apply(&config("1"))
            .ok()
            .contains("configmap/c unchanged")
    );
    assert!(
        cluster
            .apply(&config("2"))
            .ok()
            .contains("configmap/c configured")
    );
    assert_eq!(
        cluster.json(&["get", "configmap", "c", "-n", "short-lived"])["data"]["a"],
        "2"
    );
    cluster
        .kubectl(&["delete", "namespace", "short-lived"])
        .ok();
    assert!(
        cluster
            .kubectl(&["get", "namespace", "short-lived"])
            .refused()
            .contains("not found")
    );
}

fn pod(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: wasm\n  containers:\n  - name: c\n    \
         image: cox.local/hello:latest\n    imagePullPolicy: IfNotPresent\n    {extra}\n"
    )
}
