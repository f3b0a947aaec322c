//! A real API server over a store in memory, the controllers with their own identities, and a kubelet that only pretends: it
//! binds pods to `node-1`, reports them running and ready at once, and confirms their end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_apiserver::auth::UserInfo;
use cox_apiserver::pki::Pki;
use cox_apiserver::{ApiServer, BuiltinIndexer};
use cox_client::runner::{ObjectName, Queue, Verdict};
use cox_client::{Cached, Change, Informers, SystemClock, in_process, runner};
use cox_controllers::{Config, Deps};
use cox_store::{Backend, Store};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::discovery::{Discovery, verbs};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    server: ApiServer,
    pub(crate) client: kube::Client,
    pub(crate) informers: Informers,
    pub(crate) cancel: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// The API server alone.
    pub(crate) async fn start() -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
        // Set already when several tests share a process.
        drop(log);
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::load_or_create(dir.path()).unwrap());
        let config = cox_store::Config::new(Backend::Memory);
        let store = Store::open(config, Arc::new(BuiltinIndexer)).unwrap();
        let cancel = CancellationToken::new();
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = cox_apiserver::Config::new(listen, pki);
        let server = cox_apiserver::start(config, cox_apiserver::Deps::new(store), cancel.clone())
            .await
            .unwrap();
        let client = in_process(server.service(UserInfo::new("admin", ["system:masters"])));
        let manager =
            in_process(server.service(UserInfo::new("system:kube-controller-manager", [])));
        let informers = Informers::new(manager, &cancel);
        Self {
            server,
            client,
            informers,
            cancel,
            _dir: dir,
        }
    }

    /// The controllers, each as its own service account, so that RBAC's default roles are tested too.
    pub(crate) fn run_controllers(&self, adjust: impl FnOnce(&mut Config)) -> Controllers {
        let mut config = Config::new("CA");
        adjust(&mut config);
        let services: BTreeMap<String, kube::Client> = SERVICE_ACCOUNTS
            .iter()
            .map(|name| {
                let user = format!("system:serviceaccount:kube-system:{name}");
                let groups = [
                    "system:serviceaccounts",
                    "system:serviceaccounts:kube-system",
                ];
                (
                    (*name).to_owned(),
                    in_process(self.server.service(UserInfo::new(user, groups))),
                )
            })
            .collect();
        let client_for = Arc::new(move |name: &str| services[name].clone());
        let cancel = self.cancel.child_token();
        let informers = Informers::new(
            in_process(
                self.server
                    .service(UserInfo::new("system:kube-controller-manager", [])),
            ),
            &cancel,
        );
        let deps = Deps {
            informers,
            client_for,
            clock: Arc::new(SystemClock),
        };
        let task = tokio::spawn(cox_controllers::run(config, deps, cancel.clone()));
        Controllers { cancel, task }
    }

    pub(crate) fn scheduler_client(&self) -> kube::Client {
        in_process(
            self.server
                .service(UserInfo::new("system:kube-scheduler", [])),
        )
    }

    /// The scheduler, until it is cancelled.
    pub(crate) fn run_scheduler(&self) -> CancellationToken {
        let (client, cancel) = (self.scheduler_client(), self.cancel.child_token());
        let deps = cox_scheduler::Deps {
            informers: Informers::new(client.clone(), &cancel),
            client,
            clock: Arc::new(SystemClock),
        };
        let config = cox_scheduler::Config::default();
        tokio::spawn(cox_scheduler::run(config, deps, cancel.clone()));
        cancel
    }

    /// A node that is ready, and something that acts as its kubelet.
    pub(crate) async fn run_kubelet(&self) {
        self.create_node("node-1").await;
        let pods = self.informers.of::<Pod>();
        let queue = Queue::new();
        tokio::spawn(runner::feed(
            pods.clone(),
            queue.clone(),
            |pod: &Pod, keys| keys.push(ObjectName::of(pod)),
        ));
        let client = self.client.clone();
        let reconcile = move |key: ObjectName| {
            let (client, pod) = (client.clone(), pods.get(Some(&key.namespace), &key.name));
            async move {
                let Some(pod) = pod else { return Verdict::Done };
                act_as_kubelet(client, &pod).await.into()
            }
        };
        tokio::spawn(runner::run(
            "kubelet",
            4,
            queue,
            reconcile,
            self.cancel.clone(),
        ));
    }

    pub(crate) async fn create_node(&self, name: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": now(), "lastTransitionTime": now() }] },
        });
        let api = Api::<Node>::all(self.client.clone());
        api.create(
            &PostParams::default(),
            &serde_json::from_value(node.clone()).unwrap(),
        )
        .await
        .unwrap();
        api.patch_status(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({ "status": node["status"] })),
        )
        .await
        .unwrap();
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Cached + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Cached + serde::Serialize + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>(namespace)
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    /// Waits until the objects of a kind are as wished.
    pub(crate) async fn wait_for<K: Cached>(&self, what: &str, wished: impl Fn(&[Arc<K>]) -> bool) {
        let informer = self.informers.of::<K>();
        let mut changes = informer.subscribe();
        let look = async {
            while let Some(Change::Resync | Change::Applied { .. } | Change::Deleted(_)) =
                changes.next().await
            {
                if wished(&informer.list()) {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, look).await.is_err() {
            panic!(
                "never happened: {what}; there is {}",
                serde_json::to_string_pretty(&self.dump().await).unwrap()
            );
        }
    }

    /// The resourceVersion of every object but Leases and Events, by kind, namespace and name.
    pub(crate) async fn versions(&self, skip_namespace: &str) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        for object in self.all().await {
            let namespace = object.namespace().unwrap_or_default();
            let kind = object
                .types
                .as_ref()
                .map(|types| types.kind.clone())
                .unwrap_or_default();
            if namespace != skip_namespace && object.name_any() != skip_namespace {
                versions.insert(
                    format!("{kind} {namespace}/{}", object.name_any()),
                    object.resource_version().unwrap(),
                );
            }
        }
        versions
    }

    async fn dump(&self) -> Vec<String> {
        let all = self.all().await;
        let interesting = all.iter().filter(|object| {
            let kind = object
                .types
                .as_ref()
                .map_or("", |types| types.kind.as_str());
            matches!(
                kind,
                "Pod"
                    | "ReplicaSet"
                    | "Deployment"
                    | "Node"
                    | "Namespace"
                    | "ConfigMap"
                    | "PersistentVolume"
                    | "PersistentVolumeClaim"
            )
        });
        interesting
            .map(|object| serde_json::to_string(object).unwrap())
            .collect()
    }

    async fn all(&self) -> Vec<DynamicObject> {
        let discovery = Discovery::new(self.client.clone()).run().await.unwrap();
        let mut all = Vec::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if capabilities.supports_operation(verbs::LIST)
                    && !matches!(&*resource.plural, "events" | "leases")
                {
                    let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
                    for mut object in api.list(&ListParams::default()).await.unwrap() {
                        object
                            .types
                            .get_or_insert_default()
                            .kind
                            .clone_from(&resource.kind);
                        all.push(object);
                    }
                }
            }
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

pub(crate) struct Controllers {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), cox_controllers::RunError>>,
}

