//! Everything one shim process knows: its parts, its sandboxes and containers, and how it finds them again after a restart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use cox_cri::v1::ContainerConfig;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::clock::now_nanos;
use crate::config::Config;
use crate::container::{self, Container, Exit, Phase};
use crate::engine::WasmEngine;
use crate::engine::code::CodeCache;
use crate::error::VerbError;
use crate::events::Events;
use crate::ids::{ContainerId, SandboxId};
use crate::images::Images;
use crate::logs::LogWriter;
use crate::names::Names;
use crate::network::{Cidr, Cidr6, Policies, Policy, Services};
use crate::sandbox::{Namespaces, Networks, PodFiles, Sandbox};
use crate::server::RunError;
use crate::state::{Recovered, StateDir};
use crate::streaming::tokens::Tokens;

/// Copies by `tar` that run at the same time.
const TOOLS_MAX: usize = 64;

/// The shim. Verbs are methods in `sandbox/` and `container/`.
pub(crate) struct Shim {
    pub(crate) config: Arc<Config>,
    pub(crate) engine: Arc<WasmEngine>,
    pub(crate) images: Arc<Images>,
    pub(crate) logs: LogWriter,
    pub(crate) networks: Networks,
    pub(crate) policy: Arc<Policy>,
    pub(crate) sandbox_state: StateDir,
    pub(crate) container_state: StateDir,
    pub(crate) sandboxes: RwLock<HashMap<SandboxId, Arc<Sandbox>>>,
    pub(crate) containers: RwLock<HashMap<ContainerId, Arc<Container>>>,
    /// The containers of each sandbox, so that no event walks all containers of the node.
    members: RwLock<HashMap<SandboxId, Vec<Arc<Container>>>>,
    pub(crate) names: Names,
    pub(crate) events: Events,
    /// Requests to wasi:http containers that run at the same time.
    pub(crate) http_slots: Arc<Semaphore>,
    /// Tools that run at the same time, each on a thread.
    pub(crate) tool_slots: Arc<Semaphore>,
    /// Clients of exec, attach and port-forward that are expected.
    pub(crate) tokens: Tokens,
    /// Where they come to.
    pub(crate) streaming_addr: SocketAddr,
    /// Tasks that watch containers, and sessions of clients.
    pub(crate) tasks: TaskTracker,
}

impl Shim {
    /// Starts the engine, opens the stores and finds what an earlier shim left behind.
    pub(crate) fn open(config: Config, streaming_addr: SocketAddr) -> Result<Arc<Self>, RunError> {
        let config = Arc::new(config);
        let ranges = crate::sandbox::ranges(&config)?;
        let (cluster6, cluster): (Vec<&String>, Vec<&String>) = config
            .cluster_pod_cidrs
            .iter()
            .partition(|text| text.contains(':'));
        let cluster = cluster.into_iter().map(|text| text.parse());
        let cluster = cluster.collect::<Result<Vec<Cidr>, _>>()?;
        let cluster6 = cluster6.into_iter().map(|text| text.parse());
        let cluster6 = cluster6.collect::<Result<Vec<Cidr6>, _>>()?;
        let own = match ranges.is_ipv6_alone {
            true => Vec::new(),
            false => vec![config.pod_cidr.parse()?, ranges.bridge],
        };
        let cluster: Vec<Cidr> = cluster.into_iter().chain(own).collect();
        let cluster6: Vec<Cidr6> = cluster6.into_iter().chain(ranges.ipv6).collect();
        let networks = Networks::open(&config, &ranges, (&cluster, &cluster6));
        let policy = Policy {
            cluster,
            cluster6,
            host_services: config.host_services.clone(),
            tls_ca_files: config.tls_ca_files.clone(),
            services: Services::new(config.services_file.clone()),
            policies: Policies::new(config.policies_file.clone()),
            ..Policy::default()
        };
        let threads = match config.guest_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let engine = WasmEngine::start(threads, config.http_instances_max)?;
        let code = CodeCache::open(
            Arc::clone(&engine),
            &config.root_dir,
            config.compile_command.clone(),
            config.compile_limits.clone(),
        )
        .map_err(|err| RunError::Images(err.to_string()))?;
        let images =
            Images::open(&config, code).map_err(|err| RunError::Images(err.to_string()))?;
        let state = |kind| {
            StateDir::open(&config.state_dir, kind).map_err(|err| RunError::State(err.to_string()))
        };
        let shim = Arc::new(Self {
            sandbox_state: state("sandboxes")?,
            container_state: state("containers")?,
            http_slots: Arc::new(Semaphore::new(engine.http_instances_max() as usize)),
            logs: LogWriter::start(config.log_burst_bytes).map_err(RunError::Threads)?,
            networks,
            policy: Arc::new(policy),
            engine,
            images: Arc::new(images),
            config,
            sandboxes: RwLock::default(),
            containers: RwLock::default(),
            members: RwLock::default(),
            names: Names::default(),
            events: Events::new(),
            tool_slots: Arc::new(Semaphore::new(TOOLS_MAX)),
            tokens: Tokens::default(),
            streaming_addr,
            tasks: TaskTracker::new(),
        });
        shim.recover();
        Ok(shim)
    }

