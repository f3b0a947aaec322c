//! What the files of a config map, secret, downward API or projected volume hold. Pure.

use crate::pod::fields::{self, NodeAllocatable, PodAddresses};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// Mode of a file that names none.
pub const DEFAULT_MODE: i32 = 0o644;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Who owns it, if not whoever runs the kubelet.
    pub uid: Option<u32>,
}

impl File {
    /// A file of the kubelet's own user.
    #[must_use]
    pub fn new(data: Vec<u8>, mode: u32) -> Self {
        Self {
            data,
            mode,
            uid: None,
        }
    }
}

impl std::fmt::Debug for File {
    /// Without the content, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, mode {:o}", self.data.len(), self.mode)
    }
}

/// Files by their path in the volume.
pub type Payload = BTreeMap<String, File>;

fn mode(own: Option<i32>, default: i32) -> u32 {
    u32::try_from(own.unwrap_or(default)).unwrap_or(0o644) & 0o777
}

/// Refuses paths that leave the volume; the API server does too, a static manifest or an older one may not.
pub fn check_path(path: &str) -> Result<(), String> {
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let first = path.split('/').next().unwrap_or_default();
    if path.is_empty() || !inside || first.starts_with("..") {
        return Err(format!(
            "invalid path \"{path}\": it must stay inside the volume"
        ));
    }
    Ok(())
}

/// Picks keys, or all of them. `missing` is how the complaint about an absent key begins.
fn pick(
    missing: &str,
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, data) in data {
            check_path(&key)?;
            payload.insert(key, File::new(data, mode(None, default_mode)));
        }
        return Ok(payload);
    };
    for item in items {
        check_path(&item.path)?;
        match data.get(&item.key) {
            Some(data) => {
                payload.insert(
                    item.path.clone(),
                    File::new(data.clone(), mode(item.mode, default_mode)),
                );
            }
            None if optional => {}
            None => {
                return Err(format!("{missing} key: {}", item.key));
            }
        }
    }
    Ok(payload)
}

/// Files of a config map; `None`: it does not exist.
pub fn of_config_map(
    name: &str,
    map: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(map) = map else {
        return if optional {
            Ok(Payload::new())
        } else {
            Err(format!("configmap \"{name}\" not found"))
        };
    };
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()));
    pick(
        "configmap references non-existent config",
        text.chain(binary).collect(),
        items,
        default_mode,
        optional,
    )
}

/// Files of a secret; `None`: it does not exist.
pub fn of_secret(
    name: &str,
    secret: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(secret) = secret else {
        return if optional {
            Ok(Payload::new())
        } else {
            Err(format!("secret \"{name}\" not found"))
        };
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()));
    pick(
        "references non-existent secret",
        data.collect(),
        items,
        default_mode,
        optional,
    )
}

/// Files of the downward API.
pub fn of_downward_api(
    pod: &Pod,
    files: &[DownwardAPIVolumeFile],
    default_mode: i32,
    addresses: &PodAddresses,
    allocatable: NodeAllocatable,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for file in files {
        check_path(&file.path)?;
        let text = match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), _) => fields::field(pod, addresses, &field.field_path)?,
            (None, Some(resource)) => fields::resource(pod, "", resource, allocatable)?,
            (None, None) => return Err(format!("downward API file {} has no source", file.path)),
        };
        payload.insert(
            file.path.clone(),
            File::new(text.into_bytes(), mode(file.mode, default_mode)),
        );
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> ConfigMap {
        serde_json::from_value(
            serde_json::json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}),
        )
        .unwrap()
    }

    fn items(json: serde_json::Value) -> Vec<KeyToPath> {
        serde_json::from_value(json).unwrap()
    }

    fn shown(payload: Result<Payload, String>) -> String {
        match payload {
            Ok(files) => files
                .iter()
                .map(|(path, file)| format!("{path}:{:o}:{}", file.mode, file.data.len()))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error,
        }
    }

    #[test]
    fn config_map_table() {
        let chosen = items(serde_json::json!([{"key": "a", "path": "x/y", "mode": 256}]));
        let missing = items(serde_json::json!([{"key": "zz", "path": "x"}]));
        let escaping = items(serde_json::json!([{"key": "a", "path": "../x"}]));
        let cases: Vec<(&str, Option<&[KeyToPath]>, bool, &str)> = vec![
            ("all keys", None, false, "a:644:1 b:644:1 c:644:2"),
            ("an item with its mode", Some(&chosen), false, "x/y:400:1"),
            (
                "a missing key",
                Some(&missing),
                false,
                "configmap references non-existent config key: zz",
            ),
            (
                "a missing key that may be missing",
                Some(&missing),
                true,
                "",
            ),
            (
                "a path that leaves the volume",
                Some(&escaping),
                false,
                "invalid path \"../x\": it must stay inside the volume",
            ),
        ];
        for (name, items, optional, expected) in cases {
            assert_eq!(
                shown(of_config_map(
                    "m",
                    Some(&map()),
                    items,
                    DEFAULT_MODE,
                    optional
                )),
                expected,
                "case: {name}"
            );
        }
        assert_eq!(
            shown(of_config_map("m", None, None, DEFAULT_MODE, false)),
            "configmap \"m\" not found"
        );
        assert_eq!(
            shown(of_config_map("m", None, None, DEFAULT_MODE, true)),
            ""
        );
    }

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        let file = File::new(b"hush".to_vec(), 0o400);
        assert_eq!(format!("{file:?}"), "4 bytes, mode 400");
    }
}
