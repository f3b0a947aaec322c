//! The metrics that this runtime tells, by the names and labels under which cAdvisor's readers know them. Facts only.

use cox_cri::v1::{MetricDescriptor, MetricType};

/// Labels that every metric has, before its own.
pub(super) const COMMON: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// One metric.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// Its own labels, after [`COMMON`].
    pub(super) labels: &'static [&'static str],
    help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: MetricType::Counter,
        labels,
        help,
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        kind: MetricType::Gauge,
        labels,
        help,
    }
}

const BLOCK: &[&str] = &["device", "major", "minor", "operation"];
const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

#[rustfmt::skip]
pub(super) const METRICS: &[Metric] = &[
    counter("container_blkio_device_usage_total", BLOCK, "Bytes moved to and from block devices"),
    counter("container_cpu_cfs_periods_total", &[], "Periods in which the CPU quota was enforced"),
    counter("container_cpu_cfs_throttled_periods_total", &[], "Periods in which the container was throttled"),
    counter("container_cpu_cfs_throttled_seconds_total", &[], "Seconds that the container was throttled"),
    counter("container_cpu_system_seconds_total", &[], "Seconds of CPU spent in the kernel"),
    counter("container_cpu_usage_seconds_total", &["cpu"], "Seconds of CPU used"),
    counter("container_cpu_user_seconds_total", &[], "Seconds of CPU spent outside the kernel"),
    gauge("container_file_descriptors", &[], "Open file descriptors"),
    gauge("container_fs_inodes_free", DEVICE, "Inodes that are free on the file system of the writable layer"),
    gauge("container_fs_inodes_total", DEVICE, "Inodes of the file system of the writable layer"),
    gauge("container_fs_limit_bytes", DEVICE, "Size of the file system of the writable layer"),
    counter("container_fs_reads_bytes_total", DEVICE, "Bytes read from block devices"),
    counter("container_fs_reads_total", DEVICE, "Reads from block devices"),
    gauge("container_fs_usage_bytes", DEVICE, "Bytes in the writable layer"),
    counter("container_fs_writes_bytes_total", DEVICE, "Bytes written to block devices"),
    counter("container_fs_writes_total", DEVICE, "Writes to block devices"),
    gauge("container_hugetlb_max_usage_bytes", &["pagesize"], "Most bytes of huge pages ever used"),
    gauge("container_hugetlb_usage_bytes", &["pagesize"], "Bytes of huge pages in use"),
    gauge("container_last_seen", &[], "When the container was last seen, in seconds since 1970"),
    gauge("container_memory_cache", &[], "Bytes of page cache"),
    counter("container_memory_failcnt", &[], "How often the memory limit was hit"),
    counter("container_memory_failures_total", &["failure_type", "scope"], "Page faults"),
    gauge("container_memory_kernel_usage", &[], "Bytes of kernel memory"),
    gauge("container_memory_mapped_file", &[], "Bytes of mapped files"),
    gauge("container_memory_max_usage_bytes", &[], "Most bytes of memory ever used"),
    gauge("container_memory_rss", &[], "Bytes of anonymous memory"),
    gauge("container_memory_swap", &[], "Bytes of swap"),
    gauge("container_memory_usage_bytes", &[], "Bytes of memory in use, with what the kernel would drop first"),
    gauge("container_memory_working_set_bytes", &[], "Bytes of memory in use, without what the kernel would drop first"),
    counter("container_network_receive_bytes_total", INTERFACE, "Bytes received"),
    counter("container_network_receive_errors_total", INTERFACE, "Errors while receiving"),
    counter("container_network_receive_packets_dropped_total", INTERFACE, "Packets dropped while receiving"),
    counter("container_network_receive_packets_total", INTERFACE, "Packets received"),
    counter("container_network_transmit_bytes_total", INTERFACE, "Bytes sent"),
    counter("container_network_transmit_errors_total", INTERFACE, "Errors while sending"),
    counter("container_network_transmit_packets_dropped_total", INTERFACE, "Packets dropped while sending"),
    counter("container_network_transmit_packets_total", INTERFACE, "Packets sent"),
    counter("container_oom_events_total", &[], "Processes killed for want of memory"),
    counter("container_pressure_cpu_stalled_seconds_total", &[], "Seconds in which nobody could run for want of CPU"),
    counter("container_pressure_cpu_waiting_seconds_total", &[], "Seconds in which somebody waited for CPU"),
    counter("container_pressure_io_stalled_seconds_total", &[], "Seconds in which nobody could run for want of I/O"),
    counter("container_pressure_io_waiting_seconds_total", &[], "Seconds in which somebody waited for I/O"),
    counter("container_pressure_memory_stalled_seconds_total", &[], "Seconds in which nobody could run for want of memory"),
    counter("container_pressure_memory_waiting_seconds_total", &[], "Seconds in which somebody waited for memory"),
    gauge("container_processes", &[], "Processes"),
    gauge("container_sockets", &[], "Open sockets"),
    gauge("container_spec_cpu_period", &[], "Period of the CPU quota in microseconds"),
    gauge("container_spec_cpu_quota", &[], "CPU quota per period in microseconds"),
    gauge("container_spec_cpu_shares", &[], "CPU shares"),
    gauge("container_spec_memory_limit_bytes", &[], "Memory limit; 0 is none"),
    gauge("container_spec_memory_reservation_limit_bytes", &[], "Soft memory limit; 0 is none"),
    gauge("container_spec_memory_swap_limit_bytes", &[], "Limit of memory and swap together; 0 is none"),
    gauge("container_start_time_seconds", &[], "When the container started, in seconds since 1970"),
    gauge("container_threads", &[], "Threads"),
    gauge("container_threads_max", &[], "Threads that the container may have; 0 is any number"),
    gauge("container_ulimits_soft", &["ulimit"], "Soft limits of the first process; those without a bound are left out"),
];

impl Metric {
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.name == name)
    }

    pub(super) fn descriptor(&self) -> MetricDescriptor {
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: COMMON
                .iter()
                .chain(self.labels)
                .map(|label| (*label).to_owned())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_names_nothing_twice() {
        assert!(METRICS.is_sorted_by(|one, next| one.name < next.name));
        for metric in METRICS {
            // How many inodes there are is no count of events.
            let counts = metric.name == "container_memory_failcnt"
                || metric.name.ends_with("_total") && metric.name != "container_fs_inodes_total";
            assert_eq!(
                counts,
                metric.kind == MetricType::Counter,
                "{}",
                metric.name
            );
        }
    }
}
