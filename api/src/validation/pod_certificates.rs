//! PodCertificateRequests. What is in keys, requests and certificates is admission's part, which can read them.

use super::FieldError;
use super::certificates::signer_name;
use super::conditions;
use super::meta;
use super::node::{Errors, Node};
use crate::names;
use jiff::{SignedDuration, Timestamp};

const UID_BYTES_MAX: usize = 128;
/// Keys, requests and proofs, decoded.
const KEY_BYTES_MAX: usize = 10 * 1024;
const CHAIN_BYTES_MAX: usize = 100 * 1024;
const LIFE_SECS_MIN: i64 = 3600;
const LIFE_SECS_MAX: i64 = 91 * 86_400;
/// Of signers of Kubernetes' own.
const OWN_LIFE_SECS_MAX: i64 = 86_400;
/// How long before and after its ends a certificate is not to be renewed.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);
/// How a request ends; each is for ever.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];

/// Rules of a new request.
pub(super) fn create(request: &Node<'_>, errors: &mut Errors) {
    let spec = request.get("spec");
    signer_name(&spec.get("signerName"), errors);
    user_annotations(&spec.get("unverifiedUserAnnotations"), errors);
    for field in ["podName", "serviceAccountName", "nodeName"] {
        let name = spec.get(field);
        name.all_invalid(names::dns_subdomain(name.as_text()), errors);
    }
    for field in ["podUID", "serviceAccountUID", "nodeUID"] {
        let uid = spec.get(field);
        if uid.as_text().is_empty() {
            uid.invalid("must not be empty", errors);
        } else if uid.as_text().len() > UID_BYTES_MAX {
            errors.push(FieldError::too_long(uid.path(), UID_BYTES_MAX));
        }
    }
    let Some(secs) = spec.int("maxExpirationSeconds") else {
        spec.get("maxExpirationSeconds")
            .required("must be set", errors);
        return;
    };
    let most = life_secs_max(spec.text("signerName"));
    if !(LIFE_SECS_MIN..=most).contains(&secs) {
        let why = format!("must be in the range [{LIFE_SECS_MIN}, {most}]");
        spec.get("maxExpirationSeconds").invalid(why, errors);
    }
    let given = ["stubPKCS10Request", "pkixPublicKey", "proofOfPossession"]
        .map(|field| (field, spec.text(field).len() / 4 * 3));
    for (field, bytes) in given {
        if bytes > KEY_BYTES_MAX {
            errors.push(FieldError::too_long(spec.get(field).path(), KEY_BYTES_MAX));
        }
    }
    let is_given = given.map(|(_, bytes)| bytes > 0);
    if !matches!(is_given, [true, false, false] | [false, true, true]) {
        errors.push(FieldError::invalid(
            "spec",
            "<value omitted>",
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        ));
    }
}

/// The longest life that a certificate of a signer may be asked for.
pub(super) fn life_secs_max(signer: &str) -> i64 {
    let domain = signer.split('/').next().unwrap_or_default();
    if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
        OWN_LIFE_SECS_MAX
    } else {
        LIFE_SECS_MAX
    }
}

/// Annotations for a signer: as any other, but each key is named after somebody's domain.
pub(super) fn user_annotations(annotations: &Node<'_>, errors: &mut Errors) {
    let bare = annotations.value.as_object().into_iter().flatten();
    for (key, _) in bare.filter(|(key, _)| !key.contains('/')) {
        let why = "must be a domain-prefixed key (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(annotations.path(), key.as_str(), why));
    }
    meta::annotations(Some(annotations.value), annotations, errors);
}

