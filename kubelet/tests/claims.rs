//! A driver of dynamic resources beside a real kubelet: it registers, prepares what was allocated to Pods before they start, says how
//! its devices are, and clears away after the last Pod; over failures of its own, restarts of the kubelet and power cuts.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use cox_kubelet::claims::health_proto::HealthStatus;
use cox_kubelet::claims::proto::Device;
use cox_kubelet::pod_resources::proto as pod_resources;
use cox_kubelet::pod_resources::proto::pod_resources_lister_client::PodResourcesListerClient;
use cox_kubelet::pod_resources::socket as pod_resources_socket;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::driver::{DRIVER, Driver};
use support::{Cluster, NODE, channel, eventually, is_ready, is_restarted, one, phase};

/// Serves a pair of oars, whatever the claim.
fn serve(cluster: &Cluster, name: &str) -> (Driver, [tokio::task::JoinHandle<()>; 2]) {
    let device = |request: &str, name: &str| Device {
        request_names: vec![request.to_owned()],
        pool_name: NODE.to_owned(),
        device_name: name.to_owned(),
        cdi_device_ids: vec![format!("example.com/oar={name}")],
        share_id: None,
    };
    Driver::serve(&cluster.dir.path().join("kubelet"), name, move |_| {
        vec![device("left", "l"), device("right", "r")]
    })
}

fn claims(cluster: &Cluster) -> Api<ResourceClaim> {
    Api::namespaced(cluster.admin.clone(), "default")
}

/// A claim that nobody has allocated yet.
async fn claim(cluster: &Cluster) {
    let exactly = json!({"deviceClassName": "oars", "allocationMode": "ExactCount", "count": 1});
    let claim = json!({"metadata": {"name": "oars"}, "spec": {"devices": {"requests": [
        {"name": "left", "exactly": exactly}, {"name": "right", "exactly": exactly}]}}});
    let claim = serde_json::from_value(claim).unwrap();
    let params = PostParams::default();
    claims(cluster).create(&params, &claim).await.unwrap();
}

/// Does the scheduler's work: both oars are for these Pods.
async fn allocate(cluster: &Cluster, pods: &[&Pod]) {
    let result = |request: &str, device: &str| json!({"request": request, "driver": DRIVER, "pool": NODE, "device": device});
    let reserved = pods
        .iter()
        .map(|pod| json!({"resource": "pods", "name": pod.metadata.name, "uid": pod.metadata.uid}));
    let status = json!({"status": {
        "allocation": {"devices": {"results": [result("left", "l"), result("right", "r")]}},
        "reservedFor": reserved.collect::<Vec<_>>(),
    }});
    let patch = Patch::Merge(status);
    let params = PatchParams::default();
    claims(cluster)
        .patch_status("oars", &params, &patch)
        .await
        .unwrap();
}

fn rower() -> Value {
    let mut spec = one("oci");
    spec["resourceClaims"] = json!([{"name": "oar", "resourceClaimName": "oars"}]);
    spec["containers"][0]["resources"] = json!({"claims": [{"name": "oar", "request": "left"}]});
    spec
}

/// The Pod `p`, with its oars.
async fn ready_rower(cluster: &Cluster) -> Pod {
    let pod = cluster.create("p", rower()).await;
    allocate(cluster, &[&pod]).await;
    cluster.until("p", "ready", is_ready).await;
    pod
}

/// The devices that the runtime was told of, by container.
fn given(cluster: &Cluster) -> Vec<Vec<String>> {
    let state = cluster.runtime.state.lock().unwrap();
    let names =
        |devices: &[cox_cri::v1::CdiDevice]| devices.iter().map(|one| one.name.clone()).collect();
    state
        .containers
        .values()
        .map(|one| names(&one.config.cdi_devices))
        .collect()
}

fn health(pod: &Pod) -> Option<(String, String, Option<String>)> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let known = status.allocated_resources_status.as_ref()?.first()?;
    let device = known.resources.as_ref()?.first()?;
    let says = format!("{} {}", device.resource_id, device.health.as_deref()?);
    Some((known.name.clone(), says, device.message.clone()))
}

