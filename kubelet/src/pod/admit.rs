//! What this node refuses before anything of a Pod is made, with upstream's reasons. Pure.

use super::containers::spec;
use k8s_openapi::api::core::v1::Pod;

/// Why a Pod cannot run here at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

/// Sysctls that touch nobody outside of the Pod; others have to be allowed by an operator, which this kubelet does not offer.
const SAFE_SYSCTLS: [&str; 12] = [
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

/// Looks at a Pod that has not begun.
#[must_use]
pub fn refusal(pod: &Pod) -> Option<Refusal> {
    let spec = spec(pod);
    let context = spec.security_context.as_ref();
    let sysctls = context.and_then(|context| context.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        // Both spellings are allowed: dots, or slashes.
        let name = sysctl.name.replace('/', ".");
        let forbidden = |message: String| {
            Some(Refusal {
                reason: "SysctlForbidden",
                message,
            })
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return forbidden(format!(
                "forbidden sysctl: \"{}\" not allowlisted",
                sysctl.name
            ));
        }
        let host = |shared: Option<bool>| shared.unwrap_or(false);
        if name.starts_with("net.") && host(spec.host_network) {
            return forbidden(format!(
                "forbidden sysctl: \"{}\" not allowed with host net enabled",
                sysctl.name
            ));
        }
        if name.starts_with("kernel.") && host(spec.host_ipc) {
            return forbidden(format!(
                "forbidden sysctl: \"{}\" not allowed with host ipc enabled",
                sysctl.name
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sysctls_table() {
        let cases = [
            ("a safe one", "kernel.shm_rmid_forced", json!({}), None),
            (
                "a safe one with slashes",
                "net/ipv4/tcp_rmem",
                json!({}),
                None,
            ),
            (
                "an unsafe one",
                "kernel.msgmax",
                json!({}),
                Some("not allowlisted"),
            ),
            (
                "a safe one that would be the node's",
                "net.ipv4.tcp_rmem",
                json!({"hostNetwork": true}),
                Some("not allowed with host net enabled"),
            ),
        ];
        for (name, sysctl, mut spec, expected) in cases {
            spec["containers"] = json!([]);
            spec["securityContext"] = json!({"sysctls": [{"name": sysctl, "value": "1"}]});
            let pod =
                serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            let found = refusal(&pod).map(|refusal| refusal.message);
            match expected {
                Some(text) => assert!(found.unwrap().ends_with(text), "case: {name}"),
                None => assert_eq!(found, None, "case: {name}"),
            }
        }
    }
}
