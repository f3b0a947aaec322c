//! What a volume is made of: reads what the API server holds for it and says what to put on disk.

use super::certificates::Place;
use super::claims::{self, Bound};
use super::nfs::Share;
use super::ownership::Ownership;
use super::payload::{self, DEFAULT_MODE, File, Payload};
use super::put::{Content, Medium};
use super::{Placed, Volumes, trust};
use crate::cri::resources::value;
use crate::csi::{Occasion, Wanted};
use crate::pod::containers::{all, spec};
use crate::pod::fields::PodAddresses;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, NFSVolumeSource, PersistentVolume, Pod, PodCertificateProjection,
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use std::path::{Path, PathBuf};

type Made = Result<(Content, Placed), String>;

impl Volumes {
    /// What one volume is made of and where it will be.
    pub(super) async fn source(
        &self,
        pod: &Pod,
        volume: &Volume,
        addresses: &PodAddresses,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Made {
        if let Some(source) = &volume.empty_dir {
            let folder = self.folder(pod, "empty-dir", &volume.name);
            let placed = at(folder.clone());
            let medium = medium(pod, source, self.allocatable.memory_bytes)?;
            return Ok((Content::Empty { folder, medium }, placed));
        }
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            let kind = source.type_.clone().unwrap_or_default();
            return Ok((
                Content::Host {
                    path: path.clone(),
                    kind,
                },
                at(path),
            ));
        }
        if let Some(image) = &volume.image {
            let reference = image.reference.clone().unwrap_or_default();
            return Ok((Content::Nothing, Placed::Image { reference }));
        }
        if let Some((claim, read_only)) = claims::claim_of(pod, volume) {
            let bound = claims::bound(&self.answers, pod, volume, &claim).await?;
            claims::check_mode(pod, volume, &bound.volume)?;
            if bound.is_kept {
                // So that the API server's word counts soon after it is back.
                come_again(renew_at, now);
            }
            if let Some(spec) = &bound.volume.spec
                && let Some(source) = &spec.nfs
            {
                let options = spec.mount_options.as_deref().unwrap_or_default();
                return Ok(self.nfs(pod, volume, source, options, read_only));
            }
            let Some(wanted) = Wanted::of_volume(&bound.volume, read_only) else {
                return persistent(&bound.volume, read_only, &self.local);
            };
            let made = self.of_driver(pod, volume, &wanted, now, renew_at).await?;
            if self.csi.expands(&wanted) {
                self.grow(pod, &wanted, &made.1, &bound).await?;
                come_again(renew_at, now);
            }
            return Ok(made);
        }
        if let Some(source) = &volume.nfs {
            return Ok(self.nfs(pod, volume, source, &[], false));
        }
        if let Some(source) = &volume.csi {
            let wanted = Wanted::of_pod(pod, volume, source);
            return self.of_driver(pod, volume, &wanted, now, renew_at).await;
        }
        let (kind, payload) = self.files(pod, volume, addresses, now, renew_at).await?;
        // As upstream: a config map holds nothing that a disk must not, the others may.
        let folder = match kind {
            "configmap" => self.folder(pod, kind, &volume.name),
            _ => self.folder_in_memory(pod, kind, &volume.name).await,
        };
        let placed = Placed::At {
            path: folder.clone(),
            // What the kubelet replaces is not for containers to write.
            read_only: true,
        };
        Ok((Content::Files { folder, payload }, placed))
    }

    /// A share of an NFS server. One that is mounted stays as it is.
    fn nfs(
        &self,
        pod: &Pod,
        volume: &Volume,
        source: &NFSVolumeSource,
        options: &[String],
        read_only: bool,
    ) -> (Content, Placed) {
        let read_only = read_only || source.read_only.unwrap_or(false);
        let folder = self.folder(pod, "nfs", &volume.name);
        let placed = Placed::At {
            path: folder.clone(),
            read_only,
        };
        let share = Share::of(source, options, read_only);
        let helpers = self.helpers.clone();
        (
            Content::Nfs {
                folder,
                share,
                helpers,
            },
            placed,
        )
    }

