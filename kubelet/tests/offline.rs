//! A node that loses power, its runtime, and its link to the control plane, and runs its Pods again all the same.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use support::{Cluster, Node, eventually, is_ready, is_restarted, one};

async fn make<K>(cluster: &Cluster, object: Value)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(cluster.admin.clone(), "default");
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// A Pod that needs a config map, a secret and a token to start.
async fn demanding(cluster: &Cluster, name: &str) -> Pod {
    let mut spec = one("stay");
    spec["automountServiceAccountToken"] = json!(true);
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "m"}}]);
    spec["containers"][0]["imagePullPolicy"] = json!("Always");
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    spec["containers"][0]["env"] = json!([
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    cluster.create(name, spec).await;
    cluster.until(name, "ready", is_ready).await
}

/// A node with such a Pod, all of which is kept.
async fn a_kept_pod(cluster: &Cluster) -> (Node, Pod) {
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "kept"}});
    make::<ConfigMap>(cluster, map).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "sealed"}});
    make::<Secret>(cluster, secret).await;
    let node = cluster.kubelet();
    let pod = demanding(cluster, "p").await;
    kept(cluster, &pod).await;
    (node, pod)
}

async fn kept(cluster: &Cluster, pod: &Pod) {
    let uid = pod.metadata.uid.clone().unwrap();
    let file = cluster.dir.path().join("kubelet/kept").join(uid);
    eventually("the Pod is kept", || file.exists()).await;
}

fn env(cluster: &Cluster) -> Vec<String> {
    let state = cluster.runtime.state.lock().unwrap();
    let container = state.containers.values().next();
    let envs = container.map(|container| container.config.envs.clone());
    let text =
        |e: cox_cri::v1::KeyValue| format!("{}={}", e.key, String::from_utf8(e.value).unwrap());
    envs.unwrap_or_default().into_iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_pods_run_again_without_a_control_plane() {
    let mut cluster = Cluster::start().await;
    let (node, pod) = a_kept_pod(&cluster).await;
    node.quit().await;
    cluster.cut_power();
    std::fs::remove_dir_all(cluster.volumes(&pod)).unwrap();
    cluster.set_link(false);
    let node = cluster.kubelet();
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    assert!(env(&cluster).contains(&"S=sealed".to_owned()));
    let file = cluster.volumes(&pod).join("kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    let projected = cluster
        .volumes_in_memory(&pod)
        .join("kubernetes.io~projected");
    let token = std::fs::read_dir(projected)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let token = std::fs::read_to_string(token.path().join("token")).unwrap();
    assert_eq!(token.split('.').count(), 3);
    // The link comes back: the status arrives, and nothing is started again.
    cluster.set_link(true);
    cluster
        .until("p", "reported as restarted once", is_restarted)
        .await;
    let starts = |call: &&String| call.starts_with("start ") || call.starts_with("stop ");
    let calls = cluster.runtime.calls();
    assert_eq!(
        calls.iter().filter(starts).collect::<Vec<_>>(),
        ["start a#1"]
    );
    node.quit().await;
}

/// A Pod with claims: of a local volume, of a hostPath one, and one of its own. All of them are folders of the cluster's.
async fn claiming(cluster: &Cluster) -> Pod {
    let folder = |name: &str| cluster.dir.path().join(name);
    for name in ["local", "host", "p-own"] {
        std::fs::create_dir_all(folder(name)).unwrap();
    }
    let on_host = |name: &str| json!({"hostPath": {"path": folder(name)}});
    let here = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [support::NODE]}]}]}});
    let local = json!({"local": {"path": folder("local")}, "nodeAffinity": here});
    cluster.bind("local", local, None).await;
    cluster.bind("host", on_host("host"), None).await;
    let mut spec = one("stay");
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    spec["volumes"] = json!([{"name": "local", "persistentVolumeClaim": {"claimName": "local"}},
        {"name": "host", "persistentVolumeClaim": {"claimName": "host", "readOnly": true}},
        {"name": "own", "ephemeral": {"volumeClaimTemplate": template}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "local", "mountPath": "/local"},
        {"name": "host", "mountPath": "/host"}, {"name": "own", "mountPath": "/own"}]);
    let pod = cluster.create("p", spec).await;
    cluster.bind("p-own", on_host("p-own"), Some(&pod)).await;
    cluster.until("p", "ready", is_ready).await;
    kept(cluster, &pod).await;
    pod
}