fn ends(request: &Node<'_>) -> Vec<&'static str> {
    let status = request.get("status");
    let kinds: Vec<String> = status
        .items("conditions")
        .filter(|condition| condition.text("status") == "True")
        .map(|condition| condition.text("type").to_owned())
        .collect();
    let ends = ENDS.into_iter();
    ends.filter(|end| kinds.iter().any(|kind| kind == end))
        .collect()
}

/// Rules of an update through `/status`: a request is issued, denied or failed once, and nothing changes otherwise.
pub(super) fn update_status(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let since = errors.len();
    let status = new.get("status");
    for (at, condition) in status.items("conditions").enumerate() {
        condition.get("type").supported(&ENDS, errors);
        condition.get("status").supported(&["True"], errors);
        if at > 0 {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            condition.get("type").invalid(why, errors);
        }
    }
    conditions::all(&status, errors);
    if errors.len() > since {
        return;
    }
    let differs = new.differs(old, "status");
    let mut frozen = |why: &str| {
        errors.push(FieldError::invalid("status", "<value omitted>", why));
    };
    if !ends(old).is_empty() {
        if differs {
            frozen("immutable after PodCertificateRequest is issued, denied, or failed");
        }
        return;
    }
    match ends(new).first() {
        Some(&"Issued") => issued(new, errors),
        Some(_) => {
            let others = [
                "certificateChain",
                "notBefore",
                "notAfter",
                "beginRefreshAt",
            ];
            if others.iter().any(|field| status.has(field)) {
                frozen(
                    "non-condition status fields must be empty when denying or failing the PodCertificateRequest",
                );
            }
        }
        None if differs => frozen(
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
        ),
        None => {}
    }
}

fn issued(new: &Node<'_>, errors: &mut Errors) {
    let status = new.get("status");
    if status.text("certificateChain").len() > CHAIN_BYTES_MAX {
        errors.push(FieldError::too_long(
            "status.certificateChain",
            CHAIN_BYTES_MAX,
        ));
    }
    let time = |field: &str| status.text(field).parse::<Timestamp>().ok();
    let consistent = "must be present and consistent with the issued certificate";
    let wanted = [
        ("notBefore", consistent),
        ("notAfter", consistent),
        (
            "beginRefreshAt",
            "must be present and in the range [notbefore+10min, notafter-10min]",
        ),
    ];
    for (field, why) in wanted {
        if time(field).is_none() {
            status.get(field).required(why, errors);
        }
    }
    let (Some(begins), Some(ends), Some(refresh)) =
        (time("notBefore"), time("notAfter"), time("beginRefreshAt"))
    else {
        return;
    };
    let life = ends.duration_since(begins).as_secs();
    let most = new.get("spec").int("maxExpirationSeconds").unwrap_or(0);
    if life < LIFE_SECS_MIN {
        status
            .get("certificateChain")
            .invalid("leaf certificate lifetime must be >= 1 hour", errors);
    } else if life > most {
        let why =
            format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        status.get("certificateChain").invalid(why, errors);
    }
    if refresh.duration_since(begins) < MARGIN {
        let why = "must be at least 10 minutes after status.notBefore";
        status.get("beginRefreshAt").invalid(why, errors);
    } else if ends.duration_since(refresh) < MARGIN {
        let why = "must be at least 10 minutes before status.notAfter";
        status.get("beginRefreshAt").invalid(why, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request() -> Value {
        json!({"spec": {"signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "default",
            "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 7200, "stubPKCS10Request": "MAMCAQE="}})
    }

    fn says(errors: &Errors) -> String {
        let all = errors.iter().map(ToString::to_string);
        all.collect::<Vec<_>>().join("; ")
    }

    /// What is said has `expected` in it; nothing is said where that is empty.
    #[track_caller]
    fn check(name: &str, errors: &Errors, expected: &str) {
        let found = says(errors);
        assert_eq!(
            errors.is_empty(),
            expected.is_empty(),
            "case: {name}: {found}"
        );
        assert!(found.contains(expected), "case: {name}: {found}");
    }

    #[test]
    fn creates_table() {
        let cases = [
            ("a whole one", "/spec/podName", json!("p"), ""),
            (
                "no signer",
                "/spec/signerName",
                json!("s"),
                "spec.signerName",
            ),
            ("no uid", "/spec/nodeUID", json!(""), "must not be empty"),
            (
                "too short",
                "/spec/maxExpirationSeconds",
                json!(60),
                "must be in the range [3600, 7862400]",
            ),
            (
                "no life",
                "/spec/maxExpirationSeconds",
                Value::Null,
                "must be set",
            ),
            (
                "no key",
                "/spec/stubPKCS10Request",
                json!(""),
                "exactly one of",
            ),
        ];
        for (name, at, value, expected) in cases {
            let mut request = request();
            *request.pointer_mut(at).unwrap() = value;
            let mut errors = Vec::new();
            create(&Node::root(&request), &mut errors);
            check(name, &errors, expected);
        }
        let mut own = request();
        own["spec"]["signerName"] = json!("kubernetes.io/s");
        own["spec"]["maxExpirationSeconds"] = json!(86_401);
        own["spec"]["unverifiedUserAnnotations"] = json!({"bare": "x", "acme.io/Foo": "y"});
        let mut errors = Vec::new();
        create(&Node::root(&own), &mut errors);
        let found = says(&errors);
        assert!(
            found.contains("[3600, 86400]") && found.contains("domain-prefixed"),
            "{found}"
        );
        assert_eq!(errors.len(), 2, "{found}");
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn statuses_table() {
        let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let issued = json!({"conditions": [condition("Issued")], "certificateChain": "x", "notBefore": "2026-01-01T00:00:00Z",
            "notAfter": "2026-01-01T02:00:00Z", "beginRefreshAt": "2026-01-01T01:00:00Z"});
        let with = |field: &str, value: Value| {
            let mut status = issued.clone();
            status[field] = value;
            status
        };
        let denied = json!({"conditions": [condition("Denied")]});
        let none = json!({});
        let cases = [
            ("issued", &none, issued.clone(), ""),
            ("denied", &none, denied.clone(), ""),
            ("nothing", &none, none.clone(), ""),
            (
                "a chain alone",
                &none,
                json!({"certificateChain": "x"}),
                "immutable unless",
            ),
            (
                "an end of its own",
                &none,
                json!({"conditions": [condition("Done")]}),
                "Unsupported value",
            ),
            (
                "two ends",
                &none,
                json!({"conditions": [condition("Denied"), condition("Failed")]}),
                "at most one",
            ),
            (
                "denied with a chain",
                &none,
                with("conditions", json!([condition("Denied")])),
                "must be empty when",
            ),
            (
                "issued for ever",
                &issued,
                denied.clone(),
                "immutable after",
            ),
            (
                "no end",
                &none,
                with("notAfter", Value::Null),
                "status.notAfter: Required",
            ),
            (
                "too long",
                &none,
                with("notAfter", json!("2026-01-01T03:00:00Z")),
                "<= spec.maxExpirationSeconds (7200)",
            ),
            (
                "too short",
                &none,
                with("notAfter", json!("2026-01-01T00:30:00Z")),
                ">= 1 hour",
            ),
            (
                "renewed too soon",
                &none,
                with("beginRefreshAt", json!("2026-01-01T00:09:00Z")),
                "10 minutes after",
            ),
            (
                "renewed too late",
                &none,
                with("beginRefreshAt", json!("2026-01-01T01:51:00Z")),
                "10 minutes before",
            ),
        ];
        for (name, old, new, expected) in cases {
            let of = |status: &Value| {
                let mut request = request();
                request["status"] = status.clone();
                request
            };
            let (new, old) = (of(&new), of(old));
            let mut errors = Vec::new();
            update_status(&Node::root(&new), &Node::root(&old), &mut errors);
            check(name, &errors, expected);
        }
    }
}
