//! Static Pods of the folder: each file is one Pod, YAML or JSON. A file that does not parse is reported and leaves the others
//! alone.

use super::mirror::{CONFIG_HASH, CONFIG_SOURCE};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A file that is no Pod.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .file.display())]
pub struct ManifestError {
    pub file: PathBuf,
    pub reason: String,
}

/// What the folder holds now.
#[derive(Debug, Default)]
pub struct Folder {
    pub pods: Vec<Pod>,
    pub errors: Vec<ManifestError>,
}

/// Reads the whole folder; a folder that is not there is empty.
#[must_use]
pub fn read_folder(dir: &Path, node_name: &str) -> Folder {
    let mut folder = Folder::default();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return folder,
        Err(error) => {
            folder.errors.push(ManifestError {
                file: dir.to_owned(),
                reason: error.to_string(),
            });
            return folder;
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.sort();
    for file in files {
        let hidden = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || !file.is_file() {
            continue;
        }
        match std::fs::read(&file)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                let text = std::str::from_utf8(&text).map_err(|error| error.to_string())?;
                let value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
                let source = Source {
                    kind: "file",
                    place: file.as_os_str().as_encoded_bytes(),
                    text: text.as_bytes(),
                };
                static_pod(value, &source, node_name)
            }) {
            Ok(pod) => folder.pods.push(pod),
            Err(reason) => folder.errors.push(ManifestError { file, reason }),
        }
    }
    folder
}

/// Where a manifest comes from: it decides about the Pod's uid.
pub(super) struct Source<'a> {
    /// As the annotation calls it: `file` or `http`.
    pub(super) kind: &'static str,
    pub(super) place: &'a [u8],
    pub(super) text: &'a [u8],
}

/// The Pod of a manifest, with what upstream gives a static Pod: the node in its name, a uid from its content, the node bound.
pub(super) fn static_pod(
    value: serde_json::Value,
    source: &Source<'_>,
    node_name: &str,
) -> Result<Pod, String> {
    if value.get("kind").and_then(serde_json::Value::as_str) != Some("Pod") {
        return Err("it is not a Pod".to_owned());
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let name = pod
        .metadata
        .name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or("it has no metadata.name")?;
    let spec = pod.spec.as_mut().ok_or("it has no spec")?;
    if spec.containers.is_empty() {
        return Err("it has no containers".to_owned());
    }
    spec.node_name = Some(node_name.to_owned());
    let everywhere = Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_default().push(everywhere);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        if container.image_pull_policy.is_none() {
            let image = container.image.as_deref().unwrap_or_default();
            let policy = if is_latest(image) {
                "Always"
            } else {
                "IfNotPresent"
            };
            container.image_pull_policy = Some(policy.to_owned());
        }
    }
    let mut hash = Sha256::new();
    hash.update(node_name.as_bytes());
    hash.update([0]);
    hash.update(source.place);
    hash.update([0]);
    hash.update(source.text);
    let hash = hash
        .finalize()
        .iter()
        .take(16)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    pod.metadata.name = Some(format!("{name}-{node_name}"));
    pod.metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.to_owned(), hash);
    annotations.insert(CONFIG_SOURCE.to_owned(), source.kind.to_owned());
    pod.status = None;
    Ok(pod)
}

/// Whether an image name means "whatever is newest".
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_file_leaves_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "a.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: x:1}]}\n",
        );
        write("b.yaml", "kind: Pod\nmetadata: [not, a, map]\n");
        write("c.yaml", "kind: Service\nmetadata: {name: s}\n");
        write(".hidden", "kind: Pod");
        let folder = read_folder(dir.path(), "node-1");
        assert_eq!(folder.errors.len(), 2, "{:?}", folder.errors);
        let pod = &folder.pods[0];
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(
            pod.spec.as_ref().unwrap().containers[0]
                .image_pull_policy
                .as_deref(),
            Some("IfNotPresent")
        );
        assert_eq!(
            pod.metadata.uid,
            pod.metadata
                .annotations
                .as_ref()
                .unwrap()
                .get(CONFIG_HASH)
                .cloned()
        );
    }

    #[test]
    fn the_uid_follows_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let uid = |image: &str| {
            let text = format!(
                "kind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
            );
            std::fs::write(dir.path().join("a.yaml"), text).unwrap();
            read_folder(dir.path(), "n").pods[0]
                .metadata
                .uid
                .clone()
                .unwrap()
        };
        assert_eq!(uid("x:1"), uid("x:1"));
        assert_ne!(uid("x:1"), uid("x:2"));
    }
}
