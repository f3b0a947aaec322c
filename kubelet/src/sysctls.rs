//! Which sysctls Pods may set: those that touch nobody outside of the Pod, and those that the operator allows beside them. Pure.
//!
//! Whatever is allowed belongs to a namespace that the kernel makes anew for a Pod; a Pod that shares that one with the node
//! would change the node, and is refused.

use k8s_openapi::api::core::v1::PodSpec;
use std::sync::Arc;

/// Sysctls that every Pod may set.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Which of the kernel's namespaces a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// The namespace of all sysctls whose names begin so; `None`: of no single one, or of none at all.
fn namespace_of_all(prefix: &str) -> Option<Namespace> {
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if of_ipc.iter().any(|known| prefix.starts_with(known)) {
        return Some(Namespace::Ipc);
    }
    prefix.starts_with("net.").then_some(Namespace::Net)
}

/// The namespace of a sysctl.
fn namespace(name: &str) -> Option<Namespace> {
    if name == "kernel.sem" {
        return Some(Namespace::Ipc);
    }
    namespace_of_all(name)
}

/// The name with dots between its parts. As sysctl(8): whichever of `.` and `/` comes first separates, the other is part of a name
/// (`net/ipv4/conf/eth0.1/forwarding`).
fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Text that allows no sysctl.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// It is not written as one.
    #[error(
        "\"{0}\" is no sysctl, nor a pattern of them: it is written like kernel.sem or net.ipv4.*"
    )]
    NotAName(String),
    /// It would reach beyond the Pod.
    #[error(
        "sysctls \"{0}\" cannot be allowed: they are not known to belong to a Pod's namespaces (kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, net.*)"
    )]
    NotNamespaced(String),
}

/// What the operator allows beside the safe ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Arc<[String]>);

impl Allowed {
    /// Reads names and patterns: a `*` at the end stands for any rest.
    pub fn parse(patterns: &[String]) -> Result<Self, SysctlError> {
        let all = patterns.iter().map(|text| {
            let pattern = normal(text.trim());
            let fixed = pattern.strip_suffix('*').unwrap_or(&pattern);
            let is_name =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(c);
            if fixed.is_empty()
                || !fixed.starts_with(|c: char| c.is_ascii_alphanumeric())
                || !fixed.chars().all(is_name)
            {
                return Err(SysctlError::NotAName(text.clone()));
            }
            let known = if fixed == pattern {
                namespace(fixed)
            } else {
                namespace_of_all(fixed)
            };
            match known {
                Some(_) => Ok(pattern),
                None => Err(SysctlError::NotNamespaced(text.clone())),
            }
        });
        Ok(Self(all.collect::<Result<_, _>>()?))
    }

    fn has(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
    }

    /// Why a Pod may not set what it asks for, in upstream's words.
    #[must_use]
    pub fn forbids(&self, spec: &PodSpec) -> Option<String> {
        let asked = spec
            .security_context
            .as_ref()
            .and_then(|context| context.sysctls.as_ref());
        asked.into_iter().flatten().find_map(|sysctl| {
            let name = normal(&sysctl.name);
            if !SAFE.contains(&name.as_str()) && !self.has(&name) {
                return Some(format!(
                    "forbidden sysctl: \"{}\" not allowlisted",
                    sysctl.name
                ));
            }
            let shared = match namespace(&name)? {
                Namespace::Net => spec.host_network.unwrap_or(false).then_some("net"),
                Namespace::Ipc => spec.host_ipc.unwrap_or(false).then_some("ipc"),
            }?;
            Some(format!(
                "forbidden sysctl: \"{}\" not allowed with host {shared} enabled",
                sysctl.name
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn allowed(patterns: &[&str]) -> Result<Allowed, SysctlError> {
        let patterns: Vec<String> = patterns.iter().map(|&text| text.to_owned()).collect();
        Allowed::parse(&patterns)
    }

    #[test]
    fn sysctls_table() {
        let cases: [(&str, &[&str], &str, Value, &str); 13] = [
            ("a safe one", &[], "kernel.shm_rmid_forced", json!({}), ""),
            (
                "a safe one with slashes",
                &[],
                "net/ipv4/tcp_rmem",
                json!({}),
                "",
            ),
            (
                "an unsafe one",
                &[],
                "kernel.msgmax",
                json!({}),
                "not allowlisted",
            ),
            (
                "an unsafe one that is allowed",
                &["kernel.msgmax"],
                "kernel.msgmax",
                json!({}),
                "",
            ),
            (
                "beside the allowed one",
                &["kernel.msgmax"],
                "kernel.msgmnb",
                json!({}),
                "not allowlisted",
            ),
            (
                "by a pattern",
                &["kernel.msg*"],
                "kernel.msgmnb",
                json!({}),
                "",
            ),
            (
                "by a pattern with slashes",
                &["net/core/*"],
                "net.core.somaxconn",
                json!({}),
                "",
            ),
            (
                "an interface with a dot",
                &["net.ipv4.conf.*"],
                "net/ipv4/conf/eth0.1/forwarding",
                json!({}),
                "",
            ),
            (
                "a safe one that would be the node's",
                &[],
                "net.ipv4.tcp_rmem",
                json!({"hostNetwork": true}),
                "not allowed with host net enabled",
            ),
            (
                "an allowed one that would be the node's",
                &["net.*"],
                "net.core.somaxconn",
                json!({"hostNetwork": true}),
                "not allowed with host net enabled",
            ),
            (
                "semaphores of the node",
                &["kernel.sem"],
                "kernel.sem",
                json!({"hostIPC": true}),
                "not allowed with host ipc enabled",
            ),
            (
                "queues of the node",
                &["fs.mqueue.*"],
                "fs.mqueue.msg_max",
                json!({"hostIPC": true}),
                "not allowed with host ipc enabled",
            ),
            (
                "the node's network does not matter to semaphores",
                &["kernel.sem"],
                "kernel.sem",
                json!({"hostNetwork": true}),
                "",
            ),
        ];
        for (name, patterns, sysctl, mut spec, expected) in cases {
            spec["containers"] = json!([]);
            spec["securityContext"] = json!({"sysctls": [{"name": sysctl, "value": "1"}]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let found = allowed(patterns).unwrap().forbids(&spec);
            let wanted = (!expected.is_empty())
                .then(|| format!("forbidden sysctl: \"{sysctl}\" {expected}"));
            assert_eq!(found, wanted, "case: {name}");
        }
    }

    #[test]
    fn what_would_reach_beyond_a_pod_cannot_be_allowed() {
        for pattern in [
            "kernel.*",
            "*",
            "vm.swappiness",
            "kernel.semaphores",
            "kernel.sem*",
            "kernel.s*",
            "fs.*",
            "ne*",
        ] {
            assert!(allowed(&[pattern]).is_err(), "pattern: {pattern}");
        }
        for pattern in ["net.*", "kernel.sem", "kernel.shm*", "fs/mqueue/*"] {
            assert!(allowed(&[pattern]).is_ok(), "pattern: {pattern}");
        }
        assert_eq!(
            allowed(&["net.ipv4.IP"]),
            Err(SysctlError::NotAName("net.ipv4.IP".into()))
        );
    }
}
