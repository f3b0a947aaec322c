//! Over TLS, as programs outside see the server: certificates, bad input on a connection that goes on, logs from a kubelet.

use std::time::Duration;

use http::header::HOST;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::pki::PemPair;

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

fn roots(pki: &Pki) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pki.ca_pem()) {
        roots.add(certificate).unwrap();
    }
    roots
}

/// One HTTP/1.1 connection to the server, with or without a client certificate.
pub(super) async fn connect(server: &Server, pair: Option<&PemPair>) -> SendRequest<Full<Bytes>> {
    let stream = TokioIo::new(secured(server, pair).await);
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(super) async fn secured(server: &Server, pair: Option<&PemPair>) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = builder.with_root_certificates(roots(&server.pki));
    let config = match pair {
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(certificates(&pair.certificate), key)
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(server.server.addr()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap()
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "test")
        .header("content-type", "application/json");
    let response = sender
        .send_request(request.body(Full::new(body.into())).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body,
    }
}

#[tokio::test]
async fn a_watch_goes_over_a_websocket() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::with_namespace().await;
    for (accept, opcode) in [
        ("application/json", 1),
        ("application/vnd.kubernetes.protobuf", 2),
    ] {
        let name = format!("c{opcode}");
        let mut sender = connect(&server, Some(&server.pki.issue_admin().unwrap())).await;
        let request = Request::get(format!(
            "{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3D{name}"
        ))
        .header(HOST, "test")
        .header("accept", accept)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Full::default())
        .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        server.post(CONFIG_MAPS, &config_map(&name)).await.ok(201);
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(
            head[..2],
            [0x80 | opcode, 126],
            "one message with a length of two bytes"
        );
        let mut event = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
        stream.read_exact(&mut event).await.unwrap();
        if opcode == 1 {
            let event: Value = serde_json::from_slice(&event).unwrap();
            assert_eq!(
                (&event["type"], &event["object"]["metadata"]["name"]),
                (&json!("ADDED"), &json!(name))
            );
        } else {
            assert!(event.starts_with(b"\x0a\x05ADDED\x12"));
        }
        // A ping is answered, a goodbye too.
        stream
            .write_all(&[0x89, 0x81, 0, 0, 0, 0, b'!', 0x88, 0x80, 0, 0, 0, 0])
            .await
            .unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [0x8a, 1, b'!', 0x88, 2, 0x03, 0xe8]);
    }
}

#[tokio::test]
async fn a_connection_survives_bad_input() {
    let server = Server::with_namespace().await;
    let mut sender = connect(&server, Some(&server.pki.issue_admin().unwrap())).await;
    assert_eq!(
        ask(&mut sender, "POST", CONFIG_MAPS, "{").await.failure().0,
        400
    );
    assert_eq!(
        ask(
            &mut sender,
            "POST",
            CONFIG_MAPS,
            vec![b' '; 10 * 1024 * 1024]
        )
        .await
        .failure()
        .0,
        413
    );
    assert_eq!(ask(&mut sender, "GET", "/%ff", "").await.failure().0, 400);
    assert_eq!(
        ask(&mut sender, "BREW", CONFIG_MAPS, "").await.failure().0,
        405
    );
    ask(
        &mut sender,
        "POST",
        CONFIG_MAPS,
        config_map("c").to_string(),
    )
    .await
    .ok(201);
}

