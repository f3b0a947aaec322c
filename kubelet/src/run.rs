//! Puts a kubelet together and runs it: server, runtime events, Pod sources, node, log rotation.

use crate::affected::Affected;
use crate::allocations::Allocations;
use crate::cgroups::plan::Settings;
use crate::cgroups::{self, Cgroups};
use crate::claims::Claims;
use crate::config::{Config, ServingPair};
use crate::cpus::{CpuError, CpuManager};
use crate::cri::client::Runtime;
use crate::cri::images::Images;
use crate::cri::sandbox_config::host_resolv_conf;
use crate::csi::Csi;
use crate::csi::plugins::Plugins;
use crate::devices::Devices;
use crate::dispatch::Dispatcher;
use crate::eviction::{EvictionKeeper, Pressure};
use crate::gc::ImageKeeper;
use crate::keep::Keeper;
use crate::logs::keeper::LogKeeper;
use crate::node::NodeKeeper;
use crate::node::capacity::Machine;
use crate::pod::fields::NodeAllocatable;
use crate::pod_resources::PodResources;
use crate::probes::metrics::ProbeMetrics;
use crate::server::tls::Serving;
use crate::server::{Server, ServerError};
use crate::volumes::{Issuers, Places, Volumes};
use crate::worker::shared::{ClientHandle, Shared};
use cox_client::events::{EventType, Recorder};
use cox_client::tasks::TaskScope;
use cox_client::{Deps, Informer};
use k8s_openapi::api::core::v1::{EventSource, Node, ObjectReference, Pod};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Writes to the API server that may be under way at the same time.
const PARALLEL_WRITES: usize = 32;
/// How long the tasks get to end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// The kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A folder that it needs cannot be made.
    #[error("the kubelet's folder {} cannot be made", .dir.display())]
    Folder {
        /// Which.
        dir: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Cores cannot be given away as wished.
    #[error("the static CPU policy cannot be kept")]
    Cpus(#[source] CpuError),
    /// Its server cannot start.
    #[error("the kubelet's server cannot start")]
    Server(#[source] ServerError),
}

/// Reaches a kubelet that runs.
#[derive(Clone, Debug)]
pub struct Handle {
    dispatcher: Arc<Dispatcher>,
    addr: watch::Receiver<Option<std::net::SocketAddr>>,
}

impl Handle {
    /// Ends all Pods by their grace, for a shutdown of the node, and waits for the last one; their objects stay, and the next
    /// start runs them again. Bound the wait with a timeout; the Pods go on ending all the same.
    pub async fn stop_pods(&self) {
        self.dispatcher.stop_pods().await;
    }

    /// How many Pods have a worker.
    #[must_use]
    pub fn pods_len(&self) -> usize {
        self.dispatcher.pods().len()
    }

    /// Where the server listens; waits until it does. `None`: the kubelet ended before.
    pub async fn addr(&self) -> Option<std::net::SocketAddr> {
        let mut addr = self.addr.clone();
        addr.wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|addr| *addr)
    }
}

/// Makes a kubelet: a handle, and the future that runs it until `cancel`. Must be called inside a tokio runtime.
#[allow(clippy::too_many_lines, reason = "wiring: one part after the other")]
pub fn prepare(
    config: Config,
    deps: Deps,
    cancel: &CancellationToken,
) -> (
    Handle,
    impl Future<Output = Result<(), RunError>> + Send + use<>,
) {
    let cancel = cancel.clone();
    if let Err(error) = std::fs::create_dir_all(&config.data_dir) {
        // Said again, and with all there is to say, when the kubelet runs.
        tracing::debug!(%error, "The kubelet's folder cannot be made");
    }
    let machine = Machine::read(&config.data_dir);
    let runtime = Runtime::at(&config.cri_socket, config.runtime_timeout);
    let allocatable = machine.allocatable(&config.reserved);
    let source = EventSource {
        component: Some("kubelet".into()),
        host: Some(config.node_name.clone()),
    };
    let cgroups = Arc::new(open_cgroups(&config, &machine, allocatable));
    let cpus = open_cpus(&config);
    let node: Informer<Node> = deps
        .informers
        .of_selected(&format!("metadata.name={}", config.node_name));
    let csi = Csi::new(&config.data_dir, &config.node_name, node.clone());
    let in_use = csi.in_use();
    let affected = Arc::new(Affected::default());
    let devices = Devices::open(&config.data_dir, affected.clone());
    let claims = Claims::open(&config.data_dir, deps.client.clone(), affected.clone());
    let plugins = Plugins::new(
        csi.clone(),
        devices.clone(),
        claims.clone(),
        &config.data_dir,
        deps.client.clone(),
        &cancel,
    );
    let keeper = Keeper::open(config.data_dir.join("kept"), &config.node_key);
    let shared = Arc::new(Shared {
        images: Images::new(
            runtime.clone(),
            config.parallel_pulls,
            Arc::clone(&config.credentials),
        ),
        runtime: runtime.clone(),
        volumes: Volumes::new(
            Places {
                pods: config.data_dir.join("pods"),
                memory: config.memory_dir.clone(),
                local: config.local_path_dir(),
                helpers: config.mount_helpers.clone(),
            },
            csi,
            deps.client.clone(),
            Issuers::new(&deps.client, &deps.clock, &config.node_name),
            allocatable,
            keeper.offline(),
            &cancel,
        ),
        cgroups,
        devices,
        claims,
        affected,
        allocations: Allocations::default(),
        cpus: cpus.as_ref().ok().cloned().flatten(),
        huge_pages: machine.huge_pages.clone(),
        services: deps.informers.of(),
        runtime_classes: deps.informers.of(),
        recorder: Recorder::on_host(deps.client.clone(), source, deps.clock.clone(), &cancel),
        starts: Semaphore::new(config.parallel_starts.max(1)),
        writes: Semaphore::new(PARALLEL_WRITES),
        runtime_name: OnceLock::new(),
        read_only_below: false.into(),
        resolv_conf: host_resolv_conf(Path::new("/etc/resolv.conf")),
        allocatable,
        node,
        probe_metrics: ProbeMetrics::default(),
        keeper: Arc::new(keeper),
        log_rotations: crate::files::Writes::default(),
        clock: deps.clock.clone(),
        client: ClientHandle(deps.client.clone()),
        config,
    });
    let pods = deps
        .informers
        .of_selected::<Pod>(&format!("spec.nodeName={}", shared.config.node_name));
    let dispatcher = Dispatcher::new(shared.clone(), pods, &cancel);
    let (addr_tx, addr_rx) = watch::channel(None);
    let handle = Handle {
        dispatcher: dispatcher.clone(),
        addr: addr_rx,
    };
    let parts = Parts {
        shared,
        dispatcher,
        machine,
        runtime,
        deps,
        plugins,
        in_use,
        cpus: cpus.map(drop),
        addr_tx,
    };
    (handle, run_parts(parts, cancel))
}

struct Parts {
    shared: Arc<Shared>,
    dispatcher: Arc<Dispatcher>,
    machine: Machine,
    runtime: Runtime,
    deps: Deps,
    plugins: Plugins,
    in_use: watch::Receiver<BTreeSet<String>>,
    cpus: Result<(), CpuError>,
    addr_tx: watch::Sender<Option<std::net::SocketAddr>>,
}

#[allow(clippy::too_many_lines, reason = "wiring: one part after the other")]
async fn run_parts(parts: Parts, cancel: CancellationToken) -> Result<(), RunError> {
    let Parts {
        shared,
        dispatcher,
        machine,
        runtime,
        deps,
        plugins,
        in_use,
        cpus,
        addr_tx,
    } = parts;
    cpus.map_err(RunError::Cpus)?;
    let config = &shared.config;
    for dir in [&config.data_dir, &config.log_dir] {
        std::fs::create_dir_all(dir).map_err(|source| RunError::Folder {
            dir: dir.clone(),
            source,
        })?;
    }
    let server = Server::bind(
        config,
        dispatcher.clone(),
        deps.clock.clone(),
        deps.client.clone(),
        &cancel,
    )
    .await
    .map_err(RunError::Server)?;
    let addr = server.addr();
    addr_tx.send_replace(Some(addr));
    tell_lacks(&shared);
    let scope = TaskScope::new("kubelet", &cancel);
    let token = scope.cancellation().clone();
    scope.spawn(
        "runtime-events",
        dispatcher.clone().run_events(token.clone()),
    );
    scope.spawn("resizes", dispatcher.clone().run_grants(token.clone()));
    scope.spawn("health", dispatcher.clone().run_health(token.clone()));
    scope.spawn("pod-sources", dispatcher.clone().run_sources(token.clone()));
    if let Some(updates) = config.serving_updates.clone() {
        scope.spawn(
            "serving-certificate",
            follow_certificate(updates, server.certificate(), token.clone()),
        );
    }
    scope.spawn("server", server.run(token.clone()));
    let logs = LogKeeper {
        shared: shared.clone(),
    };
    scope.spawn(
        "kept-pods",
        shared.keeper.clone().run(deps.clock.clone(), token.clone()),
    );
    scope.spawn("plugins", plugins.run(token.clone()));
    scope.spawn("devices", shared.devices.clone().run(token.clone()));
    let node_name = config.node_name.clone();
    scope.spawn(
        "claims",
        shared.claims.clone().run(node_name, token.clone()),
    );
    let resources = PodResources {
        shared: shared.clone(),
        dispatcher: dispatcher.clone(),
    };
    scope.spawn("pod-resources", resources.run(token.clone()));
    scope.spawn("log-rotation", logs.run(token.clone()));
    let images = Arc::new(ImageKeeper::new(shared.clone()));
    scope.spawn("image-gc", images.clone().run(token.clone()));
    let (pressure, pressure_rx) = watch::channel(Pressure::default());
    let eviction = EvictionKeeper {
        shared: shared.clone(),
        dispatcher: dispatcher.clone(),
        images,
        pressure,
    };
    scope.spawn("eviction", eviction.run(token.clone()));
    let node = NodeKeeper {
        pressure: pressure_rx,
        in_use,
        devices: shared.devices.counts(),
        config: config.clone(),
        client: deps.client.clone(),
        runtime,
        clock: deps.clock.clone(),
        port: addr.port(),
        machine,
    };
    let runtime_up = dispatcher.runtime_up();
    scope.spawn("node", async move {
        Box::pin(node.run(runtime_up, token)).await
    });
    cancel.cancelled().await;
    let late = scope.shutdown(SHUTDOWN).await;
    if !late.is_empty() {
        tracing::warn!(?late, "Parts of the kubelet ended late");
    }
    Ok(())
}

/// The cgroups of Pods. Without them containers still run, and what is not kept then is said.
fn open_cgroups(config: &Config, machine: &Machine, allocatable: NodeAllocatable) -> Cgroups {
    let Some(root) = &config.cgroup_root else {
        return Cgroups::off();
    };
    let reserved = config.reserved.get("memory").copied().unwrap_or(0);
    let memory = i64::try_from(machine.memory_bytes).unwrap_or(i64::MAX);
    let all = Settings {
        cpu_shares: cgroups::plan::shares(allocatable.cpu_millis),
        memory_bytes: (reserved > 0).then(|| (memory - reserved).max(0)),
        ..Settings::default()
    };
    Cgroups::on(root, &config.cgroup_driver, config.pids_per_pod, &all).unwrap_or_else(|error| {
        tracing::error!(%error, "Pods get no cgroups of their own: only the limits of single containers are kept");
        Cgroups::off()
    })
}

fn open_cpus(config: &Config) -> Result<Option<Arc<CpuManager>>, CpuError> {
    if !config.static_cpus {
        return Ok(None);
    }
    let reserved = config.reserved.get("cpu").copied().unwrap_or(0);
    let cpus = CpuManager::open(&config.data_dir, &CpuManager::cores(), reserved)?;
    Ok(Some(Arc::new(cpus)))
}

/// Tells what this machine cannot do.
fn tell_lacks(shared: &Shared) {
    let node = &shared.config.node_name;
    for controller in shared.cgroups.missing() {
        tracing::warn!(controller, "The kernel lacks a cgroup controller");
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            api_version: Some("v1".to_owned()),
            name: Some(node.clone()),
            uid: Some(node.clone()),
            ..ObjectReference::default()
        };
        let message =
            format!("the kernel has no cgroup controller {controller}: its limits are not kept");
        shared.recorder.event(
            &about,
            EventType::Warning,
            "MissingCgroupController",
            message,
        );
    }
}

/// Shows each newer certificate.
async fn follow_certificate(
    mut updates: watch::Receiver<ServingPair>,
    serving: Arc<Serving>,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            // A change that is missed here is seen by the next call.
            changed = updates.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
        let pair = updates.borrow_and_update().clone();
        match serving.replace(&pair.certificate_pem, &pair.key_pem) {
            Ok(()) => tracing::info!("Serving certificate was replaced"),
            Err(error) => tracing::error!(%error, "New serving certificate cannot be used"),
        }
    }
}

/// Runs a kubelet until `cancel`. Pods go on: the runtime keeps them, and the next kubelet takes them over.
pub async fn run(config: Config, deps: Deps, cancel: CancellationToken) -> Result<(), RunError> {
    let (_handle, running) = prepare(config, deps, &cancel);
    running.await
}
