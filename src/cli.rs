//! The command line: every flag of `cox`, with the words that `--help` prints.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use cox_apiserver::auth::authorization::Mode;
use cox_apiserver::go_duration;
use cox_apiserver::services::cidr::Cidr;

/// Kubernetes in one small program, with Wasm components and OCI containers side by side in a Pod.
#[derive(Debug, Parser)]
#[command(name = "cox", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster on this machine: control plane and node; the default command
    Up(UpArgs),
    /// Start only the control plane; nodes join it with `cox agent`
    Server(ServerArgs),
    /// Start only a node and join it to a control plane
    Agent(AgentArgs),
    /// Load and list the images of a node
    #[command(subcommand)]
    Image(ImageCommand),
    /// Make a token by which a new node joins, and print the command for it
    Token(TokenArgs),
    /// Back up, restore, check and compact the cluster's store
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print a kubeconfig signed by the cluster's authority, for a node or for a user
    Kubeconfig(KubeconfigArgs),
    /// The container runtime process (started by `up` and `agent`)
    #[command(hide = true)]
    Shim {
        /// The runtime's configuration, as JSON
        #[arg(long)]
        config: PathBuf,
    },
    /// Holds the PID namespace that a Pod's containers share (started by the runtime)
    #[command(hide = true)]
    Pause,
    /// Compiles one Wasm file (started by the runtime)
    #[command(hide = true)]
    Compile {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// Where the cluster keeps its state, and how much it says.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct CommonArgs {
    /// Folder of the cluster's state [default: cox in the user's XDG data folder, /var/lib/cox for root]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Folder of sockets and sandbox state, best on a tmpfs [default: under /run/cox or $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print more: -v for decisions, -vv for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Where the API server listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListenArgs {
    /// Port of the API server; 0 picks a free one
    #[arg(long, default_value_t = 6443)]
    pub(crate) port: u16,
    /// Address that the API server listens on
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub(crate) bind: IpAddr,
    /// Address by which Pods and nodes reach the API server [default: the one that it listens on, or, when that is every
    /// address, the node's for `up` and the one of the default route for `server`]
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Further name or address that clients use for the API server; may be repeated
    #[arg(long = "tls-san", value_name = "NAME")]
    pub(crate) tls_sans: Vec<String>,
    /// Leave out the default StorageClass `local-path`, which keeps volumes on the nodes' own disks
    #[arg(long)]
    pub(crate) no_local_path: bool,
    /// Addresses for Services, one range or one of each family; kept from the first start on [default: 10.96.0.0/16; for `up` on
    /// a machine that runs Wasm alone 127.128.0.0/16, which needs no root, and fd00:10:96::/112 where Pods have IPv6 alone]
    #[arg(long = "service-cidr", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cidrs: Vec<Cidr>,
    /// Leave out a built-in part; may be repeated
    #[arg(long, value_name = "PART")]
    pub(crate) disable: Vec<Part>,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    #[command(flatten)]
    pub(crate) audit: AuditArgs,
    #[command(flatten)]
    pub(crate) oidc: OidcArgs,
    #[command(flatten)]
    pub(crate) auth: AuthArgs,
    /// Upstream's AdmissionConfiguration: what PodSecurity does where namespaces say nothing, and to whom it does not apply
    #[arg(long, value_name = "FILE")]
    pub(crate) admission_control_config_file: Option<PathBuf>,
}

