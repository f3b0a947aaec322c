//! The kubelet's HTTPS server, asked by the API server: logs, exec, attach, port-forward, health, Pods, metrics.
//!
//! Whoever asks shows a client certificate of the cluster's authority or a bearer token; see [`gate`] for who gets an answer.

mod checkpoint;
mod figures;
mod gate;
mod logs;
mod node_logs;
mod streams;
pub(crate) mod tls;

use crate::config::Config;
use crate::cri::client::Runtime;
use crate::dispatch::Dispatcher;
use bytes::Bytes;
use cox_client::Clock;
use cox_client::tasks::TaskScope;
use futures::stream::BoxStream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at the same time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A certificate or key cannot be used.
    #[error("the certificates of the kubelet's server cannot be used")]
    Tls(#[from] tls::TlsError),
    /// The address cannot be had.
    #[error("address {addr} cannot be listened on")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A server that is bound and does not answer yet.
pub(crate) struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    tls: TlsAcceptor,
    routes: Arc<Routes>,
    certificate: Arc<tls::Serving>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

pub(crate) struct Routes {
    pub(crate) config: Config,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Runtime,
    gate: gate::Gate,
    /// Sessions of clients that are passed on to the runtime.
    pub(crate) scope: TaskScope,
    /// The last look at the machine.
    pub(crate) machine: crate::stats::machine::Watcher,
}

impl Server {
    /// Binds the address.
    pub(crate) async fn bind(
        config: &Config,
        dispatcher: Arc<Dispatcher>,
        clock: Arc<dyn Clock>,
        client: kube::Client,
        cancel: &CancellationToken,
    ) -> Result<Self, ServerError> {
        let (tls, certificate) = tls::acceptor(config)?;
        let listen = |source| ServerError::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let routes = Arc::new(Routes {
            config: config.clone(),
            gate: gate::Gate::new(client, clock.clone(), &config.node_name),
            runtime: dispatcher.runtime(),
            dispatcher,
            clock,
            scope: TaskScope::new("kubelet-streams", cancel),
            machine: crate::stats::machine::Watcher::default(),
        });
        Ok(Self {
            listener,
            addr,
            tls,
            routes,
            certificate,
        })
    }

    /// Where it listens.
    #[must_use]
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The certificate that it shows, to be replaced while it runs.
    #[must_use]
    pub(crate) fn certificate(&self) -> Arc<tls::Serving> {
        self.certificate.clone()
    }

    /// Answers until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let scope = TaskScope::new("kubelet-server", &cancel);
        loop {
            let accepted = tokio::select! {
                // A connection is taken only when it is returned.
                accepted = self.listener.accept() => accepted,
                () = cancel.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close some.
                    tracing::warn!(%error, "Connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let (tls, routes) = (self.tls.clone(), self.routes.clone());
            scope.spawn("connection", async move {
                if let Err(error) = serve(stream, tls, routes).await {
                    tracing::debug!(error, "Connection ended");
                }
                drop(slot);
            });
        }
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, routes: Arc<Routes>) -> Result<(), String> {
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
    let stream = stream
        .map_err(|_| "no TLS handshake".to_owned())?
        .map_err(|error| error.to_string())?;
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(tls::peer);
    let peer = Arc::new(peer.flatten());
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (routes, peer) = (routes.clone(), peer.clone());
        async move { Ok::<_, Infallible>(routes.answer(request, peer.as_ref().as_ref()).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}

impl Routes {
    async fn answer(&self, request: Request<Incoming>, peer: Option<&tls::Peer>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let admitted = self
            .gate
            .admit(peer, request.method(), &path, request.headers())
            .await;
        if let Err(gate::Refused(status, why)) = admitted {
            return text(status, &why);
        }
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        if streams::is_stream_method(request.method())
            && let Some(streams) = streams::Streams::parse(&parts)
        {
            return self.streams(streams, request).await;
        }
        if let (&Method::DELETE, ["localVolumes", name]) = (request.method(), parts.as_slice()) {
            return self.remove_local_volume(name).await;
        }
        if let (&Method::POST, ["checkpoint", namespace, pod, container]) =
            (request.method(), parts.as_slice())
        {
            let query = request.uri().query().unwrap_or_default();
            return self.checkpoint(namespace, pod, container, query).await;
        }
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
        }
        match parts.as_slice() {
            ["containerLogs", namespace, pod, container] => {
                self.container_logs(
                    namespace,
                    pod,
                    container,
                    request.uri().query().unwrap_or_default(),
                )
                .await
            }
            ["pods" | "pods/"] => self.pods(),
            ["runningpods"] | ["runningpods", ""] => self.pods(),
            ["metrics"] => self.metrics(),
            ["healthz"] => text(StatusCode::OK, "ok"),
            ["metrics", "probes"] => text(StatusCode::OK, &self.dispatcher.probes_text()),
            ["metrics", "resource"] => self.resource_metrics().await,
            ["stats", "summary"] | ["stats", "summary", ""] => self.summary().await,
            ["configz"] => self.configz(),
            ["logs", rest @ ..] => node_logs::answer(&rest.join("/")).await,
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn pods(&self) -> Response<Body> {
        let pods = self.dispatcher.pods();
        let pods: Vec<&k8s_openapi::api::core::v1::Pod> = pods.iter().map(Arc::as_ref).collect();
        let list = serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods });
        let mut response = text(StatusCode::OK, &list.to_string());
        let json = http::HeaderValue::from_static("application/json");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, json);
        response
    }

    /// Removes the folder of a persistent volume that this node keeps. The API server asks for it, on behalf of the controller that
    /// has released the volume.
    async fn remove_local_volume(&self, name: &str) -> Response<Body> {
        if name.is_empty() || name.starts_with('.') {
            return text(StatusCode::BAD_REQUEST, "that is no volume's name");
        }
        let folder = self.config.local_path_dir().join(name);
        match tokio::fs::remove_dir_all(&folder).await {
            Ok(()) => text(StatusCode::OK, "removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => text(StatusCode::OK, "absent"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn metrics(&self) -> Response<Body> {
        let pods = self.dispatcher.pods();
        let running = pods.iter().filter(|pod| {
            pod.status
                .as_ref()
                .is_some_and(|status| status.phase.as_deref() == Some("Running"))
        });
        let node = &self.config.node_name;
        let lines = format!(
            "# HELP kubelet_node_name [STABLE] The node's name. The count is always 1.\n\
             # TYPE kubelet_node_name gauge\n\
             kubelet_node_name{{node=\"{node}\"}} 1\n\
             # HELP kubelet_desired_pods The number of pods the kubelet is being instructed to run.\n\
             # TYPE kubelet_desired_pods gauge\n\
             kubelet_desired_pods {}\n\
             # HELP kubelet_running_pods Number of pods that have a running pod sandbox\n\
             # TYPE kubelet_running_pods gauge\n\
             kubelet_running_pods {}\n",
            pods.len(),
            running.count(),
        );
        let kept = self.dispatcher.kept_text();
        text(StatusCode::OK, &format!("{lines}{kept}"))
    }
}

/// A short answer.
pub(crate) fn text(status: StatusCode, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_owned()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

/// An answer that comes piece by piece.
pub(crate) fn stream(chunks: BoxStream<'static, io::Result<Bytes>>) -> Response<Body> {
    use futures::StreamExt;
    let body = StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data)));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}
