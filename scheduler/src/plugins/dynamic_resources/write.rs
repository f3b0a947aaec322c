//! Settles a Pod's claims before the Pod is bound: writes what they get and that the Pod has reserved them, then waits for devices that
//! have to be made ready. And gives back, when it comes to nothing.

use std::sync::Arc;
use std::time::Duration;

use cox_client::events::{EventType, Recorder};
use cox_client::runner::chain;
use cox_client::{Clock, is_conflict, is_not_found};
use k8s_openapi::api::core::v1::{Pod, PodExtendedResourceClaimStatus};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio::sync::watch;

use super::claims::{allocation, is_reserved_for};
use super::conditions::{self, Readiness};
use super::{DynamicResources, FollowUp, Planned, PlannedClaim, PlannedExtended, allocate};
use crate::pod_info::PodInfo;

/// A claim that somebody else writes at the same time is read again this often.
const ATTEMPTS: usize = 5;

/// Keeps a claim that has devices from going before they are given back.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// See the module's description.
#[derive(Clone)]
pub(crate) struct ClaimWriter {
    pub(crate) client: kube::Client,
    pub(crate) plugin: DynamicResources,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) recorder: Recorder,
    /// Turns whenever claims, or whether a Pod is there, may have changed.
    pub(crate) changed: watch::Receiver<u64>,
    /// How long devices may take until they are ready.
    pub(crate) timeout: Duration,
}

impl ClaimWriter {
    /// Settles it all; an error says what came of it instead.
    pub(crate) async fn settle(self, pod: &PodInfo, planned: &Planned) -> Result<(), String> {
        let mut claims = Vec::new();
        for own in &planned.claims {
            claims.push(if own.is_reserved {
                Arc::clone(&own.claim)
            } else {
                let written = Arc::new(self.reserve(pod, own).await?);
                self.plugin.written(pod, &written);
                written
            });
        }
        if let Some(own) = &planned.extended {
            claims.push(self.make(pod, own).await?);
        }
        if claims.iter().any(|claim| conditions::has_any(claim)) {
            let node = &planned.node;
            let message = format!("waiting for binding conditions for device on node {node}");
            self.recorder.event_on(
                &*pod.pod,
                EventType::Normal,
                "BindingConditionsPending",
                message,
            );
            return self.wait(claims).await;
        }
        Ok(())
    }

