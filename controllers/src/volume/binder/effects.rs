//! Carries out what the plan says about claims and volumes. No decisions, but for one: what seems gone is asked for again.

use std::sync::Arc;

use cox_client::BoxError;
use cox_client::events::EventType;
use cox_client::volumes::{BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, reference};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams, Preconditions};

use super::Binder;
use super::plan::{ClaimStep, PROVISIONER, Said, VolumeStep};
use crate::volume::{local_path, phase_of};

/// The older name of the annotation, which older provisioners look for.
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";

impl Binder {
    pub(super) async fn carry_out(
        &self,
        claim: &PersistentVolumeClaim,
        step: ClaimStep,
        class: Option<&StorageClass>,
    ) -> Result<(), BoxError> {
        match step {
            ClaimStep::UseClass(name) => {
                let mut next = claim.clone();
                next.spec.get_or_insert_default().storage_class_name = Some(name);
                self.write_claim(&next).await.map(drop)
            }
            ClaimStep::Bind(volume) => self.bind(claim, &volume).await,
            ClaimStep::Provision(node) => self.provision(claim, class, &node).await,
            ClaimStep::ChooseAnew => self.choose_anew(claim).await,
            ClaimStep::AskProvisioner(name) => {
                let mut next = claim.clone();
                let annotations = next.metadata.annotations.get_or_insert_default();
                annotations.insert(PROVISIONER.to_owned(), name.clone());
                annotations.insert(PROVISIONER_BETA.to_owned(), name);
                self.write_claim(&next).await.map(drop)
            }
            ClaimStep::Wait(said) => {
                if let Some(said) = said {
                    self.say(claim, &said);
                }
                self.write_claim_phase(claim, "Pending", None).await
            }
            ClaimStep::Lost(said) => {
                if phase_of(claim) != "Lost" {
                    self.say(claim, &said);
                }
                self.write_claim_phase(claim, "Lost", None).await
            }
        }
    }

    /// Takes the chosen node back, which is what tells the scheduler that nothing came of it.
    async fn choose_anew(&self, claim: &PersistentVolumeClaim) -> Result<(), BoxError> {
        let mut next = claim.clone();
        let annotations = next.metadata.annotations.as_mut();
        let chosen = annotations.and_then(|all| all.remove(SELECTED_NODE));
        match chosen {
            Some(_) => self.write_claim(&next).await.map(drop),
            None => Ok(()),
        }
    }

    fn say(&self, claim: &PersistentVolumeClaim, said: &Said) {
        let kind = if said.warning {
            EventType::Warning
        } else {
            EventType::Normal
        };
        let events = &self.context.events;
        events.event_on(claim, kind, said.reason, said.message.clone());
    }

    /// Makes both sides name each other, the volume first. Each write is left out if it is done.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), BoxError> {
        let mut next = volume.clone();
        let spec = next.spec.get_or_insert_default();
        let known = spec
            .claim_ref
            .as_ref()
            .and_then(|reference| reference.uid.as_ref());
        if known != claim.metadata.uid.as_ref() {
            if spec.claim_ref.is_none() {
                let annotations = next.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            spec.claim_ref = Some(reference(claim));
            next = self.write_volume(&next).await?;
        }
        self.write_volume_phase(&next, "Bound", None).await?;
        let mut next = claim.clone();
        let name = volume.metadata.name.clone();
        let spec = next.spec.get_or_insert_default();
        let annotations = next.metadata.annotations.get_or_insert_default();
        if spec.volume_name != name {
            spec.volume_name = name;
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
        if next != *claim {
            next = self.write_claim(&next).await?;
        }
        self.write_claim_phase(&next, "Bound", Some(volume)).await
    }

    /// Makes a folder's volume; its coming binds the claim.
    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
        node: &Node,
    ) -> Result<(), BoxError> {
        let made = class
            .ok_or_else(|| "its class is gone".to_owned())
            .and_then(|class| local_path::volume(claim, class, node));
        let volume = match made {
            Ok(volume) => volume,
            Err(why) => {
                let said = Said {
                    warning: true,
                    reason: "ProvisioningFailed",
                    message: format!("failed to provision volume: {why}"),
                };
                self.say(claim, &said);
                return if local_path::can_keep_volumes(node) {
                    self.write_claim_phase(claim, "Pending", None).await
                } else {
                    self.choose_anew(claim).await
                };
            }
        };
        let name = volume.metadata.name.clone().unwrap_or_default();
        let api = self.context.cluster_api::<PersistentVolume>();
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {
                let said = Said {
                    warning: false,
                    reason: "ProvisioningSucceeded",
                    message: format!("Successfully provisioned volume {name}"),
                };
                self.say(claim, &said);
                Ok(())
            }
            Err(error) if cox_client::is_already_exists(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn settle_volume(
        &self,
        volume: &Arc<PersistentVolume>,
        step: VolumeStep,
    ) -> Result<(), BoxError> {
        match step {
            VolumeStep::Leave => Ok(()),
            VolumeStep::Phase("Released") if !self.claim_is_gone(volume).await? => Ok(()),
            VolumeStep::Phase(phase) => self.write_volume_phase(volume, phase, None).await,
            VolumeStep::Unbind => {
                let mut next = (**volume).clone();
                next.spec.get_or_insert_default().claim_ref = None;
                if let Some(annotations) = &mut next.metadata.annotations {
                    annotations.remove(BOUND_BY_CONTROLLER);
                }
                let next = self.write_volume(&next).await?;
                self.write_volume_phase(&next, "Available", None).await
            }
            VolumeStep::Delete => {
                if !self.claim_is_gone(volume).await? {
                    return Ok(());
                }
                self.write_volume_phase(volume, "Released", None).await?;
                self.delete(volume).await
            }
            VolumeStep::CannotDelete(why) => {
                if !self.claim_is_gone(volume).await? {
                    return Ok(());
                }
                let phase = volume
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref());
                if phase != Some("Failed") {
                    let (events, kind) = (&self.context.events, EventType::Warning);
                    events.event_on(&**volume, kind, "VolumeFailedDelete", why.clone());
                }
                self.write_volume_phase(volume, "Failed", Some(why)).await
            }
        }
    }

    /// Whether the API server says that the volume's claim is gone; the cache may be behind.
    async fn claim_is_gone(&self, volume: &PersistentVolume) -> Result<bool, BoxError> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let Some(reference) = reference else {
            return Ok(true);
        };
        let namespace = reference.namespace.unwrap_or_default();
        let api = self.context.api::<PersistentVolumeClaim>(&namespace);
        let found = api.get_opt(&reference.name.unwrap_or_default()).await?;
        Ok(found.is_none_or(|found| found.metadata.uid != reference.uid))
    }

