//! Requests per second: many connections, each with one request after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use cox_testkit::access::Access;
use hyper::Method;
use serde_json::json;

use super::api::{Connection, connect};

/// Namespace that the benchmark makes and removes.
pub(crate) const NAMESPACE: &str = "cox-bench";

/// What is asked, as a function of the request's number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Makes `c-FROM` and so on.
    CreateConfigMap {
        from: usize,
    },
    /// Reads the first ones, one after the other.
    GetConfigMap {
        among: usize,
    },
    ListConfigMaps,
}

impl Load {
    fn request(self, number: usize) -> (Method, String, Bytes) {
        let all = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        match self {
            Self::CreateConfigMap { from } => {
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c-{}", from + number)},
                                    "data": {"value": "x".repeat(1000)}});
                (Method::POST, all, object.to_string().into())
            }
            // A step that has no factor in common with the count: neighbours in time are none in the store.
            Self::GetConfigMap { among } => (
                Method::GET,
                format!("{all}/c-{}", number * 7919 % among),
                Bytes::new(),
            ),
            Self::ListConfigMaps => (Method::GET, format!("{all}?limit=500"), Bytes::new()),
        }
    }
}

/// Runs `requests` requests over `connections` connections; answers per second.
pub(crate) async fn rate(
    access: &Access,
    load: Load,
    connections: usize,
    requests: usize,
) -> Result<f64> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut open: Vec<Connection> = Vec::new();
    for _ in 0..connections {
        open.push(connect(access).await?);
    }
    let start = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for mut connection in open {
        let next = Arc::clone(&next);
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return anyhow::Ok(());
                }
                let (method, path, body) = load.request(number);
                connection.call(method, &path, body).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    #[allow(
        clippy::cast_precision_loss,
        reason = "a count of requests is far below 2^52"
    )]
    Ok(requests as f64 / start.elapsed().as_secs_f64())
}

/// Makes the namespace of the benchmark; its default service account comes with it.
pub(crate) async fn make_namespace(connection: &mut Connection) -> Result<()> {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    connection
        .call(
            Method::POST,
            "/api/v1/namespaces",
            namespace.to_string().into(),
        )
        .await?;
    Ok(())
}

/// Removes the namespace and all that is in it.
pub(crate) async fn remove_namespace(connection: &mut Connection) -> Result<()> {
    connection
        .call(
            Method::DELETE,
            &format!("/api/v1/namespaces/{NAMESPACE}"),
            Bytes::new(),
        )
        .await?;
    Ok(())
}
