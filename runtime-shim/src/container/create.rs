//! `CreateContainer`: finds the image's program, prepares its context, checks what can be checked before it runs.

use std::path::Path;
use std::sync::Arc;

use cox_cri::v1::{ContainerConfig, ContainerEventType, LinuxContainerResources};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Container, Guest, Live, Phase, Record, mounts, reservation, spec, stats};
use crate::clock::now_nanos;
use crate::engine::account::Account;
use crate::engine::config_store::ConfigStore;
use crate::engine::memory::MemoryAccount;
use crate::engine::{GuestContext, Program, ProgramKind, Wasi};
use crate::error::VerbError;
use crate::ids::ContainerId;
use crate::images::{AnyImage, Image};
use crate::network::PodNetwork;
use crate::oci::OciContainer;
use crate::sandbox::Sandbox;
use crate::shim::Shim;

/// With the value `true` on a Pod, its containers may be components of WASI 0.3.
const WASI_03_ANNOTATION: &str = "coxswain.dev/wasi-0.3";

impl Shim {
    pub(crate) async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId, VerbError> {
        let sandbox = self.sandbox(sandbox)?;
        if !sandbox.is_ready() {
            return Err(VerbError::SandboxNotReady(sandbox.id.to_string()));
        }
        let id = ContainerId::random();
        let name = reservation(&config, &sandbox);
        let reserved = self.names.reserve("container", &name, id.as_str())?;
        let wanted = config
            .image
            .as_ref()
            .map(|image| image.image.as_str())
            .unwrap_or_default();
        let image = self
            .images
            .find_any(wanted)
            .await
            .ok_or_else(|| VerbError::NoImage(wanted.to_owned()))?;
        let record = Record {
            phase: Phase::Created,
            sandbox: sandbox.id.to_string(),
            created_at: now_nanos(),
            image_id: image.id().to_owned(),
            image_ref: image.reference().to_owned(),
            oci: None,
        };
        // Written first: a shim that dies in the middle finds the folder, staged files included, and removes it.
        self.container_state.create(id.as_str(), &config, &record)?;
        let made = match image {
            AnyImage::Wasm(image) => self.prepare(&id, &sandbox, config, image, record).await,
            AnyImage::Oci(image) => {
                self.prepare_oci(&id, &sandbox, config, &image, record)
                    .await
            }
        };
        let container = match made {
            Ok(container) => container,
            Err(err) => {
                self.container_state.remove(id.as_str())?;
                return Err(err);
            }
        };
        self.insert_container(Arc::clone(&container));
        reserved.keep();
        tracing::info!(container = %id, sandbox = %sandbox.id, name = container.name(), "Container is created");
        self.emit(
            ContainerEventType::ContainerCreatedEvent,
            id.as_str(),
            &sandbox,
        );
        Ok(id)
    }

    async fn prepare(
        &self,
        id: &ContainerId,
        sandbox: &Arc<Sandbox>,
        mut config: ContainerConfig,
        image: Arc<Image>,
        record: Record,
    ) -> Result<Arc<Container>, VerbError> {
        let (wasm, args) = spec::program(&image, &config.command, &config.args)?;
        let program = self.images.program(&image, &wasm).await?;
        self.admit(&program, image.name(), sandbox)?;
        if program.kind() == ProgramKind::Http {
            spec::http_port(&config.annotations)?;
        }
        crate::cdi::edits(&config.cdi_devices)
            .and_then(|edits| edits.reach_guest(&mut config))
            .map_err(VerbError::Invalid)?;
        let staging = self.container_state.path(id.as_str()).join("files");
        let (preopens, staged) = mounts::prepare(&config.mounts, &staging, &|folder: &Path| {
            self.is_guests(folder)
        })?;
        let (account, memory) = (Arc::new(Account::new()), Arc::new(MemoryAccount::default()));
        let config_store = ConfigStore {
            folders: spec::config_folders(&sandbox.config.annotations, &preopens),
            env: spec::declared(&config),
        };
        let context = GuestContext {
            args,
            env: spec::environment(&image, &config, &sandbox.config.hostname),
            cwd: spec::working_dir(&image, &config),
            preopens,
            network: network_of(&config, sandbox),
            config: Arc::new(config_store),
            account: Arc::clone(&account),
            memory: Arc::clone(&memory),
            budget: Arc::clone(self.engine.budget()),
        };
        let resources = config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone())
            .unwrap_or_default();
        let guest = Guest {
            image,
            program,
            context: Arc::new(context),
            staged,
        };
        let container = Container {
            id: id.clone(),
            sandbox: Arc::clone(sandbox),
            config,
            record: Mutex::new(record),
            account,
            memory,
            resources: Mutex::new(LinuxContainerResources::default()),
            guest: Some(guest),
            live: Mutex::new(Live::default()),
            exited: CancellationToken::new(),
            cpu_sample: Mutex::new(stats::CpuSample::default()),
            oci: None,
        };
        container.apply(&resources);
        Ok(Arc::new(container))
    }
}

