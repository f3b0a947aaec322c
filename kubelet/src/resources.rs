//! What a Pod asks of its node, summed as the scheduler sums it. Pure.

use crate::cri::resources::{milli_value, value};
use crate::pod::containers::{claimed_resources, spec};
use cox_api::quantity::{self, Format};
use cox_client::placement::{Amount, add_up};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Amounts by resource: thousandths for `cpu`, whole units for all others.
pub type Amounts = BTreeMap<String, i64>;

fn amount(name: &str, quantity: &Quantity) -> i64 {
    let amount = if name == "cpu" {
        milli_value(quantity)
    } else {
        value(quantity)
    };
    amount.unwrap_or(0)
}

/// Reads an amount of a resource.
#[must_use]
pub fn parse(resource: &str, text: &str) -> Option<i64> {
    let quantity = Quantity(text.to_owned());
    value(&quantity)?;
    Some(amount(resource, &quantity))
}

/// The amounts of a map of quantities.
#[must_use]
pub fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let all = map.into_iter().flatten();
    all.map(|(name, quantity)| (name.clone(), amount(name, quantity)))
        .collect()
}

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let Some(resources) = resources else {
        return Amounts::new();
    };
    // A limit without a request is one; the API server's defaults say so too, a static Pod's manifest may not.
    let mut found = amounts(resources.limits.as_ref());
    found.extend(amounts(resources.requests.as_ref()));
    found
}

/// What a Pod asks for: its containers together with its sidecars, or what its start needs if that is more; what the Pod as a
/// whole says goes first; the overhead of its runtime class comes on top. What it has by a claim it does not ask of the node.
#[must_use]
pub fn of_pod(pod: &Pod) -> Amounts {
    let mut sum = add_up(spec(pod), |container| {
        requests(container.resources.as_ref())
    });
    sum.extend(requests(spec(pod).resources.as_ref()));
    sum.add(&amounts(spec(pod).overhead.as_ref()));
    for resource in claimed_resources(pod) {
        sum.remove(resource);
    }
    sum
}

/// What containers have together, beside the overhead of their Pod.
#[must_use]
pub fn sum<'a>(
    spec: &PodSpec,
    of: impl Fn(&Container) -> Option<&'a BTreeMap<String, Quantity>>,
) -> Amounts {
    let mut sum = add_up(spec, |container| amounts(of(container)));
    sum.add(&amounts(spec.overhead.as_ref()));
    sum.retain(|_, amount| *amount != 0);
    sum
}

/// Amounts as the API has them.
#[must_use]
pub fn quantities(amounts: &Amounts) -> BTreeMap<String, Quantity> {
    let quantity = |name: &str, amount: i64| match name {
        "cpu" => quantity::Quantity::from_millis(amount),
        _ if in_bytes(name) => quantity::Quantity::from_i64(amount, Format::BinarySi),
        _ => quantity::Quantity::from_i64(amount, Format::DecimalSi),
    };
    let text = |(name, amount): (&String, &i64)| {
        let quantity = quantity(name, *amount);
        (name.clone(), Quantity(quantity.to_string()))
    };
    amounts.iter().map(text).collect()
}

fn in_bytes(name: &str) -> bool {
    matches!(name, "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_table() {
        let asks =
            |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |name: &str, cpu: &str| json!({"name": name, "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        let cases = [
            (
                "containers add up",
                json!({"containers": [asks("a", "1"), asks("b", "500m")]}),
                1500,
            ),
            (
                "the largest init container counts alone",
                json!({"containers": [asks("a", "1")], "initContainers": [asks("i", "3"), asks("j", "2")]}),
                3000,
            ),
            (
                "sidecars run beside later init containers and beside the main ones",
                json!({"containers": [asks("a", "1")], "initContainers": [sidecar("s", "1"), asks("i", "2")]}),
                3000,
            ),
            (
                "the pod as a whole",
                json!({"containers": [asks("a", "1")], "resources": {"requests": {"cpu": "2"}}}),
                2000,
            ),
            (
                "overhead",
                json!({"containers": [asks("a", "1")], "overhead": {"cpu": "250m"}}),
                1250,
            ),
            (
                "a limit is a request",
                json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "4"}}}]}),
                4000,
            ),
        ];
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "example.com/oar": "2"}}}]},
            "status": {"extendedResourceClaimStatus": {"resourceClaimName": "c",
                "requestMappings": [{"containerName": "a", "resourceName": "example.com/oar", "requestName": "r"}]}},
        }))
        .unwrap();
        assert_eq!(of_pod(&pod), Amounts::from([("cpu".to_owned(), 1000)]));
        for (name, spec, cpu) in cases {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(of_pod(&pod)["cpu"], cpu, "case: {name}");
        }
    }
}
