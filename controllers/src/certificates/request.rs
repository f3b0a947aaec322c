//! What stands in a certificate signing request. Pure.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// The subject and the names of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<String>,
    /// Names of other kinds: mail addresses, URIs.
    pub(super) others: usize,
}

impl Asked {
    /// Reads it; `None`: it is no request.
    pub(super) fn read(request: &CertificateSigningRequest) -> Option<Self> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(&request.spec.request.0).ok()?;
        let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).ok()?;
        let subject = &parsed.certification_request_info.subject;
        let mut asked = Self {
            common_name: subject
                .iter_common_name()
                .next()
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            organizations: subject
                .iter_organization()
                .filter_map(|name| name.as_str().ok().map(str::to_owned))
                .collect(),
            ..Self::default()
        };
        for extension in parsed.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => asked.dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(address) => asked.ips.push(address),
                        None => asked.others += 1,
                    },
                    _ => asked.others += 1,
                }
            }
        }
        Some(asked)
    }

    /// The node that the subject is, if it is one.
    pub(super) fn node(&self) -> Option<&str> {
        let name = self.common_name.strip_prefix("system:node:")?;
        (self.organizations == ["system:nodes"] && !name.is_empty()).then_some(name)
    }

    pub(super) fn has_names(&self) -> bool {
        !self.dns.is_empty() || !self.ips.is_empty() || self.others > 0
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(address.to_string())
}
