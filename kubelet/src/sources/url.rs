//! Static Pods of a URL: one Pod, or a list of them, YAML or JSON, over HTTP or over HTTPS that the machine's own roots vouch for.

use super::manifest::{Folder, ManifestError, Source, static_pod};
use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long the server may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A larger answer is no manifest.
const BYTES_MAX: usize = 4 << 20;

/// Fetches and reads it. An error means that nothing is known; what is no Pod in an answer leaves the others alone.
pub async fn fetch(url: &str, node_name: &str) -> Result<Folder, String> {
    let text = tokio::time::timeout(TIMEOUT, get(url))
        .await
        .map_err(|_| "no answer in time".to_owned())??;
    let text = std::str::from_utf8(&text).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Err("the answer is empty".to_owned());
    }
    let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let items = match value.get("items").and_then(Value::as_array) {
        Some(items) => items.clone(),
        None => vec![value],
    };
    let mut folder = Folder::default();
    for (index, mut item) in items.into_iter().enumerate() {
        if item.get("kind").is_none() {
            // What is in a PodList need not say that it is a Pod.
            item["kind"] = "Pod".into();
        }
        let text = item.to_string();
        let source = Source {
            kind: "http",
            place: url.as_bytes(),
            text: text.as_bytes(),
        };
        match static_pod(item, &source, node_name) {
            Ok(pod) => folder.pods.push(pod),
            Err(reason) => folder.errors.push(ManifestError {
                file: PathBuf::from(format!("{url}#{index}")),
                reason,
            }),
        }
    }
    Ok(folder)
}

async fn get(url: &str) -> Result<Bytes, String> {
    let uri: http::Uri = url
        .parse()
        .map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let is_https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err("it is no http or https URL".to_owned()),
    };
    let host = uri.host().ok_or("it has no host")?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| error.to_string())?;
    if !is_https {
        return ask(TokioIo::new(stream), &uri).await;
    }
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let connector = tokio::task::spawn_blocking(connector)
        .await
        .map_err(|error| error.to_string())??;
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    ask(TokioIo::new(stream), &uri).await
}

/// Trusts what the machine trusts.
fn connector() -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn ask<S>(stream: S, uri: &http::Uri) -> Result<Bytes, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(text)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = http::Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BYTES_MAX);
        let body = body.collect().await.map_err(|error| error.to_string())?;
        if status.is_success() {
            Ok(body.to_bytes())
        } else {
            Err(format!("the server answers {status}"))
        }
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        // Biased, so that an answer that came with the end of the connection is seen.
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(text)?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that gives one answer.
    async fn serve(answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/pods", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        url
    }

    fn ok(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn a_list_gives_its_pods_and_names_what_is_none() {
        let url = serve(ok("kind: PodList\nitems:\n- metadata: {name: web}\n  spec: {containers: [{name: c, image: x}]}\n- {kind: Service}\n")).await;
        let found = fetch(&url, "n").await.unwrap();
        let pod = &found.pods[0].metadata;
        assert_eq!(pod.name.as_deref(), Some("web-n"));
        let source = &pod.annotations.as_ref().unwrap()["kubernetes.io/config.source"];
        assert_eq!(source, "http");
        assert_eq!(found.errors.len(), 1);
        assert!(found.errors[0].to_string().ends_with("#1: it is not a Pod"));
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_an_error() {
        for answer in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            ok(""),
            ok("{"),
        ] {
            let url = serve(answer.clone()).await;
            assert!(fetch(&url, "n").await.is_err(), "{answer}");
        }
        assert!(fetch("ftp://x/", "n").await.is_err());
    }
}
