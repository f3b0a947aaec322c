//! Containers for Linux through containerd: their life, what their specification does, what survives.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cox_cri::v1::security_profile::ProfileType;
use cox_cri::v1::*;
use support::oci::{Containerd, can_run_oci, shell};
use support::{Pod, Shim, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

async fn exec(
    shim: &mut Shim,
    id: &str,
    line: &str,
    timeout: i64,
) -> Result<ExecSyncResponse, tonic::Status> {
    let request = ExecSyncRequest {
        container_id: id.into(),
        cmd: ["sh", "-c", line].map(str::to_owned).to_vec(),
        timeout,
    };
    Ok(shim.runtime.exec_sync(request).await?.into_inner())
}

async fn remove(shim: &mut Shim, id: &str) {
    let request = RemoveContainerRequest {
        container_id: id.into(),
    };
    shim.runtime.remove_container(request).await.unwrap();
}

async fn remove_pod(shim: &mut Shim, pod: &Pod) {
    let request = RemovePodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    shim.runtime.remove_pod_sandbox(request).await.unwrap();
}

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}

fn limit(config: &mut ContainerConfig, resources: LinuxContainerResources) {
    config.linux.as_mut().unwrap().resources = Some(resources);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_is_looked_into_and_leaves_nothing() {
    if !can_run_oci("a_container_runs_is_looked_into_and_leaves_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("runs").await;
    let mut events = shim
        .runtime
        .get_container_events(GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let line = "echo to stdout; echo to stderr >&2; echo $FROM_IMAGE $PWD $EXTRA; while ! [ -e end ]; do sleep 0.05; done; exit 7";
    let mut config = shell("app", "busybox", line);
    config.envs = vec![KeyValue {
        key: "EXTRA".into(),
        value: "more".into(),
    }];
    let id = shim.launch(&pod, config).await;
    wait_until("it has spoken", || async {
        (pod.log("app").len() == 3).then_some(())
    })
    .await;
    let mut log = pod.log("app");
    log.sort();
    assert_eq!(
        log,
        [
            "stderr F to stderr",
            "stdout F to stdout",
            "stdout F yes /tmp more"
        ]
    );
    assert_eq!(
        shim.status(&id).await.state(),
        ContainerState::ContainerRunning
    );
    let answer = exec(&mut shim, &id, "cat; echo out; echo err >&2; exit 3", 10)
        .await
        .unwrap();
    assert_eq!(
        (answer.exit_code, &*answer.stdout, &*answer.stderr),
        (3, &b"out\n"[..], &b"err\n"[..])
    );
    let late = exec(&mut shim, &id, "sleep 100", 1).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{late}");
    assert!(shim.cpu_nanos(&id).await > 0);
    exec(&mut shim, &id, "touch end", 10).await.unwrap();
    let status = shim.exit(&id).await;
    assert_eq!((status.exit_code, &*status.reason), (7, "Error"));
    let mut kinds = Vec::new();
    while kinds.last() != Some(&ContainerEventType::ContainerStoppedEvent) {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!(event.container_id, id);
        kinds.push(event.container_event_type());
    }
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    remove(&mut shim, &id).await;
    remove_pod(&mut shim, &pod).await;
    assert_eq!(containerd.ctr(&["containers", "ls", "-q"]), "");
    assert_eq!(containerd.ctr(&["tasks", "ls", "-q"]), "");
    let snapshots = containerd.ctr(&["snapshots", "ls"]);
    assert!(!snapshots.contains(&id), "{snapshots}");
    let image = RemoveImageRequest {
        image: Some(ImageSpec {
            image: "cox.local/busybox".into(),
            ..ImageSpec::default()
        }),
    };
    shim.images.remove_image(image).await.unwrap();
    assert_eq!(containerd.ctr(&["images", "ls", "-q"]), "");
    shim.stop().await;
    assert_eq!(containerd.ctr(&["leases", "ls", "-q"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_says_as_whom_and_with_what_rights_a_container_runs() {
    if !can_run_oci("the_pod_says_as_whom_and_with_what_rights_a_container_runs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("rights").await;
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/file"), "from the host").unwrap();
    let script = "id; cat /data/file; echo; touch /data/new || echo data is read-only; touch /x || echo root is read-only; \
                  grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; mount -t tmpfs none /tmp || echo no mount; \
                  cat /proc/self/oom_score_adj; cat /proc/1/cmdline | head -c 2";
    let mut config = shell("app", "busybox", script);
    config.mounts = vec![Mount {
        container_path: "/data".into(),
        host_path: dir.path().join("data").display().to_string(),
        readonly: true,
        ..Mount::default()
    }];
    *security(&mut config) = LinuxContainerSecurityContext {
        run_as_username: "www".into(),
        supplemental_groups: vec![4321],
        readonly_rootfs: true,
        no_new_privs: true,
        capabilities: Some(Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Capability::default()
        }),
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..security(&mut config).clone()
    };
    limit(
        &mut config,
        LinuxContainerResources {
            oom_score_adj: 900,
            ..LinuxContainerResources::default()
        },
    );
    let id = shim.launch(&pod, config).await;
    let status = shim.exit(&id).await;
    let log = pod.log("app").join("\n");
    for line in [
        "uid=33(www) gid=33(www) groups=33(www),50(extra),4321",
        "from the host",
        "data is read-only",
        "root is read-only",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "no mount",
        "stdout F 900",
    ] {
        assert!(log.contains(line), "{line} is not in:\n{log}");
    }
    assert!(
        log.lines().any(|line| line == "stdout P sh"),
        "it is the first process of its own PID namespace:\n{log}"
    );
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (33, 33, vec![33, 50, 4321])
    );
    for (case, change, says) in [
        (
            "a privileged container in an ordinary sandbox",
            LinuxContainerSecurityContext {
                privileged: true,
                ..LinuxContainerSecurityContext::default()
            },
            "privileged",
        ),
        (
            "an unknown user",
            LinuxContainerSecurityContext {
                run_as_username: "nobody".into(),
                ..LinuxContainerSecurityContext::default()
            },
            "\"nobody\" is not in the image's /etc/passwd",
        ),
        (
            "a user namespace",
            LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    userns_options: Some(UserNamespace {
                        mode: NamespaceMode::Pod.into(),
                        ..UserNamespace::default()
                    }),
                    ..NamespaceOption::default()
                }),
                ..LinuxContainerSecurityContext::default()
            },
            "runc 1.1 has none",
        ),
    ] {
        let mut config = shell("refused", "busybox", "true");
        *security(&mut config) = change;
        let err = shim.create(&pod, config).await.unwrap_err();
        assert!(err.message().contains(says), "case: {case}: {err}");
    }
    assert_eq!(
        containerd.ctr(&["containers", "ls", "-q"]).lines().count(),
        1,
        "what was refused left nothing"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_ends_by_its_signal_by_force_or_for_want_of_memory() {
    if !can_run_oci("a_container_ends_by_its_signal_by_force_or_for_want_of_memory") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("ends").await;
    for (name, trap, signal, grace, code) in [
        ("term", "trap 'exit 4' TERM", Signal::RuntimeDefault, 30, 4),
        ("usr1", "trap 'exit 5' USR1", Signal::Sigusr1, 30, 5),
        ("deaf", "trap '' TERM", Signal::RuntimeDefault, 1, 137),
    ] {
        let line = format!("{trap}; echo ready; while true; do sleep 0.05; done");
        let mut config = shell(name, "busybox", &line);
        config.stop_signal = signal.into();
        let id = shim.launch(&pod, config).await;
        wait_until("it is ready", || async {
            (!pod.log(name).is_empty()).then_some(())
        })
        .await;
        shim.stop_container(&id, grace).await;
        assert_eq!(shim.status(&id).await.exit_code, code, "{name}");
    }
    let mut config = shell(
        "hungry",
        "busybox",
        "dd if=/dev/zero of=/dev/null bs=200M count=1",
    );
    limit(
        &mut config,
        LinuxContainerResources {
            memory_limit_in_bytes: 20 << 20,
            ..LinuxContainerResources::default()
        },
    );
    let id = shim.launch(&pod, config).await;
    let status = shim.exit(&id).await;
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    let mut missing = shell("missing", "busybox", "");
    missing.command = vec!["/no/such".into()];
    let id = shim.create(&pod, missing).await.unwrap();
    let err = shim.start_container(&id).await.unwrap_err();
    assert!(err.message().contains("/no/such"), "{err}");
    let status = shim.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code, &*status.reason),
        (ContainerState::ContainerExited, 127, "StartError")
    );
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_while_a_container_runs() {
    if !can_run_oci("limits_change_while_a_container_runs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("limits").await;
    let mut config = shell("app", "busybox", "while true; do sleep 0.05; done");
    limit(
        &mut config,
        LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..LinuxContainerResources::default()
        },
    );
    let id = shim.launch(&pod, config).await;
    let available = async |shim: &mut Shim| {
        let request = ContainerStatsRequest {
            container_id: id.clone(),
        };
        let stats = shim.runtime.container_stats(request).await.unwrap();
        let memory = stats.into_inner().stats.unwrap().memory.unwrap();
        memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value
    };
    assert_eq!(available(&mut shim).await, 64 << 20);
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 96 << 20,
            ..LinuxContainerResources::default()
        }),
        windows: None,
        annotations: HashMap::new(),
    };
    shim.runtime
        .update_container_resources(request)
        .await
        .unwrap();
    assert_eq!(available(&mut shim).await, 96 << 20);
    let resources = shim.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 96 << 20);
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_shim_and_containerd() {
    if !can_run_oci("containers_outlive_the_shim_and_containerd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("outlives").await;
    let count = "n=0; while ! [ -e end ]; do n=$((n+1)); echo line $n; sleep 0.02; done; exit 9";
    let id = shim.launch(&pod, shell("counts", "busybox", count)).await;
    let ends = shim
        .launch(
            &pod,
            shell(
                "ends",
                "busybox",
                "while ! [ -e end ]; do sleep 0.02; done; exit 6",
            ),
        )
        .await;
    wait_until("it counts", || async {
        (pod.log("counts").len() > 3).then_some(())
    })
    .await;
    let config = shim.stop().await;
    // One ends while nobody looks.
    containerd.ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "end",
        &ends,
        "touch",
        "/tmp/end",
    ]);
    wait_until("one has ended", || async {
        let tasks = containerd.ctr(&["tasks", "ls"]);
        let line = tasks.lines().find(|line| line.contains(&ends))?.to_owned();
        line.contains("STOPPED").then_some(())
    })
    .await;
    let mut shim = Shim::run(config).await;
    assert_eq!(
        shim.status(&id).await.state(),
        ContainerState::ContainerRunning
    );
    let status = shim.status(&ends).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 6)
    );
    let before = pod.log("counts").len();
    wait_until("it is read again", || async {
        (pod.log("counts").len() > before + 3).then_some(())
    })
    .await;
    containerd.restart().await;
    wait_until("exec works again", || {
        let mut runtime = shim.runtime.clone();
        let request = ExecSyncRequest {
            container_id: id.clone(),
            cmd: vec!["true".into()],
            timeout: 10,
        };
        async move { runtime.exec_sync(request).await.is_ok().then_some(()) }
    })
    .await;
    exec(&mut shim, &id, "touch end", 10).await.unwrap();
    assert_eq!(shim.exit(&id).await.exit_code, 9);
    let log = pod.log("counts");
    for (at, line) in log.iter().enumerate() {
        assert_eq!(
            *line,
            format!("stdout F line {}", at + 1),
            "no line is lost or twice"
        );
    }
    remove_pod(&mut shim, &pod).await;
    assert_eq!(containerd.ctr(&["containers", "ls", "-q"]), "");
    shim.stop().await;
}

