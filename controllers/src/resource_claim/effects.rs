//! Writes what the plans say. Decides nothing. Each write of a claim names the version it was decided on, so that one that
//! comes after somebody else's is refused and looked at again.

use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::plan::{self, ClaimPlan, FINALIZER};
use super::{Controller, Failure};
use crate::owned_pods::reply;
use crate::pod::is_active;

/// Owns `status.resourceClaimStatuses`; upstream's name, so that neither disturbs the other's entries.
const MANAGER: &str = "ResourceClaimController";

fn of_version(claim: &ResourceClaim) -> Value {
    let meta = &claim.metadata;
    json!({ "uid": meta.uid, "resourceVersion": meta.resource_version })
}

impl Controller {
    /// Makes the claim of an entry.
    pub(super) async fn make(
        &self,
        pod: &Pod,
        entry: &PodResourceClaim,
        template: &str,
    ) -> Result<String, Failure> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = self.templates.get(Some(namespace), template);
        let found = found.ok_or_else(|| Failure::NoTemplate(template.to_owned()))?;
        let claim = plan::claim_of(pod, entry, &found);
        let api = self.context.api::<ResourceClaim>(namespace);
        let made = api
            .create(&PostParams::default(), &claim)
            .await
            .map_err(Failure::Create)?;
        self.made.note(pod, &made);
        Ok(made.metadata.name.unwrap_or_default())
    }

    /// Writes down which claims are the Pod's; entries of other managers stay.
    pub(super) async fn write_down(
        &self,
        pod: &Pod,
        statuses: &[(String, Option<String>)],
    ) -> Result<(), kube::Error> {
        let meta = &pod.metadata;
        let list: Vec<Value> = statuses
            .iter()
            .map(|(name, claim)| match claim {
                Some(claim) => json!({ "name": name, "resourceClaimName": claim }),
                None => json!({ "name": name }),
            })
            .collect();
        let patch = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": meta.name, "namespace": meta.namespace, "uid": meta.uid },
            "status": { "resourceClaimStatuses": list },
        });
        let api = self
            .context
            .api::<Pod>(meta.namespace.as_deref().unwrap_or_default());
        let params = PatchParams::apply(MANAGER).force();
        api.patch_status(
            meta.name.as_deref().unwrap_or_default(),
            &params,
            &Patch::Apply(patch),
        )
        .await
        .map(drop)
    }

    /// Puts a Pod on the list of a claim's users.
    pub(super) async fn reserve(
        &self,
        pod: &Pod,
        claim: &ResourceClaim,
    ) -> Result<(), kube::Error> {
        debug_assert!(is_active(pod));
        let mut users = json!(plan::reserved_for(claim));
        let user =
            json!({ "resource": "pods", "name": pod.metadata.name, "uid": pod.metadata.uid });
        users
            .as_array_mut()
            .into_iter()
            .for_each(|users| users.push(user.clone()));
        let patch = json!({ "metadata": of_version(claim), "status": { "reservedFor": users } });
        self.patch_claim_status(claim, patch).await.map(drop)
    }

    async fn patch_claim_status(
        &self,
        claim: &ResourceClaim,
        patch: Value,
    ) -> Result<ResourceClaim, kube::Error> {
        let meta = &claim.metadata;
        let api = self
            .context
            .api::<ResourceClaim>(meta.namespace.as_deref().unwrap_or_default());
        let name = meta.name.as_deref().unwrap_or_default();
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    }

    /// Takes off users, gives devices back, lets the claim go and deletes it, as far as the plan says.
    pub(super) async fn carry_out(
        &self,
        claim: &ResourceClaim,
        plan: &ClaimPlan,
    ) -> Result<(), kube::Error> {
        let mut current = claim.clone();
        if plan.reserved_for.is_some() || plan.deallocate {
            let mut status = json!({});
            if let Some(users) = &plan.reserved_for {
                status["reservedFor"] = json!(users);
            }
            if plan.deallocate {
                status["allocation"] = Value::Null;
            }
            let patch = json!({ "metadata": of_version(&current), "status": status });
            current = self.patch_claim_status(&current, patch).await?;
        }
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.api::<ResourceClaim>(namespace);
        if plan.drop_finalizer {
            let mut metadata = of_version(&current);
            let finalizers = current.metadata.finalizers.iter().flatten();
            let others: Vec<&String> = finalizers.filter(|name| *name != FINALIZER).collect();
            metadata["finalizers"] = json!(others);
            let patch = Patch::Merge(json!({ "metadata": metadata }));
            api.patch(name, &PatchParams::default(), &patch).await?;
        }
        if plan.delete {
            let preconditions = Preconditions {
                uid: claim.metadata.uid.clone(),
                resource_version: None,
            };
            let params = DeleteParams::default().preconditions(preconditions);
            api.delete(name, &params).await?;
        }
        Ok(())
    }
}

impl Failure {
    /// What the Pod's event says of it.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::NoTemplate(_) => self.to_string(),
            Self::Create(error) => format!("{self}: {}", reply(error)),
        }
    }
}
