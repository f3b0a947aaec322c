//! Names that may be in use once: CRI wants a second sandbox or container of the same name and attempt refused.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::error::VerbError;

#[derive(Debug, Default)]
pub(crate) struct Names {
    taken: Mutex<HashMap<String, String>>,
}

/// A name that is given back when dropped, unless it is kept.
pub(crate) struct Reserved<'a> {
    names: &'a Names,
    name: Option<String>,
}

impl Names {
    pub(crate) fn reserve(
        &self,
        what: &'static str,
        name: &str,
        id: &str,
    ) -> Result<Reserved<'_>, VerbError> {
        let mut taken = self.taken.lock();
        if let Some(id) = taken.get(name) {
            return Err(VerbError::Reserved {
                what,
                name: name.to_owned(),
                id: id.clone(),
            });
        }
        taken.insert(name.to_owned(), id.to_owned());
        Ok(Reserved {
            names: self,
            name: Some(name.to_owned()),
        })
    }

    /// Whether `id` holds a name now: it stands, or is being made.
    pub(crate) fn is_holder(&self, id: &str) -> bool {
        self.taken.lock().values().any(|holder| holder == id)
    }

    /// Gives `name` back if `id` holds it.
    pub(crate) fn release(&self, name: &str, id: &str) {
        let mut taken = self.taken.lock();
        if taken.get(name).is_some_and(|holder| holder == id) {
            taken.remove(name);
        }
    }
}

impl Reserved<'_> {
    pub(crate) fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.names.taken.lock().remove(&name);
        }
    }
}