/// Who else says who asks, and who decides what they may do.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuthArgs {
    /// Upstream's AuthenticationConfiguration: issuers of tokens with their claim mappings, and paths that need no credentials
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "oidc_issuer_url",
        conflicts_with = "anonymous_auth"
    )]
    pub(crate) authentication_config: Option<PathBuf>,
    /// Kubeconfig of a webhook that is asked about bearer tokens which nobody here knows
    #[arg(long, value_name = "FILE")]
    pub(crate) authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReviews sent to it
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    pub(crate) authentication_token_webhook_version: String,
    /// How long its answers are remembered
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = go_duration)]
    pub(crate) authentication_token_webhook_cache_ttl: Duration,
    /// Whether requests without credentials are let in, as user system:anonymous [default: for health and version only]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) anonymous_auth: Option<bool>,
    /// Audiences that tokens may be for, beside the cluster's own
    #[arg(long, value_name = "AUDIENCE", value_delimiter = ',')]
    pub(crate) api_audiences: Vec<String>,
    /// Authorizers, in the order in which they are asked
    #[arg(
        long,
        value_name = "MODE",
        value_delimiter = ',',
        default_value = "Node,RBAC"
    )]
    pub(crate) authorization_mode: Vec<Mode>,
    /// Upstream's AuthorizationConfiguration: authorizers with the settings of webhooks; read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "authorization_mode",
        conflicts_with = "authorization_webhook_config_file"
    )]
    pub(crate) authorization_config: Option<PathBuf>,
    /// Kubeconfig of the webhook of --authorization-mode=Webhook
    #[arg(long, value_name = "FILE")]
    pub(crate) authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews sent to it
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    pub(crate) authorization_webhook_version: String,
    /// How long it is remembered that it allows something
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = go_duration)]
    pub(crate) authorization_webhook_cache_authorized_ttl: Duration,
    /// How long it is remembered that it does not
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = go_duration)]
    pub(crate) authorization_webhook_cache_unauthorized_ttl: Duration,
}

/// Users of an OpenID Connect provider.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OidcArgs {
    /// Issuer of the ID tokens that are accepted
    #[arg(
        long,
        value_name = "URL",
        requires = "oidc_client_id",
        requires = "oidc_jwks_file"
    )]
    pub(crate) oidc_issuer_url: Option<String>,
    /// Audience that they must be for
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub(crate) oidc_client_id: Option<String>,
    /// The provider's public keys, a JSON Web Key Set; read again when a token names a new one
    #[arg(long, value_name = "FILE", requires = "oidc_issuer_url")]
    pub(crate) oidc_jwks_file: Option<PathBuf>,
    /// Claim that is the user's name
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub(crate) oidc_username_claim: String,
    /// What is put before the name; - for nothing [default: the issuer and #, nothing for `email`]
    #[arg(long, value_name = "TEXT")]
    pub(crate) oidc_username_prefix: Option<String>,
    /// Claim that lists the user's groups
    #[arg(long, value_name = "CLAIM")]
    pub(crate) oidc_groups_claim: Option<String>,
    /// What is put before each group
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) oidc_groups_prefix: String,
    /// Claim that must have a value; may be repeated
    #[arg(long = "oidc-required-claim", value_name = "CLAIM=VALUE")]
    pub(crate) oidc_required_claims: Vec<String>,
    /// Algorithms of signatures that are accepted
    #[arg(
        long,
        value_name = "ALG",
        value_delimiter = ',',
        default_value = "RS256"
    )]
    pub(crate) oidc_signing_algs: Vec<String>,
}

/// What is written down of requests.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AuditArgs {
    /// Upstream's audit policy: of which requests how much is written to the audit log
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// The audit log, one JSON event a line; - is standard output
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// MiB after which a new file is begun; 0 for never
    #[arg(long, value_name = "MIB", default_value_t = 100)]
    pub(crate) audit_log_maxsize: u64,
    /// Old files that are kept; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) audit_log_maxbackup: usize,
    /// Days that old files are kept; 0 for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub(crate) audit_log_maxage: u32,
}

/// Where the objects are kept.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct StorageArgs {
    /// Keep the objects in etcd at these URLs instead of the data folder; several servers with the same `pki` folder may share it
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) etcd_servers: Vec<String>,
    /// Authorities that sign the certificates of etcd's members
    #[arg(long, value_name = "FILE", requires = "etcd_servers")]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// Certificate shown to etcd
    #[arg(
        long,
        value_name = "FILE",
        requires = "etcd_cafile",
        requires = "etcd_keyfile"
    )]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub(crate) etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/registry",
        requires = "etcd_servers"
    )]
    pub(crate) etcd_prefix: String,
    /// Upstream's EncryptionConfiguration: what is encrypted where objects are kept, and with which keys
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_provider_config: Option<PathBuf>,
}

/// A built-in part that others may stand in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Cluster DNS and its Service
    Dns,
    /// Node addresses for Services of type LoadBalancer
    ServiceLb,
    /// Requests from outside: Ingresses, Gateways, and Services that sleep
    Ingress,
    /// The Gateway API's definitions, and what serves them
    GatewayApi,
}

/// What a node that joins can do beside running Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AgentPart {
    /// Take requests from outside for Ingresses; its user needs ClusterRole coxswain:gateway
    Ingress,
    /// The same for the Gateway API too
    GatewayApi,
}

