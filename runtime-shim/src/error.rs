//! Why a verb failed, and the one table from there to gRPC.

use tonic::Status;

use crate::container::IllegalMove;
use crate::images::{ImageError, PullError};
use crate::oci::OciError;
use crate::sandbox::SandboxError;

/// Error of a CRI verb. The text ends up in the Pod's events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    #[error("sandbox {0:?} not found")]
    NoSandbox(String),
    #[error("container {0:?} not found")]
    NoContainer(String),
    #[error("image {0:?} not found")]
    NoImage(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{what} {name:?} is already used by {id}")]
    Reserved {
        what: &'static str,
        name: String,
        id: String,
    },
    #[error("container {id} is not running but {state}")]
    NotRunning { id: String, state: &'static str },
    #[error("sandbox {0} is not ready")]
    SandboxNotReady(String),
    #[error(transparent)]
    State(#[from] IllegalMove),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("no free Pod address in {0}")]
    NoAddress(String),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("cannot keep state in {path}: {source}")]
    Checkpoint {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Oci(#[from] OciError),
    #[error("{0}")]
    Start(String),
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Timeout(String),
}

impl From<VerbError> for Status {
    fn from(err: VerbError) -> Self {
        let text = err.to_string();
        match err {
            VerbError::NoSandbox(_) | VerbError::NoContainer(_) | VerbError::NoImage(_) => {
                Status::not_found(text)
            }
            VerbError::Oci(OciError::Refused(_))
            | VerbError::Invalid(_)
            | VerbError::Image(ImageError::Reference(..)) => Status::invalid_argument(text),
            VerbError::Unsupported(_) => Status::unimplemented(text),
            VerbError::Reserved { .. } => Status::already_exists(text),
            VerbError::SandboxNotReady(_)
            | VerbError::NotRunning { .. }
            | VerbError::State(_)
            | VerbError::Pull(
                PullError::Oci(_)
                | PullError::Format { .. }
                | PullError::Archive { .. }
                | PullError::Entrypoint { .. },
            )
            | VerbError::Image(ImageError::Code { .. } | ImageError::TooLarge(_)) => {
                Status::failed_precondition(text)
            }
            VerbError::Oci(OciError::Unavailable { .. })
            | VerbError::Pull(PullError::Backend {
                source: OciError::Unavailable { .. },
                ..
            }) => Status::unavailable(text),
            VerbError::NoAddress(_) | VerbError::Busy(_) => Status::resource_exhausted(text),
            VerbError::Pull(
                PullError::Registry { .. }
                | PullError::NotLoaded(_)
                | PullError::Backend { .. }
                | PullError::Credentials(_)
                | PullError::Store(_),
            )
            | VerbError::Image(ImageError::Io { .. } | ImageError::Damaged { .. })
            | VerbError::Checkpoint { .. }
            | VerbError::Oci(_)
            | VerbError::Sandbox(_)
            | VerbError::Start(_) => Status::unknown(text),
            VerbError::Timeout(_) => Status::deadline_exceeded(text),
        }
    }
}
