//! Devices for Pods, with the real scheduler: from a template to a bound Pod, and to the next one when it is done.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{
    DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::create_namespace;
use super::kit::Cluster;

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn class(expression: &str) -> DeviceClass {
    of(
        json!({"metadata": {"name": "gpu.example.com"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}),
    )
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"restartPolicy": "Never",
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}],
        "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}]}}]}})
}

fn node_of(pods: &[Arc<Pod>], name: &str) -> Option<String> {
    let pod = pods.iter().find(|pod| pod.name_any() == name)?;
    pod.spec.as_ref()?.node_name.clone()
}

fn says(pods: &[Arc<Pod>], name: &str, what: &str) -> bool {
    let pod = pods.iter().find(|pod| pod.name_any() == name);
    let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.message.as_deref() == Some(what)
    })
}

/// One node with one device that fits.
async fn one_device(cluster: &Cluster) {
    cluster.create_node("node-1").await;
    let has = json!({"status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
    Api::<Node>::all(cluster.client.clone())
        .patch_status("node-1", &PatchParams::default(), &Patch::Merge(has))
        .await
        .unwrap();
    let classes = Api::<DeviceClass>::all(cluster.client.clone());
    let create = PostParams::default();
    let refused = classes
        .create(&create, &class("device.driver.size()"))
        .await
        .unwrap_err()
        .to_string();
    let why = "spec.selectors[0].cel.expression: Invalid value: \"device.driver.size()\": must evaluate to bool or the unknown type, not int";
    assert!(refused.contains(why), "{refused}");
    classes
        .create(
            &create,
            &class("device.attributes['gpu.example.com'].model == 'big'"),
        )
        .await
        .unwrap();
    let device =
        |name: &str, model: &str| json!({"name": name, "attributes": {"model": {"string": model}}});
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu.example.com", "nodeName": "node-1",
        "pool": {"name": "node-1", "generation": 1, "resourceSliceCount": 1},
        "devices": [device("gpu-0", "small"), device("gpu-1", "big")]}});
    Api::<ResourceSlice>::all(cluster.client.clone())
        .create(&create, &of(slice))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_get_devices_one_after_the_other() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    let scheduler = cluster.run_scheduler();
    create_namespace(&cluster, "n").await;
    one_device(&cluster).await;
    let wanted = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu.example.com"}}]}});
    let template = json!({"metadata": {"name": "t"}, "spec": {"spec": wanted}});
    cluster.create::<ResourceClaimTemplate>("n", template).await;

    let first = cluster.create::<Pod>("n", pod("first")).await;
    cluster
        .wait_for::<Pod>("the first Pod on its node", |pods| {
            node_of(pods, "first").as_deref() == Some("node-1")
        })
        .await;
    let claims: Api<ResourceClaim> = cluster.api("n");
    let all = claims.list(&Default::default()).await.unwrap().items;
    let claim = &all[0];
    assert_eq!(
        claim.finalizers(),
        ["resource.kubernetes.io/delete-protection"]
    );
    let status = serde_json::to_value(&claim.status).unwrap();
    assert_eq!(
        status["allocation"]["devices"]["results"],
        json!([{"request": "r", "driver": "gpu.example.com", "pool": "node-1", "device": "gpu-1"}])
    );
    assert_eq!(
        status["reservedFor"],
        json!([{"resource": "pods", "name": "first", "uid": first.uid()}])
    );

    cluster.create::<Pod>("n", pod("second")).await;
    cluster
        .wait_for::<Pod>("the second Pod waiting", |pods| {
            says(
                pods,
                "second",
                "0/1 nodes are available: 1 cannot allocate all claims.",
            )
        })
        .await;
    let done = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    cluster
        .api::<Pod>("n")
        .patch_status("first", &PatchParams::default(), &done)
        .await
        .unwrap();
    cluster
        .wait_for::<Pod>("the second Pod on the node", |pods| {
            node_of(pods, "second").is_some()
        })
        .await;

    // As the scheduler takes a Pod out again whose binding failed.
    let all = claims.list(&Default::default()).await.unwrap().items;
    let claim = all
        .iter()
        .find(|claim| claim.name_any().starts_with("second"));
    let (name, uid) = claim.map(|claim| (claim.name_any(), claim.uid())).unwrap();
    let user = &claim
        .unwrap()
        .status
        .as_ref()
        .unwrap()
        .reserved_for
        .as_ref()
        .unwrap()[0];
    let gone = json!({"metadata": {"uid": uid}, "status": {"reservedFor": [{"$patch": "delete", "uid": user.uid}]}});
    let as_scheduler = Api::<ResourceClaim>::namespaced(cluster.scheduler_client(), "n");
    let left = as_scheduler
        .patch_status(&name, &PatchParams::default(), &Patch::Strategic(gone))
        .await
        .unwrap();
    let left = left.status.unwrap();
    assert!(left.allocation.is_some() && left.reserved_for.unwrap_or_default().is_empty());
    scheduler.cancel();
    controllers.stop().await;
}
