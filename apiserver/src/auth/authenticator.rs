//! Finds out who asks: the peer's certificate, a token, or nobody (for health and version only, unless configured otherwise).
//!
//! Inputs: the peer of the connection, the head of a request. Output: a user or 401. Keeps a bounded cache of tokens whose
//! signature was checked; what they are bound to is compared with the store for each request.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use cox_api::status::ApiStatus;
use cox_store::Store;
use http::header::AUTHORIZATION;
use http::request::Parts;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bootstrap_tokens;
use super::bound::{self, Holding};
use super::oidc::{self, Anonymous, Issuer, OidcError};
use super::token_webhook::{self, TokenWebhook};
use super::tokens::{Claims, ISSUER, TokenError, TokenKey};
use super::{Peer, UserInfo};
use crate::config_file::ConfigError;
use crate::pki::Pki;

/// Tokens remembered; above that the memory starts anew.
const CACHE_LEN_MAX: usize = 4096;
/// Paths that need no credentials.
const ANONYMOUS_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// The extra key under which a credential's own name stands.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Authenticates requests.
#[derive(Debug)]
pub struct Authenticator {
    pki: Arc<Pki>,
    key: TokenKey,
    store: Store,
    audiences: Vec<String>,
    issuers: Vec<Issuer>,
    webhook: Option<TokenWebhook>,
    anonymous: Anonymous,
    cache: Mutex<HashMap<[u8; 32], Arc<Known>>>,
}

/// A token whose signature was checked.
#[derive(Debug)]
struct Known {
    claims: Claims,
    user: Arc<UserInfo>,
    holding: Holding,
}

/// A token that holds.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whose it is.
    pub user: Arc<UserInfo>,
    /// The audiences that it shares with those asked for.
    pub audiences: Vec<String>,
}

impl Authenticator {
    /// An authenticator that trusts `pki`'s authority and service account key.
    pub fn new(pki: Arc<Pki>, store: Store) -> Self {
        let key = TokenKey::new(&pki);
        Self {
            pki,
            key,
            store,
            audiences: vec![ISSUER.to_owned()],
            issuers: Vec::new(),
            webhook: None,
            anonymous: Anonymous::At(ANONYMOUS_PATHS.map(str::to_owned).to_vec()),
            cache: Mutex::default(),
        }
    }

    /// Takes over the users of an OpenID provider.
    ///
    /// # Errors
    /// What is wrong with its keys or its flags.
    pub fn trust(&mut self, provider: oidc::Config) -> Result<(), OidcError> {
        self.issuers.push(Issuer::of_flags(&provider)?);
        Ok(())
    }

