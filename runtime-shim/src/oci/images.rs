//! The OCI images that containerd has, as this runtime knows them: read once per content, kept until a record changes.
//!
//! containerd's image records in namespace `k8s.io` are the truth: what `ctr` or `nerdctl` add or remove there is seen here. An image
//! is named by the digest of its configuration, as other CRI runtimes do; all records with that configuration are its names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image as ImageRecord, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tonic::Code;

use super::client::{Containerd, Lease, OciError, leased, request};
use super::unpack::chain_ids;
use crate::images::name;

/// containerd's own CRI plugin and `crictl` users know images of Kubernetes by this label.
const MANAGED: &str = "io.cri-containerd.image";
/// Marks an image that must not be collected, as containerd's own CRI plugin does.
const PINNED: &str = "io.cri-containerd.pinned";
/// Shorter prefixes of an id are not accepted in its place.
const ID_PREFIX_LEN_MIN: usize = 8;

/// A manifest or an index, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) config: Option<Part>,
    pub(super) layers: Vec<Part>,
    pub(super) manifests: Vec<Part>,
}

/// One thing that a manifest or an index names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Part {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    pub(super) annotations: HashMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
}

impl Part {
    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(0),
            annotations: HashMap::new(),
        }
    }
}

/// The configuration of an image for Linux.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigFile {
    pub(super) config: Option<RunConfig>,
    pub(super) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<String>,
}

/// What an image says about how it is to be run; the Pod spec goes before all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct RunConfig {
    pub(crate) user: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
}

/// One image in containerd.
#[derive(Clone, Debug, Default)]
pub(crate) struct OciImage {
    /// Digest of its configuration.
    pub(crate) id: String,
    /// Names with tags, and with digests.
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    /// The names of its records in containerd.
    pub(super) records: Vec<String>,
    pub(super) layers: Vec<Part>,
    pub(super) diff_ids: Vec<String>,
    pub(crate) config: RunConfig,
    pub(crate) size: u64,
    pub(crate) pinned: bool,
}

impl OciImage {
    /// A name for messages.
    pub(crate) fn name(&self) -> &str {
        self.tags
            .first()
            .or(self.digests.first())
            .map_or(self.id.as_str(), String::as_str)
    }

    /// The snapshot that containers start from; empty for an image without layers.
    pub(super) fn chain_id(&self) -> String {
        chain_ids(&self.diff_ids).pop().unwrap_or_default()
    }

    /// The user that the image names, as CRI tells it: a number or a name.
    pub(crate) fn user(&self) -> (Option<i64>, String) {
        let user = self.config.user.as_deref().unwrap_or_default();
        let name = user.split(':').next().unwrap_or_default();
        match name.parse() {
            Ok(uid) => (Some(uid), String::new()),
            Err(_) if name.is_empty() => (Some(0), String::new()),
            Err(_) => (None, name.to_owned()),
        }
    }
}

/// What is known of the images.
#[derive(Debug, Default)]
pub(super) struct ImageIndex {
    by_id: RwLock<BTreeMap<String, Arc<OciImage>>>,
    /// Content never changes: what a record's target leads to is read once.
    by_target: RwLock<HashMap<String, Arc<OciImage>>>,
    loaded: OnceCell<()>,
    reading: tokio::sync::Mutex<()>,
}

impl ImageIndex {
    pub(super) fn list(&self) -> Vec<Arc<OciImage>> {
        self.by_id.read().values().cloned().collect()
    }

