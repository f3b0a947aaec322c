//! What a namespace's labels say.

use std::fmt;

use cox_api::meta;
use cox_api::validation::FieldError;
use serde_json::Value;

pub(super) const NO_LEVEL: &str = "must be one of privileged, baseline, restricted";
pub(super) const NO_VERSION: &str = "must be \"latest\" or \"v1.x\"";

/// How much Pods may do; the stricter the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The minor version of the rules; none for the latest.
pub(super) type Minor = Option<u32>;

/// A level with the version of its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) level: Level,
    pub(super) version: Minor,
}

/// All three.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) enforce: Mode,
    pub(super) audit: Mode,
    pub(super) warn: Mode,
    pub(super) errors: Vec<FieldError>,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

pub(super) fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

pub(super) fn version(text: &str) -> Option<Minor> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain = minor == "0" || !minor.starts_with('0');
    if !plain || !minor.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    minor.parse().ok().map(Some)
}

/// Asks for nothing.
impl Default for Policy {
    fn default() -> Self {
        let nothing = Mode {
            level: Level::Privileged,
            version: None,
        };
        Policy {
            enforce: nothing,
            audit: nothing,
            warn: nothing,
            errors: Vec::new(),
        }
    }
}

impl Policy {
    /// Reads the labels of a namespace; what they do not say is as in `defaults`. What is no level is the strictest one to enforce,
    /// and none to audit or warn about.
    pub(super) fn read(namespace: &Value, defaults: &Policy) -> Self {
        let mut policy = defaults.clone();
        let errors = &mut policy.errors;
        let enforced = read_mode(
            namespace,
            "enforce",
            Level::Restricted,
            &mut policy.enforce,
            errors,
        );
        let lenient = Level::Privileged;
        read_mode(namespace, "audit", lenient, &mut policy.audit, errors);
        read_mode(namespace, "warn", lenient, &mut policy.warn, errors);
        let label =
            |mode: &str| meta::label(namespace, &format!("pod-security.kubernetes.io/{mode}"));
        if label("warn").is_none() && enforced && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label("warn-version").is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        policy
    }

    /// Each mode with its name.
    pub(super) fn modes(&self) -> [(&'static str, Mode); 3] {
        [
            ("enforce", self.enforce),
            ("audit", self.audit),
            ("warn", self.warn),
        ]
    }

    /// Nothing is ever refused, noted or warned about.
    pub(super) fn is_privileged(&self) -> bool {
        let lenient = |(_, mode): (_, Mode)| mode.level == Level::Privileged;
        self.errors.is_empty() && self.modes().into_iter().all(lenient)
    }
}

/// Reads the two labels of a mode. Says whether its level is there, and is one.
fn read_mode(
    namespace: &Value,
    name: &str,
    wrong: Level,
    mode: &mut Mode,
    errors: &mut Vec<FieldError>,
) -> bool {
    let key = format!("pod-security.kubernetes.io/{name}");
    let of_version = format!("{key}-version");
    let mut complain = |key: &str, value: &str, why: &str| {
        errors.push(FieldError::invalid(
            format!("metadata.labels[{key}]"),
            value,
            why,
        ));
    };
    let mut valid = false;
    if let Some(text) = meta::label(namespace, &key) {
        let found = level(text);
        if found.is_none() {
            complain(&key, text, NO_LEVEL);
        }
        valid = found.is_some();
        mode.level = found.unwrap_or(wrong);
    }
    if let Some(text) = meta::label(namespace, &of_version) {
        let found = version(text);
        if found.is_none() {
            complain(&of_version, text, NO_VERSION);
        }
        mode.version = found.unwrap_or(None);
    }
    valid
}
