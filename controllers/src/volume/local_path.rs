//! The built-in provisioner: a volume is a folder on the disk of the node that its first Pod was put on. What it makes is an
//! ordinary hostPath volume with a node affinity; the folder itself is made and removed by the node's kubelet. Pure.

use std::collections::BTreeMap;

use cox_client::volumes::reference;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ObjectMeta;

/// The provisioner's name, as classes give it.
pub(super) const PROVISIONER: &str = "coxswain.dev/local-path";
/// Annotation of nodes: the folder in which their kubelet keeps volumes.
const FOLDER: &str = "coxswain.dev/local-path-dir";
/// Annotation of volumes: who made them.
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The volume for a claim on a node; an error says why the node cannot hold it.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
) -> Result<PersistentVolume, String> {
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let annotations = node.metadata.annotations.as_ref();
    let folder = annotations
        .and_then(|annotations| annotations.get(FOLDER))
        .ok_or_else(|| format!("node {node_name} keeps no volumes of its own"))?;
    let labels = node.metadata.labels.as_ref();
    let hostname = labels
        .and_then(|labels| labels.get(HOSTNAME))
        .ok_or_else(|| format!("node {node_name} has no label {HOSTNAME}"))?;
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes cannot be folders".to_owned());
    }
    let modes = spec.access_modes.unwrap_or_default();
    if modes
        .iter()
        .any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
    {
        return Err("a folder of one node is for ReadWriteOnce and ReadWriteOncePod".to_owned());
    }
    let meta = &claim.metadata;
    let name = format!("pvc-{}", meta.uid.as_deref().unwrap_or_default());
    let capacity = spec.resources.and_then(|resources| resources.requests);
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(BTreeMap::from([(
                PROVISIONED_BY.to_owned(),
                PROVISIONER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(modes),
            capacity,
            claim_ref: Some(reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: format!("{folder}/{name}"),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(on_node(hostname)),
            persistent_volume_reclaim_policy: class
                .reclaim_policy
                .clone()
                .or_else(|| Some("Delete".to_owned())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

/// Whether a node can keep any volume; if it cannot, another one has to be chosen.
pub(super) fn can_keep_volumes(node: &Node) -> bool {
    let has =
        |all: Option<&BTreeMap<String, String>>, key| all.is_some_and(|all| all.contains_key(key));
    has(node.metadata.annotations.as_ref(), FOLDER) && has(node.metadata.labels.as_ref(), HOSTNAME)
}

fn on_node(hostname: &str) -> VolumeNodeAffinity {
    let requirement = NodeSelectorRequirement {
        key: HOSTNAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![hostname.to_owned()]),
    };
    VolumeNodeAffinity {
        required: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_expressions: Some(vec![requirement]),
                match_fields: None,
            }],
        }),
    }
}

/// The node that a volume of ours is on.
pub(super) fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    let term = affinity.required.as_ref()?.node_selector_terms.first()?;
    let one = term
        .match_expressions
        .as_ref()?
        .iter()
        .find(|one| one.key == HOSTNAME)?;
    one.values.as_ref()?.first().map(String::as_str)
}

/// Whether a volume was made here.
pub(super) fn is_ours(volume: &PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(PROVISIONED_BY))
        .is_some_and(|by| by == PROVISIONER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_is_a_folder_on_one_node() {
        let class = StorageClass {
            metadata: ObjectMeta {
                name: Some("local-path".into()),
                ..ObjectMeta::default()
            },
            ..StorageClass::default()
        };
        let node = |annotations: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {HOSTNAME: "h"}, "annotations": annotations}}))
                .unwrap()
        };
        let claim = |mode: &str| -> PersistentVolumeClaim {
            serde_json::from_value(
                json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"},
                "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}}),
            )
            .unwrap()
        };
        let made = volume(
            &claim("ReadWriteOnce"),
            &class,
            &node(json!({FOLDER: "/d"})),
        )
        .unwrap();
        assert_eq!(node_of(&made), Some("h"));
        assert!(is_ours(&made));
        let spec = made.spec.unwrap();
        assert_eq!(spec.host_path.unwrap().path, "/d/pvc-u");
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
        assert_eq!(
            spec.persistent_volume_reclaim_policy.as_deref(),
            Some("Delete")
        );
        let refused = |claim, node| volume(&claim, &class, &node).unwrap_err();
        assert!(refused(claim("ReadWriteMany"), node(json!({FOLDER: "/d"}))).contains("one node"));
        assert!(refused(claim("ReadWriteOnce"), node(json!({}))).contains("keeps no volumes"));
    }
}
