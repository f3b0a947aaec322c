//! The message that makes a sandbox, from the Pod. Pure.

use super::{labels, security};
use crate::config::Config;
use crate::pod::containers::{all, spec};
use crate::pod::plan::{NETWORK_ANNOTATION, PodNetwork};
use cox_cri::v1;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Longest host name that Linux takes.
const HOSTNAME_LEN_MAX: usize = 63;

/// The folder of a Pod's container logs, as upstream lays them out.
#[must_use]
pub fn log_dir(config: &Config, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    config.log_dir.join(format!(
        "{}_{}_{}",
        text(&meta.namespace),
        text(&meta.name),
        text(&meta.uid)
    ))
}

/// The Pod's domain below the cluster's: that of the headless service that its subdomain names.
#[must_use]
pub fn domain(config: &Config, pod: &Pod) -> Option<String> {
    let subdomain = spec(pod)
        .subdomain
        .as_deref()
        .filter(|name| !name.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!(
        "{subdomain}.{namespace}.svc.{}",
        config.cluster_domain
    ))
}

/// The host name inside the Pod.
#[must_use]
pub fn hostname(config: &Config, pod: &Pod) -> String {
    let spec = spec(pod);
    if spec.host_network.unwrap_or(false) {
        return config.node_name.clone();
    }
    let chosen = spec
        .hostname_override
        .clone()
        .or_else(|| spec.hostname.clone())
        .filter(|name| !name.is_empty());
    let name = chosen
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    let cut: String = name.chars().take(HOSTNAME_LEN_MAX).collect();
    let cut = cut.trim_end_matches(['-', '.']).to_owned();
    match spec
        .subdomain
        .as_deref()
        .filter(|subdomain| !subdomain.is_empty())
    {
        Some(subdomain) if spec.set_hostname_as_fqdn.unwrap_or(false) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!(
                "{cut}.{subdomain}.{namespace}.svc.{}",
                config.cluster_domain
            )
        }
        _ => cut,
    }
}

/// Name servers and search path by dnsPolicy; `host` is the content of the node's resolv.conf.
fn dns(config: &Config, pod: &Pod, host: &str) -> v1::DnsConfig {
    let spec = spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let on_host = spec.host_network.unwrap_or(false);
    let cluster = match policy {
        "ClusterFirst" => !on_host && !config.cluster_dns.is_empty(),
        "ClusterFirstWithHostNet" => !config.cluster_dns.is_empty(),
        _ => false,
    };
    let mut dns = if policy == "None" {
        v1::DnsConfig::default()
    } else if cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let domain = &config.cluster_domain;
        let mut searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.extend(parse_resolv_conf(host).searches);
        let servers = config.cluster_dns.iter().map(ToString::to_string).collect();
        v1::DnsConfig {
            servers,
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        parse_resolv_conf(host)
    };
    if let Some(extra) = &spec.dns_config {
        let add = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for item in more.iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut dns.servers, &extra.nameservers);
        add(&mut dns.searches, &extra.searches);
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options
                .retain(|known| known.split(':').next() != Some(name.as_str()));
            dns.options.push(
                option
                    .value
                    .as_ref()
                    .map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            );
        }
    }
    dns
}

/// Reads a resolv.conf.
fn parse_resolv_conf(text: &str) -> v1::DnsConfig {
    let mut dns = v1::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// The host's resolver configuration, empty if there is none.
#[must_use]
pub fn host_resolv_conf(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn ports(pod: &Pod) -> Vec<v1::PortMapping> {
    let ports = all(pod).flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn to_hash(map: Option<&BTreeMap<String, String>>) -> HashMap<String, String> {
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The labels that say whose a sandbox or container is.
#[must_use]
pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    HashMap::from([
        (labels::POD_NAME.to_owned(), text(&pod.metadata.name)),
        (
            labels::POD_NAMESPACE.to_owned(),
            text(&pod.metadata.namespace),
        ),
        (labels::POD_UID.to_owned(), text(&pod.metadata.uid)),
    ])
}

/// Makes the message. `resolv_conf` is the content of the host's.
#[must_use]
pub fn sandbox_config(
    config: &Config,
    pod: &Pod,
    attempt: u32,
    network: PodNetwork,
    resolv_conf: &str,
) -> v1::PodSandboxConfig {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut labels = to_hash(pod.metadata.labels.as_ref());
    labels.extend(pod_labels(pod));
    let mut annotations = to_hash(pod.metadata.annotations.as_ref());
    annotations.remove(NETWORK_ANNOTATION);
    if network == PodNetwork::Virtual {
        annotations.insert(NETWORK_ANNOTATION.to_owned(), "virtual".to_owned());
    }
    let sysctls = spec(pod)
        .security_context
        .as_ref()
        .and_then(|context| context.sysctls.as_ref());
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
            namespace: text(&pod.metadata.namespace),
            attempt,
        }),
        hostname: hostname(config, pod),
        log_directory: log_dir(config, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns(config, pod, resolv_conf)),
        port_mappings: ports(pod),
        labels,
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(security::of_sandbox(pod)),
            sysctls: sysctls
                .into_iter()
                .flatten()
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        windows: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(
            "node-1",
            "10.0.0.1".parse().unwrap(),
            "/data".into(),
            "/cri".into(),
        );
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        config
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1", "annotations": {"a": "b"}}, "spec": spec }))
        .unwrap()
    }

    #[test]
    fn names_labels_and_network() {
        let pod = pod(
            serde_json::json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]}),
        );
        let made = sandbox_config(&config(), &pod, 2, PodNetwork::Virtual, "");
        assert_eq!(made.metadata.unwrap().attempt, 2);
        assert_eq!(made.hostname, "web-0");
        assert_eq!(made.log_directory, "/data/logs/shop_web-0_u-1");
        assert_eq!(made.labels[labels::POD_UID], "u-1");
        assert_eq!(made.annotations[NETWORK_ANNOTATION], "virtual");
        assert_eq!(made.annotations["a"], "b");
        assert_eq!(made.port_mappings[0].host_port, 8080);
        let plain = sandbox_config(&config(), &pod, 0, PodNetwork::Namespace, "");
        assert!(!plain.annotations.contains_key(NETWORK_ANNOTATION));
    }

    #[test]
    fn dns_table() {
        let host = "nameserver 1.1.1.1\nsearch example.org\noptions ndots:1\n";
        let cases = [
            (
                "cluster first",
                serde_json::json!({"containers": []}),
                "10.96.0.10|shop.svc.cluster.local svc.cluster.local cluster.local example.org|ndots:5",
            ),
            (
                "default",
                serde_json::json!({"containers": [], "dnsPolicy": "Default"}),
                "1.1.1.1|example.org|ndots:1",
            ),
            (
                "host network falls back",
                serde_json::json!({"containers": [], "hostNetwork": true}),
                "1.1.1.1|example.org|ndots:1",
            ),
            (
                "none with a configuration",
                serde_json::json!({"containers": [], "dnsPolicy": "None",
                    "dnsConfig": {"nameservers": ["9.9.9.9"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "9.9.9.9||ndots:2 edns0",
            ),
        ];
        for (name, spec, expected) in cases {
            let dns = dns(&config(), &pod(spec), host);
            let shown = format!(
                "{}|{}|{}",
                dns.servers.join(" "),
                dns.searches.join(" "),
                dns.options.join(" ")
            );
            assert_eq!(shown, expected, "case: {name}");
        }
    }
}
