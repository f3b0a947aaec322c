//! Devices of the Container Device Interface: vendors' files in `/etc/cdi` and `/var/run/cdi` say what a device called
//! `vendor.com/class=name` is made of: device nodes, mounts, environment, hooks. Read when a container asks for one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cox_cri::v1::{CdiDevice, ContainerConfig, Device, KeyValue, Mount};
use serde::Deserialize;

/// A file in the second one wins over one in the first.
const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    kind: String,
    devices: Vec<Entry>,
    container_edits: Part,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Entry {
    name: String,
    container_edits: Part,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Part {
    pub(crate) env: Vec<String>,
    pub(crate) device_nodes: Vec<Node>,
    pub(crate) mounts: Vec<Bind>,
    pub(crate) hooks: Vec<Call>,
    #[serde(rename = "additionalGids")]
    pub(crate) additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) path: String,
    pub(crate) host_path: String,
    pub(crate) permissions: String,
    pub(crate) file_mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Bind {
    pub(crate) host_path: PathBuf,
    pub(crate) container_path: PathBuf,
    pub(crate) r#type: String,
    pub(crate) options: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Call {
    pub(crate) hook_name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) timeout: Option<i64>,
}

/// What the devices of a container change about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edits {
    pub(crate) parts: Vec<Part>,
}

/// Looks the devices of a container up.
///
/// # Errors
/// With the names of those that no file describes.
pub(crate) fn edits(wanted: &[CdiDevice]) -> Result<Edits, String> {
    edits_in(&DIRS.map(Path::new), wanted)
}

pub(crate) fn edits_in(dirs: &[&Path], wanted: &[CdiDevice]) -> Result<Edits, String> {
    if wanted.is_empty() {
        return Ok(Edits::default());
    }
    let known = read(dirs);
    let (mut parts, mut missing, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    for CdiDevice { name } in wanted {
        let Some((kind, common, own)) = known.get(name) else {
            missing.push(name.as_str());
            continue;
        };
        // What all devices of a kind need is done once.
        if !kinds.contains(kind) {
            kinds.push(kind.clone());
            parts.push(common.clone());
        }
        parts.push(own.clone());
    }
    if missing.is_empty() {
        return Ok(Edits { parts });
    }
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(format!(
        "no file in {} describes the device {}",
        dirs.join(" or "),
        missing.join(", ")
    ))
}

/// All devices: their kind, what the kind needs, what they need.
fn read(dirs: &[&Path]) -> BTreeMap<String, (String, Part, Part)> {
    let mut known = BTreeMap::new();
    for dir in dirs {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let text = match path.extension().and_then(|end| end.to_str()) {
                Some("json" | "yaml" | "yml") => std::fs::read_to_string(&path),
                _ => continue,
            };
            // JSON is YAML, too.
            let file = text.map_err(|err| err.to_string()).and_then(|text| {
                serde_saphyr::from_str::<File>(&text).map_err(|err| err.to_string())
            });
            match file {
                Ok(file) => known.extend(file.devices.into_iter().map(|device| {
                    let name = format!("{}={}", file.kind, device.name);
                    (
                        name,
                        (
                            file.kind.clone(),
                            file.container_edits.clone(),
                            device.container_edits,
                        ),
                    )
                })),
                Err(why) => {
                    tracing::warn!(path = %path.display(), why, "A device description cannot be read")
                }
            }
        }
    }
    known
}

impl Edits {
    /// The device nodes, as a Pod would name them.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let nodes = self.parts.iter().flat_map(|part| &part.device_nodes);
        nodes
            .map(|node| Device {
                container_path: node.path.clone(),
                host_path: if node.host_path.is_empty() {
                    node.path.clone()
                } else {
                    node.host_path.clone()
                },
                permissions: node.permissions.clone(),
            })
            .collect()
    }

    /// Gives a Wasm container what of them can reach a guest: environment and files.
    ///
    /// # Errors
    /// In a sentence, if there is more to them.
    pub(crate) fn reach_guest(&self, config: &mut ContainerConfig) -> Result<(), String> {
        for part in &self.parts {
            let node = part.device_nodes.first().map(|node| node.path.as_str());
            let hook = part.hooks.first().map(|hook| hook.hook_name.as_str());
            let lacks = match (node, hook) {
                (Some(node), _) => Some(format!("the device node {node}")),
                (None, Some(hook)) => Some(format!("a {hook} hook")),
                (None, None) => None,
            };
            if let Some(lacks) = lacks {
                return Err(format!(
                    "a Wasm container cannot have {lacks}, which its device takes: only environment and files reach a guest; use an OCI image"
                ));
            }
            for pair in &part.env {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                config.envs.retain(|other| other.key != name);
                config.envs.push(KeyValue {
                    key: name.to_owned(),
                    value: value.as_bytes().to_vec(),
                });
            }
            let mounts = part.mounts.iter().map(|bind| Mount {
                container_path: bind.container_path.display().to_string(),
                host_path: bind.host_path.display().to_string(),
                readonly: bind.options.iter().any(|option| option == "ro"),
                ..Mount::default()
            });
            config.mounts.extend(mounts);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> CdiDevice {
        CdiDevice { name: name.into() }
    }

    #[test]
    fn a_device_that_nobody_describes_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let err = edits_in(&[dir.path()], &[device("vendor.com/gpu=9")]).unwrap_err();
        assert!(
            err.contains("vendor.com/gpu=9") && err.contains(&dir.path().display().to_string()),
            "{err}"
        );
        assert!(edits_in(&[dir.path()], &[]).unwrap().devices().is_empty());
    }

    #[test]
    fn a_guest_gets_environment_and_files_and_nothing_half() {
        let dir = tempfile::tempdir().unwrap();
        let file = "kind: v.com/c\ndevices:\n\
            - {name: key, containerEdits: {env: [A=1=2], mounts: [{hostPath: /k, containerPath: /key, options: [ro, bind]}]}}\n\
            - {name: card, containerEdits: {env: [B=1], deviceNodes: [{path: /dev/card0}]}}\n\
            - {name: hooked, containerEdits: {hooks: [{hookName: poststart, path: /bin/true}]}}\n";
        std::fs::write(dir.path().join("v.yaml"), file).unwrap();
        let reach = |name: &str| {
            let mut config = ContainerConfig {
                envs: vec![KeyValue {
                    key: "A".into(),
                    value: b"old".to_vec(),
                }],
                ..ContainerConfig::default()
            };
            let found = edits_in(&[dir.path()], &[device(name)]).unwrap();
            found.reach_guest(&mut config).map(|()| config)
        };
        let config = reach("v.com/c=key").unwrap();
        assert_eq!(config.envs.len(), 1);
        assert_eq!(config.envs[0].value, b"1=2");
        let mount = &config.mounts[0];
        assert_eq!(
            (mount.container_path.as_str(), mount.readonly),
            ("/key", true)
        );
        assert!(reach("v.com/c=card").unwrap_err().contains("/dev/card0"));
        assert!(
            reach("v.com/c=hooked")
                .unwrap_err()
                .contains("poststart hook")
        );
    }
}
