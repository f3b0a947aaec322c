//! How a node joins: it learns the cluster's authority, shows its token, and asks for a certificate of its own.
//!
//! A join token is a bootstrap token (`ID.SECRET`) with the hash of the authority's key behind it (`ID.SECRET.HASH`). The handshake
//! shows the authority; only if its hash fits does the node send anything. From then on that authority vouches for the server.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cox_apiserver::pki::{self, AnyServer, PemPair, key_hash};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long the server may take for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long an approval is waited for before the node asks anew.
const APPROVAL: Duration = Duration::from_secs(900);

/// What `cox token` prints.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct JoinToken {
    pub(crate) id: String,
    pub(crate) secret: String,
    /// Hash of the authority's public key.
    pub(crate) authority: Option<String>,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)?;
        match &self.authority {
            Some(hash) => write!(f, ".{hash}"),
            None => Ok(()),
        }
    }
}

impl JoinToken {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let plain = |part: &str, len: usize| {
            part.len() == len
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let (id, secret, authority) = match parts[..] {
            [id, secret] => (id, secret, None),
            [id, secret, hash] if plain(hash, 64) => (id, secret, Some(hash.to_owned())),
            _ => bail!("that is no join token: `cox token` prints one on the control plane"),
        };
        if !plain(id, 6) || !plain(secret, 16) {
            bail!("that is no join token: `cox token` prints one on the control plane");
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            authority,
        })
    }
}

/// The authority that vouches for the server: from a file, or the one whose hash the token names.
pub(crate) async fn authority(
    server: &str,
    token: &JoinToken,
    ca_file: Option<&Path>,
) -> Result<String> {
    if let Some(file) = ca_file {
        return std::fs::read_to_string(file)
            .with_context(|| format!("{} cannot be read", file.display()));
    }
    let Some(hash) = &token.authority else {
        bail!(
            "the token does not name the cluster's authority: give its certificate with --ca-file"
        );
    };
    let chain = tokio::time::timeout(HANDSHAKE, shown_by(server))
        .await
        .with_context(|| format!("{server} does not answer"))??;
    let found = chain
        .iter()
        .find(|certificate| key_hash(certificate).as_deref() == Some(hash));
    let Some(found) = found else {
        bail!(
            "{server} is not of the cluster that the token is for: nothing was sent to it. If the server is another's \
             implementation, give its authority with --ca-file"
        );
    };
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, found);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    Ok(format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    ))
}

/// The chain that a server shows in its handshake. Nothing is sent, so nobody has to be trusted for it.
async fn shown_by(server: &str) -> Result<Vec<CertificateDer<'static>>> {
    let uri: http::Uri = server
        .parse()
        .with_context(|| format!("{server} is no URL"))?;
    let host = uri
        .host()
        .with_context(|| format!("{server} names no host"))?
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .with_context(|| format!("{server} cannot be reached"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(AnyServer::new(provider))
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from(host)?, stream)
        .await
        .with_context(|| format!("{server} does not speak TLS"))?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(shown
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect())
}

/// A client that shows a token.
pub(crate) fn client_with_token(
    server: &str,
    ca_pem: &str,
    token: &JoinToken,
) -> Result<kube::Client> {
    let mut config = kube::Config::new(server.parse()?);
    let ca: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).collect();
    let ca = ca.context("the authority is not PEM")?;
    config.root_cert = Some(ca.iter().map(|certificate| certificate.to_vec()).collect());
    let text = format!("{}.{}", token.id, token.secret);
    config.auth_info.token = Some(text.into());
    Ok(kube::Client::try_from(config)?)
}

/// What a certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// To be known to the API server as the node.
    Client,
    /// To serve under these names.
    Serving(&'a [String]),
}

/// Asks the cluster for a certificate of the node and waits until somebody has approved and signed it.
pub(crate) async fn certificate(
    client: kube::Client,
    node: &str,
    wanted: Wanted<'_>,
) -> Result<PemPair> {
    let (signer, usage, names) = match wanted {
        Wanted::Client => (
            "kubernetes.io/kube-apiserver-client-kubelet",
            "client auth",
            &[][..],
        ),
        Wanted::Serving(names) => ("kubernetes.io/kubelet-serving", "server auth", names),
    };
    let asked = pki::ask(&format!("system:node:{node}"), &["system:nodes"], names)?;
    let mut request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": "csr-"},
        "spec": {"signerName": signer, "usages": ["digital signature", usage], "request": ""},
    }))?;
    request.spec.request = ByteString(asked.request_pem.into_bytes());
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let made = api
        .create(&PostParams::default(), &request)
        .await
        .context("the certificate request was refused")?;
    let name = made.metadata.name.unwrap_or_default();
    tracing::info!(request = name, signer, "Certificate was asked for");
    let is_over = |request: Option<&CertificateSigningRequest>| {
        request.is_none_or(|request| signed(request).is_some() || refused(request).is_some())
    };
    let answered = tokio::time::timeout(APPROVAL, await_condition(api, &name, is_over))
        .await
        .with_context(|| {
            format!("nobody approved the request {name}: `kubectl certificate approve {name}`")
        })??
        .with_context(|| format!("the request {name} is gone"))?;
    match (signed(&answered), refused(&answered)) {
        (Some(certificate), _) => Ok(PemPair {
            certificate,
            key: asked.key_pem,
        }),
        (None, why) => bail!(
            "the request {name} was refused: {}",
            why.unwrap_or_default()
        ),
    }
}

fn signed(request: &CertificateSigningRequest) -> Option<String> {
    let certificate = request.status.as_ref()?.certificate.as_ref()?;
    String::from_utf8(certificate.0.clone())
        .ok()
        .filter(|pem| !pem.is_empty())
}

fn refused(request: &CertificateSigningRequest) -> Option<String> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    let refusal = conditions
        .iter()
        .find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"))?;
    let message = refusal.message.as_deref().unwrap_or_default();
    Some(format!("{} {message}", refusal.type_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_tokens_are_read_as_they_are_printed() {
        let hash = "0".repeat(64);
        for text in [
            "abcdef.0123456789abcdef".to_owned(),
            format!("abcdef.0123456789abcdef.{hash}"),
        ] {
            assert_eq!(JoinToken::parse(&text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "abcdef",
            "abcdef.short",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef.x",
        ] {
            assert!(JoinToken::parse(bad).is_err(), "{bad}");
        }
    }
}
