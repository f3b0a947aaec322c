//! The cluster's public key infrastructure: one CA, the API server's serving certificate, the key that signs service
//! account tokens, and certificates for clients and nodes.
//!
//! Owns the key folder (`ca.crt`, `ca.key`, `apiserver.crt`, `apiserver.key`, `sa.key`, `sa.pub`; 0600 in a 0700
//! folder). Input: that folder and the names the server answers to. Output: PEM, kubeconfig texts and rustls
//! configurations. What exists is kept; what is damaged is told with the file's name and never overwritten; the serving
//! certificate alone is issued again, when a name is missing in it or its end is near. It never talks to the network and
//! never logs a key.

mod error;
mod files;
mod inspect;
mod issue;
mod kubeconfig;
mod sign;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use error::PkiError;
use error::{MEND_CA, MEND_SA, damaged};
pub use inspect::{Inspected, inspect, key_hash};
use issue::Usage;
pub use kubeconfig::render as kubeconfig;
pub use sign::{Asked, SignRequest, ask};
pub use tls::AnyServer;

/// The serving certificate is issued again when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::days(30);
/// Names under which clients inside and outside reach the API server, beside the host's own name.
const SERVING_NAMES: [&str; 8] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "10.96.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// A certificate and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemPair {
    /// The certificate.
    pub certificate: String,
    /// The private key (PKCS#8).
    pub key: String,
}

