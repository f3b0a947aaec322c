//! How much of a device's capacity a request takes: what it asks for, rounded up as the device's policy wants it. Pure.

use std::collections::BTreeMap;

use cox_api::quantity::{Format, Quantity};
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequirements, Device, DeviceCapacity,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

/// Amounts by the names of capacities.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// Adds up.
pub(super) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to
            .get(name)
            .copied()
            .map_or(*amount, |known| known + *amount);
        to.insert(name.clone(), sum);
    }
}

pub(super) fn amount(written: &Written) -> Quantity {
    // What cannot be parsed was refused by validation.
    Quantity::parse(&written.0).unwrap_or_else(|_| Quantity::from_i64(0, Format::DecimalSi))
}

/// What a request takes of a device.
pub(super) fn taken(asked: Option<&CapacityRequirements>, device: &Device) -> Amounts {
    let all = device.capacity.iter().flatten();
    all.map(|(name, capacity)| (name.clone(), taken_of(asked_for(asked, name), capacity)))
        .collect()
}

/// Whether a request fits into what `used` leaves of a device.
pub(super) fn fits(asked: Option<&CapacityRequirements>, device: &Device, used: &Amounts) -> bool {
    let has = |name: &String| {
        let capacity = device.capacity.as_ref();
        capacity.is_some_and(|capacity| capacity.contains_key(name))
    };
    let mut names = asked
        .and_then(|asked| asked.requests.as_ref())
        .into_iter()
        .flatten();
    if !names.all(|(name, _)| has(name)) {
        return false;
    }
    let mut all = device.capacity.iter().flatten();
    all.all(|(name, capacity)| {
        let taken = taken_of(asked_for(asked, name), capacity);
        let policy = capacity.request_policy.as_ref();
        let sum = used.get(name).copied().map_or(taken, |used| used + taken);
        !policy.is_some_and(|policy| violates(taken, policy)) && sum <= amount(&capacity.value)
    })
}

fn asked_for(asked: Option<&CapacityRequirements>, name: &str) -> Option<Quantity> {
    asked?.requests.as_ref()?.get(name).map(amount)
}

fn taken_of(asked: Option<Quantity>, capacity: &DeviceCapacity) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        let default = policy.and_then(|policy| policy.default.as_ref());
        return amount(default.unwrap_or(&capacity.value));
    };
    let Some(policy) = policy else {
        return asked;
    };
    if let Some(range) = &policy.valid_range {
        let least = amount(&range.min);
        if asked < least {
            return least;
        }
        let Some(step) = &range.step else {
            return asked;
        };
        let (least, step) = (least.as_i64(), amount(step).as_i64().max(1));
        let over = asked.as_i64().saturating_sub(least);
        let steps = over / step + i64::from(over % step != 0);
        let rounded = least.saturating_add(step.saturating_mul(steps));
        return Quantity::from_i64(rounded, Format::BinarySi);
    }
    let mut values = policy.valid_values.iter().flatten().map(amount);
    values.find(|value| asked <= *value).unwrap_or(asked)
}

fn violates(taken: Quantity, policy: &CapacityRequestPolicy) -> bool {
    if policy.default.as_ref().map(amount) == Some(taken) {
        return false;
    }
    if let Some(range) = &policy.valid_range {
        let over = |most: &Written| taken > amount(most);
        let off = |step: &Written| {
            let over = taken.as_i64().saturating_sub(amount(&range.min).as_i64());
            over % amount(step).as_i64().max(1) != 0
        };
        return range.max.as_ref().is_some_and(over) || range.step.as_ref().is_some_and(off);
    }
    let values = policy.valid_values.as_deref().unwrap_or_default();
    !values.is_empty() && !values.iter().any(|value| amount(value) == taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_request_takes_table() {
        let range =
            json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "6Gi", "step": "2Gi"}});
        let values = json!({"default": "1", "validValues": ["1", "2", "4"]});
        let none = json!(null);
        let cases = [
            (
                "no policy: what is asked for",
                &none,
                Some("3Gi"),
                "10Gi",
                Some("3Gi"),
            ),
            (
                "no policy and nothing asked for: all",
                &none,
                None,
                "10Gi",
                Some("10Gi"),
            ),
            ("the default", &range, None, "10Gi", Some("1Gi")),
            (
                "at least the least",
                &range,
                Some("5Mi"),
                "10Gi",
                Some("1Gi"),
            ),
            (
                "rounded up to a step",
                &range,
                Some("2Gi"),
                "10Gi",
                Some("3Gi"),
            ),
            ("exactly a step", &range, Some("5Gi"), "10Gi", Some("5Gi")),
            ("more than the most", &range, Some("6Gi"), "10Gi", None),
            ("the next valid value", &values, Some("3"), "10", Some("4")),
            ("beyond the valid values", &values, Some("5"), "10", None),
            ("more than there is", &none, Some("11Gi"), "10Gi", None),
        ];
        for (name, policy, asked, has, expected) in cases {
            let device: Device = serde_json::from_value(
                json!({"name": "d", "capacity": {"memory": {"value": has, "requestPolicy": policy}}}),
            )
            .unwrap();
            let asked = asked.map(|asked| {
                serde_json::from_value(json!({"requests": {"memory": asked}})).unwrap()
            });
            let found = fits(asked.as_ref(), &device, &Amounts::new())
                .then(|| taken(asked.as_ref(), &device)["memory"].to_string());
            assert_eq!(found.as_deref(), expected, "case: {name}");
        }
    }

    #[test]
    fn a_capacity_that_the_device_lacks_and_one_that_others_took() {
        let device: Device =
            serde_json::from_value(json!({"name": "d", "capacity": {"memory": {"value": "4"}}}))
                .unwrap();
        let asked = |name: &str| serde_json::from_value(json!({"requests": {name: "3"}})).unwrap();
        assert!(fits(Some(&asked("memory")), &device, &Amounts::new()));
        assert!(!fits(Some(&asked("cores")), &device, &Amounts::new()));
        let used = Amounts::from([(
            "memory".to_owned(),
            Quantity::from_i64(2, Format::DecimalSi),
        )]);
        assert!(!fits(Some(&asked("memory")), &device, &used));
    }
}
