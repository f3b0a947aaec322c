//! Limits: from CRI's numbers to the specification's, and where the container's cgroup is.

use std::path::PathBuf;

use cox_cri::v1::{LinuxContainerResources, PodSandboxConfig};
use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimitBuilder, LinuxMemory, LinuxResources, LinuxResourcesBuilder,
};

use super::{Host, incomplete};
use crate::oci::client::OciError;

/// The limits of a container; zero and empty mean none.
pub(in crate::oci) fn limits(
    wanted: Option<&LinuxContainerResources>,
    host: &Host,
) -> Result<LinuxResources, OciError> {
    let wanted = wanted.cloned().unwrap_or_default();
    let set = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(unsigned(wanted.cpu_shares))
        .set_quota(set(wanted.cpu_quota))
        .set_period(unsigned(wanted.cpu_period))
        .set_cpus(text(&wanted.cpuset_cpus))
        .set_mems(text(&wanted.cpuset_mems));
    let mut memory = LinuxMemory::default();
    memory.set_limit(set(wanted.memory_limit_in_bytes));
    if host.swap_accounting {
        // A limit of memory without one for swap would let the container swap as much again.
        memory
            .set_swap(set(wanted.memory_swap_limit_in_bytes).or(set(wanted.memory_limit_in_bytes)));
    }
    // A kubelet forbids every size that a container did not ask for. Where nobody counts huge pages there is nothing to forbid
    // with, and none to be had; a container that asks for some must not believe in a limit that nobody keeps.
    if !host.hugetlb
        && let Some(asked) = wanted.hugepage_limits.iter().find(|limit| limit.limit > 0)
    {
        return Err(OciError::Refused(format!(
            "huge pages of {}: this kernel has no cgroup controller hugetlb, so their limit cannot be kept",
            asked.page_size
        )));
    }
    let pages = wanted
        .hugepage_limits
        .iter()
        .filter(|_| host.hugetlb)
        .map(|limit| {
            LinuxHugepageLimitBuilder::default()
                .page_size(limit.page_size.clone())
                .limit(i64::try_from(limit.limit).unwrap_or(i64::MAX))
                .build()
                .map_err(incomplete)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut resources = LinuxResourcesBuilder::default()
        .cpu(cpu)
        .memory(memory)
        .build()
        .map_err(incomplete)?;
    if !pages.is_empty() {
        resources.set_hugepage_limits(Some(pages));
    }
    if host.cgroup_v2 && !wanted.unified.is_empty() {
        resources.set_unified(Some(wanted.unified));
    }
    Ok(resources)
}

/// Whether systemd makes the container's cgroup: a Pod's parent that is a slice says so, without a parent the node's driver.
pub(in crate::oci) fn is_systemd(pod: &PodSandboxConfig, host: &Host) -> bool {
    match parent(pod) {
        "" => host.systemd_cgroup,
        parent => parent.ends_with(".slice"),
    }
}

fn parent(pod: &PodSandboxConfig) -> &str {
    pod.linux
        .as_ref()
        .map_or("", |linux| linux.cgroup_parent.as_str())
}

/// Where containers are whose Pod names no parent, in the form of each driver.
const PARENT: &str = "/k8s.io";
const PARENT_SLICE: &str = "k8s.io.slice";

/// The container's cgroup below the Pod's, in the form of the driver.
pub(in crate::oci) fn cgroups_path(pod: &PodSandboxConfig, id: &str, host: &Host) -> PathBuf {
    let parent = parent(pod);
    if is_systemd(pod, host) {
        // systemd's form is slice:prefix:name; the slice alone names its place in the tree.
        let slice = match parent.rsplit('/').next() {
            Some(slice) if !slice.is_empty() => slice,
            _ => PARENT_SLICE,
        };
        return PathBuf::from(format!("{slice}:cri-containerd:{id}"));
    }
    let parent = if parent.is_empty() { PARENT } else { parent };
    PathBuf::from(format!("{}/{id}", parent.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cox_cri::v1::{HugepageLimit, LinuxPodSandboxConfig};

    #[test]
    fn cgroups_in_the_form_of_each_driver() {
        let slice = "kubepods-pod1.slice:cri-containerd:c1";
        for (systemd_cgroup, parent, expected) in [
            (false, "", "/k8s.io/c1"),
            (
                false,
                "/kubepods/burstable/pod1",
                "/kubepods/burstable/pod1/c1",
            ),
            (false, "/kubepods/pod1/", "/kubepods/pod1/c1"),
            (false, "/kubepods.slice/kubepods-pod1.slice", slice),
            (true, "", "k8s.io.slice:cri-containerd:c1"),
            (true, "/kubepods.slice/kubepods-pod1.slice", slice),
            (true, "kubepods-pod1.slice", slice),
            // A kubelet that was told otherwise has its way.
            (true, "/kubepods/pod1", "/kubepods/pod1/c1"),
        ] {
            let host = Host {
                systemd_cgroup,
                ..Host::default()
            };
            let pod = PodSandboxConfig {
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: parent.into(),
                    ..LinuxPodSandboxConfig::default()
                }),
                ..PodSandboxConfig::default()
            };
            assert_eq!(
                cgroups_path(&pod, "c1", &host),
                PathBuf::from(expected),
                "parent: {parent}"
            );
            assert_eq!(is_systemd(&pod, &host), expected.contains("slice"));
        }
    }

    #[test]
    fn limits_as_they_are_written() {
        let wanted = LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            ..LinuxContainerResources::default()
        };
        let mut host = Host {
            hugetlb: true,
            ..Host::default()
        };
        let json =
            |host: &Host| serde_json::to_value(limits(Some(&wanted), host).unwrap()).unwrap();
        let plain = json(&host);
        assert_eq!(plain["cpu"]["shares"], 512);
        assert_eq!(plain["cpu"]["quota"], 50_000);
        assert_eq!(plain["cpu"]["cpus"], "0-1");
        assert_eq!(plain["memory"]["limit"], 1 << 20);
        assert!(plain["memory"]["swap"].is_null());
        assert_eq!(plain["hugepageLimits"][0]["pageSize"], "2MB");
        host.swap_accounting = true;
        assert_eq!(json(&host)["memory"]["swap"], 1 << 20);
        host.hugetlb = false;
        assert!(
            json(&host)["hugepageLimits"].is_null(),
            "nothing to forbid with"
        );
        let mut asks = wanted.clone();
        asks.hugepage_limits[0].limit = 2 << 20;
        let refused = limits(Some(&asks), &host).unwrap_err().to_string();
        assert!(refused.contains("huge pages of 2MB"), "{refused}");
        let none = serde_json::to_value(limits(None, &host).unwrap()).unwrap();
        assert!(none["memory"]["limit"].is_null());
    }
}
