//! Corners of a Pod's life through a real kubelet: ephemeral containers, resizes, refusals, the hosts file.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use cox_cri::v1;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
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
        }
    };
    let limit = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        let limits = status.resources.as_ref()?.limits.as_ref()?;
        limits.get("memory").map(|amount| amount.0.clone())
    };
    resize(json!({"limits": {"memory": "128Mi"}}))
        .await
        .unwrap();
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
    resize(json!({"requests": {"cpu": "20m"}})).await.unwrap();
    cluster
        .until("p", "restarted for its CPU", is_restarted)
        .await;
    // The API server knows as well as the kubelet what is more than the node could ever give, until somebody tells it otherwise.
    let too_much = json!({"requests": {"cpu": "100k"}});
    let error = resize(too_much.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains("node didn't have enough allocatable resources"),
        "{error}"
    );
    let enlarged = json!({"status": {"allocatable": {"cpu": "200k"}}});
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(cluster.admin.clone());
    let params = PatchParams::default();
    // The kubelet may correct it in between.
    loop {
        let patch = Patch::Merge(&enlarged);
        nodes
            .patch_status(support::NODE, &params, &patch)
            .await
            .unwrap();
        if resize(too_much.clone()).await.is_ok() {
            break;
        }
    }
    let refused = |pod: &Pod| condition(pod, "PodResizePending").is_some();
    let pod = cluster.until("p", "refused", refused).await;
    assert!(is_ready(&pod));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_as_a_whole_gets_other_resources_in_place() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    let resources = |memory: &str| {
        let amounts = json!({"cpu": "100m", "memory": memory});
        json!({"requests": amounts, "limits": amounts})
    };
    spec["resources"] = resources("64Mi");
    cluster.create("p", spec).await;
    let has = |pod: &Pod, memory: &str| {
        let status = pod.status.clone().unwrap_or_default();
        let limits = status.resources.and_then(|resources| resources.limits);
        let given = status.allocated_resources.unwrap_or_default();
        let is = |amounts: &std::collections::BTreeMap<String, Quantity>| {
            amounts.get("memory").is_some_and(|has| has.0 == memory)
        };
        is_ready(pod) && limits.as_ref().is_some_and(is) && is(&given)
    };
    cluster.until("p", "ready", |pod| has(pod, "64Mi")).await;
    let resize = |memory: &'static str| {
        let patch = json!({"spec": {"resources": resources(memory)}});
        let (pods, params) = (cluster.pods(), PatchParams::default());
        async move {
            let patch = Patch::Strategic(patch);
            let answer = pods.patch_subresource("resize", "p", &params, &patch);
            answer.await
        }
    };
    resize("128Mi").await.unwrap();
    let done = |pod: &Pod| has(pod, "128Mi") && condition(pod, "PodResizeInProgress").is_none();
    let pod = cluster.until("p", "resized", done).await;
    let status = pod.status.unwrap();
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    // A container without a limit of its own is bound by the Pod's.
    let told = "update a memory=134217728".to_owned();
    assert!(cluster.runtime.calls().contains(&told));
    // One whose policy it is starts again for it.
    let mut spec = one("stay");
    spec["resources"] = resources("64Mi");
    spec["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    cluster.create("q", spec).await;
    cluster.until("q", "ready", |pod| has(pod, "64Mi")).await;
    let patch = json!({"spec": {"resources": resources("128Mi")}});
    let (pods, params) = (cluster.pods(), PatchParams::default());
    let patch = Patch::Strategic(patch);
    let answer = pods.patch_subresource("resize", "q", &params, &patch);
    answer.await.unwrap();
    let again = |pod: &Pod| has(pod, "128Mi") && is_restarted(pod);
    cluster.until("q", "restarted", again).await;
    let error = resize("100Ti").await.unwrap_err().to_string();
    let why = "node didn't have enough allocatable resources: memory";
    assert!(error.contains(why), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_containers_of_a_pod_start_again_by_a_rule() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    let mut spec = one("stay");
    let rule =
        json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}});
    spec["restartPolicy"] = json!("Never");
    spec["containers"][0]["restartPolicy"] = json!("Never");
    spec["containers"][0]["restartPolicyRules"] = json!([rule]);
    let other = json!({"name": "b", "image": "stay", "imagePullPolicy": "IfNotPresent"});
    spec["containers"].as_array_mut().unwrap().push(other);
    cluster.create("p", spec).await;
    cluster.until("p", "ready", is_ready).await;
    cluster.runtime.exit("a", 42);
    let counts = |pod: &Pod| -> Vec<i32> {
        let status = pod.status.clone().unwrap_or_default();
        let all = status.container_statuses.into_iter().flatten();
        all.map(|one| one.restart_count).collect()
    };
    let again = |pod: &Pod| {
        is_ready(pod)
            && counts(pod) == [1, 1]
            && condition(pod, "AllContainersRestarting").as_deref() == Some("False")
    };
    let pod = cluster.until("p", "ready again", again).await;
    let last = |pod: &Pod, index: usize| {
        let status = pod.status.clone()?.container_statuses?.remove(index);
        Some(status.last_state?.terminated?.exit_code)
    };
    // The runtime of the tests ends with nothing when it is told to.
    assert_eq!([last(&pod, 0), last(&pod, 1)], [Some(42), Some(0)]);
    // A kubelet that dies in the middle goes on where it was.
    node.quit().await;
    cluster.runtime.exit("a", 42);
    let _node = cluster.kubelet();
    let again = |pod: &Pod| is_ready(pod) && counts(pod) == [2, 2];
    cluster.until("p", "ready once more", again).await;
    // Any other end is one for good.
    cluster.runtime.exit("a", 1);
    cluster.runtime.exit("b", 0);
    cluster
        .until("p", "over", |pod| phase(pod) == "Failed")
        .await;
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
async fn an_unsafe_sysctl_that_the_operator_allows_reaches_the_sandbox() {
    let cluster = Cluster::start().await;
    let patterns = ["kernel.msg*".to_owned(), "kernel.sem".to_owned()];
    let _node = cluster.kubelet_with(|config| {
        config.unsafe_sysctls = cox_kubelet::sysctls::Allowed::parse(&patterns).unwrap();
    });
    let mut spec = one("stay");
    spec["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "65536"}, {"name": "kernel/sem", "value": "1 2 3 4"}]});
    cluster.create("p", spec.clone()).await;
    cluster.until("p", "ready", is_ready).await;
    let made = {
        let state = cluster.runtime.state.lock().unwrap();
        let sandbox = state.sandboxes.values().next().unwrap();
        sandbox.config.linux.clone().unwrap().sysctls
    };
    assert_eq!(made["kernel.msgmax"], "65536");
    assert_eq!(made.len(), 2);
    spec["securityContext"]["sysctls"] = json!([{"name": "net.core.somaxconn", "value": "1"}]);
    cluster.create("q", spec).await;
    let refused = |pod: &Pod| phase(pod) == "Failed";
    let pod = cluster.until("q", "refused", refused).await;
    assert_eq!(
        pod.status.unwrap().reason.as_deref(),
        Some("SysctlForbidden")
    );
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

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_that_does_not_fit_waits_for_room() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(cluster.admin.clone());
    let node = async {
        loop {
            if let Some(node) = nodes.get_opt(support::NODE).await.unwrap() {
                return node;
            }
            tokio::task::yield_now().await;
        }
    };
    let node = node.await;
    let cores = node.status.unwrap().allocatable.unwrap()["cpu"].0.clone();
    let millis = cores.strip_suffix('m').map_or_else(
        || cores.parse::<i64>().unwrap() * 1000,
        |millis| millis.parse().unwrap(),
    );
    let asks = |millis: i64| {
        let mut spec = one("stay");
        spec["containers"][0]["resources"] = json!({"requests": {"cpu": format!("{millis}m")}});
        spec
    };
    cluster.create("filler", asks(millis - 300)).await;
    cluster.until("filler", "ready", is_ready).await;
    cluster.create("p", asks(100)).await;
    cluster.until("p", "ready", is_ready).await;
    let wanted = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "400m"}}}]}});
    let params = PatchParams::default();
    cluster
        .pods()
        .patch_subresource("resize", "p", &params, &Patch::Strategic(wanted))
        .await
        .unwrap();
    let waits = |pod: &Pod| condition(pod, "PodResizePending").is_some();
    let pod = cluster.until("p", "waiting for room", waits).await;
    let conditions = pod.status.as_ref().unwrap().conditions.clone().unwrap();
    let pending = conditions
        .iter()
        .find(|one| one.type_ == "PodResizePending")
        .unwrap();
    assert_eq!(pending.reason.as_deref(), Some("Deferred"));
    assert_eq!(
        pending.message.clone().unwrap(),
        format!(
            "Node didn't have enough resource: cpu, requested: 400, used: {}, capacity: {millis}",
            millis - 300
        )
    );
    let allocated = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        let amount = status.allocated_resources.as_ref()?.get("cpu")?;
        Some(amount.0.clone())
    };
    assert_eq!(
        allocated(&pod).as_deref(),
        Some("100m"),
        "it keeps what it has"
    );
    // Others may have what it does not hold yet.
    cluster.create("small", asks(150)).await;
    cluster.until("small", "ready", is_ready).await;
    cluster.delete("filler").await;
    let done = |pod: &Pod| {
        condition(pod, "PodResizePending").is_none()
            && condition(pod, "PodResizeInProgress").is_none()
            && allocated(pod).as_deref() == Some("400m")
    };
    let pod = cluster.until("p", "resized", done).await;
    let status = pod.status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.restart_count, 0);
    assert_eq!(status.resources.unwrap().requests.unwrap()["cpu"].0, "400m");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_users_of_its_own_fails_with_the_reason_and_nothing_is_made() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["hostUsers"] = json!(false);
    cluster.create("p", spec).await;
    let pod = cluster
        .until("p", "refused", |pod| phase(pod) == "Failed")
        .await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("PodFeatureUnsupported"));
    assert!(status.message.unwrap().contains("no ID-mapped mounts"));
    assert!(
        !cluster
            .runtime
            .calls()
            .iter()
            .any(|call| call.starts_with("sandbox"))
    );
}
