//! The table of attacks: over TLS, as somebody outside would. Each is refused with the right status, in bounded time and memory,
//! and the server goes on serving others.
//!
//! `credentials`: who pretends to be somebody. `rights`: who wants more than they may. `bombs`: what is cheap to send and dear to
//! answer. `wire`: what is no proper HTTP, too large or too slow.
#![allow(
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "the tables are the tests"
)]

mod bombs;
mod credentials;
mod rights;
mod wire;

use std::time::{Duration, Instant};

use http::header::HOST;
use hyper::client::conn::http1::SendRequest;

use super::sockets::connect;
use super::*;
use crate::pki::PemPair;

const PODS: &str = "/api/v1/namespaces/a/pods";
const SECRETS: &str = "/api/v1/namespaces/a/secrets";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// No answer may take longer, on a machine that is busy and with code that is not optimized.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
/// What a test's process may grow by while it is attacked.
const GROWTH_BYTES_MAX: u64 = 400 << 20;

/// The most memory that this process ever had.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<u64>().unwrap() << 10
}

/// Somebody with a connection to the server.
struct Client {
    sender: SendRequest<Full<Bytes>>,
    headers: Vec<(&'static str, String)>,
}

impl Client {
    /// With a certificate, or without.
    async fn new(server: &Server, pair: Option<&PemPair>) -> Self {
        Client {
            sender: connect(server, pair).await,
            headers: Vec::new(),
        }
    }

    /// A user with a good certificate.
    async fn user(server: &Server, name: &str, groups: &[&str]) -> Self {
        let pair = server.pki.issue_client(name, groups).unwrap();
        Self::new(server, Some(&pair)).await
    }

    /// Somebody with a token.
    async fn bearer(server: &Server, token: &str) -> Self {
        let mut client = Self::new(server, None).await;
        client
            .headers
            .push(("authorization", format!("Bearer {token}")));
        client
    }

    async fn ask(&mut self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask_with(method, path, &[], body).await
    }

    /// Asks with more headers; the answer comes in time.
    async fn ask_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "test");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            let usual = if method == "PATCH" {
                "application/merge-patch+json"
            } else {
                "application/json"
            };
            request = request.header("content-type", usual);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let begun = Instant::now();
        self.sender.ready().await.unwrap();
        let answered = async {
            let response = self.sender.send_request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer {
                code: parts.status.as_u16(),
                headers: parts.headers,
                body,
            }
        };
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, answered).await;
        answer.unwrap_or_else(|_| panic!("{method} {path} took {:?}", begun.elapsed()))
    }
}

/// Gives a user of namespace `a` a role of these rules.
async fn grant(server: &Server, user: &str, rules: Value) {
    let role = json!({"metadata": {"name": user}, "rules": rules});
    server
        .post(&format!("{RBAC}/namespaces/a/roles"), &role)
        .await
        .ok(201);
    let binding = json!({"metadata": {"name": user}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}});
    server
        .post(&format!("{RBAC}/namespaces/a/rolebindings"), &binding)
        .await
        .ok(201);
}
