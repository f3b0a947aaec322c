//! Servers outside the cluster, for tests: HTTPS on loopback with a certificate of the cluster's CA, answering JSON by a function.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Server;

/// What was asked: the head of the request, and its whole body.
pub(super) type Asked = http::Request<Bytes>;

/// Serves until the test ends, under these names; answers the port.
pub(super) async fn serve<F>(server: &Server, names: &[&str], answer: F) -> u16
where
    F: Fn(&Asked) -> Value + Send + Sync + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls(server, names)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                    let answer = Arc::clone(&answer);
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let answer = answer(&http::Request::from_parts(parts, body));
                        http::Response::builder()
                            .header("content-type", "application/json")
                            .body(Full::new(Bytes::from(answer.to_string())))
                    }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                served.await.ok();
            });
        }
    });
    port
}

fn tls(server: &Server, names: &[&str]) -> rustls::ServerConfig {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let pair = server.pki.serving(&names).unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}
