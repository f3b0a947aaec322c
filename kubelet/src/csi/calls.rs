//! gRPC calls over a plugin's socket. Each has a timeout; a driver that hangs fails the volume, and the volume is tried again.

use super::proto::identity_client::IdentityClient;
use super::proto::node_client::NodeClient;
use super::proto::node_service_capability::Type as Capability;
use super::proto::node_service_capability::rpc::Type;
use super::proto::{self, NodeGetCapabilitiesRequest, NodeGetInfoRequest};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Uri};

/// Upstream's limit for a call to a driver.
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);

/// What a driver on this node can do, and where it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Driver {
    pub(super) endpoint: PathBuf,
    /// Volumes are prepared once per node before they are published to Pods.
    pub(super) stages: bool,
    /// It tells several writers of one node apart.
    pub(super) tells_writers: bool,
    /// It gives volumes to the Pod's group itself.
    pub(super) mounts_for_group: bool,
    /// Volumes that have grown are told to it on the node.
    pub(super) expands: bool,
}

/// A channel to a socket; nothing is connected yet.
pub(crate) fn channel(socket: &Path) -> Channel {
    connect(
        socket,
        Endpoint::from_static("http://plugin.local").timeout(TIMEOUT),
    )
}

/// A channel for a stream that lasts.
pub(crate) fn stream_channel(socket: &Path) -> Channel {
    connect(socket, Endpoint::from_static("http://plugin.local"))
}

fn connect(socket: &Path, endpoint: Endpoint) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector_lazy(connect)
}

/// A connected channel to a socket; `ended` is cancelled when the connection ends.
///
/// # Errors
/// If nobody listens.
pub(crate) async fn connect_until(
    socket: &Path,
    ended: CancellationToken,
) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let (socket, ended) = (socket.clone(), ended.clone());
        async move {
            let stream = UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(TokioIo::new(Watched {
                stream,
                _ended: ended.drop_guard(),
            }))
        }
    });
    Endpoint::from_static("http://plugin.local")
        .connect_with_connector(connect)
        .await
}

/// A connection whose end is told.
struct Watched {
    stream: UnixStream,
    _ended: DropGuard,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What went wrong, as drivers and upstream print it.
pub(crate) fn text(status: tonic::Status) -> String {
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}

/// What a driver says of itself on this node.
pub(super) struct Introduced {
    pub(super) driver: Driver,
    pub(super) info: proto::NodeGetInfoResponse,
}

/// Asks a driver that has just registered who it is and what it can do.
pub(super) async fn introduce(name: &str, endpoint: &Path) -> Result<Introduced, String> {
    let channel = channel(endpoint);
    let said = IdentityClient::new(channel.clone())
        .get_plugin_info(proto::GetPluginInfoRequest {})
        .await
        .map_err(text)?
        .into_inner();
    if said.name != name {
        return Err(format!(
            "the driver at {} calls itself {}, and registered as {name}",
            endpoint.display(),
            said.name
        ));
    }
    let mut node = NodeClient::new(channel);
    let can = node
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await
        .map_err(text)?
        .into_inner();
    let can: Vec<Type> = can
        .capabilities
        .iter()
        .filter_map(|one| match one.r#type.as_ref()? {
            Capability::Rpc(rpc) => Some(rpc.r#type()),
        })
        .collect();
    let info = node
        .node_get_info(NodeGetInfoRequest {})
        .await
        .map_err(text)?
        .into_inner();
    let driver = Driver {
        endpoint: endpoint.to_owned(),
        stages: can.contains(&Type::StageUnstageVolume),
        tells_writers: can.contains(&Type::SingleNodeMultiWriter),
        mounts_for_group: can.contains(&Type::VolumeMountGroup),
        expands: can.contains(&Type::ExpandVolume),
    };
    Ok(Introduced { driver, info })
}

impl Driver {
    /// The node service of the driver.
    pub(super) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(channel(&self.endpoint))
    }
}
