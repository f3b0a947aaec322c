//! What kubectl does to a container, done to a Wasm container and to one for Linux that stand in one Pod, by the same steps.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use cox_cri::v1::*;
use support::oci::{Containerd, can_run_oci, shell};
use support::streams::Client;
use support::{Shim, container, guests, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const V5: &str = "v5.channel.k8s.io";

/// One kind of container: its main program, which waits, and what copies stdin to stdout and then says `done` on stderr.
struct Kind {
    name: &'static str,
    config: ContainerConfig,
    copies: Vec<String>,
}

fn kinds() -> [Kind; 2] {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    [
        Kind {
            name: "wasm",
            config: container("wasm", "copy"),
            copies: words(&["copy", "x"]),
        },
        Kind {
            name: "linux",
            config: shell(
                "linux",
                "busybox",
                "echo waiting; while :; do sleep 0.05; done",
            ),
            copies: words(&["sh", "-c", "cat; echo done >&2"]),
        },
    ]
}

async fn exec(shim: &mut Shim, id: &str, cmd: &[String], tty: bool) -> Client {
    let request = ExecRequest {
        container_id: id.into(),
        cmd: cmd.to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = shim.runtime.exec(request).await.unwrap().into_inner().url;
    Client::connect(&url, V5).await
}

async fn attach(shim: &mut Shim, id: &str) -> Client {
    let request = AttachRequest {
        container_id: id.into(),
        stdin: true,
        tty: false,
        stdout: true,
        stderr: true,
    };
    let url = shim.runtime.attach(request).await.unwrap().into_inner().url;
    Client::connect(&url, V5).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubectl_does_works_on_both_kinds() {
    if !can_run_oci("what_kubectl_does_works_on_both_kinds") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load("copy", guests::copies()).await.unwrap();
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("both").await;
    let mut events = shim
        .runtime
        .get_container_events(GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    for kind in kinds() {
        let name = kind.name;
        let id = shim.launch(&pod, kind.config.clone()).await;
        wait_until("it has spoken", || async {
            (!pod.log(name).is_empty()).then_some(())
        })
        .await;

        // exec: streams of its own, and a code.
        let mut client = exec(&mut shim, &id, &kind.copies, false).await;
        client.send(0, b"hello").await;
        client.end_stdin().await;
        let (out, err, status) = client.finish().await;
        assert_eq!(
            (&out[..], &err[..]),
            (&b"hello"[..], &b"done\n"[..]),
            "{name}"
        );
        assert_eq!(status["status"], "Success", "{name}");

        // exec -t: the terminal echoes, edits, and Ctrl-C ends it.
        let mut client = exec(&mut shim, &id, &kind.copies, true).await;
        client.send(4, br#"{"Width":80,"Height":24}"#).await;
        client.send(0, b"helk\x7flo\r").await;
        client.expect("lo\r\nhello\r\n").await;
        client.send(0, b"\x03").await;
        let (_, _, status) = client.finish().await;
        assert_eq!(status["reason"], "NonZeroExitCode", "{name}: {status}");

        // logs: a rotation is followed.
        let log = format!("{name}.log");
        std::fs::rename(pod.logs.join(&log), pod.logs.join(format!("{log}.1"))).unwrap();
        let request = ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        shim.runtime.reopen_container_log(request).await.unwrap();
        assert!(pod.logs.join(&log).exists(), "{name}");

        // top: figures of each.
        let found = wait_until("it has figures", || {
            let mut runtime = shim.runtime.clone();
            let container_id = id.clone();
            async move {
                let request = ContainerStatsRequest { container_id };
                let stats = runtime.container_stats(request).await.unwrap();
                let stats = stats.into_inner().stats?;
                (stats.memory.as_ref()?.working_set_bytes?.value > 0).then_some(stats)
            }
        })
        .await;
        assert!(found.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
        let layer = found.writable_layer.unwrap();
        assert!(
            layer.used_bytes.is_some() && layer.inodes_used.is_some(),
            "{name}"
        );

        // update in place.
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(LinuxContainerResources {
                cpu_shares: 512,
                memory_limit_in_bytes: 128 << 20,
                ..LinuxContainerResources::default()
            }),
            ..UpdateContainerResourcesRequest::default()
        };
        shim.runtime
            .update_container_resources(request)
            .await
            .unwrap();
        let linux = shim.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!(
            (linux.cpu_shares, linux.memory_limit_in_bytes),
            (512, 128 << 20),
            "{name}"
        );

        shim.stop_container(&id, 0).await;
        assert_eq!(shim.exit(&id).await.exit_code, 137, "{name}");
        let mut seen = Vec::new();
        while seen.last() != Some(&ContainerEventType::ContainerStoppedEvent) {
            let event = events.message().await.unwrap().unwrap();
            if event.container_id == id {
                seen.push(event.container_event_type());
            }
        }
        assert_eq!(seen.len(), 3, "{name}: {seen:?}");

        // attach: what is typed reaches the container's stdin, and its end ends it.
        let mut config = kind.config;
        config.metadata.as_mut().unwrap().attempt = 1;
        (config.stdin, config.stdin_once) = (true, true);
        match name {
            "wasm" => config.args = vec!["x".into()],
            _ => config.command = kind.copies,
        }
        let id = shim.launch(&pod, config).await;
        let mut client = attach(&mut shim, &id).await;
        client.send(0, b"typed\n").await;
        client.expect("typed\n").await;
        client.end_stdin().await;
        let (_, err, _) = client.finish().await;
        assert_eq!(err, b"done\n", "{name}");
        assert_eq!(shim.exit(&id).await.exit_code, 0, "{name}");
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_on_the_nodes_network_are_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    if !rustix::process::geteuid().is_root() {
        return support::node::skip("ports_of_a_pod_on_the_nodes_network", "root");
    }
    let pod = shim.host_sandbox("node").await;
    // Whoever listens there: to the sandbox it is all one.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut four = [0; 4];
        stream.read_exact(&mut four).await.unwrap();
        stream.write_all(&four).await.unwrap();
    });
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![port.into()],
    };
    let url = shim
        .runtime
        .port_forward(request)
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
    client.send(0, b"ping").await;
    let mut answer = Vec::new();
    while answer.len() < 6 {
        let (channel, bytes) = client.next().await.unwrap();
        if channel == 0 {
            answer.extend(bytes);
        }
    }
    assert_eq!(answer[..2], port.to_le_bytes());
    assert_eq!(&answer[2..], b"ping");
    served.await.unwrap();
    shim.stop().await;
}
