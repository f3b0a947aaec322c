//! No, expired, wrong-audience, foreign-signed, revoked and downgraded credentials.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::auth::tokens::{Claims, TokenKey};

/// A certificate of the cluster's own authority, as somebody who holds its key would not make it.
fn odd(server: &Server, edit: impl FnOnce(&mut CertificateParams)) -> PemPair {
    let read = |name: &str| std::fs::read_to_string(server.keys.path().join(name)).unwrap();
    let authority = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), authority).unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "kubernetes-admin");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(10);
    params.not_after = now + time::Duration::days(10);
    edit(&mut params);
    let key = KeyPair::generate().unwrap();
    PemPair {
        certificate: params.signed_by(&key, &issuer).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

#[tokio::test]
async fn certificates_that_do_not_hold() {
    let server = Server::with_namespace().await;
    let good = odd(&server, |_| {});
    let answer = Client::new(&server, Some(&good))
        .await
        .ask("GET", PODS, "")
        .await;
    assert_eq!(answer.code, 200, "the one that the others are made from");
    let now = OffsetDateTime::now_utc();
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Pki::load_or_create(elsewhere.path()).unwrap();
    let itself = Pki::self_signed(&["kubernetes-admin".to_owned()]).unwrap();
    let cases = [
        ("none", None),
        (
            "expired",
            Some(odd(&server, |one| {
                one.not_after = now - time::Duration::hours(1)
            })),
        ),
        (
            "not valid yet",
            Some(odd(&server, |one| {
                one.not_before = now + time::Duration::hours(2)
            })),
        ),
        ("foreign-signed", Some(foreign.issue_admin().unwrap())),
        ("signed by itself", Some(itself)),
        (
            "for servers only",
            Some(odd(&server, |one| {
                one.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
            })),
        ),
        (
            "names nobody",
            Some(odd(&server, |one| {
                one.distinguished_name = rcgen::DistinguishedName::new()
            })),
        ),
    ];
    for (case, pair) in &cases {
        let mut client = Client::new(&server, pair.as_ref()).await;
        assert_eq!(client.ask("GET", PODS, "").await.failure().0, 401, "{case}");
        // Headers of a proxy that was never trusted make nobody anything.
        let headers = [
            ("x-remote-user", "kubernetes-admin"),
            ("x-remote-group", "system:masters"),
            ("impersonate-user", "kubernetes-admin"),
        ];
        let answer = client.ask_with("GET", PODS, &headers, "").await;
        assert_eq!(answer.failure().0, 401, "{case}, with headers of a proxy");
    }
}

/// A certificate with another's private key: the handshake itself fails.
#[tokio::test]
async fn a_certificate_without_its_key_opens_nothing() {
    let server = Server::with_namespace().await;
    let mut stolen = server.pki.issue_admin().unwrap();
    stolen.key = server.pki.issue_client("jane", &[]).unwrap().key;
    // rustls itself refuses to use a pair that does not fit, so the attacker needs no server for that.
    let joined = tokio::spawn(async move {
        Client::new(&server, Some(&stolen))
            .await
            .ask("GET", PODS, "")
            .await
            .code
    });
    assert!(joined.await.is_err());
}

#[tokio::test]
async fn tokens_that_do_not_hold() {
    let server = Server::with_namespace().await;
    let made = server.post(PODS, &pod("p")).await.ok(201);
    let path = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let token = async |spec: Value| {
        let made = server.post(path, &json!({"spec": spec})).await.ok(201);
        made["status"]["token"].as_str().unwrap().to_owned()
    };
    let plain = token(json!({})).await;
    let elsewhere = token(json!({"audiences": ["vault"]})).await;
    let uid = &made["metadata"]["uid"];
    let bound = token(
        json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}),
    )
    .await;
    let parts: Vec<&str> = plain.split('.').collect();
    let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
    let claims: Claims = serde_json::from_slice(&claims).unwrap();
    let key = TokenKey::new(&server.pki);
    let foreign = tempfile::tempdir().unwrap();
    let foreign = TokenKey::new(&Pki::load_or_create(foreign.path()).unwrap());
    let header = |alg: &str| URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
    let masters = {
        let mut all = serde_json::to_value(&claims).unwrap();
        all["groups"] = json!(["system:masters"]);
        URL_SAFE_NO_PAD.encode(all.to_string())
    };
    for token in [&plain, &bound] {
        let answer = Client::bearer(&server, token)
            .await
            .ask("GET", "/apis", "")
            .await;
        assert_eq!(answer.code, 200, "a good one");
    }
    server
        .delete(&format!("{PODS}/p?gracePeriodSeconds=0"))
        .await
        .ok(200);
    let cases = [
        (
            "expired",
            key.sign(&Claims {
                exp: claims.iat - 1,
                ..claims.clone()
            }),
        ),
        (
            "not valid yet",
            key.sign(&Claims {
                nbf: claims.exp,
                ..claims.clone()
            }),
        ),
        ("for another audience", elsewhere),
        ("foreign-signed", foreign.sign(&claims)),
        ("revoked: the pod that it is bound to is gone", bound),
        (
            "downgraded to no signature",
            format!("{}.{}.", header("none"), parts[1]),
        ),
        (
            "downgraded to a shared secret",
            format!("{}.{}.{}", header("HS256"), parts[1], parts[2]),
        ),
        (
            "with groups written into it",
            format!("{}.{masters}.{}", parts[0], parts[2]),
        ),
        (
            "of another scheme of signatures",
            format!("{}.{}.{}", header("RS256"), parts[1], parts[2]),
        ),
        ("empty", " ".to_owned()),
        ("of a megabyte", "x".repeat(900_000)),
        (
            "a joining node's that nobody made",
            "abcdef.0123456789abcdef".to_owned(),
        ),
    ];
    for (case, token) in &cases {
        let mut client = Client::bearer(&server, token).await;
        assert_eq!(
            client.ask("GET", "/apis", "").await.failure().0,
            401,
            "{case}"
        );
    }
    server
        .delete("/api/v1/namespaces/a/serviceaccounts/default")
        .await
        .ok(200);
    let mut late = Client::bearer(&server, &plain).await;
    assert_eq!(
        late.ask("GET", "/apis", "").await.failure().0,
        401,
        "revoked: the account is gone"
    );
}

