//! The `/etc/hosts` that the kubelet gives to the containers of a Pod. Pure.

use crate::pod::containers::spec;
use k8s_openapi::api::core::v1::{Container, Pod};

/// Where containers see it.
pub const PATH: &str = "/etc/hosts";

/// Whether a container gets the file: not if it mounts something there itself, and not before the Pod has an address.
#[must_use]
pub fn is_wanted(container: &Container, pod_ips: &[String]) -> bool {
    let own = |path: &str| path == PATH || path == "/etc";
    let mounts = container.volume_mounts.iter().flatten();
    !pod_ips.is_empty() && !mounts.into_iter().any(|mount| own(&mount.mount_path))
}

/// The content. `hostname` is the Pod's, with its domain if it has one; `node` is the node's own file, for Pods on its network.
#[must_use]
pub fn content(
    pod: &Pod,
    pod_ips: &[String],
    hostname: &str,
    domain: Option<&str>,
    node: &str,
) -> String {
    let mut text = if spec(pod).host_network.unwrap_or(false) {
        format!("# Kubernetes-managed hosts file (host network).\n{node}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        for ip in pod_ips {
            match domain {
                Some(domain) => text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n")),
                None => text.push_str(&format!("{ip}\t{hostname}\n")),
            }
        }
        text
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn the_pod_its_domain_and_its_aliases() {
        let pod = pod(
            json!({"containers": [], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["foo", "bar"]}]}),
        );
        let text = content(
            &pod,
            &["10.0.0.2".into()],
            "web",
            Some("sub.n.svc.cluster.local"),
            "",
        );
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        let end = "10.0.0.2\tweb.sub.n.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_pod_on_the_node_s_network_sees_the_node_s_names() {
        let pod = pod(json!({"containers": [], "hostNetwork": true}));
        let text = content(&pod, &["10.0.0.1".into()], "node", None, "10.0.0.9\tnas\n");
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file (host network).\n10.0.0.9\tnas\n"
        );
    }

    #[test]
    fn a_container_with_a_file_of_its_own_is_left_alone() {
        let own: Container = serde_json::from_value(json!({"name": "c",
            "volumeMounts": [{"name": "v", "mountPath": "/etc/hosts"}]}))
        .unwrap();
        let ips = ["10.0.0.2".to_owned()];
        assert!(!is_wanted(&own, &ips));
        let plain = Container::default();
        assert!(is_wanted(&plain, &ips) && !is_wanted(&plain, &[]));
    }
}
