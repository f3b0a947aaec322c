//! Carries out a deployment's plan. Decides nothing but what an existing replica set of the same name means.

use cox_client::events::EventType;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::plan::{Effect, Plan};
use super::revision::REVISION;
use super::{Controller, hash, sets, status};

/// Why a round stopped. The next one follows after a pause.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot create replica set {name}")]
    Create { name: String, source: kube::Error },
    #[error("replica set {0} exists with another template")]
    Collision(String),
    #[error("cannot change replica set {name}")]
    Change { name: String, source: kube::Error },
    #[error("cannot record the revision")]
    Revision(#[source] kube::Error),
}

impl Controller {
    /// Stops at the first failure and notes it in the plan's status. Returns the deployment as it is after that.
    pub(super) async fn carry_out(
        &self,
        deployment: &Deployment,
        plan: &mut Plan,
    ) -> (Deployment, Option<Failure>) {
        let mut written = deployment.clone();
        for effect in std::mem::take(&mut plan.effects) {
            let result = match effect {
                Effect::Create(set) => self.create(deployment, &set).await,
                Effect::Scale {
                    set,
                    to,
                    annotations,
                } => {
                    let patch = json!({ "metadata": { "annotations": annotations }, "spec": { "replicas": to } });
                    let result = self.change(&set, patch).await;
                    if result.is_ok() {
                        self.tell_scaled(deployment, sets::name(&set), sets::replicas(&set), to);
                    }
                    result
                }
                Effect::Sync {
                    set,
                    annotations,
                    min_ready_secs,
                } => {
                    let spec = json!({ "minReadySeconds": min_ready_secs });
                    self.change(
                        &set,
                        json!({ "metadata": { "annotations": annotations }, "spec": spec }),
                    )
                    .await
                }
                Effect::Delete(set) => self.delete(&set).await,
                Effect::SetRevision(revision) => self
                    .set_revision(deployment, &revision)
                    .await
                    .map(|now| written = now),
            };
            if let Err(failure) = result {
                self.note(deployment, &failure, &mut plan.status);
                return (written, Some(failure));
            }
        }
        (written, None)
    }

    fn note(&self, deployment: &Deployment, failure: &Failure, status: &mut DeploymentStatus) {
        match failure {
            Failure::Create { name, source } => {
                let message = format!("Failed to create new replica set \"{name}\": {source}");
                status::creation_failed(status, message.clone(), self.context.clock.now());
                self.context.events.event_on(
                    deployment,
                    EventType::Warning,
                    "ReplicaSetCreateError",
                    message,
                );
            }
            // The next hash is another one.
            Failure::Collision(_) => {
                status.collision_count = Some(status.collision_count.unwrap_or_default() + 1)
            }
            Failure::Change { .. } | Failure::Revision(_) => {}
        }
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), Failure> {
        let name = sets::name(set).to_owned();
        let api = self
            .context
            .api::<ReplicaSet>(set.metadata.namespace.as_deref().unwrap_or_default());
        match api.create(&PostParams::default(), set).await {
            Ok(_) => {
                if sets::replicas(set) > 0 {
                    self.tell_scaled(deployment, &name, 0, sets::replicas(set));
                }
                Ok(())
            }
            Err(error) if cox_client::is_namespace_terminating(&error) => Ok(()),
            Err(error) if cox_client::is_already_exists(&error) => {
                let live = api.get_opt(&name).await.map_err(|source| Failure::Create {
                    name: name.clone(),
                    source,
                })?;
                let ours = live.is_some_and(|live| is_ours(&live, deployment));
                // Ours: created in the last round, and the cache will show it.
                if ours {
                    Ok(())
                } else {
                    Err(Failure::Collision(name))
                }
            }
            Err(source) => Err(Failure::Create { name, source }),
        }
    }

    /// The resourceVersion in the patch makes a decision on old data fail.
    async fn change(&self, set: &ReplicaSet, mut patch: serde_json::Value) -> Result<(), Failure> {
        patch["metadata"]["resourceVersion"] = json!(set.metadata.resource_version);
        let api = self
            .context
            .api::<ReplicaSet>(set.metadata.namespace.as_deref().unwrap_or_default());
        match api
            .patch(
                sets::name(set),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Failure::Change {
                name: sets::name(set).to_owned(),
                source,
            }),
        }
    }

    async fn delete(&self, set: &ReplicaSet) -> Result<(), Failure> {
        let preconditions = Preconditions {
            uid: set.metadata.uid.clone(),
            resource_version: set.metadata.resource_version.clone(),
        };
        let api = self
            .context
            .api::<ReplicaSet>(set.metadata.namespace.as_deref().unwrap_or_default());
        match api
            .delete(
                sets::name(set),
                &DeleteParams::background().preconditions(preconditions),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Failure::Change {
                name: sets::name(set).to_owned(),
                source,
            }),
        }
    }

    /// An update, not a patch: upstream's role for this controller grants no more. Returns what the server made of it.
    async fn set_revision(
        &self,
        deployment: &Deployment,
        revision: &str,
    ) -> Result<Deployment, Failure> {
        let mut next = deployment.clone();
        let annotations = next.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.to_owned(), revision.to_owned());
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let api = self
            .context
            .api::<Deployment>(deployment.metadata.namespace.as_deref().unwrap_or_default());
        match api.replace(name, &PostParams::default(), &next).await {
            Ok(written) => Ok(written),
            Err(error) if cox_client::is_not_found(&error) => Ok(next),
            Err(source) => Err(Failure::Revision(source)),
        }
    }

    fn tell_scaled(&self, deployment: &Deployment, name: &str, from: i32, to: i32) {
        if from == to {
            return;
        }
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        self.context
            .events
            .event_on(deployment, EventType::Normal, "ScalingReplicaSet", message);
    }

    pub(super) async fn publish(
        &self,
        deployment: &Deployment,
        status: &DeploymentStatus,
    ) -> Result<(), kube::Error> {
        if deployment.status.as_ref().map(normal) == Some(normal(status)) {
            return Ok(());
        }
        let next = Deployment {
            status: Some(status.clone()),
            ..deployment.clone()
        };
        self.context.replace_status(&next).await
    }
}

fn is_ours(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let controlled = cox_client::owners::controller_of(set).map(|owner| &owner.uid)
        == deployment.metadata.uid.as_ref();
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = deployment.spec.as_ref().map(|spec| &spec.template);
    controlled
        && template
            .zip(wanted)
            .is_some_and(|(template, wanted)| hash::is_same_template(template, wanted))
}

/// Absent and zero are the same, however a server writes them.
fn normal(status: &DeploymentStatus) -> DeploymentStatus {
    let mut status = status.clone();
    let counts = [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
        &mut status.terminating_replicas,
    ];
    for count in counts {
        *count = Some(count.unwrap_or_default());
    }
    status.conditions.get_or_insert_default();
    status
}
