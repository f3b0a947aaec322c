//! The scheduler against a world of one file: a server that knows Pods, Nodes, bindings, status patches and Events.

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
    pods: Vec<Value>,
    nodes: Vec<Value>,
    bindings_to_refuse: usize,
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
        let objects = if resource == "pods" {
            &mut state.pods
        } else {
            &mut state.nodes
        };
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

    fn pod(&self, name: &str) -> Value {
        let state = self.state.lock();
        state
            .pods
            .iter()
            .find(|pod| pod["metadata"]["name"] == name)
            .unwrap()
            .clone()
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<Answer, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path: Vec<&str> = parts
            .uri
            .path()
            .trim_start_matches("/api/v1/")
            .split('/')
            .collect();
        Ok(match (&parts.method, &path[..]) {
            (&Method::GET, ["pods"]) => self.read("pods", parts.uri.query()),
            (&Method::GET, ["nodes"]) => self.read("nodes", parts.uri.query()),
            (&Method::POST, ["namespaces", _, "pods", name, "binding"]) => self.bind(name, &body),
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

    fn read(self: &Arc<Self>, resource: &'static str, query: Option<&str>) -> Answer {
        let state = self.state.lock();
        let objects = if resource == "pods" {
            &state.pods
        } else {
            &state.nodes
        };
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
    for pod in &world.state.lock().pods {
        *per_node
            .entry(pod["spec"]["nodeName"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    assert!(per_node.values().all(|count| *count == 10), "{per_node:?}");
}
