//! Images: names, content by digest, where they come from (registry or door), what kind they are.
//!
//! Content lies in `blobs/sha256/` below the root, named by digest; `references.json` says which images there are and is replaced
//! atomically. An image is in the store only after its program was compiled and checked, so what is wrong with it is said when it
//! is pulled or loaded, not when a Pod starts.

pub mod door;

mod archive;
mod content;
mod digest;
mod door_server;
mod formats;
mod mounted;
pub(crate) mod name;
pub(crate) mod progress;
mod pull;
mod references;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_client::Reference;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

pub(crate) use archive::tar_entries;
pub(crate) use digest::Digest;
pub(crate) use door_server::serve as serve_door;
pub(crate) use formats::is_host_architecture;
pub(crate) use pull::{Credentials, PullError};

use crate::config::Config;
use crate::engine::Program;
use crate::engine::code::{CodeCache, CodeError};
use crate::error::VerbError;
use crate::oci::{Backend, OciImage};
use content::Blobs;
use references::References;

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Digest of its manifest, or of the file for images that came through the door.
    pub(crate) id: Digest,
    /// Full names with tags.
    pub(crate) tags: Vec<String>,
    /// Full names with digests.
    pub(crate) digests: Vec<String>,
    /// The Wasm file that runs when the Pod names no other.
    pub(crate) entry: Digest,
    /// `argv[0]` when the Pod gives no command and the image no entrypoint.
    pub(crate) program_name: String,
    /// Wasm files by absolute path, for images with a file system.
    pub(crate) files: BTreeMap<String, Digest>,
    pub(crate) config: ImageConfig,
    /// Bytes of its content.
    pub(crate) size: u64,
    /// Cannot be fetched again, so it must not be collected.
    pub(crate) pinned: bool,
}

/// What an image says about how it is to be run; the Pod spec goes before all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
}

/// An image of either kind.
#[derive(Clone, Debug)]
pub(crate) enum AnyImage {
    /// Runs in this process.
    Wasm(Arc<Image>),
    /// Runs in containerd.
    Oci(Arc<OciImage>),
}

impl AnyImage {
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Wasm(image) => image.id.as_str(),
            Self::Oci(image) => &image.id,
        }
    }

    /// By what the image can be fetched again exactly as it is; its id when it cannot.
    pub(crate) fn reference(&self) -> &str {
        let digests = match self {
            Self::Wasm(image) => &image.digests,
            Self::Oci(image) => &image.digests,
        };
        digests.first().map_or(self.id(), String::as_str)
    }
}

/// Why the store could not do what it was asked. The texts go to the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{0:?} is not an image reference: {1}")]
    Reference(String, String),
    #[error("{image} cannot run here: {source}")]
    Code {
        image: String,
        #[source]
        source: CodeError,
    },
    #[error("image store: cannot {verb} {}: {source}", .path.display())]
    Io {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("image store: {} is damaged ({message}): move it away to start with an empty store", .path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("the file is larger than the limit of {0} bytes")]
    TooLarge(u64),
}

/// The image store.
pub(crate) struct Images {
    blobs: Blobs,
    references: RwLock<References>,
    code: CodeCache,
    config: Arc<Config>,
    /// Where images for Linux are.
    oci: Arc<Backend>,
    /// Pulls and loads change the references one after the other.
    change: tokio::sync::Mutex<()>,
    /// What is on its way.
    pub(crate) pulls: progress::Pulls,
    /// Read while content is brought in that no image refers to yet; written while unused content is removed.
    incoming: tokio::sync::RwLock<()>,
}

impl Images {
    pub(crate) fn open(config: &Arc<Config>, code: CodeCache) -> Result<Self, ImageError> {
        let blobs = Blobs::open(&config.root_dir)?;
        let references = References::open(&config.root_dir)?;
        Ok(Self {
            blobs,
            references: RwLock::new(references),
            code,
            oci: Arc::new(Backend::new(config)),
            config: Arc::clone(config),
            pulls: progress::Pulls::default(),
            change: tokio::sync::Mutex::new(()),
            incoming: tokio::sync::RwLock::new(()),
        })
    }

