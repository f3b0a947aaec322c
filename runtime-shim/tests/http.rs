//! wasi:http containers: served at the Pod's address, one instance per request, drained when stopped.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cox_cri::v1::*;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Pod, Shim, container, guests, limited, wait_until};
use tokio::net::TcpStream;

const PORT: u16 = 8080;

fn with_port(port: u16, config: ContainerConfig) -> ContainerConfig {
    ContainerConfig {
        annotations: HashMap::from([("coxswain.dev/http-port".into(), port.to_string())]),
        ..config
    }
}

async fn get(pod: &Pod, port: u16, path: &str) -> Result<(u16, String), String> {
    let text = |err: &dyn std::fmt::Display| err.to_string();
    let stream = TcpStream::connect((pod.ip.as_str(), port))
        .await
        .map_err(|err| text(&err))?;
    let (mut sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| text(&err))?;
    tokio::spawn(conn);
    let request = Request::get(path)
        .header("host", "pod")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender
        .send_request(request)
        .await
        .map_err(|err| text(&err))?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|err| text(&err))?
        .to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_at_its_pods_address_when_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let (one, two) = (shim.sandbox("one").await, shim.sandbox("two").await);
    let first = shim.launch(&one, container("app", "http")).await;
    shim.launch(&two, with_port(3000, container("app", "http")))
        .await;
    assert_eq!(
        get(&one, PORT, "/").await.unwrap(),
        (200, "hello from wasm\n".into())
    );
    assert_eq!(
        get(&two, 3000, "/").await.unwrap(),
        (200, "hello from wasm\n".into())
    );
    assert!(get(&two, PORT, "/").await.is_err(), "nobody listens there");
    let clash = shim.create(&one, container("clash", "http")).await.unwrap();
    let err = shim.start_container(&clash).await.unwrap_err();
    assert!(
        err.message().contains("cannot listen at") && err.message().contains("in use"),
        "{err}"
    );
    assert_eq!(shim.status(&clash).await.reason, "StartError");
    shim.stop_container(&first, 5).await;
    assert_eq!(shim.status(&first).await.exit_code, 143);
    assert!(get(&one, PORT, "/").await.is_err(), "it listens no more");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_with_prior_knowledge_is_spoken_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    shim.launch(&pod, container("app", "http")).await;
    let stream = TcpStream::connect((pod.ip.as_str(), PORT)).await.unwrap();
    let (sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(conn);
    let requests = (0..20).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://pod/")
                .body(Empty::<Bytes>::new())
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes()
        }
    });
    for body in futures::future::join_all(requests).await {
        assert_eq!(body, "hello from wasm\n");
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_and_missing_answers_are_500_and_logged_and_the_service_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "http")).await;
    assert_eq!(get(&pod, PORT, "/trap").await.unwrap().0, 500);
    assert_eq!(get(&pod, PORT, "/exit").await.unwrap().0, 500);
    assert_eq!(get(&pod, PORT, "/print").await.unwrap().0, 200);
    assert_eq!(get(&pod, PORT, "/").await.unwrap().0, 200);
    wait_until("the log says what happened", || async {
        let log = pod.log("app");
        let has = |text: &str| log.iter().any(|line| line.contains(text));
        (has("unreachable") && has("stdout F printed by a request")).then_some(())
    })
    .await;
    let request = ContainerStatusRequest {
        container_id: id,
        verbose: true,
    };
    let info = shim
        .runtime
        .container_status(request)
        .await
        .unwrap()
        .into_inner()
        .info;
    assert!(info["info"].contains("\"requests\":4"), "{info:?}");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_run_are_drained_and_those_that_never_end_are_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let (calm, mad) = (shim.sandbox("calm").await, shim.sandbox("mad").await);
    let (calm_id, mad_id) = (
        shim.launch(&calm, container("app", "http")).await,
        shim.launch(&mad, container("app", "http")).await,
    );
    let running = |shim: &Shim, id: &str| {
        let (runtime, id) = (shim.runtime.clone(), id.to_owned());
        wait_until("the request runs", move || {
            let (mut runtime, request) = (
                runtime.clone(),
                ContainerStatusRequest {
                    container_id: id.clone(),
                    verbose: true,
                },
            );
            async move {
                let info = runtime
                    .container_status(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .info;
                info["info"].contains("\"requests\":1").then_some(())
            }
        })
    };
    let waits = tokio::spawn(async move { get(&calm, PORT, "/wait").await });
    running(&shim, &calm_id).await;
    shim.stop_container(&calm_id, 30).await;
    assert_eq!(shim.status(&calm_id).await.exit_code, 143);
    assert_eq!(waits.await.unwrap().unwrap().0, 200, "it was let finish");
    let spins = tokio::spawn(async move { get(&mad, PORT, "/spin").await });
    running(&shim, &mad_id).await;
    let begun = Instant::now();
    shim.stop_container(&mad_id, 1).await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(shim.status(&mad_id).await.exit_code, 137);
    assert!(!matches!(spins.await.unwrap(), Ok((200, _))));
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_allocates_without_end_ends_its_container_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let (bad, good) = (shim.sandbox("bad").await, shim.sandbox("good").await);
    let memory = LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        ..LinuxContainerResources::default()
    };
    let id = shim.launch(&bad, limited("app", "http", memory)).await;
    shim.launch(&good, container("app", "http")).await;
    let answer = get(&bad, PORT, "/memory").await;
    assert!(!matches!(answer, Ok((200, _))), "{answer:?}");
    let status = shim.exit(&id).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    assert_eq!(get(&good, PORT, "/").await.unwrap().0, 200);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_requests_leave_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| config.guest_threads = 1).await;
    shim.load("http", guests::http()).await.unwrap();
    let (bad, good) = (shim.sandbox("bad").await, shim.sandbox("good").await);
    shim.launch(&bad, container("app", "http")).await;
    shim.launch(&good, container("app", "http")).await;
    let ip = bad.ip.clone();
    let spinning: Vec<_> = (0..20)
        .map(|_| {
            let pod = Pod {
                id: String::new(),
                ip: ip.clone(),
                logs: bad.logs.clone(),
                config: PodSandboxConfig::default(),
            };
            tokio::spawn(async move { get(&pod, PORT, "/spin").await })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(get(&good, PORT, "/").await.unwrap().0, 200);
    }
    spinning.iter().for_each(tokio::task::JoinHandle::abort);
    shim.stop().await;
}
