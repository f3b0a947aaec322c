//! What a kubelet is told at its start. No environment, no globals: a test starts ten of them in one process.

use crate::cgroups::Driver;
use crate::eviction::thresholds::{self, Threshold};
use crate::resources::Amounts;
use crate::shutdown;
use crate::sysctls::Allowed;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A serving certificate and its key, PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServingPair {
    /// The chain.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl std::fmt::Debug for ServingPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServingPair")
    }
}

/// Whoever holds network policies on this node.
pub trait Isolation: std::fmt::Debug + Send + Sync {
    /// Waits until the policies hold for a Pod that is going to start with these addresses; not for ever.
    fn isolate<'a>(&'a self, pod: &'a Pod, ips: &'a [IpAddr]) -> BoxFuture<'a, ()>;
}

/// Configuration of one kubelet.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// Address under which the node is known (InternalIP), and the host IP of its Pods.
    pub node_ip: IpAddr,
    /// Holds `pods/UID/volumes`, as upstream's `/var/lib/kubelet`.
    pub data_dir: PathBuf,
    /// Where secrets and tokens of Pods are: a tmpfs is mounted here, unless the folder is on one already or nothing can be mounted.
    pub memory_dir: PathBuf,
    /// The key that seals what is kept of Pods; made when it is missing. Its place is the operator's choice: a file beside the data,
    /// or one that a TPM or systemd's credentials put there.
    pub node_key: PathBuf,
    /// Container logs: `NAMESPACE_NAME_UID/CONTAINER/ATTEMPT.log`; upstream's is `/var/log/pods`.
    pub log_dir: PathBuf,
    /// The runtime's CRI socket.
    pub cri_socket: PathBuf,
    /// Where the HTTPS server listens; port 0 picks one. The port is published in the node status.
    pub listen: SocketAddr,
    /// Newer serving certificates than the first one, as they are made.
    pub serving_updates: Option<tokio::sync::watch::Receiver<ServingPair>>,
    /// Serving certificate chain, PEM.
    pub serving_cert_pem: String,
    /// Key of the serving certificate, PEM.
    pub serving_key_pem: String,
    /// Certificate authority of the clients that may ask the kubelet, PEM.
    pub client_ca_pem: String,
    /// Folder of manifests that run without the API server; `None`: no static Pods.
    pub static_pod_dir: Option<PathBuf>,
    /// Pod addresses of this node, at most one range of each kind; published as the node's podCIDRs if it has none.
    pub pod_cidrs: Vec<String>,
    /// Where static Pods are fetched from beside the folder: a Pod or a list of them, over HTTP.
    pub static_pod_url: Option<String>,
    /// Asked before the first container of a Pod starts; `None`: nobody here holds network policies.
    pub isolation: Option<std::sync::Arc<dyn Isolation>>,
    /// How many Pods the node takes.
    pub max_pods: u32,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints given to the node when it registers: `key=value:Effect`.
    pub taints: Vec<String>,
    /// Name servers of Pods with dnsPolicy ClusterFirst; empty: the host's resolver.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// How many sandboxes and containers may be starting at the same time.
    pub parallel_starts: usize,
    /// How many images may be pulled at the same time.
    pub parallel_pulls: usize,
    /// How long a call to the runtime may take, pulls and graceful stops apart.
    pub runtime_timeout: Duration,
    /// A container log is rotated when it is larger.
    pub log_size_max: u64,
    /// How many files of a container's log are kept, the one being written included.
    pub log_files_max: usize,
    /// Credentials for registries beside those of pull secrets.
    pub credentials: std::sync::Arc<crate::credentials::NodeCredentials>,
    /// Below which the node frees disk or fails Pods; the first one that is met counts.
    pub eviction: Vec<Threshold>,
    /// Folders in which programs such as `mount.nfs` are looked for.
    pub mount_helpers: Vec<PathBuf>,
    /// The longest grace of a Pod that a soft threshold takes away.
    pub eviction_max_grace: Duration,
    /// The order and the times in which Pods end when the node stops.
    pub shutdown: Vec<shutdown::Group>,
    /// Where cgroups are mounted (`/sys/fs/cgroup`); `None`: no cgroups are made for Pods and their classes.
    pub cgroup_root: Option<PathBuf>,
    /// Who makes them.
    pub cgroup_driver: Driver,
    /// Whole cores of guaranteed Pods are theirs alone.
    pub static_cpus: bool,
    /// The most processes of one Pod.
    pub pids_per_pod: Option<i64>,
    /// Sysctls that Pods may set beside the safe ones.
    pub unsafe_sysctls: Allowed,
    /// What Pods do not get, because the kubelet, the runtime and the system need it.
    pub reserved: Amounts,
    /// Unused images are removed when their disk is used beyond this share, in percent,
    pub image_gc_high_percent: u8,
    /// until it is used to this share.
    pub image_gc_low_percent: u8,
    /// `spec.providerID` of the Node; empty: none.
    pub provider_id: String,
}

impl Config {
    /// Folders of persistent volumes that live on this node.
    #[must_use]
    pub fn local_path_dir(&self) -> PathBuf {
        self.data_dir.join("local-path")
    }

    /// The defaults for everything that has one.
    #[must_use]
    pub fn new(node_name: &str, node_ip: IpAddr, data_dir: PathBuf, cri_socket: PathBuf) -> Self {
        Self {
            node_name: node_name.to_owned(),
            node_ip,
            node_key: data_dir.join("keys/node.key"),
            log_dir: data_dir.join("logs"),
            memory_dir: data_dir.join("memory"),
            data_dir,
            cri_socket,
            listen: SocketAddr::new(node_ip, 10250),
            serving_updates: None,
            serving_cert_pem: String::new(),
            serving_key_pem: String::new(),
            client_ca_pem: String::new(),
            static_pod_dir: None,
            pod_cidrs: Vec::new(),
            static_pod_url: None,
            max_pods: 500,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            parallel_starts: 16,
            parallel_pulls: 4,
            runtime_timeout: Duration::from_secs(120),
            log_size_max: 10 << 20,
            log_files_max: 5,
            credentials: std::sync::Arc::default(),
            isolation: None,
            eviction: thresholds::defaults(),
            mount_helpers: ["/sbin", "/usr/sbin", "/usr/local/sbin"]
                .map(PathBuf::from)
                .to_vec(),
            eviction_max_grace: Duration::from_secs(30),
            shutdown: shutdown::defaults(),
            cgroup_root: None,
            cgroup_driver: Driver::default(),
            static_cpus: false,
            pids_per_pod: None,
            unsafe_sysctls: Allowed::default(),
            reserved: Amounts::new(),
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            provider_id: String::new(),
        }
    }
}
