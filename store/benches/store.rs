//! What the store costs. `cargo bench -p cox-store` prints, for both backends: acknowledged creates per second with 32
//! concurrent writers of 1 KB objects, resident memory per object, and for sled the time to open 100,000 objects.

#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench prints its figures"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cox_store::{
    Attrs, Backend, Config, Durability, Indexer, Mutation, NewObject, ObjectKey, Op, Precondition,
    Store,
};

const OBJECTS: usize = 100_000;
const WRITERS: usize = 32;
const JSON_LEN: usize = 1000;

struct NoAttrs;

impl Indexer for NoAttrs {
    fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
        Attrs::default()
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["memory", _] => creates("memory", Backend::Memory),
        ["sled", dir] => creates("sled", Backend::Sled { dir: dir.into() }),
        ["open", dir] => opens(Path::new(dir)),
        ["update", dir] => updates(Path::new(dir)),
        _ => all(),
    }
}

/// Each part in a process of its own, so that the memory figures are those of that part.
fn all() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("store");
    for part in ["memory", "sled", "open", "update"] {
        let program = std::env::current_exe().expect("this program");
        let status = std::process::Command::new(program)
            .arg(part)
            .arg(&folder)
            .status();
        assert!(status.expect("a child").success(), "{part} failed");
    }
    println!("sled: {:.1} MB on disk", megabytes(dir_bytes(&folder)));
}

fn open(backend: Backend) -> Store {
    Store::open(Config::new(backend), Arc::new(NoAttrs)).unwrap_or_else(|error| panic!("{error}"))
}

fn creates(name: &str, backend: Backend) {
    let resident_before = resident_bytes();
    let store = open(backend);
    let took = write(&store, Precondition::Absent, Durability::Durable);
    let per_second = OBJECTS as f64 / took.as_secs_f64();
    println!(
        "{name}: {per_second:.0} creates/s ({OBJECTS} objects of {JSON_LEN} B, {WRITERS} writers)"
    );
    let held = resident_bytes().saturating_sub(resident_before);
    println!("{name}: {} B resident per object", held / OBJECTS);
    close(&store);
}

fn opens(folder: &Path) {
    let resident_before = resident_bytes();
    let started = Instant::now();
    let store = open(Backend::Sled {
        dir: folder.to_owned(),
    });
    assert_eq!(store.snapshot().count("configmaps", ""), OBJECTS);
    println!(
        "sled: {:.0} ms to open {OBJECTS} objects",
        started.elapsed().as_secs_f64() * 1000.0
    );
    println!(
        "sled: {} B resident per object once opened",
        resident_bytes().saturating_sub(resident_before) / OBJECTS
    );
    close(&store);
}

fn updates(folder: &Path) {
    let store = open(Backend::Sled {
        dir: folder.to_owned(),
    });
    for (name, durability) in [
        ("updates", Durability::Durable),
        ("lazy updates", Durability::Lazy),
    ] {
        let took = write(&store, Precondition::Present, durability);
        println!("sled: {:.0} {name}/s", OBJECTS as f64 / took.as_secs_f64());
    }
    close(&store);
}

fn write(store: &Store, precondition: Precondition, durability: Durability) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    let started = Instant::now();
    runtime.block_on(async {
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0..OBJECTS / WRITERS {
                    let mutation = Mutation {
                        key: ObjectKey::new(
                            "configmaps",
                            format!("default/object-{writer}-{number}"),
                        ),
                        precondition,
                        op: Op::Put(NewObject {
                            json: vec![b'x'; JSON_LEN],
                            revision_at: 100,
                            attrs: Attrs::default(),
                        }),
                        durability,
                    };
                    store.commit(mutation).await.expect("the disk works");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no writer panics");
        }
    });
    started.elapsed()
}

fn close(store: &Store) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(store.close());
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn dir_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("a folder").flatten();
    let len = |entry: std::fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
    entries.map(len).sum()
}

/// Resident memory of this process, from `/proc`.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