    /// A volume that a driver mounts; one that stands is left as it is, unless its driver wants to be asked again.
    async fn of_driver(
        &self,
        pod: &Pod,
        volume: &Volume,
        wanted: &Wanted,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Made {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let key = (uid.to_owned(), volume.name.clone());
        let stands = self
            .placed()
            .get(uid)
            .and_then(|placed| placed.get(&volume.name).cloned());
        let due = self.republish().get(&key).copied();
        if let Some(placed) = stands
            && due.is_none_or(|due| now < due)
        {
            if let Some(due) = due {
                *renew_at = Some(renew_at.map_or(due, |known| known.min(due)));
            }
            return Ok((Content::Nothing, placed));
        }
        let occasion = Occasion {
            answers: &self.answers,
            pod,
            group: Ownership::of(pod).gid,
            tokens: &self.tokens,
            now,
        };
        let mounted = self.csi.mount(occasion, wanted).await?;
        if let Some(again) = mounted.again {
            self.republish().insert(key, again);
            *renew_at = Some(renew_at.map_or(again, |known| known.min(again)));
        }
        let (path, read_only) = (mounted.path.clone(), wanted.read_only);
        let placed = if wanted.is_block {
            Placed::Device { path, read_only }
        } else {
            Placed::At { path, read_only }
        };
        let content = if mounted.for_group {
            Content::Local { path: mounted.path }
        } else {
            Content::Nothing
        };
        Ok((content, placed))
    }

    /// Has a volume grown to what it has become. Nothing grows whose claim cannot be told of it.
    async fn grow(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        placed: &Placed,
        bound: &Bound,
    ) -> Result<(), String> {
        if bound.is_kept {
            return Ok(());
        }
        let (Placed::At { path, .. } | Placed::Device { path, .. }) = placed else {
            return Ok(());
        };
        let name = bound.volume.metadata.name.as_deref().unwrap_or_default();
        if self
            .csi
            .grow(
                &self.answers,
                pod,
                wanted,
                path,
                (&bound.claim, &bound.volume),
            )
            .await?
        {
            let pod = crate::pod::containers::display(pod);
            tracing::info!(volume = name, pod, "Volume has grown");
        }
        Ok(())
    }

    /// The files of a volume that the kubelet writes, and what its folder is called.
    async fn files(
        &self,
        pod: &Pod,
        volume: &Volume,
        addresses: &PodAddresses,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<(&'static str, Payload), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(source) = &volume.config_map {
            let map = self.config_maps.get(namespace, &source.name).await?;
            let files = payload::of_config_map(
                &source.name,
                map.as_deref(),
                source.items.as_deref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                source.optional.unwrap_or(false),
            )?;
            return Ok(("configmap", files));
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let secret = self.secrets.get(namespace, name).await?;
            let files = payload::of_secret(
                name,
                secret.as_deref(),
                source.items.as_deref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                source.optional.unwrap_or(false),
            )?;
            return Ok(("secret", files));
        }
        if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let items = source.items.as_deref().unwrap_or_default();
            let files = payload::of_downward_api(pod, items, mode, addresses, self.allocatable)?;
            return Ok(("downward-api", files));
        }
        if let Some(source) = &volume.projected {
            let files = self
                .projected(pod, &volume.name, source, addresses, now, renew_at)
                .await?;
            return Ok(("projected", files));
        }
        Err(format!(
            "no volume plugin matched: this node does not support volumes of kind {} (a CSI driver may)",
            kind_of(volume)
        ))
    }

