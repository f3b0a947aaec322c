//! Decides what a deployment's replica sets need next. Pure.
//!
//! One round per reconcile: what a round writes comes back as changes and leads to the next one. In order: a deployment that is
//! being deleted only reports; one that is paused or was just resized is scaled; Recreate and RollingUpdate go their ways.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_client::owners;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::hash;
use super::proportional;
use super::revision::{self, REVISION};
use super::rolling::{limits, new_size, old_sizes};
use super::sets::{
    self, DESIRED_REPLICAS, MAX_REPLICAS, age_key, annotation, is_active, number, replicas, total,
    wanted,
};
use super::status;

/// What the planner sees.
pub(super) struct View<'a> {
    pub(super) deployment: &'a Deployment,
    /// The deployment's replica sets, in any order.
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// Uids of those that still have pods; filled for Recreate only.
    pub(super) running: Vec<String>,
    pub(super) now: Timestamp,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    /// The first replica set of a template.
    Create(Box<ReplicaSet>),
    /// A new size, with the annotations that record what it was computed from.
    Scale {
        set: Arc<ReplicaSet>,
        to: i32,
        annotations: BTreeMap<String, String>,
    },
    /// Annotations and `minReadySeconds` that follow the deployment.
    Sync {
        set: Arc<ReplicaSet>,
        annotations: BTreeMap<String, String>,
        min_ready_secs: i32,
    },
    /// Beyond the history limit.
    Delete(Arc<ReplicaSet>),
    /// The deployment's own revision annotation.
    SetRevision(String),
}

/// Writes to make now, the status to publish, and when to look again without a change.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) effects: Vec<Effect>,
    pub(super) status: DeploymentStatus,
    pub(super) next_look: Option<Duration>,
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// The replica sets told apart.
pub(super) struct Split {
    /// The oldest one with the deployment's template.
    pub(super) new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl Split {
    pub(super) fn of(view: &View<'_>) -> Self {
        let template = template_of(view.deployment);
        let mut old = view.sets.clone();
        old.sort_by(|a, b| age_key(a).cmp(&age_key(b)));
        let is_new = |set: &Arc<ReplicaSet>| {
            let present = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            present.is_some_and(|present| hash::is_same_template(present, &template))
        };
        let new = old.iter().position(is_new).map(|at| old.remove(at));
        Self { new, old }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }
}

pub(super) fn plan(view: &View<'_>) -> Plan {
    let split = Split::of(view);
    let spec = view.deployment.spec.clone().unwrap_or_default();
    let deleting = view.deployment.metadata.deletion_timestamp.is_some();
    let paused = spec.paused == Some(true);
    let resized = split.all().any(|set| {
        is_active(set)
            && number::<i32>(set, DESIRED_REPLICAS)
                .is_some_and(|desired| desired != wanted(view.deployment))
    });
    let (effects, rollout) = if deleting {
        (Vec::new(), false)
    } else if paused || resized {
        let mut effects = follow_new(view, &split);
        effects.extend(scale(view.deployment, &split));
        if paused && effects.is_empty() {
            effects = clean_up(view.deployment, &split.old);
        }
        (effects, false)
    } else if is_recreate(view.deployment) {
        (recreate(view, &split), true)
    } else {
        (roll(view, &split), true)
    };
    let created = effects.iter().find_map(|effect| match effect {
        Effect::Create(set) => Some(sets::name(set)),
        Effect::Scale { .. } | Effect::Sync { .. } | Effect::Delete(_) | Effect::SetRevision(_) => {
            None
        }
    });
    let (status, next_look) = if rollout {
        status::rollout(view, &split, created)
    } else {
        (status::plain(view, &split), None)
    };
    Plan {
        effects,
        status,
        next_look,
    }
}

/// RollingUpdate: first the new set grows as far as the surge allows, then old ones shrink as far as availability allows.
fn roll(view: &View<'_>, split: &Split) -> Vec<Effect> {
    let deployment = view.deployment;
    let Some(new) = &split.new else {
        return create_new(view, split);
    };
    let mut effects = follow_new(view, split);
    let size = new_size(deployment, replicas(new), total(split.all()));
    if size != replicas(new) {
        effects.push(scale_to(deployment, new, size));
        return effects;
    }
    effects.extend(
        old_sizes(deployment, new, &split.old)
            .iter()
            .map(|(set, size)| scale_to(deployment, set, *size)),
    );
    if effects.is_empty() && status::is_complete(deployment, &status::counts(view, split)) {
        effects = clean_up(deployment, &split.old);
    }
    effects
}

/// Recreate: all old pods go, and only when they are gone the new ones come.
fn recreate(view: &View<'_>, split: &Split) -> Vec<Effect> {
    let deployment = view.deployment;
    let mut effects = follow_new(view, split);
    let shrinking: Vec<_> = split.old.iter().filter(|set| is_active(set)).collect();
    if !shrinking.is_empty() {
        effects.extend(
            shrinking
                .into_iter()
                .map(|set| scale_to(deployment, set, 0)),
        );
        return effects;
    }
    let is_running = |set: &Arc<ReplicaSet>| {
        set.metadata
            .uid
            .as_ref()
            .is_some_and(|uid| view.running.contains(uid))
    };
    if split.old.iter().any(is_running) {
        return effects;
    }
    let Some(new) = &split.new else {
        return create_new(view, split);
    };
    if replicas(new) != wanted(deployment) {
        effects.push(scale_to(deployment, new, wanted(deployment)));
    }
    if effects.is_empty() && status::is_complete(deployment, &status::counts(view, split)) {
        effects = clean_up(deployment, &split.old);
    }
    effects
}

/// The deployment's size changed, or it is paused: sizes follow, nothing is rolled.
fn scale(deployment: &Deployment, split: &Split) -> Vec<Effect> {
    let want = wanted(deployment);
    let active: Vec<_> = split.all().filter(|set| is_active(set)).cloned().collect();
    match active.as_slice() {
        [] => {
            let latest = split.new.as_ref().or(split.old.last());
            latest
                .filter(|set| replicas(set) != want)
                .map(|set| scale_to(deployment, set, want))
                .into_iter()
                .collect()
        }
        [only] => changed(deployment, vec![(only.clone(), want)]),
        _ if split
            .new
            .as_ref()
            .is_some_and(|new| is_saturated(deployment, new)) =>
        {
            let old = active
                .iter()
                .filter(|set| !split.new.as_ref().is_some_and(|new| Arc::ptr_eq(new, set)));
            changed(deployment, old.map(|set| (set.clone(), 0)).collect())
        }
        _ if is_recreate(deployment) => Vec::new(),
        several => changed(deployment, proportional::sizes(deployment, several)),
    }
}

/// The new replica set is as large as it shall be and all of it is available.
fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let want = wanted(deployment);
    replicas(new) == want
        && number::<i32>(new, DESIRED_REPLICAS) == Some(want)
        && sets::available(new) == want
}

