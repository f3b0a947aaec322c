//! Sees to it that a container's image is on the node, by its pull policy, and learns what it holds.

use super::client::{CriError, Runtime};
use super::labels;
use crate::credentials::NodeCredentials;
use crate::pod::history::{ImageKind, ImageUser, ResolvedImage};
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
    credentials: Arc<NodeCredentials>,
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
    pub fn new(runtime: Runtime, parallel_pulls: usize, credentials: Arc<NodeCredentials>) -> Self {
        Self {
            runtime,
            credentials,
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
        let found = self.credentials.of(name, secrets).await;
        let mut credentials: Vec<Option<v1::AuthConfig>> = found.into_iter().map(Some).collect();
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
        user: match (&image.uid, image.username.as_str()) {
            (Some(uid), _) => ImageUser::Uid(uid.value),
            (None, "") => ImageUser::None,
            (None, name) => ImageUser::Name(name.to_owned()),
        },
        kind: if said == Some("wasm") {
            ImageKind::Wasm
        } else {
            ImageKind::Oci
        },
    }
}
