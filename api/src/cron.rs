//! Cron schedules: their text, and which minutes it means. One reading for the API server, which complains in the words that users
//! know, and for the controller, which goes by it. Pure; zones and clocks are the controller's.

use std::time::Duration;

use crate::text::quote;

/// What stands before a schedule that names its zone itself.
const ZONES: [&str; 2] = ["CRON_TZ=", "TZ="];
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SECOND_NANOS: i128 = 1_000_000_000;

/// The values of one field that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    bits: u64,
    /// Written as a star: then the other field of days decides alone.
    pub star: bool,
}

impl Field {
    /// Whether a value matches.
    #[must_use]
    pub fn has(self, value: i8) -> bool {
        u32::try_from(value)
            .ok()
            .and_then(|value| self.bits.checked_shr(value))
            .is_some_and(|bits| bits & 1 == 1)
    }
}

/// The five fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// 0 to 59.
    pub minute: Field,
    /// 0 to 23.
    pub hour: Field,
    /// 1 to 31, of the month.
    pub day: Field,
    /// 1 to 12.
    pub month: Field,
    /// 0 (Sunday) to 6.
    pub weekday: Field,
}

/// When something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// By the clock on the wall.
    Clock(Fields),
    /// So long after the last time; whole seconds, at least one.
    Every(Duration),
}

/// The zone that the text itself names (`CRON_TZ=Asia/Tokyo 0 5 * * *`), and the rest.
///
/// # Errors
/// A zone and nothing after it.
pub fn split_zone(text: &str) -> Result<(Option<&str>, &str), String> {
    let named = ZONES.iter().find_map(|prefix| text.strip_prefix(prefix));
    let Some(named) = named else {
        return Ok((None, text));
    };
    let (zone, rest) = named.split_once(' ').ok_or_else(|| {
        // What users of upstream's server see of its parser's fall.
        "invalid schedule format: runtime error: slice bounds out of range".to_owned()
    })?;
    Ok((Some(zone), rest.trim()))
}

impl Schedule {
    /// Reads a schedule without a zone.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('@') {
            return named(text);
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = words[..] else {
            let (found, words) = (words.len(), words.join(" "));
            return Err(format!(
                "expected exactly 5 fields, found {found}: [{words}]"
            ));
        };
        Ok(Self::Clock(Fields {
            minute: field(minute, 0, 59, &[])?,
            hour: field(hour, 0, 23, &[])?,
            day: field(day, 1, 31, &[])?,
            month: field(month, 1, 12, &MONTHS)?,
            weekday: field(weekday, 0, 6, &DAYS)?,
        }))
    }
}

fn named(text: &str) -> Result<Schedule, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => {
            let Some(period) = other.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let nanos = nanos(period).ok_or_else(|| {
                let quoted = quote(period);
                format!("failed to parse duration {text}: time: invalid duration {quoted}")
            })?;
            let secs = u64::try_from(nanos / SECOND_NANOS).unwrap_or(0).max(1);
            return Ok(Schedule::Every(Duration::from_secs(secs)));
        }
    };
    Schedule::parse(fields)
}

fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<Field, String> {
    let mut all = Field::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let own = range(part, least, most, names)?;
        all.bits |= own.bits;
        all.star |= own.star;
    }
    Ok(all)
}

fn number(text: &str, least: u32, names: &[&str]) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    if let Some(at) = names.iter().position(|name| *name == lower) {
        return Ok(at as u64 + u64::from(least));
    }
    text.parse().map_err(|_| {
        let quoted = quote(text);
        format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: invalid syntax")
    })
}