    /// All sources of a projected volume in one set of files; a later source wins over an earlier one.
    async fn projected(
        &self,
        pod: &Pod,
        volume: &str,
        projected: &ProjectedVolumeSource,
        addresses: &PodAddresses,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<Payload, String> {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        let mut files = Payload::new();
        for (index, source) in projected.sources.iter().flatten().enumerate() {
            if let Some(source) = &source.pod_certificate {
                let place = Place::new(volume, index);
                let (shown, due) = self.certificate(pod, place, source, mode).await?;
                *renew_at = Some(renew_at.map_or(due, |known| known.min(due)));
                files.extend(shown);
            } else if let Some(source) = &source.service_account_token {
                let (file, due) = self.token(pod, source, mode).await?;
                *renew_at = Some(renew_at.map_or(due, |known| known.min(due)));
                files.insert(source.path.clone(), file);
            } else if let Some(source) = &source.cluster_trust_bundle {
                payload::check_path(&source.path)?;
                let found = trust::bundle(&self.answers, pod, source).await?;
                // One that may be missing is an empty file, as upstream.
                let text = found.unwrap_or_default();
                files.insert(
                    source.path.clone(),
                    owned_file(pod, text.into_bytes(), mode),
                );
                // Nobody tells a node that a bundle changed, or that it is there now.
                come_again(renew_at, now);
            } else {
                files.extend(self.projection(pod, source, mode, addresses).await?);
            }
        }
        Ok(files)
    }

    async fn projection(
        &self,
        pod: &Pod,
        source: &VolumeProjection,
        mode: i32,
        addresses: &PodAddresses,
    ) -> Result<Payload, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(source) = &source.config_map {
            let map = self.config_maps.get(namespace, &source.name).await?;
            let optional = source.optional.unwrap_or(false);
            let items = source.items.as_deref();
            return payload::of_config_map(&source.name, map.as_deref(), items, mode, optional);
        }
        if let Some(source) = &source.secret {
            let secret = self.secrets.get(namespace, &source.name).await?;
            let optional = source.optional.unwrap_or(false);
            let items = source.items.as_deref();
            return payload::of_secret(&source.name, secret.as_deref(), items, mode, optional);
        }
        if let Some(source) = &source.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            return payload::of_downward_api(pod, items, mode, addresses, self.allocatable);
        }
        Err("a projection of a kind that this node does not know".to_owned())
    }

    /// The files of a key and its certificates: both in one, or each in its own.
    async fn certificate(
        &self,
        pod: &Pod,
        place: Place,
        source: &PodCertificateProjection,
        mode: i32,
    ) -> Result<(Payload, Timestamp), String> {
        let paths = [
            &source.credential_bundle_path,
            &source.key_path,
            &source.certificate_chain_path,
        ];
        let paths = paths.map(|path| path.as_deref().filter(|path| !path.is_empty()));
        for path in paths.into_iter().flatten() {
            payload::check_path(path)?;
        }
        let (found, due) = self.certificates.credential(pod, place, source).await?;
        let both = format!("{}{}", found.key, found.chain);
        let texts = [both, found.key, found.chain];
        let shown = paths.into_iter().zip(texts).filter_map(|(path, text)| {
            let file = owned_file(pod, text.into_bytes(), mode);
            Some((path?.to_owned(), file))
        });
        Ok((shown.collect(), due))
    }

    /// The file of a token.
    async fn token(
        &self,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
        mode: i32,
    ) -> Result<(File, Timestamp), String> {
        payload::check_path(&source.path)?;
        let token = self.tokens.token(pod, source).await?;
        let file = owned_file(pod, token.text.into_bytes(), mode);
        Ok((file, token.renew_at))
    }
}

/// A file of what was issued for the Pod. If the Pod names a group or one user, it is for them only.
fn owned_file(pod: &Pod, data: Vec<u8>, mode: i32) -> File {
    let ownership = Ownership::of(pod);
    let is_private = ownership.gid.is_some() || ownership.uid.is_some();
    let mode = if is_private { 0o600 } else { permissions(mode) };
    let mut file = File::new(data, mode);
    if super::system::can_mount() {
        // Only root can give a file away; whoever is not is the only user there is.
        file.uid = ownership.uid;
    }
    file
}

/// What changes without a word to the node is looked at so often: volumes that may grow, trust bundles.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);

fn come_again(renew_at: &mut Option<Timestamp>, now: Timestamp) {
    let next = now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX);
    *renew_at = Some(renew_at.map_or(next, |known| known.min(next)));
}

fn at(path: PathBuf) -> Placed {
    Placed::At {
        path,
        read_only: false,
    }
}