    /// Finds an image by id, by a prefix of it, or by any name.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let references = self.references.read();
        if let Some(found) = references.by_id(name) {
            return Some(found);
        }
        references.by_name(&full_name(name).ok()?)
    }

    /// Finds an image of either kind.
    pub(crate) async fn find_any(&self, name: &str) -> Option<AnyImage> {
        if let Some(image) = self.find(name) {
            return Some(AnyImage::Wasm(image));
        }
        self.oci.find(name).await.map(AnyImage::Oci)
    }

    /// The images of both kinds.
    pub(crate) async fn list_any(&self) -> Vec<AnyImage> {
        let wasm = self.list().into_iter().map(AnyImage::Wasm);
        let oci = self.oci.list().await.into_iter().map(AnyImage::Oci);
        wasm.chain(oci).collect()
    }

    /// Removes an image of either kind; one that is not there is removed already.
    pub(crate) async fn remove_any(&self, name: &str) -> Result<(), VerbError> {
        match self.find_any(name).await {
            Some(AnyImage::Oci(image)) => Ok(self.oci.remove(&image).await?),
            Some(AnyImage::Wasm(_)) => Ok(self.remove(name).await?),
            None => Ok(()),
        }
    }

    pub(crate) fn oci(&self) -> &Arc<Backend> {
        &self.oci
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.references.read().all().cloned().collect()
    }

    /// The program of one of an image's Wasm files.
    pub(crate) async fn program(
        &self,
        image: &Image,
        wasm: &Digest,
    ) -> Result<Arc<Program>, ImageError> {
        self.code
            .program(wasm, &self.blobs.path(wasm))
            .await
            .map_err(|source| ImageError::Code {
                image: image.name().to_owned(),
                source,
            })
    }

    /// Takes the Wasm file at `file`, with content `digest`, as image `name`.
    pub(crate) async fn load(
        &self,
        name: &str,
        file: tempfile::TempPath,
        digest: Digest,
    ) -> Result<Arc<Image>, ImageError> {
        let incoming = self.incoming.read().await;
        let loaded = self.take(name, file, digest).await;
        drop(incoming);
        self.sweep();
        loaded
    }

    async fn take(
        &self,
        name: &str,
        file: tempfile::TempPath,
        digest: Digest,
    ) -> Result<Arc<Image>, ImageError> {
        let name = full_name(name)?;
        let size = file
            .metadata()
            .map_err(|source| io("read", &file, source))?
            .len();
        let program_name = program_name(&name);
        self.blobs.keep(file, &digest)?;
        let image = Image {
            id: digest.clone(),
            tags: vec![name],
            digests: Vec::new(),
            entry: digest,
            program_name,
            files: BTreeMap::new(),
            config: ImageConfig::default(),
            size,
            pinned: true,
        };
        self.add(image).await
    }

    /// Checks that an image runs, then makes it visible under its names.
    async fn add(&self, image: Image) -> Result<Arc<Image>, ImageError> {
        self.program(&image, &image.entry).await?;
        let _change = self.change.lock().await;
        let mut references = self.references.read().clone();
        let image = references.insert(image);
        references.save(&self.config.root_dir)?;
        *self.references.write() = references;
        Ok(image)
    }

    /// Removes an image under all its names; one that is not there is removed already.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let _change = self.change.lock().await;
        let Some(image) = self.find(name) else {
            return Ok(());
        };
        let mut references = self.references.read().clone();
        references.remove(&image.id);
        references.save(&self.config.root_dir)?;
        *self.references.write() = references;
        self.sweep();
        Ok(())
    }

    /// Removes content that no image refers to, unless some is just coming in: whoever brings it sweeps then.
    fn sweep(&self) {
        let Ok(_quiet) = self.incoming.try_write() else {
            return;
        };
        let used = self.references.read().used();
        for digest in self.blobs.sweep(&used) {
            self.code.remove(&digest);
        }
    }

    /// Folder, bytes and files of the store.
    pub(crate) fn usage(&self) -> (&Path, u64, u64) {
        let (bytes, files) = content::usage(&self.config.root_dir);
        (&self.config.root_dir, bytes, files)
    }
}

impl Image {
    /// A name for messages.
    pub(crate) fn name(&self) -> &str {
        self.tags
            .first()
            .or(self.digests.first())
            .map_or(self.id.as_str(), String::as_str)
    }

    /// The Wasm file behind a path of the image, as a command names it.
    pub(crate) fn file(&self, path: &str) -> Option<&Digest> {
        self.files.get(&absolute(path, &self.config.working_dir))
    }
}

/// `path` as an absolute one without `.`, `..` and doubled slashes.
fn absolute(path: &str, working_dir: &str) -> String {
    let joined = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{working_dir}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The reference with registry, repository and tag or digest written out.
pub(crate) fn full_name(name: &str) -> Result<String, ImageError> {
    parse(name).map(|reference| reference.whole())
}

fn parse(name: &str) -> Result<Reference, ImageError> {
    name::parse(name).map_err(|err| ImageError::Reference(name.to_owned(), err.to_string()))
}

/// `cox.local/tools/hello:latest` runs as `hello`.
fn program_name(full: &str) -> String {
    let last = full.rsplit('/').next().unwrap_or(full);
    last.split([':', '@']).next().unwrap_or(last).to_owned()
}

fn io(verb: &'static str, path: &Path, source: std::io::Error) -> ImageError {
    ImageError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_out() {
        for (name, full, program) in [
            ("hello", "docker.io/library/hello:latest", "hello"),
            ("cox.local/hello", "cox.local/hello:latest", "hello"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1", "b"),
        ] {
            assert_eq!(full_name(name).unwrap(), full);
            assert_eq!(program_name(full), program);
        }
        assert!(full_name("cox.local/UPPER").is_err());
        assert!(full_name("").is_err());
    }

    #[test]
    fn paths_stay_inside_the_image() {
        for (path, dir, expected) in [
            ("/app.wasm", "", "/app.wasm"),
            ("app.wasm", "/srv", "/srv/app.wasm"),
            ("../../x", "/srv", "/x"),
            ("a//./b", "", "/a/b"),
        ] {
            assert_eq!(absolute(path, dir), expected);
        }
    }
}