    /// Reads back what an earlier shim wrote. Sandboxes are as good as before, or undone; guests ended with the process, which
    /// their containers now say. What refers to nothing is removed.
    fn recover(self: &Arc<Self>) {
        self.recover_sandboxes();
        for Recovered { id, config, state } in self
            .container_state
            .recover::<ContainerConfig, container::Record>()
        {
            if let Err(err) = self.recover_container(&id, config, state) {
                tracing::warn!(error = %err, container = id, "A container of an earlier shim could not be taken over");
            }
        }
    }

    fn recover_container(
        &self,
        id: &str,
        config: ContainerConfig,
        mut record: container::Record,
    ) -> Result<(), VerbError> {
        let Ok(sandbox) = self.sandbox(&record.sandbox) else {
            return self.container_state.remove(id);
        };
        let started_at = match &record.phase {
            Phase::Exited { started_at, .. }
            | Phase::Running { started_at }
            | Phase::Stopping { started_at } => *started_at,
            Phase::Created | Phase::Starting => 0,
        };
        // OCI containers go on without this process; containerd says later how they are.
        if record.oci.is_none() && !matches!(record.phase, Phase::Exited { .. }) {
            let exit = Exit {
                code: 137,
                reason: "RuntimeRestarted".into(),
                message: "the container runtime was restarted; Wasm containers end with it".into(),
            };
            record.phase = Phase::Exited {
                started_at,
                finished_at: now_nanos(),
                exit,
            };
            self.container_state.save(id, &record)?;
        }
        let container = Container::recovered(ContainerId::from(id), sandbox, config, record);
        self.take_name("container", &container.reservation(), id);
        self.insert_container(container);
        Ok(())
    }

    pub(crate) fn take_name(&self, what: &'static str, name: &str, id: &str) {
        match self.names.reserve(what, name, id) {
            Ok(reserved) => reserved.keep(),
            Err(err) => tracing::warn!(error = %err, "A name was in use twice"),
        }
    }

    /// A sandbox by id or by an unambiguous beginning of it.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, VerbError> {
        find(&self.sandboxes.read(), &SandboxId::from(id), |key| {
            key.as_str().starts_with(id)
        })
        .ok_or_else(|| VerbError::NoSandbox(id.to_owned()))
    }

    /// A container by id or by an unambiguous beginning of it.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, VerbError> {
        find(&self.containers.read(), &ContainerId::from(id), |key| {
            key.as_str().starts_with(id)
        })
        .ok_or_else(|| VerbError::NoContainer(id.to_owned()))
    }

    /// Where the files of a sandbox are that its OCI containers mount.
    pub(crate) fn pod_files(&self, sandbox: &Sandbox, namespaces: &Namespaces) -> PodFiles {
        PodFiles::below(&self.sandbox_state.path(sandbox.id.as_str()), namespaces)
    }

    /// The containers of a sandbox, oldest first.
    pub(crate) fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        self.members
            .read()
            .get(sandbox)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn insert_container(&self, container: Arc<Container>) {
        self.members
            .write()
            .entry(container.sandbox_id().clone())
            .or_default()
            .push(Arc::clone(&container));
        self.containers
            .write()
            .insert(container.id.clone(), container);
    }

    /// Whether this caller was the first to forget it.
    pub(crate) fn forget_container(&self, container: &Container) -> bool {
        let forgotten = self.containers.write().remove(&container.id).is_some();
        let mut members = self.members.write();
        if let Some(list) = members.get_mut(container.sandbox_id()) {
            list.retain(|member| member.id != container.id);
            if list.is_empty() {
                members.remove(container.sandbox_id());
            }
        }
        forgotten
    }
}

fn find<K: std::hash::Hash + Eq, V>(
    map: &HashMap<K, Arc<V>>,
    key: &K,
    fits: impl Fn(&K) -> bool,
) -> Option<Arc<V>> {
    if let Some(found) = map.get(key) {
        return Some(Arc::clone(found));
    }
    let mut found = map.iter().filter(|(key, _)| fits(key));
    match (found.next(), found.next()) {
        (Some((_, only)), None) => Some(Arc::clone(only)),
        _ => None,
    }
}
