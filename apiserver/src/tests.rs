//! Component tests: the whole API in process over a memory store, as its clients see it.

mod aggregation;
mod asked_outside;
mod attacks;
mod content;
mod conversion;
mod crds;
mod delete;
mod devices;
mod errors;
mod gate;
mod hooks;
mod lists;
mod outside;
mod patches;
mod plain;
mod policies;
mod positions;
mod proxies;
mod security;
mod services;
mod sockets;
mod subresources;
mod watches;
mod writes;

use std::sync::Arc;

use bytes::Bytes;
use cox_store::{Backend, Store};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::auth::UserInfo;
use crate::body::Body;
use crate::pki::Pki;
use crate::{ApiServer, BuiltinIndexer, Config, Deps, LocalService, start};

/// A server of its own for one test.
struct Server {
    server: ApiServer,
    admin: LocalService,
    cancel: CancellationToken,
    pki: Arc<Pki>,
    keys: TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The object, which must have been answered with this code.
    fn ok(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()
    }

    /// The same of a failure written in YAML.
    fn yaml_failure(&self) -> (u16, String, String) {
        let json = cox_api::codec::yaml_value(&self.body).unwrap().to_string();
        let (code, headers) = (self.code, self.headers.clone());
        Answer {
            code,
            headers,
            body: json.into(),
        }
        .failure()
    }

    /// Code, reason and message of a failure.
    fn failure(&self) -> (u16, String, String) {
        let status = self.json();
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["status"], "Failure", "{status}");
        assert_eq!(status["code"], self.code);
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (self.code, text("reason"), text("message"))
    }
}

impl Server {
    async fn new() -> Self {
        Self::configured(|_| {}).await
    }

    /// With other settings than the usual ones.
    async fn configured(edit: impl FnOnce(&mut Config)) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::load_or_create(keys.path()).unwrap());
        let store = Store::open(
            cox_store::Config::new(Backend::Memory),
            Arc::new(BuiltinIndexer),
        )
        .unwrap();
        let cancel = CancellationToken::new();
        let mut config = Config::new("127.0.0.1:0".parse().unwrap(), Arc::clone(&pki));
        edit(&mut config);
        let server = start(config, Deps::new(store), cancel.clone())
            .await
            .unwrap();
        let admin = server.service(UserInfo::new("admin", ["system:masters"]));
        Server {
            server,
            admin,
            cancel,
            pki,
            keys,
        }
    }

    /// A server with a namespace `a`.
    async fn with_namespace() -> Self {
        let server = Server::new().await;
        server
            .post("/api/v1/namespaces", &json!({"metadata": {"name": "a"}}))
            .await
            .ok(201);
        // What the serviceaccount controller would make.
        let account = json!({"metadata": {"name": "default"}});
        server
            .post("/api/v1/namespaces/a/serviceaccounts", &account)
            .await
            .ok(201);
        server
    }

    async fn open(&self, request: Request<Full<Bytes>>) -> Response<Body> {
        self.admin.clone().call(request).await.unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.open(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    async fn with_body(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type);
        self.send(request.body(Full::new(body.into())).unwrap())
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Full::default()).unwrap())
            .await
    }

    async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send(
            Request::get(path)
                .header("accept", accept)
                .body(Full::default())
                .unwrap(),
        )
        .await
    }

    async fn post(&self, path: &str, object: &Value) -> Answer {
        self.with_body("POST", path, "application/json", object.to_string())
            .await
    }

    async fn put(&self, path: &str, object: &Value) -> Answer {
        self.with_body("PUT", path, "application/json", object.to_string())
            .await
    }

    async fn merge(&self, path: &str, patch: &Value) -> Answer {
        self.with_body(
            "PATCH",
            path,
            "application/merge-patch+json",
            patch.to_string(),
        )
        .await
    }

    async fn apply(&self, path: &str, object: &Value) -> Answer {
        self.with_body(
            "PATCH",
            path,
            "application/apply-patch+yaml",
            object.to_string(),
        )
        .await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.with_body("DELETE", path, "application/json", "").await
    }

    /// Opens a watch; its events are read line by line.
    async fn watch(&self, path: &str) -> Events {
        let response = self
            .open(Request::get(path).body(Full::default()).unwrap())
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        Events {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The events of a watch.
struct Events {
    body: Body,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event, or none when the watch has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    async fn short(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or("-")
        )
    }
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/a/configmaps";

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn labelled(name: &str, app: &str) -> Value {
    let mut object = config_map(name);
    object["metadata"]["labels"] = json!({"app": app});
    object
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    })
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}
