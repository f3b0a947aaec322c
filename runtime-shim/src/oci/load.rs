//! Images from archives: an OCI layout (`index.json` and blobs) or what `docker save` writes (`manifest.json`), packed as tar, and that
//! perhaps with gzip. The archive is read where it lies: layers go from there into containerd.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Backend;
use super::client::OciError;
use super::content::Ingest;
use super::images::{Manifest, OciImage, Part, choose, parse};
use super::pull::{Description, Document, LayerSource};
use crate::images::{Digest, tar_entries};

const CHUNK_BYTES: usize = 512 << 10;
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// How archives say what an image is called.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Whether a file that begins like this is an archive rather than a Wasm file.
pub(crate) fn is_archive(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b]) || start.get(257..262) == Some(b"ustar")
}

/// An archive on disk and what is where in it.
struct Archive {
    file: PathBuf,
    entries: HashMap<String, (u64, u64)>,
    /// Blobs by digest, where the entry's name does not say it.
    by_digest: HashMap<String, String>,
}

/// One image of an archive.
struct Found {
    description: Description,
    names: Vec<String>,
}

/// One image as `docker save` lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Reads the table of contents; what is packed with gzip is unpacked beside it first.
    fn open(file: &Path) -> Result<(Self, Option<tempfile::TempPath>), OciError> {
        let failed = || OciError::io("read the archive");
        let mut opened = std::fs::File::open(file).map_err(failed())?;
        let mut start = [0; 2];
        let short = opened.read_exact(&mut start).is_err();
        opened.rewind().map_err(failed())?;
        let (path, unpacked) = if !short && start == [0x1f, 0x8b] {
            let dir = file.parent().unwrap_or(Path::new("."));
            let mut plain = tempfile::NamedTempFile::new_in(dir).map_err(failed())?;
            std::io::copy(&mut flate2::read::MultiGzDecoder::new(opened), &mut plain)
                .map_err(failed())?;
            let plain = plain.into_temp_path();
            (plain.to_path_buf(), Some(plain))
        } else {
            (file.to_owned(), None)
        };
        let opened = std::fs::File::open(&path).map_err(failed())?;
        let entries = tar_entries(opened).map_err(|err| OciError::damaged("the archive", err))?;
        let archive = Self {
            file: path,
            entries: entries
                .into_iter()
                .map(|(name, at, size)| (name.trim_start_matches("./").to_owned(), (at, size)))
                .collect(),
            by_digest: HashMap::new(),
        };
        Ok((archive, unpacked))
    }

    fn part(&self, name: &str) -> Option<std::io::Result<std::io::Take<std::fs::File>>> {
        let (at, size) = self.entries.get(name)?;
        let open = || {
            let mut file = std::fs::File::open(&self.file)?;
            file.seek(SeekFrom::Start(*at))?;
            Ok(file.take(*size))
        };
        Some(open())
    }

    fn document(&self, name: &str) -> Result<Bytes, OciError> {
        let missing = || OciError::damaged("the archive", format!("{name} is missing"));
        let part = self.part(name).ok_or_else(missing)?;
        let part = part.map_err(OciError::io("read the archive"))?;
        if part.limit() > DOCUMENT_BYTES_MAX {
            return Err(OciError::damaged(name, "it is too large"));
        }
        let mut bytes = Vec::new();
        part.take(DOCUMENT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(OciError::io("read the archive"))?;
        Ok(bytes.into())
    }

    fn blob_name(&self, digest: &str) -> String {
        match self.by_digest.get(digest) {
            Some(name) => name.clone(),
            None => format!("blobs/{}", digest.replace(':', "/")),
        }
    }

    fn blob(&self, digest: &str) -> Result<Bytes, OciError> {
        let bytes = self.document(&self.blob_name(digest))?;
        let found = digest_of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        Err(OciError::damaged(digest, format!("its content is {found}")))
    }

    /// The images of an OCI layout.
    fn layout(&self) -> Result<Vec<Found>, OciError> {
        let index = self.document("index.json")?;
        let index: Manifest = parse("index.json", &index)?;
        let mut found = Vec::new();
        for entry in &index.manifests {
            let mut document = Document {
                media_type: entry.media_type.clone(),
                digest: entry.digest.clone(),
                bytes: self.blob(&entry.digest)?,
            };
            let mut manifest: Manifest = parse(&entry.digest, &document.bytes)?;
            let mut above = None;
            if manifest.config.is_none() {
                let Some(chosen) = choose(&manifest.manifests) else {
                    continue;
                };
                let below = Document {
                    media_type: chosen.media_type.clone(),
                    digest: chosen.digest.clone(),
                    bytes: self.blob(&chosen.digest)?,
                };
                manifest = parse(&chosen.digest, &below.bytes)?;
                above = Some(std::mem::replace(&mut document, below));
            }
            let Some(config) = manifest.config else {
                continue;
            };
            if config.media_type.contains("wasm") {
                return Err(OciError::Refused(
                    "the archive holds a Wasm artifact: load its .wasm file instead".into(),
                ));
            }
            let named = NAME_ANNOTATIONS
                .iter()
                .find_map(|key| entry.annotations.get(*key));
            found.push(Found {
                description: Description {
                    index: above,
                    manifest: document,
                    config: self.blob(&config.digest)?,
                },
                names: named.into_iter().cloned().collect(),
            });
        }
        Ok(found)
    }

    /// The images of `docker save`: it has no manifests, so they are written here.
    fn saved(&mut self) -> Result<Vec<Found>, OciError> {
        let bytes = self.document("manifest.json")?;
        let list: Vec<Saved> = parse("manifest.json", &bytes)?;
        let mut found = Vec::new();
        for saved in list {
            let config = self.document(&saved.config)?;
            let mut layers = Vec::new();
            for name in &saved.layers {
                let part = self.layer(name)?;
                self.by_digest.insert(part.digest.clone(), name.clone());
                layers.push(serde_json::json!({
                    "mediaType": part.media_type, "digest": part.digest, "size": part.size,
                }));
            }
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": { "mediaType": CONFIG_TYPE, "digest": digest_of(&config), "size": config.len() },
                "layers": layers,
            });
            let bytes = Bytes::from(manifest.to_string());
            found.push(Found {
                description: Description {
                    index: None,
                    manifest: Document {
                        media_type: MANIFEST_TYPE.into(),
                        digest: digest_of(&bytes),
                        bytes,
                    },
                    config,
                },
                names: saved.repo_tags.unwrap_or_default(),
            });
        }
        Ok(found)
    }

    /// Digest and size of a layer that the archive names by its place only.
    fn layer(&self, name: &str) -> Result<Part, OciError> {
        let missing = || OciError::damaged("the archive", format!("{name} is missing"));
        let failed = || OciError::io("read the archive");
        let mut part = self.part(name).ok_or_else(missing)?.map_err(failed())?;
        let size = part.limit();
        let (mut hasher, mut chunk, mut packed) = (Sha256::new(), vec![0; CHUNK_BYTES], None);
        loop {
            let len = part.read(&mut chunk).map_err(failed())?;
            if len == 0 {
                break;
            }
            packed.get_or_insert(chunk.starts_with(&[0x1f, 0x8b]));
            hasher.update(&chunk[..len]);
        }
        let suffix = if packed == Some(true) { "+gzip" } else { "" };
        Ok(Part {
            media_type: format!("{LAYER_TYPE}{suffix}"),
            digest: Digest::from_hasher(hasher).to_string(),
            size,
            ..Part::default()
        })
    }
}

