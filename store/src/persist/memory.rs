//! No disk at all: for tests and for clusters that are meant to be forgotten.

use crate::object::{Indexer, Revision};
use crate::persist::{Change, Loaded, OpenError, Persist, PersistError};
use crate::state::State;

/// Keeps nothing beyond the process.
#[derive(Debug)]
pub(crate) struct Memory;

impl Persist for Memory {
    fn load(&mut self, _: &dyn Indexer) -> Result<Loaded, OpenError> {
        let revision = Revision(1);
        Ok(Loaded {
            state: State::new(revision),
            reserved: revision,
        })
    }

    fn write(&mut self, _: &[Change], _: Revision) -> Result<(), PersistError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), PersistError> {
        Ok(())
    }
}
