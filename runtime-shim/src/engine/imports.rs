//! What guests may import: WASI 0.2 and wasi:http for components, those of 0.3 too where a component was made for it, preview 1 for core modules, with the Pod's network in the place
//! of the host's.

use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, ExternType, Module};

use super::guest::{Guest, ModuleGuest};
use super::{Wasi, config_store};
use crate::network;

pub(crate) fn component_linker(engine: &Engine, wasi: Wasi) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    network::shadow_sockets(&mut linker)?;
    config_store::add_to_linker(&mut linker)?;
    if wasi == Wasi::V03 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        network::shadow_sockets_03(&mut linker)?;
    }
    Ok(linker)
}

pub(crate) fn module_linker(engine: &Engine) -> wasmtime::Result<wasmtime::Linker<ModuleGuest>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |guest: &mut ModuleGuest| &mut guest.ctx)?;
    Ok(linker)
}

/// Packages of WASI that the host implements as a whole.
const PACKAGES: [&str; 8] = [
    "wasi:cli",
    "wasi:clocks",
    "wasi:config",
    "wasi:filesystem",
    "wasi:http",
    "wasi:io",
    "wasi:random",
    "wasi:sockets",
];

/// The imports of a component that no part of the host provides. Empty does not yet mean that all types fit; instantiating
/// tells.
pub(crate) fn missing_in_component(component: &Component, wasi: Wasi) -> Vec<String> {
    let engine = component.engine();
    let ty = component.component_type();
    ty.imports(engine)
        .map(|(name, _)| name)
        .filter(|name| !provided(name, wasi))
        .map(str::to_owned)
        .collect()
}

fn provided(import: &str, wasi: Wasi) -> bool {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    let package = interface
        .split_once('/')
        .map_or(interface, |(package, _)| package);
    let known = version.starts_with("0.2.") || (wasi == Wasi::V03 && version.starts_with("0.3."));
    known && PACKAGES.contains(&package)
}

/// The imports of a core module that the host does not provide.
pub(crate) fn missing_in_module(module: &Module) -> Vec<String> {
    module
        .imports()
        .filter(|import| {
            import.module() != "wasi_snapshot_preview1"
                || !matches!(import.ty(), ExternType::Func(_))
        })
        .map(|import| format!("{}.{}", import.module(), import.name()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_told_by_package_and_version() {
        let cases = [
            ("a WASI 0.2 interface", "wasi:cli/environment@0.2.3", true),
            ("wasi:http", "wasi:http/types@0.2.0", true),
            (
                "WASI 0.3 in a component that was compiled without it",
                "wasi:cli/environment@0.3.0",
                false,
            ),
            ("another package", "wasi:keyvalue/store@0.2.0-draft", false),
            ("a bare name", "host", false),
        ];
        for (case, import, expected) in cases {
            assert_eq!(provided(import, Wasi::V02), expected, "case: {case}");
        }
    }
}
