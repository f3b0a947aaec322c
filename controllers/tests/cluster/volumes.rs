//! Claims and volumes, from the claim to the reclaimed volume.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::kit::Cluster;

fn claim(name: &str, class: Option<&str>) -> Value {
    let mut claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

fn phase(claims: &[Arc<PersistentVolumeClaim>], name: &str) -> String {
    let found = claims.iter().find(|claim| claim.name_any() == name);
    let status = found.and_then(|claim| claim.status.as_ref());
    status
        .and_then(|status| status.phase.clone())
        .unwrap_or_default()
}

fn volume_phase(volumes: &[Arc<PersistentVolume>], name: &str) -> String {
    let found = volumes.iter().find(|volume| volume.name_any() == name);
    let status = found.and_then(|volume| volume.status.as_ref());
    status
        .and_then(|status| status.phase.clone())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_the_volume_that_fits_and_gives_it_back() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    for (name, size) in [("large", "9Gi"), ("right", "1Gi")] {
        let volume = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
            "hostPath": {"path": "/nowhere"}, "persistentVolumeReclaimPolicy": "Retain"}});
        let volume = serde_json::from_value(volume).unwrap();
        volumes
            .create(&PostParams::default(), &volume)
            .await
            .unwrap();
    }
    cluster
        .wait_for::<PersistentVolume>("free volumes", |all| {
            volume_phase(all, "right") == "Available"
        })
        .await;
    cluster
        .create::<PersistentVolumeClaim>("default", claim("c", Some("")))
        .await;
    cluster
        .wait_for::<PersistentVolumeClaim>("a bound claim", |all| phase(all, "c") == "Bound")
        .await;
    let claims = cluster.api::<PersistentVolumeClaim>("default");
    let bound = claims.get("c").await.unwrap();
    assert_eq!(bound.spec.unwrap().volume_name.as_deref(), Some("right"));
    assert_eq!(bound.status.unwrap().capacity.unwrap()["storage"].0, "1Gi");
    cluster
        .wait_for::<PersistentVolume>("a bound volume", |all| {
            volume_phase(all, "right") == "Bound"
        })
        .await;
    claims.delete("c", &DeleteParams::default()).await.unwrap();
    cluster
        .wait_for::<PersistentVolume>("a released volume", |all| {
            volume_phase(all, "right") == "Released"
        })
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_class_makes_a_folder_on_the_node_of_the_first_pod() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.create_node("node-1").await;
    let node = json!({"metadata": {"labels": {"kubernetes.io/hostname": "node-1"},
        "annotations": {"coxswain.dev/local-path-dir": "/data"}}});
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes
        .patch("node-1", &PatchParams::default(), &Patch::Merge(node))
        .await
        .unwrap();
    cluster
        .create::<PersistentVolumeClaim>("default", claim("c", None))
        .await;
    cluster
        .wait_for::<PersistentVolumeClaim>("the default class", |all| {
            let class = all
                .first()
                .and_then(|claim| claim.spec.as_ref()?.storage_class_name.clone());
            class.as_deref() == Some("local-path") && phase(all, "c") == "Pending"
        })
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "node-1", "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster
        .wait_for::<k8s_openapi::api::core::v1::ServiceAccount>("the account of the Pod", |all| {
            all.iter().any(|one| one.name_any() == "default")
        })
        .await;
    cluster.create::<Pod>("default", pod).await;
    cluster
        .wait_for::<PersistentVolumeClaim>("a bound claim", |all| phase(all, "c") == "Bound")
        .await;
    let claims = cluster.api::<PersistentVolumeClaim>("default");
    let bound = claims.get("c").await.unwrap();
    let name = bound.spec.as_ref().unwrap().volume_name.clone().unwrap();
    assert_eq!(name, format!("pvc-{}", bound.uid().unwrap()));
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = volumes.get(&name).await.unwrap();
    let path = volume.spec.unwrap().host_path.unwrap().path;
    assert_eq!(path, format!("/data/{name}"));
    // In use, the claim stays until the Pod is gone.
    cluster
        .wait_for::<PersistentVolumeClaim>("a protected claim", |all| {
            let finalizers = all
                .first()
                .and_then(|claim| claim.metadata.finalizers.as_ref());
            finalizers
                .is_some_and(|list| list.iter().any(|one| one == "kubernetes.io/pvc-protection"))
        })
        .await;
    claims.delete("c", &DeleteParams::default()).await.unwrap();
    let held = claims.get("c").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    let now = DeleteParams::default().grace_period(0);
    cluster
        .api::<Pod>("default")
        .delete("p", &now)
        .await
        .unwrap();
    cluster
        .wait_for::<PersistentVolumeClaim>("the end of the claim", |all| all.is_empty())
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drivers_volume_is_attached_for_a_pod_and_detached_after_it() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    let params = PostParams::default();
    let volume = json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "csi": {"driver": "d.example.com", "volumeHandle": "h"}, "persistentVolumeReclaimPolicy": "Retain"}});
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    volumes
        .create(&params, &serde_json::from_value(volume).unwrap())
        .await
        .unwrap();
    cluster
        .create::<PersistentVolumeClaim>("default", claim("c", Some("")))
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster.create::<Pod>("default", pod).await;
    let name = cox_client::attachments::name("h", "d.example.com", "node-1");
    let has = |number: usize| move |all: &[Arc<VolumeAttachment>]| all.len() == number;
    cluster.wait_for("an attachment", has(1)).await;
    let attachments: Api<VolumeAttachment> = Api::all(cluster.client.clone());
    let attached = Patch::Merge(json!({"status": {"attached": true}}));
    attachments
        .patch_status(&name, &PatchParams::default(), &attached)
        .await
        .unwrap();
    let names = |number: usize| {
        move |nodes: &[Arc<Node>]| {
            let status = nodes.first().and_then(|node| node.status.as_ref());
            let attached = status.and_then(|status| status.volumes_attached.as_ref());
            attached.map_or(0, Vec::len) == number
        }
    };
    cluster.wait_for("the node names it", names(1)).await;
    let pods = cluster.api::<Pod>("default");
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    cluster.wait_for("no attachment", has(0)).await;
    cluster.wait_for("the node names none", names(0)).await;
    controllers.stop().await;
}