    /// Finds an image by id, by a beginning of it, or by any name.
    pub(super) fn find(&self, name: &str) -> Option<Arc<OciImage>> {
        let images = self.by_id.read();
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() >= ID_PREFIX_LEN_MIN && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let start = format!("sha256:{hex}");
            let mut found = images
                .range(start.clone()..)
                .take_while(|(id, _)| id.starts_with(&start));
            if let (Some((_, image)), None) = (found.next(), found.next()) {
                return Some(Arc::clone(image));
            }
        }
        let wanted = canonical(name)?;
        let named = |image: &&Arc<OciImage>| {
            image
                .tags
                .iter()
                .chain(&image.digests)
                .any(|name| *name == wanted)
        };
        images.values().find(named).cloned()
    }

    /// Reads the records once; later changes come by events.
    pub(super) async fn load(&self, containerd: &Containerd) -> Result<(), OciError> {
        self.loaded
            .get_or_try_init(|| self.refresh(containerd))
            .await?;
        Ok(())
    }

    /// Reads all records; content that was read before is not read again.
    pub(super) async fn refresh(&self, containerd: &Containerd) -> Result<(), OciError> {
        let _one_at_a_time = self.reading.lock().await;
        let records = containerd
            .images()
            .list(request(ListImagesRequest::default()))
            .await
            .map_err(containerd.failed("list images"))?
            .into_inner()
            .images;
        let mut images: BTreeMap<String, OciImage> = BTreeMap::new();
        let mut targets = HashMap::new();
        for record in records {
            let Some(target) = &record.target else {
                continue;
            };
            let known = self.by_target.read().get(&target.digest).cloned();
            let content = match known {
                Some(known) => known,
                None => match resolve(containerd, target).await {
                    Ok(content) => Arc::new(content),
                    Err(err @ OciError::Unavailable { .. }) => return Err(err),
                    Err(err) => {
                        tracing::debug!(error = %err, image = record.name, "An image of containerd's is not one for this node");
                        continue;
                    }
                },
            };
            targets.insert(target.digest.clone(), Arc::clone(&content));
            images
                .entry(content.id.clone())
                .or_insert_with(|| OciImage::clone(&content))
                .take_name(&record, &target.digest);
        }
        *self.by_target.write() = targets;
        *self.by_id.write() = images
            .into_iter()
            .map(|(id, mut image)| {
                for names in [&mut image.tags, &mut image.digests] {
                    names.sort();
                    names.dedup();
                }
                (id, Arc::new(image))
            })
            .collect();
        Ok(())
    }
}

impl OciImage {
    fn take_name(&mut self, record: &ImageRecord, target: &str) {
        self.records.push(record.name.clone());
        self.pinned |= record
            .labels
            .get(PINNED)
            .is_some_and(|value| value == "pinned");
        let Ok(reference) = name::parse(&record.name) else {
            return;
        };
        if record.name.starts_with("sha256:") {
            // containerd's own CRI plugin adds a record of this form; it is no name.
            return;
        }
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        match (reference.digest(), reference.tag()) {
            (None, Some(tag)) => {
                self.tags.push(format!("{repository}:{tag}"));
                self.digests.push(format!("{repository}@{target}"));
            }
            (Some(digest), _) => self.digests.push(format!("{repository}@{digest}")),
            (None, None) => {}
        }
    }
}

/// A name as the index holds it: written out, and by digest alone where it has one.
fn canonical(name: &str) -> Option<String> {
    let reference = name::parse(name).ok()?;
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Some(format!("{repository}@{digest}")),
        (None, tag) => Some(format!("{repository}:{}", tag.unwrap_or("latest"))),
    }
}

/// Follows a record's target to the manifest and configuration for this machine.
async fn resolve(containerd: &Containerd, target: &Descriptor) -> Result<OciImage, OciError> {
    let mut bytes = containerd.document(&target.digest).await?;
    let mut manifest: Manifest = parse(&target.digest, &bytes)?;
    if manifest.config.is_none() {
        let chosen = choose(&manifest.manifests)
            .ok_or_else(|| OciError::damaged(&target.digest, "it has no image for this machine"))?;
        bytes = containerd.document(&chosen.digest).await?;
        manifest = parse(&chosen.digest, &bytes)?;
    }
    let config = manifest
        .config
        .clone()
        .ok_or_else(|| OciError::damaged(&target.digest, "it names no configuration"))?;
    let file = containerd.document(&config.digest).await?;
    image(&config, &manifest, bytes.len(), &file)
}

/// Puts together what manifest and configuration say.
pub(super) fn image(
    config: &Part,
    manifest: &Manifest,
    manifest_bytes: usize,
    file: &[u8],
) -> Result<OciImage, OciError> {
    let file: ConfigFile = parse(&config.digest, file)?;
    if file.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(OciError::damaged(
            &config.digest,
            "configuration and manifest differ in the number of layers",
        ));
    }
    let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
    Ok(OciImage {
        id: config.digest.clone(),
        size: layers + config.size + manifest_bytes as u64,
        layers: manifest.layers.clone(),
        diff_ids: file.rootfs.diff_ids,
        config: file.config.unwrap_or_default(),
        ..OciImage::default()
    })
}

pub(super) fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|err| OciError::damaged(what, err))
}

