//! Sees to it that a container's image is on the node, by its pull policy, and learns what it holds.

use super::client::{CriError, Runtime};
use super::labels;
use crate::pod::history::{ImageKind, ResolvedImage};
use base64::Engine;
use cox_cri::v1;
use k8s_openapi::api::core::v1::{Container, Secret};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Resolves images; pulls are bounded.
#[derive(Clone, Debug)]
pub struct Images {
    runtime: Runtime,
    pulls: Arc<Semaphore>,
}

/// An image that is there.
#[derive(Clone, Debug)]
pub struct Found {
    pub image: ResolvedImage,
    /// How long the pull took and how large the image is; `None`: it was there already.
    pub pulled: Option<(Duration, u64)>,
}

/// An image that is not to be had, with upstream's reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub reason: &'static str,
    pub message: String,
}

impl Images {
    /// At most `parallel_pulls` pulls run at the same time.
    #[must_use]
    pub fn new(runtime: Runtime, parallel_pulls: usize) -> Self {
        Self {
            runtime,
            pulls: Arc::new(Semaphore::new(parallel_pulls.max(1))),
        }
    }

    /// Looks the image up and pulls it if the policy says so. `pulling` is called before a pull starts.
    pub async fn resolve(
        &self,
        container: &Container,
        handler: &str,
        secrets: &[Arc<Secret>],
        sandbox: v1::PodSandboxConfig,
        pulling: impl Fn(),
    ) -> Result<Found, Missing> {
        let name = container.image.as_deref().unwrap_or_default();
        let policy = container
            .image_pull_policy
            .as_deref()
            .unwrap_or("IfNotPresent");
        let spec = v1::ImageSpec {
            image: name.to_owned(),
            runtime_handler: handler.to_owned(),
            ..v1::ImageSpec::default()
        };
        if name.is_empty() || name.chars().any(char::is_whitespace) {
            let message = format!(
                "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\""
            );
            return Err(Missing {
                reason: "InvalidImageName",
                message,
            });
        }
        if policy != "Always"
            && let Some(found) = self.present(name, &spec, policy).await?
        {
            return Ok(found);
        }
        pulling();
        let started = Instant::now();
        let _permit = self.pulls.acquire().await;
        let image_ref = self
            .pull(name, &spec, secrets, sandbox)
            .await
            .map_err(|error| Missing {
                reason: if is_bad_name(&error) {
                    "InvalidImageName"
                } else {
                    "ErrImagePull"
                },
                message: error.to_string(),
            })?;
        let pulled_spec = v1::ImageSpec {
            image: image_ref.clone(),
            ..spec
        };
        match self.runtime.image_status(pulled_spec).await {
            Ok(Some(status)) => {
                let size = status.image.as_ref().map_or(0, |image| image.size);
                Ok(Found {
                    image: resolved(&image_ref, &status),
                    pulled: Some((started.elapsed(), size)),
                })
            }
            Ok(None) => Err(Missing {
                reason: "ErrImagePull",
                message: format!(
                    "the image was pulled as {image_ref}, but the runtime does not know it"
                ),
            }),
            Err(error) => Err(Missing {
                reason: "ImageInspectError",
                message: error.to_string(),
            }),
        }
    }

    /// The image if it is on the node; under the policy Never there is no other way to have it.
    async fn present(
        &self,
        name: &str,
        spec: &v1::ImageSpec,
        policy: &str,
    ) -> Result<Option<Found>, Missing> {
        match self.runtime.image_status(spec.clone()).await {
            Ok(Some(status)) => Ok(Some(Found {
                image: resolved(name, &status),
                pulled: None,
            })),
            Ok(None) if policy == "Never" => Err(Missing {
                reason: "ErrImageNeverPull",
                message: format!(
                    "Container image \"{name}\" is not present with pull policy of Never"
                ),
            }),
            Ok(None) => Ok(None),
            Err(error) => Err(Missing {
                reason: "ImageInspectError",
                message: format!("Failed to inspect image \"{name}\": {error}"),
            }),
        }
    }

