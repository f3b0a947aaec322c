//! Users of an OpenID Connect provider: its ID tokens, checked with the provider's keys from a local file (JWKS).
//!
//! Nobody is asked over the network: whoever rotates the provider's keys writes the file anew, and it is read again when a token
//! names a key that is not known. Claims become a user as upstream's `--oidc-*` flags say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::UserInfo;

/// Tokens remembered; above that the memory starts anew.
const CACHE_LEN_MAX: usize = 4096;
/// Clocks may differ by so much.
const SKEW_SECS: i64 = 10;

/// Upstream's flags, and the file of keys.
#[derive(Clone, Debug)]
pub struct Config {
    /// What tokens say as their issuer.
    pub issuer_url: String,
    /// The audience that tokens must be for.
    pub client_id: String,
    /// The provider's keys, a JSON Web Key Set.
    pub jwks_file: PathBuf,
    /// The claim that is the user's name.
    pub username_claim: String,
    /// What is put before it; none for the issuer and `#` (nothing for `email`); `-` for nothing.
    pub username_prefix: Option<String>,
    /// The claim that lists the user's groups.
    pub groups_claim: Option<String>,
    /// What is put before each of them.
    pub groups_prefix: String,
    /// Claims that must have these values.
    pub required_claims: Vec<(String, String)>,
    /// Algorithms that are accepted.
    pub signing_algs: Vec<String>,
}

/// Why there are no users of the provider.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The keys cannot be read.
    #[error("the keys of the OpenID provider in {} cannot be used: {reason}", .path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A flag is wrong.
    #[error("OpenID Connect: {0}")]
    Flag(String),
}

/// A public key of the provider.
#[derive(Debug)]
struct Key {
    id: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
}

#[derive(Debug, Default)]
struct Keys {
    all: Vec<Key>,
    written: Option<SystemTime>,
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Oidc {
    config: Config,
    keys: Mutex<Keys>,
    cache: Mutex<HashMap<[u8; 32], Arc<Known>>>,
}

/// A token whose signature was checked.
#[derive(Debug)]
struct Known {
    user: Arc<UserInfo>,
    expires: i64,
    not_before: i64,
}

impl Oidc {
    pub(super) fn open(config: Config) -> Result<Self, OidcError> {
        if !config.issuer_url.starts_with("https://") {
            return Err(OidcError::Flag(
                "the issuer's URL must begin with https://".to_owned(),
            ));
        }
        if let Some(alg) = config.signing_algs.iter().find(|alg| !is_known(alg)) {
            return Err(OidcError::Flag(format!(
                "the algorithm {alg:?} is not supported"
            )));
        }
        let keys = read_keys(&config.jwks_file)?;
        Ok(Self {
            config,
            keys: Mutex::new(keys),
            cache: Mutex::default(),
        })
    }

    /// Whether a token says that it is of this provider.
    pub(super) fn claims(&self, token: &str) -> bool {
        let payload = token.split('.').nth(1).and_then(decoded);
        payload.is_some_and(|payload| payload["iss"] == *self.config.issuer_url)
    }

    /// The user of a token.
    pub(super) fn verify(&self, token: &str, now_secs: i64) -> Result<Arc<UserInfo>, String> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let cached = self.cache.lock().get(&digest).cloned();
        let known = match cached {
            Some(known) => known,
            None => {
                let known = Arc::new(self.check(token)?);
                let mut cache = self.cache.lock();
                if cache.len() >= CACHE_LEN_MAX {
                    cache.clear();
                }
                cache.insert(digest, Arc::clone(&known));
                known
            }
        };
        if known.expires <= now_secs {
            return Err("it has expired".to_owned());
        }
        if known.not_before > now_secs + SKEW_SECS {
            return Err("it does not hold yet".to_owned());
        }
        Ok(Arc::clone(&known.user))
    }

