//! Encryption at rest, by upstream's EncryptionConfiguration: what is kept of chosen resources outside of this process is sealed.
//!
//! Owns the keys and which resource is sealed how; the bytes are upstream's, so either server reads what the other sealed. The first
//! provider of a resource seals, all of them unseal: a key is rotated by putting a new one in front. Objects that were found under
//! an older key (or none) are remembered, so that writing them again as they are seals them anew.
//!
//! Keys never show in logs or errors. There is no provider outside of this process (KMS).

mod ciphers;
mod config;

use std::collections::HashSet;
use std::path::Path;

use cox_api::codec;
use cox_store::{ObjectKey, Sealer};
use parking_lot::Mutex;

use crate::registry::catalog;
use ciphers::Key;
pub use config::EncryptionError;
use config::{Pattern, Provider, Rule};

/// What every sealed value begins with.
const SEALED: &[u8] = b"k8s:enc:";

/// Keys and rules.
pub struct Encryption {
    rules: Vec<Rule>,
    /// What keys in etcd begin with: AES-GCM covers the whole key.
    prefix: String,
    /// Objects that are kept otherwise than they would be now.
    stale: Mutex<HashSet<ObjectKey>>,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encryption({} rules)", self.rules.len())
    }
}

impl Encryption {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(path: &Path, prefix: &str) -> Result<Self, EncryptionError> {
        let text = std::fs::read(path).map_err(|source| EncryptionError::Read {
            path: path.to_owned(),
            source,
        })?;
        let value =
            codec::yaml_value(&text).map_err(|error| EncryptionError::Wrong(error.to_string()))?;
        Ok(Self {
            rules: config::read(&value)?,
            prefix: format!("/{}/", prefix.trim_matches('/')),
            stale: Mutex::default(),
        })
    }

    /// Whether an object is kept otherwise than it would be if it were written now.
    pub(crate) fn is_stale(&self, key: &ObjectKey) -> bool {
        self.stale.lock().contains(key)
    }

    fn rule(&self, resource: &str) -> Option<&Rule> {
        let (group, plural) = named(resource);
        let names = |rule: &&Rule| {
            rule.resources
                .iter()
                .any(|pattern: &Pattern| pattern.names(&group, &plural))
        };
        self.rules.iter().find(names)
    }

    fn etcd_key(&self, key: &ObjectKey) -> String {
        [&*self.prefix, &*key.resource, "/", &*key.path].concat()
    }

    fn unseal_with(
        &self,
        rule: &Rule,
        key: &ObjectKey,
        kept: &[u8],
    ) -> Result<(Vec<u8>, bool), String> {
        let named = |at: &Key| kept.starts_with(&at.prefix);
        for (place, provider) in rule.providers.iter().enumerate() {
            let Provider::Keys(keys) = provider else {
                continue;
            };
            if let Some(at) = keys.iter().position(named) {
                let fresh = place == 0 && at == 0;
                return keys[at]
                    .open(
                        &kept[keys[at].prefix.len()..],
                        self.etcd_key(key).as_bytes(),
                    )
                    .map(|plain| (plain, !fresh));
            }
        }
        let shown = kept.splitn(6, |byte| *byte == b':').take(5);
        let shown: Vec<_> = shown.map(String::from_utf8_lossy).collect();
        Err(format!(
            "it is sealed with {}, which the encryption configuration does not name",
            shown.join(":")
        ))
    }
}

/// Group and plural of what is stored under a prefix.
fn named(resource: &str) -> (String, String) {
    if let Some(entry) = catalog::builtin().at_prefix(resource) {
        return (entry.resource.group.clone(), entry.resource.plural.clone());
    }
    let (group, plural) = resource.split_once('/').unwrap_or(("", resource));
    (group.to_owned(), plural.to_owned())
}

impl Sealer for Encryption {
    fn seal(&self, key: &ObjectKey, json: &[u8]) -> Option<Vec<u8>> {
        let rule = self.rule(&key.resource)?;
        self.stale.lock().remove(key);
        match rule.providers.first()? {
            Provider::Identity => None,
            Provider::Keys(keys) => Some(keys.first()?.seal(json, self.etcd_key(key).as_bytes())),
        }
    }

