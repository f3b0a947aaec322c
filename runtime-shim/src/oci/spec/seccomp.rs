//! Seccomp: none, a file of the node's, or the profile of this runtime.
//!
//! The runtime's own profile allows the calls in `syscalls.txt` and answers all others with `EPERM`; a further call is allowed where
//! the container has the capability without which the kernel would refuse it anyway.

use std::path::Path;

use cox_cri::v1::{LinuxContainerSecurityContext, security_profile::ProfileType};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::incomplete;
use crate::oci::client::OciError;

const ALLOWED: &str = include_str!("syscalls.txt");
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// All flags of `clone` that make a namespace.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// Execution domains that programs use: Linux, 32-bit Linux with and without old behaviours, and the question for the present one.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// Calls that come with a capability.
const WITH_CAPABILITY: [(&str, &[&str]); 12] = [
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    (
        "SYS_MODULE",
        &["delete_module", "finit_module", "init_module"],
    ),
    ("SYS_PACCT", &["acct"]),
    (
        "SYS_PTRACE",
        &[
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
    ),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    (
        "SYS_TIME",
        &["clock_settime", "clock_settime64", "settimeofday", "stime"],
    ),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    (
        "SYS_NICE",
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    ("SYSLOG", &["syslog"]),
];

/// The profile of a container; `None` filters nothing.
pub(super) fn seccomp(
    security: &LinuxContainerSecurityContext,
) -> Result<Option<LinuxSeccomp>, OciError> {
    if security.privileged {
        return Ok(None);
    }
    let wanted = match &security.seccomp {
        Some(profile) => (profile.profile_type(), profile.localhost_ref.clone()),
        None => match security.seccomp_profile_path.as_str() {
            "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, String::new()),
            "" | "unconfined" => (ProfileType::Unconfined, String::new()),
            path => (ProfileType::Localhost, path.to_owned()),
        },
    };
    match wanted {
        (ProfileType::Unconfined, _) => Ok(None),
        (ProfileType::RuntimeDefault, _) => own(security).map(Some),
        (ProfileType::Localhost, path) => {
            let path = path.trim_start_matches("localhost/");
            let failed = |err: &dyn std::fmt::Display| {
                OciError::Refused(format!("seccomp profile {path}: {err}"))
            };
            if !Path::new(path).is_absolute() {
                return Err(failed(&"the path is not absolute"));
            }
            let bytes = std::fs::read(path).map_err(|err| failed(&err))?;
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|err| failed(&err))
        }
    }
}

fn allow(names: Vec<String>) -> Result<LinuxSyscall, OciError> {
    LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()
        .map_err(incomplete)
}

/// This runtime's profile for a container with these capabilities.
fn own(security: &LinuxContainerSecurityContext) -> Result<LinuxSeccomp, OciError> {
    let added = security
        .capabilities
        .as_ref()
        .map(|asked| asked.add_capabilities.clone())
        .unwrap_or_default();
    let dropped = security
        .capabilities
        .as_ref()
        .map(|asked| asked.drop_capabilities.clone())
        .unwrap_or_default();
    let among = |names: &[String], wanted: &str| {
        names.iter().any(|name| {
            let upper = name.to_ascii_uppercase();
            upper == "ALL" || upper.trim_start_matches("CAP_") == wanted
        })
    };
    // Changing the root is among the usual capabilities, so it is there until it is dropped.
    let has = |name: &str| among(&added, name) || (name == "SYS_CHROOT" && !among(&dropped, name));
    let mut names: Vec<String> = ALLOWED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect();
    for (capability, calls) in WITH_CAPABILITY {
        if has(capability) {
            names.extend(calls.iter().map(|call| (*call).to_owned()));
        }
    }
    let mut calls = vec![allow(names)?];
    for personality in PERSONALITIES {
        calls.push(with_argument("personality", personality, None)?);
    }
    if !has("SYS_ADMIN") {
        calls.push(with_argument("clone", NAMESPACE_FLAGS, Some(0))?);
        // Its flags are in memory, where a filter cannot look: programs that hear "no such call" fall back to clone.
        calls.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()
                .map_err(incomplete)?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures())
        .syscalls(calls)
        .build()
        .map_err(incomplete)
}

/// Allows a call whose first argument is `value`; or, with `masked`, whose first argument is that under the mask `value`.
fn with_argument(name: &str, value: u64, masked: Option<u64>) -> Result<LinuxSyscall, OciError> {
    let mut argument = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .value(value);
    argument = match masked {
        Some(masked) => argument
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .value_two(masked),
        None => argument.op(LinuxSeccompOperator::ScmpCmpEq),
    };
    LinuxSyscallBuilder::default()
        .names(vec![name.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![argument.build().map_err(incomplete)?])
        .build()
        .map_err(incomplete)
}

/// The machine's own form of calls and the older ones that it runs too.
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "s390x" => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        "powerpc64" => vec![Arch::ScmpArchPpc64le],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cox_cri::v1::{Capability, SecurityProfile};

    fn profile(kind: ProfileType, path: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            seccomp: Some(SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: path.into(),
            }),
            ..LinuxContainerSecurityContext::default()
        }
    }

    fn allows(filter: &LinuxSeccomp, name: &str) -> bool {
        filter.syscalls().iter().flatten().any(|call| {
            call.action() == LinuxSeccompAction::ScmpActAllow
                && call.args().is_none()
                && call.names().iter().any(|other| other == name)
        })
    }

    #[test]
    fn the_default_profile_lets_programs_run_and_keeps_the_kernel_shut() {
        let filter = seccomp(&profile(ProfileType::RuntimeDefault, ""))
            .unwrap()
            .unwrap();
        for name in [
            "read",
            "execve",
            "futex",
            "socket",
            "epoll_wait",
            "chroot",
            "openat2",
            "statx",
        ] {
            assert!(allows(&filter, name), "{name}");
        }
        for name in [
            "mount",
            "ptrace",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "kexec_load",
            "reboot",
            "clone",
        ] {
            assert!(!allows(&filter, name), "{name}");
        }
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let mut security = profile(ProfileType::RuntimeDefault, "");
        security.capabilities = Some(Capability {
            add_capabilities: vec!["CAP_SYS_ADMIN".into()],
            drop_capabilities: vec!["SYS_CHROOT".into()],
            ..Capability::default()
        });
        let filter = seccomp(&security).unwrap().unwrap();
        assert!(allows(&filter, "mount") && allows(&filter, "clone"));
        assert!(!allows(&filter, "ptrace") && !allows(&filter, "chroot"));
    }

    #[test]
    fn other_profiles() {
        assert!(
            seccomp(&LinuxContainerSecurityContext::default())
                .unwrap()
                .is_none()
        );
        assert!(
            seccomp(&profile(ProfileType::Unconfined, ""))
                .unwrap()
                .is_none()
        );
        let mut privileged = profile(ProfileType::RuntimeDefault, "");
        privileged.privileged = true;
        assert!(seccomp(&privileged).unwrap().is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().display().to_string();
        for path in [path.clone(), format!("localhost/{path}")] {
            let filter = seccomp(&profile(ProfileType::Localhost, &path))
                .unwrap()
                .unwrap();
            assert_eq!(filter.syscalls().as_ref().unwrap()[0].names(), &["chmod"]);
        }
        for (path, says) in [("/no/such", "No such file"), ("relative", "not absolute")] {
            let err = seccomp(&profile(ProfileType::Localhost, path))
                .unwrap_err()
                .to_string();
            assert!(err.contains(says), "{err}");
        }
    }
}
