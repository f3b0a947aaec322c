//! Replication controllers, jobs and daemon sets.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::create_namespace;
use super::kit::Cluster;

const JOB_FINALIZER: &str = "batch.kubernetes.io/job-tracking";

fn template(app: &str, restart: &str, image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": app } },
        "spec": { "restartPolicy": restart, "containers": [{ "name": "c", "image": image }] } })
}

fn is_running(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        == Some("Running")
}

async fn end(cluster: &Cluster, pod: &Pod, phase: &str) {
    let patch = Patch::Merge(json!({ "status": { "phase": phase } }));
    let pods = cluster.api::<Pod>("work");
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// Ends the running pods of the namespace, once there are so many.
async fn end_all(cluster: &Cluster, number: usize, phase: &str) {
    let there =
        |pods: &[std::sync::Arc<Pod>]| pods.iter().filter(|pod| is_running(pod)).count() == number;
    cluster.wait_for::<Pod>("all pods to run", there).await;
    for pod in cluster
        .informers
        .of::<Pod>()
        .list()
        .iter()
        .filter(|pod| is_running(pod))
    {
        end(cluster, pod, phase).await;
    }
}

fn has_condition(job: &Job, kind: &str) -> bool {
    let conditions = job
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .any(|one| one.type_ == kind && one.status == "True")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_keeps_its_pods() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let rc = json!({ "metadata": { "name": "rc" }, "spec": { "replicas": 2, "selector": { "app": "rc" }, "template": template("rc", "Always", "i") } });
    cluster.create::<ReplicationController>("work", rc).await;
    let counts = |number: i32| {
        move |all: &[std::sync::Arc<ReplicationController>]| {
            all.iter().any(|rc| {
                let status = rc.status.clone().unwrap_or_default();
                status.replicas == number && status.ready_replicas.unwrap_or_default() == number
            })
        }
    };
    cluster.wait_for("two ready replicas", counts(2)).await;
    let pods = cluster.informers.of::<Pod>().list();
    let owner = &pods[0].owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.api_version.as_str()),
        ("ReplicationController", "v1")
    );
    let scale = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    let api = cluster.api::<ReplicationController>("work");
    api.patch("rc", &PatchParams::default(), &scale)
        .await
        .unwrap();
    cluster.wait_for("one replica", counts(1)).await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_counts_its_pods_and_lets_go_of_them() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let job = json!({ "metadata": { "name": "j" }, "spec": { "completions": 2, "parallelism": 2, "backoffLimit": 0, "template": template("j", "Never", "i") } });
    cluster.create::<Job>("work", job).await;
    end_all(&cluster, 2, "Succeeded").await;
    let complete =
        |jobs: &[std::sync::Arc<Job>]| jobs.iter().any(|job| has_condition(job, "Complete"));
    cluster
        .wait_for::<Job>("the job to be complete", complete)
        .await;
    let status = cluster
        .api::<Job>("work")
        .get("j")
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(
        (
            status.succeeded,
            status.failed.unwrap_or_default(),
            status.active.unwrap_or_default()
        ),
        (Some(2), 0, 0)
    );
    let free = |pods: &[std::sync::Arc<Pod>]| pods.iter().all(|pod| pod.finalizers().is_empty());
    cluster.wait_for::<Pod>("no pod to be held", free).await;
    cluster
        .api::<Job>("work")
        .delete("j", &DeleteParams::background())
        .await
        .unwrap();
    cluster
        .wait_for::<Pod>("the pods to go with their job", <[_]>::is_empty)
        .await;

    let failing = json!({ "metadata": { "name": "f" }, "spec": { "backoffLimit": 0, "template": template("f", "Never", "i") } });
    cluster.create::<Job>("work", failing).await;
    end_all(&cluster, 1, "Failed").await;
    let failed = |jobs: &[std::sync::Arc<Job>]| jobs.iter().any(|job| has_condition(job, "Failed"));
    cluster.wait_for::<Job>("the job to fail", failed).await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_deleted_while_it_runs_leaves_nothing_held() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let job = json!({ "metadata": { "name": "j" }, "spec": { "completionMode": "Indexed", "completions": 2, "parallelism": 2, "template": template("j", "Never", "i") } });
    cluster.create::<Job>("work", job).await;
    let both =
        |pods: &[std::sync::Arc<Pod>]| pods.iter().filter(|pod| is_running(pod)).count() == 2;
    cluster.wait_for::<Pod>("both indexes to run", both).await;
    let mut hosts: Vec<_> = cluster
        .informers
        .of::<Pod>()
        .list()
        .iter()
        .filter_map(|pod| {
            assert!(pod.finalizers().iter().any(|held| held == JOB_FINALIZER));
            pod.spec.as_ref()?.hostname.clone()
        })
        .collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["j-0", "j-1"]);
    cluster
        .api::<Job>("work")
        .delete("j", &DeleteParams::background())
        .await
        .unwrap();
    cluster
        .wait_for::<Pod>("the pods to go", <[_]>::is_empty)
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_nodes_updates_and_rolls_back() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let set = json!({ "metadata": { "name": "d" }, "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": template("d", "Always", "i:1") } });
    cluster.create::<DaemonSet>("work", set).await;
    let runs = |image: &'static str| {
        move |pods: &[std::sync::Arc<Pod>]| {
            let images = pods
                .iter()
                .filter(|pod| is_running(pod))
                .filter_map(|pod| pod.spec.as_ref()?.containers.first()?.image.as_deref());
            images.collect::<Vec<_>>() == [image]
        }
    };
    cluster
        .wait_for::<Pod>("a pod on the node", runs("i:1"))
        .await;
    let settled = |sets: &[std::sync::Arc<DaemonSet>]| {
        sets.iter().any(|set| {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation == set.metadata.generation
                && (
                    status.desired_number_scheduled,
                    status.number_ready,
                    status.updated_number_scheduled,
                ) == (1, 1, Some(1))
        })
    };
    cluster
        .wait_for::<DaemonSet>("the set to be settled", settled)
        .await;
    let api = cluster.api::<DaemonSet>("work");
    for image in ["i:2", "i:1"] {
        let patch = Patch::Strategic(
            json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } } }),
        );
        api.patch("d", &PatchParams::default(), &patch)
            .await
            .unwrap();
        cluster
            .wait_for::<Pod>("the pod to be replaced", runs(image))
            .await;
        cluster
            .wait_for::<DaemonSet>("the set to be settled", settled)
            .await;
    }
    let numbers = |all: &[std::sync::Arc<ControllerRevision>]| {
        let mut numbers: Vec<i64> = all.iter().map(|revision| revision.revision).collect();
        numbers.sort_unstable();
        numbers == [2, 3]
    };
    cluster
        .wait_for::<ControllerRevision>("the first revision to be the newest again", numbers)
        .await;
    controllers.stop().await;
}

