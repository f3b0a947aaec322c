//! TLS of the kubelet's server: its own certificate, and client certificates that the cluster's authority signed.

use crate::config::Config;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, RwLock};
use tokio_rustls::TlsAcceptor;

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not what was expected in it.
    #[error("{what} is not PEM")]
    Pem {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The clients' authority cannot be used.
    #[error("the authority of client certificates cannot be used")]
    Authority(#[source] rustls::server::VerifierBuilderError),
    /// The serving pair does not fit, or is not supported.
    #[error("the serving certificate or its key cannot be used")]
    Pair(#[source] rustls::Error),
    /// A certificate of the authority cannot be used.
    #[error("a certificate of the authority cannot be used")]
    Root(#[source] rustls::Error),
}

/// The certificate that the server shows; it can be replaced while connections go on.
#[derive(Debug)]
pub(crate) struct Serving(RwLock<Arc<CertifiedKey>>);

impl Serving {
    fn new(certificate_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Arc::new(pair(certificate_pem, key_pem)?))))
    }

    /// Shows another certificate from the next connection on.
    pub(crate) fn replace(&self, certificate_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        let fresh = Arc::new(pair(certificate_pem, key_pem)?);
        *self
            .0
            .write()
            .expect("no panic happens while this lock is held") = fresh;
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self
            .0
            .read()
            .expect("no panic happens while this lock is held");
        Some(shown.clone())
    }
}

fn pair(certificate_pem: &str, key_pem: &str) -> Result<CertifiedKey, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect();
    let chain = chain.map_err(pem("the serving certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(pem("the serving key"))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(TlsError::Pair)
}

/// Builds the acceptor from the configuration. A client need not show a certificate: it may have a token.
pub(crate) fn acceptor(config: &Config) -> Result<(TlsAcceptor, Arc<Serving>), TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
        roots
            .add(certificate.map_err(pem("the authority of client certificates"))?)
            .map_err(TlsError::Root)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Authority)?;
    let serving = Arc::new(Serving::new(
        &config.serving_cert_pem,
        &config.serving_key_pem,
    )?);
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Pair)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving.clone());
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(server)), serving))
}

/// Who a client is, by its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
}

impl Peer {
    /// Whether it may ask for more than health.
    pub(crate) fn may_ask(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
            || matches!(
                self.user.as_str(),
                "kube-apiserver-kubelet-client" | "system:apiserver" | "kube-apiserver"
            )
    }
}

/// Reads the subject of a certificate: the common name is the user, organizations are groups.
pub(crate) fn peer(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok().map(str::to_owned))
        .collect();
    Some(Peer { user, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_server_and_masters_may_ask() {
        let cases = [
            ("kube-apiserver-kubelet-client", "", true),
            ("anybody", "system:masters", true),
            ("system:node:node-2", "system:nodes", false),
        ];
        for (user, group, expected) in cases {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, user);
            if !group.is_empty() {
                params
                    .distinguished_name
                    .push(rcgen::DnType::OrganizationName, group);
            }
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let peer = peer(certificate.der()).unwrap();
            assert_eq!((peer.user.as_str(), peer.may_ask()), (user, expected));
        }
    }
}
