//! A cursor over the value under validation that knows its path, so that rules read as they are written in the docs.

use super::FieldError;
use serde_json::Value;
use std::fmt::Write;

/// Complaints found so far.
pub(super) type Errors = Vec<FieldError>;
/// What is wrong with the form of a text; empty if nothing is.
pub(super) type Format = fn(&str) -> Vec<String>;

/// Upstream leaves parts out of some paths; this takes them out of the complaints found since then.
pub(super) fn repath(errors: &mut Errors, since: usize, part: &str, instead: &str) {
    for error in errors.iter_mut().skip(since) {
        error.field = error.field.replacen(part, instead, 1);
    }
}

/// A place in the object. Paths are rendered only for complaints.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    /// What is there; null if nothing.
    pub(super) value: &'a Value,
    parent: Option<&'a Node<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Item(&'a str, usize),
    Key(&'a str, &'a str),
}

static NULL: Value = Value::Null;

impl<'a> Node<'a> {
    /// The object itself.
    pub(super) fn root(value: &'a Value) -> Node<'a> {
        Node {
            value,
            parent: None,
            step: Step::Root,
        }
    }

    /// A field, there or not.
    pub(super) fn get(&'a self, field: &'a str) -> Node<'a> {
        Node {
            value: self.value.get(field).unwrap_or(&NULL),
            parent: Some(self),
            step: Step::Field(field),
        }
    }

