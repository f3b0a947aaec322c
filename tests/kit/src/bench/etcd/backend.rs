//! The storage backend by itself, as the API server calls it: creations that compare and wait until etcd's watch has brought them back, with
//! somebody who watches them here. Beside it etcd alone, under the same number of clients with values of the same length.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use cox_store::{
    Attrs, Backend, Config, Durability, EtcdConfig, Indexer, Mutation, NewObject, ObjectKey, Op,
    Precondition, Store,
};
use tokio::task::JoinSet;

use super::raw::{self, Plan, Work};
use super::{Process, start_etcd};
use crate::{Figure, figure, memory};

/// Clients, and how many writes they share.
const LOADS: [(usize, usize); 3] = [(1, 1_000), (32, 8_000), (256, 12_000)];
const ROUNDS: usize = 5;
/// As long as a ConfigMap is that the other clients make through the API server.
pub(super) const LEN: usize = 1_400;

/// Of objects that nobody else writes nothing has to be found out.
struct NobodyElse;

impl Indexer for NobodyElse {
    fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
        Attrs::default()
    }
}

/// One run's time and CPU, both in microseconds for a write.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    time: f64,
    ours: f64,
    etcd: f64,
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// etcd's own work, over as many connections as there are clients or over one.
    Raw(Work, bool),
    /// etcd's own benchmark, likewise.
    Own(bool),
    Backend,
}

/// The backend last: the others are what it stands beside.
const WRITERS: [(&str, Writer); 7] = [
    (
        "etcd's own benchmark, a connection each",
        Writer::Own(false),
    ),
    ("etcd's own benchmark, one connection", Writer::Own(true)),
    ("puts, a connection each", Writer::Raw(Work::Puts, false)),
    ("puts, one connection", Writer::Raw(Work::Puts, true)),
    (
        "watched transactions, a connection each",
        Writer::Raw(Work::Watched, false),
    ),
    (
        "watched transactions, one connection",
        Writer::Raw(Work::Watched, true),
    ),
    ("the backend", Writer::Backend),
];

/// One etcd for what etcd does alone and one for the backend, whose watch is to cost nobody else anything.
struct Bed {
    alone: (Process, String),
    under: (Process, String),
    store: Store,
    benchmark: Option<PathBuf>,
}

impl Bed {
    fn new(benchmark: Option<PathBuf>) -> Result<Self> {
        let (alone, under) = (start_etcd()?, start_etcd()?);
        let config = Config::new(Backend::Etcd(EtcdConfig::new(vec![under.1.clone()])));
        let store = tokio::task::block_in_place(|| Store::open(config, Arc::new(NobodyElse)))?;
        Ok(Self {
            alone,
            under,
            store,
            benchmark,
        })
    }

    async fn run(&self, writer: Writer, clients: usize, writes: usize, run: &str) -> Result<Cost> {
        let etcd = match writer {
            Writer::Raw(..) | Writer::Own(_) => &self.alone,
            Writer::Backend => &self.under,
        };
        let cpu = || -> Result<[f64; 2]> {
            Ok([
                memory::cpu_seconds(std::process::id())?,
                memory::cpu_seconds(etcd.0.id())?,
            ])
        };
        let plan = |one| Plan {
            url: &etcd.1,
            clients,
            connections: if one { 1 } else { clients },
            writes,
            len: LEN,
            folder: run,
        };
        let before = cpu()?;
        let seconds = match writer {
            Writer::Backend => creations(&self.store, clients, writes, run).await?,
            Writer::Raw(work, one) => raw::run(work, plan(one)).await?,
            Writer::Own(one) => {
                let program = self.benchmark.as_deref();
                own_benchmark(program.context("etcd's benchmark")?, plan(one)).await?
            }
        };
        let after = cpu()?;
        let each = 1e6 / f64::from(u32::try_from(writes)?);
        Ok(Cost {
            time: seconds * each,
            ours: (after[0] - before[0]) * each,
            etcd: (after[1] - before[1]) * each,
        })
    }
}

