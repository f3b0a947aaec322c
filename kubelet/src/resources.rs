//! What a Pod asks of its node, summed as the scheduler sums it. Pure.

use crate::cri::resources::{milli_value, value};
use crate::pod::containers::spec;
use cox_client::placement::{Amount, add_up};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
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
/// whole says goes first; the overhead of its runtime class comes on top.
#[must_use]
pub fn of_pod(pod: &Pod) -> Amounts {
    let mut sum = add_up(spec(pod), |container| {
        requests(container.resources.as_ref())
    });
    sum.extend(requests(spec(pod).resources.as_ref()));
    sum.add(&amounts(spec(pod).overhead.as_ref()));
    sum
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
        for (name, spec, cpu) in cases {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(of_pod(&pod)["cpu"], cpu, "case: {name}");
        }
    }
}
