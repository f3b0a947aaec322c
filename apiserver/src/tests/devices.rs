//! Claims of devices: what their status takes, and from whom.

use super::*;

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/a/resourceclaims";

fn claim(name: &str, admin: bool) -> Value {
    let mut exactly = json!({"deviceClassName": "c"});
    if admin {
        exactly["adminAccess"] = json!(true);
    }
    json!({"metadata": {"name": name, "finalizers": ["resource.kubernetes.io/delete-protection"]},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}},
        "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}})
}

fn allocation(node: &str) -> Value {
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    json!({"devices": {"results": [{"request": "r", "driver": "d.example", "pool": "p", "device": "x"}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}})
}

fn told(data: i32) -> Value {
    json!([{"driver": "d.example", "pool": "p", "device": "x", "data": {"v": data}}])
}

/// A role bound to a user in the whole cluster.
async fn grant(server: &Server, name: &str, user: &UserInfo, rules: Value) {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": name}, "rules": rules});
    server
        .post(&format!("{RBAC}/clusterroles"), &role)
        .await
        .ok(201);
    let binding = json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user.name}]});
    server
        .post(&format!("{RBAC}/clusterrolebindings"), &binding)
        .await
        .ok(201);
}

fn rule(resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": ["resource.k8s.io"], "resources": [resource], "verbs": verbs})
}

