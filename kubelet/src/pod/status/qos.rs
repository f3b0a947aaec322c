//! The quality-of-service class of a Pod, from the cpu and memory of its containers.

use k8s_openapi::api::core::v1::{Container, PodSpec};
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
    let containers: Vec<&Container> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .collect();
    let asks = |container: &&Container| {
        let resources = container.resources.as_ref();
        COMPUTE.iter().any(|name| {
            set(resources.and_then(|r| r.requests.as_ref()), name).is_some()
                || set(resources.and_then(|r| r.limits.as_ref()), name).is_some()
        })
    };
    let pinned = |container: &&Container| {
        let resources = container.resources.as_ref();
        COMPUTE.iter().all(|name| {
            let limit = set(resources.and_then(|r| r.limits.as_ref()), name);
            let request = set(resources.and_then(|r| r.requests.as_ref()), name);
            limit.is_some() && request.is_none_or(|request| Some(request) == limit)
        })
    };
    if !containers.iter().any(asks) {
        "BestEffort"
    } else if containers.iter().all(pinned) {
        "Guaranteed"
    } else {
        "Burstable"
    }
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
    }
}
