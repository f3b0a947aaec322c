//! The shim's side of the image door.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::{Entry, Refusal};
use super::{Image, ImageError, Images};

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
            let entries: Vec<Entry> = images.list().iter().map(|image| entry(image)).collect();
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

fn entry(image: &Image) -> Entry {
    Entry {
        name: image.name().to_owned(),
        id: image.id.to_string(),
        kind: "wasm".into(),
        size: image.size,
    }
}

async fn load(images: &Images, request: Request<Incoming>) -> Result<Arc<Image>, Refused> {
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
        })
        .ok_or_else(|| {
            Refused(
                StatusCode::BAD_REQUEST,
                "the query must have ?name=REFERENCE".into(),
            )
        })?;
    super::full_name(&name)?;
    let mut draft = images.blobs.draft(images.config.wasm_bytes_max)?;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|err| {
            Refused(
                StatusCode::BAD_REQUEST,
                format!("the file did not arrive whole: {err}"),
            )
        })?;
        if let Ok(bytes) = frame.into_data() {
            draft.write(&bytes)?;
        }
    }
    let (file, digest) = draft.finish()?;
    Ok(images.load(&name, file, digest).await?)
}