impl Controllers {
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

const SERVICE_ACCOUNTS: [&str; 28] = [
    "attachdetach-controller",
    "cronjob-controller",
    "disruption-controller",
    "resource-claim-controller",
    "device-taint-eviction-controller",
    "resourcequota-controller",
    "service-account-controller",
    "root-ca-cert-publisher",
    "replicaset-controller",
    "replication-controller",
    "job-controller",
    "statefulset-controller",
    "daemon-set-controller",
    "ttl-after-finished-controller",
    "deployment-controller",
    "namespace-controller",
    "endpoint-controller",
    "endpointslice-controller",
    "endpointslicemirroring-controller",
    "generic-garbage-collector",
    "service-cidrs-controller",
    "service-controller",
    "node-controller",
    "pod-garbage-collector",
    "persistent-volume-binder",
    "pvc-protection-controller",
    "pv-protection-controller",
    "ephemeral-volume-controller",
];

pub(crate) fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// The node that a pod of a daemon set is pinned to.
fn pinned_to(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
    let required = affinity
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .first()?
        .match_fields
        .as_ref()?;
    fields.first()?.values.as_ref()?.first().map(String::as_str)
}

/// Images of this name cannot be pulled: their pods never run.
fn has_no_image(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map(|spec| &spec.containers);
    let mut images = containers
        .into_iter()
        .flatten()
        .filter_map(|one| one.image.as_ref());
    images.any(|image| image == "missing")
}

async fn act_as_kubelet(client: kube::Client, pod: &Pod) -> Result<(), kube::Error> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api = Api::<Pod>::namespaced(client, &namespace);
    let result = if pod.metadata.deletion_timestamp.is_some() {
        api.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .map(drop)
    } else if pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_none())
    {
        let node = pinned_to(pod).unwrap_or("node-1");
        let target = json!({ "apiVersion": "v1", "kind": "Node", "name": node });
        let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name }, "target": target });
        api.create_subresource::<_, Value>("binding", &name, &PostParams::default(), &binding)
            .await
            .map(drop)
    } else if matches!(
        pod.status
            .as_ref()
            .and_then(|status| status.phase.as_deref()),
        // What a test has ended stays ended.
        Some("Running" | "Succeeded" | "Failed")
    ) || has_no_image(pod)
    {
        return Ok(());
    } else {
        let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": now() });
        let patch = json!({ "status": { "phase": "Running", "conditions": [ready] } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
    };
    match result {
        Err(error) if cox_client::is_not_found(&error) || cox_client::has_code(&error, 409) => {
            Ok(())
        }
        result => result,
    }
}
