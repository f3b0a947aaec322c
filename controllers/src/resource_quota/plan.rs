//! What a quota's status must say. Pure.

use cox_api::quantity::{Format, Quantity};
use cox_api::quota;
use cox_api::totals::{Amounts, to_list};
use serde_json::{Value, json};

/// What objects of the kind use cannot be told from their number.
pub(super) fn needs_bodies(group: &str, plural: &str) -> bool {
    matches!(
        (group, plural),
        ("", "pods" | "services" | "persistentvolumeclaims")
            | ("resource.k8s.io", "resourceclaims")
    )
}

pub(super) fn has_scopes(quota: &Value) -> bool {
    !quota["spec"]["scopes"].is_null() || !quota["spec"]["scopeSelector"].is_null()
}

/// Adds so many objects of a kind.
pub(super) fn count(sum: &mut Amounts, group: &str, plural: &str, count: usize) {
    let amount = Quantity::from_i64(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi);
    for name in [quota::count_name(group, plural), plural.to_owned()] {
        if quota::concerns(group, plural, &name) {
            sum.insert(name, amount);
        }
    }
}

/// What is to be written as used: what was computed, but no lower than the present figure less what cannot be on its way.
pub(super) fn used(
    hard: &Amounts,
    current: &Amounts,
    computed: &Amounts,
    pending: &Amounts,
) -> Amounts {
    let of = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or(Quantity::ZERO);
    let names = hard.keys();
    names
        .map(|name| {
            let (computed, on_its_way) = (of(computed, name), of(pending, name));
            let amount = match current.get(name) {
                Some(current) if computed < *current => (*current).min(computed + on_its_way),
                _ => computed,
            };
            (name.clone(), amount)
        })
        .collect()
}

/// The status says that already.
pub(super) fn is_settled(status: &Value, hard: &Amounts, used: &Amounts) -> bool {
    let says =
        |field: &str, amounts: &Amounts| cox_api::totals::amounts(&status[field]) == *amounts;
    says("hard", hard) && says("used", used)
}

pub(super) fn status(hard: &Amounts, used: &Amounts) -> Value {
    json!({"hard": to_list(hard), "used": to_list(used)})
}

#[cfg(test)]
mod tests {
    use cox_api::totals::amounts;

    use super::*;

    #[test]
    fn figures_rise_at_once_and_fall_when_nothing_is_on_its_way() {
        let of = |pods: &str| amounts(&json!({"pods": pods}));
        let none = Amounts::new();
        let cases = [
            ("a new quota", none.clone(), of("3"), none.clone(), "3"),
            ("more than was charged", of("2"), of("3"), none.clone(), "3"),
            ("an object has gone", of("3"), of("2"), none.clone(), "2"),
            ("one is on its way", of("3"), of("2"), of("1"), "3"),
            ("one of two is", of("4"), of("2"), of("1"), "3"),
        ];
        for (name, current, computed, pending, expected) in cases {
            let used = used(&of("9"), &current, &computed, &pending);
            assert_eq!(used["pods"].to_string(), expected, "case: {name}");
        }
        let status = status(&of("9"), &of("3"));
        assert!(is_settled(&status, &of("9"), &of("3")));
        assert!(!is_settled(&status, &of("9"), &of("2")));
    }
}
