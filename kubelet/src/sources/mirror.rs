//! Mirror Pods: the objects by which static Pods show at the API server. They change nothing on the node.

use crate::worker::shared::Shared;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;

/// Annotation: identity of the manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation: where a Pod comes from.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation of mirrors: the hash of the manifest that they show.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether an object is a mirror.
#[must_use]
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// Whether a Pod comes from this node and not from the API server.
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

/// Whether a mirror shows another manifest than this static Pod's.
#[must_use]
pub fn differs(mirror: &Pod, wanted: &Pod) -> bool {
    mirror.metadata.deletion_timestamp.is_some()
        || annotation(mirror, CONFIG_MIRROR) != annotation(wanted, CONFIG_HASH)
}

/// Makes the mirror. The answer is the object; `None`: there is one already, of which the informer will tell.
pub async fn create(shared: &Shared, wanted: &Pod) -> Result<Option<Box<Pod>>, String> {
    let mut mirror = wanted.clone();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    if let Some(hash) = annotation(wanted, CONFIG_HASH).cloned() {
        mirror
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(CONFIG_MIRROR.to_owned(), hash);
    }
    let namespace = wanted.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.0.clone(), namespace);
    match api.create(&PostParams::default(), &mirror).await {
        Ok(made) => Ok(Some(Box::new(made))),
        Err(error) if cox_client::is_already_exists(&error) => {
            let name = wanted.metadata.name.as_deref().unwrap_or_default();
            api.get_opt(name)
                .await
                .map(|found| found.map(Box::new))
                .map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}
