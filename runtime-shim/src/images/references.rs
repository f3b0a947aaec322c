//! Which images there are: `references.json`, replaced as a whole.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::{Digest, Image, ImageError, io};

const FILE: &str = "references.json";
/// Shorter prefixes of an id are not accepted in its place.
const ID_PREFIX_LEN_MIN: usize = 8;

#[derive(Clone, Debug, Default)]
pub(super) struct References {
    images: BTreeMap<Digest, Arc<Image>>,
}

impl References {
    pub(super) fn open(root: &Path) -> Result<Self, ImageError> {
        let path = root.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(err) => return Err(io("read", &path, err)),
        };
        let images: Vec<Image> =
            serde_json::from_slice(&bytes).map_err(|err| ImageError::Damaged {
                path,
                message: err.to_string(),
            })?;
        Ok(Self {
            images: images
                .into_iter()
                .map(|image| (image.id.clone(), Arc::new(image)))
                .collect(),
        })
    }

    /// Durable when this returns: after a power cut there is the old file or the new one.
    pub(super) fn save(&self, root: &Path) -> Result<(), ImageError> {
        let path = root.join(FILE);
        let images: Vec<&Image> = self.images.values().map(Arc::as_ref).collect();
        let bytes = serde_json::to_vec_pretty(&images).expect("an image is plain data");
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(root)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|err| err.error)?;
            std::fs::File::open(root)?.sync_all()
        };
        write().map_err(|err| io("write", &path, err))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    pub(super) fn by_id(&self, id: &str) -> Option<Arc<Image>> {
        let hex = id.strip_prefix("sha256:").unwrap_or(id);
        if hex.len() < ID_PREFIX_LEN_MIN || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut found = self
            .images
            .values()
            .filter(|image| image.id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (Some(image), None) => Some(Arc::clone(image)),
            _ => None,
        }
    }

    pub(super) fn by_name(&self, full: &str) -> Option<Arc<Image>> {
        let named = |image: &&Arc<Image>| {
            image
                .tags
                .iter()
                .chain(&image.digests)
                .any(|name| name == full)
        };
        self.images.values().find(named).map(Arc::clone)
    }

    /// Adds `image`; its tags leave the images that had them. Names of the same image add up.
    pub(super) fn insert(&mut self, mut image: Image) -> Arc<Image> {
        let mut untagged = Vec::new();
        for (id, other) in &mut self.images {
            if *id == image.id {
                image.tags.extend(other.tags.iter().cloned());
                image.digests.extend(other.digests.iter().cloned());
                image.pinned |= other.pinned;
            } else if other.tags.iter().any(|tag| image.tags.contains(tag)) {
                let other = Arc::make_mut(other);
                other.tags.retain(|tag| !image.tags.contains(tag));
                if other.tags.is_empty() && other.digests.is_empty() {
                    untagged.push(id.clone());
                }
            }
        }
        // Nobody can name what came through the door and lost its only tag.
        untagged.iter().for_each(|id| drop(self.images.remove(id)));
        for names in [&mut image.tags, &mut image.digests] {
            names.sort();
            names.dedup();
        }
        let image = Arc::new(image);
        self.images.insert(image.id.clone(), Arc::clone(&image));
        image
    }

    pub(super) fn remove(&mut self, id: &Digest) {
        self.images.remove(id);
    }

    /// All content that an image needs.
    pub(super) fn used(&self) -> HashSet<Digest> {
        self.images
            .values()
            .flat_map(|image| image.files.values().chain([&image.entry]))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &str, tag: &str) -> Image {
        let id = Digest::of(content.as_bytes());
        Image {
            id: id.clone(),
            tags: vec![tag.to_owned()],
            digests: Vec::new(),
            entry: id,
            program_name: "x".into(),
            files: BTreeMap::new(),
            config: super::super::ImageConfig::default(),
            size: 1,
            pinned: true,
        }
    }

    #[test]
    fn a_tag_moves_to_the_new_image_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut references = References::open(dir.path()).unwrap();
        references.insert(image("old", "a:latest"));
        references.insert(image("new", "a:latest"));
        references.insert(image("new", "b:latest"));
        references.save(dir.path()).unwrap();
        let again = References::open(dir.path()).unwrap();
        let found = again.by_name("a:latest").unwrap();
        assert_eq!(found.id, Digest::of(b"new"));
        assert_eq!(found.tags, ["a:latest", "b:latest"]);
        assert_eq!(again.all().count(), 1, "the old image lost its only name");
        assert_eq!(again.by_id(&found.id.hex()[..12]).unwrap().id, found.id);
        assert!(again.by_id("ab").is_none());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let err = References::open(dir.path()).unwrap_err().to_string();
        assert!(err.contains("references.json is damaged"), "{err}");
    }
}
