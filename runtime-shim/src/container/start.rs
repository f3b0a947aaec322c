//! `StartContainer`: runs the program, and what happens when it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use cox_cri::v1::ContainerEventType;

use super::{Container, Exit, spec};
use crate::clock::now_nanos;
use crate::engine::command::{self, Run};
use crate::engine::http::HttpService;
use crate::engine::{Outcome, ProgramKind};
use crate::error::VerbError;
use crate::logs::{ContainerLog, LogStream, Stream};
use crate::shim::Shim;

/// Why a container has ended that never ran.
pub(super) const START_ERROR: &str = "StartError";
/// As if by SIGKILL, SIGTERM.
pub(super) const KILLED: i32 = 137;
pub(super) const TERMINATED: i32 = 143;
/// As shells say that a program was aborted: a trap is the guest's own crash.
const TRAPPED: i32 = 134;
/// The runtime could not run it.
pub(super) const CANNOT_RUN: i32 = 128;

impl Shim {
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), VerbError> {
        let container = self.container(id)?;
        if !container.sandbox.is_ready() {
            return Err(VerbError::SandboxNotReady(
                container.sandbox_id().to_string(),
            ));
        }
        let launched = match &container.oci {
            Some(oci) => {
                // Held from before it is "starting": whoever finds that without it held finds what a dead shim left. The end waits,
                // too, so that a process that ends at once is seen to have run.
                let _turn = oci.turn.lock().await;
                self.begin_start(&container)?;
                self.launch_oci(&container, oci).await
            }
            None => {
                self.begin_start(&container)?;
                self.launch(&container)
            }
        };
        match launched {
            Ok(()) => Ok(()),
            Err(message) => {
                let exit = match &container.oci {
                    Some(oci) => {
                        self.undo_start(&container, oci).await;
                        super::oci::start_exit(&message)
                    }
                    None => Exit {
                        code: CANNOT_RUN,
                        reason: START_ERROR.into(),
                        message: message.clone(),
                    },
                };
                self.finish(&container, exit).await;
                Err(VerbError::Start(message))
            }
        }
    }

    fn begin_start(&self, container: &Container) -> Result<(), VerbError> {
        let record = container.advance(super::Phase::begin_start)?;
        self.container_state.save(container.id.as_str(), &record)
    }

    fn launch(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), String> {
        let guest = container.guest.as_ref().ok_or("its program is gone")?;
        let log = self.open_log(container)?;
        container.live.lock().log = Some(Arc::clone(&log));
        let serving = guest.program.kind() == ProgramKind::Http;
        if serving {
            let service = self.serve(container, &log)?;
            tracing::info!(container = %container.id, addrs = ?service.addrs(), "Container listens");
            container.live.lock().service = Some(Arc::new(service));
        }
        let started = container
            .advance(|phase| phase.started(now_nanos()))
            .map_err(|err| err.to_string())?;
        if let Err(err) = self.container_state.save(container.id.as_str(), &started) {
            // It runs: the state on disk says "starting", and a restarted shim reports it as ended either way.
            tracing::warn!(error = %err, container = %container.id, "The start could not be written down");
        }
        self.emit(
            ContainerEventType::ContainerStartedEvent,
            container.id.as_str(),
            &container.sandbox,
        );
        let (shim, container) = (Arc::clone(self), Arc::clone(container));
        if serving {
            self.tasks
                .spawn(async move { shim.watch_service(&container).await });
        } else {
            self.tasks
                .spawn(async move { shim.run_command(&container, &log).await });
        }
        Ok(())
    }

    pub(crate) fn open_log(&self, container: &Container) -> Result<Arc<ContainerLog>, String> {
        let dir = &container.sandbox.config.log_directory;
        let path = (!dir.is_empty() && !container.config.log_path.is_empty())
            .then(|| PathBuf::from(dir).join(&container.config.log_path));
        self.logs.open(path).map_err(|err| {
            format!(
                "cannot open the log {dir}/{}: {err}",
                container.config.log_path
            )
        })
    }

    fn serve(&self, container: &Container, log: &Arc<ContainerLog>) -> Result<HttpService, String> {
        let guest = container.guest.as_ref().ok_or("its program is gone")?;
        let port = spec::http_port(&container.config.annotations).map_err(|err| err.to_string())?;
        let network = &container.sandbox.network;
        let start = |ips: &[IpAddr]| {
            let addrs: Vec<SocketAddr> = ips.iter().map(|ip| (*ip, port).into()).collect();
            HttpService::start(
                &self.engine,
                Arc::clone(&guest.program),
                Arc::clone(&guest.context),
                Arc::clone(log),
                Arc::clone(&self.http_slots),
                &addrs,
            )
        };
        // In a namespace of its own both families, as its containers of the other kind do: their `localhost` may be either.
        if network.netns().is_some()
            && let Ok(service) = start(&[Ipv6Addr::UNSPECIFIED.into()])
        {
            return Ok(service);
        }
        let ips: Vec<IpAddr> = match network.virtual_ips() {
            Some(own) => own.all().collect(),
            None => vec![Ipv4Addr::UNSPECIFIED.into()],
        };
        start(&ips).map_err(|err| format!("cannot listen at {ips:?}, port {port}: {err}"))
    }

    async fn run_command(self: Arc<Self>, container: &Arc<Container>, log: &Arc<ContainerLog>) {
        let Some(guest) = &container.guest else {
            return;
        };
        let run = Run {
            program: Arc::clone(&guest.program),
            context: Arc::clone(&guest.context),
            args: guest.context.args.clone(),
            stdio: container.stdio(log),
            kill: container.account.kill_token(),
        };
        let outcome = command::run(Arc::clone(&self.engine), run).await;
        if let Outcome::Trapped(text) | Outcome::OutOfMemory(text) = &outcome {
            // Who looks for the reason looks into the log.
            LogStream::to_log(log, Stream::Stderr)
                .write_all(format!("{}\n", text.trim_end()).as_bytes());
        }
        self.finish(container, exit_of(outcome)).await;
    }

    /// A service ends by being stopped, or when a request exceeds the memory limit.
    async fn watch_service(self: Arc<Self>, container: &Arc<Container>) {
        let Some(service) = container.service() else {
            return;
        };
        tokio::select! {
            () = container.exited.cancelled() => {}
            () = service.failed() => {
                container.account.kill();
                service.drain().await;
                self.finish(container, exit_of(Outcome::OutOfMemory("a request exceeded the memory limit".into()))).await;
            }
        }
    }

    /// Everything that ends with a container, in the order in which others may look: files, log, state, event.
    pub(crate) async fn finish(&self, container: &Arc<Container>, exit: Exit) {
        // An exec of it must not outlive it.
        container.account.kill();
        if let Some(guest) = &container.guest {
            guest.staged.write_back();
        }
        let log = {
            let mut live = container.live.lock();
            live.service = None;
            live.stdin = None;
            live.log.take()
        };
        if let Some(log) = log {
            log.close().await;
        }
        let Ok(record) = container.advance(|phase| phase.exited(now_nanos(), exit.clone())) else {
            // Somebody else saw its end first.
            return;
        };
        if let Err(err) = self.container_state.save(container.id.as_str(), &record) {
            tracing::warn!(error = %err, container = %container.id, "The exit could not be written down");
        }
        container.exited.cancel();
        tracing::info!(container = %container.id, code = exit.code, reason = exit.reason, "Container has ended");
        self.emit(
            ContainerEventType::ContainerStoppedEvent,
            container.id.as_str(),
            &container.sandbox,
        );
    }
}

