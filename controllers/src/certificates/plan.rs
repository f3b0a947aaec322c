//! What a certificate signing request needs next. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;

use super::request::Asked;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// A certificate's life unless the request names another, and the shortest.
const VALID_FOR: Duration = Duration::from_secs(365 * 86_400);
const VALID_FOR_MIN: Duration = Duration::from_secs(600);
/// Upstream keeps what was signed or denied for an hour, and what nobody decides for a day.
const KEEP_DECIDED: SignedDuration = SignedDuration::from_hours(1);
const KEEP_PENDING: SignedDuration = SignedDuration::from_hours(24);
/// When a request that could not be decided is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What a node wants a certificate for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be known to the API server; of itself: by the certificate that it has.
    Client {
        /// The requester is the node that the certificate names.
        of_itself: bool,
    },
    /// To answer the API server.
    Serving {
        /// Which node.
        node: String,
    },
}

/// Why a request was approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Approval {
    pub(super) reason: &'static str,
    pub(super) message: &'static str,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is another's.
    Nothing,
    /// It may be old by then.
    LookAgain(Duration),
    /// It is over.
    Delete,
    /// It may be one that is approved here.
    Decide(Purpose),
    /// It was approved.
    Sign {
        /// The life of the certificate.
        valid_for: Duration,
    },
}

pub(super) fn next(request: &CertificateSigningRequest, now: Timestamp) -> Next {
    let has = |kind: &str| {
        let status = request.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .find(|one| one.type_ == kind && one.status == "True")
    };
    let is_signed = request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|certificate| !certificate.0.is_empty());
    let (approved, denied, failed) = (has("Approved"), has("Denied"), has("Failed"));
    let decided = denied.or(failed).or(approved.filter(|_| is_signed));
    let (since, keep) = match decided {
        Some(decided) => (decided.last_update_time.as_ref(), KEEP_DECIDED),
        None => (request.metadata.creation_timestamp.as_ref(), KEEP_PENDING),
    };
    let age = since.map_or(SignedDuration::ZERO, |since| now.duration_since(since.0));
    if age >= keep {
        return Next::Delete;
    }
    let until_old = Duration::try_from(keep - age).unwrap_or(LOOK_AGAIN);
    if decided.is_some() {
        return Next::LookAgain(until_old);
    }
    let signer = request.spec.signer_name.as_str();
    if ![CLIENT, NODE_CLIENT, NODE_SERVING, LEGACY].contains(&signer) {
        return Next::Nothing;
    }
    if approved.is_some() {
        return Next::Sign {
            valid_for: valid_for(request),
        };
    }
    match purpose(request) {
        Some(purpose) => Next::Decide(purpose),
        None => Next::LookAgain(until_old),
    }
}

fn valid_for(request: &CertificateSigningRequest) -> Duration {
    let wished = request.spec.expiration_seconds;
    let wished = wished.and_then(|secs| u64::try_from(secs).ok());
    wished.map_or(VALID_FOR, |secs| {
        Duration::from_secs(secs).clamp(VALID_FOR_MIN, VALID_FOR)
    })
}

/// Whether a request has all of `needed` and nothing but these and key encipherment.
fn has_usages(request: &CertificateSigningRequest, needed: &[&str]) -> bool {
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    needed
        .iter()
        .all(|usage| usages.iter().any(|has| has == usage))
        && usages
            .iter()
            .all(|usage| usage == "key encipherment" || needed.contains(&usage.as_str()))
}

fn purpose(request: &CertificateSigningRequest) -> Option<Purpose> {
    let asked = Asked::read(request)?;
    let node = asked.node()?;
    let is_own = request.spec.username.as_deref() == Some(asked.common_name.as_str());
    fits_signer(request).ok()?;
    match request.spec.signer_name.as_str() {
        NODE_CLIENT => Some(Purpose::Client { of_itself: is_own }),
        NODE_SERVING if is_own => Some(Purpose::Serving {
            node: node.to_owned(),
        }),
        _ => None,
    }
}

/// Whether the request is of the form that its signer signs.
pub(super) fn fits_signer(request: &CertificateSigningRequest) -> Result<(), String> {
    let asked = Asked::read(request).ok_or("the request cannot be read")?;
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let complain = |why: &str| Err(why.to_owned());
    match request.spec.signer_name.as_str() {
        CLIENT => {
            let allowed = ["client auth", "digital signature", "key encipherment"];
            if !usages.iter().any(|usage| usage == "client auth") {
                return complain("usages must include client auth");
            }
            if !usages.iter().all(|usage| allowed.contains(&usage.as_str())) {
                return complain("usages hold more than a client's");
            }
            Ok(())
        }
        NODE_CLIENT => {
            if asked.node().is_none() {
                return complain("subject is not that of a node");
            }
            if asked.has_names() {
                return complain("subject alternative names are not allowed");
            }
            if !has_usages(request, &["client auth", "digital signature"]) {
                return complain("usages did not match those of a node's client certificate");
            }
            Ok(())
        }
        NODE_SERVING => {
            if asked.node().is_none() {
                return complain("subject is not that of a node");
            }
            if asked.dns.is_empty() && asked.ips.is_empty() {
                return complain("dns or ip subject alternative name is required");
            }
            if asked.others > 0 {
                return complain("mail addresses and URIs are not allowed");
            }
            if !has_usages(request, &["server auth", "digital signature"]) {
                return complain("usages did not match those of a node's serving certificate");
            }
            Ok(())
        }
        LEGACY => Ok(()),
        signer => Err(format!("signer {signer} is another's")),
    }
}

