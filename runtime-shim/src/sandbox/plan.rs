//! Decides what a sandbox is made of, from what CRI asks for and what this process may do. No effects.

use std::collections::BTreeMap;

use cox_cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};

use super::{NETWORK_ANNOTATION, VIRTUAL};
use crate::error::VerbError;

/// What this process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ability {
    /// Make namespaces, interfaces and mounts.
    Namespaces,
    /// Only what needs no rights; with the reason, for users.
    VirtualOnly(String),
}

/// What a sandbox is going to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// An address of the virtual network, no kernel object.
    Virtual,
    /// The host's network, for Wasm containers alone.
    Host,
    /// Namespaces.
    Isolated(Isolation),
}

/// Which namespaces are the Pod's own, and what is set inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Isolation {
    pub(super) net: bool,
    pub(super) ipc: bool,
    /// The host's where the network is: a Pod on the host's network has the host's name.
    pub(super) uts: bool,
    /// Shared by all containers.
    pub(super) pid: bool,
    pub(super) hostname: String,
    /// Files below `/proc/sys` and what is written there.
    pub(super) sysctls: Vec<(String, String)>,
}

pub(super) fn plan(config: &PodSandboxConfig, ability: &Ability) -> Result<Plan, VerbError> {
    let options = namespace_options(config);
    let host_network = options.network() == NamespaceMode::Node;
    let wants_virtual = config
        .annotations
        .get(NETWORK_ANNOTATION)
        .is_some_and(|network| network == VIRTUAL);
    if let Some(other) = config
        .annotations
        .get(NETWORK_ANNOTATION)
        .filter(|network| *network != VIRTUAL && *network != "netns")
    {
        return Err(VerbError::Invalid(format!(
            "annotation {NETWORK_ANNOTATION}: {other:?} is neither \"virtual\" nor \"netns\""
        )));
    }
    if wants_virtual {
        return Ok(if host_network {
            Plan::Host
        } else {
            Plan::Virtual
        });
    }
    match ability {
        Ability::Namespaces => isolation(config, &options).map(Plan::Isolated),
        // Nothing to make: Wasm containers can run, OCI containers are refused when they come.
        Ability::VirtualOnly(_) if host_network => Ok(Plan::Host),
        Ability::VirtualOnly(reason) => Err(VerbError::Start(format!(
            "this Pod needs a network namespace, and {reason}; a Pod whose images are all Wasm needs none: its kubelet says so with \
             the annotation {NETWORK_ANNOTATION}: {VIRTUAL}"
        ))),
    }
}

/// The options, or CRI's defaults: everything is the Pod's, and shared.
pub(super) fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    context
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

fn isolation(config: &PodSandboxConfig, options: &NamespaceOption) -> Result<Isolation, VerbError> {
    let own = |what: &str, mode: NamespaceMode| match mode {
        NamespaceMode::Pod => Ok(true),
        NamespaceMode::Node => Ok(false),
        NamespaceMode::Container | NamespaceMode::Target => Err(VerbError::Invalid(format!(
            "a sandbox's {what} namespace is the Pod's or the node's, not {}",
            mode.as_str_name()
        ))),
    };
    if options
        .userns_options
        .as_ref()
        .is_some_and(|userns| userns.mode() == NamespaceMode::Pod)
    {
        return Err(VerbError::Unsupported(
            "user namespaces (hostUsers: false) are not supported by this runtime: they need idmapped mounts, which runc has from 1.2 on"
                .into(),
        ));
    }
    let (net, ipc) = (
        own("network", options.network())?,
        own("IPC", options.ipc())?,
    );
    let pid = match options.pid() {
        NamespaceMode::Pod => true,
        // Each container's own, or the node's: nothing is shared.
        NamespaceMode::Container | NamespaceMode::Node => false,
        NamespaceMode::Target => {
            return Err(VerbError::Invalid(
                "a sandbox's PID namespace cannot be that of a container".into(),
            ));
        }
    };
    let asked: BTreeMap<_, _> = config
        .linux
        .iter()
        .flat_map(|linux| &linux.sysctls)
        .collect();
    let sysctls = asked
        .into_iter()
        .map(|(name, value)| Ok((sysctl(name, net, ipc)?, value.clone())))
        .collect::<Result<_, VerbError>>()?;
    Ok(Isolation {
        net,
        ipc,
        uts: net,
        pid,
        hostname: config.hostname.clone(),
        sysctls,
    })
}

