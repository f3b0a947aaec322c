//! A Pod's whole life through CRI: images through the door, sandbox, containers, logs, events, stop, restart of the shim.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use cox_cri::v1::*;
use support::{Shim, container, guests, wait_until};
use tokio_stream::StreamExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_to_its_end_and_leaves_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let entry = shim.load("hello", &guests::hello()).await.unwrap();
    assert_eq!(entry.name, "cox.local/hello:latest");
    let mut events = shim
        .runtime
        .get_container_events(GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let pod = shim.sandbox("pod").await;
    assert!(pod.ip.starts_with("127."), "{}", pod.ip);
    let id = shim.launch(&pod, container("app", "hello")).await;
    let status = shim.exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert!(status.started_at >= status.created_at && status.finished_at >= status.started_at);
    assert_eq!(pod.log("app"), ["stdout F hello", "stderr F hello"]);
    use ContainerEventType::*;
    let mut seen = Vec::new();
    while seen.last() != Some(&(ContainerStoppedEvent, id.clone())) {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!(event.pod_sandbox_status.as_ref().unwrap().id, pod.id);
        seen.push((event.container_event_type(), event.container_id));
    }
    let of = |id: &str| {
        [
            (ContainerCreatedEvent, id.to_owned()),
            (ContainerStartedEvent, id.to_owned()),
        ]
    };
    let expected = [
        of(&pod.id).to_vec(),
        of(&id).to_vec(),
        vec![(ContainerStoppedEvent, id.clone())],
    ]
    .concat();
    assert_eq!(seen, expected);
    shim.runtime
        .remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: pod.id,
        })
        .await
        .unwrap();
    let left = shim
        .runtime
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(left, []);
    assert_eq!(
        std::fs::read_dir(dir.path().join("state/containers"))
            .unwrap()
            .count(),
        0
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_reach_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let pod = shim.sandbox("pod").await;
    let cases = [
        ("module that exits with 42", guests::exits(42), 42, "Error"),
        ("module that exits with 0", guests::exits(0), 0, "Completed"),
        (
            "component that returns ok",
            guests::component(true),
            0,
            "Completed",
        ),
        (
            "component that returns an error",
            guests::component(false),
            1,
            "Error",
        ),
        ("module that traps", guests::traps(), 134, "Error"),
    ];
    for (index, (case, wat, code, reason)) in cases.into_iter().enumerate() {
        let name = format!("case{index}");
        shim.load(&name, &wat).await.unwrap();
        let id = shim.launch(&pod, container(&name, &name)).await;
        let status = shim.exit(&id).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, reason),
            "case: {case}"
        );
    }
    assert!(
        pod.log("case4")
            .iter()
            .any(|line| line.contains("unreachable")),
        "{:?}",
        pod.log("case4")
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_shim_reports_its_guests_as_ended_and_keeps_images_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "sleeps")).await;
    // As kill -9 would leave it: a folder half-made, a container that says it runs.
    let state = dir
        .path()
        .join("state/containers")
        .join(&id)
        .join("state.json");
    let running = std::fs::read(&state).unwrap();
    let config = shim.stop().await;
    std::fs::write(&state, running).unwrap();
    std::fs::create_dir(dir.path().join("state/containers/half")).unwrap();
    let mut shim = Shim::run(config).await;
    let status = shim.status(&id).await;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "RuntimeRestarted")
    );
    assert!(!dir.path().join("state/containers/half").exists());
    let again = shim.create(
        &pod,
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "app".into(),
                attempt: 1,
            }),
            ..container("app", "sleeps")
        },
    );
    let again = again.await.unwrap();
    shim.start_container(&again).await.unwrap();
    let other = shim.sandbox("other").await;
    assert_ne!(
        other.ip, pod.ip,
        "the address of the first Pod is still its own"
    );
    shim.stop_container(&again, 0).await;
    assert_eq!(shim.status(&again).await.exit_code, 137);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_may_be_repeated_and_wrong_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "sleeps")).await;
    let err = shim
        .create(&pod, container("app", "sleeps"))
        .await
        .unwrap_err();
    assert_eq!(err.code(), tonic::Code::AlreadyExists, "{err}");
    let err = shim.start_container(&id).await.unwrap_err();
    assert_eq!(err.message(), "cannot start a container that is running");
    for _ in 0..2 {
        shim.stop_container(&id, 0).await;
        shim.runtime
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            })
            .await
            .unwrap();
    }
    let err = shim
        .create(&pod, container("late", "sleeps"))
        .await
        .unwrap_err();
    assert_eq!(err.code(), tonic::Code::FailedPrecondition, "{err}");
    for _ in 0..2 {
        shim.runtime
            .remove_container(RemoveContainerRequest {
                container_id: id.clone(),
            })
            .await
            .unwrap();
        shim.runtime
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            })
            .await
            .unwrap();
    }
    let request = RunPodSandboxRequest {
        config: Some(pod.config.clone()),
        runtime_handler: "kata".into(),
    };
    let err = shim.runtime.run_pod_sandbox(request).await.unwrap_err();
    assert!(
        err.message().contains("no runtime handler \"kata\""),
        "{err}"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_another_instance_beside_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "sleeps")).await;
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["sleeps".into()],
        timeout: 1,
    };
    let err = shim.runtime.exec_sync(request).await.unwrap_err();
    assert_eq!(err.code(), tonic::Code::DeadlineExceeded, "{err}");
    assert_eq!(
        shim.status(&id).await.state(),
        ContainerState::ContainerRunning,
        "the container itself goes on"
    );
    shim.stop_container(&id, 0).await;
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["sleeps".into()],
        timeout: 1,
    };
    assert!(shim.runtime.exec_sync(request).await.is_err());
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_replaced_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let first = shim.load("app", &guests::hello()).await.unwrap();
    let second = shim.load("app", &guests::exits(3)).await.unwrap();
    assert_ne!(first.id, second.id);
    let listed = cox_runtime_shim::images::door::list(&shim.config.images_socket)
        .await
        .unwrap();
    assert_eq!(listed, std::slice::from_ref(&second));
    let spec = Some(ImageSpec {
        image: "cox.local/app".into(),
        ..ImageSpec::default()
    });
    let request = ImageStatusRequest {
        image: spec.clone(),
        verbose: true,
    };
    let status = shim
        .images
        .image_status(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.info["coxswain.dev/image-kind"], "wasm");
    assert_eq!(status.image.unwrap().id, second.id);
    shim.images
        .remove_image(RemoveImageRequest {
            image: spec.clone(),
        })
        .await
        .unwrap();
    let request = ImageStatusRequest {
        image: spec,
        verbose: false,
    };
    assert_eq!(
        shim.images
            .image_status(request)
            .await
            .unwrap()
            .into_inner()
            .image,
        None
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("root/blobs/sha256"))
            .unwrap()
            .count(),
        0,
        "content goes with its image"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_follow_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let wat = guests::module(
        "tick\n",
        "(loop $l (call $print (i32.const 1)) (call $sleep (i64.const 1000000)) (br $l))",
    );
    shim.load("ticks", &wat).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "ticks")).await;
    let lines = || async { (pod.log("app").len() > 3).then_some(()) };
    wait_until("there are lines", lines).await;
    std::fs::rename(pod.logs.join("app.log"), pod.logs.join("app.log.1")).unwrap();
    shim.runtime
        .reopen_container_log(ReopenContainerLogRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    assert!(pod.logs.join("app.log").exists());
    wait_until("there are lines in the new file", lines).await;
    shim.stop_container(&id, 0).await;
    shim.stop().await;
}
