//! `ExecSync`: another instance in the container's context, with the same mounts, environment, network and limits.
//!
//! The command's first word names a Wasm file of the image; in an image that is a single component, the component itself runs,
//! with the whole command as its `argv`. What the image does not have is looked for in the container's mounts, and compiled like an
//! image's (never taken as machine code).

use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::ExecSyncResponse;

use super::start::exit_of;
use super::streams::not_running;
use super::tools::{self, Tool};
use super::{Container, spec};
use crate::engine::command::{self, Run};
use crate::engine::stdio::Stdio;
use crate::engine::{GuestContext, Program, ProgramKind};
use crate::error::VerbError;
use crate::logs::{Capture, LogStream};
use crate::shim::Shim;
use crate::streaming::Io;

/// A command that was found and can run.
pub(super) struct Prepared {
    pub(super) program: Arc<Program>,
    pub(super) context: Arc<GuestContext>,
    pub(super) args: Vec<String>,
}

impl Shim {
    /// The tool of the shim's own that a command means, unless the image has a file of that name.
    pub(super) fn tool(
        &self,
        container: &Container,
        cmd: &[String],
    ) -> Option<(Tool, Arc<GuestContext>)> {
        let guest = container
            .guest
            .as_ref()
            .filter(|_| container.is_running())?;
        let tool = Tool::of(cmd)?;
        let own = cmd.first().and_then(|name| guest.image.file(name));
        own.is_none().then(|| (tool, Arc::clone(&guest.context)))
    }

    /// Runs a tool on a thread that may block.
    pub(super) async fn run_tool(
        &self,
        tool: Tool,
        context: Arc<GuestContext>,
        io: Io,
    ) -> Result<i32, VerbError> {
        let slot = Arc::clone(&self.tool_slots).try_acquire_owned();
        let slot = slot.map_err(|_| VerbError::Busy("too many copies are under way".into()))?;
        let handle = tokio::runtime::Handle::current();
        let running = tokio::task::spawn_blocking(move || {
            let code = tool.run(&context, io, &handle);
            drop(slot);
            code
        });
        running
            .await
            .map_err(|err| VerbError::Start(err.to_string()))
    }

    /// Finds the program that a command names.
    pub(super) async fn prepare_exec(
        &self,
        container: &Container,
        cmd: &[String],
    ) -> Result<Prepared, VerbError> {
        let guest = container.guest.as_ref().filter(|_| container.is_running());
        let guest = guest.ok_or_else(|| not_running(container))?;
        if cmd.is_empty() {
            return Err(VerbError::Invalid("the command is empty".into()));
        }
        let mounted = match guest.image.file(&cmd[0]) {
            Some(_) => None,
            None => tools::open_program(&guest.context, &cmd[0]),
        };
        let (program, args, name) = match mounted {
            Some(file) => {
                let program = self.images.mounted(&cmd[0], file).await?;
                (program, cmd.to_vec(), cmd[0].as_str())
            }
            None => {
                let (wasm, args) = spec::program(&guest.image, cmd, &[])?;
                let program = self.images.program(&guest.image, &wasm).await?;
                (program, args, guest.image.name())
            }
        };
        self.admit(&program, name, &container.sandbox)?;
        if program.kind() == ProgramKind::Http {
            return Err(VerbError::Unsupported(format!(
                "{name} is a wasi:http component: it has no command to execute"
            )));
        }
        Ok(Prepared {
            program,
            context: Arc::clone(&guest.context),
            args,
        })
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout_secs: i64,
    ) -> Result<ExecSyncResponse, VerbError> {
        let container = self.container(id)?;
        if container.oci.is_some() {
            return self.exec_sync_oci(&container, cmd, timeout_secs).await;
        }
        if let Some((tool, context)) = self.tool(&container, &cmd) {
            return self.exec_sync_tool(tool, context).await;
        }
        let prepared = self.prepare_exec(&container, &cmd).await?;
        // A command that times out, or whose caller goes away, ends; the container goes on.
        let kill = container.account.kill_token().child_token();
        let _ends_with_this_call = kill.clone().drop_guard();
        let (out, err) = (Capture::default(), Capture::default());
        let run = Run {
            program: prepared.program,
            context: prepared.context,
            args: prepared.args,
            stdio: Stdio::output(LogStream::captured(&out), LogStream::captured(&err)),
            kill,
        };
        let running = command::run(Arc::clone(&self.engine), run);
        let outcome = match u64::try_from(timeout_secs) {
            Ok(secs) if secs > 0 => tokio::time::timeout(Duration::from_secs(secs), running)
                .await
                .map_err(|_| {
                    VerbError::Timeout(format!("command {cmd:?} timed out after {secs} s"))
                })?,
            _ => running.await,
        };
        let exit = exit_of(outcome);
        let mut stderr = err.take();
        if !exit.message.is_empty() {
            stderr.extend_from_slice(format!("{}\n", exit.message).as_bytes());
        }
        Ok(ExecSyncResponse {
            stdout: out.take(),
            stderr,
            exit_code: exit.code,
        })
    }

    async fn exec_sync_tool(
        &self,
        tool: Tool,
        context: Arc<GuestContext>,
    ) -> Result<ExecSyncResponse, VerbError> {
        let (out, err) = (Capture::default(), Capture::default());
        let io = Io {
            stdout: Some(Box::pin(LogStream::captured(&out))),
            stderr: Some(Box::pin(LogStream::captured(&err))),
            ..Io::default()
        };
        let exit_code = self.run_tool(tool, context, io).await?;
        Ok(ExecSyncResponse {
            stdout: out.take(),
            stderr: err.take(),
            exit_code,
        })
    }
}
