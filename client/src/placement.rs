//! What decides where a Pod may be, as the scheduler, the kubelet and the controllers all read it: node selector terms,
//! tolerations, and how a Pod's containers add up. Pure; it looks at specs and never at a cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// A term of a node selector, read once and matched often.
#[derive(Clone, Debug)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// An operator or a number that validation does not let through.
    Never,
}

impl NodeTerm {
    /// Reads a term.
    #[must_use]
    pub fn of(term: &NodeSelectorTerm) -> Self {
        let requirements = |written: &Option<Vec<NodeSelectorRequirement>>| {
            written.iter().flatten().map(Requirement::of).collect()
        };
        Self {
            labels: requirements(&term.match_expressions),
            fields: requirements(&term.match_fields),
        }
    }

    /// Whether a node of this name and these labels meets the term. A term that asks for nothing matches nothing.
    pub fn matches<'n>(&self, name: &'n str, label: impl Fn(&str) -> Option<&'n str>) -> bool {
        let field = |key: &str| (key == "metadata.name").then_some(name);
        !(self.labels.is_empty() && self.fields.is_empty())
            && self
                .labels
                .iter()
                .all(|one| one.test.holds(label(&one.key)))
            && self
                .fields
                .iter()
                .all(|one| one.test.holds(field(&one.key)))
    }

    /// The only names of nodes that can match, where the term gives them: what DaemonSets ask for.
    #[must_use]
    pub fn names(&self) -> Option<&[String]> {
        self.fields.iter().find_map(|one| match &one.test {
            Test::In(values) if one.key == "metadata.name" => Some(values.as_slice()),
            _ => None,
        })
    }
}

impl Requirement {
    fn of(written: &NodeSelectorRequirement) -> Self {
        let values = written.values.clone().unwrap_or_default();
        let number = values.first().and_then(|value| value.parse().ok());
        let test = match (written.operator.as_str(), number) {
            ("In", _) => Test::In(values),
            ("NotIn", _) => Test::NotIn(values),
            ("Exists", _) => Test::Exists,
            ("DoesNotExist", _) => Test::DoesNotExist,
            ("Gt", Some(number)) => Test::Gt(number),
            ("Lt", Some(number)) => Test::Lt(number),
            _ => Test::Never,
        };
        Self {
            key: written.key.clone(),
            test,
        }
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        let among =
            |values: &[String]| value.is_some_and(|value| values.iter().any(|own| own == value));
        match self {
            Self::In(values) => among(values),
            Self::NotIn(values) => !among(values),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::Gt(limit) => number().is_some_and(|number| number > *limit),
            Self::Lt(limit) => number().is_some_and(|number| number < *limit),
            Self::Never => false,
        }
    }
}

/// Whether a toleration covers a taint: empty effects and keys cover all.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let covers = |own: &Option<String>, other: &str| {
        own.as_deref()
            .is_none_or(|own| own.is_empty() || own == other)
    };
    let value_matches = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
        // Gt and Lt compare numbers of NoSchedule taints of a feature that is off; they tolerate nothing here.
        Some(_) => false,
    };
    covers(&toleration.effect, &taint.effect)
        && covers(&toleration.key, &taint.key)
        && value_matches
}

/// How much of each resource, in whatever form a component keeps it.
pub trait Amount: Clone + Default {
    /// Adds each amount of the other.
    fn add(&mut self, other: &Self);
    /// Takes the larger of each amount.
    fn raise(&mut self, other: &Self);
}

impl Amount for BTreeMap<String, i64> {
    fn add(&mut self, other: &Self) {
        for (name, amount) in other {
            let sum = self.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    fn raise(&mut self, other: &Self) {
        for (name, amount) in other {
            let highest = self.entry(name.clone()).or_default();
            *highest = (*highest).max(*amount);
        }
    }
}

/// What the containers of a Pod need together: the larger of what containers and sidecars need beside each other and of
/// what each init container needs beside the sidecars started before it.
/// <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>
pub fn add_up<A: Amount>(spec: &PodSpec, of: impl Fn(&Container) -> A) -> A {
    let mut running = A::default();
    let mut while_starting = A::default();
    for container in spec.init_containers.iter().flatten() {
        let mut own = of(container);
        if is_sidecar(container) {
            running.add(&own);
            while_starting.raise(&running);
        } else {
            own.add(&running);
            while_starting.raise(&own);
        }
    }
    for container in &spec.containers {
        running.add(&of(container));
    }
    running.raise(&while_starting);
    running
}

/// Whether an init container keeps running beside the others.
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn terms_table() {
        let label = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "size", "operator": operator, "values": values}]});
        let field = |operator: &str| json!({"matchFields": [{"key": "metadata.name", "operator": operator, "values": ["n"]}]});
        let cases: [(&str, Value, bool); 13] = [
            ("nothing asked", json!({}), false),
            (
                "empty lists ask for nothing",
                json!({"matchExpressions": [], "matchFields": []}),
                false,
            ),
            ("among the values", label("In", &["3", "5"]), true),
            ("not among them", label("In", &["3"]), false),
            ("excluded", label("NotIn", &["5"]), false),
            ("present", label("Exists", &[]), true),
            ("absent", label("DoesNotExist", &[]), false),
            ("greater", label("Gt", &["4"]), true),
            ("not less", label("Lt", &["5"]), false),
            ("no number", label("Gt", &["four"]), false),
            ("an operator of another time", label("Like", &["5"]), false),
            ("its name", field("In"), true),
            ("another name", field("NotIn"), false),
        ];
        for (name, term, expected) in cases {
            let term = NodeTerm::of(&serde_json::from_value(term).unwrap());
            let found = term.matches("n", |key| (key == "size").then_some("5"));
            assert_eq!(found, expected, "case: {name}");
        }
    }

    #[test]
    fn tolerations_table() {
        let cases = [
            (
                "the same value",
                json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
                true,
            ),
            ("another value", json!({"key": "k", "value": "w"}), false),
            ("any value", json!({"key": "k", "operator": "Exists"}), true),
            (
                "another effect",
                json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}),
                false,
            ),
            ("everything", json!({"operator": "Exists"}), true),
            (
                "another key",
                json!({"key": "l", "operator": "Exists"}),
                false,
            ),
            (
                "a comparison",
                json!({"key": "k", "operator": "Gt", "value": "v"}),
                false,
            ),
        ];
        let taint = Taint {
            key: "k".to_owned(),
            value: Some("v".to_owned()),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        for (name, toleration, expected) in cases {
            let toleration = serde_json::from_value(toleration).unwrap();
            assert_eq!(tolerates(&toleration, &taint), expected, "case: {name}");
        }
    }
}
