//! The quality-of-service class of a Pod.

use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// What the class depends on.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has CPU and memory limits, and requests just those.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As written in a status.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

type Sums = BTreeMap<&'static str, Quantity>;

/// The class of a Pod, from its own resources if it has any, else from those of its containers.
pub fn qos_class(pod: &Value) -> Qos {
    let (mut requests, mut limits) = (Sums::new(), Sums::new());
    let mut all_limited = true;
    match pod.pointer("/spec/resources") {
        Some(resources)
            if resources.get("requests").is_some() || resources.get("limits").is_some() =>
        {
            all_limited = add(resources, &mut requests, &mut limits);
        }
        _ => {
            let lists = ["/spec/containers", "/spec/initContainers"];
            for container in lists
                .iter()
                .filter_map(|list| pod.pointer(list)?.as_array())
                .flatten()
            {
                let resources = container.get("resources").unwrap_or(&Value::Null);
                all_limited &= add(resources, &mut requests, &mut limits);
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return Qos::BestEffort;
    }
    if all_limited && requests == limits {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// Adds up what is more than nothing; answers whether both CPU and memory are limited.
fn add(resources: &Value, requests: &mut Sums, limits: &mut Sums) -> bool {
    let mut limited = 0;
    for name in COUNTED {
        for (list, sums) in [("requests", &mut *requests), ("limits", &mut *limits)] {
            let quantity = resources
                .get(list)
                .and_then(|l| l.get(name)?.as_str()?.parse().ok());
            let Some(quantity) = quantity.filter(|q: &Quantity| !q.is_zero() && !q.is_negative())
            else {
                continue;
            };
            limited += usize::from(list == "limits");
            let sum = sums.entry(name).or_insert(Quantity::ZERO);
            *sum = *sum + quantity;
        }
    }
    limited == COUNTED.len()
}