/// What the Pod's status says about an end.
pub(super) fn exit_of(outcome: Outcome) -> Exit {
    let (code, reason, message) = match outcome {
        Outcome::Exited(0) => (0, "Completed", String::new()),
        Outcome::Exited(code) => (code, "Error", String::new()),
        Outcome::Trapped(text) => (TRAPPED, "Error", first_line(&text)),
        Outcome::OutOfMemory(text) => (KILLED, "OOMKilled", first_line(&text)),
        Outcome::Killed => (KILLED, "Error", String::new()),
        Outcome::Failed(text) => (CANNOT_RUN, START_ERROR, text),
    };
    Exit {
        code,
        reason: reason.into(),
        message,
    }
}

/// The cause of a trap: its chain without the backtrace, which is in the log.
fn first_line(text: &str) -> String {
    let cause = text
        .split_once("Caused by:")
        .map_or(text, |(_, cause)| cause);
    let line = cause
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or_default();
    line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':' || c == ' ')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_as_the_status_tells_them() {
        let trap = "error while executing at wasm backtrace:\n    0: 0x1e - <unknown>!f\n\nCaused by:\n    wasm trap: wasm `unreachable` instruction executed";
        let cases = [
            ("success", Outcome::Exited(0), (0, "Completed", "")),
            ("its own code", Outcome::Exited(42), (42, "Error", "")),
            (
                "a trap",
                Outcome::Trapped(trap.into()),
                (
                    134,
                    "Error",
                    "wasm trap: wasm `unreachable` instruction executed",
                ),
            ),
            (
                "memory",
                Outcome::OutOfMemory("memory limit of 5 bytes exceeded".into()),
                (137, "OOMKilled", "memory limit of 5 bytes exceeded"),
            ),
            ("killed", Outcome::Killed, (137, "Error", "")),
        ];
        for (case, outcome, (code, reason, message)) in cases {
            let expected = Exit {
                code,
                reason: reason.into(),
                message: message.into(),
            };
            assert_eq!(exit_of(outcome), expected, "case: {case}");
        }
    }
}
