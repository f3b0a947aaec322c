//! Gathers what is kept of a Pod: the object, its status, and all that it refers to, as far as it is known now.

use super::shared::Shared;
use crate::keep::Record;
use crate::pod::containers::spec;
use crate::volumes::References;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

/// The record of a Pod.
pub(super) fn record(shared: &Shared, pod: &Pod, status: &PodStatus) -> Record {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let references = References::of(pod);
    let maps = references.config_maps.iter();
    let maps = maps.filter_map(|name| shared.volumes.config_maps.peek(namespace, name));
    let pulls = spec(pod).image_pull_secrets.iter().flatten();
    let names = references
        .secrets
        .iter()
        .chain(pulls.map(|reference| &reference.name));
    let secrets = names.filter_map(|name| shared.volumes.secrets.peek(namespace, name));
    let services = if shared.services.is_synced() {
        shared.services_now(namespace)
    } else {
        shared.keeper.services(namespace)
    };
    let class = spec(pod).runtime_class_name.clone();
    let runtime_class = class.filter(|name| !name.is_empty()).and_then(|name| {
        let known = shared.runtime_classes.get(None, &name);
        let handler = known.map(|class| class.handler.clone());
        let handler = handler.or_else(|| shared.keeper.handler(&name))?;
        Some((name, handler))
    });
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut pod = pod.clone();
    pod.metadata.managed_fields = None;
    pod.status = Some(status.clone());
    Record {
        pod,
        config_maps: maps.map(|map| (*map).clone()).collect(),
        secrets: secrets.map(|secret| (*secret).clone()).collect(),
        services: services.iter().map(|service| (**service).clone()).collect(),
        runtime_class,
        tokens: shared.volumes.tokens.of_pod(uid),
        certificates: shared.volumes.certificates.of_pod(uid),
        volumes: shared.volumes.answers.of_pod(uid),
    }
}
