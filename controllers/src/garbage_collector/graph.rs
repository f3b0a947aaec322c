//! Who owns whom, as far as the watches tell. Pure: each change returns the uids that are worth a look.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use kube::core::ObjectMeta;
use kube::discovery::ApiResource;

/// The finalizer of foreground deletion: dependents first.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of orphaning: dependents are let go first.
pub(super) const ORPHAN: &str = "orphan";

/// An object's uid. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Uid(pub(super) Arc<str>);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Uid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) resource: Arc<ApiResource>,
    /// Empty for cluster-scoped objects.
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

/// How far an object is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not being deleted.
    Live,
    /// Being deleted; its dependents are looked at when it is gone.
    Deleting,
    /// Being deleted, and its dependents must go first.
    Foreground,
    /// Being deleted, and its dependents must be let go first.
    Orphaning,
}

/// One owner reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    /// The owner's foreground deletion waits for this dependent.
    pub(super) blocks: bool,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) owners: Vec<Owner>,
    pub(super) phase: Phase,
}

impl Node {
    pub(super) fn new(resource: &Arc<ApiResource>, meta: &ObjectMeta) -> Self {
        let owners = meta.owner_references.iter().flatten();
        Self {
            place: Place {
                resource: resource.clone(),
                namespace: meta.namespace.as_deref().unwrap_or_default().into(),
                name: meta.name.as_deref().unwrap_or_default().into(),
            },
            owners: owners
                .map(|owner| Owner {
                    uid: owner.uid.as_str().into(),
                    blocks: owner.block_owner_deletion == Some(true),
                })
                .collect(),
            phase: phase(meta),
        }
    }
}

/// The phase that an object's metadata tell.
pub(super) fn phase(meta: &ObjectMeta) -> Phase {
    let has = |finalizer: &str| {
        meta.finalizers
            .iter()
            .flatten()
            .any(|present| present == finalizer)
    };
    if meta.deletion_timestamp.is_none() {
        Phase::Live
    } else if has(ORPHAN) {
        Phase::Orphaning
    } else if has(FOREGROUND) {
        Phase::Foreground
    } else {
        Phase::Deleting
    }
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Also for owners that are not there: their dependents are what is looked for.
    dependents: HashMap<Uid, HashSet<Uid>>,
    started: bool,
}

impl Graph {
    pub(super) fn get(&self, uid: &Uid) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(super) fn dependents(&self, uid: &Uid) -> impl Iterator<Item = (&Uid, &Node)> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.nodes.get_key_value(uid))
    }

    pub(super) fn has_dependents(&self, uid: &Uid) -> bool {
        self.dependents.contains_key(uid)
    }

    /// From now on absent owners count as suspicious. Returns all objects that are worth a look.
    pub(super) fn start(&mut self) -> Vec<Uid> {
        self.started = true;
        self.nodes
            .iter()
            .filter(|(_, node)| self.is_suspect(node))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// An object was seen.
    pub(super) fn upsert(&mut self, uid: Uid, node: Node) -> Vec<Uid> {
        let before = self.nodes.get(&uid).cloned();
        let old_owners = before
            .as_ref()
            .map(|node| node.owners.clone())
            .unwrap_or_default();
        let mut look = Vec::new();
        for owner in old_owners
            .iter()
            .filter(|owner| !node.owners.contains(owner))
        {
            // An owner that waits for this dependent may wait no longer.
            if self.is_foreground(&owner.uid) {
                look.push(owner.uid.clone());
            }
            if !node.owners.iter().any(|kept| kept.uid == owner.uid) {
                self.unlink(&owner.uid, &uid);
            }
        }
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        let moved = before
            .as_ref()
            .is_none_or(|before| before.phase != node.phase);
        if moved && node.phase == Phase::Foreground {
            look.extend(
                self.dependents(&uid)
                    .map(|(dependent, _)| dependent.clone()),
            );
        }
        if before.as_ref() != Some(&node) && self.is_suspect(&node) {
            look.push(uid.clone());
        }
        self.nodes.insert(uid, node);
        if self.started { look } else { Vec::new() }
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, uid: &Uid) -> Vec<Uid> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut look: Vec<Uid> = self
            .dependents(uid)
            .map(|(dependent, _)| dependent.clone())
            .collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.is_foreground(&owner.uid) {
                look.push(owner.uid.clone());
            }
        }
        if self.started { look } else { Vec::new() }
    }

    /// Removes the objects of a resource that `keep` does not name: they went while nobody watched.
    pub(super) fn retain(&mut self, resource: &ApiResource, keep: &HashSet<Uid>) -> Vec<Uid> {
        let gone: Vec<Uid> = self
            .nodes
            .iter()
            .filter(|(uid, node)| *node.place.resource == *resource && !keep.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    /// Worth a look: on its way out with dependents to see to, or with an owner that is not there or that deletes its
    /// dependents.
    fn is_suspect(&self, node: &Node) -> bool {
        match node.phase {
            Phase::Foreground | Phase::Orphaning => true,
            Phase::Deleting => false,
            Phase::Live => node
                .owners
                .iter()
                .any(|owner| self.is_foreground(&owner.uid) || !self.owns(&owner.uid, node)),
        }
    }

    /// Whether the owner is known and may own this node: cluster-scoped, or in the same namespace.
    fn owns(&self, owner: &Uid, node: &Node) -> bool {
        self.nodes.get(owner).is_some_and(|owner| {
            owner.place.namespace.is_empty() || owner.place.namespace == node.place.namespace
        })
    }

    fn is_foreground(&self, uid: &Uid) -> bool {
        self.nodes
            .get(uid)
            .is_some_and(|node| node.phase == Phase::Foreground)
    }

    fn unlink(&mut self, owner: &Uid, dependent: &Uid) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}
