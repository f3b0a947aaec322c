//! The scheduler against a world of one file: a server that knows Pods, Nodes, bindings, status patches and Events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cox_client::{Informers, TestClock};
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::Deps;
use crate::fixture::{node_object, pod_object};
use crate::run::{Config, run};

type Answer = Response<BoxBody<Bytes, Infallible>>;

const RESOURCES: [&str; 12] = [
    "pods",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "storageclasses",
    "csidrivers",
    "csinodes",
    "csistoragecapacities",
    "volumeattachments",
    "resourceclaims",
    "resourceslices",
    "deviceclasses",
];

fn known(resource: &str) -> Option<&'static str> {
    RESOURCES.into_iter().find(|own| *own == resource)
}

struct World {
    state: Mutex<State>,
    /// Watch lines with the resource they belong to.
    lines_tx: broadcast::Sender<(&'static str, Bytes)>,
    /// What the scheduler wrote, newest last.
    writes_tx: watch::Sender<Vec<String>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: HashMap<&'static str, Vec<Value>>,
    bindings_to_refuse: usize,
    /// Writes of claims that are too late.
    conflicts: usize,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            lines_tx: broadcast::channel(1000).0,
            writes_tx: watch::Sender::new(Vec::new()),
        })
    }

    fn put(&self, resource: &'static str, object: impl serde::Serialize) {
        let mut object = serde_json::to_value(object).unwrap();
        let mut state = self.state.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let name = object["metadata"]["name"].clone();
        let objects = state.objects.entry(resource).or_default();
        let known = objects
            .iter()
            .position(|known| known["metadata"]["name"] == name);
        match known {
            Some(index) => objects[index] = object.clone(),
            None => objects.push(object.clone()),
        }
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        // Nobody watches yet: the list will have it.
        drop(self.lines_tx.send((
            resource,
            Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))),
        )));
    }

    fn delete(&self, resource: &'static str, name: &str) {
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision.to_string();
        let objects = state.objects.get_mut(resource).unwrap();
        let at = objects
            .iter()
            .position(|own| own["metadata"]["name"] == name);
        let mut gone = objects.remove(at.unwrap());
        gone["metadata"]["resourceVersion"] = revision.into();
        let line = json!({"type": "DELETED", "object": gone});
        drop(
            self.lines_tx
                .send((resource, Bytes::from(format!("{line}\n")))),
        );
    }

    fn wrote(&self, what: String) {
        self.writes_tx.send_modify(|writes| writes.push(what));
    }

    /// Waits until the scheduler has written this.
    async fn written(&self, what: &str) {
        let mut writes_rx = self.writes_tx.subscribe();
        let waiting = writes_rx.wait_for(|writes| writes.iter().any(|write| write == what));
        if tokio::time::timeout(Duration::from_secs(120), waiting)
            .await
            .is_err()
        {
            panic!("{what:?} is not among {:#?}", self.writes_tx.borrow());
        }
    }

    fn count(&self, what: &str) -> usize {
        self.writes_tx
            .borrow()
            .iter()
            .filter(|write| *write == what)
            .count()
    }

    fn object(&self, resource: &str, name: &str) -> Value {
        let state = self.state.lock();
        let mut objects = state.objects[resource].iter();
        let found = objects.find(|object| object["metadata"]["name"] == name);
        found.unwrap().clone()
    }

    fn pod(&self, name: &str) -> Value {
        self.object("pods", name)
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<Answer, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path: Vec<&str> = parts
            .uri
            .path()
            .trim_start_matches("/api/v1/")
            .trim_start_matches("/apis/storage.k8s.io/v1/")
            .trim_start_matches("/apis/resource.k8s.io/v1/")
            .split('/')
            .collect();
        Ok(match (&parts.method, &path[..]) {
            (&Method::GET, [resource]) if let Some(resource) = known(resource) => {
                self.read(resource, parts.uri.query())
            }
            (&Method::PUT, ["persistentvolumes", name]) => {
                let volume = &body["spec"]["claimRef"]["name"];
                self.put("persistentvolumes", &body);
                self.wrote(format!("{name} for {}", volume.as_str().unwrap()));
                json_answer(200, &self.object("persistentvolumes", name))
            }
            (&Method::PATCH, ["namespaces", _, "persistentvolumeclaims", name]) => {
                let mut claim = self.object("persistentvolumeclaims", name);
                let annotations = &body["metadata"]["annotations"];
                claim["metadata"]["annotations"] = annotations.clone();
                self.put("persistentvolumeclaims", &claim);
                self.wrote(format!("{name}: {annotations}"));
                json_answer(200, &self.object("persistentvolumeclaims", name))
            }
            (method, ["namespaces", _, "resourceclaims", rest @ ..]) => {
                self.claims(method, rest, &body)
            }
            (&Method::POST, ["namespaces", _, "pods", name, "binding"]) => self.bind(name, &body),
            (&Method::PATCH, ["namespaces", _, "pods", name, "status"])
                if body["status"]["extendedResourceClaimStatus"].is_object() =>
            {
                let status = &body["status"]["extendedResourceClaimStatus"];
                self.wrote(format!("{name} uses {status}"));
                json_answer(200, &self.pod(name))
            }
            (&Method::PATCH, ["namespaces", _, "pods", name, "status"]) => self.patch(name, &body),
            (&Method::POST, [.., "events"]) => {
                let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
                self.wrote(format!(
                    "{} {}: {}",
                    text("type"),
                    text("reason"),
                    text("message")
                ));
                json_answer(201, &body)
            }
            _ => json_answer(
                404,
                &json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": parts.uri.path()}),
            ),
        })
    }

    /// Claims for devices.
    fn claims(&self, method: &Method, path: &[&str], body: &Value) -> Answer {
        match (method, path) {
            (&Method::GET, [name]) => json_answer(200, &self.object("resourceclaims", name)),
            (&Method::PUT, [name, rest @ ..]) => self.put_claim(name, body, rest),
            (&Method::PATCH, [name, "status"]) => {
                let mut claim = self.object("resourceclaims", name);
                let gone = body["status"]["reservedFor"][0]["uid"].clone();
                let reserved = claim["status"]["reservedFor"].as_array_mut().unwrap();
                reserved.retain(|own| own["uid"] != gone);
                self.put("resourceclaims", &claim);
                self.wrote(format!("{name} without {}", gone.as_str().unwrap()));
                json_answer(200, &self.object("resourceclaims", name))
            }
            (&Method::POST, []) => {
                let mut claim = body.clone();
                let start = body["metadata"]["generateName"].as_str().unwrap();
                let name = format!("{start}x");
                claim["metadata"]["name"] = name.as_str().into();
                claim["metadata"]["uid"] = format!("uid-{name}").into();
                self.put("resourceclaims", &claim);
                self.wrote(format!("made {name}"));
                json_answer(201, &self.object("resourceclaims", &name))
            }
            (&Method::DELETE, [name]) => {
                let claim = self.object("resourceclaims", name);
                assert_eq!(body["preconditions"]["uid"], claim["metadata"]["uid"]);
                self.delete("resourceclaims", name);
                self.wrote(format!("deleted {name}"));
                json_answer(200, &claim)
            }
            _ => json_answer(405, &json!({"kind": "Status", "code": 405})),
        }
    }

    /// A whole claim, or its status; somebody else is faster as often as is wanted.
    fn put_claim(&self, name: &str, body: &Value, rest: &[&str]) -> Answer {
        let known = self.object("resourceclaims", name);
        let conflict = {
            let mut state = self.state.lock();
            let conflict = state.conflicts > 0;
            state.conflicts = state.conflicts.saturating_sub(1);
            conflict || body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]
        };
        if conflict {
            self.wrote(format!("{name} conflicts"));
            return json_answer(
                409,
                &json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": "changed"}),
            );
        }
        let mut claim = known;
        if rest.is_empty() {
            claim["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
            self.wrote(format!("{name} {}", claim["metadata"]["finalizers"]));
        } else {
            claim["status"] = body["status"].clone();
            let status = &claim["status"];
            let uids: Vec<&str> = status["reservedFor"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|own| own["uid"].as_str().unwrap())
                .collect();
            let device = &status["allocation"]["devices"]["results"][0]["device"];
            self.wrote(format!("{name} has {device} for {uids:?}"));
        }
        self.put("resourceclaims", &claim);
        json_answer(200, &self.object("resourceclaims", name))
    }

    fn read(self: &Arc<Self>, resource: &'static str, query: Option<&str>) -> Answer {
        let state = self.state.lock();
        let none = Vec::new();
        let objects = state.objects.get(resource).unwrap_or(&none);
        let query = query.unwrap_or_default();
        if !query.contains("watch=") {
            let revision = state.revision.to_string();
            return json_answer(
                200,
                &json!({"metadata": {"resourceVersion": revision}, "items": objects}),
            );
        }
        let from = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from: u64 = from.and_then(|from| from.parse().ok()).unwrap_or(0);
        let revision = |object: &Value| {
            object["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let missed: Vec<Bytes> = objects
            .iter()
            .filter(|object| revision(object) > from)
            .map(|object| {
                Bytes::from(format!(
                    "{}\n",
                    json!({"type": "MODIFIED", "object": object})
                ))
            })
            .collect();
        let lines =
            futures::stream::unfold(self.lines_tx.subscribe(), move |mut lines_rx| async move {
                loop {
                    let (of, line) = lines_rx.recv().await.ok()?;
                    if of == resource {
                        return Some((line, lines_rx));
                    }
                }
            });
        let frames = futures::stream::iter(missed)
            .chain(lines)
            .map(http_body::Frame::data);
        Response::new(BoxBody::new(StreamBody::new(
            frames.map(Ok::<_, Infallible>),
        )))
    }

    fn bind(&self, name: &str, binding: &Value) -> Answer {
        let mut pod = self.pod(name);
        assert_eq!(binding["metadata"]["uid"], pod["metadata"]["uid"]);
        assert_eq!(
            (&binding["kind"], &binding["target"]["kind"]),
            (&json!("Binding"), &json!("Node"))
        );
        let refuse = {
            let mut state = self.state.lock();
            let refuse = state.bindings_to_refuse > 0;
            state.bindings_to_refuse = state.bindings_to_refuse.saturating_sub(1);
            refuse
        };
        let node = &binding["target"]["name"];
        if refuse {
            self.wrote(format!("refused {name}"));
            return json_answer(
                500,
                &json!({"kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "not now"}),
            );
        }
        pod["spec"]["nodeName"] = node.clone();
        self.put("pods", &pod);
        self.wrote(format!("{name}->{}", node.as_str().unwrap()));
        json_answer(
            201,
            &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
        )
    }

    fn patch(&self, name: &str, patch: &Value) -> Answer {
        let mut pod = self.pod(name);
        pod["status"]["conditions"] = patch["status"]["conditions"].clone();
        let message = pod["status"]["conditions"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        self.put("pods", &pod);
        self.wrote(format!("{name}: {message}"));
        json_answer(200, &self.pod(name))
    }
}

fn json_answer(code: u16, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string()));
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body.boxed())
        .unwrap()
}

/// Runs the scheduler beside the test.
async fn with_scheduler(world: &Arc<World>, test: impl Future<Output = ()>) {
    let cancel = CancellationToken::new();
    let server = Arc::clone(world);
    let client = cox_client::in_process(tower::service_fn(move |request| {
        Arc::clone(&server).answer(request)
    }));
    let deps = Deps {
        informers: Informers::new(client.clone(), &cancel),
        client,
        clock: Arc::new(TestClock::starting_at(
            "2026-01-01T00:00:00Z".parse().unwrap(),
        )),
    };
    let scheduler = run(Config::default(), deps, cancel.clone());
    let test = async {
        test.await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(scheduler, test);
    ended.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_told_of() {
    let world = World::new();
    world.put("nodes", &*node_object("n cpu=2"));
    world.put("pods", &*pod_object("before cpu=1"));
    with_scheduler(&world, async {
        world.written("before->n").await;
        world
            .written("Normal Scheduled: Successfully assigned default/before to n")
            .await;
        world.put("pods", &*pod_object("after cpu=1"));
        world.written("after->n").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_once_and_is_bound_when_it_fits() {
    let world = World::new();
    world.put("nodes", &*node_object("n cpu=1 taint=k=v:NoSchedule"));
    world.put("pods", &*pod_object("p cpu=1"));
    let why = "0/1 nodes are available: 1 node(s) had untolerated taint(s).";
    with_scheduler(&world, async {
        world.written(&format!("p: {why}")).await;
        world
            .written(&format!("Warning FailedScheduling: {why}"))
            .await;
        let condition = &world.pod("p")["status"]["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["status"]),
            (&json!("PodScheduled"), &json!("False"))
        );
        assert_eq!(
            condition["lastTransitionTime"]
                .as_str()
                .map(|time| &time[..10]),
            Some("2026-01-01")
        );
        // Another try, as useless as the first, writes no second condition.
        world.put("nodes", &*node_object("n cpu=1 taint=k=w:NoSchedule"));
        world.put("nodes", &*node_object("n cpu=1"));
        world.written("p->n").await;
        assert_eq!(world.count(&format!("p: {why}")), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_binding_is_tried_again() {
    let world = World::new();
    world.put("nodes", &*node_object("n cpu=1"));
    world.put("pods", &*pod_object("p cpu=1"));
    world.state.lock().bindings_to_refuse = 2;
    with_scheduler(&world, async {
        world.written("p->n").await;
        assert_eq!(world.count("refused p"), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_pods_find_their_places() {
    let world = World::new();
    for number in 0..20 {
        world.put("nodes", &*node_object(&format!("n{number} cpu=10")));
    }
    with_scheduler(&world, async {
        for number in 0..200 {
            world.put("pods", &*pod_object(&format!("p{number} cpu=1")));
        }
        for number in 0..200 {
            let bound = format!("p{number}->");
            let mut writes_rx = world.writes_tx.subscribe();
            writes_rx
                .wait_for(|writes| writes.iter().any(|write| write.starts_with(&bound)))
                .await
                .unwrap();
        }
    })
    .await;
    let mut per_node = std::collections::HashMap::<String, usize>::new();
    for pod in &world.state.lock().objects["pods"] {
        *per_node
            .entry(pod["spec"]["nodeName"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    assert!(per_node.values().all(|count| *count == 10), "{per_node:?}");
}

/// Plays the controller that makes bindings whole: the claim names its volume for good.
fn bind_claim(world: &World, claim: &str, volume: &str) {
    let mut bound = world.object("persistentvolumeclaims", claim);
    bound["spec"]["volumeName"] = volume.into();
    bound["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
    bound["status"]["phase"] = "Bound".into();
    world.put("persistentvolumeclaims", &bound);
}

fn with_claim(name: &str, claim: &str) -> Value {
    let mut pod = serde_json::to_value(&*pod_object(name)).unwrap();
    pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
    pod
}

fn waiting_class(provisioner: &str) -> Value {
    json!({"metadata": {"name": "late"}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"})
}

fn late_claim(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"storageClassName": "late",
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

#[tokio::test(start_paused = true)]
async fn a_pod_goes_where_its_volume_is_and_is_bound_after_it() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.put(
            "nodes",
            &*node_object(&format!("{name} cpu=1 label=host={name}")),
        );
    }
    world.put(
        "storageclasses",
        waiting_class("kubernetes.io/no-provisioner"),
    );
    world.put("pods", with_claim("p", "c"));
    with_scheduler(&world, async {
        world
            .written("p: 0/3 nodes are available: persistentvolumeclaim \"c\" not found.")
            .await;
        world.put("persistentvolumeclaims", late_claim("c"));
        world
            .written("p: 0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.")
            .await;
        world.put(
            "persistentvolumes",
            json!({"metadata": {"name": "v"}, "status": {"phase": "Available"}, "spec": {"storageClassName": "late",
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "nodeAffinity": {"required": {"nodeSelectorTerms":
                    [{"matchExpressions": [{"key": "host", "operator": "In", "values": ["b"]}]}]}}}}),
        );
        world.written("v for c").await;
        assert_eq!(world.count("p->b"), 0, "its volume is not bound yet");
        bind_claim(&world, "c", "v");
        world.written("p->b").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_made_is_waited_for_and_a_refusal_is_taken() {
    let world = World::new();
    world.put("nodes", &*node_object("n cpu=1"));
    world.put("storageclasses", waiting_class("csi.example"));
    world.put("persistentvolumeclaims", late_claim("c"));
    world.put("pods", with_claim("p", "c"));
    world.put("pods", &*pod_object("other cpu=1"));
    let chosen = "c: {\"volume.kubernetes.io/selected-node\":\"n\"}";
    with_scheduler(&world, async {
        world.written(chosen).await;
        world.written("other->n").await;
        assert_eq!(world.count("p->n"), 0, "others do not wait, and it does");
        // The provisioner cannot, and says so.
        world.put("persistentvolumeclaims", late_claim("c"));
        world
            .written("Warning FailedScheduling: running PreBind plugin \"VolumeBinding\": binding volumes: provisioning failed for PVC \"c\"")
            .await;
        let mut writes_rx = world.writes_tx.subscribe();
        let twice = |writes: &Vec<String>| writes.iter().filter(|write| *write == chosen).count() == 2;
        writes_rx.wait_for(twice).await.unwrap();
        bind_claim(&world, "c", "made");
        world.written("p->n").await;
    })
    .await;
}

fn with_devices(name: &str, claim: &str) -> Value {
    let mut pod = serde_json::to_value(&*pod_object(name)).unwrap();
    pod["spec"]["resourceClaims"] = json!([{"name": "own", "resourceClaimName": claim}]);
    pod
}

fn device_claim(name: &str) -> Value {
    let wanted = json!({"deviceClassName": "class", "allocationMode": "ExactCount", "count": 1});
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": wanted}]}}})
}

/// A node with one device.
fn one_device(world: &World, device: &Value) {
    world.put("nodes", &*node_object("n cpu=4"));
    world.put(
        "deviceclasses",
        json!({"metadata": {"name": "class"}, "spec": {}}),
    );
    let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
    world.put(
        "resourceslices",
        json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "n", "pool": pool, "devices": [device]}}),
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_gets_its_device_before_its_pod_is_bound_and_others_wait_for_it() {
    let world = World::new();
    one_device(&world, &json!({"name": "dev"}));
    world.put("pods", with_devices("p", "c"));
    world.state.lock().conflicts = 1;
    with_scheduler(&world, async {
        world
            .written("p: 0/1 nodes are available: resourceclaim.resource.k8s.io \"c\" not found.")
            .await;
        world.put("resourceclaims", device_claim("c"));
        world.written("c conflicts").await;
        world
            .written("c [\"resource.kubernetes.io/delete-protection\"]")
            .await;
        world.written("c has \"dev\" for [\"p\"]").await;
        world.written("p->n").await;
        let claim = world.object("resourceclaims", "c");
        assert_eq!(
            claim["status"]["reservedFor"],
            json!([{"resource": "pods", "name": "p", "uid": "p"}])
        );
        let held = &claim["status"]["allocation"];
        assert!(
            held["allocationTimestamp"]
                .as_str()
                .unwrap()
                .starts_with("2026-01-01")
        );
        assert_eq!(
            held["devices"]["results"],
            json!([{"request": "r", "driver": "d", "pool": "p", "device": "dev"}])
        );
        let term = &held["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0];
        assert_eq!(term["values"], json!(["n"]));

        world.put("pods", with_devices("shares", "c"));
        world.written("c has \"dev\" for [\"p\", \"shares\"]").await;
        world.written("shares->n").await;

        world.put("resourceclaims", device_claim("d"));
        world.put("pods", with_devices("q", "d"));
        world
            .written("q: 0/1 nodes are available: 1 cannot allocate all claims.")
            .await;
        let mut freed = world.object("resourceclaims", "c");
        freed["status"] = Value::Null;
        world.put("resourceclaims", &freed);
        world.written("q->n").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_fails_gives_the_reservation_back() {
    let world = World::new();
    one_device(&world, &json!({"name": "dev"}));
    world.put("resourceclaims", device_claim("c"));
    world.put("pods", with_devices("p", "c"));
    world.state.lock().bindings_to_refuse = 1;
    with_scheduler(&world, async {
        world.written("refused p").await;
        world.written("c without p").await;
        world.written("p->n").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn devices_are_made_ready_before_the_pod_is_bound() {
    let world = World::new();
    let conditions = json!({"name": "dev", "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]});
    one_device(&world, &conditions);
    world.put("resourceclaims", device_claim("c"));
    world.put("pods", with_devices("p", "c"));
    let says = |type_: &str| {
        let condition = json!({"type": type_, "status": "True", "reason": "Said", "message": "so", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut claim = world.object("resourceclaims", "c");
        claim["status"]["devices"] =
            json!([{"driver": "d", "pool": "p", "device": "dev", "conditions": [condition]}]);
        world.put("resourceclaims", &claim);
    };
    with_scheduler(&world, async {
        world
            .written("Normal BindingConditionsPending: waiting for binding conditions for device on node n")
            .await;
        assert_eq!(world.count("p->n"), 0, "not before it is ready");
        says("Broken");
        world
            .written("Warning FailedScheduling: running PreBind plugin \"DynamicResources\": device binding failed: claim=c, reason=Said, message=\"so\"")
            .await;
        // Given back, and taken anew.
        world.written("c has null for []").await;
        let mut writes_rx = world.writes_tx.subscribe();
        let again = "c has \"dev\" for [\"p\"]";
        let twice = |writes: &Vec<String>| writes.iter().filter(|write| *write == again).count() == 2;
        writes_rx.wait_for(twice).await.unwrap();
        says("Attached");
        world.written("p->n").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_made_for_extended_resources_and_goes_when_the_binding_fails() {
    let world = World::new();
    one_device(&world, &json!({"name": "dev"}));
    world.put(
        "deviceclasses",
        json!({"metadata": {"name": "class"}, "spec": {"extendedResourceName": "example.com/gpu"}}),
    );
    world.put("pods", &*pod_object("p gpu=1"));
    world.state.lock().bindings_to_refuse = 1;
    let name = "p-extended-resources-x";
    with_scheduler(&world, async {
        world.written(&format!("made {name}")).await;
        world.written(&format!("{name} has \"dev\" for [\"p\"]")).await;
        let mapping = r#"{"containerName":"c","requestName":"container-0-request-0","resourceName":"example.com/gpu"}"#;
        world
            .written(&format!(r#"p uses {{"requestMappings":[{mapping}],"resourceClaimName":"{name}"}}"#))
            .await;
        world.written("refused p").await;
        world.written(&format!("deleted {name}")).await;
        world.written("p->n").await;
        assert_eq!(world.count(&format!("made {name}")), 2);
    })
    .await;
}