    fn check(&self, token: &str) -> Result<Known, String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("it is no JWT")?;
        let (header, payload) = signed.split_once('.').ok_or("it is no JWT")?;
        let header = decoded(header).ok_or("its header is no JSON")?;
        let claims = decoded(payload).ok_or("its claims are no JSON")?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| "its signature is not base64")?;
        let alg = header["alg"].as_str().unwrap_or_default();
        if !self.config.signing_algs.iter().any(|one| one == alg) {
            return Err(format!("the algorithm {alg:?} is not accepted"));
        }
        self.check_signature(alg, header["kid"].as_str(), signed.as_bytes(), &signature)?;
        self.user(&claims)
    }

    fn check_signature(
        &self,
        alg: &str,
        key_id: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), String> {
        let holds = |keys: &Keys| {
            let fits =
                |key: &&Key| key_id.is_none() || key.id.is_none() || key.id.as_deref() == key_id;
            keys.all
                .iter()
                .filter(fits)
                .any(|key| key.material.verifies(alg, signed, signature))
        };
        let mut keys = self.keys.lock();
        if holds(&keys) {
            return Ok(());
        }
        // The provider may have a new key.
        if written(&self.config.jwks_file) != keys.written {
            *keys = read_keys(&self.config.jwks_file).map_err(|error| error.to_string())?;
            if holds(&keys) {
                return Ok(());
            }
        }
        Err("no key of the provider has signed it".to_owned())
    }

    fn user(&self, claims: &Value) -> Result<Known, String> {
        let config = &self.config;
        if claims["iss"] != *config.issuer_url {
            return Err("it is of another issuer".to_owned());
        }
        let audience = &claims["aud"];
        let is_ours = |one: &Value| *one == *config.client_id;
        if !is_ours(audience)
            && !audience
                .as_array()
                .is_some_and(|all| all.iter().any(is_ours))
        {
            return Err("it is for another audience".to_owned());
        }
        for (name, value) in &config.required_claims {
            if claims[name.as_str()] != **value {
                return Err(format!("the claim {name:?} is not as required"));
            }
        }
        let number = |name: &str| {
            claims[name].as_f64().map(|seconds| {
                #[allow(clippy::cast_possible_truncation, reason = "seconds since 1970")]
                let seconds = seconds as i64;
                seconds
            })
        };
        let mut user = UserInfo::new(
            self.user_name(claims)?,
            self.groups(claims).iter().map(String::as_str),
        );
        if let Some(id) = claims["jti"].as_str() {
            user.extra.insert(
                "authentication.kubernetes.io/credential-id".to_owned(),
                vec![format!("JTI={id}")],
            );
        }
        Ok(Known {
            user: Arc::new(user),
            expires: number("exp").ok_or("it has no expiry")?,
            not_before: number("nbf").unwrap_or(0),
        })
    }

    fn user_name(&self, claims: &Value) -> Result<String, String> {
        let config = &self.config;
        let claim = config.username_claim.as_str();
        let name = claims[claim].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("it has no claim {claim:?}"))?;
        if claim == "email"
            && claims
                .get("email_verified")
                .is_some_and(|verified| *verified != true)
        {
            return Err("its email is not verified".to_owned());
        }
        Ok(match config.username_prefix.as_deref() {
            Some("-") => name.to_owned(),
            Some(prefix) => format!("{prefix}{name}"),
            None if claim == "email" => name.to_owned(),
            None => format!("{}#{name}", config.issuer_url),
        })
    }

    fn groups(&self, claims: &Value) -> Vec<String> {
        let Some(claim) = &self.config.groups_claim else {
            return Vec::new();
        };
        let claim = &claims[claim.as_str()];
        let one = claim.as_str().into_iter();
        let many = claim
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        one.chain(many)
            .map(|group| format!("{}{group}", self.config.groups_prefix))
            .collect()
    }
}

impl Material {
    fn verifies(&self, alg: &str, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let parameters = match alg {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, signed, signature)
                    .is_ok()
            }
            Self::P256(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                alg == "ES256" && key.verify(signed, signature).is_ok()
            }
            Self::P384(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point);
                alg == "ES384" && key.verify(signed, signature).is_ok()
            }
        }
    }
}

