//! What a specification has to know of the machine. Read once; the mount table each time it is asked for.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::Capability;

use super::capabilities;

/// Facts of this machine and of the rights this process has on it.
#[derive(Clone, Debug, Default)]
pub(in crate::oci) struct Host {
    /// What this process may give away.
    pub(in crate::oci) capabilities: HashSet<Capability>,
    /// Without `CAP_SYS_RESOURCE` nobody gets below the value of this process.
    pub(in crate::oci) oom_score_adj_min: i32,
    pub(in crate::oci) cgroup_v2: bool,
    pub(in crate::oci) apparmor: bool,
    pub(in crate::oci) selinux: bool,
    /// Whether systemd makes the cgroups, where a Pod's parent does not say it.
    pub(in crate::oci) systemd_cgroup: bool,
    /// Whether swap is accounted, so that a limit on it can be set.
    pub(in crate::oci) swap_accounting: bool,
    /// Whether huge pages are accounted, so that a limit on them can be set.
    pub(in crate::oci) hugetlb: bool,
}

impl Host {
    pub(in crate::oci) fn look() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let capabilities = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .map(capabilities::from_mask)
            .unwrap_or_default();
        let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
        let cgroup_v2 = controllers.is_some();
        Self {
            oom_score_adj_min: if capabilities.contains(&Capability::SysResource) {
                -1000
            } else {
                own
            },
            capabilities,
            cgroup_v2,
            apparmor: std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with('Y')),
            systemd_cgroup: false,
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            swap_accounting: cgroup_v2
                || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
            hugetlb: match controllers {
                Some(names) => names.split_whitespace().any(|name| name == "hugetlb"),
                None => Path::new("/sys/fs/cgroup/hugetlb").exists(),
            },
        }
    }
}
