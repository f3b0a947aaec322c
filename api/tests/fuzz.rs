//! Properties over random input: nothing panics, and the canonical form is a fixed point.
//!
//! Objects are made along the schema from a seed, with a few percent of every value wrong on purpose.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is all tests"
)]

use cox_api::quantity::Quantity;
use cox_api::schema::{Resource, Schema, Shape, builtin};
use cox_api::selector::{FieldSelector, LabelSelector};
use cox_api::{codec, convert, defaults, strategy, validation};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A small generator of our own: proptest gives the seed, and the seed alone decides.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("below a length")].clone()
    }
}

const TEXTS: [&str; 14] = [
    "",
    "a",
    "A b",
    "Always",
    "None",
    "RollingUpdate",
    "x/y",
    "..",
    "/p",
    "10.0.0.1",
    "1Gi",
    "ä\u{0}\"",
    "Indexed",
    "aGk=",
];
const NUMBERS: [i64; 9] = [
    0,
    1,
    -1,
    80,
    65536,
    2_147_483_647,
    -2_147_483_648,
    4_294_967_296,
    i64::MAX,
];

fn anything(rng: &mut Rng) -> Value {
    match rng.below(7) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(rng.pick(&NUMBERS)),
        3 => json!(1.5),
        4 => json!(rng.pick(&TEXTS)),
        5 => json!([]),
        _ => json!({}),
    }
}

fn make(schema: &Schema, shape: &Shape, depth: u32, wrong: u64, rng: &mut Rng) -> Value {
    if wrong > 0 && rng.below(100) < wrong {
        return anything(rng);
    }
    match shape {
        Shape::Bool => json!(rng.below(2) == 0),
        Shape::Int32 => json!(rng.pick(&NUMBERS[..6])),
        Shape::Int64 => json!(rng.pick(&NUMBERS)),
        Shape::Float => json!(rng.pick(&[0.0, 1.0, 2.5])),
        Shape::String => json!(rng.pick(&TEXTS)),
        Shape::Bytes => json!(rng.pick(&["", "aGk=", "eA=="])),
        Shape::Time => json!(rng.pick(&[
            "2024-01-02T03:04:05Z",
            "2024-01-02T03:04:05.5+01:00",
            "0001-01-01T00:00:00Z"
        ])),
        Shape::MicroTime => {
            json!(rng.pick(&["2024-01-02T03:04:05.000006Z", "2024-01-02T03:04:05Z"]))
        }
        Shape::Duration => json!(rng.pick(&["0", "90s", "1h0.5s"])),
        Shape::Quantity => json!(rng.pick(&["0", "1", "0.5", "1500Mi", "-3", "1e3"])),
        Shape::IntOrString => rng.pick(&[json!(80), json!("25%"), json!("web")]),
        Shape::RawObject | Shape::AnyJson | Shape::FieldsV1 => {
            json!({"f:a": {"nested": [null, 1]}})
        }
        Shape::List(inner) => {
            let count = if depth == 0 { 0 } else { rng.below(3) };
            Value::Array(
                (0..count)
                    .map(|_| make(schema, inner, depth - 1, wrong, rng))
                    .collect(),
            )
        }
        Shape::Map(inner) => {
            let count = if depth == 0 { 0 } else { rng.below(3) };
            Value::Object(
                (0..count)
                    .map(|_| {
                        (
                            rng.pick(&TEXTS).to_owned(),
                            make(schema, inner, depth - 1, wrong, rng),
                        )
                    })
                    .collect(),
            )
        }
        Shape::Struct(id) => {
            let mut object = Map::new();
            if depth > 0 {
                for field in &schema.def(*id).fields {
                    if depth > 7 || rng.below(3) == 0 {
                        object.insert(
                            field.json.to_string(),
                            make(schema, &field.shape, depth - 1, wrong, rng),
                        );
                    }
                }
            }
            Value::Object(object)
        }
    }
}

/// The first place where two values differ, for messages that a person can read.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => x.keys().chain(y.keys()).find_map(|key| {
            difference(
                &format!("{path}.{key}"),
                x.get(key).unwrap_or(&Value::Null),
                y.get(key).unwrap_or(&Value::Null),
            )
        }),
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => x
            .iter()
            .zip(y)
            .enumerate()
            .find_map(|(at, (x, y))| difference(&format!("{path}[{at}]"), x, y)),
        _ => (a != b).then(|| format!("{path}: {a} and {b}")),
    }
}

