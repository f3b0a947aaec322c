//! Volumes of Pods, laid out below the data folder as upstream does: `pods/UID/volumes/kubernetes.io~KIND/NAME`.
//!
//! [`Volumes::sync`] makes or refreshes all volumes of a Pod (idempotent), [`Volumes::mounts`] turns a container's mounts into
//! host paths, [`Volumes::remove`] deletes what was made. Kinds that this node cannot offer are an error with a sentence.

pub mod atomic;
pub mod host_path;
pub mod objects;
pub mod payload;
pub mod tokens;

use crate::cri::env::expand;
use crate::pod::containers::{all, spec};
use crate::pod::fields::{NodeAllocatable, PodAddresses};
use cox_cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Pod, ProjectedVolumeSource, Secret, Volume,
};
use objects::Objects;
use payload::{DEFAULT_MODE, Payload};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokens::Tokens;

/// Makes volumes.
#[derive(Debug)]
pub struct Volumes {
    /// `<data_dir>/pods`.
    pub root: PathBuf,
    pub config_maps: Objects<ConfigMap>,
    pub secrets: Objects<Secret>,
    pub tokens: Tokens,
    pub allocatable: NodeAllocatable,
}

/// The objects that a Pod's volumes and environment refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// One volume could not be made; the text goes into the FailedMount event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
pub struct MountError {
    pub volume: String,
    pub reason: String,
}

/// What has to be put on disk for one volume.
enum Content {
    Files { folder: PathBuf, payload: Payload },
    Empty { folder: PathBuf },
    Host { path: PathBuf, kind: String },
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

impl Volumes {
    /// The folder that holds everything of a Pod.
    #[must_use]
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    fn folder(&self, pod: &Pod, kind: &str, volume: &str) -> PathBuf {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.pod_dir(uid)
            .join("volumes")
            .join(format!("kubernetes.io~{kind}"))
            .join(volume)
    }

