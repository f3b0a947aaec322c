//! What happens in the cluster that can make an unschedulable Pod schedulable.

use crate::node_info::NodeFacts;

/// A set of kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterEvents(u32);

impl ClusterEvents {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A node came.
    pub const NODE_ADDED: Self = Self(1);
    /// A node has more to give.
    pub const NODE_ALLOCATABLE: Self = Self(1 << 1);
    /// A node's labels changed.
    pub const NODE_LABELS: Self = Self(1 << 2);
    /// A node's taints changed, or it was uncordoned.
    pub const NODE_TAINTS: Self = Self(1 << 3);
    /// A Pod left its node.
    pub const POD_LEFT: Self = Self(1 << 4);

    /// A claim came or changed.
    pub const CLAIM: Self = Self(1 << 5);
    /// A volume came or changed.
    pub const VOLUME: Self = Self(1 << 6);
    /// A storage class came or changed.
    pub const CLASS: Self = Self(1 << 7);
    /// A driver came or changed, or what it can still hold.
    pub const CSI_DRIVER: Self = Self(1 << 8);
    /// The drivers of a node changed.
    pub const CSI_NODE: Self = Self(1 << 9);
    /// A volume is attached no more.
    pub const ATTACHMENT_GONE: Self = Self(1 << 10);
    /// A node declares other features.
    pub const NODE_FEATURES: Self = Self(1 << 11);

    /// A claim for devices came or changed, or devices were given back.
    pub const DEVICE_CLAIM: Self = Self(1 << 12);
    /// A class of devices came or changed.
    pub const DEVICE_CLASS: Self = Self(1 << 13);
    /// What drivers have of devices changed.
    pub const DEVICE_SLICE: Self = Self(1 << 14);

    /// Both sets.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether something is in both sets.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is nothing in the set.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// What a node's change can help with.
pub(crate) fn of_node_change(old: &NodeFacts, new: &NodeFacts) -> ClusterEvents {
    let mut events = ClusterEvents::NONE;
    if old.labels() != new.labels() {
        events = events.or(ClusterEvents::NODE_LABELS);
    }
    if old.taints() != new.taints() || (old.is_unschedulable() && !new.is_unschedulable()) {
        events = events.or(ClusterEvents::NODE_TAINTS);
    }
    if old.allocatable != new.allocatable || old.pods_max != new.pods_max {
        events = events.or(ClusterEvents::NODE_ALLOCATABLE);
    }
    if old.declared_features() != new.declared_features() {
        events = events.or(ClusterEvents::NODE_FEATURES);
    }
    events
}
