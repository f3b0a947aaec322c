//! PersistentVolumes and PersistentVolumeClaims.

use super::node::{Errors, Node};
use super::selector::{label_selector, node_selector};
use super::{FieldError, storage, volume};
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
/// The fields of a volume's spec that say where its data is.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "azureDisk",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];
const CSI_SECRETS: [&str; 5] = [
    "controllerPublishSecretRef",
    "controllerExpandSecretRef",
    "nodePublishSecretRef",
    "nodeStageSecretRef",
    "nodeExpandSecretRef",
];

fn access_modes(spec: &Node<'_>, errors: &mut Errors) -> (bool, usize) {
    let mut once_pod = false;
    for mode in spec.items("accessModes") {
        if !ACCESS_MODES.contains(&mode.as_text()) {
            let path = spec.get("accessModes").path();
            errors.push(FieldError::not_supported(
                path,
                mode.as_text(),
                &ACCESS_MODES,
            ));
        }
        once_pod |= mode.as_text() == "ReadWriteOncePod";
    }
    (once_pod, spec.len("accessModes"))
}

fn exclusive_mode(spec: &Node<'_>, (once_pod, count): (bool, usize), errors: &mut Errors) {
    if once_pod && count > 1 {
        spec.get("accessModes").forbidden(
            "may not use ReadWriteOncePod with other access modes",
            errors,
        );
    }
}

/// Rules of a PersistentVolume.
pub(super) fn volume(volume: &Node<'_>, errors: &mut Errors) {
    let spec = volume.get("spec");
    if spec.len("accessModes") == 0 {
        spec.get("accessModes").required("", errors);
    }
    let modes = access_modes(&spec, errors);
    exclusive_mode(&spec, modes, errors);
    capacity(&spec, errors);
    if !spec.text("persistentVolumeReclaimPolicy").is_empty() {
        spec.get("persistentVolumeReclaimPolicy")
            .supported(&["Delete", "Recycle", "Retain"], errors);
    }
    affinity(&spec, errors);
    source(&spec, errors);
    if spec.value.pointer("/hostPath/path") == Some(&Value::from("/"))
        && spec.text("persistentVolumeReclaimPolicy") == "Recycle"
    {
        spec.get("persistentVolumeReclaimPolicy")
            .forbidden("may not be 'recycle' for a hostPath mount of '/'", errors);
    }
    spec.get("storageClassName")
        .check_if_set(names::dns_subdomain, errors);
    spec.get("volumeMode")
        .one_of_if_set(&["Block", "Filesystem"], errors);
    if let Some(class) = spec.some("volumeAttributesClassName") {
        if class.as_text().is_empty() {
            class.required("an empty string is disallowed", errors);
        } else {
            class.check(names::dns_subdomain, errors);
        }
        if !spec.has("csi") {
            spec.get("csi").required(
                "has to be specified when using volumeAttributesClassName",
                errors,
            );
        }
    }
}

/// Rules of the spec of a volume that stands in a VolumeAttachment: what only a PersistentVolume has, it must not have.
pub(super) fn inline(spec: &Node<'_>, errors: &mut Errors) {
    const NOT_INLINE: [(&str, &str); 7] = [
        (
            "capacity",
            "may not be specified in the context of inline volumes",
        ),
        (
            "claimRef",
            "may not be specified in the context of inline volumes",
        ),
        (
            "persistentVolumeReclaimPolicy",
            "may not be specified in the context of inline volumes",
        ),
        (
            "storageClassName",
            "may not be specified in the context of inline volumes",
        ),
        (
            "volumeMode",
            "may not be specified in the context of inline volumes",
        ),
        (
            "nodeAffinity",
            "may not be specified in the context of inline volumes",
        ),
        (
            "volumeAttributesClassName",
            "may not be specified in the context of inline volumes",
        ),
    ];
    for (field, why) in NOT_INLINE {
        let set = match spec.value.get(field) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        if set {
            spec.get(field).forbidden(why, errors);
        }
    }
    if spec.len("accessModes") == 0 {
        spec.get("accessModes").required("", errors);
    }
    let modes = access_modes(spec, errors);
    exclusive_mode(spec, modes, errors);
    source(spec, errors);
    if !spec.has("csi") {
        spec.get("csi").required(
            "has to be specified in the context of inline volumes",
            errors,
        );
    }
}

fn capacity(spec: &Node<'_>, errors: &mut Errors) {
    let field = spec.get("capacity");
    if spec.len("capacity") == 0 {
        field.required("", errors);
    }
    if !field.has("storage") || spec.len("capacity") > 1 {
        let value = field.value.clone();
        errors.push(FieldError::not_supported(field.path(), value, &["storage"]));
    }
    for (_, amount) in spec.entries("capacity") {
        positive(&amount, errors);
    }
}

