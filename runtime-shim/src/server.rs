//! Runs the shim: its two sockets, until it is told to end.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::image_service_server::ImageServiceServer;
use cox_cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::cri::CriService;
use crate::engine::EngineError;
use crate::network::{Cidr6Error, CidrError};
use crate::shim::Shim;

/// CRI messages of a node with thousands of Pods are large; kubelets allow 16 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Guests get this long to end when the shim does.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A containerd that does not answer delays the start by this, where it has containers of ours.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// Why the shim could not run. Each text names what to mend.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The engine could not be set up.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A Pod range is not one.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// The same for IPv6.
    #[error(transparent)]
    Cidr6(#[from] Cidr6Error),
    /// The image store cannot be used.
    #[error("{0}")]
    Images(String),
    /// The state folder cannot be used.
    #[error("{0}")]
    State(String),
    /// No thread could be started.
    #[error("cannot start a thread")]
    Threads(#[source] std::io::Error),
    /// A socket could not be opened.
    #[error("cannot listen at {}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The streaming server's socket could not be opened.
    #[error("cannot listen at {addr} for exec, attach and port-forward")]
    Streaming {
        /// Where.
        addr: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another shim answers there.
    #[error("another process already serves {}: stop it, or use another folder", .0.display())]
    InUse(PathBuf),
    /// The gRPC server failed.
    #[error("the CRI server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// Serves CRI and the image door until `cancel`. Guests end with it; their containers are reported as exited by the next shim.
///
/// # Errors
/// When the folders or sockets of the configuration cannot be used.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), RunError> {
    crate::engine::budget::raise_descriptors();
    // The door first: who reaches the CRI socket may rely on the door.
    let door = listen(&config.images_socket).await?;
    let cri = listen(&config.socket).await?;
    let listen = config.streaming_addr;
    let (streaming, addr) = crate::streaming::server::bind(listen)
        .await
        .map_err(|source| RunError::Streaming {
            addr: listen,
            source,
        })?;
    let shim = Shim::open(config, addr)?;
    let streaming = tokio::spawn(crate::streaming::server::run(
        streaming,
        Arc::clone(&shim),
        cancel.clone(),
    ));
    let door = tokio::spawn(crate::images::serve_door(
        door,
        Arc::clone(&shim.images),
        cancel.clone(),
    ));
    let following = follow_containerd(&shim, &cancel).await;
    tracing::info!(socket = %shim.config.socket.display(), "Serving CRI");
    let runtime = RuntimeServiceServer::new(CriService::new(Arc::clone(&shim), cancel.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let images = ImageServiceServer::new(CriService::new(Arc::clone(&shim), cancel.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = tonic::transport::Server::builder()
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(cri),
            cancel.clone().cancelled_owned(),
        )
        .await;
    cancel.cancel();
    end(&shim).await;
    if let Err(err) = streaming.await {
        tracing::error!(error = %err, "The streaming server failed");
    }
    if let Err(err) = following.await {
        tracing::error!(error = %err, "Following containerd failed");
    }
    if shim.sandboxes.read().is_empty()
        && let Err(err) = shim.networks.remove()
    {
        tracing::warn!(error = %err, "The Pods' bridge could not be removed");
    }
    if let Err(err) = door.await {
        tracing::error!(error = %err, "The image door failed");
    }
    for socket in [&shim.config.socket, &shim.config.images_socket] {
        if let Err(err) = std::fs::remove_file(socket) {
            tracing::debug!(error = %err, socket = %socket.display(), "The socket is gone already");
        }
    }
    served.map_err(RunError::Serve)
}

/// Begins to follow containerd. Where there are containers of an earlier shim, their state is found out before anyone asks.
async fn follow_containerd(shim: &Arc<Shim>, cancel: &CancellationToken) -> JoinHandle<()> {
    let (settled, mut done) = tokio::sync::watch::channel(false);
    let following = tokio::spawn(crate::oci::watch(Arc::clone(shim), settled, cancel.clone()));
    if !shim.oci_containers().is_empty()
        && tokio::time::timeout(SETTLE_PATIENCE, done.wait_for(|settled| *settled))
            .await
            .is_err()
    {
        tracing::warn!(
            "containerd does not answer: its containers are reported as they were last seen"
        );
    }
    following
}

/// Interrupts all guests, so that their logs are complete and their state is true.
async fn end(shim: &Arc<Shim>) {
    let containers: Vec<_> = shim.containers.read().values().cloned().collect();
    let running: Vec<_> = containers
        .into_iter()
        // OCI containers go on.
        .filter(|container| container.is_running() && container.oci.is_none())
        .collect();
    let ending = running
        .iter()
        .map(|container| shim.end_container(container, Duration::ZERO));
    if tokio::time::timeout(END_PATIENCE, futures::future::join_all(ending))
        .await
        .is_err()
    {
        tracing::warn!("Some guests did not end in time");
    }
    shim.images.oci().close().await;
    shim.tasks.close();
}

/// A socket for this user alone. One that nobody answers at is left over and replaced.
async fn listen(path: &Path) -> Result<UnixListener, RunError> {
    let failed = |source| RunError::Listen {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(RunError::InUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}
