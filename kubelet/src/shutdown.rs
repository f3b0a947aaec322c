//! The order in which Pods end when the node stops: by priority, the lowest group first, each within its own time. Pure.
//!
//! Upstream knows this as `shutdownGracePeriodByPodPriority`. Here the objects stay: the next start runs the Pods again.

use std::time::Duration;

/// Pods of this priority and above, up to the next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The lowest priority in it.
    pub priority: i32,
    /// How long its Pods get; a Pod's own grace counts where it is shorter.
    pub limit: Duration,
}

/// Text that is no group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no shutdown group: it is written like 2000000000=10, a priority and seconds")]
pub struct GroupError(String);

impl Group {
    /// Reads `PRIORITY=SECONDS`.
    pub fn parse(text: &str) -> Result<Self, GroupError> {
        let bad = || GroupError(text.to_owned());
        let (priority, secs) = text.split_once('=').ok_or_else(bad)?;
        Ok(Self {
            priority: priority.trim().parse().map_err(|_| bad())?,
            limit: Duration::from_secs(secs.trim().parse().map_err(|_| bad())?),
        })
    }
}

/// Ordinary Pods first, then those that keep the cluster alive.
#[must_use]
pub fn defaults() -> Vec<Group> {
    let group = |priority, secs| Group {
        priority,
        limit: Duration::from_secs(secs),
    };
    vec![group(0, 40), group(2_000_000_000, 15)]
}

/// The members in the order in which they end, group by group, with the time of each group. Whoever is below the lowest group
/// belongs to it.
#[must_use]
pub fn order<T>(members: Vec<(i32, T)>, groups: &[Group]) -> Vec<(Duration, Vec<T>)> {
    let mut groups = if groups.is_empty() {
        defaults()
    } else {
        groups.to_vec()
    };
    groups.sort_by_key(|group| group.priority);
    let mut ordered: Vec<(Duration, Vec<T>)> = groups
        .iter()
        .map(|group| (group.limit, Vec::new()))
        .collect();
    for (priority, member) in members {
        let above = groups.partition_point(|group| group.priority <= priority);
        ordered[above.saturating_sub(1)].1.push(member);
    }
    ordered.retain(|(_, members)| !members.is_empty());
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_end_by_priority_the_lowest_first() {
        let groups = ["1000=5", "0=30"].map(|text| Group::parse(text).unwrap());
        let members = vec![(5000, "high"), (-7, "below"), (999, "low"), (1000, "edge")];
        assert_eq!(
            order(members, &groups),
            [
                (Duration::from_secs(30), vec!["below", "low"]),
                (Duration::from_secs(5), vec!["high", "edge"]),
            ]
        );
        assert_eq!(
            order(vec![(0, "a")], &[]),
            [(Duration::from_secs(40), vec!["a"])],
            "without groups the defaults count, and empty groups take no time"
        );
    }

    #[test]
    fn groups_are_read() {
        for bad in ["", "1", "x=1", "1=x", "1=-1"] {
            assert!(Group::parse(bad).is_err(), "{bad}");
        }
    }
}
