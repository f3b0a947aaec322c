//! The shim by itself, to drive it by hand (`crictl --runtime-endpoint`) and in tests.
//!
//! `cox-shim DIR` serves with all its sockets and folders below DIR; `cox-shim --config FILE` takes a configuration in JSON;
//! `cox-shim compile ...` is the compiler child, `cox-shim pause` the process that holds a Pod's PID namespace.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use cox_runtime_shim::Config;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next().unwrap_or_default();
    if first == "compile" {
        return cox_runtime_shim::compile_main(args);
    }
    if first == "pause" {
        return cox_runtime_shim::pause_main();
    }
    let config = match configuration(first, args.next()) {
        Ok(config) => config,
        Err(message) => return complain(&message),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(err) => return complain(&err.to_string()),
    };
    let cancel = CancellationToken::new();
    let done = runtime.block_on(async {
        let on_signal = cancel.clone();
        tokio::spawn(async move {
            let mut terminate =
                match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                    Ok(terminate) => terminate,
                    Err(err) => {
                        return tracing::warn!(error = %err, "SIGTERM ends the process at once");
                    }
                };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            on_signal.cancel();
        });
        cox_runtime_shim::run(config, cancel).await
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            let cause = std::error::Error::source(&err)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            complain(&format!("{err}{cause}"))
        }
    }
}

fn configuration(first: OsString, second: Option<OsString>) -> Result<Config, String> {
    if first.is_empty() {
        return Err("usage: cox-shim DIR | --config FILE | compile ...".into());
    }
    if first == "--config" {
        let file = second.ok_or("--config needs a file")?;
        let bytes =
            std::fs::read(&file).map_err(|err| format!("{}: {err}", Path::new(&file).display()))?;
        return serde_json::from_slice(&bytes)
            .map_err(|err| format!("{}: {err}", Path::new(&file).display()));
    }
    let mut config = Config::below(Path::new(&first));
    let own = std::env::current_exe().map_err(|err| err.to_string())?;
    config.pause_command = vec![own.clone().into(), "pause".into()];
    config.compile_command = vec![own.into(), "compile".into()];
    Ok(config)
}

fn complain(message: &str) -> ExitCode {
    match writeln!(std::io::stderr(), "cox-shim: {message}") {
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}