/// The file of a sysctl, when it is one of a namespace that the Pod has for itself: any other would change the node.
fn sysctl(name: &str, net: bool, ipc: bool) -> Result<String, VerbError> {
    // As sysctl(8): whichever of `.` and `/` comes first separates, the other is part of a name (`net/ipv4/conf/eth0.1/...`).
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_owned(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    let of_ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"]
        .iter()
        .any(|prefix| path.starts_with(prefix))
        || path == "kernel/sem";
    let refused = |reason: &str| Err(VerbError::Invalid(format!("sysctl {name:?}: {reason}")));
    if path
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return refused("not a name");
    }
    match (of_ipc, path.starts_with("net/")) {
        (true, _) if !ipc => refused("the Pod uses the node's IPC namespace"),
        (_, true) if !net => refused("the Pod uses the node's network namespace"),
        (false, false) => {
            refused("it belongs to no namespace of the Pod: it would change the node")
        }
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cox_cri::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, UserNamespace};

    use super::*;

    fn config(options: NamespaceOption, sysctls: &[(&str, &str)]) -> PodSandboxConfig {
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        };
        let sysctls = sysctls
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        PodSandboxConfig {
            hostname: "pod".into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(context),
                sysctls: sysctls.collect(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
        NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..NamespaceOption::default()
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of cases")]
    fn sandboxes_are_planned_from_options_annotation_and_rights() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let none = Ability::VirtualOnly("it runs without root".into());
        let isolated = |net, ipc, uts, pid| {
            Some(Plan::Isolated(Isolation {
                net,
                ipc,
                uts,
                pid,
                hostname: "pod".into(),
                sysctls: vec![],
            }))
        };
        let virtual_pod = |mut config: PodSandboxConfig| {
            config.annotations = HashMap::from([(NETWORK_ANNOTATION.into(), VIRTUAL.into())]);
            config
        };
        let usual = config(options(Pod, Container, Pod), &[]);
        let host = config(options(Node, Container, Pod), &[]);
        let cases = [
            (
                "as kubelets ask for it",
                usual.clone(),
                &Ability::Namespaces,
                isolated(true, true, true, false),
            ),
            (
                "a shared PID namespace",
                config(options(Pod, Pod, Pod), &[]),
                &Ability::Namespaces,
                isolated(true, true, true, true),
            ),
            (
                "the node's network brings the node's name",
                host.clone(),
                &Ability::Namespaces,
                isolated(false, true, false, false),
            ),
            (
                "the node's processes and IPC",
                config(options(Pod, Node, Node), &[]),
                &Ability::Namespaces,
                isolated(true, false, true, false),
            ),
            (
                "no options: CRI's defaults",
                PodSandboxConfig {
                    hostname: "pod".into(),
                    ..PodSandboxConfig::default()
                },
                &Ability::Namespaces,
                isolated(true, true, true, true),
            ),
            (
                "all Wasm",
                virtual_pod(usual.clone()),
                &Ability::Namespaces,
                Some(Plan::Virtual),
            ),
            (
                "all Wasm, without rights",
                virtual_pod(usual.clone()),
                &none,
                Some(Plan::Virtual),
            ),
            (
                "all Wasm on the node's network",
                virtual_pod(host.clone()),
                &none,
                Some(Plan::Host),
            ),
            ("without rights", usual, &none, None),
            (
                "the node's network needs no rights",
                host,
                &none,
                Some(Plan::Host),
            ),
            (
                "a sandbox cannot target a container",
                config(options(Pod, Target, Pod), &[]),
                &Ability::Namespaces,
                None,
            ),
        ];
        for (case, config, ability, expected) in cases {
            assert_eq!(plan(&config, ability).ok(), expected, "case: {case}");
        }
        let refused = plan(&config(options(Pod, Container, Pod), &[]), &none)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("it runs without root") && refused.contains(NETWORK_ANNOTATION),
            "{refused}"
        );
        let userns = NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: Pod.into(),
                ..UserNamespace::default()
            }),
            ..options(Pod, Container, Pod)
        };
        assert!(
            plan(&config(userns, &[]), &Ability::Namespaces)
                .unwrap_err()
                .to_string()
                .contains("idmapped")
        );
    }

    #[test]
    fn sysctls_stay_inside_the_pod() {
        for (case, name, net, ipc, expected) in [
            (
                "of the network",
                "net.core.somaxconn",
                true,
                true,
                Some("net/core/somaxconn"),
            ),
            (
                "with slashes, and a dot in a name",
                "net/ipv4/conf/eth0.1/forwarding",
                true,
                true,
                Some("net/ipv4/conf/eth0.1/forwarding"),
            ),
            (
                "with dots, and a slash for a dot",
                "net.ipv4.conf.eth0/1.forwarding",
                true,
                true,
                Some("net/ipv4/conf/eth0.1/forwarding"),
            ),
            (
                "of IPC",
                "kernel.shm_rmid_forced",
                true,
                true,
                Some("kernel/shm_rmid_forced"),
            ),
            ("semaphores", "kernel.sem", true, true, Some("kernel/sem")),
            (
                "queues",
                "fs.mqueue.msg_max",
                true,
                true,
                Some("fs/mqueue/msg_max"),
            ),
            (
                "the node's network",
                "net.core.somaxconn",
                false,
                true,
                None,
            ),
            ("the node's IPC", "kernel.msgmax", true, false, None),
            ("the node's kernel", "kernel.panic", true, true, None),
            ("the node's memory", "vm.swappiness", true, true, None),
            ("a way out", "net/../kernel/panic", true, true, None),
        ] {
            assert_eq!(
                sysctl(name, net, ipc).ok().as_deref(),
                expected,
                "case: {case}"
            );
        }
    }
}
