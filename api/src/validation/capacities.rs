//! What may be asked of a device's capacity when several claims share it.

use super::FieldError;
use super::devices::at_most;
use super::node::{Errors, Node};
use crate::quantity::Quantity;
use std::collections::HashSet;

const VALUES_MAX: usize = 10;

/// A quantity that decoding has accepted.
fn amount(node: &Node<'_>) -> Option<Quantity> {
    Quantity::parse(node.as_text()).ok()
}

/// Complains about a quantity, in its canonical form.
fn wrong(at: &Node<'_>, amount: Quantity, why: String, errors: &mut Errors) {
    errors.push(FieldError::invalid(at.path(), amount.to_string(), why));
}

/// Rules of `requestPolicy`: single values or a range, and a default among them.
pub(super) fn request_policy(capacity: &Node<'_>, policy: &Node<'_>, errors: &mut Errors) {
    let value = capacity.get("value");
    let most = amount(&value).unwrap_or(Quantity::ZERO);
    let default = policy.get("default");
    let (values, range) = (policy.len("validValues") > 0, policy.some("validRange"));
    let kind = match (values, &range) {
        (true, Some(_)) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return policy.forbidden(why, errors);
        }
        (true, None) => "validValues",
        (false, Some(_)) => "validRange",
        (false, None) => return,
    };
    let Some(default) = amount(&default) else {
        let why = format!("required when {kind} is defined");
        return default.required(&why, errors);
    };
    match range {
        Some(range) => valid_range(&range, default, most, errors),
        None => valid_values(policy, default, most, errors),
    }
}

fn valid_values(policy: &Node<'_>, default: Quantity, most: Quantity, errors: &mut Errors) {
    let amounts: Vec<Quantity> = policy
        .items("validValues")
        .filter_map(|value| amount(&value))
        .collect();
    for (at, value) in policy.items("validValues").enumerate().skip(1) {
        if amounts
            .get(at)
            .zip(amounts.get(at - 1))
            .is_some_and(|(one, before)| one < before)
        {
            wrong(
                &value,
                amounts[at],
                "values must be sorted in ascending order".to_owned(),
                errors,
            );
        }
    }
    if !at_most(policy, "validValues", VALUES_MAX, errors) {
        let mut taken = HashSet::new();
        for (value, one) in policy.items("validValues").zip(&amounts) {
            if *one > most {
                let why = format!("option is larger than capacity value: {most}");
                wrong(&value, *one, why, errors);
            }
            if !taken.insert(one.as_i64()) {
                errors.push(FieldError::duplicate(
                    value.path(),
                    one.as_i64().to_string(),
                ));
            }
        }
    }
    if !amounts.contains(&default) {
        let why = "default value is not valid according to the requestPolicy".to_owned();
        wrong(&policy.get("validValues"), default, why, errors);
    }
}

fn valid_range(range: &Node<'_>, default: Quantity, most: Quantity, errors: &mut Errors) {
    let (min_at, max_at, step_at) = (range.get("min"), range.get("max"), range.get("step"));
    let Some(min) = amount(&min_at) else {
        return min_at.required("required when validRange is defined", errors);
    };
    if min > most {
        wrong(
            &min_at,
            min,
            format!("min is larger than capacity value: {most}"),
            errors,
        );
    }
    if default < min {
        wrong(
            &min_at,
            default,
            format!("default is less than min: {min}"),
            errors,
        );
    }
    let max = amount(&max_at);
    if let Some(max) = max {
        if min > max {
            wrong(
                &max_at,
                min,
                format!("min is larger than max: {max}"),
                errors,
            );
        }
        if max > most {
            wrong(
                &max_at,
                max,
                format!("max is larger than capacity value: {most}"),
                errors,
            );
        }
        if default > max {
            wrong(
                &max_at,
                default,
                format!("default is more than max: {max}"),
                errors,
            );
        }
    }
    let Some(step) = amount(&step_at) else {
        return;
    };
    let first = min + step;
    if first > most {
        let why = format!("one step {first} is larger than capacity value: {most}");
        wrong(&step_at, step, why, errors);
    }
    for value in [Some(default), max].into_iter().flatten() {
        let above = value.as_i64().saturating_sub(min.as_i64());
        // Validation of numbers cannot divide by a step of nothing; upstream's server panics there.
        if step.as_i64() == 0 || above % step.as_i64() != 0 {
            let why = format!("value is not a multiple of a given step ({step}) from ({min})");
            wrong(&step_at, value, why, errors);
        }
    }
}
