//! From the create call to the Ready condition, seen by a client that watches: one Pod at a time, and many at once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use cox_testkit::access::Access;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::api::{Connection, connect};
use super::load::NAMESPACE;
use super::memory::resident_mb;

/// How long one Pod, or the last of many, may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the Pods run.
#[derive(Clone, Debug)]
pub(crate) struct PodKind {
    pub(crate) image: String,
    pub(crate) runtime_class: Option<String>,
}

impl PodKind {
    fn manifest(&self, name: &str) -> Bytes {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
            "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                     "containers": [{"name": "c", "image": self.image, "imagePullPolicy": "IfNotPresent"}]}});
        if let Some(class) = &self.runtime_class {
            pod["spec"]["runtimeClassName"] = class.as_str().into();
        }
        pod.to_string().into()
    }
}

fn pods_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods")
}

/// Milliseconds from create to Ready of `count` Pods, one after the other, sorted.
pub(crate) async fn one_at_a_time(
    access: &Access,
    kind: &PodKind,
    count: usize,
) -> Result<Vec<f64>> {
    let mut connection = connect(access).await?;
    let mut events = Events::open(access).await?;
    let mut times = Vec::new();
    for number in 0..count {
        let name = format!("one-{number}");
        let start = Instant::now();
        connection
            .call(Method::POST, &pods_path(), kind.manifest(&name))
            .await?;
        events.until(|pod| pod.name == name && pod.ready).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        connection
            .call(
                Method::DELETE,
                &format!("{}/{name}", pods_path()),
                Bytes::new(),
            )
            .await?;
        events.until(|pod| pod.name == name && pod.deleted).await?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Many Pods that were made at once.
pub(crate) struct Many {
    /// Seconds until the last one was Ready,
    pub(crate) ready: f64,
    /// and until all were gone again.
    pub(crate) gone: f64,
    /// The memory of the cluster while all were Ready.
    pub(crate) memory_mb: f64,
}

/// Makes `count` Pods at once and deletes them; `cluster` are the processes whose memory counts, with what they started.
pub(crate) async fn many_at_once(
    access: &Access,
    kind: &PodKind,
    count: usize,
    cluster: &[u32],
) -> Result<Many> {
    let mut events = Events::open(access).await?;
    let start = Instant::now();
    let mut creators = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (access, kind) = (access.clone(), kind.clone());
        creators.spawn(async move {
            let mut connection = connect(&access).await?;
            for number in (worker..count).step_by(8) {
                connection
                    .call(
                        Method::POST,
                        &pods_path(),
                        kind.manifest(&format!("many-{number}")),
                    )
                    .await?;
            }
            anyhow::Ok(())
        });
    }
    let mut ready: HashMap<String, ()> = HashMap::new();
    events
        .until(|pod| {
            if pod.ready {
                ready.insert(pod.name.clone(), ());
            }
            ready.len() == count
        })
        .await
        .with_context(|| format!("not all {count} Pods became Ready"))?;
    let last_ready = start.elapsed().as_secs_f64();
    while let Some(creator) = creators.join_next().await {
        creator??;
    }
    let mut memory_mb = 0.0;
    for pid in cluster {
        memory_mb += resident_mb(*pid)?.0;
    }
    let start = Instant::now();
    let mut connection = connect(access).await?;
    connection
        .call(Method::DELETE, &pods_path(), Bytes::new())
        .await?;
    let mut gone = 0;
    events
        .until(|pod| {
            gone += usize::from(pod.deleted);
            gone == count
        })
        .await
        .context("not all Pods went away")?;
    Ok(Many {
        ready: last_ready,
        gone: start.elapsed().as_secs_f64(),
        memory_mb,
    })
}

/// What the benchmark reads of a watch event.
struct Seen {
    name: String,
    ready: bool,
    deleted: bool,
}

/// A watch on the Pods of the namespace, on a connection of its own.
struct Events {
    body: Incoming,
    buffer: BytesMut,
    /// Held so that the connection stays open.
    _connection: Connection,
}

impl Events {
    async fn open(access: &Access) -> Result<Self> {
        let mut connection = connect(access).await?;
        let list = connection
            .call(
                Method::GET,
                &format!("{}?limit=1", pods_path()),
                Bytes::new(),
            )
            .await?;
        let list: Value = serde_json::from_slice(&list)?;
        let version = list["metadata"]["resourceVersion"]
            .as_str()
            .context("the list has no resourceVersion")?;
        let path = format!(
            "{}?watch=true&resourceVersion={version}&timeoutSeconds=3600",
            pods_path()
        );
        let body = connection
            .send(Method::GET, &path, Bytes::new())
            .await?
            .into_body();
        Ok(Self {
            body,
            buffer: BytesMut::new(),
            _connection: connection,
        })
    }

    async fn until(&mut self, done: impl FnMut(&Seen) -> bool) -> Result<()> {
        tokio::time::timeout(PATIENCE, self.read_until(done))
            .await
            .context("the cluster took too long")?
    }

    async fn read_until(&mut self, mut done: impl FnMut(&Seen) -> bool) -> Result<()> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if done(&seen(&line)?) {
                    return Ok(());
                }
            }
            let Some(frame) = self.body.frame().await else {
                bail!("the watch ended")
            };
            if let Some(data) = frame?.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

fn seen(line: &[u8]) -> Result<Seen> {
    let event: Value = serde_json::from_slice(line)?;
    if event["type"] == "ERROR" {
        bail!("the watch failed: {}", event["object"]["message"]);
    }
    let pod = &event["object"];
    let conditions = pod["status"]["conditions"].as_array();
    Ok(Seen {
        name: pod["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        ready: conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True"),
        deleted: event["type"] == "DELETED",
    })
}