impl fmt::Debug for PemPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemPair")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The loaded keys of a cluster.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    service_account_key: KeyPair,
    client_verifier: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Pki {
    /// Loads the cluster's keys from `dir`, making the folder and what is missing in it.
    ///
    /// # Errors
    /// When the folder or a file cannot be used; the text names it and says how to mend it.
    pub fn load_or_create(dir: &Path) -> Result<Pki, PkiError> {
        Self::load_or_create_at(dir, OffsetDateTime::now_utc())
    }

    fn load_or_create_at(dir: &Path, now: OffsetDateTime) -> Result<Pki, PkiError> {
        files::ensure_dir(dir)?;
        let (ca_pem, ca_key) = load_authority(dir, now)?;
        let certificate_path = dir.join("ca.crt");
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)
            .map_err(|error| damaged(&certificate_path, error.to_string(), MEND_CA))?;
        let client_verifier = tls::client_verifier(&ca_pem).map_err(|source| PkiError::Tls {
            path: certificate_path,
            source,
        })?;
        let service_account_key = load_service_account_key(dir)?;
        Ok(Pki {
            dir: dir.to_owned(),
            ca_pem,
            issuer,
            service_account_key,
            client_verifier,
        })
    }

    /// The cluster CA's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The API server's serving pair for the usual names, this host's name and `extra` names or addresses. Kept on disk;
    /// issued again when a name is missing, when it was signed by another CA, or when its end is near.
    ///
    /// # Errors
    /// When it can neither be read nor issued.
    pub fn serving(&self, extra: &[String]) -> Result<PemPair, PkiError> {
        self.serving_at(extra, OffsetDateTime::now_utc())
    }

    fn serving_at(&self, extra: &[String], now: OffsetDateTime) -> Result<PemPair, PkiError> {
        let names = serving_names(extra);
        let (certificate_path, key_path) = (
            self.dir.join("apiserver.crt"),
            self.dir.join("apiserver.key"),
        );
        if let (Some(certificate), Some(key)) =
            (files::read(&certificate_path)?, files::read(&key_path)?)
            && self.still_serves(&certificate, &key, &names, now)
        {
            return Ok(PemPair { certificate, key });
        }
        let pair = issue::leaf(
            &self.issuer,
            "kube-apiserver",
            &[],
            &names,
            Usage::Server,
            now,
        )?;
        files::write(&key_path, &pair.key)?;
        files::write(&certificate_path, &pair.certificate)?;
        Ok(pair)
    }

    /// A serving certificate is cheap to replace, so anything unexpected about the old one means: no.
    fn still_serves(
        &self,
        certificate: &str,
        key: &str,
        names: &[String],
        now: OffsetDateTime,
    ) -> bool {
        let Ok(key) = KeyPair::from_pem(key) else {
            return false;
        };
        let Some(der) = first_certificate(certificate) else {
            return false;
        };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
            return false;
        };
        let Some(ca_der) = first_certificate(&self.ca_pem) else {
            return false;
        };
        let Ok((_, ca)) = X509Certificate::from_der(&ca_der) else {
            return false;
        };
        let validity = parsed.validity();
        parsed.public_key().raw == key.subject_public_key_info()
            && parsed.verify_signature(Some(ca.public_key())).is_ok()
            && validity.not_before.to_datetime() <= now
            && validity.not_after.to_datetime() - now > RENEW_BEFORE
            && names.iter().all(|name| carries_name(&parsed, name))
    }

    /// A client certificate: `user` becomes the user's name, `groups` (two at most) its groups.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<PemPair, PkiError> {
        issue::leaf(
            &self.issuer,
            user,
            groups,
            &[],
            Usage::Client,
            OffsetDateTime::now_utc(),
        )
    }

    /// The certificate of cluster administrators; their group passes every authorization check.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn issue_admin(&self) -> Result<PemPair, PkiError> {
        self.issue_client("kubernetes-admin", &["system:masters"])
    }

    /// A node's certificate, with which its kubelet is a client of the API server and serves its own API under `sans`.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn issue_node(&self, node: &str, sans: &[String]) -> Result<PemPair, PkiError> {
        let name = format!("system:node:{node}");
        let now = OffsetDateTime::now_utc();
        issue::leaf(
            &self.issuer,
            &name,
            &["system:nodes"],
            sans,
            Usage::ClientAndServer,
            now,
        )
    }

    /// Signs a certificate signing request that somebody approved.
    ///
    /// # Errors
    /// When it is none, or holds what cannot be signed.
    pub fn sign(&self, request: &SignRequest<'_>) -> Result<String, PkiError> {
        sign::sign(&self.issuer, request, OffsetDateTime::now_utc())
    }

    /// A serving pair that no authority vouches for, until a node has a better one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn self_signed(names: &[String]) -> Result<PemPair, PkiError> {
        issue::self_signed(names, OffsetDateTime::now_utc())
    }

    /// A kubeconfig that reaches `server_url` with the credentials of `pair`.
    pub fn kubeconfig(&self, server_url: &str, pair: &PemPair) -> String {
        kubeconfig::render(server_url, &self.ca_pem, pair)
    }

    /// rustls configuration of the API server that shows `serving` (see [`Pki::serving`]): TLS 1.3, HTTP/2 and HTTP/1.1, asking for
    /// a client certificate without judging its chain (see [`Pki::verify_client`]).
    ///
    /// # Errors
    /// When the serving pair cannot be used.
    pub fn server_config(&self, serving: &PemPair) -> Result<Arc<ServerConfig>, PkiError> {
        // With the authority itself in the chain, a node that knows only its hash can learn it from the handshake.
        let shown = PemPair {
            certificate: format!("{}{}", serving.certificate, self.ca_pem),
            key: serving.key.clone(),
        };
        tls::server_config(&shown, self.client_verifier.clone()).map_err(|source| PkiError::Tls {
            path: self.dir.join("apiserver.crt"),
            source,
        })
    }

    /// Whether the chain that a peer showed was issued by this cluster's CA for clients and is valid at `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify_client(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let Some((end_entity, intermediates)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.client_verifier
            .verify_client_cert(end_entity, intermediates, now)
            .map(|_| ())
    }

    /// The private key that signs service account tokens, PKCS#8 DER.
    pub(crate) fn service_account_pkcs8(&self) -> &[u8] {
        self.service_account_key.serialized_der()
    }

    /// The public key of service account tokens as SubjectPublicKeyInfo DER.
    pub(crate) fn service_account_public(&self) -> Vec<u8> {
        self.service_account_key.subject_public_key_info()
    }
}

