//! Runs a command (component or core module) to its end.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p3::bindings::CommandPre;

use super::budget::NoMappings;
use super::executor::TaskError;
use super::guest::{Guest, GuestContext};
use super::memory::OutOfMemory;
use super::program::Program;
use super::stdio::Stdio;
use super::{Outcome, WasmEngine};

/// One run of a program in the context of a container.
pub(crate) struct Run {
    pub(crate) program: Arc<Program>,
    pub(crate) context: Arc<GuestContext>,
    /// `argv` of this run; an exec has its own.
    pub(crate) args: Vec<String>,
    pub(crate) stdio: Stdio,
    /// Ends this run; the container's own kill does too.
    pub(crate) kill: CancellationToken,
}

/// Runs until the guest ends, traps or is killed. The guest's output streams are flushed when this returns.
pub(crate) async fn run(engine: Arc<WasmEngine>, run: Run) -> Outcome {
    let account = Arc::clone(&run.context.account);
    let kill = run.kill.clone();
    let memory = Arc::clone(&run.context.memory);
    let executor = engine.executor().clone();
    let task = executor.spawn(&account, run.kill.clone(), async move {
        execute(&engine, run).await
    });
    let outcome = match task.await.unwrap_or(Err(TaskError::Closed)) {
        Ok(outcome) => outcome,
        Err(TaskError::Killed) => Outcome::Killed,
        Err(err @ (TaskError::Panicked(_) | TaskError::Closed)) => Outcome::Failed(err.to_string()),
    };
    match outcome {
        // A trap that the memory limit caused may have been turned into something else by the guest's own runtime.
        Outcome::Trapped(text) if memory.exceeded() => Outcome::OutOfMemory(text),
        Outcome::Trapped(_) if kill.is_cancelled() => Outcome::Killed,
        outcome => outcome,
    }
}

async fn execute(engine: &WasmEngine, run: Run) -> Outcome {
    let Run {
        program,
        context,
        args,
        stdio,
        kill,
    } = run;
    let executor = engine.executor();
    let result = match &*program {
        Program::Command(pre) => match context.store(pre.engine(), executor, &args, stdio, kill) {
            Err(message) => return Outcome::Failed(message),
            Ok(mut store) => match pre.instantiate_async(&mut store).await {
                Err(err) => Err(err),
                Ok(command) => command
                    .wasi_cli_run()
                    .call_run(&mut store)
                    .await
                    .map(|end| i32::from(end.is_err())),
            },
        },
        Program::Command03(pre) => {
            match context.store(pre.engine(), executor, &args, stdio, kill) {
                Err(message) => return Outcome::Failed(message),
                Ok(store) => run_03(pre, store).await,
            }
        }
        Program::Module(pre) => {
            match context.module_store(pre.module().engine(), executor, &args, stdio, kill) {
                Err(message) => return Outcome::Failed(message),
                Ok(mut store) => match pre.instantiate_async(&mut store).await {
                    Err(err) => Err(err),
                    Ok(instance) => match instance.get_typed_func::<(), ()>(&mut store, "_start") {
                        Err(err) => Err(err),
                        Ok(start) => start.call_async(&mut store, ()).await.map(|()| 0),
                    },
                },
            }
        }
        Program::Http(_) | Program::Http03(_) => {
            return Outcome::Failed("a wasi:http component has no command to run".into());
        }
    };
    match result {
        Ok(code) => Outcome::Exited(code),
        Err(err) => from_error(&err),
    }
}

async fn run_03(pre: &CommandPre<Guest>, mut store: Store<Guest>) -> wasmtime::Result<i32> {
    let command = pre.instantiate_async(&mut store).await?;
    let ended = store
        .run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await)
        .await??;
    Ok(i32::from(ended.is_err()))
}

/// Tells an exit from a trap from the memory limit.
pub(crate) fn from_error(err: &wasmtime::Error) -> Outcome {
    if let Some(exit) = err.downcast_ref::<I32Exit>() {
        return Outcome::Exited(exit.0);
    }
    if err.downcast_ref::<OutOfMemory>().is_some() {
        return Outcome::OutOfMemory(format!("{err:#}"));
    }
    if let Some(no_room) = err.downcast_ref::<NoMappings>() {
        return Outcome::Failed(no_room.to_string());
    }
    if matches!(err.downcast_ref::<Trap>(), Some(Trap::Interrupt)) {
        return Outcome::Killed;
    }
    Outcome::Trapped(format!("{err:?}"))
}
