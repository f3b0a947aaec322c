//! Volumes that have to be attached before they are mounted: the controller attaches and names them in the Node, the node names
//! those in use, and nothing is detached that it names.

use super::Csi;
use super::mount::{KIND, Note};
use super::plan::{Wanted, needs_attachment};
use cox_client::attachments;
use k8s_openapi::api::core::v1::NodeStatus;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::watch;

/// How long one attempt waits for the Node to change; the next attempt comes by itself.
const PATIENCE: Duration = Duration::from_secs(10);

impl Csi {
    /// What the attacher tells the node, once the volume is attached where that is needed.
    pub(super) async fn attached(
        &self,
        client: &kube::Client,
        wanted: &Wanted,
        known: Option<&CSIDriver>,
    ) -> Result<HashMap<String, String>, String> {
        if !needs_attachment(wanted, known) {
            return Ok(HashMap::new());
        }
        if let Some(told) = self.attachment(client, wanted).await? {
            return Ok(told);
        }
        let name = attachments::in_status(&wanted.handle, &wanted.driver);
        let is_named = |status: &NodeStatus| {
            let attached = status.volumes_attached.iter().flatten();
            attached.map(|one| &one.name).any(|one| *one == name)
        };
        self.node_says(is_named).await;
        self.attachment(client, wanted).await?.ok_or_else(|| {
            format!(
                "volume {} is not attached to the node yet: timed out waiting for external-attacher of {} CSI driver to attach volume {} (or its CSIDriver says attachRequired: false)",
                wanted.name, wanted.driver, wanted.handle
            )
        })
    }

    /// What the attachment of a volume to this node says, if it is attached.
    async fn attachment(
        &self,
        client: &kube::Client,
        wanted: &Wanted,
    ) -> Result<Option<HashMap<String, String>>, String> {
        let name = attachments::name(&wanted.handle, &wanted.driver, &self.node);
        let api: Api<VolumeAttachment> = Api::all(client.clone());
        let found = match api.get_opt(&name).await {
            Ok(found) => found,
            // What does not exist cannot be shown to belong to this node.
            Err(error) if cox_client::has_code(&error, 403) => None,
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
                told.into_iter().collect()
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
    pub(super) async fn claim_use(&self, wanted: &Wanted) -> Result<(), String> {
        let name = attachments::in_status(&wanted.handle, &wanted.driver);
        self.see_what_is_in_use();
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
