//! CertificateSigningRequests, ClusterTrustBundles.

use super::FieldError;
use super::node::{Errors, Node};
use crate::{names, pem};
use base64::Engine;
use std::collections::HashSet;

const EXPIRATION_SECS_MIN: i64 = 600;
const SIGNER_BYTES_MAX: usize = 571;
/// All certificates of a trust bundle together.
const BUNDLE_BYTES_MAX: usize = 1 << 20;
/// What every certificate begins with.
const DER_SEQUENCE: u8 = 0x30;
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that decide a request; they are never taken back, and only `/approval` adds the first two.
const DECISIONS: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Rules of a new request.
pub(super) fn create(request: &Node<'_>, errors: &mut Errors) {
    let spec = request.get("spec");
    if spec.len("usages") == 0 {
        spec.get("usages").required("", errors);
    }
    if !is_request(spec.text("request")) {
        let why = "PEM block type must be CERTIFICATE REQUEST";
        let given = spec.get("request").value.clone();
        errors.push(FieldError::invalid("spec.request", given, why));
    }
    let signer = spec.get("signerName");
    if signer.as_text().is_empty() {
        signer.required("", errors);
    } else {
        signer_name(&signer, errors);
    }
    if spec
        .int("expirationSeconds")
        .is_some_and(|secs| secs < EXPIRATION_SECS_MIN)
    {
        spec.get("expirationSeconds").invalid(
            "may not specify a duration less than 600 seconds (10 minutes)",
            errors,
        );
    }
    let mut taken = HashSet::new();
    for usage in spec.items("usages") {
        usage.supported(&USAGES, errors);
        if !taken.insert(usage.as_text()) {
            usage.duplicate(errors);
        }
    }
    conditions(request, errors);
}

fn is_request(base64: &str) -> bool {
    let pem = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .unwrap_or_default();
    String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----")
}

/// `domain/path` with a domain of two parts or more.
pub(super) fn signer_name(name: &Node<'_>, errors: &mut Errors) {
    let text = name.as_text();
    let mut wrong = |why: String| errors.push(FieldError::invalid(name.path(), text, why));
    let Some((domain, path)) = text.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        wrong(
            "must be a fully qualified domain and path of the form 'example.com/signer-name'"
                .to_owned(),
        );
        return;
    };
    for label in domain.split('.') {
        for detail in names::dns_label(label) {
            wrong(format!("validating label \"{label}\": {detail}"));
        }
    }
    if domain.split('.').count() < 2 {
        wrong("should be a domain with at least two segments separated by dots".to_owned());
    }
    for label in path.split('.') {
        for detail in names::dns_label(label) {
            wrong(format!("validating label \"{label}\": {detail}"));
        }
    }
    if text.len() > SIGNER_BYTES_MAX {
        errors.push(FieldError::too_long(name.path(), SIGNER_BYTES_MAX));
    }
}

fn conditions(request: &Node<'_>, errors: &mut Errors) {
    let status = request.get("status");
    let mut taken = HashSet::new();
    for condition in status.items("conditions") {
        let kind = condition.get("type");
        if kind.as_text().is_empty() {
            kind.required("", errors);
        }
        let state = condition.get("status");
        match state.as_text() {
            "" => state.required("", errors),
            // A decision is made or not there at all.
            _ if DECISIONS.contains(&kind.as_text()) => state.supported(&["True"], errors),
            _ => state.supported(&["True", "False", "Unknown"], errors),
        }
        if !taken.insert(condition.text("type")) {
            errors.push(FieldError::duplicate(kind.path(), kind.as_text()));
        }
    }
    if taken.contains("Approved") && taken.contains("Denied") {
        status.get("conditions").invalid(
            "Approved and Denied conditions are mutually exclusive",
            errors,
        );
    }
}

fn of_type(request: &Node<'_>, kind: &str) -> usize {
    let status = request.get("status");
    status
        .items("conditions")
        .filter(|c| c.text("type") == kind)
        .count()
}

fn kept(new: &Node<'_>, old: &Node<'_>, may_add: &[&str], errors: &mut Errors) {
    for kind in DECISIONS {
        let (now, before) = (of_type(new, kind), of_type(old, kind));
        if now < before {
            let why = format!("updates may not remove a condition of type \"{kind}\"");
            errors.push(FieldError::forbidden("status.conditions", why));
        } else if now > before && !may_add.contains(&kind) {
            let why = format!("updates may not add a condition of type \"{kind}\"");
            errors.push(FieldError::forbidden("status.conditions", why));
        }
    }
}

