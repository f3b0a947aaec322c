//! The life of Pods through a real kubelet: a real API server on one side, a fake runtime on the other.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Secret,
};
use kube::Api;
use kube::api::{ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use support::{Cluster, NODE, condition, eventually, is_ready, one, phase, waiting};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_and_is_deleted() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    let pod = cluster.until("p", "ready", is_ready).await;
    let status = pod.status.clone().unwrap();
    assert_eq!(phase(&pod), "Running");
    assert!(status.pod_ip.unwrap().starts_with("127.64.0."));
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(condition(&pod, "PodScheduled").as_deref(), Some("True"));
    let container = &status.container_statuses.unwrap()[0];
    assert!(
        container
            .container_id
            .as_ref()
            .unwrap()
            .starts_with("fake://c")
    );
    let annotations = {
        let state = cluster.runtime.state.lock().unwrap();
        state
            .sandboxes
            .values()
            .next()
            .unwrap()
            .config
            .annotations
            .clone()
    };
    assert_eq!(annotations["coxswain.dev/pod-network"], "virtual");
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    assert_eq!(
        cluster.runtime.calls(),
        [
            "pull stay",
            "sandbox p",
            "create a#0",
            "start a#0",
            "stop a",
            "stop sandbox p",
            "remove sandbox p"
        ]
    );
    assert!(!cluster.volumes(&pod).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_registers_and_is_ready() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let is_ready = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let node = await_condition(nodes, NODE, is_ready)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(node.metadata.labels.unwrap()["coxswain.dev/wasm"], "true");
    assert_eq!(
        node.spec.unwrap().pod_cidr.as_deref(),
        Some("127.64.0.0/18")
    );
    let status = node.status.unwrap();
    assert_eq!(
        status.node_info.unwrap().container_runtime_version,
        "fake://1"
    );
    let leases: Api<Lease> = Api::namespaced(cluster.admin.clone(), "kube-node-lease");
    let held = |lease: Option<&Lease>| {
        lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref()) == Some(NODE)
    };
    await_condition(leases, NODE, held).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_go_first_and_a_job_ends() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster
        .create(
            "job",
            json!({
                "restartPolicy": "Never",
                "initContainers": [{"name": "i", "image": "exit-0", "imagePullPolicy": "IfNotPresent"},
                    {"name": "s", "image": "stay", "imagePullPolicy": "IfNotPresent", "restartPolicy": "Always"}],
                "containers": [{"name": "a", "image": "exit-0", "imagePullPolicy": "IfNotPresent"}]}),
        )
        .await;
    let pod = cluster
        .until("job", "finished", |pod| phase(pod) == "Succeeded")
        .await;
    assert_eq!(condition(&pod, "Ready").as_deref(), Some("False"));
    let calls = cluster.runtime.calls();
    let starts: Vec<_> = calls
        .iter()
        .filter(|call| call.starts_with("start"))
        .collect();
    assert_eq!(starts, ["start i#0", "start s#0", "start a#0"]);
    let calls = || cluster.runtime.calls();
    eventually("the sandbox is stopped", || {
        calls()
            .last()
            .is_some_and(|call| call == "stop sandbox job")
    })
    .await;
    assert!(
        calls().contains(&"stop s".to_owned()),
        "the sidecar ends with the work"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_container_backs_off() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("exit-3")).await;
    let pod = cluster
        .until("p", "backing off", |pod| waiting(pod) == "CrashLoopBackOff")
        .await;
    let container = pod.status.clone().unwrap().container_statuses.unwrap()[0].clone();
    assert_eq!(container.restart_count, 1);
    assert_eq!(
        container.last_state.unwrap().terminated.unwrap().exit_code,
        3
    );
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), "default");
    let reasons = || async {
        let list = events.list(&ListParams::default()).await.unwrap();
        list.items
            .into_iter()
            .filter_map(|event| event.reason)
            .collect::<Vec<_>>()
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let reasons = reasons().await;
        if ["Pulled", "Created", "Started", "BackOff"]
            .iter()
            .all(|reason| reasons.iter().any(|r| r == reason))
        {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_to_be_had_says_so() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("missing")).await;
    let pod = cluster
        .until("p", "without an image", |pod| {
            waiting(pod) == "ErrImagePull"
        })
        .await;
    assert_eq!(phase(&pod), "Pending");
    cluster
        .until("p", "backing off", |pod| waiting(pod) == "ImagePullBackOff")
        .await;
    assert!(cluster.runtime.state.lock().unwrap().sandboxes.is_empty());
    cluster.delete("p").await;
    cluster.until_gone("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_hold_tokens_and_follow_config_maps() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "default");
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "old"}});
    maps.create(
        &PostParams::default(),
        &serde_json::from_value(map).unwrap(),
    )
    .await
    .unwrap();
    let mut spec = one("stay");
    spec["automountServiceAccountToken"] = json!(true);
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "m"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    spec["containers"][0]["env"] = json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    cluster.create("p", spec).await;
    let pod = cluster.until("p", "ready", is_ready).await;
    let file = cluster.volumes(&pod).join("kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    let token = std::fs::read_dir(
        cluster
            .volumes_in_memory(&pod)
            .join("kubernetes.io~projected"),
    )
    .unwrap()
    .next()
    .unwrap()
    .unwrap();
    assert_eq!(
        std::fs::read_to_string(token.path().join("token"))
            .unwrap()
            .split('.')
            .count(),
        3
    );
    assert!(
        std::fs::read_to_string(token.path().join("ca.crt"))
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    let env: Vec<_> = {
        let state = cluster.runtime.state.lock().unwrap();
        let config = state.containers.values().next().unwrap().config.clone();
        assert_eq!(config.mounts.len(), 2);
        config
            .envs
            .into_iter()
            .map(|e| format!("{}={}", e.key, String::from_utf8(e.value).unwrap()))
            .collect()
    };
    assert!(env.contains(&"K=old".to_owned()), "{env:?}");
    assert!(
        env.contains(&format!("IP={}", pod.status.unwrap().pod_ip.unwrap())),
        "{env:?}"
    );
    maps.patch(
        "m",
        &PatchParams::default(),
        &Patch::Merge(json!({"data": {"k": "new"}})),
    )
    .await
    .unwrap();
    eventually("the file follows", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "new")
    })
    .await;
}

