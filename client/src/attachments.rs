//! How volumes of CSI drivers are named where they are attached: by controllers, by nodes, and in the Node's status alike.

use std::fmt::Write;

use k8s_openapi::api::core::v1::CSIPersistentVolumeSource;
use sha2::{Digest, Sha256};

/// The name of the VolumeAttachment that attaches a volume to a node, as upstream computes it.
#[must_use]
pub fn name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    digest.iter().fold("csi-".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// What `volumesAttached` and `volumesInUse` of a Node call a volume.
#[must_use]
pub fn in_status(handle: &str, driver: &str) -> String {
    format!("{}{handle}", of_driver(driver))
}

/// What the names of all volumes of a driver begin with there.
#[must_use]
pub fn of_driver(driver: &str) -> String {
    format!("kubernetes.io/csi/{driver}^")
}

/// [`in_status`] of a persistent volume's source.
#[must_use]
pub fn of_source(source: &CSIPersistentVolumeSource) -> String {
    in_status(&source.volume_handle, &source.driver)
}
