//! What a reviewer would forget: the edges between crates, module docs, and examples without a test.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which crates of this workspace each may use in its product code; `cox` itself may use all.
const EDGES: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("store", &[]),
    ("cri", &[]),
    ("apiserver", &["cox-api", "cox-store"]),
    ("client", &["cox-api"]),
    ("scheduler", &["cox-api", "cox-client"]),
    ("controllers", &["cox-api", "cox-client"]),
    ("kubelet", &["cox-api", "cox-client", "cox-cri"]),
    ("network", &["cox-api", "cox-client"]),
    ("gateway", &["cox-client"]),
    ("runtime-shim", &["cox-cri"]),
];

/// Heavy dependencies live in one crate each.
const HEAVY: &[(&str, &str)] = &[
    ("wasmtime", "runtime-shim"),
    ("sled", "store"),
    ("oci-client", "runtime-shim"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names in `[dependencies]` of a crate's manifest.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section = text
        .split("\n[dependencies]\n")
        .nth(1)
        .unwrap_or_default()
        .split("\n[")
        .next()
        .unwrap_or_default()
        .to_owned();
    section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in EDGES {
        let used: BTreeSet<String> = dependencies(folder)
            .into_iter()
            .filter(|name| name.starts_with("cox-"))
            .collect();
        let allowed: BTreeSet<String> = allowed.iter().map(ToString::to_string).collect();
        assert!(
            used.is_subset(&allowed),
            "{folder} uses {:?}",
            used.difference(&allowed)
        );
    }
    assert!(!dependencies("api").contains("tokio"), "api does no I/O");
}

#[test]
fn heavy_dependencies_live_in_one_crate() {
    for (dependency, home) in HEAVY {
        for (folder, _) in EDGES.iter().filter(|(folder, _)| folder != home) {
            assert!(
                !dependencies(folder).contains(*dependency),
                "{dependency} belongs in {home}, not in {folder}"
            );
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    let mut silent = Vec::new();
    for (folder, _) in EDGES {
        silent.extend(
            rust_files(&root().join(folder).join("src"))
                .into_iter()
                .filter(|path| {
                    let text = std::fs::read_to_string(path).unwrap();
                    !path.to_string_lossy().ends_with("tests.rs")
                        && !path.components().any(|part| part.as_os_str() == "tests")
                        && !text.starts_with("//!")
                }),
        );
    }
    silent.extend(
        rust_files(&root().join("src"))
            .into_iter()
            .filter(|path| !std::fs::read_to_string(path).unwrap().starts_with("//!")),
    );
    assert!(silent.is_empty(), "no module docs: {silent:#?}");
}

#[test]
fn every_example_has_a_test_and_its_guests_source() {
    let tests = std::fs::read_to_string(root().join("tests/examples.rs")).unwrap();
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let is_manifest = |file: std::fs::DirEntry| {
            file.path()
                .extension()
                .is_some_and(|ending| ending == "yaml")
        };
        if !path.is_dir()
            || !std::fs::read_dir(&path)
                .unwrap()
                .any(|file| is_manifest(file.unwrap()))
        {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            // One that is a story has a file of its own.
            tests.contains(&format!("fn example_{name}("))
                || root().join(format!("tests/{name}.rs")).exists(),
            "examples/{name} has no test"
        );
        for file in std::fs::read_dir(&path)
            .unwrap()
            .map(|file| file.unwrap().path())
        {
            if file.extension().is_some_and(|ending| ending == "wasm") {
                // One that is borrowed from another example has its source there.
                let home = file.canonicalize().unwrap();
                assert!(
                    home.with_file_name("guest/Cargo.toml").exists(),
                    "{} has no source beside it",
                    file.display()
                );
            }
        }
    }
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}
