//! Serves a wasi:http component: HTTP/1 and HTTP/2 on one socket, one instance per request.
//!
//! Connections are driven by the guests' I/O runtime, requests run on the guest threads under the container's account. How many
//! requests run at once is bounded for all containers together by the prepared instance slots, and a bounded number waits; what is
//! beyond gets 503. A trap answers 500 and is written to the container's log. [`HttpService::drain`] stops listening and lets
//! the requests that run finish.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::command::from_error;
use super::executor::TaskError;
use super::guest::{Guest, GuestContext};
use super::program::Program;
use super::stdio::Stdio;
use super::{Outcome, WasmEngine, http03};
use crate::logs::{ContainerLog, LogStream, Stream};
use crate::network::PodNetwork;

/// Connections of one container.
const CONNECTIONS_MAX: usize = 4096;
/// Requests of one container that run or wait.
const REQUESTS_MAX: usize = 1024;
/// A request's head must have come by then.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// A request waits so long for a slot.
const SLOT_PATIENCE: Duration = Duration::from_secs(30);
const LISTEN_BACKLOG: i32 = 1024;

/// One container's HTTP service.
pub(crate) struct HttpService {
    addrs: Vec<SocketAddr>,
    drain: CancellationToken,
    tasks: TaskTracker,
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    engine: Arc<WasmEngine>,
    program: Arc<Program>,
    context: Arc<GuestContext>,
    log: Arc<ContainerLog>,
    /// The slots of all containers.
    slots: Arc<Semaphore>,
    /// This container's requests.
    requests: Arc<Semaphore>,
    served: AtomicU64,
    trapped: AtomicU64,
    /// Set when a request exceeded the container's memory limit: the container ends.
    out_of_memory: watch::Sender<bool>,
    drain: CancellationToken,
}

impl HttpService {
    /// Listens at all of `addrs` and serves; when this returns, the sockets are open.
    pub(crate) fn start(
        engine: &Arc<WasmEngine>,
        program: Arc<Program>,
        context: Arc<GuestContext>,
        log: Arc<ContainerLog>,
        slots: Arc<Semaphore>,
        addrs: &[SocketAddr],
    ) -> std::io::Result<Self> {
        let io = engine.executor().io().clone();
        let _entered = io.enter();
        let listeners = addrs.iter().map(|addr| listen(&context.network, *addr));
        let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
        let addrs = listeners.iter().map(TcpListener::local_addr);
        let addrs = addrs.collect::<std::io::Result<Vec<_>>>()?;
        let drain = CancellationToken::new();
        let shared = Arc::new(Shared {
            engine: Arc::clone(engine),
            program,
            context,
            log,
            slots,
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            served: AtomicU64::new(0),
            trapped: AtomicU64::new(0),
            out_of_memory: watch::Sender::new(false),
            drain: drain.clone(),
        });
        let tasks = TaskTracker::new();
        // Of all listeners together.
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for listener in listeners {
            let accepting = Accepting {
                listener,
                shared: Arc::clone(&shared),
                connections: Arc::clone(&connections),
                tasks: tasks.clone(),
            };
            tasks.spawn_on(accepting.run(), &io);
        }
        tasks.close();
        Ok(Self {
            addrs,
            drain,
            tasks,
            shared,
        })
    }