/// A token is of one object, not of its name: who comes after it under that name does not bring it back.
#[tokio::test]
async fn tokens_end_with_what_they_are_bound_to() {
    let server = Server::with_namespace().await;
    let accounts = "/api/v1/namespaces/a/serviceaccounts";
    let node = json!({"metadata": {"name": "n"}});
    let secret = json!({"metadata": {"name": "s"}});
    let account = json!({"metadata": {"name": "short"}});
    let cases: [(&str, &str, Value, Option<&str>); 4] = [
        ("Pod", PODS, pod("bound"), Some("v1")),
        ("Secret", SECRETS, secret, Some("v1")),
        ("Node", "/api/v1/nodes", node, Some("v1")),
        ("ServiceAccount", accounts, account, None),
    ];
    for (kind, path, object, bound) in cases {
        let made = server.post(path, &object).await.ok(201);
        let name = made["metadata"]["name"].as_str().unwrap();
        let (account, spec) = match bound {
            Some(version) => {
                let uid = &made["metadata"]["uid"];
                let reference =
                    json!({"kind": kind, "apiVersion": version, "name": name, "uid": uid});
                ("default", json!({"boundObjectRef": reference}))
            }
            None => (name, json!({})),
        };
        let answer = server
            .post(
                &format!("{accounts}/{account}/token"),
                &json!({"spec": spec}),
            )
            .await
            .ok(201);
        let token = answer["status"]["token"].as_str().unwrap();
        let ask = async || {
            let mut client = Client::bearer(&server, token).await;
            client.ask("GET", "/apis", "").await.code
        };
        assert_eq!(ask().await, 200, "{kind}");
        server
            .delete(&format!("{path}/{name}?gracePeriodSeconds=0"))
            .await
            .ok(200);
        assert_eq!(ask().await, 401, "{kind} is gone");
        server.post(path, &object).await.ok(201);
        assert_eq!(ask().await, 401, "another {kind} has the name");
    }
}

/// Plain HTTP, and versions of TLS that are broken, get no further than the handshake.
#[tokio::test]
async fn downgraded_connections_end_at_the_handshake() {
    let server = Server::with_namespace().await;
    // The head of a handshake of TLS 1.2 at most: no supported_versions extension.
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut old = vec![0x16, 3, 0, 0, 45, 1, 0, 0, 41, 3, 1];
    old.extend([7; 32]);
    old.extend([0, 0, 2, 0, 0x35, 1, 0]);
    let cases: [(&str, Vec<u8>); 4] = [
        (
            "plain HTTP",
            b"GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        ),
        (
            "HTTP/2 without TLS",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ),
        ("TLS 1.2", hello),
        ("TLS 1.0", old),
    ];
    for (case, bytes) in cases {
        let mut tcp = TcpStream::connect(server.server.addr()).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(ANSWER_TIME_MAX, tcp.read_to_end(&mut answer)).await;
        read.expect(case).ok();
        assert!(
            answer.is_empty() || answer[0] == 0x15,
            "{case}: an alert at most, not {answer:?}"
        );
    }
}
