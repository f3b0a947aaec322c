//! HTTPS from the API server to servers that the cluster's users name: conversion webhooks and aggregated API servers.
//!
//! Input: a place (a URL, or a Service with a port) and how to trust it. Output: connections, and answers to JSON posts. A
//! Service is resolved to one of its ready endpoints here, since the API server stands outside the service network. One
//! connection per request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rand::seq::IndexedRandom;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::AnyServer;
use crate::registry::Registry;

/// How long a server outside may take to let us in.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a webhook that converts may take.
pub(crate) const CONVERSION_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a server outside could not be asked.
pub(crate) type Why = String;

/// The client side of TLS to servers outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outside {
    /// Certificate chain and key that aggregated API servers know the API server by.
    identity: Option<Arc<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>>,
}

/// How a server proves who it is.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// By a certificate of one of these authorities (PEM).
    Authorities(Vec<u8>),
    /// By a certificate of one of the authorities that this machine trusts.
    System,
    /// Not at all.
    Anyone,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// What its certificate must be for.
    pub(crate) name: String,
    /// Where to connect.
    pub(crate) host: String,
    /// The port there.
    pub(crate) port: u16,
}

impl Outside {
    /// With a client certificate (PEM chain and key).
    pub(crate) fn with_identity(
        certificate: &str,
        key: &str,
    ) -> Result<Self, rustls::pki_types::pem::Error> {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        Ok(Outside {
            identity: Some(Arc::new((chain, key))),
        })
    }

    /// Connects with TLS.
    pub(crate) async fn connect(
        &self,
        place: &Place,
        trust: &Trust,
    ) -> Result<TlsStream<TcpStream>, Why> {
        let tls = self.tls(trust)?;
        let name = ServerName::try_from(place.name.clone()).map_err(|error| error.to_string())?;
        let opened = async {
            let tcp = TcpStream::connect((place.host.as_str(), place.port)).await?;
            TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, opened).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("dial tcp {}:{}: {error}", place.host, place.port)),
            Err(_) => Err(format!(
                "dial tcp {}:{}: i/o timeout",
                place.host, place.port
            )),
        }
    }

    /// How such a server is spoken to.
    pub(crate) fn tls(&self, trust: &Trust) -> Result<ClientConfig, Why> {
        let text = |error: rustls::Error| error.to_string();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(text)?;
        let builder = match trust {
            Trust::Authorities(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| error.to_string())?;
                    roots.add(certificate).map_err(text)?;
                }
                builder.with_root_certificates(roots)
            }
            Trust::System => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                builder.with_root_certificates(roots)
            }
            Trust::Anyone => builder
                .dangerous()
                .with_custom_certificate_verifier(AnyServer::new(provider)),
        };
        match &self.identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.0.clone(), identity.1.clone_key())
                .map_err(text),
            None => Ok(builder.with_no_client_auth()),
        }
    }

    /// Posts JSON to a webhook and reads the JSON that it answers. `client` is a `WebhookClientConfig`.
    pub(crate) async fn post_json(
        &self,
        client: &Value,
        body: &Value,
        registry: &Registry,
        timeout: Duration,
    ) -> Result<Value, Why> {
        let (place, path) = webhook_place(client, registry)?;
        let path = format!("{path}?timeout={}s", timeout.as_secs());
        let trust = match client["caBundle"].as_str().filter(|text| !text.is_empty()) {
            Some(text) => Trust::Authorities(
                base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .map_err(|error| error.to_string())?,
            ),
            None => Trust::System,
        };
        let url = format!("https://{}:{}{path}", place.name, place.port);
        let host = match place.port {
            443 => place.name.clone(),
            port => format!("{}:{port}", place.name),
        };
        let posted = async {
            // Webhooks do not know this server by a certificate.
            let stream = Outside::default().connect(&place, &trust).await?;
            let text = |error: hyper::Error| error.to_string();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(text)?;
            let driven = tokio::spawn(connection);
            let request = Request::post(&path)
                .header(http::header::HOST, host)
                .header(http::header::CONTENT_TYPE, "application/json")
                .header(http::header::ACCEPT, "application/json")
                .body(Full::new(Bytes::from(body.to_string())))
                .map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(text)?;
            let code = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| error.to_string())?
                .to_bytes();
            driven.abort();
            if !code.is_success() {
                return Err(format!("the server answered {code}"));
            }
            serde_json::from_slice(&answer).map_err(|error| error.to_string())
        };
        match tokio::time::timeout(timeout, posted).await {
            Ok(answered) => answered.map_err(|why| format!("Post \"{url}\": {why}")),
            Err(_) => Err(format!("Post \"{url}\": context deadline exceeded")),
        }
    }
}

