//! What a namespace's labels say.

use std::fmt;

use cox_api::meta;
use cox_api::validation::FieldError;
use serde_json::Value;

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

fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn version(text: &str) -> Option<Minor> {
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

impl Policy {
    /// Reads the labels of a namespace. What is no level is the strictest one to enforce, and none to audit or warn about.
    pub(super) fn read(namespace: &Value) -> Self {
        let mut errors = Vec::new();
        let enforce = mode(namespace, "enforce", Level::Restricted, &mut errors);
        let audit = mode(namespace, "audit", Level::Privileged, &mut errors);
        let warn = mode(namespace, "warn", Level::Privileged, &mut errors);
        let nothing = Mode {
            level: Level::Privileged,
            version: None,
        };
        let enforced = enforce.valid_level;
        let mut policy = Policy {
            enforce: enforce.mode.unwrap_or(nothing),
            audit: audit.mode.unwrap_or(nothing),
            warn: warn.mode.unwrap_or(nothing),
            errors,
        };
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

    /// Nothing is ever refused, noted or warned about.
    pub(super) fn is_privileged(&self) -> bool {
        let modes = [self.enforce, self.audit, self.warn];
        self.errors.is_empty() && modes.iter().all(|mode| mode.level == Level::Privileged)
    }
}

struct Read {
    mode: Option<Mode>,
    valid_level: bool,
}

fn mode(namespace: &Value, name: &str, wrong: Level, errors: &mut Vec<FieldError>) -> Read {
    let key = format!("pod-security.kubernetes.io/{name}");
    let of_version = format!("{key}-version");
    let mut read = Read {
        mode: None,
        valid_level: false,
    };
    let mut complain = |key: &str, value: &str, why: &str| {
        errors.push(FieldError::invalid(
            format!("metadata.labels[{key}]"),
            value,
            why,
        ));
    };
    if let Some(text) = meta::label(namespace, &key) {
        let found = level(text);
        if found.is_none() {
            let why = "must be one of privileged, baseline, restricted";
            complain(&key, text, why);
        }
        read.valid_level = found.is_some();
        read.mode = Some(Mode {
            level: found.unwrap_or(wrong),
            version: None,
        });
    }
    if let Some(text) = meta::label(namespace, &of_version) {
        let found = version(text);
        if found.is_none() {
            complain(&of_version, text, "must be \"latest\" or \"v1.x\"");
        }
        let present = read.mode.unwrap_or(Mode {
            level: Level::Privileged,
            version: None,
        });
        read.mode = Some(Mode {
            version: found.unwrap_or(None),
            ..present
        });
    }
    read
}