    fn unseal(&self, key: &ObjectKey, kept: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let sealed = kept.starts_with(SEALED);
        let Some(rule) = self.rule(&key.resource) else {
            return if sealed {
                Err(
                    "it is sealed, and the encryption configuration does not name its resource"
                        .to_owned(),
                )
            } else {
                Ok(None)
            };
        };
        let (plain, stale) = if sealed {
            let (plain, stale) = self.unseal_with(rule, key, kept)?;
            (Some(plain), stale)
        } else {
            let identity = |provider: &Provider| matches!(provider, Provider::Identity);
            let Some(place) = rule.providers.iter().position(identity) else {
                return Err("it is not sealed, and the encryption configuration has no identity provider for it".to_owned());
            };
            (None, place != 0)
        };
        if stale {
            self.stale.lock().insert(key.clone());
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base64 of 16, 24 and 32 bytes.
    const KEY_16: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";
    const KEY_24: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";
    const KEY_32: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn load(resources: &str) -> Result<Encryption, EncryptionError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encryption.yaml");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{resources}"
        );
        std::fs::write(&path, text).unwrap();
        Encryption::load(&path, "/registry")
    }

    fn keys(provider: &str, keys: &[(&str, &str)]) -> String {
        let mut text = format!("  - {provider}:\n      keys:\n");
        for (name, secret) in keys {
            text.push_str(&format!("      - name: {name}\n        secret: {secret}\n"));
        }
        text
    }

    fn secrets(providers: &[String]) -> Encryption {
        load(&format!(
            "- resources: [secrets]\n  providers:\n{}",
            providers.concat()
        ))
        .unwrap()
    }

    fn key(resource: &str) -> ObjectKey {
        ObjectKey::new(resource, "default/x")
    }

    const IDENTITY: &str = "  - identity: {}\n";

    #[test]
    fn every_provider_seals_and_unseals_with_every_length_of_key() {
        for (provider, secret) in [
            ("aescbc", KEY_16),
            ("aescbc", KEY_24),
            ("aescbc", KEY_32),
            ("aesgcm", KEY_16),
            ("aesgcm", KEY_24),
            ("aesgcm", KEY_32),
            ("secretbox", KEY_32),
        ] {
            let encryption = secrets(&[keys(provider, &[("one", secret)])]);
            for len in [0, 1, 15, 16, 17, 1000] {
                let json = vec![b'x'; len];
                let sealed = encryption.seal(&key("secrets"), &json).unwrap();
                let start = format!("k8s:enc:{provider}:v1:one:");
                assert!(sealed.starts_with(start.as_bytes()), "{provider}");
                assert!(sealed.len() - json.len() <= cox_store::SEAL_LEN_MAX);
                let again = encryption.seal(&key("secrets"), &json).unwrap();
                assert_ne!(sealed, again, "{provider}: never the same twice");
                let plain = encryption
                    .unseal(&key("secrets"), &sealed)
                    .unwrap()
                    .unwrap();
                assert_eq!(plain, json, "{provider} {len}");
                assert!(!encryption.is_stale(&key("secrets")));
            }
            assert_eq!(
                encryption.seal(&key("configmaps"), b"{}"),
                None,
                "not chosen"
            );
        }
    }

