//! Selectors of devices: what their expressions may name, and a device as they see it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::eval::EvalError;
use super::libraries::parse_version;
use super::{Budget, Cel, Expression, Key, Map, Opaque, Type};
use crate::quantity::Quantity;

/// What one evaluation may cost, and what may be expected of one at worst.
const COST_MAX: u64 = 1_000_000;
/// Attributes and capacities of a device, and so their domains too.
const ENTRIES_MAX: u64 = 32;

/// Why an expression is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It does not compile, or does not give a boolean.
    #[error("{0}")]
    Invalid(String),
    /// It may take too long.
    #[error("too complex, exceeds cost limit")]
    TooComplex,
}

/// A compiled selector.
#[derive(Clone, Debug)]
pub struct Selector(Expression);

impl Selector {
    /// Parses and checks; the complaint is upstream's.
    ///
    /// # Errors
    /// Why it is none.
    pub fn compile(source: &str) -> Result<Self, SelectorError> {
        let expression = Expression::parse(source).map_err(SelectorError::Invalid)?;
        let checked = expression.check(&*DEVICE).map_err(SelectorError::Invalid)?;
        if !matches!(checked.result, Type::Dyn | Type::Plain("bool")) {
            let gives = checked.result.name();
            return Err(SelectorError::Invalid(format!(
                "must evaluate to bool or the unknown type, not {gives}"
            )));
        }
        if checked.cost > COST_MAX {
            return Err(SelectorError::TooComplex);
        }
        Ok(Self(expression))
    }

    /// Whether it selects the device.
    ///
    /// # Errors
    /// Why it has no answer: an attribute that the device lacks is the usual reason.
    pub fn matches(&self, device: &DeviceValue) -> Result<bool, String> {
        let variables = [("device", device.0.clone())];
        let value = self.0.evaluate(&variables, &mut Budget::new(COST_MAX));
        match value.map_err(|error| error.to_string())? {
            Cel::Bool(answer) => Ok(answer),
            other => Err(format!(
                "CEL result of type {} could not be converted to bool: type conversion error from '{0}' to 'bool'",
                other.type_name()
            )),
        }
    }
}

/// The variables.
static DEVICE: LazyLock<[(&str, Type); 1]> = LazyLock::new(|| {
    let by_domain = |of: Type| {
        let inner = Type::Map(Box::new(of), ENTRIES_MAX);
        Type::Map(Box::new(inner), ENTRIES_MAX)
    };
    let fields = [
        ("driver", Type::Plain("string")),
        ("allowMultipleAllocations", Type::Plain("bool")),
        ("attributes", by_domain(Type::Dyn)),
        ("capacity", by_domain(Type::Plain("kubernetes.Quantity"))),
    ];
    let fields = fields.map(|(name, of)| (name.to_owned(), of));
    [("device", Type::Fields(Arc::new(fields.into())))]
});

/// A device as expressions see it.
#[derive(Clone, Debug)]
pub struct DeviceValue(Cel);

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// A number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(&'a str),
    /// A semantic version.
    Version(&'a str),
    /// Something that is not known here.
    Unknown,
}

impl Attribute<'_> {
    fn value(self) -> Result<Cel, String> {
        Ok(match self {
            Self::Int(int) => Cel::Int(int),
            Self::Bool(flag) => Cel::Bool(flag),
            Self::Text(text) => Cel::text(text),
            Self::Version(version) => {
                let parsed = parse_version(version, None)
                    .ok_or_else(|| format!("parse semantic version: {version:?} is none"))?;
                Cel::Semver(Arc::new(parsed))
            }
            Self::Unknown => return Err("unsupported attribute value".to_owned()),
        })
    }
}

impl DeviceValue {
    /// `shared`: it can be allocated more than once. Names without a domain have that of the driver.
    ///
    /// # Errors
    /// Which attribute has a value that is not known here.
    pub fn new<'a>(
        driver: &str,
        shared: bool,
        attributes: impl IntoIterator<Item = (&'a str, Attribute<'a>)>,
        capacities: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        let mut by_domain = Domains::default();
        for (name, attribute) in attributes {
            let value = attribute.value();
            let value = value.map_err(|why| format!("attribute {name}: {why}"))?;
            by_domain.add(driver, name, value);
        }
        let mut capacity = Domains::default();
        for (name, amount) in capacities {
            let value = Quantity::parse(amount);
            let value = value.map_err(|error| format!("capacity {name}: {error}"))?;
            capacity.add(driver, name, Cel::Quantity(value));
        }
        let fields = [
            ("driver", Cel::text(driver)),
            ("allowMultipleAllocations", Cel::Bool(shared)),
            ("attributes", by_domain.into_value()),
            ("capacity", capacity.into_value()),
        ];
        let fields = fields.map(|(name, value)| (Key::Text(name.to_owned()), value));
        Ok(Self(Cel::Map(Arc::new(fields.into()))))
    }
}

