//! Who is let in as whom.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::tokens::{Bound, Claims, ISSUER, Reference, TokenError, TokenKey};
use super::*;

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn claims() -> Claims {
    Claims {
        aud: vec![ISSUER.to_owned()],
        exp: now() + 600,
        iat: now(),
        iss: ISSUER.to_owned(),
        jti: "1".to_owned(),
        kubernetes: Bound {
            namespace: "ns".to_owned(),
            serviceaccount: Reference {
                name: "robot".to_owned(),
                uid: "sa-1".to_owned(),
            },
            ..Bound::default()
        },
        nbf: now(),
        sub: "system:serviceaccount:ns:robot".to_owned(),
    }
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

#[tokio::test]
async fn a_bound_token_tells_who_and_where() {
    let cluster = cluster().await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "pod-1"});
    let user = cluster
        .bearer(&cluster.token(json!({"boundObjectRef": bound})))
        .expect("a good token");
    assert_eq!(user.name, "system:serviceaccount:ns:robot");
    assert_eq!(user.uid, "sa-1");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:ns",
            AUTHENTICATED
        ]
    );
    for (key, value) in [
        ("pod-name", "p"),
        ("pod-uid", "pod-1"),
        ("node-name", "n1"),
        ("node-uid", "node-1"),
    ] {
        assert_eq!(
            user.extra[&format!("authentication.kubernetes.io/{key}")],
            [value],
            "{key}"
        );
    }
    assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
}

#[tokio::test]
async fn attacks_on_tokens() {
    let cluster = cluster().await;
    let key = cluster.authn.token_key();
    let other_keys = tempfile::tempdir().expect("tempdir");
    let foreign = TokenKey::new(&Pki::load_or_create(other_keys.path()).expect("keys"));
    let good = key.sign(&claims());
    cluster.bearer(&good).expect("the good one");

    let parts: Vec<&str> = good.split('.').collect();
    let body = part(&serde_json::to_value(claims()).expect("claims"));
    let with = |change: &dyn Fn(&mut Claims)| {
        let mut changed = claims();
        change(&mut changed);
        key.sign(&changed)
    };
    let root = part(
        &serde_json::to_value(Claims {
            sub: "system:admin".into(),
            ..claims()
        })
        .expect("claims"),
    );
    let cases: &[(&str, String)] = &[
        (
            "alg none, no signature",
            format!("{}.{body}.", part(&json!({"alg": "none"}))),
        ),
        (
            "alg none, with a signature",
            format!("{}.{body}.{}", part(&json!({"alg": "none"})), parts[2]),
        ),
        (
            "HS256 keyed with something public",
            format!("{}.{body}.{}", part(&json!({"alg": "HS256"})), parts[2]),
        ),
        ("signed by another cluster", foreign.sign(&claims())),
        (
            "another body under the signature",
            format!("{}.{root}.{}", parts[0], parts[2]),
        ),
        (
            "the signature cut off",
            format!("{}.{}.", parts[0], parts[1]),
        ),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{good}.{}", parts[2])),
        (
            "a signature of zeros",
            format!(
                "{}.{}.{}",
                parts[0],
                parts[1],
                URL_SAFE_NO_PAD.encode([0_u8; 64])
            ),
        ),
        ("not base64", "a.b.c".to_owned()),
        ("very long", "x".repeat(100_000)),
        ("expired", with(&|claims| claims.exp = now())),
        ("not yet valid", with(&|claims| claims.nbf = now() + 120)),
        (
            "another issuer",
            with(&|claims| claims.iss = "https://elsewhere".to_owned()),
        ),
        (
            "another audience",
            with(&|claims| claims.aud = vec!["vault".to_owned()]),
        ),
        ("no audience", with(&|claims| claims.aud.clear())),
        (
            "an account of that name made later",
            with(&|claims| claims.kubernetes.serviceaccount.uid = "sa-0".into()),
        ),
        (
            "an account that is gone",
            with(&|claims| claims.kubernetes.serviceaccount.name = "gone".into()),
        ),
        (
            "a pod that never was",
            with(&|claims| {
                claims.kubernetes.pod = Some(Reference {
                    name: "x".into(),
                    uid: "1".into(),
                })
            }),
        ),
    ];
    for (case, token) in cases {
        assert_eq!(cluster.bearer(token).expect_err(case), 401, "{case}");
    }
}

