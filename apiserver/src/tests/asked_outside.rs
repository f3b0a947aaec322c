//! Servers outside that are asked who somebody is and what they may do: webhooks and OpenID providers of the test's own.
#![allow(clippy::too_many_lines, reason = "one server serves many questions")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::*;
use crate::auth::authorization::{self, Mode};
use crate::auth::token_webhook;

/// What a server outside was asked so far.
type Asked = Arc<Mutex<Vec<Value>>>;

/// A webhook of the certificates of `host`; its kubeconfig file, and what it is asked.
async fn webhook(
    host: &Server,
    dir: &Path,
    answer: impl Fn(&Value) -> Value + Send + Sync + 'static,
) -> (std::path::PathBuf, Asked) {
    let asked = Asked::default();
    let memory = Arc::clone(&asked);
    let port = outside::serve(host, &["localhost"], move |request| {
        assert_eq!(request.headers()["authorization"], "Bearer secret");
        let mut review: Value = serde_json::from_slice(request.body()).unwrap();
        memory.lock().push(review.clone());
        review["status"] = answer(&review["spec"]);
        review
    })
    .await;
    std::fs::write(dir.join("ca.pem"), host.pki.ca_pem()).unwrap();
    let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "webhook",
        "contexts": [{"name": "webhook", "context": {"cluster": "there", "user": "us"}}],
        "clusters": [{"name": "there", "cluster": {"server": format!("https://localhost:{port}/ask"), "certificate-authority": "ca.pem"}}],
        "users": [{"name": "us", "user": {"token": "secret"}}]});
    let path = dir.join(format!("webhook-{port}.kubeconfig"));
    std::fs::write(&path, file.to_string()).unwrap();
    (path, asked)
}

async fn as_user(server: &Server, user: UserInfo, path: &str) -> (u16, Value) {
    let request = Request::get(path).body(Full::default()).unwrap();
    let response = server.server.service(user).call(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_default())
}

fn jane() -> UserInfo {
    UserInfo::new("jane", ["dev"])
}