/// A runtime that is killed while it waits for containerd leaves it a wish that may come true after the next runtime has looked around.
#[tokio::test(flavor = "multi_thread")]
async fn what_containerd_makes_late_for_an_earlier_runtime_is_removed() {
    if !can_run_oci("what_containerd_makes_late_for_an_earlier_runtime_is_removed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("late").await;
    let notes = tempfile::tempdir().unwrap();
    let line = "echo began >>/notes/began; [ $(wc -l </notes/began) = 1 ] || sleep 1000";
    let mut config = shell("over", "busybox", line);
    config.mounts = vec![Mount {
        host_path: notes.path().display().to_string(),
        container_path: "/notes".into(),
        ..Mount::default()
    }];
    let over = shim.launch(&pod, config).await;
    assert_eq!(shim.exit(&over).await.exit_code, 0);
    let before = (
        containerd.ctr(&["containers", "ls", "-q"]),
        containerd.ctr(&["snapshots", "ls"]),
    );

    let image = containerd.ctr(&["images", "ls", "-q"]);
    let image = image.lines().find(|name| name.contains("busybox")).unwrap();
    let owner = format!("dev.coxswain/shim={}", shim.config.state_dir.display());
    for (id, label) in [("ours", owner.as_str()), ("anothers", "owner=another")] {
        containerd.ctr(&["containers", "create", "--label", label, image, id]);
    }
    wait_until("ours is removed", || async {
        let all = containerd.ctr(&["containers", "ls", "-q"]);
        (!all.lines().any(|id| id == "ours")).then_some(())
    })
    .await;
    let all = containerd.ctr(&["containers", "ls", "-q"]);
    assert!(all.lines().any(|id| id == "anothers"), "{all}");
    containerd.ctr(&["containers", "rm", "anothers"]);
    wait_until("nothing of it is left", || async {
        let after = (
            containerd.ctr(&["containers", "ls", "-q"]),
            containerd.ctr(&["snapshots", "ls"]),
        );
        (after == before).then_some(())
    })
    .await;

    // The same with a process: its container has ended long ago.
    containerd.ctr(&["tasks", "start", "--detach", "--null-io", &over]);
    wait_until("the process has begun and is ended", || async {
        let began = std::fs::read_to_string(notes.path().join("began")).unwrap();
        let tasks = containerd.ctr(&["tasks", "ls", "-q"]);
        (began.lines().count() == 2 && tasks.is_empty()).then_some(())
    })
    .await;
    assert_eq!(shim.status(&over).await.exit_code, 0);
    remove_pod(&mut shim, &pod).await;
    assert_eq!(containerd.ctr(&["containers", "ls", "-q"]), "");
    shim.stop().await;
}

/// What lies between a runtime and its containerd. It breaks when it is armed and a container's file system has been asked for:
/// containerd hears the wish, and nobody hears of it again until it is mended.
struct Wire {
    armed: AtomicBool,
    broken: watch::Sender<bool>,
}

impl Wire {
    fn between(own: &Path, containerd: PathBuf) -> Arc<Self> {
        let listener = UnixListener::bind(own).unwrap();
        let wire = Arc::new(Self {
            armed: AtomicBool::new(false),
            broken: watch::Sender::new(false),
        });
        let passing = Arc::clone(&wire);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*passing.broken.borrow() {
                    let server = UnixStream::connect(&containerd).await.unwrap();
                    tokio::spawn(Arc::clone(&passing).pass(client, server));
                }
            }
        });
        wire
    }

    async fn pass(self: Arc<Self>, mut client: UnixStream, mut server: UnixStream) {
        let (mut asked, mut answers) = client.split();
        let (mut replies, mut wishes) = server.split();
        let up = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(len @ 1..) = asked.read(&mut buffer).await {
                wishes.write_all(&buffer[..len]).await.unwrap();
                if self.armed.load(Ordering::Relaxed) && is_prepare(&buffer[..len]) {
                    self.broken.send_replace(true);
                    // Carried out, before the end of the connection takes the wish back.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    return;
                }
            }
        };
        let down = async {
            let mut broken = self.broken.subscribe();
            let breaks = async { drop(broken.wait_for(|broken| *broken).await) };
            tokio::select! {
                _ = tokio::io::copy(&mut replies, &mut answers) => {}
                () = breaks => std::future::pending().await,
            }
        };
        tokio::select! { () = up => {}, () = down => {} }
    }
}