#[tokio::test]
async fn a_token_falls_with_what_it_is_bound_to() {
    let cluster = cluster().await;
    let token =
        cluster.token(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}));
    cluster.bearer(&token).expect("while the pod is there");
    cluster.bearer(&token).expect("from memory");

    let mut going = pod("p", "pod-1", "n1");
    going["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
    put(&cluster.store, "pods", &going).await;
    cluster.bearer(&token).expect_err("long deleted");
    going["metadata"]["deletionTimestamp"] = jiff::Timestamp::now().to_string().into();
    put(&cluster.store, "pods", &going).await;
    cluster
        .bearer(&token)
        .expect("a pod that is stopping still works");
    put(&cluster.store, "pods", &pod("p", "pod-2", "n1")).await;
    cluster
        .bearer(&token)
        .expect_err("another pod of that name");
    remove(&cluster.store, "pods", "ns/p").await;
    cluster.bearer(&token).expect_err("no pod");

    let token = cluster
        .token(json!({"boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "mine"}}));
    cluster.bearer(&token).expect("while the secret is there");
    remove(&cluster.store, "secrets", "ns/mine").await;
    cluster.bearer(&token).expect_err("no secret");
}

#[tokio::test]
async fn a_remembered_token_still_ends() {
    let cluster = cluster().await;
    let token = cluster.authn.token_key().sign(&claims());
    let audiences = [ISSUER.to_owned()];
    cluster
        .authn
        .verify_token(&token, &audiences, now())
        .await
        .expect("now");
    let later = cluster
        .authn
        .verify_token(&token, &audiences, now() + 3600)
        .await
        .expect_err("later");
    assert_eq!(later, TokenError::Expired);
    let other = cluster
        .authn
        .verify_token(&token, &["vault".to_owned()], now())
        .await
        .expect_err("another audience");
    assert!(matches!(other, TokenError::Audience(_)));
}

#[tokio::test]
async fn token_requests_have_bounds() {
    let cluster = cluster().await;
    let answer = cluster
        .request_token(json!({"audiences": ["vault"], "expirationSeconds": 7200}))
        .expect("a token");
    assert_eq!(answer["spec"]["audiences"], json!(["vault"]));
    assert!(answer["status"]["expirationTimestamp"].is_string());
    let reference = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
    let cases = [
        (
            "shorter than ten minutes",
            json!({"expirationSeconds": 599}),
            422,
        ),
        (
            "longer than 2^32 seconds",
            json!({"expirationSeconds": (1_i64 << 32) + 1}),
            422,
        ),
        ("a pod that is not there", reference("Pod", "x", ""), 404),
        (
            "a pod with another uid",
            reference("Pod", "p", "pod-0"),
            409,
        ),
        (
            "a kind that tokens are not bound to",
            reference("ConfigMap", "x", ""),
            400,
        ),
    ];
    for (case, spec, code) in cases {
        assert_eq!(
            cluster.request_token(spec).expect_err(case).code,
            code,
            "{case}"
        );
    }
    let mut other = pod("q", "pod-9", "n1");
    other["spec"]["serviceAccountName"] = "else".into();
    put(&cluster.store, "pods", &other).await;
    assert_eq!(
        cluster
            .request_token(reference("Pod", "q", ""))
            .expect_err("another account's pod")
            .code,
        400
    );
    let root = UserInfo::new("root", [MASTERS]);
    let missing = tokens::create(&cluster.authn, &root, "ns", "gone", json!({"spec": {}}));
    assert_eq!(missing.expect_err("no account").code, 404);
}

#[tokio::test]
async fn a_node_asks_for_tokens_of_its_own_pods_only() {
    let cluster = cluster().await;
    put(&cluster.store, "pods", &pod("far", "pod-7", "n2")).await;
    let node = UserInfo::new("system:node:n1", [NODES]);
    let ask = |reference: Value| {
        tokens::create(
            &cluster.authn,
            &node,
            "ns",
            "robot",
            json!({"spec": reference}),
        )
    };
    let bound = |name: &str, uid: &str| json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}});
    ask(bound("p", "pod-1")).expect("its own pod");
    for (case, reference) in [
        ("not bound", json!({})),
        ("a pod of another node", bound("far", "pod-7")),
        ("without a uid", bound("p", "")),
        ("with a wrong uid", bound("p", "pod-0")),
    ] {
        assert_eq!(ask(reference).expect_err(case).code, 403, "{case}");
    }
}

