//! Service account tokens: JSON Web Tokens signed with ES256 by the cluster's own key.
//!
//! Pure but for the randomness of signatures. One algorithm and one key are accepted, so that what the header claims can
//! choose nothing. Whether the objects that a token is bound to still exist is asked elsewhere ([`super::bound`]).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use super::token_request::create;
use crate::pki::Pki;

/// Who issues the tokens, and the audience that the API server itself is.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const ALGORITHM: &str = "ES256";
/// How far the clock may have been set back since a token was issued.
const LEEWAY_SECS: i64 = 60;
/// Longer than any token we issue; refuses to decode more.
const TOKEN_LEN_MAX: usize = 16 * 1024;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom it is meant for.
    pub aud: Vec<String>,
    /// When it ends, in seconds since 1970, like the other times.
    pub exp: i64,
    /// When it was issued.
    pub iat: i64,
    /// Who issued it.
    pub iss: String,
    /// Its own name.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    /// When it starts.
    pub nbf: i64,
    /// The user name.
    pub sub: String,
}

/// The objects that a token stands and falls with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The namespace of the service account, the pod and the secret.
    pub namespace: String,
    /// The node: of the pod, or bound by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The service account.
    pub serviceaccount: Reference,
}

/// One object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid; an object of the same name that was made later is another one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Why a token is not accepted. For the log; clients learn no more than 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64 and JSON.
    #[error("the token is malformed")]
    Malformed,
    /// Signed in another way than ours, or not at all.
    #[error("the token's algorithm is {0:?}, not ES256")]
    Algorithm(String),
    /// Not signed by this cluster's key.
    #[error("the token's signature is not this cluster's")]
    Signature,
    /// Issued by somebody else.
    #[error("the token's issuer is {0:?}")]
    Issuer(String),
    /// It has ended.
    #[error("the token has expired")]
    Expired,
    /// It has not begun.
    #[error("the token is not valid yet")]
    NotYet,
    /// Meant for somebody else.
    #[error("the token's audiences {0:?} do not match")]
    Audience(Vec<String>),
    /// The provider of the cluster's users did not make it, or not for this cluster.
    #[error("the token of the OpenID provider does not hold: {0}")]
    Provider(String),
    /// A server outside was to be asked and could not be.
    #[error("the token webhook could not be asked: {0}")]
    Webhook(String),
    /// What it is bound to is gone.
    #[error("the token is bound to {kind} {name:?}, which is gone or another one")]
    Unbound {
        /// `pod`, `secret`, `node`, `serviceaccount`.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
}

/// The key that signs and checks tokens.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

impl TokenKey {
    /// The cluster's key.
    pub fn new(pki: &Pki) -> Self {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pki.service_account_pkcs8(),
            &random,
        )
        .expect("the key was parsed as an ECDSA P-256 key when it was loaded");
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(pki.service_account_public()));
        Self {
            pair,
            key_id,
            random,
        }
    }

    /// Signs claims.
    pub fn sign(&self, claims: &Claims) -> String {
        let header = json!({"alg": ALGORITHM, "kid": self.key_id}).to_string();
        let claims = serde_json::to_vec(claims).expect("claims are plain text and numbers");
        let mut token = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature = self.pair.sign(&self.random, token.as_bytes()).expect(
            "signing fails only when the system has no randomness, which it had for the key",
        );
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token
    }

    /// The claims of a token that this key signed; times and audiences are not looked at.
    ///
    /// # Errors
    /// Why the token is not ours.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decode(header)?;
        if header.alg != ALGORITHM {
            return Err(TokenError::Algorithm(header.alg));
        }
        if !header.kid.is_empty() && header.kid != self.key_id {
            return Err(TokenError::Signature);
        }
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| TokenError::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        let claims: Claims = decode(claims)?;
        if claims.iss != ISSUER {
            return Err(TokenError::Issuer(claims.iss));
        }
        Ok(claims)
    }

    /// The JSON Web Key Set with which others check tokens (`/openid/v1/jwks`).
    pub fn key_set(&self) -> Value {
        // An uncompressed point: one byte of form, then x and y of 32 bytes each.
        let point = self.pair.public_key().as_ref();
        let coordinate = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": ALGORITHM,
            "x": coordinate(1..33), "y": coordinate(33..65),
        }]})
    }

    /// Who issues tokens and where the key set is (`/.well-known/openid-configuration`), as seen from inside the cluster.
    pub fn discovery() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }
}

impl Claims {
    /// Whether the token holds at `now_secs`.
    ///
    /// # Errors
    /// [`TokenError::Expired`] or [`TokenError::NotYet`].
    pub fn check_times(&self, now_secs: i64) -> Result<(), TokenError> {
        if now_secs >= self.exp {
            return Err(TokenError::Expired);
        }
        if now_secs.saturating_add(LEEWAY_SECS) < self.nbf.max(self.iat) {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }

    /// The audiences that the token and `wanted` share.
    ///
    /// # Errors
    /// [`TokenError::Audience`] when they share none.
    pub fn shared_audiences(&self, wanted: &[String]) -> Result<Vec<String>, TokenError> {
        let shared: Vec<String> = self
            .aud
            .iter()
            .filter(|one| wanted.contains(one))
            .cloned()
            .collect();
        if shared.is_empty() {
            Err(TokenError::Audience(self.aud.clone()))
        } else {
            Ok(shared)
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}
