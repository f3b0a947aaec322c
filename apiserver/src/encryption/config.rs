//! The file: which resources, which providers, which keys; with the place of what is wrong.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::ciphers::{Cipher, Key};

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// No such file, or not readable.
    #[error("the encryption configuration {} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("the encryption configuration is wrong: {0}")]
    Wrong(String),
}

/// Resources and what is done to them.
pub(super) struct Rule {
    pub(super) resources: Vec<Pattern>,
    pub(super) providers: Vec<Provider>,
}

/// One way of keeping.
pub(super) enum Provider {
    /// As it is.
    Identity,
    /// Sealed; the first key seals.
    Keys(Vec<Key>),
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.` (all of the core group) or `*.*`.
#[derive(Debug)]
pub(super) struct Pattern {
    plural: String,
    group: String,
}

impl Pattern {
    fn read(text: &str) -> Self {
        let (plural, group) = text.split_once('.').unwrap_or((text, ""));
        Self {
            plural: plural.to_owned(),
            group: group.to_owned(),
        }
    }

    pub(super) fn names(&self, group: &str, plural: &str) -> bool {
        let is = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        is(&self.plural, plural) && is(&self.group, group)
    }
}

fn wrong(place: &str, why: &str) -> EncryptionError {
    EncryptionError::Wrong(format!("{place}: {why}"))
}

fn items<'a>(value: &'a Value, place: &str) -> Result<&'a [Value], EncryptionError> {
    match value.as_array() {
        Some(items) if !items.is_empty() => Ok(items),
        _ => Err(wrong(place, "at least one is needed")),
    }
}

pub(super) fn read(value: &Value) -> Result<Vec<Rule>, EncryptionError> {
    if value["kind"] != "EncryptionConfiguration" {
        return Err(wrong("kind", "must be EncryptionConfiguration"));
    }
    if value["apiVersion"] != "apiserver.config.k8s.io/v1" {
        return Err(wrong("apiVersion", "must be apiserver.config.k8s.io/v1"));
    }
    let rules = items(&value["resources"], "resources")?.iter().enumerate();
    rules
        .map(|(at, one)| rule(one, &format!("resources[{at}]")))
        .collect()
}

fn rule(value: &Value, place: &str) -> Result<Rule, EncryptionError> {
    let names = items(&value["resources"], &format!("{place}.resources"))?;
    let names = names.iter().map(|name| name.as_str().map(Pattern::read));
    let resources = names
        .collect::<Option<_>>()
        .ok_or_else(|| wrong(place, "resources are names"))?;
    let providers = items(&value["providers"], &format!("{place}.providers"))?;
    let providers = providers.iter().enumerate();
    Ok(Rule {
        resources,
        providers: providers
            .map(|(at, one)| provider(one, &format!("{place}.providers[{at}]")))
            .collect::<Result<_, _>>()?,
    })
}

fn provider(value: &Value, place: &str) -> Result<Provider, EncryptionError> {
    let one = value
        .as_object()
        .filter(|object| object.len() == 1)
        .and_then(|object| object.iter().next());
    let Some((name, of)) = one else {
        return Err(wrong(
            place,
            "must be exactly one of identity, aescbc, aesgcm, secretbox",
        ));
    };
    if name == "identity" {
        return Ok(Provider::Identity);
    }
    let cipher = Cipher::named(name)
        .ok_or_else(|| wrong(place, "must be one of identity, aescbc, aesgcm, secretbox"))?;
    let place = format!("{place}.{name}.keys");
    let keys = items(&of["keys"], &place)?.iter().enumerate();
    keys.map(|(at, one)| key(cipher, one, &format!("{place}[{at}]")))
        .collect::<Result<_, _>>()
        .map(Provider::Keys)
}

fn key(cipher: Cipher, value: &Value, place: &str) -> Result<Key, EncryptionError> {
    let name = value["name"].as_str().unwrap_or_default();
    if name.is_empty() || name.contains(':') {
        return Err(wrong(
            &format!("{place}.name"),
            "must not be empty and have no colon",
        ));
    }
    let place = format!("{place}.secret");
    let secret = STANDARD
        .decode(value["secret"].as_str().unwrap_or_default())
        .map_err(|_| wrong(&place, "must be base64"))?;
    Key::new(cipher, name, &secret).ok_or_else(|| wrong(&place, cipher.lengths()))
}
