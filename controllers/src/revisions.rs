//! Revisions of a template, kept as ControllerRevisions by daemon sets (and others that update Pods in place of themselves). Pure,
//! but for [`keep`] and [`trim`], which write them.
//!
//! A revision holds the template as a patch, as upstream's does, so that `kubectl rollout undo` can apply it. One that comes back
//! is given the next number instead of being made again.

use std::sync::Arc;

use cox_client::Informer;
use cox_client::owners;
use cox_client::runner::ObjectName;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::context::Context;
use crate::deployment::template_hash;
use crate::owned_pods::Owner;

/// The label of pods and revisions that names the revision.
pub(crate) const HASH: &str = "controller-revision-hash";
/// Revisions kept where the owner does not say.
const LIMIT: i32 = 10;

/// What an owner says of its revisions.
pub(crate) struct Template<'a> {
    pub(crate) selector: &'a LabelSelector,
    pub(crate) template: &'a PodTemplateSpec,
    pub(crate) limit: Option<i32>,
    pub(crate) collisions: i32,
}

/// The revision that a pod was made from. Pods of stateful sets say its whole name, which ends in the hash.
pub(crate) fn hash_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(HASH)?.rsplit('-').next()
}

/// A number, or a percentage of `want`, rounded up.
pub(crate) fn scaled_up(value: &IntOrString, want: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|percent| percent.parse::<i64>().ok());
            let hundredths = percent.unwrap_or_default() * i64::from(want);
            i32::try_from((hundredths + 99).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

/// The patch that makes an owner's template this one.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

/// The template of a revision, if it is the one of this hash.
pub(crate) fn template_of(revision: &ControllerRevision, hash: &str) -> Option<PodTemplateSpec> {
    let data = revision
        .data
        .as_ref()
        .filter(|_| hash_label(revision) == hash)?;
    serde_json::from_value(data.0["spec"]["template"].clone()).ok()
}

fn holds(revision: &ControllerRevision, template: &Value) -> bool {
    revision
        .data
        .as_ref()
        .is_some_and(|data| data.0 == *template)
}

/// Sees to it that the template has a revision and that it is the newest; answers its hash.
pub(crate) async fn keep<K: Owner>(
    context: &Context,
    known: &Informer<ControllerRevision>,
    owner: &K,
    of: &Template<'_>,
) -> Result<String, kube::Error> {
    let key = ObjectName::of(owner);
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let revisions = known.controlled_by(&key.namespace, uid);
    let wanted = data(of.template);
    let newest = revisions
        .iter()
        .map(|revision| revision.revision)
        .max()
        .unwrap_or_default();
    let api = context.api::<ControllerRevision>(&key.namespace);
    if let Some(found) = revisions.iter().find(|revision| holds(revision, &wanted)) {
        if found.revision < newest {
            let name = ObjectName::of(&**found).name;
            let patch = Patch::Merge(json!({ "revision": newest + 1 }));
            api.patch(&name, &PatchParams::default(), &patch).await?;
        }
        return Ok(hash_label(found));
    }
    let hash = template_hash(of.template, of.collisions);
    let mut labels = of.selector.match_labels.clone().unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", key.name)),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![owners::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(wanted)),
        revision: newest + 1,
    };
    match api.create(&PostParams::default(), &revision).await {
        // Made a moment ago; the cache is behind.
        Err(error) if cox_client::is_already_exists(&error) => Ok(hash),
        result => result.map(|_| hash),
    }
}

fn hash_label(revision: &ControllerRevision) -> String {
    let labels = revision.metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get(HASH)).cloned();
    hash.unwrap_or_default()
}

/// Deletes the oldest revisions that no pod is of and that are over the limit. `newest` and `in_use` stay.
pub(crate) async fn trim<K: Owner>(
    context: &Context,
    known: &Informer<ControllerRevision>,
    owner: &K,
    of: &Template<'_>,
    pods: &[Arc<Pod>],
    newest: &str,
    in_use: &[&str],
) -> Result<(), kube::Error> {
    let key = ObjectName::of(owner);
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let live = |hash: &str| {
        hash == newest
            || in_use.contains(&hash)
            || pods.iter().any(|pod| hash_of(pod) == Some(hash))
    };
    let mut old = known.controlled_by(&key.namespace, uid);
    old.retain(|revision| !live(&hash_label(revision)));
    old.sort_by_key(|revision| revision.revision);
    let limit = usize::try_from(of.limit.unwrap_or(LIMIT)).unwrap_or_default();
    let surplus = old.len().saturating_sub(limit);
    let api = context.api::<ControllerRevision>(&key.namespace);
    for revision in &old[..surplus] {
        let name = ObjectName::of(&**revision).name;
        match api.delete(&name, &DeleteParams::default()).await {
            Err(error) if cox_client::is_not_found(&error) => {}
            result => drop(result?),
        }
    }
    Ok(())
}
