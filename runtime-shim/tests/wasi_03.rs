//! WASI 0.3 behind its switch, as real guests see it: the component of `tests/guests/three`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::path::Path;

use cox_cri::v1::*;
use support::{Pod, Shim, container, limited, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const COMMAND: &[u8] = include_bytes!("guests/three/command.wasm");
const SERVICE: &[u8] = include_bytes!("guests/three/service.wasm");

const SWITCH: &str = "coxswain.dev/wasi-0.3";

async fn shim(dir: &Path) -> Shim {
    let shim = Shim::start(dir).await;
    shim.load_bytes("three", COMMAND.to_vec()).await.unwrap();
    shim
}

/// A Pod that asks for WASI 0.3.
async fn pod(shim: &mut Shim, name: &str) -> Pod {
    let mut config = shim.sandbox_config(name);
    config.annotations.insert(SWITCH.into(), "true".into());
    shim.run_sandbox(config).await.unwrap()
}

fn with(name: &str, args: &[&str]) -> ContainerConfig {
    ContainerConfig {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..container(name, "three")
    }
}

/// Runs the guest with `args` to its end and gives its lines.
async fn run(shim: &mut Shim, pod: &Pod, name: &str, args: &[&str]) -> Vec<String> {
    let id = shim.launch(pod, with(name, args)).await;
    shim.exit(&id).await;
    lines(pod, name)
}

fn lines(pod: &Pod, name: &str) -> Vec<String> {
    pod.log(name)
        .iter()
        .map(|line| line.trim_start_matches("stdout F ").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_switch_a_component_of_0_3_is_refused_by_a_sentence_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path()).await;
    let plain = shim.sandbox("plain").await;
    let refused = shim
        .create(&plain, with("a", &["hello"]))
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("WASI 0.3") && refused.message().contains(SWITCH),
        "{}",
        refused.message()
    );
    let asked = pod(&mut shim, "asked").await;
    assert_eq!(
        run(&mut shim, &asked, "b", &["hello"]).await,
        ["hello from 0.3"]
    );
    let config = shim.stop().await;
    // What was compiled is found again, and the switch for the whole node.
    let mut shim = Shim::run(cox_runtime_shim::Config {
        wasi_03: true,
        compile_command: vec!["false".into()],
        ..config
    })
    .await;
    let plain = shim.sandbox("again").await;
    assert_eq!(
        run(&mut shim, &plain, "c", &["hello"]).await,
        ["hello from 0.3"]
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_0_3_are_the_pods() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path()).await;
    let (server, client) = (
        pod(&mut shim, "server").await,
        pod(&mut shim, "client").await,
    );
    shim.launch(&server, with("serve", &["serve", "0.0.0.0", "8099"]))
        .await;
    shim.launch(&server, with("echo", &["echo", "8098"])).await;
    shim.launch(&server, with("private", &["serve", "127.0.0.1", "8097"]))
        .await;
    for (name, shown) in [
        ("serve", format!("listening at {}:8099", server.ip)),
        ("echo", format!("listening at {}:8098", server.ip)),
        ("private", "listening at 127.0.0.1:8097".into()),
    ] {
        wait_until("they listen where they should", || async {
            (lines(&server, name) == [shown.clone()]).then_some(())
        })
        .await;
    }
    let line = run(&mut shim, &client, "get", &["get", &server.ip, "8099"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("from {}:", client.ip))
            && line.ends_with(&format!(" at {}:8099", server.ip)),
        "{line}"
    );
    let line = run(&mut shim, &server, "name", &["get", "localhost", "8099"])
        .await
        .remove(0);
    assert!(line.ends_with(&format!(" at {}:8099", server.ip)), "{line}");
    let line = run(&mut shim, &server, "own", &["get", "localhost", "8097"])
        .await
        .remove(0);
    assert!(
        line.starts_with("from 127.0.0.1:"),
        "its private listener: {line}"
    );
    let line = run(&mut shim, &client, "send", &["send", &server.ip, "8098"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("ping from {}:", client.ip))
            && line.contains(&format!(" told by {}:8098 to {}:", server.ip, client.ip)),
        "a datagram socket that nobody bound has the Pod's address: {line}"
    );
    let line = run(&mut shim, &client, "unbound", &["listen"])
        .await
        .remove(0);
    assert!(
        line.starts_with(&format!("listening at {}:", client.ip)),
        "a listener that nobody bound has the Pod's address: {line}"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_and_other_pods_are_out_of_reach_of_0_3() {
    let dir = tempfile::tempdir().unwrap();
    let secret = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut shim = shim(dir.path()).await;
    let (pod, other) = (pod(&mut shim, "pod").await, pod(&mut shim, "other").await);
    let tcp = secret.local_addr().unwrap().port().to_string();
    let udp = datagrams.local_addr().unwrap().port().to_string();
    let cases: [(&str, &[&str], &str); 6] = [
        ("loopback", &["get", "127.0.0.1", &tcp], "ConnectionRefused"),
        ("alias", &["get", "127.0.0.53", "53"], "ConnectionRefused"),
        (
            "datagram",
            &["send", "127.0.0.2", &udp],
            "ConnectionRefused",
        ),
        ("anothers", &["bind", &other.ip, "80"], "AddressNotBindable"),
        (
            "hosts",
            &["bind", "127.0.0.2", "8080"],
            "AddressNotBindable",
        ),
        (
            "unknown",
            &["get", "no-such-name.invalid", "80"],
            "NameUnresolvable",
        ),
    ];
    for (name, args, code) in cases {
        let said = run(&mut shim, &pod, name, args).await;
        assert!(said[0].contains(code), "case: {name}: {said:?}");
    }
    let mut nothing = [0; 16];
    assert!(
        datagrams.try_recv(&mut nothing).is_err(),
        "no datagram came through"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_files_of_0_3() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path()).await;
    shim.load_bytes("three-service", SERVICE.to_vec())
        .await
        .unwrap();
    let pod = pod(&mut shim, "pod").await;
    let config = ContainerConfig {
        annotations: [("coxswain.dev/http-port".to_owned(), "8080".to_owned())].into(),
        ..container("web", "three-service")
    };
    let web = shim.launch(&pod, config).await;
    let line = run(
        &mut shim,
        &pod,
        "fetch",
        &["fetch", "localhost:8080", "/some/where"],
    )
    .await;
    assert_eq!(line, ["200 hello from 0.3, you asked for /some/where"]);
    assert!(ask(&pod.ip, "/trap").await.starts_with("HTTP/1.1 500"));
    let long = ask(&pod.ip, "/long").await;
    assert!(long.starts_with("HTTP/1.1 200") && long.matches('x').count() >= 1_000_000);
    shim.stop_container(&web, 5).await;
    assert_eq!(shim.status(&web).await.exit_code, 143, "it drains");
    let host = dir.path().join("data");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("text"), "from the host\n").unwrap();
    std::fs::write(dir.path().join("secret"), "secret\n").unwrap();
    std::os::unix::fs::symlink("../secret", host.join("out")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", host.join("absolute")).unwrap();
    for (name, path, expected) in [
        ("in", "/data/text", "from the host"),
        ("up", "/data/../secret", "error"),
        ("link", "/data/out", "error"),
        ("absolute", "/data/absolute", "error"),
    ] {
        let config = ContainerConfig {
            mounts: vec![Mount {
                container_path: "/data".into(),
                host_path: host.display().to_string(),
                readonly: true,
                ..Mount::default()
            }],
            ..with(name, &["read", path])
        };
        let id = shim.launch(&pod, config).await;
        shim.exit(&id).await;
        let said = lines(&pod, name);
        assert!(said[0].starts_with(expected), "case: {name}: {said:?}");
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_component_of_0_3_keeps_to_its_limits_and_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = shim(dir.path()).await;
    let pod = pod(&mut shim, "pod").await;
    let half = LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..LinuxContainerResources::default()
    };
    let config = ContainerConfig {
        args: vec!["spin".into()],
        ..limited("spin", "three", half)
    };
    let id = shim.launch(&pod, config).await;
    let begin = std::time::Instant::now();
    let before = shim.cpu_nanos(&id).await;
    wait_until("a second has passed", || {
        let passed = begin.elapsed();
        async move { (passed.as_millis() > 1000).then_some(()) }
    })
    .await;
    let used = shim.cpu_nanos(&id).await - before;
    let share = used as f64 / begin.elapsed().as_nanos() as f64;
    assert!(share < 0.6, "half a core was allowed, it used {share:.2}");
    shim.stop_container(&id, 0).await;
    assert_eq!(shim.status(&id).await.exit_code, 137);
    shim.stop().await;
}

async fn ask(ip: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(format!("{ip}:8080")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
