//! Service account tokens of Pods: asked for at the API server, kept in memory, renewed at four fifths of their life.

use cox_client::Clock;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::Api;
use kube::api::PostParams;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How long a token lives. The two ends of its life come from two clocks: where they disagree by more than the life that was asked
/// for, that counts.
fn plausible(life: SignedDuration, asked_secs: i64) -> SignedDuration {
    let asked = SignedDuration::from_secs(asked_secs);
    if life.is_positive() && life <= asked * 2 {
        life
    } else {
        asked
    }
}

/// Life of a token whose volume names none.
const DEFAULT_LIFE_SECS: i64 = 3600;
/// A token older than this is renewed however long it lives.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// How long a renewal may take.
const RENEW_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    pod_uid: String,
    audience: Option<String>,
    life_secs: i64,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// A token as it is kept over a restart of the node.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeptToken {
    audience: Option<String>,
    life_secs: i64,
    text: String,
    renew_at: Timestamp,
}

impl std::fmt::Debug for KeptToken {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptToken")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

/// The tokens of all Pods of the node.
pub struct Tokens {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Key, Token>>,
}

impl std::fmt::Debug for Tokens {
    /// Without the tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

/// A token and when to come for the next one.
#[derive(Clone)]
pub struct Issued {
    pub text: String,
    pub renew_at: Timestamp,
    /// At the earliest.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for Issued {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// None is known yet.
    #[must_use]
    pub fn new(client: kube::Client, clock: Arc<dyn Clock>) -> Self {
        Self {
            client,
            clock,
            known: Mutex::default(),
        }
    }

    /// The token for a projection of a Pod: the one at hand if it is young enough, else a new one.
    pub async fn token(
        &self,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<Issued, String> {
        let key = Key {
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            audience: source
                .audience
                .clone()
                .filter(|audience| !audience.is_empty()),
            life_secs: source.expiration_seconds.unwrap_or(DEFAULT_LIFE_SECS),
        };
        let now = self.clock.now();
        let known = self
            .known
            .lock()
            .expect("no panic happens while this lock is held")
            .get(&key)
            .cloned();
        if let Some(token) = known.as_ref().filter(|token| now < token.renew_at) {
            return Ok(Issued {
                text: token.text.clone(),
                renew_at: token.renew_at,
                expires_at: token.expires_at,
            });
        }
        let asked = self.request(pod, &key, now);
        // With an old one at hand nobody waits long for an API server that does not answer.
        let answer = match &known {
            Some(_) => tokio::time::timeout(RENEW_PATIENCE, asked)
                .await
                .unwrap_or_else(|_| Err("failed to fetch token: no answer".to_owned())),
            None => asked.await,
        };
        match answer {
            Ok(token) => {
                self.known
                    .lock()
                    .expect("no panic happens while this lock is held")
                    .insert(key, token.clone());
                Ok(Issued {
                    text: token.text,
                    renew_at: token.renew_at,
                    expires_at: token.expires_at,
                })
            }
            // The old one may still be good: better than none while the API server is away.
            Err(_) if known.is_some() => {
                let expires_at = known.as_ref().map_or(now, |token| token.expires_at);
                let text = known.map(|token| token.text).unwrap_or_default();
                let renew_at = now
                    .saturating_add(SignedDuration::from_secs(30))
                    .unwrap_or(Timestamp::MAX);
                Ok(Issued {
                    text,
                    renew_at,
                    expires_at,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The tokens of a Pod, to be kept.
    #[must_use]
    pub fn of_pod(&self, pod_uid: &str) -> Vec<KeptToken> {
        let known = self
            .known
            .lock()
            .expect("no panic happens while this lock is held");
        let mut tokens: Vec<KeptToken> = known
            .iter()
            .filter(|(key, _)| key.pod_uid == pod_uid)
            .map(|(key, token)| KeptToken {
                audience: key.audience.clone(),
                life_secs: key.life_secs,
                text: token.text.clone(),
                renew_at: token.renew_at,
            })
            .collect();
        tokens.sort_by(|a, b| (&a.audience, a.life_secs).cmp(&(&b.audience, b.life_secs)));
        tokens
    }

    /// Takes over the tokens that were kept of a Pod. One that is due is renewed as soon as the API server answers; until then it
    /// is better than none.
    pub fn take_over(&self, pod_uid: &str, tokens: &[KeptToken]) {
        let mut known = self
            .known
            .lock()
            .expect("no panic happens while this lock is held");
        for token in tokens {
            let key = Key {
                pod_uid: pod_uid.to_owned(),
                audience: token.audience.clone(),
                life_secs: token.life_secs,
            };
            known.entry(key).or_insert_with(|| Token {
                text: token.text.clone(),
                renew_at: token.renew_at,
                // It lives longer; how long was not kept.
                expires_at: token.renew_at,
            });
        }
    }

    async fn request(&self, pod: &Pod, key: &Key, now: Timestamp) -> Result<Token, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = crate::pod::containers::spec(pod)
            .service_account_name
            .as_deref()
            .unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: key.audience.clone().map(|audience| vec![audience]),
                bound_object_ref: Some(bound),
                expiration_seconds: Some(key.life_secs),
            }),
            ..TokenRequest::default()
        };
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await;
        let status = answer
            .map_err(|error| format!("failed to fetch token: {error}"))?
            .status
            .ok_or("failed to fetch token: the answer holds none")?;
        let (Some(expires), Some(text)) = (status.expiration_timestamp, status.token) else {
            return Err("failed to fetch token: the answer holds none".to_owned());
        };
        let life = plausible(expires.0.duration_since(now), key.life_secs);
        let wait = (life * 4 / 5)
            .min(AGE_MAX)
            .max(SignedDuration::from_secs(10));
        Ok(Token {
            text,
            renew_at: now.saturating_add(wait).unwrap_or(Timestamp::MAX),
            expires_at: expires.0,
        })
    }

    /// Forgets the tokens of a Pod that is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.known
            .lock()
            .expect("no panic happens while this lock is held")
            .retain(|key, _| key.pod_uid != pod_uid);
    }
}
