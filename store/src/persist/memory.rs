//! No disk at all: for tests and for clusters that are meant to be forgotten.

use crate::object::{Indexer, Revision};
use crate::persist::{Barrier, Change, Loaded, OpenError, Persist, PersistError};
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

    fn barrier(&self) -> Box<dyn Barrier> {
        Box::new(Memory)
    }

    fn sequence(&self) -> u64 {
        0
    }

    fn close(&mut self) -> Result<(), PersistError> {
        Ok(())
    }
}

impl Barrier for Memory {
    fn sync(&mut self, _: u64) -> Result<(), PersistError> {
        Ok(())
    }
}
