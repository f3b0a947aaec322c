//! Reads what `cox up PATH...` is asked to run: Wasm files to load as images, and manifests to apply.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Everything found at the given paths, in the order of the file names.
#[derive(Debug, Default)]
pub(crate) struct Workload {
    pub(crate) images: Vec<ImageFile>,
    pub(crate) objects: Vec<Manifest>,
}

/// A Wasm file or an archive of images, and the name that it gets; an archive has names of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageFile {
    pub(crate) reference: Option<String>,
    pub(crate) path: PathBuf,
}

impl ImageFile {
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let is_archive = path.extension().is_some_and(|ending| ending == "tar");
        Ok(Self {
            reference: (!is_archive).then(|| local_reference(path)).transpose()?,
            path: path.to_path_buf(),
        })
    }
}

/// One object of a manifest, and the file it stands in.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) object: Value,
    pub(crate) source: PathBuf,
}

impl Manifest {
    pub(crate) fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }
    pub(crate) fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }
    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.object["metadata"]["namespace"].as_str()
    }
    /// `deployment/http`, as kubectl prints it.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.kind().to_lowercase(), self.name())
    }
}

/// Reads all paths before anything is started, so that a typing error costs nothing.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Workload> {
    let mut workload = Workload::default();
    for path in paths {
        if path.is_dir() {
            for file in files_of(path)? {
                workload.add(&file)?;
            }
        } else {
            let before = workload.images.len() + workload.objects.len();
            workload.add(path)?;
            if workload.images.len() + workload.objects.len() == before {
                bail!(
                    "{} is neither a .wasm file nor a manifest (.yaml, .yml, .json)",
                    path.display()
                );
            }
        }
    }
    if !paths.is_empty() && workload.images.is_empty() && workload.objects.is_empty() {
        bail!(
            "nothing to run: found neither a .wasm file nor a manifest (.yaml, .yml, .json) in the given paths"
        );
    }
    Ok(workload)
}

impl Workload {
    fn add(&mut self, path: &Path) -> Result<()> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("wasm" | "tar") => self.images.push(ImageFile::new(path)?),
            Some("yaml" | "yml" | "json") => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("{} cannot be read", path.display()))?;
                let objects = parse(&text)
                    .with_context(|| format!("{} is not a manifest", path.display()))?;
                self.objects
                    .extend(objects.into_iter().map(|object| Manifest {
                        object,
                        source: path.to_path_buf(),
                    }));
            }
            _ if !path.exists() => bail!("{} does not exist", path.display()),
            _ => {}
        }
        Ok(())
    }
}

/// The image name of a Wasm file: `NAME.wasm` is `cox.local/NAME:latest`.
pub(crate) fn local_reference(path: &Path) -> Result<String> {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let name = stem.to_lowercase();
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if name.is_empty()
        || !name.chars().all(good)
        || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        bail!(
            "{} cannot name an image: use letters, digits, '-', '_' and '.', or load it with `cox image load --name`",
            path.display()
        );
    }
    Ok(format!("cox.local/{name}:latest"))
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?
    {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The objects of a file of one or many YAML or JSON documents; a `List` is taken apart.
fn parse(text: &str) -> Result<Vec<Value>> {
    // The first line says what and where; the rest draws the place for a terminal.
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        anyhow::anyhow!(
            "{}",
            error
                .to_string()
                .lines()
                .next()
                .unwrap_or("it does not parse")
        )
    })?;
    let mut objects = Vec::new();
    for document in documents {
        if document.is_null() {
            continue;
        }
        if document["kind"] == "List" {
            objects.extend(document["items"].as_array().into_iter().flatten().cloned());
        } else {
            objects.push(document);
        }
    }
    for object in &objects {
        for field in ["/apiVersion", "/kind", "/metadata/name"] {
            if object
                .pointer(field)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                bail!(
                    "an object in it has no {}",
                    field.trim_start_matches('/').replace('/', ".")
                );
            }
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_images_and_objects_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.wasm"), b"x").unwrap();
        std::fs::write(dir.path().join("README.md"), b"x").unwrap();
        let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# nothing\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns}\n";
        std::fs::write(dir.path().join("a.yaml"), yaml).unwrap();
        let workload = read(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!(
            workload.images[0].reference.as_deref(),
            Some("cox.local/b:latest")
        );
        let labels: Vec<_> = workload.objects.iter().map(Manifest::label).collect();
        assert_eq!(labels, ["configmap/a", "pod/p"]);
        assert_eq!(workload.objects[1].namespace(), Some("ns"));
    }

    #[test]
    fn what_cannot_run_is_said_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let refuse = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("{:#}", read(&[path]).unwrap_err())
        };
        assert!(
            refuse("a.yaml", "kind: Pod\nmetadata: {name: p}")
                .contains("an object in it has no apiVersion")
        );
        assert!(refuse("b.yaml", "a: [").contains("is not a manifest"));
        assert!(refuse("c.txt", "x").contains("neither a .wasm file nor a manifest"));
        assert!(refuse("a b.wasm", "x").contains("cannot name an image"));
        assert!(
            format!("{:#}", read(&[dir.path().join("none.yaml")]).unwrap_err())
                .contains("cannot be read")
        );
    }

    #[test]
    fn a_list_is_taken_apart() {
        let objects = parse(
            "kind: List\napiVersion: v1\nitems: [{apiVersion: v1, kind: Pod, metadata: {name: a}}]",
        )
        .unwrap();
        assert_eq!(objects[0]["kind"], "Pod");
    }
}