impl Shim {
    /// Refuses what is experimental unless somebody asked for it.
    pub(super) fn admit(
        &self,
        program: &Program,
        name: &str,
        sandbox: &Sandbox,
    ) -> Result<(), VerbError> {
        let asked = || {
            let annotation = sandbox.config.annotations.get(WASI_03_ANNOTATION);
            self.config.wasi_03 || annotation.is_some_and(|value| value == "true")
        };
        match program.wasi() {
            Wasi::V02 => Ok(()),
            Wasi::V03 if asked() => Ok(()),
            Wasi::V03 => Err(VerbError::Start(format!(
                "{name} is made for WASI 0.3, which is experimental here and switched off: annotate the Pod with {WASI_03_ANNOTATION}: \"true\", or set wasi_03 in the runtime's configuration"
            ))),
        }
    }
}

impl Shim {
    /// Whether a container that is not over may write to this folder of the host.
    fn is_guests(&self, folder: &Path) -> bool {
        let containers: Vec<_> = self.containers.read().values().cloned().collect();
        containers
            .iter()
            .filter(|container| !container.exited.is_cancelled())
            .any(|container| container.writes_to(folder))
    }
}

impl Container {
    fn writes_to(&self, folder: &Path) -> bool {
        let settled = self.guest.iter().flat_map(|guest| &guest.context.preopens);
        let mut settled = settled.filter(|preopen| !preopen.readonly);
        // Who has the node's root owns the node, links and all.
        let mut named = self
            .config
            .mounts
            .iter()
            .filter(|mount| !mount.readonly && mount.host_path != "/");
        settled.any(|preopen| folder.starts_with(&preopen.host))
            || named.any(|mount| folder.starts_with(&mount.host_path))
    }
}

/// The Pod's network, with the hosts file that the container mounts.
fn network_of(config: &ContainerConfig, sandbox: &Sandbox) -> Arc<PodNetwork> {
    let hosts = config
        .mounts
        .iter()
        .find(|mount| mount.container_path == "/etc/hosts");
    match hosts {
        Some(mount) => sandbox.network.with_hosts(mount.host_path.clone().into()),
        None => Arc::clone(&sandbox.network),
    }
}

impl Container {
    /// A container as its record tells it: one that the shim finds again after its own restart, or an OCI container.
    pub(crate) fn recovered(
        id: ContainerId,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
        record: Record,
    ) -> Arc<Self> {
        let resources = config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone())
            .unwrap_or_default();
        let exited = CancellationToken::new();
        if matches!(record.phase, Phase::Exited { .. }) {
            exited.cancel();
        }
        let oci = record.oci.clone().map(OciContainer::new);
        Arc::new(Self {
            id,
            sandbox,
            config,
            record: Mutex::new(record),
            account: Arc::new(Account::new()),
            memory: Arc::new(MemoryAccount::default()),
            resources: Mutex::new(resources),
            guest: None,
            live: Mutex::new(Live::default()),
            exited,
            cpu_sample: Mutex::new(stats::CpuSample::default()),
            oci,
        })
    }
}
