//! Compiling ahead, in a child process: a huge or hostile module costs the child its limits and nobody else anything.
//!
//! The parent side is [`compile`]; the child side is [`compile_main`], which `cox compile` (hidden) calls. The child limits itself
//! before it reads the first byte of its input.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::process::Command;

use super::{Wasi, weigh};
use crate::config::CompileLimits;

/// The child's exit code for code that is made for WASI 0.3.
const DONE_03: u8 = 3;
/// Text that a compiler may say about a module, at most.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Why a file could not be compiled. All texts are for whoever made the file.
#[derive(Debug, thiserror::Error, Clone)]
pub(crate) enum CompileError {
    #[error("it is not a Wasm file: {0}")]
    NotWasm(&'static str),
    #[error("it is not valid Wasm: {0}")]
    Invalid(String),
    #[error("the compiler needed more than its limits ({limits}) and was stopped: {how}")]
    Limits { limits: String, how: String },
    #[error("the compiler could not be run: {0}")]
    Process(String),
}

/// The two kinds of Wasm file, told by their header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WasmKind {
    Module,
    Component,
}

/// Reads the header of a Wasm file.
pub(crate) fn kind_of(header: &[u8]) -> Result<WasmKind, CompileError> {
    match header {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(WasmKind::Module),
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => Ok(WasmKind::Component),
        [0, b'a', b's', b'm', ..] => Err(CompileError::NotWasm("its version is unknown")),
        [0x7f, b'E', b'L', b'F', ..] => Err(CompileError::NotWasm(
            "it is a Linux program or compiled code",
        )),
        _ => Err(CompileError::NotWasm("it does not begin with \\0asm")),
    }
}

/// Compiles `input` to `output` with `command`, or in this process where none is configured. Tells for which WASI.
pub(crate) async fn compile(
    command: &[OsString],
    limits: &CompileLimits,
    input: &Path,
    output: &Path,
) -> Result<Wasi, CompileError> {
    let Some((program, leading)) = command.split_first() else {
        let (input, output) = (input.to_owned(), output.to_owned());
        return tokio::task::spawn_blocking(move || compile_file(&input, &output))
            .await
            .map_err(|err| CompileError::Process(err.to_string()))?
            .map_err(CompileError::Invalid);
    };
    let mut child = Command::new(program);
    child
        .args(leading)
        .arg(limits.memory_bytes.to_string())
        .arg(limits.cpu_secs.to_string())
        .args([input, output])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let patience = Duration::from_secs(limits.cpu_secs.saturating_mul(2));
    let text = format!("{} MiB, {} s", limits.memory_bytes >> 20, limits.cpu_secs);
    match tokio::time::timeout(patience, child.output()).await {
        Err(_) => Err(CompileError::Limits {
            limits: text,
            how: "took too long".into(),
        }),
        Ok(Err(err)) => Err(CompileError::Process(err.to_string())),
        Ok(Ok(done)) => judge(done.status, &done.stderr, text),
    }
}

/// The child exits 0 or [`DONE_03`] with its output written, 1 after saying what is wrong with its input, or dies of its limits.
fn judge(status: ExitStatus, stderr: &[u8], limits: String) -> Result<Wasi, CompileError> {
    use std::os::unix::process::ExitStatusExt;
    let said = String::from_utf8_lossy(&stderr[..stderr.len().min(MESSAGE_BYTES_MAX)])
        .trim()
        .to_owned();
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(Wasi::V02),
        (Some(code), _) if code == i32::from(DONE_03) => Ok(Wasi::V03),
        (Some(1), _) => Err(CompileError::Invalid(said)),
        (Some(code), _) => Err(CompileError::Process(format!("exit code {code}: {said}"))),
        (None, signal) => {
            let how = format!(
                "signal {}{}{said}",
                signal.unwrap_or(0),
                if said.is_empty() { "" } else { ": " }
            );
            Err(CompileError::Limits { limits, how })
        }
    }
}