    /// Makes the claim for extended resources, and has the Pod name it.
    async fn make(
        &self,
        pod: &PodInfo,
        own: &PlannedExtended,
    ) -> Result<Arc<ResourceClaim>, String> {
        let (namespace, name) = pod.names();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), namespace);
        let made = api.create(&PostParams::default(), &own.claim).await;
        let made = made.map_err(|error| {
            let why = chain(&error);
            format!("create claim for extended resources {namespace}/{name}: {why}")
        })?;
        let made = Arc::new(made);
        self.plugin.made(pod, &made);
        let planned = PlannedClaim {
            claim: made,
            allocation: Some(own.allocation.clone()),
            is_reserved: false,
        };
        let written = Arc::new(self.reserve(pod, &planned).await?);
        self.plugin.written(pod, &written);
        let status = PodExtendedResourceClaimStatus {
            request_mappings: own.mappings.clone(),
            resource_claim_name: written.metadata.name.clone().unwrap_or_default(),
        };
        let patch = json!({"metadata": {"uid": pod.pod.metadata.uid}, "status": {"extendedResourceClaimStatus": status}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Strategic(patch);
        let patched = pods
            .patch_status(name, &PatchParams::default(), &patch)
            .await;
        patched.map(|_| written).map_err(|error| {
            let why = chain(&error);
            format!("update pod {namespace}/{name} ExtendedResourceClaimStatus: {why}")
        })
    }

    /// Has the claim name its devices, if it has none yet, and the Pod.
    async fn reserve(&self, pod: &PodInfo, own: &PlannedClaim) -> Result<ResourceClaim, String> {
        let shown = allocate::shown(&own.claim);
        let meta = &own.claim.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), namespace);
        let mut claim = (*own.claim).clone();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                claim = api.get(name).await.map_err(|error| {
                    let why = chain(&error);
                    format!("get updated claim {shown} after conflict: {why}")
                })?;
            }
            if claim.metadata.deletion_timestamp.is_some()
                || claim.metadata.uid != own.claim.metadata.uid
            {
                return Err(format!("claim {shown} got deleted in the meantime"));
            }
            match self.reserve_once(&api, pod, own, claim.clone()).await {
                Ok(written) => return Ok(written),
                Err(Refused::Conflict) => {}
                Err(Refused::For(why)) => return Err(why),
            }
        }
        Err(format!("claim {shown} is written by others all the time"))
    }

    async fn reserve_once(
        &self,
        api: &Api<ResourceClaim>,
        pod: &PodInfo,
        own: &PlannedClaim,
        mut claim: ResourceClaim,
    ) -> Result<ResourceClaim, Refused> {
        let shown = allocate::shown(&claim);
        let name = claim.metadata.name.clone().unwrap_or_default();
        let params = PostParams::default();
        let refused = |what: &str| {
            let start = format!("{what} claim {shown}");
            move |error: kube::Error| match is_conflict(&error) {
                true => Refused::Conflict,
                false => Refused::For(format!("{start}: {}", chain(&error))),
            }
        };
        if own.allocation.is_some() {
            if allocation(&claim).is_some() {
                let why = format!("claim {shown} got allocated elsewhere in the meantime");
                return Err(Refused::For(why));
            }
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|own| own == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
                let written = api.replace(&name, &params, &claim).await;
                claim = written.map_err(refused("add finalizer to"))?;
            }
            claim.status.get_or_insert_default().allocation = own.allocation.clone();
        }
        if is_reserved_for(&claim, &pod.pod) && own.allocation.is_none() {
            return Ok(claim);
        }
        let status = claim.status.get_or_insert_default();
        let Some(held) = &mut status.allocation else {
            let why = format!("claim {shown} got deallocated elsewhere in the meantime");
            return Err(Refused::For(why));
        };
        held.allocation_timestamp
            .get_or_insert_with(|| Time(self.clock.now()));
        let reserved = status.reserved_for.get_or_insert_default();
        reserved.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.names().1.to_owned(),
            uid: pod.pod.metadata.uid.clone().unwrap_or_default(),
        });
        let what = match own.allocation {
            Some(_) => "add allocation and reservation to",
            None => "add reservation to",
        };
        let written = api.replace_status(&name, &params, &claim).await;
        written.map_err(refused(what))
    }

    /// Until the drivers have made all devices ready.
    async fn wait(mut self, claims: Vec<Arc<ResourceClaim>>) -> Result<(), String> {
        let (plugin, clock, timeout) = (self.plugin.clone(), self.clock.clone(), self.timeout);
        let now = |claim: &Arc<ResourceClaim>| plugin.newest(claim);
        let waiting = async {
            loop {
                // What changes from here on is seen below.
                self.changed.mark_unchanged();
                let mut all_ready = true;
                for claim in &claims {
                    let claim = now(claim)?;
                    match conditions::of(&claim) {
                        Readiness::Ready => {}
                        Readiness::Failed(why) => return Err(why),
                        Readiness::Waiting => {
                            if conditions::is_overdue(&claim, clock.now(), timeout) {
                                let name = claim.metadata.name.as_deref().unwrap_or_default();
                                return Err(format!("device binding timeout: claim={name}"));
                            }
                            all_ready = false;
                        }
                    }
                }
                if all_ready {
                    return Ok(());
                }
                if self.changed.changed().await.is_err() {
                    return Err("the scheduler ends".to_owned());
                }
            }
        };
        let waited = tokio::time::timeout(timeout, waiting).await;
        waited
            .unwrap_or_else(|_| Err("device binding timeout: context deadline exceeded".to_owned()))
    }

    /// Does what is to be done about the claims of a Pod without a node. What fails is tried again with the Pod.
    pub(crate) async fn follow_up(&self, pod: &PodInfo, follow_up: &FollowUp) {
        let (FollowUp::Unreserve(claim) | FollowUp::Deallocate(claim) | FollowUp::Delete(claim)) =
            follow_up;
        let meta = &claim.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), namespace);
        let done = match follow_up {
            FollowUp::Unreserve(_) => {
                let own = json!({"$patch": "delete", "uid": pod.pod.metadata.uid});
                let patch =
                    json!({"metadata": {"uid": meta.uid}, "status": {"reservedFor": [own]}});
                let patch = Patch::Strategic(patch);
                let patched = api
                    .patch_status(name, &PatchParams::default(), &patch)
                    .await;
                patched.map(drop)
            }
            FollowUp::Deallocate(_) => {
                let mut bare = (**claim).clone();
                bare.status = None;
                let written = api
                    .replace_status(name, &PostParams::default(), &bare)
                    .await;
                written.map(drop)
            }
            FollowUp::Delete(_) => delete(&api, name, claim).await,
        };
        match done {
            Ok(()) => tracing::debug!(namespace, name, "Claim given back"),
            // Somebody was faster, and the Pod is looked at again.
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!(namespace, name, problem, "Claim could not be given back");
            }
        }
    }
}

/// Deletes a claim for good: nobody but the scheduler held it.
async fn delete(
    api: &Api<ResourceClaim>,
    name: &str,
    claim: &ResourceClaim,
) -> Result<(), kube::Error> {
    let mut next = claim.clone();
    for _ in 0..ATTEMPTS {
        if next.metadata.uid != claim.metadata.uid {
            return Ok(());
        }
        let finalizers = next.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|own| own != FINALIZER);
        match api.replace(name, &PostParams::default(), &next).await {
            Ok(_) => break,
            Err(error) if is_conflict(&error) => next = api.get(name).await?,
            Err(error) => return Err(error),
        }
    }
    let own = Preconditions {
        uid: claim.metadata.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams::default().preconditions(own);
    api.delete(name, &params).await.map(drop)
}

/// Why a claim was not written.
enum Refused {
    /// Somebody was faster.
    Conflict,
    For(String),
}
