//! The form of cron schedules and time zones, with the complaints that users know.

use crate::cron::{Schedule, split_zone};

/// Is it a schedule? The error says what is not understood.
pub(super) fn check(text: &str) -> Result<(), String> {
    let (zone, rest) = split_zone(text)?;
    if let Some(zone) = zone {
        time_zone(zone).map_err(|why| format!("provided bad location {zone}: {why}"))?;
    }
    Schedule::parse(rest).map(drop)
}

/// Is it the name of a time zone?
pub(super) fn time_zone(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("timeZone must be nil or non-empty string".to_owned());
    }
    let fits = |part: &str| {
        (1..=14).contains(&part.len())
            && !matches!(part, "." | "..")
            && !part.starts_with('-')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b))
    };
    if !name.split('/').all(fits) {
        return Err(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("local") {
        return Err(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
                .to_owned(),
        );
    }
    let known = include_str!("../../tables/zones.txt");
    if known.lines().any(|zone| zone == name) {
        Ok(())
    } else {
        Err(format!("unknown time zone {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_checked_with_their_zones() {
        for (text, expected) in [
            ("*-5 * * * *", Ok(())),
            ("TZ=Europe/Berlin @daily", Ok(())),
            (
                "CRON_TZ=Nowhere/Land * * * * *",
                Err("provided bad location Nowhere/Land: unknown time zone Nowhere/Land"),
            ),
            ("TZ=UTC @often", Err("unrecognized descriptor: @often")),
        ] {
            assert_eq!(check(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn time_zones_are_known_by_name() {
        assert_eq!(time_zone("Europe/Berlin"), Ok(()));
        assert_eq!(
            time_zone("Nowhere/Land"),
            Err("unknown time zone Nowhere/Land".to_owned())
        );
        assert_eq!(time_zone("a//b"), Err("unknown time zone a//b".to_owned()));
        assert!(time_zone("Local").is_err() && time_zone("").is_err());
    }
}
