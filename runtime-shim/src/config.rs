//! What the shim is told when it starts: paths, the pod network's range, registries, and how to start the compiler.
//!
//! Nothing in the shim reads the environment: whoever starts it writes this down as JSON (`cox shim --config FILE`).

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Configuration of one shim process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Unix socket of the CRI server.
    pub socket: PathBuf,
    /// Unix socket of the image door (`PUT /images`, `GET /images`).
    pub images_socket: PathBuf,
    /// Where kubelets bring the clients of exec, attach and port-forward; port 0 picks one.
    #[serde(default = "default_streaming_addr")]
    pub streaming_addr: SocketAddr,
    /// State of sandboxes and containers; on tmpfs where possible, since a reboot ends them all.
    pub state_dir: PathBuf,
    /// Images and compiled code.
    pub root_dir: PathBuf,
    /// Unix socket of containerd, which runs the OCI containers. Without one that answers there are Wasm containers only.
    #[serde(default = "default_containerd_socket")]
    pub containerd_socket: PathBuf,
    /// Who makes the cgroups of OCI containers.
    #[serde(default)]
    pub cgroup_driver: CgroupDriver,
    /// Addresses of Pods: an IPv4 range, or one of IPv6, as `pod_cidr_v6` has it, for Pods with IPv6 addresses alone.
    #[serde(default = "default_pod_cidr")]
    pub pod_cidr: String,
    /// IPv6 addresses, at most 96 bits of network: each Pod has one beside its IPv4 address, and ending in it. In the virtual network
    /// they take root's rights; without them Pods there have IPv4 alone.
    #[serde(default)]
    pub pod_cidr_v6: Option<String>,
    /// Whether the IPv6 address is a Pod's first one.
    #[serde(default)]
    pub ipv6_first: bool,
    /// The ranges of all nodes of the cluster, of both kinds: loopback addresses in there are Pods, all others belong to the host, and
    /// what goes there keeps its source.
    #[serde(default = "default_cluster_pod_cidrs")]
    pub cluster_pod_cidrs: Vec<String>,
    /// Addresses on the host's own loopback that Pods may connect to all the same, such as the API server's.
    #[serde(default)]
    pub host_services: Vec<SocketAddr>,
    /// Where the node's proxy writes what it knows of Services; none: there are no Services.
    #[serde(default)]
    pub services_file: Option<PathBuf>,
    /// Where it writes NetworkPolicies; none: there are none.
    #[serde(default)]
    pub policies_file: Option<PathBuf>,
    /// How Pods with a network namespace are made and connected.
    #[serde(default)]
    pub network: Network,
    /// The command that starts [`crate::pause_main`]. Empty: Pods that share a PID namespace are refused.
    #[serde(default)]
    pub pause_command: Vec<std::ffi::OsString>,
    /// PEM files of certificate authorities that guests' HTTPS clients trust besides the system's, such as the cluster's own.
    #[serde(default)]
    pub tls_ca_files: Vec<PathBuf>,
    /// How registries are reached.
    #[serde(default)]
    pub registries: Registries,
    /// The command that starts [`crate::compile_main`]; the arguments that it needs are appended. Empty: compile inside this
    /// process, which only a test of something else should want.
    #[serde(default)]
    pub compile_command: Vec<std::ffi::OsString>,
    /// Bounds of one compilation.
    #[serde(default)]
    pub compile_limits: CompileLimits,
    /// What a container's log may take between two rotations; beyond, its guest is slowed down to a trickle. 0 means any amount.
    #[serde(default = "default_log_burst_bytes")]
    pub log_burst_bytes: u64,
    /// Threads that run guests; 0 means one per core.
    #[serde(default)]
    pub guest_threads: usize,
    /// Requests that all wasi:http containers together may have in flight.
    #[serde(default = "default_http_instances_max")]
    pub http_instances_max: u32,
    /// Runs components of WASI 0.3, which is experimental, in every Pod; without it in those alone that ask for it by the annotation
    /// `coxswain.dev/wasi-0.3: "true"`.
    #[serde(default)]
    pub wasi_03: bool,
    /// Largest accepted .wasm file.
    #[serde(default = "default_wasm_bytes_max")]
    pub wasm_bytes_max: u64,
}

