//! Kills a writing process fifty times, in the middle of small and 1 MiB writes, and checks each time that nothing that
//! was acknowledged is lost and that revisions never go backwards.
//!
//! Starts itself as the process to be killed, so it has a `main` of its own. It understands as much of the test
//! harness's arguments as `cargo test` and `cargo nextest` need.

#![allow(
    clippy::print_stdout,
    reason = "the process to be killed reports on its standard output"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cox_store::{
    Attrs, Backend, Config, Durability, Indexer, Mutation, NewObject, ObjectKey, Op, Precondition,
    Revision, Store,
};

const NAME: &str = "acknowledged_writes_survive_fifty_kills";
const KILLS: usize = 50;
const WRITERS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write-until-killed", dir, round] => {
            write_until_killed(Path::new(dir), round.parse().expect("a number"))
        }
        _ if arguments.iter().any(|argument| argument == "--list") => {
            if !arguments.iter().any(|argument| argument == "--ignored") {
                println!("{NAME}: test");
            }
        }
        _ if arguments
            .iter()
            .any(|argument| !argument.starts_with('-') && !NAME.contains(argument.as_str())) => {}
        _ => acknowledged_writes_survive_fifty_kills(),
    }
}

struct NoAttrs;

impl Indexer for NoAttrs {
    fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
        Attrs::default()
    }
}

fn open(dir: &Path) -> Store {
    let config = Config::new(Backend::Sled {
        dir: dir.to_owned(),
    });
    Store::open(config, Arc::new(NoAttrs)).unwrap_or_else(|error| panic!("{error}"))
}

/// A body that tells its path, its number and whether it is whole.
fn new_object(path: &str, number: u64, len: usize) -> NewObject {
    let mut json = format!("\"\" {path} {number} ").into_bytes();
    json.resize(
        json.len() + len,
        b'a' + u8::try_from(number % 26).expect("below 26"),
    );
    NewObject {
        json,
        revision_at: 1,
        attrs: Attrs::default(),
    }
}

fn write_until_killed(dir: &Path, round: u64) {
    let store = open(dir);
    println!("start {}", store.snapshot().revision());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let writers = (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer, round)));
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no writer panics");
        }
    });
}

/// Each writer has keys of its own; every fifth write is large, some are deletions, some are lazy.
async fn write(store: Store, writer: usize, round: u64) {
    for step in 0.. {
        let number = round * 1_000_000 + step;
        let lazy = step % 7 == 3;
        let path = format!(
            "{writer}/{}{}",
            if lazy { "lazy" } else { "key" },
            step % 11
        );
        let len = if (step + round) % 5 == u64::try_from(writer).expect("few") % 5 {
            1024 * 1024
        } else {
            900
        };
        let delete = step % 13 == 12 && store.snapshot().get("configmaps", &path).is_some();
        let mutation = Mutation {
            key: ObjectKey::new("configmaps", path.as_str()),
            precondition: Precondition::None,
            op: if delete {
                Op::Delete
            } else {
                Op::Put(new_object(&path, number, len))
            },
            durability: if lazy {
                Durability::Lazy
            } else {
                Durability::Durable
            },
        };
        println!("trying {path} {number}");
        let committed = store.commit(mutation).await.expect("the disk works");
        let state = if delete { "deleted" } else { "put" };
        println!("done {path} {number} {} {state}", committed.revision);
        std::io::stdout().flush().expect("the parent listens");
    }
}

/// What the parent knows of a path: the last acknowledged state, and what was tried after it.
#[derive(Default)]
struct Known {
    acknowledged: Option<(u64, bool)>,
    tried: Option<u64>,
}

