//! What a start writes into an empty, a settled and a changed cluster.

use cox_store::Store;
use serde_json::{Value, json};

use super::*;
use crate::testing::{put, store};

fn settings(port: u16) -> Settings {
    Settings {
        advertise: ([192, 0, 2, 7], port).into(),
        ca_pem: "CA".into(),
        local_path: true,
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        dns_service: true,
    }
}

/// Writes as the registry would, without defaults.
async fn execute(store: &Store, writes: &[Write]) {
    for write in writes {
        put(store, write.plural, &write.object).await;
    }
}

async fn bootstrapped() -> Store {
    let store = store();
    execute(&store, &plan(&store.snapshot(), &settings(6443))).await;
    store
}

async fn change(store: &Store, plural: &'static str, path: &str, edit: impl Fn(&mut Value)) {
    let object = store.snapshot().get(plural, path).expect("it is there");
    let mut object: Value = serde_json::from_slice(&object.json).expect("JSON");
    edit(&mut object);
    execute(
        store,
        &[Write {
            group: "",
            plural,
            object,
        }],
    )
    .await;
}

#[tokio::test]
async fn a_settled_cluster_needs_no_write() {
    let store = bootstrapped().await;
    assert_eq!(plan(&store.snapshot(), &settings(6443)), []);
    let snapshot = store.snapshot();
    for (prefix, path) in [
        ("namespaces", "kube-node-lease"),
        ("clusterroles", "system:node"),
        (
            "rolebindings",
            "kube-system/system::leader-locking-kube-scheduler",
        ),
        ("priorityclasses", "system-node-critical"),
        ("runtimeclasses", "wasm"),
        ("services/specs", "default/kubernetes"),
        ("endpointslices", "default/kubernetes"),
        (
            "configmaps",
            "kube-system/extension-apiserver-authentication",
        ),
    ] {
        assert!(snapshot.get(prefix, path).is_some(), "{prefix} {path}");
    }
}

#[tokio::test]
async fn a_refused_write_ends_the_start_unless_the_server_is_of_use_without() {
    let store = store();
    for (refused, expected) in [
        ("clusterroles", false),
        ("namespaces", false),
        ("endpointslices", true),
        ("none", true),
    ] {
        let written = std::sync::atomic::AtomicUsize::new(0);
        let settings = settings(6443);
        let outcome = run(&store, &settings, |write| {
            written.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let refuse = write.plural == refused;
            async move {
                if refuse {
                    Err(cox_api::status::ApiStatus::bad_request("no"))
                } else {
                    Ok(())
                }
            }
        });
        assert_eq!(outcome.await.is_ok(), expected, "{refused}");
        assert_eq!(
            written.into_inner(),
            plan(&store.snapshot(), &settings).len()
        );
    }
}

#[tokio::test]
async fn another_port_moves_the_service() {
    let store = bootstrapped().await;
    let writes = plan(&store.snapshot(), &settings(7443));
    let plurals: Vec<&str> = writes.iter().map(|write| write.plural).collect();
    assert_eq!(plurals, ["services", "endpointslices", "endpoints"]);
    assert_eq!(writes[0].object["spec"]["ports"][0]["targetPort"], 7443);
    assert_eq!(writes[1].object["ports"][0]["port"], 7443);
}

#[tokio::test]
async fn the_policy_gets_back_what_it_lost_and_keeps_what_was_added() {
    let store = bootstrapped().await;
    let added = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]});
    change(&store, "clusterroles", "system:discovery", |role| {
        role["rules"] = json!([added])
    })
    .await;
    let writes = plan(&store.snapshot(), &settings(6443));
    let [write] = writes.as_slice() else {
        panic!("one write: {writes:?}")
    };
    let rules = write.object["rules"].as_array().expect("rules");
    assert!(rules.len() == 2 && rules[0] == added, "{rules:?}");

    change(&store, "clusterroles", "system:discovery", |role| {
        role["metadata"]["annotations"] =
            json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
    })
    .await;
    assert_eq!(
        plan(&store.snapshot(), &settings(6443)),
        [],
        "whoever says so is left alone"
    );
}

#[tokio::test]
async fn a_binding_gets_its_subject_back() {
    let store = bootstrapped().await;
    let extra = json!({"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"});
    change(&store, "clusterrolebindings", "cluster-admin", |one| {
        one["subjects"] = json!([extra])
    })
    .await;
    let writes = plan(&store.snapshot(), &settings(6443));
    let [write] = writes.as_slice() else {
        panic!("one write: {writes:?}")
    };
    assert_eq!(write.object["subjects"][0], extra);
    assert_eq!(write.object["subjects"][1]["name"], "system:masters");
}

#[tokio::test]
async fn what_users_may_change_is_made_once() {
    let store = bootstrapped().await;
    change(&store, "runtimeclasses", "wasm", |class| {
        class["scheduling"] = json!({})
    })
    .await;
    change(&store, "priorityclasses", "system-node-critical", |class| {
        class["description"] = json!("x")
    })
    .await;
    assert_eq!(plan(&store.snapshot(), &settings(6443)), []);
}