/// What a device has, by domain and name.
#[derive(Default)]
struct Domains(BTreeMap<String, Map>);

impl Domains {
    fn add(&mut self, driver: &str, name: &str, value: Cel) {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        let own = self.0.entry(domain.to_owned()).or_default();
        own.insert(Key::Text(id.to_owned()), value);
    }

    fn into_value(self) -> Cel {
        let domains = self.0.into_iter();
        let domains = domains.map(|(name, own)| (Key::Text(name), Cel::Map(Arc::new(own))));
        Cel::Opaque(Arc::new(Defaulting(Arc::new(domains.collect()))))
    }
}

/// A map in which keys that it lacks have an empty map, so that a missing domain reads like a missing name.
#[derive(Debug)]
struct Defaulting(Arc<Map>);

impl Opaque for Defaulting {
    fn type_name(&self) -> &'static str {
        "map"
    }

    fn call(&self, _method: &str, _args: &[Cel]) -> Option<Result<Cel, EvalError>> {
        None
    }

    fn select(
        self: Arc<Self>,
        field: &str,
        _budget: &mut Budget,
    ) -> Option<Result<Cel, EvalError>> {
        self.index(&Key::Text(field.to_owned())).map(Ok)
    }

    fn has(&self, field: &str) -> bool {
        self.0.contains_key(&Key::Text(field.to_owned()))
    }

    fn as_map(&self) -> Option<&Arc<Map>> {
        Some(&self.0)
    }

    fn index(&self, key: &Key) -> Option<Cel> {
        let found = self.0.get(key).cloned();
        Some(found.unwrap_or_else(|| Cel::Map(Arc::default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: [(&str, Attribute<'_>); 4] = [
        ("model", Attribute::Text("a100")),
        ("index", Attribute::Int(3)),
        ("healthy", Attribute::Bool(true)),
        ("other.example.com/firmware", Attribute::Version("1.10.0")),
    ];

    fn matches(source: &str) -> Result<bool, String> {
        let value = DeviceValue::new("dra.example.com", false, ATTRIBUTES, [("memory", "40Gi")])?;
        Selector::compile(source)
            .map_err(|error| error.to_string())?
            .matches(&value)
    }

    #[test]
    fn selectors_hold_or_not() {
        let cases = [
            ("device.driver == 'dra.example.com'", true),
            ("device.driver == 'x'", false),
            ("device.attributes['dra.example.com'].model == 'a100'", true),
            ("device.attributes['dra.example.com'].index > 2", true),
            ("device.attributes['dra.example.com']['healthy']", true),
            (
                "device.attributes['other.example.com'].firmware.isGreaterThan(semver('1.9.0'))",
                true,
            ),
            (
                "device.capacity['dra.example.com'].memory.compareTo(quantity('40Gi')) >= 0",
                true,
            ),
            (
                "device.capacity['dra.example.com'].memory.isGreaterThan(quantity('80Gi'))",
                false,
            ),
            ("'no.such' in device.attributes", false),
            ("'dra.example.com' in device.attributes", true),
            ("has(device.attributes['no.such'].model)", false),
            ("'model' in device.attributes['no.such']", false),
            (
                "device.attributes.exists_one(d, d == 'dra.example.com')",
                true,
            ),
            ("device.attributes.size() == 2", true),
            ("!device.allowMultipleAllocations", true),
            (
                "cel.bind(own, device.attributes['dra.example.com'], own.healthy && own.index == 3)",
                true,
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(matches(source), Ok(expected), "case: {source}");
        }
    }

    #[test]
    fn what_a_device_lacks_is_an_error_when_it_is_looked_at() {
        let cases = [
            (
                "device.attributes['no.such'].model == 'x'",
                "no such key: model",
            ),
            (
                "device.attributes['dra.example.com'].nothing == 'x'",
                "no such key: nothing",
            ),
            (
                "device.attributes['dra.example.com'].model",
                "CEL result of type string could not be converted to bool: type conversion error from 'string' to 'bool'",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(matches(source), Err(expected.to_owned()), "case: {source}");
        }
        let unknown = DeviceValue::new("d", false, [("model", Attribute::Unknown)], []);
        assert_eq!(
            unknown.err().as_deref(),
            Some("attribute model: unsupported attribute value")
        );
    }

    #[test]
    fn what_is_no_selector_is_told() {
        let cases = [
            (
                "device.driver.size()",
                "must evaluate to bool or the unknown type, not int",
            ),
            (
                "device.noSuchField == 1",
                "compilation failed: ERROR: <input>:1:1: undefined field 'noSuchField'",
            ),
            (
                "noSuchVar == 1",
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'noSuchVar' (in container '')",
            ),
            (
                "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a == b && c == d))))",
                "too complex, exceeds cost limit",
            ),
        ];
        for (source, expected) in cases {
            let error = Selector::compile(source).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{source}: {error}");
        }
        assert!(
            Selector::compile("?")
                .unwrap_err()
                .to_string()
                .contains("Syntax error")
        );
    }
}
