//! ResourceClaims: made for Pods, reserved for Pods that come without the scheduler, given back when nobody needs them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::create_namespace;
use super::kit::Cluster;

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

fn template(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"metadata": {"labels": {"of": name}}, "spec": spec()}})
}

fn spec() -> Value {
    json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "class.example"}}]}})
}

/// A Pod with one entry, on no node yet unless `node` says so.
fn pod(name: &str, entry: Value, node: Option<&str>) -> Value {
    let mut entry = entry;
    entry["name"] = json!("gpu");
    json!({"metadata": {"name": name}, "spec": {"nodeName": node, "restartPolicy": "Never", "resourceClaims": [entry],
        "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}]}}]}})
}

fn allocation() -> Value {
    json!({"devices": {"results": [{"request": "r", "driver": "driver.example", "pool": "pool", "device": "device-1"}]}})
}

/// What the scheduler does: first the finalizer, then allocation and reservation.
async fn allocate(api: &Api<ResourceClaim>, name: &str, user: Option<&Pod>) {
    let merge = PatchParams::default();
    let held = json!({"metadata": {"finalizers": [FINALIZER]}});
    api.patch(name, &merge, &Patch::Merge(held)).await.unwrap();
    let users: Vec<_> = user
        .iter()
        .map(|pod| json!({"resource": "pods", "name": pod.name_any(), "uid": pod.uid().unwrap()}))
        .collect();
    let status = json!({"status": {"allocation": allocation(), "reservedFor": users}});
    api.patch_status(name, &merge, &Patch::Merge(status))
        .await
        .unwrap();
}

fn users(claim: &ResourceClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let users = status.and_then(|status| status.reserved_for.as_ref());
    users
        .into_iter()
        .flatten()
        .map(|user| user.name.clone())
        .collect()
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    let status = claim.status.as_ref();
    status.is_some_and(|status| status.allocation.is_some())
}

/// The name of the claim that a Pod's status tells.
fn told(pods: &[Arc<Pod>], name: &str) -> Option<String> {
    let pod = pods.iter().find(|pod| pod.name_any() == name)?;
    let statuses = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    assert_eq!(statuses.len(), 1);
    statuses[0].resource_claim_name.clone()
}

async fn finish(cluster: &Cluster, namespace: &str, name: &str) {
    let done = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    let api = cluster.api::<Pod>(namespace);
    api.patch_status(name, &PatchParams::default(), &done)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_come_from_templates_and_go_with_their_pods() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "n").await;
    let claims: Api<ResourceClaim> = cluster.api("n");
    let from = json!({"resourceClaimTemplateName": "late"});
    let made = cluster.create::<Pod>("n", pod("p", from, None)).await;
    let missing = |event: &Event| {
        let message = event.message.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some("FailedResourceClaimCreation")
            && message.contains(r#"PodResourceClaim gpu: resource claim template "late""#)
    };
    cluster
        .wait_for::<Event>("the event", |events| {
            events.iter().any(|event| missing(event))
        })
        .await;
    cluster
        .create::<ResourceClaimTemplate>("n", template("late"))
        .await;
    cluster
        .wait_for::<Pod>("the claim's name in the Pod's status", |pods| {
            told(pods, "p").is_some()
        })
        .await;
    let all = claims.list(&Default::default()).await.unwrap().items;
    assert_eq!(all.len(), 1);
    let claim = &all[0];
    let name = claim.name_any();
    assert!(name.starts_with("p-gpu-") && name.len() == 11, "{name}");
    assert_eq!(claim.labels()["of"], "late");
    assert_eq!(
        claim.annotations()["resource.kubernetes.io/pod-claim-name"],
        "gpu"
    );
    assert_eq!(claim.owner_references()[0].uid, made.uid().unwrap());
    assert_eq!(
        serde_json::to_value(&claim.spec).unwrap()["devices"]["requests"][0]["exactly"]["deviceClassName"],
        "class.example"
    );

    // One that somebody deletes is made again, under another name.
    claims
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .wait_for::<Pod>("another claim", |pods| {
            told(pods, "p").is_some_and(|now| now != name)
        })
        .await;

    // A Pod that is done gives its devices back and its claim goes, though the Pod stays.
    let name = claims.list(&Default::default()).await.unwrap().items[0].name_any();
    allocate(&claims, &name, Some(&made)).await;
    finish(&cluster, "n", "p").await;
    cluster
        .wait_for::<ResourceClaim>("the claim gone", |claims| claims.is_empty())
        .await;
    assert!(cluster.api::<Pod>("n").get("p").await.is_ok());
    controllers.stop().await;

    // Who starts anew finds nothing to do.
    let before = cluster.versions("probe").await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "probe").await;
    cluster
        .create::<ResourceClaimTemplate>("probe", template("t"))
        .await;
    let from = json!({"resourceClaimTemplateName": "t"});
    cluster.create::<Pod>("probe", pod("q", from, None)).await;
    cluster
        .wait_for::<Pod>("the probe's claim", |pods| told(pods, "q").is_some())
        .await;
    assert_eq!(cluster.versions("probe").await, before);
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_was_made_before_a_crash_is_found() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "n").await;
    controllers.stop().await;
    cluster
        .create::<ResourceClaimTemplate>("n", template("t"))
        .await;
    let from = json!({"resourceClaimTemplateName": "t"});
    let made = cluster.create::<Pod>("n", pod("p", from, None)).await;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made.uid(), "controller": true});
    let earlier = json!({"metadata": {"name": "earlier", "ownerReferences": [owner],
        "annotations": {"resource.kubernetes.io/pod-claim-name": "gpu"}}, "spec": spec()});
    cluster.create::<ResourceClaim>("n", earlier).await;
    let controllers = cluster.run_controllers(|_| {});
    cluster
        .wait_for::<Pod>("the earlier claim", |pods| {
            told(pods, "p").as_deref() == Some("earlier")
        })
        .await;
    let claims: Api<ResourceClaim> = cluster.api("n");
    assert_eq!(
        claims.list(&Default::default()).await.unwrap().items.len(),
        1
    );
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_users_are_reserved_for_pods_on_nodes_and_freed_after_the_last() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.create_node("node-1").await;
    create_namespace(&cluster, "n").await;
    let claims: Api<ResourceClaim> = cluster.api("n");
    let shared = json!({"metadata": {"name": "shared"}, "spec": spec()});
    cluster.create::<ResourceClaim>("n", shared).await;
    let mine = || json!({"resourceClaimName": "shared"});
    let one = cluster
        .create::<Pod>("n", pod("one", mine(), Some("node-1")))
        .await;
    cluster.create::<Pod>("n", pod("waits", mine(), None)).await;
    // Allocated for nobody: the Pod that is on a node gets it, the one that waits is the scheduler's.
    allocate(&claims, "shared", None).await;
    cluster
        .wait_for::<ResourceClaim>("the Pod on the list", |claims| {
            claims.iter().any(|claim| users(claim) == ["one"])
        })
        .await;
    let two = cluster
        .create::<Pod>("n", pod("two", mine(), Some("node-1")))
        .await;
    cluster
        .wait_for::<ResourceClaim>("both on the list", |claims| {
            claims.iter().any(|claim| users(claim) == ["one", "two"])
        })
        .await;
    // A user whose Pod is another one of the name, and one that never was.
    let ghosts = json!({"status": {"reservedFor": [
        {"resource": "pods", "name": "one", "uid": one.uid()},
        {"resource": "pods", "name": "two", "uid": two.uid()},
        {"resource": "pods", "name": "waits", "uid": "another"},
        {"resource": "pods", "name": "ghost", "uid": "ghost"},
    ]}});
    claims
        .patch_status("shared", &PatchParams::default(), &Patch::Merge(ghosts))
        .await
        .unwrap();
    cluster
        .wait_for::<ResourceClaim>("the ghosts gone", |claims| {
            claims.iter().any(|claim| users(claim) == ["one", "two"])
        })
        .await;
    finish(&cluster, "n", "one").await;
    cluster
        .wait_for::<ResourceClaim>("one user less", |claims| {
            claims
                .iter()
                .any(|claim| users(claim) == ["two"] && is_allocated(claim))
        })
        .await;
    let now = DeleteParams::default().grace_period(0);
    let pods = cluster.api::<Pod>("n");
    pods.delete("two", &now).await.unwrap();
    cluster
        .wait_for::<ResourceClaim>("the devices given back", |claims| {
            claims.iter().any(|claim| {
                users(claim).is_empty() && !is_allocated(claim) && claim.finalizers().is_empty()
            })
        })
        .await;

    // One that is deleted while it is allocated and nobody uses it goes.
    allocate(&claims, "shared", None).await;
    pods.delete("waits", &now).await.unwrap();
    claims
        .delete("shared", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .wait_for::<ResourceClaim>("the claim gone", |claims| claims.is_empty())
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_for_extended_resources_go_with_their_pods() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.create_node("node-1").await;
    create_namespace(&cluster, "n").await;
    let plain = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "node-1", "restartPolicy": "Never",
        "containers": [{"name": "c", "image": "i", "resources": {"limits": {"example.com/gpu": "1"}}}]}});
    let made = cluster.create::<Pod>("n", plain).await;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made.uid(), "controller": true});
    let claim = json!({"metadata": {"name": "p-extended", "ownerReferences": [owner],
        "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"}}, "spec": spec()});
    cluster.create::<ResourceClaim>("n", claim).await;
    let claims: Api<ResourceClaim> = cluster.api("n");
    allocate(&claims, "p-extended", Some(&made)).await;
    let status = json!({"status": {"extendedResourceClaimStatus": {"resourceClaimName": "p-extended",
        "requestMappings": [{"containerName": "c", "resourceName": "example.com/gpu", "requestName": "r"}]}}});
    cluster
        .api::<Pod>("n")
        .patch_status("p", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    finish(&cluster, "n", "p").await;
    cluster
        .wait_for::<ResourceClaim>("the claim gone", |claims| claims.is_empty())
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_devices_that_are_tainted() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.create_node("node-1").await;
    create_namespace(&cluster, "n").await;
    let claims: Api<ResourceClaim> = cluster.api("n");
    let slices: Api<ResourceSlice> = Api::all(cluster.client.clone());
    let device = |taints: &Value| json!([{"name": "device-1", "taints": taints}]);
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "driver.example", "nodeName": "node-1",
        "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1}, "devices": device(&json!([]))}});
    let slice: ResourceSlice = serde_json::from_value(slice).unwrap();
    slices.create(&Default::default(), &slice).await.unwrap();
    let merge = PatchParams::default();
    let later = json!([{"operator": "Exists", "key": "busy", "tolerationSeconds": 3600}]);
    for (name, tolerations) in [("leaves", json!([])), ("stays", later)] {
        let claim = json!({"metadata": {"name": name}, "spec": spec()});
        cluster.create::<ResourceClaim>("n", claim).await;
        let of_claim = json!({ "resourceClaimName": name });
        let made = cluster
            .create::<Pod>("n", pod(name, of_claim, Some("node-1")))
            .await;
        let mut allocation = allocation();
        allocation["devices"]["results"][0]["tolerations"] = tolerations;
        let user = json!({"resource": "pods", "name": name, "uid": made.uid()});
        let status = json!({"status": {"allocation": allocation, "reservedFor": [user]}});
        claims
            .patch_status(name, &merge, &Patch::Merge(status))
            .await
            .unwrap();
    }
    let taint = async |taints: Value| {
        let patch = json!({"spec": {"devices": device(&taints)}});
        slices
            .patch("s", &merge, &Patch::Merge(patch))
            .await
            .unwrap();
    };
    let heard = |name: &'static str, message: &'static str| {
        move |events: &[Arc<Event>]| {
            events.iter().any(|event| {
                event.reason.as_deref() == Some("DeviceTaintManagerEviction")
                    && event.involved_object.name.as_deref() == Some(name)
                    && event.message.as_deref() == Some(message)
            })
        }
    };
    taint(json!([{"key": "busy", "effect": "NoSchedule"}])).await;
    taint(json!([{"key": "busy", "effect": "NoExecute"}])).await;
    let is_leaving = |found: &Pod| {
        let status = found.status.as_ref();
        let mut conditions = status
            .into_iter()
            .flat_map(|status| status.conditions.iter().flatten());
        found.metadata.deletion_timestamp.is_some()
            && conditions.any(|condition| {
                condition.type_ == "DisruptionTarget"
                    && condition.reason.as_deref() == Some("DeletionByDeviceTaintManager")
            })
    };
    cluster
        .wait_for::<Pod>("the Pod on its way", |pods| {
            pods.iter()
                .any(|found| found.name_any() == "leaves" && is_leaving(found))
        })
        .await;
    cluster
        .wait_for::<Event>("the event", heard("leaves", "Marking for deletion"))
        .await;
    // The other one has an hour, and hears when it need not go.
    taint(json!([])).await;
    cluster
        .wait_for::<Event>(
            "the end of the threat",
            heard("stays", "Cancelling deletion"),
        )
        .await;
    let stays = cluster.api::<Pod>("n").get("stays").await.unwrap();
    assert!(stays.metadata.deletion_timestamp.is_none());
    controllers.stop().await;
}
