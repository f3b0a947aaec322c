//! Writes over etcd: what etcd itself takes from the same number of clients with values of the same size, then ConfigMap creates through
//! an API server over the same etcd. Both in one run, in turn and more than once, for the disk and the machine are shared.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cox_testkit::access::Access;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use super::load::{self, Load};
use super::{Figure, api, figure};

const CLIENTS: usize = 32;
const WRITES: usize = 6_000;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// `Put` of etcd's API: all that its own benchmark sends.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// A process that ends with its folder.
struct Process(
    Child,
    #[allow(dead_code, reason = "it holds the folder")] tempfile::TempDir,
);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
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
    Ok((Process(child, dir), url))
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
    Ok((Process(child, dir), kubeconfig))
}

/// Puts per second, each client with a connection of its own.
async fn puts(url: &str, round: usize) -> Result<f64> {
    let mut channels = Vec::new();
    for _ in 0..CLIENTS {
        let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for channel in channels {
        let next = Arc::clone(&next);
        workers.spawn(async move {
            let mut grpc = tonic::client::Grpc::new(channel);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= WRITES {
                    return anyhow::Ok(());
                }
                let request = tonic::Request::new(PutRequest {
                    key: format!("/benchmark/{round}/configmaps/c-{number}").into_bytes(),
                    // As long as the ConfigMap is that the other clients make.
                    value: vec![b'x'; 1_400],
                });
                grpc.ready().await?;
                let path =
                    tonic::codegen::http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
                let codec = ProstCodec::<PutRequest, PutResponse>::default();
                grpc.unary(request, path, codec).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
    Ok(WRITES as f64 / begun.elapsed().as_secs_f64())
}

pub(crate) async fn measure(binary: &Path) -> Result<Vec<Figure>> {
    let (_etcd, url) = start_etcd()?;
    let (_server, kubeconfig) = start_server(binary, &url).await?;
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
