//! What becomes of an object, given what is known about each of its owners. Pure.

use super::graph::{Phase, Uid};

/// What was found out about an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It is there and stays.
    Solid,
    /// It is there, is being deleted, and waits for its dependents.
    Waiting,
    /// It is not there: never was in this place, or has another uid.
    Absent,
}

/// How the dependents of what is deleted are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// The next write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All is as it should be.
    Keep,
    /// Some owners are left; the others' references go.
    DropOwners(Vec<Uid>),
    /// No owner is left.
    Delete(Policy),
    /// The owners wait for this object, which has dependents of its own. When one of those is deleting its dependents too,
    /// there may be a circle: then this object must stop blocking its owners.
    DeleteForeground { unblock: bool },
}

/// `owners` in the object's order; `dependents_foreground`: whether a dependent is in foreground deletion itself.
pub(super) fn plan(
    owners: &[(Uid, OwnerState)],
    has_dependents: bool,
    dependents_foreground: bool,
    finalizers: Finalizers,
) -> Step {
    let is = |state: OwnerState| owners.iter().any(|(_, found)| *found == state);
    if owners.is_empty() {
        return Step::Keep;
    }
    if is(OwnerState::Solid) {
        let drop: Vec<_> = owners
            .iter()
            .filter(|(_, state)| *state != OwnerState::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        return if drop.is_empty() {
            Step::Keep
        } else {
            Step::DropOwners(drop)
        };
    }
    if is(OwnerState::Waiting) && has_dependents {
        return Step::DeleteForeground {
            unblock: dependents_foreground,
        };
    }
    Step::Delete(match finalizers {
        Finalizers::Orphan => Policy::Orphan,
        Finalizers::Foreground => Policy::Foreground,
        Finalizers::Neither => Policy::Background,
    })
}

/// Which of the two finalizers of the garbage collector an object carries: a wish about its dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finalizers {
    Orphan,
    Foreground,
    Neither,
}

impl OwnerState {
    /// An owner that is being deleted in any other way is still there: when it is gone its dependents are looked at again.
    pub(super) fn of(phase: Phase) -> Self {
        match phase {
            Phase::Foreground => Self::Waiting,
            Phase::Live | Phase::Deleting | Phase::Orphaning => Self::Solid,
        }
    }
}
