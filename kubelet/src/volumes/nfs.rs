//! Shares of NFS servers, mounted by the helper program that the system has for them (`mount.nfs`), in the mount namespace in which
//! the kubelet runs. As upstream: no group is given to what is on a share, it belongs to its server.

use super::system;
use k8s_openapi::api::core::v1::NFSVolumeSource;
use std::path::{Path, PathBuf};

/// The program that mounts a share.
const HELPER: &str = "mount.nfs";

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// `SERVER:PATH`.
    source: String,
    /// With commas between; empty: none.
    options: String,
}

impl Share {
    /// Of a volume's source and the options of its persistent volume.
    pub(super) fn of(source: &NFSVolumeSource, options: &[String], read_only: bool) -> Self {
        let server = if source.server.parse::<std::net::Ipv6Addr>().is_ok() {
            format!("[{}]", source.server)
        } else {
            source.server.clone()
        };
        let mut options = options.to_vec();
        if read_only && !options.iter().any(|option| option == "ro") {
            options.push("ro".to_owned());
        }
        Self {
            source: format!("{server}:{}", source.path),
            options: options.join(","),
        }
    }

    /// Mounts the share on a folder, unless that was done before. The helper is looked for in these folders.
    pub(super) fn mount(&self, folder: &Path, helpers: &[PathBuf]) -> Result<(), String> {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let stands = || system::at(folder).map_err(|error| error.to_string());
        if stands()?.is_some() {
            return Ok(());
        }
        let found = helpers.iter().map(|dir| dir.join(HELPER));
        let Some(helper) = found.into_iter().find(|program| program.is_file()) else {
            return Err(format!(
                "NFS volumes need the program {HELPER}, which this node does not have (Debian and Ubuntu: package nfs-common; Fedora: nfs-utils)"
            ));
        };
        if !system::can_mount() {
            return Err("NFS volumes need a kubelet that runs as root".to_owned());
        }
        system::mount_by(&helper, &self.source, folder, &self.options)?;
        // What containers write must not end up below the place of a share that is not there.
        match stands()? {
            Some(_) => Ok(()),
            None => Err(format!(
                "{HELPER} has mounted nothing of {} (option bg is not for volumes)",
                self.source
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn source(server: &str) -> NFSVolumeSource {
        NFSVolumeSource {
            server: server.into(),
            path: "/data".into(),
            read_only: None,
        }
    }

    #[test]
    fn shares_table() {
        let options = ["vers=4.1", "hard"].map(str::to_owned);
        let cases = [
            (
                "a name",
                "files.example.com",
                &[][..],
                false,
                ("files.example.com:/data", ""),
            ),
            (
                "an address",
                "10.0.0.1",
                &[],
                true,
                ("10.0.0.1:/data", "ro"),
            ),
            (
                "an IPv6 address",
                "fd00::1",
                &options,
                false,
                ("[fd00::1]:/data", "vers=4.1,hard"),
            ),
            (
                "options and read-only",
                "s",
                &options,
                true,
                ("s:/data", "vers=4.1,hard,ro"),
            ),
        ];
        for (name, server, options, read_only, expected) in cases {
            let share = Share::of(&source(server), options, read_only);
            assert_eq!(
                (share.source.as_str(), share.options.as_str()),
                expected,
                "case: {name}"
            );
        }
    }

    #[test]
    fn a_share_is_mounted_once_by_the_helper_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (helpers, folder) = (dir.path().join("sbin"), dir.path().join("v"));
        let share = Share::of(&source("s"), &["soft".to_owned()], true);
        let mount = || share.mount(&folder, &[dir.path().join("none"), helpers.clone()]);
        let why = mount().unwrap_err();
        assert!(why.contains("need the program mount.nfs"), "{why}");
        if !system::may_test_mounts() {
            return;
        }
        std::fs::create_dir(&helpers).unwrap();
        let helper = |text: &str| {
            let (file, new) = (helpers.join(HELPER), helpers.join("new"));
            std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(new, file).unwrap();
        };
        helper("echo 'mount.nfs: access denied by server' >&2; exit 32");
        assert!(mount().unwrap_err().ends_with("access denied by server"));
        helper("exit 0");
        assert!(
            mount()
                .unwrap_err()
                .contains("has mounted nothing of s:/data")
        );
        let told = dir.path().join("told");
        helper(&format!(
            "echo \"$@\" >>{}; mount -t tmpfs tmpfs \"$2\"",
            told.display()
        ));
        mount().unwrap();
        mount().unwrap();
        let told = std::fs::read_to_string(told).unwrap();
        assert_eq!(told, format!("s:/data {} -o soft,ro\n", folder.display()));
        system::unmount_below(&folder).unwrap();
    }
}
