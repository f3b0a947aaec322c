//! `ListMetricDescriptors` and `ListPodSandboxMetrics`: for the kubelet's own metrics endpoint, under the names that cAdvisor's
//! readers know. What cannot be known of a container is left out: a Wasm container has no cgroup, a virtual Pod no interface.
//!
//! Reading is done on a blocking thread when somebody asks; nothing is collected in between.

mod cgroup;
mod table;

use std::sync::Arc;

use cox_cri::v1::{
    ContainerMetrics, Metric as CriMetric, MetricDescriptor, PodSandboxMetrics, UInt64Value,
};

use crate::clock::now_nanos;
use crate::container::Container;
use crate::sandbox::{Sandbox, interface_counts};
use crate::shim::Shim;
use table::{METRICS, Metric};

const NANOS: i64 = 1_000_000_000;
/// What Linux calls no weight in particular.
const CPU_SHARES_USUAL: i64 = 1024;
const CPU_PERIOD_USUAL: i64 = 100_000;

/// One value of one metric.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    metric: &'static str,
    /// The metric's own labels.
    labels: Vec<String>,
    value: u64,
}

/// Values of one container, or of a Pod.
#[derive(Debug, Default)]
struct Samples(Vec<Sample>);

impl Samples {
    /// Takes a value, if there is one.
    fn add(&mut self, metric: &'static str, value: Option<u64>) {
        self.add_labelled(metric, &[], value);
    }

    fn add_labelled(&mut self, metric: &'static str, labels: &[&str], value: Option<u64>) {
        if let Some(value) = value {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            self.0.push(Sample {
                metric,
                labels,
                value,
            });
        }
    }

    fn to_cri(&self, common: &[String; 6]) -> Vec<CriMetric> {
        let one = |sample: &Sample| {
            let metric = Metric::named(sample.metric)?;
            debug_assert_eq!(
                metric.labels.len(),
                sample.labels.len(),
                "{}",
                sample.metric
            );
            Some(CriMetric {
                name: sample.metric.to_owned(),
                // Zero: taken when it was asked for.
                timestamp: 0,
                metric_type: metric.kind.into(),
                label_values: common.iter().chain(&sample.labels).cloned().collect(),
                value: Some(UInt64Value {
                    value: sample.value,
                }),
            })
        };
        self.0.iter().filter_map(one).collect()
    }
}

pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    METRICS.iter().map(Metric::descriptor).collect()
}

impl Shim {
    /// The metrics of all Pods that are ready.
    pub(crate) async fn pod_sandbox_metrics(self: &Arc<Self>) -> Vec<PodSandboxMetrics> {
        let sandboxes: Vec<_> = self.sandboxes.read().values().cloned().collect();
        let containers: Vec<_> = self.containers.read().values().cloned().collect();
        for container in &containers {
            if let Some(oci) = container.oci.as_ref().filter(|_| container.is_running()) {
                self.images.oci().measure(container.id.as_str(), oci).await;
            }
        }
        let snapshots = self.images.oci().snapshots_root();
        let shim = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let ready = sandboxes.iter().filter(|sandbox| sandbox.is_ready());
            ready
                .map(|sandbox| shim.metrics_of(sandbox, snapshots.as_deref()))
                .collect()
        });
        read.await.unwrap_or_else(|err| {
            tracing::error!(error = %err, "Reading the metrics of the Pods failed");
            Vec::new()
        })
    }

    fn metrics_of(
        &self,
        sandbox: &Sandbox,
        snapshots: Option<&std::path::Path>,
    ) -> PodSandboxMetrics {
        let mut of_pod = Samples::default();
        for (name, counts) in interface_counts(sandbox) {
            network(&name, &counts, &mut of_pod);
        }
        let containers = self.containers_of(&sandbox.id);
        let running = containers.iter().filter(|container| container.is_running());
        PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.to_string(),
            metrics: of_pod.to_cri(&labels(sandbox, None)),
            container_metrics: running
                .map(|container| ContainerMetrics {
                    container_id: container.id.to_string(),
                    metrics: container_samples(container, snapshots)
                        .to_cri(&labels(sandbox, Some(container))),
                })
                .collect(),
        }
    }
}

fn labels(sandbox: &Sandbox, container: Option<&Container>) -> [String; 6] {
    let pod = sandbox.metadata();
    let image = container
        .and_then(|container| container.config.image.as_ref())
        .map(|image| image.user_specified_image.clone())
        .filter(|image| !image.is_empty());
    let id = container.map_or_else(
        || sandbox.id.to_string(),
        |container| container.id.to_string(),
    );
    [
        container
            .map(Container::name)
            .unwrap_or_default()
            .to_owned(),
        format!("/{id}"),
        image
            .or_else(|| container.map(|container| container.record().image_ref))
            .unwrap_or_default(),
        id,
        pod.namespace,
        pod.name,
    ]
}