fn positive(amount: &Node<'_>, errors: &mut Errors) {
    let Ok(quantity) = amount.as_text().parse::<Quantity>() else {
        return;
    };
    if quantity.is_negative() {
        amount.invalid("must be a valid resource quantity", errors);
    }
    if quantity.is_negative() || quantity.is_zero() {
        amount.invalid("must be greater than zero", errors);
    }
}

fn affinity(spec: &Node<'_>, errors: &mut Errors) {
    let Some(affinity) = spec.some("nodeAffinity") else {
        if spec.has("local") {
            spec.get("nodeAffinity")
                .required("Local volume requires node affinity", errors);
        }
        return;
    };
    match affinity.some("required") {
        Some(required) => node_selector(&required, errors),
        None => affinity
            .get("required")
            .required("must specify required node constraints", errors),
    }
}

fn source(spec: &Node<'_>, errors: &mut Errors) {
    let mut found = 0;
    for name in SOURCES {
        let Some(source) = spec.some(name) else {
            continue;
        };
        found += 1;
        if found > 1 {
            source.forbidden("may not specify more than 1 volume type", errors);
            continue;
        }
        match *name {
            "csi" => csi(&source, errors),
            "local" => {
                if source.need("path", errors) {
                    super::container::no_backsteps(&source.get("path"), errors);
                }
            }
            name => volume::one(name, &source, errors),
        }
    }
    if found == 0 {
        spec.required("must specify a volume type", errors);
    }
}

fn csi(source: &Node<'_>, errors: &mut Errors) {
    storage::driver_name(&source.get("driver"), errors);
    source.need("volumeHandle", errors);
    for secret in CSI_SECRETS.into_iter().filter_map(|name| source.some(name)) {
        secret.get("name").need_format(names::dns_subdomain, errors);
        secret
            .get("namespace")
            .need_format(names::dns_label, errors);
    }
}

/// What of a PersistentVolume never changes: where its data is.
pub(super) fn volume_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let secrets = |value: Option<&Value>| {
        // References to secrets may be put right later.
        let mut value = value.cloned().unwrap_or(Value::Null);
        if let Some(source) = value.as_object_mut() {
            source.retain(|key, _| !CSI_SECRETS.contains(&key.as_str()));
        }
        value
    };
    let moved = SOURCES
        .iter()
        .any(|name| secrets(spec.value.get(*name)) != secrets(before.value.get(*name)));
    if moved {
        spec.get("persistentvolumesource").forbidden(
            "spec.persistentvolumesource is immutable after creation",
            errors,
        );
    }
    if spec.differs(&before, "volumeMode") {
        let value = spec.get("volumeMode").value.clone();
        errors.push(FieldError::invalid(
            "volumeMode",
            value,
            "field is immutable",
        ));
    }
    if before.has("nodeAffinity") && spec.differs(&before, "nodeAffinity") {
        let value = spec.get("nodeAffinity").value.clone();
        let why = "field is immutable, except for updating from beta label to GA";
        errors.push(FieldError::invalid("nodeAffinity", value, why));
    }
}

/// Rules of a PersistentVolumeClaim.
pub(super) fn claim(claim: &Node<'_>, errors: &mut Errors) {
    claim_spec(&claim.get("spec"), errors);
}

/// Rules of a claim's spec, wherever it stands.
pub(super) fn claim_spec(spec: &Node<'_>, errors: &mut Errors) {
    if spec.len("accessModes") == 0 {
        spec.get("accessModes")
            .required("at least 1 access mode is required", errors);
    }
    if let Some(selector) = spec.some("selector") {
        label_selector(&selector, errors);
    }
    let modes = access_modes(spec, errors);
    exclusive_mode(spec, modes, errors);
    let resources = spec.get("resources");
    let requests = resources.get("requests");
    match requests.some("storage") {
        None => errors.push(FieldError::required(
            format!("{}[storage]", requests.path()),
            "",
        )),
        Some(amount) => {
            let path = format!("{}[storage]", requests.path());
            if let Ok(quantity) = amount.as_text().parse::<Quantity>() {
                if quantity.is_negative() {
                    let why = "must be a valid resource quantity";
                    errors.push(FieldError::invalid(
                        path.as_str(),
                        amount.value.clone(),
                        why,
                    ));
                }
                if quantity.is_negative() || quantity.is_zero() {
                    let why = "must be greater than zero";
                    errors.push(FieldError::invalid(path, amount.value.clone(), why));
                }
            }
        }
    }
    spec.get("storageClassName")
        .check_if_set(names::dns_subdomain, errors);
    spec.get("volumeMode")
        .one_of_if_set(&["Block", "Filesystem"], errors);
    data_sources(spec, errors);
    spec.get("volumeAttributesClassName")
        .check_if_set(names::dns_subdomain, errors);
}

