//! Exec, attach and port-forward through CRI and the streaming server, over WebSocket. kubectl speaks both protocols to the whole
//! program in `tests/exec.rs`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use cox_cri::v1::*;
use support::streams::{Client, upgrade};
use support::{Pod, Shim, container, guests, wait_until};

const V5: &str = "v5.channel.k8s.io";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn exec_request(id: &str, cmd: &str) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        cmd: words(cmd),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    }
}

async fn exec(shim: &mut Shim, request: ExecRequest) -> Client {
    let url = shim.runtime.exec(request).await.unwrap().into_inner().url;
    Client::connect(&url, V5).await
}

async fn attach(shim: &mut Shim, id: &str, stdin: bool, tty: bool) -> Client {
    let request = AttachRequest {
        container_id: id.into(),
        stdin,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let url = shim.runtime.attach(request).await.unwrap().into_inner().url;
    Client::connect(&url, V5).await
}

/// A shim with a running container of the copying guest.
async fn copying(dir: &std::path::Path) -> (Shim, Pod, String) {
    let mut shim = Shim::start(dir).await;
    shim.load("copy", guests::copies()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "copy")).await;
    (shim, pod, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_its_own_streams_and_tells_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, _pod, id) = copying(dir.path()).await;
    let mut client = exec(&mut shim, exec_request(&id, "copy x")).await;
    assert_eq!(client.protocol, V5);
    client.send(0, b"hello ").await;
    client.send(0, b"there").await;
    client.end_stdin().await;
    let (out, err, status) = client.finish().await;
    assert_eq!((&out[..], &err[..]), (&b"hello there"[..], &b"done\n"[..]));
    assert_eq!(status["status"], "Success");

    let mut client = exec(&mut shim, exec_request(&id, "copy x y z")).await;
    client.end_stdin().await;
    let (_, _, status) = client.finish().await;
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "2");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_streamed_is_refused_before_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, pod, id) = copying(dir.path()).await;
    let cases = [
        (
            "no such container",
            exec_request("none", "x"),
            tonic::Code::NotFound,
        ),
        (
            "no command",
            exec_request(&id, ""),
            tonic::Code::InvalidArgument,
        ),
        (
            "stderr of a terminal",
            ExecRequest {
                tty: true,
                ..exec_request(&id, "x")
            },
            tonic::Code::InvalidArgument,
        ),
        (
            "no stream at all",
            ExecRequest {
                stdin: false,
                stdout: false,
                stderr: false,
                ..exec_request(&id, "x")
            },
            tonic::Code::InvalidArgument,
        ),
    ];
    for (case, request, code) in cases {
        let status = shim.runtime.exec(request).await.unwrap_err();
        assert_eq!(status.code(), code, "case: {case}: {status}");
    }
    let url = shim
        .runtime
        .exec(exec_request(&id, "copy x"))
        .await
        .unwrap()
        .into_inner()
        .url;
    let (head, _, _) = upgrade(&url, "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "no upgrade: {head}");
    let (head, _, _) = upgrade(
        &url,
        "Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Protocol: chat\r\n",
    )
    .await;
    assert!(head.starts_with("HTTP/1.1 403"), "another protocol: {head}");
    let (head, _, _) = upgrade(
        &url,
        "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n",
    )
    .await;
    assert!(
        head.starts_with("HTTP/1.1 404"),
        "the secret is spent: {head}"
    );
    shim.stop_container(&id, 0).await;
    let status = shim.runtime.exec(exec_request(&id, "x")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("is not running"), "{status}");
    drop(pod);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_go_through_and_back_past_a_slow_reader() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, _pod, id) = copying(dir.path()).await;
    let client = exec(&mut shim, exec_request(&id, "copy x")).await;
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let (mut to, mut from) = client.socket.split();
    let total = 50 << 20;
    let sending = tokio::spawn(async move {
        let mut sent = 0_usize;
        while sent < total {
            let mut message = vec![0_u8; 32 << 10];
            // The first byte is the channel.
            for (at, byte) in message.iter_mut().enumerate().skip(1) {
                *byte = pattern(sent + at - 1);
            }
            sent += message.len() - 1;
            to.send(Message::Binary(message.into())).await.unwrap();
        }
        to.send(Message::Binary(vec![255, 0].into())).await.unwrap();
        (to, sent)
    });
    let mut got = 0_usize;
    let mut success = false;
    while let Some(Ok(Message::Binary(bytes))) = from.next().await {
        match bytes.first() {
            Some(1) => {
                for byte in &bytes[1..] {
                    assert_eq!(*byte, pattern(got), "at {got}");
                    got += 1;
                }
                if got < 1 << 20 {
                    tokio::task::yield_now().await;
                }
            }
            Some(3) => success = bytes[1..].starts_with(b"{\"metadata\":{},\"status\":\"Success\""),
            _ => {}
        }
    }
    let (_, sent) = sending.await.unwrap();
    assert_eq!((got, success), (sent, true));
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_takes_its_exec_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "sleeps")).await;
    let memory = |stats: ContainerStatsResponse| {
        stats
            .stats
            .unwrap()
            .memory
            .unwrap()
            .usage_bytes
            .unwrap()
            .value
    };
    let request = || ContainerStatsRequest {
        container_id: id.clone(),
    };
    let runtime = shim.runtime.clone();
    let alone = wait_until("the container's own instance has its memory", || {
        let mut runtime = runtime.clone();
        let request = request();
        async move {
            let used = memory(runtime.container_stats(request).await.unwrap().into_inner());
            (used > 0).then_some(used)
        }
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = exec(&mut shim, exec_request(&id, "sleeps")).await;
        client.expect("sleeping").await;
        clients.push(client);
    }
    let together = memory(
        shim.runtime
            .container_stats(request())
            .await
            .unwrap()
            .into_inner(),
    );
    assert!(
        together >= alone * 11,
        "{together} for eleven, {alone} for one"
    );
    drop(clients);
    let runtime = shim.runtime.clone();
    wait_until("all instances but the container's own have ended", || {
        let mut runtime = runtime.clone();
        let request = request();
        async move {
            let used = memory(runtime.container_stats(request).await.unwrap().into_inner());
            (used == alone).then_some(())
        }
    })
    .await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_echoes_edits_and_interrupts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, _pod, id) = copying(dir.path()).await;
    let tty = |cmd| ExecRequest {
        tty: true,
        stderr: false,
        ..exec_request(&id, cmd)
    };
    let mut client = exec(&mut shim, tty("copy x")).await;
    client.send(4, br#"{"Width":80,"Height":24}"#).await;
    client.send(0, b"helk\x7flo\r").await;
    client.expect("helk\x08 \x08lo\r\nhello\r\n").await;
    client.send(0, b"\x04").await;
    let (out, _, status) = client.finish().await;
    assert_eq!(
        String::from_utf8_lossy(&out),
        "done\r\n",
        "stderr is on the terminal"
    );
    assert_eq!(status["status"], "Success");
    let mut client = exec(&mut shim, tty("copy x")).await;
    client.send(0, b"\x03").await;
    let (out, _, status) = client.finish().await;
    assert!(out.starts_with(b"^C\r\n"), "{out:?}");
    assert_eq!(status["details"]["causes"][0]["message"], "137");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_see_what_the_container_says_and_may_type() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("copy", guests::copies()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let config = ContainerConfig {
        args: words("x"),
        stdin: true,
        stdin_once: true,
        ..container("app", "copy")
    };
    let id = shim.launch(&pod, config).await;
    let mut watcher = attach(&mut shim, &id, false, false).await;
    let mut typist = attach(&mut shim, &id, true, false).await;
    typist.send(0, b"to all\n").await;
    typist.expect("to all\n").await;
    watcher.expect("to all\n").await;
    typist.end_stdin().await;
    let (_, err, status) = typist.finish().await;
    assert_eq!(
        (&err[..], status["status"].as_str()),
        (&b"done\n"[..], Some("Success"))
    );
    let (_, err, _) = watcher.finish().await;
    assert_eq!(err, b"done\n");
    assert_eq!(shim.exit(&id).await.exit_code, 0);
    assert_eq!(pod.log("app"), ["stdout F to all", "stderr F done"]);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_client_may_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("copy", guests::copies()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let config = ContainerConfig {
        args: words("x"),
        stdin: true,
        ..container("app", "copy")
    };
    let id = shim.launch(&pod, config).await;
    for line in ["first\n", "second\n"] {
        let mut client = attach(&mut shim, &id, true, false).await;
        client.send(0, line.as_bytes()).await;
        client.expect(line).await;
    }
    assert_eq!(
        shim.status(&id).await.state(),
        ContainerState::ContainerRunning
    );
    let exited = attach(&mut shim, &id, false, false).await;
    shim.stop_container(&id, 0).await;
    exited.finish().await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_the_shim_serve_copies() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("copy", guests::copies()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("hello.txt"), "from the mount").unwrap();
    let mount = |path: &str, readonly| Mount {
        container_path: path.into(),
        host_path: data.display().to_string(),
        readonly,
        ..Mount::default()
    };
    let config = ContainerConfig {
        mounts: vec![mount("/data", false), mount("/ro", true)],
        ..container("app", "copy")
    };
    let id = shim.launch(&pod, config).await;
    let (archive, _, status) = exec(&mut shim, exec_request(&id, "tar cf - /ro/hello.txt"))
        .await
        .finish()
        .await;
    assert_eq!(status["status"], "Success");
    let mut client = exec(&mut shim, exec_request(&id, "tar -xmf - -C /data")).await;
    client.send(0, &archive).await;
    client.end_stdin().await;
    let (_, err, status) = client.finish().await;
    assert_eq!(
        (
            String::from_utf8_lossy(&err).as_ref(),
            status["status"].as_str()
        ),
        ("", Some("Success"))
    );
    assert_eq!(
        std::fs::read_to_string(data.join("ro/hello.txt")).unwrap(),
        "from the mount"
    );
    let mut client = exec(&mut shim, exec_request(&id, "tar -xmf - -C /ro")).await;
    client.send(0, &archive).await;
    client.end_stdin().await;
    let (_, err, status) = client.finish().await;
    assert!(String::from_utf8_lossy(&err).contains("Read-only file system"));
    assert_eq!(status["details"]["causes"][0]["message"], "2");
    for (path, code) in [("/data", 0), ("/data/hello.txt", 1), ("/etc", 1)] {
        let request = ExecSyncRequest {
            container_id: id.clone(),
            cmd: words(&format!("test -d {path}")),
            timeout: 5,
        };
        let answer = shim.runtime.exec_sync(request).await.unwrap().into_inner();
        assert_eq!(answer.exit_code, code, "{path}");
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_over_channels() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    shim.launch(&pod, container("web", "http")).await;
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![8080, 8081],
    };
    let url = shim
        .runtime
        .port_forward(request)
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
    client
        .send(
            0,
            b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
        )
        .await;
    let (mut answer, mut error) = (Vec::new(), Vec::new());
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") || error.len() <= 2 {
        let (channel, bytes) = client.next().await.unwrap();
        match channel {
            0 => answer.extend(bytes),
            3 => error.extend(bytes),
            1 | 2 => assert_eq!(bytes.len(), 2, "a port's number"),
            other => panic!("channel {other}"),
        }
    }
    assert_eq!(&answer[..2], 8080_u16.to_le_bytes());
    assert!(
        answer[2..].starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert!(String::from_utf8_lossy(&error[2..]).contains("error forwarding port 8081"));
    shim.stop().await;
}

/// What stands at a place of a long stream, so that a lost or doubled piece shows.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}
