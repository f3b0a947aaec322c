//! A driver of dynamic resources, as its plugin on a node: it registers, prepares what it is asked for, and says how its devices are.

#![allow(dead_code, reason = "each test file uses its part")]

use cox_kubelet::claims::health_proto::dra_resource_health_server::{
    DraResourceHealth, DraResourceHealthServer,
};
use cox_kubelet::claims::health_proto::{
    DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesRequest,
    NodeWatchResourcesResponse,
};
use cox_kubelet::claims::proto::dra_plugin_server::{DraPlugin, DraPluginServer};
use cox_kubelet::claims::proto::{
    Claim, Device, NodePrepareResourceResponse, NodePrepareResourcesRequest,
    NodePrepareResourcesResponse, NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
};
use cox_kubelet::csi::registration::registration_server::{Registration, RegistrationServer};
use cox_kubelet::csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

pub(crate) const DRIVER: &str = "oars.example.com";

/// What a claim consists of.
type Devices = Arc<dyn Fn(&Claim) -> Vec<Device> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Driver {
    devices: Devices,
    endpoint: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
    /// Said in place of an answer.
    fails: Arc<Mutex<Option<String>>>,
    pub(crate) health: tokio::sync::watch::Sender<(HealthStatus, &'static str)>,
}

impl Driver {
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn note(&self, call: String) -> String {
        self.calls.lock().unwrap().push(call);
        self.fails.lock().unwrap().clone().unwrap_or_default()
    }

    pub(crate) fn fail(&self, why: Option<&str>) {
        *self.fails.lock().unwrap() = why.map(str::to_owned);
    }

    /// Answers on a socket of its own, and registers with another in the kubelet's folder.
    pub(crate) fn serve(
        kubelet: &Path,
        name: &str,
        devices: impl Fn(&Claim) -> Vec<Device> + Send + Sync + 'static,
    ) -> (Self, [tokio::task::JoinHandle<()>; 2]) {
        let folder = kubelet.join("plugins_registry");
        let own = kubelet.join("plugins");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(&own).unwrap();
        let driver = Self {
            devices: Arc::new(devices),
            endpoint: own.join(format!("{name}.sock")),
            calls: Arc::default(),
            fails: Arc::default(),
            health: tokio::sync::watch::Sender::new((HealthStatus::Healthy, "")),
        };
        let bind = |path: &Path| {
            std::fs::remove_file(path).ok();
            let listener = UnixListener::bind(path).unwrap();
            futures::stream::unfold(listener, |listener| async {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            })
        };
        let plugin = tonic::transport::Server::builder()
            .add_service(DraPluginServer::new(driver.clone()))
            .add_service(DraResourceHealthServer::new(driver.clone()))
            .serve_with_incoming(bind(&driver.endpoint));
        let registrar = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(driver.clone()))
            .serve_with_incoming(bind(&folder.join(format!("{name}-reg.sock"))));
        let tasks = [
            tokio::spawn(async move { plugin.await.unwrap() }),
            tokio::spawn(async move { registrar.await.unwrap() }),
        ];
        (driver, tasks)
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![
                "v1.DRAPlugin".to_owned(),
                "v1alpha1.DRAResourceHealth".to_owned(),
            ],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        assert_eq!(request.into_inner().error, "");
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let answer = |claim: Claim| {
            let error = self.note(format!("prepare {}", claim.name));
            let devices = (self.devices)(&claim);
            (claim.uid, NodePrepareResourceResponse { devices, error })
        };
        let claims = request.into_inner().claims.into_iter().map(answer);
        Ok(Response::new(NodePrepareResourcesResponse {
            claims: claims.collect(),
        }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let answer = |claim: Claim| {
            let error = self.note(format!("unprepare {}", claim.name));
            (claim.uid, NodeUnprepareResourceResponse { error })
        };
        let claims = request.into_inner().claims.into_iter().map(answer);
        Ok(Response::new(NodeUnprepareResourcesResponse {
            claims: claims.collect(),
        }))
    }
}

#[tonic::async_trait]
impl DraResourceHealth for Driver {
    type NodeWatchResourcesStream = BoxStream<'static, Result<NodeWatchResourcesResponse, Status>>;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let said = self.health.subscribe();
        let lists = futures::stream::unfold((said, true), |(mut said, is_first)| async move {
            if !is_first {
                said.changed().await.ok()?;
            }
            let (health, message) = *said.borrow_and_update();
            let left = DeviceHealth {
                device: Some(DeviceIdentifier {
                    pool_name: "node-1".to_owned(),
                    device_name: "l".to_owned(),
                }),
                health: health.into(),
                message: message.to_owned(),
                health_check_timeout_seconds: 600,
                ..DeviceHealth::default()
            };
            let devices = vec![left];
            Some((Ok(NodeWatchResourcesResponse { devices }), (said, false)))
        });
        Ok(Response::new(lists.boxed()))
    }
}