    /// Makes all volumes, or brings their files up to date. The answer is when a token wants to be renewed.
    pub async fn sync(
        &self,
        pod: &Pod,
        addresses: &PodAddresses,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, MountError> {
        let mut contents = Vec::new();
        let mut renew_at: Option<Timestamp> = None;
        for volume in spec(pod).volumes.iter().flatten() {
            let content = self.content(pod, volume, addresses, &mut renew_at).await;
            let content = content.map_err(|reason| MountError {
                volume: volume.name.clone(),
                reason,
            })?;
            contents.push((volume.name.clone(), content));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let pod_dir = self.pod_dir(uid);
        let written = tokio::task::spawn_blocking(move || {
            make_private(&pod_dir).map_err(|error| MountError {
                volume: String::new(),
                reason: error.to_string(),
            })?;
            for (volume, content) in contents {
                put(content, now).map_err(|reason| MountError { volume, reason })?;
            }
            Ok(())
        });
        written.await.unwrap_or_else(|error| {
            Err(MountError {
                volume: String::new(),
                reason: error.to_string(),
            })
        })?;
        Ok(renew_at)
    }

    async fn content(
        &self,
        pod: &Pod,
        volume: &Volume,
        addresses: &PodAddresses,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<Content, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let folder = |kind: &str| self.folder(pod, kind, &volume.name);
        if volume.empty_dir.is_some() {
            return Ok(Content::Empty {
                folder: folder("empty-dir"),
            });
        }
        if let Some(source) = &volume.host_path {
            let kind = source.type_.clone().unwrap_or_default();
            return Ok(Content::Host {
                path: PathBuf::from(&source.path),
                kind,
            });
        }
        if let Some(source) = &volume.config_map {
            let map = self.config_maps.get(namespace, &source.name).await?;
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let optional = source.optional.unwrap_or(false);
            let payload = payload::of_config_map(
                &source.name,
                map.as_deref(),
                source.items.as_deref(),
                mode,
                optional,
            )?;
            return Ok(Content::Files {
                folder: folder("configmap"),
                payload,
            });
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let secret = self.secrets.get(namespace, name).await?;
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let optional = source.optional.unwrap_or(false);
            let payload = payload::of_secret(
                name,
                secret.as_deref(),
                source.items.as_deref(),
                mode,
                optional,
            )?;
            return Ok(Content::Files {
                folder: folder("secret"),
                payload,
            });
        }
        if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let items = source.items.as_deref().unwrap_or_default();
            let payload = payload::of_downward_api(pod, items, mode, addresses, self.allocatable)?;
            return Ok(Content::Files {
                folder: folder("downward-api"),
                payload,
            });
        }
        if let Some(source) = &volume.projected {
            let payload = self.projected(pod, source, addresses, renew_at).await?;
            return Ok(Content::Files {
                folder: folder("projected"),
                payload,
            });
        }
        Err(format!(
            "this node does not support volumes of kind {}",
            kind_of(volume)
        ))
    }

    /// All sources of a projected volume in one set of files; a later source wins over an earlier one.
    async fn projected(
        &self,
        pod: &Pod,
        projected: &ProjectedVolumeSource,
        addresses: &PodAddresses,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<Payload, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        let mut files = Payload::new();
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let map = self.config_maps.get(namespace, &source.name).await?;
                let optional = source.optional.unwrap_or(false);
                let items = source.items.as_deref();
                files.extend(payload::of_config_map(
                    &source.name,
                    map.as_deref(),
                    items,
                    mode,
                    optional,
                )?);
            } else if let Some(source) = &source.secret {
                let secret = self.secrets.get(namespace, &source.name).await?;
                let optional = source.optional.unwrap_or(false);
                let items = source.items.as_deref();
                files.extend(payload::of_secret(
                    &source.name,
                    secret.as_deref(),
                    items,
                    mode,
                    optional,
                )?);
            } else if let Some(source) = &source.downward_api {
                let items = source.items.as_deref().unwrap_or_default();
                files.extend(payload::of_downward_api(
                    pod,
                    items,
                    mode,
                    addresses,
                    self.allocatable,
                )?);
            } else if let Some(source) = &source.service_account_token {
                payload::check_path(&source.path)?;
                let token = self.tokens.token(pod, source).await?;
                *renew_at =
                    Some(renew_at.map_or(token.renew_at, |known| known.min(token.renew_at)));
                let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
                files.insert(
                    source.path.clone(),
                    payload::File {
                        data: token.text.into_bytes(),
                        mode,
                    },
                );
            } else {
                return Err(
                    "this node does not support cluster trust bundles or pod certificates"
                        .to_owned(),
                );
            }
        }
        Ok(files)
    }

    /// The mounts of a container as host paths; the volumes stand already.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<v1::Mount>, String> {
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = spec(pod)
                .volumes
                .iter()
                .flatten()
                .find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| {
                format!(
                    "cannot find volume \"{}\" to mount into container \"{}\"",
                    mount.name, container.name
                )
            })?;
            let (base, files) = self.host_side(pod, volume)?;
            let lookup = |name: &str| {
                env.iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.as_str())
            };
            let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
                (Some(path), _) if !path.is_empty() => Some(path.clone()),
                (_, Some(expression)) if !expression.is_empty() => Some(expand(expression, lookup)),
                _ => None,
            };
            let host_path = match sub_path {
                Some(sub_path) => below(&base, &sub_path)?,
                None => base,
            };
            let propagation = match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
                Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
                _ => v1::MountPropagation::PropagationPrivate,
            };
            mounts.push(v1::Mount {
                container_path: mount.mount_path.clone(),
                host_path: host_path.to_string_lossy().into_owned(),
                // Files that the kubelet replaces are not for containers to write.
                readonly: mount.read_only.unwrap_or(false) || files,
                propagation: propagation.into(),
                ..v1::Mount::default()
            });
        }
        Ok(mounts)
    }

    /// Where a volume is on the host, and whether it holds files that the kubelet writes.
    fn host_side(&self, pod: &Pod, volume: &Volume) -> Result<(PathBuf, bool), String> {
        let folder = |kind: &str| self.folder(pod, kind, &volume.name);
        if let Some(source) = &volume.host_path {
            return Ok((PathBuf::from(&source.path), false));
        }
        Ok(match kind_of(volume) {
            "emptyDir" => (folder("empty-dir"), false),
            "configMap" => (folder("configmap"), true),
            "secret" => (folder("secret"), true),
            "downwardAPI" => (folder("downward-api"), true),
            "projected" => (folder("projected"), true),
            other => {
                return Err(format!(
                    "this node does not support volumes of kind {other}"
                ));
            }
        })
    }

    /// Deletes what was made for a Pod.
    pub async fn remove(&self, uid: &str) -> io::Result<()> {
        self.tokens.forget(uid);
        let dir = self.pod_dir(uid);
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
        removed
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// The folder of a Pod is for its owner only: there are secrets in it.
fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

fn put(content: Content, now: Timestamp) -> Result<(), String> {
    match content {
        Content::Files { folder, payload } => atomic::write(&folder, &payload, now)
            .map(drop)
            .map_err(|error| error.to_string()),
        Content::Empty { folder } => {
            let made = std::fs::create_dir_all(&folder).and_then(|()| {
                std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))
            });
            made.map_err(|error| error.to_string())
        }
        Content::Host { path, kind } => host_path::prepare(&path, &kind),
    }
}