/// A snapshot on top of an image's last layer: field 3 of the request.
fn is_prepare(bytes: &[u8]) -> bool {
    let parent = [&[0x1a, 71][..], b"sha256:"].concat();
    bytes.windows(parent.len()).any(|part| part == parent)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_half_made_when_containerd_goes_is_removed_when_it_is_back() {
    if !can_run_oci("what_is_half_made_when_containerd_goes_is_removed_when_it_is_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let socket = dir.path().join("wire.sock");
    let wire = Wire::between(&socket, containerd.socket());
    let mut shim = Shim::start_with(dir.path(), |config| config.containerd_socket = socket).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("torn").await;
    let first = shim.create(&pod, shell("first", "busybox", "true")).await;
    first.unwrap();
    let snapshots = || containerd.ctr(&["snapshots", "ls"]);
    let before = snapshots();

    wire.armed.store(true, Ordering::Relaxed);
    let torn = shim.create(&pod, shell("torn", "busybox", "true")).await;
    assert!(torn.is_err());
    assert_eq!(snapshots().lines().count(), before.lines().count() + 1);

    wire.armed.store(false, Ordering::Relaxed);
    wire.broken.send_replace(false);
    wait_until("what was half made is gone", || async {
        (snapshots() == before).then_some(())
    })
    .await;
    let again = shim.launch(&pod, shell("torn", "busybox", "true")).await;
    assert_eq!(shim.exit(&again).await.exit_code, 0);
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_ends_its_container_is_told_its_own_end() {
    if !can_run_oci("an_exec_that_ends_its_container_is_told_its_own_end") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("ends-itself").await;
    for round in 0..10 {
        let line = "while ! [ -e end ]; do :; done; exit 9";
        let name = format!("waits{round}");
        let id = shim.launch(&pod, shell(&name, "busybox", line)).await;
        let told = exec(&mut shim, &id, "touch end", 10).await.unwrap();
        // Whether it comes to its own end or is taken along by the kernel is a matter of luck.
        assert!([0, 137].contains(&told.exit_code), "{told:?}");
        assert_eq!(shim.exit(&id).await.exit_code, 9);
    }
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_starts_while_the_shim_of_those_before_it_ends() {
    if !can_run_oci("a_container_starts_while_the_shim_of_those_before_it_ends") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("one-by-one").await;
    for round in 0..100 {
        let name = format!("short{round}");
        let id = shim.launch(&pod, shell(&name, "busybox", "true")).await;
        assert_eq!(shim.exit(&id).await.exit_code, 0, "round {round}");
    }
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_virtual_network_an_oci_container_is_refused_with_the_reason() {
    if !can_run_oci("in_the_virtual_network_an_oci_container_is_refused_with_the_reason") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.sandbox("virtual").await;
    let err = shim
        .create(&pod, shell("app", "busybox", "true"))
        .await
        .unwrap_err();
    assert!(err.message().contains("coxswain.dev/pod-network"), "{err}");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_volume_that_is_read_only() {
    if !can_run_oci("an_image_is_a_volume_that_is_read_only") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("volumes").await;
    let volume = |path: &str, sub_path: &str| Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(ImageSpec {
            image: "cox.local/busybox".into(),
            ..ImageSpec::default()
        }),
        image_sub_path: sub_path.into(),
        ..Mount::default()
    };
    let line =
        "cat /all/etc/group | head -n 1; head -n 1 /part/passwd; touch /all/x || echo read-only";
    let mut config = shell("app", "busybox", line);
    config.mounts = vec![volume("/all", ""), volume("/part", "etc")];
    let id = shim.launch(&pod, config.clone()).await;
    let status = shim.exit(&id).await;
    let log = pod.log("app").join("\n");
    for line in ["root:x:0:", "root:x:0:0:root:/root:/bin/sh", "read-only"] {
        assert!(log.contains(line), "{line} is not in:\n{log}");
    }
    assert_eq!(
        status.mounts[0].image.as_ref().unwrap().image_ref,
        status.image_id
    );
    config.metadata.as_mut().unwrap().name = "refused".into();
    config.mounts = vec![volume("/all", "no/such")];
    let err = shim.create(&pod, config).await.unwrap_err();
    assert!(err.message().contains("no/such"), "{err}");
    remove_pod(&mut shim, &pod).await;
    let snapshots = containerd.ctr(&["snapshots", "ls"]);
    assert!(!snapshots.contains("-image-"), "{snapshots}");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_sees_the_processes_of_its_target() {
    if !can_run_oci("an_ephemeral_container_sees_the_processes_of_its_target") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("pod").await;
    let target = shim
        .launch(
            &pod,
            shell(
                "app",
                "busybox",
                "while ! [ -e /tmp/end ]; do sleep 0.1; done; exit 4 # the target",
            ),
        )
        .await;
    let mut debugger = shell(
        "debugger",
        "busybox",
        "cat /proc/1/cmdline; echo; head -n 1 /proc/1/root/etc/passwd; touch /proc/1/root/tmp/end",
    );
    let security = debugger.linux.as_mut().unwrap().security_context.as_mut();
    let options = security.unwrap().namespace_options.as_mut().unwrap();
    options.set_pid(NamespaceMode::Target);
    options.target_id.clone_from(&target);
    let id = shim.launch(&pod, debugger.clone()).await;
    shim.exit(&id).await;
    let log = pod.log("debugger").join("\n");
    assert!(log.contains("# the target"), "{log}");
    assert!(log.contains("root:x:0:0"), "{log}");
    assert_eq!(
        shim.exit(&target).await.exit_code,
        4,
        "its files are reached, too"
    );
    let gone = shim.create(&pod, debugger).await.map(drop);
    assert!(gone.is_err(), "a target that has ended has no processes");
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

/// A runc that does what criu does below it, in a machine whose kernel criu knows; `refuse` beside it makes it fail as criu does.
fn runc_with_criu(dir: &std::path::Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let programs = dir.join("programs");
    std::fs::create_dir(&programs).unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let runc = std::env::split_paths(&path).map(|dir| dir.join("runc"));
    let runc = runc.into_iter().find(|file| file.exists()).unwrap();
    let script = format!(
        "#!/bin/sh\nfor arg; do case \"$arg\" in checkpoint) checkpoint=1;; esac; done\n\
         [ -n \"$checkpoint\" ] || exec {} \"$@\"\n\
         while [ $# -gt 0 ]; do case \"$1\" in --image-path) image=$2;; --work-path) work=$2;; --leave-running) stays=1;; esac; shift; done\n\
         [ -n \"$stays\" ] || exit 2\n\
         if [ -e {}/refuse ]; then echo '(00.1) Error (criu/vdso.c:1): Unexpected area' >$work/dump.log; echo criu failed >&2; exit 1; fi\n\
         echo memory >$image/pages-1.img; echo dumped >$work/dump.log\n",
        runc.display(),
        programs.display()
    );
    let file = programs.join("runc");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    programs
}

async fn checkpoint(
    shim: &mut Shim,
    id: &str,
    location: &std::path::Path,
) -> Result<(), tonic::Status> {
    let request = CheckpointContainerRequest {
        container_id: id.into(),
        location: location.display().to_string(),
        timeout: 60,
    };
    shim.runtime.checkpoint_container(request).await.map(drop)
}

/// What an archive has at this path.
fn of_archive(archive: &std::path::Path, path: &str) -> Option<String> {
    let output = std::process::Command::new("tar")
        .arg("-xOf")
        .arg(archive)
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_holds_memory_files_specification_and_log() {
    if !can_run_oci("a_checkpoint_holds_memory_files_specification_and_log") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let programs = runc_with_criu(dir.path());
    let containerd = Containerd::with_programs(dir.path(), programs.clone()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("pod").await;
    let line = "echo mine >/tmp/own; echo said; while true; do sleep 0.2; done";
    let id = shim.launch(&pod, shell("app", "busybox", line)).await;
    support::wait_until("it has said something", || async {
        (pod.log("app") == ["stdout F said"]).then_some(())
    })
    .await;
    let archive = dir.path().join("app.tar");
    checkpoint(&mut shim, &id, &archive).await.unwrap();
    assert_eq!(
        of_archive(&archive, "checkpoint/pages-1.img").unwrap(),
        "memory\n"
    );
    assert_eq!(of_archive(&archive, "dump.log").unwrap(), "dumped\n");
    let log = of_archive(&archive, "container.log").unwrap();
    assert!(log.ends_with("stdout F said\n"), "{log}");
    let json = |path: &str| -> serde_json::Value {
        serde_json::from_str(&of_archive(&archive, path).unwrap()).unwrap()
    };
    let config = json("config.dump");
    assert_eq!(
        (&config["id"], &config["name"]),
        (&json_text(&id), &json_text("app"))
    );
    assert_eq!(json("spec.dump")["process"]["args"][2], line);
    let files = dir.path().join("files.tar");
    std::fs::write(&files, tar_member(&archive, "rootfs-diff.tar")).unwrap();
    assert_eq!(of_archive(&files, "tmp/own").unwrap(), "mine\n");
    assert!(
        of_archive(&files, "bin/busybox").is_none(),
        "the image's own files are not in it"
    );
    std::fs::write(programs.join("refuse"), "").unwrap();
    let refused = checkpoint(&mut shim, &id, &archive).await.unwrap_err();
    assert!(
        refused
            .message()
            .contains("(criu/vdso.c:1): Unexpected area"),
        "{refused}"
    );
    assert!(
        of_archive(&archive, "dump.log").is_some(),
        "the older archive stays"
    );
    let relative = checkpoint(&mut shim, &id, "app.tar".as_ref())
        .await
        .unwrap_err();
    assert_eq!(relative.code(), tonic::Code::InvalidArgument, "{relative}");
    assert_eq!(
        shim.status(&id).await.state(),
        ContainerState::ContainerRunning
    );
    shim.stop_container(&id, 0).await;
    let ended = checkpoint(&mut shim, &id, &archive).await.unwrap_err();
    assert_eq!(ended.code(), tonic::Code::FailedPrecondition, "{ended}");
    let beside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    let left = beside.iter().filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with(".checkpoint")
    });
    assert_eq!(left.count(), 0);
    let snapshots = containerd.ctr(&["snapshots", "ls"]);
    assert!(!snapshots.contains("checkpoint-"), "{snapshots}");
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_s_own_criu_writes_a_checkpoint_or_says_why_not() {
    if !can_run_oci("the_machine_s_own_criu_writes_a_checkpoint_or_says_why_not") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path()).await;
    let mut shim = Shim::with_containerd(dir.path(), &containerd).await;
    shim.load_busybox("busybox").await;
    let pod = shim.host_sandbox("pod").await;
    let line = "while true; do sleep 0.2; done";
    let id = shim.launch(&pod, shell("app", "busybox", line)).await;
    let archive = dir.path().join("app.tar");
    match checkpoint(&mut shim, &id, &archive).await {
        Ok(()) => assert!(of_archive(&archive, "checkpoint/inventory.img").is_some()),
        Err(refused) => {
            assert!(refused.message().contains("criu"), "{refused}");
            assert!(!archive.exists());
        }
    }
    // Whatever came of it: it goes on.
    let told = exec(&mut shim, &id, "echo here", 10).await.unwrap();
    assert_eq!((told.exit_code, &*told.stdout), (0, &b"here\n"[..]));
    remove_pod(&mut shim, &pod).await;
    shim.stop().await;
}

fn json_text(text: &str) -> serde_json::Value {
    text.into()
}

fn tar_member(archive: &std::path::Path, path: &str) -> Vec<u8> {
    let mut tar = std::process::Command::new("tar");
    tar.arg("-xOf")
        .arg(archive)
        .arg(path)
        .output()
        .unwrap()
        .stdout
}