#[tokio::test]
async fn a_webhook_decides_where_rbac_does_not() {
    let host = Server::new().await;
    let dir = tempfile::tempdir().unwrap();
    let (kubeconfig, asked) = webhook(&host, dir.path(), |spec| {
        let about = &spec["resourceAttributes"];
        match (about["resource"].as_str(), about["namespace"].as_str()) {
            (Some("pods"), Some("a")) => json!({"allowed": true}),
            (Some("secrets"), _) => {
                json!({"allowed": false, "denied": true, "reason": "secrets are secret"})
            }
            _ => json!({"allowed": false, "reason": "not mine"}),
        }
    })
    .await;
    let server = Server::configured(|config| {
        config.authorization = authorization::Config::Flags {
            modes: vec![Mode::Node, Mode::Webhook, Mode::Rbac],
            webhook: Some(authorization::FlagWebhook {
                kubeconfig,
                version: "v1".to_owned(),
                authorized_ttl: Duration::from_secs(300),
                unauthorized_ttl: Duration::ZERO,
            }),
        };
    })
    .await;
    let namespace = json!({"metadata": {"name": "a"}});
    server.post("/api/v1/namespaces", &namespace).await.ok(201);
    let before = asked.lock().len();
    assert_eq!(before, 0, "administrators are never asked about");
    let selected =
        "/api/v1/namespaces/a/pods?labelSelector=app%20in%20(x,y)&fieldSelector=spec.nodeName%3Dn";
    for _ in 0..3 {
        assert_eq!(as_user(&server, jane(), selected).await.0, 200);
    }
    let questions = asked.lock().clone();
    assert_eq!(questions.len(), 1, "a yes is remembered");
    assert_eq!(
        questions[0],
        json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": {"user": "jane", "groups": ["dev", "system:authenticated"], "resourceAttributes": {
                "namespace": "a", "verb": "list", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]},
                "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}}},
            "status": {"allowed": false}})
    );
    let (code, refused) = as_user(&server, jane(), "/api/v1/nodes").await;
    assert_eq!(code, 403);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("at the cluster scope: not mine"),
        "{message}"
    );
    // What the webhook denies no role allows any more.
    let all = json!({"metadata": {"name": "all"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    server.post(bindings, &all).await.ok(201);
    assert_eq!(as_user(&server, jane(), "/api/v1/nodes").await.0, 200);
    let (code, refused) = as_user(&server, jane(), "/api/v1/secrets").await;
    assert_eq!(code, 403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with(": secrets are secret")
    );
    let review = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"user": "joe", "resourceAttributes": {"namespace": "a", "verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answered = server.post(reviews, &review).await.ok(201);
    assert_eq!(answered["status"]["allowed"], true);
    let rules = json!({"spec": {"namespace": "a"}});
    let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")
        .header("content-type", "application/json")
        .body(Full::from(rules.to_string()))
        .unwrap();
    let response = server.server.service(jane()).call(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let answered: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answered["status"]["incomplete"], true);
}

#[tokio::test]
async fn a_file_names_the_authorizers_and_what_their_failure_means() {
    let host = Server::new().await;
    let dir = tempfile::tempdir().unwrap();
    let (good, asked) = webhook(&host, dir.path(), |_| json!({"allowed": true})).await;
    let gone = dir.path().join("gone.kubeconfig");
    let text = std::fs::read_to_string(&good).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["clusters"][0]["cluster"]["server"] = format!("https://localhost:{port}/").into();
    std::fs::write(&gone, file.to_string()).unwrap();
    let path = dir.path().join("authorization.yaml");
    let write = |policy: &str, kubeconfig: &Path| {
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": [
            {"type": "Webhook", "name": "hook", "webhook": {
                "timeout": "3s", "subjectAccessReviewVersion": "v1", "matchConditionSubjectAccessReviewVersion": "v1",
                "failurePolicy": policy, "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig},
                "matchConditions": [{"expression": "has(request.resourceAttributes)"},
                    {"expression": "!request.groups.exists(g, g == 'trusted')"}]}},
            {"type": "Node", "name": "node"}, {"type": "RBAC", "name": "rbac"}]});
        std::fs::write(&path, file.to_string()).unwrap();
    };
    write("NoOpinion", &good);
    let server = Server::configured(|config| {
        config.authorization = authorization::Config::File(path.clone());
    })
    .await;
    assert_eq!(as_user(&server, jane(), "/api/v1/nodes").await.0, 200);
    assert_eq!(
        as_user(&server, jane(), "/metrics").await.0,
        403,
        "no resource"
    );
    let trusted = || UserInfo::new("joe", ["trusted"]);
    assert_eq!(as_user(&server, trusted(), "/api/v1/nodes").await.0, 403);
    assert_eq!(asked.lock().len(), 1);
    // The file is followed: the webhook is gone now, and RBAC decides what it can.
    let until = async |path: &str, wanted: u16| {
        for _ in 0..200 {
            if as_user(&server, jane(), path).await.0 == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} never answers {wanted}");
    };
    write("NoOpinion", &gone);
    until("/api/v1/nodes", 500).await;
    assert_eq!(
        as_user(&server, jane(), "/apis/apps").await.0,
        200,
        "RBAC allows discovery"
    );
    let bind = json!({"metadata": {"name": "v"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    server.post(bindings, &bind).await.ok(201);
    assert_eq!(
        as_user(&server, jane(), "/api/v1/nodes").await.0,
        200,
        "no opinion"
    );
    write("Deny", &gone);
    until("/api/v1/nodes", 500).await;
    assert_eq!(
        server.get("/api/v1/nodes").await.code,
        200,
        "administrators are not asked about"
    );
    // A file that is wrong changes nothing.
    std::fs::write(&path, "kind: Nonsense").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(as_user(&server, jane(), "/api/v1/nodes").await.0, 500);
}

#[tokio::test]
async fn files_of_authorizers_that_are_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authorization.yaml");
    let hook = |edit: &dyn Fn(&mut Value)| {
        let mut hook = json!({"type": "Webhook", "name": "hook", "webhook": {"timeout": "3s", "subjectAccessReviewVersion": "v1",
            "matchConditionSubjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/missing/kubeconfig"},
            "matchConditions": [{"expression": "request.user == 'x'"}]}});
        edit(&mut hook);
        json!([hook])
    };
    let cases = [
        (json!([]), "at least one authorization mode"),
        (
            json!([{"type": "ABAC", "name": "a"}]),
            "authorizers[0].type: \"ABAC\"",
        ),
        (
            json!([{"type": "RBAC", "name": "a"}, {"type": "RBAC", "name": "b"}]),
            "authorizers[1].type",
        ),
        (
            json!([{"type": "RBAC", "name": "a"}, {"type": "Node", "name": "a"}]),
            "authorizers[1].name",
        ),
        (
            json!([{"type": "RBAC", "name": "a", "more": 1}]),
            "unknown field `more`",
        ),
        (
            json!([{"type": "Webhook", "name": "a"}]),
            "webhook: required",
        ),
        (hook(&|_| {}), "/missing/kubeconfig"),
        (
            hook(&|one| one["webhook"]["timeout"] = "31s".into()),
            "must be > 0s and <= 30s",
        ),
        (
            hook(&|one| one["webhook"]["timeout"] = "soon".into()),
            "no duration",
        ),
        (
            hook(&|one| one["webhook"]["failurePolicy"] = "Allow".into()),
            "failurePolicy",
        ),
        (
            hook(&|one| one["webhook"]["subjectAccessReviewVersion"] = "v2".into()),
            "subjectAccessReviewVersion",
        ),
        (
            hook(&|one| one["webhook"]["connectionInfo"]["kubeConfigFile"] = "relative".into()),
            "absolute path",
        ),
        (
            hook(&|one| one["webhook"]["connectionInfo"]["type"] = "InClusterConfig".into()),
            "InClusterConfig",
        ),
    ];
    for (authorizers, why) in cases {
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": authorizers});
        std::fs::write(&path, file.to_string()).unwrap();
        let store = crate::testing::store();
        let config = authorization::Config::File(path.clone());
        let refused =
            authorization::configure(&crate::auth::Authorizer::new(store), &config).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains(why), "{why}: {refused}");
    }
}

