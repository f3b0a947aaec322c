//! Many watchers of one kind, each on a connection of its own, and a steady stream of events: how long after the write each of
//! them has it, and what they cost the server.
//!
//! The clients decode nothing but the time that the writer put into the object. They share the machine with the server, so the
//! figures are upper bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::api::{Connection, connect};
use super::apply::number;
use super::load::NAMESPACE;
use super::memory::{cpu_seconds, resident_mb};
use super::{Figure, Subject, figure};

const SECONDS: u32 = 10;
const WRITERS: u32 = 8;
/// How the time stands in the object.
const MARK: &[u8] = b"\"data\":{\"at\":\"";
/// How long the last events may be under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the watchers share.
struct Shared {
    start: Instant,
    open: AtomicUsize,
    stop: AtomicBool,
}

/// The figures of one cluster.
#[allow(
    clippy::too_many_lines,
    reason = "one run from the first watcher to the last event"
)]
pub(crate) async fn measure(subject: &Subject, watchers: usize, rate: u32) -> Result<Vec<Figure>> {
    let mut control = connect(&subject.access).await?;
    let all = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    for writer in 0..WRITERS {
        control.call(Method::POST, &all, object(writer, 0)).await?;
    }
    let list = control
        .call(Method::GET, &format!("{all}?limit=1"), Bytes::new())
        .await?;
    let list: Value = serde_json::from_slice(&list)?;
    let revision = number(&list["metadata"]["resourceVersion"])?;
    let pid = subject.pids.first().copied();
    let memory = |pid: Option<u32>| pid.map_or(Ok(0.0), |pid| resident_mb(pid).map(|(mb, _)| mb));
    let before = memory(pid)?;

    let shared = Arc::new(Shared {
        start: Instant::now(),
        open: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    });
    let expected = (rate * SECONDS / WRITERS * WRITERS) as usize;
    let path = format!("{all}?watch=true&resourceVersion={revision}&timeoutSeconds=3600");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let mut connection = connect(&subject.access).await?;
        let body = connection
            .send(Method::GET, &path, Bytes::new())
            .await?
            .into_body();
        tasks.spawn(watch(connection, body, Arc::clone(&shared), expected));
    }
    let idle = memory(pid)?;
    let cpu = pid.map(cpu_seconds).transpose()?;
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let connection = connect(&subject.access).await?;
        writers.spawn(write(
            connection,
            format!("{all}/f-{writer}"),
            writer,
            rate,
            shared.start,
        ));
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    let wrote = began.elapsed().as_secs_f64();
    let busy = memory(pid)?;
    let mut times: Vec<f64> = Vec::new();
    let collect = async {
        while let Some(done) = tasks.join_next().await {
            times.extend(done??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, collect)
        .await
        .context("not all events arrived")??;
    let used = pid
        .map(cpu_seconds)
        .transpose()?
        .zip(cpu)
        .map_or(0.0, |(after, before)| after - before);
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index below a length"
        )]
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)]
    };
    let what = format!("{watchers} watchers, {rate} events/s");
    let mut figures = vec![
        figure(&format!("{what}: delivered p50"), "ms", "", at(0.5), false),
        figure(
            &format!("{what}: delivered p99"),
            "ms",
            "20",
            at(0.99),
            false,
        ),
        figure(
            &format!("{what}: delivered, last"),
            "ms",
            "",
            at(1.0),
            false,
        ),
        figure(
            &format!("{what}: seconds that the writes took"),
            "s",
            "10",
            wrote,
            false,
        ),
    ];
    if pid.is_some() {
        figures.push(figure(
            "  server's memory for idle watchers",
            "MB",
            "",
            idle - before,
            false,
        ));
        figures.push(figure(
            "  server's memory: after all events",
            "MB",
            "",
            busy,
            false,
        ));
        figures.push(figure(
            "  server's CPU while it lasted",
            "s",
            "",
            used,
            false,
        ));
    }
    Ok(figures)
}

fn object(writer: u32, nanos: u128) -> Bytes {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("f-{writer}")}, "data": {"at": nanos.to_string()}})
        .to_string()
        .into()
}

/// Writes one object again and again, each time with the time of the call.
async fn write(
    mut connection: Connection,
    path: String,
    writer: u32,
    rate: u32,
    start: Instant,
) -> Result<()> {
    let count = rate * SECONDS / WRITERS;
    let pause = Duration::from_secs(1) * WRITERS / rate;
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for _ in 0..count {
        ticks.tick().await;
        connection
            .call(
                Method::PUT,
                &path,
                object(writer, start.elapsed().as_nanos()),
            )
            .await?;
    }
    Ok(())
}

/// Milliseconds from write to arrival of so many events.
async fn watch(
    connection: Connection,
    mut body: Incoming,
    shared: Arc<Shared>,
    expected: usize,
) -> Result<Vec<f64>> {
    shared.open.fetch_add(1, Ordering::Relaxed);
    let mut times = Vec::with_capacity(expected);
    let mut rest: Vec<u8> = Vec::new();
    while times.len() < expected && !shared.stop.load(Ordering::Relaxed) {
        let Some(frame) = body.frame().await else {
            bail!("a watch ended after {} of {expected} events", times.len());
        };
        let frame = frame?;
        let now = shared.start.elapsed();
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let mut data: &[u8] = data;
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (line, after) = data.split_at(end + 1);
            let line = if rest.is_empty() {
                line
            } else {
                rest.extend_from_slice(line);
                rest.as_slice()
            };
            times.push((now - written(line)?).as_secs_f64() * 1e3);
            rest.clear();
            data = after;
        }
        rest.extend_from_slice(data);
    }
    drop(connection);
    Ok(times)
}

/// When the event was written.
fn written(line: &[u8]) -> Result<Duration> {
    let at = line.windows(MARK.len()).position(|window| window == MARK);
    let Some(at) = at else {
        bail!(
            "an event of another kind: {}",
            String::from_utf8_lossy(line)
        );
    };
    let digits = line[at + MARK.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let nanos = digits.fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Ok(Duration::from_nanos(nanos))
}
