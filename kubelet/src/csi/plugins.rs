//! Drivers make themselves known by a socket in `<data_dir>/plugins_registry`: it is asked what it is, the Node and its CSINode tell
//! of it, and the plugin hears whether it was taken. A socket that goes takes its driver along. Without an API server a driver is
//! taken all the same, so that the node's Pods get their volumes after a power cut, and told of later.
//!
//! Woken by inotify, and again after a while as long as something did not work.

use super::calls::{Introduced, channel, introduce, text};
use super::registration::registration_client::RegistrationClient;
use super::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use super::{Csi, proto};
use crate::claims::Claims;
use crate::devices::Devices;
use crate::devices::proto::Empty;
use crate::devices::proto::device_plugin_client::DevicePluginClient;
use crate::logs::read::FolderWatch;
use cox_client::tasks::TaskScope;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The annotation of a Node that names it in the words of its drivers.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// First and longest wait before what did not work is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long the API server may take to be told of a driver, before the driver is taken without.
const TELL_PATIENCE: Duration = Duration::from_secs(5);
/// Versions of the registration that are spoken.
const VERSIONS: [&str; 2] = ["1.0.0", "v1"];

/// A socket in the folder, and what tells it from an earlier one in its place: inode and time of its making, in seconds and
/// nanoseconds.
type Socket = (PathBuf, (u64, i64, i64));

/// A plugin that was taken.
#[derive(Clone, Debug)]
enum Taken {
    Csi(String),
    /// Followed by its stream, which ends with it.
    Device,
    Claims {
        driver: String,
        endpoint: PathBuf,
    },
}

/// Follows the folder.
pub(crate) struct Plugins {
    csi: Arc<Csi>,
    devices: Arc<Devices>,
    claims: Arc<Claims>,
    scope: TaskScope,
    folder: PathBuf,
    client: kube::Client,
    /// Plugins by the socket that they registered with.
    taken: BTreeMap<Socket, Taken>,
    /// What drivers said that the API server has not heard yet.
    untold: BTreeMap<String, proto::NodeGetInfoResponse>,
}