    /// Tries each credential that fits, or none at all if there is none.
    async fn pull(
        &self,
        name: &str,
        spec: &v1::ImageSpec,
        secrets: &[Arc<Secret>],
        sandbox: v1::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let mut credentials: Vec<Option<v1::AuthConfig>> = secrets
            .iter()
            .flat_map(|secret| credentials(secret, name))
            .map(Some)
            .collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last = None;
        for auth in credentials {
            match self
                .runtime
                .pull_image(spec.clone(), auth, sandbox.clone())
                .await
            {
                Ok(image_ref) => return Ok(image_ref),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(CriError::Incomplete {
            call: "PullImage",
            what: "an attempt",
        }))
    }
}

fn is_bad_name(error: &CriError) -> bool {
    matches!(
        error,
        CriError::Refused {
            code: tonic::Code::InvalidArgument,
            ..
        }
    )
}

/// What the verbose status says of the image.
fn resolved(name: &str, status: &v1::ImageStatusResponse) -> ResolvedImage {
    let image = status.image.clone().unwrap_or_default();
    let said = status.info.get(labels::IMAGE_KIND).map(String::as_str);
    let said = said.or_else(|| {
        image
            .spec
            .as_ref()?
            .annotations
            .get(labels::IMAGE_KIND)
            .map(String::as_str)
    });
    let image_id = image
        .repo_digests
        .first()
        .cloned()
        .unwrap_or_else(|| image.id.clone());
    ResolvedImage {
        image_ref: if image.id.is_empty() {
            name.to_owned()
        } else {
            image.id.clone()
        },
        image_id,
        kind: if said == Some("wasm") {
            ImageKind::Wasm
        } else {
            ImageKind::Oci
        },
    }
}

/// The registry of an image name; names without one are Docker Hub's.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The host that a key of a docker configuration stands for.
fn host_of_key(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    match key.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Credentials of a pull secret that fit the image's registry.
fn credentials(secret: &Secret, image: &str) -> Vec<v1::AuthConfig> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let auths = if let Some(bytes) = data(".dockerconfigjson") {
        parse(&bytes.0).and_then(|config| config.get("auths").cloned())
    } else {
        data(".dockercfg").and_then(|bytes| parse(&bytes.0))
    };
    let Some(serde_json::Value::Object(auths)) = auths else {
        return Vec::new();
    };
    let fitting = auths
        .iter()
        .filter(|(key, _)| host_of_key(key) == registry(image));
    fitting
        .filter_map(|(key, entry)| credential(key, entry))
        .collect()
}

fn credential(key: &str, entry: &serde_json::Value) -> Option<v1::AuthConfig> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(text("auth"))
            .ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    Some(v1::AuthConfig {
        username,
        password,
        server_address: key.to_owned(),
        identity_token: text("identitytoken"),
        ..v1::AuthConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_table() {
        for (image, host) in [
            ("nginx", "docker.io"),
            ("library/nginx:1", "docker.io"),
            ("ghcr.io/a/b@sha256:1", "ghcr.io"),
            ("localhost/a", "localhost"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000"),
        ] {
            assert_eq!(registry(image), host, "{image}");
        }
    }

    #[test]
    fn only_the_registry_s_own_credentials_are_used() {
        let config = serde_json::json!({"auths": {
            "https://ghcr.io/v2/": {"auth": base64::engine::general_purpose::STANDARD.encode("me:hush")},
            "https://index.docker.io/v1/": {"username": "you", "password": "pw"}}});
        let data = base64::engine::general_purpose::STANDARD.encode(config.to_string());
        let secret: Secret =
            serde_json::from_value(serde_json::json!({"data": {".dockerconfigjson": data}}))
                .unwrap();
        let names = |image| {
            credentials(&secret, image)
                .into_iter()
                .map(|auth| auth.username)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("ghcr.io/a/b"), ["me"]);
        assert_eq!(names("nginx"), ["you"]);
        assert_eq!(names("quay.io/x"), [""; 0]);
    }
}
