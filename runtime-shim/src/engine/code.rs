//! The cache of compiled code and of mapped programs, by digest of the Wasm file.
//!
//! On disk: `compiled/<compatibility>/<digest>.cwasm` (`.03.cwasm` for components of WASI 0.3) below the root, in folders of mode 0700; code of other engine versions is
//! removed at start. In memory: one [`Program`] per digest, shared by every container. A digest is compiled once, however many
//! ask at the same time.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use super::compile::{self, CompileError, WasmKind};
use super::program::{Program, ProgramError};
use super::{Wasi, WasmEngine, compatibility};
use crate::config::CompileLimits;
use crate::images::Digest;

/// Why a Wasm file gives no program.
#[derive(Debug, thiserror::Error, Clone)]
pub(crate) enum CodeError {
    #[error("{0}")]
    Compile(#[from] CompileError),
    #[error("{0}")]
    Program(#[from] ProgramError),
    #[error("cannot use {}: {message}", .path.display())]
    Io { path: PathBuf, message: String },
}

type Cell = Arc<OnceCell<Arc<Program>>>;

pub(crate) struct CodeCache {
    engine: Arc<WasmEngine>,
    dir: PathBuf,
    command: Vec<OsString>,
    limits: CompileLimits,
    compilers: Semaphore,
    programs: Mutex<HashMap<Digest, Cell>>,
}

impl CodeCache {
    pub(crate) fn open(
        engine: Arc<WasmEngine>,
        root: &Path,
        command: Vec<OsString>,
        limits: CompileLimits,
    ) -> Result<Self, CodeError> {
        let all = root.join("compiled");
        let wanted = compatibility(engine.on_demand());
        let dir = all.join(&wanted);
        private_dir(&all)?;
        private_dir(&dir)?;
        remove_others(&all, &wanted);
        let compilers = Semaphore::new(limits.parallel.max(1));
        Ok(Self {
            engine,
            dir,
            command,
            limits,
            compilers,
            programs: Mutex::default(),
        })
    }

    /// The program of the Wasm file `wasm`, whose content has `digest`; compiled now if it was not before.
    pub(crate) async fn program(
        &self,
        digest: &Digest,
        wasm: &Path,
    ) -> Result<Arc<Program>, CodeError> {
        let cell = Arc::clone(self.programs.lock().entry(digest.clone()).or_default());
        let made = cell
            .get_or_try_init(|| self.load(digest, wasm))
            .await
            .cloned();
        if made.is_err() {
            self.programs
                .lock()
                .retain(|_, cell| cell.initialized() || Arc::strong_count(cell) > 2);
        }
        made
    }

    async fn load(&self, digest: &Digest, wasm: &Path) -> Result<Arc<Program>, CodeError> {
        let kind = read_kind(wasm)?;
        for wasi in [Wasi::V02, Wasi::V03] {
            let file = self.file(digest, wasi);
            if !file.exists() {
                continue;
            }
            match self.map(kind, wasi, &file) {
                // A cut-off or foreign file is compiled anew; everything else is the module's own fault.
                Err(ProgramError::Map(reason)) => {
                    tracing::warn!(%digest, reason, "Compiled code is unusable, compiling again");
                }
                mapped => return Ok(Arc::new(mapped?)),
            }
        }
        let (wasi, file) = self.compile(digest, wasm).await?;
        Ok(Arc::new(self.map(kind, wasi, &file)?))
    }

    fn map(&self, kind: WasmKind, wasi: Wasi, file: &Path) -> Result<Program, ProgramError> {
        match kind {
            WasmKind::Component => Program::map_component(&self.engine, wasi, file),
            WasmKind::Module => Program::map_module(&self.engine, file),
        }
    }

    async fn compile(&self, digest: &Digest, wasm: &Path) -> Result<(Wasi, PathBuf), CodeError> {
        let _permit = self
            .compilers
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let partial = tempfile::Builder::new()
            .prefix(".compiling-")
            .tempfile_in(&self.dir)
            .map_err(|err| io(&self.dir, &err))?
            .into_temp_path();
        let started = std::time::Instant::now();
        let wasi = compile::compile(&self.command, &self.limits, wasm, &partial).await?;
        let file = self.file(digest, wasi);
        partial
            .persist(&file)
            .map_err(|err| io(&file, &err.error))?;
        tracing::info!(%digest, took_ms = started.elapsed().as_millis(), "Compiled");
        Ok((wasi, file))
    }

    /// Forgets and removes the code of a digest that no image refers to. Containers that run it keep their mapping.
    pub(crate) fn remove(&self, digest: &Digest) {
        self.programs.lock().remove(digest);
        for file in [Wasi::V02, Wasi::V03].map(|wasi| self.file(digest, wasi)) {
            if let Err(err) = std::fs::remove_file(&file)
                && err.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(error = %err, file = %file.display(), "Compiled code could not be removed");
            }
        }
    }

    fn file(&self, digest: &Digest, wasi: Wasi) -> PathBuf {
        let made_for = match wasi {
            Wasi::V02 => "",
            Wasi::V03 => ".03",
        };
        self.dir.join(format!("{}{made_for}.cwasm", digest.hex()))
    }
}

/// Makes `dir` for this user alone; refuses one that others own or may write, since its content is executed.
fn private_dir(dir: &Path) -> Result<(), CodeError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|err| io(dir, &err))?;
    let meta = std::fs::symlink_metadata(dir).map_err(|err| io(dir, &err))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(CodeError::Io {
            path: dir.to_owned(),
            message: "it belongs to somebody else".into(),
        });
    }
    if meta.mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|err| io(dir, &err))?;
    }
    Ok(())
}

fn remove_others(all: &Path, wanted: &str) {
    let Ok(entries) = std::fs::read_dir(all) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_name() != wanted)
    {
        if let Err(err) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(error = %err, dir = %entry.path().display(), "Code of another engine version could not be removed");
        }
    }
}

fn read_kind(wasm: &Path) -> Result<WasmKind, CodeError> {
    use std::io::Read;
    let mut header = Vec::with_capacity(8);
    std::fs::File::open(wasm)
        .and_then(|file| file.take(8).read_to_end(&mut header))
        .map_err(|err| io(wasm, &err))?;
    Ok(compile::kind_of(&header)?)
}

fn io(path: &Path, err: &std::io::Error) -> CodeError {
    CodeError::Io {
        path: path.to_owned(),
        message: err.to_string(),
    }
}