    #[test]
    fn what_upstreams_server_seals_is_read() {
        // AES-CBC of `{"a":1}` under KEY_16, the initial vector first; computed with openssl.
        let sealed = [
            &b"k8s:enc:aescbc:v1:one:"[..],
            b"0000000000000000",
            &0xdb96_9b3a_6dbc_2367_6121_c125_c923_870e_u128.to_be_bytes(),
        ]
        .concat();
        let encryption = secrets(&[keys("aescbc", &[("one", KEY_16)])]);
        let plain = encryption
            .unseal(&key("secrets"), &sealed)
            .unwrap()
            .unwrap();
        assert_eq!(plain, br#"{"a":1}"#);
    }

    #[test]
    fn rotation_goes_key_by_key_and_remembers_what_is_old() {
        let plain = secrets(&[IDENTITY.to_owned()]);
        let first = secrets(&[keys("aescbc", &[("one", KEY_32)]), IDENTITY.to_owned()]);
        let both = secrets(&[keys("aescbc", &[("two", KEY_16), ("one", KEY_32)])]);
        let second = secrets(&[keys("aescbc", &[("two", KEY_16)])]);
        let secret = key("secrets");
        assert_eq!(plain.seal(&secret, b"{}"), None);
        assert_eq!(first.unseal(&secret, b"{}"), Ok(None));
        assert!(first.is_stale(&secret), "not sealed yet");
        let sealed = first.seal(&secret, b"{}").unwrap();
        assert!(!first.is_stale(&secret), "it is now");
        assert!(
            plain
                .unseal(&secret, &sealed)
                .unwrap_err()
                .contains("k8s:enc:aescbc:v1:one")
        );
        assert_eq!(both.unseal(&secret, &sealed), Ok(Some(b"{}".to_vec())));
        assert!(both.is_stale(&secret));
        let resealed = both.seal(&secret, b"{}").unwrap();
        assert_eq!(second.unseal(&secret, &resealed), Ok(Some(b"{}".to_vec())));
        assert!(
            second.unseal(&secret, &sealed).is_err(),
            "the old key is gone"
        );
        assert!(
            second.unseal(&secret, b"{}").is_err(),
            "and nothing may be unsealed"
        );
    }

    #[test]
    fn damage_and_exchanged_values_are_found() {
        for (provider, bound) in [("aesgcm", true), ("secretbox", false)] {
            let encryption = secrets(&[keys(provider, &[("one", KEY_32)])]);
            let mut sealed = encryption.seal(&key("secrets"), b"{}").unwrap();
            let other = ObjectKey::new("secrets", "default/other");
            assert_eq!(
                encryption.unseal(&other, &sealed).is_err(),
                bound,
                "{provider}"
            );
            *sealed.last_mut().unwrap() ^= 1;
            assert!(
                encryption.unseal(&key("secrets"), &sealed).is_err(),
                "{provider}"
            );
            sealed.truncate(30);
            assert!(
                encryption.unseal(&key("secrets"), &sealed).is_err(),
                "{provider}"
            );
        }
    }

    #[test]
    fn resources_are_chosen_by_the_first_rule_that_names_them() {
        let encryption = load(&format!(
            "- resources: [events]\n  providers:\n{IDENTITY}- resources: ['*.apps', widgets.example.com]\n  providers:\n{}- resources: ['*.']\n  providers:\n{}",
            keys("aescbc", &[("apps", KEY_32)]),
            keys("aescbc", &[("core", KEY_32)]),
        ))
        .unwrap();
        for (resource, expected) in [
            ("events", ""),
            ("deployments", "apps"),
            ("example.com/widgets", "apps"),
            ("example.com/gadgets", ""),
            ("services/specs", "core"),
            ("minions", "core"),
            ("leases", ""),
        ] {
            let sealed = encryption.seal(&key(resource), b"{}").unwrap_or_default();
            let name = String::from_utf8_lossy(&sealed)
                .split(':')
                .nth(4)
                .unwrap_or_default()
                .to_owned();
            assert_eq!(name, expected, "{resource}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (
                "- resources: []\n  providers:\n  - identity: {}\n",
                "resources[0].resources",
            ),
            (
                "- resources: [secrets]\n  providers: []\n",
                "resources[0].providers",
            ),
            (
                "- resources: [secrets]\n  providers:\n  - kms: {name: x}\n",
                "resources[0].providers[0]",
            ),
            (
                "- resources: [secrets]\n  providers:\n  - aescbc: {keys: [{name: a, secret: c2hvcnQ=}]}\n",
                "resources[0].providers[0].aescbc.keys[0].secret",
            ),
            (
                "- resources: [secrets]\n  providers:\n  - secretbox: {keys: [{name: a, secret: MDEyMzQ1Njc4OWFiY2RlZg==}]}\n",
                "resources[0].providers[0].secretbox.keys[0].secret",
            ),
            (
                "- resources: [secrets]\n  providers:\n  - aescbc: {keys: [{name: 'a:b', secret: MDEyMzQ1Njc4OWFiY2RlZg==}]}\n",
                "resources[0].providers[0].aescbc.keys[0].name",
            ),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("c2hvcnQ"), "keys are not shown: {error}");
        }
    }
}
