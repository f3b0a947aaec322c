//! The downward API: fields and resources of a Pod as text, for environment variables and files. Pure.

use super::containers::{named, spec};
use crate::cri::resources::{milli_value, value};
use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Addresses that are known only while the Pod runs.
#[derive(Clone, Debug, Default)]
pub struct PodAddresses {
    pub pod_ips: Vec<String>,
    pub host_ip: String,
}

/// What the node can give, for limits that are not set.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeAllocatable {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
}

/// The value of a field path; an error says what is wrong with it.
pub fn field(pod: &Pod, addresses: &PodAddresses, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(lookup(meta.labels.as_ref(), key)),
            "metadata.annotations" => Ok(lookup(meta.annotations.as_ref(), key)),
            _ => Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec(pod).node_name),
        "spec.serviceAccountName" => text(&spec(pod).service_account_name),
        "status.hostIP" | "status.hostIPs" => addresses.host_ip.clone(),
        "status.podIP" => addresses.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

fn lookup(map: Option<&BTreeMap<String, String>>, key: &str) -> String {
    map.and_then(|map| map.get(key))
        .cloned()
        .unwrap_or_default()
}

/// A map as a file of the downward API: `key="quoted value"`, sorted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", quote(value));
    map.into_iter()
        .flatten()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Quotes as Go's `%q` does for printable text.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a resource field; `default_container` is the one that asks.
pub fn resource(
    pod: &Pod,
    default_container: &str,
    selector: &ResourceFieldSelector,
    node: NodeAllocatable,
) -> Result<String, String> {
    let name = selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(default_container);
    let container = named(pod, name).ok_or_else(|| format!("container {name} not found"))?;
    let (kind, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let map = match kind {
        "limits" => limits,
        "requests" => resources
            .and_then(|resources| resources.requests.as_ref())
            .or(limits),
        _ => {
            return Err(format!(
                "unsupported container resource : {}",
                selector.resource
            ));
        }
    };
    let asked = map.and_then(|map| map.get(resource));
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|divisor| divisor.0 != "0" && !divisor.0.is_empty());
    let one = Quantity("1".into());
    let divisor = divisor.unwrap_or(&one);
    let fallback = |whole: i64| if kind == "limits" { whole } else { 0 };
    let (amount, unit) = if resource == "cpu" {
        (
            asked
                .and_then(milli_value)
                .unwrap_or_else(|| fallback(node.cpu_millis)),
            milli_value(divisor),
        )
    } else {
        let whole = if resource == "memory" {
            node.memory_bytes
        } else {
            node.ephemeral_bytes
        };
        (
            asked.and_then(value).unwrap_or_else(|| fallback(whole)),
            value(divisor),
        )
    };
    let unit = unit
        .filter(|unit| *unit > 0)
        .ok_or_else(|| format!("invalid divisor {}", divisor.0))?;
    Ok((amount / unit + i64::from(amount % unit != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "say \"hi\"\nyou"}},
            "spec": {"nodeName": "node-1", "serviceAccountName": "default", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}, {"name": "free"}]}}))
        .unwrap()
    }

    #[test]
    fn fields_table() {
        let addresses = PodAddresses {
            pod_ips: vec!["10.0.0.2".into(), "fd::2".into()],
            host_ip: "10.0.0.1".into(),
        };
        let cases = [
            ("metadata.name", Ok("p")),
            ("metadata.labels['b']", Ok("2")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.labels", Ok("a=\"say \\\"hi\\\"\\nyou\"\nb=\"2\"")),
            ("status.podIP", Ok("10.0.0.2")),
            ("status.podIPs", Ok("10.0.0.2,fd::2")),
            ("spec.nodeName", Ok("node-1")),
            ("spec.secrets", Err("unsupported fieldPath: spec.secrets")),
        ];
        for (path, expected) in cases {
            let found = field(&pod(), &addresses, path);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{path}");
        }
    }

    #[test]
    fn resources_table() {
        let node = NodeAllocatable {
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            ephemeral_bytes: 0,
        };
        let cases = [
            ("limits.cpu", None, "c", "2"),
            ("limits.cpu", Some("1m"), "c", "1500"),
            ("limits.memory", Some("1Mi"), "c", "64"),
            ("requests.cpu", Some("1m"), "c", "1500"),
            ("limits.cpu", None, "free", "2"),
            ("requests.memory", None, "free", "0"),
        ];
        for (name, divisor, container, expected) in cases {
            let selector = ResourceFieldSelector {
                container_name: Some(container.into()),
                divisor: divisor.map(|divisor| Quantity(divisor.into())),
                resource: name.into(),
            };
            assert_eq!(
                resource(&pod(), "c", &selector, node).unwrap(),
                expected,
                "{name} of {container}"
            );
        }
    }
}
