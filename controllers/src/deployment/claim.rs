//! Which replica sets are a deployment's: those it controls and those it adopts.

use std::sync::Arc;

use cox_client::owners::{self, Claim};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::core::{Selector, SelectorExt};

use super::Controller;

/// Whether the replica set's labels match. A selector that cannot be understood, or that is empty, matches nothing.
pub(super) fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let selector = deployment
        .spec
        .as_ref()
        .map(|spec| spec.selector.clone())
        .unwrap_or_default();
    let labels = set.metadata.labels.as_ref();
    Selector::try_from(selector).is_ok_and(|selector| {
        !selector.selects_all() && selector.matches(labels.unwrap_or(&Default::default()))
    })
}

impl Controller {
    /// `None` when something was adopted: its change brings the next round, which sees it with its new owner. Going on without
    /// it would make a second set for the same template.
    pub(super) async fn claim(
        &self,
        deployment: &Deployment,
    ) -> Result<Option<Vec<Arc<ReplicaSet>>>, kube::Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let deleting = deployment.metadata.deletion_timestamp.is_some();
        let mut owned = Vec::new();
        let mut adopted = false;
        let candidates = self.replica_sets.controlled_by(namespace, uid).into_iter();
        for set in candidates.chain(self.replica_sets.without_controller(namespace)) {
            match owners::claim(&*set, uid, deleting, selects(deployment, &set)) {
                Claim::Owned => owned.push(set),
                Claim::Ignore => {}
                Claim::Release => {
                    owners::release(&self.context.api::<ReplicaSet>(namespace), &*set, uid).await?
                }
                Claim::Adopt => adopted |= self.adopt(deployment, &set).await?,
            }
        }
        Ok(Some(owned).filter(|_| !adopted))
    }

    /// Returns whether the set is ours now. The cache may be old, so the deployment is asked for before anything is adopted.
    async fn adopt(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<bool, kube::Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let live = self
            .context
            .api::<Deployment>(namespace)
            .get_opt(name)
            .await?;
        let same = live.is_some_and(|live| {
            live.metadata.uid == deployment.metadata.uid
                && live.metadata.deletion_timestamp.is_none()
        });
        if !same {
            return Ok(false);
        }
        match owners::adopt(
            &self.context.api(namespace),
            set,
            &owners::controller_ref(deployment),
        )
        .await
        {
            Err(error) if cox_client::is_not_found(&error) => Ok(false),
            result => result.map(|()| true),
        }
    }
}
