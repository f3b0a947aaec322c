//! Corners of a Pod's life through a real kubelet: ephemeral containers, resizes, refusals, the hosts file.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use cox_cri::v1;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use support::{Cluster, condition, eventually, is_ready, is_restarted, one, phase};

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_starts_once_and_sees_its_target() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    cluster.until("p", "ready", is_ready).await;
    let patch = json!({"spec": {"ephemeralContainers": [
        {"name": "debug", "image": "exit-3", "imagePullPolicy": "IfNotPresent", "targetContainerName": "a"}]}});
    cluster
        .pods()
        .patch_subresource(
            "ephemeralcontainers",
            "p",
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await
        .unwrap();
    let ended = |pod: &Pod| {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|status| status.ephemeral_container_statuses.as_ref());
        let state = statuses
            .and_then(|statuses| statuses[0].state.clone())
            .unwrap_or_default();
        state.terminated.is_some_and(|end| end.exit_code == 3)
    };
    let pod = cluster.until("p", "debugged", ended).await;
    assert!(is_ready(&pod), "the Pod goes on");
    let (own, target) = {
        let state = cluster.runtime.state.lock().unwrap();
        let named = |name: &str| {
            let found = state
                .containers
                .iter()
                .find(|(_, c)| c.config.metadata.as_ref().unwrap().name == name);
            found
                .map(|(id, container)| (id.clone(), container.config.clone()))
                .unwrap()
        };
        let linux = named("debug").1.linux.unwrap();
        (
            linux.security_context.unwrap().namespace_options.unwrap(),
            named("a").0,
        )
    };
    assert_eq!(own.pid(), v1::NamespaceMode::Target);
    assert_eq!(own.target_id, target);
    let starts = cluster
        .runtime
        .calls()
        .iter()
        .filter(|call| call.starts_with("start debug"))
        .count();
    assert_eq!(starts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_change_in_place_or_by_a_restart() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["containers"][0]["resources"] =
        json!({"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}});
    spec["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    cluster.create("p", spec).await;
    cluster.until("p", "ready", is_ready).await;
    let resize = |resources: serde_json::Value| {
        let patch = json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        let pods = cluster.pods();
        async move {
            pods.patch_subresource(
                "resize",
                "p",
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await
            .unwrap()
        }
    };
    let limit = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        let limits = status.resources.as_ref()?.limits.as_ref()?;
        limits.get("memory").map(|amount| amount.0.clone())
    };
    resize(json!({"limits": {"memory": "128Mi"}})).await;
    let done = |pod: &Pod| {
        limit(pod).as_deref() == Some("128Mi") && condition(pod, "PodResizeInProgress").is_none()
    };
    let pod = cluster.until("p", "resized", done).await;
    assert_eq!(
        pod.status.unwrap().container_statuses.unwrap()[0].restart_count,
        0
    );
    assert!(
        cluster
            .runtime
            .calls()
            .contains(&"update a memory=134217728".to_owned())
    );
    resize(json!({"requests": {"cpu": "20m"}})).await;
    cluster
        .until("p", "restarted for its CPU", is_restarted)
        .await;
    resize(json!({"requests": {"cpu": "100k"}})).await;
    let refused = |pod: &Pod| condition(pod, "PodResizePending").is_some();
    let pod = cluster.until("p", "refused", refused).await;
    assert!(is_ready(&pod));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_sysctl_fails_the_pod_before_anything_is_made() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]});
    cluster.create("p", spec).await;
    let pod = cluster
        .until("p", "refused", |pod| phase(pod) == "Failed")
        .await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("SysctlForbidden"));
    let message = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    assert_eq!(status.message.as_deref(), Some(message));
    assert!(cluster.runtime.state.lock().unwrap().sandboxes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_file_names_the_pod_and_its_aliases() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["hostAliases"] = json!([{"ip": "1.2.3.4", "hostnames": ["foo", "bar"]}]);
    cluster.create("p", spec).await;
    let pod = cluster.until("p", "ready", is_ready).await;
    let mount = {
        let state = cluster.runtime.state.lock().unwrap();
        let container = state.containers.values().next().unwrap();
        let mounts = container.config.mounts.clone();
        mounts
            .into_iter()
            .find(|mount| mount.container_path == "/etc/hosts")
            .unwrap()
    };
    let text = std::fs::read_to_string(&mount.host_path).unwrap();
    let ip = pod.status.unwrap().pod_ip.unwrap();
    assert!(
        text.contains(&format!("{ip}\tp\n")) && text.ends_with("1.2.3.4\tfoo\tbar\n"),
        "{text}"
    );
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    eventually("the file goes with the Pod", || {
        !std::path::Path::new(&mount.host_path).exists()
    })
    .await;
}
