//! Brings a driver's volume into a Pod's folder: staged once per node, published per Pod; and takes it out again.
//!
//! Beside each mount lies `vol_data.json`, as upstream writes it: whoever takes the Pod away needs neither its object nor the
//! API server, and a kubelet that starts anew knows what its predecessor mounted.

use super::Csi;
use super::calls::{Driver, text};
use super::plan::{Wanted, needs_attachment, stage_name, tokens_for};
use super::proto::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use crate::files;
use crate::volumes::answers::Answers;
use crate::volumes::tokens::Tokens;
use cox_client::attachments;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Secret, SecretReference, ServiceAccountTokenProjection};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::Api;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

pub(super) const KIND: &str = "kubernetes.io~csi";
const NOTE: &str = "vol_data.json";

/// A volume that stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    /// The kubelet gives its files to the Pod's group.
    pub(crate) for_group: bool,
    /// When the driver wants to be asked again.
    pub(crate) again: Option<Timestamp>,
}

/// For whom a volume is mounted, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Occasion<'a> {
    pub(crate) answers: &'a Answers,
    pub(crate) pod: &'a Pod,
    /// The Pod's fsGroup.
    pub(crate) group: Option<u32>,
    pub(crate) tokens: &'a Tokens,
    pub(crate) now: Timestamp,
}

/// How often a driver that wants it is asked to publish a volume again.
const REPUBLISH: SignedDuration = SignedDuration::from_secs(60);

/// What was written down of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) driver: String,
    pub(super) handle: String,
    is_ephemeral: bool,
    /// It was attached to the node for this.
    pub(super) is_attached: bool,
}

impl Note {
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read(folder.join(NOTE)).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        Some(Self {
            driver: value["driverName"].as_str()?.to_owned(),
            handle: value["volumeHandle"].as_str()?.to_owned(),
            is_ephemeral: value["volumeLifecycleMode"] == "Ephemeral",
            is_attached: value["attached"] == true,
        })
    }
}

impl Csi {
    fn volumes_of(&self, uid: &str) -> PathBuf {
        self.pods.join(uid).join("volumes").join(KIND)
    }

    pub(super) fn stage_of(&self, driver: &str, handle: &str) -> PathBuf {
        let folder = self.staging.join(driver).join(stage_name(handle));
        folder.join("globalmount")
    }

