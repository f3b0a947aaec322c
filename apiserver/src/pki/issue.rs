//! Certificates that the cluster CA issues: what stands in them. No files here.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::PemPair;
use super::error::PkiError;

/// How long the CA lives; as kubeadm's.
const CA_DAYS: i64 = 3650;
/// How long everything else lives; as kubeadm's.
pub(super) const LEAF_DAYS: i64 = 365;
/// Certificates start a little in the past, for clients whose clocks are behind.
const BACKDATE: Duration = Duration::hours(1);

/// The object identifier of organizationName. rcgen keeps one value per attribute type, and takes this spelling for
/// another type, which is how a second group fits in.
const ORGANIZATION_OID: [u64; 4] = [2, 5, 4, 10];

/// What a leaf certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// Authenticates a client.
    Client,
    /// Authenticates a server.
    Server,
    /// Both, as nodes need.
    ClientAndServer,
}

/// A self-signed certificate authority over `key`.
pub(super) fn authority(key: &KeyPair, now: OffsetDateTime) -> Result<String, PkiError> {
    let mut params = base("kubernetes", &[], now, CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.subject_alt_names = sans(&["kubernetes".to_owned()]);
    let certificate = params
        .self_signed(key)
        .map_err(|source| issue_error("kubernetes", source))?;
    Ok(certificate.pem())
}

/// A new key and its certificate, signed by `issuer`.
pub(super) fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    common_name: &str,
    groups: &[&str],
    names: &[String],
    usage: Usage,
    now: OffsetDateTime,
) -> Result<PemPair, PkiError> {
    let mut params = base(common_name, groups, now, LEAF_DAYS)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::ClientAndServer => vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ],
    };
    params.subject_alt_names = sans(names);
    let key = KeyPair::generate().map_err(|source| issue_error(common_name, source))?;
    let certificate = params
        .signed_by(&key, issuer)
        .map_err(|source| issue_error(common_name, source))?;
    Ok(PemPair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// A pair that vouches for itself.
pub(super) fn self_signed(names: &[String], now: OffsetDateTime) -> Result<PemPair, PkiError> {
    let subject = names.first().map_or("node", String::as_str);
    let failed = |source| issue_error(subject, source);
    let mut params = base(subject, &[], now, LEAF_DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = sans(names);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(PemPair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

pub(super) fn base(
    common_name: &str,
    groups: &[&str],
    now: OffsetDateTime,
    days: i64,
) -> Result<CertificateParams, PkiError> {
    let mut subject = DistinguishedName::new();
    let spellings = [
        DnType::OrganizationName,
        DnType::CustomDnType(ORGANIZATION_OID.to_vec()),
    ];
    if groups.len() > spellings.len() {
        return Err(PkiError::TooManyGroups {
            subject: common_name.to_owned(),
            groups: groups.len(),
        });
    }
    for (spelling, group) in spellings.into_iter().zip(groups) {
        subject.push(spelling, *group);
    }
    subject.push(DnType::CommonName, common_name);

    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f; // a serial number is positive
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// Names as certificates carry them; a name that is neither an address nor ASCII is left out, as no client could ask for it.
pub(super) fn sans(names: &[String]) -> Vec<SanType> {
    names
        .iter()
        .filter_map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Some(SanType::IpAddress(address)),
            Err(_) => name.as_str().try_into().ok().map(SanType::DnsName),
        })
        .collect()
}

fn issue_error(subject: &str, source: rcgen::Error) -> PkiError {
    PkiError::Issue {
        subject: subject.to_owned(),
        source,
    }
}
