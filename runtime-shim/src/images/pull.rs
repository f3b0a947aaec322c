//! Pulls an image from a registry: mirrors in order, digests verified, only what holds Wasm.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::AsyncWrite;

use super::archive::{ArchiveError, WasmFiles};
use super::content::Draft;
use super::formats::{self, FormatError, Shape};
use super::progress::Progress;
use super::{AnyImage, Digest, Image, ImageConfig, ImageError, Images, parse, program_name};
use crate::oci::{Document, OciError, OciImage, RegistryImage};

/// Images of this host come through the image door only: "pulling" one looks whether it is there, so that Pods run whatever their
/// pull policy, and nobody is asked for it over the network.
const LOCAL_REGISTRY: &str = "cox.local";

/// What a name may lead to: a manifest or an index, in OCI's form and in docker's.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const CONFIG_BYTES_MAX: u64 = 4 << 20;
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// Why a pull failed. The texts go to the Pod's events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error(transparent)]
    Store(#[from] ImageError),
    #[error("cannot pull {image} from {host}: {message}")]
    Registry {
        image: String,
        host: String,
        message: String,
    },
    #[error("{0} is not loaded on this node: load it with `cox image load`")]
    NotLoaded(String),
    #[error("no container runtime on this node: {0} is an OCI image; only Wasm images run here")]
    Oci(String),
    #[error("cannot pull {image}: {source}")]
    Backend {
        image: String,
        #[source]
        source: OciError,
    },
    #[error("{image} cannot run here: {source}")]
    Format {
        image: String,
        #[source]
        source: FormatError,
    },
    #[error("{image} cannot run here: {source}")]
    Archive {
        image: String,
        #[source]
        source: ArchiveError,
    },
    #[error("{image} cannot run here: its entrypoint {entry} is not a Wasm file in the image")]
    Entrypoint { image: String, entry: String },
    #[error("the credentials for {0} are of a kind that is not supported (identity token)")]
    Credentials(String),
}

/// How to sign in to a registry, as CRI hands it over. Printing it shows nothing.
#[derive(Default)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
    /// Base64 of `username:password`.
    pub(crate) auth: String,
    pub(crate) identity_token: String,
    pub(crate) registry_token: String,
}

impl Credentials {
    fn for_registry(&self, host: &str) -> Result<RegistryAuth, PullError> {
        if !self.registry_token.is_empty() {
            return Ok(RegistryAuth::Bearer(self.registry_token.clone()));
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Ok(RegistryAuth::Basic(
                self.username.clone(),
                self.password.clone(),
            ));
        }
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(&self.auth)
            .unwrap_or_default();
        if let Some((username, password)) = String::from_utf8(decoded)
            .ok()
            .as_deref()
            .and_then(|pair| pair.split_once(':'))
        {
            return Ok(RegistryAuth::Basic(
                username.to_owned(),
                password.to_owned(),
            ));
        }
        if !self.identity_token.is_empty() {
            return Err(PullError::Credentials(host.to_owned()));
        }
        Ok(RegistryAuth::Anonymous)
    }
}

impl Images {
    /// Pulls `name`; present content is not fetched again.
    pub(crate) async fn pull(
        &self,
        name: &str,
        credentials: &Credentials,
    ) -> Result<AnyImage, PullError> {
        if parse(name)?.registry() == LOCAL_REGISTRY {
            let found = self.find_any(name).await;
            return found.ok_or_else(|| PullError::NotLoaded(name.to_owned()));
        }
        let progress = self.pulls.begin(name);
        let incoming = self.incoming.read().await;
        let pulled = Box::pin(self.pull_from_any(name, credentials, &progress));
        let pulled = progress.told_during(pulled).await;
        drop(incoming);
        self.sweep();
        pulled
    }

