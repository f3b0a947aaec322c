//! What the files of authentication, authorization and admission have in common: reading them strictly, durations, naming the place of
//! what is wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why the server does not start with such a configuration of authentication, authorization or admission.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, or not readable.
    #[error("{} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("{} is wrong: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What, with its place.
        reason: String,
    },
    /// The flags do not fit together.
    #[error("{0}")]
    Flags(String),
}

/// A text such as `1m30s`, as Go writes durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Duration);

/// Reads Go's form of durations.
///
/// # Errors
/// What is not in it.
pub fn go_duration(text: &str) -> Result<Duration, String> {
    cox_api::codec::go_duration(text)
        .ok_or_else(|| format!("{text:?} is no duration such as 30s or 5m"))
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        go_duration(&text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// Reads a file of one kind, in any of these versions of `apiserver.config.k8s.io`. Fields that are not known are errors.
pub(crate) fn read<T: DeserializeOwned>(
    path: &Path,
    kind: &str,
    versions: &[&str],
) -> Result<T, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, kind, versions).map_err(|reason| ConfigError::File {
        path: path.to_owned(),
        reason,
    })
}

pub(crate) fn parse<T: DeserializeOwned>(
    text: &[u8],
    kind: &str,
    versions: &[&str],
) -> Result<T, String> {
    let file = cox_api::codec::yaml_value(text).map_err(|error| error.to_string())?;
    of_kind(file, "apiserver.config.k8s.io", kind, versions)
}

/// The fields of an object that must be of this kind.
pub(crate) fn of_kind<T: DeserializeOwned>(
    mut object: Value,
    group: &str,
    kind: &str,
    versions: &[&str],
) -> Result<T, String> {
    if object["kind"] != kind {
        return Err(format!("kind: must be {kind}"));
    }
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let known = version
        .strip_prefix(group)
        .and_then(|version| version.strip_prefix('/'))
        .is_some_and(|version| versions.contains(&version));
    if !known {
        return Err(format!(
            "apiVersion: must be {group}/{}",
            versions.join(" or ")
        ));
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    serde_json::from_value(object).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("30s", Some(30_000)),
            ("5m0s", Some(300_000)),
            ("1h2m3.5s", Some(3_723_500)),
            ("250ms", Some(250)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("m5", None),
            ("5 m", None),
            ("5mx", None),
            ("-5s", None),
        ] {
            let read = go_duration(text).map(|duration| duration.as_millis());
            assert_eq!(read.ok(), expected, "{text:?}");
        }
    }
}