/// Rules of an update of the main endpoint.
pub(super) fn update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    kept(new, old, &[], errors);
}

/// Rules of an update through `/status`: what signs may say that it failed, and nothing about approval.
pub(super) fn update_status(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    conditions(new, errors);
    kept(new, old, &["Failed"], errors);
    let certificate = |request: &Node<'_>| request.get("status").text("certificate").to_owned();
    if !certificate(old).is_empty() && certificate(new) != certificate(old) {
        let value = certificate(new);
        errors.push(FieldError::invalid(
            "status.certificate",
            value,
            "field is immutable",
        ));
    }
}

/// Rules of an update through `/approval`.
pub(super) fn update_approval(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    conditions(new, errors);
    kept(new, old, &["Approved", "Denied"], errors);
}

/// Rules of a new trust bundle.
pub(super) fn bundle(bundle: &Node<'_>, errors: &mut Errors) {
    let spec = bundle.get("spec");
    let signer = spec.get("signerName");
    if !signer.as_text().is_empty() {
        signer_name(&signer, errors);
    }
    let text = spec.text("trustBundle");
    if text.len() > BUNDLE_BYTES_MAX {
        errors.push(FieldError::too_long("spec.trustBundle", BUNDLE_BYTES_MAX));
        return;
    }
    let wrong = anchors(text).into_iter();
    errors.extend(wrong.map(|why| FieldError::invalid("spec.trustBundle", "<value omitted>", why)));
}

/// Rules of an update of a trust bundle: what was taken before is not looked at again.
pub(super) fn bundle_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    if new.get("spec").differs(&old.get("spec"), "trustBundle") {
        bundle(new, errors);
    }
    new.get("spec").same(&old.get("spec"), "signerName", errors);
}

/// What is wrong with the blocks of a PEM file of certificates. Whether what they hold is a certificate is not looked at.
fn anchors(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for (index, block) in pem::blocks(text).enumerate() {
        if block.kind != "CERTIFICATE" {
            wrong.push(format!("entry {index} has bad block type: {}", block.kind));
        } else if block.has_headers {
            wrong.push(format!("entry {index} has PEM block headers"));
        } else {
            match block.der() {
                Some(der) if der.first() == Some(&DER_SEQUENCE) => seen.push(der),
                Some(_) | None => wrong.push(format!("entry {index} does not parse as X.509")),
            }
        }
    }
    if !wrong.is_empty() {
        return wrong;
    }
    if seen.is_empty() {
        wrong.push("at least one trust anchor must be provided".to_owned());
    }
    for (index, anchor) in seen.iter().enumerate() {
        let alike = (0..seen.len()).filter(|other| seen[*other] == *anchor);
        let alike: Vec<String> = alike.map(|other| other.to_string()).collect();
        if alike.len() > 1 && alike[0] == index.to_string() {
            wrong.push(format!(
                "duplicate trust anchor (indices [{}])",
                alike.join(" ")
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_table() {
        let block = |kind: &str, body: &str| {
            format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
        };
        let (one, other) = (
            block("CERTIFICATE", "MAMCAQE="),
            block("CERTIFICATE", "MAMC\nAQI="),
        );
        let cases = [
            ("two", format!("a note\n{one}{other}"), ""),
            (
                "none",
                "a note".to_owned(),
                "at least one trust anchor must be provided",
            ),
            (
                "the same twice",
                format!("{one}{other}{one}"),
                "duplicate trust anchor (indices [0 2])",
            ),
            (
                "a key",
                one.clone() + &block("PRIVATE KEY", "MAMCAQE="),
                "entry 1 has bad block type: PRIVATE KEY",
            ),
            (
                "headers",
                block("CERTIFICATE", "Proc-Type: 4\n\nMAMCAQE="),
                "entry 0 has PEM block headers",
            ),
            (
                "no base64",
                block("CERTIFICATE", "?"),
                "entry 0 does not parse as X.509",
            ),
            (
                "no certificate",
                block("CERTIFICATE", "AAAA"),
                "entry 0 does not parse as X.509",
            ),
        ];
        for (name, text, expected) in cases {
            assert_eq!(anchors(&text).join("; "), expected, "case: {name}");
        }
    }
}
