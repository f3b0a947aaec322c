//! Tokens of a provider and their attackers, the names that flags make, and what files of issuers say.

use std::time::SystemTime;

use super::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

const ISSUER: &str = "https://id.example.com";
const NOW: i64 = 1_700_000_000;

struct Provider {
    pair: EcdsaKeyPair,
    dir: tempfile::TempDir,
}

fn pair() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap()
}

impl Provider {
    fn new() -> Self {
        let provider = Self {
            pair: pair(),
            dir: tempfile::tempdir().unwrap(),
        };
        provider.publish("one");
        provider
    }

    fn publish(&self, id: &str) {
        let point = self.pair.public_key().as_ref();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let set = json!({"keys": [{"kty": "oct", "k": "x"}, {"kty": "EC", "crv": "P-256", "kid": id, "use": "sig",
            "x": text(&point[1..33]), "y": text(&point[33..])}]});
        std::fs::write(self.dir.path().join("jwks.json"), set.to_string()).unwrap();
    }

    fn config(&self) -> Config {
        Config {
            issuer_url: ISSUER.to_owned(),
            client_id: "cox".to_owned(),
            jwks_file: self.dir.path().join("jwks.json"),
            username_claim: "sub".to_owned(),
            username_prefix: None,
            groups_claim: Some("groups".to_owned()),
            groups_prefix: "oidc:".to_owned(),
            required_claims: vec![("hd".to_owned(), "example.com".to_owned())],
            signing_algs: vec!["ES256".to_owned()],
        }
    }

    fn token(&self, header: Value, claims: &Value) -> String {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", text(&header), text(claims));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": ["other", "cox"], "sub": "bob", "hd": "example.com", "groups": ["devs"], "exp": NOW + 60, "jti": "7"})
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "one"})
}

#[tokio::test]
async fn a_good_token_is_a_user_with_prefixed_name_and_groups() {
    let provider = Provider::new();
    let oidc = Issuer::of_flags(&provider.config()).unwrap();
    let token = provider.token(header(), &claims());
    assert!(oidc.claims(&token));
    for _ in 0..2 {
        let user = oidc.verify(&token, NOW).await.unwrap();
        assert_eq!(user.name, "https://id.example.com#bob");
        assert_eq!(user.groups, ["oidc:devs", "system:authenticated"]);
    }
    assert!(
        oidc.verify(&token, NOW + 60).await.is_err(),
        "also a remembered one expires"
    );
}

#[tokio::test]
async fn bad_tokens_are_refused() {
    let provider = Provider::new();
    let oidc = Issuer::of_flags(&provider.config()).unwrap();
    let with = |field: &str, value: Value| {
        let mut claims = claims();
        claims[field] = value;
        provider.token(header(), &claims)
    };
    let foreign = Provider {
        pair: pair(),
        dir: tempfile::tempdir().unwrap(),
    };
    let good = provider.token(header(), &claims());
    let cases = [
        ("expired", with("exp", json!(NOW))),
        ("without expiry", with("exp", Value::Null)),
        ("not yet", with("nbf", json!(NOW + 600))),
        ("another audience", with("aud", json!("other"))),
        (
            "another issuer",
            with("iss", json!("https://evil.example.com")),
        ),
        ("a missing required claim", with("hd", Value::Null)),
        ("no name", with("sub", json!(""))),
        ("foreign-signed", foreign.token(header(), &claims())),
        (
            "no algorithm",
            provider.token(json!({"alg": "none", "kid": "one"}), &claims()),
        ),
        (
            "an algorithm that is not accepted",
            provider.token(json!({"alg": "RS256", "kid": "one"}), &claims()),
        ),
        (
            "an unknown key",
            provider.token(json!({"alg": "ES256", "kid": "two"}), &claims()),
        ),
        ("cut", good[..good.len() - 4].to_owned()),
        ("no token", "x.y".to_owned()),
    ];
    for (name, token) in cases {
        assert!(oidc.verify(&token, NOW).await.is_err(), "case: {name}");
    }
}

#[tokio::test]
async fn a_new_key_in_the_file_is_found() {
    let mut provider = Provider::new();
    let oidc = Issuer::of_flags(&provider.config()).unwrap();
    provider.pair = pair();
    let token = provider.token(json!({"alg": "ES256", "kid": "new"}), &claims());
    assert!(oidc.verify(&token, NOW).await.is_err());
    provider.publish("new");
    let path = provider.dir.path().join("jwks.json");
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + std::time::Duration::from_secs(5))
        .unwrap();
    assert!(oidc.verify(&token, NOW).await.is_ok());
}

#[tokio::test]
async fn names_follow_the_flags() {
    let provider = Provider::new();
    for (claim, prefix, verified, expected) in [
        ("sub", None, json!(true), Ok("https://id.example.com#bob")),
        ("sub", Some("x:"), json!(true), Ok("x:bob")),
        ("sub", Some("-"), json!(true), Ok("bob")),
        ("email", None, json!(true), Ok("bob@example.com")),
        ("email", None, json!(false), Err(())),
    ] {
        let mut config = provider.config();
        config.username_claim = claim.to_owned();
        config.username_prefix = prefix.map(str::to_owned);
        let oidc = Issuer::of_flags(&config).unwrap();
        let mut claims = claims();
        claims["email"] = json!("bob@example.com");
        claims["email_verified"] = verified;
        let user = oidc.verify(&provider.token(header(), &claims), NOW).await;
        assert_eq!(
            user.as_deref()
                .map(|user| user.name.as_str())
                .map_err(|_| ()),
            expected,
            "{claim} {prefix:?}"
        );
    }
}

#[test]
fn wrong_flags_are_named() {
    let provider = Provider::new();
    let plain = Config {
        issuer_url: "http://x".to_owned(),
        ..provider.config()
    };
    assert!(
        Issuer::of_flags(&plain)
            .unwrap_err()
            .to_string()
            .contains("https://")
    );
    let none = Config {
        signing_algs: vec!["none".to_owned()],
        ..provider.config()
    };
    assert!(
        Issuer::of_flags(&none)
            .unwrap_err()
            .to_string()
            .contains("\"none\"")
    );
    let missing = Config {
        jwks_file: "missing.json".into(),
        ..provider.config()
    };
    assert!(matches!(
        Issuer::of_flags(&missing),
        Err(OidcError::Keys { .. })
    ));
}
