//! Label selectors: `app=web,tier in (a,b),!canary`, and `metav1.LabelSelector`.

use super::SelectorError;
use crate::names;
use serde_json::Value;
use std::fmt;

/// All of these must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// The conditions.
    pub requirements: Vec<Requirement>,
    /// A null `metav1.LabelSelector` selects nothing, while an empty one selects everything.
    nothing: bool,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub operator: Operator,
    /// Values to compare with, sorted.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`, `==`, `in`.
    In,
    /// `!=`, `notin`; an absent label satisfies it.
    NotIn,
    /// The key alone.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `>`, for whole numbers.
    GreaterThan,
    /// `<`, for whole numbers.
    LessThan,
}

impl Requirement {
    /// Checks key and values as upstream does.
    pub fn new(
        key: &str,
        operator: Operator,
        mut values: Vec<String>,
    ) -> Result<Self, SelectorError> {
        if let Some(problem) = names::qualified_name(key).first() {
            return Err(SelectorError(format!(
                "key: Invalid value: {}: {problem}",
                crate::text::quote(key)
            )));
        }
        for value in &values {
            if let Some(problem) = names::label_value(value).first() {
                return Err(SelectorError(format!(
                    "values[0][{key}]: Invalid value: {}: {problem}",
                    crate::text::quote(value)
                )));
            }
        }
        let numeric = matches!(operator, Operator::GreaterThan | Operator::LessThan);
        if numeric && values.first().is_none_or(|v| v.parse::<i64>().is_err()) {
            return Err(SelectorError(
                "values[0]: Invalid value: for 'Gt', 'Lt' operators, the value must be an integer"
                    .to_owned(),
            ));
        }
        values.sort_unstable();
        Ok(Requirement {
            key: key.to_owned(),
            operator,
            values,
        })
    }

    fn matches(&self, actual: Option<&str>) -> bool {
        let listed = || actual.is_some_and(|actual| self.values.iter().any(|v| v == actual));
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => actual.is_some(),
            Operator::DoesNotExist => actual.is_none(),
            Operator::GreaterThan => self.compare(actual).is_some_and(std::cmp::Ordering::is_gt),
            Operator::LessThan => self.compare(actual).is_some_and(std::cmp::Ordering::is_lt),
        }
    }

    fn compare(&self, actual: Option<&str>) -> Option<std::cmp::Ordering> {
        let bound: i64 = self.values.first()?.parse().ok()?;
        Some(actual?.parse::<i64>().ok()?.cmp(&bound))
    }
}

impl LabelSelector {
    /// Reads the text form; empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, rest: text };
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if parser.rest.is_empty() {
                break;
            }
            parser.expect(",")?;
            parser.skip_space();
            if parser.rest.is_empty() {
                return Err(parser.unexpected("identifier after ','"));
            }
        }
        Ok(LabelSelector {
            requirements,
            nothing: false,
        })
    }

    /// From `metav1.LabelSelector`: null selects nothing, `{}` everything.
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(LabelSelector {
                requirements: Vec::new(),
                nothing: true,
            });
        }
        let mut requirements = Vec::new();
        for (key, value) in selector
            .get("matchLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            requirements.push(Requirement::new(
                key,
                Operator::In,
                vec![value.as_str().unwrap_or("").to_owned()],
            )?);
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or("");
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{} is not a valid label selector operator",
                        crate::text::quote(other)
                    )));
                }
            };
            let values = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            let values = values
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(LabelSelector {
            requirements,
            nothing: false,
        })
    }

    /// Every entry of a map must be there: what Services and ReplicationControllers have.
    pub fn from_map<'m>(entries: impl Iterator<Item = (&'m str, &'m str)>) -> Self {
        let requirements = entries.map(|(key, value)| Requirement {
            key: key.to_owned(),
            operator: Operator::In,
            values: vec![value.to_owned()],
        });
        LabelSelector {
            requirements: requirements.collect(),
            nothing: false,
        }
    }

    /// Does it select everything?
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Does it select nothing at all?
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// Do the labels satisfy it?
    pub fn matches<'l>(&self, labels: impl Iterator<Item = (&'l str, &'l str)> + Clone) -> bool {
        !self.nothing
            && self.requirements.iter().all(|r| {
                r.matches(
                    labels
                        .clone()
                        .find(|(key, _)| *key == r.key)
                        .map(|(_, value)| value),
                )
            })
    }
}

