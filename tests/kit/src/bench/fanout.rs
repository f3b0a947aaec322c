//! Many watchers of one kind, each on a connection of its own, and a steady stream of events: how long after the write each of
//! them has it, and what they cost the server.
//!
//! The clients share the machine with the server, so they do as little as a client can: TLS, the chunks of HTTP/1.1 taken apart
//! by hand, and of each event the mark that the writer put into the object ([`Mark`]). By its number they see that every event
//! arrived, once and in order. What they cost stands beside the server's figures.

use std::io::BufRead;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use cox_testkit::access::Access;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::api::{Connection, connect};
use super::apply::number;
use super::load::NAMESPACE;
use super::memory::{cpu_seconds, resident_mb};
use super::{Figure, Subject, figure};

const SECONDS: u32 = 10;
const WRITERS: u32 = 8;
/// What stands before the mark in the object.
const BEFORE_MARK: &[u8] = b"\"data\":{\"at\":\"";
/// How long the last events may be under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// The figures of one cluster.
#[allow(
    clippy::too_many_lines,
    reason = "one run from the first watcher to the last event"
)]
pub(crate) async fn measure(subject: &Subject, watchers: usize, rate: u32) -> Result<Vec<Figure>> {
    let mut control = connect(&subject.access).await?;
    let all = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    for writer in 0..WRITERS {
        let made = object(writer, Duration::ZERO, 0);
        control.call(Method::POST, &all, made).await?;
    }
    let list = control
        .call(Method::GET, &format!("{all}?limit=1"), Bytes::new())
        .await?;
    let list: Value = serde_json::from_slice(&list)?;
    let revision = number(&list["metadata"]["resourceVersion"])?;
    let pid = subject.pids.first().copied();
    let memory = |pid: Option<u32>| pid.map_or(Ok(0.0), |pid| resident_mb(pid).map(|(mb, _)| mb));
    let before = memory(pid)?;

    let start = Instant::now();
    let per_writer = rate * SECONDS / WRITERS;
    let path = format!("{all}?watch=true&resourceVersion={revision}&timeoutSeconds=3600");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let stream = open_watch(&subject.access, &path).await?;
        tasks.spawn(watch(stream, start, per_writer));
    }
    let idle = memory(pid)?;
    let cpu = pid.map(cpu_seconds).transpose()?;
    let own_cpu = cpu_seconds(std::process::id())?;
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let connection = connect(&subject.access).await?;
        writers.spawn(write(
            connection,
            format!("{all}/f-{writer}"),
            writer,
            rate,
            start,
        ));
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    let wrote = began.elapsed().as_secs_f64();
    let busy = memory(pid)?;
    let mut times: Vec<u32> = Vec::new();
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
    let own_used = cpu_seconds(std::process::id())? - own_cpu;
    times.sort_unstable();
    let at = |share: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index below a length"
        )]
        let index = (times.len() as f64 * share) as usize;
        let micros = times[index.min(times.len() - 1)];
        f64::from(micros) / 1e3
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
    figures.push(figure(
        "  the clients' CPU meanwhile",
        "s",
        "",
        own_used,
        false,
    ));
    Ok(figures)
}

fn object(writer: u32, at: Duration, number: u32) -> Bytes {
    let mark = format!("{}-{writer}-{number}", at.as_micros());
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("f-{writer}")}, "data": {"at": mark}})
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
    for number in 1..=count {
        ticks.tick().await;
        let object = object(writer, start.elapsed(), number);
        connection.call(Method::PUT, &path, object).await?;
    }
    Ok(())
}

/// Asks for a watch on a connection of its own and reads the head of the answer.
async fn open_watch(access: &Access, path: &str) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(&access.authority).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&access.tls));
    let mut stream = connector.connect(access.server_name.clone(), tcp).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\naccept: application/json\r\n\r\n",
        access.authority
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(
        head.starts_with("http/1.1 200 ") && head.contains("transfer-encoding: chunked"),
        "a watch was answered with {head}"
    );
    Ok(stream)
}

