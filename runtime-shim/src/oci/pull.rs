//! Brings an image from a registry into containerd: content first, then snapshots, then the name, all under one lease.
//!
//! Layers download side by side and are unpacked in order as they come. A download that breaks goes on where it ended, within this
//! pull or in the next one. When the name is written, labels tie everything to it, and the lease ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::types::Descriptor;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use oci_client::client::BlobResponse;
use oci_client::manifest::OciDescriptor;
use oci_client::{Client, Reference};

use super::Backend;
use super::client::{Lease, OciError};
use super::content::{Incoming, Ingest};
use super::images::{Manifest, OciImage, Part, image, parse};
use super::unpack::{Layer, chain_ids};
use crate::images::progress::Progress;

/// Layers that download at the same time.
const PARALLEL_LAYERS: usize = 3;
/// Attempts per layer, each going on where the last one ended.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// A manifest or an index as the registry sent it.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) bytes: Bytes,
}

/// An image for Linux that a registry has.
pub(crate) struct RegistryImage<'a> {
    pub(crate) client: &'a Client,
    /// What it is called.
    pub(crate) reference: &'a Reference,
    /// The same at the host that is asked.
    pub(crate) source: &'a Reference,
    /// Where it is told how far its layers have come.
    pub(crate) progress: &'a Progress,
    /// What the name points at, when that is an index.
    pub(crate) index: Option<Document>,
    pub(crate) manifest: Document,
}

/// Everything of an image that is not a layer.
pub(super) struct Description {
    pub(super) index: Option<Document>,
    pub(super) manifest: Document,
    pub(super) config: Bytes,
}

impl Document {
    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.bytes.len()).unwrap_or(0),
            annotations: HashMap::new(),
        }
    }
}

/// Where the bytes of a layer come from.
pub(super) trait LayerSource: Sync {
    /// Writes what is missing of `layer`.
    fn fill(
        &self,
        layer: &Part,
        ingest: Ingest,
    ) -> impl Future<Output = Result<(), OciError>> + Send;

    /// The layer is in containerd, whoever brought it.
    fn is_here(&self, layer: &Part);
}

impl LayerSource for RegistryImage<'_> {
    async fn fill(&self, layer: &Part, mut ingest: Ingest) -> Result<(), OciError> {
        let wanted = OciDescriptor {
            digest: layer.digest.clone(),
            size: i64::try_from(layer.size).unwrap_or(0),
            media_type: layer.media_type.clone(),
            ..OciDescriptor::default()
        };
        let failed = |err: oci_client::errors::OciDistributionError| {
            OciError::Refused(format!("cannot fetch layer {}: {err}", layer.digest))
        };
        let tell = |bytes| self.progress.reach(&layer.digest, bytes);
        let offset = ingest.offset();
        tell(offset);
        if offset == 0 {
            let whole = self
                .client
                .pull_blob_stream(self.source, &wanted)
                .await
                .map_err(failed)?;
            ingest.write_all(whole.stream, tell).await?;
        } else if offset < layer.size {
            let rest = layer.size - offset;
            let answer = self
                .client
                .pull_blob_stream_partial(self.source, &wanted, offset, Some(rest))
                .await
                .map_err(failed)?;
            match answer {
                BlobResponse::Partial(rest) => ingest.write_all(rest.stream, tell).await?,
                BlobResponse::Full(whole) => {
                    ingest.restart().await?;
                    ingest.write_all(whole.stream, tell).await?;
                }
            }
        }
        ingest.commit().await
    }

    fn is_here(&self, layer: &Part) {
        self.progress.complete(&layer.digest);
    }
}

impl Backend {
    /// Pulls an image whose manifest is known.
    pub(crate) async fn pull(&self, wanted: &RegistryImage<'_>) -> Result<Arc<OciImage>, OciError> {
        let lease = self.containerd.lease().await?;
        let pulled = self.pull_leased(&lease, wanted).await;
        self.containerd.end_lease(lease).await;
        let id = pulled?;
        self.index.refresh(&self.containerd).await?;
        self.index
            .find(&id)
            .ok_or_else(|| OciError::damaged(id, "it is gone right after it was pulled"))
    }