fn permissions(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// What an emptyDir is made of. In memory it is bounded by its own limit and by the memory that the Pod may have.
fn medium(pod: &Pod, source: &EmptyDirVolumeSource, node_memory: i64) -> Result<Medium, String> {
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Medium::Disk),
        "Memory" => {
            let own = source.size_limit.as_ref().and_then(value);
            let bound = memory_limit(pod).unwrap_or(node_memory);
            let size_max = own
                .filter(|own| *own > 0)
                .map_or(bound, |own| own.min(bound));
            Ok(Medium::Memory {
                size_max: (size_max > 0).then_some(size_max),
            })
        }
        "HugePages" => Ok(Medium::HugePages { page: None }),
        other => match other.strip_prefix("HugePages-") {
            // The kernel writes the unit without the `i`.
            Some(page) => Ok(Medium::HugePages {
                page: Some(page.trim_end_matches('i').to_owned()),
            }),
            None => Err(format!("unknown storage medium \"{other}\"")),
        },
    }
}

/// The memory that all containers of a Pod may use together; `None`: one has no limit.
fn memory_limit(pod: &Pod) -> Option<i64> {
    let of_pod = spec(pod).resources.as_ref();
    let of_pod = of_pod.and_then(|resources| resources.limits.as_ref()?.get("memory"));
    if let Some(limit) = of_pod.and_then(value) {
        return Some(limit);
    }
    all(pod)
        .map(|container| {
            value(
                container
                    .resources
                    .as_ref()?
                    .limits
                    .as_ref()?
                    .get("memory")?,
            )
        })
        .sum()
}

/// A persistent volume of a kind that is on this machine.
fn persistent(volume: &PersistentVolume, read_only: bool, local: &Path) -> Made {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    if let Some(source) = spec.host_path {
        let path = PathBuf::from(source.path);
        if path.parent() == Some(local) {
            let content = Content::Own { path: path.clone() };
            return Ok((content, Placed::At { path, read_only }));
        }
        let content = Content::Host {
            path: path.clone(),
            kind: source.type_.unwrap_or_default(),
        };
        return Ok((content, Placed::At { path, read_only }));
    }
    if let Some(source) = spec.local {
        let path = PathBuf::from(source.path);
        if spec.volume_mode.as_deref() == Some("Block") {
            let content = Content::Device { path: path.clone() };
            return Ok((content, Placed::Device { path, read_only }));
        }
        let content = Content::Local { path: path.clone() };
        return Ok((content, Placed::At { path, read_only }));
    }
    Err(format!(
        "no volume plugin matched: persistent volume {name} is of a kind that this node does not support (a CSI driver may)"
    ))
}

/// The name of the source that a volume has, as the API spells it.
fn kind_of(volume: &Volume) -> String {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let kind = fields
        .as_object()
        .and_then(|fields| fields.keys().find(|key| *key != "name").cloned());
    kind.unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mediums_table() {
        let limited = json!([{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}, {"name": "b", "resources": {"limits": {"memory": "1Mi"}}}]);
        let free = json!([{"name": "a"}]);
        let memory = |size_max: i64| {
            Ok(Medium::Memory {
                size_max: Some(size_max),
            })
        };
        let cases = [
            ("disk", json!({}), &free, Ok(Medium::Disk)),
            (
                "the node's memory",
                json!({"medium": "Memory"}),
                &free,
                memory(1 << 30),
            ),
            (
                "its own limit",
                json!({"medium": "Memory", "sizeLimit": "64Ki"}),
                &free,
                memory(64 << 10),
            ),
            (
                "the limits of the containers together",
                json!({"medium": "Memory", "sizeLimit": "1Gi"}),
                &limited,
                memory(2 << 20),
            ),
            (
                "huge pages",
                json!({"medium": "HugePages-2Mi"}),
                &free,
                Ok(Medium::HugePages {
                    page: Some("2M".into()),
                }),
            ),
            (
                "anything else",
                json!({"medium": "Tape"}),
                &free,
                Err("unknown storage medium \"Tape\"".to_owned()),
            ),
        ];
        for (name, source, containers, expected) in cases {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {}, "spec": {"containers": containers}}))
                    .unwrap();
            let source: EmptyDirVolumeSource = serde_json::from_value(source).unwrap();
            assert_eq!(medium(&pod, &source, 1 << 30), expected, "case: {name}");
        }
    }

    #[test]
    fn a_kind_is_named_as_the_api_does() {
        let volume: Volume = serde_json::from_value(
            json!({"name": "a", "iscsi": {"targetPortal": "s", "iqn": "i", "lun": 0}}),
        )
        .unwrap();
        assert_eq!(kind_of(&volume), "iscsi");
    }
}
