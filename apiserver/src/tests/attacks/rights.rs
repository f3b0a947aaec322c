//! More than one may: through roles, bindings, impersonation, ephemeral containers, a node's credentials, tokens of other Pods.

use super::*;
use crate::auth::NODES;

/// Who, how, where, what, the answer; and a sentence about it.
type Case<'a> = (&'a str, &'a str, &'a str, String, Value, u16);

async fn check(server: &Server, cases: &[Case<'_>]) {
    for (case, who, method, path, body, code) in cases {
        let groups: &[&str] = if who.starts_with("system:node:") {
            &[NODES]
        } else {
            &[]
        };
        let mut client = Client::user(server, who, groups).await;
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = client.ask(method, path, body).await;
        assert_eq!(answer.code, *code, "{who}, {case}: {}", answer.text());
    }
}

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

#[tokio::test]
async fn roles_and_bindings_give_nobody_more_than_their_writer_has() {
    let server = Server::with_namespace().await;
    let group = "rbac.authorization.k8s.io";
    let write = &["create", "update", "patch", "get"];
    let rules = json!([
        rule(write, group, &["roles", "rolebindings"]),
        rule(&["get"], "", &["pods"])
    ]);
    grant(&server, "author", rules).await;
    let (roles, bindings) = (
        format!("{RBAC}/namespaces/a/roles"),
        format!("{RBAC}/namespaces/a/rolebindings"),
    );
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let binding = |name: &str, kind: &str, to: &str| {
        json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": "author", "apiGroup": group}],
            "roleRef": {"apiGroup": group, "kind": kind, "name": to}})
    };
    server.post(&roles, &role("empty", json!([]))).await.ok(201);
    let secrets = json!([rule(&["get"], "", &["secrets"])]);
    server
        .post(&roles, &role("secret", secrets.clone()))
        .await
        .ok(201);
    let all = json!([rule(&["*"], "*", &["*"])]);
    let cluster_bindings = format!("{RBAC}/clusterrolebindings");
    let cluster_roles = format!("{RBAC}/clusterroles");
    let cases: Vec<Case<'_>> = vec![
        (
            "a role of what one has",
            "author",
            "POST",
            roles.clone(),
            role("own", json!([rule(&["get"], "", &["pods"])])),
            201,
        ),
        (
            "a role with more",
            "author",
            "POST",
            roles.clone(),
            role("more", secrets.clone()),
            403,
        ),
        (
            "a role with everything",
            "author",
            "POST",
            roles.clone(),
            role("all", all.clone()),
            403,
        ),
        (
            "the verb escalate",
            "author",
            "POST",
            roles.clone(),
            role("e", json!([rule(&["escalate"], group, &["roles"])])),
            403,
        ),
        (
            "a subresource that a star means",
            "author",
            "POST",
            roles.clone(),
            role("s", json!([rule(&["get"], "", &["pods/*"])])),
            403,
        ),
        (
            "the same by an update",
            "author",
            "PUT",
            format!("{roles}/empty"),
            role("empty", secrets.clone()),
            403,
        ),
        (
            "the same by a patch",
            "author",
            "PATCH",
            format!("{roles}/empty"),
            json!({"rules": secrets}),
            403,
        ),
        (
            "its own role",
            "author",
            "PATCH",
            format!("{roles}/author"),
            json!({"rules": all}),
            403,
        ),
        (
            "a binding to an empty role",
            "author",
            "POST",
            bindings.clone(),
            binding("b0", "Role", "empty"),
            201,
        ),
        (
            "a binding to a role with more",
            "author",
            "POST",
            bindings.clone(),
            binding("b1", "Role", "secret"),
            403,
        ),
        (
            "a binding to cluster-admin",
            "author",
            "POST",
            bindings.clone(),
            binding("b2", "ClusterRole", "cluster-admin"),
            403,
        ),
        (
            "a binding to a role that does not exist",
            "author",
            "POST",
            bindings.clone(),
            binding("b3", "Role", "later"),
            404,
        ),
        (
            "another role under a binding",
            "author",
            "PATCH",
            format!("{bindings}/b0"),
            json!({"roleRef": {"name": "secret"}}),
            422,
        ),
        (
            "a role of the whole cluster",
            "author",
            "POST",
            cluster_roles.clone(),
            role("c", json!([])),
            403,
        ),
        (
            "a binding in the whole cluster",
            "author",
            "POST",
            cluster_bindings,
            binding("b", "ClusterRole", "view"),
            403,
        ),
        (
            "secrets, after all that",
            "author",
            "GET",
            SECRETS.to_owned(),
            Value::Null,
            403,
        ),
    ];
    check(&server, &cases).await;
    // Aggregation: whoever writes cluster roles cannot slip rules into `admin` by a label.
    let writer =
        json!({"metadata": {"name": "writer"}, "rules": [rule(write, group, &["clusterroles"])]});
    server.post(&cluster_roles, &writer).await.ok(201);
    let bind = json!({"metadata": {"name": "writer"}, "subjects": [{"kind": "User", "name": "writer", "apiGroup": group}],
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "writer"}});
    server
        .post(&format!("{RBAC}/clusterrolebindings"), &bind)
        .await
        .ok(201);
    let labelled = json!({"metadata": {"name": "slip", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [rule(&["get"], "", &["secrets"])]});
    let collector = json!({"metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {}}]}});
    let cases: Vec<Case<'_>> = vec![
        (
            "a role that is aggregated",
            "writer",
            "POST",
            cluster_roles.clone(),
            labelled,
            403,
        ),
        (
            "a role that aggregates everything",
            "writer",
            "POST",
            cluster_roles,
            collector,
            403,
        ),
    ];
    check(&server, &cases).await;
}

#[tokio::test]
async fn impersonation_is_a_right_for_each_name() {
    let server = Server::with_namespace().await;
    let rules = json!({"metadata": {"name": "actor"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"]}]});
    server
        .post(&format!("{RBAC}/clusterroles"), &rules)
        .await
        .ok(201);
    let bind = json!({"metadata": {"name": "actor"}, "subjects": [{"kind": "User", "name": "actor", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "actor"}});
    server
        .post(&format!("{RBAC}/clusterrolebindings"), &bind)
        .await
        .ok(201);
    let mut actor = Client::user(&server, "actor", &[]).await;
    let cases: &[(&str, &[(&str, &str)], u16)] = &[
        (
            "whom it may",
            &[("impersonate-user", "jane"), ("impersonate-group", "dev")],
            200,
        ),
        (
            "an administrator",
            &[("impersonate-user", "kubernetes-admin")],
            403,
        ),
        (
            "the group of administrators",
            &[
                ("impersonate-user", "jane"),
                ("impersonate-group", "system:masters"),
            ],
            403,
        ),
        (
            "one good group and a bad one",
            &[
                ("impersonate-user", "jane"),
                ("impersonate-group", "dev"),
                ("impersonate-group", "system:masters"),
            ],
            403,
        ),
        (
            "a node",
            &[
                ("impersonate-user", "system:node:n1"),
                ("impersonate-group", "system:nodes"),
            ],
            403,
        ),
        (
            "a service account",
            &[(
                "impersonate-user",
                "system:serviceaccount:kube-system:default",
            )],
            403,
        ),
        (
            "a uid",
            &[("impersonate-user", "jane"), ("impersonate-uid", "0")],
            403,
        ),
        (
            "extra",
            &[
                ("impersonate-user", "jane"),
                (
                    "impersonate-extra-authentication.kubernetes.io%2fpod-name",
                    "p",
                ),
            ],
            403,
        ),
        ("a group alone", &[("impersonate-group", "dev")], 400),
        ("an empty name", &[("impersonate-user", "")], 200),
    ];
    for (case, headers, code) in cases {
        let answer = actor.ask_with("GET", "/apis", headers, "").await;
        assert_eq!(answer.code, *code, "{case}: {}", answer.text());
    }
    let two = [
        ("impersonate-user", "jane"),
        ("impersonate-user", "kubernetes-admin"),
    ];
    let answer = actor.ask_with("GET", SECRETS, &two, "").await;
    assert!(
        matches!(answer.code, 400 | 403),
        "two names: {}",
        answer.code
    );
}

#[tokio::test]
async fn pods_are_no_way_around_their_rules() {
    let server = Server::with_namespace().await;
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    server.merge("/api/v1/namespaces/a", &label).await.ok(200);
    server.post(PODS, &pod("p")).await.ok(201);
    let plain = json!([rule(&["get", "create", "update", "patch"], "", &["pods"])]);
    grant(&server, "editor", plain).await;
    let more = json!([
        rule(&["get", "create", "update", "patch"], "", &["pods"]),
        rule(&["update", "patch"], "", &["pods/ephemeralcontainers"])
    ]);
    grant(&server, "debugger", more).await;
    let debug = |context: Value| json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i", "securityContext": context}]}});
    let ephemeral = format!("{PODS}/p/ephemeralcontainers");
    let mut privileged = pod("q");
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let mut host = pod("q");
    host["spec"]["volumes"] = json!([{"name": "h", "hostPath": {"path": "/"}}]);
    let mut placed = pod("q");
    placed["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i"}]);
    let cases: Vec<Case<'_>> = vec![
        (
            "an ephemeral container without the right",
            "editor",
            "PATCH",
            ephemeral.clone(),
            debug(json!({})),
            403,
        ),
        (
            "an ephemeral container by the pod itself",
            "editor",
            "PATCH",
            format!("{PODS}/p"),
            debug(json!({})),
            422,
        ),
        (
            "an ephemeral container from the first",
            "editor",
            "POST",
            PODS.to_owned(),
            placed,
            422,
        ),
        (
            "a privileged ephemeral container",
            "debugger",
            "PATCH",
            ephemeral.clone(),
            debug(json!({"privileged": true})),
            403,
        ),
        (
            "another container through that door, which is not looked at",
            "debugger",
            "PATCH",
            ephemeral.clone(),
            json!({"spec": {"containers": [{"name": "c", "image": "other"}]}}),
            200,
        ),
        (
            "a plain ephemeral container",
            "debugger",
            "PATCH",
            ephemeral,
            debug(json!({})),
            200,
        ),
        (
            "a privileged pod",
            "editor",
            "POST",
            PODS.to_owned(),
            privileged,
            403,
        ),
        (
            "the node's disk",
            "editor",
            "POST",
            PODS.to_owned(),
            host,
            403,
        ),
        (
            "a command in a pod that may only be read",
            "editor",
            "GET",
            format!("{PODS}/p/exec?command=sh"),
            Value::Null,
            403,
        ),
        (
            "the pod's status",
            "editor",
            "PATCH",
            format!("{PODS}/p/status"),
            json!({"status": {"podIP": "1.2.3.4"}}),
            403,
        ),
        (
            "a binding",
            "editor",
            "POST",
            format!("{PODS}/p/binding"),
            json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
            403,
        ),
        (
            "a token of the pod's account",
            "editor",
            "POST",
            "/api/v1/namespaces/a/serviceaccounts/default/token".to_owned(),
            json!({"spec": {}}),
            403,
        ),
        (
            "less watched over",
            "editor",
            "PATCH",
            "/api/v1/namespaces/a".to_owned(),
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
            403,
        ),
    ];
    check(&server, &cases).await;
    let left = server.get(&format!("{PODS}/p")).await.ok(200);
    assert_eq!(left["spec"]["containers"][0]["image"], "i");
}

#[tokio::test]
async fn a_node_has_no_hold_over_others() {
    let server = Server::with_namespace().await;
    let mut uids = Vec::new();
    for node in ["n1", "n2"] {
        let object = json!({"metadata": {"name": node}});
        server.post("/api/v1/nodes", &object).await.ok(201);
        let mut placed = pod(&format!("on-{node}"));
        placed["spec"]["nodeName"] = node.into();
        placed["spec"]["containers"][0]["envFrom"] =
            json!([{"secretRef": {"name": format!("of-{node}")}}]);
        let made = server.post(PODS, &placed).await.ok(201);
        uids.push(made["metadata"]["uid"].clone());
        let secret = json!({"metadata": {"name": format!("of-{node}")}});
        server.post(SECRETS, &secret).await.ok(201);
    }
    let token = |name: &str, uid: &Value| json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}}});
    let tokens = "/api/v1/namespaces/a/serviceaccounts/default/token".to_owned();
    let mut mirror = pod("mirror");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["spec"]["nodeName"] = "n1".into();
    let mut reading = mirror.clone();
    reading["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "of-n2"}}]);
    let mut elsewhere = mirror.clone();
    elsewhere["spec"]["nodeName"] = "n2".into();
    let node = "system:node:n1";
    let cases: Vec<Case<'_>> = vec![
        (
            "a secret of its own Pod",
            node,
            "GET",
            format!("{SECRETS}/of-n1"),
            Value::Null,
            200,
        ),
        (
            "a secret of another node's Pod",
            node,
            "GET",
            format!("{SECRETS}/of-n2"),
            Value::Null,
            403,
        ),
        (
            "all secrets",
            node,
            "GET",
            SECRETS.to_owned(),
            Value::Null,
            403,
        ),
        (
            "all secrets, watching",
            node,
            "GET",
            format!("{SECRETS}?watch=true&timeoutSeconds=1"),
            Value::Null,
            403,
        ),
        (
            "all secrets but one",
            node,
            "GET",
            format!("{SECRETS}?fieldSelector=metadata.name!%3Dof-n1"),
            Value::Null,
            403,
        ),
        (
            "another's by a selector",
            node,
            "GET",
            format!("{SECRETS}?fieldSelector=metadata.name%3Dof-n2"),
            Value::Null,
            403,
        ),
        (
            "a token for its own Pod",
            node,
            "POST",
            tokens.clone(),
            token("on-n1", &uids[0]),
            201,
        ),
        (
            "a token for another's Pod",
            node,
            "POST",
            tokens.clone(),
            token("on-n2", &uids[1]),
            403,
        ),
        (
            "a token for no Pod",
            node,
            "POST",
            tokens.clone(),
            json!({"spec": {}}),
            403,
        ),
        (
            "a token with a uid that is made up",
            node,
            "POST",
            tokens,
            token("on-n1", &json!("made-up")),
            403,
        ),
        (
            "a Pod of its own making",
            node,
            "POST",
            PODS.to_owned(),
            pod("x"),
            403,
        ),
        (
            "a mirror Pod that reads a secret",
            node,
            "POST",
            PODS.to_owned(),
            reading,
            403,
        ),
        (
            "a mirror Pod on another node",
            node,
            "POST",
            PODS.to_owned(),
            elsewhere,
            403,
        ),
        (
            "another's Pod, deleted",
            node,
            "DELETE",
            format!("{PODS}/on-n2"),
            json!({}),
            403,
        ),
        (
            "another's Pod, its status",
            node,
            "PATCH",
            format!("{PODS}/on-n2/status"),
            json!({"status": {"phase": "Failed"}}),
            403,
        ),
        (
            "another node, its status",
            node,
            "PATCH",
            "/api/v1/nodes/n2/status".to_owned(),
            json!({"status": {}}),
            403,
        ),
        (
            "a label that draws Pods",
            node,
            "PATCH",
            "/api/v1/nodes/n1".to_owned(),
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}}),
            403,
        ),
        (
            "another node's lease",
            node,
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".to_owned(),
            json!({"metadata": {"name": "n2"}, "spec": {}}),
            403,
        ),
        (
            "a role",
            node,
            "POST",
            format!("{RBAC}/clusterrolebindings"),
            json!({"metadata": {"name": "x"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}}),
            403,
        ),
        (
            "a command in its own Pod through the server",
            node,
            "GET",
            format!("{PODS}/on-n1/exec?command=sh"),
            Value::Null,
            403,
        ),
    ];
    check(&server, &cases).await;
    // A name of a node without its group is nobody.
    let mut pretender = Client::user(&server, "system:node:n1", &[]).await;
    assert_eq!(
        pretender
            .ask("GET", &format!("{SECRETS}/of-n1"), "")
            .await
            .code,
        403
    );
    // And the group without a name.
    let mut nameless = Client::user(&server, "mallory", &[NODES]).await;
    assert_eq!(
        nameless
            .ask("GET", &format!("{SECRETS}/of-n1"), "")
            .await
            .code,
        403
    );
}

