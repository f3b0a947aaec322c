//! Which authorizers there are: upstream's `--authorization-*` flags, or the file of `--authorization-config`, which is read again
//! when it changes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::authorizer::{Authorizer, Step};
use super::webhook::{OnFailure, ReviewVersion, Settings, Webhook};
use crate::config_file::{self, ConfigError, GoDuration};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const CONDITIONS_MAX: usize = 64;
const WEBHOOK_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Of webhooks that flags name.
const FLAG_TIMEOUT: Duration = Duration::from_secs(10);

/// Kinds of authorizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The rules of nodes.
    Node,
    /// Roles and their bindings.
    Rbac,
    /// A server outside.
    Webhook,
    /// Everybody may everything.
    AlwaysAllow,
    /// Nobody may anything.
    AlwaysDeny,
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub enum Config {
    /// Upstream's flags.
    Flags {
        /// `--authorization-mode`
        modes: Vec<Mode>,
        /// The webhook of the mode of that name.
        webhook: Option<FlagWebhook>,
    },
    /// Upstream's file.
    File(PathBuf),
}

/// Upstream's `--authorization-webhook-*`.
#[derive(Clone, Debug)]
pub struct FlagWebhook {
    /// Where it is.
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long a yes is remembered.
    pub authorized_ttl: Duration,
    /// How long anything else is.
    pub unauthorized_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self::Flags {
            modes: vec![Mode::Node, Mode::Rbac],
            webhook: None,
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "Node" => Self::Node,
            "RBAC" => Self::Rbac,
            "Webhook" => Self::Webhook,
            "AlwaysAllow" => Self::AlwaysAllow,
            "AlwaysDeny" => Self::AlwaysDeny,
            _ => {
                return Err(format!(
                    "{text:?} is none of Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny"
                ));
            }
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    authorizers: Vec<OfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfFile {
    #[serde(rename = "type")]
    mode: String,
    name: String,
    webhook: Option<WebhookOfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WebhookOfFile {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<GoDuration>,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<GoDuration>,
    cache_unauthorized_requests: Option<bool>,
    timeout: GoDuration,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: Option<String>,
    failure_policy: String,
    connection_info: Connection,
    #[serde(default)]
    match_conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Connection {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    expression: String,
}

/// Lets an authorizer ask whom the configuration names.
///
/// # Errors
/// What is wrong with it.
pub fn configure(authorizer: &Authorizer, config: &Config) -> Result<(), ConfigError> {
    let steps = match config {
        Config::Flags { modes, webhook } => of_flags(modes, webhook.as_ref())?,
        Config::File(path) => of_file(path)?,
    };
    authorizer.follow(steps);
    Ok(())
}

/// Follows the file: what is written there holds from then on. A file that is wrong changes nothing.
pub async fn follow(authorizer: Authorizer, path: PathBuf, cancel: CancellationToken) {
    let mut known = tokio::fs::read(&path).await.ok();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            // Cancel safe: a tick that is lost is only later.
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = tokio::fs::read(&path).await.ok();
        if now == known {
            continue;
        }
        known = now;
        match of_file(&path) {
            Ok(steps) => {
                authorizer.follow(steps);
                tracing::info!(path = %path.display(), "Authorizers changed");
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "The authorizers stay as they were"
                );
            }
        }
    }
}

fn of_flags(modes: &[Mode], webhook: Option<&FlagWebhook>) -> Result<Vec<Step>, ConfigError> {
    let flags = |why: String| ConfigError::Flags(why);
    if modes.is_empty() {
        return Err(flags(
            "--authorization-mode needs at least one mode".to_owned(),
        ));
    }
    if modes.iter().collect::<HashSet<_>>().len() != modes.len() {
        return Err(flags("--authorization-mode names a mode twice".to_owned()));
    }
    if webhook.is_some() != modes.contains(&Mode::Webhook) {
        return Err(flags(
            "--authorization-mode=Webhook and --authorization-webhook-config-file need each other"
                .to_owned(),
        ));
    }
    let step = |mode: &Mode| {
        let Some(webhook) = webhook.filter(|_| *mode == Mode::Webhook) else {
            return Ok(plain(*mode));
        };
        let version = ReviewVersion::parse(&webhook.version).ok_or_else(|| {
            flags(format!(
                "--authorization-webhook-version: {:?} is neither v1 nor v1beta1",
                webhook.version
            ))
        })?;
        let opened = Webhook::open(Settings {
            name: "default".to_owned(),
            kubeconfig: webhook.kubeconfig.clone(),
            version,
            authorized_ttl: Some(webhook.authorized_ttl),
            unauthorized_ttl: Some(webhook.unauthorized_ttl),
            timeout: FLAG_TIMEOUT,
            on_failure: OnFailure::NoOpinion,
            conditions: Vec::new(),
        });
        let opened = opened.map_err(|error| flags(error.to_string()))?;
        Ok(Step::Webhook(Arc::new(opened)))
    };
    modes.iter().map(step).collect()
}

fn plain(mode: Mode) -> Step {
    match mode {
        Mode::Node => Step::Node,
        Mode::Rbac => Step::Rbac,
        Mode::AlwaysAllow => Step::AlwaysAllow,
        // A webhook without a place is refused before this.
        Mode::AlwaysDeny | Mode::Webhook => Step::AlwaysDeny,
    }
}

fn of_file(path: &Path) -> Result<Vec<Step>, ConfigError> {
    let file: File = config_file::read(
        path,
        "AuthorizationConfiguration",
        &["v1", "v1beta1", "v1alpha1"],
    )?;
    steps(file).map_err(|reason| ConfigError::File {
        path: path.to_owned(),
        reason,
    })
}

fn steps(file: File) -> Result<Vec<Step>, String> {
    if file.authorizers.is_empty() {
        return Err("authorizers: at least one authorization mode must be defined".to_owned());
    }
    let (mut modes, mut names) = (HashSet::new(), HashSet::new());
    let mut steps = Vec::new();
    for (at, one) in file.authorizers.into_iter().enumerate() {
        let place = format!("authorizers[{at}]");
        let mode: Mode = one
            .mode
            .parse()
            .map_err(|why| format!("{place}.type: {why}"))?;
        if !modes.insert(mode) && mode != Mode::Webhook {
            return Err(format!("{place}.type: {:?} is there already", one.mode));
        }
        if !cox_api::names::dns_subdomain(&one.name).is_empty() {
            return Err(format!("{place}.name: {:?} is no DNS subdomain", one.name));
        }
        if !names.insert(one.name.clone()) {
            return Err(format!("{place}.name: {:?} is there already", one.name));
        }
        steps.push(match (mode, one.webhook) {
            (Mode::Webhook, None) => {
                return Err(format!("{place}.webhook: required when type=Webhook"));
            }
            (Mode::Webhook, Some(webhook)) => {
                let settings =
                    settings(one.name, webhook).map_err(|why| format!("{place}.webhook.{why}"))?;
                let opened =
                    Webhook::open(settings).map_err(|error| format!("{place}.webhook.{error}"))?;
                Step::Webhook(Arc::new(opened))
            }
            (_, Some(_)) => {
                return Err(format!(
                    "{place}.webhook: may only be specified when type=Webhook"
                ));
            }
            (mode, None) => plain(mode),
        });
    }
    Ok(steps)
}

fn settings(name: String, webhook: WebhookOfFile) -> Result<Settings, String> {
    let ttl = |ttl: Option<GoDuration>, usual: u64, cached: Option<bool>| {
        let ttl = ttl.map(|ttl| ttl.0).filter(|ttl| !ttl.is_zero());
        cached
            .unwrap_or(true)
            .then(|| ttl.unwrap_or(Duration::from_secs(usual)))
    };
    let timeout = webhook.timeout.0;
    if timeout.is_zero() || timeout > WEBHOOK_TIMEOUT_MAX {
        return Err("timeout: must be > 0s and <= 30s".to_owned());
    }
    let version = ReviewVersion::parse(&webhook.subject_access_review_version)
        .ok_or("subjectAccessReviewVersion: must be v1 or v1beta1")?;
    let conditions: Vec<String> = webhook
        .match_conditions
        .into_iter()
        .map(|one| one.expression)
        .collect();
    match webhook
        .match_condition_subject_access_review_version
        .as_deref()
    {
        Some("v1") => {}
        None | Some("") if conditions.is_empty() => {}
        _ => return Err("matchConditionSubjectAccessReviewVersion: must be v1".to_owned()),
    }
    if conditions.len() > CONDITIONS_MAX {
        return Err(format!(
            "matchConditions: must have at most {CONDITIONS_MAX}"
        ));
    }
    let on_failure = match webhook.failure_policy.as_str() {
        "NoOpinion" => OnFailure::NoOpinion,
        "Deny" => OnFailure::Deny,
        _ => return Err("failurePolicy: must be NoOpinion or Deny".to_owned()),
    };
    let connection = webhook.connection_info;
    let kubeconfig = match (connection.kind.as_str(), connection.kube_config_file) {
        ("KubeConfigFile", Some(path)) if path.is_absolute() => path,
        ("KubeConfigFile", _) => {
            return Err("connectionInfo.kubeConfigFile: must be an absolute path".to_owned());
        }
        ("InClusterConfig", _) => {
            return Err(
                "connectionInfo.type: InClusterConfig is for API servers that run in a Pod"
                    .to_owned(),
            );
        }
        _ => return Err("connectionInfo.type: must be KubeConfigFile".to_owned()),
    };
    Ok(Settings {
        name,
        kubeconfig,
        version,
        authorized_ttl: ttl(
            webhook.authorized_ttl,
            300,
            webhook.cache_authorized_requests,
        ),
        unauthorized_ttl: ttl(
            webhook.unauthorized_ttl,
            30,
            webhook.cache_unauthorized_requests,
        ),
        timeout,
        on_failure,
        conditions,
    })
}
