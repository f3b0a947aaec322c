//! Aggregated API servers: a server of the test's own behind an APIService.

use base64::Engine;
use serde_json::{Value, json};

use super::Server;
use super::outside::{self, Asked};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Answers discovery, and everything else with what it was asked and by whom. Answers its port.
async fn extension(server: &Server) -> u16 {
    outside::serve(server, &["ext.a.svc"], answer).await
}

fn answer(request: &Asked) -> Value {
    let text = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    if request.uri().path() == "/apis/ext.example.org/v1" {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ext.example.org/v1", "resources": [
            {"name": "echoes", "singularName": "echo", "namespaced": true, "kind": "Echo", "verbs": ["get", "list"]}]})
    } else {
        json!({"kind": "Echo", "path": request.uri().to_string(), "user": text("x-remote-user"), "authorization": text("authorization")})
    }
}

/// Waits until an APIService's condition has this reason.
async fn available(server: &Server, name: &str, reason: &str) -> Value {
    let path = format!("{SERVICES}?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut events = server.watch(&path).await;
    while let Some(event) = events.next().await {
        let service = &event["object"];
        if service["status"]["conditions"][0]["reason"] == reason {
            return service.clone();
        }
    }
    panic!("the watch ended before {name} was {reason}");
}

#[tokio::test]
async fn what_this_server_serves_has_local_api_services() {
    let server = Server::with_namespace().await;
    for name in ["v1.", "v1.apps", "v2.autoscaling"] {
        let service = available(&server, name, "Local").await;
        assert_eq!(service["status"]["conditions"][0]["status"], "True");
    }
}

#[tokio::test]
async fn requests_go_to_the_server_behind_an_api_service() {
    let server = Server::with_namespace().await;
    let port = extension(&server).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    server
        .post("/api/v1/namespaces/a/services", &service)
        .await
        .ok(201);
    let bundle = base64::engine::general_purpose::STANDARD.encode(server.pki.ca_pem());
    let registered = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.ext.example.org"},
        "spec": {"group": "ext.example.org", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10, "caBundle": bundle,
            "service": {"namespace": "a", "name": "ext", "port": port}}});
    server.post(SERVICES, &registered).await.ok(201);
    available(&server, "v1.ext.example.org", "Passed").await;
    let echo = server
        .get("/apis/ext.example.org/v1/namespaces/a/echoes/x?limit=3")
        .await
        .ok(200);
    assert_eq!(
        (&echo["path"], &echo["user"], &echo["authorization"]),
        (
            &json!("/apis/ext.example.org/v1/namespaces/a/echoes/x?limit=3"),
            &json!("admin"),
            &Value::Null
        )
    );
    let groups = server.get("/apis").await.ok(200);
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|group| group["name"] == "ext.example.org")
    );
    server
        .delete("/api/v1/namespaces/a/services/ext")
        .await
        .ok(200);
    available(&server, "v1.ext.example.org", "ServiceNotFound").await;
    assert_eq!(
        server
            .get("/apis/ext.example.org/v1/namespaces/a/echoes/x")
            .await
            .code,
        503
    );
}
