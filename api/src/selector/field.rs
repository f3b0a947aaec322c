//! Field selectors: `metadata.name=a,status.phase!=Running`.

use super::SelectorError;

/// All of these must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// The conditions, in the order given.
    pub requirements: Vec<FieldRequirement>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Path, e.g. `spec.nodeName`.
    pub field: String,
    /// Must it be equal, or must it not?
    pub equal: bool,
    /// Value to compare with.
    pub value: String,
}

impl FieldSelector {
    /// Reads the text form; empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let malformed = || {
                SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                ))
            };
            let (field, equal, value) = split_term(term).ok_or_else(malformed)?;
            let value = unescape(value)
                .map_err(|bad| SelectorError(format!("invalid field selector: {bad}")))?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                equal,
                value,
            });
        }
        Ok(FieldSelector { requirements })
    }

    /// Does it select everything?
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that a field must have, if one condition says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.equal && r.field == field)
            .map(|r| r.value.as_str())
    }

    /// Do the fields satisfy it? A field that is not among them is empty.
    pub fn matches<'f>(&self, fields: impl Iterator<Item = (&'f str, &'f str)> + Clone) -> bool {
        self.requirements.iter().all(|r| {
            let actual = fields
                .clone()
                .find(|(field, _)| *field == r.field)
                .map_or("", |(_, value)| value);
            (actual == r.value) == r.equal
        })
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// The first operator splits field from value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    (0..term.len())
        .filter(|at| term.is_char_boundary(*at))
        .find_map(|at| {
            let rest = &term[at..];
            ["!=", "==", "="]
                .iter()
                .find_map(|op| Some((&term[..at], *op != "!=", rest.strip_prefix(op)?)))
        })
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid escape sequence: \\{c}")),
                None => return Err("invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => return Err(format!("unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_match_fields() {
        let fields = [("metadata.name", "a"), ("status.phase", "Running")];
        for (text, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a", true),
            ("metadata.name!=a", false),
            ("metadata.name=a,status.phase!=Running", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
        ] {
            assert_eq!(
                FieldSelector::parse(text)
                    .unwrap()
                    .matches(fields.into_iter()),
                expected,
                "{text}"
            );
        }
        assert_eq!(
            FieldSelector::parse("a=b\\,c").unwrap().requirements[0].value,
            "b,c"
        );
        for bad in ["a", "a=b=c", "a=\\x"] {
            assert!(FieldSelector::parse(bad).is_err(), "{bad}");
        }
    }
}
