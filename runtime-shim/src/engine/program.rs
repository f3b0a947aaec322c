//! Programs: compiled code that is mapped, checked against what the host provides, and ready to be instantiated.

use std::path::Path;

use wasmtime::component::{Component, InstancePre};
use wasmtime::{ExternType, Module};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as CommandPre03;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::guest::{Guest, ModuleGuest};
use super::{Wasi, WasmEngine, imports};

/// Why compiled code is not a program.
#[derive(Debug, thiserror::Error, Clone)]
pub(crate) enum ProgramError {
    #[error("compiled code cannot be mapped: {0}")]
    Map(String),
    #[error("it imports what this host does not provide: {}", .0.join(", "))]
    MissingImports(Vec<String>),
    #[error("its imports do not fit this host: {0}")]
    Imports(String),
    #[error(
        "it exports neither wasi:cli/run nor wasi:http/incoming-handler (WASI 0.2), nor wasi:http/handler (0.3): there is nothing to run"
    )]
    NothingToRun,
    #[error(
        "the core module exports no function _start without parameters and results: there is nothing to run"
    )]
    NoStart,
}

/// A program, shared by all containers of its digest.
pub(crate) enum Program {
    /// A component with `wasi:cli/run`: runs once, to its end.
    Command(CommandPre<Guest>),
    /// A component with `wasi:http/incoming-handler`: one instance per request.
    Http(ProxyPre<Guest>),
    /// The same two of WASI 0.3.
    Command03(CommandPre03<Guest>),
    Http03(ServicePre<Guest>),
    /// A core module with `_start`.
    Module(wasmtime::InstancePre<ModuleGuest>),
}

/// What kind of program it is, for status and statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgramKind {
    Command,
    Http,
    Module,
}

impl ProgramKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Command => "wasi:cli component",
            Self::Http => "wasi:http component",
            Self::Module => "preview-1 module",
        }
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind().as_str())
    }
}

impl Program {
    pub(crate) fn kind(&self) -> ProgramKind {
        match self {
            Self::Command(_) | Self::Command03(_) => ProgramKind::Command,
            Self::Http(_) | Self::Http03(_) => ProgramKind::Http,
            Self::Module(_) => ProgramKind::Module,
        }
    }

    /// The WASI it was made for.
    pub(crate) fn wasi(&self) -> Wasi {
        match self {
            Self::Command(_) | Self::Http(_) | Self::Module(_) => Wasi::V02,
            Self::Command03(_) | Self::Http03(_) => Wasi::V03,
        }
    }

    /// Maps the file that the compiler child wrote for a component.
    ///
    /// `file` lies in the 0700 folder that only this user writes, under a name that was checked.
    pub(crate) fn map_component(
        engine: &WasmEngine,
        wasi: Wasi,
        file: &Path,
    ) -> Result<Self, ProgramError> {
        match wasi {
            Wasi::V02 => Self::map_02(engine, file),
            Wasi::V03 => Self::map_03(engine, file),
        }
    }

    /// A component of WASI 0.3. It may export its entry for 0.2 all the same.
    fn map_03(engine: &WasmEngine, file: &Path) -> Result<Self, ProgramError> {
        let (engine, linker) = engine.concurrent().map_err(ProgramError::Imports)?;
        let component = map_component(engine, file)?;
        let missing = imports::missing_in_component(&component, Wasi::V03);
        if !missing.is_empty() {
            return Err(ProgramError::MissingImports(missing));
        }
        let pre = linker.instantiate_pre(&component).map_err(import_error)?;
        if exports(&component, "wasi:http/handler@0.3.") {
            return ServicePre::new(pre).map(Self::Http03).map_err(import_error);
        }
        if exports(&component, "wasi:cli/run@0.3.") {
            return CommandPre03::new(pre)
                .map(Self::Command03)
                .map_err(import_error);
        }
        Err(ProgramError::NothingToRun)
    }

    fn map_02(engine: &WasmEngine, file: &Path) -> Result<Self, ProgramError> {
        let component = map_component(engine.on_demand(), file)?;
        let missing = imports::missing_in_component(&component, Wasi::V02);
        if !missing.is_empty() {
            return Err(ProgramError::MissingImports(missing));
        }
        // A service may come with a `run` that its toolchain added; a command never comes with a handler.
        if exports(&component, "wasi:http/incoming-handler@0.2.") {
            let pre = match Self::pooled_pre(engine, file) {
                Some(pre) => pre,
                None => engine
                    .linker
                    .instantiate_pre(&component)
                    .map_err(import_error)?,
            };
            return ProxyPre::new(pre).map(Self::Http).map_err(import_error);
        }
        if exports(&component, "wasi:cli/run@0.2.") {
            let pre = engine
                .linker
                .instantiate_pre(&component)
                .map_err(import_error)?;
            return CommandPre::new(pre)
                .map(Self::Command)
                .map_err(import_error);
        }
        Err(ProgramError::NothingToRun)
    }

    /// The program in the engine with prepared slots, if there is one and the component fits a slot.
    fn pooled_pre(engine: &WasmEngine, file: &Path) -> Option<InstancePre<Guest>> {
        let (pooled, linker) = engine.pooled()?;
        let component = map_component(pooled, file).ok()?;
        linker.instantiate_pre(&component).ok()
    }

    /// Maps the file that the compiler child wrote for a core module; same conditions.
    #[expect(
        unsafe_code,
        reason = "mapping machine code that this program compiled"
    )]
    pub(crate) fn map_module(engine: &WasmEngine, file: &Path) -> Result<Self, ProgramError> {
        // SAFETY: see `map_component`.
        let module = unsafe { Module::deserialize_file(engine.on_demand(), file) }
            .map_err(|err| ProgramError::Map(format!("{err:#}")))?;
        let missing = imports::missing_in_module(&module);
        if !missing.is_empty() {
            return Err(ProgramError::MissingImports(missing));
        }
        let start = module.get_export("_start");
        if !matches!(start, Some(ExternType::Func(ty)) if ty.params().len() == 0 && ty.results().len() == 0)
        {
            return Err(ProgramError::NoStart);
        }
        engine
            .module_linker
            .instantiate_pre(&module)
            .map(Self::Module)
            .map_err(import_error)
    }
}

#[expect(
    unsafe_code,
    reason = "mapping machine code that this program compiled"
)]
fn map_component(engine: &wasmtime::Engine, file: &Path) -> Result<Component, ProgramError> {
    // SAFETY: the file was written by our own compiler child into a folder of mode 0700 that belongs to this user
    // (`code::CodeCache` checks both), under a name made of a verified digest and the engine's compatibility hash. It is never
    // written again: a new version is renamed into place.
    unsafe { Component::deserialize_file(engine, file) }
        .map_err(|err| ProgramError::Map(format!("{err:#}")))
}

fn exports(component: &Component, prefix: &str) -> bool {
    let ty = component.component_type();
    ty.exports(component.engine())
        .any(|(name, _)| name.starts_with(prefix))
}

fn import_error(err: wasmtime::Error) -> ProgramError {
    ProgramError::Imports(format!("{err:#}"))
}