fn acknowledged_writes_survive_fifty_kills() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir: PathBuf = dir.path().join("store");
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut revision_max = Revision(0);
    let mut acknowledged = 0;
    for round in 0..KILLS {
        // A different point each time, from the very first writes on.
        let kill_after = 1 + (round * 37) % 211;
        acknowledged += run_and_kill(&dir, round, kill_after, &mut known, &mut revision_max);
        check(&dir, &mut known, &mut revision_max);
    }
    println!(
        "{acknowledged} acknowledged writes in {KILLS} killed processes, up to revision {revision_max}"
    );
    println!("test {NAME} ... ok");
}

fn run_and_kill(
    dir: &Path,
    round: usize,
    kill_after: usize,
    known: &mut BTreeMap<String, Known>,
    revision_max: &mut Revision,
) -> usize {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .args([
            "write-until-killed".as_ref(),
            dir.as_os_str(),
            round.to_string().as_ref(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut acknowledged = 0;
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("text");
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["start", revision] => {
                let revision = Revision(revision.parse().expect("a revision"));
                assert!(
                    revision >= *revision_max,
                    "revisions went back from {revision_max} to {revision}"
                );
            }
            ["trying", path, number] => {
                known.entry(path.into()).or_default().tried =
                    Some(number.parse().expect("a number"));
            }
            ["done", path, number, revision, state] => {
                let entry = known.entry(path.into()).or_default();
                entry.acknowledged = Some((number.parse().expect("a number"), state == "deleted"));
                *revision_max =
                    (*revision_max).max(Revision(revision.parse().expect("a revision")));
                acknowledged += 1;
            }
            _ if killed => {}
            _ => panic!("the child said {line:?}"),
        }
        if acknowledged >= kill_after && !killed {
            child.kill().expect("it runs");
            killed = true;
        }
    }
    let status = child.wait().expect("it ran");
    assert!(
        killed && !status.success(),
        "the child ended by itself: {status}"
    );
    acknowledged
}

fn check(dir: &Path, known: &mut BTreeMap<String, Known>, revision_max: &mut Revision) {
    let store = open(dir);
    let snapshot = store.snapshot();
    assert!(
        snapshot.revision() >= *revision_max,
        "revisions went back from {revision_max} to {}",
        snapshot.revision()
    );
    *revision_max = snapshot.revision();
    for object in snapshot.range("configmaps", "", None) {
        let path = &*object.key.path;
        let (_, number) = read(&object.json, path);
        let known = known
            .get(path)
            .unwrap_or_else(|| panic!("{path} was never written"));
        assert!(
            number <= known.tried.unwrap_or(0),
            "{path} has number {number} from the future"
        );
    }
    for (path, known) in known.iter_mut() {
        let found = snapshot
            .get("configmaps", path)
            .map(|object| read(&object.json, path).1);
        let lazy = path.contains("lazy");
        if let (Some((number, deleted)), false) = (known.acknowledged, lazy) {
            let as_acknowledged = if deleted {
                found.is_none()
            } else {
                found == Some(number)
            };
            let as_tried_later = known
                .tried
                .is_some_and(|tried| tried > number && found.is_none_or(|found| found == tried));
            assert!(
                as_acknowledged || as_tried_later,
                "{path}: acknowledged {number} (deleted: {deleted}), found {found:?}"
            );
        }
        // What was found is what is on disk: from here on it counts as acknowledged.
        known.acknowledged = Some((found.unwrap_or(0), found.is_none()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(store.close());
}

/// Revision and number of a body, which must be whole.
fn read(json: &[u8], path: &str) -> (u64, u64) {
    let text = std::str::from_utf8(json).expect("text");
    let mut words = text.splitn(4, ' ');
    let revision = words
        .next()
        .and_then(|word| word.trim_matches('"').parse().ok())
        .expect("a revision");
    assert_eq!(words.next(), Some(path));
    let number: u64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a number");
    let fill = words.next().expect("the rest").as_bytes();
    let letter = b'a' + u8::try_from(number % 26).expect("below 26");
    assert!(
        [900, 1024 * 1024].contains(&fill.len()) && fill.iter().all(|byte| *byte == letter),
        "{path} is torn"
    );
    (revision, number)
}
