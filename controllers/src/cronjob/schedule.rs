//! When a cron schedule is due. Pure: a zone comes in, times come out.
//!
//! A day matches when both of its fields do, or one of them where neither is a star. Hours that a clock change leaves out are
//! never due; hours that come twice are due twice.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

/// Where a schedule has nothing for so many years (the 31st of February), there is nothing.
const YEARS_MAX: i64 = 5;
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a text is no schedule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScheduleError {
    #[error("expected exactly 5 fields, found {0}")]
    Fields(usize),
    #[error("not understood: {0}")]
    Part(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

/// The values of one field that match, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    star: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value)
            .ok()
            .and_then(|value| self.bits.checked_shr(value))
            .is_some_and(|bits| bits & 1 == 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Clock {
        minute: Field,
        hour: Field,
        day: Field,
        month: Field,
        weekday: Field,
    },
    Every(Duration),
}

/// A schedule in its time zone.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    kind: Kind,
    zone: TimeZone,
}

/// The time zone that the text itself names (`CRON_TZ=Asia/Tokyo 0 5 * * *`), and the rest.
pub(crate) fn split_zone(text: &str) -> (Option<&str>, &str) {
    let named = ["CRON_TZ=", "TZ="]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    match named.and_then(|rest| rest.split_once(' ')) {
        Some((zone, rest)) => (Some(zone), rest.trim()),
        None => (None, text),
    }
}

impl Schedule {
    /// A schedule from its text, without a zone in it.
    pub(crate) fn parse(text: &str, zone: TimeZone) -> Result<Self, ScheduleError> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(period) = text.strip_prefix("@every ") {
            let period = duration(period.trim())
                .ok_or_else(|| ScheduleError::Descriptor(text.to_owned()))?;
            // Whole seconds, at least one.
            let kind = Kind::Every(Duration::from_secs(period.as_secs().max(1)));
            return Ok(Self { kind, zone });
        }
        if text.starts_with('@') {
            return Err(ScheduleError::Descriptor(text.to_owned()));
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(ScheduleError::Fields(fields.len()));
        };
        let kind = Kind::Clock {
            minute: field(minute, 0, 59, &[])?,
            hour: field(hour, 0, 23, &[])?,
            day: field(day, 1, 31, &[])?,
            month: field(month, 1, 12, &MONTHS)?,
            weekday: field(weekday, 0, 6, &DAYS)?,
        };
        Ok(Self { kind, zone })
    }

    /// The first time after `after`; none if there is none for years.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.kind {
            Kind::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*period).ok()
            }
            Kind::Clock { .. } => self.next_by_clock(after),
        }
    }

    fn next_by_clock(&self, after: Timestamp) -> Option<Timestamp> {
        let Kind::Clock {
            minute,
            hour,
            month,
            ..
        } = &self.kind
        else {
            return None;
        };
        let whole = Timestamp::from_second(after.as_second().div_euclid(60) * 60).ok()?;
        let mut at = step(&whole.to_zoned(self.zone.clone()), 1.minute())?;
        let end = at.checked_add(YEARS_MAX.years()).ok()?;
        while at <= end {
            if !month.has(at.month()) {
                at = first_of_next_month(&at)?;
            } else if !self.has_day(&at) {
                at = start_of_next_day(&at)?;
            } else if !hour.has(at.hour()) {
                at = step(&at, (60 - i64::from(at.minute())).minutes())?;
            } else if minute.has(at.minute()) {
                return Some(at.timestamp());
            } else {
                at = step(&at, 1.minute())?;
            }
        }
        None
    }

    fn has_day(&self, at: &Zoned) -> bool {
        let Kind::Clock { day, weekday, .. } = &self.kind else {
            return false;
        };
        let of_month = day.has(at.day());
        let of_week = weekday.has(at.weekday().to_sunday_zero_offset());
        if day.star || weekday.star {
            of_month && of_week
        } else {
            of_month || of_week
        }
    }
}

/// Time that passes, whatever the clocks on the wall do.
fn step(at: &Zoned, span: Span) -> Option<Zoned> {
    let next = at.timestamp().checked_add(span).ok()?;
    Some(next.to_zoned(at.time_zone().clone()))
}

fn start_of_next_day(at: &Zoned) -> Option<Zoned> {
    let date = at.date().tomorrow().ok()?;
    date.to_datetime(Time::midnight())
        .to_zoned(at.time_zone().clone())
        .ok()
}

fn first_of_next_month(at: &Zoned) -> Option<Zoned> {
    let date = at.date().last_of_month().tomorrow().ok()?;
    date.to_datetime(Time::midnight())
        .to_zoned(at.time_zone().clone())
        .ok()
}

fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<Field, ScheduleError> {
    let mut all = Field {
        bits: 0,
        star: false,
    };
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (bits, star) =
            range(part, least, most, names).ok_or_else(|| ScheduleError::Part(part.to_owned()))?;
        all.bits |= bits;
        all.star |= star;
    }
    Ok(all)
}

