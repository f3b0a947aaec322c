//! Keeps the pods of a stateful set: each with a name, a place and claims of its own, made, updated and taken away in order.
//!
//! Watched: stateful sets, pods, controller revisions. Written: pods (created, deleted, adopted, released), claims (created),
//! controller revisions, the status of stateful sets, events. Invariants: acts only on what it has seen of its own writes, so that
//! there is never more than one pod of a place; one status write per reconcile, and none when nothing changed.

mod identity;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cox_client::runner::{ObjectName, Verdict};
use cox_client::{BoxError, Informer};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::api::PostParams;

use crate::context::{Context, Loop};
use crate::owned_pods::{self, OwnedPods};
use crate::revisions::{self, Template};
use plan::{Plan, Seen};

const WORKERS: usize = 2;
/// How soon to look again when the cache has not shown our own writes; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);
/// How soon to look again where time alone makes a pod available.
const READY_PAUSE: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    sets: Informer<StatefulSet>,
    revisions: Informer<ControllerRevision>,
    owned: OwnedPods,
}

pub(crate) async fn run(context: Context) {
    let sets = context.informers.of::<StatefulSet>();
    let revisions = context.informers.of::<ControllerRevision>();
    let owned = OwnedPods::new(&context);
    let mut frame = Loop::new("statefulset");
    frame.feed(&sets, |set, keys| keys.push(ObjectName::of(set)));
    let known = sets.clone();
    frame.feed(&owned.pods, move |pod, keys| {
        owned_pods::keys_of_pod(pod, &known, selects, keys);
    });
    frame.needs(&revisions);
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        sets,
        revisions,
        owned,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// By labels, and by a name that a place of the set has.
fn selects(set: &StatefulSet, pod: &Pod) -> bool {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    owned_pods::selects(selector, pod) && identity::ordinal(set, pod).is_some()
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(set) = self.sets.get(Some(&key.namespace), &key.name) else {
            self.owned.expectations.forget(key);
            return Verdict::Done;
        };
        if !self.owned.is_settled(key) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let owned = match self.owned.claim(&*set, |pod| selects(&set, pod)).await {
            Ok(owned) => owned,
            Err(error) => return Verdict::Backoff(error.into()),
        };
        match self.sync(key, &set, &owned).await {
            Ok(again) => again.map_or(Verdict::Done, Verdict::After),
            Err(error) => Verdict::Backoff(error),
        }
    }

    async fn sync(
        &self,
        key: &ObjectName,
        set: &StatefulSet,
        owned: &[Arc<Pod>],
    ) -> Result<Option<Duration>, BoxError> {
        let Some(spec) = &set.spec else {
            return Ok(None);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let status = set.status.as_ref();
        let template = Template {
            selector: &spec.selector,
            template: &spec.template,
            limit: spec.revision_history_limit,
            collisions: status
                .and_then(|status| status.collision_count)
                .unwrap_or_default(),
        };
        let update = revisions::keep(&self.context, &self.revisions, set, &template).await?;
        let prefix = format!("{}-", key.name);
        let current = status
            .and_then(|status| status.current_revision.as_deref()?.strip_prefix(&prefix))
            .filter(|hash| !hash.is_empty())
            .map_or_else(|| update.clone(), str::to_owned);
        let seen = Seen {
            set,
            pods: owned,
            current: &current,
            update: &update,
            now: self.context.clock.now(),
        };
        let plan = plan::plan(&seen);
        let acted = self.carry_out(key, &seen, &plan).await;
        self.publish(set, &plan.status).await?;
        acted?;
        let live = [current.as_str()];
        revisions::trim(
            &self.context,
            &self.revisions,
            set,
            &template,
            owned,
            &update,
            &live,
        )
        .await?;
        let waits = spec.min_ready_seconds.unwrap_or_default() > 0
            && plan.status.available_replicas != plan.status.ready_replicas;
        Ok(waits.then_some(READY_PAUSE))
    }

    async fn carry_out(
        &self,
        key: &ObjectName,
        seen: &Seen<'_>,
        plan: &Plan,
    ) -> Result<(), BoxError> {
        if let Some(failure) = self.owned.delete_all(key, seen.set, &plan.delete).await {
            return Err(failure.into());
        }
        let mut pods = Vec::new();
        for wanted in &plan.create {
            self.make_claims(key, seen.set, wanted.ordinal).await?;
            let hash = if wanted.updated {
                seen.update
            } else {
                seen.current
            };
            let template = self.template(key, seen, hash);
            pods.push(identity::pod(seen.set, template, wanted.ordinal, hash));
        }
        match self.owned.create_batch(key, seen.set, &pods).await {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// The template of a revision; the set's own where the revision is gone.
    fn template(&self, key: &ObjectName, seen: &Seen<'_>, hash: &str) -> PodTemplateSpec {
        let own = seen.set.spec.as_ref().map(|spec| spec.template.clone());
        let of_revision = || {
            let uid = seen.set.metadata.uid.as_deref()?;
            let revisions = self.revisions.controlled_by(&key.namespace, uid);
            revisions
                .iter()
                .find_map(|revision| revisions::template_of(revision, hash))
        };
        let older = (hash != seen.update).then(of_revision).flatten();
        older.or(own).unwrap_or_default()
    }

    /// Claims stay from one pod of a place to the next.
    async fn make_claims(
        &self,
        key: &ObjectName,
        set: &StatefulSet,
        ordinal: i32,
    ) -> Result<(), kube::Error> {
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        for (claim, _) in identity::claims(set, ordinal) {
            match api.create(&PostParams::default(), &claim).await {
                Err(error) if cox_client::is_already_exists(&error) => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    async fn publish(
        &self,
        set: &StatefulSet,
        status: &StatefulSetStatus,
    ) -> Result<(), kube::Error> {
        if set.status.as_ref().map(normal) == Some(normal(status)) {
            return Ok(());
        }
        let next = StatefulSet {
            status: Some(status.clone()),
            ..set.clone()
        };
        self.context.replace_status(&next).await
    }
}

/// Absent, empty and zero are the same, however a server writes them.
fn normal(status: &StatefulSetStatus) -> StatefulSetStatus {
    let mut status = status.clone();
    for count in [
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.current_replicas,
        &mut status.updated_replicas,
        &mut status.collision_count,
    ] {
        *count = Some(count.unwrap_or_default());
    }
    status.conditions.get_or_insert_default();
    status
}
