//! The virtual Pod network as real guests see it: the component of `tests/guests/sockets`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::net::SocketAddr;

use cox_cri::v1::*;
use support::{Pod, Shim, container, wait_until};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

const GUEST: &[u8] = include_bytes!("guests/sockets/sockets.wasm");

/// Runs the guest with `args` to its end and gives its lines.
async fn run(shim: &mut Shim, pod: &Pod, name: &str, args: &[&str]) -> Vec<String> {
    let id = launch(shim, pod, name, args).await;
    shim.exit(&id).await;
    pod.log(name)
        .iter()
        .map(|line| line.trim_start_matches("stdout F ").to_owned())
        .map(|line| match line.split_once("name: \"") {
            // The crate prints error codes at length.
            Some((_, name)) => name.split('"').next().unwrap_or_default().to_owned(),
            None => line,
        })
        .collect()
}

async fn launch(shim: &mut Shim, pod: &Pod, name: &str, args: &[&str]) -> String {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    shim.launch(
        pod,
        ContainerConfig {
            args,
            ..container(name, "sockets")
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_addresses_of_their_own_and_see_each_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load_bytes("sockets", GUEST.to_vec()).await.unwrap();
    let (server, client) = (shim.sandbox("server").await, shim.sandbox("client").await);
    launch(&mut shim, &server, "serve", &["serve", "8099"]).await;
    let listening = format!("stdout F listening at {}:8099", server.ip);
    wait_until("the server listens at its Pod's address alone", || async {
        (server.log("serve") == [listening.clone()]).then_some(())
    })
    .await;
    let at = format!(" at {}:8099", server.ip);
    let line = run(&mut shim, &client, "get", &["get", &server.ip, "8099"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("from {}:", client.ip)) && line.ends_with(&at),
        "{line}"
    );
    let line = run(&mut shim, &server, "self", &["get", "localhost", "8099"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("from {}:", server.ip)) && line.ends_with(&at),
        "{line}"
    );
    let line = run(&mut shim, &server, "name", &["get", "server", "8099"])
        .await
        .remove(0);
    assert!(line.ends_with(&at), "by its host name: {line}");
    assert_eq!(
        run(&mut shim, &client, "own", &["get", "localhost", "8099"]).await,
        ["connection-refused"]
    );
    // The port is the Pod's, not the node's: another Pod takes the same one.
    launch(&mut shim, &client, "also", &["serve", "8099"]).await;
    let listening = format!("stdout F listening at {}:8099", client.ip);
    wait_until("both listen", || async {
        (client.log("also") == [listening.clone()]).then_some(())
    })
    .await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_out_of_reach() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, open) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let (secret, open_addr): (SocketAddr, SocketAddr) =
        (secret.local_addr().unwrap(), open.local_addr().unwrap());
    let mut shim =
        Shim::start_with(dir.path(), |config| config.host_services = vec![open_addr]).await;
    shim.load_bytes("sockets", GUEST.to_vec()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let port = secret.port().to_string();
    let refused = ["connection-refused"];
    assert_eq!(
        run(&mut shim, &pod, "loopback", &["get", "127.0.0.1", &port]).await,
        refused
    );
    assert_eq!(
        run(&mut shim, &pod, "other", &["get", "127.0.0.53", "53"]).await,
        refused
    );
    for (name, ip, bound) in [
        ("elsewhere", "127.0.0.1", "127.0.0.1"),
        ("any", "0.0.0.0", pod.ip.as_str()),
        ("own", pod.ip.as_str(), pod.ip.as_str()),
    ] {
        let line = run(&mut shim, &pod, name, &["bind", ip, "0"])
            .await
            .remove(0);
        assert!(
            line.starts_with(&format!("bound {bound}:")),
            "{name}: {line}"
        );
    }
    assert_eq!(
        run(&mut shim, &pod, "foreign", &["bind", "127.0.0.9", "0"]).await,
        ["address-not-bindable"]
    );
    let id = launch(
        &mut shim,
        &pod,
        "named",
        &["get", "127.0.0.1", &open_addr.port().to_string()],
    )
    .await;
    let (mut stream, from) = open.accept().await.unwrap();
    assert_eq!(
        from.ip().to_string(),
        pod.ip,
        "a service of the host that the configuration opens"
    );
    shim.stop_container(&id, 0).await;
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_from_pod_to_pod() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load_bytes("sockets", GUEST.to_vec()).await.unwrap();
    let (server, client) = (shim.sandbox("server").await, shim.sandbox("client").await);
    launch(&mut shim, &server, "echo", &["echo", "5353"]).await;
    let listening = format!("stdout F listening at {}:5353", server.ip);
    wait_until("the server listens", || async {
        (server.log("echo") == [listening.clone()]).then_some(())
    })
    .await;
    let line = run(&mut shim, &client, "send", &["send", &server.ip, "5353"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("ping from {}:", client.ip)),
        "{line}"
    );
    let line = run(&mut shim, &server, "self", &["send", "localhost", "5353"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("ping from {}:", server.ip)),
        "{line}"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_listens_on_localhost_is_private_to_its_pod() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load_bytes("sockets", GUEST.to_vec()).await.unwrap();
    let (server, other) = (shim.sandbox("server").await, shim.sandbox("other").await);
    launch(&mut shim, &server, "serve", &["serve", "127.0.0.1", "8099"]).await;
    wait_until(
        "the server listens, as it sees it, on localhost",
        || async {
            (server.log("serve") == ["stdout F listening at 127.0.0.1:8099"]).then_some(())
        },
    )
    .await;
    let line = run(&mut shim, &server, "own", &["get", "localhost", "8099"])
        .await
        .remove(0);
    assert!(
        line.starts_with("from 127.0.0.1:") && line.ends_with(" at 127.0.0.1:8099"),
        "both ends see localhost: {line}"
    );
    let refused = ["connection-refused"];
    let by_address = run(&mut shim, &other, "address", &["get", &server.ip, "8099"]).await;
    assert_eq!(by_address, refused, "not at the Pod's address");
    let behind = server.ip.replacen("127.", "", 1);
    let (first, rest) = behind.split_once('.').unwrap();
    let behind = format!("127.{}.{rest}", 192 | (first.parse::<u8>().unwrap() & 63));
    let found_out = run(&mut shim, &other, "behind", &["get", &behind, "8099"]).await;
    assert_eq!(found_out, refused, "nor at the one behind it, {behind}");
    // The same port on another Pod's localhost is another socket.
    launch(&mut shim, &other, "also", &["serve", "127.0.0.1", "8099"]).await;
    wait_until("both listen", || async {
        (other.log("also") == ["stdout F listening at 127.0.0.1:8099"]).then_some(())
    })
    .await;
    shim.stop().await;
}
