//! `/stats/summary`: the node and its Pods in upstream's form. Pure.

use super::machine::Filesystem;
use super::{Figures, number};
use cox_cri::v1;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The document.
#[must_use]
pub fn summary(figures: &Figures) -> Value {
    let machine = &figures.machine;
    let used = machine
        .memory_total
        .saturating_sub(machine.memory_available);
    let at = machine.at.to_string();
    let mut node = json!({
        "nodeName": figures.node_name,
        "startTime": machine.booted_at.to_string(),
        "cpu": {"time": at, "usageNanoCores": machine.cpu_nano_cores, "usageCoreNanoSeconds": machine.cpu_nanos},
        "memory": {"time": at, "availableBytes": machine.memory_available, "usageBytes": used, "workingSetBytes": used},
    });
    if let Some(fs) = &machine.fs {
        node["fs"] = filesystem(fs, None, &at);
    }
    if let (Some(now), Some(max)) = (machine.processes, machine.processes_max) {
        node["rlimit"] = json!({"time": at, "maxpid": max, "curproc": now});
    }
    if let Some(images) = figures.images.first() {
        let path = images.fs_id.as_ref().map(|id| id.mountpoint.clone());
        let fs = path.and_then(|path| Filesystem::of(std::path::Path::new(&path)));
        let usage = number(images.used_bytes.as_ref());
        node["runtime"] =
            json!({ "imageFs": filesystem(&fs.or(machine.fs).unwrap_or_default(), usage, &at) });
    }
    let pods: Vec<Value> = figures
        .sandboxes
        .iter()
        .filter_map(|sandbox| pod(figures, sandbox))
        .collect();
    json!({ "node": node, "pods": pods })
}

fn filesystem(fs: &Filesystem, used: Option<u64>, at: &str) -> Value {
    let used = used.unwrap_or(fs.capacity.saturating_sub(fs.available));
    json!({
        "time": at, "availableBytes": fs.available, "capacityBytes": fs.capacity, "usedBytes": used,
        "inodesFree": fs.inodes_free, "inodes": fs.inodes, "inodesUsed": fs.inodes.saturating_sub(fs.inodes_free),
    })
}

/// One Pod; `None`: the runtime knows it, the kubelet does not any more.
fn pod(figures: &Figures, sandbox: &v1::PodSandboxStats) -> Option<Value> {
    let meta = sandbox.attributes.as_ref()?.metadata.as_ref()?;
    let pod = figures
        .pods
        .iter()
        .find(|pod| pod.metadata.uid.as_deref() == Some(meta.uid.as_str()))?;
    let status = pod.status.as_ref();
    let linux = sandbox.linux.clone().unwrap_or_default();
    let mut shown = json!({
        "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "startTime": status.and_then(|status| status.start_time.as_ref()).map(|time| time.0.to_string()),
        "containers": linux.containers.iter().map(|one| container(pod, one)).collect::<Vec<_>>(),
    });
    put(&mut shown, "cpu", cpu(linux.cpu.as_ref()));
    put(&mut shown, "memory", memory(linux.memory.as_ref()));
    put(&mut shown, "network", network(linux.network.as_ref()));
    if let Some(processes) = linux.process.as_ref() {
        shown["process_stats"] = json!({"process_count": number(processes.process_count.as_ref())});
    }
    Some(shown)
}

fn put(object: &mut Value, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[key] = value;
    }
}

fn time(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos))
        .map_or_else(|_| String::new(), |time| time.to_string())
}

/// An object of those figures that there are.
fn present(at: i64, figures: &[(&str, Option<&v1::UInt64Value>)]) -> Value {
    let mut object = Map::from_iter([("time".to_owned(), Value::from(time(at)))]);
    for (key, value) in figures {
        if let Some(value) = number(*value) {
            object.insert((*key).to_owned(), value.into());
        }
    }
    Value::Object(object)
}

fn cpu(cpu: Option<&v1::CpuUsage>) -> Option<Value> {
    let cpu = cpu?;
    Some(present(
        cpu.timestamp,
        &[
            ("usageNanoCores", cpu.usage_nano_cores.as_ref()),
            ("usageCoreNanoSeconds", cpu.usage_core_nano_seconds.as_ref()),
        ],
    ))
}

fn memory(memory: Option<&v1::MemoryUsage>) -> Option<Value> {
    let memory = memory?;
    Some(present(
        memory.timestamp,
        &[
            ("availableBytes", memory.available_bytes.as_ref()),
            ("usageBytes", memory.usage_bytes.as_ref()),
            ("workingSetBytes", memory.working_set_bytes.as_ref()),
            ("rssBytes", memory.rss_bytes.as_ref()),
            ("pageFaults", memory.page_faults.as_ref()),
            ("majorPageFaults", memory.major_page_faults.as_ref()),
        ],
    ))
}

fn interface(one: &v1::NetworkInterfaceUsage) -> Value {
    json!({
        "name": one.name,
        "rxBytes": number(one.rx_bytes.as_ref()), "rxErrors": number(one.rx_errors.as_ref()),
        "txBytes": number(one.tx_bytes.as_ref()), "txErrors": number(one.tx_errors.as_ref()),
    })
}

fn network(network: Option<&v1::NetworkUsage>) -> Option<Value> {
    let network = network?;
    let mut shown = network
        .default_interface
        .as_ref()
        .map_or_else(|| json!({}), interface);
    shown["time"] = time(network.timestamp).into();
    shown["interfaces"] = network.interfaces.iter().map(interface).collect();
    Some(shown)
}

fn container(pod: &k8s_openapi::api::core::v1::Pod, stats: &v1::ContainerStats) -> Value {
    let name = container_name(stats);
    let statuses = pod.status.iter().flat_map(|status| {
        status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
    });
    let started = statuses
        .filter(|status| status.name == name)
        .find_map(|status| status.state.as_ref()?.running.as_ref()?.started_at.clone());
    let mut shown = json!({
        "name": name,
        "startTime": started.map(|time| time.0.to_string()),
    });
    put(&mut shown, "cpu", cpu(stats.cpu.as_ref()));
    put(&mut shown, "memory", memory(stats.memory.as_ref()));
    if let Some(layer) = &stats.writable_layer {
        let figures = [
            ("usedBytes", layer.used_bytes.as_ref()),
            ("inodesUsed", layer.inodes_used.as_ref()),
        ];
        shown["rootfs"] = present(layer.timestamp, &figures);
    }
    shown
}

/// The name of a container in its Pod.
#[must_use]
pub fn container_name(stats: &v1::ContainerStats) -> &str {
    let meta = stats
        .attributes
        .as_ref()
        .and_then(|all| all.metadata.as_ref());
    meta.map_or("", |meta| meta.name.as_str())
}
