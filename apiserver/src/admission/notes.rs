//! What is to be said beside the answer to a request: warnings for the client, annotations for the audit log.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Collects what plugins have to say about one request. Cheap to clone: all clones share.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    warnings: Vec<String>,
    audit: BTreeMap<String, String>,
}

impl Notes {
    /// Warns the client; what was said before is not said again.
    pub fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        let mut noted = self.0.lock();
        if !noted.warnings.contains(&warning) {
            noted.warnings.push(warning);
        }
    }

    /// Notes something for the audit log; the first word under a key stands.
    pub fn audit(&self, key: impl Into<String>, value: impl Into<String>) {
        let mut noted = self.0.lock();
        noted
            .audit
            .entry(key.into())
            .or_insert_with(|| value.into());
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.0.lock().warnings.clone()
    }

    /// The annotations so far.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.0.lock().audit.clone()
    }
}
