//! The controllers against the real API server in one process. What each test waits for arrives by watch.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod claims;
mod devices;
mod kit;
mod node_ipam;
mod quotas;
mod volumes;
mod workloads;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use kit::{Cluster, now};

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    let labels = json!({ "app": name });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": image }] } } },
    })
}

fn is_rolled_out(deployments: &[std::sync::Arc<Deployment>], name: &str, replicas: i32) -> bool {
    deployments
        .iter()
        .filter(|found| found.name_any() == name)
        .any(|found| {
            let Some(status) = &found.status else {
                return false;
            };
            let counts = [
                status.replicas,
                status.updated_replicas,
                status.ready_replicas,
                status.available_replicas,
            ];
            counts
                .iter()
                .all(|count| count.unwrap_or_default() == replicas)
                && status.observed_generation == found.metadata.generation
        })
}

fn is_complete(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one.reason.as_deref() == Some("NewReplicaSetAvailable"))
}

fn image_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

async fn create_namespace(cluster: &Cluster, name: &str) {
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    Api::all(cluster.client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let has_account = |accounts: &[std::sync::Arc<ServiceAccount>]| {
        accounts.iter().any(|found| {
            found.namespace().as_deref() == Some(name) && found.name_any() == "default"
        })
    };
    cluster
        .wait_for::<ServiceAccount>("the default service account", has_account)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_namespace_gets_its_service_account_and_the_root_ca() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "fresh").await;
    let published = |found: &ConfigMap| {
        found.namespace().as_deref() == Some("fresh")
            && found.name_any() == "kube-root-ca.crt"
            && found
                .data
                .as_ref()
                .is_some_and(|data| data["ca.crt"] == "CA")
    };
    cluster
        .wait_for::<ConfigMap>("the root CA", |all| {
            all.iter().any(|found| published(found))
        })
        .await;
    let edit = Patch::Merge(json!({ "data": { "ca.crt": "wrong" } }));
    cluster
        .api::<ConfigMap>("fresh")
        .patch("kube-root-ca.crt", &PatchParams::default(), &edit)
        .await
        .unwrap();
    cluster
        .wait_for::<ConfigMap>("the right root CA", |all| {
            all.iter().any(|found| published(found))
        })
        .await;
    cluster
        .api::<ServiceAccount>("fresh")
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .wait_for::<ServiceAccount>("another default account", |all| {
            all.iter()
                .any(|found| found.namespace().as_deref() == Some("fresh"))
        })
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_updates_scales_rolls_back_and_then_is_silent() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.run_kubelet().await;
    create_namespace(&cluster, "app").await;
    cluster
        .create::<Deployment>("app", deployment("web", 3, "web:1"))
        .await;
    cluster
        .wait_for::<Deployment>("3 pods", |all| is_rolled_out(all, "web", 3))
        .await;

    let api = cluster.api::<Deployment>("app");
    let image = |image: &str| {
        Patch::Strategic(
            json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } } }),
        )
    };
    api.patch("web", &PatchParams::default(), &image("web:2"))
        .await
        .unwrap();
    cluster
        .wait_for::<Pod>("only new pods", |pods| {
            pods.len() == 3 && pods.iter().all(|pod| image_of(pod) == Some("web:2"))
        })
        .await;
    let scale = Patch::Merge(json!({ "spec": { "replicas": 5 } }));
    api.patch_scale("web", &PatchParams::default(), &scale)
        .await
        .unwrap();
    cluster
        .wait_for::<Deployment>("5 pods", |all| is_rolled_out(all, "web", 5))
        .await;
    api.patch("web", &PatchParams::default(), &image("web:1"))
        .await
        .unwrap();
    cluster
        .wait_for::<Pod>("old pods again", |pods| {
            pods.len() == 5 && pods.iter().all(|pod| image_of(pod) == Some("web:1"))
        })
        .await;
    cluster
        .wait_for::<Deployment>("the rollback", |all| is_rolled_out(all, "web", 5))
        .await;
    let revision = |found: &Deployment| {
        found
            .annotations()
            .get("deployment.kubernetes.io/revision")
            .cloned()
    };
    cluster
        .wait_for::<Deployment>("revision 3", |all| {
            all.iter()
                .any(|found| revision(found).as_deref() == Some("3"))
        })
        .await;
    assert_eq!(
        cluster
            .api::<ReplicaSet>("app")
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    let scaled = |event: &Event| event.reason.as_deref() == Some("ScalingReplicaSet");
    cluster
        .wait_for::<Event>("an event", |all| all.iter().any(|event| scaled(event)))
        .await;
    // What controllers have not written when they stop, the next ones write.
    cluster
        .wait_for::<ReplicaSet>("their last statuses", |all| {
            all.iter().all(|set| {
                let status = set.status.clone().unwrap_or_default();
                let wanted = set.spec.as_ref().and_then(|spec| spec.replicas);
                status.observed_generation == set.metadata.generation
                    && Some(status.replicas) == wanted
            })
        })
        .await;
    cluster
        .wait_for::<Deployment>("the end of the rollout", |all| {
            is_rolled_out(all, "web", 5) && all.iter().any(|found| is_complete(found))
        })
        .await;
    controllers.stop().await;

    // Controllers that start anew look at everything, and find nothing to do: when they have seen to a later namespace and a
    // later deployment, they are through with what was there before.
    let before = cluster.versions("probe").await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "probe").await;
    cluster
        .create::<Deployment>("probe", deployment("probe", 1, "probe:1"))
        .await;
    cluster
        .wait_for::<Deployment>("the probe", |all| is_rolled_out(all, "probe", 1))
        .await;
    assert_eq!(cluster.versions("probe").await, before);
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_in_the_background_in_the_foreground_and_with_orphans() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.run_kubelet().await;
    create_namespace(&cluster, "app").await;
    let api = cluster.api::<Deployment>("app");
    for (params, what) in [
        (DeleteParams::background(), "background"),
        (DeleteParams::foreground(), "foreground"),
    ] {
        cluster
            .create::<Deployment>("app", deployment(what, 2, "web:1"))
            .await;
        cluster
            .wait_for::<Deployment>(what, |all| is_rolled_out(all, what, 2))
            .await;
        api.delete(what, &params).await.unwrap();
        cluster.wait_for::<Pod>("no pods", <[_]>::is_empty).await;
        cluster
            .wait_for::<ReplicaSet>("no replica sets", <[_]>::is_empty)
            .await;
        cluster
            .wait_for::<Deployment>("no deployments", <[_]>::is_empty)
            .await;
    }
    cluster
        .create::<Deployment>("app", deployment("orphan", 2, "web:1"))
        .await;
    cluster
        .wait_for::<Deployment>("2 pods", |all| is_rolled_out(all, "orphan", 2))
        .await;
    api.delete("orphan", &DeleteParams::orphan()).await.unwrap();
    cluster
        .wait_for::<Deployment>("no deployments", <[_]>::is_empty)
        .await;
    cluster
        .wait_for::<ReplicaSet>("a set without an owner", |all| {
            all.len() == 1 && all[0].owner_references().is_empty()
        })
        .await;
    let pods = cluster
        .api::<Pod>("app")
        .list(&Default::default())
        .await
        .unwrap();
    assert_eq!(pods.items.len(), 2);
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied_and_goes() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    cluster.run_kubelet().await;
    create_namespace(&cluster, "doomed").await;
    cluster
        .create::<Deployment>("doomed", deployment("web", 3, "web:1"))
        .await;
    cluster
        .wait_for::<Deployment>("3 pods", |all| is_rolled_out(all, "web", 3))
        .await;
    let held = json!({ "metadata": { "name": "held", "finalizers": ["example.com/hold"] } });
    cluster.create::<ConfigMap>("doomed", held).await;
    Api::<Namespace>::all(cluster.client.clone())
        .delete("doomed", &DeleteParams::default())
        .await
        .unwrap();
    let remaining = |namespace: &Namespace| {
        let conditions = namespace
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default();
        cox_client::conditions::is_true(&conditions, "NamespaceFinalizersRemaining")
    };
    cluster
        .wait_for::<Namespace>("a finalizer to be named", |all| {
            all.iter().any(|found| remaining(found))
        })
        .await;
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    cluster
        .api::<ConfigMap>("doomed")
        .patch("held", &PatchParams::default(), &free)
        .await
        .unwrap();
    cluster
        .wait_for::<Namespace>("no doomed", |all| {
            all.iter().all(|found| found.name_any() != "doomed")
        })
        .await;
    cluster.wait_for::<Pod>("no pods", <[_]>::is_empty).await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_tainted_its_pods_evicted_and_all_is_taken_back_when_it_speaks() {
    let cluster = Cluster::start().await;
    cluster.create_node("silent").await;
    cluster.create_node("lively").await;
    let controllers = cluster
        .run_controllers(|config| config.node_monitor_grace = std::time::Duration::from_secs(2));
    create_namespace(&cluster, "app").await;
    let toleration = |secs: i64| json!({ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": secs });
    for (name, secs) in [("leaves", 0), ("stays", 3600)] {
        let spec = json!({ "nodeName": "silent", "containers": [{ "name": "c", "image": "i" }], "tolerations": [toleration(secs)] });
        cluster
            .create::<Pod>("app", json!({ "metadata": { "name": name }, "spec": spec }))
            .await;
    }
    let nodes = Api::<Node>::all(cluster.client.clone());
    let heartbeat = |secs: i64| {
        let at = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(secs))
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": at, "lastTransitionTime": now() });
        Patch::Strategic(json!({ "status": { "conditions": [ready] } }))
    };
    let has_taint = |node: &Node, key: &str, effect: &str| {
        let taints = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default();
        taints
            .iter()
            .any(|taint| taint.key == format!("node.kubernetes.io/{key}") && taint.effect == effect)
    };
    // The lively node speaks for as long as this test runs; each heartbeat differs from the one before.
    let (speaker, beats) = (nodes.clone(), (0..).map(heartbeat));
    let lively = tokio::spawn(async move {
        for beat in beats {
            speaker
                .patch_status("lively", &PatchParams::default(), &beat)
                .await
                .unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
    });
    let is_silent = |node: &Node| {
        node.name_any() == "silent"
            && ["NoSchedule", "NoExecute"]
                .iter()
                .all(|effect| has_taint(node, "unreachable", effect))
    };
    cluster
        .wait_for::<Node>("the taints", |all| all.iter().any(|node| is_silent(node)))
        .await;
    let leaving =
        |pod: &Pod| pod.name_any() == "leaves" && pod.metadata.deletion_timestamp.is_some();
    cluster
        .wait_for::<Pod>("the eviction", |all| all.iter().any(|pod| leaving(pod)))
        .await;
    nodes
        .patch_status("silent", &PatchParams::default(), &heartbeat(0))
        .await
        .unwrap();
    cluster
        .wait_for::<Node>("no taints", |all| {
            all.iter().all(|node| {
                node.spec
                    .as_ref()
                    .is_none_or(|spec| spec.taints.as_ref().is_none_or(Vec::is_empty))
            })
        })
        .await;
    let stays = cluster.api::<Pod>("app").get("stays").await.unwrap();
    assert_eq!(stays.metadata.deletion_timestamp, None);
    lively.abort();
    controllers.stop().await;
}

/// Ready addresses of a Service's slices, ordered.
fn ready_addresses(slices: &[std::sync::Arc<EndpointSlice>], service: &str) -> Vec<String> {
    let of_service = |slice: &&std::sync::Arc<EndpointSlice>| {
        slice
            .labels()
            .get("kubernetes.io/service-name")
            .map(String::as_str)
            == Some(service)
    };
    let endpoints = slices
        .iter()
        .filter(of_service)
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let mut all: Vec<String> = endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|one| one.ready) == Some(true))
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_follow_the_pods_of_a_service() {
    let cluster = Cluster::start().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "app").await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.create::<Service>("app", service).await;
    let pods = cluster.api::<Pod>("app");
    let status = |ready: &str, ip: &str| {
        Patch::Strategic(
            json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}]}}),
        )
    };
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        cluster.create::<Pod>("app", pod).await;
        pods.patch_status(name, &PatchParams::default(), &status("True", ip))
            .await
            .unwrap();
    }
    cluster
        .wait_for::<EndpointSlice>("both Pods behind the Service", |all| {
            ready_addresses(all, "web") == ["10.0.0.1", "10.0.0.2"]
        })
        .await;
    pods.patch_status("a", &PatchParams::default(), &status("False", "10.0.0.1"))
        .await
        .unwrap();
    cluster
        .wait_for::<EndpointSlice>("one that is not ready", |all| {
            ready_addresses(all, "web") == ["10.0.0.2"]
        })
        .await;
    cluster
        .wait_for::<Endpoints>("the older kind to say the same", |all| {
            all.iter().filter(|one| one.name_any() == "web").any(|one| {
                let subset = one.subsets.as_ref().and_then(|subsets| subsets.first());
                subset.is_some_and(|subset| {
                    let count = |list: &Option<Vec<_>>| list.as_ref().map_or(0, Vec::len);
                    count(&subset.addresses) == 1 && count(&subset.not_ready_addresses) == 1
                })
            })
        })
        .await;
    let manual = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
    cluster.create::<Service>("app", manual).await;
    let written = json!({"metadata": {"name": "db"}, "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}]});
    cluster.create::<Endpoints>("app", written).await;
    cluster
        .wait_for::<EndpointSlice>("what a person wrote", |all| {
            ready_addresses(all, "db") == ["192.0.2.7"]
        })
        .await;
    let services = cluster.api::<Service>("app");
    services
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .wait_for::<EndpointSlice>("nothing of a Service that is gone", |all| {
            all.iter()
                .all(|slice| !slice.name_any().starts_with("web-"))
        })
        .await;
    controllers.stop().await;
}
