//! Where a cluster is and how to be let in, read from a kubeconfig with certificates.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;

/// The API server of one kubeconfig.
#[derive(Clone, Debug)]
pub struct Access {
    /// `host:port`.
    pub authority: String,
    /// The name that its certificate must carry.
    pub server_name: ServerName<'static>,
    /// The roots to trust, and the client's certificate.
    pub tls: Arc<rustls::ClientConfig>,
}

impl Access {
    /// Reads the current context.
    ///
    /// # Errors
    /// When the file is no kubeconfig with certificates.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_as(path, true)
    }

    /// The same server for somebody without a certificate.
    ///
    /// # Errors
    /// As [`Access::read`].
    pub fn of_nobody(path: &Path) -> Result<Self> {
        Self::read_as(path, false)
    }

    fn read_as(path: &Path, with_certificate: bool) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let config: Value = serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is not a kubeconfig", path.display()))?;
        let context = named(
            &config,
            "contexts",
            config["current-context"].as_str().unwrap_or_default(),
        )?;
        let cluster = named(
            &config,
            "clusters",
            context["context"]["cluster"].as_str().unwrap_or_default(),
        )?;
        let user = named(
            &config,
            "users",
            context["context"]["user"].as_str().unwrap_or_default(),
        )?;
        let server = cluster["cluster"]["server"]
            .as_str()
            .context("the kubeconfig names no server")?;
        let authority = server
            .trim_start_matches("https://")
            .trim_end_matches('/')
            .to_owned();
        let host = authority
            .rsplit_once(':')
            .map_or(authority.as_str(), |(host, _)| host)
            .to_owned();

        let mut roots = rustls::RootCertStore::empty();
        for certificate in
            CertificateDer::pem_slice_iter(&pem(&cluster["cluster"], "certificate-authority")?)
        {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem(&user["user"], "client-certificate")?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["user"], "client-key")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = if with_certificate {
            tls.with_client_auth_cert(chain, key)?
        } else {
            tls.with_no_client_auth()
        };
        Ok(Self {
            authority,
            server_name: ServerName::try_from(host)?,
            tls: Arc::new(tls),
        })
    }
}

fn named<'a>(config: &'a Value, list: &str, name: &str) -> Result<&'a Value> {
    let entries = config[list]
        .as_array()
        .with_context(|| format!("the kubeconfig has no {list}"))?;
    entries
        .iter()
        .find(|entry| entry["name"] == name)
        .with_context(|| format!("the kubeconfig has no {name} in {list}"))
}

/// The PEM text of a field, given inline or as a path.
fn pem(object: &Value, field: &str) -> Result<Vec<u8>> {
    if let Some(data) = object[format!("{field}-data")].as_str() {
        return Ok(base64::engine::general_purpose::STANDARD.decode(data)?);
    }
    let path = object[field]
        .as_str()
        .with_context(|| format!("the kubeconfig has no {field}"))?;
    Ok(std::fs::read(path)?)
}
