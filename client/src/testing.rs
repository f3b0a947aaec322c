//! A tiny API server for this crate's tests: objects of any kind in a map, list, watch, get, create, replace, patch (merge
//! only) and delete, with revisions. It knows no rules of any kind; the real server's tests cover those.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The server; clone it to look inside while a client uses it.
#[derive(Clone, Default)]
pub(crate) struct FakeServer {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<String, Value>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// What watches from an older revision get first.
    history: Vec<(u64, String, Bytes)>,
    /// Requests seen: method and path with query.
    requests: Vec<String>,
    /// Answer watches from a revision with 410 Gone, once.
    gone_once: bool,
}

impl FakeServer {
    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        crate::in_process(tower::service_fn(move |request| {
            server.clone().answer(request)
        }))
    }

    /// Puts an object under its path, such as `/api/v1/namespaces/a/configmaps/x`.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.lock().put(path, object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().remove(path);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    /// Ends all watches; with `gone` the next watch is refused with 410, so that clients list again.
    pub(crate) fn break_watches(&self, gone: bool) {
        let mut state = self.state.lock();
        state.watchers.clear();
        state.gone_once = gone;
    }

    fn answer(
        self,
        request: Request<Body>,
    ) -> BoxFuture<'static, Result<Response<Answer>, Infallible>> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Ok(self.state.lock().handle(&parts, &body))
        })
    }
}

impl State {
    fn handle(&mut self, parts: &http::request::Parts, body: &[u8]) -> Response<Answer> {
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        self.requests
            .push(format!("{} {}", parts.method, parts.uri));
        let collection = path
            .rsplit('/')
            .next()
            .is_some_and(|last| last.ends_with('s'))
            && !self.objects.contains_key(path);
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(path, query),
            Method::GET if collection => self.list(path),
            Method::GET => self
                .objects
                .get(path)
                .map_or_else(|| failure(404, "NotFound"), ok),
            Method::POST => {
                let object: Value = serde_json::from_slice(body).unwrap();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                ok(&self.put(&path, object))
            }
            Method::PUT => {
                let object: Value = serde_json::from_slice(body).unwrap();
                let Some(present) = self.objects.get(path) else {
                    return failure(404, "NotFound");
                };
                let wanted = &object["metadata"]["resourceVersion"];
                if wanted.is_string() && *wanted != present["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict");
                }
                ok(&self.put(path, object))
            }
            Method::PATCH => {
                let Some(mut object) = self.objects.get(path).cloned() else {
                    return failure(404, "NotFound");
                };
                merge(&mut object, &serde_json::from_slice(body).unwrap());
                ok(&self.put(path, object))
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn list(&self, path: &str) -> Response<Answer> {
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|(at, _)| is_in(at, path))
            .map(|(_, object)| object)
            .collect();
        ok(&json!({ "metadata": { "resourceVersion": self.revision.to_string() }, "items": items }))
    }

    fn watch(&mut self, path: &str, query: &str) -> Response<Answer> {
        if std::mem::take(&mut self.gone_once) {
            return failure(410, "Expired");
        }
        let (lines_tx, lines_rx) = mpsc::unbounded_channel();
        let from = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .unwrap_or("0");
        let from: u64 = from.parse().unwrap();
        for (_, _, line) in self
            .history
            .iter()
            .filter(|(revision, at, _)| *revision > from && is_in(at, path))
        {
            lines_tx.send(line.clone()).unwrap();
        }
        self.watchers.push((path.to_owned(), lines_tx));
        Response::new(Answer::Stream(lines_rx))
    }

    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let kind = if self
            .objects
            .insert(path.to_owned(), object.clone())
            .is_some()
        {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.tell(path, kind, &object);
        object
    }

    fn remove(&mut self, path: &str) {
        self.revision += 1;
        if let Some(mut object) = self.objects.remove(path) {
            object["metadata"]["resourceVersion"] = self.revision.to_string().into();
            self.tell(path, "DELETED", &object);
        }
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })));
        self.watchers
            .retain(|(at, lines_tx)| !is_in(path, at) || lines_tx.send(line.clone()).is_ok());
    }
}

/// `/api/v1/namespaces/a/configmaps/x` is in `/api/v1/configmaps` and in `/api/v1/namespaces/a/configmaps`.
fn is_in(path: &str, collection: &str) -> bool {
    let (parent, _) = path.rsplit_once('/').unwrap();
    let across = parent.split_once("/namespaces/").map(|(api, rest)| {
        format!(
            "{api}/{}",
            rest.split_once('/').map_or(rest, |(_, resource)| resource)
        )
    });
    parent == collection || across.as_deref() == Some(collection)
}

fn merge(target: &mut Value, patch: &Value) {
    let (Some(fields), true) = (patch.as_object(), target.is_object()) else {
        *target = patch.clone();
        return;
    };
    for (field, value) in fields {
        merge(&mut target[field], value);
    }
}

fn ok(object: &Value) -> Response<Answer> {
    Response::new(Answer::Once(Some(object.to_string().into())))
}

fn failure(code: u16, reason: &str) -> Response<Answer> {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason });
    Response::builder()
        .status(code)
        .body(Answer::Once(Some(status.to_string().into())))
        .unwrap()
}

/// A response body: one piece, or watch lines until the server ends them.
pub(crate) enum Answer {
    Once(Option<Bytes>),
    Stream(mpsc::UnboundedReceiver<Bytes>),
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Once(body) => Poll::Ready(body.take()),
            Self::Stream(lines_rx) => lines_rx.poll_recv(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
