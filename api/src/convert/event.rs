//! Events: events.k8s.io has other names for what core stores.

use super::{Object, To, rename};

/// Name in events.k8s.io, name in core.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

pub(super) fn convert(event: &mut Object, to: To) {
    match to {
        To::Storage => rename(event, NAMES.into_iter()),
        To::Served => rename(
            event,
            NAMES.into_iter().map(|(served, stored)| (stored, served)),
        ),
    }
}