/// The folders that the container has of claims, and whether it may only read.
fn mounts(cluster: &Cluster) -> Vec<(String, bool)> {
    let state = cluster.runtime.state.lock().unwrap();
    let containers = state.containers.values();
    let mounts = containers.flat_map(|container| container.config.mounts.clone());
    let mut found: Vec<_> = mounts
        .filter_map(|mount| {
            let folder = std::path::Path::new(&mount.host_path);
            let name = folder.strip_prefix(cluster.dir.path()).ok()?;
            let is_claims = name.components().count() == 1;
            is_claims.then(|| (name.to_string_lossy().into_owned(), mount.readonly))
        })
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_used_again_after_a_power_cut_without_a_control_plane() {
    let mut cluster = Cluster::start().await;
    let node = cluster.kubelet();
    let pod = claiming(&cluster).await;
    let had = mounts(&cluster);
    let expected = [("host", true), ("local", false), ("p-own", false)];
    assert_eq!(
        had,
        expected.map(|(name, read_only)| (name.to_owned(), read_only))
    );
    node.quit().await;
    let file = cluster
        .dir
        .path()
        .join("kubelet/kept")
        .join(pod.metadata.uid.clone().unwrap());
    let sealed = std::fs::read(&file).unwrap();
    assert!(!sealed.windows(5).any(|part| part == b"p-own"));
    cluster.cut_power();
    cluster.set_link(false);
    let node = cluster.kubelet();
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    assert_eq!(mounts(&cluster), had);
    cluster.set_link(true);
    cluster
        .until("p", "reported as restarted once", is_restarted)
        .await;
    let calls = cluster.runtime.calls();
    let starts = calls.iter().filter(|call| call.starts_with("start "));
    assert_eq!(starts.count(), 1, "nothing is started again: {calls:?}");

    // What was kept goes with the Pod.
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    eventually("it is not kept any more", || !file.exists()).await;
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_lost_meanwhile_is_not_used_once_the_api_server_says_so() {
    let mut cluster = Cluster::start().await;
    let node = cluster.kubelet();
    claiming(&cluster).await;
    node.quit().await;
    let claims: Api<k8s_openapi::api::core::v1::PersistentVolumeClaim> =
        Api::namespaced(cluster.admin.clone(), "default");
    let lost = kube::api::Patch::Merge(json!({"status": {"phase": "Lost"}}));
    claims
        .patch_status("local", &Default::default(), &lost)
        .await
        .unwrap();
    // Nobody can know without the API server.
    cluster.cut_power();
    cluster.set_link(false);
    let node = cluster.kubelet();
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    // What runs goes on, as upstream, and the Pod says what is wrong.
    cluster.set_link(true);
    let words = "PVC default/local is not bound";
    cluster.until_told("FailedMount", words).await;
    assert_eq!(cluster.runtime.running(), ["a"]);
    // The next start knows what was said, with a link and without: another Pod starts, this one does not.
    let mut other = one("stay");
    other["containers"][0]["name"] = json!("b");
    cluster.create("q", other).await;
    let other = cluster.until("q", "ready", is_ready).await;
    kept(&cluster, &other).await;
    node.quit().await;
    let events: Api<k8s_openapi::api::core::v1::Event> =
        Api::namespaced(cluster.admin.clone(), "default");
    events
        .delete_collection(&DeleteParams::default(), &Default::default())
        .await
        .unwrap();
    cluster.cut_power();
    cluster.set_link(false);
    let node = cluster.kubelet();
    eventually("the other runs again", || {
        cluster.runtime.running().contains(&"b".to_owned())
    })
    .await;
    cluster.set_link(true);
    cluster.until_told("FailedMount", words).await;
    assert_eq!(cluster.runtime.running(), ["b"]);
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_deleted_meanwhile_leaves_the_node_when_the_link_is_back() {
    let cluster = Cluster::start().await;
    let (node, pod) = a_kept_pod(&cluster).await;
    node.quit().await;
    let forced = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    cluster.pods().delete("p", &forced).await.unwrap();
    cluster.set_link(false);
    let _node = cluster.kubelet();
    eventually("it was taken over", || _node.handle.pods_len() == 1).await;
    assert_eq!(
        cluster.runtime.running(),
        ["a"],
        "it goes on while nobody says otherwise"
    );
    cluster.set_link(true);
    eventually("it is gone", || {
        cluster.runtime.state.lock().unwrap().sandboxes.is_empty()
    })
    .await;
    let uid = pod.metadata.uid.clone().unwrap();
    let file = cluster.dir.path().join("kubelet/kept").join(uid);
    eventually("it is not kept any more", || !file.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_pod_is_not_run_again_after_a_power_cut() {
    let mut cluster = Cluster::start().await;
    let node = cluster.kubelet();
    let mut spec = one("exit-0");
    spec["restartPolicy"] = json!("Never");
    cluster.create("job", spec).await;
    let over = |pod: &Pod| support::phase(pod) == "Succeeded";
    let pod = cluster.until("job", "over", over).await;
    kept(&cluster, &pod).await;
    cluster.create("stays", one("stay")).await;
    let stays = cluster.until("stays", "ready", is_ready).await;
    kept(&cluster, &stays).await;
    node.quit().await;
    cluster.replace_runtime();
    cluster.set_link(false);
    let _node = cluster.kubelet();
    eventually("the other runs again", || {
        !cluster.runtime.running().is_empty()
    })
    .await;
    let calls = cluster.runtime.calls();
    assert!(!calls.contains(&"sandbox job".to_owned()), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_without_a_link_is_told_late_and_in_order() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let made = cluster.create("p", one("stay")).await;
    cluster.until("p", "ready", is_ready).await;
    cluster.set_link(false);
    cluster.runtime.exit("a", 3);
    eventually("it runs again", || {
        let calls = cluster.runtime.calls();
        calls.contains(&"start a#1".to_owned())
    })
    .await;
    cluster.set_link(true);
    let pod = cluster
        .until("p", "reported as restarted once", is_restarted)
        .await;
    let status = pod.status.unwrap().container_statuses.unwrap().remove(0);
    let ended = status.last_state.unwrap().terminated.unwrap();
    assert_eq!((status.restart_count, ended.exit_code), (1, 3));
    let events: Api<k8s_openapi::api::core::v1::Event> =
        Api::namespaced(cluster.admin.clone(), "default");
    let told = || async {
        let mut all = events.list(&Default::default()).await.unwrap().items;
        all.retain(|event| event.involved_object.uid == made.metadata.uid);
        let revision = |event: &k8s_openapi::api::core::v1::Event| -> u64 {
            let text = event.metadata.resource_version.as_deref();
            text.unwrap().parse().unwrap()
        };
        all.sort_by_key(revision);
        all
    };
    let both = async {
        loop {
            let all = told().await;
            let started = all
                .iter()
                .filter(|event| event.reason.as_deref() == Some("Started"));
            if started.map(|event| event.count.unwrap_or(1)).sum::<i32>() == 2 {
                return all;
            }
            tokio::task::yield_now().await;
        }
    };
    let all = tokio::time::timeout(std::time::Duration::from_secs(30), both)
        .await
        .expect("both starts are told");
    let times: Vec<_> = all
        .iter()
        .map(|event| event.last_timestamp.clone().unwrap().0)
        .collect();
    assert!(
        times.is_sorted(),
        "late, but in the order in which it happened: {times:?}"
    );
}

/// A clock that is off.
#[derive(Debug)]
struct Off(i64);

impl cox_client::Clock for Off {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now() + jiff::SignedDuration::from_hours(self.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_off_by_a_day_runs_pods_and_asks_for_no_more_tokens() {
    for hours in [24, -24] {
        let cluster = Cluster::start().await;
        let map = json!({"metadata": {"name": "m"}, "data": {"k": "v"}});
        make::<ConfigMap>(&cluster, map).await;
        let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
        make::<Secret>(&cluster, secret).await;
        let node = cluster.kubelet_by(std::sync::Arc::new(Off(hours)), |_| {});
        let pod = demanding(&cluster, "p").await;
        let token = || {
            let projected = cluster
                .volumes_in_memory(&pod)
                .join("kubernetes.io~projected");
            let volume = std::fs::read_dir(projected).unwrap().next().unwrap();
            std::fs::read_to_string(volume.unwrap().path().join("token")).unwrap()
        };
        let before = token();
        cluster.runtime.exit("a", 1);
        cluster.until("p", "restarted", is_restarted).await;
        // A change of a source brings all files up to date, tokens included.
        let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "default");
        let patch = kube::api::Patch::Merge(json!({"data": {"k": "w"}}));
        maps.patch("m", &Default::default(), &patch).await.unwrap();
        let file = cluster.volumes(&pod).join("kubernetes.io~configmap/v/k");
        eventually("the change is there", || {
            std::fs::read_to_string(&file).unwrap() == "w"
        })
        .await;
        assert_eq!(token(), before, "a clock that is off makes no token old");
        node.quit().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_bundles_are_shown_again_after_a_power_cut_without_a_control_plane() {
    let mut cluster = Cluster::start().await;
    let signer = "example.com/signer";
    let bundle = json!({"metadata": {"name": "example.com:signer:b", "labels": {"live": "yes"}},
        "spec": {"signerName": signer, "trustBundle": cluster.pki.ca_pem()}});
    let bundles: Api<ClusterTrustBundle> = Api::all(cluster.admin.clone());
    let bundle = serde_json::from_value(bundle).unwrap();
    bundles
        .create(&PostParams::default(), &bundle)
        .await
        .unwrap();
    let mut spec = one("stay");
    spec["volumes"] = json!([{"name": "v", "projected": {"sources": [
        {"clusterTrustBundle": {"path": "named.pem", "name": "example.com:signer:b"}},
        {"clusterTrustBundle": {"path": "signed.pem", "signerName": signer, "labelSelector": {"matchLabels": {"live": "yes"}}}},
        {"clusterTrustBundle": {"path": "none.pem", "signerName": signer, "optional": true}}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let node = cluster.kubelet();
    cluster.create("p", spec).await;
    let pod = cluster.until("p", "ready", is_ready).await;
    kept(&cluster, &pod).await;
    let folder = cluster.volumes_in_memory(&pod);
    let shown = || {
        let volume = folder.join("kubernetes.io~projected/v");
        ["named.pem", "signed.pem", "none.pem"]
            .map(|file| std::fs::read_to_string(volume.join(file)).unwrap())
    };
    let had = shown();
    assert!(had[0].starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!((had[0] == had[1], had[2].as_str()), (true, ""));
    node.quit().await;
    cluster.cut_power();
    assert!(!folder.exists());
    cluster.set_link(false);
    let node = cluster.kubelet();
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    assert_eq!(shown(), had);
    // A bundle that is gone is not shown to who asks from now on, and what runs goes on.
    bundles
        .delete("example.com:signer:b", &DeleteParams::default())
        .await
        .unwrap();
    cluster.set_link(true);
    let words = "clustertrustbundle.certificates.k8s.io \"example.com:signer:b\" not found";
    cluster.until_told("FailedMount", words).await;
    assert_eq!(cluster.runtime.running(), ["a"]);
    node.quit().await;
}
