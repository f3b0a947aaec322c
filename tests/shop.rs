//! The tour: `examples/shop`, applied, asked from outside and from where nobody may ask, put to sleep and woken.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::path::Path;

use cox_testkit::linux::MixedCluster;
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

const PAGE: &str =
    "Welcome to the shop.\nanchor: 40, 2 left\ncompass: 25, none left\nrope: 3, 120 left\n200\n";

/// Somebody who is not the page.
const VISITOR: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: visitor}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
     containers:\n  - {name: c, image: 'docker.io/library/busybox:latest', imagePullPolicy: IfNotPresent, command: [sleep, '3600']}\n";

/// The port for requests without TLS, once the Ingress shows it.
fn port(cluster: &Cluster) -> u64 {
    let mut port = None;
    eventually("the Ingress to have a port", || {
        let status = cluster.json(&["get", "ingress", "shop"])["status"].clone();
        port = status["loadBalancer"]["ingress"][0]["ports"][0]["port"].as_u64();
        port.ok_or_else(|| status.to_string())
    });
    port.unwrap()
}

#[test]
fn the_shop_is_open_to_the_page_alone_and_sleeps_when_nobody_asks() {
    let Some(node) = MixedCluster::start("shop", COX, &["examples/shop/shop.wasm"]) else {
        return;
    };
    let cluster = &node.cluster;
    cluster
        .kubectl(&["apply", "-f", "examples/shop/shop.yaml"])
        .ok();
    for part in ["page", "catalogue", "stock"] {
        let deployment = format!("deployment/{part}");
        cluster
            .kubectl(&["rollout", "status", &deployment, "--timeout=60s"])
            .ok();
    }
    let url = format!("http://127.0.0.1:{}/", port(cluster));
    let ask = || {
        let mut curl = cluster.inside(Path::new("curl"));
        Output::of(curl.args([
            "-sS",
            "--max-time",
            "30",
            "-w",
            "%{http_code}\n",
            "-H",
            "Host: shop.example",
            &url,
        ]))
    };
    eventually("the page to show goods and stock", || {
        let answer = ask();
        if answer.stdout == PAGE {
            Ok(())
        } else {
            Err(format!("{}{}", answer.stdout, answer.stderr))
        }
    });

    cluster.apply(VISITOR).ok();
    cluster.wait("condition=Ready", "pod/visitor");
    // By address: a static busybox resolves no names.
    let visit = |service: &str| {
        let service = cluster.json(&["get", "service", service]);
        let url = format!(
            "http://{}/stock.txt",
            service["spec"]["clusterIP"].as_str().unwrap()
        );
        let url = if service["metadata"]["name"] == "page" {
            url.trim_end_matches("stock.txt")
        } else {
            &url
        };
        cluster.kubectl(&[
            "exec", "visitor", "--", "timeout", "10", "wget", "-q", "-O", "-", url,
        ])
    };
    for service in ["stock", "catalogue"] {
        let said = visit(service);
        let reached = said.status.success() || !said.stdout.is_empty();
        assert!(!reached, "{service}: {}", said.stdout);
        assert!(
            said.stderr.contains("refused"),
            "at once, not left to time out: {}",
            said.stderr
        );
    }
    let welcome = PAGE.trim_end_matches("200\n");
    let page = visit("page").ok();
    assert!(page == welcome, "{page}");

    cluster
        .kubectl(&[
            "annotate",
            "service",
            "page",
            "coxswain.dev/scale-to-zero=2s",
            "--overwrite",
        ])
        .ok();
    let asleep = || {
        eventually("the page to sleep", || {
            let pods = cluster.json(&["get", "pods", "-l", "app=page"]);
            let left = pods["items"].as_array().unwrap().len();
            if left == 0 {
                Ok(())
            } else {
                Err(format!("{left} Pods"))
            }
        });
    };
    asleep();
    assert_eq!(ask().ok(), PAGE, "the first request wakes it");
    let page = cluster.json(&["get", "deployment", "page"]);
    assert_eq!(page["spec"]["replicas"], 1);

    asleep();
    let page = visit("page").ok();
    assert!(page == welcome, "and so does one from inside: {page}");
}
