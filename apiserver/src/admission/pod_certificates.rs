//! Requests for certificates of Pods: that whoever asks has the key, that whoever answers may sign for the signer, and that the
//! certificate is what the status says of it and for the key that was asked for.

use base64::Engine;
use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;
use cox_api::{meta, pem};
use jiff::{SignedDuration, Timestamp};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::certificates::may;
use super::{Operation, Request};
use crate::auth::Authorizer;

/// How far the beginning of a certificate may be from now.
const NEAR: SignedDuration = SignedDuration::from_mins(5);
const OF_RSA: &str = "1.2.840.113549.1.1.1";
const OF_CURVES: &str = "1.2.840.10045.2.1";
const OF_ED25519: &str = "1.3.101.112";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// What is wrong, and with which field.
type Wrong = (&'static str, String);

pub(super) fn validate(request: &Request<'_>, authorizer: &Authorizer) -> Result<(), ApiStatus> {
    let Some(new) = &request.object else {
        return Ok(());
    };
    let checked = match (request.operation, request.subresource) {
        (Operation::Create, "") => key_of(new).map(drop),
        (Operation::Update, "status") => {
            let old = request.old.unwrap_or(&Value::Null);
            if new["status"] == old["status"] {
                return Ok(());
            }
            let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
            if !may(authorizer, request, "sign", signer) {
                return Err(request.forbidden(format!(
                    "user not permitted to sign requests with signerName {signer:?}"
                )));
            }
            issued(new, old, Timestamp::now())
        }
        _ => Ok(()),
    };
    checked.map_err(|(field, why)| {
        let resource = request.resource;
        let error = FieldError::invalid(field, "<value omitted>", why);
        ApiStatus::invalid(
            &resource.group,
            &resource.kind,
            meta::name(new),
            vec![error],
        )
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default()
}

/// The public key of a request (its structure in DER), which the requester has shown to have the other half of.
fn key_of(request: &Value) -> Result<Vec<u8>, Wrong> {
    let spec = &request["spec"];
    let stub = bytes(&spec["stubPKCS10Request"]);
    if stub.is_empty() {
        return key_with_proof(spec);
    }
    let wrong = |why: &str| ("spec.stubPKCS10Request", why.to_owned());
    let parsed = X509CertificationRequest::from_der(&stub);
    let (_, parsed) = parsed.map_err(|_| wrong("must be a valid PKCS#10 CSR"))?;
    let key = &parsed.certification_request_info.subject_pki;
    is_strong(key).map_err(|why| wrong(&why))?;
    parsed
        .verify_signature()
        .map_err(|_| wrong("invalid signature"))?;
    Ok(key.raw.to_vec())
}

/// As kubelets before 1.36 ask: a key, and the Pod's uid signed with it.
fn key_with_proof(spec: &Value) -> Result<Vec<u8>, Wrong> {
    let der = bytes(&spec["pkixPublicKey"]);
    let wrong = |why: &str| ("spec.pkixPublicKey", why.to_owned());
    let parsed = SubjectPublicKeyInfo::from_der(&der);
    let (_, key) = parsed.map_err(|_| wrong("must be a valid PKIX-serialized public key"))?;
    is_strong(&key).map_err(|why| wrong(&why))?;
    let algorithm: &dyn VerificationAlgorithm = match (kind(&key).as_str(), curve(&key).as_str()) {
        (OF_ED25519, _) => &signature::ED25519,
        (OF_CURVES, P256) => &signature::ECDSA_P256_SHA256_ASN1,
        (OF_CURVES, _) => &signature::ECDSA_P384_SHA256_ASN1,
        // Go's salts are as long as they can be, which ring does not take.
        _ => {
            let why = "proofs of RSA keys are not verified here: set stubPKCS10Request instead";
            return Err(("spec.proofOfPossession", why.to_owned()));
        }
    };
    let uid = spec["podUID"].as_str().unwrap_or_default();
    let proof = bytes(&spec["proofOfPossession"]);
    UnparsedPublicKey::new(algorithm, &*key.subject_public_key.data)
        .verify(uid.as_bytes(), &proof)
        .map_err(|_| {
            let why = "could not verify proof-of-possession signature";
            ("spec.proofOfPossession", why.to_owned())
        })?;
    Ok(key.raw.to_vec())
}

fn kind(key: &SubjectPublicKeyInfo<'_>) -> String {
    key.algorithm.algorithm.to_id_string()
}

fn curve(key: &SubjectPublicKeyInfo<'_>) -> String {
    let parameters = key.algorithm.parameters.as_ref();
    let oid = parameters.and_then(|parameters| parameters.as_oid().ok());
    oid.map(|oid| oid.to_id_string()).unwrap_or_default()
}

/// Whether a key is of a kind and size that certificates of Pods have.
fn is_strong(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    match kind(key).as_str() {
        OF_ED25519 => Ok(()),
        // P521 is upstream's too; nothing here can verify what it signed.
        OF_CURVES if [P256, P384].contains(&curve(key).as_str()) => Ok(()),
        OF_CURVES => Err("elliptic public keys must use curve P256 or P384".to_owned()),
        OF_RSA => {
            let bits = key.parsed().map_or(0, |key| key.key_size());
            if [3072, 4096].contains(&bits) {
                Ok(())
            } else {
                Err("RSA keys must have modulus size 3072 or 4096".to_owned())
            }
        }
        _ => Err("unknown public key type; supported types are Ed25519, ECDSA, and RSA".to_owned()),
    }
}

/// Whether the chain of an issued request is one of certificates, the first of which is what was asked for.
fn issued(new: &Value, old: &Value, now: Timestamp) -> Result<(), Wrong> {
    let status = &new["status"];
    let chain = status["certificateChain"].as_str().unwrap_or_default();
    let conditions = status["conditions"].as_array();
    let is_issued = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Issued");
    if !is_issued {
        return Ok(());
    }
    let wrong = |why: &str| ("status.certificateChain", why.to_owned());
    if pem::blocks(chain).any(|block| block.kind != "CERTIFICATE") {
        let why = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
        return Err(wrong(why));
    }
    let chain = pem::blocks(chain).map(|block| block.der().unwrap_or_default());
    let chain: Vec<Vec<u8>> = chain.collect();
    let Some((leaf, others)) = chain.split_first() else {
        return Err(wrong(
            "issued certificate chain must contain at least one certificate",
        ));
    };
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|_| wrong("leaf certificate does not parse as valid X.509"))?;
    if others
        .iter()
        .any(|other| X509Certificate::from_der(other).is_err())
    {
        return Err(wrong(
            "intermediate certificate does not parse as valid X.509",
        ));
    }
    names_are_whole(&leaf).map_err(wrong)?;
    if leaf.public_key().raw != key_of(old)? {
        let why = "leaf certificate was not issued to the requested public key";
        return Err(wrong(why));
    }
    let said = |field: &str| status[field].as_str()?.parse::<Timestamp>().ok();
    let ends = [
        ("status.notBefore", "notBefore", leaf.validity().not_before),
        ("status.notAfter", "notAfter", leaf.validity().not_after),
    ];
    for (path, field, encoded) in ends {
        if said(field).map(Timestamp::as_second) != Some(encoded.timestamp()) {
            let why = format!("must be set to the {field} time encoded in the leaf certificate");
            return Err((path, why));
        }
    }
    let begins = said("notBefore").unwrap_or(Timestamp::MIN);
    if begins.duration_since(now).abs() > NEAR {
        let why = "must be set to within 5 minutes of kube-apiserver's current time";
        return Err(("status.notBefore", why.to_owned()));
    }
    Ok(())
}

/// Names that some who verify certificates read otherwise than others.
fn names_are_whole(leaf: &X509Certificate<'_>) -> Result<(), &'static str> {
    let names = leaf.subject_alternative_name();
    let names = names.map_err(|_| "leaf certificate has alternative names that cannot be read")?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName("") => {
                return Err("leaf certificate should not contain empty DNSName");
            }
            GeneralName::DNSName(name) if name.contains("..") => {
                return Err("leaf certificate's DNSName should not contain '..'");
            }
            GeneralName::DNSName(name) if name.starts_with('.') || name.ends_with('.') => {
                return Err("leaf certificate's DNSName should not start or end with '.'");
            }
            GeneralName::RFC822Name(name) => {
                let sides = name.split_once('@');
                if sides.is_none_or(|(who, at)| who.is_empty() || at.is_empty()) {
                    return Err("leaf certificate should not contain invalid EmailAddress");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};
    use ring::signature::KeyPair as _;
    use serde_json::json;

    fn base64(bytes: &[u8]) -> String {
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    fn stub(key: &KeyPair) -> Value {
        let request = CertificateParams::default().serialize_request(key).unwrap();
        json!({"spec": {"stubPKCS10Request": base64(request.der())}})
    }

    #[test]
    fn a_key_is_that_of_who_signed_the_request() {
        for kind in [
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
        ] {
            let key = KeyPair::generate_for(kind).unwrap();
            let asked = stub(&key);
            assert_eq!(key_of(&asked).unwrap(), key.subject_public_key_info());
            // One byte of the signature is another.
            let mut der = bytes(&asked["spec"]["stubPKCS10Request"]);
            *der.last_mut().unwrap() ^= 1;
            let forged = json!({"spec": {"stubPKCS10Request": base64(&der)}});
            assert_eq!(key_of(&forged).unwrap_err().1, "invalid signature");
        }
        let noise = json!({"spec": {"stubPKCS10Request": base64(b"noise")}});
        assert_eq!(key_of(&noise).unwrap_err().1, "must be a valid PKCS#10 CSR");
    }

    #[test]
    fn a_key_comes_with_the_proof_that_it_is_the_requesters() {
        let pkcs8 =
            signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let pair = signature::Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        // The structure around an Ed25519 key is the same for all of them.
        let mut der = vec![
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        der.extend(pair.public_key().as_ref());
        let asked = |uid: &str| json!({"spec": {"podUID": uid, "pkixPublicKey": base64(&der), "proofOfPossession": base64(pair.sign(b"uid-1").as_ref())}});
        assert_eq!(key_of(&asked("uid-1")).unwrap(), der);
        let why = key_of(&asked("uid-2")).unwrap_err();
        assert_eq!(why.0, "spec.proofOfPossession");
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn what_was_issued_is_what_was_asked_for() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = |key: &KeyPair, names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(2026, 1, 1);
            params.not_after = rcgen::date_time_ymd(2026, 1, 2);
            params.self_signed(key).unwrap().pem()
        };
        let old = stub(&key);
        let status = json!({"conditions": [{"type": "Issued"}], "certificateChain": certificate(&key, &["a.example"]),
            "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2026-01-02T00:00:00Z"});
        let with = |field: &str, value: Value| {
            let mut status = status.clone();
            status[field] = value;
            status
        };
        let other = certificate(&KeyPair::generate().unwrap(), &[]);
        let cases = [
            ("whole", status.clone(), now, ""),
            (
                "denied",
                json!({"conditions": [{"type": "Denied"}]}),
                now,
                "",
            ),
            (
                "for another key",
                with("certificateChain", json!(other)),
                now,
                "requested public key",
            ),
            (
                "no certificate",
                with("certificateChain", json!("")),
                now,
                "at least one certificate",
            ),
            (
                "between notes and with headers",
                with(
                    "certificateChain",
                    json!(format!(
                        "note\n{}note\n",
                        certificate(&key, &[]).replacen('\n', "\nX: y\n\n", 1)
                    )),
                ),
                now,
                "",
            ),
            (
                "a name that begins with a dot",
                with(
                    "certificateChain",
                    json!(certificate(&key, &[".a.example"])),
                ),
                now,
                "start or end with '.'",
            ),
            (
                "a name with two dots",
                with(
                    "certificateChain",
                    json!(certificate(&key, &["a..example"])),
                ),
                now,
                "should not contain '..'",
            ),
            (
                "a key in the chain",
                with(
                    "certificateChain",
                    json!(certificate(&key, &[]) + &key.serialize_pem()),
                ),
                now,
                "entirely of CERTIFICATE",
            ),
            (
                "another end",
                with("notAfter", json!("2026-01-03T00:00:00Z")),
                now,
                "notAfter time encoded",
            ),
            (
                "long ago",
                status.clone(),
                now + SignedDuration::from_mins(6),
                "within 5 minutes",
            ),
        ];
        for (name, status, now, expected) in cases {
            let new = json!({"spec": old["spec"], "status": status});
            let found = issued(&new, &old, now).err().map(|(_, why)| why);
            assert_eq!(
                found.is_none(),
                expected.is_empty(),
                "case: {name}: {found:?}"
            );
            let found = found.unwrap_or_default();
            assert!(found.contains(expected), "case: {name}: {found}");
        }
    }
}
