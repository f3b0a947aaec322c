//! `cox`: reads the command line and wires the parts together; the one place that sees every crate.

mod agent;
mod cli;
mod components;
mod console;
mod control_plane;
mod credentials;
mod image;
mod join;
mod kubeconfig;
mod manifests;
mod node;
mod paths;
mod pod_range;
mod renewal;
mod server;
mod shim_process;
mod signals;
mod store;
mod token;
mod up;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use tracing_subscriber::EnvFilter;

/// Objects are trees of many small parts: glibc's allocator takes a third more of an apply's time, and keeps more of the memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Threads that serve the API, the components and the kubelet; guests run in another process.
const WORKER_THREADS_MAX: usize = 4;

fn main() -> ExitCode {
    // `cox` alone is `cox up`: parsed again, so that the defaults stand in one place.
    let command = Cli::parse().command.unwrap_or_else(|| {
        Cli::parse_from(["cox", "up"])
            .command
            .expect("`up` was given")
    });
    if let Command::Compile { args } = command {
        return cox_runtime_shim::compile_main(args);
    }
    if let Command::Pause = command {
        return cox_runtime_shim::pause_main();
    }
    start_logging(&command);
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::warn!("Another crypto provider was installed first");
    }
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(WORKER_THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(command)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "cox: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    if let Command::Up(_) | Command::Server(_) | Command::Agent(_) | Command::Shim { .. } = &command
    {
        // For as long as the process lives.
        drop(tokio::spawn(
            cox_runtime_shim::unused_code::keep_letting_go(),
        ));
    }
    match command {
        Command::Up(args) => Box::pin(up::run(args)).await,
        Command::Server(args) => Box::pin(server::run(args)).await,
        Command::Agent(args) => Box::pin(agent::run(args)).await,
        Command::Image(command) => image::run(command).await,
        Command::Token(args) => token::run(&args).await,
        Command::Kubeconfig(args) => credentials::run(&args),
        Command::Store(command) => store::run(command).await,
        Command::Shim { config } => Box::pin(shim_process::run(&config)).await,
        Command::Compile { .. } | Command::Pause => {
            unreachable!("handled before the runtime starts")
        }
    }
}

/// Warnings always; more with -v. RUST_LOG refines it as everywhere.
fn start_logging(command: &Command) {
    let verbose = match command {
        Command::Up(args) => args.common.verbose,
        Command::Server(args) => args.common.verbose,
        Command::Agent(args) => args.common.verbose,
        Command::Shim { .. } => 1,
        _ => 0,
    };
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => {
            "info,cox=debug,cox_apiserver=debug,cox_client=debug,cox_controllers=debug,cox_kubelet=debug,cox_runtime_shim=debug,cox_scheduler=debug,cox_store=debug"
        }
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
