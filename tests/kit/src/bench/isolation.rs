//! How late a guest wakes beside a hundred that never wait, and how long a request to one takes: each also alone, in the same
//! run, since both depend on what else the machine does.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::runtime::Runtime;
use super::{Args, Figure, figure};

/// Prints how late it woke, or burns, by its arguments.
const PROBE: &str = "runtime-shim/tests/guests/probe/probe.wasm";
const SERVICE: &str = "examples/http/http.wasm";
const BUSY: usize = 100;
const BEATS: &str = "1000";
const REQUESTS: usize = 500;
/// Between two requests, so that each finds the service asleep, and so that it stays within its share: beside a hundred that burn
/// on two cores that is 20 ms of each second, or some 70 requests. Whoever asks more waits for the others by right.
const PAUSE: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn measure(args: &Args) -> Result<Vec<Figure>> {
    let mut runtime = Runtime::start(&args.binary, false).await?;
    runtime.load("probe", &fs::read(PROBE)?).await?;
    runtime.load("http", &fs::read(SERVICE)?).await?;
    let pod = Box::pin(runtime.pod("web", "http", false)).await?;
    let addr = format!("{}:8080", runtime.address(pod).await?);
    let mut figures = Vec::new();
    for (name, busy, promise) in [("alone", 0, ""), ("beside 100 busy loops", BUSY, "5")] {
        for index in 0..busy {
            let pod = format!("busy{index}");
            Box::pin(runtime.pod_with(&pod, "probe", false, &["spin"])).await?;
        }
        let [p50, p99] = Box::pin(beat(&mut runtime, &name.replace(' ', "-"))).await?;
        let title = |what: &str, share: u32| format!("{what} {name}, p{share}");
        figures.push(figure(
            &title("A guest wakes late,", 50),
            "ms",
            "",
            p50,
            false,
        ));
        figures.push(figure(
            &title("A guest wakes late,", 99),
            "ms",
            promise,
            p99,
            false,
        ));
        let [p50, p99] = requests(&addr).await?;
        figures.push(figure(&title("A request takes,", 50), "ms", "", p50, false));
        figures.push(figure(
            &title("A request takes,", 99),
            "ms",
            promise,
            p99,
            false,
        ));
    }
    Ok(figures)
}

/// Milliseconds that a guest's sleeps of 5 ms were late, as the guest tells them.
async fn beat(runtime: &mut Runtime, name: &str) -> Result<[f64; 2]> {
    Box::pin(runtime.pod_with(name, "probe", false, &["beat", "5", BEATS])).await?;
    let (log, begun) = (runtime.log(name), Instant::now());
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.contains("p50 ")) {
            let mut words = line.split(' ').skip_while(|word| *word != "p50");
            let mut number = || -> Result<f64> {
                let micros: f64 = words.nth(1).context("a figure is missing")?.parse()?;
                Ok(micros / 1000.0)
            };
            return Ok([number()?, number()?]);
        }
        if begun.elapsed() > PATIENCE {
            bail!("the probe said nothing: {text}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Milliseconds of requests over one connection, one after the other.
async fn requests(addr: &str) -> Result<[f64; 2]> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        tokio::time::sleep(PAUSE).await;
        let request = Request::get("/")
            .header("host", "pod")
            .body(Empty::<Bytes>::new())?;
        let begun = Instant::now();
        let response = sender.send_request(request).await?;
        response.into_body().collect().await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    Ok([at(50), at(99)])
}