/// `*`, `5`, `5-9`, `mon-fri`, each with `/step`. What follows a star and a hyphen is not looked at.
fn range(part: &str, least: u32, most: u32, names: &[&str]) -> Result<Field, String> {
    let mut halves = part.split('/');
    let limits: Vec<&str> = halves.next().unwrap_or("").split('-').collect();
    let steps: Vec<&str> = halves.collect();
    let (first, last) = (u64::from(least), u64::from(most));
    let is_star = matches!(limits[0], "*" | "?");
    let (start, mut end) = if is_star {
        (first, last)
    } else {
        let start = number(limits[0], least, names)?;
        match limits[..] {
            [_] => (start, start),
            [_, high] => (start, number(high, least, names)?),
            _ => return Err(format!("too many hyphens: {part}")),
        }
    };
    let step = match steps[..] {
        [] => 1,
        [step] => {
            // `5/15` means from 5 on.
            if limits.len() == 1 {
                end = last;
            }
            number(step, 0, &[])?
        }
        _ => return Err(format!("too many slashes: {part}")),
    };
    if start < first {
        return Err(format!(
            "beginning of range ({start}) below minimum ({least}): {part}"
        ));
    }
    if end > last {
        return Err(format!(
            "end of range ({end}) above maximum ({most}): {part}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {part}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    // A step beyond the range leaves its beginning alone.
    let step_by = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(Field {
        bits: (start..=end)
            .step_by(step_by)
            .fold(0, |bits, value| bits | 1 << value),
        star: is_star && step == 1,
    })
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `-2us`, `0`.
fn nanos(text: &str) -> Option<i128> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let (mut rest, mut sum) = (rest, 0_i128);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (written, unit) = rest.split_at(digits);
        let (unit, after) = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", SECOND_NANOS),
            ("m", 60 * SECOND_NANOS),
            ("h", 3600 * SECOND_NANOS),
        ]
        .iter()
        .find_map(|(name, nanos)| unit.strip_prefix(name).map(|after| (*nanos, after)))?;
        sum = sum.checked_add(times(written, unit)?)?;
        rest = after;
    }
    // Go's durations have 64 bits.
    i64::try_from(sign * sum).ok().map(i128::from)
}

/// A decimal number of units; what is smaller than a nanosecond is cut off.
fn times(written: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = written.split_once('.').unwrap_or((written, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    // No unit has more nanoseconds than fifteen digits can tell apart.
    let fraction = &fraction[..fraction.len().min(15)];
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part: i128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    whole.checked_mul(unit)?.checked_add(part * unit / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minutes(text: &str) -> Vec<i8> {
        let Ok(Schedule::Clock(fields)) = Schedule::parse(&format!("{text} * * * *")) else {
            panic!("{text} is no field of minutes");
        };
        (0..=59)
            .filter(|minute| fields.minute.has(*minute))
            .collect()
    }

    #[test]
    fn what_fields_mean() {
        let all: Vec<i8> = (0..=59).collect();
        let cases: &[(&str, &[i8])] = &[
            ("5", &[5]),
            ("1-3", &[1, 2, 3]),
            ("*/20", &[0, 20, 40]),
            ("5/30", &[5, 35]),
            ("5-20/10", &[5, 15]),
            ("7/99", &[7]),
            ("1,,3", &[1, 3]),
            (",", &[]),
            ("*", &all),
            ("?", &all),
            ("*-5", &all),
            ("*-x-y", &all),
        ];
        for (text, expected) in cases {
            assert_eq!(minutes(text), *expected, "{text}");
        }
    }

    #[test]
    fn periods_are_whole_seconds() {
        for (text, expected) in [
            ("1h30m", 5400),
            ("1.5s", 1),
            ("90.9s", 90),
            ("0", 1),
            ("-5s", 1),
            ("+1m", 60),
            (".5h", 1800),
            ("2000000us", 2),
        ] {
            let every = Schedule::Every(Duration::from_secs(expected));
            assert_eq!(
                Schedule::parse(&format!("@every {text}")),
                Ok(every),
                "{text}"
            );
        }
        for text in [
            "", "5", "--5s", "s", ".s", "1.2.3s", "1x", "9999999h", "1h ",
        ] {
            assert!(
                Schedule::parse(&format!("@every {text}")).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn schedules_are_understood_or_the_text_says_why() {
        for good in [
            "0 0 ? JAN sun",
            "*/5 1-3 1,15 * mon-fri",
            "@daily",
            "0\t0 1 1  *",
        ] {
            assert!(Schedule::parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            (" @daily", "expected exactly 5 fields, found 1: [@daily]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            (
                "9999999999 * * * *",
                "end of range (9999999999) above maximum (59): 9999999999",
            ),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "* 5-3 * * *",
                "beginning of range (5) beyond end of range (3): 5-3",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/1/2 * * * *", "too many slashes: */1/2"),
            ("@often", "unrecognized descriptor: @often"),
            (
                "@every x",
                "failed to parse duration @every x: time: invalid duration \"x\"",
            ),
        ] {
            assert_eq!(Schedule::parse(bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn zones_stand_first() {
        let zone = split_zone("CRON_TZ=Asia/Tokyo  0 5 * * *");
        assert_eq!(zone, Ok((Some("Asia/Tokyo"), "0 5 * * *")));
        assert_eq!(split_zone("0 5 * * *"), Ok((None, "0 5 * * *")));
        assert!(split_zone("TZ=UTC").is_err());
    }

    /// One part of a field of months, as text, and what it has to mean.
    fn part() -> impl Strategy<Value = (String, Vec<i8>)> {
        let name = |month: i8, named: bool| {
            let at = usize::try_from(month - 1).unwrap();
            if named {
                MONTHS[at].to_uppercase()
            } else {
                month.to_string()
            }
        };
        let step = prop::option::of(1..20_usize);
        (1..=12_i8, 1..=12_i8, any::<[bool; 4]>(), step).prop_map(move |(a, b, how, step)| {
            let (low, high) = (a.min(b), a.max(b));
            let [star, single, named_low, named_high] = how;
            let (mut text, start, end) = if star {
                ("*".to_owned(), 1, 12)
            } else if single {
                (
                    name(low, named_low),
                    low,
                    if step.is_some() { 12 } else { low },
                )
            } else {
                (
                    format!("{}-{}", name(low, named_low), name(high, named_high)),
                    low,
                    high,
                )
            };
            if let Some(step) = step {
                text = format!("{text}/{step}");
            }
            (text, (start..=end).step_by(step.unwrap_or(1)).collect())
        })
    }

    proptest! {
        #[test]
        fn a_field_means_what_its_parts_mean(parts in prop::collection::vec(part(), 1..5)) {
            let text: Vec<&str> = parts.iter().map(|(text, _)| text.as_str()).collect();
            let text = format!("0 0 1 {} *", text.join(","));
            let Ok(Schedule::Clock(fields)) = Schedule::parse(&text) else {
                panic!("{text} is not understood");
            };
            for month in -1..=63_i8 {
                let expected = parts.iter().any(|(_, months)| months.contains(&month));
                prop_assert_eq!(fields.month.has(month), expected, "{} has {}", text, month);
            }
        }

        #[test]
        fn no_text_is_too_much(text in "[ -~]{0,40}", words in "([-0-9*?/,a-z]{1,6} ){4}[-0-9*?/,a-z]{1,6}") {
            for text in [text.clone(), words.clone(), format!("@every {text}"), format!("TZ={text}")] {
                let Ok((_, rest)) = split_zone(&text) else { continue };
                if let Ok(Schedule::Clock(fields)) = Schedule::parse(rest) {
                    let day = [fields.day.has(0), fields.day.has(32), fields.month.has(0), fields.month.has(13)];
                    prop_assert_eq!(day, [false; 4], "{}", text);
                    prop_assert!(!fields.minute.has(60) && !fields.hour.has(24) && !fields.weekday.has(7), "{}", text);
                }
            }
        }
    }
}