/// `*`, `5`, `5-9`, `mon-fri`, each with `/step`.
fn range(part: &str, least: u32, most: u32, names: &[&str]) -> Option<(u64, bool)> {
    let number = |text: &str| {
        let lower = text.to_ascii_lowercase();
        let named = names.iter().position(|name| *name == lower);
        match named {
            Some(at) => u32::try_from(at).ok().map(|at| at + least),
            None => text.parse::<u32>().ok(),
        }
    };
    let (limits, step) = match part.split_once('/') {
        Some((limits, step)) => (limits, Some(step.parse::<u32>().ok()?)),
        None => (part, None),
    };
    let star = matches!(limits, "*" | "?");
    let (start, end) = match limits.split_once('-') {
        _ if star => (least, most),
        Some((low, high)) => (number(low)?, number(high)?),
        // `5/15` means from 5 on.
        None if step.is_some() => (number(limits)?, most),
        None => (number(limits)?, number(limits)?),
    };
    let step = step.unwrap_or(1);
    if start < least || end > most || start > end || step == 0 {
        return None;
    }
    let values = (start..=end).step_by(usize::try_from(step).ok()?);
    let bits = values.fold(0_u64, |bits, value| bits | 1 << value);
    Some((bits, star && step == 1))
}

/// `1h30m`, `90s`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim_start_matches('+');
    let mut nanos = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let units = [
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 60e9),
            ("h", 3600e9),
        ];
        let (unit, after) = units.iter().find_map(|(name, unit)| {
            rest[digits..].strip_prefix(name).map(|after| (unit, after))
        })?;
        nanos += number * unit;
        rest = after;
    }
    Duration::try_from_secs_f64(nanos / 1e9).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cronjob::zone;

    #[track_caller]
    fn runs(text: &str, zone_name: &str, after: &str, expected: &[&str]) {
        let schedule = Schedule::parse(text, zone::load(zone_name).unwrap()).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for wanted in expected {
            at = schedule.next(at).unwrap();
            assert_eq!(at.to_string(), *wanted, "{text} in {zone_name}");
        }
    }

    #[test]
    fn schedules_are_due_when_their_fields_say() {
        let new_year = "2026-01-01T00:00:30Z";
        runs(
            "* * * * *",
            "UTC",
            new_year,
            &["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"],
        );
        runs(
            "*/20 3-4 * * *",
            "UTC",
            "2026-01-01T03:30:00Z",
            &[
                "2026-01-01T03:40:00Z",
                "2026-01-01T04:00:00Z",
                "2026-01-01T04:20:00Z",
                "2026-01-01T04:40:00Z",
                "2026-01-02T03:00:00Z",
            ],
        );
        runs(
            "0 0 29 feb ?",
            "UTC",
            new_year,
            &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
        );
        runs(
            "5/30 * * * *",
            "UTC",
            new_year,
            &["2026-01-01T00:05:00Z", "2026-01-01T00:35:00Z"],
        );
        runs("@weekly", "UTC", new_year, &["2026-01-04T00:00:00Z"]);
        runs(
            "@every 1h30m",
            "UTC",
            new_year,
            &["2026-01-01T01:30:30Z", "2026-01-01T03:00:30Z"],
        );
        // Neither day field is a star: one of them is enough.
        runs(
            "0 12 3 * mon",
            "UTC",
            new_year,
            &["2026-01-03T12:00:00Z", "2026-01-05T12:00:00Z"],
        );
    }

    #[test]
    fn zones_and_changes_of_clocks_count() {
        runs(
            "0 9 * * mon-fri",
            "Europe/Berlin",
            "2026-07-03T12:00:00Z",
            &["2026-07-06T07:00:00Z"],
        );
        // 02:30 does not happen on the 29th of March, and happens twice on the 25th of October.
        runs(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            &["2026-03-30T00:30:00Z"],
        );
        runs(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"],
        );
        runs(
            "0 0 * * *",
            "Asia/Kathmandu",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T18:15:00Z"],
        );
    }

    #[test]
    fn what_never_comes_or_is_not_understood_is_told() {
        let utc = || TimeZone::UTC;
        let never = Schedule::parse("0 0 31 2 *", utc()).unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH), None);
        for bad in [
            "* * * *",
            "60 * * * *",
            "x * * * *",
            "5-3 * * * *",
            "*/0 * * * *",
            "@often",
            "@every x",
            "* * 0 * *",
        ] {
            assert!(Schedule::parse(bad, utc()).is_err(), "{bad}");
        }
        assert_eq!(
            split_zone("CRON_TZ=Asia/Tokyo 0 5 * * *"),
            (Some("Asia/Tokyo"), "0 5 * * *")
        );
    }
}
