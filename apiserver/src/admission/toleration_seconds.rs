//! DefaultTolerationSeconds: a Pod stays five minutes on a node that is not ready or not reachable, unless it says
//! otherwise.

use serde_json::{Value, json};

use super::{Operation, Request, items, push};

const TAINTS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];
const SECS: i64 = 300;

pub(super) fn admit(request: &mut Request<'_>) {
    if !matches!(request.operation, Operation::Create | Operation::Update)
        || !request.is("", "pods")
    {
        return;
    }
    let Some(pod) = &mut request.object else {
        return;
    };
    for taint in TAINTS {
        if !items(&pod["spec"]["tolerations"]).any(|toleration| speaks_of(toleration, taint)) {
            push(
                &mut pod["spec"]["tolerations"],
                json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECS}),
            );
        }
    }
}

/// Whether the toleration is about that taint with effect NoExecute; an empty key or effect is about all.
fn speaks_of(toleration: &Value, taint: &str) -> bool {
    let text = |field: &str| toleration[field].as_str().unwrap_or_default();
    matches!(text("key"), key if key.is_empty() || key == taint)
        && matches!(text("effect"), "" | "NoExecute")
}