/// Seconds that etcd's own benchmark takes for it by its own reckoning, which leaves out its start and its connecting.
async fn own_benchmark(program: &Path, plan: Plan<'_>) -> Result<f64> {
    let folder = format!("/benchmark/{}/", plan.folder);
    let output = tokio::process::Command::new(program)
        .args(["--endpoints", plan.url])
        .args(["--conns", &plan.connections.to_string()])
        .args(["--clients", &plan.clients.to_string()])
        .args(["put", "--sequential-keys", "--prefix", &folder])
        .args(["--total", &plan.writes.to_string()])
        .args(["--key-space-size", &plan.writes.to_string()])
        .args(["--val-size", &plan.len.to_string()])
        .stderr(Stdio::null())
        .output()
        .await?;
    let report = String::from_utf8_lossy(&output.stdout);
    let seconds = report
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Total:")?
                .split_whitespace()
                .next()
        })
        .with_context(|| format!("no total in the report of {}: {report}", program.display()))?;
    anyhow::ensure!(!report.contains("Error distribution"), "{report}");
    Ok(seconds.parse()?)
}

/// Seconds that so many creations take.
async fn creations(store: &Store, clients: usize, writes: usize, run: &str) -> Result<f64> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut watch = store.watch("configmaps", store.snapshot().revision())?;
    let watcher = tokio::spawn(async move {
        for _ in 0..writes {
            watch.next().await?;
        }
        anyhow::Ok(())
    });
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..clients {
        let (next, store, run) = (Arc::clone(&next), store.clone(), run.to_owned());
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= writes {
                    return anyhow::Ok(());
                }
                let new = NewObject {
                    json: vec![b'x'; LEN],
                    revision_at: 100,
                    attrs: Attrs::default(),
                };
                let mutation = Mutation {
                    key: ObjectKey::new("configmaps", format!("{run}/c-{number}")),
                    precondition: Precondition::Absent,
                    op: Op::Put(new),
                    durability: Durability::Durable,
                };
                store.commit(mutation).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    watcher.await??;
    Ok(begun.elapsed().as_secs_f64())
}

fn middle(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    let mut all: Vec<f64> = costs.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

pub(super) async fn measure(benchmark: Option<PathBuf>) -> Result<Vec<Figure>> {
    let mut writers = WRITERS.to_vec();
    writers.retain(|(_, writer)| benchmark.is_some() || !matches!(writer, Writer::Own(_)));
    let mut figures = Vec::new();
    for (clients, writes) in LOADS {
        let bed = Bed::new(benchmark.clone())?;
        let mut costs = vec![Vec::new(); writers.len()];
        // The first round warms up and does not count.
        for round in 0..=ROUNDS {
            for at in 0..writers.len() {
                // Each of them comes first once.
                let at = (at + round) % writers.len();
                let run = format!("{round}-{at}");
                let cost = bed.run(writers[at].1, clients, writes, &run).await?;
                if round > 0 {
                    costs[at].push(cost);
                }
            }
        }
        bed.store.close().await;
        figures.extend(lines(clients, &writers, &costs));
    }
    Ok(figures)
}

fn lines(clients: usize, writers: &[(&str, Writer)], costs: &[Vec<Cost>]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for ((name, writer), costs) in writers.iter().zip(costs) {
        let (rate, unit) = (1e6 / middle(costs, |cost| cost.time), "/s");
        let title = format!("etcd, {clients} clients: {name}");
        figures.push(figure(&title, unit, "", rate, true));
        let (ours, etcd) = (
            middle(costs, |cost| cost.ours),
            middle(costs, |cost| cost.etcd),
        );
        // What another program uses is not seen from here.
        if !matches!(writer, Writer::Own(_)) {
            figures.push(figure("  CPU of the client", "us", "", ours, false));
        }
        figures.push(figure("  CPU of etcd", "us", "", etcd, false));
    }
    let backend = writers.len() - 1;
    for (at, (name, writer)) in writers.iter().enumerate().take(backend) {
        // Within each round, for a machine that others use is faster in one than in the next.
        let mut shares: Vec<f64> = costs[at]
            .iter()
            .zip(&costs[backend])
            .map(|(alone, backend)| alone.time / backend.time * 100.0)
            .collect();
        shares.sort_by(f64::total_cmp);
        let title = format!("  the backend's share of {name}");
        let puts = matches!(writer, Writer::Own(_) | Writer::Raw(Work::Puts, _));
        let promise = if puts { "80" } else { "" };
        figures.push(figure(&title, "%", promise, shares[shares.len() / 2], true));
    }
    figures
}