/// A merge patch of the status by somebody.
async fn says(server: &Server, user: &UserInfo, status: Value) -> Answer {
    let patch = json!({ "status": status });
    let request = Request::patch(format!("{CLAIMS}/one/status"))
        .header("content-type", "application/merge-patch+json")
        .body(Full::new(Bytes::from(patch.to_string())))
        .unwrap();
    let response = server.server.service(user.clone()).call(request).await;
    let (parts, body) = response.unwrap().into_parts();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

#[tokio::test]
async fn a_claim_is_allocated_told_of_and_given_back() {
    let server = Server::with_namespace().await;
    let made = server.post(CLAIMS, &claim("one", false)).await.ok(201);
    assert_eq!(made["status"], json!({}), "a new claim is nobody's");
    let path = format!("{CLAIMS}/one/status");
    let user = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
    let status = json!({"allocation": allocation("n1"), "reservedFor": user, "devices": told(1)});
    let stored = server
        .merge(&path, &json!({ "status": status }))
        .await
        .ok(200);
    assert_eq!(stored["status"], status);

    // Other main fields stay, and status is not the main endpoint's.
    let patch = json!({"metadata": {"labels": {"a": "b"}, "finalizers": []}, "status": {"devices": told(2)}});
    let stored = server.merge(&path, &patch).await.ok(200);
    assert_eq!(stored["metadata"]["labels"], Value::Null);
    assert_eq!(
        stored["metadata"]["finalizers"],
        made["metadata"]["finalizers"]
    );
    assert_eq!(stored["status"]["devices"], told(2));
    let patch = json!({"metadata": {"labels": {"a": "b"}}, "status": {"allocation": null}});
    let stored = server.merge(&format!("{CLAIMS}/one"), &patch).await.ok(200);
    assert_eq!(stored["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!(stored["status"]["allocation"], allocation("n1"));
    let patch = json!({"spec": {"devices": {"requests": null}}});
    let (code, _, message) = server
        .merge(&format!("{CLAIMS}/one"), &patch)
        .await
        .failure();
    assert!(
        code == 422 && message.contains("spec: Invalid value") && message.contains("immutable"),
        "{message}"
    );

    // In use it is not given back; with the last user it is, and with it what its driver told.
    let (code, _, message) = server
        .merge(&path, &json!({"status": {"allocation": null}}))
        .await
        .failure();
    assert!(
        code == 422 && message.contains("status.reservedFor: Forbidden"),
        "{message}"
    );
    let patch = json!({"status": {"allocation": null, "reservedFor": null}});
    let stored = server.merge(&path, &patch).await.ok(200);
    assert_eq!(stored["status"], json!({}));
}

#[tokio::test]
async fn parts_of_the_status_have_permissions_of_their_own() {
    let server = Server::with_namespace().await;
    server.post(CLAIMS, &claim("one", false)).await.ok(201);
    let bound = |node: &str| {
        let mut user = UserInfo::service_account("kube-system", "driver", "");
        user.extra.insert(
            "authentication.kubernetes.io/node-name".to_owned(),
            vec![node.to_owned()],
        );
        user
    };
    let driver = bound("n1");
    let writes = rule("resourceclaims/status", &["patch", "update"]);
    grant(&server, "status", &driver, json!([writes])).await;
    let status = json!({"allocation": allocation("n1")});
    let (code, reason, message) = says(&server, &driver, status.clone()).await.failure();
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(
        message.contains(r#"status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", verb="patch" permission"#)
            && message.contains(r#"User "system:serviceaccount:kube-system:driver" cannot patch resource "resourceclaims/binding" in API group "resource.k8s.io" at the cluster scope"#),
        "{message}"
    );
    let binds = rule("resourceclaims/binding", &["patch"]);
    grant(&server, "binding", &driver, json!([binds])).await;
    says(&server, &driver, status).await.ok(200);

    // It tells nothing of its devices before it may, and then from the claim's node only.
    let (_, _, message) = says(&server, &driver, json!({"devices": told(1)}))
        .await
        .failure();
    assert!(
        message.contains(r#"status.devices: Forbidden: changing status.devices requires resource="resourceclaims/driver", verb="[associated-node:patch arbitrary-node:patch]" permission"#)
            && message.contains("cannot associated-node:patch"),
        "{message}"
    );
    let mut tells = rule("resourceclaims/driver", &["associated-node:patch"]);
    tells["resourceNames"] = json!(["d.example"]);
    grant(&server, "near", &driver, json!([tells])).await;
    says(&server, &driver, json!({"devices": told(1)}))
        .await
        .ok(200);
    let (code, _, message) = says(&server, &bound("n2"), json!({"devices": told(2)}))
        .await
        .failure();
    assert!(
        code == 422 && message.contains("cannot arbitrary-node:patch"),
        "{message}"
    );
    // What stays as it is needs no permission, and others' drivers are not this one's.
    says(&server, &bound("n2"), json!({"devices": told(1)}))
        .await
        .ok(200);
    let mut everywhere = rule("resourceclaims/driver", &["arbitrary-node:patch"]);
    everywhere["resourceNames"] = json!(["other.example"]);
    grant(&server, "other", &driver, json!([everywhere])).await;
    says(&server, &bound("n2"), json!({"devices": told(2)}))
        .await
        .failure();
    let everywhere = rule("resourceclaims/driver", &["arbitrary-node:patch"]);
    grant(&server, "far", &driver, json!([everywhere])).await;
    says(&server, &bound("n2"), json!({"devices": told(2)}))
        .await
        .ok(200);
}

#[tokio::test]
async fn administrators_have_access_in_labelled_namespaces() {
    const WHY: &str = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";
    let server = Server::with_namespace().await;
    let (code, _, message) = server.post(CLAIMS, &claim("one", true)).await.failure();
    assert_eq!(code, 422);
    assert!(
        message.contains(&format!(
            "spec.devices.requests[0].adminAccess: Forbidden: {WHY}"
        )),
        "{message}"
    );
    let templates = CLAIMS.replace("resourceclaims", "resourceclaimtemplates");
    let template = json!({"metadata": {"name": "t"}, "spec": {"spec": claim("x", true)["spec"]}});
    let (_, _, message) = server.post(&templates, &template).await.failure();
    assert!(message.contains(WHY), "{message}");

    // What the scheduler writes is looked at too, once.
    server.post(CLAIMS, &claim("one", false)).await.ok(201);
    let mut granted = allocation("n1");
    granted["devices"]["results"][0]["adminAccess"] = json!(true);
    let patch = json!({"status": {"allocation": granted}});
    let status = format!("{CLAIMS}/one/status");
    let (_, _, message) = server.merge(&status, &patch).await.failure();
    assert!(
        message.contains(&format!(
            "status.allocation.devices.results[0].adminAccess: Forbidden: {WHY}"
        )),
        "{message}"
    );
    let label = |value: Value| json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": value}}});
    let namespace = "/api/v1/namespaces/a";
    server
        .merge(namespace, &label(json!("false")))
        .await
        .ok(200);
    server.merge(&status, &patch).await.failure();
    server.merge(namespace, &label(json!("true"))).await.ok(200);
    server.merge(&status, &patch).await.ok(200);
    server.post(CLAIMS, &claim("two", true)).await.ok(201);
    server.post(&templates, &template).await.ok(201);
    server.merge(namespace, &label(Value::Null)).await.ok(200);
    let user = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
    let patch = json!({"status": {"reservedFor": user}});
    server.merge(&status, &patch).await.ok(200);
}