    /// Takes over the users of the issuers that a file names (`--authentication-config`), and whom it lets in without credentials.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn configure(&mut self, file: &Path) -> Result<(), ConfigError> {
        let (issuers, anonymous) = oidc::read(file)?;
        self.issuers.extend(issuers);
        if let Some(anonymous) = anonymous {
            self.anonymous = anonymous;
        }
        Ok(())
    }

    /// Asks a server outside about tokens that nobody here knows.
    ///
    /// # Errors
    /// What is wrong with its configuration.
    pub fn ask(&mut self, webhook: &token_webhook::Config) -> Result<(), ConfigError> {
        self.webhook = Some(TokenWebhook::open(webhook)?);
        Ok(())
    }

    /// Lets requests without credentials in: everywhere, as far as authorization does, or nowhere at all.
    pub fn let_in_anonymous(&mut self, everywhere: bool) {
        self.anonymous = if everywhere {
            Anonymous::Everywhere
        } else {
            Anonymous::At(Vec::new())
        };
    }

    /// Answers to further audiences.
    pub fn answer_to(&mut self, audiences: &[String]) {
        let new = audiences.iter().filter(|one| one.as_str() != ISSUER);
        self.audiences.extend(new.cloned());
    }

    /// The key that signs tokens.
    pub fn token_key(&self) -> &TokenKey {
        &self.key
    }

    /// The store that tokens are compared with.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The audiences that the API server answers to.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Judges the certificates of a TLS peer, once per connection.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Peer {
        let Some(certificate) = chain.first() else {
            return Peer::Unidentified;
        };
        if let Err(error) = self.pki.verify_client(chain, UnixTime::now()) {
            return Peer::Rejected(error.to_string().into());
        }
        match certificate_user(certificate) {
            Some((user, not_after_secs)) => Peer::Certificate {
                user: Arc::new(user),
                not_after_secs,
            },
            None => Peer::Rejected("the certificate names no user".into()),
        }
    }

    /// Who makes the request. Impersonation comes after this (see [`super::Authorizer::impersonate`]).
    ///
    /// # Errors
    /// 401 for credentials that do not hold, and for none where some are needed.
    pub async fn authenticate(
        &self,
        parts: &Parts,
        peer: &Peer,
    ) -> Result<Arc<UserInfo>, ApiStatus> {
        let now_secs = jiff::Timestamp::now().as_second();
        let failed = match peer {
            Peer::Local(user) => return Ok(user.clone()),
            Peer::Certificate {
                user,
                not_after_secs,
            } if now_secs <= *not_after_secs => return Ok(user.clone()),
            Peer::Certificate { .. } => Some("the client certificate has expired".to_owned()),
            Peer::Rejected(why) => Some(why.to_string()),
            Peer::Unidentified => None,
        };
        if let Some(token) = bearer_token(parts) {
            return self
                .verify_token(token, &self.audiences, now_secs)
                .await
                .map(|verified| verified.user)
                .map_err(|error| {
                    tracing::debug!(%error, "Bearer token refused");
                    ApiStatus::unauthorized()
                });
        }
        if let Some(why) = failed {
            tracing::debug!(%why, "Client certificate refused");
            return Err(ApiStatus::unauthorized());
        }
        let let_in = match &self.anonymous {
            Anonymous::Everywhere => true,
            Anonymous::At(paths) => paths.iter().any(|path| path == parts.uri.path()),
        };
        if let_in {
            return Ok(Arc::new(UserInfo::anonymous()));
        }
        Err(ApiStatus::unauthorized())
    }

    /// Whether a token holds for one of `audiences`.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn verify_token(
        &self,
        token: &str,
        audiences: &[String],
        now_secs: i64,
    ) -> Result<Verified, TokenError> {
        let own = match self.issuers.iter().find(|issuer| issuer.claims(token)) {
            Some(issuer) => {
                Box::pin(self.verify_provided(issuer, token, audiences, now_secs)).await
            }
            None => self.verify_own(token, audiences, now_secs),
        };
        let (Err(refused), Some(webhook)) = (&own, &self.webhook) else {
            return own;
        };
        match Box::pin(webhook.ask(token, audiences, &self.audiences)).await {
            Ok(Some((user, audiences))) => Ok(Verified {
                user: Arc::new(user),
                audiences,
            }),
            Ok(None) => Err(refused.clone()),
            Err(why) => Err(TokenError::Webhook(why)),
        }
    }

    /// A token of a provider speaks to this server and to nobody else.
    async fn verify_provided(
        &self,
        issuer: &Issuer,
        token: &str,
        audiences: &[String],
        now_secs: i64,
    ) -> Result<Verified, TokenError> {
        let audiences = self.own_of(audiences)?;
        let user = issuer.verify(token, now_secs).await;
        Ok(Verified {
            user: user.map_err(TokenError::Provider)?,
            audiences,
        })
    }

    /// Those of the audiences that this server is.
    fn own_of(&self, audiences: &[String]) -> Result<Vec<String>, TokenError> {
        let shared = audiences.iter().filter(|one| self.audiences.contains(one));
        let shared: Vec<String> = shared.cloned().collect();
        if shared.is_empty() {
            return Err(TokenError::Audience(self.audiences.clone()));
        }
        Ok(shared)
    }

    /// A token of this cluster: of a service account, or for a node that joins.
    fn verify_own(
        &self,
        token: &str,
        audiences: &[String],
        now_secs: i64,
    ) -> Result<Verified, TokenError> {
        let snapshot = self.store.snapshot();
        if let Some(parts) = bootstrap_tokens::parts(token) {
            // Such a token speaks to this server and to nobody else.
            let audiences = self.own_of(audiences)?;
            return Ok(Verified {
                user: bootstrap_tokens::check(&snapshot, parts, now_secs)?,
                audiences,
            });
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let cached = self.cache.lock().get(&digest).cloned();
        let known = match cached {
            Some(known) if known.holding.still(&snapshot, now_secs) => known,
            cached => {
                let claims = match cached {
                    Some(known) => known.claims.clone(),
                    None => self.key.verify(token)?,
                };
                let holding = bound::check(&snapshot, &claims, now_secs)?;
                let known = Arc::new(Known {
                    user: Arc::new(token_user(&claims)),
                    claims,
                    holding,
                });
                self.remember(digest, known.clone());
                known
            }
        };
        known.claims.check_times(now_secs)?;
        let audiences = known.claims.shared_audiences(audiences)?;
        Ok(Verified {
            user: known.user.clone(),
            audiences,
        })
    }

    fn remember(&self, digest: [u8; 32], known: Arc<Known>) {
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_LEN_MAX {
            cache.clear();
        }
        cache.insert(digest, known);
    }
}

/// The token of an `Authorization: Bearer` header.
fn bearer_token(parts: &Parts) -> Option<&str> {
    let (scheme, token) = parts
        .headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .trim()
        .split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The user that a certificate names (its common name, with its organizations as groups), and when it ends.
fn certificate_user(certificate: &CertificateDer<'_>) -> Option<(UserInfo, i64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .to_owned();
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = parsed
        .subject()
        .iter_organization()
        .filter_map(|one| one.as_str().ok())
        .collect();
    let mut user = UserInfo::new(name, groups);
    let fingerprint: String = Sha256::digest(certificate)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    user.extra.insert(
        CREDENTIAL_ID.to_owned(),
        vec![format!("X509SHA256={fingerprint}")],
    );
    Some((user, parsed.validity().not_after.timestamp()))
}

fn token_user(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let account = &bound.serviceaccount;
    let mut user = UserInfo::service_account(&bound.namespace, &account.name, &account.uid);
    user.extra.insert(
        CREDENTIAL_ID.to_owned(),
        vec![format!("JTI={}", claims.jti)],
    );
    for (what, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        let Some(reference) = reference else { continue };
        let key = |field: &str| format!("authentication.kubernetes.io/{what}-{field}");
        user.extra.insert(key("name"), vec![reference.name.clone()]);
        if !reference.uid.is_empty() {
            user.extra.insert(key("uid"), vec![reference.uid.clone()]);
        }
    }
    user
}
