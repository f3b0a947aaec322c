//! Upstream's `CredentialProviderConfig`: which plugins there are, for which images, and how they are called.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cox_api::codec::go_duration;
use serde::Deserialize;

use super::CredentialSources;

const CONFIG_VERSIONS: [&str; 3] = [
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
const PLUGIN_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Why plugins cannot be used. A node that cannot pull as it is told does not start.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// One of the two is missing.
    #[error("credential providers need both a configuration and a folder of plugins")]
    Half,
    /// A file or folder.
    #[error("the credential provider configuration {path} cannot be read")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is wrong with it.
    #[error("the credential provider configuration {path}: {message}")]
    Invalid {
        /// Which one.
        path: PathBuf,
        /// With the provider's name.
        message: String,
    },
}

/// How one plugin is called.
#[derive(Clone, Debug)]
pub(super) struct Provider {
    pub(super) program: PathBuf,
    pub(super) name: String,
    pub(super) match_images: Vec<String>,
    pub(super) cache: Duration,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Env>>,
    #[serde(default)]
    token_attributes: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Env {
    name: String,
    value: String,
}

/// Reads the configuration; none is no plugins.
pub(super) fn read(sources: &CredentialSources) -> Result<Vec<Provider>, ProviderConfigError> {
    let (config, bin_dir) = match (&sources.provider_config, &sources.provider_bin_dir) {
        (None, None) => return Ok(Vec::new()),
        (Some(config), Some(bin_dir)) => (config, bin_dir),
        _ => return Err(ProviderConfigError::Half),
    };
    let mut providers = Vec::new();
    let mut names = HashSet::new();
    for path in files(config)? {
        let text = std::fs::read_to_string(&path).map_err(|source| ProviderConfigError::Read {
            path: path.clone(),
            source,
        })?;
        for provider in
            parse(&text, bin_dir, &mut names).map_err(|message| ProviderConfigError::Invalid {
                path: path.clone(),
                message,
            })?
        {
            providers.push(provider);
        }
    }
    Ok(providers)
}

/// The file itself, or those of a folder in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, ProviderConfigError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |source| ProviderConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if matches!(
            file.extension().and_then(|end| end.to_str()),
            Some("yaml" | "yml" | "json")
        ) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(text: &str, bin_dir: &Path, names: &mut HashSet<String>) -> Result<Vec<Provider>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if file.kind != "CredentialProviderConfig"
        || !CONFIG_VERSIONS.contains(&file.api_version.as_str())
    {
        return Err(format!(
            "{} {} is not a CredentialProviderConfig",
            file.api_version, file.kind
        ));
    }
    if file.providers.is_empty() {
        return Err("at least one provider is required".into());
    }
    let one = |entry: Entry| {
        let name = entry.name.clone();
        provider(entry, bin_dir, names).map_err(|why| format!("provider \"{name}\": {why}"))
    };
    file.providers.into_iter().map(one).collect()
}

fn provider(entry: Entry, bin_dir: &Path, names: &mut HashSet<String>) -> Result<Provider, String> {
    let name = entry.name;
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', ' ']) {
        return Err("its name must be the name of a file in the folder of plugins".into());
    }
    if !names.insert(name.clone()) {
        return Err("there is another of this name".into());
    }
    if entry.match_images.is_empty() {
        return Err("matchImages is required".into());
    }
    if !PLUGIN_VERSIONS.contains(&entry.api_version.as_str()) {
        return Err(format!(
            "apiVersion \"{}\" is none of {}",
            entry.api_version,
            PLUGIN_VERSIONS.join(", ")
        ));
    }
    if entry.token_attributes.is_some() {
        return Err(
            "tokenAttributes (service account tokens for plugins) is not supported by this kubelet"
                .into(),
        );
    }
    let duration = entry
        .default_cache_duration
        .ok_or("defaultCacheDuration is required")?;
    let cache = go_duration(&duration)
        .ok_or_else(|| format!("defaultCacheDuration \"{duration}\" is not a duration"))?;
    let program = bin_dir.join(&name);
    if !program.is_file() {
        return Err(format!("{} is not there", program.display()));
    }
    Ok(Provider {
        program,
        name,
        match_images: entry.match_images,
        cache,
        api_version: entry.api_version,
        args: entry.args.unwrap_or_default(),
        env: entry
            .env
            .into_iter()
            .flatten()
            .map(|env| (env.name, env.value))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(provider: &str) -> String {
        format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- {provider}\n"
        )
    }

    #[test]
    fn what_is_wrong_is_said_with_the_provider_s_name() {
        let bin = tempfile::tempdir().unwrap();
        std::fs::write(bin.path().join("ecr"), "").unwrap();
        let version = "credentialprovider.kubelet.k8s.io/v1";
        for (case, provider, expected) in [
            (
                "all is well",
                format!(
                    "{{name: ecr, matchImages: ['*.io'], defaultCacheDuration: 12h, apiVersion: {version}, args: [get], env: [{{name: A, value: b}}]}}"
                ),
                "",
            ),
            (
                "not there",
                format!(
                    "{{name: gcr, matchImages: ['*.io'], defaultCacheDuration: 12h, apiVersion: {version}}}"
                ),
                "\"gcr\": ",
            ),
            (
                "no duration",
                format!("{{name: ecr, matchImages: ['*.io'], apiVersion: {version}}}"),
                "defaultCacheDuration is required",
            ),
            (
                "no images",
                format!("{{name: ecr, defaultCacheDuration: 0s, apiVersion: {version}}}"),
                "matchImages is required",
            ),
            (
                "another version",
                "{name: ecr, matchImages: ['*.io'], defaultCacheDuration: 0s, apiVersion: v9}"
                    .into(),
                "apiVersion \"v9\"",
            ),
            (
                "a path",
                format!(
                    "{{name: ../ecr, matchImages: ['*.io'], defaultCacheDuration: 0s, apiVersion: {version}}}"
                ),
                "name of a file",
            ),
            (
                "tokens",
                format!(
                    "{{name: ecr, matchImages: ['*.io'], defaultCacheDuration: 0s, apiVersion: {version}, tokenAttributes: {{}}}}"
                ),
                "tokenAttributes",
            ),
        ] {
            let parsed = parse(&config(&provider), bin.path(), &mut HashSet::new());
            match parsed {
                Ok(providers) => {
                    assert_eq!(expected, "", "case: {case}");
                    assert_eq!(
                        (providers[0].cache, providers[0].env["A"].as_str()),
                        (Duration::from_secs(12 * 3600), "b")
                    );
                }
                Err(message) => assert!(
                    !expected.is_empty() && message.contains(expected),
                    "case: {case}: {message}"
                ),
            }
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("0", Some(0)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("20ms", Some(20)),
            ("", None),
            ("5", None),
            ("-1s", None),
            ("1x", None),
        ] {
            assert_eq!(
                go_duration(text),
                millis.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }
}
