//! Which config maps and secrets a Pod's volumes and environment refer to. Pure.

use crate::pod::containers::{all, spec};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

/// The objects that a Pod's volumes and environment refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

impl References {
    /// Of a Pod: what its volumes and its containers' environments name.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let mut found = Self::default();
        for volume in spec(pod).volumes.iter().flatten() {
            found
                .config_maps
                .extend(volume.config_map.iter().map(|source| source.name.clone()));
            found.secrets.extend(
                volume
                    .secret
                    .iter()
                    .filter_map(|source| source.secret_name.clone()),
            );
            for source in volume
                .projected
                .iter()
                .flat_map(|projected| projected.sources.iter().flatten())
            {
                found
                    .config_maps
                    .extend(source.config_map.iter().map(|source| source.name.clone()));
                found
                    .secrets
                    .extend(source.secret.iter().map(|source| source.name.clone()));
            }
        }
        for container in all(pod) {
            let needs = crate::cri::env::needs(container);
            found.config_maps.extend(needs.config_maps);
            found.secrets.extend(needs.secrets);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_from_volumes_and_environments() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {
            "volumes": [
                {"name": "a", "configMap": {"name": "m1"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "m2"}}, {"secret": {"name": "s1"}}]}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s2"}}]}]}}))
        .unwrap();
        let found = References::of(&pod);
        assert_eq!(
            found.config_maps.into_iter().collect::<Vec<_>>(),
            ["m1", "m2"]
        );
        assert_eq!(found.secrets.into_iter().collect::<Vec<_>>(), ["s1", "s2"]);
    }
}