/// Which addresses Pods have.
#[derive(Clone, Debug, Args)]
pub(crate) struct RangeArgs {
    /// Addresses of the Pods of all nodes, one range or one of each kind: nodes that say nothing of their own get a part, and
    /// packets between these addresses keep their source
    #[arg(
        long,
        value_name = "CIDR[,CIDR]",
        value_delimiter = ',',
        default_value = "10.64.0.0/10"
    )]
    pub(crate) cluster_cidr: Vec<String>,
    /// How large a node's part is; half of it is for Wasm Pods, half for those with a network namespace
    #[arg(long, default_value_t = 20, value_name = "BITS")]
    pub(crate) node_cidr_mask_size: u8,
    /// The same for IPv6
    #[arg(long, default_value_t = 64, value_name = "BITS")]
    pub(crate) node_cidr_mask_size_ipv6: u8,
}

impl RangeArgs {
    /// What nodes get.
    pub(crate) fn for_nodes(
        &self,
    ) -> Result<cox_controllers::NodeRanges, cox_controllers::NodeRangesError> {
        cox_controllers::NodeRanges::new(
            &self.cluster_cidr,
            self.node_cidr_mask_size,
            self.node_cidr_mask_size_ipv6,
        )
    }
}

/// How the node presents itself and what it may run.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// Name of the node [default: the machine's host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// Address by which the control plane reaches the node
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub(crate) node_ip: IpAddr,
    /// Addresses for the node's Pods: an IPv4 range, an IPv6 range, which takes root, or both; their first address is of the first
    /// range [default: 127.64.0.0/18,
    /// loopback addresses that need no root; 10.64.0.0/18 for root where there is a containerd]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub(crate) pod_cidr: Option<String>,
    #[command(flatten)]
    pub(crate) ranges: RangeArgs,
    /// How Pods reach Pods of other nodes, where these have addresses of their own
    #[arg(long, value_enum, default_value_t = NodeNetwork::Auto, value_name = "MODE")]
    pub(crate) node_network: NodeNetwork,
    /// UDP port of this node for --node-network wireguard; the other nodes are told
    #[arg(
        long,
        default_value_t = cox_network::WIREGUARD_PORT,
        value_parser = clap::value_parser!(u16).range(1..),
        value_name = "PORT"
    )]
    pub(crate) wireguard_port: u16,
    /// Unix socket of containerd, which runs OCI containers; without one the node runs Wasm alone
    #[arg(
        long,
        default_value = "/run/containerd/containerd.sock",
        value_name = "PATH"
    )]
    pub(crate) containerd_socket: PathBuf,
    /// Who makes the cgroups of Linux containers; auto: systemd where it is the machine's first process and cgroups are version 2
    #[arg(long, value_enum, default_value_t = CgroupDriver::Auto, value_name = "DRIVER")]
    pub(crate) cgroup_driver: CgroupDriver,
    /// How Services are brought to their Pods
    #[arg(long, value_enum, default_value_t = Proxy::Auto, value_name = "MODE")]
    pub(crate) proxy_mode: Proxy,
    /// Which Pod gets a connection, with --proxy-mode ipvs: a scheduler that the kernel has
    #[arg(
        long,
        default_value = "rr",
        value_parser = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"],
        value_name = "SCHEDULER"
    )]
    pub(crate) ipvs_scheduler: String,
    /// Answer ARP only for addresses of the interface that was asked, with --proxy-mode ipvs: for load balancers on the nodes' link
    #[arg(long)]
    pub(crate) ipvs_strict_arp: bool,
    /// Port of the node for Ingresses, opened with the first of them; 0 picks a free one [default: 80, where that cannot be had
    /// 8080, else a free one]
    #[arg(long, value_name = "PORT")]
    pub(crate) ingress_http_port: Option<u16>,
    /// The same with TLS [default: 443, 8443, or a free one]
    #[arg(long, value_name = "PORT")]
    pub(crate) ingress_https_port: Option<u16>,
    /// Names that end in a domain are asked of servers of its own, as example.org=10.0.0.1 or corp.internal=10.0.0.1:5353,10.0.0.2;
    /// may be repeated
    #[arg(long = "stub-domain", value_name = "DOMAIN=SERVER[,SERVER]")]
    pub(crate) stub_domains: Vec<cox_network::StubDomain>,
    /// Leave NetworkPolicies to somebody else
    #[arg(long)]
    pub(crate) no_network_policy: bool,
    /// The most Pods that the node runs
    #[arg(long, default_value_t = 500)]
    pub(crate) max_pods: u32,
    /// Upstream's CredentialProviderConfig (a file, or a folder of them): programs that are asked for registry credentials
    #[arg(
        long,
        value_name = "PATH",
        requires = "image_credential_provider_bin_dir"
    )]
    pub(crate) image_credential_provider_config: Option<PathBuf>,
    /// Folder of those programs
    #[arg(
        long,
        value_name = "DIR",
        requires = "image_credential_provider_config"
    )]
    pub(crate) image_credential_provider_bin_dir: Option<PathBuf>,
    /// Label of the node, as key=value; may be repeated
    #[arg(long = "node-label", value_name = "KEY=VALUE")]
    pub(crate) node_labels: Vec<String>,
    /// Taint that the node registers with, as key=value:Effect; may be repeated
    #[arg(long = "register-with-taint", value_name = "KEY=VALUE:EFFECT")]
    pub(crate) taints: Vec<String>,
    /// How a cloud knows the node
    #[arg(long, default_value = "", value_name = "ID")]
    pub(crate) provider_id: String,
    /// What Pods do not get, as cpu=200m or memory=256Mi; may be repeated
    #[arg(long = "reserved", value_name = "RESOURCE=QUANTITY")]
    pub(crate) reserved: Vec<String>,
    /// Below which the node is under pressure, as memory.available<100Mi or nodefs.available<10%; may be repeated, and replaces
    /// the defaults
    #[arg(long = "eviction-hard", value_name = "SIGNAL<QUANTITY")]
    pub(crate) eviction_hard: Vec<String>,
    /// As --eviction-hard, with the time for which it has to be met: memory.available<300Mi=90s; may be repeated
    #[arg(long = "eviction-soft", value_name = "SIGNAL<QUANTITY=TIME")]
    pub(crate) eviction_soft: Vec<String>,
    /// The longest grace, in seconds, of a Pod that a soft threshold takes away
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) eviction_max_pod_grace_period: u64,
    /// How long Pods of a priority and above get when the node stops, lower priorities first; may be repeated
    /// [default: 0=40 and 2000000000=15]
    #[arg(
        long = "shutdown-grace-period-by-pod-priority",
        value_name = "PRIORITY=SECONDS"
    )]
    pub(crate) shutdown: Vec<String>,
    /// Whether whole cores of guaranteed Pods are theirs alone; `static` needs --reserved cpu=...
    #[arg(long, value_enum, default_value_t = CpuPolicy::None, value_name = "POLICY")]
    pub(crate) cpu_manager_policy: CpuPolicy,
    /// The most processes of one Pod
    #[arg(long, value_name = "COUNT")]
    pub(crate) pod_max_pids: Option<i64>,
    /// Sysctl that Pods may set although it is not among the safe ones, as kernel.sem or net.core.*; may be repeated, or a list with
    /// commas
    #[arg(
        long = "allowed-unsafe-sysctls",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// Make no cgroups for Pods and their classes of service: Linux containers run where the runtime puts them
    #[arg(long)]
    pub(crate) no_cgroups_per_qos: bool,
    /// URL of further static Pods: one, or a list
    #[arg(long, value_name = "URL")]
    pub(crate) static_pod_url: Option<String>,
    /// Folder of static Pod manifests [default: manifests in the data folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) static_pods: Option<PathBuf>,
}

