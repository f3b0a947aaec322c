//! Limits of what Pods keep on the node's disk: the sizes of their emptyDirs, and of the layers that containers write to.

use crate::cri::resources::value;
use crate::pod::containers::{mains, spec};
use cox_cri::v1;
use k8s_openapi::api::core::v1::Pod;
use std::path::Path;

/// An emptyDir on disk with a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    pub volume: String,
    pub limit: u64,
    /// As the Pod writes it.
    pub shown: String,
}

/// The emptyDirs of a Pod whose size has to be looked at. Those in memory are bounded by their file system.
#[must_use]
pub fn limited(pod: &Pod) -> Vec<Limited> {
    let volumes = spec(pod).volumes.iter().flatten();
    volumes
        .filter_map(|volume| {
            let source = volume.empty_dir.as_ref()?;
            let on_disk = source.medium.as_deref().unwrap_or_default().is_empty();
            let limit = source.size_limit.as_ref().filter(|_| on_disk)?;
            Some(Limited {
                volume: volume.name.clone(),
                limit: u64::try_from(value(limit)?)
                    .ok()
                    .filter(|limit| *limit > 0)?,
                shown: limit.0.clone(),
            })
        })
        .collect()
}

/// What a Pod whose volume is too large fails with.
#[must_use]
pub fn too_large(volume: &Limited) -> String {
    format!(
        "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
        volume.volume, volume.shown
    )
}

/// Whether a Pod bounds what its containers write.
#[must_use]
pub fn bounds_layers(pod: &Pod) -> bool {
    mains(pod)
        .iter()
        .any(|container| layer_limit(container).is_some())
}

fn layer_limit(container: &k8s_openapi::api::core::v1::Container) -> Option<(u64, String)> {
    let limit = container
        .resources
        .as_ref()?
        .limits
        .as_ref()?
        .get("ephemeral-storage")?;
    let bytes = u64::try_from(value(limit)?).ok()?;
    (bytes > 0).then(|| (bytes, limit.0.clone()))
}

/// What a Pod fails with whose container wrote too much; `logs` is the size of a container's logs.
#[must_use]
pub fn layer_too_large(
    pod: &Pod,
    stats: &[v1::ContainerStats],
    logs: impl Fn(&str) -> u64,
) -> Option<String> {
    mains(pod).iter().find_map(|container| {
        let (limit, shown) = layer_limit(container)?;
        let own = |stats: &&v1::ContainerStats| {
            crate::stats::summary::container_name(stats) == container.name
        };
        let layer = stats
            .iter()
            .find(own)
            .and_then(|stats| stats.writable_layer.as_ref());
        let written = layer.and_then(|layer| crate::stats::number(layer.used_bytes.as_ref()));
        let used = written.unwrap_or(0).saturating_add(logs(&container.name));
        (used > limit).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit \"{shown}\". ",
                container.name
            )
        })
    })
}

/// Bytes on disk below a folder, mounts of other file systems left out; what goes away meanwhile counts nothing.
#[must_use]
pub fn disk_usage(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(root) = std::fs::symlink_metadata(folder) else {
        return 0;
    };
    let mut seen = std::collections::HashSet::new();
    let mut waiting = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(path) = waiting.pop() {
        let Ok(found) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if found.dev() != root.dev() || (found.nlink() > 1 && !seen.insert(found.ino())) {
            continue;
        }
        bytes += found.blocks() * 512;
        if found.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    #[test]
    fn only_limits_on_disk_are_looked_at() {
        let pod = pod(json!({"containers": [], "volumes": [
            {"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "b", "emptyDir": {}},
            {"name": "c", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}}, {"name": "d", "configMap": {"name": "x"}}]}));
        let found = limited(&pod);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].limit, 1 << 20);
        assert_eq!(
            too_large(&found[0]),
            "Usage of EmptyDir volume \"a\" exceeds the limit \"1Mi\". "
        );
    }

    #[test]
    fn logs_and_layer_count_together() {
        let pod = pod(
            json!({"containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "1Ki"}}}]}),
        );
        assert!(bounds_layers(&pod));
        assert_eq!(layer_too_large(&pod, &[], |_| 1024), None);
        assert_eq!(
            layer_too_large(&pod, &[], |_| 1025).unwrap(),
            "Container c exceeded its local ephemeral storage limit \"1Ki\". "
        );
    }

    #[test]
    fn blocks_are_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = disk_usage(dir.path());
        std::fs::write(dir.path().join("a"), vec![1; 64 << 10]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let used = disk_usage(dir.path()) - empty;
        assert!((64 << 10..128 << 10).contains(&used), "{used}");
    }
}
