//! The planner against a small model: effects change replica sets at once, and pods become available one at a time. What must
//! hold at each step and at the end are upstream's promises.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy, ReplicaSet, ReplicaSetStatus,
    RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::{Effect, Plan, View, plan};
use super::revision::REVISION;
use super::rolling::{Limits, limits};
use super::sets;
use crate::testing::{NOW, time};

fn percent(text: &str) -> IntOrString {
    IntOrString::String(text.to_owned())
}

fn deployment(replicas: i32, image: &str) -> Deployment {
    let labels = Some([("app".to_owned(), "web".to_owned())].into());
    let container = Container {
        name: "c".to_owned(),
        image: Some(image.to_owned()),
        ..Container::default()
    };
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: labels.clone(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        }),
    };
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("d".to_owned()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: labels,
                match_expressions: None,
            },
            template,
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(10),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(percent("25%")),
                    max_unavailable: Some(percent("25%")),
                }),
            }),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn set_image(deployment: &mut Deployment, image: &str) {
    let spec = deployment.spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
}

/// A cluster of one deployment.
struct Model {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    /// Pods of this image never become available.
    broken: Option<&'static str>,
    writes: usize,
}

impl Model {
    fn new(deployment: Deployment) -> Self {
        Self {
            deployment,
            sets: Vec::new(),
            now: time(NOW),
            broken: None,
            writes: 0,
        }
    }

    fn plan(&self) -> Plan {
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        let has_pods = |set: &&ReplicaSet| {
            set.status
                .as_ref()
                .is_some_and(|status| status.replicas > 0)
        };
        let running = self
            .sets
            .iter()
            .filter(has_pods)
            .filter_map(|set| set.metadata.uid.clone())
            .collect();
        plan(&View {
            deployment: &self.deployment,
            sets,
            running,
            now: self.now,
        })
    }

    /// One reconcile, then one second of the world. Returns whether anything was written.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        let before = self.writes;
        for effect in plan.effects {
            self.apply(effect);
        }
        if self.deployment.status.as_ref() != Some(&plan.status) {
            self.deployment.status = Some(plan.status);
            self.writes += 1;
        }
        self.now += Duration::from_secs(1);
        let moved = self.sets.iter_mut().any(|set| advance(set, self.broken));
        moved || self.writes > before
    }

    fn apply(&mut self, effect: Effect) {
        self.writes += 1;
        match effect {
            Effect::Create(mut set) => {
                set.metadata.uid.clone_from(&set.metadata.name);
                set.metadata.creation_timestamp = Some(Time(self.now));
                assert!(
                    self.sets
                        .iter()
                        .all(|other| other.metadata.name != set.metadata.name)
                );
                self.sets.push(*set);
            }
            Effect::Scale {
                set,
                to,
                annotations,
            } => {
                let set = self.set_mut(&set);
                set.spec.as_mut().unwrap().replicas = Some(to);
                set.metadata
                    .annotations
                    .as_mut()
                    .unwrap()
                    .extend(annotations);
            }
            Effect::Sync {
                set,
                annotations,
                min_ready_secs,
            } => {
                let set = self.set_mut(&set);
                set.spec.as_mut().unwrap().min_ready_seconds = Some(min_ready_secs);
                set.metadata
                    .annotations
                    .as_mut()
                    .unwrap()
                    .extend(annotations);
            }
            Effect::Delete(set) => self
                .sets
                .retain(|other| other.metadata.uid != set.metadata.uid),
            Effect::SetRevision(revision) => {
                self.deployment
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(REVISION.to_owned(), revision);
            }
        }
    }

    fn set_mut(&mut self, set: &ReplicaSet) -> &mut ReplicaSet {
        self.sets
            .iter_mut()
            .find(|other| other.metadata.uid == set.metadata.uid)
            .unwrap()
    }

    /// Runs until nothing moves; `check` looks at each step.
    fn settle(&mut self, mut check: impl FnMut(&Self)) {
        for _ in 0..500 {
            if !self.step() {
                return;
            }
            check(self);
        }
        panic!("does not settle: {:?}", self.sizes());
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        let image = |set: &ReplicaSet| {
            set.spec
                .clone()
                .unwrap()
                .template
                .unwrap()
                .spec
                .unwrap()
                .containers
                .remove(0)
                .image
                .unwrap()
        };
        self.sets
            .iter()
            .map(|set| (image(set), sets::replicas(set)))
            .collect()
    }

    fn status(&self) -> DeploymentStatus {
        self.deployment.status.clone().unwrap()
    }

    fn progressing(&self) -> (String, String) {
        let conditions = self.status().conditions.unwrap();
        let found = cox_client::conditions::find(&conditions, "Progressing").unwrap();
        (found.status.clone(), found.reason.clone().unwrap())
    }
}

