//! Where the pods of a daemon set belong: node selectors and affinity, taints and tolerations. Pure.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodSpec, Taint, Toleration,
};

const NODE_NAME: &str = "metadata.name";

/// What a daemon set wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// A pod belongs here.
    Runs,
    /// None is made, but one that is here stays: the node takes no new ones.
    Stays,
    /// None belongs here.
    Not,
}

pub(super) fn fit(set: &DaemonSet, node: &Node) -> Fit {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let empty = PodSpec::default();
    let spec = template.unwrap_or(&empty);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let by_name = spec
        .node_name
        .as_deref()
        .is_none_or(|wanted| wanted.is_empty() || wanted == name);
    if !by_name || !selects(spec, node) {
        return Fit::Not;
    }
    let tolerations = tolerations(spec);
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    let open = taints
        .iter()
        .filter(|taint| !tolerations.iter().any(|one| tolerates(one, taint)));
    let (mut fit, hard) = (Fit::Runs, ["NoExecute", "NoSchedule"]);
    for taint in open.filter(|taint| hard.contains(&taint.effect.as_str())) {
        if taint.effect == "NoExecute" {
            return Fit::Not;
        }
        fit = Fit::Stays;
    }
    fit
}

/// The pod's node selector and required affinity.
fn selects(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selector = spec.node_selector.iter().flatten();
    let by_labels = selector
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = required(spec);
    let terms = required.map(|required| required.node_selector_terms.as_slice());
    by_labels && terms.is_none_or(|terms| terms.iter().any(|term| meets(term, node)))
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()
}

/// A term without requirements matches nothing.
fn meets(term: &NodeSelectorTerm, node: &Node) -> bool {
    let name = node.metadata.name.clone();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let is_empty = expressions.is_empty() && fields.is_empty();
    !is_empty
        && expressions
            .iter()
            .all(|one| holds(one, labels.get(&one.key)))
        && fields
            .iter()
            .all(|one| one.key == NODE_NAME && holds(one, name.as_ref()))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.contains(value));
    let compared = || {
        let wanted: i64 = values.first()?.parse().ok()?;
        let found: i64 = value?.parse().ok()?;
        Some(found.cmp(&wanted))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let same_value = toleration.value.as_deref().unwrap_or_default()
        == taint.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || same_value)
}

/// The template's own, and those that every daemon has: it stays where others are driven away.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let own = [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    let on_host = spec.host_network == Some(true);
    let network = on_host.then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    for (key, effect) in own.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Makes a pod of the template one for this node alone: the scheduler binds it, and nowhere else.
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    spec.tolerations = Some(tolerations(spec));
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NODE_NAME.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let of_node: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // What the template requires was looked at here.
    of_node.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
}

/// The node that a pod is bound or pinned to.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(bound) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(bound);
    }
    let terms = &required(spec)?.node_selector_terms;
    let fields = terms
        .iter()
        .filter_map(|term| term.match_fields.as_deref())
        .flatten();
    let mut named = fields.filter(|field| field.key == NODE_NAME && field.operator == "In");
    named
        .find_map(|field| field.values.as_deref()?.first())
        .map(String::as_str)
}
