//! The files that every container of a Pod sees: resolv.conf, hosts, hostname. Written once, when the sandbox is made.

use std::fmt::Write;
use std::net::IpAddr;

use cox_cri::v1::{DnsConfig, PodSandboxConfig};

use super::PodFiles;

/// What resolv.conf says; the node's own when the Pod has no configuration (`dnsPolicy: Default` of kubelets that leave it to us).
pub(super) fn resolv_conf(dns: Option<&DnsConfig>, node: impl FnOnce() -> String) -> String {
    let Some(dns) = dns.filter(|dns| **dns != DnsConfig::default()) else {
        return node();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        writeln!(text, "search {}", dns.searches.join(" ")).expect("texts grow");
    }
    for server in &dns.servers {
        writeln!(text, "nameserver {server}").expect("texts grow");
    }
    if !dns.options.is_empty() {
        writeln!(text, "options {}", dns.options.join(" ")).expect("texts grow");
    }
    text
}

/// The hosts file: the loopback's names, and the Pod's own at its addresses.
fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for ip in ips.iter().filter(|_| !hostname.is_empty()) {
        writeln!(text, "{ip}\t{hostname}").expect("texts grow");
    }
    text
}

/// Writes the files. A Pod on the node's network sees the node's names.
pub(super) fn write(
    files: &PodFiles,
    config: &PodSandboxConfig,
    own_network: bool,
    ips: &[IpAddr],
) -> std::io::Result<()> {
    let node = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resolv = resolv_conf(config.dns_config.as_ref(), || node("/etc/resolv.conf"));
    let (hosts, hostname) = if own_network {
        (
            hosts(&config.hostname, ips),
            format!("{}\n", config.hostname),
        )
    } else {
        (node("/etc/hosts"), node("/etc/hostname"))
    };
    std::fs::write(&files.resolv_conf, resolv)?;
    std::fs::write(&files.hosts, hosts)?;
    std::fs::write(&files.hostname, hostname)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_the_pod_asked_for() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into(), "edns0".into()],
        };
        let expected = "search default.svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5 edns0\n";
        assert_eq!(resolv_conf(Some(&dns), || unreachable!()), expected);
        let node = || "nameserver 1.2.3.4\n".to_owned();
        assert_eq!(
            resolv_conf(Some(&DnsConfig::default()), node),
            "nameserver 1.2.3.4\n"
        );
        assert_eq!(resolv_conf(None, node), "nameserver 1.2.3.4\n");
    }

    #[test]
    fn a_pod_knows_itself_by_name() {
        let text = hosts("web-0", &["10.64.0.7".parse().unwrap()]);
        assert!(
            text.ends_with("10.64.0.7\tweb-0\n") && text.starts_with("127.0.0.1\tlocalhost\n"),
            "{text}"
        );
        assert!(!hosts("", &["10.64.0.7".parse().unwrap()]).contains("10.64.0.7"));
    }
}
