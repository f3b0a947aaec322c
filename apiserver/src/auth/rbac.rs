//! Role-based access control: roles and bindings of the store, indexed by subject.
//!
//! Owns an index that is brought up to date before each question from watches of the four RBAC resources: a binding
//! grants and a deletion revokes from the moment its write was acknowledged. It costs one comparison of revisions when
//! nothing was written. Never writes.

mod index;
mod rule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use cox_store::{EventKind, Revision, Snapshot, Store, Watch, WatchError, WatchItem};
use parking_lot::{Mutex, RwLock};

use super::{Attributes, Decision, MASTERS, UserInfo};
use index::{Index, Source};
pub use rule::PolicyRule;

/// Whether `held` grants all that `asked` grants.
pub fn covers(held: &[PolicyRule], asked: &PolicyRule) -> bool {
    rule::uncovered(held, std::slice::from_ref(asked)).is_empty()
}

/// The RBAC authorizer.
pub struct Rbac {
    store: Store,
    index: RwLock<Index>,
    feeds: Mutex<Vec<(Source, Watch)>>,
    /// The store's revision up to which the index is complete.
    seen: AtomicU64,
}

impl fmt::Debug for Rbac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rbac")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Rbac {
    /// Indexes what the store holds.
    pub fn new(store: Store) -> Self {
        let rbac = Self {
            store,
            index: RwLock::default(),
            feeds: Mutex::default(),
            seen: AtomicU64::new(u64::MAX),
        };
        rbac.catch_up();
        rbac
    }

    /// Whether RBAC allows what is asked.
    pub fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        self.catch_up();
        let (mut allowed, mut problems) = (false, Vec::new());
        self.index
            .read()
            .visit(asked.user, asked.namespace, |rules| {
                match rules {
                    Ok(rules) => allowed = rules.iter().any(|rule| rule.allows(asked)),
                    Err(problem) => problems.push(problem),
                }
                !allowed
            });
        if allowed {
            return Decision::Allow;
        }
        problems.sort();
        problems.dedup();
        match problems.as_slice() {
            [] => Decision::Deny(String::new()),
            [one] => Decision::Deny(format!("RBAC: {one}")),
            many => Decision::Deny(format!("RBAC: [{}]", many.join(", "))),
        }
    }

    /// All rules that `user` has in `namespace`, cluster-wide ones included, and what could not be resolved.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        self.catch_up();
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        self.index.read().visit(user, namespace, |rules| {
            match rules {
                Ok(rules) => all.extend(rules.iter().cloned()),
                Err(problem) => problems.push(problem),
            }
            true
        });
        (all, problems)
    }

    /// The rules of a role; `None` when there is no such role.
    pub fn role(&self, namespace: &str, kind: &str, name: &str) -> Option<Vec<PolicyRule>> {
        self.catch_up();
        self.index
            .read()
            .rules_of(namespace, kind, name)
            .map(|rules| rules.to_vec())
    }

    /// Whether `user` holds all of `rules` in `namespace`; otherwise upstream's sentence about what is missing.
    ///
    /// # Errors
    /// The sentence.
    pub fn confirm_no_escalation(
        &self,
        user: &UserInfo,
        namespace: &str,
        rules: &[PolicyRule],
    ) -> Result<(), String> {
        if user.in_group(MASTERS) {
            return Ok(());
        }
        let (held, problems) = self.rules_for(user, namespace);
        let missing = rule::uncovered(&held, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let groups: Vec<String> = user
            .groups
            .iter()
            .map(|group| format!("{group:?}"))
            .collect();
        let mut text = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            groups.join(" "),
            rule::describe(&missing)
        );
        if !problems.is_empty() {
            text.push_str(&format!("; resolution errors: [{}]", problems.join(", ")));
        }
        Err(text)
    }

    /// Takes in every write up to now.
    fn catch_up(&self) {
        let now = self.store.snapshot().revision().0;
        if self.seen.load(Ordering::Acquire) == now {
            return;
        }
        // One thread brings the index up to date, others wait for it: a moment, and never across an await.
        let mut feeds = self.feeds.lock();
        let complete = if feeds.is_empty() {
            None
        } else {
            self.drain(&mut feeds)
        };
        let complete = complete.unwrap_or_else(|| {
            let snapshot = self.store.snapshot();
            *feeds = self.rebuild(&snapshot);
            snapshot.revision()
        });
        self.seen.store(complete.0, Ordering::Release);
    }

    /// Applies what the watches have; answers up to where that is everything, or `None` when one fell behind and all must
    /// be read again. A snapshot shows a write a moment before the watches do, so its revision would not do as the answer.
    fn drain(&self, feeds: &mut [(Source, Watch)]) -> Option<Revision> {
        let mut complete = Revision(u64::MAX);
        for (source, watch) in feeds {
            watch.progress();
            loop {
                match watch.try_next() {
                    Ok(Some(WatchItem::Event(event))) => {
                        let object = &event.object;
                        let mut index = self.index.write();
                        if event.kind == EventKind::Deleted {
                            index.remove(*source, &object.key.path);
                        } else {
                            index.put(*source, &object.key.path, &object.json);
                        }
                    }
                    Ok(Some(WatchItem::Progress(revision))) => {
                        complete = complete.min(revision);
                        break;
                    }
                    // A closed store has no further writes.
                    Ok(None) | Err(WatchError::Closed) => break,
                    Err(WatchError::Lagged) => return None,
                }
            }
        }
        Some(complete)
    }

    /// Reads everything from a snapshot and watches from there on.
    fn rebuild(&self, snapshot: &Snapshot) -> Vec<(Source, Watch)> {
        let mut index = Index::default();
        for source in Source::ALL {
            for object in snapshot.range(source.prefix(), "", None) {
                index.put(source, &object.key.path, &object.json);
            }
        }
        *self.index.write() = index;
        self.watches(snapshot.revision())
    }

    /// Watches from the snapshot on. Where that is no longer possible the list stays empty, and the next question
    /// reads everything again.
    fn watches(&self, after: Revision) -> Vec<(Source, Watch)> {
        let feeds: Result<Vec<_>, _> = Source::ALL
            .into_iter()
            .map(|source| {
                self.store
                    .watch(source.prefix(), after)
                    .map(|watch| (source, watch))
            })
            .collect();
        feeds.unwrap_or_default()
    }
}