    async fn pull_leased(
        &self,
        lease: &Lease,
        wanted: &RegistryImage<'_>,
    ) -> Result<String, OciError> {
        let manifest: Manifest = parse(&wanted.manifest.digest, &wanted.manifest.bytes)?;
        let config = manifest.config.as_ref().ok_or_else(|| {
            OciError::damaged(&wanted.manifest.digest, "it names no configuration")
        })?;
        let description = Description {
            index: wanted.index.clone(),
            manifest: wanted.manifest.clone(),
            config: self.config_of(wanted, config).await?,
        };
        let (repository, top) = (
            format!(
                "{}/{}",
                wanted.reference.registry(),
                wanted.reference.repository()
            ),
            wanted.index.as_ref().unwrap_or(&wanted.manifest),
        );
        let mut names = vec![format!("{repository}@{}", top.digest)];
        if let (Some(tag), None) = (wanted.reference.tag(), wanted.reference.digest()) {
            names.push(format!("{repository}:{tag}"));
        }
        self.take_in(lease, &description, wanted, &names, false)
            .await
    }

    async fn config_of(
        &self,
        wanted: &RegistryImage<'_>,
        config: &Part,
    ) -> Result<Bytes, OciError> {
        if self.containerd.blob_info(&config.digest).await?.is_some() {
            return self
                .containerd
                .document(&config.digest)
                .await
                .map(Bytes::from);
        }
        let descriptor = OciDescriptor {
            digest: config.digest.clone(),
            size: i64::try_from(config.size).unwrap_or(0),
            ..OciDescriptor::default()
        };
        let mut bytes = Vec::new();
        wanted
            .client
            .pull_blob(wanted.source, &descriptor, &mut bytes)
            .await
            .map_err(|err| {
                OciError::Refused(format!(
                    "cannot fetch configuration {}: {err}",
                    config.digest
                ))
            })?;
        Ok(bytes.into())
    }

    /// Brings in everything of an image and gives it its names. Returns its id.
    pub(super) async fn take_in(
        &self,
        lease: &Lease,
        description: &Description,
        source: &impl LayerSource,
        names: &[String],
        pinned: bool,
    ) -> Result<String, OciError> {
        let top = &description.manifest;
        let manifest: Manifest = parse(&top.digest, &top.bytes)?;
        let config = manifest
            .config
            .clone()
            .ok_or_else(|| OciError::damaged(&top.digest, "it names no configuration"))?;
        let image = image(&config, &manifest, top.bytes.len(), &description.config)?;
        let snapshotter = self.snapshotter().await?;
        self.layers(lease, &image, &snapshotter, source).await?;
        let chain = image.chain_id();
        let put = |digest: &str, size: usize, labels: HashMap<String, String>, bytes: Bytes| {
            let digest = digest.to_owned();
            async move {
                let blob = Incoming {
                    digest: &digest,
                    size: size as u64,
                    labels,
                };
                self.containerd.put_document(lease, blob, bytes).await
            }
        };
        let mut tie = HashMap::new();
        if !chain.is_empty() {
            tie.insert(
                format!("containerd.io/gc.ref.snapshot.{snapshotter}"),
                chain,
            );
        }
        put(
            &config.digest,
            description.config.len(),
            tie,
            description.config.clone(),
        )
        .await?;
        let mut tie = HashMap::from([(
            "containerd.io/gc.ref.content.config".to_owned(),
            config.digest.clone(),
        )]);
        for (at, layer) in manifest.layers.iter().enumerate() {
            tie.insert(
                format!("containerd.io/gc.ref.content.l.{at}"),
                layer.digest.clone(),
            );
        }
        put(&top.digest, top.bytes.len(), tie, top.bytes.clone()).await?;
        if let Some(index) = &description.index {
            let tie = HashMap::from([(
                "containerd.io/gc.ref.content.m.0".to_owned(),
                top.digest.clone(),
            )]);
            put(&index.digest, index.bytes.len(), tie, index.bytes.clone()).await?;
        }
        let target = description.index.as_ref().unwrap_or(top).descriptor();
        for name in names {
            self.containerd
                .name_image(lease, name, &target, pinned)
                .await?;
        }
        Ok(config.digest)
    }

