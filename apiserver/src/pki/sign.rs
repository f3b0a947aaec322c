//! Signs what others ask for by a certificate signing request. Whether they may have it is not decided here.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use std::time::Duration;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::error::PkiError;
use super::issue;

/// What a certificate is wanted for.
#[derive(Clone, Debug)]
pub struct SignRequest<'a> {
    /// The request, PEM.
    pub request_pem: &'a str,
    /// The usages of `certificates.k8s.io`, such as `client auth`.
    pub usages: &'a [String],
    /// How long it is valid; never longer than a year.
    pub valid_for: Duration,
}

/// Signs the public key, the subject and the names of a request; its extensions for anything else are left out.
pub(super) fn sign(
    issuer: &Issuer<'_, KeyPair>,
    wanted: &SignRequest<'_>,
    now: OffsetDateTime,
) -> Result<String, PkiError> {
    let refused = |reason: String| PkiError::Request { reason };
    let mut parsed = CertificateSigningRequestParams::from_pem(wanted.request_pem)
        .map_err(|error| refused(error.to_string()))?;
    let (common_name, groups) = subject(wanted.request_pem).map_err(refused)?;
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut params: CertificateParams = issue::base(&common_name, &groups, now, 0)?;
    let longest = time::Duration::days(issue::LEAF_DAYS);
    let wished = time::Duration::try_from(wanted.valid_for).unwrap_or(longest);
    params.not_after = now + wished.min(longest);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = std::mem::take(&mut parsed.params.subject_alt_names);
    for usage in wanted.usages {
        match purpose(usage).ok_or_else(|| refused(format!("usage \"{usage}\" is not known")))? {
            Purpose::Key(usage) => params.key_usages.push(usage),
            Purpose::Extended(usage) => params.extended_key_usages.push(usage),
        }
    }
    parsed.params = params;
    let certificate = parsed
        .signed_by(issuer)
        .map_err(|error| refused(error.to_string()))?;
    Ok(certificate.pem())
}

enum Purpose {
    Key(KeyUsagePurpose),
    Extended(ExtendedKeyUsagePurpose),
}

fn purpose(usage: &str) -> Option<Purpose> {
    Some(match usage {
        "signing" | "digital signature" => Purpose::Key(KeyUsagePurpose::DigitalSignature),
        "content commitment" => Purpose::Key(KeyUsagePurpose::ContentCommitment),
        "key encipherment" => Purpose::Key(KeyUsagePurpose::KeyEncipherment),
        "key agreement" => Purpose::Key(KeyUsagePurpose::KeyAgreement),
        "data encipherment" => Purpose::Key(KeyUsagePurpose::DataEncipherment),
        "any" => Purpose::Extended(ExtendedKeyUsagePurpose::Any),
        "server auth" => Purpose::Extended(ExtendedKeyUsagePurpose::ServerAuth),
        "client auth" => Purpose::Extended(ExtendedKeyUsagePurpose::ClientAuth),
        "code signing" => Purpose::Extended(ExtendedKeyUsagePurpose::CodeSigning),
        "email protection" | "s/mime" => {
            Purpose::Extended(ExtendedKeyUsagePurpose::EmailProtection)
        }
        "timestamping" => Purpose::Extended(ExtendedKeyUsagePurpose::TimeStamping),
        "ocsp signing" => Purpose::Extended(ExtendedKeyUsagePurpose::OcspSigning),
        _ => return None,
    })
}

/// Common name and organizations. Anything else in a subject would be lost, so it is an error.
fn subject(request_pem: &str) -> Result<(String, Vec<String>), String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(request_pem.as_bytes())
        .map_err(|error| error.to_string())?;
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    let subject = &request.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute
            .as_str()
            .map(str::to_owned)
            .map_err(|error| error.to_string())
    };
    let names: Vec<String> = subject
        .iter_common_name()
        .map(text)
        .collect::<Result<_, _>>()?;
    let groups: Vec<String> = subject
        .iter_organization()
        .map(text)
        .collect::<Result<_, _>>()?;
    if subject.iter_attributes().count() != names.len() + groups.len() || names.len() > 1 {
        return Err("only one common name and organizations can be signed in a subject".to_owned());
    }
    Ok((names.into_iter().next().unwrap_or_default(), groups))
}

/// A request for a certificate: its key and the request, both PEM.
#[derive(Clone)]
pub struct Asked {
    /// The private key, which stays with whoever asks.
    pub key_pem: String,
    /// What goes to the signer.
    pub request_pem: String,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

/// Makes a key and a request for it. `names` are host names or addresses.
///
/// # Errors
/// When the request cannot be made.
pub fn ask(common_name: &str, groups: &[&str], names: &[String]) -> Result<Asked, PkiError> {
    let refused = |error: rcgen::Error| PkiError::Request {
        reason: error.to_string(),
    };
    let key = KeyPair::generate().map_err(refused)?;
    let mut params = CertificateParams::default();
    let mut subject = rcgen::DistinguishedName::new();
    for group in groups {
        subject.push(DnType::OrganizationName, *group);
    }
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.subject_alt_names = issue::sans(names);
    let request = params.serialize_request(&key).map_err(refused)?;
    Ok(Asked {
        key_pem: key.serialize_pem(),
        request_pem: request.pem().map_err(refused)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::X509Certificate;

    #[test]
    fn a_request_is_signed_for_what_was_approved_and_no_longer_than_a_year() {
        let key = KeyPair::generate().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let ca = issue::authority(&key, now).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
        let names = ["n".to_owned(), "10.0.0.1".to_owned()];
        let asked = ask("system:node:n", &["system:nodes"], &names).unwrap();
        let usages = ["digital signature".to_owned(), "server auth".to_owned()];
        let request = SignRequest {
            request_pem: &asked.request_pem,
            usages: &usages,
            valid_for: Duration::from_secs(10 * 365 * 86_400),
        };
        let pem = sign(&issuer, &request, now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, signed) = X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(
            signed.subject().to_string(),
            "O=system:nodes, CN=system:node:n"
        );
        let days = (signed.validity().not_after.timestamp() - now.unix_timestamp()) / 86_400;
        assert_eq!(days, 365);
        let usage = signed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        assert!(!signed.is_ca());
        let names = signed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        let strange = SignRequest {
            usages: &["magic".to_owned()],
            ..request
        };
        assert!(sign(&issuer, &strange, now).is_err());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let now = OffsetDateTime::now_utc();
        let ca = issue::authority(&key, now).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
        let request = SignRequest {
            request_pem: "no request",
            usages: &[],
            valid_for: Duration::from_secs(600),
        };
        assert!(sign(&issuer, &request, now).is_err());
    }
}
