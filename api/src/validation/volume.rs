//! Volumes of a Pod: one source each, and what each source needs.

use super::FieldError;
use super::certificates::signer_name;
use super::container::{descending_path, no_backsteps};
use super::env;
use super::node::{Errors, Node, repath};
use super::pod_certificates::{life_secs_max, user_annotations};
use crate::names;
use crate::quantity::Quantity;
use std::collections::HashSet;

/// Rules of `spec.volumes`; answers the names that mounts may use.
pub(super) fn all<'a>(spec: &'a Node<'a>, errors: &mut Errors) -> HashSet<&'a str> {
    let mut names_taken = HashSet::new();
    for volume in spec.items("volumes") {
        let before = errors.len();
        source(&volume, errors);
        if volume.need("name", errors) {
            let name = volume.get("name");
            let problems = names::dns_label(name.as_text());
            let duplicate = problems.is_empty() && names_taken.contains(volume.text("name"));
            if duplicate {
                name.duplicate(errors);
            }
            name.all_invalid(problems, errors);
        }
        // What is broken cannot be mounted: those who try are told so.
        if errors.len() == before {
            names_taken.insert(volume.text("name"));
        }
    }
    names_taken
}

fn source(volume: &Node<'_>, errors: &mut Errors) {
    let sources = volume
        .value
        .as_object()
        .into_iter()
        .flat_map(|v| v.keys())
        .filter(|key| *key != "name");
    let mut found = 0;
    for name in sources {
        let source = volume.get(name);
        if source.value.is_null() {
            continue;
        }
        found += 1;
        if found > 1 {
            source.forbidden("may not specify more than 1 volume type", errors);
        } else {
            one(name, &source, errors);
        }
    }
    if found == 0 {
        volume.required("must specify a volume type", errors);
    }
}