/// Who bears a token, by the server's own answer.
async fn who_is(server: &Server, token: &str) -> Result<Value, u16> {
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Full::from("{}"))
        .unwrap();
    let peer = crate::auth::Peer::Unidentified;
    let response = server.server.api_for_tests().handle(request, &peer).await;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    if code == 201 {
        Ok(body["status"]["userInfo"].clone())
    } else {
        Err(code)
    }
}

#[tokio::test]
async fn a_webhook_knows_the_bearers_of_other_tokens() {
    let host = Server::new().await;
    let dir = tempfile::tempdir().unwrap();
    let (kubeconfig, asked) = webhook(&host, dir.path(), |spec| match spec["token"].as_str() {
        Some("good") => json!({"authenticated": true, "user": {"username": "ann", "uid": "7", "groups": ["staff"], "extra": {"team": ["x"]}}}),
        Some("elsewhere") => json!({"authenticated": true, "user": {"username": "ann"}, "audiences": ["other"]}),
        Some("nobody") => json!({"authenticated": true, "user": {}}),
        _ => json!({"authenticated": false, "error": "unknown"}),
    })
    .await;
    let server = Server::configured(|config| {
        config.token_webhook = Some(token_webhook::Config {
            kubeconfig,
            version: "v1".to_owned(),
            ttl: Duration::from_secs(120),
        });
    })
    .await;
    for _ in 0..2 {
        let user = who_is(&server, "good").await.unwrap();
        assert_eq!(
            user,
            json!({"username": "ann", "uid": "7", "groups": ["staff", "system:authenticated"], "extra": {"team": ["x"]}})
        );
    }
    assert_eq!(asked.lock().len(), 1, "answers are remembered");
    assert_eq!(
        asked.lock()[0]["spec"]["audiences"],
        json!(["https://kubernetes.default.svc.cluster.local"])
    );
    for token in ["bad", "elsewhere", "nobody"] {
        assert_eq!(who_is(&server, token).await, Err(401), "{token}");
    }
    let review = json!({"spec": {"token": "elsewhere", "audiences": ["other"]}});
    let answered = server
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await
        .ok(201);
    assert_eq!(answered["status"]["audiences"], json!(["other"]));
}

