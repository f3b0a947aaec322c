//! Identity and permission as clients meet them: over TLS with certificates and tokens, and in process as a node.
#![allow(clippy::type_complexity, reason = "a table of cases")]
#![allow(clippy::too_many_lines, reason = "one server serves many questions")]

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::auth::NODES;
use crate::pki::PemPair;

/// A GET over TLS on a connection of its own; answers code and body.
async fn get_over_tls(
    server: &Server,
    keys: &Pki,
    pair: Option<&PemPair>,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(keys.ca_pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let tcp = TcpStream::connect(server.server.addr()).await.unwrap();
    let name = ServerName::try_from("kubernetes.default.svc").unwrap();
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(tls))
            .await
            .unwrap();
    let mut request = Request::get(path).header("host", "kubernetes");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let ask = async {
        let response = sender
            .send_request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or_default())
    };
    tokio::select! {
        answer = ask => answer,
        ended = connection => panic!("the connection ended early: {ended:?}"),
    }
}

#[tokio::test]
async fn credentials_over_tls() {
    let server = Server::with_namespace().await;
    let keys = Pki::load_or_create(server.keys.path()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Pki::load_or_create(elsewhere.path())
        .unwrap()
        .issue_admin()
        .unwrap();
    let admin = keys.issue_admin().unwrap();
    let jane = keys.issue_client("jane", &["dev"]).unwrap();
    let path = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let token = server.post(path, &json!({"spec": {}})).await.ok(201);
    let token = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let pods = "/api/v1/namespaces/a/pods";
    let bad = "Bearer a.b.c";
    let cases: &[(&str, Option<&PemPair>, &[(&str, &str)], &str, u16)] = &[
        ("an administrator", Some(&admin), &[], pods, 200),
        ("a user without rights", Some(&jane), &[], pods, 403),
        ("a user may discover", Some(&jane), &[], "/apis", 200),
        (
            "a certificate of another cluster",
            Some(&foreign),
            &[],
            pods,
            401,
        ),
        ("a token", None, &[("authorization", &token)], pods, 403),
        (
            "a token may discover",
            None,
            &[("authorization", &token)],
            "/apis",
            200,
        ),
        (
            "a token beside a foreign certificate",
            Some(&foreign),
            &[("authorization", &token)],
            "/apis",
            200,
        ),
        (
            "a bad token",
            None,
            &[("authorization", bad)],
            "/healthz",
            401,
        ),
        ("nobody, about objects", None, &[], pods, 401),
        ("nobody, discovering", None, &[], "/apis", 401),
        ("nobody, about health", None, &[], "/healthz", 200),
        ("nobody, about the version", None, &[], "/version", 200),
        (
            "nobody, with a path in disguise",
            None,
            &[],
            "/%68ealthz",
            401,
        ),
        (
            "an administrator as jane",
            Some(&admin),
            &[("impersonate-user", "jane")],
            pods,
            403,
        ),
        (
            "jane as an administrator",
            Some(&jane),
            &[("impersonate-user", "kubernetes-admin")],
            pods,
            403,
        ),
    ];
    for (case, pair, headers, path, code) in cases {
        let (answered, body) = get_over_tls(&server, &keys, *pair, path, headers).await;
        assert_eq!(answered, *code, "{case}: {body}");
        if *code == 401 {
            assert_eq!(
                (&body["reason"], &body["message"]),
                (&json!("Unauthorized"), &json!("Unauthorized")),
                "{case}"
            );
        }
    }
    let bind = json!({"metadata": {"name": "b"}, "subjects": [{"kind": "Group", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings";
    server.post(bindings, &bind).await.ok(201);
    assert_eq!(
        get_over_tls(&server, &keys, Some(&jane), pods, &[]).await.0,
        200,
        "bound"
    );
    server.delete(&format!("{bindings}/b")).await.ok(200);
    assert_eq!(
        get_over_tls(&server, &keys, Some(&jane), pods, &[]).await.0,
        403,
        "unbound"
    );
    server
        .delete("/api/v1/namespaces/a/serviceaccounts/default")
        .await
        .ok(200);
    let late = get_over_tls(&server, &keys, None, "/apis", &[("authorization", &token)]).await;
    assert_eq!(late.0, 401, "the token's account is gone");
}

#[tokio::test]
async fn a_node_keeps_to_itself() {
    let server = Server::with_namespace().await;
    for node in ["n1", "n2"] {
        let object = json!({"metadata": {"name": node}});
        server.post("/api/v1/nodes", &object).await.ok(201);
        let pod = json!({"metadata": {"name": format!("on-{node}")},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x",
                "envFrom": [{"secretRef": {"name": format!("of-{node}")}}]}]}});
        server.post("/api/v1/namespaces/a/pods", &pod).await.ok(201);
        let secret = json!({"metadata": {"name": format!("of-{node}")}});
        server
            .post("/api/v1/namespaces/a/secrets", &secret)
            .await
            .ok(201);
    }
    let node = server
        .server
        .service(UserInfo::new("system:node:n1", [NODES]));
    let status = |name: &str| json!({"metadata": {"name": name}, "status": {"phase": "Running"}});
    let evict = |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "a"}});
    let token = json!({"spec": {}});
    let cases: &[(&str, &str, Value, u16)] = &[
        (
            "GET",
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1",
            Value::Null,
            200,
        ),
        ("GET", "/api/v1/pods", Value::Null, 403),
        ("GET", "/api/v1/namespaces/a/pods/on-n1", Value::Null, 200),
        ("GET", "/api/v1/namespaces/a/pods/on-n2", Value::Null, 403),
        (
            "GET",
            "/api/v1/namespaces/a/secrets/of-n1",
            Value::Null,
            200,
        ),
        (
            "GET",
            "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Dof-n1",
            Value::Null,
            200,
        ),
        (
            "GET",
            "/api/v1/namespaces/a/secrets/of-n2",
            Value::Null,
            403,
        ),
        ("GET", "/api/v1/namespaces/a/secrets", Value::Null, 403),
        (
            "PATCH",
            "/api/v1/namespaces/a/pods/on-n1/status",
            status("on-n1"),
            200,
        ),
        (
            "PATCH",
            "/api/v1/namespaces/a/pods/on-n2/status",
            status("on-n2"),
            403,
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1/status",
            json!({"status": {"phase": "x"}}),
            200,
        ),
        (
            "PATCH",
            "/api/v1/nodes/n2/status",
            json!({"status": {"phase": "x"}}),
            403,
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            json!({"spec": {"taints": null}}),
            403,
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            json!({"metadata": {"labels": {"coxswain.dev/wasm": "true"}}}),
            200,
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}),
            403,
        ),
        (
            "POST",
            "/api/v1/namespaces/a/serviceaccounts/default/token",
            token,
            403,
        ),
        (
            "POST",
            "/api/v1/namespaces/a/pods/on-n2/eviction",
            evict("on-n2"),
            403,
        ),
        ("DELETE", "/api/v1/namespaces/a/pods/on-n2", json!({}), 403),
        (
            "POST",
            "/api/v1/nodes",
            json!({"metadata": {"name": "n3"}}),
            403,
        ),
        (
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({"metadata": {"name": "x"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}}),
            403,
        ),
        ("DELETE", "/api/v1/namespaces/a/pods/on-n1", json!({}), 200),
    ];
    for (method, path, body, code) in cases {
        let content_type = if *method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let request = Request::builder()
            .method(*method)
            .uri(*path)
            .header("content-type", content_type);
        let response = node
            .clone()
            .call(request.body(Full::new(bytes)).unwrap())
            .await
            .unwrap();
        let answered = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            answered,
            *code,
            "{method} {path}: {}",
            String::from_utf8_lossy(&text)
        );
    }
}

