//! The quality-of-service class of a Pod, from the cpu and memory of its containers or of the Pod as a whole.

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

fn is_zero(quantity: &Quantity) -> bool {
    quantity
        .0
        .chars()
        .take_while(|c| !c.is_alphabetic())
        .all(|c| matches!(c, '0' | '.' | '+' | '-'))
}

fn set<'a>(map: Option<&'a BTreeMap<String, Quantity>>, resource: &str) -> Option<&'a Quantity> {
    map?.get(resource).filter(|quantity| !is_zero(quantity))
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
#[must_use]
pub fn of(spec: &PodSpec) -> &'static str {
    // What the Pod as a whole says stands for all of its containers.
    let whole = spec.resources.as_ref().filter(|whole| asks(Some(whole)));
    let all: Vec<Option<&ResourceRequirements>> = match whole {
        Some(whole) => vec![Some(whole)],
        None => spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    if !all.iter().copied().any(asks) {
        "BestEffort"
    } else if all.iter().copied().all(is_pinned) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn asks(resources: Option<&ResourceRequirements>) -> bool {
    COMPUTE.iter().any(|name| {
        set(resources.and_then(|r| r.requests.as_ref()), name).is_some()
            || set(resources.and_then(|r| r.limits.as_ref()), name).is_some()
    })
}

fn is_pinned(resources: Option<&ResourceRequirements>) -> bool {
    COMPUTE.iter().all(|name| {
        let limit = set(resources.and_then(|r| r.limits.as_ref()), name);
        let request = set(resources.and_then(|r| r.requests.as_ref()), name);
        limit.is_some() && request.is_none_or(|request| Some(request) == limit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_table() {
        let cases = [
            (
                "nothing asked",
                serde_json::json!([{"name": "a"}]),
                "BestEffort",
            ),
            (
                "zero is nothing",
                serde_json::json!([{"name": "a", "resources": {"requests": {"cpu": "0"}}}]),
                "BestEffort",
            ),
            (
                "limits for both",
                serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]),
                "Guaranteed",
            ),
            (
                "memory only",
                serde_json::json!([{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}]),
                "Burstable",
            ),
            (
                "one container without",
                serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {"name": "b"}]),
                "Burstable",
            ),
        ];
        for (name, containers, class) in cases {
            let spec: PodSpec =
                serde_json::from_value(serde_json::json!({ "containers": containers })).unwrap();
            assert_eq!(of(&spec), class, "case: {name}");
        }
        let whole = serde_json::json!({"containers": [{"name": "a"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}});
        let spec: PodSpec = serde_json::from_value(whole).unwrap();
        assert_eq!(of(&spec), "Guaranteed", "the Pod as a whole");
    }
}
