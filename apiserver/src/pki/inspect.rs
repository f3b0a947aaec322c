//! Looks into certificates: how long they hold, what for, and which key they carry.

use sha2::{Digest, Sha256};
use std::fmt::Write;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What of a certificate matters to whoever keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Seconds since 1970 from which it holds.
    pub not_before: i64,
    /// Seconds since 1970 until which it holds.
    pub not_after: i64,
    /// The common name.
    pub common_name: String,
    /// Whether it may be shown by a server.
    pub is_for_servers: bool,
}

/// Looks into the first certificate of a PEM text; `None`: there is none.
#[must_use]
pub fn inspect(pem: &str) -> Option<Inspected> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&pem.contents).ok()?;
    let usage = parsed.extended_key_usage().ok().flatten();
    let common_name = parsed.subject().iter_common_name().next();
    Some(Inspected {
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        common_name: common_name
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned(),
        is_for_servers: usage.is_some_and(|usage| usage.value.server_auth),
    })
}

/// The hash by which a join token names the cluster's authority: SHA-256 of its public key, in hexadecimal, as kubeadm's.
#[must_use]
pub fn key_hash(der: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let digest = Sha256::digest(parsed.public_key().raw);
    Some(digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn the_authority_is_known_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let pki = super::super::Pki::load_or_create(dir.path()).unwrap();
        let der = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap();
        assert_eq!(key_hash(&der).unwrap().len(), 64);
        assert_eq!(key_hash(b"x"), None);
        let node = pki.issue_node("n", &["n".to_owned()]).unwrap();
        let seen = inspect(&node.certificate).unwrap();
        assert_eq!(
            (seen.common_name.as_str(), seen.is_for_servers),
            ("system:node:n", true)
        );
        assert!(seen.not_after - seen.not_before > 364 * 86_400);
        let user = pki.issue_client("u", &[]).unwrap();
        assert!(!inspect(&user.certificate).unwrap().is_for_servers);
    }
}
