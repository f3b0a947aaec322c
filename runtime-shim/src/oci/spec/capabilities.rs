//! Capabilities: the usual set, what the Pod adds and drops, and never more than this machine has to give.

use std::collections::HashSet;

use cox_cri::v1::LinuxContainerSecurityContext;
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::{Host, incomplete};
use crate::oci::client::OciError;

/// In the kernel's order: the position is the bit.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What a container has when its Pod says nothing: what users of Kubernetes know from other runtimes.
const USUAL: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The capabilities of a mask as `/proc` shows it.
pub(super) fn from_mask(mask: u64) -> HashSet<Capability> {
    let held = ALL
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1);
    held.map(|(_, capability)| *capability).collect()
}

/// The capability sets of a container's process.
pub(super) fn capabilities(
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<LinuxCapabilities, OciError> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let ambient = named(&asked.add_ambient_capabilities, host)?;
    let held = if security.privileged {
        host.capabilities.clone()
    } else {
        let mut held: HashSet<Capability> = USUAL
            .into_iter()
            .filter(|usual| host.capabilities.contains(usual))
            .collect();
        let dropped = &asked.drop_capabilities;
        if is_all(&asked.add_capabilities) {
            held.extend(&host.capabilities);
        }
        if is_all(dropped) {
            held.clear();
        }
        // What is named goes before ALL, on either side.
        held.extend(named(&asked.add_capabilities, host)?);
        for name in dropped
            .iter()
            .filter(|name| !name.eq_ignore_ascii_case("ALL"))
        {
            held.remove(&parse(name)?);
        }
        held.extend(&ambient);
        held
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(held.clone())
        .effective(held.clone())
        .permitted(held)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .map_err(incomplete)
}

fn is_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

/// Capabilities by name, which this machine must be able to give.
fn named(names: &[String], host: &Host) -> Result<HashSet<Capability>, OciError> {
    let wanted = names
        .iter()
        .filter(|name| !name.eq_ignore_ascii_case("ALL"));
    wanted
        .map(|name| {
            let capability = parse(name)?;
            if host.capabilities.contains(&capability) {
                return Ok(capability);
            }
            Err(OciError::Refused(format!(
                "capability {name} cannot be added: this node does not have it itself"
            )))
        })
        .collect()
}

fn parse(name: &str) -> Result<Capability, OciError> {
    let upper = name.to_ascii_uppercase();
    upper
        .trim_start_matches("CAP_")
        .parse()
        .map_err(|_| OciError::Refused(format!("there is no capability {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cox_cri::v1::Capability as Asked;

    fn host() -> Host {
        Host {
            capabilities: ALL
                .into_iter()
                .filter(|one| *one != Capability::SysResource)
                .collect(),
            ..Host::default()
        }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn adding_and_dropping() {
        use Capability::{Chown, NetAdmin, NetRaw, SysAdmin};
        type Case<'a> = (
            &'a str,
            &'a [&'a str],
            &'a [&'a str],
            &'a [Capability],
            &'a [Capability],
        );
        let cases: &[Case<'_>] = &[
            (
                "the usual ones",
                &[],
                &[],
                &[Chown, NetRaw],
                &[SysAdmin, NetAdmin],
            ),
            (
                "one more",
                &["NET_ADMIN"],
                &[],
                &[Chown, NetAdmin],
                &[SysAdmin],
            ),
            (
                "with the prefix, in small letters",
                &["cap_net_admin"],
                &[],
                &[NetAdmin],
                &[SysAdmin],
            ),
            ("one less", &[], &["NET_RAW"], &[Chown], &[NetRaw]),
            (
                "all gone but one",
                &["NET_ADMIN"],
                &["ALL"],
                &[NetAdmin],
                &[Chown, NetRaw],
            ),
            ("all but one", &["ALL"], &["CHOWN"], &[SysAdmin], &[Chown]),
        ];
        for (case, add, drop, with, without) in cases {
            let security = LinuxContainerSecurityContext {
                capabilities: Some(Asked {
                    add_capabilities: names(add),
                    drop_capabilities: names(drop),
                    add_ambient_capabilities: Vec::new(),
                }),
                ..LinuxContainerSecurityContext::default()
            };
            let sets = capabilities(&security, &host()).unwrap();
            let held = sets.effective().clone().unwrap();
            assert!(with.iter().all(|one| held.contains(one)), "case: {case}");
            assert!(
                !without.iter().any(|one| held.contains(one)),
                "case: {case}"
            );
            assert_eq!(
                sets.inheritable().as_ref().map(HashSet::len),
                Some(0),
                "case: {case}"
            );
        }
    }

    #[test]
    fn nobody_gets_what_the_node_does_not_have() {
        let mut security = LinuxContainerSecurityContext {
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        };
        let all = capabilities(&security, &host()).unwrap();
        assert!(
            !all.effective()
                .as_ref()
                .unwrap()
                .contains(&Capability::SysResource)
        );
        security.privileged = false;
        for name in ["SYS_RESOURCE", "NO_SUCH"] {
            security.capabilities = Some(Asked {
                add_capabilities: names(&[name]),
                ..Asked::default()
            });
            let err = capabilities(&security, &host()).unwrap_err().to_string();
            assert!(err.contains(name), "{err}");
        }
    }

    #[test]
    fn a_mask_is_read_bit_by_bit() {
        assert_eq!(
            from_mask(0b1001),
            HashSet::from([Capability::Chown, Capability::Fowner])
        );
        assert_eq!(from_mask(u64::MAX).len(), ALL.len());
    }
}
