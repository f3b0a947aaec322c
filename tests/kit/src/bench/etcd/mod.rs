//! Writes over etcd: what etcd itself takes from the same number of clients with values of the same size; beside it the storage backend
//! alone, and ConfigMap creates through an API server. All by turns and more than once, for the disk and the machine are shared.

mod backend;
mod raw;

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cox_testkit::access::Access;
use raw::{Plan, Work};

use super::load::{self, Load};
use super::{Figure, api, figure};

const CLIENTS: usize = 32;
const WRITES: usize = 6_000;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with its folder.
struct Process {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Process {
    fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_url() -> Result<String> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    Ok(format!("http://127.0.0.1:{port}"))
}

fn start_etcd() -> Result<(Process, String)> {
    let dir = tempfile::tempdir()?;
    let (url, peer) = (free_url()?, free_url()?);
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.path())
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("etcd is not installed")?;
    Ok((Process { child, _dir: dir }, url))
}

async fn start_server(binary: &Path, etcd: &str) -> Result<(Process, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let log_path = dir.path().join("log");
    let log = File::create(&log_path)?;
    let child = Command::new(binary)
        .args(["server", "--port", "0", "--etcd-servers", etcd])
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let begun = Instant::now();
    while !std::fs::read_to_string(&log_path)?.contains("control plane is ready") {
        if begun.elapsed() > PATIENCE {
            bail!("no server: {}", std::fs::read_to_string(&log_path)?);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let kubeconfig = dir.path().join("data/kubeconfig");
    Ok((Process { child, _dir: dir }, kubeconfig))
}

/// Puts per second, each client with a connection of its own.
async fn puts(url: &str, round: usize) -> Result<f64> {
    let plan = Plan {
        url,
        clients: CLIENTS,
        connections: CLIENTS,
        writes: WRITES,
        len: backend::LEN,
        folder: &round.to_string(),
    };
    let seconds = raw::run(Work::Puts, plan).await?;
    Ok(f64::from(u32::try_from(WRITES)?) / seconds)
}

/// `benchmark`: etcd's own, run by turns with ours where it is given.
pub(crate) async fn measure(binary: &Path, benchmark: Option<PathBuf>) -> Result<Vec<Figure>> {
    let mut figures = backend::measure(benchmark).await?;
    figures.extend(through_the_server(binary).await?);
    Ok(figures)
}

/// The API server's etcd is not the one that works alone: what the server's watch costs would be etcd's own.
async fn through_the_server(binary: &Path) -> Result<Vec<Figure>> {
    let (_alone, url) = start_etcd()?;
    let (_etcd, under) = start_etcd()?;
    let (_server, kubeconfig) = start_server(binary, &under).await?;
    let access = Access::read(&kubeconfig)?;
    let mut connection = api::connect(&access).await?;
    load::make_namespace(&mut connection).await?;
    let (mut own, mut through) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        own.push(puts(&url, round).await?);
        let from = round * WRITES;
        let create = Load::CreateConfigMap { from };
        through.push(load::rate(&access, create, CLIENTS, WRITES).await?);
    }
    own.sort_by(f64::total_cmp);
    through.sort_by(f64::total_cmp);
    let (own, through) = (own[ROUNDS / 2], through[ROUNDS / 2]);
    Ok(vec![
        figure(
            "etcd alone: puts of 1.4 kB, 32 clients",
            "/s",
            "",
            own,
            true,
        ),
        figure(
            "ConfigMap creates over that etcd, 32 clients",
            "/s",
            "",
            through,
            true,
        ),
        figure(
            "share of what etcd alone takes",
            "%",
            "80",
            through / own * 100.0,
            true,
        ),
    ])
}
