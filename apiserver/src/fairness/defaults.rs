//! The FlowSchemas and PriorityLevelConfigurations that a cluster begins with: upstream's, as a table.

use serde_json::{Value, json};

/// Objects with this annotation are kept as they are here; whoever changes one sets it to `false`.
pub(crate) const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The group of both kinds.
pub(crate) const GROUP: &str = "flowcontrol.apiserver.k8s.io";

/// A row of the table below.
type Row = (&'static str, u32, u32, Option<(u32, u32)>);

/// Name, shares, percent that is lent, and queues with the size of a hand; none where nobody waits.
const LEVELS: [Row; 7] = [
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];
const QUEUE_LEN_MAX: u32 = 50;

/// Whether an object of this name exists in every cluster, of both kinds.
pub(super) fn is_mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

/// The levels.
pub(crate) fn levels() -> Vec<Value> {
    let exempt =
        json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = LEVELS.iter().map(|(name, shares, lent, queues)| {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({"type": "Queue", "queuing": {
                "queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LEN_MAX}}),
        };
        let spec = json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lent, "limitResponse": response}});
        (*name, spec)
    });
    std::iter::once(("exempt", exempt))
        .chain(limited)
        .map(|(name, spec)| object("PriorityLevelConfiguration", name, spec))
        .collect()
}

/// The schemas.
#[allow(clippy::too_many_lines, reason = "one table")]
pub(crate) fn schemas() -> Vec<Value> {
    let masters = || vec![group("system:masters")];
    let everybody = || {
        vec![
            group("system:unauthenticated"),
            group("system:authenticated"),
        ]
    };
    let nodes = || vec![group("system:nodes")];
    let system_accounts = || json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}});
    let (manager, scheduler) = (
        user("system:kube-controller-manager"),
        user("system:kube-scheduler"),
    );
    let leases = |verbs: Value| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let probes = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]});
    let node_high = vec![
        resources(json!(["*"]), "", &["nodes", "nodes/status"], true),
        leases(json!(["*"])),
    ];
    let election = vec![leases(json!(["get", "create", "update"]))];
    let electors = vec![manager.clone(), scheduler.clone(), system_accounts()];
    let all = |name, level, precedence, by, subjects| {
        schema(
            name,
            level,
            precedence,
            by,
            rule(subjects, vec![everything()], vec![any_path()]),
        )
    };
    vec![
        all("exempt", "exempt", 1, "", masters()),
        schema(
            "probes",
            "exempt",
            2,
            "",
            rule(everybody(), vec![], vec![probes]),
        ),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            rule(electors, election, vec![]),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            "ByUser",
            rule(nodes(), node_high, vec![]),
        ),
        all("system-nodes", "system", 500, "ByUser", nodes()),
        all(
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            vec![manager],
        ),
        all(
            "kube-scheduler",
            "workload-high",
            800,
            "ByNamespace",
            vec![scheduler],
        ),
        all(
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            vec![system_accounts()],
        ),
        all(
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            vec![group("system:serviceaccounts")],
        ),
        all(
            "global-default",
            "global-default",
            9900,
            "ByUser",
            everybody(),
        ),
        all("catch-all", "catch-all", 10000, "ByUser", everybody()),
    ]
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "annotations": {AUTOUPDATE: "true"}}, "spec": spec})
}

fn schema(name: &str, level: &str, precedence: u32, by: &str, rule: Value) -> Value {
    let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule]});
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    object("FlowSchema", name, spec)
}

fn rule(subjects: Vec<Value>, resources: Vec<Value>, paths: Vec<Value>) -> Value {
    let mut rule = json!({"subjects": subjects});
    for (field, rules) in [("resourceRules", resources), ("nonResourceRules", paths)] {
        if !rules.is_empty() {
            rule[field] = rules.into();
        }
    }
    rule
}

fn resources(verbs: Value, group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule =
        json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn everything() -> Value {
    resources(json!(["*"]), "*", &["*"], true)
}

fn any_path() -> Value {
    json!({"verbs": ["*"], "nonResourceURLs": ["*"]})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_schema_has_its_level() {
        let levels = levels();
        for schema in schemas() {
            let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
            assert!(
                levels.iter().any(|one| one["metadata"]["name"] == *level),
                "{schema}"
            );
        }
        assert_eq!((levels.len(), schemas().len()), (8, 11));
    }
}
