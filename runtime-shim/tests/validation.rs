//! Cases of the CRI validation suite (critest) for Wasm containers, which that suite cannot run since its images hold a shell. Which
//! case is checked where, and which have no meaning here, is the table in docs/components/cri-validation.md.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cox_cri::v1::*;
use support::{Shim, container, guests, wait_until};

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn image(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: name.into(),
        ..ImageSpec::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_pods_and_containers_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let mut config = shim.sandbox_config("pod");
    config.labels = labels(&[("app", "a")]);
    config
        .annotations
        .extend(labels(&[("note", "with \"quotes\"")]));
    let pod = shim.run_sandbox(config.clone()).await.unwrap();
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let status = shim.runtime.pod_sandbox_status(request).await.unwrap();
    let status = status.into_inner().status.unwrap();
    assert_eq!(
        (&status.metadata, &status.labels, &status.annotations),
        (&config.metadata, &config.labels, &config.annotations)
    );
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    let mut wanted = container("app", "sleeps");
    wanted.labels = labels(&[("tier", "front")]);
    wanted.annotations = labels(&[("note", "kept")]);
    wanted.metadata.as_mut().unwrap().attempt = 3;
    let id = shim.launch(&pod, wanted.clone()).await;
    let status = shim.status(&id).await;
    assert_eq!(
        (&status.metadata, &status.labels, &status.annotations),
        (&wanted.metadata, &wanted.labels, &wanted.annotations)
    );
    assert!(
        status.log_path.ends_with("logs/pod/app.log"),
        "{}",
        status.log_path
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_figures_are_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let mut ids = Vec::new();
    for (name, tier) in [("a", "front"), ("b", "front"), ("c", "back")] {
        let mut config = container(name, "sleeps");
        config.labels = labels(&[("tier", tier)]);
        ids.push(shim.launch(&pod, config).await);
    }
    let mut created = container("d", "sleeps");
    created.labels = labels(&[("tier", "front")]);
    let created = shim.create(&pod, created).await.unwrap();
    let front = labels(&[("tier", "front")]);
    let filters = [
        ("no filter", None, 3),
        (
            "by label",
            Some(ContainerStatsFilter {
                label_selector: front.clone(),
                ..ContainerStatsFilter::default()
            }),
            2,
        ),
        (
            "by id",
            Some(ContainerStatsFilter {
                id: ids[2].clone(),
                ..ContainerStatsFilter::default()
            }),
            1,
        ),
        (
            "by Pod and label",
            Some(ContainerStatsFilter {
                pod_sandbox_id: pod.id.clone(),
                label_selector: labels(&[("tier", "back")]),
                ..ContainerStatsFilter::default()
            }),
            1,
        ),
    ];
    for (case, filter, count) in filters {
        let request = ListContainerStatsRequest { filter };
        let stats = shim.runtime.list_container_stats(request).await.unwrap();
        let stats = stats.into_inner().stats;
        assert_eq!(
            stats.len(),
            count,
            "case: {case}: only what runs has figures"
        );
        for stats in stats {
            assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
            assert!(stats.cpu.unwrap().usage_core_nano_seconds.is_some());
        }
    }
    let filter = ContainerFilter {
        label_selector: front,
        ..ContainerFilter::default()
    };
    let request = ListContainersRequest {
        filter: Some(filter),
    };
    let listed = shim.runtime.list_containers(request).await.unwrap();
    let listed: BTreeSet<String> = listed
        .into_inner()
        .containers
        .into_iter()
        .map(|container| container.id)
        .collect();
    assert_eq!(
        listed,
        BTreeSet::from([ids[0].clone(), ids[1].clone(), created])
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_a_wasm_pod_have_the_labels_of_their_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "sleeps")).await;
    let descriptors = shim
        .runtime
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await
        .unwrap()
        .into_inner()
        .descriptors;
    let keys: HashMap<String, Vec<String>> = descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name, descriptor.label_keys))
        .collect();
    // The guest holds no memory until it is on a thread, which is later than its start.
    let metrics = wait_until("the guest's memory is counted", || {
        let mut runtime = shim.runtime.clone();
        async move {
            let request = ListPodSandboxMetricsRequest {};
            let answer = runtime.list_pod_sandbox_metrics(request).await.unwrap();
            let metrics = answer.into_inner().pod_metrics;
            let mut of_container = metrics.first()?.container_metrics.first()?.metrics.iter();
            let found =
                of_container.find(|metric| metric.name == "container_memory_working_set_bytes")?;
            (found.value?.value > 0).then_some(metrics)
        }
    })
    .await;
    assert_eq!(metrics.len(), 1);
    assert_eq!(metrics[0].pod_sandbox_id, pod.id);
    let of_container = &metrics[0].container_metrics[0];
    assert_eq!(of_container.container_id, id);
    let label = |metric: &Metric, name: &str| {
        let at = keys[&metric.name]
            .iter()
            .position(|key| key == name)
            .unwrap();
        metric.label_values[at].clone()
    };
    for metric in &of_container.metrics {
        assert_eq!(metric.label_values.len(), keys[&metric.name].len());
        assert_eq!(
            (label(metric, "pod"), label(metric, "container")),
            ("pod".to_owned(), "app".to_owned())
        );
    }
    let value = |name: &str| {
        let found = of_container
            .metrics
            .iter()
            .find(|metric| metric.name == name);
        found.unwrap().value.unwrap().value
    };
    assert_eq!(
        value("container_memory_working_set_bytes"),
        64 << 10,
        "one page"
    );
    assert!(value("container_start_time_seconds") > 0);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_already_is_removed_without_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let gone = "0".repeat(64);
    shim.runtime
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: gone.clone(),
        })
        .await
        .unwrap();
    shim.runtime
        .remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: gone.clone(),
        })
        .await
        .unwrap();
    shim.stop_container(&gone, 0).await;
    shim.runtime
        .remove_container(RemoveContainerRequest {
            container_id: gone.clone(),
        })
        .await
        .unwrap();
    let remove = RemoveImageRequest {
        image: image("cox.local/never-there"),
    };
    shim.images.remove_image(remove).await.unwrap();
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_one_id_under_all_its_names_and_goes_with_the_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    for name in ["one:1", "one:2", "two:latest"] {
        shim.load(name, &guests::hello()).await.unwrap();
    }
    let status = async |shim: &mut Shim, name: &str| {
        let request = ImageStatusRequest {
            image: image(name),
            verbose: false,
        };
        let answer = shim.images.image_status(request).await.unwrap();
        answer.into_inner().image
    };
    let first = status(&mut shim, "cox.local/one:1").await.unwrap();
    for name in ["cox.local/one:2", "cox.local/two", &first.id.clone()] {
        let found = status(&mut shim, name).await.unwrap();
        assert_eq!(found.id, first.id, "{name}");
        assert!(found.size > 0);
    }
    let listed = shim
        .images
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(listed.len(), 1, "one image: {listed:?}");
    assert_eq!(listed[0].repo_tags.len(), 3, "{listed:?}");
    // Several at once, as kubelets' collectors may.
    let removals = (0..4).map(|_| {
        let mut images = shim.images.clone();
        let remove = RemoveImageRequest {
            image: image(&first.id),
        };
        async move { images.remove_image(remove).await }
    });
    for removed in futures::future::join_all(removals).await {
        removed.unwrap();
    }
    for name in ["cox.local/one:1", "cox.local/two", &first.id] {
        assert!(status(&mut shim, name).await.is_none(), "{name}");
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_falls_behind_the_events_is_told_and_lists_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let events = shim.runtime.get_container_events(GetEventsRequest {}).await;
    let mut events = events.unwrap().into_inner();
    // Nobody reads them; more than are kept for one who is behind, and than fit into the connection.
    for index in 0..1200 {
        let mut config = shim.sandbox_config(&format!("pod{index}"));
        let long = ("note".to_owned(), "n".repeat(8 << 10));
        config.annotations.extend([long]);
        let pod = shim.run_sandbox(config).await.unwrap();
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: pod.id,
        };
        shim.runtime.remove_pod_sandbox(request).await.unwrap();
    }
    let stays = shim.sandbox("stays").await;
    let (mut read, mut end) = (0, None);
    while end.is_none() {
        let next = tokio::time::timeout(Duration::from_secs(20), events.message());
        match next.await.expect("an event or the end") {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("it ended after {read} events without a word"),
            Err(status) => end = Some(status),
        }
    }
    let end = end.unwrap();
    assert_eq!(end.code(), tonic::Code::DataLoss, "{end}");
    assert!(end.message().contains("list again"), "{end}");
    let mut again = shim.runtime.get_container_events(GetEventsRequest {}).await;
    let list = ListPodSandboxRequest::default();
    let list = shim
        .runtime
        .list_pod_sandbox(list)
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<&str> = list.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, [&stays.id]);
    let next = shim.sandbox("next").await;
    let event = again.as_mut().unwrap().get_mut().message().await.unwrap();
    assert_eq!(event.unwrap().container_id, next.id);
    shim.stop().await;
}