/// Who makes the cgroups of OCI containers. Kubelets are told, and may ask otherwise: a Pod's parent that is a slice is systemd's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where it is the machine's first process and owns a unified hierarchy, as it wants to be its only writer.
    #[default]
    Auto,
    /// runc writes into the file system itself.
    Cgroupfs,
    /// runc asks systemd for a scope.
    Systemd,
}

impl CgroupDriver {
    /// Whether it is systemd on this machine.
    #[must_use]
    pub fn is_systemd(self) -> bool {
        let exists = |path| std::path::Path::new(path).exists();
        match self {
            Self::Auto => {
                exists("/run/systemd/system") && exists("/sys/fs/cgroup/cgroup.controllers")
            }
            Self::Cgroupfs => false,
            Self::Systemd => true,
        }
    }
}

/// How Pods with a network namespace are made and connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Whether they are made at all.
    pub netns: NetnsUse,
    /// The built-in network's bridge.
    pub bridge: String,
    /// Addresses behind the bridge. Without it `pod_cidr` is split: its lower half is for virtual Pods, its upper half for the
    /// bridge; a `pod_cidr` of loopback addresses stays whole, and the bridge has the same range of 10.0.0.0/8.
    pub bridge_cidr: Option<String>,
    /// Where a CNI configuration is looked for; one that is there replaces the built-in network.
    pub cni_conf_dir: PathBuf,
    /// Where its plugins are looked for.
    pub cni_bin_dirs: Vec<PathBuf>,
}

/// Whether Pods get network namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetnsUse {
    /// Where this process has the rights for it.
    #[default]
    Auto,
    /// All Pods are in the virtual network; those that cannot be are refused.
    Never,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            netns: NetnsUse::Auto,
            bridge: "cox0".into(),
            bridge_cidr: None,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

/// Bounds of one compilation; beyond them it is killed and the image refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompileLimits {
    /// Address space of the compiler process.
    pub memory_bytes: u64,
    /// CPU seconds and, twice that, seconds of the wall clock.
    pub cpu_secs: u64,
    /// Compilations at the same time.
    pub parallel: usize,
}

/// How registries are reached.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// `host[:port]` spoken to over plain http.
    pub plain_http: Vec<String>,
    /// Mirrors by registry host, tried in order before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// PEM files of further certificate authorities to trust.
    pub ca_files: Vec<PathBuf>,
}

/// Other places of one registry's images.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// The registry as images name it, such as `docker.io`.
    pub registry: String,
    /// `host[:port]` of the mirrors.
    pub hosts: Vec<String>,
}

impl Config {
    /// A configuration with all sockets and folders below `dir`.
    #[must_use]
    pub fn below(dir: &std::path::Path) -> Self {
        Self {
            socket: dir.join("cri.sock"),
            images_socket: dir.join("images.sock"),
            streaming_addr: default_streaming_addr(),
            state_dir: dir.join("state"),
            root_dir: dir.join("root"),
            containerd_socket: default_containerd_socket(),
            cgroup_driver: CgroupDriver::default(),
            pod_cidr: default_pod_cidr(),
            pod_cidr_v6: None,
            ipv6_first: false,
            cluster_pod_cidrs: default_cluster_pod_cidrs(),
            host_services: Vec::new(),
            services_file: None,
            policies_file: None,
            network: Network::default(),
            pause_command: Vec::new(),
            tls_ca_files: Vec::new(),
            registries: Registries::default(),
            compile_command: Vec::new(),
            compile_limits: CompileLimits::default(),
            log_burst_bytes: default_log_burst_bytes(),
            guest_threads: 0,
            http_instances_max: default_http_instances_max(),
            wasi_03: false,
            wasm_bytes_max: default_wasm_bytes_max(),
        }
    }
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 4 << 30,
            cpu_secs: 300,
            parallel: 2,
        }
    }
}

fn default_containerd_socket() -> PathBuf {
    "/run/containerd/containerd.sock".into()
}

fn default_streaming_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn default_pod_cidr() -> String {
    "127.64.0.0/18".into()
}

fn default_cluster_pod_cidrs() -> Vec<String> {
    vec!["127.64.0.0/10".into(), "10.64.0.0/10".into()]
}

fn default_http_instances_max() -> u32 {
    1000
}

/// With the five files that kubelets keep, less than 200 MiB per container.
fn default_log_burst_bytes() -> u64 {
    32 << 20
}

fn default_wasm_bytes_max() -> u64 {
    512 << 20
}
