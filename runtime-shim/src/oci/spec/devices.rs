//! Devices: those the Pod names, or all of the host's for a privileged container.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cox_cri::v1::Device;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use super::incomplete;
use crate::oci::client::OciError;

/// Folders of `/dev` that every container gets of its own.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "fd"];
/// Folders deeper than this hold no devices.
const DEPTH_MAX: usize = 4;

/// The devices that are made in the container, and the rules of its device cgroup.
pub(super) fn devices(
    wanted: &[Device],
    privileged: bool,
) -> Result<(Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>), OciError> {
    let rule = |allow: bool| {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .access("rwm")
            .build()
            .map_err(incomplete)
    };
    let (mut made, mut rules) = (Vec::new(), vec![rule(privileged)?]);
    if privileged {
        below(
            Path::new("/dev"),
            Path::new("/dev"),
            0,
            &mut |host, inside| {
                if let Some(device) = device(host, inside)? {
                    made.push(device);
                }
                Ok(())
            },
        )?;
    }
    for asked in wanted {
        let host = std::fs::canonicalize(&asked.host_path)
            .map_err(|err| OciError::Refused(format!("device {}: {err}", asked.host_path)))?;
        let mut found = Vec::new();
        let inside = PathBuf::from(&asked.container_path);
        if host.is_dir() {
            below(&host, &inside, 0, &mut |host, inside| {
                found.extend(device(host, inside)?);
                Ok(())
            })?;
        } else {
            found.extend(device(&host, &inside)?);
        }
        if found.is_empty() {
            return Err(OciError::Refused(format!(
                "{} is not a device",
                asked.host_path
            )));
        }
        for device in found {
            let access = if asked.permissions.is_empty() {
                "rwm"
            } else {
                &asked.permissions
            };
            rules.push(
                LinuxDeviceCgroupBuilder::default()
                    .allow(true)
                    .typ(device.typ())
                    .major(device.major())
                    .minor(device.minor())
                    .access(access)
                    .build()
                    .map_err(incomplete)?,
            );
            made.retain(|other: &LinuxDevice| other.path() != device.path());
            made.push(device);
        }
    }
    Ok((made, rules))
}

type Visit<'a> = dyn FnMut(&Path, &Path) -> Result<(), OciError> + 'a;

/// Walks a folder of devices.
fn below(host: &Path, inside: &Path, depth: usize, visit: &mut Visit<'_>) -> Result<(), OciError> {
    for entry in std::fs::read_dir(host).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            let own = depth == 0 && OWN.iter().any(|own| name == *own);
            if !own && depth < DEPTH_MAX {
                below(&path, &inside.join(name), depth + 1, visit)?;
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && name != "console" {
            visit(&path, &inside.join(name))?;
        }
    }
    Ok(())
}

fn device(host: &Path, inside: &Path) -> Result<Option<LinuxDevice>, OciError> {
    let Ok(meta) = std::fs::metadata(host) else {
        return Ok(None);
    };
    let typ = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(None),
    };
    let number = meta.rdev();
    let device = LinuxDeviceBuilder::default()
        .path(inside)
        .typ(typ)
        .major(i64::from(rustix::fs::major(number)))
        .minor(i64::from(rustix::fs::minor(number)))
        .file_mode(meta.mode() & 0o7777)
        .uid(meta.uid())
        .gid(meta.gid())
        .build()
        .map_err(incomplete)?;
    Ok(Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_device_is_made_and_allowed() {
        let wanted = [Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/null".into(),
            permissions: "r".into(),
        }];
        let (made, rules) = devices(&wanted, false).unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].path(), Path::new("/dev/mine"));
        assert_eq!((made[0].major(), made[0].minor()), (1, 3));
        assert!(!rules[0].allow(), "all others are denied");
        assert_eq!(rules[1].access().as_deref(), Some("r"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for path in ["/etc/passwd", "/no/such"] {
            let wanted = [Device {
                host_path: path.into(),
                ..Device::default()
            }];
            assert!(
                devices(&wanted, false)
                    .unwrap_err()
                    .to_string()
                    .contains(path)
            );
        }
    }

    #[test]
    fn a_privileged_container_gets_the_hosts() {
        let (made, rules) = devices(&[], true).unwrap();
        assert!(
            made.iter()
                .any(|device| device.path() == Path::new("/dev/null"))
        );
        assert!(rules[0].allow());
    }
}
