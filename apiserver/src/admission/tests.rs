//! Each plugin by a table of requests.
#![allow(clippy::too_many_lines, reason = "the tables are the tests")]

use std::time::Duration;

use cox_api::schema;
use cox_store::Store;
use serde_json::json;

use super::*;
use crate::auth::{MASTERS, NODES};
use crate::testing::{put, store};

/// A request under construction.
struct Case {
    group: &'static str,
    plural: &'static str,
    sub: &'static str,
    operation: Operation,
    namespace: &'static str,
    name: String,
    object: Option<Value>,
    old: Option<Value>,
    user: UserInfo,
}

fn create(plural: &'static str, object: Value) -> Case {
    let namespaced = schema::builtin()
        .resources()
        .iter()
        .find(|one| one.plural == plural)
        .expect("known")
        .namespaced;
    Case {
        group: "",
        plural,
        sub: "",
        operation: Operation::Create,
        namespace: if namespaced { "ns" } else { "" },
        name: meta::name(&object).to_owned(),
        object: Some(object),
        old: None,
        user: UserInfo::new("root", [MASTERS]),
    }
}

fn update(plural: &'static str, old: Value, object: Value) -> Case {
    Case {
        operation: Operation::Update,
        old: Some(old),
        ..create(plural, object)
    }
}

/// Both phases; answers the object.
async fn admit(store: &Store, case: &Case) -> Result<Value, ApiStatus> {
    let resource = schema::builtin()
        .resources()
        .iter()
        .find(|one| one.plural == case.plural && one.group == case.group)
        .expect("a resource");
    let entry = crate::registry::catalog::builtin()
        .stored(case.group, case.plural)
        .expect("an entry");
    let mut request = Request {
        operation: case.operation,
        entry,
        resource,
        subresource: case.sub,
        namespace: case.namespace,
        name: &case.name,
        object: case.object.clone(),
        old: case.old.as_ref(),
        user: &case.user,
        dry_run: false,
        options: Options::None,
        notes: Notes::default(),
    };
    let registry = Registry::new(store.clone());
    let admission = Admission::new(registry, Authorizer::new(store.clone()));
    admission.mutate(&mut request).await?;
    admission.validate(&request).await?;
    Ok(request.object.unwrap_or_default())
}

async fn refusal(store: &Store, case: &Case) -> String {
    admit(store, case).await.expect_err("a refusal").message
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
    if pod["spec"]["containers"].is_null() {
        pod["spec"]["containers"] = json!([{"name": "c"}]);
    }
    pod
}

/// A namespace `ns` with its default service account.
async fn cluster() -> Store {
    let store = store();
    put(
        &store,
        "namespaces",
        &json!({"metadata": {"name": "ns"}, "status": {"phase": "Active"}}),
    )
    .await;
    put(
        &store,
        "serviceaccounts",
        &json!({"metadata": {"namespace": "ns", "name": "default", "uid": "1"}}),
    )
    .await;
    store
}

#[tokio::test]
async fn namespaces_take_objects_while_they_live() {
    let store = cluster().await;
    let going = json!({"metadata": {"name": "going", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": "Terminating"}});
    put(&store, "namespaces", &going).await;
    let map = || json!({"metadata": {"name": "m"}});
    admit(&store, &create("configmaps", map()))
        .await
        .expect("a living namespace");
    let missing = Case {
        namespace: "gone",
        ..create("configmaps", map())
    };
    let status = admit(&store, &missing)
        .await
        .expect_err("a missing namespace");
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "namespaces \"gone\" not found")
    );
    let late = Case {
        namespace: "going",
        ..create("configmaps", map())
    };
    let status = admit(&store, &late).await.expect_err("a going namespace");
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            403,
            "configmaps \"m\" is forbidden: unable to create new content in namespace going because it is being terminated"
        )
    );
    assert_eq!(
        status.details.expect("details").causes[0].reason,
        "NamespaceTerminating"
    );
    let changed = Case {
        namespace: "going",
        ..update("configmaps", map(), map())
    };
    admit(&store, &changed)
        .await
        .expect("what is there may still change");
}

