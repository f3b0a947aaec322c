//! The states of a container and the moves between them. Pure.

use serde::{Deserialize, Serialize};

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    /// `Completed`, `Error`, `OOMKilled`, ...
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Everything is ready to run. A restarted shim reports it as exited: its program is not prepared any more.
    Created,
    /// A start is under way.
    Starting,
    /// The guest runs, or the service listens.
    Running { started_at: i64 },
    /// It was told to stop and has its grace period.
    Stopping { started_at: i64 },
    /// It is over.
    Exited {
        started_at: i64,
        finished_at: i64,
        exit: Exit,
    },
}

/// A verb that does not fit the state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} a container that is {from}")]
pub(crate) struct IllegalMove {
    verb: &'static str,
    from: &'static str,
}

impl Phase {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Exited { .. } => "exited",
        }
    }

    fn refuse(&self, verb: &'static str) -> IllegalMove {
        IllegalMove {
            verb,
            from: self.name(),
        }
    }

    pub(super) fn begin_start(self) -> Result<Self, IllegalMove> {
        match self {
            Self::Created => Ok(Self::Starting),
            Self::Starting | Self::Running { .. } | Self::Stopping { .. } | Self::Exited { .. } => {
                Err(self.refuse("start"))
            }
        }
    }

    pub(super) fn started(self, now: i64) -> Result<Self, IllegalMove> {
        match self {
            Self::Starting => Ok(Self::Running { started_at: now }),
            Self::Created | Self::Running { .. } | Self::Stopping { .. } | Self::Exited { .. } => {
                Err(self.refuse("run"))
            }
        }
    }

    /// Stopping twice is one stop.
    pub(super) fn begin_stop(self) -> Result<Self, IllegalMove> {
        match self {
            Self::Running { started_at } | Self::Stopping { started_at } => {
                Ok(Self::Stopping { started_at })
            }
            Self::Created | Self::Starting | Self::Exited { .. } => Err(self.refuse("stop")),
        }
    }

    /// The first exit counts.
    pub(super) fn exited(self, now: i64, exit: Exit) -> Result<Self, IllegalMove> {
        match self {
            Self::Created | Self::Starting => Ok(Self::Exited {
                started_at: 0,
                finished_at: now,
                exit,
            }),
            Self::Running { started_at } | Self::Stopping { started_at } => Ok(Self::Exited {
                started_at,
                finished_at: now,
                exit,
            }),
            Self::Exited { .. } => Err(self.refuse("end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Exit {
        Exit {
            code: 0,
            reason: "Completed".into(),
            message: String::new(),
        }
    }

    #[test]
    fn a_life() {
        let running = Phase::Created.begin_start().unwrap().started(5).unwrap();
        assert_eq!(running, Phase::Running { started_at: 5 });
        let stopping = running.clone().begin_stop().unwrap().begin_stop().unwrap();
        let ended = stopping.exited(9, exit()).unwrap();
        assert_eq!(
            ended,
            Phase::Exited {
                started_at: 5,
                finished_at: 9,
                exit: exit()
            }
        );
        assert_eq!(
            ended.clone().exited(10, exit()).unwrap_err().to_string(),
            "cannot end a container that is exited"
        );
        assert!(ended.clone().begin_start().is_err() && ended.begin_stop().is_err());
        assert!(
            running.begin_start().is_err()
                && Phase::Created.started(1).is_err()
                && Phase::Created.begin_stop().is_err()
        );
    }
}
