//! Tables of the plan: claims and volumes in a small notation.

use super::plan::{ClaimInput, ClaimStep, VolumeStep, plan_claim, plan_volume};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

fn object<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

/// A claim `c` of 2Gi; `spec` is laid over it.
fn claim(spec: &Value, annotations: &Value) -> PersistentVolumeClaim {
    let mut base = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "2Gi"}}});
    for (key, value) in spec.as_object().unwrap() {
        base[key] = value.clone();
    }
    object(
        json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": annotations}, "spec": base}),
    )
}

fn volume(name: &str, size: &str, extra: &Value) -> Arc<PersistentVolume> {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "hostPath": {"path": "/v"},
        "persistentVolumeReclaimPolicy": "Delete"});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    Arc::new(object(json!({"metadata": {"name": name}, "spec": spec})))
}

fn class(name: &str, provisioner: &str, mode: &str) -> StorageClass {
    object(
        json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode}),
    )
}

fn shown(step: &ClaimStep) -> String {
    match step {
        ClaimStep::UseClass(name) => format!("class {name}"),
        ClaimStep::Bind(volume) => format!("bind {}", volume.metadata.name.as_deref().unwrap()),
        ClaimStep::Provision(node) => {
            format!("provision {}", node.metadata.name.as_deref().unwrap())
        }
        ClaimStep::ChooseAnew => "choose anew".into(),
        ClaimStep::AskProvisioner(name) => format!("ask {name}"),
        ClaimStep::Wait(None) => "wait".into(),
        ClaimStep::Wait(Some(said)) | ClaimStep::Lost(said) => said.reason.into(),
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn claims_table() {
    let small = volume("small", "1Gi", &json!({}));
    let right = volume("right", "2Gi", &json!({}));
    let large = volume("large", "9Gi", &json!({}));
    let other = json!({"claimRef": {"name": "x", "namespace": "n", "uid": "x"}});
    let taken = volume("taken", "2Gi", &other);
    let mine = json!({"claimRef": {"name": "c", "namespace": "n"}});
    let reserved = volume("reserved", "9Gi", &mine);
    let far = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "host", "operator": "In", "values": ["b"]}]}]}}, "storageClassName": "late"});
    let far = volume("far", "2Gi", &far);
    let late = class(
        "late",
        "kubernetes.io/no-provisioner",
        "WaitForFirstConsumer",
    );
    let ours = class("ours", "coxswain.dev/local-path", "WaitForFirstConsumer");
    let csi = class("csi", "csi.example", "Immediate");
    let none = json!({});
    let chosen = json!({"volume.kubernetes.io/selected-node": "gone"});
    let done = json!({"pv.kubernetes.io/bind-completed": "yes"});
    let asked = json!({"volume.kubernetes.io/storage-provisioner": "csi.example"});
    let on = |host: &str| -> Node {
        object(json!({"metadata": {"name": host, "labels": {"host": host}}}))
    };
    type Case<'a> = (
        &'a str,
        Value,
        &'a Value,
        Vec<&'a Arc<PersistentVolume>>,
        Option<&'a StorageClass>,
        Option<&'a str>,
        &'a str,
    );
    let cases: Vec<Case<'_>> = vec![
        (
            "the smallest that is large enough",
            json!({}),
            &none,
            vec![&small, &large, &right],
            None,
            None,
            "bind right",
        ),
        (
            "one that is reserved for it",
            json!({}),
            &none,
            vec![&right, &reserved],
            None,
            None,
            "bind reserved",
        ),
        (
            "none is free",
            json!({}),
            &none,
            vec![&small, &taken],
            None,
            None,
            "FailedBinding",
        ),
        (
            "another way of access",
            json!({"accessModes": ["ReadWriteMany"]}),
            &none,
            vec![&right],
            None,
            None,
            "FailedBinding",
        ),
        (
            "a block device",
            json!({"volumeMode": "Block"}),
            &none,
            vec![&right],
            None,
            None,
            "FailedBinding",
        ),
        (
            "no class gets the default",
            json!({"storageClassName": null}),
            &none,
            vec![&right],
            None,
            None,
            "class default",
        ),
        (
            "a class that is not there",
            json!({"storageClassName": "gone"}),
            &none,
            vec![&right],
            None,
            None,
            "ProvisioningFailed",
        ),
        (
            "a class that waits",
            json!({"storageClassName": "late"}),
            &none,
            vec![&far],
            Some(&late),
            None,
            "WaitForFirstConsumer",
        ),
        (
            "a class that waits, and the chosen node is gone",
            json!({"storageClassName": "late"}),
            &chosen,
            vec![&far],
            Some(&late),
            None,
            "choose anew",
        ),
        (
            "waited, but the volume is elsewhere",
            json!({"storageClassName": "late"}),
            &none,
            vec![&far],
            Some(&late),
            Some("a"),
            "ProvisioningFailed",
        ),
        (
            "waited, and the volume is there",
            json!({"storageClassName": "late"}),
            &none,
            vec![&far],
            Some(&late),
            Some("b"),
            "bind far",
        ),
        (
            "our own class waits",
            json!({"storageClassName": "ours"}),
            &none,
            vec![],
            Some(&ours),
            None,
            "WaitForFirstConsumer",
        ),
        (
            "our own class makes a folder",
            json!({"storageClassName": "ours"}),
            &none,
            vec![],
            Some(&ours),
            Some("a"),
            "provision a",
        ),
        (
            "another provisioner is asked",
            json!({"storageClassName": "csi"}),
            &none,
            vec![],
            Some(&csi),
            None,
            "ask csi.example",
        ),
        (
            "and asked once",
            json!({"storageClassName": "csi"}),
            &asked,
            vec![],
            Some(&csi),
            None,
            "ExternalProvisioning",
        ),
        (
            "the user's choice",
            json!({"volumeName": "large"}),
            &none,
            vec![&right, &large],
            None,
            None,
            "bind large",
        ),
        (
            "the user's choice is too small",
            json!({"volumeName": "small"}),
            &none,
            vec![&small],
            None,
            None,
            "VolumeMismatch",
        ),
        (
            "the user's choice is taken",
            json!({"volumeName": "taken"}),
            &none,
            vec![&taken],
            None,
            None,
            "FailedBinding",
        ),
        (
            "the user's choice is not there yet",
            json!({"volumeName": "gone"}),
            &none,
            vec![],
            None,
            None,
            "wait",
        ),
        (
            "what it was bound to is gone",
            json!({"volumeName": "gone"}),
            &done,
            vec![],
            None,
            None,
            "ClaimLost",
        ),
        (
            "what it was bound to is another's",
            json!({"volumeName": "taken"}),
            &done,
            vec![&taken],
            None,
            None,
            "ClaimMisbound",
        ),
        (
            "bound",
            json!({"volumeName": "reserved"}),
            &done,
            vec![&reserved],
            None,
            None,
            "bind reserved",
        ),
    ];
    for (name, spec, annotations, volumes, class, node, expected) in cases {
        let volumes: Vec<_> = volumes.into_iter().cloned().collect();
        let input = ClaimInput {
            claim: &claim(&spec, annotations),
            volumes: &volumes,
            class: class.cloned().map(Arc::new),
            default_class: Some("default".into()),
            node: node.map(|name| Arc::new(on(name))),
        };
        assert_eq!(shown(&plan_claim(&input)), expected, "case: {name}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn volumes_table() {
    let bound = json!({"claimRef": {"name": "c", "namespace": "n", "uid": "u"}});
    let here = claim(&json!({"volumeName": "v"}), &json!({}));
    let elsewhere = claim(&json!({"volumeName": "w"}), &json!({}));
    let unbound = claim(&json!({}), &json!({}));
    let with = |extra: &Value, annotations: &Value| -> PersistentVolume {
        let mut volume = (*volume("v", "2Gi", extra)).clone();
        volume.metadata.annotations = object(annotations.clone());
        volume
    };
    let plain = json!({});
    let ours = json!({"pv.kubernetes.io/provisioned-by": "coxswain.dev/local-path"});
    let csi = json!({"pv.kubernetes.io/provisioned-by": "csi.example"});
    let auto = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
    let retained =
        json!({"claimRef": bound["claimRef"], "persistentVolumeReclaimPolicy": "Retain"});
    let reserved = json!({"claimRef": {"name": "c", "namespace": "n"}});
    let phase = VolumeStep::Phase;
    let nobody = || {
        VolumeStep::CannotDelete(
            "nobody made this volume, so nobody can delete what it holds".into(),
        )
    };
    let cases = [
        ("free", with(&plain, &plain), None, phase("Available")),
        (
            "reserved by name",
            with(&reserved, &plain),
            None,
            phase("Available"),
        ),
        ("bound", with(&bound, &plain), Some(&here), phase("Bound")),
        (
            "half bound",
            with(&bound, &plain),
            Some(&unbound),
            VolumeStep::Leave,
        ),
        (
            "its claim went elsewhere",
            with(&bound, &auto),
            Some(&elsewhere),
            VolumeStep::Unbind,
        ),
        (
            "released and kept",
            with(&retained, &ours),
            None,
            phase("Released"),
        ),
        (
            "released and ours",
            with(&bound, &ours),
            None,
            VolumeStep::Delete,
        ),
        (
            "released and another's",
            with(&bound, &csi),
            None,
            phase("Released"),
        ),
        (
            "released and nobody's",
            with(&bound, &plain),
            None,
            nobody(),
        ),
    ];
    for (name, volume, claim, expected) in cases {
        assert_eq!(plan_volume(&volume, claim), expected, "case: {name}");
    }
}