/// Where a webhook is, and the path to post to.
fn webhook_place(client: &Value, registry: &Registry) -> Result<(Place, String), Why> {
    if let Some(url) = client["url"].as_str() {
        let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let place = Place {
            name: host.clone(),
            host,
            port: uri.port_u16().unwrap_or(443),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        return Ok((place, path.to_owned()));
    }
    let service = &client["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default();
    let port = service["port"].as_i64().unwrap_or(443);
    let place = resolve(registry, text("namespace"), text("name"), port)?;
    let path = match text("path") {
        "" => "/",
        path => path,
    };
    Ok((place, path.to_owned()))
}

/// One of the ready endpoints behind a port of a Service.
pub(crate) fn resolve(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: i64,
) -> Result<Place, Why> {
    let service = registry
        .value("", "services", namespace, name)
        .ok_or_else(|| format!("service {name:?} not found"))?;
    let dns_name = format!("{name}.{namespace}.svc");
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default();
        let port = u16::try_from(port).map_err(|_| format!("{port} is no port"))?;
        return Ok(Place {
            name: dns_name,
            host: host.to_owned(),
            port,
        });
    }
    let ports = service["spec"]["ports"].as_array();
    let chosen = ports
        .into_iter()
        .flatten()
        .find(|one| one["port"] == port)
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let found = endpoint(registry, namespace, name, chosen);
    let (host, port) =
        found.ok_or_else(|| format!("no endpoints available for service {name:?}"))?;
    Ok(Place {
        name: dns_name,
        host: host.to_string(),
        port,
    })
}

/// Any one of the ready endpoints behind a port (as the Service has it) of a Service.
pub(crate) fn endpoint(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: &Value,
) -> Option<(IpAddr, u16)> {
    slices(registry, namespace, name, port).or_else(|| endpoints(registry, namespace, name, port))
}

fn same_port(of_endpoint: &Value, of_service: &Value) -> bool {
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    name(of_endpoint) == name(of_service)
}

fn number(port: &Value) -> Option<u16> {
    u16::try_from(port.as_u64()?).ok()
}

fn slices(registry: &Registry, namespace: &str, name: &str, port: &Value) -> Option<(IpAddr, u16)> {
    let objects = registry.list("discovery.k8s.io", "endpointslices", namespace);
    let slices = objects
        .iter()
        .filter_map(|object| serde_json::from_slice::<Value>(&object.json).ok())
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
    for slice in slices {
        let ports = slice["ports"].as_array();
        let Some(number) = ports
            .into_iter()
            .flatten()
            .find(|one| same_port(one, port))
            .and_then(|one| number(&one["port"]))
        else {
            continue;
        };
        let ready = |one: &&Value| one["conditions"]["ready"] != false;
        let all = slice["endpoints"].as_array();
        let addresses: Vec<IpAddr> = all
            .into_iter()
            .flatten()
            .filter(ready)
            .filter_map(|one| one["addresses"][0].as_str()?.parse().ok())
            .collect();
        if let Some(address) = addresses.choose(&mut rand::rng()) {
            return Some((*address, number));
        }
    }
    None
}

fn endpoints(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: &Value,
) -> Option<(IpAddr, u16)> {
    let endpoints = registry.value("", "endpoints", namespace, name)?;
    let subsets = endpoints["subsets"].as_array()?;
    subsets.iter().find_map(|subset| {
        let ports = subset["ports"].as_array()?;
        let port = ports.iter().find(|one| same_port(one, port))?;
        let address = subset["addresses"][0]["ip"].as_str()?.parse().ok()?;
        Some((address, number(&port["port"])?))
    })
}
