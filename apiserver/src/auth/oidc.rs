//! Users of OpenID Connect providers: their tokens, checked with the provider's keys, which a local file holds (JWKS) or the provider
//! publishes.
//!
//! A provider is configured by upstream's `--oidc-*` flags, or several by the file of `--authentication-config`. Claims become a user as
//! these say.

mod file;
mod keys;
mod mapping;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::keys::{ALGORITHMS, Keys};
use self::mapping::{ClaimRule, From, Mapping};
use super::UserInfo;
use super::remote::RemoteError;
use super::user::AUTHENTICATED;

pub(super) use file::{Anonymous, read};

/// Tokens remembered; above that the memory starts anew.
const CACHE_LEN_MAX: usize = 4096;
/// Longer than any token of a provider; refuses to decode more.
const TOKEN_LEN_MAX: usize = 64 * 1024;
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
    /// The provider cannot be reached as it is named.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A flag is wrong.
    #[error("OpenID Connect: {0}")]
    Flag(String),
}

/// What is known of a provider.
#[derive(Debug)]
struct Provider {
    url: String,
    audiences: Vec<String>,
    keys: Keys,
    mapping: Mapping,
    algorithms: Vec<String>,
}

/// Checks the tokens of one provider.
#[derive(Debug)]
pub(super) struct Issuer {
    provider: Provider,
    cache: Mutex<HashMap<[u8; 32], Arc<Known>>>,
}

/// A token whose signature was checked.
#[derive(Debug)]
struct Known {
    user: Arc<UserInfo>,
    expires: i64,
    not_before: i64,
}

impl Config {
    fn mapping(&self) -> Mapping {
        let claim = &self.username_claim;
        let prefix = match self.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if claim == "email" => String::new(),
            None => format!("{}#", self.issuer_url),
        };
        let required = self.required_claims.iter();
        Mapping {
            name: From::Claim {
                name: claim.clone(),
                prefix,
            },
            groups: self.groups_claim.clone().map(|name| From::Claim {
                name,
                prefix: self.groups_prefix.clone(),
            }),
            uid: None,
            extra: Vec::new(),
            claim_rules: required
                .map(|(claim, value)| ClaimRule::Equals {
                    claim: claim.clone(),
                    value: value.clone(),
                })
                .collect(),
            user_rules: Vec::new(),
        }
    }
}

impl Issuer {
    /// The provider that flags name.
    pub(super) fn of_flags(config: &Config) -> Result<Self, OidcError> {
        Self::new(Provider {
            keys: Keys::of_file(&config.jwks_file)?,
            url: config.issuer_url.clone(),
            audiences: vec![config.client_id.clone()],
            mapping: config.mapping(),
            algorithms: config.signing_algs.clone(),
        })
    }

    fn new(provider: Provider) -> Result<Self, OidcError> {
        if !provider.url.starts_with("https://") {
            return Err(OidcError::Flag(
                "the issuer's URL must begin with https://".to_owned(),
            ));
        }
        let unknown = |alg: &&String| !ALGORITHMS.contains(&alg.as_str());
        if let Some(alg) = provider.algorithms.iter().find(unknown) {
            return Err(OidcError::Flag(format!(
                "the algorithm {alg:?} is not supported"
            )));
        }
        Ok(Self {
            provider,
            cache: Mutex::default(),
        })
    }

    /// Whether a token says that it is of this provider.
    pub(super) fn claims(&self, token: &str) -> bool {
        if token.len() > TOKEN_LEN_MAX {
            return false;
        }
        let payload = token.split('.').nth(1).and_then(decoded);
        payload.is_some_and(|payload| payload["iss"] == *self.provider.url)
    }

    /// The user of a token.
    pub(super) async fn verify(&self, token: &str, now_secs: i64) -> Result<Arc<UserInfo>, String> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let cached = self.cache.lock().get(&digest).cloned();
        let known = match cached {
            Some(known) => known,
            None => {
                let known = Arc::new(self.check(token).await?);
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

    async fn check(&self, token: &str) -> Result<Known, String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("it is no JWT")?;
        let (header, payload) = signed.split_once('.').ok_or("it is no JWT")?;
        let header = decoded(header).ok_or("its header is no JSON")?;
        let claims = decoded(payload).ok_or("its claims are no JSON")?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| "its signature is not base64")?;
        let alg = header["alg"].as_str().unwrap_or_default();
        if !self.provider.algorithms.iter().any(|one| one == alg) {
            return Err(format!("the algorithm {alg:?} is not accepted"));
        }
        // What costs nothing comes first: only tokens that are meant for here can make the provider be asked for keys.
        self.check_audience(&claims)?;
        self.provider
            .keys
            .check(alg, header["kid"].as_str(), signed.as_bytes(), &signature)
            .await?;
        self.user(&claims)
    }

    fn check_audience(&self, claims: &Value) -> Result<(), String> {
        let Provider { url, audiences, .. } = &self.provider;
        if claims["iss"] != **url {
            return Err("it is of another issuer".to_owned());
        }
        let given = &claims["aud"];
        let is_ours = |one: &Value| {
            one.as_str()
                .is_some_and(|one| audiences.iter().any(|ours| ours == one))
        };
        if is_ours(given) || given.as_array().is_some_and(|all| all.iter().any(is_ours)) {
            return Ok(());
        }
        Err("it is for another audience".to_owned())
    }

    fn user(&self, claims: &Value) -> Result<Known, String> {
        let number = |name: &str| {
            claims[name].as_f64().map(|seconds| {
                #[allow(clippy::cast_possible_truncation, reason = "seconds since 1970")]
                let seconds = seconds as i64;
                seconds
            })
        };
        let mut user = self.provider.mapping.user(claims)?;
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
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
}

fn decoded(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests;