/// Keeps only sizes that differ, and those whose recorded sizes are out of date.
fn changed(deployment: &Deployment, sizes: Vec<(Arc<ReplicaSet>, i32)>) -> Vec<Effect> {
    let recorded = size_annotations(deployment);
    let differs = |set: &ReplicaSet, size: i32| {
        replicas(set) != size
            || recorded
                .iter()
                .any(|(key, value)| annotation(set, key) != Some(value))
    };
    sizes
        .into_iter()
        .filter(|(set, size)| differs(set, *size))
        .map(|(set, size)| scale_to(deployment, &set, size))
        .collect()
}

fn scale_to(deployment: &Deployment, set: &Arc<ReplicaSet>, to: i32) -> Effect {
    Effect::Scale {
        set: set.clone(),
        to,
        annotations: size_annotations(deployment),
    }
}

fn size_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let want = wanted(deployment);
    [
        (DESIRED_REPLICAS, want),
        (MAX_REPLICAS, want + limits(deployment).surge),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_string()))
    .into()
}

/// What the present new replica set and the deployment's revision lack.
fn follow_new(view: &View<'_>, split: &Split) -> Vec<Effect> {
    let Some(new) = &split.new else {
        return Vec::new();
    };
    let deployment = view.deployment;
    let mut effects = Vec::new();
    let annotations = revision::missing(deployment, new, revision::next_revision(&split.old));
    let min_ready_secs = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or_default();
    let present = new
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or_default();
    let revision = annotations
        .get(REVISION)
        .map(String::as_str)
        .or(annotation(new, REVISION))
        .map(str::to_owned);
    if !annotations.is_empty() || min_ready_secs != present {
        effects.push(Effect::Sync {
            set: new.clone(),
            annotations,
            min_ready_secs,
        });
        // The set has a new resourceVersion after this, so what else it needs is decided in the next round.
        return effects;
    }
    effects.extend(
        revision
            .filter(|revision| own_revision(deployment) != Some(revision))
            .map(Effect::SetRevision),
    );
    effects
}

fn own_revision(deployment: &Deployment) -> Option<&String> {
    deployment.metadata.annotations.as_ref()?.get(REVISION)
}

fn create_new(view: &View<'_>, split: &Split) -> Vec<Effect> {
    let deployment = view.deployment;
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count)
        .unwrap_or_default();
    let mut template = template_of(deployment);
    let hash = hash::template_hash(&template, collisions);
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(hash::LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(hash::LABEL.to_owned(), hash.clone());
    let revision = revision::next_revision(&split.old).to_string();
    let mut annotations = revision::inherited(deployment);
    annotations.extend(size_annotations(deployment));
    annotations.insert(REVISION.to_owned(), revision.clone());
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{hash}",
                deployment.metadata.name.as_deref().unwrap_or_default()
            )),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owners::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(new_size(deployment, 0, total(&split.old))),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    let mut effects = vec![Effect::Create(Box::new(set))];
    if own_revision(deployment) != Some(&revision) {
        effects.push(Effect::SetRevision(revision));
    }
    effects
}

/// Old replica sets beyond the history limit, lowest revision first, as long as they are empty.
fn clean_up(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Effect> {
    let limit = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.revision_history_limit);
    let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
        return Vec::new();
    };
    let mut alive: Vec<_> = old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    let surplus = alive.len().saturating_sub(limit);
    alive.sort_by_key(|set| {
        (
            number::<i64>(set, REVISION),
            set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        )
    });
    let is_empty = |set: &ReplicaSet| {
        let status = set.status.as_ref();
        replicas(set) == 0
            && status.is_none_or(|status| status.replicas == 0)
            && set.metadata.generation <= status.and_then(|status| status.observed_generation)
    };
    alive
        .into_iter()
        .take(surplus)
        .filter(|set| is_empty(set))
        .map(Effect::Delete)
        .collect()
}

fn template_of(deployment: &Deployment) -> PodTemplateSpec {
    deployment
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default()
}
