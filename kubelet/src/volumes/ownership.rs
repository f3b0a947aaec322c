//! The Pod's fsGroup: volumes with data of the Pod's own get its group, so that containers of any user may share them.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Read and write for the group.
const FILE_BITS: u32 = 0o660;
/// New files inherit the group; the group may look inside.
const FOLDER_BITS: u32 = 0o2770;

/// What a Pod says about its volumes' group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ownership {
    pub(super) gid: Option<u32>,
    /// Skip the walk if the volume's root is right already.
    pub(super) on_root_mismatch: bool,
    /// The one user of all containers, who owns their tokens.
    pub(super) uid: Option<u32>,
}

impl Ownership {
    /// Of a Pod.
    #[must_use]
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = crate::pod::containers::spec(pod);
        let context = spec.security_context.as_ref();
        let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
        Self {
            gid: context
                .and_then(|context| context.fs_group)
                .and_then(|gid| u32::try_from(gid).ok()),
            on_root_mismatch: policy == Some("OnRootMismatch"),
            uid: only_user(spec),
        }
    }
}

/// The user that all containers run as, if the Pod says so and it is one.
fn only_user(spec: &PodSpec) -> Option<u32> {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| {
            let own = container.security_context.as_ref();
            own.and_then(|context| context.run_as_user).or(of_pod)
        });
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())
        .flatten()
}

/// Gives a volume to the group, folders and files, without following links.
pub(super) fn apply(volume: &Path, ownership: Ownership) -> io::Result<()> {
    let Some(gid) = ownership.gid else {
        return Ok(());
    };
    if ownership.on_root_mismatch && is_right(volume, gid)? {
        return Ok(());
    }
    let mut waiting = vec![volume.to_owned()];
    while let Some(path) = waiting.pop() {
        let found = std::fs::symlink_metadata(&path)?;
        std::os::unix::fs::lchown(&path, None, Some(gid))?;
        if found.is_symlink() {
            continue;
        }
        let bits = if found.is_dir() {
            FOLDER_BITS
        } else {
            FILE_BITS
        };
        let mode = found.permissions().mode();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode | bits))?;
        if found.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
    }
    Ok(())
}

fn is_right(volume: &Path, gid: u32) -> io::Result<bool> {
    let found = std::fs::metadata(volume)?;
    Ok(found.gid() == gid && found.mode() & FOLDER_BITS == FOLDER_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_user_table() {
        let cases = [
            (
                "nobody says",
                serde_json::json!({"containers": [{"name": "a"}]}),
                None,
            ),
            (
                "the pod says",
                serde_json::json!({"securityContext": {"runAsUser": 7}, "containers": [{"name": "a"}, {"name": "b"}]}),
                Some(7),
            ),
            (
                "one container is another user",
                serde_json::json!({"securityContext": {"runAsUser": 7}, "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 8}}]}),
                None,
            ),
            (
                "one container says nothing",
                serde_json::json!({"containers": [{"name": "a", "securityContext": {"runAsUser": 8}}, {"name": "b"}]}),
                None,
            ),
        ];
        for (name, spec, expected) in cases {
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(Ownership::of(&pod).uid, expected, "case: {name}");
        }
    }

    #[test]
    fn the_group_gets_folders_and_files_but_not_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        // Our own group: anybody may give it away.
        let gid = std::fs::metadata(dir.path()).unwrap().gid();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        let outside = dir.path().join("outside");
        for file in [&outside, &volume.join("sub/file")] {
            std::fs::write(file, "").unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let ownership = Ownership {
            gid: Some(gid),
            ..Ownership::default()
        };
        apply(&volume, ownership).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&volume.join("sub")) & FOLDER_BITS, FOLDER_BITS);
        assert_eq!(mode(&volume.join("sub/file")), 0o660);
        assert_eq!(mode(&outside), 0o600);
        std::fs::set_permissions(
            volume.join("sub/file"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        let lazily = Ownership {
            on_root_mismatch: true,
            ..ownership
        };
        apply(&volume, lazily).unwrap();
        assert_eq!(mode(&volume.join("sub/file")), 0o600, "the root is right");
    }
}