/// What the replica set controller and a kubelet do in a second: pods go at once, one more becomes available.
fn advance(set: &mut ReplicaSet, broken: Option<&str>) -> bool {
    let want = sets::replicas(set);
    let image = set
        .spec
        .clone()
        .unwrap()
        .template
        .unwrap()
        .spec
        .unwrap()
        .containers
        .remove(0)
        .image;
    let before = set.status.clone().unwrap_or_default();
    let available_before = before.available_replicas.unwrap_or_default();
    let grows = i32::from(broken.is_none() || image.as_deref() != broken);
    let available = (available_before + grows).min(want);
    let status = ReplicaSetStatus {
        replicas: want,
        ready_replicas: Some(available),
        available_replicas: Some(available),
        observed_generation: set.metadata.generation,
        ..ReplicaSetStatus::default()
    };
    let moved = set.status.as_ref() != Some(&status);
    set.status = Some(status);
    moved
}

fn rolled_out(replicas: i32) -> Model {
    let mut model = Model::new(deployment(replicas, "v1"));
    model.settle(|_| {});
    assert_eq!(
        model.progressing(),
        ("True".to_owned(), "NewReplicaSetAvailable".to_owned())
    );
    model
}

#[test]
fn a_settled_deployment_causes_no_writes() {
    let mut model = rolled_out(4);
    let writes = model.writes;
    for _ in 0..5 {
        assert!(!model.step());
    }
    assert_eq!(model.writes, writes);
    assert_eq!(model.sizes(), [("v1".to_owned(), 4)]);
    assert_eq!(
        model.deployment.metadata.annotations.unwrap()[REVISION],
        "1"
    );
}

#[test]
fn a_rolling_update_keeps_its_limits_at_each_step() {
    for replicas in [1, 2, 3, 4, 7, 10, 33] {
        let mut model = rolled_out(replicas);
        set_image(&mut model.deployment, "v2");
        let Limits { surge, unavailable } = limits(&model.deployment);
        model.settle(|model| {
            let total: i32 = model.sizes().iter().map(|(_, size)| size).sum();
            let available: i32 = model.sets.iter().map(sets::available).sum();
            assert!(total <= replicas + surge, "{replicas}: {:?}", model.sizes());
            assert!(
                available >= replicas - unavailable,
                "{replicas}: {:?}",
                model.sizes()
            );
        });
        assert_eq!(
            model.sizes(),
            [("v1".to_owned(), 0), ("v2".to_owned(), replicas)]
        );
    }
}