#[tokio::test]
async fn certificates_name_users_and_groups() {
    let cluster = cluster().await;
    let chain = |pair: &crate::pki::PemPair| {
        vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("a certificate")]
    };
    let pair = cluster
        .pki
        .issue_client("jane", &["dev", "ops"])
        .expect("a pair");
    let peer = cluster.authn.peer(&chain(&pair));
    let user = cluster
        .authn
        .authenticate(&request("/api", &[]), &peer)
        .await
        .expect("jane");
    assert_eq!(
        (user.name.as_str(), user.groups.as_slice()),
        (
            "jane",
            ["dev", "ops", AUTHENTICATED].map(String::from).as_slice()
        )
    );

    let elsewhere = tempfile::tempdir().expect("tempdir");
    let foreign = Pki::load_or_create(elsewhere.path())
        .expect("keys")
        .issue_admin()
        .expect("a pair");
    let rejected = cluster.authn.peer(&chain(&foreign));
    for path in ["/api", "/healthz"] {
        let status = cluster
            .authn
            .authenticate(&request(path, &[]), &rejected)
            .await
            .expect_err("foreign");
        assert_eq!(
            status.code, 401,
            "{path}: failed credentials are not anonymous"
        );
    }
    let token = format!("Bearer {}", cluster.token(json!({})));
    let with_token = request("/api", &[("authorization", &token)]);
    cluster
        .authn
        .authenticate(&with_token, &rejected)
        .await
        .expect("a good token beside a bad certificate");
    let expired = Peer::Certificate {
        user,
        not_after_secs: now() - 1,
    };
    assert_eq!(
        cluster
            .authn
            .authenticate(&request("/api", &[]), &expired)
            .await
            .expect_err("ended")
            .code,
        401
    );
}

#[tokio::test]
async fn anonymous_sees_health_and_version_only() {
    let cluster = cluster().await;
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        let user = cluster
            .authn
            .authenticate(&request(path, &[]), &Peer::Unidentified)
            .await
            .expect(path);
        assert_eq!(
            (user.name.as_str(), user.in_group(UNAUTHENTICATED)),
            (ANONYMOUS, true),
            "{path}"
        );
    }
    for path in [
        "/",
        "/api",
        "/api/v1/pods",
        "/healthz/etcd",
        "/metrics",
        "/openapi/v3",
        "//healthz",
    ] {
        let status = cluster
            .authn
            .authenticate(&request(path, &[]), &Peer::Unidentified)
            .await
            .expect_err(path);
        assert_eq!(status.code, 401, "{path}");
    }
    let basic = request("/api", &[("authorization", "Basic cm9vdDpyb290")]);
    assert_eq!(
        cluster
            .authn
            .authenticate(&basic, &Peer::Unidentified)
            .await
            .expect_err("no passwords")
            .code,
        401
    );
}
