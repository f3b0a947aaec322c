//! What a driver is told about a volume, from the API's objects. Pure.

use super::calls::Driver;
use super::proto::VolumeCapability;
use super::proto::volume_capability::access_mode::Mode;
use super::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod, SecretReference, Volume};
use k8s_openapi::api::storage::v1::CSIDriver;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A volume of a driver, as a Pod or a persistent volume describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(super) driver: String,
    pub(super) handle: String,
    /// The name of its folder: that of the persistent volume, or of the Pod's volume.
    pub(super) name: String,
    pub(super) fs_type: String,
    pub(super) mount_flags: Vec<String>,
    pub(super) access_mode: String,
    pub(crate) read_only: bool,
    pub(super) context: BTreeMap<String, String>,
    pub(super) stage_secret: Option<SecretReference>,
    pub(super) publish_secret: Option<SecretReference>,
    pub(super) expand_secret: Option<SecretReference>,
    /// It lives and dies with the Pod.
    pub(super) is_ephemeral: bool,
    /// Containers get the device itself, not files.
    pub(crate) is_block: bool,
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// The folder of a staged volume: drivers' handles hold anything.
pub(super) fn stage_name(handle: &str) -> String {
    hex(&Sha256::digest(handle))
}

impl Wanted {
    /// A volume that a Pod describes itself.
    pub(crate) fn of_pod(pod: &Pod, volume: &Volume, source: &CSIVolumeSource) -> Self {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone();
        let handle = hex(&Sha256::digest(format!("{uid}{}", volume.name)));
        Self {
            driver: source.driver.clone(),
            handle: format!("csi-{handle}"),
            name: volume.name.clone(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_flags: Vec::new(),
            access_mode: "ReadWriteOnce".to_owned(),
            read_only: source.read_only.unwrap_or(false),
            context: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: None,
            publish_secret: source
                .node_publish_secret_ref
                .as_ref()
                .map(|secret| SecretReference {
                    name: Some(secret.name.clone()),
                    namespace,
                }),
            expand_secret: None,
            is_ephemeral: true,
            is_block: false,
        }
    }

    /// A persistent volume; `None`: it is of another kind.
    pub(crate) fn of_volume(volume: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        let name = volume.metadata.name.clone().unwrap_or_default();
        Some(Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            name,
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_flags: spec.mount_options.clone().unwrap_or_default(),
            access_mode: spec
                .access_modes
                .as_ref()
                .and_then(|modes| modes.first().cloned())
                .unwrap_or_default(),
            read_only: read_only || source.read_only.unwrap_or(false),
            context: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: source.node_stage_secret_ref.clone(),
            publish_secret: source.node_publish_secret_ref.clone(),
            expand_secret: source.node_expand_secret_ref.clone(),
            is_ephemeral: false,
            is_block: spec.volume_mode.as_deref() == Some("Block"),
        })
    }

