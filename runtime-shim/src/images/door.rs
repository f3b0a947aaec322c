//! The image door: how a `.wasm` file becomes an image without a registry. HTTP over a unix socket beside the CRI's.
//!
//! `PUT /images?name=REF` (body: the file) answers 200 with the [`Entry`], or 4xx with `{"error": "..."}`; `GET /images` lists
//! what is there. It is a small door on purpose: images are not cluster state, so they have no place in the API server.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// What a reader of the door's answers accepts at most.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An image as the door tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Full reference, such as `cox.local/hello:latest`.
    pub name: String,
    /// Digest of the image.
    pub id: String,
    /// `wasm` or `oci`.
    pub kind: String,
    /// Bytes on disk.
    pub size: u64,
}

/// Why a client of the door did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Nobody answers at the socket.
    #[error("cannot reach the image door at {}", .socket.display())]
    Connect {
        /// The socket tried.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The conversation broke.
    #[error("the image door broke off: {0}")]
    Http(String),
    /// The shim refused; the text is meant for the user.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What is wrong with the image.
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
}

/// Loads a `.wasm` file as image `name`; it is validated and compiled before this returns. An archive (an OCI layout or what
/// `docker save` writes) goes into containerd, under its own names when it holds several images or no name is given.
///
/// # Errors
/// When the shim cannot be reached, or refuses the file: [`DoorError::Refused`] says why in words for the user.
pub async fn load(socket: &Path, name: Option<&str>, file: Bytes) -> Result<Entry, DoorError> {
    let encode =
        |name| percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    let query = name.map_or_else(String::new, |name| format!("?name={}", encode(name)));
    let bytes = call(socket, Method::PUT, &format!("/images{query}"), file).await?;
    serde_json::from_slice(&bytes).map_err(|err| DoorError::Http(err.to_string()))
}

/// Lists the images of the node.
///
/// # Errors
/// When the shim cannot be reached or breaks off.
pub async fn list(socket: &Path) -> Result<Vec<Entry>, DoorError> {
    let bytes = call(socket, Method::GET, "/images", Bytes::new()).await?;
    serde_json::from_slice(&bytes).map_err(|err| DoorError::Http(err.to_string()))
}

async fn call(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, DoorError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| DoorError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let (mut sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| DoorError::Http(err.to_string()))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "images")
        .body(Full::new(body))
        .map_err(|err| DoorError::Http(err.to_string()))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|err| DoorError::Http(err.to_string()))?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|err| DoorError::Http(err.to_string()))?
            .to_bytes();
        answer(status, bytes)
    };
    // Both halves of the connection live in this future: a caller that goes away leaves no task behind.
    tokio::pin!(exchange);
    let mut conn = std::pin::pin!(conn);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut conn => {
            // The connection may end right after the answer was read into the exchange's channel.
            let answer = exchange.await;
            match (answer, ended) {
                (Err(DoorError::Http(_)), Err(err)) => Err(DoorError::Http(err.to_string())),
                (answer, _) => answer,
            }
        }
    }
}

fn answer(status: StatusCode, bytes: Bytes) -> Result<Bytes, DoorError> {
    if status.is_success() {
        return Ok(bytes);
    }
    let message = serde_json::from_slice::<Refusal>(&bytes).map_or_else(
        |_| format!("the image door answered {status}"),
        |refusal| refusal.error,
    );
    Err(DoorError::Refused {
        status: status.as_u16(),
        message,
    })
}
