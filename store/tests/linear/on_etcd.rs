//! etcd: three members, of which one at a time is killed or paused while clients of two stores work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cox_store::{Backend, Config, EtcdConfig, Store};
use parking_lot::Mutex;

use crate::client::{self, KEYS, Plain, Plan, Random, Tell};
use crate::etcd_kit::{self, Cluster};
use crate::record::Record;

const CLIENTS: u64 = 6;

struct Shared(Mutex<(Record, Instant, Duration)>);

impl Tell for Shared {
    fn tell(&self, line: String) {
        let mut shared = self.0.lock();
        shared.0.line(&line);
        if line.ends_with(" done") || line.contains(" deleted ") {
            let pause = shared.1.elapsed();
            shared.2 = shared.2.max(pause);
            shared.1 = Instant::now();
        }
    }
}

pub fn histories_are_linear_whatever_happens_to_a_member() {
    let name = "histories_are_linear_whatever_happens_to_a_member";
    if !etcd_kit::installed(name) {
        return;
    }
    let seed = client::number("COX_STORE_SEED", client::fresh_seed());
    let rounds = client::number("COX_STORE_ROUNDS", 20).div_ceil(4);
    println!("seed {seed}, {rounds} rounds");
    let mut cluster = Cluster::start(3);
    let open = |first: usize| {
        let mut endpoints = cluster.endpoints();
        endpoints.rotate_left(first);
        let backend = Backend::Etcd(EtcdConfig::new(endpoints));
        Store::open(Config::new(backend), Arc::new(Plain)).unwrap_or_else(|error| panic!("{error}"))
    };
    let stores = [open(0), open(1)];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut random = Random::new(seed);
    let (mut acknowledged, mut longest) = (0, Duration::ZERO);
    for round in 0..rounds {
        let (record, pause) =
            runtime.block_on(one_round(&stores, &mut cluster, &mut random, round, seed));
        acknowledged += record.acknowledged;
        longest = longest.max(pause);
        let wrong = record.wrong();
        assert!(
            wrong.is_empty(),
            "seed {seed}, round {round}: no order explains {wrong:#?}"
        );
    }
    println!(
        "{acknowledged} acknowledged operations in {rounds} rounds: all explained; the longest time without a write {longest:?}"
    );
}

async fn one_round(
    stores: &[Store; 2],
    cluster: &mut Cluster,
    random: &mut Random,
    round: u64,
    seed: u64,
) -> (Record, Duration) {
    let shared = Arc::new(Shared(Mutex::new((
        Record::default(),
        Instant::now(),
        Duration::ZERO,
    ))));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let plan = Plan {
                group: round,
                base: (round * CLIENTS + number) * 1_000_000 + 1,
                seed: seed.wrapping_add(round * 1000 + number),
                ops: 30,
                large_one_in: 20,
            };
            let store = stores[usize::try_from(number % 2).expect("two")].clone();
            tokio::spawn(client::run(store, plan, shared.clone()))
        })
        .collect();
    let member = usize::try_from(random.below(3)).expect("three");
    let wait = Duration::from_millis(random.below(120));
    tokio::time::sleep(wait).await;
    let paused = random.below(2) == 0;
    if paused {
        cluster.pause(member);
    } else {
        cluster.kill(member);
    }
    for client in clients {
        client.await.expect("no client panics");
    }
    if paused {
        cluster.resume(member);
    } else {
        cluster.run(member);
    }
    let (mut record, pause) = {
        let mut shared = shared.0.lock();
        (std::mem::take(&mut shared.0), shared.2)
    };
    for store in stores {
        let snapshot = loop {
            if let Ok(snapshot) = store.current().await {
                break snapshot;
            }
        };
        for at in 0..KEYS {
            let key = client::key(round, at);
            let object = snapshot.get(&key.resource, &key.path);
            record.read(at, object.map(|object| client::value(&object)));
        }
    }
    (record, pause)
}
