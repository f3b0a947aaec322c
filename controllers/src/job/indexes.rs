//! Sets of completion indexes and their text, such as `1,3-5,7`. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

/// Label and annotation of the pods of an Indexed job.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Indexes in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Reads a text; what is no index, or not below `below`, is left out.
    pub(super) fn parse(text: &str, below: i32) -> Self {
        let mut indexes = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first @ 0..), Ok(last)) =
                (first.trim().parse::<i32>(), last.trim().parse::<i32>())
            {
                indexes.extend(first..=last.min(below.saturating_sub(1)));
            }
        }
        Self(indexes)
    }

    /// Two neighbours are written with a comma, three and more as a range.
    pub(super) fn text(&self) -> String {
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for index in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *index => *last = *index,
                _ => runs.push((*index, *index)),
            }
        }
        let written = runs.into_iter().map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
        written.collect::<Vec<_>>().join(",")
    }

    pub(super) fn insert(&mut self, index: i32) -> bool {
        self.0.insert(index)
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    pub(super) fn len(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of these are in `other` too.
    pub(super) fn common(&self, other: &Self) -> i32 {
        i32::try_from(self.0.intersection(&other.0).count()).unwrap_or(i32::MAX)
    }
}

/// The index of a pod.
pub(super) fn of(pod: &Pod) -> Option<i32> {
    let meta = &pod.metadata;
    let found = |map: &Option<std::collections::BTreeMap<String, String>>| {
        map.as_ref()?.get(INDEX)?.parse().ok()
    };
    found(&meta.annotations).or_else(|| found(&meta.labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written_back() {
        for text in ["", "0", "1,3-5,7", "0,1", "0-2", "4,9,11-99"] {
            assert_eq!(Indexes::parse(text, 100).text(), text);
        }
        let cases = [
            ("what is too high is left out", "1,3-9", 5, "1,3,4"),
            ("nonsense is left out", "x,-1,2", 5, "2"),
            ("order does not matter", "4,2,3", 5, "2-4"),
        ];
        for (case, text, below, expected) in cases {
            assert_eq!(Indexes::parse(text, below).text(), expected, "case: {case}");
        }
    }
}
