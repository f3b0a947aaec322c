//! What a claim or a volume needs next. Pure: snapshots in, one step out; a bound pair needs none.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use cox_client::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, annotation, best, class_of, fits, is_for,
};

use crate::volume::local_path;

/// Annotation of claims: who has to make the volume.
pub(super) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// What is said to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The next step for a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// It has no class and there is a default one.
    UseClass(String),
    /// Both sides are to name each other.
    Bind(Arc<PersistentVolume>),
    /// Make a folder on this node.
    Provision(Arc<Node>),
    /// The node chosen for it is gone, or cannot have the volume: the scheduler is to choose anew.
    ChooseAnew,
    /// Somebody else makes the volume; the annotation asks for it.
    AskProvisioner(String),
    /// Nothing can be done now.
    Wait(Option<Said>),
    /// What it was bound to is gone or another's.
    Lost(Said),
}

/// Everything a decision about a claim depends on.
#[derive(Clone, Debug)]
pub(super) struct ClaimInput<'a> {
    pub(super) claim: &'a PersistentVolumeClaim,
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    /// The class that the claim names, if it exists.
    pub(super) class: Option<Arc<StorageClass>>,
    /// The default class's name.
    pub(super) default_class: Option<String>,
    /// The node chosen for it, or that its first Pod is on.
    pub(super) node: Option<Arc<Node>>,
}

fn has(annotations: Option<&std::collections::BTreeMap<String, String>>, key: &str) -> bool {
    annotations.is_some_and(|all| all.contains_key(key))
}

fn warn(reason: &'static str, message: String) -> Said {
    Said {
        warning: true,
        reason,
        message,
    }
}

fn tell(reason: &'static str, message: String) -> Said {
    Said {
        warning: false,
        reason,
        message,
    }
}

/// Decides about a claim.
pub(super) fn plan_claim(input: &ClaimInput<'_>) -> ClaimStep {
    let claim = input.claim;
    let spec = claim.spec.as_ref();
    let named = spec.and_then(|spec| spec.volume_name.as_deref());
    if let Some(name) = named.filter(|name| !name.is_empty()) {
        return plan_named(input, name);
    }
    let class = spec.and_then(|spec| spec.storage_class_name.as_ref());
    if class.is_none()
        && let Some(default) = &input.default_class
    {
        return ClaimStep::UseClass(default.clone());
    }
    let waits = input
        .class
        .as_ref()
        .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let reserved = input.volumes.iter().any(|volume| is_for(volume, claim));
    if waits && input.node.is_none() && annotation(&claim.metadata, SELECTED_NODE).is_some() {
        return ClaimStep::ChooseAnew;
    }
    if waits && input.node.is_none() && !reserved {
        let message = "waiting for first consumer to be created before binding".to_owned();
        return ClaimStep::Wait(Some(tell("WaitForFirstConsumer", message)));
    }
    if let Some(volume) = best(claim, input.volumes, input.node.as_deref()) {
        return ClaimStep::Bind(volume);
    }
    plan_new(input, class_of(class))
}

/// No volume fits: one has to be made.
fn plan_new(input: &ClaimInput<'_>, class_name: &str) -> ClaimStep {
    if class_name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return ClaimStep::Wait(Some(tell("FailedBinding", message.to_owned())));
    }
    let Some(class) = &input.class else {
        let message = format!("storageclass.storage.k8s.io \"{class_name}\" not found");
        return ClaimStep::Wait(Some(warn("ProvisioningFailed", message)));
    };
    match class.provisioner.as_str() {
        "kubernetes.io/no-provisioner" => {
            let message = "no volume plugin matched name: kubernetes.io/no-provisioner";
            ClaimStep::Wait(Some(warn("ProvisioningFailed", message.to_owned())))
        }
        local_path::PROVISIONER => match &input.node {
            Some(node) => ClaimStep::Provision(node.clone()),
            None => {
                let message = "waiting for a Pod: a folder is made on the node of its first user";
                ClaimStep::Wait(Some(tell("WaitForFirstConsumer", message.to_owned())))
            }
        },
        other => {
            let annotations = input.claim.metadata.annotations.as_ref();
            let asked = annotations.and_then(|all| all.get(PROVISIONER));
            if asked.is_some_and(|asked| asked == other) {
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{other}' or manually by the system administrator. \
                     If volume creation is delayed, please verify that the provisioner is running and correctly registered."
                );
                ClaimStep::Wait(Some(tell("ExternalProvisioning", message)))
            } else {
                ClaimStep::AskProvisioner(other.to_owned())
            }
        }
    }
}

