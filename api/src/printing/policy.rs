//! Bindings of roles, certificate requests, disruption budgets.

use super::cell::{age, items, name, number, scalar_or, text, text_or};
use super::duration::human_duration;
use super::{AGE, NAME, Printer, integer, text as column, wide};
use serde_json::{Value, json};

static BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("Role", "Role that is bound."),
        AGE,
        wide("Users", "Users it is bound to."),
        wide("Groups", "Groups it is bound to."),
        wide("ServiceAccounts", "Service accounts it is bound to."),
    ],
    cells: |object, now| {
        let role = format!(
            "{}/{}",
            text(object, "/roleRef/kind"),
            text(object, "/roleRef/name")
        );
        vec![
            name(object),
            json!(role),
            age(object, now),
            json!(subjects(object, "User")),
            json!(subjects(object, "Group")),
            json!(subjects(object, "ServiceAccount")),
        ]
    },
};

static SIGNING_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        column("SignerName", "Signer that is asked."),
        column("Requestor", "Who asks."),
        column("RequestedDuration", "How long the certificate should live."),
        column("Condition", "What became of it."),
    ],
    cells: |object, now| {
        let duration = object
            .pointer("/spec/expirationSeconds")
            .and_then(Value::as_i64);
        vec![
            name(object),
            age(object, now),
            json!(text_or(object, "/spec/signerName", "<none>")),
            json!(text(object, "/spec/username")),
            json!(duration.map_or_else(|| "<none>".to_owned(), human_duration)),
            json!(signing_status(object)),
        ]
    },
};

static TRUST_BUNDLE: Printer = Printer {
    columns: &[
        NAME,
        column("SignerName", "Signer whose anchors these are."),
    ],
    cells: |object, _| {
        vec![
            name(object),
            json!(text_or(object, "/spec/signerName", "<none>")),
        ]
    },
};

static POD_CERTIFICATE_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        column("PodName", "Pod that asks."),
        column("ServiceAccountName", "Its service account."),
        column("NodeName", "Its node."),
        column("SignerName", "Signer that is asked."),
        column("State", "What became of it."),
        AGE,
    ],
    cells: |object, now| {
        let states = ["Issued", "Denied", "Failed"];
        let state = states
            .into_iter()
            .find(|state| super::cell::has_condition(object, state))
            .unwrap_or("Pending");
        vec![
            name(object),
            json!(text(object, "/spec/podName")),
            json!(text(object, "/spec/serviceAccountName")),
            json!(text(object, "/spec/nodeName")),
            json!(text(object, "/spec/signerName")),
            json!(state),
            age(object, now),
        ]
    },
};

static DISRUPTION_BUDGET: Printer = Printer {
    columns: &[
        NAME,
        column("Min Available", "Pods that must stay."),
        column("Max Unavailable", "Pods that may be missing."),
        integer("Allowed Disruptions", "Pods that may be evicted now."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(scalar_or(object, "/spec/minAvailable", "N/A")),
            json!(scalar_or(object, "/spec/maxUnavailable", "N/A")),
            json!(number(object, "/status/disruptionsAllowed")),
            age(object, now),
        ]
    },
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "RoleBinding" | "ClusterRoleBinding" => &BINDING,
        "CertificateSigningRequest" => &SIGNING_REQUEST,
        "ClusterTrustBundle" => &TRUST_BUNDLE,
        "PodCertificateRequest" => &POD_CERTIFICATE_REQUEST,
        "PodDisruptionBudget" => &DISRUPTION_BUDGET,
        _ => return None,
    })
}

fn subjects(binding: &Value, kind: &str) -> String {
    let of_kind = items(binding, "/subjects")
        .iter()
        .filter(|subject| text(subject, "/kind") == kind);
    let texts: Vec<String> = of_kind
        .map(|subject| match kind {
            "ServiceAccount" => {
                format!("{}/{}", text(subject, "/namespace"), text(subject, "/name"))
            }
            _ => text(subject, "/name").to_owned(),
        })
        .collect();
    texts.join(", ")
}

fn signing_status(request: &Value) -> String {
    // The types count, not their status: a decision is never taken back.
    let has = |kind: &str| {
        items(request, "/status/conditions")
            .iter()
            .any(|condition| text(condition, "/type") == kind)
    };
    let mut status = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !text(request, "/status/certificate").is_empty() {
        status.push_str(",Issued");
    }
    status
}
