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
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
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
        let can = |kind: Type| proto::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        Ok(Response::new(proto::NodeGetCapabilitiesResponse {
            capabilities: vec![can(Type::StageUnstageVolume), can(Type::ExpandVolume)],
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<proto::NodeExpandVolumeRequest>,
    ) -> Result<Response<proto::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.capacity_range.unwrap_or_default().required_bytes;
        self.note(format!("expand {} {bytes}", request.volume_id));
        Ok(Response::new(proto::NodeExpandVolumeResponse {
            capacity_bytes: bytes,
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
        if let Some(key) = request.secrets.get("key") {
            self.note(format!("stage with {key}"));
        }
        let rack = request.publish_context.get("rack").cloned();
        self.note(format!(
            "stage {} {}",
            request.volume_id,
            rack.unwrap_or_default()
        ));
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
        let tokens = request
            .volume_context
            .get("csi.storage.k8s.io/serviceAccount.tokens");
        if let Some(tokens) = tokens {
            let tokens: Value = serde_json::from_str(tokens).unwrap();
            let audiences = tokens.as_object().unwrap().keys().cloned();
            self.note(format!(
                "tokens {}",
                audiences.collect::<Vec<_>>().join(" ")
            ));
        }
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
async fn provision(cluster: &Cluster, driver: Value) {
    let params = PostParams::default();
    let driver: CSIDriver =
        serde_json::from_value(json!({"metadata": {"name": DRIVER}, "spec": driver})).unwrap();
    let drivers: Api<CSIDriver> = Api::all(cluster.admin.clone());
    drivers.create(&params, &driver).await.unwrap();
    let secret: Secret = serde_json::from_value(
        json!({"metadata": {"name": "unlocks"}, "stringData": {"key": "s3cret"}}),
    )
    .unwrap();
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), "default");
    secrets.create(&params, &secret).await.unwrap();
    let source = json!({"csi": {"driver": DRIVER, "volumeHandle": "vol-1",
        "nodeStageSecretRef": {"name": "unlocks", "namespace": "default"}}});
    cluster.bind("claim", source, None).await;
}

/// What a driver says that attaches nothing.
fn detached() -> Value {
    json!({"attachRequired": false, "podInfoOnMount": true})
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

    provision(&cluster, detached()).await;
    *driver.fails.lock().unwrap() = Some(Status::unavailable("the shelf is on fire"));
    let pod = cluster.create("first", user_of("claim")).await;
    cluster.until("first", "ready", is_ready).await;
    let uid = pod.metadata.uid.unwrap();
    let target = data.join(format!("pods/{uid}/volumes/kubernetes.io~csi/claim/mount"));
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
    provision(&cluster, detached()).await;
    cluster.create("p", user_of("claim")).await;
    let words = format!("driver name {DRIVER} not found in the list of registered CSI drivers");
    cluster.until_told("FailedMount", &words).await;
}

/// The test is controller and attacher in one: it attaches the volume and says so.
async fn attach(cluster: &Cluster, driver: &Driver) {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let name = cox_client::attachments::name("vol-1", DRIVER, NODE);
    let shown = cox_client::attachments::in_status("vol-1", DRIVER);
    let attachments: Api<VolumeAttachment> = Api::all(cluster.admin.clone());
    let attachment = json!({"metadata": {"name": name}, "spec": {"attacher": DRIVER, "nodeName": NODE,
        "source": {"persistentVolumeName": "claim"}}});
    let attachment = serde_json::from_value(attachment).unwrap();
    attachments
        .create(&PostParams::default(), &attachment)
        .await
        .unwrap();
    assert!(
        !driver.calls().iter().any(|call| call.starts_with("stage")),
        "nothing is staged before it is attached"
    );
    let params = PatchParams::default();
    let attached = json!({"status": {"attached": true, "attachmentMetadata": {"rack": "r9"}}});
    attachments
        .patch_status(&name, &params, &Patch::Merge(attached))
        .await
        .unwrap();
    let named = json!({"status": {"volumesAttached": [{"name": shown, "devicePath": ""}]}});
    nodes
        .patch_status(NODE, &params, &Patch::Merge(named))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_attached_used_grown_and_given_back() {
    let cluster = Cluster::start().await;
    let data = cluster.dir.path().join("kubelet");
    std::fs::create_dir_all(data.join("plugins_registry")).unwrap();
    let _node = cluster.kubelet();
    let socket = cluster.dir.path().join("csi.sock");
    let (driver, _tasks) = Driver::serve(&socket, &data.join("plugins_registry/files.sock"));
    eventually("the driver is registered", || {
        driver.calls().iter().any(|call| call == "registered true ")
    })
    .await;
    provision(
        &cluster,
        json!({"tokenRequests": [{"audience": "vault"}], "requiresRepublish": true}),
    )
    .await;
    cluster.create("p", user_of("claim")).await;
    attach(&cluster, &driver).await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let shown = cox_client::attachments::in_status("vol-1", DRIVER);
    let params = PatchParams::default();
    cluster.until("p", "ready", is_ready).await;
    let calls = driver.calls();
    assert!(
        calls.contains(&"stage vol-1 r9".to_owned()) && calls.contains(&"tokens vault".to_owned()),
        "what the attacher and the API server said is passed on: {calls:?}"
    );
    let in_use = || async {
        let node = nodes.get(NODE).await.unwrap();
        node.status
            .and_then(|status| status.volumes_in_use)
            .unwrap_or_default()
    };
    assert_eq!(in_use().await, std::slice::from_ref(&shown));

    // It grows at the next look, which any change of the Pod brings.
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin.clone());
    let larger = json!({"spec": {"capacity": {"storage": "2Gi"}}});
    volumes
        .patch("claim", &params, &Patch::Merge(larger))
        .await
        .unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.admin.clone(), "default");
    let pending = json!({"status": {"conditions": [{"type": "FileSystemResizePending", "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    claims
        .patch_status("claim", &params, &Patch::Merge(pending))
        .await
        .unwrap();
    cluster.create("q", user_of("claim")).await;
    cluster.until("q", "ready", is_ready).await;
    assert!(
        driver
            .calls()
            .contains(&format!("expand vol-1 {}", 2_u64 << 30))
    );
    let claim = claims.get("claim").await.unwrap().status.unwrap();
    assert_eq!(claim.capacity.unwrap()["storage"].0, "2Gi");
    assert!(claim.conditions.unwrap_or_default().is_empty());

    for pod in ["p", "q"] {
        cluster.delete(pod).await;
        cluster.until_gone(pod).await;
    }
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while !in_use().await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("what is not used is not named any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_staged_again_after_a_power_cut_without_a_control_plane() {
    let mut cluster = Cluster::start().await;
    let data = cluster.dir.path().join("kubelet");
    let registry = data.join("plugins_registry/files.sock");
    std::fs::create_dir_all(data.join("plugins_registry")).unwrap();
    let node = cluster.kubelet();
    let socket = cluster.dir.path().join("csi.sock");
    let (driver, tasks) = Driver::serve(&socket, &registry);
    let registered = |driver: &Driver| driver.calls().contains(&"registered true ".to_owned());
    eventually("the driver is registered", || registered(&driver)).await;
    let wishes = json!({"podInfoOnMount": true, "tokenRequests": [{"audience": "vault"}]});
    provision(&cluster, wishes).await;
    let pod = cluster.create("p", user_of("claim")).await;
    attach(&cluster, &driver).await;
    cluster.until("p", "ready", is_ready).await;
    let uid = pod.metadata.uid.unwrap();
    eventually("the Pod is kept", || data.join("kept").join(&uid).exists()).await;
    let about_volumes = |driver: &Driver| -> Vec<String> {
        let calls = driver.calls().into_iter();
        calls
            .filter(|call| !call.starts_with("registered"))
            .collect()
    };
    let before = about_volumes(&driver);
    node.quit().await;

    // The driver dies with the rest, and so does what it had mounted; what is on the disk stays, its sockets among it.
    for task in tasks {
        task.abort();
        task.await.ok();
    }
    cluster.cut_power();
    let target = data.join(format!("pods/{uid}/volumes/kubernetes.io~csi/claim/mount"));
    std::fs::remove_dir_all(&target).unwrap();
    let staged = data.join("plugins/kubernetes.io/csi").join(DRIVER);
    let staged = std::fs::read_dir(staged).unwrap().next().unwrap().unwrap();
    std::fs::remove_file(staged.path().join("globalmount/disk")).unwrap();
    cluster.set_link(false);
    let node = cluster.kubelet();
    eventually("it was taken over", || node.handle.pods_len() == 1).await;
    assert_eq!(cluster.runtime.running(), Vec::<String>::new());
    for socket in [&socket, &registry] {
        std::fs::remove_file(socket).unwrap();
    }
    let (driver, _tasks) = Driver::serve(&socket, &registry);
    eventually("it runs again", || cluster.runtime.running() == ["a"]).await;
    let after = about_volumes(&driver);
    assert_eq!(after, before, "the driver hears what it heard before");
    assert!(after.contains(&"stage with s3cret".to_owned()));
    assert_eq!(
        std::fs::read_to_string(target.join("file")).unwrap(),
        "data"
    );

    // The link is back: the volume was named as in use all the time, and the driver is told of.
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let csi_nodes: Api<CSINode> = Api::all(cluster.admin.clone());
    csi_nodes
        .delete(NODE, &kube::api::DeleteParams::default())
        .await
        .unwrap();
    cluster.set_link(true);
    cluster.until("p", "restarted", support::is_restarted).await;
    let status = nodes.get(NODE).await.unwrap().status.unwrap();
    let shown = cox_client::attachments::in_status("vol-1", DRIVER);
    assert_eq!(status.volumes_in_use.unwrap(), [shown]);
    let named = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while csi_nodes.get_opt(NODE).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    });
    named.await.expect("the driver is named again");
    let told = csi_nodes.get(NODE).await.unwrap().spec.drivers;
    assert_eq!(told[0].node_id, "box-7");
    assert_eq!(
        driver
            .calls()
            .iter()
            .filter(|call| call.starts_with("stage v"))
            .count(),
        1,
        "nothing is staged again"
    );
    node.quit().await;
}
