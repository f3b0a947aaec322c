//! Webhooks of the test's own: what they are asked, what their answers do.

use std::sync::Arc;

use base64::Engine;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Answer, CONFIG_MAPS, Server, config_map, outside, pod};

const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1";

/// A webhook server: answers by path, and remembers the requests.
struct Hook {
    port: u16,
    asked: Arc<Mutex<Vec<Value>>>,
}

type Answers = fn(&str, &Value) -> Value;

async fn serve(server: &Server, names: &[&str], answers: Answers) -> Hook {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let memory = Arc::clone(&asked);
    let port = outside::serve(server, names, move |request| {
        let review: Value = serde_json::from_slice(request.body()).unwrap();
        memory.lock().push(review["request"].clone());
        let mut response = answers(request.uri().path(), &review["request"]);
        response["uid"] = review["request"]["uid"].clone();
        json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
    });
    let port = port.await;
    Hook { port, asked }
}

fn bundle(server: &Server) -> String {
    base64::engine::general_purpose::STANDARD.encode(server.pki.ca_pem())
}

fn patched(operations: &Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

/// A webhook about ConfigMaps, to be changed.
fn webhook(server: &Server, hook: &Hook, name: &str, path: &str) -> Value {
    json!({"name": format!("{name}.example.com"), "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 5,
        "clientConfig": {"url": format!("https://localhost:{}{path}", hook.port), "caBundle": bundle(server)},
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]})
}

async fn install(server: &Server, kind: &str, name: &str, webhooks: Value) {
    let plural = format!("{}s", kind.to_lowercase());
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": webhooks});
    server
        .post(&format!("{HOOKS}/{plural}"), &object)
        .await
        .ok(201);
}

async fn make(server: &Server, name: &str) -> Answer {
    server.post(CONFIG_MAPS, &config_map(name)).await
}

fn answers(path: &str, asked: &Value) -> Value {
    let set = |key: &str, value: &str| {
        patched(&json!([{"op": "add", "path": format!("/data/{key}"), "value": value}]))
    };
    match path {
        "/first" if asked["object"]["data"]["second"].is_string() => set("first", "again"),
        "/first" => set("first", "once"),
        "/second" => set("second", "here"),
        "/deny" => {
            json!({"allowed": false, "status": {"message": "not today", "code": 418, "reason": "Teapot"},
            "warnings": ["think again"], "auditAnnotations": {"why": "because"}})
        }
        "/garbage" => json!({"allowed": true, "patch": "AAAA", "patchType": "JSONPatch"}),
        _ => {
            json!({"allowed": true, "warnings": [format!("saw {}", asked["operation"].as_str().unwrap())]})
        }
    }
}

#[tokio::test]
async fn mutating_webhooks_change_objects_in_turn_and_may_be_asked_again() {
    let server = Server::with_namespace().await;
    let hook = serve(&server, &["localhost"], answers).await;
    let mut first = webhook(&server, &hook, "first", "/first");
    first["reinvocationPolicy"] = "IfNeeded".into();
    let second = webhook(&server, &hook, "second", "/second");
    let kind = "MutatingWebhookConfiguration";
    install(&server, kind, "both", json!([first, second])).await;
    let made = make(&server, "m").await.ok(201);
    assert_eq!(
        made["data"],
        json!({"k": "v", "first": "again", "second": "here"})
    );
    let asked = hook.asked.lock().clone();
    assert_eq!(asked.len(), 3);
    let request = &asked[0];
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(
        request["kind"],
        json!({"group": "", "version": "v1", "kind": "ConfigMap"})
    );
    assert_eq!(
        request["resource"],
        json!({"group": "", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(
        (&request["name"], &request["namespace"]),
        (&json!("m"), &json!("a"))
    );
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["dryRun"], false);
    assert_eq!(request["options"]["kind"], "CreateOptions");
    assert_eq!(request["oldObject"], Value::Null);
    assert_eq!(request["object"]["kind"], "ConfigMap");
}

#[tokio::test]
async fn validating_webhooks_refuse_with_their_own_words() {
    let server = Server::with_namespace().await;
    let hook = serve(&server, &["localhost"], answers).await;
    let deny = webhook(&server, &hook, "deny", "/deny");
    let warn = webhook(&server, &hook, "warn", "/warn");
    let kind = "ValidatingWebhookConfiguration";
    install(&server, kind, "deny", json!([warn, deny])).await;
    let answer = make(&server, "m").await;
    let status = answer.json();
    assert_eq!(
        (answer.code, status["message"].as_str().unwrap()),
        (
            418,
            "admission webhook \"deny.example.com\" denied the request: not today"
        )
    );
    let warnings: Vec<_> = answer.headers.get_all("warning").iter().collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    // Other resources are none of its business, nor is its own configuration.
    let configuration = format!("{HOOKS}/validatingwebhookconfigurations/deny");
    server.delete(&configuration).await.ok(200);
    make(&server, "m").await.ok(201);
}

#[tokio::test]
async fn selectors_conditions_and_policies_choose_what_is_asked() {
    let server = Server::with_namespace().await;
    let hook = serve(&server, &["localhost"], answers).await;
    let mut deny = webhook(&server, &hook, "deny", "/deny");
    deny["objectSelector"] = json!({"matchLabels": {"judge": "me"}});
    deny["namespaceSelector"] =
        json!({"matchExpressions": [{"key": "lenient", "operator": "DoesNotExist"}]});
    deny["matchConditions"] = json!([{"name": "not-skipped", "expression": "!object.metadata.name.startsWith('skip')"},
        {"name": "not-by-system", "expression": "request.userInfo.username != 'system'"},
        {"name": "asks-authorizer", "expression": "authorizer.group('').resource('pods').namespace('a').check('list').allowed()"}]);
    let kind = "ValidatingWebhookConfiguration";
    install(&server, kind, "deny", json!([deny])).await;
    let judged = |name: &str| {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"judge": "me"});
        object
    };
    make(&server, "unlabelled").await.ok(201);
    server.post(CONFIG_MAPS, &judged("skip-me")).await.ok(201);
    assert_eq!(server.post(CONFIG_MAPS, &judged("me")).await.code, 418);
    let lenient = json!({"metadata": {"labels": {"lenient": "yes"}}});
    server.merge("/api/v1/namespaces/a", &lenient).await.ok(200);
    server.post(CONFIG_MAPS, &judged("me")).await.ok(201);
}

