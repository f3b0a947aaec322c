//! What a container gets of volumes and devices: mounts, the images that are volumes, devices of plugins and of volumes.

use super::effects::{NotStarted, Subject};
use crate::cri::images::Missing;
use crate::devices::ForContainer;
use crate::node::Handler;
use crate::pod::containers::spec;
use crate::pod::history::ImageKind;
use crate::pod::plan::PodNetwork;
use crate::volumes::Viewer;
use cox_client::events::EventType;
use cox_cri::v1;
use k8s_openapi::api::core::v1::{Container, VolumeMount};
use std::sync::atomic::Ordering;

impl Subject {
    /// The mounts of a container's volumes; the images among them are on the node then.
    pub(super) async fn mounts_of(
        &self,
        container: &Container,
        network: PodNetwork,
        variables: &[(String, String)],
    ) -> Result<Vec<v1::Mount>, NotStarted> {
        let failed = |reason, message| NotStarted {
            reason,
            message,
            made: None,
        };
        self.volume_images(container, network)
            .await
            .map_err(|missing| failed(missing.reason, missing.message))?;
        let viewer = match network {
            PodNetwork::Namespace => Viewer::Mounts,
            PodNetwork::Virtual => Viewer::Opens,
        };
        let failed = |message| failed("CreateContainerConfigError", message);
        let read_only_below = self.read_only_below(container).await.map_err(failed)?;
        let volumes = &self.shared.volumes;
        let mounts = volumes.mounts(&self.pod, container, variables, viewer);
        let mut mounts = mounts.await.map_err(failed)?;
        for mount in &mut mounts {
            mount.recursive_read_only &= read_only_below;
        }
        Ok(mounts)
    }

    /// Whether mounts that want to be read-only all the way down can be. One that has to be, and cannot, is an error.
    async fn read_only_below(&self, container: &Container) -> Result<bool, String> {
        let wish = |mount: &VolumeMount| mount.recursive_read_only.clone();
        let mounts = container.volume_mounts.iter().flatten();
        let mut wishes = mounts.filter_map(wish).filter(|wish| wish != "Disabled");
        let Some(first) = wishes.next() else {
            return Ok(false);
        };
        let handler = self.shared.handler(&self.pod).await?;
        let status = self.shared.runtime.status().await;
        let status = status.map_err(|error| error.to_string())?;
        let can = Handler::of(&status)
            .into_iter()
            .find(|one| one.name == handler)
            .and_then(|one| one.features)
            .is_some_and(|features| features.recursive_read_only_mounts);
        self.shared.read_only_below.store(can, Ordering::Relaxed);
        if !can
            && std::iter::once(first)
                .chain(wishes)
                .any(|wish| wish == "Enabled")
        {
            return Err(format!(
                "recursive read-only mounts are not supported by runtime handler \"{handler}\""
            ));
        }
        Ok(can)
    }

    /// What a container gets of plugins' devices, the devices of its volumes, and those that it claims.
    pub(super) async fn plugged(
        &self,
        container: &Container,
        kind: ImageKind,
    ) -> Result<ForContainer, String> {
        let devices = &self.shared.devices;
        let mut plugged = devices.for_container(&self.pod, &container.name).await?;
        let volumes = self.shared.volumes.devices(&self.pod, container)?;
        plugged.devices.extend(volumes);
        let claimed = self.shared.claims.for_container(&self.pod, container)?;
        plugged.cdi.extend(claimed);
        // What the runtime's device interface makes of a device may suit a guest: the runtime tells.
        if kind == ImageKind::Wasm && !plugged.devices.is_empty() {
            return Err("a Wasm container cannot have devices: use an OCI image, or a volume with volumeMode Filesystem".to_owned());
        }
        Ok(plugged)
    }

    /// Gets the images that a container mounts as volumes onto the node.
    async fn volume_images(
        &self,
        container: &Container,
        network: PodNetwork,
    ) -> Result<(), Missing> {
        let volumes = spec(&self.pod).volumes.as_deref().unwrap_or_default();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let Some(source) = volume.and_then(|volume| volume.image.as_ref()) else {
                continue;
            };
            let image = Container {
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Container::default()
            };
            let secrets = self.shared.pull_secrets(&self.pod).await;
            let sandbox = self.sandbox_message(0, network);
            let name = source.reference.clone().unwrap_or_default();
            let pulling = || {
                let message = format!("Pulling image \"{name}\"");
                self.events
                    .container(&container.name, EventType::Normal, "Pulling", message);
            };
            self.shared
                .images
                .resolve(&image, "", &secrets, sandbox, pulling)
                .await?;
        }
        Ok(())
    }
}