#[tokio::test]
async fn the_certificate_says_who_asks() {
    let server = Server::with_namespace().await;
    let mut nobody = connect(&server, None).await;
    assert_eq!(ask(&mut nobody, "GET", "/healthz", "").await.code, 200);
    // Without credentials there is health and version, nothing else.
    assert_eq!(
        ask(&mut nobody, "GET", CONFIG_MAPS, "").await.failure().0,
        401
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Pki::load_or_create(elsewhere.path())
        .unwrap()
        .issue_admin()
        .unwrap();
    let mut stranger = connect(&server, Some(&stranger)).await;
    assert_eq!(
        ask(&mut stranger, "GET", CONFIG_MAPS, "").await.failure(),
        (401, "Unauthorized".into(), "Unauthorized".into())
    );
}

#[tokio::test]
async fn the_serving_certificate_is_replaced_while_connections_go_on() {
    let looks = |config: &mut Config| config.certificate_looks = Duration::from_millis(20);
    let server = Server::configured(looks).await;
    let shown = async || {
        let stream = secured(&server, None).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let mut standing = connect(&server, None).await;
    let first = shown().await;
    assert_eq!(shown().await, first, "nothing is due");
    // What is not there has to be issued, as what ends soon.
    std::fs::remove_file(server.keys.path().join("apiserver.crt")).unwrap();
    let replaced = async {
        while shown().await == first {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), replaced)
        .await
        .unwrap();
    assert_eq!(ask(&mut standing, "GET", "/healthz", "").await.code, 200);
}

#[tokio::test]
async fn logs_come_from_the_kubelet_of_the_pods_node() {
    let server = Server::with_namespace().await;
    let port = kubelet(&server).await;
    let node = json!({"metadata": {"name": "n"}});
    server.post("/api/v1/nodes", &node).await.ok(201);
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    server
        .merge("/api/v1/nodes/n/status", &status)
        .await
        .ok(200);
    let mut placed = pod("p");
    placed["spec"]["nodeName"] = "n".into();
    let pods = "/api/v1/namespaces/a/pods";
    server.post(pods, &placed).await.ok(201);
    let answer = server
        .get(&format!("{pods}/p/log?tailLines=5&follow=true"))
        .await;
    assert_eq!(
        (
            answer.code,
            answer.headers["content-type"].to_str().unwrap()
        ),
        (200, "text/plain")
    );
    assert_eq!(
        answer.text(),
        "kube-apiserver-kubelet-client GET /containerLogs/a/p/c?follow=true&tailLines=5"
    );
    let (code, _, message) = server
        .get(&format!("{pods}/p/log?previous=true"))
        .await
        .failure();
    assert_eq!(
        (code, message.as_str()),
        (400, "previous terminated container \"c\" not found")
    );
}

/// A kubelet that answers with who asked for what.
async fn kubelet(server: &Server) -> u16 {
    let pair = server.pki.issue_node("n", &["n".to_owned()]).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(&server.pki)),
        Arc::clone(&provider),
    );
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(certificates(&pair.certificate), key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let stream = acceptor.accept(tcp).await.unwrap();
            let chain = stream.get_ref().1.peer_certificates().unwrap();
            let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            let user = certificate
                .subject()
                .iter_common_name()
                .next()
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned();
            let service = service_fn(move |request: Request<Incoming>| {
                let text = format!("{user} {} {}", request.method(), request.uri());
                async move {
                    let refused = request
                        .uri()
                        .query()
                        .is_some_and(|query| query.contains("previous"));
                    let (code, text) = if refused {
                        (
                            400,
                            "previous terminated container \"c\" not found\n".to_owned(),
                        )
                    } else {
                        (200, text)
                    };
                    Ok::<_, std::convert::Infallible>(
                        Response::builder()
                            .status(code)
                            .body(Full::new(Bytes::from(text)))
                            .unwrap(),
                    )
                }
            });
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await
                .unwrap();
        }
    });
    port
}

#[tokio::test]
async fn a_stop_ends_every_watch_as_if_its_time_were_up() {
    let server = Server::with_namespace().await;
    let admin = server.pki.issue_admin().unwrap();
    let watch = || {
        let uri = format!("https://test{CONFIG_MAPS}?watch=true&resourceVersion=0");
        Request::get(uri)
            .header(HOST, "test")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let mut http1 = connect(&server, Some(&admin)).await;
    let first = http1.send_request(watch()).await.unwrap();
    let stream = TokioIo::new(secured(&server, Some(&admin)).await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut http2, connection) = hyper::client::conn::http2::handshake(executor, stream)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(http2.send_request(watch()).await.unwrap().into_body());
    }
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let mut bodies = vec![first.into_body()];
    bodies.append(&mut streams);
    for body in &mut bodies {
        let frame = body.frame().await.unwrap().unwrap();
        assert!(
            frame
                .into_data()
                .unwrap()
                .starts_with(b"{\"type\":\"ADDED\"")
        );
    }
    server.cancel.cancel();
    for mut body in bodies {
        while let Some(frame) = body.frame().await {
            assert!(frame.is_ok(), "no reset: {frame:?}");
        }
    }
    drop(http2);
    connection
        .await
        .unwrap()
        .expect("told to go away without an error");
    server.server.stopped().await;
}
