//! Processes that end with their test.

use crate::cluster::signal;
use std::ops::{Deref, DerefMut};
use std::process::Child;

/// A process that is told to end when the test is over, and waited for.
#[derive(Debug)]
pub struct Process {
    child: Child,
    signal: &'static str,
}

impl Process {
    /// Ends as on Ctrl-C.
    #[must_use]
    pub fn interrupted(child: Child) -> Self {
        let signal = "INT";
        Self { child, signal }
    }

    /// Ends whatever it does.
    #[must_use]
    pub fn killed(child: Child) -> Self {
        let signal = "KILL";
        Self { child, signal }
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), self.signal);
            self.child.wait().ok();
        }
    }
}
