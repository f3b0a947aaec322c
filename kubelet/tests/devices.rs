//! A device plugin through a real kubelet: it registers over the kubelet's socket, its devices show in the Node, containers get
//! them, and they stay with their Pods over a restart of either.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use cox_kubelet::devices::proto::device_plugin_server::{DevicePlugin, DevicePluginServer};
use cox_kubelet::devices::proto::registration_client::RegistrationClient;
use cox_kubelet::devices::proto::{self, Empty};
use cox_kubelet::pod_resources::proto as pod_resources;
use cox_kubelet::pod_resources::proto::pod_resources_lister_client::PodResourcesListerClient;
use cox_kubelet::pod_resources::socket as pod_resources_socket;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use support::{Cluster, NODE, channel, is_ready, one};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

const RESOURCE: &str = "example.com/oar";

/// A plugin whose devices are paths and variables.
#[derive(Clone)]
struct Plugin {
    calls: Arc<Mutex<Vec<String>>>,
    devices: tokio::sync::watch::Sender<Vec<(&'static str, bool)>>,
}

impl Plugin {
    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn new(devices: &[(&'static str, bool)]) -> Self {
        Self {
            calls: Arc::default(),
            devices: tokio::sync::watch::Sender::new(devices.to_vec()),
        }
    }

    /// Answers on a socket in the kubelet's folder.
    fn serve(&self, folder: &Path, endpoint: &str) -> tokio::task::JoinHandle<()> {
        let socket = folder.join(endpoint);
        std::fs::remove_file(&socket).ok();
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(DevicePluginServer::new(self.clone()))
            .serve_with_incoming(listener);
        tokio::spawn(async move { server.await.unwrap() })
    }
}

/// Registers, as a plugin does when the kubelet's socket appears.
async fn register(folder: &Path, resource: &str) -> Result<(), Status> {
    let channel = channel(folder.join("kubelet.sock")).await;
    let request = proto::RegisterRequest {
        version: "v1beta1".into(),
        endpoint: "oar.sock".into(),
        resource_name: resource.into(),
        options: Some(proto::DevicePluginOptions {
            pre_start_required: true,
            get_preferred_allocation_available: true,
        }),
    };
    RegistrationClient::new(channel)
        .register(request)
        .await
        .map(drop)
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = BoxStream<'static, Result<proto::ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<proto::DevicePluginOptions>, Status> {
        Ok(Response::new(proto::DevicePluginOptions::default()))
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.devices.subscribe()).map(|devices| {
            let device = |(id, well): (&str, bool)| proto::Device {
                id: id.to_owned(),
                health: if well { "Healthy" } else { "Unhealthy" }.to_owned(),
                topology: (id == "right").then(|| proto::TopologyInfo {
                    nodes: vec![proto::NumaNode { id: 1 }],
                }),
            };
            Ok(proto::ListAndWatchResponse {
                devices: devices.into_iter().map(device).collect(),
            })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<proto::PreferredAllocationRequest>,
    ) -> Result<Response<proto::PreferredAllocationResponse>, Status> {
        let asked = request.into_inner().container_requests;
        let last = |one: proto::ContainerPreferredAllocationRequest| {
            proto::ContainerPreferredAllocationResponse {
                device_i_ds: one
                    .available_device_i_ds
                    .into_iter()
                    .rev()
                    .take(1)
                    .collect(),
            }
        };
        Ok(Response::new(proto::PreferredAllocationResponse {
            container_responses: asked.into_iter().map(last).collect(),
        }))
    }

    async fn allocate(
        &self,
        request: Request<proto::AllocateRequest>,
    ) -> Result<Response<proto::AllocateResponse>, Status> {
        let asked = request
            .into_inner()
            .container_requests
            .remove(0)
            .devices_ids;
        self.note(format!("allocate {}", asked.join(" ")));
        let answer = proto::ContainerAllocateResponse {
            envs: [("OARS".to_owned(), asked.join(" "))].into(),
            devices: vec![proto::DeviceSpec {
                container_path: "/dev/oar".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            ..proto::ContainerAllocateResponse::default()
        };
        Ok(Response::new(proto::AllocateResponse {
            container_responses: vec![answer],
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<proto::PreStartContainerRequest>,
    ) -> Result<Response<proto::PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids.join(" ");
        self.note(format!("start {ids}"));
        Ok(Response::new(proto::PreStartContainerResponse {}))
    }
}

fn rower(number: &str) -> Value {
    let mut spec = one("oci");
    spec["containers"][0]["resources"] = json!({"limits": {RESOURCE: number}});
    spec
}

/// How many devices the Node has, and how many of them Pods may have.
async fn shown(cluster: &Cluster) -> (String, String) {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let Some(node) = nodes.get_opt(NODE).await.unwrap() else {
        return <(String, String)>::default();
    };
    let status = node.status.unwrap();
    let of = |map: Option<std::collections::BTreeMap<String, _>>| {
        let amount: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
            map.and_then(|mut map| map.remove(RESOURCE));
        amount.map(|amount| amount.0).unwrap_or_default()
    };
    (of(status.capacity), of(status.allocatable))
}

async fn until_shown(cluster: &Cluster, all: &str, well: &str) {
    let wished = async {
        while shown(cluster).await != (all.to_owned(), well.to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), wished).await;
    assert!(
        waited.is_ok(),
        "the node shows {:?}, not {all} and {well}",
        shown(cluster).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_counted_given_kept_and_taken_back() {
    let cluster = Cluster::start().await;
    let folder = cluster.dir.path().join("kubelet/device-plugins");
    let node = cluster.kubelet();
    let refused = register(&folder, "kubernetes.io/oar").await.unwrap_err();
    assert!(refused.message().contains("no extended resource"));
    let plugin = Plugin::new(&[("left", true), ("right", true), ("broken", false)]);
    let serving = plugin.serve(&folder, "oar.sock");
    register(&folder, RESOURCE).await.unwrap();
    until_shown(&cluster, "3", "2").await;

    let pod = cluster.create("first", rower("1")).await;
    cluster.until("first", "ready", is_ready).await;
    assert_eq!(
        plugin.calls(),
        ["allocate right", "start right"],
        "the one that the plugin prefers"
    );
    let (devices, oars) = {
        let state = cluster.runtime.state.lock().unwrap();
        let made = state.containers.values().next().unwrap();
        let oars = made.config.envs.iter().find(|env| env.key == "OARS");
        let oars = oars.map(|env| String::from_utf8(env.value.clone()).unwrap());
        (made.config.devices.clone(), oars)
    };
    assert_eq!(oars.as_deref(), Some("right"));
    assert_eq!(
        (
            devices[0].container_path.as_str(),
            devices[0].permissions.as_str()
        ),
        ("/dev/oar", "rw")
    );

    // Two are not to be had: the Pod fails, and nothing of it starts.
    cluster.create("second", rower("2")).await;
    let failed = |pod: &Pod| {
        pod.status
            .as_ref()
            .is_some_and(|status| status.phase.as_deref() == Some("Failed"))
    };
    let second = cluster.until("second", "failed", failed).await;
    assert_eq!(
        second.status.unwrap().reason.as_deref(),
        Some("OutOfexample.com/oar")
    );

    // A device that falls ill is not given, and a plugin that ends has none that are well.
    plugin
        .devices
        .send_replace(vec![("left", false), ("right", true), ("broken", false)]);
    until_shown(&cluster, "3", "1").await;
    plugin
        .devices
        .send_replace(vec![("left", true), ("right", true), ("broken", false)]);
    until_shown(&cluster, "3", "2").await;

    // The kubelet starts anew: the Pod keeps its device, and the plugin registers again.
    node.quit().await;
    std::fs::remove_file(folder.join("kubelet.sock")).unwrap();
    let _node = cluster.kubelet();
    until_shown(&cluster, "0", "0").await;
    register(&folder, RESOURCE).await.unwrap();
    until_shown(&cluster, "3", "2").await;
    cluster.create("third", rower("1")).await;
    cluster.until("third", "ready", is_ready).await;
    let calls = plugin.calls();
    assert_eq!(calls[2..], ["allocate left", "start left"], "{calls:?}");

    // What is given back can be given again.
    cluster.delete("first").await;
    cluster.until_gone("first").await;
    cluster.create("fourth", rower("1")).await;
    cluster.until("fourth", "ready", is_ready).await;
    assert_eq!(plugin.calls()[4], "allocate right");
    drop(pod);
    serving.abort();
}

/// A frame of HTTP/2: kind, flags, stream.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A header that is not compressed: the index of its name, its value.
fn header(index: u8, value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    [&[0x40 | index, length], value.as_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_written_in_go_registers() {
    use prost::Message;
    use tokio::io::AsyncWriteExt;
    let cluster = Cluster::start().await;
    let folder = cluster.dir.path().join("kubelet/device-plugins");
    let node = cluster.kubelet();
    let plugin = Plugin::new(&[("left", true), ("right", true)]);
    let socket = folder.join("kubelet.sock");
    drop(channel(socket.clone()).await);
    let serving = plugin.serve(&folder, "oar.sock");
    let request = proto::RegisterRequest {
        version: "v1beta1".into(),
        endpoint: "oar.sock".into(),
        resource_name: RESOURCE.into(),
        options: None,
    };
    let request = request.encode_to_vec();
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    let headers = [
        // POST, http, the path, and what Go makes of a path to a socket.
        vec![0x83, 0x86],
        header(4, "/v1beta1.Registration/Register"),
        header(1, "%2Fvar%2Flib%2Fkubelet%2Fdevice-plugins%2Fkubelet.sock"),
        header(31, "application/grpc"),
        b"\x40\x02te\x08trailers".to_vec(),
    ];
    let said = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers.concat()),
        frame(0, 1, 1, &[&[0][..], &length, &request].concat()),
    ];
    let mut client = UnixStream::connect(&socket).await.unwrap();
    client.write_all(&said.concat()).await.unwrap();
    until_shown(&cluster, "2", "2").await;
    node.quit().await;
    serving.abort();
}

/// What the socket says of a list: Pod, container, and each device with where it sits.
fn shown_of(pods: &[pod_resources::PodResources]) -> Vec<String> {
    let device = |one: &pod_resources::ContainerDevices| {
        let nodes = one.topology.iter().flat_map(|place| &place.nodes);
        let nodes: Vec<String> = nodes.map(|node| node.id.to_string()).collect();
        format!(
            "{}={}@{}",
            one.resource_name,
            one.device_ids.join("+"),
            nodes.join("+")
        )
    };
    let container = |one: &pod_resources::ContainerResources| {
        let devices: Vec<String> = one.devices.iter().map(device).collect();
        format!("{}[{}]", one.name, devices.join(" "))
    };
    let mut all: Vec<String> = pods
        .iter()
        .map(|pod| {
            let containers: Vec<String> = pod.containers.iter().map(container).collect();
            format!("{}/{} {}", pod.namespace, pod.name, containers.join(" "))
        })
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn others_ask_who_holds_which_device() {
    let cluster = Cluster::start().await;
    let data_dir = cluster.dir.path().join("kubelet");
    let folder = data_dir.join("device-plugins");
    let _node = cluster.kubelet();
    let channel = channel(pod_resources_socket(&data_dir)).await;
    let mut client = PodResourcesListerClient::new(channel);
    let empty = client.list(pod_resources::ListPodResourcesRequest {}).await;
    assert_eq!(empty.unwrap().into_inner().pod_resources, []);

    let plugin = Plugin::new(&[("left", true), ("right", true), ("broken", false)]);
    let serving = plugin.serve(&folder, "oar.sock");
    register(&folder, RESOURCE).await.unwrap();
    until_shown(&cluster, "3", "2").await;
    cluster.create("rower", rower("1")).await;
    cluster.create("plain", one("oci")).await;
    cluster.until("rower", "ready", is_ready).await;
    cluster.until("plain", "ready", is_ready).await;

    let listed = client.list(pod_resources::ListPodResourcesRequest {}).await;
    let listed = shown_of(&listed.unwrap().into_inner().pod_resources);
    let container = one("oci")["containers"][0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let held = format!("default/rower {container}[{RESOURCE}=right@1]");
    assert_eq!(
        listed,
        [format!("default/plain {container}[]"), held.clone()]
    );

    let ask = |name: &str| pod_resources::GetPodResourcesRequest {
        pod_name: name.to_owned(),
        pod_namespace: "default".to_owned(),
    };
    let one = client.get(ask("rower")).await.unwrap().into_inner();
    assert_eq!(
        shown_of(&one.pod_resources.into_iter().collect::<Vec<_>>()),
        [held]
    );
    let missing = client.get(ask("nobody")).await.unwrap_err();
    assert_eq!(
        missing.message(),
        "pod nobody in namespace default not found"
    );

    let all = client
        .get_allocatable_resources(pod_resources::AllocatableResourcesRequest {})
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<String> = all
        .devices
        .iter()
        .flat_map(|one| one.device_ids.clone())
        .collect();
    assert_eq!(ids, ["left", "right"], "one that is broken can be nobody's");
    assert_eq!(
        all.cpu_ids,
        Vec::<i64>::new(),
        "no core belongs to anybody alone"
    );

    // What is given back is held no more.
    cluster.delete("rower").await;
    cluster.until_gone("rower").await;
    eventually_empty(&mut client, "rower").await;
    serving.abort();
}

async fn eventually_empty(
    client: &mut PodResourcesListerClient<tonic::transport::Channel>,
    name: &str,
) {
    let gone = async {
        loop {
            let listed = client.list(pod_resources::ListPodResourcesRequest {}).await;
            let pods = listed.unwrap().into_inner().pod_resources;
            if pods.iter().all(|pod| pod.name != name) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), gone).await;
    assert!(waited.is_ok(), "{name} is still listed");
}
