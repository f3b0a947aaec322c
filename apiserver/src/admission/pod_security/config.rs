//! What the cluster's administrator says of PodSecurity in `--admission-control-config-file`: what holds in namespaces that say
//! nothing, and to whom none of it applies.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/enforce-standards-admission-controller/>

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::policy::{Mode, NO_LEVEL, NO_VERSION, Policy, level, version};
use crate::config_file::{self, ConfigError};

/// The configuration in force.
#[derive(Debug, Default)]
pub(crate) struct PodSecurity {
    pub(super) defaults: Policy,
    pub(super) exempt: Exemptions,
}

/// To whom nothing applies.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Exemptions {
    pub(super) usernames: Vec<String>,
    pub(super) namespaces: Vec<String>,
    pub(super) runtime_classes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugin {
    name: String,
    path: Option<PathBuf>,
    configuration: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: Option<String>,
    enforce_version: Option<String>,
    audit: Option<String>,
    audit_version: Option<String>,
    warn: Option<String>,
    warn_version: Option<String>,
}

impl PodSecurity {
    /// Reads an AdmissionConfiguration. Other plugins than PodSecurity take none here, and are refused rather than passed over.
    ///
    /// # Errors
    /// The place of what is wrong.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let wrong = |path: &Path, reason: String| ConfigError::File {
            path: path.to_owned(),
            reason,
        };
        let file: File = config_file::read(path, "AdmissionConfiguration", &["v1"])?;
        let mut read = None;
        for (at, plugin) in file.plugins.into_iter().enumerate() {
            let place = format!("plugins[{at}]");
            if plugin.name != "PodSecurity" || read.is_some() {
                let name = plugin.name;
                let reason = format!(
                    "{place}.name: only PodSecurity, and only once, takes a configuration, not {name:?}"
                );
                return Err(wrong(path, reason));
            }
            let (source, object) = match (plugin.path, plugin.configuration) {
                (Some(file), None) => {
                    // As upstream's: beside the file that names it.
                    let file = path.parent().unwrap_or(Path::new("")).join(file);
                    let text = std::fs::read(&file).map_err(|source| ConfigError::Read {
                        path: file.clone(),
                        source,
                    })?;
                    let object = cox_api::codec::yaml_value(&text)
                        .map_err(|error| wrong(&file, error.to_string()))?;
                    (file, object)
                }
                (None, Some(object)) => (path.to_owned(), object),
                _ => {
                    let reason = format!("{place}: must have either path or configuration");
                    return Err(wrong(path, reason));
                }
            };
            read = Some(understood(object).map_err(|reason| wrong(&source, reason))?);
        }
        Ok(read.unwrap_or_default())
    }
}

fn understood(object: Value) -> Result<PodSecurity, String> {
    let group = "pod-security.admission.config.k8s.io";
    let Fields {
        defaults,
        exemptions,
    } = config_file::of_kind(object, group, "PodSecurityConfiguration", &["v1"])?;
    let mut policy = Policy::default();
    let modes = [
        (
            "enforce",
            &mut policy.enforce,
            defaults.enforce,
            defaults.enforce_version,
        ),
        (
            "audit",
            &mut policy.audit,
            defaults.audit,
            defaults.audit_version,
        ),
        (
            "warn",
            &mut policy.warn,
            defaults.warn,
            defaults.warn_version,
        ),
    ];
    for (name, mode, level, version) in modes {
        set(mode, name, level.as_deref(), version.as_deref())?;
    }
    let lists = [
        ("usernames", &exemptions.usernames),
        ("namespaces", &exemptions.namespaces),
        ("runtimeClasses", &exemptions.runtime_classes),
    ];
    for (field, names) in lists {
        for (at, name) in names.iter().enumerate() {
            if name.is_empty() {
                return Err(format!("exemptions.{field}[{at}]: must not be empty"));
            }
            if names[..at].contains(name) {
                return Err(format!("exemptions.{field}[{at}]: {name:?} stands twice"));
            }
        }
    }
    Ok(PodSecurity {
        defaults: policy,
        exempt: exemptions,
    })
}

fn set(
    mode: &mut Mode,
    name: &str,
    level_text: Option<&str>,
    version_text: Option<&str>,
) -> Result<(), String> {
    if let Some(text) = level_text {
        mode.level = level(text).ok_or_else(|| format!("defaults.{name}: {text:?} {NO_LEVEL}"))?;
    }
    if let Some(text) = version_text {
        mode.version = version(text)
            .ok_or_else(|| format!("defaults.{name}-version: {text:?} {NO_VERSION}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::policy::Level;
    use super::*;

    fn read(text: &str) -> Result<PodSecurity, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admission.yaml");
        std::fs::write(&path, text).unwrap();
        PodSecurity::read(&path)
            .map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
    }

    fn file(configuration: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- name: PodSecurity\n  configuration: \
             {{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, {configuration}}}\n"
        )
    }

    #[test]
    fn defaults_and_exemptions_are_read() {
        let text = file(
            "defaults: {enforce: baseline, enforce-version: v1.30, warn: restricted}, exemptions: {usernames: [u], namespaces: [ns], runtimeClasses: [wasm]}",
        );
        let read = read(&text).unwrap();
        let shown = read.defaults.modes().map(|(_, mode)| mode.to_string());
        assert_eq!(
            shown,
            ["baseline:v1.30", "privileged:latest", "restricted:latest"]
        );
        assert_eq!(read.exempt.namespaces, ["ns"]);
        assert_eq!(read.exempt.usernames, ["u"]);
        assert_eq!(read.exempt.runtime_classes, ["wasm"]);
    }

    #[test]
    fn a_file_of_its_own_is_looked_for_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admission.yaml");
        std::fs::write(&path, "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins: [{name: PodSecurity, path: ps.yaml}]\n").unwrap();
        let missing = PodSecurity::read(&path).unwrap_err().to_string();
        assert!(missing.ends_with("ps.yaml cannot be read"), "{missing}");
        std::fs::write(dir.path().join("ps.yaml"), "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\ndefaults: {audit: restricted}\n").unwrap();
        let read = PodSecurity::read(&path).unwrap();
        assert_eq!(read.defaults.audit.level, Level::Restricted);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (configuration, expected) in [
            (
                "defaults: {enforce: strict}",
                "FILE is wrong: defaults.enforce: \"strict\" must be one of privileged, baseline, restricted",
            ),
            (
                "defaults: {warn-version: '1.30'}",
                "FILE is wrong: defaults.warn-version: \"1.30\" must be \"latest\" or \"v1.x\"",
            ),
            (
                "exemptions: {namespaces: [a, a]}",
                "FILE is wrong: exemptions.namespaces[1]: \"a\" stands twice",
            ),
            (
                "exemptions: {usernames: ['']}",
                "FILE is wrong: exemptions.usernames[0]: must not be empty",
            ),
        ] {
            assert_eq!(read(&file(configuration)).unwrap_err(), expected);
        }
        let unknown = read(&file("exemption: {}")).unwrap_err();
        assert!(unknown.contains("unknown field `exemption`"), "{unknown}");
        let other = read(&file("").replace("PodSecurity\n", "EventRateLimit\n")).unwrap_err();
        assert_eq!(
            other,
            "FILE is wrong: plugins[0].name: only PodSecurity, and only once, takes a configuration, not \"EventRateLimit\""
        );
    }
}
