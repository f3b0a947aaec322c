//! Admission as clients meet it: limits, quotas, storage, certificates, Pod security.

use base64::Engine;
use futures::future::join_all;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tower_service::Service;

use super::{CONFIG_MAPS, Server, config_map, pod};
use crate::auth::UserInfo;

const PODS: &str = "/api/v1/namespaces/a/pods";
const QUOTAS: &str = "/api/v1/namespaces/a/resourcequotas";

/// A quota whose status says what a controller would have found in an empty namespace.
async fn quota(server: &Server, name: &str, hard: Value, spec: Value) {
    let mut object = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec});
    object["spec"]["hard"] = hard.clone();
    let mut made = server.post(QUOTAS, &object).await.ok(201);
    let used = hard.as_object().unwrap().keys();
    let used: serde_json::Map<_, _> = used.map(|name| (name.clone(), json!("0"))).collect();
    made["status"] = json!({"hard": hard, "used": used});
    let path = format!("{QUOTAS}/{name}/status");
    server.put(&path, &made).await.ok(200);
}

async fn used(server: &Server, name: &str) -> Value {
    let found = server.get(&format!("{QUOTAS}/{name}")).await.ok(200);
    found["status"]["used"].clone()
}

#[tokio::test]
async fn no_number_of_creators_gets_past_a_quota() {
    let server = Server::with_namespace().await;
    let hard = json!({"count/configmaps": "10"});
    quota(&server, "few", hard, json!({})).await;
    let names: Vec<String> = (0..64).map(|at| format!("m{at}")).collect();
    let created = names.iter().map(|name| {
        let server = &server;
        async move { server.post(CONFIG_MAPS, &config_map(name)).await }
    });
    let answers = join_all(created).await;
    let refused: Vec<_> = answers.iter().filter(|one| one.code != 201).collect();
    assert_eq!(answers.len() - refused.len(), 10);
    for answer in refused {
        let (code, reason, message) = answer.failure();
        assert_eq!((code, reason.as_str()), (403, "Forbidden"));
        assert!(
            message.ends_with("is forbidden: exceeded quota: few, requested: count/configmaps=1, used: count/configmaps=10, limited: count/configmaps=10"),
            "{message}"
        );
    }
    assert_eq!(
        used(&server, "few").await,
        json!({"count/configmaps": "10"})
    );
    let listed = server.get(CONFIG_MAPS).await.ok(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn quotas_count_what_pods_ask_for_and_choose_by_scope() {
    let server = Server::with_namespace().await;
    let hard = json!({"pods": "5", "requests.cpu": "1"});
    quota(&server, "all", hard, json!({})).await;
    let scoped = json!({"scopes": ["BestEffort"]});
    quota(&server, "poor", json!({"pods": "1"}), scoped).await;
    let asking = |name: &str, cpu: &str| {
        let mut pod = pod(name);
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
        pod
    };
    let (_, _, message) = server.post(PODS, &pod("silent")).await.failure();
    assert_eq!(
        message,
        "pods \"silent\" is forbidden: failed quota: all: must specify requests.cpu for: c"
    );
    server.post(PODS, &asking("one", "600m")).await.ok(201);
    assert_eq!(
        used(&server, "all").await,
        json!({"pods": "1", "requests.cpu": "600m"})
    );
    let (_, _, message) = server.post(PODS, &asking("two", "500m")).await.failure();
    assert_eq!(
        message,
        "pods \"two\" is forbidden: exceeded quota: all, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    // Only tried: nothing is charged.
    let dry = format!("{PODS}?dryRun=All");
    server.post(&dry, &asking("two", "400m")).await.ok(201);
    assert_eq!(
        used(&server, "all").await,
        json!({"pods": "1", "requests.cpu": "600m"})
    );
    assert_eq!(used(&server, "poor").await, json!({"pods": "0"}));
    // A name that is taken costs nothing.
    let taken = server.post(PODS, &asking("one", "100m")).await;
    assert_eq!(taken.code, 409);
    assert_eq!(
        used(&server, "all").await,
        json!({"pods": "1", "requests.cpu": "600m"})
    );
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let server = Server::with_namespace().await;
    let range = json!({"metadata": {"name": "limits"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}, "min": {"cpu": "50m"},
            "maxLimitRequestRatio": {"cpu": "10"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}}]}});
    server
        .post("/api/v1/namespaces/a/limitranges", &range)
        .await
        .ok(201);
    let made = server.post(PODS, &pod("plain")).await.ok(201);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}})
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let with = |requests: &str, limits: &str| {
        let mut pod = pod("p");
        pod["spec"]["containers"][0]["resources"] =
            json!({"requests": {"cpu": requests}, "limits": {"cpu": limits}});
        pod
    };
    for (requests, limits, why) in [
        (
            "1",
            "2",
            "maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            "10m",
            "90m",
            "minimum cpu usage per Container is 50m, but request is 10m",
        ),
        (
            "50m",
            "600m",
            "cpu max limit to request ratio per Container is 10, but provided ratio is 12.000000",
        ),
    ] {
        let (_, _, message) = server.post(PODS, &with(requests, limits)).await.failure();
        assert_eq!(message, format!("pods \"p\" is forbidden: {why}"));
    }
    let claim = json!({"metadata": {"name": "big"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "3Gi"}}}});
    let claims = "/api/v1/namespaces/a/persistentvolumeclaims";
    let (_, _, message) = server.post(claims, &claim).await.failure();
    assert_eq!(
        message,
        "persistentvolumeclaims \"big\" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
    );
}

