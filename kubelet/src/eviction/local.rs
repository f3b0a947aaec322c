//! Limits of what Pods keep on the node's disk: the sizes of their emptyDirs, and of the layers that containers write to.

use crate::cri::resources::value;
use crate::pod::containers::{mains, spec};
use cox_api::quantity::{Format, Quantity};
use cox_client::placement::add_up;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;
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

/// The emptyDirs of a Pod that are on disk, with a limit or without.
pub fn on_disk(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = spec(pod).volumes.iter().flatten();
    volumes.filter_map(|volume| {
        let medium = volume.empty_dir.as_ref()?.medium.as_deref();
        medium
            .unwrap_or_default()
            .is_empty()
            .then_some(volume.name.as_str())
    })
}

/// What a Pod keeps on the node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Written layer and logs of each container, by its name.
    pub containers: BTreeMap<String, u64>,
    /// Its emptyDirs together.
    pub volumes: u64,
}

/// Whether a Pod bounds what its containers write.
#[must_use]
pub fn bounds_containers(pod: &Pod) -> bool {
    pod_limit(pod).is_some()
}

/// Of one container, as it is written.
fn limit_of(container: &Container) -> Option<(u64, &str)> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    let limit = limits.get("ephemeral-storage")?;
    let bytes = u64::try_from(value(limit)?).ok()?;
    (bytes > 0).then_some((bytes, limit.0.as_str()))
}

/// The limits of a Pod's containers together; `None`: none of them has one.
fn pod_limit(pod: &Pod) -> Option<u64> {
    let limits = add_up(spec(pod), |container| {
        let limit = limit_of(container).and_then(|(bytes, _)| i64::try_from(bytes).ok());
        BTreeMap::from_iter(limit.map(|bytes| (String::new(), bytes)))
    });
    limits
        .values()
        .next()
        .and_then(|bytes| u64::try_from(*bytes).ok())
}

/// What a Pod fails with that keeps more than its containers may together, or one of whose containers keeps more than it may.
#[must_use]
pub fn too_much(pod: &Pod, kept: &Kept) -> Option<String> {
    let limit = pod_limit(pod)?;
    let together = kept
        .containers
        .values()
        .sum::<u64>()
        .saturating_add(kept.volumes);
    if together > limit {
        let written = mains(pod).iter().find_map(|container| limit_of(container));
        let format = written.and_then(|(_, text)| Some(Quantity::parse(text).ok()?.format()));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let shown = Quantity::from_i64(limit, format.unwrap_or(Format::BinarySi));
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "
        ));
    }
    mains(pod).iter().find_map(|container| {
        let (limit, shown) = limit_of(container)?;
        let used = kept.containers.get(&container.name).copied().unwrap_or(0);
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
    fn a_pod_keeps_no_more_than_its_containers_may() {
        let limits = |one: Option<&str>, other: Option<&str>| {
            let container = |name: &str, limit: Option<&str>| json!({"name": name, "resources": {"limits": limit.map(|limit| json!({"ephemeral-storage": limit}))}});
            pod(
                json!({"containers": [container("a", one), container("b", other)],
                "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "1"}}}],
                "volumes": [{"name": "d", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]}),
            )
        };
        let kept = |a: u64, b: u64, volumes: u64| Kept {
            containers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
            volumes,
        };
        let all = "Pod ephemeral local storage usage exceeds the total limit of containers 3Ki. ";
        let cases = [
            (
                "all it may",
                limits(Some("1Ki"), Some("2Ki")),
                kept(1024, 2048, 0),
                None,
            ),
            (
                "volumes count for the Pod",
                limits(Some("1Ki"), Some("2Ki")),
                kept(1024, 2048, 1),
                Some(all),
            ),
            (
                "one container took what the other has left",
                limits(Some("1Ki"), Some("2Ki")),
                kept(1025, 0, 0),
                Some("Container a exceeded its local ephemeral storage limit \"1Ki\". "),
            ),
            (
                "nothing is bounded",
                limits(None, None),
                kept(9999, 9999, 9999),
                None,
            ),
            (
                "one that has no limit counts against the limit of the other, as upstream",
                limits(Some("3Ki"), None),
                kept(0, 4096, 0),
                Some(all),
            ),
        ];
        for (name, pod, kept, expected) in cases {
            assert_eq!(too_much(&pod, &kept).as_deref(), expected, "case: {name}");
        }
        assert!(!bounds_containers(&limits(None, None)));
        assert_eq!(on_disk(&limits(None, None)).collect::<Vec<_>>(), ["d"]);
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
