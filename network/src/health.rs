//! What load balancers outside ask a node: whether it has endpoints of a Service whose traffic stays on its node
//! (`healthCheckNodePort`).
//! <https://kubernetes.io/docs/tasks/access-application-cluster/create-external-load-balancer/#preserving-the-client-source-ip>

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::plan::local_endpoints;
use crate::view::{Key, View};

/// Balancers that are answered at the same time, for each Service.
const CONNECTIONS_MAX: usize = 64;

/// A Service that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    service: Key,
    port: u16,
    /// Endpoints on this node that take traffic.
    endpoints: usize,
}

/// All ports.
#[derive(Debug, Default)]
pub(crate) struct HealthPorts {
    open: HashMap<u16, Open>,
    /// Ports that could not be opened, so that each is said once.
    refused: HashMap<u16, io::ErrorKind>,
}

#[derive(Debug)]
struct Open {
    service: Key,
    endpoints: Arc<AtomicUsize>,
    _end: DropGuard,
}

/// Which ports there should be, and what they say. Pure.
fn checks(view: &View) -> Vec<Check> {
    let of = |(key, service): (&Key, &Arc<k8s_openapi::api::core::v1::Service>)| {
        let spec = service.spec.as_ref()?;
        let port = u16::try_from(spec.health_check_node_port?).ok()?;
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        (local && port != 0).then(|| Check {
            service: key.clone(),
            port,
            endpoints: local_endpoints(view, key),
        })
    };
    view.services.iter().filter_map(of).collect()
}

impl HealthPorts {
    /// Brings the ports to what the Services say. `node` is where they are open.
    pub(crate) fn sync(&mut self, view: &View, node: IpAddr) {
        let checks = checks(view);
        let is_wanted = |port: &u16, service: Option<&Key>| {
            let found = checks.iter().find(|check| check.port == *port);
            found.is_some_and(|check| service.is_none_or(|service| check.service == *service))
        };
        self.open
            .retain(|port, open| is_wanted(port, Some(&open.service)));
        self.refused.retain(|port, _| is_wanted(port, None));
        for check in checks {
            if let Some(open) = self.open.get(&check.port) {
                open.endpoints.store(check.endpoints, Ordering::Relaxed);
                continue;
            }
            let (namespace, name) = &check.service;
            match open(&check, node) {
                Ok(open) => {
                    self.refused.remove(&check.port);
                    self.open.insert(check.port, open);
                }
                Err(error) => {
                    if self.refused.insert(check.port, error.kind()) != Some(error.kind()) {
                        tracing::warn!(%error, port = check.port, "The health of {namespace}/{name} cannot be asked");
                    }
                }
            }
        }
    }
}

fn open(check: &Check, node: IpAddr) -> io::Result<Open> {
    let everywhere = if node.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // On a loopback node nothing is opened to the outside.
    let ip = if node.is_loopback() { node } else { everywhere };
    let listener = std::net::TcpListener::bind(SocketAddr::new(ip, check.port))?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let endpoints = Arc::new(AtomicUsize::new(check.endpoints));
    let cancel = CancellationToken::new();
    let serving = serve(
        listener,
        check.service.clone(),
        Arc::clone(&endpoints),
        cancel.clone(),
    );
    tokio::spawn(cancel.clone().run_until_cancelled_owned(serving));
    Ok(Open {
        service: check.service.clone(),
        endpoints,
        _end: cancel.drop_guard(),
    })
}

async fn serve(
    listener: TcpListener,
    service: Key,
    endpoints: Arc<AtomicUsize>,
    cancel: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or a client that went away: neither ends the port.
            tokio::task::yield_now().await;
            continue;
        };
        let (service, endpoints) = (service.clone(), Arc::clone(&endpoints));
        let answer = service_fn(move |_| {
            let answer = answer(&service, endpoints.load(Ordering::Relaxed));
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(cancel.clone().run_until_cancelled_owned(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "A balancer went away");
            }
            drop(permit);
        }));
    }
}

/// As upstream's proxy says it, at every path.
fn answer((namespace, name): &Key, endpoints: usize) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    if endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        "x-content-type-options",
        hyper::header::HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        "x-load-balancing-endpoint-weight",
        hyper::header::HeaderValue::from(endpoints),
    );
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::view::NodeFacts;

    fn view(port: u16, ready: &[&str]) -> View {
        let service = json!({
            "metadata": {"name": "web", "namespace": "x"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": port, "ports": [{"port": 80}]},
        });
        let endpoints: Vec<_> = ready
            .iter()
            .map(|node| json!({"addresses": ["10.0.0.1"], "nodeName": node, "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "x", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80}],
        });
        let node = NodeFacts {
            name: "here".to_owned(),
            zone: None,
            pods: Vec::new(),
        };
        View::new(
            vec![Arc::new(serde_json::from_value(service).unwrap())],
            vec![Arc::new(serde_json::from_value(slice).unwrap())],
            node,
        )
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn a_balancer_is_told_of_the_endpoints_of_this_node() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut ports = HealthPorts::default();
        let node = Ipv4Addr::LOCALHOST.into();
        ports.sync(&view(port, &["here", "there"]), node);
        let said = ask(port).await.unwrap();
        assert!(
            said.starts_with("HTTP/1.1 200") && said.contains("\"localEndpoints\":1"),
            "{said}"
        );
        ports.sync(&view(port, &["there"]), node);
        let said = ask(port).await.unwrap();
        assert!(
            said.starts_with("HTTP/1.1 503") && said.contains("\"localEndpoints\":0"),
            "{said}"
        );
        ports.sync(&View::default(), node);
        while ask(port).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
