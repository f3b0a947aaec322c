//! Conditions as the Gateway API has them. Pure.

use serde_json::{Value, json};

/// A condition as it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) holds: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Condition {
    pub(crate) fn holds(kind: &'static str, reason: &'static str) -> Self {
        Self {
            kind,
            holds: true,
            reason,
            message: String::new(),
        }
    }

    pub(crate) fn fails(
        kind: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            holds: false,
            reason,
            message: message.into(),
        }
    }
}

/// The list as it has to be: the time of a condition that stays as it was stays too, and so do those of others.
pub(crate) fn render(wished: &[Condition], present: &Value, generation: i64, now: &str) -> Value {
    let present = present.as_array().map(Vec::as_slice).unwrap_or_default();
    let known = |kind: &str| present.iter().find(|one| one["type"] == kind);
    let mut all: Vec<Value> = wished
        .iter()
        .map(|one| {
            let status = if one.holds { "True" } else { "False" };
            let before = known(one.kind).filter(|before| before["status"] == status);
            let since =
                before.map_or_else(|| json!(now), |before| before["lastTransitionTime"].clone());
            json!({"type": one.kind, "status": status, "reason": one.reason, "message": one.message,
                "observedGeneration": generation, "lastTransitionTime": since})
        })
        .collect();
    let ours = |one: &&Value| wished.iter().any(|wish| one["type"] == wish.kind);
    all.extend(present.iter().filter(|one| !ours(one)).cloned());
    json!(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_move_only_with_the_status() {
        let first = render(
            &[Condition::holds("Accepted", "Accepted")],
            &Value::Null,
            1,
            "t1",
        );
        let again = render(&[Condition::holds("Accepted", "Accepted")], &first, 1, "t2");
        assert_eq!(first, again, "a settled object is not written");
        let other = render(
            &[Condition::fails("Accepted", "Invalid", "Why.")],
            &first,
            2,
            "t3",
        );
        assert_eq!(other[0]["lastTransitionTime"], "t3");
        let mixed = render(
            &[Condition::holds("Programmed", "Programmed")],
            &first,
            1,
            "t4",
        );
        assert_eq!(mixed.as_array().unwrap().len(), 2, "those of others stay");
    }
}