fn is_known(alg: &str) -> bool {
    matches!(
        alg,
        "RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512" | "ES256" | "ES384"
    )
}

fn decoded(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|meta| meta.modified())
        .ok()
}

fn read_keys(path: &Path) -> Result<Keys, OidcError> {
    let wrong = |reason: String| OidcError::Keys {
        path: path.to_owned(),
        reason,
    };
    let written = written(path);
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let set: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let all: Vec<Key> = set["keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(key)
        .collect();
    if all.is_empty() {
        return Err(wrong("it holds no RSA, P-256 or P-384 key".to_owned()));
    }
    Ok(Keys { all, written })
}

/// A key of a set; none for kinds that are not used here.
fn key(value: &Value) -> Option<Key> {
    let bytes = |field: &str| URL_SAFE_NO_PAD.decode(value[field].as_str()?).ok();
    let point = |len: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        (x.len() == len && y.len() == len).then(|| [&[4][..], &x, &y].concat())
    };
    if value["use"]
        .as_str()
        .is_some_and(|purpose| purpose != "sig")
    {
        return None;
    }
    let material = match (value["kty"].as_str()?, value["crv"].as_str()) {
        ("RSA", _) => Material::Rsa {
            n: bytes("n")?,
            e: bytes("e")?,
        },
        ("EC", Some("P-256")) => Material::P256(point(32)?),
        ("EC", Some("P-384")) => Material::P384(point(48)?),
        _ => return None,
    };
    Some(Key {
        id: value["kid"].as_str().map(str::to_owned),
        material,
    })
}

#[cfg(test)]
mod tests {
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
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
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

    #[test]
    fn a_good_token_is_a_user_with_prefixed_name_and_groups() {
        let provider = Provider::new();
        let oidc = Oidc::open(provider.config()).unwrap();
        let token = provider.token(header(), &claims());
        assert!(oidc.claims(&token));
        for _ in 0..2 {
            let user = oidc.verify(&token, NOW).unwrap();
            assert_eq!(user.name, "https://id.example.com#bob");
            assert_eq!(user.groups, ["oidc:devs", "system:authenticated"]);
        }
        assert!(
            oidc.verify(&token, NOW + 60).is_err(),
            "also a remembered one expires"
        );
    }

    #[test]
    fn bad_tokens_are_refused() {
        let provider = Provider::new();
        let oidc = Oidc::open(provider.config()).unwrap();
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
            assert!(oidc.verify(&token, NOW).is_err(), "case: {name}");
        }
    }

    #[test]
    fn a_new_key_in_the_file_is_found() {
        let mut provider = Provider::new();
        let oidc = Oidc::open(provider.config()).unwrap();
        provider.pair = pair();
        let token = provider.token(json!({"alg": "ES256", "kid": "new"}), &claims());
        assert!(oidc.verify(&token, NOW).is_err());
        provider.publish("new");
        let path = provider.dir.path().join("jwks.json");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() + std::time::Duration::from_secs(5))
            .unwrap();
        assert!(oidc.verify(&token, NOW).is_ok());
    }

    #[test]
    fn names_follow_the_flags() {
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
            let oidc = Oidc::open(config).unwrap();
            let mut claims = claims();
            claims["email"] = json!("bob@example.com");
            claims["email_verified"] = verified;
            let user = oidc.verify(&provider.token(header(), &claims), NOW);
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
            Oidc::open(plain)
                .unwrap_err()
                .to_string()
                .contains("https://")
        );
        let none = Config {
            signing_algs: vec!["none".to_owned()],
            ..provider.config()
        };
        assert!(
            Oidc::open(none)
                .unwrap_err()
                .to_string()
                .contains("\"none\"")
        );
        let missing = Config {
            jwks_file: "missing.json".into(),
            ..provider.config()
        };
        assert!(matches!(Oidc::open(missing), Err(OidcError::Keys { .. })));
    }
}