impl std::fmt::Debug for Plugins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugins")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Plugins {
    pub(crate) fn new(
        csi: Arc<Csi>,
        devices: Arc<Devices>,
        claims: Arc<Claims>,
        data_dir: &Path,
        client: kube::Client,
        cancel: &CancellationToken,
    ) -> Self {
        Self {
            csi,
            devices,
            claims,
            scope: TaskScope::new("registered-plugins", cancel),
            folder: data_dir.join("plugins_registry"),
            client,
            taken: BTreeMap::new(),
            untold: BTreeMap::new(),
        }
    }

    /// Takes drivers and lets them go until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let made = std::fs::create_dir_all(&self.folder);
        let watch = made.and_then(|()| FolderWatch::new(&self.folder));
        let watch = match watch {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "Plugins cannot register");
                return;
            }
        };
        let mut wait = RETRY.0;
        loop {
            let all_well = tokio::select! {
                // What was not done is done by the next start.
                done = self.look() => done,
                () = cancel.cancelled() => return,
            };
            wait = match all_well {
                true => RETRY.0,
                false => (wait * 2).min(RETRY.1),
            };
            let again = async {
                match all_well {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(wait).await,
                }
            };
            tokio::select! {
                // Both only wait.
                changed = watch.changed() => if let Err(error) = changed {
                    tracing::error!(%error, "Plugins are not seen any more");
                    return;
                },
                () = again => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Takes what is new, forgets what is gone. False if something has to be tried again.
    async fn look(&mut self) -> bool {
        let sockets = sockets(&self.folder);
        let gone: Vec<Socket> = self
            .taken
            .keys()
            .filter(|socket| !sockets.contains(*socket))
            .cloned()
            .collect();
        let mut all_well = true;
        for socket in gone {
            let name = match self.taken.get(&socket).cloned() {
                Some(Taken::Csi(name)) => name,
                Some(Taken::Claims { driver, endpoint }) => {
                    tracing::info!(driver, "DRA plugin is gone");
                    self.claims.leave(&driver, &endpoint);
                    self.taken.remove(&socket);
                    continue;
                }
                Some(Taken::Device) | None => {
                    self.taken.remove(&socket);
                    continue;
                }
            };
            self.csi.drivers().remove(&name);
            self.untold.remove(&name);
            match self.tell(&name, None).await {
                Ok(()) => {
                    tracing::info!(driver = name, "CSI driver is gone");
                    self.taken.remove(&socket);
                }
                Err(error) => {
                    tracing::warn!(
                        driver = name,
                        %error,
                        "CSI driver is gone, and the Node still names it"
                    );
                    all_well = false;
                }
            }
        }
        all_well &= self.tell_late().await;
        for socket in sockets {
            if self.taken.contains_key(&socket) {
                continue;
            }
            match self.take(&socket.0).await {
                Ok((name, taken)) => {
                    tracing::info!(plugin = name, "Plugin registered");
                    self.taken.insert(socket, taken);
                }
                Err(error) => {
                    tracing::warn!(socket = %socket.0.display(), error, "Plugin was not taken");
                    all_well = false;
                }
            }
        }
        all_well && self.untold.is_empty()
    }

    /// Tells of drivers that were taken without the API server. False if one has to be told of again.
    async fn tell_late(&mut self) -> bool {
        let mut all_well = true;
        for (driver, said) in self.untold.clone() {
            match self.tell(&driver, Some(&said)).await {
                Ok(()) => {
                    tracing::info!(driver, "The Node names a CSI driver that was there before");
                    self.untold.remove(&driver);
                }
                Err(error) if cox_client::is_answer(&error) => {
                    tracing::warn!(driver, %error, "The Node does not name a CSI driver yet");
                    all_well = false;
                }
                Err(error) => {
                    tracing::debug!(driver, %error, "The API server cannot be told of a CSI driver yet");
                    all_well = false;
                }
            }
        }
        all_well
    }

    /// Answers the plugin's name, too.
    async fn take(&mut self, socket: &Path) -> Result<(String, Taken), String> {
        let mut plugin = RegistrationClient::new(channel(socket));
        let info = plugin
            .get_info(InfoRequest {})
            .await
            .map_err(text)?
            .into_inner();
        let taken = self.introduce(&info).await;
        let status = RegistrationStatus {
            plugin_registered: taken.is_ok(),
            error: taken.clone().err().unwrap_or_default(),
        };
        let told = plugin.notify_registration_status(status).await;
        if let (Err(_), Ok(Taken::Claims { driver, endpoint })) = (&told, &taken) {
            // It is taken when it comes again.
            self.claims.leave(driver, endpoint);
        }
        told.map_err(text)?;
        taken.map(|taken| (info.name, taken))
    }

    async fn introduce(&mut self, info: &PluginInfo) -> Result<Taken, String> {
        if info.r#type == "DevicePlugin" {
            let (devices, socket) = (self.devices.clone(), PathBuf::from(&info.endpoint));
            let mut plugin = DevicePluginClient::new(channel(&socket));
            let options = plugin
                .get_device_plugin_options(Empty {})
                .await
                .map_err(text)?
                .into_inner();
            let versions = &info.supported_versions;
            devices.take(&info.name, versions, socket, Some(options), &self.scope)?;
            return Ok(Taken::Device);
        }
        if info.r#type == "DRAPlugin" {
            let (driver, endpoint) = (info.name.clone(), PathBuf::from(&info.endpoint));
            let versions = &info.supported_versions;
            self.claims
                .take(&driver, &endpoint, versions, &self.scope)?;
            return Ok(Taken::Claims { driver, endpoint });
        }
        if info.r#type != "CSIPlugin" {
            return Err(format!(
                "plugins of type {} are not supported by this node",
                info.r#type
            ));
        }
        let versions = &info.supported_versions;
        if !versions.iter().any(|one| VERSIONS.contains(&one.as_str())) {
            return Err(format!(
                "versions {versions:?} are not supported: this node speaks {VERSIONS:?}"
            ));
        }
        let endpoint = PathBuf::from(&info.endpoint);
        let Introduced { driver, info: node } = introduce(&info.name, &endpoint).await?;
        // What of it was written when the time is up is written again then.
        let told = tokio::time::timeout(TELL_PATIENCE, self.tell(&info.name, Some(&node))).await;
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) if cox_client::is_answer(&error) => return Err(error.to_string()),
            Ok(Err(_)) | Err(_) => {
                tracing::info!(
                    driver = info.name,
                    "The API server is away: a CSI driver is taken without it"
                );
                self.untold.insert(info.name.clone(), node);
            }
        }
        self.csi.drivers().insert(info.name.clone(), driver);
        Ok(Taken::Csi(info.name.clone()))
    }

    /// Tells of a driver in the Node and its CSINode; `None`: it is gone.
    async fn tell(
        &self,
        driver: &str,
        said: Option<&proto::NodeGetInfoResponse>,
    ) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get(&self.csi.node).await?;
        let patch = node_patch(&node, driver, said);
        nodes
            .patch(
                &self.csi.node,
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await?;
        let api: Api<CSINode> = Api::all(self.client.clone());
        let known = api.get_opt(&self.csi.node).await?;
        let is_new = known.is_none();
        let mut wanted = known.unwrap_or_else(|| empty(&node));
        let drivers = &mut wanted.spec.drivers;
        drivers.retain(|one| one.name != driver);
        drivers.extend(said.map(|said| entry(driver, said)));
        let params = PostParams::default();
        if is_new {
            api.create(&params, &wanted).await?;
        } else {
            api.replace(&self.csi.node, &params, &wanted).await?;
        }
        Ok(())
    }
}

