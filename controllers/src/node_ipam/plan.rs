//! Which range is next. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The cluster's ranges, and how long the network's part of a node's range is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRanges {
    clusters: Vec<(Range, u8)>,
}

/// What such ranges cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeRangesError {
    /// No range at all.
    #[error("{0:?} is not a range of addresses such as 10.64.0.0/10")]
    NoRange(String),
    /// A node's range has to lie in the cluster's, and not be a thousandth of a thousandth of it.
    #[error("ranges of /{size} for nodes do not fit into {cluster}: between /{} and /{} do", cluster.prefix, cluster.prefix + BITS_MAX)]
    Size {
        /// The cluster's.
        cluster: Range,
        /// The node's.
        size: u8,
    },
}

/// Nodes have at most so many bits.
const BITS_MAX: u8 = 16;

/// A range of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u128,
    prefix: u8,
    is_ipv4: bool,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (ip, prefix) = text.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (base, is_ipv4) = match ip.parse().ok()? {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), true),
            IpAddr::V6(ip) => (u128::from(ip), false),
        };
        let range = Self {
            base,
            prefix,
            is_ipv4,
        };
        (prefix <= range.bits()).then(|| Self {
            base: base & !(range.len() - 1),
            ..range
        })
    }

    fn bits(self) -> u8 {
        if self.is_ipv4 { 32 } else { 128 }
    }

    /// How many addresses; all of IPv6 counts as one less than it has.
    fn len(self) -> u128 {
        1_u128
            .checked_shl(u32::from(self.bits() - self.prefix))
            .unwrap_or(u128::MAX)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.base) {
            Ok(base) if self.is_ipv4 => write!(f, "{}/{}", Ipv4Addr::from(base), self.prefix),
            _ => write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix),
        }
    }
}

impl fmt::Display for NodeRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self
            .clusters
            .iter()
            .map(|(range, size)| format!("/{size} of {range}"))
            .collect();
        f.write_str(&texts.join(", "))
    }
}

impl NodeRanges {
    /// Ranges of `/ipv4` and `/ipv6` out of those of the cluster.
    ///
    /// # Errors
    /// When a text is no range, or nodes' ranges do not fit into it.
    pub fn new(clusters: &[String], ipv4: u8, ipv6: u8) -> Result<Self, NodeRangesError> {
        let parse = |text: &String| {
            let cluster =
                Range::parse(text).ok_or_else(|| NodeRangesError::NoRange(text.clone()))?;
            let size = if cluster.is_ipv4 { ipv4 } else { ipv6 };
            let fits = size >= cluster.prefix
                && size <= cluster.bits()
                && size - cluster.prefix <= BITS_MAX;
            if fits {
                Ok((cluster, size))
            } else {
                Err(NodeRangesError::Size { cluster, size })
            }
        };
        let clusters = clusters.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { clusters })
    }

    /// Whether there is anything to give.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    /// One range of each kind that overlaps none of `taken`; none when one kind has run out.
    pub(super) fn choose(&self, taken: &[String]) -> Option<Vec<String>> {
        let taken: Vec<Range> = taken.iter().filter_map(|text| Range::parse(text)).collect();
        let chosen: Option<Vec<String>> = self
            .clusters
            .iter()
            .map(|(cluster, size)| free(*cluster, *size, &taken).map(|range| range.to_string()))
            .collect();
        chosen.filter(|all| !all.is_empty())
    }
}

fn free(cluster: Range, size: u8, taken: &[Range]) -> Option<Range> {
    let count = 1_u128 << (size - cluster.prefix);
    let step = Range {
        prefix: size,
        ..cluster
    }
    .len();
    let mut used: BTreeSet<u128> = BTreeSet::new();
    let inside = |address: u128| {
        address
            .checked_sub(cluster.base)
            .map(|offset| offset / step)
    };
    for range in taken
        .iter()
        .filter(|range| range.is_ipv4 == cluster.is_ipv4)
    {
        let last = range.base.saturating_add(range.len() - 1);
        let Some(to) = inside(last) else { continue };
        let from = inside(range.base).unwrap_or(0);
        used.extend(from..=to.min(count - 1));
    }
    let at = (0..count).find(|at| !used.contains(at))?;
    Some(Range {
        base: cluster.base + at * step,
        prefix: size,
        ..cluster
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_node_gets_what_nobody_has() {
        for (case, clusters, taken, expected) in [
            (
                "the first",
                &["10.64.0.0/10"][..],
                &[][..],
                Some("10.64.0.0/20"),
            ),
            (
                "the next",
                &["10.64.0.0/10"],
                &["10.64.0.0/20"],
                Some("10.64.16.0/20"),
            ),
            (
                "beside a larger one",
                &["10.64.0.0/10"],
                &["10.64.0.0/18"],
                Some("10.64.64.0/20"),
            ),
            (
                "not where a smaller one lies",
                &["10.64.0.0/10"],
                &["10.64.7.0/24"],
                Some("10.64.16.0/20"),
            ),
            (
                "what another left",
                &["10.64.0.0/10"],
                &["10.64.16.0/20"],
                Some("10.64.0.0/20"),
            ),
            (
                "others' do not count",
                &["10.64.0.0/10"],
                &["127.64.0.0/18", "x"],
                Some("10.64.0.0/20"),
            ),
            (
                "nothing is left",
                &["10.64.0.0/20"],
                &["10.64.0.0/20"],
                None,
            ),
            (
                "everything is taken",
                &["10.64.0.0/10"],
                &["10.0.0.0/8"],
                None,
            ),
            (
                "one of each kind",
                &["10.64.0.0/10", "fd64::/48"],
                &["fd64::/64"],
                Some("10.64.0.0/20 fd64:0:0:1::/64"),
            ),
            (
                "none when one kind is out",
                &["10.64.0.0/10", "fd64::/64"],
                &["fd64::/64"],
                None,
            ),
        ] {
            let config = NodeRanges::new(&texts(clusters), 20, 64).unwrap();
            let chosen = config.choose(&texts(taken)).map(|all| all.join(" "));
            assert_eq!(chosen.as_deref(), expected, "case: {case}");
        }
    }

    #[test]
    fn all_ranges_are_given_once() {
        let config = NodeRanges::new(&texts(&["10.64.0.0/14"]), 24, 64).unwrap();
        let mut taken = Vec::new();
        while let Some(ranges) = config.choose(&taken) {
            taken.extend(ranges);
        }
        assert_eq!(taken.len(), 1024);
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 1024);
        let left = taken.remove(700);
        assert_eq!(config.choose(&taken), Some(vec![left]));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let of = |cluster: &str, ipv4| NodeRanges::new(&texts(&[cluster]), ipv4, 64);
        assert!(matches!(
            of("10.64.0.0/24", 20),
            Err(NodeRangesError::Size { .. })
        ));
        assert!(matches!(
            of("10.0.0.0/8", 32),
            Err(NodeRangesError::Size { .. })
        ));
        assert!(matches!(
            of("fd00::/8", 20),
            Err(NodeRangesError::Size { .. })
        ));
        assert!(matches!(of("ten", 20), Err(NodeRangesError::NoRange(_))));
        assert!(of("10.64.0.0/20", 20).is_ok());
    }
}