/// Who runs on which core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CpuPolicy {
    /// Everybody on all of them
    None,
    /// Whole cores of guaranteed Pods are theirs alone
    Static,
}

/// How Services are brought to their Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Proxy {
    /// In the kernel where Linux containers may run, else in user space
    Auto,
    /// By the kernel, through `nft` (needs root)
    Nftables,
    /// By the kernel, through `iptables-restore` (needs root)
    Iptables,
    /// By the kernel's virtual servers (IPVS; needs root)
    Ipvs,
    /// By this process
    Userspace,
    /// By somebody else
    None,
}

impl From<Proxy> for cox_network::ProxyMode {
    fn from(proxy: Proxy) -> Self {
        match proxy {
            Proxy::Auto => Self::Auto,
            Proxy::Nftables => Self::Nftables,
            Proxy::Iptables => Self::Iptables,
            Proxy::Ipvs => Self::Ipvs,
            Proxy::Userspace => Self::Userspace,
            Proxy::None => Self::None,
        }
    }
}

/// How Pods reach Pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NodeNetwork {
    /// By routes where nodes share a link, else through VXLAN
    Auto,
    /// By routes alone
    Routes,
    /// Always through VXLAN
    Vxlan,
    /// Always through WireGuard, so that nobody between nodes reads what Pods say (UDP port 51820; needs root)
    Wireguard,
    /// By somebody else
    None,
}

