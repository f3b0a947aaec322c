//! Volumes that have to be attached before they are mounted: the controller attaches and names them in the Node, the node names
//! those in use, and nothing is detached that it names.

use super::Csi;
use super::mount::{KIND, Note};
use super::plan::{Wanted, needs_attachment};
use crate::volumes::answers::Answers;
use cox_client::attachments;
use k8s_openapi::api::core::v1::{NodeStatus, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::watch;

/// How long one attempt waits for the Node to change; the next attempt comes by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an attacher tells the node.
#[derive(Debug, Default)]
pub(super) struct Attached {
    pub(super) told: HashMap<String, String>,
    /// The API server did not answer: this was told before.
    is_kept: bool,
}

impl Csi {
    /// What the attacher tells the node, once the volume is attached where that is needed.
    pub(super) async fn attached(
        &self,
        answers: &Answers,
        pod: &Pod,
        wanted: &Wanted,
        known: Option<&CSIDriver>,
    ) -> Result<Attached, String> {
        if !needs_attachment(wanted, known) {
            return Ok(Attached::default());
        }
        if let Some(attached) = self.attachment(answers, pod, wanted).await? {
            return Ok(attached);
        }
        let name = attachments::in_status(&wanted.handle, &wanted.driver);
        let is_named = |status: &NodeStatus| {
            let attached = status.volumes_attached.iter().flatten();
            attached.map(|one| &one.name).any(|one| *one == name)
        };
        self.node_says(is_named).await;
        self.attachment(answers, pod, wanted).await?.ok_or_else(|| {
            format!(
                "volume {} is not attached to the node yet: timed out waiting for external-attacher of {} CSI driver to attach volume {} (or its CSIDriver says attachRequired: false)",
                wanted.name, wanted.driver, wanted.handle
            )
        })
    }

    /// What the attachment of a volume to this node says, if it is attached.
    async fn attachment(
        &self,
        answers: &Answers,
        pod: &Pod,
        wanted: &Wanted,
    ) -> Result<Option<Attached>, String> {
        let name = attachments::name(&wanted.handle, &wanted.driver, &self.node);
        let api: Api<VolumeAttachment> = Api::all(answers.client.clone());
        let (found, is_kept) = match answers.get(pod, &api, &name).await {
            Ok(answer) => (answer.object, answer.is_kept),
            // What does not exist cannot be shown to belong to this node.
            Err(error) if cox_client::has_code(&error, 403) => {
                answers.forget_one(pod, &api, &name);
                (None, false)
            }
            Err(error) => return Err(format!("volume attachment {name} cannot be read: {error}")),
        };
        let Some(found) = found.filter(|found| found.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let Some(status) = found.status else {
            return Ok(None);
        };
        match status.attach_error.filter(|_| !status.attached) {
            Some(error) => Err(format!(
                "volume {} cannot be attached: {}",
                wanted.name,
                error.message.unwrap_or_default()
            )),
            None => Ok(status.attached.then(|| {
                let told = status.attachment_metadata.unwrap_or_default();
                let told = told.into_iter().collect();
                Attached { told, is_kept }
            })),
        }
    }

    /// Waits until the Node's status is as wished, or for a while.
    async fn node_says(&self, is: impl Fn(&NodeStatus) -> bool) -> bool {
        let mut changes = self.node_object.subscribe();
        let says = || {
            let node = self.node_object.get(None, &self.node);
            node.and_then(|node| node.status.clone())
                .is_some_and(|status| is(&status))
        };
        let seen = async {
            while !says() {
                if changes.next().await.is_none() {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.is_ok() && says()
    }

    /// Names a volume as in use before it is mounted, and waits until the Node shows it: from then on nobody detaches it.
    ///
    /// Without an API server nobody waits: what is known of the attachment then is of a time when the Node showed it, and the
    /// Node shows it still, since only this kubelet could have taken it back.
    pub(super) async fn claim_use(
        &self,
        answers: &Answers,
        pod: &Pod,
        wanted: &Wanted,
        attached: &Attached,
    ) -> Result<(), String> {
        let name = attachments::in_status(&wanted.handle, &wanted.driver);
        self.see_what_is_in_use();
        if attached.is_kept {
            return Ok(());
        }
        let is_named = |status: &NodeStatus| {
            status
                .volumes_in_use
                .iter()
                .flatten()
                .any(|one| *one == name)
        };
        if self.node_says(is_named).await {
            Ok(())
        } else {
            let api: Api<VolumeAttachment> = Api::all(answers.client.clone());
            let attachment = attachments::name(&wanted.handle, &wanted.driver, &self.node);
            answers.forget_one(pod, &api, &attachment);
            Err(format!(
                "volume {} is not named in the Node as in use yet",
                wanted.name
            ))
        }
    }

    /// Looks at what is written down beside the mounts.
    pub(super) fn see_what_is_in_use(&self) {
        let pods = std::fs::read_dir(&self.pods)
            .into_iter()
            .flatten()
            .flatten();
        let in_use: BTreeSet<String> = pods
            .filter_map(|pod| std::fs::read_dir(pod.path().join("volumes").join(KIND)).ok())
            .flat_map(|volumes| volumes.flatten())
            .filter_map(|volume| Note::read(&volume.path()))
            .filter(|note| note.is_attached)
            .map(|note| attachments::in_status(&note.handle, &note.driver))
            .collect();
        self.in_use.send_if_modified(|known| {
            let differs = *known != in_use;
            *known = in_use;
            differs
        });
    }

    /// Which attached volumes are in use, for the Node's status.
    pub(crate) fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.in_use.subscribe()
    }
}
