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
    /// State of sandboxes and containers; on tmpfs where possible, since a reboot ends them all.
    pub state_dir: PathBuf,
    /// Images and compiled code.
    pub root_dir: PathBuf,
    /// Unix socket of containerd, which runs the OCI containers. Without one that answers there are Wasm containers only.
    #[serde(default = "default_containerd_socket")]
    pub containerd_socket: PathBuf,
    /// Addresses of Pods in the virtual network.
    #[serde(default = "default_pod_cidr")]
    pub pod_cidr: String,
    /// The ranges of all nodes of the cluster: loopback addresses in there are Pods, all others belong to the host.
    #[serde(default = "default_cluster_pod_cidrs")]
    pub cluster_pod_cidrs: Vec<String>,
    /// Addresses on the host's own loopback that Pods may connect to all the same, such as the API server's.
    #[serde(default)]
    pub host_services: Vec<SocketAddr>,
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
    /// Threads that run guests; 0 means one per core.
    #[serde(default)]
    pub guest_threads: usize,
    /// Requests that all wasi:http containers together may have in flight.
    #[serde(default = "default_http_instances_max")]
    pub http_instances_max: u32,
    /// Largest accepted .wasm file.
    #[serde(default = "default_wasm_bytes_max")]
    pub wasm_bytes_max: u64,
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
            state_dir: dir.join("state"),
            root_dir: dir.join("root"),
            containerd_socket: default_containerd_socket(),
            pod_cidr: default_pod_cidr(),
            cluster_pod_cidrs: default_cluster_pod_cidrs(),
            host_services: Vec::new(),
            registries: Registries::default(),
            compile_command: Vec::new(),
            compile_limits: CompileLimits::default(),
            guest_threads: 0,
            http_instances_max: default_http_instances_max(),
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

fn default_pod_cidr() -> String {
    "127.64.0.0/18".into()
}

fn default_cluster_pod_cidrs() -> Vec<String> {
    vec!["127.64.0.0/10".into()]
}

fn default_http_instances_max() -> u32 {
    1000
}

fn default_wasm_bytes_max() -> u64 {
    512 << 20
}