    /// Mounts a volume for a Pod; doing it twice changes nothing.
    pub(crate) async fn mount(
        &self,
        occasion: Occasion<'_>,
        wanted: &Wanted,
    ) -> Result<Mounted, String> {
        let Occasion {
            answers,
            pod,
            group,
            ..
        } = occasion;
        let driver = self.driver(&wanted.driver)?;
        let drivers: Api<CSIDriver> = Api::all(answers.client.clone());
        let known = answers.get(pod, &drivers, &wanted.driver).await;
        let known = known
            .map_err(|error| format!("CSIDriver {} cannot be read: {error}", wanted.driver))?;
        let known = known.object.as_ref();
        if let Some(refusal) = wanted.refusal(known) {
            return Err(refusal);
        }
        let attached = self.attached(answers, pod, wanted, known).await?;
        let is_attached = needs_attachment(wanted, known);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let folder = self.volumes_of(uid).join(&wanted.name);
        let target = folder.join("mount");
        self.note(&folder, wanted, is_attached)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        if is_attached {
            self.claim_use(answers, pod, wanted, &attached).await?;
        }
        let attached = attached.told;
        let mut staged = PathBuf::new();
        if driver.stages && !wanted.is_ephemeral {
            staged = self.stage_of(&wanted.driver, &wanted.handle);
            let secrets = secret(answers, pod, wanted.stage_secret.as_ref()).await?;
            self.stage(&driver, wanted, &staged, &attached, secrets, group)
                .await?;
        }
        let mut context = wanted.publish_context(pod, known);
        let mut again = self.tokens(occasion, known, &mut context).await?;
        if known.and_then(|driver| driver.spec.requires_republish) == Some(true) {
            let next = occasion.now.saturating_add(REPUBLISH);
            let next = next.unwrap_or(Timestamp::MAX);
            again = Some(again.map_or(next, |again| again.min(next)));
        }
        let request = NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: attached,
            staging_target_path: staged.to_string_lossy().into_owned(),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(wanted.capability(&driver, group)),
            readonly: wanted.read_only,
            secrets: secret(answers, pod, wanted.publish_secret.as_ref()).await?,
            volume_context: context.into_iter().collect(),
        };
        driver
            .node()
            .node_publish_volume(request)
            .await
            .map_err(text)?;
        Ok(Mounted {
            path: target,
            for_group: wanted.is_given_to_group(&driver, known) && !wanted.read_only,
            again,
        })
    }

    /// The tokens that the driver wants of the Pod, told with the volume's attributes; answers when they are renewed.
    async fn tokens(
        &self,
        occasion: Occasion<'_>,
        known: Option<&CSIDriver>,
        context: &mut std::collections::BTreeMap<String, String>,
    ) -> Result<Option<Timestamp>, String> {
        let mut told = serde_json::Map::new();
        let mut renew_at: Option<Timestamp> = None;
        for (audience, life_secs) in tokens_for(known) {
            let asked = ServiceAccountTokenProjection {
                audience: Some(audience.clone()).filter(|audience| !audience.is_empty()),
                expiration_seconds: life_secs,
                path: String::new(),
            };
            let token = occasion.tokens.token(occasion.pod, &asked).await?;
            renew_at = Some(renew_at.map_or(token.renew_at, |at| at.min(token.renew_at)));
            let expires = token.expires_at.to_string();
            told.insert(
                audience,
                json!({ "token": token.text, "expirationTimestamp": expires }),
            );
        }
        if !told.is_empty() {
            let key = "csi.storage.k8s.io/serviceAccount.tokens".to_owned();
            context.insert(key, Value::Object(told).to_string());
        }
        // Only a driver that is asked again can hear of new ones.
        let republished = known.and_then(|driver| driver.spec.requires_republish) == Some(true);
        Ok(renew_at.filter(|_| republished))
    }

    async fn stage(
        &self,
        driver: &Driver,
        wanted: &Wanted,
        staged: &Path,
        attached: &HashMap<String, String>,
        secrets: HashMap<String, String>,
        group: Option<u32>,
    ) -> Result<(), String> {
        let _one = self.one_at_a_time.lock().await;
        std::fs::create_dir_all(staged)
            .map_err(|error| format!("{}: {error}", staged.display()))?;
        let request = NodeStageVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: attached.clone(),
            staging_target_path: staged.to_string_lossy().into_owned(),
            volume_capability: Some(wanted.capability(driver, group)),
            secrets,
            volume_context: wanted.context.clone().into_iter().collect(),
        };
        let staged = driver.node().node_stage_volume(request).await;
        staged.map(drop).map_err(text)
    }

    /// Makes the folder of a volume and writes down what will be in it, before anything is.
    fn note(&self, folder: &Path, wanted: &Wanted, is_attached: bool) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mode = if wanted.is_ephemeral {
            "Ephemeral"
        } else {
            "Persistent"
        };
        let note = json!({
            "specVolID": wanted.name, "volumeHandle": wanted.handle, "driverName": wanted.driver,
            "nodeName": self.node, "attachmentID": attachments::name(&wanted.handle, &wanted.driver, &self.node),
            "volumeLifecycleMode": mode, "attached": is_attached,
        });
        let (note, file) = (note.to_string(), folder.join(NOTE));
        // Drivers that want to be asked again and again must not wear the disk.
        if std::fs::read_to_string(&file).is_ok_and(|known| known == note) {
            return Ok(());
        }
        self.writes.note();
        files::replace(&file, note)
    }

    /// Takes all volumes of drivers out of a Pod's folder. What is still in use elsewhere stays staged.
    pub(crate) async fn unmount(&self, uid: &str) -> io::Result<()> {
        let folder = self.volumes_of(uid);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries.filter_map(Result::ok) {
            let folder = entry.path();
            let Some(note) = Note::read(&folder) else {
                continue;
            };
            self.unmount_one(&folder, &note)
                .await
                .map_err(|error| io::Error::other(format!("{}: {error}", folder.display())))?;
            self.see_what_is_in_use();
        }
        Ok(())
    }

    async fn unmount_one(&self, folder: &Path, note: &Note) -> Result<(), String> {
        let driver = self.driver(&note.driver)?;
        let request = NodeUnpublishVolumeRequest {
            volume_id: note.handle.clone(),
            target_path: folder.join("mount").to_string_lossy().into_owned(),
        };
        let done = driver.node().node_unpublish_volume(request).await;
        done.map_err(text)?;
        // The note goes first: from then on nobody takes this Pod for a user of the staged volume.
        let _one = self.one_at_a_time.lock().await;
        let gone = |error: io::Error| error.to_string();
        std::fs::remove_file(folder.join(NOTE)).map_err(gone)?;
        let target = folder.join("mount");
        let removed = match target.symlink_metadata() {
            Ok(found) if found.is_dir() => std::fs::remove_dir(&target),
            Ok(_) => std::fs::remove_file(&target),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(gone(error)),
            _ => {}
        }
        if !driver.stages || note.is_ephemeral || self.is_used(note) {
            return Ok(());
        }
        let staged = self.stage_of(&note.driver, &note.handle);
        if !staged.exists() {
            return Ok(());
        }
        let request = NodeUnstageVolumeRequest {
            volume_id: note.handle.clone(),
            staging_target_path: staged.to_string_lossy().into_owned(),
        };
        let done = driver.node().node_unstage_volume(request).await;
        if let Err(status) = done {
            // So that the next attempt comes here again.
            let wanted = json!({ "volumeHandle": note.handle, "driverName": note.driver, "attached": note.is_attached });
            std::fs::write(folder.join(NOTE), wanted.to_string()).map_err(gone)?;
            return Err(text(status));
        }
        for dir in [Some(staged.as_path()), staged.parent()]
            .into_iter()
            .flatten()
        {
            if let Err(error) = std::fs::remove_dir(dir) {
                tracing::debug!(dir = %dir.display(), %error, "Folder of a staged volume stays");
            }
        }
        Ok(())
    }

    /// Whether any Pod of the node has the volume mounted.
    fn is_used(&self, note: &Note) -> bool {
        let pods = std::fs::read_dir(&self.pods)
            .into_iter()
            .flatten()
            .flatten();
        pods.filter_map(|pod| std::fs::read_dir(pod.path().join("volumes").join(KIND)).ok())
            .flat_map(|volumes| volumes.flatten())
            .filter_map(|volume| Note::read(&volume.path()))
            .any(|other| (&other.driver, &other.handle) == (&note.driver, &note.handle))
    }
}

pub(super) async fn secret(
    answers: &Answers,
    pod: &Pod,
    reference: Option<&SecretReference>,
) -> Result<HashMap<String, String>, String> {
    let Some(reference) = reference else {
        return Ok(HashMap::new());
    };
    let name = reference.name.as_deref().unwrap_or_default();
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    let failed = |why: String| {
        format!("failed to find the secret {name} in the namespace {namespace} with error: {why}")
    };
    let api: Api<Secret> = Api::namespaced(answers.client.clone(), namespace);
    let found = answers.get(pod, &api, name).await;
    let found = found.map_err(|error| failed(error.to_string()))?.object;
    let found = found.ok_or_else(|| failed(format!("secrets \"{name}\" not found")))?;
    let data = found.data.unwrap_or_default().into_iter();
    Ok(data
        .map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()))
        .collect())
}
