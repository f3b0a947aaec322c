//! What admission has to say about storage: DefaultStorageClass, StorageObjectInUseProtection, PersistentVolumeClaimResize.

use std::sync::Arc;

use cox_api::meta;
use cox_api::status::ApiStatus;
use cox_api::totals::amounts;
use cox_store::Snapshot;
use serde_json::Value;

use super::decoded::{all_known, known};
use super::{Operation, Request, push};

const CLASSES: &str = "storageclasses";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// A claim that names no class gets the default one; claims and volumes go only when nobody uses them.
pub(super) fn admit(request: &mut Request<'_>, snapshot: &Snapshot) {
    if request.operation != Operation::Create {
        return;
    }
    let protected = if request.is("", "persistentvolumeclaims") {
        set_class(request, snapshot);
        "kubernetes.io/pvc-protection"
    } else if request.is("", "persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else {
        return;
    };
    if let Some(object) = &mut request.object
        && !meta::finalizers(object).any(|one| one == protected)
    {
        push(&mut object["metadata"]["finalizers"], protected.into());
    }
}

fn set_class(request: &mut Request<'_>, snapshot: &Snapshot) {
    let Some(claim) = &mut request.object else {
        return;
    };
    let has_class = meta::annotation(claim, BETA_CLASS).is_some()
        || claim["spec"]["storageClassName"].is_string();
    if has_class {
        return;
    }
    if let Some(class) = default_of(all_known(snapshot, CLASSES), &IS_DEFAULT) {
        claim["spec"]["storageClassName"] = class.into();
    }
}

/// The newest of the classes that are marked as default; of equals the first by name.
pub(super) fn default_of(
    classes: impl Iterator<Item = Arc<Value>>,
    marks: &[&str],
) -> Option<String> {
    let mut defaults: Vec<Arc<Value>> = classes
        .filter(|class| {
            marks
                .iter()
                .any(|mark| meta::annotation(class, mark) == Some("true"))
        })
        .collect();
    defaults.sort_by(|a, b| {
        let newest_first = meta::creation_timestamp(b).cmp(&meta::creation_timestamp(a));
        newest_first.then_with(|| meta::name(a).cmp(meta::name(b)))
    });
    defaults.first().map(|class| meta::name(class).to_owned())
}

/// A claim grows only when it is bound and its class allows it.
pub(super) fn validate(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    if request.operation != Operation::Update || !request.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let Some((new, old)) = request.object.as_ref().zip(request.old) else {
        return Ok(());
    };
    let size = |claim: &Value| amounts(&claim["spec"]["resources"]["requests"]).remove("storage");
    if size(new) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let class_of = |claim: &Value| {
        meta::annotation(claim, BETA_CLASS)
            .or_else(|| claim["spec"]["storageClassName"].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let class = class_of(new);
    let grows = !class.is_empty()
        && class == class_of(old)
        && known(snapshot, CLASSES, &class)
            .is_some_and(|class| class["allowVolumeExpansion"] == true);
    if grows {
        Ok(())
    } else {
        Err(request.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}
