//! TaintNodesByCondition: a new node takes no Pods until the node lifecycle controller has seen it ready.

use serde_json::json;

use super::{Operation, Request, items, push};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) fn admit(request: &mut Request<'_>) {
    if request.operation != Operation::Create || !request.is("", "nodes") {
        return;
    }
    let Some(node) = &mut request.object else {
        return;
    };
    let tainted = items(&node["spec"]["taints"])
        .any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule");
    if !tainted {
        push(
            &mut node["spec"]["taints"],
            json!({"key": NOT_READY, "effect": "NoSchedule"}),
        );
    }
}
