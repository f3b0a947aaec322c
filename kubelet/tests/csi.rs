//! Volumes of a CSI driver through a real kubelet: the driver registers by its socket, mounts for two Pods, and lets go.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use cox_kubelet::csi::proto::identity_server::{Identity, IdentityServer};
use cox_kubelet::csi::proto::node_server::{Node, NodeServer};
use cox_kubelet::csi::proto::node_service_capability::rpc::Type;
use cox_kubelet::csi::proto::node_service_capability::{self, Rpc};
use cox_kubelet::csi::proto::{self};
use cox_kubelet::csi::registration::registration_server::{Registration, RegistrationServer};
use cox_kubelet::csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use support::{Cluster, NODE, eventually, is_ready, one};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

const DRIVER: &str = "files.example.com";

/// A driver that "mounts" by making a folder with a file in it, so that no test needs root.
#[derive(Clone, Default)]
struct Driver {
    endpoint: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
    /// The next publish fails with this.
    fails: Arc<Mutex<Option<Status>>>,
}

impl Driver {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Answers on its own socket, and on one in the folder of plugins.
    fn serve(endpoint: &Path, registry: &Path) -> (Self, [tokio::task::JoinHandle<()>; 2]) {
        let driver = Self {
            endpoint: endpoint.to_owned(),
            ..Self::default()
        };
        let own = UnixListenerStream::new(UnixListener::bind(endpoint).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(driver.clone()))
            .add_service(NodeServer::new(driver.clone()))
            .serve_with_incoming(own);
        let register = UnixListenerStream::new(UnixListener::bind(registry).unwrap());
        let registrar = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(driver.clone()))
            .serve_with_incoming(register);
        let tasks = [
            tokio::spawn(async move { server.await.unwrap() }),
            tokio::spawn(async move { registrar.await.unwrap() }),
        ];
        (driver, tasks)
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        self.note(format!(
            "registered {} {}",
            status.plugin_registered, status.error
        ));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<proto::GetPluginInfoRequest>,
    ) -> Result<Response<proto::GetPluginInfoResponse>, Status> {
        Ok(Response::new(proto::GetPluginInfoResponse {
            name: DRIVER.into(),
            ..proto::GetPluginInfoResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_get_capabilities(
        &self,
        _: Request<proto::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<proto::NodeGetCapabilitiesResponse>, Status> {
        let stages = node_service_capability::Type::Rpc(Rpc {
            r#type: Type::StageUnstageVolume.into(),
        });
        Ok(Response::new(proto::NodeGetCapabilitiesResponse {
            capabilities: vec![proto::NodeServiceCapability {
                r#type: Some(stages),
            }],
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<proto::NodeGetInfoRequest>,
    ) -> Result<Response<proto::NodeGetInfoResponse>, Status> {
        Ok(Response::new(proto::NodeGetInfoResponse {
            node_id: "box-7".into(),
            max_volumes_per_node: 9,
            accessible_topology: Some(proto::Topology {
                segments: [("example.com/rack".to_owned(), "r1".to_owned())].into(),
            }),
        }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<proto::NodeStageVolumeRequest>,
    ) -> Result<Response<proto::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        std::fs::write(Path::new(&request.staging_target_path).join("disk"), "data")?;
        self.note(format!("stage {}", request.volume_id));
        Ok(Response::new(proto::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<proto::NodeUnstageVolumeRequest>,
    ) -> Result<Response<proto::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        std::fs::remove_file(Path::new(&request.staging_target_path).join("disk"))?;
        self.note(format!("unstage {}", request.volume_id));
        Ok(Response::new(proto::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<proto::NodePublishVolumeRequest>,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        if let Some(status) = self.fails.lock().unwrap().take() {
            return Err(status);
        }
        let request = request.into_inner();
        let staged = std::fs::read_to_string(Path::new(&request.staging_target_path).join("disk"))?;
        let target = Path::new(&request.target_path);
        std::fs::create_dir_all(target)?;
        std::fs::write(target.join("file"), staged)?;
        let pod = request
            .volume_context
            .get("csi.storage.k8s.io/pod.name")
            .cloned();
        self.note(format!(
            "publish {} {} {}",
            request.volume_id,
            pod.unwrap_or_default(),
            request.readonly
        ));
        Ok(Response::new(proto::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<proto::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<proto::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        if let Err(error) = std::fs::remove_dir_all(&request.target_path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        self.note(format!("unpublish {}", request.volume_id));
        Ok(Response::new(proto::NodeUnpublishVolumeResponse {}))
    }
}

/// A volume of the driver, and a claim that is bound to it.
async fn provision(cluster: &Cluster) {
    let params = PostParams::default();
    let driver: CSIDriver = serde_json::from_value(json!({"metadata": {"name": DRIVER},
        "spec": {"attachRequired": false, "podInfoOnMount": true}}))
    .unwrap();
    let drivers: Api<CSIDriver> = Api::all(cluster.admin.clone());
    drivers.create(&params, &driver).await.unwrap();
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "claim"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "pv", "resources": {"requests": {"storage": "1Gi"}}}}))
    .unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.admin.clone(), "default");
    let made = claims.create(&params, &claim).await.unwrap();
    let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": DRIVER, "volumeHandle": "vol-1"},
        "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default", "name": "claim", "uid": made.metadata.uid}}}))
    .unwrap();
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin.clone());
    volumes.create(&params, &volume).await.unwrap();
    // Nobody binds here: the test does it.
    let bound: Value = json!({"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
    claims
        .patch_status("claim", &PatchParams::default(), &Patch::Merge(bound))
        .await
        .unwrap();
}

fn user_of(claim: &str) -> Value {
    let mut spec = one("stay");
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_registers_mounts_for_two_pods_and_lets_go() {
    let cluster = Cluster::start().await;
    let data = cluster.dir.path().join("kubelet");
    std::fs::create_dir_all(data.join("plugins_registry")).unwrap();
    let node = cluster.kubelet();
    let socket = cluster.dir.path().join("csi.sock");
    let registry = data.join("plugins_registry/files.sock");
    let (driver, tasks) = Driver::serve(&socket, &registry);
    eventually("the driver is registered", || {
        driver.calls().iter().any(|call| call == "registered true ")
    })
    .await;
    let csi_nodes: Api<CSINode> = Api::all(cluster.admin.clone());
    let told = csi_nodes.get(NODE).await.unwrap().spec.drivers;
    assert_eq!(
        (told[0].name.as_str(), told[0].node_id.as_str()),
        (DRIVER, "box-7")
    );
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let labels = nodes.get(NODE).await.unwrap().metadata.labels.unwrap();
    assert_eq!(labels["example.com/rack"], "r1");

    provision(&cluster).await;
    *driver.fails.lock().unwrap() = Some(Status::unavailable("the shelf is on fire"));
    let pod = cluster.create("first", user_of("claim")).await;
    cluster.until("first", "ready", is_ready).await;
    let uid = pod.metadata.uid.unwrap();
    let target = data.join(format!("pods/{uid}/volumes/kubernetes.io~csi/pv/mount"));
    assert_eq!(
        std::fs::read_to_string(target.join("file")).unwrap(),
        "data"
    );
    let mounted = {
        let state = cluster.runtime.state.lock().unwrap();
        state.containers.values().any(|made| {
            made.config
                .mounts
                .iter()
                .any(|mount| Path::new(&mount.host_path) == target)
        })
    };
    assert!(mounted, "the container gets what the driver mounted");
    cluster.create("second", user_of("claim")).await;
    cluster.until("second", "ready", is_ready).await;
    let calls = driver.calls();
    let of = |kind: &str| {
        let calls = calls.iter().filter(|call| call.starts_with(kind));
        calls.cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        of("publish"),
        ["publish vol-1 first false", "publish vol-1 second false"],
        "after a failure it was tried again, and no more than that"
    );

    // A kubelet that did not mount it takes it away: it was written down beside the mount.
    node.quit().await;
    let _node = cluster.kubelet();
    let registered = || {
        let calls = driver.calls();
        calls
            .iter()
            .filter(|call| call.starts_with("registered"))
            .count()
    };
    eventually("the driver is registered again", || registered() == 2).await;
    cluster.delete("first").await;
    cluster.until_gone("first").await;
    assert!(
        !driver.calls().contains(&"unstage vol-1".to_owned()),
        "another Pod still uses it"
    );
    cluster.delete("second").await;
    cluster.until_gone("second").await;
    let calls = driver.calls();
    assert_eq!(
        calls
            .iter()
            .filter(|call| call.as_str() == "unstage vol-1")
            .count(),
        1
    );
    assert!(!data.join(format!("pods/{uid}")).exists());

    for task in tasks {
        task.abort();
    }
    std::fs::remove_file(&registry).unwrap();
    let names = || {
        let api = csi_nodes.clone();
        async move { api.get(NODE).await.unwrap().spec.drivers.len() }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while names().await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a driver whose socket is gone is not named any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_a_driver_that_is_not_there_says_so() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    provision(&cluster).await;
    cluster.create("p", user_of("claim")).await;
    let events: Api<k8s_openapi::api::core::v1::Event> =
        Api::namespaced(cluster.admin.clone(), "default");
    let wanted = format!("driver name {DRIVER} not found in the list of registered CSI drivers");
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        loop {
            let all = events
                .list(&kube::api::ListParams::default())
                .await
                .unwrap();
            let told = all.iter().any(|event| {
                event.reason.as_deref() == Some("FailedMount")
                    && event
                        .message
                        .as_ref()
                        .is_some_and(|text| text.contains(&wanted))
            });
            if told {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("an event names the driver that is missing");
}