fn object(resource: &Resource, wrong: u64, rng: &mut Rng) -> Value {
    make(builtin(), &Shape::Struct(resource.type_id), 9, wrong, rng)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_canonical_form_is_a_fixed_point_and_survives_the_store(seed in 1u64.., at in 0usize..95) {
        let schema = builtin();
        let resource = &schema.resources()[at];
        let mut rng = Rng(seed);
        let plain = object(resource, 0, &mut rng);
        let first = codec::canonicalize(schema, resource.type_id, plain).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&first.problems, &vec![]);
        let text = serde_json::to_vec(&first.value).unwrap();
        let again = codec::decode_json(schema, resource.type_id, &text).unwrap();
        prop_assert_eq!(difference("", &again.value, &first.value), None);
        let mut yaml = b"# not JSON\n".to_vec();
        yaml.extend_from_slice(&text);
        let from_yaml = codec::decode_yaml(schema, resource.type_id, &yaml).unwrap();
        prop_assert_eq!(difference("", &from_yaml.value, &first.value), None);
        // A first trip may settle what only one version can tell apart (no device facts and empty ones); a second changes nothing.
        let trip = |mut object: Value| {
            convert::to_storage(resource, &mut object);
            convert::from_storage(resource, &mut object);
            object
        };
        let converted = trip(first.value.clone());
        prop_assert_eq!(difference("", &trip(converted.clone()), &converted), None, "through the stored version and back");
        let mut stored = codec::encode_stored(&first.value);
        stored.json.splice(stored.revision_at..stored.revision_at, *b"12");
        let stored: Value = serde_json::from_slice(&stored.json).unwrap();
        prop_assert_eq!(&stored["metadata"]["resourceVersion"], "12");
        prop_assert_eq!(stored.get("spec"), first.value.get("spec"));
    }

    #[test]
    fn defaults_are_idempotent_canonical_and_nothing_after_them_panics(seed in 1u64.., at in 0usize..95) {
        let schema = builtin();
        let resource = &schema.resources()[at];
        let mut rng = Rng(seed);
        let old = object(resource, 0, &mut rng);
        let new = object(resource, 0, &mut rng);
        let canonical = |value| codec::canonicalize(schema, resource.type_id, value).unwrap().value;
        let (old, mut new) = (canonical(old), canonical(new));
        defaults::apply(resource, &mut new);
        let once = new.clone();
        defaults::apply(resource, &mut new);
        prop_assert_eq!(difference("", &new, &once), None, "a second run of the defaults changes nothing");
        prop_assert_eq!(difference("", &canonical(new.clone()), &once), None, "defaults keep the canonical form");
        let mut created = new.clone();
        strategy::prepare_create(resource, &mut created);
        validation::create(resource, &created);
        let mut updated = new.clone();
        strategy::prepare_update(resource, &mut updated, &old);
        for error in validation::update(resource, &updated, &old) {
            prop_assert!(!error.to_string().is_empty());
        }
        strategy::prepare_status_update(resource, &mut new, &old);
        validation::update_status(resource, &new, &old);
        strategy::selectable_fields(resource, &new);
        strategy::get_scale(resource, &new);
    }

    #[test]
    fn values_of_wrong_types_are_errors_and_never_panics(seed in 1u64.., at in 0usize..95) {
        let schema = builtin();
        let resource = &schema.resources()[at];
        let mut rng = Rng(seed);
        let text = serde_json::to_vec(&object(resource, 4, &mut rng)).unwrap();
        if let Ok(decoded) = codec::decode_json(schema, resource.type_id, &text) {
            let again = codec::canonicalize(schema, resource.type_id, decoded.value.clone()).unwrap();
            prop_assert_eq!(again.value, decoded.value);
        }
        let applied = codec::decode_applied_json(schema, resource.type_id, &text);
        prop_assert_eq!(applied.is_ok(), codec::decode_json(schema, resource.type_id, &text).is_ok());
    }

    #[test]
    fn bytes_that_are_no_object_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}:,\"a-z0-9&* \\n-]{0,80}") {
        let schema = builtin();
        let pod = schema.kind_type("", "v1", "Pod").unwrap();
        for input in [&bytes[..], text.as_bytes()] {
            codec::decode_json(schema, pod, input).ok();
            codec::decode_yaml(schema, pod, input).ok();
        }
    }

    #[test]
    fn quantities_print_what_they_parse(text in "[+-]?[0-9]{0,25}(\\.[0-9]{0,20})?([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,3})?", junk in "\\PC{0,12}") {
        Quantity::parse(&junk).ok();
        if let Ok(quantity) = Quantity::parse(&text) {
            let printed = quantity.to_string();
            let again = Quantity::parse(&printed).map_err(|e| TestCaseError::fail(format!("{text} {printed} {e}")))?;
            prop_assert_eq!(again.to_string(), printed, "of {}", text);
        }
    }

    #[test]
    fn selectors_never_panic_and_print_what_they_parse(text in "[a-z!=,() <>.\\\\/]{0,24}", junk in "\\PC{0,24}") {
        for input in [&text, &junk] {
            FieldSelector::parse(input).ok();
            if let Ok(selector) = LabelSelector::parse(input) {
                let printed = selector.to_string();
                prop_assert_eq!(LabelSelector::parse(&printed).unwrap().to_string(), printed);
            }
        }
    }
}
