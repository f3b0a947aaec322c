//! The open ports: opened when the first route needs them, closed when none does; connections under way are let finish.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cox_client::tasks::TaskScope;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::headers::Peer;
use super::{Plane, forward, tls};
use crate::table::Port;

/// Connections of clients on one port; further ones wait to be taken.
const CONNECTIONS_LEN_MAX: usize = 16_384;
/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long connections may take to finish when their port is closed.
const DRAIN: Duration = Duration::from_secs(10);
/// After accept(2) failed, as it does when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which port of the node is meant by one of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The usual one; where it cannot be had the usual one of those without rights, else a free one.
    Usual,
    /// This one; 0 picks a free one.
    Exactly(u16),
}

impl Choice {
    fn attempts(self, usual: [u16; 2]) -> Vec<u16> {
        match self {
            Self::Usual => vec![usual[0], usual[1], 0],
            Self::Exactly(port) => vec![port],
        }
    }
}

/// What the ports are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// The node's address.
    pub(crate) ip: IpAddr,
    pub(crate) http: Choice,
    pub(crate) https: Choice,
}

impl Config {
    fn attempts(&self, port: Port) -> Vec<u16> {
        match port {
            Port::Http => self.http.attempts([80, 8080]),
            Port::Https => self.https.attempts([443, 8443]),
            Port::Other(number, _) => vec![number],
        }
    }
}

/// The ports that are open.
#[derive(Debug)]
pub(crate) struct Ports {
    config: Config,
    plane: Arc<Plane>,
    scope: TaskScope,
    running: BTreeMap<Port, Running>,
}

#[derive(Debug)]
struct Running {
    cancel: CancellationToken,
    addr: SocketAddr,
}

impl Ports {
    pub(crate) fn new(config: Config, plane: Arc<Plane>, cancel: &CancellationToken) -> Self {
        Self {
            config,
            plane,
            scope: TaskScope::new("gateway", cancel),
            running: BTreeMap::new(),
        }
    }

    /// Opens and closes what has to be. The ports that cannot be opened, with the reason.
    pub(crate) async fn sync(&mut self, wanted: &BTreeSet<Port>) -> Vec<(Port, String)> {
        let gone = self
            .running
            .extract_if(.., |port, _| !wanted.contains(port));
        gone.for_each(|(_, running)| running.cancel.cancel());
        let mut failed = Vec::new();
        for port in wanted {
            if self.running.contains_key(port) {
                continue;
            }
            match self.open(*port).await {
                Ok(running) => {
                    tracing::info!(?port, addr = %running.addr, "Requests from outside are taken");
                    self.running.insert(*port, running);
                }
                Err(error) => failed.push((*port, error)),
            }
        }
        let open: BTreeMap<Port, SocketAddr> = self
            .running
            .iter()
            .map(|(port, one)| (*port, one.addr))
            .collect();
        self.plane.open.send_if_modified(|known| {
            let changed = *known != open;
            *known = open;
            changed
        });
        failed
    }

    async fn open(&self, port: Port) -> Result<Running, String> {
        let acceptor = match port.is_tls() {
            true => Some(
                tls::acceptor(Arc::clone(&self.plane), port).map_err(|error| error.to_string())?,
            ),
            false => None,
        };
        let mut reason = String::new();
        for number in self.config.attempts(port) {
            match listen(self.config.ip, number).await {
                Ok(listeners) => return Ok(self.serve(port, listeners, acceptor)),
                Err(error) => {
                    reason = format!("port {number} of the node cannot be opened: {error}")
                }
            }
        }
        Err(reason)
    }

    fn serve(&self, port: Port, listeners: Vec<TcpListener>, tls: Option<TlsAcceptor>) -> Running {
        let cancel = self.scope.cancellation().child_token();
        let first = listeners.first().and_then(|one| one.local_addr().ok());
        let addr = first.unwrap_or(SocketAddr::new(self.config.ip, 0));
        let room = Arc::new(Semaphore::new(CONNECTIONS_LEN_MAX));
        for listener in listeners {
            let serving = Serving {
                plane: Arc::clone(&self.plane),
                port,
                number: addr.port(),
                tls: tls.clone(),
                room: Arc::clone(&room),
            };
            self.scope
                .spawn("port", serving.run(listener, cancel.clone()));
        }
        Running { cancel, addr }
    }
}

/// On the node's own address, and on loopback. Not on every address: those of Services belong to the proxy.
async fn listen(ip: IpAddr, port: u16) -> std::io::Result<Vec<TcpListener>> {
    let first = TcpListener::bind((ip, port)).await?;
    let port = first.local_addr()?.port();
    let mut all = vec![first];
    if !ip.is_loopback() {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(second) => all.push(second),
            Err(error) => tracing::debug!(%error, port, "Loopback is not listened on"),
        }
    }
    Ok(all)
}

/// One listener.
#[derive(Clone)]
struct Serving {
    plane: Arc<Plane>,
    port: Port,
    number: u16,
    tls: Option<TlsAcceptor>,
    room: Arc<Semaphore>,
}

impl Serving {
    async fn run(self, listener: TcpListener, cancel: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let taking = async {
            loop {
                let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, addr)) => {
                        let (serving, watcher) = (self.clone(), graceful.watcher());
                        tokio::spawn(async move {
                            serving.connection(stream, addr, watcher).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "A connection could not be taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        // Dropping it takes no connection that was taken already: each has a task of its own.
        cancel.run_until_cancelled(taking).await;
        drop(listener);
        if tokio::time::timeout(DRAIN, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::debug!(port = self.number, "Some connections did not end in time");
        }
    }

    async fn connection(self, stream: TcpStream, addr: SocketAddr, watcher: Watcher) {
        stream.set_nodelay(true).ok();
        let peer = Peer {
            addr,
            tls: self.tls.is_some(),
            port: self.number,
        };
        match self.tls.clone() {
            Some(acceptor) => {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.requests(stream, peer, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%addr, %error, "A client broke off TLS"),
                    Err(_) => tracing::debug!(%addr, "A client was too slow with TLS"),
                }
            }
            None => self.requests(stream, peer, watcher).await,
        }
    }

    async fn requests<S>(self, stream: S, peer: Peer, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_concurrent_streams(256)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let (plane, port) = (self.plane, self.port);
        let service = service_fn(move |request| {
            let plane = Arc::clone(&plane);
            async move { forward::answer(&plane, port, peer, request).await }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(peer = %peer.addr, %error, "A client's connection broke");
        }
    }
}
