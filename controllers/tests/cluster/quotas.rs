//! The controller `resourcequota` and the protection of claims, against admission's charges.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Secret};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::create_namespace;
use super::kit::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_say_what_is_used_and_claims_go_when_they_are_free() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "counted").await;
    let hard = json!({"secrets": "2", "requests.storage": "5Gi", "count/deployments.apps": "1"});
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": hard}});
    cluster.create::<ResourceQuota>("counted", quota).await;
    let used = |name: &'static str, amount: &'static str| {
        move |found: &[std::sync::Arc<ResourceQuota>]| {
            found.iter().any(|quota| {
                let status = quota.status.as_ref();
                let used = status.and_then(|status| status.used.as_ref());
                used.and_then(|used| used.get(name))
                    .is_some_and(|found| found.0 == amount)
            })
        }
    };
    cluster.wait_for("nothing used", used("secrets", "0")).await;
    for name in ["one", "two"] {
        let secret = json!({"metadata": {"name": name}});
        cluster.create::<Secret>("counted", secret).await;
    }
    let third: Secret = serde_json::from_value(json!({"metadata": {"name": "three"}})).unwrap();
    let secrets: Api<Secret> = cluster.api("counted");
    let refused = secrets.create(&PostParams::default(), &third).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains(
            "exceeded quota: few, requested: secrets=1, used: secrets=2, limited: secrets=2"
        ),
        "{refused}"
    );
    secrets
        .delete("one", &DeleteParams::default())
        .await
        .unwrap();
    cluster.wait_for("one less", used("secrets", "1")).await;
    secrets
        .create(&PostParams::default(), &third)
        .await
        .unwrap();
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "3Gi"}}}});
    cluster
        .create::<PersistentVolumeClaim>("counted", claim)
        .await;
    cluster
        .wait_for("storage used", used("requests.storage", "3Gi"))
        .await;
    let claims: Api<PersistentVolumeClaim> = cluster.api("counted");
    claims
        .delete("data", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .wait_for(
            "the claim gone",
            |found: &[std::sync::Arc<PersistentVolumeClaim>]| found.is_empty(),
        )
        .await;
    cluster
        .wait_for("storage free", used("requests.storage", "0"))
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_count_devices_of_claims_as_what_their_class_stands_for() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "counted").await;
    let class =
        json!({"metadata": {"name": "gold"}, "spec": {"extendedResourceName": "example.com/gpu"}});
    let class: DeviceClass = serde_json::from_value(class).unwrap();
    Api::all(cluster.client.clone())
        .create(&PostParams::default(), &class)
        .await
        .unwrap();
    let names = [
        "count/resourceclaims.resource.k8s.io",
        "gold.deviceclass.resource.k8s.io/devices",
        "requests.deviceclass.resource.kubernetes.io/gold",
        "requests.example.com/gpu",
    ];
    let hard = json!({names[0]: "9", names[1]: "9", names[2]: "9", names[3]: "3"});
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": hard}});
    cluster.create::<ResourceQuota>("counted", quota).await;
    let used = |amounts: [&'static str; 4]| {
        move |found: &[std::sync::Arc<ResourceQuota>]| {
            let status = found.first().and_then(|quota| quota.status.as_ref());
            let used = status.and_then(|status| status.used.as_ref());
            used.is_some_and(|used| {
                let says = |(name, amount)| used.get(name).is_some_and(|found| found.0 == amount);
                names.into_iter().zip(amounts).all(says)
            })
        }
    };
    cluster.wait_for("nothing used", used(["0"; 4])).await;
    let claim = |name: &str| -> ResourceClaim {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "gold", "count": 2}});
        let claim =
            json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}});
        serde_json::from_value(claim).unwrap()
    };
    let claims: Api<ResourceClaim> = cluster.api("counted");
    let create = async |name| claims.create(&PostParams::default(), &claim(name)).await;
    create("one").await.unwrap();
    cluster
        .wait_for("two devices used", used(["1", "2", "2", "2"]))
        .await;
    let refused = create("two").await.unwrap_err().to_string();
    let why = "exceeded quota: few, requested: requests.example.com/gpu=2, used: requests.example.com/gpu=2, limited: requests.example.com/gpu=3";
    assert!(refused.contains(why), "{refused}");
    // The controller agrees with what admission has charged.
    claims
        .delete("one", &DeleteParams::default())
        .await
        .unwrap();
    cluster.wait_for("nothing used again", used(["0"; 4])).await;
    create("two").await.unwrap();
    controllers.stop().await;
}
