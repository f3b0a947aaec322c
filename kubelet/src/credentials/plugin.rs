//! One credential provider: a program that is asked for credentials, and what it said for as long as it said that is good.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use cox_api::codec::go_duration;
use cox_cri::v1::AuthConfig;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::Instant;

use super::provider_config::Provider;
use super::{Keyring, matching};

/// Upstream's; a plugin that takes longer is of no use to a pull.
const PATIENCE: Duration = Duration::from_secs(60);

/// A plugin and what it said.
#[derive(Debug)]
pub(super) struct Plugin {
    provider: Provider,
    /// Held while the program runs: pulls side by side ask once.
    said: tokio::sync::Mutex<HashMap<Key, (Instant, Logins)>>,
}

/// Logins by what they are for: a registry, or a part of one.
type Logins = Vec<(String, AuthConfig)>;

/// For which images an answer is good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Registry(String),
    Global,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<HashMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Plugin {
    pub(super) fn new(provider: Provider) -> Self {
        Self {
            provider,
            said: tokio::sync::Mutex::default(),
        }
    }

    /// Adds what the plugin has for `image`, if it is for such images. One that fails has nothing: the pull may succeed without.
    pub(super) async fn add(&self, keyring: &mut Keyring, image: &str) {
        let name = matching::whole_name(image);
        let patterns = self.provider.match_images.iter();
        if !patterns
            .into_iter()
            .any(|pattern| matching::fits(&matching::pattern_of(pattern), &name))
        {
            return;
        }
        let registry = name.split('/').next().unwrap_or_default().to_owned();
        let mut said = self.said.lock().await;
        let now = Instant::now();
        said.retain(|_, (until, _)| *until > now);
        let keys = [
            Key::Image(name.clone()),
            Key::Registry(registry.clone()),
            Key::Global,
        ];
        let known = keys
            .iter()
            .find_map(|key| said.get(key))
            .map(|(_, auths)| auths.clone());
        let auths = match known {
            Some(auths) => auths,
            None => match self.ask(image).await {
                Ok(answer) => {
                    let (auths, kept) = self.take(answer, name, registry);
                    if let Some((key, duration)) = kept.filter(|(_, duration)| !duration.is_zero())
                    {
                        said.insert(key, (now + duration, auths.clone()));
                    }
                    auths
                }
                Err(why) => {
                    tracing::warn!(
                        plugin = self.provider.name,
                        why,
                        image,
                        "A credential provider failed"
                    );
                    return;
                }
            },
        };
        for (key, auth) in auths {
            keyring.add(&key, auth);
        }
    }

    fn take(
        &self,
        answer: Answer,
        name: String,
        registry: String,
    ) -> (Logins, Option<(Key, Duration)>) {
        let auths = answer.auth.into_iter().flatten();
        let auths = auths.map(|(key, login)| {
            let auth = AuthConfig {
                username: login.username,
                password: login.password,
                server_address: key.clone(),
                ..AuthConfig::default()
            };
            (key, auth)
        });
        let key = match answer.cache_key_type.as_str() {
            "Image" => Key::Image(name),
            "Registry" => Key::Registry(registry),
            _ => Key::Global,
        };
        let duration = match answer.cache_duration {
            None => Some(self.provider.cache),
            Some(text) => go_duration(&text),
        };
        (auths.collect(), duration.map(|duration| (key, duration)))
    }

    async fn ask(&self, image: &str) -> Result<Answer, String> {
        let request = serde_json::json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": self.provider.api_version,
            "image": image,
        });
        let mut child = Command::new(&self.provider.program)
            .args(&self.provider.args)
            .envs(&self.provider.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start it: {error}"))?;
        let mut stdin = child.stdin.take().ok_or("it has no stdin")?;
        let bytes = request.to_string().into_bytes();
        let output = async {
            // A plugin that does not read its request may answer all the same.
            if let Err(error) = stdin.write_all(&bytes).await {
                tracing::debug!(%error, plugin = self.provider.name, "A credential provider did not read its request");
            }
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .map_err(|_| format!("it did not answer within {} s", PATIENCE.as_secs()))?
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("{}: {said}", output.status));
        }
        let answer: Answer = serde_json::from_slice(&output.stdout)
            .map_err(|_| "its answer is not a CredentialProviderResponse".to_owned())?;
        if answer.kind != "CredentialProviderResponse"
            || answer.api_version != self.provider.api_version
        {
            return Err(format!(
                "it answered with {} {}",
                answer.api_version, answer.kind
            ));
        }
        if !["Image", "Registry", "Global"].contains(&answer.cache_key_type.as_str()) {
            return Err(format!("its cacheKeyType is \"{}\"", answer.cache_key_type));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    /// A plugin that notes each request and answers for the registry.
    fn plugin(dir: &Path, answer: &str) -> Plugin {
        let program = dir.join("plugin");
        let script = format!(
            "#!/bin/sh\ncat >>{0}/asked; echo \"$1 $WHO\" >>{0}/called\ncat <<'X'\n{answer}\nX\n",
            dir.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Plugin::new(Provider {
            program,
            name: "plugin".into(),
            match_images: vec!["*.example.com".into()],
            cache: Duration::from_secs(3600),
            api_version: "credentialprovider.kubelet.k8s.io/v1".into(),
            args: vec!["get".into()],
            env: [("WHO".to_owned(), "node".to_owned())].into(),
        })
    }

    async fn users(plugin: &Plugin, image: &str) -> Vec<String> {
        let mut keyring = Keyring::default();
        plugin.add(&mut keyring, image).await;
        keyring
            .lookup(image)
            .into_iter()
            .map(|auth| auth.username)
            .collect()
    }

    fn answer(key_type: &str, duration: &str) -> String {
        format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{key_type}",{duration}"auth":{{"reg.example.com":{{"username":"u","password":"p"}}}}}}"#
        )
    }

    #[tokio::test]
    async fn a_plugin_is_asked_once_for_what_it_lets_be_kept() {
        for (case, key_type, duration, asked) in [
            ("per registry", "Registry", "", 1),
            ("per image", "Image", "", 2),
            ("not to be kept", "Registry", r#""cacheDuration":"0s","#, 3),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let plugin = plugin(dir.path(), &answer(key_type, duration));
            for image in [
                "reg.example.com/a:1",
                "reg.example.com/a:2",
                "reg.example.com/b",
            ] {
                assert_eq!(users(&plugin, image).await, ["u"], "case: {case}");
            }
            assert_eq!(
                users(&plugin, "elsewhere.io/a").await,
                [""; 0],
                "case: {case}: not its images"
            );
            let called = std::fs::read_to_string(dir.path().join("called")).unwrap();
            assert_eq!(called, "get node\n".repeat(asked), "case: {case}");
            let request = std::fs::read_to_string(dir.path().join("asked")).unwrap();
            assert!(
                request.contains(r#""image":"reg.example.com/a:1""#),
                "{request}"
            );
        }
    }

    #[tokio::test]
    async fn a_plugin_that_fails_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in [
            "not json".to_owned(),
            answer("Sometimes", ""),
            answer("Image", "").replace("/v1\"", "/v2\""),
        ] {
            let plugin = plugin(dir.path(), &wrong);
            assert_eq!(
                users(&plugin, "reg.example.com/a").await,
                [""; 0],
                "{wrong}"
            );
        }
    }
}
