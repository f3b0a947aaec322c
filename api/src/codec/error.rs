//! What decoding can complain about, in upstream's words.

use std::fmt;

/// Why bytes are no object of the wanted type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, not YAML, too deep, or a bomb.
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong JSON type.
    #[error("json: {0}")]
    Type(TypeError),
    /// A value of the right JSON type that its format does not allow.
    #[error("{0}")]
    Format(String),
}

/// `cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeError {
    /// What was found: `string`, `number 1.5`, `object`.
    pub found: String,
    /// Innermost struct, empty at the root.
    pub in_struct: String,
    /// Field names from the root, without indices or map keys.
    pub path: String,
    /// What Go wanted.
    pub wanted: String,
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TypeError {
            found,
            in_struct,
            path,
            wanted,
        } = self;
        if in_struct.is_empty() {
            return write!(f, "cannot unmarshal {found} into Go value of type {wanted}");
        }
        write!(
            f,
            "cannot unmarshal {found} into Go struct field {in_struct}.{path} of type {wanted}"
        )
    }
}

/// A field that is unknown or given twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldProblem {
    /// Which of the two.
    pub kind: ProblemKind,
    /// Path with indices, e.g. `spec.containers[0].foo`.
    pub path: String,
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The type has no such field; the value was dropped.
    Unknown,
    /// The field came before in the same object; the last value counts.
    Duplicate,
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ProblemKind::Unknown => "unknown",
            ProblemKind::Duplicate => "duplicate",
        };
        write!(f, "{kind} field {}", crate::text::quote(&self.path))
    }
}
