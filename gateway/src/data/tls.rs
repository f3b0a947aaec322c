//! Certificates: which one a client is shown, how a Secret becomes one, and the one for hosts that have none.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Plane;
use crate::table::Port;

/// Why a Secret is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("its tls.crt holds no certificate")]
    Certificate,
    #[error("its tls.key holds no private key")]
    Key,
    #[error("its tls.key does not belong to its tls.crt, or is of an unknown kind")]
    Pair,
}

/// A certificate with its key, from PEM.
pub(crate) fn pair(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|_| TlsError::Certificate)?;
    if chain.is_empty() {
        return Err(TlsError::Certificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key)?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|_| TlsError::Pair)
}

/// One that nobody trusts, for hosts that have none: who asks learns at least that somebody is there.
pub(crate) fn self_signed() -> Option<Arc<CertifiedKey>> {
    let made = rcgen::generate_simple_self_signed(["coxswain.invalid".to_owned()]).ok()?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let chain = vec![made.cert.der().clone()];
    let pair = CertifiedKey::from_der(chain, key.into(), &ring::default_provider()).ok()?;
    Some(Arc::new(pair))
}

/// Shows each client the certificate that the present table has for the name it asks for.
#[derive(Debug)]
struct Resolver {
    plane: Arc<Plane>,
    port: Port,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.plane.table.load();
        let port = table.ports.get(&self.port)?;
        let named = hello.server_name().map(str::to_ascii_lowercase);
        let certificate = named
            .as_deref()
            .and_then(|name| port.certificates.get(name));
        certificate.or(port.default_certificate.as_ref()).cloned()
    }
}

/// The server's end of TLS on a port.
pub(crate) fn acceptor(plane: Arc<Plane>, port: Port) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver { plane, port }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The client's end towards Pods. They have no names that a certificate could prove: what is on the way is encrypted, no more.
pub(crate) fn to_backends(alpn: &[&[u8]]) -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions of TLS")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unnamed { algorithms }))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Takes any certificate whose owner has its key.
#[derive(Debug)]
struct Unnamed {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Unnamed {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_certificate() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        assert!(pair(certificate.as_bytes(), key.as_bytes()).is_ok());
        for (case, certificate, key, expected) in [
            (
                "nothing",
                "",
                key.as_str(),
                "its tls.crt holds no certificate",
            ),
            (
                "no key",
                &certificate,
                "none",
                "its tls.key holds no private key",
            ),
            (
                "another's key",
                &certificate,
                &other.signing_key.serialize_pem(),
                "its tls.key does not belong to its tls.crt, or is of an unknown kind",
            ),
        ] {
            let error = pair(certificate.as_bytes(), key.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{case}");
        }
        assert!(self_signed().is_some());
    }
}
