//! The socket where others on the node ask who holds which device and which cores (`pod-resources/kubelet.sock`, version v1):
//! monitoring of accelerators, and plugins that place what belongs together.
//!
//! In: the Pods that have not ended, what device plugins gave, what drivers prepared for claims, the cores that are given
//! away. It changes nothing. Memory has no owner here: it stays empty.

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod proto {
    //! Messages and services of pod resources.
    tonic::include_proto!("v1");
}

use crate::claims::{Device, HeldClaim};
use crate::devices::HeldDevice;
use crate::dispatch::Dispatcher;
use crate::files;
use crate::go_clients::incoming;
use crate::pod::containers::{inits, is_sidecar, mains};
use crate::worker::shared::Shared;
use k8s_openapi::api::core::v1::{Container, Pod};
use proto::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Calls of one client that are answered at the same time.
const CALLS_AT_ONCE: usize = 8;

/// Where the socket is, below the kubelet's folder.
#[must_use]
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("pod-resources/kubelet.sock")
}

/// Answers on the socket.
#[derive(Clone, Debug)]
pub(crate) struct PodResources {
    pub(crate) shared: Arc<Shared>,
    pub(crate) dispatcher: Arc<Dispatcher>,
}

impl PodResources {
    /// Serves until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let socket = socket(&self.shared.config.data_dir);
        let listener = match files::listen(&socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(socket = %socket.display(), %error, "Nobody can ask who holds which devices");
                return;
            }
        };
        let served = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(CALLS_AT_ONCE)
            .add_service(PodResourcesListerServer::new(self))
            .serve_with_incoming_shutdown(incoming(listener), cancel.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "Nobody can ask any more who holds which devices");
        }
    }

    fn of(&self, pod: &Pod) -> proto::PodResources {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let sidecars = inits(pod).iter().filter(|init| is_sidecar(pod, init));
        let container = |container: &Container| {
            let name = container.name.as_str();
            let claims = self.shared.claims.held(pod, container);
            proto::ContainerResources {
                name: name.to_owned(),
                devices: messages(self.shared.devices.held(uid, name)),
                cpu_ids: self.cores(|cpus| cpus.own(uid, name)),
                dynamic_resources: claims
                    .unwrap_or_default()
                    .into_iter()
                    .map(claimed)
                    .collect(),
                ..proto::ContainerResources::default()
            }
        };
        proto::PodResources {
            name: pod.metadata.name.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            containers: sidecars.chain(mains(pod)).map(container).collect(),
        }
    }

    /// None where no core belongs to anybody alone.
    fn cores(&self, of: impl Fn(&crate::cpus::CpuManager) -> crate::cpus::CpuSet) -> Vec<i64> {
        let set = self.shared.cpus.as_ref().map(|cpus| of(cpus));
        let cores = set.into_iter().flat_map(|set| set.0);
        cores.map(i64::from).collect()
    }
}

fn claimed(claim: HeldClaim) -> proto::DynamicResource {
    let device = |(driver, device): (String, Device)| proto::ClaimResource {
        cdi_devices: device
            .cdi
            .into_iter()
            .map(|name| proto::CdiDevice { name })
            .collect(),
        driver_name: driver,
        pool_name: device.pool,
        device_name: device.name,
        share_id: device.share,
    };
    proto::DynamicResource {
        claim_name: claim.name,
        claim_namespace: claim.namespace,
        claim_resources: claim.devices.into_iter().map(device).collect(),
    }
}

/// One message for each device, as each may sit elsewhere.
fn messages(held: Vec<HeldDevice>) -> Vec<proto::ContainerDevices> {
    let message = |one: HeldDevice| proto::ContainerDevices {
        resource_name: one.resource,
        device_ids: vec![one.id],
        topology: one.numa_nodes.map(|nodes| proto::TopologyInfo {
            nodes: nodes.into_iter().map(|id| proto::NumaNode { id }).collect(),
        }),
    };
    held.into_iter().map(message).collect()
}

#[tonic::async_trait]
impl PodResourcesLister for PodResources {
    async fn list(
        &self,
        _: Request<proto::ListPodResourcesRequest>,
    ) -> Result<Response<proto::ListPodResourcesResponse>, Status> {
        let live = self.dispatcher.live();
        let pod_resources = live.iter().map(|pod| self.of(pod)).collect();
        Ok(Response::new(proto::ListPodResourcesResponse {
            pod_resources,
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<proto::AllocatableResourcesRequest>,
    ) -> Result<Response<proto::AllocatableResourcesResponse>, Status> {
        Ok(Response::new(proto::AllocatableResourcesResponse {
            devices: messages(self.shared.devices.well()),
            cpu_ids: self.cores(crate::cpus::CpuManager::allocatable),
            memory: Vec::new(),
        }))
    }

    async fn get(
        &self,
        request: Request<proto::GetPodResourcesRequest>,
    ) -> Result<Response<proto::GetPodResourcesResponse>, Status> {
        let asked = request.into_inner();
        let (namespace, name) = (asked.pod_namespace, asked.pod_name);
        let is_it = |pod: &Arc<Pod>| {
            pod.metadata.name.as_deref() == Some(&name)
                && pod.metadata.namespace.as_deref() == Some(&namespace)
        };
        // One that has ended is found too.
        let found = self.dispatcher.pods().into_iter().find(is_it);
        match found {
            Some(pod) => Ok(Response::new(proto::GetPodResourcesResponse {
                pod_resources: Some(self.of(&pod)),
            })),
            // Upstream's clients know the failure by its words; the code of its Go server is Unknown.
            None => Err(Status::unknown(format!(
                "pod {name} in namespace {namespace} not found"
            ))),
        }
    }
}