/// Fields that a source cannot do without, besides what `one` looks at.
const NEEDED: &[(&str, &[&str])] = &[
    ("hostPath", &["path"]),
    ("nfs", &["server", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("secret", &["secretName"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("gitRepo", &["repository"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("rbd", &["image"]),
    ("cinder", &["volumeID"]),
    ("azureFile", &["secretName", "shareName"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flexVolume", &["driver"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &["driver"]),
    ("ephemeral", &["volumeClaimTemplate"]),
    ("configMap", &["name"]),
];

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

pub(super) fn one(name: &str, source: &Node<'_>, errors: &mut Errors) {
    let needed = NEEDED
        .iter()
        .find(|(source, _)| *source == name)
        .map_or(&[][..], |(_, fields)| fields);
    for field in needed {
        source.need(field, errors);
    }
    match name {
        "hostPath" => {
            no_backsteps(&source.get("path"), errors);
            source.get("type").one_of_if_set(&HOST_PATH_TYPES, errors);
        }
        "emptyDir" => {
            let limit = source.get("sizeLimit");
            if limit
                .as_text()
                .parse::<Quantity>()
                .is_ok_and(|q| q.is_negative())
            {
                limit.forbidden("SizeLimit field must be a valid resource quantity", errors);
            }
        }
        "nfs" if !source.text("path").starts_with('/') => {
            let path = source.get("path");
            let why = "must be an absolute path";
            errors.push(FieldError::invalid(path.path(), path.as_text(), why));
        }
        "fc" => fibre_channel(source, errors),
        "iscsi" => source.in_range("lun", 0, 255, errors),
        "ephemeral" => {
            if let Some(template) = source.some("volumeClaimTemplate") {
                super::persistent::claim_spec(&template.get("spec"), errors);
            }
        }
        "secret" | "configMap" => {
            mode(source, "defaultMode", errors);
            key_items(source, errors);
        }
        "downwardAPI" => {
            mode(source, "defaultMode", errors);
            downward_items(source, errors);
        }
        "projected" => projected(source, errors),
        "image" => {
            source.need("reference", errors);
            source
                .get("pullPolicy")
                .one_of_if_set(&["Always", "IfNotPresent", "Never"], errors);
        }
        "gitRepo" => descending_path(&source.get("directory"), errors),
        "csi" => {
            if !source.text("driver").is_empty() {
                super::storage::driver_name(&source.get("driver"), errors);
            }
            if let Some(secret) = source.some("nodePublishSecretRef") {
                secret.get("name").need_format(names::dns_subdomain, errors);
            }
        }
        _ => {}
    }
}

fn fibre_channel(source: &Node<'_>, errors: &mut Errors) {
    let (targets, ids) = (source.len("targetWWNs") > 0, source.len("wwids") > 0);
    let why = "must specify either targetWWNs or wwids, but not both";
    if targets == ids {
        let field = source.get("targetWWNs");
        if targets {
            field.invalid(why, errors);
        } else {
            field.required(why, errors);
        }
    }
    if targets {
        match source.int("lun") {
            None => source
                .get("lun")
                .required("lun is required if targetWWNs is specified", errors),
            Some(_) => source.in_range("lun", 0, 255, errors),
        }
    }
}

fn mode(parent: &Node<'_>, field: &str, errors: &mut Errors) {
    if parent
        .int(field)
        .is_some_and(|mode| !(0..=0o777).contains(&mode))
    {
        parent.get(field).invalid(
            "must be a number between 0 and 0777 (octal), both inclusive",
            errors,
        );
    }
}

/// A file's path below the volume's root.
pub(super) fn file_path(item: &Node<'_>, errors: &mut Errors) {
    if item.need("path", errors) {
        inside(&item.get("path"), errors);
    }
}

/// A path that stays in the volume, and out of what the kubelet keeps there.
fn inside(path: &Node<'_>, errors: &mut Errors) {
    descending_path(path, errors);
    if path.as_text().starts_with("..")
        && !path.as_text().starts_with("../")
        && path.as_text() != ".."
    {
        path.invalid("must not start with '..'", errors);
    }
}

fn key_items(source: &Node<'_>, errors: &mut Errors) {
    for item in source.items("items") {
        item.need("key", errors);
        file_path(&item, errors);
        mode(&item, "mode", errors);
    }
}

fn downward_items(source: &Node<'_>, errors: &mut Errors) {
    for (at, item) in source.items("items").enumerate() {
        let since = errors.len();
        file_path(&item, errors);
        match (item.some("fieldRef"), item.some("resourceFieldRef")) {
            (Some(field), resource) => {
                env::field_ref(&field, &env::VOLUME_FIELDS, errors);
                if resource.is_some() {
                    item.invalid(
                        "fieldRef and resourceFieldRef can not be specified simultaneously",
                        errors,
                    );
                }
            }
            (None, Some(resource)) => env::resource_field_ref(&resource, true, errors),
            (None, None) => {
                item.required("one of fieldRef and resourceFieldRef is required", errors)
            }
        }
        mode(&item, "mode", errors);
        // Upstream names the source, not the item.
        repath(errors, since, &format!(".items[{at}]"), "");
    }
}

fn projected(volume: &Node<'_>, errors: &mut Errors) {
    mode(volume, "defaultMode", errors);
    let mut paths: HashSet<String> = HashSet::new();
    for source in volume.items("sources") {
        let mut found = 0;
        for name in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let Some(projection) = source.some(name) else {
                continue;
            };
            found += 1;
            if found > 1 {
                projection.forbidden("may not specify more than 1 volume type per source", errors);
                continue;
            }
            projection_rules(name, &projection, errors);
            for path in projection
                .items("items")
                .map(|item| item.text("path"))
                .chain([projection.text("path")])
                .chain(CERTIFICATE_PATHS.map(|field| projection.text(field)))
            {
                if !path.is_empty() && !paths.insert(path.to_owned()) {
                    errors.push(FieldError::invalid(
                        source.path(),
                        path,
                        "conflicting duplicate paths",
                    ));
                }
            }
        }
        if found == 0 {
            source.required("must specify a volume type", errors);
        }
    }
}

/// Upstream's path is that of the volume.
fn token_path(projection: &Node<'_>, errors: &mut Errors) {
    let since = errors.len();
    file_path(projection, errors);
    for error in errors.iter_mut().skip(since) {
        if let Some((volume, _)) = error.field.split_once(".sources[") {
            error.field = format!("{volume}.path");
        }
    }
}

/// Where a Pod's key and certificates are shown.
const CERTIFICATE_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];
const KEY_KINDS: [&str; 6] = [
    "RSA3072",
    "RSA4096",
    "ECDSAP256",
    "ECDSAP384",
    "ECDSAP521",
    "ED25519",
];

fn pod_certificate(projection: &Node<'_>, errors: &mut Errors) {
    signer_name(&projection.get("signerName"), errors);
    user_annotations(&projection.get("userAnnotations"), errors);
    projection.get("keyType").supported(&KEY_KINDS, errors);
    if let Some(secs) = projection.int("maxExpirationSeconds") {
        let most = life_secs_max(projection.text("signerName"));
        let life = projection.get("maxExpirationSeconds");
        if secs < 3600 {
            life.invalid("if provided, maxExpirationSeconds must be >= 3600", errors);
        } else if secs > most {
            let why = format!("if provided, maxExpirationSeconds must be <= {most}");
            life.invalid(why, errors);
        }
    }
    for field in CERTIFICATE_PATHS {
        if !projection.text(field).is_empty() {
            inside(&projection.get(field), errors);
        }
    }
    if CERTIFICATE_PATHS
        .iter()
        .all(|field| projection.text(field).is_empty())
    {
        projection.required(
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
            errors,
        );
    }
}

fn projection_rules(name: &str, projection: &Node<'_>, errors: &mut Errors) {
    match name {
        "secret" | "configMap" => {
            projection.need("name", errors);
            key_items(projection, errors);
        }
        "downwardAPI" => downward_items(projection, errors),
        "serviceAccountToken" => {
            let secs = projection.int("expirationSeconds").unwrap_or(3600);
            if secs < 600 {
                projection
                    .get("expirationSeconds")
                    .invalid("may not specify a duration less than 10 minutes", errors);
            } else if secs > 1 << 32 {
                projection.get("expirationSeconds").invalid(
                    "may not specify a duration larger than 2^32 seconds",
                    errors,
                );
            }
            token_path(projection, errors);
        }
        "clusterTrustBundle" => token_path(projection, errors),
        "podCertificate" => pod_certificate(projection, errors),
        _ => {}
    }
}
