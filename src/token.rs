//! `cox token`: a short-lived secret by which a new node introduces itself, as kubeadm's bootstrap tokens.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use cox_apiserver::pki::{Pki, key_hash};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::PostParams;
use rand::Rng;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::cli::TokenArgs;
use crate::credentials;
use crate::join::JoinToken;
use crate::paths::Paths;

/// The group that may ask for a node's certificate.
const GROUP: &str = "system:bootstrappers:coxswain:node";
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

pub(crate) async fn run(args: &TokenArgs) -> Result<()> {
    let paths = Paths::resolve(&args.common)?;
    let client = cox_client::from_kubeconfig(paths.kubeconfig())
        .await
        .context(
            "the cluster's own kubeconfig is needed: run this where `cox up` or `cox server` runs",
        )?;
    let pki = Pki::load_or_create(&paths.pki())?;
    let authority = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes())?;
    let token = JoinToken {
        id: random(6),
        secret: random(16),
        authority: key_hash(&authority),
    };
    let ends =
        std::time::SystemTime::now() + std::time::Duration::from_secs(u64::from(args.ttl) * 3600);
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "expiration": rfc3339(ends),
            "usage-bootstrap-authentication": "true", "auth-extra-groups": GROUP,
            "description": "made by `cox token`",
        },
    }))?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .context("the token could not be written")?;
    let server = match &args.server {
        Some(server) => server.clone(),
        None => reachable(credentials::last_server(&paths)?, &client).await?,
    };
    writeln!(
        std::io::stdout(),
        "cox agent --server {server} --token {token}"
    )?;
    Ok(())
}

/// The server's URL, or that at which it is advertised where this one leads nodes to themselves.
async fn reachable(server: String, client: &kube::Client) -> Result<String> {
    let is_own = |host: &str| host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let url: http::Uri = server.parse().context("the server's URL cannot be read")?;
    if !url
        .host()
        .is_some_and(|host| is_own(host.trim_matches(['[', ']'])))
    {
        return Ok(server);
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let slice = slices
        .get("kubernetes")
        .await
        .context("the API server's own endpoints cannot be read: say where it is with --server")?;
    let mut addresses = slice.endpoints.iter().flatten();
    let address = addresses.find_map(|one| one.addresses.first()?.parse::<IpAddr>().ok());
    let port = slice.ports.iter().flatten().find_map(|port| port.port);
    Ok(
        match (address, port.and_then(|port| u16::try_from(port).ok())) {
            (Some(ip), Some(port)) if !ip.is_loopback() => {
                format!("https://{}", SocketAddr::new(ip, port))
            }
            // A cluster of this machine alone.
            (Some(_) | None, _) => server,
        },
    )
}

fn random(len: usize) -> String {
    let mut rng = rand::rng();
    (0..len)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect()
}

fn rfc3339(time: std::time::SystemTime) -> String {
    let since = time.duration_since(std::time::UNIX_EPOCH);
    let secs = since.map_or(0, |since| since.as_secs());
    let time = k8s_openapi::jiff::Timestamp::from_second(i64::try_from(secs).unwrap_or(i64::MAX));
    time.map_or_else(|_| String::new(), |time| time.to_string())
}
