//! Containers: a program in the context that the Pod spec gives it.
//!
//! ```text
//! Created ──start──▶ Starting ──▶ Running ──stop──▶ Stopping ──▶ Exited ──remove──▶ (gone)
//!                       │            └────────── ends by itself ────▲
//!                       └──── cannot start ─────────────────────────┘
//! ```

mod checkpoint;
mod create;
mod exec;
mod list;
mod mounts;
mod oci;
mod phase;
mod remove;
mod spec;
mod staged;
mod start;
mod stats;
mod status;
mod stop;
mod streams;
mod tools;
mod update;

use std::sync::Arc;

use cox_cri::v1::{ContainerConfig, LinuxContainerResources};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub(crate) use phase::{Exit, IllegalMove, Phase};

use crate::engine::account::Account;
use crate::engine::http::HttpService;
use crate::engine::memory::MemoryAccount;
use crate::engine::{GuestContext, Program};
use crate::ids::{ContainerId, SandboxId};
use crate::images::Image;
use crate::logs::ContainerLog;
use crate::oci::{OciContainer, OciRecord};
use crate::sandbox::Sandbox;
use crate::streaming::pipe::PipeWriter;

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) config: ContainerConfig,
    record: Mutex<Record>,
    pub(crate) account: Arc<Account>,
    pub(crate) memory: Arc<MemoryAccount>,
    resources: Mutex<LinuxContainerResources>,
    /// What it runs; none after a restart of the shim, when it has exited.
    guest: Option<Guest>,
    live: Mutex<Live>,
    /// What an OCI container is beside that; none for Wasm.
    pub(crate) oci: Option<OciContainer>,
    exited: CancellationToken,
    cpu_sample: Mutex<stats::CpuSample>,
}

/// The checkpointed part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) sandbox: String,
    pub(crate) created_at: i64,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    /// Of an OCI container; none for Wasm.
    #[serde(default)]
    pub(crate) oci: Option<OciRecord>,
}

/// Program and context of a container that can run.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) image: Arc<Image>,
    pub(crate) program: Arc<Program>,
    pub(crate) context: Arc<GuestContext>,
    pub(crate) staged: staged::Staged,
}

/// What exists only while it runs.
#[derive(Default)]
struct Live {
    log: Option<Arc<ContainerLog>>,
    service: Option<Arc<HttpService>>,
    /// The way into the guest's stdin, when the Pod asked for one.
    stdin: Option<PipeWriter>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field(
                "serving",
                &self.service.as_ref().map(|service| service.addrs()),
            )
            .finish()
    }
}

impl Container {
    pub(crate) fn record(&self) -> Record {
        self.record.lock().clone()
    }

    pub(crate) fn sandbox_id(&self) -> &SandboxId {
        &self.sandbox.id
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(
            self.record.lock().phase,
            Phase::Running { .. } | Phase::Stopping { .. }
        )
    }

    /// Makes a move of the state machine; the caller checkpoints.
    fn advance(
        &self,
        step: impl FnOnce(Phase) -> Result<Phase, IllegalMove>,
    ) -> Result<Record, IllegalMove> {
        let mut record = self.record.lock();
        record.phase = step(record.phase.clone())?;
        Ok(record.clone())
    }

    fn log(&self) -> Option<Arc<ContainerLog>> {
        self.live.lock().log.clone()
    }

    /// The log of a container whose process an earlier shim started.
    pub(crate) fn take_log(&self, log: Arc<ContainerLog>) {
        self.live.lock().log = Some(log);
    }

    fn service(&self) -> Option<Arc<HttpService>> {
        self.live.lock().service.clone()
    }

    fn stdin(&self) -> Option<PipeWriter> {
        self.live.lock().stdin.clone()
    }

    pub(crate) fn name(&self) -> &str {
        self.config
            .metadata
            .as_ref()
            .map_or("", |metadata| metadata.name.as_str())
    }

    /// The name that no two containers share.
    pub(crate) fn reservation(&self) -> String {
        reservation(&self.config, &self.sandbox)
    }
}

fn reservation(config: &ContainerConfig, sandbox: &Sandbox) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}", metadata.name, sandbox.id, metadata.attempt)
}
