//! The time as CRI wants it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970.
pub(crate) fn now_nanos() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The same as people and archives want it, in UTC.
pub(crate) fn rfc3339(nanos: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_nanos(nanos.unsigned_abs());
    prost_types::Timestamp::from(time).to_string()
}