    /// How the volume is used. `group`: the Pod's group, for a driver that sees to it itself.
    pub(super) fn capability(&self, driver: &Driver, group: Option<u32>) -> VolumeCapability {
        let group = group.filter(|_| driver.mounts_for_group);
        let mount = MountVolume {
            fs_type: self.fs_type.clone(),
            mount_flags: self.mount_flags.clone(),
            volume_mount_group: group.map_or_else(String::new, |group| group.to_string()),
        };
        let mode = match (self.access_mode.as_str(), driver.tells_writers) {
            ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
            ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
            ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
            (_, true) => Mode::SingleNodeMultiWriter,
            (_, false) => Mode::SingleNodeWriter,
        };
        let access = if self.is_block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(mount)
        };
        VolumeCapability {
            access_type: Some(access),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    /// What the driver learns beside the volume's own attributes: the Pod, if it wants to know.
    pub(super) fn publish_context(
        &self,
        pod: &Pod,
        known: Option<&CSIDriver>,
    ) -> BTreeMap<String, String> {
        let mut context = self.context.clone();
        let wants = known.and_then(|driver| driver.spec.pod_info_on_mount);
        if wants.unwrap_or(false) {
            let meta = &pod.metadata;
            let account = crate::pod::containers::spec(pod)
                .service_account_name
                .clone();
            let facts = [
                ("pod.name", meta.name.clone()),
                ("pod.namespace", meta.namespace.clone()),
                ("pod.uid", meta.uid.clone()),
                ("serviceAccount.name", account),
                ("ephemeral", Some(self.is_ephemeral.to_string())),
            ];
            for (key, value) in facts {
                let key = format!("csi.storage.k8s.io/{key}");
                context.insert(key, value.unwrap_or_default());
            }
        }
        context
    }

    /// Why the driver may not be used like this.
    pub(super) fn refusal(&self, known: Option<&CSIDriver>) -> Option<String> {
        let modes = known.and_then(|driver| driver.spec.volume_lifecycle_modes.as_ref());
        let mode = if self.is_ephemeral {
            "Ephemeral"
        } else {
            "Persistent"
        };
        // A driver that says nothing, or is not known, offers persistent volumes.
        let offers = modes
            .filter(|modes| !modes.is_empty())
            .map_or(!self.is_ephemeral, |modes| {
                modes.iter().any(|one| one == mode)
            });
        (!offers).then(|| {
            format!(
                "volume mode \"{mode}\" not supported by driver {} (no CSIDriver object says so)",
                self.driver
            )
        })
    }

    /// Whether the kubelet gives the files to the Pod's group.
    pub(super) fn is_given_to_group(&self, driver: &Driver, known: Option<&CSIDriver>) -> bool {
        if driver.mounts_for_group || self.is_block {
            return false;
        }
        match known.and_then(|driver| driver.spec.fs_group_policy.as_deref()) {
            Some("None") => false,
            Some("File") => true,
            _ => {
                !self.fs_type.is_empty()
                    && matches!(
                        self.access_mode.as_str(),
                        "ReadWriteOnce" | "ReadWriteOncePod"
                    )
            }
        }
    }
}

/// The audiences and lives of the tokens that a driver wants of each Pod.
pub(super) fn tokens_for(known: Option<&CSIDriver>) -> Vec<(String, Option<i64>)> {
    let asked = known.and_then(|driver| driver.spec.token_requests.as_ref());
    let asked = asked.into_iter().flatten();
    asked
        .map(|one| (one.audience.clone(), one.expiration_seconds))
        .collect()
}

/// Whether a volume of the driver has to be attached to the node first; drivers that are not known need it, as upstream.
pub(super) fn needs_attachment(wanted: &Wanted, known: Option<&CSIDriver>) -> bool {
    !wanted.is_ephemeral && known.is_none_or(|driver| driver.spec.attach_required.unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::path::PathBuf;

    fn volume(spec: Value) -> Wanted {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap();
        Wanted::of_volume(&volume, false).unwrap()
    }

    fn driver(tells_writers: bool, mounts_for_group: bool) -> Driver {
        Driver {
            endpoint: PathBuf::new(),
            stages: true,
            tells_writers,
            mounts_for_group,
            expands: false,
        }
    }

    fn known(spec: Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    #[test]
    fn access_modes_table() {
        let cases = [
            ("ReadWriteOnce", false, Mode::SingleNodeWriter),
            ("ReadWriteOnce", true, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", true, Mode::SingleNodeSingleWriter),
            ("ReadWriteOncePod", false, Mode::SingleNodeWriter),
            ("ReadOnlyMany", false, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", true, Mode::MultiNodeMultiWriter),
        ];
        for (mode, tells_writers, expected) in cases {
            let wanted =
                volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}, "accessModes": [mode]}));
            let capability = wanted.capability(&driver(tells_writers, false), None);
            assert_eq!(capability.access_mode.unwrap().mode(), expected, "{mode}");
        }
    }

    #[test]
    fn a_block_volume_is_asked_for_as_such() {
        let wanted =
            volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}, "volumeMode": "Block"}));
        let capability = wanted.capability(&driver(false, false), None);
        assert!(matches!(
            capability.access_type,
            Some(AccessType::Block(BlockVolume {}))
        ));
        let file = known(json!({"fsGroupPolicy": "File"}));
        assert!(!wanted.is_given_to_group(&driver(false, false), Some(&file)));
    }

    #[test]
    fn a_drivers_object_says_what_it_wants() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "serviceAccountName": "sa"}}),
        )
        .unwrap();
        let wanted = volume(
            json!({"csi": {"driver": "d", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"a": "b"}},
                "accessModes": ["ReadWriteOnce"]}),
        );
        assert_eq!(wanted.publish_context(&pod, None).len(), 1);
        let told = wanted.publish_context(&pod, Some(&known(json!({"podInfoOnMount": true}))));
        assert_eq!(told["csi.storage.k8s.io/serviceAccount.name"], "sa");
        assert_eq!(told["csi.storage.k8s.io/ephemeral"], "false");
        assert!(needs_attachment(&wanted, None));
        let detached = known(json!({"attachRequired": false}));
        assert!(!needs_attachment(&wanted, Some(&detached)));
        assert!(wanted.is_given_to_group(&driver(false, false), None));
        assert!(!wanted.is_given_to_group(&driver(false, true), None));
        let never = known(json!({"fsGroupPolicy": "None"}));
        assert!(!wanted.is_given_to_group(&driver(false, false), Some(&never)));
    }

    #[test]
    fn a_volume_of_a_pods_own_needs_a_driver_that_offers_such() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "u", "namespace": "n"}})).unwrap();
        let of: Volume = serde_json::from_value(
            json!({"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}}),
        )
        .unwrap();
        let wanted = Wanted::of_pod(&pod, &of, of.csi.as_ref().unwrap());
        assert!(wanted.handle.starts_with("csi-") && wanted.handle.len() == 68);
        let secret = wanted.publish_secret.clone().unwrap();
        assert_eq!(secret.namespace.as_deref(), Some("n"));
        assert!(wanted.refusal(None).is_some());
        let offers = known(json!({"volumeLifecycleModes": ["Ephemeral"]}));
        assert_eq!(wanted.refusal(Some(&offers)), None);
        assert!(!needs_attachment(&wanted, None));
    }
}