/// The image for this machine among those of an index. Entries without a platform count when nothing fits better.
pub(super) fn choose(entries: &[Part]) -> Option<&Part> {
    let fits = |entry: &&Part| {
        entry.platform.as_ref().is_some_and(|platform| {
            platform.os.eq_ignore_ascii_case("linux")
                && crate::images::is_host_architecture(&platform.architecture)
        })
    };
    entries
        .iter()
        .find(fits)
        .or_else(|| entries.iter().find(|entry| entry.platform.is_none()))
}

impl Containerd {
    /// Makes `name` mean `target`, whatever it meant before.
    pub(super) async fn name_image(
        &self,
        lease: &Lease,
        name: &str,
        target: &Descriptor,
        pinned: bool,
    ) -> Result<(), OciError> {
        let mut labels = HashMap::from([(MANAGED.to_owned(), "managed".to_owned())]);
        if pinned {
            labels.insert(PINNED.to_owned(), "pinned".to_owned());
        }
        let record = ImageRecord {
            name: name.to_owned(),
            labels,
            target: Some(target.clone()),
            ..ImageRecord::default()
        };
        let create = CreateImageRequest {
            image: Some(record.clone()),
            ..CreateImageRequest::default()
        };
        match self.images().create(leased(create, lease)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(self.failed("name an image")(status)),
        }
        let update = UpdateImageRequest {
            image: Some(record),
            ..UpdateImageRequest::default()
        };
        self.images()
            .update(leased(update, lease))
            .await
            .map_err(self.failed("name an image"))?;
        Ok(())
    }

    /// Removes all names of an image; containerd's collector takes its content, the last removal waits for it.
    pub(super) async fn forget_image(&self, image: &OciImage) -> Result<(), OciError> {
        for (at, name) in image.records.iter().enumerate() {
            let delete = DeleteImageRequest {
                name: name.clone(),
                sync: at + 1 == image.records.len(),
                target: None,
            };
            match self.images().delete(request(delete)).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(self.failed("remove an image")(status)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(records: &[&str]) -> OciImage {
        let mut image = OciImage {
            id: format!("sha256:{}", "ab".repeat(32)),
            ..OciImage::default()
        };
        for name in records {
            let record = ImageRecord {
                name: (*name).to_owned(),
                ..ImageRecord::default()
            };
            image.take_name(&record, &format!("sha256:{}", "cd".repeat(32)));
        }
        image
    }

    #[test]
    fn an_image_is_found_by_every_name() {
        let digest = format!("sha256:{}", "ef".repeat(32));
        let image = named(&[
            "docker.io/library/busybox:1",
            &format!("quay.io/a/b@{digest}"),
        ]);
        let index = ImageIndex::default();
        index
            .by_id
            .write()
            .insert(image.id.clone(), Arc::new(image));
        let hit = |name: &str| index.find(name).is_some();
        assert!(hit("busybox:1"));
        assert!(hit("docker.io/library/busybox:1"));
        assert!(hit(&format!("quay.io/a/b@{digest}")));
        assert!(
            hit(&format!("quay.io/a/b:v9@{digest}")),
            "the digest decides"
        );
        assert!(hit(&format!("busybox@sha256:{}", "cd".repeat(32))));
        assert!(hit(&"ab".repeat(32)));
        assert!(hit(&format!("sha256:{}", "ab".repeat(6))));
        assert!(!hit("busybox:2"));
        assert!(!hit("abab"), "too short for an id");
    }

    #[test]
    fn the_user_of_an_image_as_a_number_or_a_name() {
        for (user, expected) in [
            (None, (Some(0), "")),
            (Some("1000:1000"), (Some(1000), "")),
            (Some("www:www"), (None, "www")),
        ] {
            let image = OciImage {
                config: RunConfig {
                    user: user.map(str::to_owned),
                    ..RunConfig::default()
                },
                ..OciImage::default()
            };
            assert_eq!(image.user(), (expected.0, expected.1.to_owned()));
        }
    }

    #[test]
    fn an_index_gives_the_image_of_this_machine() {
        let entry = |digest: &str, platform: Option<(&str, &str)>| Part {
            digest: digest.into(),
            platform: platform.map(|(os, architecture)| Platform {
                os: os.into(),
                architecture: architecture.into(),
            }),
            ..Part::default()
        };
        let here = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let entries = [
            entry("windows", Some(("windows", here))),
            entry("other", Some(("linux", "mips64le"))),
            entry("mine", Some(("linux", here))),
        ];
        assert_eq!(choose(&entries).unwrap().digest, "mine");
        assert!(choose(&entries[..2]).is_none());
    }
}
