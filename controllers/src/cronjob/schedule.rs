//! When a cron schedule is due. Pure: a zone comes in, times come out.
//!
//! A day matches when both of its fields do, or one of them where neither is a star. Hours that a clock change leaves out are
//! never due; hours that come twice are due twice.

use cox_api::cron::{self, Fields};
use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

/// Where a schedule has nothing for so many years (the 31st of February), there is nothing.
const YEARS_MAX: i64 = 5;

/// A schedule in its time zone.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    kind: cron::Schedule,
    zone: TimeZone,
}

impl Schedule {
    /// A schedule from its text, without a zone in it.
    pub(crate) fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let kind = cron::Schedule::parse(text)?;
        Ok(Self { kind, zone })
    }

    /// The first time after `after`; none if there is none for years.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.kind {
            cron::Schedule::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*period).ok()
            }
            cron::Schedule::Clock(fields) => self.next_by_clock(fields, after),
        }
    }

    fn next_by_clock(&self, fields: &Fields, after: Timestamp) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second().div_euclid(60) * 60).ok()?;
        let mut at = step(&whole.to_zoned(self.zone.clone()), 1.minute())?;
        let end = at.checked_add(YEARS_MAX.years()).ok()?;
        while at <= end {
            if !fields.month.has(at.month()) {
                at = first_of_next_month(&at)?;
            } else if !has_day(fields, &at) {
                at = start_of_next_day(&at)?;
            } else if !fields.hour.has(at.hour()) {
                at = step(&at, (60 - i64::from(at.minute())).minutes())?;
            } else if fields.minute.has(at.minute()) {
                return Some(at.timestamp());
            } else {
                at = step(&at, 1.minute())?;
            }
        }
        None
    }
}

fn has_day(fields: &Fields, at: &Zoned) -> bool {
    let of_month = fields.day.has(at.day());
    let of_week = fields.weekday.has(at.weekday().to_sunday_zero_offset());
    if fields.day.star || fields.weekday.star {
        of_month && of_week
    } else {
        of_month || of_week
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cronjob::zone;
    use proptest::prelude::*;

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
        let nothing = Schedule::parse(", * * * *", utc()).unwrap();
        assert_eq!(nothing.next(Timestamp::UNIX_EPOCH), None);
        assert!(Schedule::parse("60 * * * *", utc()).is_err());
    }

    /// A field that has some of its values.
    fn field(least: i8, most: i8) -> impl Strategy<Value = String> {
        let part = (least..=most, least..=most, 1..9_i8).prop_map(move |(a, b, step)| {
            let (low, high) = (a.min(b), a.max(b));
            match step {
                1 => "*".to_owned(),
                2 => format!("*/{a}").replace("/0", "/1"),
                3 | 4 => low.to_string(),
                step => format!("{low}-{high}/{step}"),
            }
        });
        prop::collection::vec(part, 1..3).prop_map(|parts| parts.join(","))
    }

    proptest! {
        /// Minute by minute over two days, in the plainest way, nothing is due earlier and nothing is left out.
        #[test]
        fn the_next_time_is_the_first_minute_that_fits(
            minute in field(0, 59), hour in field(0, 23), day in field(1, 31), month in field(1, 12), weekday in field(0, 6),
            start in 0..2_000_000_000_i64, berlin in any::<bool>(),
        ) {
            let zone = if berlin { zone::load("Europe/Berlin").unwrap() } else { TimeZone::UTC };
            let text = format!("{minute} {hour} {day} {month} {weekday}");
            let schedule = Schedule::parse(&text, zone.clone()).unwrap();
            let cron::Schedule::Clock(fields) = cron::Schedule::parse(&text).unwrap() else { unreachable!() };
            let start = Timestamp::from_second(start).unwrap();
            let fits = |at: &Timestamp| {
                let at = at.to_zoned(zone.clone());
                fields.minute.has(at.minute()) && fields.hour.has(at.hour()) && fields.month.has(at.month()) && has_day(&fields, &at)
            };
            let first = start.as_second().div_euclid(60) + 1;
            let mut minutes = (first..first + 2 * 24 * 60).map(|minute| Timestamp::from_second(minute * 60).unwrap());
            let expected = minutes.clone().find(|at| fits(at));
            let found = schedule.next(start);
            match expected {
                Some(_) => prop_assert_eq!(found, expected, "{}", text),
                None => prop_assert!(found.is_none_or(|found| found > minutes.next_back().unwrap()), "{} {:?}", text, found),
            }
        }
    }
}
