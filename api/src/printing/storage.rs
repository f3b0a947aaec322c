//! PersistentVolumes, PersistentVolumeClaims, StorageClasses and the kinds of CSI.

use super::cell::{
    age, count, flag, items, joined, name, or_none, scalar, scalar_or, text, text_or,
};
use super::{AGE, NAME, Printer, boolean, integer, text as column, wide};
use crate::meta;
use serde_json::{Value, json};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Where the class stood before it became a field; still honoured.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

static PERSISTENT_VOLUME: Printer = Printer {
    columns: &[
        NAME,
        column("Capacity", "Size."),
        column("Access Modes", "How it can be mounted."),
        column("Reclaim Policy", "What becomes of it after its claim."),
        column("Status", "Phase."),
        column("Claim", "Claim it is bound to."),
        column("StorageClass", "Class it belongs to."),
        column("VolumeAttributesClass", "Class of its attributes."),
        column("Reason", "Why it is in this phase."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ],
    cells: |object, now| {
        let claim = object
            .pointer("/spec/claimRef")
            .map_or_else(String::new, |claim| {
                format!("{}/{}", text(claim, "/namespace"), text(claim, "/name"))
            });
        vec![
            name(object),
            json!(scalar_or(object, "/spec/capacity/storage", "0")),
            json!(access_modes(object, "/spec/accessModes")),
            json!(text(object, "/spec/persistentVolumeReclaimPolicy")),
            json!(phase(object)),
            json!(claim),
            json!(storage_class(object)),
            json!(text_or(
                object,
                "/spec/volumeAttributesClassName",
                "<unset>"
            )),
            json!(text(object, "/status/reason")),
            age(object, now),
            json!(text_or(object, "/spec/volumeMode", "<unset>")),
        ]
    },
};

static PERSISTENT_VOLUME_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Phase."),
        column("Volume", "Volume it is bound to."),
        column("Capacity", "Size of that volume."),
        column("Access Modes", "How that volume can be mounted."),
        column("StorageClass", "Class it asks for."),
        column("VolumeAttributesClass", "Class of its attributes."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ],
    cells: |object, now| {
        // Before it is bound a claim has no size and no modes, only wishes.
        let bound = !text(object, "/spec/volumeName").is_empty();
        let (capacity, modes) = if bound {
            (
                scalar_or(object, "/status/capacity/storage", "0"),
                access_modes(object, "/status/accessModes"),
            )
        } else {
            (String::new(), String::new())
        };
        vec![
            name(object),
            json!(phase(object)),
            json!(text(object, "/spec/volumeName")),
            json!(capacity),
            json!(modes),
            json!(storage_class(object)),
            json!(text_or(
                object,
                "/spec/volumeAttributesClassName",
                "<unset>"
            )),
            age(object, now),
            json!(text_or(object, "/spec/volumeMode", "<unset>")),
        ]
    },
};

static STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Provisioner", "Who makes volumes of the class."),
        column(
            "ReclaimPolicy",
            "What becomes of volumes after their claims.",
        ),
        column("VolumeBindingMode", "When volumes are bound."),
        column("AllowVolumeExpansion", "Claims may grow."),
        AGE,
    ],
    cells: |object, now| {
        let default = meta::annotation(object, DEFAULT_CLASS) == Some("true");
        let mark = if default { " (default)" } else { "" };
        vec![
            json!(format!("{}{mark}", meta::name(object))),
            json!(text(object, "/provisioner")),
            json!(text_or(object, "/reclaimPolicy", "Delete")),
            json!(text_or(object, "/volumeBindingMode", "Immediate")),
            json!(flag(object, "/allowVolumeExpansion")),
            age(object, now),
        ]
    },
};

static VOLUME_ATTRIBUTES_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("DriverName", "Driver that understands the attributes."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/driverName")),
            age(object, now),
        ]
    },
};