fn serving_names(extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> = SERVING_NAMES
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    names.extend(host_name());
    names.extend(
        extra
            .iter()
            .filter(|name| !name.is_empty() && name.is_ascii())
            .cloned(),
    );
    names.sort();
    names.dedup();
    names
}

/// The host's name as the kernel knows it; `None` where it is none or no name for a certificate.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()?
        .trim()
        .to_lowercase();
    let usable = !name.is_empty() && name != "(none)" && name.is_ascii();
    usable.then_some(name)
}

fn load_authority(dir: &Path, now: OffsetDateTime) -> Result<(String, KeyPair), PkiError> {
    let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    let key = match (files::read(&certificate_path)?, files::read(&key_path)?) {
        (Some(certificate), Some(key)) => {
            let key = parse_key(&key_path, &key, MEND_CA)?;
            check_authority(&certificate_path, &certificate, &key, now)?;
            return Ok((certificate, key));
        }
        (Some(_), None) => {
            return Err(damaged(&key_path, "it is missing beside ca.crt", MEND_CA));
        }
        // The key is written first: a crash between the two files leaves a key that nothing was signed with.
        (None, Some(key)) => parse_key(&key_path, &key, MEND_CA)?,
        (None, None) => {
            let key = new_key("kubernetes")?;
            files::write(&key_path, &key.serialize_pem())?;
            key
        }
    };
    let certificate = issue::authority(&key, now)?;
    files::write(&certificate_path, &certificate)?;
    Ok((certificate, key))
}

fn check_authority(
    path: &Path,
    pem: &str,
    key: &KeyPair,
    now: OffsetDateTime,
) -> Result<(), PkiError> {
    let der =
        first_certificate(pem).ok_or_else(|| damaged(path, "it holds no certificate", MEND_CA))?;
    let (_, certificate) = X509Certificate::from_der(&der)
        .map_err(|error| damaged(path, error.to_string(), MEND_CA))?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(damaged(path, "it does not belong to ca.key", MEND_CA));
    }
    if certificate.validity().not_after.to_datetime() < now {
        return Err(damaged(path, "it has expired", MEND_CA));
    }
    Ok(())
}

fn load_service_account_key(dir: &Path) -> Result<KeyPair, PkiError> {
    let (key_path, public_path) = (dir.join("sa.key"), dir.join("sa.pub"));
    let key = match files::read(&key_path)? {
        Some(pem) => parse_key(&key_path, &pem, MEND_SA)?,
        None => {
            let key = new_key("service accounts")?;
            files::write(&key_path, &key.serialize_pem())?;
            key
        }
    };
    // The public half is for others to read; it is never an input.
    let public = key.public_key_pem();
    if files::read(&public_path)?.as_deref() != Some(&public) {
        files::write(&public_path, &public)?;
    }
    Ok(key)
}

fn parse_key(path: &Path, pem: &str, mend: &'static str) -> Result<KeyPair, PkiError> {
    let key = KeyPair::from_pem(pem).map_err(|error| damaged(path, error.to_string(), mend))?;
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(damaged(path, "it is not an ECDSA P-256 key", mend));
    }
    Ok(key)
}

fn new_key(subject: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(|source| PkiError::Issue {
        subject: subject.to_owned(),
        source,
    })
}

fn first_certificate(pem: &str) -> Option<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

fn carries_name(certificate: &X509Certificate<'_>, name: &str) -> bool {
    let Ok(Some(sans)) = certificate.subject_alternative_name() else {
        return false;
    };
    let octets: Option<Vec<u8>> = match name.parse() {
        Ok(std::net::IpAddr::V4(address)) => Some(address.octets().to_vec()),
        Ok(std::net::IpAddr::V6(address)) => Some(address.octets().to_vec()),
        Err(_) => None,
    };
    sans.value
        .general_names
        .iter()
        .any(|san| match (san, &octets) {
            (GeneralName::DNSName(dns), None) => *dns == name,
            (GeneralName::IPAddress(ip), Some(octets)) => ip == octets,
            _ => false,
        })
}