fn digest_of(bytes: &[u8]) -> String {
    Digest::from_hasher(Sha256::new_with_prefix(bytes)).to_string()
}

impl LayerSource for Archive {
    async fn fill(&self, layer: &Part, mut ingest: Ingest) -> Result<(), OciError> {
        let name = self.blob_name(&layer.digest);
        let missing = || OciError::damaged("the archive", format!("{name} is missing"));
        let part = self.part(&name).ok_or_else(missing)?;
        let mut part = part.map_err(OciError::io("read the archive"))?;
        if ingest.offset() > 0 {
            ingest.restart().await?;
        }
        loop {
            // One piece at a time, off the async threads.
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; CHUNK_BYTES];
                let len = part.read(&mut chunk)?;
                chunk.truncate(len);
                Ok::<_, std::io::Error>((part, chunk))
            });
            let (next, chunk) = read
                .await
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(OciError::io("read the archive"))?;
            if chunk.is_empty() {
                return ingest.commit().await;
            }
            ingest.write(&chunk).await?;
            part = next;
        }
    }

    fn is_here(&self, _: &Part) {}
}

impl Backend {
    /// Loads all images of the archive at `file`, under `name` where it is given and there is one image only, else under the
    /// archive's own names. They are pinned: nobody can fetch them again.
    pub(crate) async fn load(
        &self,
        name: Option<&str>,
        file: &Path,
    ) -> Result<Vec<Arc<OciImage>>, OciError> {
        let path = file.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let (mut archive, unpacked) = Archive::open(&path)?;
            let found = if archive.entries.contains_key("index.json") {
                archive.layout()?
            } else if archive.entries.contains_key("manifest.json") {
                archive.saved()?
            } else {
                return Err(OciError::Refused(
                    "the archive is neither an OCI layout (index.json) nor of `docker save` (manifest.json)".into(),
                ));
            };
            Ok((archive, unpacked, found))
        });
        let (archive, _unpacked, found) = read
            .await
            .map_err(|err| OciError::damaged("the archive", err))??;
        if found.is_empty() {
            return Err(OciError::Refused(
                "the archive has no image for this machine".into(),
            ));
        }
        let lease = self.containerd.lease().await?;
        let only = found.len() == 1;
        let mut ids = Vec::new();
        let mut outcome = Ok(());
        for image in found {
            let names: Vec<String> = match name {
                Some(name) if only => vec![name.to_owned()],
                _ => image
                    .names
                    .iter()
                    .filter(|name| name.contains(['/', ':']))
                    .filter_map(|name| crate::images::full_name(name).ok())
                    .collect(),
            };
            if names.is_empty() {
                outcome = Err(OciError::Refused(
                    "the archive gives its image no name: say one with --name".into(),
                ));
                break;
            }
            let taken = self
                .take_in(&lease, &image.description, &archive, &names, true)
                .await;
            match taken {
                Ok(id) => ids.push(id),
                Err(err) => {
                    outcome = Err(err);
                    break;
                }
            }
        }
        self.containerd.end_lease(lease).await;
        outcome?;
        self.index.refresh(&self.containerd).await?;
        Ok(ids.iter().filter_map(|id| self.index.find(id)).collect())
    }
}
