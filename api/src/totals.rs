//! Sums of resources: what a Pod asks for and is limited to, over its containers. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// What Pods can ask for as a whole.
const POD_LEVEL: [&str; 2] = ["cpu", "memory"];

/// The amounts of a `ResourceList`; what does not parse counts as nothing.
pub fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries
        .map(|(name, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            let amount = Quantity::parse(&text).unwrap_or(Quantity::ZERO);
            (name.clone(), amount)
        })
        .collect()
}

/// Amounts as a `ResourceList`.
pub fn to_list(amounts: &Amounts) -> Value {
    let entries = amounts.iter();
    entries
        .map(|(name, amount)| (name.clone(), Value::from(amount.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Adds each amount of `more`.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = *sum + *amount;
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let present = to.entry(name.clone()).or_insert(*amount);
        if *amount > *present {
            *present = *amount;
        }
    }
}

/// What a Pod's containers request together: init containers run one after the other, sidecars beside all that follows.
pub fn pod_requests(spec: &Value) -> Amounts {
    let mut sum = of_containers(spec, "requests");
    override_with_pod_level(&mut sum, spec, "requests");
    let overhead = amounts(&spec["overhead"]);
    add(&mut sum, &overhead);
    sum
}

/// What a Pod's containers are limited to together; overhead counts where there is a limit.
pub fn pod_limits(spec: &Value) -> Amounts {
    let mut sum = of_containers(spec, "limits");
    override_with_pod_level(&mut sum, spec, "limits");
    for (name, amount) in amounts(&spec["overhead"]) {
        if let Some(limit) = sum.get_mut(&name).filter(|limit| !limit.is_zero()) {
            *limit = *limit + amount;
        }
    }
    sum
}

/// The sum over containers alone.
pub fn of_containers(spec: &Value, field: &str) -> Amounts {
    let mut sum = Amounts::new();
    for container in containers(spec, "containers") {
        add(&mut sum, &amounts(&container["resources"][field]));
    }
    let (mut sidecars, mut highest) = (Amounts::new(), Amounts::new());
    for container in containers(spec, "initContainers") {
        let mut own = amounts(&container["resources"][field]);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut highest, &own);
    }
    raise(&mut sum, &highest);
    sum
}

/// Replaces sums by what the Pod says for itself as a whole.
pub fn override_with_pod_level(sum: &mut Amounts, spec: &Value, field: &str) {
    for (name, amount) in amounts(&spec["resources"][field]) {
        if POD_LEVEL.contains(&name.as_str()) || name.starts_with("hugepages-") {
            sum.insert(name, amount);
        }
    }
}

/// The containers of a list of the Pod's spec.
pub fn containers<'v>(spec: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> {
    spec[list].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_what_its_containers_need_at_the_same_time() {
        let needs = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| {
            let mut container = needs(cpu);
            container["restartPolicy"] = "Always".into();
            container
        };
        let cases = [
            (
                "two containers add up",
                json!({"containers": [needs("100m"), needs("1")]}),
                "1100m",
            ),
            (
                "init containers come one after the other",
                json!({"containers": [needs("1")], "initContainers": [needs("2"), needs("3")]}),
                "3",
            ),
            (
                "sidecars stay",
                json!({"containers": [needs("1")], "initContainers": [sidecar("1"), needs("3")]}),
                "4",
            ),
            (
                "the Pod's own word and its overhead",
                json!({"containers": [needs("1")], "resources": {"requests": {"cpu": "5"}}, "overhead": {"cpu": "250m"}}),
                "5250m",
            ),
        ];
        for (name, spec, expected) in cases {
            assert_eq!(
                pod_requests(&spec)["cpu"].to_string(),
                expected,
                "case: {name}"
            );
        }
    }
}
