//! A Service that sleeps: how long its first request takes, image cached, beside one that finds a Pod.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cox_testkit::{Cluster, eventually, http};

use super::{Figure, figure};

const ROUNDS: usize = 20;
const INGRESS: &str = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: all}\n\
                       spec: {defaultBackend: {service: {name: http, port: {name: web}}}}\n";

/// Milliseconds of first requests through an Ingress, the median and the slowest, and of those that find a Pod.
pub(crate) fn measure(binary: &str) -> Result<Vec<Figure>> {
    ensure!(
        Path::new("examples/http").is_dir(),
        "run it in the root of the project"
    );
    let args = [
        "examples/http",
        "--no-follow",
        "--ingress-http-port=0",
        "--ingress-https-port=0",
    ];
    let cluster = Cluster::up(binary, &args);
    cluster.apply(INGRESS).ok();
    let mut port = None;
    eventually("the Ingress to have a port", || {
        let status = cluster.json(&["get", "ingress", "all"])["status"].clone();
        port = status["loadBalancer"]["ingress"][0]["ports"][0]["port"].as_u64();
        port.ok_or_else(|| status.to_string())
    });
    let address = format!("127.0.0.1:{}", port.context("no port")?);
    let ask = || -> Result<f64> {
        let start = Instant::now();
        let (status, body) = http::get(&address, "/")?;
        ensure!(status == 200, "{status}: {body}");
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let mut awake = (0..200).map(|_| ask()).collect::<Result<Vec<f64>>>()?;
    cluster
        .kubectl(&[
            "annotate",
            "service",
            "http",
            "coxswain.dev/scale-to-zero=1s",
        ])
        .ok();
    let mut first = Vec::new();
    for _ in 0..ROUNDS {
        eventually("all Pods to be gone", || {
            let pods = cluster.json(&["get", "pods", "-l", "app=http"]);
            let left = pods["items"].as_array().map_or(0, Vec::len);
            if left == 0 {
                Ok(())
            } else {
                Err(format!("{left} Pods"))
            }
        });
        first.push(ask()?);
    }
    let typical = median(&mut first);
    let slowest = first.last().copied().unwrap_or_default();
    Ok(vec![
        figure(
            "first request of a Service that sleeps",
            "ms",
            "50",
            typical,
            false,
        ),
        figure("  the slowest of them", "ms", "", slowest, false),
        figure(
            "a request through an Ingress that finds a Pod",
            "ms",
            "",
            median(&mut awake),
            false,
        ),
    ])
}
