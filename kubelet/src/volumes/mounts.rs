//! A container's mounts as host paths; the volumes stand already.

use super::{Placed, Volumes, sub_path, system};
use crate::cri::env::expand;
use cox_cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeDevice, VolumeMount};
use std::path::PathBuf;

/// Who looks at a sub path after the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// A runtime that mounts it by its path: it gets a mount of its own, which no container can move.
    Mounts,
    /// A runtime that opens it by its path and lets no guest follow a link out.
    Opens,
}

/// One mount before its sub path was looked for.
struct Planned {
    mount: v1::Mount,
    sub_path: Option<(PathBuf, String, PathBuf)>,
}

impl Volumes {
    /// The mounts of a container as host paths.
    pub async fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
        viewer: Viewer,
    ) -> Result<Vec<v1::Mount>, String> {
        let planned = self.plan_mounts(pod, container, env)?;
        let done = tokio::task::spawn_blocking(move || {
            planned
                .into_iter()
                .map(|planned| finish(planned, viewer))
                .collect()
        });
        done.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// The devices of a container.
    pub fn devices(&self, pod: &Pod, container: &Container) -> Result<Vec<v1::Device>, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let all = self.placed();
        let wanted = container.volume_devices.iter().flatten();
        let device = |asked: &VolumeDevice| {
            let placed = all.get(uid).and_then(|placed| placed.get(&asked.name));
            let Some(Placed::Device { path, read_only }) = placed else {
                return Err(format!(
                    "cannot find device \"{}\" for container \"{}\"",
                    asked.name, container.name
                ));
            };
            Ok(v1::Device {
                container_path: asked.device_path.clone(),
                host_path: path.to_string_lossy().into_owned(),
                permissions: if *read_only { "r" } else { "mrw" }.to_owned(),
            })
        };
        wanted.map(device).collect()
    }

    fn plan_mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<Planned>, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let all = self.placed();
        let mut planned = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let placed = all.get(uid).and_then(|placed| placed.get(&mount.name));
            let placed = placed.ok_or_else(|| {
                format!(
                    "cannot find volume \"{}\" to mount into container \"{}\"",
                    mount.name, container.name
                )
            })?;
            let sub_path = chosen_sub_path(mount, env)?;
            planned.push(match placed {
                Placed::Image { reference } => Planned {
                    mount: v1::Mount {
                        image: Some(v1::ImageSpec {
                            image: reference.clone(),
                            ..v1::ImageSpec::default()
                        }),
                        image_sub_path: sub_path.unwrap_or_default(),
                        readonly: true,
                        ..base(mount)
                    },
                    sub_path: None,
                },
                Placed::Device { .. } => {
                    return Err(format!(
                        "volume {} has volumeMode Block, but is specified in volumeMounts",
                        mount.name
                    ));
                }
                Placed::At { path, read_only } => Planned {
                    mount: v1::Mount {
                        host_path: path.to_string_lossy().into_owned(),
                        readonly: mount.read_only.unwrap_or(false) || *read_only,
                        ..base(mount)
                    },
                    sub_path: sub_path.map(|sub_path| {
                        let place = self.pod_dir(uid).join("volume-subpaths");
                        let place = place.join(&mount.name).join(&container.name);
                        (path.clone(), sub_path, place.join(index.to_string()))
                    }),
                },
            });
        }
        Ok(planned)
    }
}

/// What a mount says without its volume.
fn base(mount: &VolumeMount) -> v1::Mount {
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
        _ => v1::MountPropagation::PropagationPrivate,
    };
    v1::Mount {
        container_path: mount.mount_path.clone(),
        propagation: propagation.into(),
        // A wish: whether the runtime can is looked at by who asks for the mounts.
        recursive_read_only: matches!(
            mount.recursive_read_only.as_deref(),
            Some("Enabled" | "IfPossible")
        ),
        ..v1::Mount::default()
    }
}

/// The sub path with its variables; one that is not set is an error, so that nobody mounts too much.
fn chosen_sub_path(
    mount: &VolumeMount,
    env: &[(String, String)],
) -> Result<Option<String>, String> {
    if let Some(path) = mount.sub_path.as_ref().filter(|path| !path.is_empty()) {
        return Ok(Some(path.clone()));
    }
    let Some(expression) = mount.sub_path_expr.as_ref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let missing = std::cell::RefCell::new(None);
    let path = expand(expression, |name| {
        let found = env.iter().find(|(known, _)| known == name);
        if found.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        found.map(|(_, value)| value.as_str())
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for \"{name}\"")),
        None => Ok(Some(path)),
    }
}

fn finish(planned: Planned, viewer: Viewer) -> Result<v1::Mount, String> {
    let mut mount = planned.mount;
    if let Some((base, path, place)) = planned.sub_path {
        let found = sub_path::find(&base, &path)?;
        let shown = if viewer == Viewer::Mounts && system::can_mount() {
            found.mount(&place)?;
            place
        } else {
            found.path
        };
        mount.host_path = shown.to_string_lossy().into_owned();
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_table() {
        let env = [("A".to_owned(), "x".to_owned())];
        let cases = [
            ("none", serde_json::json!({}), Ok(None)),
            (
                "plain",
                serde_json::json!({"subPath": "$(A)"}),
                Ok(Some("$(A)")),
            ),
            (
                "expanded",
                serde_json::json!({"subPathExpr": "a/$(A)"}),
                Ok(Some("a/x")),
            ),
            (
                "not set",
                serde_json::json!({"subPathExpr": "a/$(B)"}),
                Err("missing value for \"B\""),
            ),
        ];
        for (name, mut mount, expected) in cases {
            mount["name"] = "v".into();
            mount["mountPath"] = "/v".into();
            let mount: VolumeMount = serde_json::from_value(mount).unwrap();
            let found = chosen_sub_path(&mount, &env);
            let found = found.as_ref().map(Option::as_deref).map_err(String::as_str);
            assert_eq!(found, expected, "case: {name}");
        }
    }
}
