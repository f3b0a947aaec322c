//! The shim's side of the image door.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::{Entry, PullLine, Pulling, Refusal};
use super::progress::SoFar;
use super::{AnyImage, Credentials, ImageError, Images};
use crate::oci::{OciError, is_archive};

/// Enough of a file to tell an archive from Wasm.
const START_BYTES: usize = 512;

/// How often who pulls hears how far it is.
const TELL_EVERY: Duration = Duration::from_millis(250);

const NO_NAME: &str = "the query must have ?name=REFERENCE";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Why a request was refused, with its status.
struct Refused(StatusCode, String);

impl From<ImageError> for Refused {
    fn from(err: ImageError) -> Self {
        let status = match &err {
            ImageError::Reference(..) => StatusCode::BAD_REQUEST,
            ImageError::Code { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ImageError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ImageError::Io { .. } | ImageError::Damaged { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, err.to_string())
    }
}

/// Serves the door until `cancel`; loads that run are finished.
pub(crate) async fn serve(listener: UnixListener, images: Arc<Images>, cancel: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                tracing::warn!(error = %err, "A connection to the image door could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let images = Arc::clone(&images);
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let images = Arc::clone(&images);
                async move { Ok::<_, Infallible>(respond(&images, request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(err) = served {
                tracing::debug!(error = %err, "A connection to the image door broke");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn respond(images: &Arc<Images>, request: Request<Incoming>) -> Response<Body> {
    if (request.method(), request.uri().path()) == (&Method::POST, "/pulls") {
        return match name_of(&request) {
            Some(name) => response(StatusCode::OK, pull(Arc::clone(images), name)),
            None => response(StatusCode::BAD_REQUEST, whole(refusal(NO_NAME.into()))),
        };
    }
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/images") => {
            let entries: Vec<Entry> = images.list_any().await.iter().map(entry).collect();
            Ok(serde_json::to_vec(&entries))
        }
        (&Method::PUT, "/images") => load(images, request)
            .await
            .map(|image| serde_json::to_vec(&entry(&image))),
        (&Method::GET, "/pulls") => {
            let pulls: Vec<Pulling> = images.pulls.list().into_iter().map(pulling).collect();
            Ok(serde_json::to_vec(&pulls))
        }
        (_, "/images") => Err(Refused(
            StatusCode::METHOD_NOT_ALLOWED,
            "use GET or PUT".into(),
        )),
        _ => Err(Refused(
            StatusCode::NOT_FOUND,
            "only /images and /pulls are here".into(),
        )),
    };
    let (status, body) = match answer {
        Ok(Ok(body)) => (StatusCode::OK, body),
        Ok(Err(err)) => (StatusCode::INTERNAL_SERVER_ERROR, refusal(err.to_string())),
        Err(Refused(status, text)) => (status, refusal(text)),
    };
    response(status, whole(body))
}

fn whole(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).boxed_unsync()
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

/// A pull that goes on as long as its client listens, as a line for each look at it.
fn pull(images: Arc<Images>, name: String) -> Body {
    let pulled = {
        let (images, name) = (Arc::clone(&images), name.clone());
        async move { images.pull(&name, &Credentials::default()).await }.boxed()
    };
    let ticks = tokio::time::interval(TELL_EVERY);
    let lines = futures::stream::unfold(Some((pulled, ticks)), move |state| {
        let (images, name) = (Arc::clone(&images), name.clone());
        async move {
            let (mut pulled, mut ticks) = state?;
            // Dropping a tick loses nothing, and the pull stays where it stands.
            tokio::select! {
                biased;
                done = &mut pulled => {
                    let line = match done {
                        Ok(image) => PullLine::Done(entry(&image)),
                        Err(err) => PullLine::Error(err.to_string()),
                    };
                    Some((line, None))
                }
                _ = ticks.tick() => {
                    let none = || Pulling { name: name.clone(), bytes: 0, of: 0, seconds: 0 };
                    let line = images.pulls.of(&name).map_or_else(none, pulling);
                    Some((PullLine::Pulling(line), Some((pulled, ticks))))
                }
            }
        }
    });
    let frames = lines.map(|line| {
        let mut bytes = serde_json::to_vec(&line).expect("a line is plain data");
        bytes.push(b'\n');
        Ok(http_body::Frame::data(Bytes::from(bytes)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn pulling(so_far: SoFar) -> Pulling {
    Pulling {
        name: so_far.image,
        bytes: so_far.bytes,
        of: so_far.of,
        seconds: so_far.took.as_secs(),
    }
}

fn refusal(error: String) -> Vec<u8> {
    serde_json::to_vec(&Refusal { error }).expect("a text is valid JSON")
}

fn entry(image: &AnyImage) -> Entry {
    let (name, kind, size) = match image {
        AnyImage::Wasm(image) => (image.name(), "wasm", image.size),
        AnyImage::Oci(image) => (image.name(), "oci", image.size),
    };
    Entry {
        name: name.to_owned(),
        id: image.id().to_owned(),
        kind: kind.into(),
        size,
    }
}

fn name_of(request: &Request<Incoming>) -> Option<String> {
    let pairs = request
        .uri()
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'));
    let name = pairs.filter_map(|pair| pair.strip_prefix("name=")).next()?;
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
    decoded.ok().map(String::from)
}

async fn load(images: &Images, request: Request<Incoming>) -> Result<AnyImage, Refused> {
    let name = name_of(&request);
    let full = name.as_deref().map(super::full_name).transpose()?;
    let mut body = request.into_body();
    let mut start: Vec<u8> = Vec::new();
    while start.len() < START_BYTES
        && let Some(frame) = body.frame().await
    {
        start.extend_from_slice(&data(frame)?);
    }
    if is_archive(&start) {
        return load_archive(images, full.as_deref(), &start, body).await;
    }
    let name = name.ok_or_else(|| {
        Refused(
            StatusCode::BAD_REQUEST,
            format!("{NO_NAME}: a Wasm file carries no name"),
        )
    })?;
    let mut draft = images.blobs.draft(images.config.wasm_bytes_max)?;
    draft.write(&start)?;
    while let Some(frame) = body.frame().await {
        draft.write(&data(frame)?)?;
    }
    let (file, digest) = draft.finish()?;
    Ok(AnyImage::Wasm(images.load(&name, file, digest).await?))
}

fn data(frame: Result<http_body::Frame<Bytes>, hyper::Error>) -> Result<Bytes, Refused> {
    let frame = frame.map_err(|err| {
        Refused(
            StatusCode::BAD_REQUEST,
            format!("the file did not arrive whole: {err}"),
        )
    })?;
    // Trailers say nothing about the file.
    Ok(frame.into_data().unwrap_or_default())
}

/// An archive goes to a file of its own first: it is read back and forth. Only containerd limits its size.
async fn load_archive(
    images: &Images,
    name: Option<&str>,
    start: &[u8],
    mut body: Incoming,
) -> Result<AnyImage, Refused> {
    let failed = |err: std::io::Error| {
        Refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the archive cannot be kept: {err}"),
        )
    };
    let (file, path) = tempfile::NamedTempFile::new_in(&images.config.root_dir)
        .map_err(failed)?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    file.write_all(start).await.map_err(failed)?;
    while let Some(frame) = body.frame().await {
        file.write_all(&data(frame)?).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let loaded = images.oci.load(name, &path).await.map_err(|err| {
        let status = match &err {
            OciError::Refused(_) | OciError::Damaged { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            OciError::Unavailable { .. }
            | OciError::Call { .. }
            | OciError::Checkpoint(_)
            | OciError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused(status, err.to_string())
    })?;
    let first = loaded.into_iter().next();
    first.map(AnyImage::Oci).ok_or_else(|| {
        Refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the images were gone right after they were loaded".into(),
        )
    })
}