static VOLUME_ATTACHMENT: Printer = Printer {
    columns: &[
        NAME,
        super::Column {
            format: "name",
            ..column("Attacher", "Driver that attaches.")
        },
        column("PV", "Volume."),
        column("Node", "Node."),
        super::boolean("Attached", "The volume is attached."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/attacher")),
            json!(text(object, "/spec/source/persistentVolumeName")),
            json!(text(object, "/spec/nodeName")),
            json!(flag(object, "/status/attached")),
            age(object, now),
        ]
    },
};

static CSI_DRIVER: Printer = Printer {
    columns: &[
        NAME,
        boolean(
            "AttachRequired",
            "Volumes are attached before they are mounted.",
        ),
        boolean("PodInfoOnMount", "The driver is told about the pod."),
        boolean(
            "StorageCapacity",
            "Scheduling considers the driver's capacity.",
        ),
        column(
            "TokenRequests",
            "Audiences of the tokens that the driver gets.",
        ),
        boolean(
            "RequiresRepublish",
            "Volumes are published again from time to time.",
        ),
        column("Modes", "Lifecycles of volumes that the driver supports."),
        AGE,
    ],
    cells: |object, now| {
        let audiences = object.pointer("/spec/tokenRequests").map_or_else(
            || "<unset>".to_owned(),
            |_| {
                let requests = items(object, "/spec/tokenRequests").iter();
                requests
                    .map(|request| text(request, "/audience"))
                    .collect::<Vec<_>>()
                    .join(",")
            },
        );
        let attach = object
            .pointer("/spec/attachRequired")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        vec![
            name(object),
            json!(attach),
            json!(flag(object, "/spec/podInfoOnMount")),
            json!(flag(object, "/spec/storageCapacity")),
            json!(audiences),
            json!(flag(object, "/spec/requiresRepublish")),
            json!(or_none(joined(object, "/spec/volumeLifecycleModes", ","))),
            age(object, now),
        ]
    },
};

static CSI_NODE: Printer = Printer {
    columns: &[NAME, integer("Drivers", "Drivers on the node."), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(count(object, "/spec/drivers")),
            age(object, now),
        ]
    },
};

static CSI_STORAGE_CAPACITY: Printer = Printer {
    columns: &[
        NAME,
        column("StorageClassName", "Class."),
        column("Capacity", "What is left."),
    ],
    cells: |object, _| {
        vec![
            name(object),
            json!(text(object, "/storageClassName")),
            json!(scalar(object, "/capacity").unwrap_or_else(|| "<unset>".to_owned())),
        ]
    },
};

pub(super) fn core_printer(kind: &str) -> Option<&'static Printer> {
    match kind {
        "PersistentVolume" => Some(&PERSISTENT_VOLUME),
        "PersistentVolumeClaim" => Some(&PERSISTENT_VOLUME_CLAIM),
        _ => None,
    }
}

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "StorageClass" => &STORAGE_CLASS,
        "VolumeAttributesClass" => &VOLUME_ATTRIBUTES_CLASS,
        "VolumeAttachment" => &VOLUME_ATTACHMENT,
        "CSIDriver" => &CSI_DRIVER,
        "CSINode" => &CSI_NODE,
        "CSIStorageCapacity" => &CSI_STORAGE_CAPACITY,
        _ => return None,
    })
}

/// `RWO,ROX,RWX,RWOP`, in this order whatever the object's is.
fn access_modes(object: &Value, pointer: &str) -> String {
    let modes = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| {
        items(object, pointer)
            .iter()
            .any(|item| item.as_str() == Some(mode))
    };
    modes
        .iter()
        .filter(|(mode, _)| has(mode))
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
}

fn phase(object: &Value) -> &str {
    if meta::is_deleting(object) {
        "Terminating"
    } else {
        text(object, "/status/phase")
    }
}

fn storage_class(object: &Value) -> &str {
    meta::annotation(object, CLASS_ANNOTATION)
        .unwrap_or_else(|| text(object, "/spec/storageClassName"))
}
