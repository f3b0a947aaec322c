//! Webhook token authentication: a server outside is asked whose a token is, with a TokenReview, and its answers are remembered for
//! a while.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cox_api::meta::strings;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::UserInfo;
use super::remembered::Remembered;
use super::remote::Remote;
use super::user::AUTHENTICATED;
use super::webhook::ReviewVersion;
use crate::config_file::ConfigError;

/// Answers remembered.
const CACHE_LEN_MAX: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Upstream's `--authentication-token-webhook-*`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long answers are remembered.
    pub ttl: Duration,
}

/// Token, audiences: what an answer is about.
type Asked = ([u8; 32], Vec<String>);
/// The user and the audiences that the token is for; none for a token that nobody knows.
type Answered = Option<(UserInfo, Vec<String>)>;

/// Asks.
#[derive(Debug)]
pub(super) struct TokenWebhook {
    remote: Remote,
    version: ReviewVersion,
    ttl: Duration,
    known: Remembered<Asked, Answered>,
}

impl TokenWebhook {
    pub(super) fn open(config: &Config) -> Result<Self, ConfigError> {
        let version = ReviewVersion::parse(&config.version).ok_or_else(|| {
            ConfigError::Flags(format!(
                "--authentication-token-webhook-version: {:?} is neither v1 nor v1beta1",
                config.version
            ))
        })?;
        let remote = Remote::of_kubeconfig(&config.kubeconfig)
            .map_err(|error| ConfigError::Flags(error.to_string()))?;
        Ok(Self {
            remote,
            version,
            ttl: config.ttl,
            known: Remembered::new(CACHE_LEN_MAX),
        })
    }

    /// Whose the token is; `own` are the audiences of this server, which a webhook that says nothing of audiences means.
    pub(super) async fn ask(
        &self,
        token: &str,
        wanted: &[String],
        own: &[String],
    ) -> Result<Answered, String> {
        let key = (Sha256::digest(token).into(), wanted.to_vec());
        if let Some(known) = self.known.get(&key) {
            return Ok(known);
        }
        let review = json!({
            "kind": "TokenReview", "apiVersion": self.version.of_group("authentication.k8s.io"), "metadata": {},
            "spec": {"token": token, "audiences": wanted}, "status": {"user": {}},
        });
        let answer = self
            .remote
            .post(&review, TIMEOUT)
            .await
            .inspect_err(|why| {
                tracing::warn!(%why, "The token webhook could not be asked");
            })?;
        let answered = read(&answer, wanted, own)?;
        self.known.put(key, answered.clone(), self.ttl);
        Ok(answered)
    }
}

fn read(answer: &Value, wanted: &[String], own: &[String]) -> Result<Answered, String> {
    let status = &answer["status"];
    if answer["kind"] != "TokenReview" || !status.is_object() {
        return Err("the answer is no TokenReview with a status".to_owned());
    }
    if status["authenticated"] != true {
        return Ok(None);
    }
    let given = strings(&status["audiences"]);
    let given = if given.is_empty() { own } else { &given };
    let shared = wanted.iter().filter(|one| given.contains(one));
    let shared: Vec<String> = shared.cloned().collect();
    if shared.is_empty() {
        return Ok(None);
    }
    let user = &status["user"];
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    if text("username").is_empty() {
        return Err("the answer names no user".to_owned());
    }
    let extra = user["extra"].as_object().into_iter().flatten();
    let extra: BTreeMap<_, _> = extra
        .map(|(key, values)| (key.clone(), strings(values)))
        .collect();
    let mut user = UserInfo {
        name: text("username"),
        uid: text("uid"),
        groups: strings(&user["groups"]),
        extra,
    };
    if !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    Ok(Some((user, shared)))
}
