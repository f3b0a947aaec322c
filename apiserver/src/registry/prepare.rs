//! The metadata that the server owns: names, uid, times, generation. Pure but for the random parts of names and uids.

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value};

use super::Entry;

/// Letters that upstream makes generated names of: no vowels and nothing that looks like another.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LEN: usize = 5;
const NAME_LEN_MAX: usize = 63;

/// Namespace (empty for cluster scope) and name of an object.
pub(crate) fn names(entry: &Entry, object: &Value) -> (String, String) {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let namespace = if entry.resource.namespaced {
        text("namespace")
    } else {
        String::new()
    };
    (namespace, text("name"))
}

/// The object's metadata, made if it is missing.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("just made an object");
    let metadata = map
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("just made an object")
}

/// `2026-01-31T10:00:00Z`
pub(crate) fn time_text(at: Timestamp) -> String {
    let at = at.to_zoned(jiff::tz::TimeZone::UTC);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// A name from `generateName`.
pub(crate) fn generated_name(base: &str) -> String {
    let mut end = base.len().min(NAME_LEN_MAX - SUFFIX_LEN);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    let mut random = rand::rng();
    name.extend(
        (0..SUFFIX_LEN)
            .map(|_| char::from(NAME_LETTERS[random.random_range(0..NAME_LETTERS.len())])),
    );
    name
}

/// Gives a new object what only the server gives: uid and creation time; takes away what only it may set.
pub(crate) fn stamp_new(object: &mut Value, now: Timestamp) {
    let metadata = metadata(object);
    for name in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        metadata.remove(name);
    }
    metadata.insert(
        "uid".to_owned(),
        Value::String(uuid::Uuid::new_v4().to_string()),
    );
    metadata.insert(
        "creationTimestamp".to_owned(),
        Value::String(time_text(now)),
    );
}

/// Metadata that no update changes comes from the old object.
pub(crate) fn carry_over(object: &mut Value, old: &Value) {
    let metadata = metadata(object);
    for name in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        match old["metadata"].get(name) {
            Some(value) => {
                metadata.insert(name.to_owned(), value.clone());
            }
            None => {
                metadata.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generated_names_keep_their_base_and_fit_a_label() {
        for (base, kept) in [
            ("web-", "web-"),
            ("x".repeat(80).as_str(), "x".repeat(58).as_str()),
        ] {
            let name = generated_name(base);
            assert!(
                name.starts_with(kept) && name.len() == kept.len() + SUFFIX_LEN,
                "case: {base}: {name}"
            );
            assert_ne!(name, generated_name(base));
        }
    }

    #[test]
    fn what_the_server_owns_survives_an_update() {
        let old = json!({"metadata": {"uid": "u", "creationTimestamp": "t", "generation": 3, "resourceVersion": "7"}});
        let mut new = json!({"metadata": {"uid": "other", "deletionTimestamp": "forged", "labels": {"a": "b"}}});
        carry_over(&mut new, &old);
        assert_eq!(
            new,
            json!({"metadata": {"uid": "u", "creationTimestamp": "t", "generation": 3, "resourceVersion": "7", "labels": {"a": "b"}}})
        );
    }

    #[test]
    fn times_are_written_to_the_second() {
        assert_eq!(
            time_text("2026-01-02T03:04:05.678Z".parse().unwrap()),
            "2026-01-02T03:04:05Z"
        );
    }
}