/// Microseconds from write to arrival of every event, once the last one is there.
async fn watch(
    mut stream: TlsStream<TcpStream>,
    start: Instant,
    per_writer: u32,
) -> Result<Vec<u32>> {
    let expected = (per_writer * WRITERS) as usize;
    let mut times = Vec::with_capacity(expected);
    let mut numbers = [0; WRITERS as usize];
    let (mut chunks, mut lines) = (Chunks::default(), Lines::default());
    let mut buffer = vec![0; 16 * 1024];
    while times.len() < expected {
        let len = stream.read(&mut buffer).await?;
        ensure!(
            len > 0,
            "a watch ended after {} of {expected} events",
            times.len()
        );
        let now = start.elapsed();
        let mut input = &buffer[..len];
        while let Some(data) = chunks.next(&mut input)? {
            lines.each(data, |mark| {
                let last = &mut numbers[mark.writer];
                ensure!(
                    mark.number == *last + 1,
                    "event {} of writer {} came after {last}",
                    mark.number,
                    mark.writer
                );
                *last = mark.number;
                let took = now.saturating_sub(mark.at).as_micros();
                times.push(u32::try_from(took).unwrap_or(u32::MAX));
                Ok(())
            })?;
        }
    }
    Ok(times)
}

/// Where the first line ends; the standard library looks for it with vector instructions here, and not in `position`.
fn line_end(data: &[u8]) -> Option<usize> {
    let mut rest = data;
    let passed = rest.skip_until(b'\n').ok()?;
    passed.checked_sub(1).filter(|end| data[*end] == b'\n')
}

/// The chunks of HTTP/1.1, as they come in.
#[derive(Default)]
struct Chunks {
    /// Bytes of data that the chunk still has.
    left: usize,
    /// The line that says how long the next chunk is, as far as it is there.
    size: Vec<u8>,
}

impl Chunks {
    /// Some data of a chunk; none when the input is used up.
    fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
        while self.left == 0 {
            let Some(end) = line_end(input) else {
                self.size.extend_from_slice(input);
                return Ok(None);
            };
            self.size.extend_from_slice(&input[..end]);
            *input = &input[end + 1..];
            let text = self.size.trim_ascii();
            // The line break after a chunk comes before the length of the next.
            if !text.is_empty() {
                let text = std::str::from_utf8(text)?;
                self.left = usize::from_str_radix(text, 16).context("the length of a chunk")?;
                ensure!(self.left > 0, "a watch ended");
            }
            self.size.clear();
        }
        let (data, rest) = input.split_at(self.left.min(input.len()));
        self.left -= data.len();
        *input = rest;
        Ok((!data.is_empty()).then_some(data))
    }
}

/// Events, one a line, of which one may be there in part.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    /// Where the mark stood last: mostly it stands there again.
    mark_at: usize,
}

impl Lines {
    fn each(&mut self, mut data: &[u8], mut see: impl FnMut(Mark) -> Result<()>) -> Result<()> {
        while let Some(end) = line_end(data) {
            let (line, after) = data.split_at(end + 1);
            data = after;
            if self.rest.is_empty() {
                self.mark(line)?.map_or(Ok(()), &mut see)?;
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.mark(&whole)?.map_or(Ok(()), &mut see)?;
            }
        }
        self.rest.extend_from_slice(data);
        Ok(())
    }

    /// The mark of one event; none if it is not one of ours, such as the ConfigMap that each namespace gets.
    fn mark(&mut self, line: &[u8]) -> Result<Option<Mark>> {
        let stands_at = |at: usize| {
            line.get(at..)
                .is_some_and(|rest| rest.starts_with(BEFORE_MARK))
        };
        if !stands_at(self.mark_at) {
            let mut places = line.windows(BEFORE_MARK.len());
            let Some(at) = places.position(|window| window == BEFORE_MARK) else {
                return Ok(None);
            };
            self.mark_at = at;
        }
        Mark::read(&line[self.mark_at + BEFORE_MARK.len()..]).map(Some)
    }
}

/// What a writer puts into the object: when it wrote, who it is, and the how manieth write this is.
struct Mark {
    at: Duration,
    writer: usize,
    number: u32,
}

impl Mark {
    fn read(text: &[u8]) -> Result<Self> {
        let mut numbers = [0_u64; 3];
        let mut at = 0;
        for byte in text {
            match byte {
                b'0'..=b'9' => numbers[at] = numbers[at] * 10 + u64::from(byte - b'0'),
                b'-' if at < 2 => at += 1,
                _ => break,
            }
        }
        let writer = usize::try_from(numbers[1])?;
        if at < 2 || writer >= WRITERS as usize {
            bail!("a mark that nobody made");
        }
        Ok(Mark {
            at: Duration::from_micros(numbers[0]),
            writer,
            number: u32::try_from(numbers[2])?,
        })
    }
}