#[tokio::test]
async fn a_second_start_writes_nothing() {
    let server = Server::new().await;
    let store = server.server.registry().store().clone();
    let before = store.snapshot().revision();
    let pki = Arc::new(Pki::load_or_create(server.keys.path()).unwrap());
    let mut config = Config::new("127.0.0.1:0".parse().unwrap(), pki);
    config.advertise = Some(server.server.addr());
    let cancel = CancellationToken::new();
    let again = start(config, Deps::new(store.clone()), cancel.clone())
        .await
        .unwrap();
    cancel.cancel();
    again.stopped().await;
    assert_eq!(store.snapshot().revision(), before);
    for path in [
        "/apis/node.k8s.io/v1/runtimeclasses/wasm",
        "/api/v1/namespaces/default/services/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    ] {
        server.get(path).await.ok(200);
    }
}

#[tokio::test]
async fn others_can_check_our_tokens() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    let server = Server::with_namespace().await;
    let discovery = server
        .get("/.well-known/openid-configuration")
        .await
        .ok(200);
    let keys_uri = discovery["jwks_uri"].as_str().unwrap();
    let path = keys_uri
        .strip_prefix(discovery["issuer"].as_str().unwrap())
        .unwrap();
    let keys = server.get(path).await.ok(200);
    let key = &keys["keys"][0];
    let token = server
        .post(
            "/api/v1/namespaces/a/serviceaccounts/default/token",
            &json!({"spec": {"audiences": ["vault"]}}),
        )
        .await
        .ok(201);
    let token = token["status"]["token"].as_str().unwrap();
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let header: Value = serde_json::from_slice(&decode(signed.split('.').next().unwrap())).unwrap();
    assert_eq!(header["kid"], key["kid"]);
    let point = [
        vec![4],
        decode(key["x"].as_str().unwrap()),
        decode(key["y"].as_str().unwrap()),
    ]
    .concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &decode(signature))
        .expect("the published key checks the token");
    let jane = server.server.service(UserInfo::new("jane", []));
    let robot = server
        .server
        .service(UserInfo::service_account("a", "default", ""));
    for (mut who, code) in [(jane, 403), (robot, 200)] {
        let response = who
            .call(Request::get(path).body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), code);
    }
}
