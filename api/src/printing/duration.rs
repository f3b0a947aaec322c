//! Durations for people, in at most two units.

use jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// `47s`, `5m12s`, `3h`, `3d4h`, `2y10d`: coarser the longer it is. Up to a second of the future counts as now, since clocks differ.
pub fn human_duration(seconds: i64) -> String {
    // The larger unit, the smaller one, and from where on the smaller one is left out.
    let (unit, large, small) = match seconds {
        ..-1 => return "<invalid>".to_owned(),
        -1 => return "0s".to_owned(),
        0..120 => return format!("{seconds}s"),
        _ if seconds < 10 * MINUTE => ("m", seconds / MINUTE, (seconds % MINUTE, "s")),
        _ if seconds < 3 * HOUR => ("m", seconds / MINUTE, (0, "")),
        _ if seconds < 8 * HOUR => ("h", seconds / HOUR, (seconds % HOUR / MINUTE, "m")),
        _ if seconds < 2 * DAY => ("h", seconds / HOUR, (0, "")),
        _ if seconds < 8 * DAY => ("d", seconds / DAY, (seconds % DAY / HOUR, "h")),
        _ if seconds < 2 * YEAR => ("d", seconds / DAY, (0, "")),
        _ if seconds < 8 * YEAR => ("y", seconds / YEAR, (seconds % YEAR / DAY, "d")),
        _ => ("y", seconds / YEAR, (0, "")),
    };
    if small.0 == 0 {
        format!("{large}{unit}")
    } else {
        format!("{large}{unit}{}{}", small.0, small.1)
    }
}

/// Time since `then`; `<unknown>` without one.
pub(super) fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(
        || "<unknown>".to_owned(),
        |then| human_duration((now.as_millisecond() - then.as_millisecond()).div_euclid(1000)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_get_coarser() {
        let cases: &[(i64, &str)] = &[
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (312, "5m12s"),
            (599, "9m59s"),
            (600, "10m"),
            (179 * 60 + 59, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 60, "3h1m"),
            (8 * HOUR + 60, "8h"),
            (47 * HOUR, "47h"),
            (3 * DAY + 4 * HOUR, "3d4h"),
            (7 * DAY, "7d"),
            (30 * DAY, "30d"),
            (729 * DAY, "729d"),
            (2 * YEAR, "2y"),
            (2 * YEAR + 10 * DAY, "2y10d"),
            (9 * YEAR + 10 * DAY, "9y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(&human_duration(*seconds), expected, "case: {seconds}");
        }
    }
}