#[tokio::test]
async fn webhooks_that_fail_are_refusals_or_nothing_as_their_policy_says() {
    let server = Server::with_namespace().await;
    let hook = serve(&server, &["localhost"], answers).await;
    let gone = {
        // A port that nobody listens on any more.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut lost = webhook(&server, &hook, "lost", "/");
    lost["clientConfig"]["url"] = format!("https://localhost:{gone}/x").into();
    lost["failurePolicy"] = "Ignore".into();
    let kind = "MutatingWebhookConfiguration";
    install(&server, kind, "lost", json!([lost.clone()])).await;
    make(&server, "ignored").await.ok(201);
    lost["failurePolicy"] = "Fail".into();
    install(&server, kind, "lost-too", json!([lost])).await;
    let (code, reason, message) = make(&server, "failed").await.failure();
    assert_eq!((code, reason.as_str()), (500, "InternalError"));
    let head = format!(
        "Internal error occurred: failed calling webhook \"lost.example.com\": failed to call webhook: Post \"https://localhost:{gone}/x?timeout=5s\": dial tcp"
    );
    assert!(message.starts_with(&head), "{message}");
    server
        .delete(&format!("{HOOKS}/mutatingwebhookconfigurations/lost-too"))
        .await
        .ok(200);
    let garbage = webhook(&server, &hook, "garbage", "/garbage");
    install(&server, kind, "garbage", json!([garbage])).await;
    let (code, _, message) = make(&server, "failed").await.failure();
    assert!(
        code == 500 && message.contains("received invalid webhook response"),
        "{message}"
    );
}

#[tokio::test]
async fn services_are_followed_and_objects_shown_in_the_version_asked_for() {
    let server = Server::with_namespace().await;
    let hook = serve(&server, &["hook.a.svc"], answers).await;
    let service = json!({"metadata": {"name": "hook"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    server
        .post("/api/v1/namespaces/a/services", &service)
        .await
        .ok(201);
    let mut warn = webhook(&server, &hook, "warn", "/warn");
    warn["clientConfig"] = json!({"service": {"namespace": "a", "name": "hook", "path": "/warn", "port": hook.port}, "caBundle": bundle(&server)});
    warn["rules"] = json!([{"operations": ["CREATE", "DELETE"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"],
        "resources": ["horizontalpodautoscalers"]}]);
    let kind = "ValidatingWebhookConfiguration";
    install(&server, kind, "warn", json!([warn])).await;
    let scalers = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers";
    let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let made = server.post(scalers, &scaler).await;
    assert_eq!(made.code, 201, "{}", made.text());
    assert_eq!(made.headers["warning"], "299 - \"saw CREATE\"");
    let deleted = server.delete(&format!("{scalers}/h")).await;
    assert_eq!(deleted.headers["warning"], "299 - \"saw DELETE\"");
    let asked = hook.asked.lock().clone();
    assert_eq!(asked[0]["kind"]["version"], "v1");
    assert_eq!(asked[0]["requestKind"]["version"], "v2");
    assert_eq!(asked[0]["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(asked[1]["object"], Value::Null);
    assert_eq!(asked[1]["oldObject"]["apiVersion"], "autoscaling/v1");
}

#[tokio::test]
async fn pods_that_webhooks_change_get_defaults_for_what_was_added() {
    let server = Server::with_namespace().await;
    let hook = serve(&server, &["localhost"], |_, _| {
        patched(&json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "i"}]}]))
    })
    .await;
    let mut add = webhook(&server, &hook, "add", "/");
    add["rules"][0]["resources"] = json!(["pods"]);
    add["rules"][0]["operations"] = json!(["CREATE"]);
    let kind = "MutatingWebhookConfiguration";
    install(&server, kind, "add", json!([add])).await;
    let made = server
        .post("/api/v1/namespaces/a/pods", &pod("p"))
        .await
        .ok(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(added["terminationMessagePolicy"], "File");
}
