//! The connection to containerd: one channel that comes back by itself, every call in the namespace that Kubernetes uses.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

/// Where `ctr -n k8s.io` and `nerdctl -n k8s.io` see the same images and containers.
const NAMESPACE: &str = "k8s.io";
/// Says whose something is, in containerd.
pub(super) const OWNER: &str = "dev.coxswain/shim";
/// Lists of images and containers of a large node.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Why containerd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    #[error("containerd at {} cannot be reached: {message}", .socket.display())]
    Unavailable { socket: PathBuf, message: String },
    #[error("containerd cannot {verb}: {}", .status.message())]
    Call {
        verb: &'static str,
        status: Box<Status>,
    },
    #[error("{what} is damaged: {message}")]
    Damaged { what: String, message: String },
    #[error("{0}")]
    Refused(String),
    #[error("the container cannot be checkpointed: {0}")]
    Checkpoint(String),
    #[error("cannot {verb}: {source}")]
    Io {
        verb: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl OciError {
    pub(crate) fn io(verb: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { verb, source }
    }

    pub(crate) fn damaged(what: impl Into<String>, message: impl ToString) -> Self {
        Self::Damaged {
            what: what.into(),
            message: message.to_string(),
        }
    }
}

/// A handle to containerd; cheap to clone, connects when first used and again after a restart of containerd.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    channel: Channel,
    socket: PathBuf,
    /// Whose leases these are: several shims may share one containerd.
    owner: String,
    /// How the names of this process's leases begin.
    leases: String,
}

macro_rules! services {
    ($($name:ident: $client:ident),* $(,)?) => {
        impl Containerd {
            $(pub(super) fn $name(&self) -> $client<Channel> {
                $client::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
            })*
        }
    };
}

services! {
    containers: ContainersClient,
    content: ContentClient,
    diff: DiffClient,
    events: EventsClient,
    images: ImagesClient,
    introspection: IntrospectionClient,
    leases: LeasesClient,
    snapshots: SnapshotsClient,
    tasks: TasksClient,
    version: VersionClient,
}

impl Containerd {
    pub(crate) fn new(socket: &Path, owner: &str) -> Self {
        let path = socket.to_owned();
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(CONNECT_PATIENCE)
            .initial_stream_window_size(1 << 20)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        Self {
            channel,
            socket: socket.to_owned(),
            owner: owner.to_owned(),
            leases: format!("coxswain-{}-", uuid::Uuid::new_v4().simple()),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The error of a call, told apart by whether containerd was there at all.
    pub(super) fn failed(&self, verb: &'static str) -> impl FnOnce(Status) -> OciError {
        let socket = self.socket.clone();
        move |status| match status.code() {
            // tonic tells a connection that could not be made, or broke, as these, with its cause as the source.
            Code::Unavailable | Code::Unknown if std::error::Error::source(&status).is_some() => {
                OciError::Unavailable {
                    socket,
                    message: root_cause(&status),
                }
            }
            _ => OciError::Call {
                verb,
                status: Box::new(status),
            },
        }
    }
}

fn root_cause(err: &dyn std::error::Error) -> String {
    let mut cause = err;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A call in Kubernetes' namespace.
pub(super) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "containerd-namespace",
        MetadataValue::from_static(NAMESPACE),
    );
    request
}

/// The same; what it makes is kept from containerd's collector by `lease`.
pub(super) fn leased<T>(message: T, lease: &Lease) -> Request<T> {
    let mut request = request(message);
    request
        .metadata_mut()
        .insert("containerd-lease", lease.0.clone());
    request
}

/// Keeps content and snapshots from containerd's collector while nothing refers to them yet.
#[derive(Clone, Debug)]
pub(crate) struct Lease(MetadataValue<tonic::metadata::Ascii>);

impl Lease {
    /// Leases that a crash leaves behind end by themselves after this.
    const PATIENCE: Duration = Duration::from_secs(24 * 3600);

    pub(super) fn id(&self) -> String {
        self.0.to_str().unwrap_or_default().to_owned()
    }
}

impl Containerd {
    /// A new lease; [`Self::end_lease`] gives it back.
    pub(super) async fn lease(&self) -> Result<Lease, OciError> {
        use containerd_client::services::v1::CreateRequest;
        let id = format!("{}{}", self.leases, uuid::Uuid::new_v4().simple());
        let expires = std::time::UNIX_EPOCH
            + Duration::from_nanos(crate::clock::now_nanos().unsigned_abs())
            + Lease::PATIENCE;
        let expires = prost_types::Timestamp::from(expires).to_string();
        let create = CreateRequest {
            id: id.clone(),
            labels: [
                ("containerd.io/gc.expire".to_owned(), expires),
                (OWNER.to_owned(), self.owner.clone()),
            ]
            .into(),
        };
        self.leases()
            .create(request(create))
            .await
            .map_err(self.failed("make a lease"))?;
        Ok(Lease(id.parse().expect("hex digits are ASCII")))
    }

    /// Ends the leases that a shim of the same folders left behind when it died, and with them what it had half made.
    pub(super) async fn end_left_leases(&self) -> Result<(), OciError> {
        use containerd_client::services::v1::{DeleteRequest, ListRequest};
        let list = ListRequest {
            filters: vec![format!("labels.\"{OWNER}\"==\"{}\"", self.owner)],
        };
        let answer = self.leases().list(request(list)).await;
        let leases = answer
            .map_err(self.failed("list leases"))?
            .into_inner()
            .leases;
        for lease in leases {
            if lease.id.starts_with(&self.leases) {
                continue;
            }
            let delete = DeleteRequest {
                id: lease.id,
                // The collector runs at once.
                sync: true,
            };
            match self.leases().delete(request(delete)).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(self.failed("end a lease")(status)),
            }
        }
        Ok(())
    }

    /// Gives a lease back; one that cannot be given back ends by itself.
    pub(super) async fn end_lease(&self, lease: Lease) {
        use containerd_client::services::v1::DeleteRequest;
        let delete = DeleteRequest {
            id: lease.id(),
            sync: false,
        };
        if let Err(err) = self.leases().delete(request(delete)).await {
            tracing::debug!(error = %err, lease = lease.id(), "A lease could not be given back");
        }
    }
}
