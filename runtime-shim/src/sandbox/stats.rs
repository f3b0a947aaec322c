//! `PodSandboxStats` and `ListPodSandboxStats`: the sums of the containers.

use cox_cri::v1::{
    ContainerStats, CpuUsage, LinuxPodSandboxStats, MemoryUsage, PodSandboxAttributes,
    PodSandboxStats, PodSandboxStatsFilter, ProcessUsage, UInt64Value,
};

use super::Sandbox;
use crate::clock::now_nanos;
use crate::cri::labels_match;
use crate::error::VerbError;
use crate::shim::Shim;

impl Shim {
    pub(crate) fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, VerbError> {
        Ok(self.stats_of(&*self.sandbox(id)?))
    }

    pub(crate) fn list_pod_sandbox_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Vec<PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self.sandboxes.read().values().cloned().collect();
        sandboxes
            .iter()
            .filter(|sandbox| sandbox.is_ready() && sandbox.id.as_str().starts_with(&filter.id))
            .filter(|sandbox| labels_match(&filter.label_selector, &sandbox.config.labels))
            .map(|sandbox| self.stats_of(sandbox))
            .collect()
    }

    fn stats_of(&self, sandbox: &Sandbox) -> PodSandboxStats {
        let containers = self.containers_of(&sandbox.id);
        let running = containers
            .iter()
            .filter(|container| container.is_running())
            .count();
        let stats: Vec<ContainerStats> = containers
            .iter()
            .map(|container| container.stats())
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
                network: None,
                process: Some(process),
                containers: stats,
                io: None,
            }),
            windows: None,
        }
    }
}