#[tokio::test]
async fn some_namespaces_are_immortal() {
    let store = cluster().await;
    for (name, may_go) in [
        ("default", false),
        ("kube-system", false),
        ("kube-public", false),
        ("ns", true),
    ] {
        let object = json!({"metadata": {"name": name}});
        let case = Case {
            operation: Operation::Delete,
            object: None,
            old: Some(object.clone()),
            namespace: "",
            ..create("namespaces", object)
        };
        let outcome = admit(&store, &case)
            .await
            .map(|_| ())
            .map_err(|status| status.message);
        let refused =
            format!("namespaces {name:?} is forbidden: this namespace may not be deleted");
        assert_eq!(outcome, if may_go { Ok(()) } else { Err(refused) });
    }
}

#[tokio::test]
async fn a_pod_gets_its_account_and_token() {
    let store = cluster().await;
    let robot = json!({"metadata": {"namespace": "ns", "name": "robot"}, "imagePullSecrets": [{"name": "pull"}]});
    put(&store, "serviceaccounts", &robot).await;
    let mounted = json!({"name": "has", "volumeMounts": [{"name": "x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]});
    let spec = json!({"serviceAccountName": "robot", "containers": [{"name": "c"}, mounted], "initContainers": [{"name": "i"}]});
    let admitted = admit(&store, &create("pods", pod(spec)))
        .await
        .expect("a pod");
    let spec = &admitted["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("robot"), &json!("robot"))
    );
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    let volume = &spec["volumes"][0];
    let name = volume["name"].as_str().expect("a name");
    assert!(
        name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5,
        "{name}"
    );
    let sources = &volume["projected"]["sources"];
    assert_eq!(
        sources[0]["serviceAccountToken"],
        json!({"expirationSeconds": 3607, "path": "token"})
    );
    assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    assert_eq!(sources[2]["downwardAPI"]["items"][0]["path"], "namespace");
    let mount = json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    assert_eq!(spec["containers"][0]["volumeMounts"], mount);
    assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
    assert_eq!(spec["containers"][1], mounted, "a mount of one's own stays");

    let again = admit(&store, &create("pods", admitted.clone()))
        .await
        .expect("once more");
    assert_eq!(again, admitted, "nothing is added twice");
}

#[tokio::test]
async fn a_pod_may_decline_its_token() {
    let store = cluster().await;
    let quiet = json!({"metadata": {"namespace": "ns", "name": "quiet"}, "automountServiceAccountToken": false});
    put(&store, "serviceaccounts", &quiet).await;
    for (case, spec, mounts) in [
        ("by default", json!({}), true),
        (
            "the pod declines",
            json!({"automountServiceAccountToken": false}),
            false,
        ),
        (
            "its account declines",
            json!({"serviceAccountName": "quiet"}),
            false,
        ),
        (
            "the pod overrules its account",
            json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true}),
            true,
        ),
    ] {
        let admitted = admit(&store, &create("pods", pod(spec))).await.expect(case);
        assert_eq!(admitted["spec"]["volumes"].is_array(), mounts, "{case}");
        assert!(
            admitted["spec"].get("initContainers").is_none(),
            "{case}: no null fields"
        );
    }
    let missing = create("pods", pod(json!({"serviceAccountName": "gone"})));
    assert_eq!(
        refusal(&store, &missing).await,
        "pods \"p\" is forbidden: error looking up service account ns/gone: serviceaccount \"gone\" not found"
    );
}

#[tokio::test]
async fn a_pod_waits_for_the_default_account_of_a_new_namespace() {
    let store = store();
    put(&store, "namespaces", &json!({"metadata": {"name": "ns"}})).await;
    let case = create("pods", pod(json!({})));
    let account = json!({"metadata": {"namespace": "ns", "name": "default"}});
    let (admitted, ()) = tokio::join!(admit(&store, &case), async {
        tokio::task::yield_now().await;
        put(&store, "serviceaccounts", &account).await;
    });
    assert_eq!(
        admitted.expect("a pod")["spec"]["serviceAccountName"],
        "default"
    );
}

#[tokio::test]
async fn a_pod_does_not_wait_for_ever() {
    let store = store();
    put(&store, "namespaces", &json!({"metadata": {"name": "ns"}})).await;
    let case = create("pods", pod(json!({})));
    let outcome = tokio::time::timeout(Duration::from_secs(5), refusal(&store, &case))
        .await
        .expect("bounded");
    assert!(outcome.contains("service account ns/default"), "{outcome}");
}

#[tokio::test]
async fn a_mirror_pod_reaches_for_nothing() {
    let store = cluster().await;
    let mirror = |spec: Value| {
        let mut pod = pod(spec);
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        create("pods", pod)
    };
    let admitted = admit(&store, &mirror(json!({})))
        .await
        .expect("a mirror pod");
    assert!(
        admitted["spec"].get("volumes").is_none()
            && admitted["spec"].get("serviceAccountName").is_none()
    );
    for (case, spec) in [
        ("an account", json!({"serviceAccountName": "default"})),
        (
            "a secret",
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
        ),
        (
            "a token",
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
        ),
    ] {
        assert!(
            refusal(&store, &mirror(spec))
                .await
                .contains("a mirror pod may not"),
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_new_node_is_not_ready() {
    let store = store();
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    for (case, spec) in [
        ("without taints", json!({})),
        ("already tainted", json!({"taints": [taint]})),
    ] {
        let node = json!({"metadata": {"name": "n1"}, "spec": spec});
        let admitted = admit(&store, &create("nodes", node.clone()))
            .await
            .expect(case);
        assert_eq!(admitted["spec"]["taints"], json!([taint]), "{case}");
        let updated = admit(&store, &update("nodes", node.clone(), node.clone()))
            .await
            .expect(case);
        assert_eq!(updated, node, "{case}: only when it is new");
    }
}

#[tokio::test]
async fn priority_comes_from_a_class() {
    let store = cluster().await;
    let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"});
    let none = admit(&store, &create("pods", pod(json!({}))))
        .await
        .expect("no classes");
    assert_eq!(
        (&none["spec"]["priority"], &none["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    assert!(none["spec"].get("priorityClassName").is_none());
    put(&store, "priorityclasses", &class("high", 1000, false)).await;
    put(&store, "priorityclasses", &class("usual", 10, true)).await;
    let by_default = admit(&store, &create("pods", pod(json!({}))))
        .await
        .expect("the default class");
    assert_eq!(
        (
            &by_default["spec"]["priorityClassName"],
            &by_default["spec"]["priority"]
        ),
        (&json!("usual"), &json!(10))
    );
    let high = admit(
        &store,
        &create(
            "pods",
            pod(json!({"priorityClassName": "high", "priority": 1000})),
        ),
    )
    .await
    .expect("high");
    assert_eq!(
        (&high["spec"]["priority"], &high["spec"]["preemptionPolicy"]),
        (&json!(1000), &json!("Never"))
    );
    for (case, spec, text) in [
        (
            "an unknown class",
            json!({"priorityClassName": "gone"}),
            "no PriorityClass with name gone was found",
        ),
        (
            "another number",
            json!({"priorityClassName": "high", "priority": 7}),
            "the integer value of priority (7) must not be provided",
        ),
        (
            "another policy",
            json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
            "the string value of PreemptionPolicy",
        ),
    ] {
        let message = refusal(&store, &create("pods", pod(spec))).await;
        assert!(
            message.starts_with("pods \"p\" is forbidden: ") && message.contains(text),
            "{case}: {message}"
        );
    }
    let without = admit(
        &store,
        &update(
            "pods",
            high.clone(),
            pod(json!({"priorityClassName": "high"})),
        ),
    )
    .await
    .expect("kept");
    assert_eq!(
        without["spec"]["priority"], 1000,
        "an update that leaves it out does not change it"
    );
    let second = Case {
        group: "scheduling.k8s.io",
        ..create("priorityclasses", class("too", 5, true))
    };
    assert!(
        refusal(&store, &second)
            .await
            .contains("PriorityClass usual is already marked as default")
    );
    let itself = Case {
        group: "scheduling.k8s.io",
        ..create("priorityclasses", class("usual", 11, true))
    };
    admit(&store, &itself)
        .await
        .expect("the default itself may be written");
}

#[tokio::test]
async fn tolerations_of_trouble_are_limited() {
    let store = cluster().await;
    let limited = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    let (not_ready, unreachable) = (
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    );
    let own = json!({"key": not_ready, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
    let all = json!({"operator": "Exists"});
    let other_effect = json!({"key": not_ready, "operator": "Exists", "effect": "NoSchedule"});
    for (case, given, expected) in [
        (
            "none",
            json!([]),
            json!([limited(not_ready), limited(unreachable)]),
        ),
        (
            "one of its own",
            json!([own]),
            json!([own, limited(unreachable)]),
        ),
        ("of everything", json!([all]), json!([all])),
        (
            "of another effect",
            json!([other_effect]),
            json!([other_effect, limited(not_ready), limited(unreachable)]),
        ),
    ] {
        let admitted = admit(&store, &create("pods", pod(json!({"tolerations": given}))))
            .await
            .expect(case);
        assert_eq!(admitted["spec"]["tolerations"], expected, "{case}");
    }
}

#[tokio::test]
async fn a_runtime_class_sends_pods_where_it_can_run() {
    let store = cluster().await;
    let class = json!({"metadata": {"name": "wasm"}, "handler": "wasm", "overhead": {"podFixed": {"memory": "1Mi"}},
        "scheduling": {"nodeSelector": {"coxswain.dev/wasm": "true"}, "tolerations": [{"key": "wasm", "operator": "Exists"}]}});
    put(&store, "runtimeclasses", &class).await;
    let with = |mut spec: Value| {
        spec["runtimeClassName"] = "wasm".into();
        create("pods", pod(spec))
    };
    let admitted = admit(&store, &with(json!({"nodeSelector": {"disk": "ssd"}})))
        .await
        .expect("a pod");
    let spec = &admitted["spec"];
    assert_eq!(spec["overhead"], json!({"memory": "1Mi"}));
    assert_eq!(
        spec["nodeSelector"],
        json!({"disk": "ssd", "coxswain.dev/wasm": "true"})
    );
    let tolerates = |key: &str| items(&spec["tolerations"]).any(|one| one["key"] == key);
    assert!(tolerates("wasm") && tolerates("node.kubernetes.io/not-ready"));
    let unknown = create("pods", pod(json!({"runtimeClassName": "gone"})));
    assert_eq!(
        refusal(&store, &unknown).await,
        "pods \"p\" is forbidden: pod rejected: RuntimeClass \"gone\" not found"
    );
    let conflict = with(json!({"nodeSelector": {"coxswain.dev/wasm": "false"}}));
    assert!(
        refusal(&store, &conflict)
            .await
            .contains("conflict: runtimeClass.scheduling.nodeSelector[coxswain.dev/wasm] = true")
    );
    let heavy = with(json!({"overhead": {"memory": "2Mi"}}));
    assert!(
        refusal(&store, &heavy)
            .await
            .contains("doesn't match RuntimeClass's defined Overhead")
    );
    let lone = create("pods", pod(json!({"overhead": {"memory": "2Mi"}})));
    assert!(
        refusal(&store, &lone)
            .await
            .contains("without corresponding RuntimeClass")
    );
}

#[tokio::test]
async fn nodes_ask_for_certificates_of_their_own_pods_only() {
    use base64::Engine;
    let store = cluster().await;
    let with_uid =
        |name: &str, uid: &str| json!({"metadata": {"name": name, "namespace": "ns", "uid": uid}});
    for (name, uid) in [("n1", "node-1"), ("n2", "node-2")] {
        let node = json!({"metadata": {"name": name, "uid": uid}});
        put(&store, "nodes", &node).await;
    }
    put(&store, "serviceaccounts", &with_uid("robot", "account-1")).await;
    for (name, node, uid) in [("near", "n1", "pod-1"), ("far", "n2", "pod-2")] {
        let mut pod = with_uid(name, uid);
        pod["spec"] = json!({"nodeName": node, "serviceAccountName": "robot"});
        put(&store, "pods", &pod).await;
    }
    let key = rcgen::KeyPair::generate().expect("a key");
    let stub = rcgen::CertificateParams::default().serialize_request(&key);
    let stub = base64::engine::general_purpose::STANDARD.encode(stub.expect("a request").der());
    let whole = json!({"metadata": {"name": "r", "namespace": "ns"}, "spec": {"signerName": "example.com/s", "nodeName": "n1", "nodeUID": "node-1",
        "podName": "near", "podUID": "pod-1", "serviceAccountName": "robot", "serviceAccountUID": "account-1", "stubPKCS10Request": stub}});
    let cases = [
        ("its own", "podName", "near", true),
        ("another node", "nodeName", "n2", false),
        ("a node that was there before", "nodeUID", "node-0", false),
        ("another node's Pod", "podName", "far", false),
        ("a Pod that was there before", "podUID", "pod-0", false),
        ("a Pod that is not there", "podName", "none", false),
        ("another account", "serviceAccountName", "king", false),
        (
            "an account that was there before",
            "serviceAccountUID",
            "account-0",
            false,
        ),
        (
            "a request that nobody signed",
            "stubPKCS10Request",
            "AAAA",
            false,
        ),
    ];
    for (name, field, value, expected) in cases {
        let mut object = whole.clone();
        object["spec"][field] = json!(value);
        let case = Case {
            group: "certificates.k8s.io",
            user: UserInfo::new("system:node:n1", [NODES]),
            ..create("podcertificaterequests", object)
        };
        let admitted = admit(&store, &case).await;
        assert_eq!(admitted.is_ok(), expected, "case: {name}: {admitted:?}");
    }
    let far = json!({"podName": "far", "podUID": "pod-2"});
    let mut object = whole.clone();
    for field in ["podName", "podUID"] {
        object["spec"][field] = far[field].clone();
    }
    let case = Case {
        group: "certificates.k8s.io",
        user: UserInfo::new("system:node:n1", [NODES]),
        ..create("podcertificaterequests", object)
    };
    assert!(
        refusal(&store, &case)
            .await
            .contains("is not running on node \"n1\"")
    );
}

#[tokio::test]
async fn nodes_write_their_own() {
    let store = cluster().await;
    let by_node = |case: Case| Case {
        user: UserInfo::new("system:node:n1", [NODES]),
        ..case
    };
    let node = |name: &str, more: Value| {
        let mut node = json!({"metadata": {"name": name}, "spec": {}});
        node["metadata"]["labels"] = more;
        node
    };
    let tainted = json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}});
    let on = |node: &str| pod(json!({"nodeName": node}));
    let mirror = |node: &str| {
        let mut pod = on(node);
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        pod
    };
    let lease = |name: &str, namespace: &'static str| Case {
        group: "coordination.k8s.io",
        namespace,
        ..create("leases", json!({"metadata": {"name": name}}))
    };
    put(
        &store,
        "namespaces",
        &json!({"metadata": {"name": "kube-node-lease"}}),
    )
    .await;
    let status = |old: &str| Case {
        sub: "status",
        ..update("pods", on(old), on(old))
    };
    let delete = |old: &str| Case {
        operation: Operation::Delete,
        object: None,
        ..update("pods", on(old), on(old))
    };
    let saying = |field: &str, said: Value| {
        let mut pod = on("n1");
        pod["status"][field] = said;
        pod
    };
    let says = |old: Value, new: Value| Case {
        sub: "status",
        ..update("pods", old, new)
    };
    let made = |claim: &str| {
        let list = json!([{"name": "gpu", "resourceClaimName": claim}]);
        saying("resourceClaimStatuses", list)
    };
    let mut labelled = on("n1");
    labelled["metadata"]["labels"] = json!({"app": "other"});
    let mut reaching = mirror("n1");
    reaching["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": "c"}]);
    let slice = |node: &str| Case {
        group: "resource.k8s.io",
        ..create(
            "resourceslices",
            json!({"metadata": {"name": "s"}, "spec": {"nodeName": node}}),
        )
    };
    let delete_slice = |node: &str| {
        let case = slice(node);
        Case {
            operation: Operation::Delete,
            old: case.object.clone(),
            object: None,
            ..case
        }
    };
    let declaring =
        json!({"metadata": {"name": "n1"}, "spec": {}, "status": {"declaredFeatures": ["A"]}});
    let cases = [
        ("its own node", create("nodes", node("n1", json!({}))), true),
        (
            "what its machine can do",
            Case {
                sub: "status",
                ..update("nodes", node("n1", json!({})), declaring)
            },
            true,
        ),
        (
            "another node",
            create("nodes", node("n2", json!({}))),
            false,
        ),
        (
            "facts about its machine",
            create(
                "nodes",
                node(
                    "n1",
                    json!({"kubernetes.io/os": "linux", "coxswain.dev/wasm": "true"}),
                ),
            ),
            true,
        ),
        (
            "a role",
            create(
                "nodes",
                node("n1", json!({"node-role.kubernetes.io/control-plane": ""})),
            ),
            false,
        ),
        (
            "a changed label that tells trust",
            update(
                "nodes",
                node("n1", json!({"a.node-restriction.kubernetes.io/x": "y"})),
                node("n1", json!({"a.node-restriction.kubernetes.io/x": "z"})),
            ),
            false,
        ),
        (
            "a label of an administrator that stays",
            update(
                "nodes",
                node("n1", json!({"node-role.kubernetes.io/worker": ""})),
                node(
                    "n1",
                    json!({"node-role.kubernetes.io/worker": "", "kubernetes.io/arch": "amd64"}),
                ),
            ),
            true,
        ),
        (
            "a label that tells trust",
            create(
                "nodes",
                node("n1", json!({"node-restriction.kubernetes.io/x": "y"})),
            ),
            false,
        ),
        (
            "its own taints",
            update("nodes", node("n1", json!({})), tainted),
            false,
        ),
        ("a pod", create("pods", on("n1")), false),
        ("its own mirror pod", create("pods", mirror("n1")), true),
        (
            "another node's mirror pod",
            create("pods", mirror("n2")),
            false,
        ),
        ("the status of its own pod", status("n1"), true),
        ("the status of another node's pod", status("n2"), false),
        ("deleting its own pod", delete("n1"), true),
        ("deleting another node's pod", delete("n2"), false),
        ("its own lease", lease("n1", "kube-node-lease"), true),
        (
            "another node's lease",
            lease("n2", "kube-node-lease"),
            false,
        ),
        ("a lease elsewhere", lease("n1", "ns"), false),
        ("its own devices", slice("n1"), true),
        ("another node's devices", slice("n2"), false),
        ("deleting its own devices", delete_slice("n1"), true),
        ("deleting another node's devices", delete_slice("n2"), false),
        (
            "a mirror pod that wants devices",
            create("pods", reaching),
            false,
        ),
        (
            "claims that are as they were",
            says(made("c"), made("c")),
            true,
        ),
        ("a claim for its pod", says(on("n1"), made("c")), false),
        (
            "another claim for its pod",
            says(made("c"), made("d")),
            false,
        ),
        (
            "a claim for extended resources",
            says(
                on("n1"),
                saying(
                    "extendedResourceClaimStatus",
                    json!({"resourceClaimName": "c"}),
                ),
            ),
            false,
        ),
        ("labels of its pod", says(on("n1"), labelled), false),
    ];
    for (name, case, expected) in cases {
        let outcome = admit(&store, &by_node(case)).await;
        assert_eq!(outcome.is_ok(), expected, "{name}: {outcome:?}");
    }
}

#[tokio::test]
async fn nobody_raises_themselves() {
    let store = cluster().await;
    let rule = |verbs: &[&str], resource: &str| json!({"verbs": verbs, "apiGroups": [""], "resources": [resource]});
    let rbac = |verb: &str, resource: &str, name: &str| json!({"verbs": [verb], "apiGroups": ["rbac.authorization.k8s.io"], "resources": [resource], "resourceNames": [name]});
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let binding = |name: &str, role: &str, subject: &str| {
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": subject}]})
    };
    let held = json!([
        rule(&["get"], "pods"),
        rbac("bind", "clusterroles", "bindable"),
        rbac("escalate", "clusterroles", "free")
    ]);
    for object in [
        role("jane", held),
        role("strong", json!([rule(&["*"], "secrets")])),
        role("bindable", json!([rule(&["*"], "secrets")])),
    ] {
        put(&store, "clusterroles", &object).await;
    }
    put(
        &store,
        "clusterrolebindings",
        &binding("jane", "jane", "jane"),
    )
    .await;
    let by_jane = |case: Case| Case {
        group: "rbac.authorization.k8s.io",
        user: UserInfo::new("jane", []),
        ..case
    };
    let strong = || role("strong", json!([rule(&["*"], "secrets")]));
    let mut relabelled = strong();
    relabelled["metadata"]["labels"] = json!({"a": "b"});
    let mut sum = role("sum", json!([]));
    sum["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
    let cases = [
        (
            "a role with what she holds",
            create("clusterroles", role("r", json!([rule(&["get"], "pods")]))),
            true,
        ),
        (
            "a role with more",
            create(
                "clusterroles",
                role("r", json!([rule(&["get", "delete"], "pods")])),
            ),
            false,
        ),
        (
            "a role in a namespace with more",
            create("roles", role("r", json!([rule(&["get"], "secrets")]))),
            false,
        ),
        (
            "a role that she may escalate",
            create(
                "clusterroles",
                role("free", json!([rule(&["*"], "secrets")])),
            ),
            true,
        ),
        (
            "labels of a strong role",
            update("clusterroles", strong(), relabelled),
            true,
        ),
        ("a role that aggregates", create("clusterroles", sum), false),
        (
            "binding what she holds",
            create("clusterrolebindings", binding("b", "jane", "joe")),
            true,
        ),
        (
            "binding more",
            create("clusterrolebindings", binding("b", "strong", "jane")),
            false,
        ),
        (
            "binding more in a namespace",
            create("rolebindings", binding("b", "strong", "jane")),
            false,
        ),
        (
            "binding what she may bind",
            create("clusterrolebindings", binding("b", "bindable", "jane")),
            true,
        ),
        (
            "binding what is not there",
            create("clusterrolebindings", binding("b", "gone", "jane")),
            false,
        ),
        (
            "the same binding again",
            update(
                "clusterrolebindings",
                binding("b", "strong", "x"),
                binding("b", "strong", "x"),
            ),
            true,
        ),
        (
            "another subject for it",
            update(
                "clusterrolebindings",
                binding("b", "strong", "x"),
                binding("b", "strong", "jane"),
            ),
            false,
        ),
    ];
    for (name, case, expected) in cases {
        let outcome = admit(&store, &by_jane(case)).await;
        assert_eq!(outcome.is_ok(), expected, "{name}: {outcome:?}");
    }
    let gone = admit(
        &store,
        &by_jane(create("clusterrolebindings", binding("b", "gone", "jane"))),
    )
    .await;
    assert_eq!(gone.expect_err("no role").code, 404);
    let more = by_jane(create(
        "clusterroles",
        role("r", json!([rule(&["delete"], "pods")])),
    ));
    let text = refusal(&store, &more).await;
    assert!(text.contains("is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"), "{text}");
}

#[tokio::test]
async fn a_pods_node_decides_how_the_pod_may_change() {
    const TOO_MUCH: &str = "node didn't have enough allocatable resources: cpu, requested: 9000, allocatable: 4000; memory, requested: 9, allocatable: 8";
    let store = cluster().await;
    let node = |name: &str, os: &str, features: Value| {
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os}}, "spec": {},
            "status": {"declaredFeatures": features, "allocatable": {"cpu": "4", "memory": "8"}}})
    };
    put(&store, "nodes", &node("old", "linux", json!(["A"]))).await;
    let both = json!([
        "InPlacePodLevelResourcesVerticalScaling",
        "InPlacePodVerticalScalingInitContainers"
    ]);
    put(&store, "nodes", &node("new", "linux", both)).await;
    put(&store, "nodes", &node("win", "windows", json!([]))).await;
    let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let spec = |on: &str| {
        json!({"nodeName": on, "containers": [{"name": "c", "resources": asks("1")}],
            "initContainers": [{"name": "i", "resources": asks("1")}], "resources": asks("2")})
    };
    let change = |on: &'static str, sub: &'static str, pointer: &str, value: Value| {
        let mut new = spec(on);
        *new.pointer_mut(pointer).expect("there") = value;
        Case {
            sub,
            ..update("pods", pod(spec(on)), pod(new))
        }
    };
    let init = "/initContainers/0/resources";
    let missing = |feature: &str| {
        format!(
            "pods \"p\" is forbidden: pod update requires features {feature} which are not available on node \"old\""
        )
    };
    let cases = [
        (
            "an init container",
            change("old", "resize", init, asks("2")),
            missing("InPlacePodVerticalScalingInitContainers"),
        ),
        (
            "a Pod as a whole",
            change("old", "resize", "/resources", asks("3")),
            missing("InPlacePodLevelResourcesVerticalScaling"),
        ),
        (
            "through the main endpoint",
            change("old", "", "/resources", asks("3")),
            missing("InPlacePodLevelResourcesVerticalScaling"),
        ),
        (
            "a node that is not there",
            change("none", "resize", init, asks("2")),
            "pods \"p\" is forbidden: node \"none\" not found".to_owned(),
        ),
        (
            "more than the node has",
            change("new", "resize", "/resources", json!({"requests": {"cpu": "9", "memory": "9"}})),
            format!("pods \"p\" is forbidden: {TOO_MUCH}"),
        ),
        (
            "a node of Windows",
            change("win", "resize", "/containers/0/resources", asks("2")),
            "pods \"p\" is forbidden: pod resize is only supported on linux nodes, node \"win\" is \"windows\"".to_owned(),
        ),
    ];
    for (name, case, expected) in cases {
        assert_eq!(refusal(&store, &case).await, expected, "case: {name}");
    }
    let beyond = change("new", "resize", "/resources", asks("9"));
    let status = admit(&store, &beyond).await.expect_err("too much");
    let causes = status.details.expect("details").causes;
    assert_eq!(causes[0].reason, "NodeCapacity");
    for (name, case) in [
        ("both declared", change("new", "resize", init, asks("2"))),
        ("the Pod", change("new", "resize", "/resources", asks("3"))),
        (
            "a container needs none",
            change("old", "resize", "/containers/0/resources", asks("2")),
        ),
        ("no change", change("old", "resize", init, asks("1"))),
        ("its status", change("none", "status", init, asks("2"))),
    ] {
        let outcome = admit(&store, &case).await;
        assert!(outcome.is_ok(), "{name}: {outcome:?}");
    }
    let unbound = Case {
        sub: "resize",
        ..update(
            "pods",
            pod(json!({"resources": asks("1")})),
            pod(json!({"resources": asks("2")})),
        )
    };
    assert!(admit(&store, &unbound).await.is_ok(), "no node yet");
}
