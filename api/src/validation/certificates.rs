//! CertificateSigningRequests.

use super::FieldError;
use super::node::{Errors, Node};
use crate::names;
use base64::Engine;
use std::collections::HashSet;

const EXPIRATION_SECS_MIN: i64 = 600;
const SIGNER_BYTES_MAX: usize = 571;
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
fn signer_name(name: &Node<'_>, errors: &mut Errors) {
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
