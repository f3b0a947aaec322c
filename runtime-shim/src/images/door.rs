//! The image door: how a `.wasm` file becomes an image without a registry. HTTP over a unix socket beside the CRI's.
//!
//! `PUT /images?name=REF` (body: the file) answers 200 with the [`Entry`], or 4xx with `{"error": "..."}`; `GET /images` lists
//! what is there. `POST /pulls?name=REF` fetches from a registry and answers with one JSON text a line, [`Pulling`] while it
//! lasts, at last the [`Entry`] or the error; `GET /pulls` lists what is under way, whoever asked for it. It is a small door on purpose: images are not cluster state, so they have no place in the API server.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
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

/// How far a pull has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulling {
    /// The image as it was asked for.
    pub name: String,
    /// What is here of its layers.
    pub bytes: u64,
    /// What its layers are in all; zero until its manifest has come.
    pub of: u64,
    /// How long it has been going on.
    pub seconds: u64,
}

/// A line of the answer to a pull.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PullLine {
    Pulling(Pulling),
    Done(Entry),
    Error(String),
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

/// Lists the pulls that are under way, those of kubelets included.
///
/// # Errors
/// When the shim cannot be reached or breaks off.
pub async fn pulls(socket: &Path) -> Result<Vec<Pulling>, DoorError> {
    let bytes = call(socket, Method::GET, "/pulls", Bytes::new()).await?;
    serde_json::from_slice(&bytes).map_err(|err| DoorError::Http(err.to_string()))
}

/// Pulls an image from its registry, or a mirror of it, without credentials. `tell` hears how far it is, now and then.
///
/// # Errors
/// When the shim cannot be reached, or the image cannot be had: [`DoorError::Refused`] says why in words for the user.
pub async fn pull(
    socket: &Path,
    name: &str,
    mut tell: impl FnMut(&Pulling) + Send,
) -> Result<Entry, DoorError> {
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    let path = format!("/pulls?name={name}");
    let mut waiting = BytesMut::new();
    let mut outcome = None;
    let read = |bytes: &[u8]| {
        waiting.extend_from_slice(bytes);
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line = waiting.split_to(end + 1);
            match serde_json::from_slice(&line) {
                Ok(PullLine::Pulling(pulling)) => tell(&pulling),
                Ok(PullLine::Done(entry)) => outcome = Some(Ok(entry)),
                Ok(PullLine::Error(message)) => {
                    let status = StatusCode::BAD_GATEWAY.as_u16();
                    outcome = Some(Err(DoorError::Refused { status, message }));
                }
                Err(err) => outcome = Some(Err(DoorError::Http(err.to_string()))),
            }
        }
    };
    converse(socket, Method::POST, &path, Bytes::new(), read).await?;
    outcome.unwrap_or_else(|| Err(DoorError::Http("the answer ended early".into())))
}

async fn call(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, DoorError> {
    let mut whole = BytesMut::new();
    let read = |bytes: &[u8]| whole.extend_from_slice(bytes);
    converse(socket, method, path, body, read).await?;
    Ok(whole.freeze())
}

/// One request; `read` gets the answer in the pieces in which it comes, unless it is a refusal.
async fn converse(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
    mut read: impl FnMut(&[u8]),
) -> Result<(), DoorError> {
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
        let mut body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        if !status.is_success() {
            let whole = body.collect().await;
            let whole = whole.map_err(|err| DoorError::Http(err.to_string()))?;
            return Err(refused(status, &whole.to_bytes()));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|err| DoorError::Http(err.to_string()))?;
            if let Ok(data) = frame.into_data() {
                read(&data);
            }
        }
        Ok(())
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

fn refused(status: StatusCode, bytes: &[u8]) -> DoorError {
    let message = serde_json::from_slice::<Refusal>(bytes).map_or_else(
        |_| format!("the image door answered {status}"),
        |refusal| refusal.error,
    );
    DoorError::Refused {
        status: status.as_u16(),
        message,
    }
}
