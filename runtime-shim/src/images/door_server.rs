//! The shim's side of the image door.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::{Entry, Refusal};
use super::{AnyImage, ImageError, Images};
use crate::oci::{OciError, is_archive};

/// Enough of a file to tell an archive from Wasm.
const START_BYTES: usize = 512;

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

async fn respond(images: &Images, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/images") => {
            let entries: Vec<Entry> = images.list_any().await.iter().map(entry).collect();
            Ok(serde_json::to_vec(&entries))
        }
        (&Method::PUT, "/images") => load(images, request)
            .await
            .map(|image| serde_json::to_vec(&entry(&image))),
        (_, "/images") => Err(Refused(
            StatusCode::METHOD_NOT_ALLOWED,
            "use GET or PUT".into(),
        )),
        _ => Err(Refused(
            StatusCode::NOT_FOUND,
            "only /images is here".into(),
        )),
    };
    let (status, body) = match answer {
        Ok(Ok(body)) => (StatusCode::OK, body),
        Ok(Err(err)) => (StatusCode::INTERNAL_SERVER_ERROR, refusal(err.to_string())),
        Err(Refused(status, text)) => (status, refusal(text)),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
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

async fn load(images: &Images, request: Request<Incoming>) -> Result<AnyImage, Refused> {
    let name = request
        .uri()
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("name="))
        .and_then(|name| {
            percent_encoding::percent_decode_str(name)
                .decode_utf8()
                .ok()
                .map(String::from)
        });
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
            "the query must have ?name=REFERENCE: a Wasm file carries no name".into(),
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
            OciError::Unavailable { .. } | OciError::Call { .. } | OciError::Io { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
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
