//! The controller `resourcequota` and the protection of claims, against admission's charges.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Secret};
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
