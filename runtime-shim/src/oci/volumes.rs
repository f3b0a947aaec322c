//! Image volumes: the content of another image, read-only in a container. A view of its snapshot holds it, and goes with the container.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::snapshots::ViewSnapshotRequest;
use containerd_client::types::Mount;
use cox_cri::v1::{ContainerConfig, Mount as Asked};
use oci_spec::runtime::{Mount as SpecMount, MountBuilder};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::Backend;
use super::client::{Lease, OciError, leased};
use super::task::layers_of;

/// The image volumes of one container.
#[derive(Debug, Default)]
pub(super) struct ImageVolumes {
    /// In the order of the container's mounts that name an image.
    pub(super) mounts: Vec<SpecMount>,
    /// Snapshots that hold them.
    pub(super) keys: Vec<String>,
}

/// The snapshot of a container's image volume.
fn key(container: &str, at: usize) -> String {
    format!("{container}-image-{at}")
}

impl Backend {
    /// Makes what a container's image volumes need. What was made before a failure goes with [`Self::remove_volumes`].
    pub(super) async fn volumes(
        &self,
        container: &str,
        config: &ContainerConfig,
        lease: &Lease,
    ) -> Result<ImageVolumes, OciError> {
        let mut volumes = ImageVolumes::default();
        let wanted = config.mounts.iter().filter(|mount| mount.image.is_some());
        for (at, mount) in wanted.enumerate() {
            let path = &mount.container_path;
            let refused = |why: String| OciError::Refused(format!("image volume {path}: {why}"));
            if !mount.readonly {
                return Err(refused("it must be read-only".into()));
            }
            let name = mount.image.as_ref().map_or("", |image| &image.image);
            let image = self
                .find(name)
                .await
                .ok_or_else(|| refused(format!("image {name} is not on this node")))?;
            self.ensure_unpacked(&image).await?;
            let snapshotter = self.snapshotter().await?;
            let view = ViewSnapshotRequest {
                snapshotter,
                key: key(container, at),
                parent: image.chain_id(),
                ..ViewSnapshotRequest::default()
            };
            let mounts = self
                .containerd
                .snapshots()
                .view(leased(view, lease))
                .await
                .map_err(self.containerd.failed("open an image volume"))?
                .into_inner()
                .mounts;
            volumes.keys.push(key(container, at));
            volumes.mounts.push(volume(mount, &mounts)?);
        }
        Ok(volumes)
    }

    /// Removes the snapshots of a container's image volumes.
    pub(super) async fn remove_volumes(
        &self,
        container: &str,
        snapshotter: &str,
    ) -> Result<(), OciError> {
        let mut at = 0;
        while self
            .containerd
            .has_snapshot(snapshotter, &key(container, at))
            .await?
        {
            self.containerd
                .remove_snapshot(snapshotter, &key(container, at))
                .await?;
            at += 1;
        }
        Ok(())
    }
}

/// The mount of a view, or of a part of it: the parts of its layers, one over the other.
fn volume(asked: &Asked, view: &[Mount]) -> Result<SpecMount, OciError> {
    let sub_path = asked.image_sub_path.trim_matches('/');
    let missing = || {
        OciError::Refused(format!(
            "image volume {}: the image has no {sub_path:?}",
            asked.container_path
        ))
    };
    let mut layers: Vec<PathBuf> = layers_of(view);
    if !sub_path.is_empty() {
        layers = layers
            .iter()
            .filter_map(|layer| part(layer, sub_path))
            .collect();
        // A file hides whatever the layers below have of that name.
        if layers.first().is_some_and(|top| top.is_file()) {
            layers.truncate(1);
        }
        if layers.len() > 1 {
            layers.retain(|layer| layer.is_dir());
        }
    }
    let builder = MountBuilder::default().destination(asked.container_path.clone());
    let mount = match layers.as_slice() {
        [] => return Err(missing()),
        [only] => builder.typ("bind").source(only.clone()).options(vec![
            "rbind".to_owned(),
            "rprivate".to_owned(),
            "ro".to_owned(),
        ]),
        several => {
            let dirs: Vec<String> = several
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            builder.typ("overlay").source("overlay").options(vec![
                "ro".to_owned(),
                format!("lowerdir={}", dirs.join(":")),
            ])
        }
    };
    mount
        .build()
        .map_err(|err| OciError::damaged("an image volume", err))
}

/// A path below a layer, whose links lead nowhere else.
fn part(layer: &Path, sub_path: &str) -> Option<PathBuf> {
    let root = std::fs::File::open(layer).ok()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let found = found.ok()?;
    // The descriptor has to be open while its link is read.
    let number = std::os::fd::AsRawFd::as_raw_fd(&found);
    std::fs::read_link(format!("/proc/self/fd/{number}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_layers_lie_over_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (top, low) = (root.join("top"), root.join("low"));
        std::fs::create_dir_all(top.join("both")).unwrap();
        std::fs::create_dir_all(low.join("both")).unwrap();
        std::fs::create_dir_all(low.join("one")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/", top.join("out")).unwrap();
        let view = [Mount {
            r#type: "overlay".into(),
            options: vec![format!("lowerdir={}:{}", top.display(), low.display())],
            ..Mount::default()
        }];
        let made = |sub_path: &str| {
            let asked = Asked {
                container_path: "/v".into(),
                image_sub_path: sub_path.into(),
                ..Asked::default()
            };
            let mount = volume(&asked, &view).map_err(|err| err.to_string())?;
            let source = mount.source().clone().unwrap();
            Ok::<_, String>((source, mount.options().clone().unwrap().join(",")))
        };
        let over = |part: &str| {
            format!(
                "ro,lowerdir={0}{2}:{1}{2}",
                top.display(),
                low.display(),
                part
            )
        };
        assert_eq!(made("").unwrap().1, over(""));
        assert_eq!(made("both").unwrap().1, over("/both"));
        assert_eq!(made("/one/").unwrap().0, low.join("one"));
        assert_eq!(made("file").unwrap().0, top.join("file"));
        assert_eq!(
            made("out").unwrap().0,
            top,
            "a link leads to the root of its own layer"
        );
        assert!(made("none").unwrap_err().contains("\"none\""));
    }
}