#[test]
fn a_rollback_takes_the_old_set_again_with_a_new_revision() {
    let mut model = rolled_out(3);
    set_image(&mut model.deployment, "v2");
    model.settle(|_| {});
    set_image(&mut model.deployment, "v1");
    model.settle(|_| {});
    assert_eq!(model.sizes(), [("v1".to_owned(), 3), ("v2".to_owned(), 0)]);
    let annotations = model.sets[0].metadata.annotations.clone().unwrap();
    assert_eq!(annotations[REVISION], "3");
    assert_eq!(
        annotations["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert_eq!(
        model.deployment.metadata.annotations.unwrap()[REVISION],
        "3"
    );
}

#[test]
fn a_broken_image_stops_the_rollout_and_times_out_while_the_old_pods_serve() {
    let mut model = rolled_out(4);
    model.broken = Some("bad");
    set_image(&mut model.deployment, "bad");
    model.settle(|_| {});
    assert_eq!(model.sizes(), [("v1".to_owned(), 3), ("bad".to_owned(), 2)]);
    let look = model.plan().next_look.unwrap();
    assert!(look <= Duration::from_secs(601), "{look:?}");
    model.now += look;
    model.settle(|_| {});
    assert_eq!(
        model.progressing(),
        ("False".to_owned(), "ProgressDeadlineExceeded".to_owned())
    );
    set_image(&mut model.deployment, "v1");
    model.settle(|_| {});
    assert_eq!(model.sizes(), [("v1".to_owned(), 4), ("bad".to_owned(), 0)]);
    assert_eq!(model.progressing().0, "True");
}

#[test]
fn recreate_never_runs_both() {
    let mut model = rolled_out(3);
    let strategy = DeploymentStrategy {
        type_: Some("Recreate".to_owned()),
        rolling_update: None,
    };
    model.deployment.spec.as_mut().unwrap().strategy = Some(strategy);
    set_image(&mut model.deployment, "v2");
    model.settle(|model| {
        let running = model.sets.iter().filter(|set| {
            set.status
                .as_ref()
                .is_some_and(|status| status.replicas > 0)
        });
        assert!(running.count() <= 1, "{:?}", model.sizes());
    });
    assert_eq!(model.sizes(), [("v1".to_owned(), 0), ("v2".to_owned(), 3)]);
}

#[test]
fn scaling_during_a_rollout_is_proportional() {
    let mut model = rolled_out(10);
    model.broken = Some("v2");
    set_image(&mut model.deployment, "v2");
    model.settle(|_| {});
    assert_eq!(model.sizes(), [("v1".to_owned(), 8), ("v2".to_owned(), 5)]);
    model.deployment.spec.as_mut().unwrap().replicas = Some(20);
    let plan = model.plan();
    for effect in plan.effects {
        model.apply(effect);
    }
    assert_eq!(
        model.sizes(),
        [("v1".to_owned(), 15), ("v2".to_owned(), 10)],
        "25 in all, split as 8 to 5 was"
    );
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut model = rolled_out(2);
    model.deployment.spec.as_mut().unwrap().paused = Some(true);
    model.deployment.spec.as_mut().unwrap().replicas = Some(5);
    set_image(&mut model.deployment, "v2");
    model.settle(|_| {});
    assert_eq!(model.sizes(), [("v1".to_owned(), 5)]);
    assert_eq!(
        model.progressing(),
        ("Unknown".to_owned(), "DeploymentPaused".to_owned())
    );
    model.deployment.spec.as_mut().unwrap().paused = None;
    model.settle(|_| {});
    assert_eq!(model.sizes(), [("v1".to_owned(), 0), ("v2".to_owned(), 5)]);
}

#[test]
fn old_sets_beyond_the_history_limit_go_lowest_revision_first() {
    let mut model = rolled_out(1);
    model
        .deployment
        .spec
        .as_mut()
        .unwrap()
        .revision_history_limit = Some(2);
    for image in ["v2", "v3", "v4", "v5"] {
        set_image(&mut model.deployment, image);
        model.settle(|_| {});
    }
    let images: Vec<_> = model.sizes().into_iter().map(|(image, _)| image).collect();
    assert_eq!(images, ["v3", "v4", "v5"]);
}

#[test]
fn limits_round_surge_up_and_unavailable_down() {
    let cases = [
        (4, "25%", "25%", 1, 1),
        (10, "25%", "25%", 3, 2),
        (1, "25%", "25%", 1, 0),
        (1, "0%", "0%", 0, 1),
        (3, "100%", "200%", 3, 3),
    ];
    for (replicas, max_surge, max_unavailable, surge, unavailable) in cases {
        let mut deployment = deployment(replicas, "v1");
        deployment
            .spec
            .as_mut()
            .unwrap()
            .strategy
            .as_mut()
            .unwrap()
            .rolling_update = Some(RollingUpdateDeployment {
            max_surge: Some(percent(max_surge)),
            max_unavailable: Some(percent(max_unavailable)),
        });
        assert_eq!(
            limits(&deployment),
            Limits { surge, unavailable },
            "{replicas} {max_surge} {max_unavailable}"
        );
    }
}