/// The claim names a volume: it was bound before, or its user chose one.
fn plan_named(input: &ClaimInput<'_>, name: &str) -> ClaimStep {
    let claim = input.claim;
    let bound = has(claim.metadata.annotations.as_ref(), BIND_COMPLETED);
    let is_it = |volume: &&Arc<PersistentVolume>| volume.metadata.name.as_deref() == Some(name);
    let Some(volume) = input.volumes.iter().find(is_it) else {
        return if bound {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            ClaimStep::Lost(warn("ClaimLost", message.to_owned()))
        } else {
            ClaimStep::Wait(None)
        };
    };
    let free = volume
        .spec
        .as_ref()
        .is_some_and(|spec| spec.claim_ref.is_none());
    match (free, is_for(volume, claim), bound) {
        (_, true, _) => ClaimStep::Bind(volume.clone()),
        (true, _, true) => ClaimStep::Bind(volume.clone()),
        (true, _, false) if fits(volume, claim) => ClaimStep::Bind(volume.clone()),
        (true, _, false) => {
            let message =
                format!("Cannot bind to requested volume \"{name}\": it does not fit the claim");
            ClaimStep::Wait(Some(warn("VolumeMismatch", message)))
        }
        (false, false, false) => {
            let message = format!("volume \"{name}\" already bound to a different claim.");
            ClaimStep::Wait(Some(warn("FailedBinding", message)))
        }
        (false, false, true) => {
            let message =
                "Two claims are bound to the same volume, this one is bound incorrectly".to_owned();
            ClaimStep::Lost(warn("ClaimMisbound", message))
        }
    }
}

/// The next step for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// Its phase is to be this.
    Phase(&'static str),
    /// Nothing.
    Leave,
    /// The claim went elsewhere: free it again.
    Unbind,
    /// Its claim is gone and its policy says that it goes too; ours to do.
    Delete,
    /// The same, but nobody here can.
    CannotDelete(String),
}

/// Decides about a volume; `claim` is the one that its reference names, if there is one of that name.
pub(super) fn plan_volume(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
) -> VolumeStep {
    let spec = volume.spec.as_ref();
    let Some(reference) = spec.and_then(|spec| spec.claim_ref.as_ref()) else {
        return VolumeStep::Phase("Available");
    };
    let Some(uid) = reference.uid.as_ref().filter(|uid| !uid.is_empty()) else {
        return VolumeStep::Phase("Available");
    };
    let annotations = volume.metadata.annotations.as_ref();
    if let Some(claim) = claim.filter(|claim| claim.metadata.uid.as_ref() == Some(uid)) {
        let bound_to = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref());
        return match bound_to.filter(|name| !name.is_empty()) {
            Some(name) if Some(name) == volume.metadata.name.as_deref() => {
                VolumeStep::Phase("Bound")
            }
            // The claim's own look binds it.
            None => VolumeStep::Leave,
            Some(_) if has(annotations, BOUND_BY_CONTROLLER) => VolumeStep::Unbind,
            Some(_) => release(volume),
        };
    }
    release(volume)
}

fn release(volume: &PersistentVolume) -> VolumeStep {
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let provisioned = has(
        volume.metadata.annotations.as_ref(),
        local_path::PROVISIONED_BY,
    );
    match policy {
        Some("Delete") if local_path::is_ours(volume) => VolumeStep::Delete,
        // Its external provisioner sees that it is released, and deletes it.
        Some("Delete") if provisioned => VolumeStep::Phase("Released"),
        Some("Delete") => VolumeStep::CannotDelete(
            "nobody made this volume, so nobody can delete what it holds".to_owned(),
        ),
        Some("Recycle") => {
            VolumeStep::CannotDelete("recycling of volumes is not supported".to_owned())
        }
        _ => VolumeStep::Phase("Released"),
    }
}
