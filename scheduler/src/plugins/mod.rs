//! The plugins, one file each, and the profile that they make up.

pub mod default_binder;
pub mod dynamic_resources;
pub mod node_affinity;
pub mod node_declared_features;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_balanced;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod node_volume_limits;
pub mod taint_toleration;
pub mod volume_binding;
pub mod volume_restrictions;
pub mod volume_zone;

use std::sync::Arc;

use crate::framework::Profile;
use dynamic_resources::DynamicResources;
use volume_binding::VolumeBinding;

/// Upstream's default profile as far as its plugins exist here; order and weights are upstream's. What is set aside of volumes
/// stays in `volumes`, what of devices in `devices`.
#[must_use]
pub fn default_profile(volumes: &VolumeBinding, devices: &DynamicResources) -> Profile {
    let fit = node_resources_fit::NodeResourcesFit::new(Arc::clone(devices.devices()));
    let storage = || Arc::clone(volumes.storage());
    Profile {
        filters: vec![
            Box::new(node_unschedulable::NodeUnschedulable),
            Box::new(node_name::NodeName),
            Box::new(taint_toleration::TaintToleration),
            Box::new(node_affinity::NodeAffinity),
            Box::new(node_ports::NodePorts),
            Box::new(fit.clone()),
            Box::new(volume_restrictions::VolumeRestrictions::new(storage())),
            Box::new(node_volume_limits::NodeVolumeLimits::new(storage())),
            Box::new(volumes.clone()),
            Box::new(volume_zone::VolumeZone::new(storage())),
            Box::new(devices.clone()),
            Box::new(node_declared_features::NodeDeclaredFeatures),
        ],
        scores: vec![
            (Box::new(taint_toleration::TaintToleration), 3),
            (Box::new(node_affinity::NodeAffinity), 2),
            (Box::new(devices.clone()), 2),
            (Box::new(fit), 1),
            (
                Box::new(node_resources_balanced::NodeResourcesBalancedAllocation),
                1,
            ),
        ],
        reserves: vec![Box::new(volumes.clone()), Box::new(devices.clone())],
    }
}