fn network(interface: &str, counts: &[u64], out: &mut Samples) {
    for (metric, at) in [
        ("container_network_receive_bytes_total", 0),
        ("container_network_receive_packets_total", 1),
        ("container_network_receive_errors_total", 2),
        ("container_network_receive_packets_dropped_total", 3),
        ("container_network_transmit_bytes_total", 8),
        ("container_network_transmit_packets_total", 9),
        ("container_network_transmit_errors_total", 10),
        ("container_network_transmit_packets_dropped_total", 11),
    ] {
        out.add_labelled(metric, &[interface], counts.get(at).copied());
    }
}

fn container_samples(container: &Container, snapshots: Option<&std::path::Path>) -> Samples {
    let mut out = Samples::default();
    let unsigned = |value: i64| Some(u64::try_from(value).unwrap_or(0));
    let status = container.status();
    out.add("container_last_seen", unsigned(now_nanos() / NANOS));
    out.add(
        "container_start_time_seconds",
        unsigned(status.started_at / NANOS),
    );
    let limits = status
        .resources
        .and_then(|resources| resources.linux)
        .unwrap_or_default();
    let or = |value: i64, usual: i64| unsigned(if value == 0 { usual } else { value });
    out.add(
        "container_spec_cpu_shares",
        or(limits.cpu_shares, CPU_SHARES_USUAL),
    );
    out.add(
        "container_spec_cpu_period",
        or(limits.cpu_period, CPU_PERIOD_USUAL),
    );
    if limits.cpu_quota > 0 {
        out.add("container_spec_cpu_quota", unsigned(limits.cpu_quota));
    }
    out.add(
        "container_spec_memory_limit_bytes",
        unsigned(limits.memory_limit_in_bytes),
    );
    out.add(
        "container_spec_memory_swap_limit_bytes",
        unsigned(limits.memory_swap_limit_in_bytes),
    );
    let Some(oci) = &container.oci else {
        wasm(container, &mut out);
        return out;
    };
    let ticks = rustix::param::clock_ticks_per_second();
    let cgroups = oci.cgroups();
    cgroup::read(&cgroups, ticks, &mut out);
    cgroup::processes(&cgroups, &mut out);
    if let Some(text) = oci
        .pid()
        .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/limits")).ok())
    {
        out.0.extend(cgroup::soft_limits(&text));
    }
    let usage = oci.usage();
    if let Some((dir, fs)) = snapshots.and_then(|dir| Some((dir, rustix::fs::statvfs(dir).ok()?))) {
        let device = dir.display().to_string();
        for (metric, value) in [
            ("container_fs_usage_bytes", usage.writable_bytes),
            (
                "container_fs_limit_bytes",
                fs.f_blocks.saturating_mul(fs.f_frsize),
            ),
            ("container_fs_inodes_total", fs.f_files),
            ("container_fs_inodes_free", fs.f_ffree),
        ] {
            out.add_labelled(metric, &[&device], Some(value));
        }
    }
    out
}

/// What can be said of a container without a cgroup.
fn wasm(container: &Container, out: &mut Samples) {
    let memory = Some(container.memory.used());
    for metric in [
        "container_memory_usage_bytes",
        "container_memory_working_set_bytes",
        "container_memory_rss",
    ] {
        out.add(metric, memory);
    }
    let seconds = container.account.cpu_nanos() / NANOS.unsigned_abs();
    out.add_labelled(
        "container_cpu_usage_seconds_total",
        &["total"],
        Some(seconds),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_the_labels_of_their_descriptor() {
        let mut samples = Samples::default();
        samples.add_labelled(
            "container_memory_failures_total",
            &["pgfault", "container"],
            Some(3),
        );
        samples.add("container_memory_failcnt", None);
        let common = ["c", "/i", "image", "i", "ns", "p"].map(str::to_owned);
        let told = samples.to_cri(&common);
        assert_eq!(told.len(), 1, "what is not known is left out");
        let descriptors = descriptors();
        let descriptor = descriptors
            .iter()
            .find(|found| found.name == told[0].name)
            .unwrap();
        assert_eq!(descriptor.label_keys.len(), told[0].label_values.len());
        let at = |label: &str| {
            descriptor
                .label_keys
                .iter()
                .position(|key| key == label)
                .unwrap()
        };
        assert_eq!(told[0].label_values[at("failure_type")], "pgfault");
        assert_eq!(told[0].label_values[at("pod")], "p");
    }
}
