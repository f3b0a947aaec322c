//! `PodSandboxStats` and `ListPodSandboxStats`: the sums of the containers.

use cox_cri::v1::{
    ContainerStats, CpuUsage, LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage,
    NetworkUsage, PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter, ProcessUsage,
    UInt64Value,
};

use super::Sandbox;
use crate::clock::now_nanos;
use crate::cri::labels_match;
use crate::error::VerbError;
use crate::network::POD_INTERFACE;
use crate::shim::Shim;

impl Shim {
    pub(crate) async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, VerbError> {
        let sandbox = self.sandbox(id)?;
        Ok(self.stats_of(&sandbox).await)
    }

    pub(crate) async fn list_pod_sandbox_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Vec<PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self.sandboxes.read().values().cloned().collect();
        let mut all = Vec::new();
        for sandbox in sandboxes {
            if sandbox.is_ready()
                && sandbox.id.as_str().starts_with(&filter.id)
                && labels_match(&filter.label_selector, &sandbox.config.labels)
            {
                all.push(self.stats_of(&sandbox).await);
            }
        }
        all
    }

    /// The figures of a sandbox, with the written layers of its containers as they are now or were a moment ago.
    async fn stats_of(&self, sandbox: &Sandbox) -> PodSandboxStats {
        let containers = self.containers_of(&sandbox.id);
        for container in containers.iter().filter(|one| one.is_running()) {
            self.measure(container).await;
        }
        let running = containers
            .iter()
            .filter(|container| container.is_running())
            .count();
        let stats: Vec<ContainerStats> = containers
            .iter()
            .map(|container| self.stats_of_container(container))
            .collect();
        let timestamp = now_nanos();
        let sum = |value: fn(&ContainerStats) -> Option<&UInt64Value>| {
            Some(UInt64Value {
                value: stats
                    .iter()
                    .filter_map(value)
                    .map(|value| value.value)
                    .sum(),
            })
        };
        let cpu = CpuUsage {
            timestamp,
            usage_core_nano_seconds: sum(|stats| {
                stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()
            }),
            usage_nano_cores: sum(|stats| stats.cpu.as_ref()?.usage_nano_cores.as_ref()),
            psi: None,
        };
        let memory = MemoryUsage {
            timestamp,
            working_set_bytes: sum(|stats| stats.memory.as_ref()?.working_set_bytes.as_ref()),
            usage_bytes: sum(|stats| stats.memory.as_ref()?.usage_bytes.as_ref()),
            rss_bytes: sum(|stats| stats.memory.as_ref()?.rss_bytes.as_ref()),
            ..MemoryUsage::default()
        };
        let process = ProcessUsage {
            timestamp,
            process_count: Some(UInt64Value {
                value: running as u64,
            }),
        };
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: sandbox.id.to_string(),
                metadata: sandbox.config.metadata.clone(),
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(cpu),
                memory: Some(memory),
                network: self.network_usage(sandbox),
                process: Some(process),
                containers: stats,
                io: None,
            }),
            windows: None,
        }
    }

    /// What went through the Pod's interfaces, as the kernel counts it inside; nothing is counted in the other networks.
    fn network_usage(&self, sandbox: &Sandbox) -> Option<NetworkUsage> {
        let text = interfaces_of(sandbox)?;
        let mut interfaces: Vec<_> = text.lines().filter_map(interface_usage).collect();
        let default = interfaces
            .iter()
            .position(|interface| interface.name == POD_INTERFACE)
            .map(|at| interfaces.remove(at));
        Some(NetworkUsage {
            timestamp: now_nanos(),
            default_interface: default,
            interfaces,
        })
    }
}

/// The kernel's table of the Pod's interfaces; none in the virtual and in the node's network.
fn interfaces_of(sandbox: &Sandbox) -> Option<String> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
    sandbox
        .network
        .netns()?
        .run(read)
        .and_then(|text| text)
        .ok()
}

/// Names and counts of the Pod's interfaces, as [`counts`] has them.
pub(crate) fn interface_counts(sandbox: &Sandbox) -> Vec<(String, Vec<u64>)> {
    let text = interfaces_of(sandbox).unwrap_or_default();
    let named = |line: &str| counts(line).map(|(name, counts)| (name.to_owned(), counts));
    text.lines().filter_map(named).collect()
}

/// A line of `/proc/net/dev`, unless it is the loopback's or a heading: bytes, packets, errors and drops received, at eight the
/// same sent.
fn counts(line: &str) -> Option<(&str, Vec<u64>)> {
    let (name, counts) = line.split_once(':')?;
    let name = name.trim();
    if name == "lo" {
        return None;
    }
    let counts = counts
        .split_whitespace()
        .map_while(|count| count.parse().ok());
    Some((name, counts.collect()))
}

fn interface_usage(line: &str) -> Option<NetworkInterfaceUsage> {
    let (name, counts) = counts(line)?;
    let at = |index: usize| {
        Some(UInt64Value {
            value: *counts.get(index)?,
        })
    };
    Some(NetworkInterfaceUsage {
        name: name.to_owned(),
        rx_bytes: Some(at(0)?),
        rx_errors: Some(at(2)?),
        tx_bytes: Some(at(8)?),
        tx_errors: Some(at(10)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_as_the_kernel_prints_them() {
        let line = "  eth0:    1296      16    1    0    0     0          0         0     2446      29    3    0    0     0       0          0";
        let usage = interface_usage(line).unwrap();
        let value = |value: &Option<UInt64Value>| value.as_ref().unwrap().value;
        assert_eq!(
            (
                usage.name.as_str(),
                value(&usage.rx_bytes),
                value(&usage.rx_errors),
                value(&usage.tx_bytes),
                value(&usage.tx_errors)
            ),
            ("eth0", 1296, 1, 2446, 3)
        );
        assert!(interface_usage(&line.replace("eth0", "lo")).is_none());
        assert!(
            interface_usage(
                " face |bytes    packets errs drop fifo frame compressed multicast|bytes"
            )
            .is_none()
        );
    }
}