    /// Fetches layers side by side and unpacks them in order.
    async fn layers(
        &self,
        lease: &Lease,
        image: &OciImage,
        snapshotter: &str,
        source: &impl LayerSource,
    ) -> Result<(), OciError> {
        let chain = chain_ids(&image.diff_ids);
        // Boxed one by one: the compiler cannot see that a stream of borrowing closures may move between threads.
        let fetched: Vec<BoxFuture<'_, Result<&Part, OciError>>> = image
            .layers
            .iter()
            .zip(&image.diff_ids)
            .map(|(layer, diff_id)| {
                let fetched = self.layer(lease, layer, diff_id, source);
                async move {
                    fetched.await?;
                    source.is_here(layer);
                    Ok(layer)
                }
                .boxed()
            })
            .collect();
        let mut fetched = futures::stream::iter(fetched).buffered(PARALLEL_LAYERS);
        let mut at = 0;
        while let Some(layer) = fetched.next().await {
            let layer = Layer {
                descriptor: layer?.descriptor(),
                diff_id: &image.diff_ids[at],
                chain_id: &chain[at],
                parent: if at == 0 { "" } else { &chain[at - 1] },
            };
            let _alone = self.locks.hold(&chain[at]).await;
            self.containerd
                .unpack_layer(lease, snapshotter, layer)
                .await?;
            at += 1;
        }
        Ok(())
    }

    async fn layer(
        &self,
        lease: &Lease,
        layer: &Part,
        diff_id: &str,
        source: &impl LayerSource,
    ) -> Result<(), OciError> {
        // Two images that share a layer, pulled at once, fetch it once.
        let _alone = self.locks.hold(&layer.digest).await;
        let mut attempt = 1;
        loop {
            if self.containerd.blob_info(&layer.digest).await?.is_some() {
                return self.containerd.adopt_blob(lease, &layer.digest).await;
            }
            let blob = Incoming {
                digest: &layer.digest,
                size: layer.size,
                labels: [("containerd.io/uncompressed".to_owned(), diff_id.to_owned())].into(),
            };
            let Some(ingest) = self.containerd.ingest(lease, blob).await? else {
                continue;
            };
            match source.fill(layer, ingest).await {
                Ok(()) => return self.containerd.adopt_blob(lease, &layer.digest).await,
                Err(err @ OciError::Unavailable { .. }) => return Err(err),
                Err(err) if attempt == ATTEMPTS => return Err(err),
                Err(err) => {
                    tracing::info!(error = %err, layer = layer.digest, attempt, "A layer did not come whole, going on");
                }
            }
            tokio::time::sleep(PAUSE * 2_u32.pow(attempt)).await;
            attempt += 1;
        }
    }

    /// Unpacks what an image lacks: one that another client brought may never have been unpacked for this snapshotter.
    pub(super) async fn ensure_unpacked(&self, image: &OciImage) -> Result<(), OciError> {
        let snapshotter = self.snapshotter().await?;
        let chain = chain_ids(&image.diff_ids);
        let Some(top) = chain.last() else {
            return Ok(());
        };
        if self.containerd.has_snapshot(&snapshotter, top).await? {
            return Ok(());
        }
        let lease = self.containerd.lease().await?;
        let unpacked = async {
            for (at, layer) in image.layers.iter().enumerate() {
                let layer = Layer {
                    descriptor: layer.descriptor(),
                    diff_id: &image.diff_ids[at],
                    chain_id: &chain[at],
                    parent: if at == 0 { "" } else { &chain[at - 1] },
                };
                let _alone = self.locks.hold(&chain[at]).await;
                self.containerd
                    .unpack_layer(&lease, &snapshotter, layer)
                    .await?;
            }
            let tie = HashMap::from([(
                format!("containerd.io/gc.ref.snapshot.{snapshotter}"),
                top.clone(),
            )]);
            self.containerd.label_blob(&image.id, &tie).await
        };
        let unpacked = unpacked.await;
        self.containerd.end_lease(lease).await;
        unpacked
    }
}