/// The child: `MEMORY_BYTES CPU_SECS INPUT OUTPUT`. Exits 0, or 3 when the code is for
/// WASI 0.3, or 1 with one message about the input on stderr, or 2.
pub fn compile_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let [memory, cpu, input, output] = args.as_slice() else {
        return fail("usage: compile MEMORY_BYTES CPU_SECS INPUT OUTPUT", 2);
    };
    let number = |arg: &OsString| arg.to_str().and_then(|text| text.parse::<u64>().ok());
    let (Some(memory), Some(cpu)) = (number(memory), number(cpu)) else {
        return fail("limits must be numbers", 2);
    };
    for (resource, value) in [
        (Resource::As, memory),
        (Resource::Cpu, cpu),
        (Resource::Core, 0),
    ] {
        if let Err(err) = setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        ) {
            return fail(&format!("cannot limit the compiler: {err}"), 2);
        }
    }
    match compile_file(Path::new(input), Path::new(output)) {
        Ok(Wasi::V02) => ExitCode::SUCCESS,
        Ok(Wasi::V03) => ExitCode::from(DONE_03),
        Err(message) => fail(&message, 1),
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    match writeln!(std::io::stderr(), "{message}") {
        // Without a reader of the message the code must do.
        Ok(()) | Err(_) => ExitCode::from(code),
    }
}

fn compile_file(input: &Path, output: &Path) -> Result<Wasi, String> {
    let wasm =
        std::fs::read(input).map_err(|err| format!("cannot read {}: {err}", input.display()))?;
    let kind = kind_of(&wasm).map_err(|err| err.to_string())?;
    let wasi = match kind {
        WasmKind::Module => Wasi::V02,
        WasmKind::Component => wasi_of(&wasm)?,
    };
    let host_bytes = weigh::host_bytes(&wasm).map_err(|err| err.to_string())?;
    if host_bytes > weigh::HOST_BYTES_MAX {
        let [needed, most] = [host_bytes, weigh::HOST_BYTES_MAX].map(|bytes| bytes >> 20);
        return Err(format!(
            "each instance of it would take up to {needed} MiB of the runtime's own memory for its globals and functions; {most} MiB are allowed"
        ));
    }
    let engine =
        wasmtime::Engine::new(&super::code_config(wasi)).map_err(|err| format!("{err:#}"))?;
    let code = match kind {
        WasmKind::Module => engine.precompile_module(&wasm),
        WasmKind::Component => engine.precompile_component(&wasm),
    }
    .map_err(|err| format!("{err:#}"))?;
    std::fs::write(output, code)
        .map_err(|err| format!("cannot write {}: {err}", output.display()))?;
    Ok(wasi)
}

/// The WASI that a component imports or exports: 0.3 when it does any of it.
fn wasi_of(wasm: &[u8]) -> Result<Wasi, String> {
    use wasmparser::{Parser, Payload};
    let invalid = |err: wasmparser::BinaryReaderError| err.to_string();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(wasm) {
        let newer = match payload.map_err(invalid)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                false
            }
            Payload::End(_) => {
                depth = depth.saturating_sub(1);
                false
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                let mut newer = false;
                for import in section {
                    newer |= is_wasi_03(import.map_err(invalid)?.name.name);
                }
                newer
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                let mut newer = false;
                for export in section {
                    newer |= is_wasi_03(export.map_err(invalid)?.name.name);
                }
                newer
            }
            _ => false,
        };
        if newer {
            return Ok(Wasi::V03);
        }
    }
    Ok(Wasi::V02)
}

fn is_wasi_03(name: &str) -> bool {
    name.starts_with("wasi:") && name.contains("@0.3.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_the_kind() {
        assert_eq!(kind_of(b"\0asm\x01\0\0\0rest").unwrap(), WasmKind::Module);
        assert_eq!(kind_of(b"\0asm\x0d\0\x01\0").unwrap(), WasmKind::Component);
        for (case, bytes) in [
            ("empty", &b""[..]),
            ("a script", b"#!/bin/sh"),
            ("a program", b"\x7fELF\x02"),
            ("an unknown version", b"\0asm\x09\x09\x09\x09"),
            ("a cut header", b"\0asm"),
        ] {
            assert!(kind_of(bytes).is_err(), "case: {case}");
        }
    }
}