    async fn pull_from_any(
        &self,
        name: &str,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<AnyImage, PullError> {
        let reference = parse(name)?;
        let registry = reference.registry().to_owned();
        let auth = credentials.for_registry(&registry)?;
        let client = self.client();
        let mirrors = self
            .config
            .registries
            .mirrors
            .iter()
            .filter(|mirror| mirror.registry == registry);
        let mut failure = None;
        for host in mirrors.flat_map(|mirror| &mirror.hosts) {
            let mut mirrored = reference.clone();
            mirrored.set_mirror_registry(host.clone());
            // A mirror gets no credentials that were meant for the registry.
            let pull = Pull {
                images: self,
                client: &client,
                source: &mirrored,
                name: reference.whole(),
                progress,
            };
            match pull.run(&reference, &RegistryAuth::Anonymous).await {
                Err(PullError::Registry { message, .. }) => {
                    tracing::info!(
                        image = name,
                        mirror = host,
                        message,
                        "The mirror does not have the image, trying the next"
                    );
                    failure = Some(message);
                }
                done => return done,
            }
        }
        let pull = Pull {
            images: self,
            client: &client,
            source: &reference,
            name: reference.whole(),
            progress,
        };
        let pulled = pull.run(&reference, &auth).await;
        pulled.map_err(|err| match (err, failure) {
            (
                PullError::Registry {
                    image,
                    host,
                    message,
                },
                Some(mirror),
            ) => PullError::Registry {
                image,
                host,
                message: format!("{message} (mirrors: {mirror})"),
            },
            (err, _) => err,
        })
    }

    fn client(&self) -> Client {
        // The HTTP client takes the process's provider and panics without one. An installed one stays, whoever did it.
        if rustls::crypto::CryptoProvider::get_default().is_none()
            && rustls::crypto::ring::default_provider()
                .install_default()
                .is_err()
        {
            tracing::debug!("Another part of the process has installed its TLS provider meanwhile");
        }
        let registries = &self.config.registries;
        let mut extra_root_certificates = Vec::new();
        for path in &registries.ca_files {
            match std::fs::read(path) {
                Ok(data) => extra_root_certificates.push(Certificate {
                    encoding: CertificateEncoding::Pem,
                    data,
                }),
                Err(err) => {
                    tracing::warn!(error = %err, path = %path.display(), "A certificate authority cannot be read")
                }
            }
        }
        Client::new(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(registries.plain_http.clone()),
            extra_root_certificates,
            connect_timeout: Some(CONNECT_PATIENCE),
            read_timeout: Some(READ_PATIENCE),
            user_agent: concat!("coxswain/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
    }
}

/// What a name leads to in a registry.
struct Manifests {
    index: Option<Document>,
    document: Document,
    manifest: OciImageManifest,
}

/// One pull from one host.
struct Pull<'a> {
    images: &'a Images,
    client: &'a Client,
    /// What the image is called at the host that is asked.
    source: &'a Reference,
    name: String,
    progress: &'a Progress,
}

impl Pull<'_> {
    /// `reference` is what the image is called.
    async fn run(&self, reference: &Reference, auth: &RegistryAuth) -> Result<AnyImage, PullError> {
        let Manifests {
            index,
            document,
            manifest,
        } = self.manifests(auth).await?;
        for layer in &manifest.layers {
            let bytes = u64::try_from(layer.size).unwrap_or(0);
            self.progress.expect(&layer.digest, bytes);
        }
        let named_digest = index.as_ref().unwrap_or(&document).digest.clone();
        let config = if formats::needs_config(&manifest) {
            Some(self.config(&manifest.config).await?)
        } else {
            None
        };
        let shape =
            formats::shape(&manifest, config.as_deref()).map_err(|source| PullError::Format {
                image: self.name.clone(),
                source,
            })?;
        let (entry, files, config) = match shape {
            Shape::Oci => {
                let wanted = RegistryImage {
                    client: self.client,
                    reference,
                    source: self.source,
                    progress: self.progress,
                    index,
                    manifest: document,
                };
                return self.to_containerd(&wanted).await.map(AnyImage::Oci);
            }
            Shape::Raw(at) => (
                self.raw_layer(&manifest.layers[at]).await?,
                BTreeMap::new(),
                ImageConfig::default(),
            ),
            Shape::Files(config) => {
                let files = self.files(&manifest).await?;
                (self.entry(&files, &config)?, files, config)
            }
        };
        let id = document.digest.parse();
        let id: Digest = id.map_err(|err| self.registry_error(&err))?;
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        let image = Image {
            id,
            tags: Vec::from_iter(reference.tag().map(|tag| format!("{repository}:{tag}"))),
            digests: vec![format!("{repository}@{named_digest}")],
            entry,
            program_name: config
                .entrypoint
                .first()
                .cloned()
                .unwrap_or_else(|| program_name(&self.name)),
            files,
            config,
            size: manifest
                .layers
                .iter()
                .map(|layer| u64::try_from(layer.size).unwrap_or(0))
                .sum(),
            pinned: false,
        };
        Ok(AnyImage::Wasm(self.images.add(image).await?))
    }

    fn registry_error(&self, err: &dyn std::error::Error) -> PullError {
        let mut message = err.to_string();
        let mut cause = err.source();
        while let Some(err) = cause {
            message = format!("{message}: {err}");
            cause = err.source();
        }
        PullError::Registry {
            image: self.name.clone(),
            host: self.source.resolve_registry().to_owned(),
            message,
        }
    }

    /// The manifest for this machine, and the index that led to it.
    async fn manifests(&self, auth: &RegistryAuth) -> Result<Manifests, PullError> {
        let top = self.manifest_at(self.source, auth).await?;
        let (document, parsed) = top;
        let entries = match parsed {
            OciManifest::Image(manifest) => {
                return Ok(Manifests {
                    index: None,
                    document,
                    manifest,
                });
            }
            OciManifest::ImageIndex(index) => index.manifests,
        };
        let chosen = formats::choose(&entries).ok_or_else(|| PullError::Registry {
            image: self.name.clone(),
            host: self.source.resolve_registry().to_owned(),
            message: format!(
                "it has no image for Wasm or linux/{}",
                std::env::consts::ARCH
            ),
        })?;
        let below = self.source.clone_with_digest(chosen);
        match self.manifest_at(&below, auth).await? {
            (inner, OciManifest::Image(manifest)) => Ok(Manifests {
                index: Some(document),
                document: inner,
                manifest,
            }),
            (_, OciManifest::ImageIndex(_)) => Err(self.registry_error(&std::io::Error::other(
                "an index within an index is not supported",
            ))),
        }
    }

    async fn manifest_at(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<(Document, OciManifest), PullError> {
        let (bytes, digest) = self
            .client
            .pull_manifest_raw(reference, auth, &MANIFEST_TYPES)
            .await
            .map_err(|err| self.registry_error(&err))?;
        let parsed: OciManifest =
            serde_json::from_slice(&bytes).map_err(|err| self.registry_error(&err))?;
        // The specification lets a manifest leave its own type out.
        let (named, usual) = match &parsed {
            OciManifest::Image(manifest) => (&manifest.media_type, MANIFEST_TYPES[0]),
            OciManifest::ImageIndex(index) => (&index.media_type, MANIFEST_TYPES[1]),
        };
        let document = Document {
            media_type: named.clone().unwrap_or_else(|| usual.to_owned()),
            digest,
            bytes,
        };
        Ok((document, parsed))
    }

    /// Hands an image for Linux over to containerd, where there is one.
    async fn to_containerd(&self, wanted: &RegistryImage<'_>) -> Result<Arc<OciImage>, PullError> {
        let pulled = self.images.oci.pull(wanted).await;
        pulled.map_err(|source| match source {
            OciError::Unavailable { .. } if !self.images.oci.socket().exists() => {
                PullError::Oci(self.name.clone())
            }
            source => PullError::Backend {
                image: self.name.clone(),
                source,
            },
        })
    }

    /// Fetches a blob; its digest is verified by the client and once more by the draft.
    async fn blob(
        &self,
        layer: &OciDescriptor,
        bytes_max: u64,
    ) -> Result<(tempfile::TempPath, Digest), PullError> {
        let wanted: Digest = layer
            .digest
            .parse()
            .map_err(|err: super::digest::NotADigest| self.registry_error(&err))?;
        if u64::try_from(layer.size).is_ok_and(|size| size > bytes_max) {
            return Err(ImageError::TooLarge(bytes_max).into());
        }
        let mut sink = DraftSink {
            draft: Some(self.images.blobs.draft(bytes_max)?),
            failure: None,
            written: 0,
            digest: &layer.digest,
            progress: self.progress,
        };
        let pulled = self.client.pull_blob(self.source, layer, &mut sink).await;
        if let Some(failure) = sink.failure {
            return Err(failure.into());
        }
        pulled.map_err(|err| self.registry_error(&err))?;
        let draft = sink.draft.take().expect("the draft stays in the sink");
        let (file, digest) = draft.finish()?;
        if digest != wanted {
            return Err(self.registry_error(&std::io::Error::other(format!(
                "content of {wanted} has digest {digest}"
            ))));
        }
        Ok((file, digest))
    }

    async fn config(&self, config: &OciDescriptor) -> Result<Vec<u8>, PullError> {
        let (file, _) = self.blob(config, CONFIG_BYTES_MAX).await?;
        std::fs::read(&file).map_err(|err| super::io("read", &file, err).into())
    }

    async fn raw_layer(&self, layer: &OciDescriptor) -> Result<Digest, PullError> {
        if let Ok(digest) = layer.digest.parse::<Digest>()
            && self.images.blobs.path(&digest).exists()
        {
            self.progress.complete(&layer.digest);
            return Ok(digest);
        }
        let (file, digest) = self.blob(layer, self.images.config.wasm_bytes_max).await?;
        self.images.blobs.keep(file, &digest)?;
        Ok(digest)
    }

    /// The Wasm files in all layers, kept by digest.
    async fn files(
        &self,
        manifest: &OciImageManifest,
    ) -> Result<BTreeMap<String, Digest>, PullError> {
        let bytes_max = self.images.config.wasm_bytes_max;
        let mut wasm = WasmFiles::new(bytes_max);
        for layer in &manifest.layers {
            let (file, _) = self.blob(layer, bytes_max).await?;
            let read = tokio::task::spawn_blocking(move || {
                let opened = std::fs::File::open(&file)?;
                wasm.add_layer(opened)?;
                Ok(wasm)
            });
            wasm = read
                .await
                .unwrap_or_else(|err| Err(ArchiveError::Read(std::io::Error::other(err))))
                .map_err(|source| PullError::Archive {
                    image: self.name.clone(),
                    source,
                })?;
        }
        let mut files = BTreeMap::new();
        for (path, bytes) in wasm.files {
            let mut draft = self.images.blobs.draft(bytes_max)?;
            draft.write(&bytes)?;
            let (file, digest) = draft.finish()?;
            self.images.blobs.keep(file, &digest)?;
            files.insert(path, digest);
        }
        Ok(files)
    }

    fn entry(
        &self,
        files: &BTreeMap<String, Digest>,
        config: &ImageConfig,
    ) -> Result<Digest, PullError> {
        let entry = config
            .entrypoint
            .first()
            .or(config.cmd.first())
            .map_or("", String::as_str);
        let found = files
            .get(&super::absolute(entry, &config.working_dir))
            .cloned();
        found.ok_or_else(|| PullError::Entrypoint {
            image: self.name.clone(),
            entry: entry.to_owned(),
        })
    }
}

/// Writes a download into a draft. Its writes go to the page cache, in the pieces in which they come.
struct DraftSink<'a> {
    draft: Option<Draft>,
    failure: Option<ImageError>,
    written: u64,
    digest: &'a str,
    progress: &'a Progress,
}

impl AsyncWrite for DraftSink<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let Some(draft) = self.draft.as_mut() else {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        };
        Poll::Ready(match draft.write(bytes) {
            Ok(()) => {
                self.written += bytes.len() as u64;
                self.progress.reach(self.digest, self.written);
                Ok(bytes.len())
            }
            Err(err) => {
                self.failure = Some(err);
                Err(std::io::Error::other("the content was not accepted"))
            }
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_every_form() {
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.into(), password.into());
        let cases = [
            ("none", Credentials::default(), RegistryAuth::Anonymous),
            (
                "plain",
                Credentials {
                    username: "u".into(),
                    password: "p".into(),
                    ..Credentials::default()
                },
                basic("u", "p"),
            ),
            (
                "packed",
                Credentials {
                    auth: "dTpwOnE=".into(),
                    ..Credentials::default()
                },
                basic("u", "p:q"),
            ),
            (
                "token",
                Credentials {
                    registry_token: "t".into(),
                    ..Credentials::default()
                },
                RegistryAuth::Bearer("t".into()),
            ),
        ];
        for (case, credentials, expected) in cases {
            assert_eq!(
                credentials.for_registry("r").unwrap(),
                expected,
                "case: {case}"
            );
        }
        let identity = Credentials {
            identity_token: "t".into(),
            ..Credentials::default()
        };
        assert!(identity.for_registry("r").is_err());
    }
}