impl From<NodeNetwork> for cox_network::NodeNetwork {
    fn from(mode: NodeNetwork) -> Self {
        match mode {
            NodeNetwork::Auto => Self::Auto,
            NodeNetwork::Routes => Self::Routes,
            NodeNetwork::Vxlan => Self::Vxlan,
            NodeNetwork::Wireguard => Self::Wireguard,
            NodeNetwork::None => Self::None,
        }
    }
}

/// Who makes the cgroups of Linux containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CgroupDriver {
    Auto,
    Cgroupfs,
    Systemd,
}

impl From<CgroupDriver> for cox_runtime_shim::CgroupDriver {
    fn from(driver: CgroupDriver) -> Self {
        match driver {
            CgroupDriver::Auto => Self::Auto,
            CgroupDriver::Cgroupfs => Self::Cgroupfs,
            CgroupDriver::Systemd => Self::Systemd,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Folders or files to run: `.wasm` files become images (NAME.wasm is cox.local/NAME:latest), `.tar` archives of images are
    /// loaded, manifests are applied
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Leave the user's kubeconfig alone; <data-dir>/kubeconfig is written all the same
    #[arg(long)]
    pub(crate) no_merge_kubeconfig: bool,
    /// Do not follow the logs of what was applied
    #[arg(long)]
    pub(crate) no_follow: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) ranges: RangeArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct AgentArgs {
    /// URL of the API server, for the first start with a token
    #[arg(long, value_name = "URL", requires = "token")]
    pub(crate) server: Option<String>,
    /// The token that `cox token` printed; once the node has joined it is not needed any more
    #[arg(long, requires = "server", conflicts_with = "kubeconfig")]
    pub(crate) token: Option<String>,
    /// Certificate authority of the API server, for a token that does not name it
    #[arg(long, value_name = "FILE", requires = "token")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The node's credentials: a kubeconfig made on the control plane with `cox kubeconfig --node NAME`
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Take requests from outside on this node; its user has to be let by a ClusterRoleBinding to coxswain:gateway
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub(crate) enable: Vec<AgentPart>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Load `.wasm` files and archives (OCI layout, `docker save`) as images of the running node
    Load {
        /// The files; NAME.wasm becomes cox.local/NAME:latest, archives ending in .tar have names of their own
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Name of the image, when a single file is loaded
        #[arg(long, value_name = "REF")]
        name: Option<String>,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Fetch images from their registries, as the node would for a Pod
    Pull {
        /// The images, such as docker.io/library/busybox:latest
        #[arg(required = true, value_name = "REF")]
        images: Vec<String>,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// List the images of the running node
    Ls {
        #[command(flatten)]
        common: CommonArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Write all objects of the running cluster to a file
    Backup {
        /// The file [default: one of its own in the data folder's `backups`]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        args: StoreArgs,
    },
    /// Put a backup in the place of the stopped cluster's store, which is kept beside it
    Restore {
        /// The backup [default: the newest in the data folder's `backups`]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        args: StoreArgs,
    },
    /// Read the stopped cluster's store from the first record to the last
    Check {
        #[command(flatten)]
        args: StoreArgs,
    },
    /// Write the stopped cluster's store anew, without what it no longer needs
    Compact {
        #[command(flatten)]
        args: StoreArgs,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// The encryption configuration that the server is started with, if it is
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_provider_config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TokenArgs {
    /// Hours until the token ends
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    pub(crate) ttl: u32,
    /// URL by which nodes reach the API server [default: that of the last start]
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct KubeconfigArgs {
    /// Credentials for the node of this name
    #[arg(long, value_name = "NAME", conflicts_with = "user")]
    pub(crate) node: Option<String>,
    /// Credentials for the user of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Group of the user; may be repeated
    #[arg(long = "group", value_name = "NAME", requires = "user")]
    pub(crate) groups: Vec<String>,
    /// URL of the API server [default: that of the last start]
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