    /// Has the folder removed by its node, then removes the volume. A node that is gone took the folder along.
    async fn delete(&self, volume: &PersistentVolume) -> Result<(), BoxError> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        if let Some(node) = local_path::node_of(volume)
            && self.nodes.get(None, node).is_some()
        {
            let path = format!("/api/v1/nodes/{node}/proxy/localVolumes/{name}");
            let request = http::Request::delete(path).body(Vec::new())?;
            if let Err(error) = self.context.client().request_text(request).await {
                let (events, kind) = (&self.context.events, EventType::Warning);
                let message = format!("node {node} did not remove the folder: {error}");
                events.event_on(volume, kind, "VolumeFailedDelete", message);
                return Err(error.into());
            }
        }
        let preconditions = Preconditions {
            uid: volume.metadata.uid.clone(),
            resource_version: None,
        };
        let params = DeleteParams::default().preconditions(preconditions);
        let api = self.context.cluster_api::<PersistentVolume>();
        match api.delete(&name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn write_claim(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolumeClaim, BoxError> {
        let (namespace, name) = (&claim.metadata.namespace, &claim.metadata.name);
        let api = self
            .context
            .api::<PersistentVolumeClaim>(namespace.as_deref().unwrap_or_default());
        let name = name.as_deref().unwrap_or_default();
        Ok(api.replace(name, &PostParams::default(), claim).await?)
    }

    async fn write_volume(&self, volume: &PersistentVolume) -> Result<PersistentVolume, BoxError> {
        let api = self.context.cluster_api::<PersistentVolume>();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        Ok(api.replace(name, &PostParams::default(), volume).await?)
    }

    /// Writes the claim's status if it differs; a bound one shows what it got.
    async fn write_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), BoxError> {
        let mut next = claim.clone();
        let status = next.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        match volume.and_then(|volume| volume.spec.as_ref()) {
            Some(spec) => {
                status.access_modes.clone_from(&spec.access_modes);
                status.capacity.clone_from(&spec.capacity);
            }
            None if phase == "Lost" => (status.access_modes, status.capacity) = (None, None),
            None => {}
        }
        if next.status == claim.status {
            return Ok(());
        }
        let (namespace, name) = (&claim.metadata.namespace, &claim.metadata.name);
        let api = self
            .context
            .api::<PersistentVolumeClaim>(namespace.as_deref().unwrap_or_default());
        let name = name.as_deref().unwrap_or_default();
        api.replace_status(name, &PostParams::default(), &next)
            .await?;
        Ok(())
    }

    async fn write_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<String>,
    ) -> Result<(), BoxError> {
        let mut next = volume.clone();
        let status = next.status.get_or_insert_default();
        let turns = status.phase.as_deref() != Some(phase);
        status.phase = Some(phase.to_owned());
        status.message = message;
        if turns {
            let now = self.context.clock.now();
            status.last_phase_transition_time =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        }
        if next.status == volume.status {
            return Ok(());
        }
        let api = self.context.cluster_api::<PersistentVolume>();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        api.replace_status(name, &PostParams::default(), &next)
            .await?;
        Ok(())
    }
}