/// Whether a request names nothing but the addresses of the node.
pub(super) fn names_only(request: &CertificateSigningRequest, node: &Node) -> bool {
    let Some(asked) = Asked::read(request) else {
        return false;
    };
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let has = |name: &String| addresses.iter().any(|address| &address.address == name);
    let is_name = |name: &String| has(name) || node.metadata.name.as_ref() == Some(name);
    asked.ips.iter().all(has) && asked.dns.iter().all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    /// A request with the given subject and names.
    fn pem(common_name: &str, organization: &str, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::CommonName, common_name);
        subject.push(rcgen::DnType::OrganizationName, organization);
        let key = rcgen::KeyPair::generate().unwrap();
        let request = params.serialize_request(&key).unwrap();
        request.pem().unwrap().into_bytes()
    }

    fn request(
        signer: &str,
        usages: &[&str],
        pem: Vec<u8>,
        status: Value,
    ) -> CertificateSigningRequest {
        let mut request: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"signerName": signer, "usages": usages, "username": "system:node:n", "request": ""},
            "status": status,
        }))
        .unwrap();
        request.spec.request = ByteString(pem);
        request
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn requests_table() {
        let client = ["client auth", "digital signature"];
        let serving = ["server auth", "digital signature", "key encipherment"];
        let node = || pem("system:node:n", "system:nodes", &[]);
        let own = Next::Decide(Purpose::Client { of_itself: true });
        let old = Next::LookAgain(Duration::from_secs(86_340));
        let cases = [
            (
                "a node renews its own",
                request(NODE_CLIENT, &client, node(), json!({})),
                own.clone(),
            ),
            (
                "another's name has to be allowed as such",
                request(
                    NODE_CLIENT,
                    &client,
                    pem("system:node:m", "system:nodes", &[]),
                    json!({}),
                ),
                Next::Decide(Purpose::Client { of_itself: false }),
            ),
            (
                "not with names",
                request(
                    NODE_CLIENT,
                    &client,
                    pem("system:node:n", "system:nodes", &["n"]),
                    json!({}),
                ),
                old.clone(),
            ),
            (
                "not in another group",
                request(
                    NODE_CLIENT,
                    &client,
                    pem("system:node:n", "system:masters", &[]),
                    json!({}),
                ),
                old.clone(),
            ),
            (
                "not for more than a client",
                request(
                    NODE_CLIENT,
                    &["client auth", "digital signature", "server auth"],
                    node(),
                    json!({}),
                ),
                old.clone(),
            ),
            (
                "a serving certificate",
                request(
                    NODE_SERVING,
                    &serving,
                    pem("system:node:n", "system:nodes", &["n"]),
                    json!({}),
                ),
                Next::Decide(Purpose::Serving { node: "n".into() }),
            ),
            (
                "only for itself",
                request(
                    NODE_SERVING,
                    &serving,
                    pem("system:node:m", "system:nodes", &["m"]),
                    json!({}),
                ),
                old,
            ),
            (
                "another signer's",
                request("example.com/own", &client, node(), json!({})),
                Next::Nothing,
            ),
            (
                "approved",
                request(
                    CLIENT,
                    &client,
                    node(),
                    json!({"conditions": [{"type": "Approved", "status": "True"}]}),
                ),
                Next::Sign {
                    valid_for: VALID_FOR,
                },
            ),
            (
                "signed",
                request(
                    CLIENT,
                    &client,
                    node(),
                    json!({"certificate": "eA==", "conditions": [
                        {"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T00:00:00Z"}]}),
                ),
                Next::LookAgain(Duration::from_secs(3540)),
            ),
            (
                "denied long ago",
                request(
                    CLIENT,
                    &client,
                    node(),
                    json!({"conditions": [{"type": "Denied", "status": "True", "lastUpdateTime": "2025-12-31T23:00:00Z"}]}),
                ),
                Next::Delete,
            ),
        ];
        for (name, request, expected) in cases {
            let found = next(&request, at("2026-01-01T00:01:00Z"));
            assert_eq!(found, expected, "case: {name}");
        }
        let pending = request(NODE_CLIENT, &client, node(), json!({}));
        assert_eq!(next(&pending, at("2026-01-02T00:00:00Z")), Next::Delete);
    }

    #[test]
    fn a_serving_certificate_names_only_its_node() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "host"}]}}))
        .unwrap();
        let cases = [
            (&["n", "host", "10.0.0.1"][..], true),
            (&["n", "10.0.0.2"], false),
            (&["other"], false),
        ];
        for (names, expected) in cases {
            let pem = pem("system:node:n", "system:nodes", names);
            let request = request(NODE_SERVING, &[], pem, json!({}));
            assert_eq!(names_only(&request, &node), expected, "{names:?}");
        }
    }
}
