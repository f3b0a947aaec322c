//! Who the node is towards registries: a Pod's pull secrets, the node's docker configuration, and credential provider plugins.
//!
//! In: secrets, files, the answers of plugins. Out: credentials in the order in which a pull tries them. Nothing is kept beyond
//! what a plugin allows, files are read for each pull, and nothing here prints a password.

mod docker;
mod matching;
mod plugin;
mod provider_config;

use std::path::PathBuf;

use cox_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;

pub use provider_config::ProviderConfigError;

use plugin::Plugin;

/// Where a node finds credentials that belong to no Pod.
#[derive(Clone, Debug, Default)]
pub struct CredentialSources {
    /// Docker's `config.json`; those that are not there are left out.
    pub docker_configs: Vec<PathBuf>,
    /// Upstream's `CredentialProviderConfig`, a file or a folder of them.
    pub provider_config: Option<PathBuf>,
    /// Where the plugins are.
    pub provider_bin_dir: Option<PathBuf>,
}

/// The node's own credentials.
#[derive(Debug, Default)]
pub struct NodeCredentials {
    docker_configs: Vec<PathBuf>,
    plugins: Vec<Plugin>,
}

/// Credentials by the images that they are for.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    pattern: String,
    auth: AuthConfig,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    fn add(&mut self, key: &str, auth: AuthConfig) {
        let pattern = matching::pattern_of(key);
        self.entries.push(Entry { pattern, auth });
    }

    /// What fits an image, the most particular first; of two for the same pattern the one that came first.
    fn lookup(&self, image: &str) -> Vec<AuthConfig> {
        let image = matching::whole_name(image);
        let mut fitting: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| matching::fits(&entry.pattern, &image))
            .collect();
        // Reversed: a longer pattern stands before its own beginning, and a letter before a star.
        fitting.sort_by(|one, other| other.pattern.cmp(&one.pattern));
        fitting
            .into_iter()
            .map(|entry| entry.auth.clone())
            .collect()
    }
}

impl NodeCredentials {
    /// Reads what plugins there are.
    ///
    /// # Errors
    /// When the configuration cannot be used, or names a plugin that is not there.
    pub fn open(sources: &CredentialSources) -> Result<Self, ProviderConfigError> {
        let plugins = provider_config::read(sources)?;
        Ok(Self {
            docker_configs: sources.docker_configs.clone(),
            plugins: plugins.into_iter().map(Plugin::new).collect(),
        })
    }

    /// The credentials that a pull of `image` tries, one after the other: the Pod's, then the node's.
    pub(crate) async fn of(
        &self,
        image: &str,
        secrets: &[std::sync::Arc<Secret>],
    ) -> Vec<AuthConfig> {
        let mut found = Vec::new();
        let mut keyring = Keyring::default();
        for secret in secrets {
            docker::add_secret(&mut keyring, secret);
        }
        found.extend(keyring.lookup(image));
        let mut keyring = Keyring::default();
        for path in &self.docker_configs {
            docker::add_file(&mut keyring, path).await;
        }
        found.extend(keyring.lookup(image));
        let mut keyring = Keyring::default();
        for plugin in &self.plugins {
            plugin.add(&mut keyring, image).await;
        }
        found.extend(keyring.lookup(image));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_credentials_come_first() {
        let mut keyring = Keyring::default();
        let named = |username: &str| AuthConfig {
            username: username.into(),
            ..AuthConfig::default()
        };
        for (key, user) in [
            ("*.example.com", "wild"),
            ("https://reg.example.com/v2/", "host"),
            ("reg.example.com/team", "team"),
            ("reg.example.com/team", "second"),
            ("https://index.docker.io/v1/", "hub"),
            ("other.example.com:5000", "port"),
        ] {
            keyring.add(key, named(user));
        }
        for (case, image, users) in [
            (
                "longer before shorter before a star",
                "reg.example.com/team/app:1",
                vec!["team", "second", "host", "wild"],
            ),
            ("another path", "reg.example.com/app", vec!["host", "wild"]),
            ("Docker Hub's short names", "nginx", vec!["hub"]),
            (
                "a port that the key names",
                "other.example.com:5000/a",
                vec!["port", "wild"],
            ),
            (
                "a port that the key does not name",
                "reg.example.com:444/a",
                vec!["host", "wild"],
            ),
            ("a star stands for one part", "a.reg.example.com/x", vec![]),
        ] {
            let found: Vec<String> = keyring
                .lookup(image)
                .into_iter()
                .map(|auth| auth.username)
                .collect();
            assert_eq!(found, users, "case: {case}");
        }
        assert!(
            !format!("{keyring:?}").contains("team\", password"),
            "no password is printed"
        );
    }
}
