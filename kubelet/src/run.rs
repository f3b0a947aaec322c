//! Puts a kubelet together and runs it: server, runtime events, Pod sources, node, log rotation.

use crate::config::Config;
use crate::cri::client::Runtime;
use crate::cri::images::Images;
use crate::cri::sandbox_config::host_resolv_conf;
use crate::dispatch::Dispatcher;
use crate::eviction::{EvictionKeeper, Pressure};
use crate::gc::ImageKeeper;
use crate::keep::Keeper;
use crate::logs::keeper::LogKeeper;
use crate::node::NodeKeeper;
use crate::node::capacity::Machine;
use crate::probes::metrics::ProbeMetrics;
use crate::server::{Server, ServerError};
use crate::volumes::Volumes;
use crate::worker::shared::{ClientHandle, Shared};
use cox_client::Deps;
use cox_client::events::Recorder;
use cox_client::tasks::TaskScope;
use k8s_openapi::api::core::v1::{EventSource, Pod};
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
pub fn prepare(
    config: Config,
    deps: Deps,
    cancel: &CancellationToken,
) -> (
    Handle,
    impl Future<Output = Result<(), RunError>> + Send + use<>,
) {
    let cancel = cancel.clone();
    let machine = Machine::read(&config.data_dir);
    let runtime = Runtime::at(&config.cri_socket, config.runtime_timeout);
    let allocatable = machine.allocatable(&config.reserved);
    let source = EventSource {
        component: Some("kubelet".into()),
        host: Some(config.node_name.clone()),
    };
    let shared = Arc::new(Shared {
        images: Images::new(
            runtime.clone(),
            config.parallel_pulls,
            Arc::clone(&config.credentials),
        ),
        runtime: runtime.clone(),
        volumes: Volumes::new(
            config.data_dir.join("pods"),
            config.local_path_dir(),
            deps.client.clone(),
            deps.clock.clone(),
            allocatable,
            &cancel,
        ),
        services: deps.informers.of(),
        runtime_classes: deps.informers.of(),
        recorder: Recorder::on_host(deps.client.clone(), source, deps.clock.clone(), &cancel),
        starts: Semaphore::new(config.parallel_starts.max(1)),
        writes: Semaphore::new(PARALLEL_WRITES),
        runtime_name: OnceLock::new(),
        resolv_conf: host_resolv_conf(Path::new("/etc/resolv.conf")),
        allocatable,
        node: deps
            .informers
            .of_selected(&format!("metadata.name={}", config.node_name)),
        probe_metrics: ProbeMetrics::default(),
        keeper: Arc::new(Keeper::open(config.data_dir.join("kept"), &config.node_key)),
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
    addr_tx: watch::Sender<Option<std::net::SocketAddr>>,
}

async fn run_parts(parts: Parts, cancel: CancellationToken) -> Result<(), RunError> {
    let Parts {
        shared,
        dispatcher,
        machine,
        runtime,
        deps,
        addr_tx,
    } = parts;
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
        runtime.clone(),
        &cancel,
    )
    .await
    .map_err(RunError::Server)?;
    let addr = server.addr();
    addr_tx.send_replace(Some(addr));
    let scope = TaskScope::new("kubelet", &cancel);
    let token = scope.cancellation().clone();
    scope.spawn(
        "runtime-events",
        dispatcher.clone().run_events(token.clone()),
    );
    scope.spawn("pod-sources", dispatcher.clone().run_sources(token.clone()));
    scope.spawn("server", server.run(token.clone()));
    let logs = LogKeeper {
        shared: shared.clone(),
    };
    scope.spawn("kept-pods", shared.keeper.clone().run(token.clone()));
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

/// Runs a kubelet until `cancel`. Pods go on: the runtime keeps them, and the next kubelet takes them over.
pub async fn run(config: Config, deps: Deps, cancel: CancellationToken) -> Result<(), RunError> {
    let (_handle, running) = prepare(config, deps, &cancel);
    running.await
}