impl fmt::Display for LabelSelector {
    /// The text form that `status.selector` of Scale carries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut terms: Vec<&Requirement> = self.requirements.iter().collect();
        terms.sort_by(|a, b| a.key.cmp(&b.key));
        for (at, r) in terms.into_iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            let list = r.values.join(",");
            match r.operator {
                Operator::In if r.values.len() == 1 => write!(f, "{}={list}", r.key)?,
                Operator::In => write!(f, "{} in ({list})", r.key)?,
                Operator::NotIn => write!(f, "{} notin ({list})", r.key)?,
                Operator::Exists => f.write_str(&r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
                Operator::GreaterThan => write!(f, "{}>{list}", r.key)?,
                Operator::LessThan => write!(f, "{}<{list}", r.key)?,
            }
        }
        Ok(())
    }
}

struct Parser<'t> {
    text: &'t str,
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn word(&mut self) -> &'t str {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "=!(),<>".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn unexpected(&self, expected: &str) -> SelectorError {
        let found: String = self
            .rest
            .chars()
            .take_while(|c| !c.is_whitespace())
            .take(40)
            .collect();
        SelectorError(format!(
            "unable to parse requirement: found '{found}', expected: {expected}"
        ))
    }

    fn expect(&mut self, token: &str) -> Result<(), SelectorError> {
        self.rest = self
            .rest
            .strip_prefix(token)
            .ok_or_else(|| self.unexpected(&format!("'{token}'")))?;
        Ok(())
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        debug_assert!(
            self.text.ends_with(self.rest),
            "the rest is a tail of the text"
        );
        if self.take("!") {
            self.skip_space();
            let key = self.word();
            return self.build(key, Operator::DoesNotExist, Vec::new());
        }
        let key = self.word();
        if key.is_empty() {
            return Err(self.unexpected("!, identifier, or 'end of string'"));
        }
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return self.build(key, Operator::Exists, Vec::new());
        }
        for (token, operator) in [
            ("!=", Operator::NotIn),
            ("==", Operator::In),
            ("=", Operator::In),
            (">", Operator::GreaterThan),
            ("<", Operator::LessThan),
        ] {
            if self.take(token) {
                self.skip_space();
                let value = self.word().to_owned();
                return self.build(key, operator, vec![value]);
            }
        }
        let operator = match self.word() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            _ => return Err(self.unexpected("in, notin, =, ==, !=, gt, lt")),
        };
        let values = self.values()?;
        self.build(key, operator, values)
    }

    fn build(
        &self,
        key: &str,
        operator: Operator,
        values: Vec<String>,
    ) -> Result<Requirement, SelectorError> {
        Requirement::new(key, operator, values)
            .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.skip_space();
        self.expect("(")?;
        let mut values = Vec::new();
        loop {
            self.skip_space();
            values.push(self.word().to_owned());
            self.skip_space();
            if self.take(")") {
                return Ok(values);
            }
            self.expect(",")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LABELS: [(&str, &str); 3] = [("app", "web"), ("tier", "a"), ("n", "5")];

    #[test]
    fn text_selectors_match_labels() {
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier=a", true),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("n>4", true),
            ("n<5", false),
            ("app>4", false),
            ("tier in (b,)", false),
            ("x.io/app", false),
        ] {
            assert_eq!(
                LabelSelector::parse(text)
                    .unwrap()
                    .matches(LABELS.into_iter()),
                expected,
                "{text}"
            );
        }
        for bad in [
            "app=web,",
            "app in web",
            "app in (a",
            "=a",
            "app=a b",
            "a b",
            "!",
            "-x=1",
            "n>x",
            "a=(b)",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn selector_objects_match_labels() {
        for (value, expected) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["a"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
                true,
            ),
        ] {
            assert_eq!(
                LabelSelector::from_value(&value)
                    .unwrap()
                    .matches(LABELS.into_iter()),
                expected,
                "{value}"
            );
        }
        assert!(
            LabelSelector::from_value(
                &json!({"matchExpressions": [{"key": "a", "operator": "Near"}]})
            )
            .is_err()
        );
    }

    #[test]
    fn printed_selectors_parse_back() {
        for text in ["app=web", "a in (x,y),b notin (z)", "!c,d"] {
            let parsed = LabelSelector::parse(text).unwrap();
            assert_eq!(
                LabelSelector::parse(&parsed.to_string())
                    .unwrap()
                    .to_string(),
                parsed.to_string()
            );
        }
    }
}
