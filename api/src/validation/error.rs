//! A complaint about one field, in upstream's words.

use crate::text::quote;
use serde_json::Value;
use std::fmt;

/// What kind of complaint it is; the reason in the Status cause follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The value names something that is not there.
    NotFound,
    /// Missing.
    Required,
    /// Must be unique.
    Duplicate,
    /// Malformed or out of range.
    Invalid,
    /// Not one of the values allowed.
    NotSupported,
    /// Well-formed, but not allowed here.
    Forbidden,
    /// Longer than allowed.
    TooLong,
    /// More items than allowed.
    TooMany,
    /// Malformed, and too large to print.
    InvalidUnshown,
    /// Of the wrong type.
    TypeInvalid,
    /// Our fault.
    Internal,
}

impl ErrorKind {
    /// How messages begin.
    pub fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::InvalidUnshown | ErrorKind::TypeInvalid => {
                "Invalid value"
            }
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }

    /// `reason` of the Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid | ErrorKind::InvalidUnshown => "FieldValueInvalid",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::Internal => "InternalError",
        }
    }
}

/// One complaint. `Display` is upstream's text: `spec.containers[0].name: Required value`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Kind of complaint.
    pub kind: ErrorKind,
    /// Path with indices.
    pub field: String,
    /// The offending value; printed for the kinds that print it.
    pub value: Value,
    /// What would be right.
    pub detail: String,
}

impl FieldError {
    fn new(
        kind: ErrorKind,
        field: impl Into<String>,
        value: Value,
        detail: impl Into<String>,
    ) -> Self {
        FieldError {
            kind,
            field: field.into(),
            value,
            detail: detail.into(),
        }
    }

    /// Missing.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, field, Value::Null, detail)
    }

    /// Malformed or out of range.
    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Invalid, field, value.into(), detail)
    }

    /// Wrong in a way that printing the value would not explain.
    pub fn invalid_without_value(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidUnshown, field, Value::Null, detail)
    }

    /// Given twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, field, value.into(), "")
    }

    /// Not allowed here.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, field, Value::Null, detail)
    }

    /// Names something that is not there.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, field, value.into(), "")
    }

    /// Not one of the allowed values.
    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if list.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", list.join(", "))
        };
        Self::new(ErrorKind::NotSupported, field, value.into(), detail)
    }

    /// More bytes than allowed.
    pub fn too_long(field: impl Into<String>, bytes_max: usize) -> Self {
        Self::new(
            ErrorKind::TooLong,
            field,
            Value::Null,
            format!("may not be more than {bytes_max} bytes"),
        )
    }

    /// More items than allowed.
    pub fn too_many(field: impl Into<String>, actual: usize, items_max: usize) -> Self {
        Self::new(
            ErrorKind::TooMany,
            field,
            Value::from(actual),
            format!("must have at most {items_max} items"),
        )
    }

    /// The text after the field: the `message` of the Status cause.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        match self.kind {
            ErrorKind::Required
            | ErrorKind::Forbidden
            | ErrorKind::TooLong
            | ErrorKind::InvalidUnshown
            | ErrorKind::Internal => {}
            _ => match &self.value {
                Value::String(value) => text.push_str(&format!(": {}", quote(value))),
                value => text.push_str(&format!(": {value}")),
            },
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}
