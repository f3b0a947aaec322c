//! Undoing what a sandbox is made of, from what was written down about it. Every part gets its turn, whatever the others say, and
//! doing it twice is fine.

use std::sync::Arc;

use cox_cri::v1::PodSandboxConfig;

use super::{Attachment, CNI_FILE, Phase, Record, Sandbox, SandboxError};
use crate::ids::SandboxId;
use crate::network::{HostPorts, Links, cni, plan_host_ports, veth_name};
use crate::shim::Shim;
use crate::state::Recovered;

impl Shim {
    /// Gives up interfaces, processes, namespaces and mounts of a sandbox. Its address is the caller's to give back.
    pub(super) async fn release(&self, id: &str, record: &Record) -> Result<(), SandboxError> {
        let dir = self.sandbox_state.path(id);
        let pinned = record
            .namespaces
            .as_ref()
            .is_some_and(super::Namespaces::are_pinned);
        let mut outcome = Ok(());
        if record.attachment == Attachment::Cni {
            outcome = outcome.and(self.remove_from_cni(id, pinned).await);
        }
        if record.attachment == Attachment::Bridge && record.ip.is_some() {
            let veth = veth_name(id);
            let removed = tokio::task::spawn_blocking(move || Links::open()?.remove(&veth)).await;
            let removed = removed.map_err(std::io::Error::other).and_then(|done| done);
            outcome = outcome.and(removed.map_err(|source| SandboxError::Make {
                what: "remove the Pod's interface".into(),
                source,
            }));
        }
        if let Some(namespaces) = &record.namespaces {
            if let (Some(pause), Some(pinned)) = (record.pause, &namespaces.pid) {
                outcome = outcome.and(pause.end(pinned).await);
            }
            outcome = outcome.and(namespaces.unpin(&dir));
        }
        outcome
    }

    async fn remove_from_cni(&self, id: &str, pinned: bool) -> Result<(), SandboxError> {
        let file = self.sandbox_state.path(id).join(CNI_FILE);
        let attachment: cni::Attachment = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|err| SandboxError::Make {
                what: format!("read {}", file.display()),
                source: err.into(),
            })?,
            // The plugins were never asked.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(SandboxError::Make {
                    what: format!("read {}", file.display()),
                    source,
                });
            }
        };
        attachment
            .delete(&self.networks.cni_bin_dirs, pinned)
            .await?;
        // Asked once: a second stop has nothing left to ask.
        match std::fs::remove_file(&file) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(SandboxError::Make {
                what: format!("remove {}", file.display()),
                source: err,
            }),
            _ => Ok(()),
        }
    }

    /// Takes over the sandboxes of an earlier shim: those that were ready are looked at, those that were half made or half ended
    /// are undone, in the background.
    pub(crate) fn recover_sandboxes(self: &Arc<Self>) {
        let found = self.sandbox_state.recover::<PodSandboxConfig, Record>();
        for Recovered { id, config, state } in found {
            let mut record: Record = state;
            let id = SandboxId::from(id.as_str());
            if !self.networks.reserve(&record) {
                // The node's range has changed: the Pod needs a new sandbox.
                record.phase = record.phase.ended();
                record.ip = None;
                record.ip6 = None;
            }
            let alive = record.is_alive();
            if !alive && record.phase == Phase::Ready {
                tracing::warn!(sandbox = %id, "A sandbox has lost its namespaces; its Pod needs a new one");
                record.phase = Phase::NotReady;
            }
            let network = self.pod_network(&id, &config, &record);
            let host_ports = self.reopen_host_ports(&id, &config, &record);
            let sandbox = Sandbox::new(id.clone(), config, network, record, host_ports);
            self.take_name("sandbox", &sandbox.reservation(), id.as_str());
            self.sandboxes.write().insert(id, Arc::clone(&sandbox));
            self.go_on(&sandbox);
        }
    }

    /// What a recovered sandbox needs from here on.
    fn go_on(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let record = sandbox.record();
        let (shim, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        match record.phase {
            Phase::Ready => {
                self.watch_pause(&sandbox);
                if record.attachment == Attachment::Cni {
                    self.tasks
                        .spawn(async move { shim.check_cni(&sandbox).await });
                }
            }
            // Nobody was told its id: it goes altogether.
            Phase::Making => {
                self.tasks.spawn(async move {
                    tracing::info!(sandbox = %sandbox.id, "A half-made sandbox of an earlier shim is undone");
                    if let Err(err) = shim.remove_pod_sandbox(sandbox.id.as_str()).await {
                        tracing::warn!(error = %err, sandbox = %sandbox.id, "A half-made sandbox could not be undone");
                    }
                });
            }
            Phase::NotReady if record.holds_something() => {
                self.tasks.spawn(async move {
                    if let Err(err) = shim.end_sandbox(&sandbox).await {
                        tracing::warn!(error = %err, sandbox = %sandbox.id, "A stopped sandbox could not be released");
                    }
                });
            }
            Phase::NotReady => {}
        }
    }

    /// Asks the plugins whether a recovered Pod is still connected.
    async fn check_cni(self: Arc<Self>, sandbox: &Arc<Sandbox>) {
        let file = self.sandbox_state.path(sandbox.id.as_str()).join(CNI_FILE);
        let attachment = std::fs::read(file)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<cni::Attachment>(&bytes).ok());
        let Some(attachment) = attachment else { return };
        if let Err(err) = attachment.check(&self.networks.cni_bin_dirs).await {
            tracing::warn!(error = %err, sandbox = %sandbox.id, "A Pod has lost its network; it needs a new sandbox");
            if let Err(err) = self.end_sandbox(sandbox).await {
                tracing::warn!(error = %err, sandbox = %sandbox.id, "The sandbox could not be stopped");
            }
        }
    }

    fn reopen_host_ports(
        &self,
        id: &SandboxId,
        config: &PodSandboxConfig,
        record: &Record,
    ) -> Option<HostPorts> {
        record.ip.filter(|_| record.phase == Phase::Ready)?;
        let opened = plan_host_ports(&config.port_mappings)
            .and_then(|ports| HostPorts::open(&ports, &record.ips(), self.engine.executor().io()));
        opened.unwrap_or_else(|err| {
            tracing::warn!(error = %err, sandbox = %id, "A recovered Pod has lost its host ports");
            None
        })
    }

    /// Stops a sandbox whose pause process dies: its processes have died with it, and no container can join.
    pub(super) fn watch_pause(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Some(pause) = sandbox.record().pause else {
            return;
        };
        let watch = match pause.watch() {
            Ok(watch) => watch,
            Err(err) => {
                return tracing::warn!(error = %err, sandbox = %sandbox.id, "A pause process cannot be watched");
            }
        };
        let (shim, sandbox) = (Arc::downgrade(self), Arc::downgrade(sandbox));
        // Not among the tracked tasks, which a shim that ends waits for: this one waits for a process that goes on.
        tokio::spawn(async move {
            watch.await;
            let (Some(shim), Some(sandbox)) = (shim.upgrade(), sandbox.upgrade()) else {
                return;
            };
            if !sandbox.is_ready() {
                return;
            }
            tracing::warn!(sandbox = %sandbox.id, "The process that holds the Pod's PID namespace has died");
            if let Err(err) = shim.end_sandbox(&sandbox).await {
                tracing::warn!(error = %err, sandbox = %sandbox.id, "The sandbox could not be stopped");
            }
        });
    }
}
