//! Three API servers over three members of etcd, clients that write all the time, and one of each that is killed: nothing that was
//! acknowledged is lost, and who tries again soon succeeds. How soon is printed.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::print_stdout,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "tests are stories that fail by panicking; this one reports, and its clients are threads that pause between tries"
)]

#[path = "../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cox_testkit::cluster::binary;
use cox_testkit::eventually;
use cox_testkit::http::Admin;
use serde_json::{Value, json};

const COX: &str = env!("CARGO_BIN_EXE_cox");
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CLIENTS: usize = 6;
/// Before a client tries again at the next server.
const PAUSE: Duration = Duration::from_millis(20);

/// A `cox server`, killed when dropped.
struct Server {
    dir: PathBuf,
    process: Child,
}

impl Server {
    fn start(home: &Path, name: &str, endpoints: &[String]) -> Self {
        let dir = home.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let process = Command::new(binary(COX))
            .args([
                "server",
                "--port",
                "0",
                "--etcd-servers",
                &endpoints.join(","),
            ])
            .arg("--data-dir")
            .arg(&dir)
            .arg("--state-dir")
            .arg(dir.join("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { dir, process };
        eventually("cox server to be ready", || {
            let printed = std::fs::read_to_string(server.dir.join("log")).unwrap();
            if printed.contains("control plane is ready") {
                Ok(())
            } else {
                Err(printed)
            }
        });
        server
    }

    fn admin(&self) -> Admin {
        Admin::of(&self.dir.join("kubeconfig"))
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn copy_keys(from: &Server, home: &Path, name: &str) {
    let to = home.join(name).join("pki");
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(from.dir.join("pki")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    /// The last acknowledged value of each object.
    acknowledged: BTreeMap<String, u64>,
    /// From the first attempt to the answer, the longest since somebody looked.
    longest: Duration,
    requests: usize,
    retries: usize,
}

/// Tries until it is acknowledged, at one server after the other. Says whether more than one attempt was made.
fn insist(
    admins: &[Admin],
    at: &mut usize,
    seen: &Mutex<Seen>,
    call: impl Fn(&Admin) -> Option<u16>,
    good: &[u16],
) -> bool {
    let begun = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let code = call(&admins[*at % admins.len()]);
        let late = tries > 1;
        // What was tried before may have happened.
        if code.is_some_and(|code| good.contains(&code) || (late && code == 409)) {
            let mut seen = seen.lock().unwrap();
            seen.longest = seen.longest.max(begun.elapsed());
            seen.requests += 1;
            seen.retries += tries - 1;
            return late;
        }
        assert!(
            code.is_none_or(|code| code >= 500 || code == 429),
            "refused: {code:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "never acknowledged: {code:?}"
        );
        std::thread::sleep(PAUSE);
        *at += 1;
    }
}

/// Makes objects and changes them, until told to stop.
fn client(number: usize, admins: &[Admin], seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut at = number;
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("w-{number}-{made}");
        made += 1;
        let object = json!({"metadata": {"name": name}, "data": {"value": "0"}});
        let create = |admin: &Admin| admin.post(CONFIG_MAPS, &object).ok().map(|(code, _)| code);
        insist(admins, &mut at, seen, create, &[201]);
        seen.lock().unwrap().acknowledged.insert(name.clone(), 0);
        for value in 1..=3_u64 {
            let patch = json!({"data": {"value": value.to_string()}}).to_string();
            let path = format!("{CONFIG_MAPS}/{name}");
            let change = |admin: &Admin| {
                let kind = "application/merge-patch+json";
                let answer = admin.request("PATCH", &path, kind, patch.as_bytes());
                answer.ok().map(|(code, _)| code)
            };
            insist(admins, &mut at, seen, change, &[200]);
            seen.lock()
                .unwrap()
                .acknowledged
                .insert(name.clone(), value);
        }
    }
}

fn phase(seen: &Mutex<Seen>, name: &str, length: Duration) {
    std::thread::sleep(length);
    let mut seen = seen.lock().unwrap();
    println!(
        "{name}: {} requests, {} tried again, the longest took {:?}",
        seen.requests, seen.retries, seen.longest
    );
    (seen.longest, seen.requests, seen.retries) = (Duration::ZERO, 0, 0);
}

/// The member that leads.
fn leader(etcd: &etcd_kit::Cluster) -> usize {
    let status = etcd.etcdctl(&["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_slice(&status).unwrap();
    let leads = |one: &&Value| one["Status"]["leader"] == one["Status"]["header"]["member_id"];
    let found = status.as_array().unwrap().iter().find(leads).unwrap();
    let endpoint = found["Endpoint"].as_str().unwrap();
    etcd.endpoints()
        .iter()
        .position(|one| one == endpoint)
        .unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_while_one_server_and_one_member_die() {
    let name = "nothing_acknowledged_is_lost_while_one_server_and_one_member_die";
    if !etcd_kit::installed(name) {
        return;
    }
    let home = tempfile::Builder::new()
        .prefix("cox-t")
        .tempdir_in("/tmp")
        .unwrap();
    let mut etcd = etcd_kit::Cluster::start(3);
    let endpoints = |first: usize| {
        let mut all = etcd.endpoints();
        all.rotate_left(first);
        all
    };
    let first = Server::start(home.path(), "s0", &endpoints(0));
    copy_keys(&first, home.path(), "s1");
    copy_keys(&first, home.path(), "s2");
    let mut servers = vec![first];
    for at in 1..3 {
        servers.push(Server::start(
            home.path(),
            &format!("s{at}"),
            &endpoints(at),
        ));
    }
    let admins: Vec<Admin> = servers.iter().map(Server::admin).collect();
    let (seen, stop) = (Mutex::new(Seen::default()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (admins, seen, stop) = (&admins, &seen, &stop);
            scope.spawn(move || client(number, admins, seen, stop));
        }
        phase(&seen, "quiet", Duration::from_secs(4));
        let leading = leader(&etcd);
        etcd.kill(leading);
        phase(
            &seen,
            "the leading member is killed",
            Duration::from_secs(8),
        );
        etcd.run(leading);
        phase(&seen, "and is back", Duration::from_secs(4));
        servers[1].kill();
        phase(&seen, "an API server is killed", Duration::from_secs(4));
        let following = (leader(&etcd) + 1) % 3;
        etcd.kill(following);
        phase(
            &seen,
            "a following member is killed too",
            Duration::from_secs(6),
        );
        stop.store(true, Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    assert!(seen.acknowledged.len() > 20, "{}", seen.acknowledged.len());
    for at in [0, 2] {
        let (code, listed) = admins[at]
            .request("GET", CONFIG_MAPS, "application/json", b"")
            .unwrap();
        assert_eq!(code, 200);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let found: BTreeMap<&str, &str> = listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| {
                Some((
                    one["metadata"]["name"].as_str()?,
                    one["data"]["value"].as_str()?,
                ))
            })
            .collect();
        for (name, value) in &seen.acknowledged {
            assert_eq!(
                found.get(name.as_str()),
                Some(&value.to_string().as_str()),
                "{name} at server {at}"
            );
        }
    }
    println!(
        "{} objects, every acknowledged value is there",
        seen.acknowledged.len()
    );
}