fn sockets(folder: &Path) -> BTreeSet<Socket> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            !hidden && entry.file_type().is_ok_and(|kind| kind.is_socket())
        })
        .filter_map(|entry| {
            let known = entry.metadata().ok()?;
            Some((
                entry.path(),
                (known.ino(), known.ctime(), known.ctime_nsec()),
            ))
        })
        .collect()
}

fn empty(node: &Node) -> CSINode {
    let name = node.metadata.name.clone().unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    CSINode {
        metadata: ObjectMeta {
            name: Some(name),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: CSINodeSpec::default(),
    }
}

fn entry(driver: &str, said: &proto::NodeGetInfoResponse) -> CSINodeDriver {
    let segments = said.accessible_topology.as_ref();
    let mut keys: Vec<String> = segments
        .map(|topology| topology.segments.keys().cloned().collect())
        .unwrap_or_default();
    keys.sort();
    let count = i32::try_from(said.max_volumes_per_node).unwrap_or(i32::MAX);
    CSINodeDriver {
        name: driver.to_owned(),
        node_id: said.node_id.clone(),
        topology_keys: (!keys.is_empty()).then_some(keys),
        allocatable: (count > 0).then_some(VolumeNodeResources { count: Some(count) }),
    }
}

/// The labels of a driver's topology, and what it calls the node.
fn node_patch(node: &Node, driver: &str, said: Option<&proto::NodeGetInfoResponse>) -> Value {
    let annotations = node.metadata.annotations.as_ref();
    let known = annotations.and_then(|all| all.get(NODE_IDS));
    let mut ids: BTreeMap<String, String> = known
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    ids.remove(driver);
    let mut labels = serde_json::Map::new();
    if let Some(said) = said {
        ids.insert(driver.to_owned(), said.node_id.clone());
        for (key, value) in said
            .accessible_topology
            .iter()
            .flat_map(|all| &all.segments)
        {
            labels.insert(key.clone(), json!(value));
        }
    }
    let ids = if ids.is_empty() {
        Value::Null
    } else {
        json!(json!(ids).to_string())
    };
    json!({ "metadata": { "labels": labels, "annotations": { NODE_IDS: ids } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_of_its_drivers() {
        let mut node: Node = serde_json::from_value(json!({"metadata": {"name": "n",
            "annotations": {NODE_IDS: "{\"other\":\"o\"}"}}}))
        .unwrap();
        let said = proto::NodeGetInfoResponse {
            node_id: "i-1".into(),
            max_volumes_per_node: 5,
            accessible_topology: Some(proto::Topology {
                segments: [("zone".to_owned(), "a".to_owned())].into(),
            }),
        };
        let patch = node_patch(&node, "d", Some(&said));
        assert_eq!(patch["metadata"]["labels"], json!({"zone": "a"}));
        let ids = patch["metadata"]["annotations"][NODE_IDS].as_str().unwrap();
        assert_eq!(ids, r#"{"d":"i-1","other":"o"}"#);
        let entry = entry("d", &said);
        assert_eq!(entry.allocatable.unwrap().count, Some(5));
        assert_eq!(entry.topology_keys.unwrap(), ["zone"]);
        node.metadata.annotations = Some([(NODE_IDS.to_owned(), r#"{"d":"i"}"#.to_owned())].into());
        let gone = node_patch(&node, "d", None);
        assert_eq!(gone["metadata"]["annotations"][NODE_IDS], Value::Null);
    }
}