    pub(crate) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Requests served, and those of them that trapped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.shared.served.load(Ordering::Relaxed),
            self.shared.trapped.load(Ordering::Relaxed),
        )
    }

    /// Stops listening and waits for the requests that run; ends at once when the account is killed.
    ///
    /// # Cancel safety
    /// May be dropped and called again; the service keeps draining.
    pub(crate) async fn drain(&self) {
        self.drain.cancel();
        self.tasks.wait().await;
    }

    /// Waits until the service must end by itself: a request ran into the memory limit.
    pub(crate) async fn failed(&self) {
        let mut out_of_memory = self.shared.out_of_memory.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        if out_of_memory.wait_for(|exceeded| *exceeded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for HttpService {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

fn listen(network: &PodNetwork, addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = network.tcp_socket(addr)?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(LISTEN_BACKLOG.unsigned_abs())
}

/// One of a container's listeners.
struct Accepting {
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Accepting {
    async fn run(self) {
        let Self {
            listener,
            shared,
            connections,
            tasks,
        } = self;
        loop {
            let accepted = tokio::select! {
                // Neither arm loses anything when dropped: a connection not accepted stays in the backlog.
                () = shared.drain.cancelled() => return,
                accepted = async {
                    let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
                    listener.accept().await.map(|(stream, _)| (stream, permit))
                } => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let shared = Arc::clone(&shared);
                    tasks.spawn(async move {
                        connection(stream, shared).await;
                        drop(permit);
                    });
                }
                Err(err) => {
                    // Mostly a lack of descriptors: give others time to close theirs.
                    tracing::warn!(error = %err, "A connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(error = %err, "The connection is gone already");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256);
    let drain = shared.drain.clone();
    let killed = shared.context.account.kill_token();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(shared, request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(err) = ended {
                    tracing::debug!(error = %err, "A connection broke");
                }
                return;
            }
            () = killed.cancelled() => return,
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> Response<WasiBody> {
    let Ok(_place) = Arc::clone(&shared.requests).try_acquire_owned() else {
        return plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests wait for this container\n",
        );
    };
    let slot = tokio::time::timeout(SLOT_PATIENCE, Arc::clone(&shared.slots).acquire_owned()).await;
    let Ok(Ok(slot)) = slot else {
        return plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "no instance slot became free in time\n",
        );
    };
    shared.served.fetch_add(1, Ordering::Relaxed);
    let (sender, head) = oneshot::channel();
    let account = Arc::clone(&shared.context.account);
    let for_task = Arc::clone(&shared);
    let done = shared
        .engine
        .executor()
        .spawn(&account, account.kill_token(), async move {
            let result = handle(&for_task, request, sender).await;
            drop(slot);
            if let Err(err) = &result {
                for_task.note_failure(err);
            }
        });
    match head.await {
        Ok(Ok(response)) => response,
        Ok(Err(code)) => {
            shared.line(&format!("request failed: {code:?}"));
            plain(StatusCode::BAD_GATEWAY, "the component reported an error\n")
        }
        // The guest ended without an answer: it trapped, was killed, or simply returned.
        Err(_) => match done.await {
            Ok(Err(TaskError::Killed)) => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the container is stopping\n",
            ),
            Ok(Err(err @ (TaskError::Panicked(_) | TaskError::Closed))) => {
                tracing::error!(error = %err, "A request could not be run");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the runtime failed\n")
            }
            Ok(Ok(())) | Err(_) => {
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the component failed\n")
            }
        },
    }
}

pub(super) type HeadSender = oneshot::Sender<Result<Response<WasiBody>, ErrorCode>>;

/// One request in an instance of its own, until the guest returns (it may go on after the response's head).
async fn handle(
    shared: &Shared,
    request: Request<Incoming>,
    head: HeadSender,
) -> wasmtime::Result<()> {
    let request = with_authority(request);
    match &*shared.program {
        Program::Http(pre) => handle_02(shared, pre, request, head).await,
        Program::Http03(pre) => http03::handle(shared, pre, request, head).await,
        Program::Command(_) | Program::Command03(_) | Program::Module(_) => {
            wasmtime::bail!("not a wasi:http component")
        }
    }
}

async fn handle_02(
    shared: &Shared,
    pre: &ProxyPre<Guest>,
    request: Request<Incoming>,
    head: HeadSender,
) -> wasmtime::Result<()> {
    let mut store = shared.store(pre.engine())?;
    let request = store
        .data_mut()
        .http()
        .new_incoming_request(Scheme::Http, request)?;
    let outparam = store.data_mut().http().new_response_outparam(head)?;
    let proxy = pre.instantiate_async(&mut store).await?;
    proxy
        .wasi_http_incoming_handler()
        .call_handle(&mut store, request, outparam)
        .await
}

/// HTTP/1.0 clients may send no host; wasi:http wants one.
fn with_authority(mut request: Request<Incoming>) -> Request<Incoming> {
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        request
            .headers_mut()
            .insert(header::HOST, header::HeaderValue::from_static("localhost"));
    }
    request
}

impl Shared {
    /// A store for one request.
    pub(super) fn store(
        &self,
        engine: &wasmtime::Engine,
    ) -> wasmtime::Result<wasmtime::Store<Guest>> {
        let context = &self.context;
        let stdout = LogStream::to_log(&self.log, Stream::Stdout);
        let stderr = LogStream::to_log(&self.log, Stream::Stderr);
        let stdio = Stdio::output(stdout, stderr);
        let kill = context.account.kill_token();
        context
            .store(engine, self.engine.executor(), &context.args, stdio, kill)
            .map_err(wasmtime::Error::msg)
    }

    fn note_failure(&self, err: &wasmtime::Error) {
        let text = match from_error(err) {
            // The guest may end its instance by exit(0) after it has answered.
            Outcome::Exited(0) | Outcome::Killed => return,
            Outcome::Exited(code) => format!("request ended with exit code {code}"),
            Outcome::OutOfMemory(text) => {
                self.out_of_memory.send_replace(true);
                text
            }
            Outcome::Trapped(text) | Outcome::Failed(text) => format!("request failed: {text}"),
        };
        self.trapped.fetch_add(1, Ordering::Relaxed);
        self.line(&text);
    }

    /// A line of the runtime's own in the container's log.
    pub(super) fn line(&self, text: &str) {
        LogStream::to_log(&self.log, Stream::Stderr)
            .write_all(format!("{}\n", text.trim_end()).as_bytes());
    }
}

pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain"),
    );
    response
}
