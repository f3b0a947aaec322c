//! How much of a node something asks for or takes: quantities as integers, and what a Pod's spec adds up to.

use cox_client::placement::{Amount, add_up};
use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// A container that asks for no CPU is taken to use this much when nodes are scored.
const DEFAULT_CPU_MILLIS: i64 = 100;
/// A container that asks for no memory is taken to use this much when nodes are scored.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of each resource: CPU in thousandths, the rest in whole units (bytes, devices).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of local ephemeral storage.
    pub ephemeral_storage: i64,
    /// Everything else, by name, sorted. `pods` is not among them.
    pub scalars: Vec<(Box<str>, i64)>,
}

/// What one Pod takes from a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// What it asks for: decides whether it fits.
    pub asked: Resources,
    /// CPU in thousandths with a default for containers that ask for none: for scores.
    pub scored_cpu_millis: i64,
    /// Memory in bytes with a default for containers that ask for none: for scores.
    pub scored_memory: i64,
}

impl Resources {
    /// Amounts as written in the API. What cannot be parsed was refused by validation and counts as nothing.
    pub fn parse(quantities: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, Quantity(text)) in quantities {
            let Ok(quantity) = cox_api::quantity::Quantity::parse(text) else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.cpu_millis = quantity.as_millis(),
                "memory" => resources.memory = quantity.as_i64(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.as_i64(),
                "pods" => {}
                name => resources.scalars.push((name.into(), quantity.as_i64())),
            }
        }
        resources
    }

    /// The amount of a resource beyond the named three.
    pub fn scalar(&self, name: &str) -> i64 {
        let found = self.scalars.binary_search_by(|(own, _)| (**own).cmp(name));
        found.map_or(0, |index| self.scalars[index].1)
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    fn merge(&mut self, other: &Self, combine: fn(i64, i64) -> i64) {
        self.cpu_millis = combine(self.cpu_millis, other.cpu_millis);
        self.memory = combine(self.memory, other.memory);
        self.ephemeral_storage = combine(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            match self.scalars.binary_search_by(|(own, _)| own.cmp(name)) {
                Ok(index) => self.scalars[index].1 = combine(self.scalars[index].1, *amount),
                Err(index) => self
                    .scalars
                    .insert(index, (name.clone(), combine(0, *amount))),
            }
        }
    }

    fn clear_where(&mut self, other: &Self) {
        if other.cpu_millis != 0 {
            self.cpu_millis = 0;
        }
        if other.memory != 0 {
            self.memory = 0;
        }
        self.scalars.retain(|(name, _)| {
            other
                .scalars
                .binary_search_by(|(own, _)| own.cmp(name))
                .is_err()
        });
    }
}

impl Amount for Resources {
    fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    fn raise(&mut self, other: &Self) {
        self.merge(other, i64::max);
    }
}

impl Requests {
    /// What a Pod takes: the larger of what its containers and sidecars need together and what each init container needs
    /// beside the sidecars started before it; requests of the Pod as a whole take precedence; overhead comes on top.
    pub fn of(spec: &PodSpec) -> Self {
        let mut asked = add_up(spec, |container| requests_of(container.resources.as_ref()));
        let mut scored = add_up(spec, |container| {
            let mut requests = requests_of(container.resources.as_ref());
            let written = container
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref());
            let has = |name: &str| written.is_some_and(|requests| requests.contains_key(name));
            if !has("cpu") {
                requests.cpu_millis = DEFAULT_CPU_MILLIS;
            }
            if !has("memory") {
                requests.memory = DEFAULT_MEMORY;
            }
            requests
        });
        let of_pod = requests_of(spec.resources.as_ref());
        let overhead = spec
            .overhead
            .as_ref()
            .map(Resources::parse)
            .unwrap_or_default();
        for sum in [&mut asked, &mut scored] {
            sum.clear_where(&of_pod);
            sum.raise(&of_pod);
            sum.add(&overhead);
        }
        Self {
            asked,
            scored_cpu_millis: scored.cpu_millis,
            scored_memory: scored.memory,
        }
    }
}

fn requests_of(resources: Option<&ResourceRequirements>) -> Resources {
    resources
        .and_then(|resources| resources.requests.as_ref())
        .map(Resources::parse)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: serde_json::Value) -> (i64, i64, i64, i64) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let requests = Requests::of(&spec);
        (
            requests.asked.cpu_millis,
            requests.asked.memory,
            requests.asked.scalar("example.com/gpu"),
            requests.scored_cpu_millis,
        )
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    fn sidecar(cpu: &str) -> serde_json::Value {
        json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn cpu_table() {
        let cases = [
            (
                "containers add up",
                json!({"containers": [container("100m"), container("1")]}),
                1100,
            ),
            (
                "the largest init container counts",
                json!({"initContainers": [container("3"), container("2")], "containers": [container("1")]}),
                3000,
            ),
            (
                "init containers that need less cost nothing",
                json!({"initContainers": [container("500m")], "containers": [container("1")]}),
                1000,
            ),
            (
                "sidecars run beside the containers",
                json!({"initContainers": [sidecar("1")], "containers": [container("1")]}),
                2000,
            ),
            (
                "and beside later init containers",
                json!({"initContainers": [sidecar("1"), container("3")], "containers": [container("1")]}),
                4000,
            ),
            (
                "but not beside earlier ones",
                json!({"initContainers": [container("3"), sidecar("1")], "containers": [container("1")]}),
                3000,
            ),
            (
                "overhead comes on top",
                json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}),
                1250,
            ),
            (
                "requests of the Pod as a whole take precedence",
                json!({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}}),
                3000,
            ),
            (
                "nothing asked for",
                json!({"containers": [{"name": "c"}]}),
                0,
            ),
        ];
        for (name, spec, expected) in cases {
            assert_eq!(of(spec).0, expected, "case: {name}");
        }
    }

    #[test]
    fn other_resources_and_the_defaults_for_scores() {
        let spec = json!({"containers": [
            {"name": "a", "resources": {"requests": {"memory": "1Gi", "example.com/gpu": "2"}}},
            {"name": "b", "resources": {"requests": {"example.com/gpu": "1"}}}]});
        assert_eq!(of(spec), (0, 1 << 30, 3, 200));
    }
}