#[tokio::test]
async fn claims_get_the_default_class_and_go_when_they_are_let_go() {
    let server = Server::with_namespace().await;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    let class = |name: &str, default: &str| {
        json!({"metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
            "provisioner": "x.y/z", "allowVolumeExpansion": name == "gold"})
    };
    server.post(classes, &class("gold", "true")).await.ok(201);
    server.post(classes, &class("tin", "false")).await.ok(201);
    let claims = "/api/v1/namespaces/a/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let made = server.post(claims, &claim).await.ok(201);
    assert_eq!(made["spec"]["storageClassName"], "gold");
    assert_eq!(
        made["metadata"]["finalizers"],
        json!(["kubernetes.io/pvc-protection"])
    );
    let path = format!("{claims}/data");
    let bound = json!({"status": {"phase": "Bound"}});
    server
        .merge(&format!("{path}/status"), &bound)
        .await
        .ok(200);
    let bigger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let fixed = json!({"allowVolumeExpansion": false});
    let gold = format!("{classes}/gold");
    server.merge(&gold, &fixed).await.ok(200);
    let (code, _, message) = server.merge(&path, &bigger).await.failure();
    assert!(
        code == 403
            && message.ends_with(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
            ),
        "{message}"
    );
    let growing = json!({"allowVolumeExpansion": true});
    server.merge(&gold, &growing).await.ok(200);
    server.merge(&path, &bigger).await.ok(200);
    let deleted = server.delete(&path).await.ok(200);
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    let let_go = json!({"metadata": {"finalizers": null}});
    server.merge(&path, &let_go).await.ok(200);
    assert_eq!(server.get(&path).await.code, 404);
}

