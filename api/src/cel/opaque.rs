//! Values that only their own methods can look into, such as the authorizer of admission policies.

use std::fmt::Debug;
use std::sync::Arc;

use super::eval::{Budget, EvalError};
use super::value::{Cel, Key, Map};

/// Such a value.
pub trait Opaque: Debug + Send + Sync {
    /// The name of its type.
    fn type_name(&self) -> &'static str;

    /// Calls a method; none if there is no such one.
    fn call(&self, method: &str, args: &[Cel]) -> Option<Result<Cel, EvalError>>;

    /// A field; none if there is no such one.
    fn select(self: Arc<Self>, field: &str, budget: &mut Budget) -> Option<Result<Cel, EvalError>>;

    /// Whether there is such a field.
    fn has(&self, field: &str) -> bool;

    /// What is in it, if it can be walked over as a map.
    fn as_map(&self) -> Option<&Arc<Map>> {
        None
    }

    /// What stands under a key; none if it has no keys.
    fn index(&self, _key: &Key) -> Option<Cel> {
        None
    }
}