async fn held(cluster: &Cluster) -> Vec<String> {
    let socket = pod_resources_socket(&cluster.dir.path().join("kubelet"));
    let channel = channel(socket).await;
    let listed = PodResourcesListerClient::new(channel)
        .list(pod_resources::ListPodResourcesRequest {})
        .await
        .unwrap();
    let pods = listed.into_inner().pod_resources;
    let claims = pods
        .into_iter()
        .flat_map(|pod| pod.containers)
        .flat_map(|one| one.dynamic_resources);
    let device = |claim: &pod_resources::DynamicResource| {
        let one = &claim.claim_resources[0];
        format!(
            "{}: {}/{}/{} {}",
            claim.claim_name,
            one.driver_name,
            one.pool_name,
            one.device_name,
            one.cdi_devices[0].name
        )
    };
    claims.map(|claim| device(&claim)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allocated_is_prepared_first_and_cleared_away_last() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    claim(&cluster).await;
    let first = cluster.create("first", rower()).await;
    // Nothing of it runs before all is well, and it is said why.
    let told = "FailedPrepareDynamicResources";
    cluster.until_told(told, "pod first").await;
    cluster
        .until_told(told, "is not allowed to use ResourceClaim oars")
        .await;
    let second = cluster.create("second", rower()).await;
    allocate(&cluster, &[&first, &second]).await;
    cluster
        .until_told(told, "DRA driver oars.example.com is not registered")
        .await;
    let (driver, tasks) = {
        let (driver, tasks) = serve(&cluster, "oars");
        driver.fail(Some("the boat is on fire"));
        (driver, tasks)
    };
    cluster
        .until_told(
            told,
            "NodePrepareResources failed for ResourceClaim oars: the boat is on fire",
        )
        .await;
    assert_eq!(cluster.runtime.running(), Vec::<String>::new());
    driver.fail(None);
    let ready = cluster.until("first", "ready", is_ready).await;
    cluster.until("second", "ready", is_ready).await;
    assert_eq!(
        given(&cluster),
        [["example.com/oar=l"], ["example.com/oar=l"]],
        "the device of its request alone"
    );
    drop(ready);

    // How the device is shows in the Pod, and whoever asks hears who has it.
    let says =
        |wish: &'static str| move |pod: &Pod| health(pod).is_some_and(|(_, says, _)| says == wish);
    cluster
        .until("first", "healthy", says("example.com/oar=l Healthy"))
        .await;
    driver
        .health
        .send_replace((HealthStatus::Unhealthy, "worm-eaten"));
    let ill = cluster
        .until("first", "ill", says("example.com/oar=l Unhealthy"))
        .await;
    let (name, _, message) = health(&ill).unwrap();
    assert_eq!(
        (name.as_str(), message.as_deref()),
        ("claim:oar/left", Some("worm-eaten"))
    );
    assert_eq!(
        held(&cluster).await,
        vec!["oars: oars.example.com/node-1/l example.com/oar=l"; 2]
    );

    // The kubelet starts anew: who has what is known, and the claim stays as long as one Pod uses it.
    node.quit().await;
    let node = cluster.kubelet();
    cluster.delete("first").await;
    cluster.until_gone("first").await;
    let unprepared = || {
        driver
            .calls()
            .iter()
            .filter(|call| *call == "unprepare oars")
            .count()
    };
    assert_eq!(unprepared(), 0);
    driver.fail(Some("it is stuck"));
    cluster.delete("second").await;
    eventually("the driver is asked to clear away", || unprepared() > 0).await;
    assert!(
        cluster.pods().get_opt("second").await.unwrap().is_some(),
        "the Pod stays as long as its device is not cleared away"
    );
    driver.fail(None);
    cluster.until_gone("second").await;
    let file = cluster.dir.path().join("kubelet/claims.json");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "[]");
    node.quit().await;
    for task in tasks {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_went_while_the_kubelet_was_away_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    claim(&cluster).await;
    let (driver, tasks) = serve(&cluster, "oars");
    ready_rower(&cluster).await;
    node.quit().await;
    let at_once = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    cluster.pods().delete("p", &at_once).await.unwrap();
    let node = cluster.kubelet();
    eventually("it is cleared away", || {
        driver
            .calls()
            .last()
            .is_some_and(|call| call == "unprepare oars")
    })
    .await;
    eventually("nothing of it runs", || {
        cluster.runtime.running().is_empty()
    })
    .await;

    // Without a trace of the Pod in the runtime, too.
    ready_rower(&cluster).await;
    node.quit().await;
    cluster.pods().delete("p", &at_once).await.unwrap();
    let calls = driver.calls().len();
    {
        let mut state = cluster.runtime.state.lock().unwrap();
        state.containers.clear();
        state.sandboxes.clear();
    }
    std::fs::remove_dir_all(cluster.dir.path().join("kubelet/kept")).unwrap();
    let node = cluster.kubelet();
    eventually("it is cleared away", || {
        driver.calls()[calls..] == ["unprepare oars"]
    })
    .await;
    node.quit().await;
    for task in tasks {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_claims_are_prepared_without_a_control_plane() {
    let mut cluster = Cluster::start().await;
    let node = cluster.kubelet();
    claim(&cluster).await;
    let (driver, tasks) = serve(&cluster, "oars");
    let pod = ready_rower(&cluster).await;
    let uid = pod.metadata.uid.clone().unwrap();
    let kept = cluster.dir.path().join("kubelet/kept").join(uid);
    eventually("the Pod is kept", || kept.exists()).await;
    node.quit().await;
    for task in tasks {
        task.abort();
    }
    cluster.cut_power();
    cluster.set_link(false);
    let node = cluster.kubelet();
    // The driver comes up later, by whatever starts it.
    let (again, tasks) = serve(&cluster, "oars-again");
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    assert_eq!(
        again.calls(),
        ["prepare oars"],
        "the driver has lost what it had in memory"
    );
    assert_eq!(given(&cluster), [["example.com/oar=l"]]);
    cluster.set_link(true);
    let pod = cluster
        .until("p", "reported as restarted once", is_restarted)
        .await;
    assert_eq!(phase(&pod), "Running");
    assert_eq!(driver.calls(), ["prepare oars"]);
    node.quit().await;
    for task in tasks {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_is_updated_without_a_gap() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    claim(&cluster).await;
    let (old, old_tasks) = serve(&cluster, "oars-1");
    let registry = cluster.dir.path().join("kubelet/plugins_registry");
    ready_rower(&cluster).await;
    // Both answer for a while; then the old one goes, and the new one has to clear away.
    let (new, new_tasks) = serve(&cluster, "oars-2");
    for task in old_tasks {
        task.abort();
    }
    std::fs::remove_file(registry.join("oars-1-reg.sock")).unwrap();
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    assert_eq!(old.calls(), ["prepare oars"]);
    assert_eq!(new.calls(), ["unprepare oars"]);
    node.quit().await;
    for task in new_tasks {
        task.abort();
    }
}
