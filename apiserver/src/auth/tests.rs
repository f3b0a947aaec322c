//! Tokens and their attackers, certificates, anonymous requests, impersonation, nodes, reviews, aggregation.
#![allow(clippy::too_many_lines, reason = "the tables are the tests")]

mod access;
mod credentials;

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::pki::Pki;
use crate::testing::{put, remove, store};

/// A cluster with a service account, a node, and a Pod of that account on that node.
struct Cluster {
    store: cox_store::Store,
    pki: Arc<Pki>,
    authn: Authenticator,
    _keys: TempDir,
}

fn pod(name: &str, uid: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "ns", "name": name, "uid": uid},
        "spec": {"nodeName": node, "serviceAccountName": "robot", "containers": [{"name": "c",
            "envFrom": [{"configMapRef": {"name": "settings"}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "mine"}}]}})
}

async fn cluster() -> Cluster {
    let store = store();
    for (plural, object) in [
        (
            "serviceaccounts",
            json!({"metadata": {"namespace": "ns", "name": "robot", "uid": "sa-1"}}),
        ),
        (
            "nodes",
            json!({"metadata": {"name": "n1", "uid": "node-1"}}),
        ),
        (
            "secrets",
            json!({"metadata": {"namespace": "ns", "name": "mine", "uid": "secret-1"}}),
        ),
        ("pods", pod("p", "pod-1", "n1")),
    ] {
        put(&store, plural, &object).await;
    }
    let keys = tempfile::tempdir().expect("tempdir");
    let pki = Arc::new(Pki::load_or_create(keys.path()).expect("keys"));
    let authn = Authenticator::new(pki.clone(), store.clone());
    Cluster {
        store,
        pki,
        authn,
        _keys: keys,
    }
}

fn request(path: &str, headers: &[(&str, &str)]) -> http::request::Parts {
    let mut builder = http::Request::get(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).expect("a request").into_parts().0
}

impl Cluster {
    /// A TokenRequest for the account, answered.
    fn request_token(&self, spec: Value) -> Result<Value, cox_api::status::ApiStatus> {
        let root = UserInfo::new("root", [MASTERS]);
        tokens::create(&self.authn, &root, "ns", "robot", json!({"spec": spec}))
    }

    fn token(&self, spec: Value) -> String {
        let answer = self.request_token(spec).expect("a token");
        answer["status"]["token"].as_str().expect("text").to_owned()
    }

    /// Who a bearer of the token is.
    fn bearer(&self, token: &str) -> Result<Arc<UserInfo>, u16> {
        let parts = request(
            "/api/v1/pods",
            &[("authorization", &format!("Bearer {token}"))],
        );
        self.authn
            .authenticate(&parts, &Peer::Unidentified)
            .now_or_never()
            .expect("nothing is outside")
            .map_err(|status| status.code)
    }
}
