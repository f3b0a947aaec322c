//! A cluster of one node in one process: a real API server over a memory store, a fake runtime, a real kubelet.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod driver;
pub(crate) mod fake_runtime;

use cox_apiserver::auth::UserInfo;
use cox_apiserver::pki::Pki;
use cox_client::{Informers, SystemClock};
use cox_kubelet::{Config, Deps, Handle};
use fake_runtime::FakeRuntime;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub(crate) const NODE: &str = "node-1";
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: cox_apiserver::ApiServer,
    pub(crate) admin: kube::Client,
    pub(crate) pki: Arc<Pki>,
    pub(crate) runtime: FakeRuntime,
    runtime_threads: Option<tokio::runtime::Runtime>,
    /// Whether new requests of kubelets reach the API server.
    link: Arc<AtomicBool>,
    cancel: CancellationToken,
}

pub(crate) struct Node {
    pub(crate) handle: Handle,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let pki = Arc::new(Pki::load_or_create(&dir.path().join("pki")).unwrap());
        let config = cox_store::Config::new(cox_store::Backend::Memory);
        let store =
            cox_store::Store::open(config, Arc::new(cox_apiserver::BuiltinIndexer)).unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server_config = cox_apiserver::Config::new(listen, pki.clone());
        let server = cox_apiserver::start(
            server_config,
            cox_apiserver::Deps::new(store),
            cancel.clone(),
        )
        .await
        .unwrap();
        let admin = cox_client::in_process(server.service(user("admin", "system:masters")));
        let account = json!({"metadata": {"name": "default"}});
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
        accounts
            .create(
                &PostParams::default(),
                &serde_json::from_value(account).unwrap(),
            )
            .await
            .unwrap();
        let map =
            json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": pki.ca_pem()}});
        let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), "default");
        maps.create(
            &PostParams::default(),
            &serde_json::from_value(map).unwrap(),
        )
        .await
        .unwrap();
        let runtime = FakeRuntime::default();
        let runtime_threads = Some(runtime.serve(&dir.path().join("cri.sock")));
        Self {
            dir,
            server,
            admin,
            pki,
            runtime,
            runtime_threads,
            link: Arc::new(AtomicBool::new(true)),
            cancel,
        }
    }

    /// Cuts or mends the link between kubelets and the API server, for requests from now on.
    pub(crate) fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::Relaxed);
    }

    /// The runtime dies with all that it ran, and a new one comes.
    pub(crate) fn replace_runtime(&mut self) {
        self.stop_runtime();
        let socket = self.dir.path().join("cri.sock");
        std::fs::remove_file(&socket).unwrap();
        self.runtime = FakeRuntime::default();
        self.runtime_threads = Some(self.runtime.serve(&socket));
    }

    /// The runtime's process dies; what it ran goes on, and it comes back with [`Self::return_runtime`].
    pub(crate) fn kill_runtime(&mut self) {
        self.stop_runtime();
        std::fs::remove_file(self.dir.path().join("cri.sock")).unwrap();
    }

    pub(crate) fn return_runtime(&mut self) {
        self.runtime_threads = Some(self.runtime.serve(&self.dir.path().join("cri.sock")));
    }

    fn stop_runtime(&mut self) {
        if let Some(threads) = self.runtime_threads.take() {
            threads.shutdown_background();
        }
    }

    pub(crate) fn kubelet(&self) -> Node {
        self.kubelet_with(|_| {})
    }

    pub(crate) fn kubelet_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        self.kubelet_by(Arc::new(SystemClock), change)
    }

    /// A kubelet that goes by a clock of its own.
    pub(crate) fn kubelet_by(
        &self,
        clock: Arc<dyn cox_client::Clock>,
        change: impl FnOnce(&mut Config),
    ) -> Node {
        let data = self.dir.path().join("kubelet");
        let ip = Ipv4Addr::LOCALHOST.into();
        let mut config = Config::new(NODE, ip, data, self.dir.path().join("cri.sock"));
        let pair = self
            .pki
            .issue_node(NODE, &[NODE.to_owned(), "127.0.0.1".to_owned()])
            .unwrap();
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.serving_cert_pem = pair.certificate;
        config.serving_key_pem = pair.key;
        config.client_ca_pem = self.pki.ca_pem().to_owned();
        config.pod_cidrs = vec!["127.64.0.0/18".into()];
        change(&mut config);
        let cancel = self.cancel.child_token();
        let service = self
            .server
            .service(user(&format!("system:node:{NODE}"), "system:nodes"));
        let link = self.link.clone();
        let client = cox_client::in_process(tower::service_fn(
            move |request: http::Request<kube::client::Body>| {
                let (service, up) = (service.clone(), link.load(Ordering::Relaxed));
                async move {
                    if !up {
                        return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                    }
                    match service.oneshot(request).await {
                        Ok(answer) => Ok(answer),
                        Err(never) => match never {},
                    }
                }
            },
        ));
        let informers = Informers::new(client.clone(), &cancel);
        let deps = Deps {
            client,
            informers,
            clock,
        };
        let (handle, running) = cox_kubelet::prepare(config, deps, &cancel);
        let task = tokio::spawn(async move { running.await.unwrap() });
        Node {
            handle,
            cancel,
            task,
        }
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    /// Creates a Pod that is bound to the node already.
    pub(crate) async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["nodeName"] = json!(NODE);
        if spec.get("automountServiceAccountToken").is_none() {
            spec["automountServiceAccountToken"] = json!(false);
        }
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        self.pods()
            .create(
                &PostParams::default(),
                &serde_json::from_value(pod).unwrap(),
            )
            .await
            .unwrap()
    }

    /// A persistent volume of this kind, and a claim of the same name that is bound to it.
    pub(crate) async fn bind(&self, name: &str, source: Value, owner: Option<&Pod>) {
        let params = PostParams::default();
        let owners: Vec<Value> = owner
            .map(|pod| {
                json!({"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid, "controller": true})
            })
            .into_iter()
            .collect();
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.admin.clone(), "default");
        let made = claims.create(&params, &claim).await.unwrap();
        let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default", "name": name, "uid": made.metadata.uid}});
        spec.as_object_mut()
            .unwrap()
            .extend(source.as_object().unwrap().clone());
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let volumes: Api<PersistentVolume> = Api::all(self.admin.clone());
        volumes.create(&params, &volume).await.unwrap();
        // Nobody binds here: the test does it.
        let bound = json!({"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
        claims
            .patch_status(name, &PatchParams::default(), &Patch::Merge(bound))
            .await
            .unwrap();
    }

    /// Waits for an event with this reason and these words.
    pub(crate) async fn until_told(&self, reason: &str, words: &str) {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let told = tokio::time::timeout(PATIENCE, async {
            loop {
                let all = events.list(&ListParams::default()).await.unwrap();
                let told = all.iter().any(|event| {
                    let message = event.message.as_deref().unwrap_or_default();
                    event.reason.as_deref() == Some(reason) && message.contains(words)
                });
                if told {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        assert!(told.await.is_ok(), "no event {reason} says: {words}");
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.pods()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// Waits until the Pod is as wished.
    pub(crate) async fn until(&self, name: &str, what: &str, wish: impl Fn(&Pod) -> bool) -> Pod {
        let condition = |pod: Option<&Pod>| pod.is_some_and(&wish);
        match tokio::time::timeout(PATIENCE, await_condition(self.pods(), name, condition)).await {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => {
                let pod = self.pods().get(name).await.unwrap();
                let status = serde_json::to_string_pretty(&pod.status).unwrap();
                panic!(
                    "{name} was never {what}: {status}\ncalls: {:?}",
                    self.runtime.calls()
                );
            }
        }
    }

    /// Waits until the Pod is gone from the API server.
    pub(crate) async fn until_gone(&self, name: &str) {
        let gone = await_condition(self.pods(), name, |pod: Option<&Pod>| pod.is_none());
        let calls = || self.runtime.calls();
        tokio::time::timeout(PATIENCE, gone)
            .await
            .unwrap_or_else(|_| panic!("{name} stays; calls: {:?}", calls()))
            .unwrap();
    }

    pub(crate) fn volumes(&self, pod: &Pod) -> PathBuf {
        self.below("pods", pod)
    }

    /// Where volumes are that may not be on a disk; on it all the same where nothing can be mounted.
    pub(crate) fn volumes_in_memory(&self, pod: &Pod) -> PathBuf {
        let memory = self.below("memory", pod);
        if memory.exists() {
            memory
        } else {
            self.volumes(pod)
        }
    }

    fn below(&self, folder: &str, pod: &Pod) -> PathBuf {
        let folder = self.dir.path().join("kubelet").join(folder);
        let uid = pod.metadata.uid.as_ref().unwrap();
        folder.join(uid).join("volumes")
    }

    /// The power is cut: everything that ran is gone, and so is what lay in memory; the images stay.
    pub(crate) fn cut_power(&mut self) {
        let images = self.runtime.state.lock().unwrap().images.clone();
        self.replace_runtime();
        self.runtime.state.lock().unwrap().images = images;
        self.lose_memory();
    }

    /// What lies in memory is gone, as after a power cut.
    pub(crate) fn lose_memory(&self) {
        let memory = self.dir.path().join("kubelet/memory");
        let mut umount = std::process::Command::new("umount");
        // Without root nothing is mounted.
        umount.arg("-l").arg(&memory).output().ok();
        std::fs::remove_dir_all(&memory).ok();
    }
}

impl Node {
    /// The kubelet ends; the runtime goes on.
    pub(crate) async fn quit(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.stop_runtime();
        self.lose_memory();
    }
}

pub(crate) fn user(name: &str, group: &str) -> UserInfo {
    UserInfo {
        name: name.to_owned(),
        groups: vec![group.to_owned(), "system:authenticated".to_owned()],
        ..UserInfo::default()
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").as_deref() == Some("True")
}

/// Ready, after its first container was started a second time.
pub(crate) fn is_restarted(pod: &Pod) -> bool {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    is_ready(pod) && statuses.is_some_and(|statuses| statuses[0].restart_count == 1)
}

pub(crate) fn condition(pod: &Pod, kind: &str) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .map(|condition| condition.status.clone())
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// The waiting reason of the first main container.
pub(crate) fn waiting(pod: &Pod) -> String {
    let first = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref()?.first().cloned());
    let state = first.and_then(|status| status.state).unwrap_or_default();
    state
        .waiting
        .and_then(|waiting| waiting.reason)
        .unwrap_or_default()
}

/// One main container with the given image.
pub(crate) fn one(image: &str) -> Value {
    json!({"containers": [{"name": "a", "image": image, "imagePullPolicy": "IfNotPresent"}], "terminationGracePeriodSeconds": 1})
}

/// Waits for something that has no event, without polling faster than it may change.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "it never came that {what}");
}

/// A client of a unix socket, once it is there.
pub(crate) async fn channel(socket: PathBuf) -> tonic::transport::Channel {
    eventually("the kubelet listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })
    .await;
    let connect = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move {
            let connected = tokio::net::UnixStream::connect(socket).await;
            connected.map(hyper_util::rt::TokioIo::new)
        }
    });
    tonic::transport::Endpoint::from_static("http://kubelet.local")
        .connect_with_connector_lazy(connect)
}