/// A provider of tokens, with a key of its own.
struct Provider {
    pair: EcdsaKeyPair,
    url: String,
}

impl Provider {
    /// Publishes its discovery document and key under the certificates of `host`.
    async fn new(host: &Server) -> Self {
        let random = SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
                .unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let port = outside::serve(host, &["localhost"], move |request| {
            let here = format!("https://{}", request.headers()["host"].to_str().unwrap());
            let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            match request.uri().path() {
                "/.well-known/openid-configuration" => json!({"issuer": here, "jwks_uri": format!("{here}/keys")}),
                "/keys" => json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": text(&point[1..33]), "y": text(&point[33..])}]}),
                other => panic!("{other}"),
            }
        })
        .await;
        Provider {
            pair,
            url: format!("https://localhost:{port}"),
        }
    }

    fn token(&self, claims: &Value) -> String {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut all = json!({"iss": self.url, "exp": 32_503_680_000_u64});
        all.as_object_mut()
            .unwrap()
            .extend(claims.as_object().unwrap().clone());
        let signed = format!(
            "{}.{}",
            text(&json!({"alg": "ES256", "kid": "k"})),
            text(&all)
        );
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[tokio::test]
async fn issuers_of_a_file_publish_their_keys_and_their_claims_become_users() {
    let host = Server::new().await;
    let (first, second) = (Provider::new(&host).await, Provider::new(&host).await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authentication.yaml");
    let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [
        {"issuer": {"url": first.url, "certificateAuthority": host.pki.ca_pem(), "audiences": ["cox", "box"], "audienceMatchPolicy": "MatchAny"},
            "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"},
                {"expression": "claims.exp - claims.nbf <= 32503680000", "message": "too long"}],
            "claimMappings": {"username": {"expression": "claims.sub + '@first'"},
                "groups": {"expression": "claims.roles.split(',')"}, "uid": {"claim": "id"},
                "extra": [{"key": "example.com/team", "valueExpression": "claims.?team.orValue('')"}]},
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}]},
        {"issuer": {"url": second.url, "certificateAuthority": host.pki.ca_pem(), "audiences": ["cox"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": "second:"}, "groups": {"claim": "groups", "prefix": ""}}}],
        "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]}});
    std::fs::write(&path, file.to_string()).unwrap();
    let server = Server::configured(|config| config.authentication_file = Some(path)).await;
    let good = json!({"aud": "box", "sub": "bob", "hd": "example.com", "roles": "dev,ops", "id": "9", "nbf": 1, "team": "red"});
    assert_eq!(
        who_is(&server, &first.token(&good)).await.unwrap(),
        json!({"username": "bob@first", "uid": "9", "groups": ["dev", "ops", "system:authenticated"],
            "extra": {"example.com/team": ["red"]}})
    );
    let plain = json!({"aud": ["x", "cox"], "sub": "eve", "groups": "one"});
    assert_eq!(
        who_is(&server, &second.token(&plain)).await.unwrap(),
        json!({"username": "second:eve", "groups": ["one", "system:authenticated"]})
    );
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        first.token(&claims)
    };
    let mut forged = first.token(&good);
    forged.replace_range(forged.len() - 4.., "AAAA");
    let foreign = Provider {
        pair: second.pair,
        url: first.url.clone(),
    };
    for (case, token) in [
        ("another audience", with("aud", json!("fox"))),
        ("expired", with("exp", json!(1))),
        ("not yet", with("nbf", json!(32_503_670_000_u64))),
        (
            "a claim that is not as required",
            with("hd", json!("evil.com")),
        ),
        ("a rule that fails", with("nbf", json!(-1))),
        (
            "a name that is reserved",
            with("sub", json!("system:masters")),
        ),
        ("groups that are none", with("roles", json!(7))),
        ("a uid that is none", with("id", json!(7))),
        ("forged", forged),
        ("signed by the other provider", foreign.token(&good)),
    ] {
        assert_eq!(who_is(&server, &token).await, Err(401), "{case}");
    }
    for (path, code) in [("/livez", 200), ("/healthz", 401), ("/version", 401)] {
        let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        let peer = crate::auth::Peer::Unidentified;
        let response = server.server.api_for_tests().handle(request, &peer).await;
        assert_eq!(response.status(), code, "{path}");
    }
}

#[test]
fn files_of_issuers_that_are_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authentication.yaml");
    let good = json!({"issuer": {"url": "https://id.example.com", "audiences": ["a"]},
        "claimMappings": {"username": {"claim": "sub", "prefix": ""}}});
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut jwt = good.clone();
        edit(&mut jwt);
        jwt
    };
    let cases: Vec<(Value, &str)> = vec![
        (
            with(&|jwt| jwt["issuer"]["url"] = "http://x".into()),
            "jwt[0].issuer.url: URL scheme must be https",
        ),
        (
            with(&|jwt| jwt["issuer"]["url"] = "https://a:b@x".into()),
            "username or password",
        ),
        (
            with(&|jwt| {
                jwt["issuer"]["url"] = "https://kubernetes.default.svc.cluster.local".into()
            }),
            "service account tokens",
        ),
        (
            with(&|jwt| jwt["issuer"]["discoveryURL"] = "https://id.example.com/".into()),
            "must be different from URL",
        ),
        (
            with(&|jwt| jwt["issuer"]["audiences"] = json!([])),
            "issuer.audiences",
        ),
        (
            with(&|jwt| jwt["issuer"]["audiences"] = json!(["a", "b"])),
            "audienceMatchPolicy: must be MatchAny",
        ),
        (
            with(&|jwt| jwt["issuer"]["certificateAuthority"] = "nonsense".into()),
            "",
        ),
        (
            with(&|jwt| jwt["claimMappings"]["username"] = json!({})),
            "claim or expression is required",
        ),
        (
            with(&|jwt| jwt["claimMappings"]["username"] = json!({"claim": "sub"})),
            "prefix is required",
        ),
        (
            with(&|jwt| jwt["claimMappings"]["username"] = json!({"expression": "claims.sub +"})),
            "username.expression: compilation failed",
        ),
        (
            with(&|jwt| jwt["claimMappings"]["username"] = json!({"expression": "1"})),
            "must evaluate to string",
        ),
        (
            with(&|jwt| jwt["claimMappings"]["username"] = json!({"expression": "claims.email"})),
            "claims.email_verified must be used",
        ),
        (
            with(&|jwt| jwt["claimMappings"]["username"] = json!({"expression": "nobody.sub"})),
            "undeclared",
        ),
        (
            with(&|jwt| {
                jwt["claimMappings"]["extra"] = json!([{"key": "team", "valueExpression": "'x'"}])
            }),
            "extra[0].key",
        ),
        (
            with(&|jwt| {
                jwt["claimMappings"]["extra"] =
                    json!([{"key": "a.k8s.io/x", "valueExpression": "'x'"}])
            }),
            "reserved",
        ),
        (
            with(&|jwt| {
                jwt["claimValidationRules"] = json!([{"claim": "a", "expression": "true"}])
            }),
            "claimValidationRules[0]",
        ),
        (
            with(&|jwt| jwt["userValidationRules"] = json!([{"expression": "user.nothing == ''"}])),
            "userValidationRules[0]",
        ),
        (with(&|jwt| jwt["more"] = 1.into()), "unknown field `more`"),
    ];
    let store = crate::testing::store();
    let keys = tempfile::tempdir().unwrap();
    let pki = Arc::new(Pki::load_or_create(keys.path()).unwrap());
    let read = |jwt: &Value| {
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1beta1", "kind": "AuthenticationConfiguration", "jwt": jwt});
        std::fs::write(&path, file.to_string()).unwrap();
        crate::auth::Authenticator::new(Arc::clone(&pki), store.clone()).configure(&path)
    };
    read(&json!([good])).unwrap();
    let twice = read(&json!([good, good])).unwrap_err().to_string();
    assert!(twice.contains("jwt[1].issuer.url"), "{twice}");
    for (jwt, why) in cases.iter().filter(|(_, why)| !why.is_empty()) {
        let refused = read(&json!([jwt])).unwrap_err().to_string();
        assert!(refused.contains(why), "{why}: {refused}");
    }
}