    /// A field, if it is there.
    pub(super) fn some(&'a self, field: &'a str) -> Option<Node<'a>> {
        Some(self.get(field)).filter(|node| !node.value.is_null())
    }

    /// The items of a list field.
    pub(super) fn items(&'a self, field: &'a str) -> impl Iterator<Item = Node<'a>> {
        let list = self.value.get(field).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .enumerate()
            .map(move |(at, value)| Node {
                value,
                parent: Some(self),
                step: Step::Item(field, at),
            })
    }

    /// The entries of a map field.
    pub(super) fn entries(&'a self, field: &'a str) -> impl Iterator<Item = (&'a str, Node<'a>)> {
        let map = self.value.get(field).and_then(Value::as_object);
        map.into_iter().flatten().map(move |(key, value)| {
            (
                key.as_str(),
                Node {
                    value,
                    parent: Some(self),
                    step: Step::Key(field, key),
                },
            )
        })
    }

    /// Is the field there?
    pub(super) fn has(&self, field: &str) -> bool {
        self.value.get(field).is_some_and(|value| !value.is_null())
    }

    /// How many items or entries a field has.
    pub(super) fn len(&self, field: &str) -> usize {
        match self.value.get(field) {
            Some(Value::Array(items)) => items.len(),
            Some(Value::Object(entries)) => entries.len(),
            _ => 0,
        }
    }

    /// A string field, empty if absent.
    pub(super) fn text(&self, field: &str) -> &'a str {
        self.value.get(field).and_then(Value::as_str).unwrap_or("")
    }

    /// A number field.
    pub(super) fn int(&self, field: &str) -> Option<i64> {
        self.value.get(field)?.as_i64()
    }

    /// A flag, false if absent.
    pub(super) fn flag(&self, field: &str) -> bool {
        self.value
            .get(field)
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    /// This string, empty if it is none.
    pub(super) fn as_text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    /// The path from the root.
    pub(super) fn path(&self) -> String {
        let mut out = self.parent.map_or_else(String::new, |parent| parent.path());
        let (Step::Field(name) | Step::Item(name, _) | Step::Key(name, _)) = self.step else {
            return out;
        };
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(name);
        let written = match self.step {
            Step::Item(_, at) => write!(out, "[{at}]"),
            Step::Key(_, key) => write!(out, "[{key}]"),
            Step::Root | Step::Field(_) => Ok(()),
        };
        written.expect("writing to a String cannot fail");
        out
    }

    /// This must be there.
    pub(super) fn required(&self, detail: &str, errors: &mut Errors) {
        errors.push(FieldError::required(self.path(), detail));
    }

    /// This is malformed.
    pub(super) fn invalid(&self, detail: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::invalid(self.path(), self.value.clone(), detail));
    }

    /// This must not be.
    pub(super) fn forbidden(&self, detail: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::forbidden(self.path(), detail));
    }

    /// This appears twice.
    pub(super) fn duplicate(&self, errors: &mut Errors) {
        errors.push(FieldError::duplicate(self.path(), self.value.clone()));
    }

    /// Every complaint about the format of this.
    pub(super) fn all_invalid(&self, details: Vec<String>, errors: &mut Errors) {
        for detail in details {
            self.invalid(detail, errors);
        }
    }

    /// Complains unless this string is one of the values; empty is missing.
    pub(super) fn one_of(&self, supported: &[&str], errors: &mut Errors) {
        match self.as_text() {
            "" => self.required("", errors),
            text if supported.contains(&text) => {}
            _ => self.not_supported(supported, errors),
        }
    }

    /// The same, but absent is fine.
    pub(super) fn one_of_if_set(&self, supported: &[&str], errors: &mut Errors) {
        if !self.value.is_null() {
            self.supported(supported, errors);
        }
    }

    /// Complains unless this string is one of the values; empty is just another wrong one.
    pub(super) fn supported(&self, supported: &[&str], errors: &mut Errors) {
        if !supported.contains(&self.as_text()) {
            let value = self.as_text();
            errors.push(FieldError::not_supported(self.path(), value, supported));
        }
    }

    /// Complains unless this string is one of the values or empty.
    pub(super) fn check_supported_if_set(&self, supported: &[&str], errors: &mut Errors) {
        if !self.as_text().is_empty() {
            self.supported(supported, errors);
        }
    }

    /// This string must have the form.
    pub(super) fn check(&self, format: Format, errors: &mut Errors) {
        for detail in format(self.as_text()) {
            errors.push(FieldError::invalid(self.path(), self.as_text(), detail));
        }
    }

    /// This string must have the form if it says anything.
    pub(super) fn check_if_set(&self, format: Format, errors: &mut Errors) {
        if !self.as_text().is_empty() {
            self.check(format, errors);
        }
    }

    /// This string must have the form if it is there, be it empty.
    pub(super) fn check_given(&self, format: Format, errors: &mut Errors) {
        if !self.value.is_null() {
            self.check(format, errors);
        }
    }

    /// This string must be there and have the form.
    pub(super) fn need_format(&self, format: Format, errors: &mut Errors) {
        if self.as_text().is_empty() {
            self.required("", errors);
        } else {
            self.check(format, errors);
        }
    }

    /// A field must be what it was.
    pub(super) fn same(&self, old: &Node<'_>, field: &str, errors: &mut Errors) {
        if self.differs(old, field) {
            self.get(field).changed("field is immutable", errors);
        }
    }

    /// Is a field other than it was? Absent and null are one.
    pub(super) fn differs(&self, old: &Node<'_>, field: &str) -> bool {
        let of = |value: &'_ Value| value.get(field).filter(|v| !v.is_null()).cloned();
        match (self.value.get(field), old.value.get(field)) {
            (Some(new), Some(old)) => new != old,
            _ => of(self.value) != of(old.value),
        }
    }

    /// This is not what it was; a text that is gone prints as an empty one.
    pub(super) fn changed(&self, detail: &str, errors: &mut Errors) {
        self.invalid(detail, errors);
    }

    /// How many of the fields are there.
    pub(super) fn count_of(&self, fields: &[&str]) -> usize {
        fields.iter().filter(|field| self.has(field)).count()
    }

    /// The items of a list of texts, and the complaint about those that appear twice.
    pub(super) fn unique_texts(&'a self, field: &'a str, errors: &mut Errors) {
        let mut taken = std::collections::HashSet::new();
        for item in self.items(field) {
            if !taken.insert(item.as_text()) {
                item.duplicate(errors);
            }
        }
    }

    /// Complains about items that repeat another one's field.
    pub(super) fn unique_by(&'a self, list: &'a str, key: &'a str, errors: &mut Errors) {
        let mut taken = std::collections::HashSet::new();
        for item in self.items(list) {
            if !item.text(key).is_empty() && !taken.insert(item.text(key)) {
                item.get(key).duplicate(errors);
            }
        }
    }

    /// This is none of the values.
    pub(super) fn not_supported(&self, supported: &[&str], errors: &mut Errors) {
        errors.push(FieldError::not_supported(
            self.path(),
            self.value.clone(),
            supported,
        ));
    }

    /// Complains if a number field is below zero.
    pub(super) fn non_negative(&self, fields: &[&str], errors: &mut Errors) {
        for field in fields {
            if self.int(field).is_some_and(|number| number < 0) {
                self.get(field)
                    .invalid("must be greater than or equal to 0", errors);
            }
        }
    }

    /// Complains if a number field is there and outside the range.
    pub(super) fn in_range(&self, field: &str, low: i64, high: i64, errors: &mut Errors) {
        if self
            .int(field)
            .is_some_and(|number| !(low..=high).contains(&number))
        {
            self.get(field).invalid(
                format!("must be between {low} and {high}, inclusive"),
                errors,
            );
        }
    }

    /// Complains if a field is missing or empty.
    pub(super) fn need(&self, field: &str, errors: &mut Errors) -> bool {
        let missing = match self.value.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if missing {
            self.get(field).required("", errors);
        }
        !missing
    }
}