/// A rollout of an image that nobody has stops at the first node; rolled back, the pods of the others were never touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_rolls_back_without_needless_restarts() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    cluster.create_node("node-2").await;
    cluster.create_node("node-3").await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let set = json!({ "metadata": { "name": "d" }, "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": template("d", "Always", "i:1") } });
    cluster.create::<DaemonSet>("work", set).await;
    let settled = |sets: &[std::sync::Arc<DaemonSet>]| {
        sets.iter().any(|set| {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation == set.metadata.generation
                && (status.number_available, status.updated_number_scheduled) == (Some(3), Some(3))
        })
    };
    cluster
        .wait_for::<DaemonSet>("a pod on each node", settled)
        .await;
    let api = cluster.api::<DaemonSet>("work");
    let use_image = async |image: &str| {
        let patch = Patch::Strategic(
            json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } } }),
        );
        api.patch("d", &PatchParams::default(), &patch)
            .await
            .unwrap();
    };
    use_image("missing").await;
    let image_of = |pod: &Pod| {
        pod.spec.as_ref().unwrap().containers[0]
            .image
            .clone()
            .unwrap()
    };
    let stopped = |pods: &[std::sync::Arc<Pod>]| {
        let broken = pods.iter().filter(|pod| image_of(pod) == "missing");
        let bound = broken.filter(|pod| pod.spec.as_ref().unwrap().node_name.is_some());
        pods.len() == 3 && bound.count() == 1
    };
    cluster
        .wait_for::<Pod>("the rollout to stop at one node", stopped)
        .await;
    // The controller has looked at the broken pod, and goes no further.
    let counted = |sets: &[std::sync::Arc<DaemonSet>]| {
        let status = sets.iter().find_map(|set| set.status.clone());
        status.is_some_and(|status| {
            (status.updated_number_scheduled, status.number_unavailable) == (Some(1), Some(1))
        })
    };
    cluster
        .wait_for::<DaemonSet>("the rollout to be counted", counted)
        .await;
    let pods = cluster.informers.of::<Pod>();
    let old = |pods: &[std::sync::Arc<Pod>]| {
        let mut uids: Vec<String> = pods
            .iter()
            .filter(|pod| image_of(pod) == "i:1")
            .map(|pod| pod.uid().unwrap())
            .collect();
        uids.sort();
        uids
    };
    let untouched = old(&pods.list());
    assert_eq!(untouched.len(), 2, "two nodes keep their pods");
    use_image("i:1").await;
    cluster
        .wait_for::<DaemonSet>("the set to be settled again", settled)
        .await;
    let now = old(&pods.list());
    assert_eq!(now.len(), 3);
    assert!(
        untouched.iter().all(|uid| now.contains(uid)),
        "{untouched:?} are not all in {now:?}"
    );
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_is_made_updated_and_shrunk_in_order() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } } });
    let set = json!({ "metadata": { "name": "s" }, "spec": { "replicas": 2, "serviceName": "s", "selector": { "matchLabels": { "app": "s" } },
        "template": template("s", "Always", "i:1"), "volumeClaimTemplates": [claim] } });
    cluster.create::<StatefulSet>("work", set).await;
    let settled = |replicas: i32| {
        move |sets: &[std::sync::Arc<StatefulSet>]| {
            sets.iter().any(|set| {
                let status = set.status.clone().unwrap_or_default();
                status.observed_generation == set.metadata.generation
                    && status.replicas == replicas
                    && status.available_replicas == Some(replicas)
                    && status.current_revision == status.update_revision
            })
        }
    };
    cluster
        .wait_for::<StatefulSet>("both pods", settled(2))
        .await;
    let seen = |pods: &[std::sync::Arc<Pod>]| {
        let mut seen: Vec<_> =
            pods.iter()
                .map(|pod| {
                    let spec = pod.spec.clone().unwrap_or_default();
                    let claim = spec.volumes.iter().flatten().find_map(|volume| {
                        Some(volume.persistent_volume_claim.clone()?.claim_name)
                    });
                    (
                        pod.name_any(),
                        spec.subdomain.unwrap_or_default(),
                        claim.unwrap_or_default(),
                        spec.containers[0].image.clone().unwrap_or_default(),
                    )
                })
                .collect();
        seen.sort_unstable();
        seen
    };
    let line = |name: &str, image: &str| {
        (
            name.to_owned(),
            "s".to_owned(),
            format!("data-{name}"),
            image.to_owned(),
        )
    };
    let pods = cluster.informers.of::<Pod>();
    assert_eq!(seen(&pods.list()), [line("s-0", "i:1"), line("s-1", "i:1")]);
    let api = cluster.api::<StatefulSet>("work");
    let image = Patch::Strategic(
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "i:2" }] } } } }),
    );
    api.patch("s", &PatchParams::default(), &image)
        .await
        .unwrap();
    cluster
        .wait_for::<StatefulSet>("the update to end", settled(2))
        .await;
    let updated =
        move |all: &[std::sync::Arc<Pod>]| seen(all) == [line("s-0", "i:2"), line("s-1", "i:2")];
    cluster
        .wait_for::<Pod>("both pods to be updated", updated)
        .await;
    let scale = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    api.patch("s", &PatchParams::default(), &scale)
        .await
        .unwrap();
    cluster.wait_for::<StatefulSet>("one pod", settled(1)).await;
    assert_eq!(pods.list()[0].name_any(), "s-0");
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_says_how_many_may_go_and_evictions_are_charged() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let rc = json!({ "metadata": { "name": "rc" }, "spec": { "replicas": 2, "selector": { "app": "rc" }, "template": template("rc", "Always", "i") } });
    cluster.create::<ReplicationController>("work", rc).await;
    let budget = json!({ "metadata": { "name": "b" }, "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "rc" } } } });
    cluster.create::<PodDisruptionBudget>("work", budget).await;
    let says = |healthy: i32, allowed: i32| {
        move |budgets: &[std::sync::Arc<PodDisruptionBudget>]| {
            let status = budgets.first().and_then(|budget| budget.status.as_ref());
            status.is_some_and(|status| {
                (status.current_healthy, status.expected_pods) == (Some(healthy), Some(2))
                    && status.disruptions_allowed.unwrap_or_default() == allowed
            })
        }
    };
    cluster
        .wait_for("two healthy pods, one may go", says(2, 1))
        .await;
    let pods = cluster.api::<Pod>("work");
    let first = pods.list(&kube::api::ListParams::default()).await.unwrap();
    let name = first.items[0].name_any();
    pods.evict(&name, &kube::api::EvictParams::default())
        .await
        .unwrap();
    cluster
        .wait_for("another pod in its place", says(2, 1))
        .await;
    controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_starts_jobs_and_keeps_the_newest() {
    let cluster = Cluster::start().await;
    cluster.run_kubelet().await;
    let controllers = cluster.run_controllers(|_| {});
    create_namespace(&cluster, "work").await;
    let job = json!({ "spec": { "template": template("tick", "Never", "i") } });
    let cron = json!({ "metadata": { "name": "tick" }, "spec": { "schedule": "@every 2s", "concurrencyPolicy": "Replace", "jobTemplate": job } });
    cluster.create::<CronJob>("work", cron).await;
    let active = |crons: &[std::sync::Arc<CronJob>]| {
        let status = crons.first().and_then(|cron| cron.status.clone());
        let status = status.unwrap_or_default();
        status.last_schedule_time.is_some() && status.active.is_some_and(|jobs| jobs.len() == 1)
    };
    cluster
        .wait_for::<CronJob>("a job of its own", active)
        .await;
    let jobs = cluster.api::<Job>("work");
    let first = jobs.list(&kube::api::ListParams::default()).await.unwrap();
    let owner = &first.items[0].metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.name.as_str()),
        ("CronJob", "tick")
    );
    controllers.stop().await;
}