#[tokio::test]
async fn certificates_are_not_had_by_asking() {
    let server = Server::with_namespace().await;
    let csr = |name: &str, signer: &str, subject: (&str, &str)| {
        use base64::Engine as _;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, subject.0);
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, subject.1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        json!({"metadata": {"name": name}, "spec": {"signerName": signer, "usages": ["client auth"],
            "request": base64::engine::general_purpose::STANDARD.encode(pem)}})
    };
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let role = json!({"metadata": {"name": "asker"}, "rules": [
        rule(&["create", "get"], "certificates.k8s.io", &["certificatesigningrequests"]),
        rule(&["update", "patch"], "certificates.k8s.io", &["certificatesigningrequests/approval", "certificatesigningrequests/status"])]});
    server
        .post(&format!("{RBAC}/clusterroles"), &role)
        .await
        .ok(201);
    let bind = json!({"metadata": {"name": "asker"}, "subjects": [{"kind": "User", "name": "asker", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "asker"}});
    server
        .post(&format!("{RBAC}/clusterrolebindings"), &bind)
        .await
        .ok(201);
    let client = "kubernetes.io/kube-apiserver-client";
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}});
    let mut as_another = csr("other", client, ("asker", "x"));
    as_another["spec"]["username"] = "kubernetes-admin".into();
    as_another["spec"]["groups"] = json!(["system:masters"]);
    let cases: Vec<Case<'_>> = vec![
        (
            "a certificate of an administrator",
            "asker",
            "POST",
            requests.to_owned(),
            csr("m", client, ("x", "system:masters")),
            403,
        ),
        (
            "a plain one",
            "asker",
            "POST",
            requests.to_owned(),
            csr("p", client, ("asker", "x")),
            201,
        ),
        (
            "one in another's name",
            "asker",
            "POST",
            requests.to_owned(),
            as_another,
            201,
        ),
        (
            "its own approval",
            "asker",
            "PATCH",
            format!("{requests}/p/approval"),
            approve,
            403,
        ),
        (
            "a certificate written in",
            "asker",
            "PATCH",
            format!("{requests}/p/status"),
            json!({"status": {"certificate": "eA=="}}),
            403,
        ),
    ];
    check(&server, &cases).await;
    let other = server.get(&format!("{requests}/other")).await.ok(200);
    assert_eq!(
        other["spec"]["username"], "asker",
        "who asks is not for them to say"
    );
}
