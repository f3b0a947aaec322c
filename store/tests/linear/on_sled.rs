//! sled: a process is killed at a random point, again and again; also with its last blocks torn off, and on a disk that fills up.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cox_store::{Backend, Config, OpenError, Store};

use crate::client::{self, KEYS, Plain, Plan, Random, Tell};
use crate::record::Record;

const CLIENTS: u64 = 6;

fn open(dir: &Path) -> Result<Store, OpenError> {
    let config = Config::new(Backend::Sled {
        dir: dir.to_owned(),
    });
    Store::open(config, Arc::new(Plain))
}

pub struct Print;

impl Tell for Print {
    fn tell(&self, line: String) {
        // One write, so that lines of several threads stay whole.
        let mut out = std::io::stdout().lock();
        out.write_all(format!("{line}\n").as_bytes())
            .and_then(|()| out.flush())
            .expect("the parent listens");
    }
}

/// The process that is killed.
pub fn victim(dir: &Path, group: u64, seed: u64, tell: Arc<dyn Tell>) {
    let store = match open(dir) {
        Ok(store) => store,
        Err(error) => panic!("{error}"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| Plan {
                group,
                base: (group * CLIENTS + number) * 1_000_000 + 1,
                seed: seed.wrapping_add(number),
                ops: 100_000,
                large_one_in: 25,
            })
            .map(|plan| tokio::spawn(client::run(store.clone(), plan, Arc::clone(&tell))))
            .collect();
        for client in clients {
            client.await.expect("no client panics");
        }
    });
}

/// Runs a victim and kills it after so many operations; on a full disk it ends by itself.
fn run_and_kill(dir: &Path, group: u64, seed: u64, kill_after: u64) -> Record {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["victim".as_ref(), dir.as_os_str()])
        .args([group.to_string(), seed.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut record = Record::default();
    let mut lines = 0;
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        record.line(&line.expect("text"));
        lines += 1;
        if lines >= kill_after && !killed {
            child.kill().expect("it is ours");
            killed = true;
        }
    }
    let status = child.wait().expect("it ran");
    assert!(killed || status.success(), "the victim failed: {status}");
    record
}

/// What a group of keys holds.
fn values(store: &Store, group: u64) -> Vec<Option<u64>> {
    let snapshot = store.snapshot();
    let value = |at| {
        let key = client::key(group, at);
        let object = snapshot.get(&key.resource, &key.path)?;
        Some(client::value(&object))
    };
    (0..KEYS).map(value).collect()
}

fn close(store: Store) {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(store.close());
}

/// Reads everything after a crash, and judges the group that was being written.
pub fn judge(
    dir: &Path,
    group: u64,
    mut record: Record,
    settled: &mut BTreeMap<u64, Vec<Option<u64>>>,
    seed: u64,
) {
    let store = open(dir).unwrap_or_else(|error| panic!("seed {seed}, round {group}: {error}"));
    for (group, expected) in settled.iter() {
        assert_eq!(
            &values(&store, *group),
            expected,
            "seed {seed}: group {group} changed"
        );
    }
    let found = values(&store, group);
    for (at, value) in found.iter().enumerate() {
        record.read(at, *value);
    }
    let wrong = record.wrong();
    assert!(
        wrong.is_empty(),
        "seed {seed}, round {group}: no order explains {wrong:#?}"
    );
    settled.insert(group, found);
    close(store);
}

/// What a torn end of one of its files does: nothing is lost, or the store says that it is damaged.
fn tear(
    dir: &Path,
    random: &mut Random,
    seed: u64,
    settled: &BTreeMap<u64, Vec<Option<u64>>>,
) -> &'static str {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
        }
    }
    let files = ["db", "journal-0", "journal-1"];
    let path = copy
        .path()
        .join(files[usize::try_from(random.below(3)).expect("small")]);
    let mut bytes = std::fs::read(&path).expect("a file of the store");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    let lost = usize::try_from(1 + random.below(8) * 512 + random.below(40_000)).expect("small");
    let start = end.saturating_sub(lost);
    if random.below(2) == 0 {
        bytes.truncate(start);
    } else {
        bytes[start..end].fill(0);
    }
    std::fs::write(&path, bytes).expect("written");
    match open(copy.path()) {
        Err(OpenError::Damaged { .. }) => "named",
        Err(error) => panic!("seed {seed}: {error}"),
        Ok(store) => {
            for (group, expected) in settled {
                assert_eq!(
                    &values(&store, *group),
                    expected,
                    "seed {seed}: lost with {lost} torn bytes"
                );
            }
            close(store);
            "harmless"
        }
    }
}

pub fn histories_are_linear_whenever_the_process_is_killed() {
    let seed = client::number("COX_STORE_SEED", client::fresh_seed());
    let rounds = client::number("COX_STORE_ROUNDS", 20);
    println!("seed {seed}, {rounds} rounds");
    let mut random = Random::new(seed);
    let dir = tempfile::tempdir().expect("a folder");
    let dir: PathBuf = dir.path().join("store");
    let mut settled = BTreeMap::new();
    let (mut acknowledged, mut named, mut harmless) = (0, 0, 0);
    for group in 0..rounds {
        let kill_after = 1 + random.below(600);
        let record = run_and_kill(&dir, group, seed.wrapping_add(group * 1000), kill_after);
        acknowledged += record.acknowledged;
        if random.below(4) == 0 {
            match tear(&dir, &mut random, seed, &settled) {
                "named" => named += 1,
                _ => harmless += 1,
            }
        }
        judge(&dir, group, record, &mut settled, seed);
        // The more groups there are, the longer each opening takes.
        while settled.len() > 50 {
            settled.pop_first();
        }
    }
    println!(
        "{acknowledged} acknowledged operations in {rounds} killed processes: all explained; torn ends: {named} named, {harmless} harmless"
    );
}

/// A small disk of memory; none where nobody may mount.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(dir))
    }

    fn grow(&self) {
        let status = Command::new("mount")
            .args(["-o", "remount,size=400m"])
            .arg(self.0.path())
            .status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let_go(self.0.path());
    }
}

/// Unmounts: sled's threads may take a moment to close their files.
pub fn let_go(mounted: &Path) {
    let gone = (0..100).any(|_| {
        let status = Command::new("umount").arg(mounted).status();
        let gone = status.is_ok_and(|status| status.success());
        if !gone {
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        gone
    });
    assert!(gone || std::thread::panicking());
}

pub fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let seed = client::number("COX_STORE_SEED", client::fresh_seed());
    let rounds = client::number("COX_STORE_ROUNDS", 20).div_ceil(10);
    println!("seed {seed}, {rounds} rounds");
    for round in 0..rounds {
        let Some(disk) = Disk::mount() else {
            assert!(std::env::var_os("CI").is_none(), "no tmpfs can be mounted");
            println!("skipped: no tmpfs can be mounted");
            return;
        };
        let dir = disk.0.path().join("store");
        let seed = seed.wrapping_add(round * 7919);
        // More operations than fit: the store refuses, or the process ends.
        let record = run_and_kill(&dir, 0, seed, 20_000);
        let acknowledged = record.acknowledged;
        disk.grow();
        let mut settled = BTreeMap::new();
        judge(&dir, 0, record, &mut settled, seed);
        let record = run_and_kill(&dir, 1, seed + 1, 50);
        judge(&dir, 1, record, &mut settled, seed);
        println!("{acknowledged} acknowledged before the disk was full");
    }
}