/// Every file below a folder that is on the folder's own file system.
fn files_on_disk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let device = std::fs::metadata(folder).unwrap().dev();
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let found = std::fs::symlink_metadata(&path).unwrap();
            match found.file_type() {
                kind if found.dev() != device || kind.is_symlink() => {}
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() => files.push(path),
                _ => {}
            }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_tokens_are_never_in_clear_on_the_disk_and_their_tmpfs_goes_with_the_last_pod()
{
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a tmpfs needs root");
        return;
    }
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    let word = "a-word-that-is-nowhere-else";
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": word}});
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), "default");
    let secret = serde_json::from_value(secret).unwrap();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let mut spec = one("stay");
    spec["automountServiceAccountToken"] = json!(true);
    spec["volumes"] = json!([
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "p", "projected": {"sources": [{"secret": {"name": "s"}}]}},
        {"name": "d", "downwardAPI": {"items": [
            {"path": "k", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([
        {"name": "s", "mountPath": "/s"}, {"name": "p", "mountPath": "/p"}]);
    cluster.create("p", spec).await;
    let pod = cluster.until("p", "ready", is_ready).await;
    let folder = cluster.volumes_in_memory(&pod);
    let file = |kind: &str| folder.join(format!("kubernetes.io~{kind}/k"));
    for kind in ["secret/s", "projected/p"] {
        assert_eq!(std::fs::read_to_string(file(kind)).unwrap(), word, "{kind}");
    }
    let projected = std::fs::read_dir(folder.join("kubernetes.io~projected")).unwrap();
    let tokens: Vec<String> = projected
        .filter_map(|volume| std::fs::read_to_string(volume.unwrap().path().join("token")).ok())
        .collect();
    assert_eq!(tokens.len(), 1);
    let kept = cluster.dir.path().join("kubelet/kept");
    let uid = pod.metadata.uid.clone().unwrap();
    eventually("the Pod is kept", || kept.join(&uid).exists()).await;
    for path in files_on_disk(&cluster.dir.path().join("kubelet")) {
        let bytes = std::fs::read(&path).unwrap();
        for hidden in [word, &tokens[0]] {
            let holds = bytes
                .windows(hidden.len())
                .any(|part| part == hidden.as_bytes());
            assert!(!holds, "{} holds it", path.display());
        }
    }
    // A kubelet that comes back goes on with the files that are there.
    node.quit().await;
    let written = || {
        std::fs::metadata(file("secret/s"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let before = written();
    let _node = cluster.kubelet();
    let changed = json!({"metadata": {"labels": {"seen": "again"}}});
    let labels = file("downward-api/d");
    let pods = cluster.pods();
    pods.patch("p", &PatchParams::default(), &Patch::Merge(changed))
        .await
        .unwrap();
    eventually("the labels follow", || {
        std::fs::read_to_string(&labels).is_ok_and(|text| text.contains("again"))
    })
    .await;
    assert_eq!(written(), before, "what did not change is not written");
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    eventually("nothing is mounted", || {
        !cluster.dir.path().join("kubelet/memory").exists()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_config_map_holds_the_pod_and_its_coming_frees_it() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
    cluster.create("p", spec).await;
    cluster
        .until("p", "waiting for its config", |pod| {
            waiting(pod) == "CreateContainerConfigError"
        })
        .await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "default");
    let map = json!({"metadata": {"name": "late"}, "data": {"k": "v"}});
    maps.create(
        &PostParams::default(),
        &serde_json::from_value(map).unwrap(),
    )
    .await
    .unwrap();
    cluster.until("p", "ready", is_ready).await;
}

/// The environment of the container of this name, as the runtime got it.
fn environment_of(cluster: &Cluster, name: &str) -> Vec<String> {
    let state = cluster.runtime.state.lock().unwrap();
    let named = |one: &&support::fake_runtime::Container| {
        one.config.metadata.as_ref().unwrap().name == name
    };
    let container = state.containers.values().find(named).unwrap();
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let envs = container.config.envs.iter();
    envs.filter(|env| env.key.starts_with("FILE_"))
        .map(|env| format!("{}={}", env.key, text(&env.value)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_come_from_a_file_that_an_init_container_wrote() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let env = |path: &str, key: &str, optional: bool| {
        json!({"name": format!("FILE_{key}"), "valueFrom": {"fileKeyRef":
            {"volumeName": "v", "path": path, "key": key, "optional": optional}}})
    };
    let container = |name: &str, image: &str, env: serde_json::Value| json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "env": env});
    let spec = json!({
    "terminationGracePeriodSeconds": 1,
    "volumes": [{"name": "v", "emptyDir": {}}],
    "initContainers": [container("i", "stay", json!([]))],
    "containers": [
        container("a", "stay", json!([env("d/config.env", "A", false), env("none.env", "N", true), env("d/config.env", "M", true)])),
        container("b", "oci", json!([env("d/config.env", "B", false)])),
        container("missing", "stay", json!([env("d/config.env", "M", false)])),
        container("planted", "stay", json!([env("planted.env", "A", false)])),
    ]});
    cluster.create("p", spec).await;
    let begun = |pod: &k8s_openapi::api::core::v1::Pod| {
        let statuses = pod.status.clone().unwrap_or_default();
        let first = statuses.init_container_statuses.unwrap_or_default().pop();
        first.is_some_and(|status| status.state.unwrap_or_default().running.is_some())
    };
    let pod = cluster.until("p", "in its init container", begun).await;
    let volume = cluster.volumes(&pod).join("kubernetes.io~empty-dir/v");
    std::fs::create_dir(volume.join("d")).unwrap();
    std::fs::write(
        volume.join("d/config.env"),
        "# for all\nA='1'\nB='two\nlines'\n",
    )
    .unwrap();
    std::os::unix::fs::symlink("/etc/passwd", volume.join("planted.env")).unwrap();
    cluster.runtime.exit("i", 0);
    let states = |pod: &k8s_openapi::api::core::v1::Pod| {
        let statuses = pod.status.clone().unwrap_or_default();
        let statuses = statuses.container_statuses.unwrap_or_default();
        let waits = statuses.into_iter().filter_map(|status| {
            let waiting = status.state?.waiting?;
            Some((status.name, waiting.reason?, waiting.message?))
        });
        waits.collect::<Vec<_>>()
    };
    let told = |pod: &k8s_openapi::api::core::v1::Pod| {
        let waits = states(pod);
        waits.len() == 2
            && waits
                .iter()
                .all(|(_, reason, _)| reason == "CreateContainerConfigError")
    };
    let pod = cluster.until("p", "told of what is missing", told).await;
    let messages: Vec<_> = states(&pod)
        .into_iter()
        .map(|(name, _, why)| (name, why))
        .collect();
    assert_eq!(
        messages,
        [
            (
                "missing".to_owned(),
                "environment variable key \"M\" not found in file \"d/config.env\" of volume \"v\"".to_owned()
            ),
            (
                "planted".to_owned(),
                "couldn't read env file \"planted.env\" in volume \"v\": it leads out of the volume".to_owned()
            ),
        ]
    );
    assert_eq!(environment_of(&cluster, "a"), ["FILE_A=1"]);
    assert_eq!(environment_of(&cluster, "b"), ["FILE_B=two\nlines"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_adopts_what_runs_and_clears_orphans() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    cluster.create("keep", one("stay")).await;
    cluster.create("orphan", one("stay")).await;
    cluster.until("keep", "ready", is_ready).await;
    let orphan = cluster.until("orphan", "ready", is_ready).await;
    node.quit().await;
    let forced = kube::api::DeleteParams {
        grace_period_seconds: Some(0),
        ..Default::default()
    };
    cluster.pods().delete("orphan", &forced).await.unwrap();
    let before = cluster.runtime.calls().len();
    let _node = cluster.kubelet();
    let calls = || cluster.runtime.calls()[before..].to_vec();
    eventually("the orphan is gone", || {
        calls().contains(&"remove sandbox orphan".to_owned())
    })
    .await;
    assert_eq!(
        calls(),
        ["stop a", "stop sandbox orphan", "remove sandbox orphan"],
        "the other Pod is not touched"
    );
    assert_eq!(cluster.runtime.running(), ["a"]);
    eventually("its folder is gone", || !cluster.volumes(&orphan).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_lost_everything_gets_its_pods_again() {
    let mut cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    cluster.until("p", "ready", is_ready).await;
    cluster.replace_runtime();
    let restarted = |pod: &k8s_openapi::api::core::v1::Pod| {
        is_ready(pod)
            && pod
                .status
                .as_ref()
                .unwrap()
                .container_statuses
                .as_ref()
                .unwrap()[0]
                .restart_count
                == 1
    };
    let pod = cluster.until("p", "running again", restarted).await;
    let container = pod.status.unwrap().container_statuses.unwrap()[0].clone();
    assert_eq!(
        container
            .last_state
            .unwrap()
            .terminated
            .unwrap()
            .reason
            .as_deref(),
        Some("ContainerStatusUnknown")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_stop_with_the_node_and_start_with_the_next() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    cluster.until("p", "ready", is_ready).await;
    node.handle.stop_pods().await;
    assert!(cluster.runtime.state.lock().unwrap().sandboxes.is_empty());
    node.quit().await;
    let pod = cluster.pods().get("p").await.unwrap();
    assert!(pod.metadata.deletion_timestamp.is_none());
    assert!(!is_ready(&pod));
    let _node = cluster.kubelet();
    cluster.until("p", "ready again", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_has_a_mirror_that_changes_nothing() {
    let cluster = Cluster::start().await;
    let manifests = cluster.dir.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: stay, imagePullPolicy: IfNotPresent}]}\n";
    std::fs::write(manifests.join("web.yaml"), text).unwrap();
    let _node = cluster.kubelet_with(|config| config.static_pod_dir = Some(manifests));
    let mirror = cluster.until("web-node-1", "ready", is_ready).await;
    assert!(
        mirror
            .metadata
            .annotations
            .unwrap()
            .contains_key("kubernetes.io/config.mirror")
    );
    let forced = kube::api::DeleteParams {
        grace_period_seconds: Some(0),
        ..Default::default()
    };
    cluster.pods().delete("web-node-1", &forced).await.unwrap();
    let uid = mirror.metadata.uid;
    cluster
        .until("web-node-1", "mirrored again", |pod| {
            pod.metadata.uid != uid && is_ready(pod)
        })
        .await;
    assert_eq!(
        cluster.runtime.running(),
        ["a"],
        "the containers were left alone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_through_the_api_server() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    cluster.until("p", "ready", is_ready).await;
    let logs = |params: LogParams| {
        let pods = cluster.pods();
        async move { pods.logs("p", &params).await }
    };
    assert_eq!(
        logs(LogParams::default()).await.unwrap(),
        "hello from a#0\n"
    );
    let stamped = logs(LogParams {
        timestamps: true,
        ..LogParams::default()
    })
    .await
    .unwrap();
    assert_eq!(stamped, "2026-01-01T00:00:00Z hello from a#0\n");
    let none = logs(LogParams {
        previous: true,
        ..LogParams::default()
    })
    .await;
    assert!(none.unwrap_err().to_string().contains("not found"));
    cluster.runtime.exit("a", 1);
    let restarted = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.status
            .as_ref()
            .unwrap()
            .container_statuses
            .as_ref()
            .unwrap()[0]
            .restart_count
            == 1
            && is_ready(pod)
    };
    cluster.until("p", "restarted", restarted).await;
    assert_eq!(
        logs(LogParams {
            previous: true,
            ..LogParams::default()
        })
        .await
        .unwrap(),
        "hello from a#0\n"
    );
    assert_eq!(
        logs(LogParams::default()).await.unwrap(),
        "hello from a#1\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_pod_causes_no_writes() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    let settled = cluster.until("p", "ready", is_ready).await;
    // The other Pod's whole life passes: time enough for a needless write to the first one.
    cluster.create("q", one("exit-0")).await;
    cluster
        .until("q", "backing off", |pod| waiting(pod) == "CrashLoopBackOff")
        .await;
    cluster.delete("q").await;
    cluster.until_gone("q").await;
    let now = cluster.pods().get("p").await.unwrap();
    assert_eq!(
        now.metadata.resource_version,
        settled.metadata.resource_version
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_at_once() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let names: Vec<String> = (0..100).map(|n| format!("p{n}")).collect();
    for name in &names {
        cluster.create(name, one("stay")).await;
    }
    for name in &names {
        cluster.until(name, "ready", is_ready).await;
    }
    for name in &names {
        cluster.delete(name).await;
    }
    for name in &names {
        cluster.until_gone(name).await;
    }
    assert!(cluster.runtime.state.lock().unwrap().sandboxes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_fit_fails_and_can_be_deleted() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": "10000"}});
    cluster.create("large", spec).await;
    let pod = cluster
        .until("large", "refused", |pod| phase(pod) == "Failed")
        .await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    let message = status.message.unwrap();
    assert!(
        message.starts_with(
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 10000000, used: 0"
        ),
        "{message}"
    );
    let made = |calls: &[String]| calls.iter().any(|call| call.starts_with("sandbox "));
    assert!(
        !made(&cluster.runtime.calls()),
        "nothing of it ever started"
    );
    cluster.delete("large").await;
    cluster.until_gone("large").await;
    // The node is as good as before.
    cluster.create("small", one("stay")).await;
    cluster.until("small", "ready", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_on_a_folder_of_the_node_reaches_the_container() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let folder = cluster.dir.path().join("kubelet/local-path/pvc-1");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.admin.clone(), "default");
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "pvc-1",
        "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
    let params = PostParams::default();
    let claim = claims
        .create(&params, &serde_json::from_value(claim).unwrap())
        .await
        .unwrap();
    let mut spec = one("stay");
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    spec["containers"][0]["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/v", "readOnly": true}]);
    cluster.create("p", spec).await;
    let reference = json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "c", "uid": claim.metadata.uid});
    let volume = json!({"metadata": {"name": "pvc-1"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "hostPath": {"path": folder}, "claimRef": reference}});
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin.clone());
    volumes
        .create(&params, &serde_json::from_value(volume).unwrap())
        .await
        .unwrap();
    let bound = json!({"status": {"phase": "Bound"}});
    claims
        .patch_status("c", &PatchParams::default(), &Patch::Merge(bound))
        .await
        .unwrap();
    cluster.until("p", "ready", is_ready).await;
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&folder).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o777, "for containers of any user");
    let mounts = {
        let state = cluster.runtime.state.lock().unwrap();
        state
            .containers
            .values()
            .next()
            .unwrap()
            .config
            .mounts
            .clone()
    };
    let mount = mounts
        .iter()
        .find(|mount| mount.container_path == "/v")
        .unwrap();
    assert_eq!(mount.host_path, folder.display().to_string());
    assert!(mount.readonly);
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    assert!(folder.exists(), "the data outlives the Pod");
}
