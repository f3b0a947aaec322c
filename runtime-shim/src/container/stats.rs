//! `ContainerStats`: run time by the guest threads' clocks, memory by what the guest's memories and tables hold.

use cox_cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    MemoryUsage, UInt64Value,
};

use super::Container;
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::oci::Usage;
use crate::shim::Shim;

/// Samples closer together than this tell the rate of the one before.
const SAMPLE_NANOS_MIN: i64 = 100_000_000;

/// The last look at the run time, from which the rate is told.
#[derive(Debug, Default)]
pub(crate) struct CpuSample {
    at: i64,
    used: u64,
    nano_cores: u64,
}

impl CpuSample {
    /// Billionths of a core since the last look.
    fn rate(&mut self, now: i64, used: u64) -> u64 {
        let passed = now - self.at;
        if self.at != 0 && passed >= SAMPLE_NANOS_MIN {
            let nanos = u128::from(used.saturating_sub(self.used)) * 1_000_000_000;
            self.nano_cores =
                u64::try_from(nanos / u128::from(passed.unsigned_abs())).unwrap_or(u64::MAX);
        }
        if self.at == 0 || passed >= SAMPLE_NANOS_MIN {
            (self.at, self.used) = (now, used);
        }
        self.nano_cores
    }
}

impl Container {
    pub(crate) fn stats(&self) -> ContainerStats {
        if let Some(oci) = &self.oci {
            return self.stats_of(oci.usage());
        }
        let timestamp = now_nanos();
        let used = self.account.cpu_nanos();
        let memory = Some(UInt64Value {
            value: self.memory.used(),
        });
        let available = match self.memory.limit() {
            0 => None,
            limit => Some(UInt64Value {
                value: limit.saturating_sub(self.memory.used()),
            }),
        };
        // It has no root file system; its own are the copies of single files that are mounted writable.
        let (own_bytes, own_files) = self
            .guest
            .as_ref()
            .map_or((0, 0), |guest| guest.staged.usage());
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: self.id.to_string(),
                metadata: self.config.metadata.clone(),
                labels: self.config.labels.clone(),
                annotations: self.config.annotations.clone(),
            }),
            cpu: Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: Some(UInt64Value { value: used }),
                usage_nano_cores: Some(UInt64Value {
                    value: self.cpu_sample.lock().rate(timestamp, used),
                }),
                psi: None,
            }),
            memory: Some(MemoryUsage {
                timestamp,
                working_set_bytes: memory,
                available_bytes: available,
                usage_bytes: memory,
                rss_bytes: memory,
                ..MemoryUsage::default()
            }),
            writable_layer: Some(FilesystemUsage {
                timestamp,
                fs_id: None,
                used_bytes: Some(UInt64Value { value: own_bytes }),
                inodes_used: Some(UInt64Value { value: own_files }),
            }),
            swap: None,
            io: None,
        }
    }
}

impl Container {
    /// The figures of a container that has cgroups and a writable layer.
    fn stats_of(&self, usage: Usage) -> ContainerStats {
        let timestamp = now_nanos();
        let some = |value: u64| Some(UInt64Value { value });
        let available = usage
            .memory_limit_bytes
            .map(|limit| limit.saturating_sub(usage.working_set_bytes));
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: self.id.to_string(),
                metadata: self.config.metadata.clone(),
                labels: self.config.labels.clone(),
                annotations: self.config.annotations.clone(),
            }),
            cpu: Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: some(usage.cpu_nanos),
                usage_nano_cores: some(self.cpu_sample.lock().rate(timestamp, usage.cpu_nanos)),
                psi: None,
            }),
            memory: Some(MemoryUsage {
                timestamp,
                working_set_bytes: some(usage.working_set_bytes),
                available_bytes: available.and_then(some),
                usage_bytes: some(usage.memory_bytes),
                rss_bytes: some(usage.rss_bytes),
                page_faults: some(usage.page_faults),
                major_page_faults: some(usage.major_page_faults),
                psi: None,
            }),
            writable_layer: Some(FilesystemUsage {
                timestamp,
                fs_id: None,
                used_bytes: some(usage.writable_bytes),
                inodes_used: some(usage.writable_inodes),
            }),
            swap: None,
            io: None,
        }
    }
}

impl Shim {
    pub(crate) async fn container_stats(&self, id: &str) -> Result<ContainerStats, VerbError> {
        let container = self.container(id)?;
        Ok(self.measured(&container).await)
    }

    /// The figures, with the size of the writable layer as it is now or was a moment ago.
    pub(super) async fn measured(&self, container: &Container) -> ContainerStats {
        self.measure(container).await;
        self.stats_of_container(container)
    }

    /// Looks how much a container has written, where that is not known from a moment ago.
    pub(crate) async fn measure(&self, container: &Container) {
        if let Some(oci) = &container.oci {
            let backend = self.images.oci();
            backend.measure(container.id.as_str(), oci).await;
        }
    }

    /// The figures as they are known now, with the file system that the container writes to.
    pub(crate) fn stats_of_container(&self, container: &Container) -> ContainerStats {
        let mut stats = container.stats();
        let mountpoint = match &container.oci {
            Some(_) => self.images.oci().snapshots_root(),
            // Its own files are copies in its state folder.
            None => Some(self.config.state_dir.clone()),
        };
        if let (Some(layer), Some(mountpoint)) = (&mut stats.writable_layer, mountpoint) {
            layer.fs_id = Some(FilesystemIdentifier {
                mountpoint: mountpoint.display().to_string(),
            });
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_told_between_looks() {
        let mut sample = CpuSample::default();
        let second = 1_000_000_000;
        assert_eq!(sample.rate(second, 0), 0, "the first look");
        assert_eq!(sample.rate(2 * second, 500_000_000), 500_000_000);
        assert_eq!(
            sample.rate(2 * second + 1, 600_000_000),
            500_000_000,
            "too soon for a new one"
        );
        assert_eq!(sample.rate(4 * second, 500_000_000), 0);
    }
}