/// A path inside a volume; made as a folder if it is not there. A link that leads out of the volume is refused.
fn below(base: &Path, sub_path: &str) -> Result<PathBuf, String> {
    let fails = |error: io::Error| {
        format!("failed to prepare subPath \"{sub_path}\" of the volume: {error}")
    };
    if Path::new(sub_path).components().any(|part| {
        !matches!(
            part,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    }) {
        return Err(format!(
            "subPath \"{sub_path}\" must be a relative path without \"..\""
        ));
    }
    let wanted = base.join(sub_path);
    if std::fs::symlink_metadata(&wanted).is_err() {
        // The part that exists must be inside before anything is made below it.
        let mut existing = wanted.as_path();
        while std::fs::symlink_metadata(existing).is_err() {
            existing = existing.parent().unwrap_or(base);
        }
        inside(base, existing)?;
        std::fs::create_dir_all(&wanted).map_err(fails)?;
    }
    inside(base, &wanted)
}

fn inside(base: &Path, path: &Path) -> Result<PathBuf, String> {
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| format!("{} cannot be resolved: {error}", path.display()))
    };
    let (base, path) = (real(base)?, real(path)?);
    if path.starts_with(&base) {
        Ok(path)
    } else {
        Err(format!("{} leads out of the volume", path.display()))
    }
}

/// The name of the source that a volume has, as the API spells it.
fn kind_of(volume: &Volume) -> &'static str {
    let kinds = [
        (volume.empty_dir.is_some(), "emptyDir"),
        (volume.host_path.is_some(), "hostPath"),
        (volume.config_map.is_some(), "configMap"),
        (volume.secret.is_some(), "secret"),
        (volume.downward_api.is_some(), "downwardAPI"),
        (volume.projected.is_some(), "projected"),
        (
            volume.persistent_volume_claim.is_some(),
            "persistentVolumeClaim",
        ),
        (volume.csi.is_some(), "csi"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.image.is_some(), "image"),
        (volume.nfs.is_some(), "nfs"),
    ];
    kinds
        .into_iter()
        .find(|(present, _)| *present)
        .map_or("unknown", |(_, kind)| kind)
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

    #[test]
    fn a_sub_path_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("v");
        std::fs::create_dir(&base).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        assert_eq!(
            below(&base, "a/b").unwrap(),
            base.canonicalize().unwrap().join("a/b")
        );
        assert!(below(&base, "../x").unwrap_err().contains("without"));
        assert!(below(&base, "out").unwrap_err().contains("leads out"));
        assert!(
            below(&base, "out/deep/er")
                .unwrap_err()
                .contains("leads out")
        );
        assert!(!Path::new("/etc/deep").exists());
    }
}
