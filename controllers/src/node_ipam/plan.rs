//! Which range is next. Pure.

use std::fmt;

use ipnet::IpNet;

/// The cluster's ranges, and how long the network's part of a node's range is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRanges {
    clusters: Vec<(IpNet, u8)>,
}

/// What such ranges cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeRangesError {
    /// No range at all.
    #[error("{0:?} is not a range of addresses such as 10.64.0.0/10")]
    NoRange(String),
    /// A node's range has to lie in the cluster's, and not be a thousandth of a thousandth of it.
    #[error("ranges of /{size} for nodes do not fit into {cluster}: between /{} and /{} do", cluster.prefix_len(), cluster.prefix_len() + BITS_MAX)]
    Size {
        /// The cluster's.
        cluster: IpNet,
        /// The node's.
        size: u8,
    },
}

/// Nodes have at most so many bits.
const BITS_MAX: u8 = 16;

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
            let cluster: IpNet = text
                .parse()
                .map_err(|_| NodeRangesError::NoRange(text.clone()))?;
            let cluster = cluster.trunc();
            let size = match cluster {
                IpNet::V4(_) => ipv4,
                IpNet::V6(_) => ipv6,
            };
            let sizes = cluster.prefix_len()..=cluster.max_prefix_len();
            if sizes.contains(&size) && size - cluster.prefix_len() <= BITS_MAX {
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
        let taken: Vec<IpNet> = taken.iter().filter_map(|text| text.parse().ok()).collect();
        // Merged: few ranges, in order, however many nodes there are.
        let taken = IpNet::aggregate(&taken);
        let chosen: Option<Vec<String>> = self
            .clusters
            .iter()
            .map(|(cluster, size)| free(*cluster, *size, &taken).map(|range| range.to_string()))
            .collect();
        chosen.filter(|all| !all.is_empty())
    }
}

/// The first range of this size in the cluster's that overlaps none of `taken`, which are in order and apart from each other.
fn free(cluster: IpNet, size: u8, taken: &[IpNet]) -> Option<IpNet> {
    let is_free = |range: &IpNet| {
        let next = taken.partition_point(|one| one.broadcast() < range.network());
        taken
            .get(next)
            .is_none_or(|one| one.network() > range.broadcast())
    };
    cluster.subnets(size).ok()?.find(is_free)
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