#[tokio::test]
async fn ingresses_get_the_default_class() {
    let server = Server::with_namespace().await;
    let class = json!({"metadata": {"name": "main", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "x.y/z"}});
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    server.post(classes, &class).await.ok(201);
    let ingress = json!({"metadata": {"name": "web"}, "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/a/ingresses";
    let made = server.post(ingresses, &ingress).await.ok(201);
    assert_eq!(made["spec"]["ingressClassName"], "main");
}

fn certificate_request(organization: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, organization);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    base64::engine::general_purpose::STANDARD.encode(pem)
}

#[tokio::test]
async fn approving_and_signing_need_the_signers_permission() {
    let server = Server::with_namespace().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let csr = |name: &str, signer: &str, organization: &str| {
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"signerName": signer, "usages": ["client auth"], "request": certificate_request(organization)}})
    };
    let client = "kubernetes.io/kube-apiserver-client";
    let (code, _, message) = server
        .post(requests, &csr("root", client, "system:masters"))
        .await
        .failure();
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "certificatesigningrequests.certificates.k8s.io \"root\" is forbidden: use of kubernetes.io/kube-apiserver-client \
          signer with system:masters group is not allowed"
        )
    );
    let mut made = server
        .post(requests, &csr("dev", "x.io/y", "dev"))
        .await
        .ok(201);
    made["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]});
    let rules = json!({"metadata": {"name": "approver"}, "rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    server.post(roles, &rules).await.ok(201);
    let binding = json!({"metadata": {"name": "approver"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
        "name": "approver"}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    server.post(bindings, &binding).await.ok(201);
    let path = format!("{requests}/dev/approval");
    let as_jane = |object: &Value| {
        let mut jane = server.server.service(UserInfo::new("jane", []));
        let request = Request::put(&path)
            .header("content-type", "application/json")
            .body(Full::from(object.to_string()))
            .unwrap();
        async move { jane.call(request).await.unwrap().status().as_u16() }
    };
    assert_eq!(as_jane(&made).await, 403);
    let signers = json!({"rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["x.io/*"], "verbs": ["approve"]}]});
    server
        .merge(&format!("{roles}/approver"), &signers)
        .await
        .ok(200);
    assert_eq!(as_jane(&made).await, 200);
}

#[tokio::test]
async fn who_tells_whom_a_signer_trusts_needs_its_permission() {
    let server = Server::with_namespace().await;
    let bundles = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    let bundle = json!({"metadata": {"name": "x.io:y:b"}, "spec": {"signerName": "x.io/y",
        "trustBundle": "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"}});
    let role = |verbs: &[&str]| {
        json!({"metadata": {"name": "attester"}, "rules": [
            {"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"], "verbs": ["create"]},
            {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["x.io/y"], "verbs": verbs}]})
    };
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    server.post(roles, &role(&["sign"])).await.ok(201);
    let binding = json!({"metadata": {"name": "attester"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
        "name": "attester"}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    server.post(bindings, &binding).await.ok(201);
    let as_jane = || {
        let mut jane = server.server.service(UserInfo::new("jane", []));
        let request = Request::post(bundles)
            .header("content-type", "application/json")
            .body(Full::from(bundle.to_string()))
            .unwrap();
        async move { jane.call(request).await.unwrap().status().as_u16() }
    };
    assert_eq!(as_jane().await, 403);
    server
        .merge(&format!("{roles}/attester"), &role(&["attest"]))
        .await
        .ok(200);
    assert_eq!(as_jane().await, 201);
}

async fn label(server: &Server, labels: Value) -> super::Answer {
    let patch = json!({"metadata": {"labels": labels}});
    server.merge("/api/v1/namespaces/a", &patch).await
}

#[tokio::test]
async fn namespaces_say_what_pods_may_do() {
    let server = Server::with_namespace().await;
    let mut bold = pod("bold");
    bold["spec"]["hostNetwork"] = true.into();
    server.post(PODS, &bold).await.ok(201);
    let warned = label(
        &server,
        json!({"pod-security.kubernetes.io/enforce": "baseline"}),
    )
    .await;
    let warnings: Vec<_> = warned.headers.get_all("warning").iter().collect();
    assert_eq!(
        warnings,
        [
            "299 - \"existing pods in namespace \\\"a\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"bold: host namespaces\"",
        ]
    );
    bold["metadata"]["name"] = "bolder".into();
    let (code, _, message) = server.post(PODS, &bold).await.failure();
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "pods \"bolder\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
        )
    );
    server.post(PODS, &pod("meek")).await.ok(201);
    label(
        &server,
        json!({"pod-security.kubernetes.io/warn": "restricted"}),
    )
    .await
    .ok(200);
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
            "securityContext": {"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}}}]}}}});
    let made = server
        .post("/apis/apps/v1/namespaces/a/deployments", &deployment)
        .await;
    assert_eq!(made.code, 201);
    let warning = made.headers["warning"].to_str().unwrap();
    assert_eq!(
        warning,
        "299 - \"would violate PodSecurity \\\"restricted:latest\\\": seccompProfile (pod or container \\\"c\\\" must set \
         securityContext.seccompProfile.type to \\\"RuntimeDefault\\\" or \\\"Localhost\\\")\""
    );
    let (code, _, message) = label(
        &server,
        json!({"pod-security.kubernetes.io/enforce": "none"}),
    )
    .await
    .failure();
    assert_eq!(
        (code, message.as_str()),
        (
            422,
            "Namespace \"a\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"none\": \
          must be one of privileged, baseline, restricted"
        )
    );
}

#[tokio::test]
async fn a_file_says_what_holds_where_namespaces_say_nothing_and_for_whom_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admission.yaml");
    let text = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": [{"name": "PodSecurity",
        "configuration": {"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
            "defaults": {"enforce": "baseline"}, "exemptions": {"namespaces": ["b"], "runtimeClasses": ["vm"]}}}]});
    std::fs::write(&file, text.to_string()).unwrap();
    let server = Server::configured(|config| config.admission_file = Some(file.clone())).await;
    for name in ["a", "b"] {
        let namespace = json!({"metadata": {"name": name}});
        server.post("/api/v1/namespaces", &namespace).await.ok(201);
        let account = json!({"metadata": {"name": "default"}});
        let accounts = format!("/api/v1/namespaces/{name}/serviceaccounts");
        server.post(&accounts, &account).await.ok(201);
    }
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm"});
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    server.post(classes, &class).await.ok(201);
    let mut bold = pod("bold");
    bold["spec"]["hostNetwork"] = true.into();
    let (code, _, message) = server.post(PODS, &bold).await.failure();
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "pods \"bold\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
        )
    );
    let elsewhere = PODS.replace("/a/", "/b/");
    server.post(&elsewhere, &bold).await.ok(201);
    bold["spec"]["runtimeClassName"] = "vm".into();
    server.post(PODS, &bold).await.ok(201);
    let labels =
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let warned = server.merge("/api/v1/namespaces/b", &labels).await;
    assert_eq!(
        warned.headers["warning"],
        "299 - \"namespace \\\"b\\\" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored\""
    );
}
