//! `/metrics/resource`: what node, Pods and containers use, as text for Prometheus. Pure.

use super::summary::container_name;
use super::{Figures, number};
use cox_cri::v1;
use std::fmt::Write;

/// Writes one metric with its samples.
struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, f64, i64)]) {
        if samples.is_empty() {
            return;
        }
        let mut write = || -> std::fmt::Result {
            writeln!(self.0, "# HELP {name} [STABLE] {help}")?;
            writeln!(self.0, "# TYPE {name} {kind}")?;
            for (labels, value, at_ms) in samples {
                let labels = if labels.is_empty() {
                    String::new()
                } else {
                    format!("{{{labels}}}")
                };
                if *at_ms == 0 {
                    writeln!(self.0, "{name}{labels} {value}")?;
                } else {
                    writeln!(self.0, "{name}{labels} {value} {at_ms}")?;
                }
            }
            Ok(())
        };
        write().expect("writing to a String cannot fail");
    }
}

fn seconds(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other numbers"
)]
fn bytes(value: u64) -> f64 {
    value as f64
}

fn cpu_of(cpu: Option<&v1::CpuUsage>) -> Option<(f64, i64)> {
    let cpu = cpu?;
    let used = number(cpu.usage_core_nano_seconds.as_ref())?;
    Some((seconds(used), cpu.timestamp / 1_000_000))
}

fn memory_of(memory: Option<&v1::MemoryUsage>) -> Option<(f64, i64)> {
    let memory = memory?;
    let used = number(memory.working_set_bytes.as_ref())?;
    Some((bytes(used), memory.timestamp / 1_000_000))
}

/// The document; `None`: the runtime did not answer.
#[must_use]
pub fn resource(figures: Option<&Figures>) -> String {
    let mut text = Text(String::new());
    if let Some(figures) = figures {
        write_pods(&mut text, figures);
        let machine = &figures.machine;
        let at = machine.at.as_millisecond();
        let used = machine
            .memory_total
            .saturating_sub(machine.memory_available);
        let none = String::new;
        text.metric(
            "node_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the node in core-seconds",
            &[(none(), seconds(machine.cpu_nanos), at)],
        );
        text.metric(
            "node_memory_working_set_bytes",
            "gauge",
            "Current working set of the node in bytes",
            &[(none(), bytes(used), at)],
        );
    }
    text.metric(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        &[(String::new(), if figures.is_some() { 0.0 } else { 1.0 }, 0)],
    );
    text.0
}

fn write_pods(text: &mut Text, figures: &Figures) {
    let (mut cpu, mut memory) = (Vec::new(), Vec::new());
    let (mut pod_cpu, mut pod_memory) = (Vec::new(), Vec::new());
    for sandbox in &figures.sandboxes {
        let meta = sandbox
            .attributes
            .as_ref()
            .and_then(|all| all.metadata.as_ref());
        let (Some(meta), Some(linux)) = (meta, sandbox.linux.as_ref()) else {
            continue;
        };
        let of_pod = format!("namespace=\"{}\",pod=\"{}\"", meta.namespace, meta.name);
        for one in &linux.containers {
            let labels = format!("container=\"{}\",{of_pod}", container_name(one));
            cpu.extend(cpu_of(one.cpu.as_ref()).map(|(value, at)| (labels.clone(), value, at)));
            memory.extend(memory_of(one.memory.as_ref()).map(|(value, at)| (labels, value, at)));
        }
        let pods = cpu_of(linux.cpu.as_ref());
        pod_cpu.extend(pods.map(|(value, at)| (of_pod.clone(), value, at)));
        let pods = memory_of(linux.memory.as_ref());
        pod_memory.extend(pods.map(|(value, at)| (of_pod, value, at)));
    }
    let (cpu_help, memory_help) = (
        "Cumulative cpu time consumed by the container in core-seconds",
        "Current working set of the container in bytes",
    );
    text.metric(
        "container_cpu_usage_seconds_total",
        "counter",
        cpu_help,
        &cpu,
    );
    text.metric(
        "container_memory_working_set_bytes",
        "gauge",
        memory_help,
        &memory,
    );
    let (cpu_help, memory_help) = (
        "Cumulative cpu time consumed by the pod in core-seconds",
        "Current working set of the pod in bytes",
    );
    text.metric("pod_cpu_usage_seconds_total", "counter", cpu_help, &pod_cpu);
    text.metric(
        "pod_memory_working_set_bytes",
        "gauge",
        memory_help,
        &pod_memory,
    );
}

#[cfg(test)]
mod tests {
    use super::super::machine::MachineUse;
    use super::super::summary::summary;
    use super::*;
    use std::sync::Arc;

    fn figures() -> Figures {
        let some = |value| Some(v1::UInt64Value { value });
        let cpu = Some(v1::CpuUsage {
            timestamp: 2_000_000,
            usage_core_nano_seconds: some(1_500_000_000),
            usage_nano_cores: some(250_000_000),
            psi: None,
        });
        let memory = Some(v1::MemoryUsage {
            timestamp: 2_000_000,
            working_set_bytes: some(4096),
            ..v1::MemoryUsage::default()
        });
        let container = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                metadata: Some(v1::ContainerMetadata {
                    name: "c".into(),
                    attempt: 0,
                }),
                ..v1::ContainerAttributes::default()
            }),
            cpu,
            memory,
            ..v1::ContainerStats::default()
        };
        let sandbox = v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                metadata: Some(v1::PodSandboxMetadata {
                    name: "p".into(),
                    uid: "u".into(),
                    namespace: "n".into(),
                    attempt: 0,
                }),
                ..v1::PodSandboxAttributes::default()
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                containers: vec![container],
                ..v1::LinuxPodSandboxStats::default()
            }),
            windows: None,
        };
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}});
        Figures {
            node_name: "node-1".into(),
            machine: MachineUse {
                cpu_nanos: 3_000_000_000,
                memory_total: 100,
                memory_available: 60,
                ..MachineUse::default()
            },
            sandboxes: vec![sandbox],
            images: Vec::new(),
            pods: vec![Arc::new(serde_json::from_value(pod).unwrap())],
        }
    }

    #[test]
    fn prometheus_gets_counters_with_their_time() {
        let text = resource(Some(&figures()));
        let has = |line: &str| assert!(text.lines().any(|one| one == line), "{line} in:\n{text}");
        has("container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 2");
        has("container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096 2");
        has("node_cpu_usage_seconds_total 3");
        has("resource_scrape_error 0");
        assert!(resource(None).contains("resource_scrape_error 1"));
    }

    #[test]
    fn the_summary_has_node_pods_and_containers() {
        let shown = summary(&figures());
        assert_eq!(shown["node"]["memory"]["workingSetBytes"], 40);
        let pod = &shown["pods"][0];
        assert_eq!(pod["podRef"]["uid"], "u");
        assert_eq!(pod["containers"][0]["cpu"]["usageNanoCores"], 250_000_000);
        assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 4096);
    }
}