fn data_sources(spec: &Node<'_>, errors: &mut Errors) {
    for source in ["dataSource", "dataSourceRef"]
        .into_iter()
        .filter_map(|name| spec.some(name))
    {
        source.need("name", errors);
        source.need("kind", errors);
        let group = source.text("apiGroup");
        if group.is_empty() && !matches!(source.text("kind"), "PersistentVolumeClaim" | "") {
            source.invalid(
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                errors,
            );
        }
        source
            .get("apiGroup")
            .check_if_set(names::dns_subdomain, errors);
        source
            .get("namespace")
            .check_if_set(names::dns_label, errors);
    }
    let (Some(source), Some(reference)) = (spec.some("dataSource"), spec.some("dataSourceRef"))
    else {
        return;
    };
    let differs = ["apiGroup", "kind", "name"]
        .iter()
        .any(|field| source.text(field) != reference.text(field));
    if differs && !reference.has("namespace") {
        spec.invalid("must match dataSourceRef", errors);
    }
}

/// A claim keeps asking for what it asked for; a bound one may ask for more storage or another class of attributes.
pub(super) fn claim_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let bound = old.value.pointer("/status/phase") == Some(&Value::from("Bound"));
    let fixed = |spec: &Node<'_>| -> Option<serde_json::Map<String, Value>> {
        let mut fields = spec.value.as_object()?.clone();
        fields.retain(|_, value| !value.is_null());
        // A volume may bind to an unbound claim once.
        if before.text("volumeName").is_empty() {
            fields.remove("volumeName");
        }
        if before.text("storageClassName").is_empty() && !before.has("storageClassName") {
            fields.remove("storageClassName");
        }
        if bound {
            fields.remove("volumeAttributesClassName");
            if let Some(requests) = fields
                .get_mut("resources")
                .and_then(|r| r.get_mut("requests"))
            {
                requests.as_object_mut()?.remove("storage");
            }
        }
        Some(fields)
    };
    if fixed(&spec) != fixed(&before) {
        spec.forbidden("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims", errors);
    }
    if spec.differs(&before, "volumeMode") {
        let value = spec.get("volumeMode").value.clone();
        errors.push(FieldError::invalid(
            "volumeMode",
            value,
            "field is immutable",
        ));
    }
    let size = |value: &Value, pointer: &str| -> Option<Quantity> {
        value.pointer(pointer)?.as_str()?.parse().ok()
    };
    let asked = size(spec.value, "/resources/requests/storage");
    let earlier = size(before.value, "/resources/requests/storage");
    let real = size(old.value, "/status/capacity/storage");
    if let (Some(asked), Some(earlier)) = (&asked, &earlier)
        && asked < earlier
        && real.is_none_or(|real| asked < &real)
    {
        spec.get("resources")
            .get("requests")
            .get("storage")
            .forbidden("field can not be less than status.capacity", errors);
    }
}

const RESIZE_STATES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// Rules of a claim's status.
pub(super) fn claim_status(claim: &Node<'_>, errors: &mut Errors) {
    let status = claim.get("status");
    if status.len("accessModes") > 0 {
        access_modes(&status, errors);
    }
    for (_, amount) in status.entries("capacity") {
        not_negative(&amount, errors);
    }
    for list in ["allocatedResourceStatuses", "allocatedResources"] {
        for (name, value) in status.entries(list) {
            let path = status.get(list).path();
            for detail in names::qualified_name(name) {
                errors.push(FieldError::invalid(path.as_str(), name, detail));
            }
            if name != "storage" && !name.contains('/') {
                errors.push(FieldError::not_supported(path.as_str(), name, &["storage"]));
            }
            if list == "allocatedResources" {
                not_negative(&value, errors);
            } else if !RESIZE_STATES.contains(&value.as_text()) {
                errors.push(FieldError::not_supported(
                    path,
                    value.as_text(),
                    &RESIZE_STATES,
                ));
            }
        }
    }
}

fn not_negative(amount: &Node<'_>, errors: &mut Errors) {
    if amount
        .as_text()
        .parse::<Quantity>()
        .is_ok_and(|q| q.is_negative())
    {
        amount.invalid("must be a valid resource quantity", errors);
    }
}
