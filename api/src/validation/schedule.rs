//! The form of cron schedules and time zones, with the complaints that users know.

/// One of the five fields: its range, and names for its values.
struct Field {
    least: u32,
    most: u32,
    names: &'static [(&'static str, u32)],
}

const FIELDS: [Field; 5] = [
    Field {
        least: 0,
        most: 59,
        names: &[],
    },
    Field {
        least: 0,
        most: 23,
        names: &[],
    },
    Field {
        least: 1,
        most: 31,
        names: &[],
    },
    Field {
        least: 1,
        most: 12,
        names: &[
            ("jan", 1),
            ("feb", 2),
            ("mar", 3),
            ("apr", 4),
            ("may", 5),
            ("jun", 6),
            ("jul", 7),
            ("aug", 8),
            ("sep", 9),
            ("oct", 10),
            ("nov", 11),
            ("dec", 12),
        ],
    },
    Field {
        least: 0,
        most: 6,
        names: &[
            ("sun", 0),
            ("mon", 1),
            ("tue", 2),
            ("wed", 3),
            ("thu", 4),
            ("fri", 5),
            ("sat", 6),
        ],
    },
];
const NAMED: [&str; 7] = [
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];

/// Is it a schedule? The error says what is not understood.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut text = text;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let Some((zone, rest)) = text.split_once(' ') else {
            return Err(
                "invalid schedule format: runtime error: slice bounds out of range".to_owned(),
            );
        };
        let zone = zone.split_once('=').map_or("", |(_, zone)| zone);
        time_zone(zone).map_err(|why| format!("provided bad location {zone}: {why}"))?;
        text = rest.trim();
    }
    if text.starts_with('@') {
        return named(text);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    for (text, field) in fields.into_iter().zip(&FIELDS) {
        for part in text.split(',').filter(|part| !part.is_empty()) {
            range(part, field)?;
        }
    }
    Ok(())
}

fn named(text: &str) -> Result<(), String> {
    if NAMED.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(period) if is_duration(period) => Ok(()),
        Some(period) => Err(format!(
            "failed to parse duration {text}: time: invalid duration {}",
            crate::text::quote(period)
        )),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

/// `1h30m`, `1.5s`, `0`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let number = &rest[..digits];
        if number.trim_matches('.').is_empty() || number.matches('.').count() > 1 {
            return false;
        }
        let unit = &rest[digits..];
        let Some(after) = ["ns", "us", "µs", "ms", "s", "m", "h"]
            .iter()
            .find_map(|name| unit.strip_prefix(name))
        else {
            return false;
        };
        rest = after;
    }
    !text.trim_start_matches(['+', '-']).is_empty()
}

fn number(text: &str, field: &Field) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    if let Some((_, value)) = field.names.iter().find(|(name, _)| *name == lower) {
        return Ok(*value);
    }
    text.parse::<u32>().map_err(|_| {
        let quoted = crate::text::quote(text);
        format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: invalid syntax")
    })
}

fn range(part: &str, field: &Field) -> Result<(), String> {
    let mut halves = part.split('/');
    let limits: Vec<&str> = halves.next().unwrap_or("").split('-').collect();
    let steps: Vec<&str> = halves.collect();
    let (mut start, mut end) = (field.least, field.most);
    if !matches!(limits[0], "*" | "?") {
        start = number(limits[0], field)?;
        end = match limits[..] {
            [_] => start,
            [_, high] => number(high, field)?,
            _ => return Err(format!("too many hyphens: {part}")),
        };
    }
    let step = match steps[..] {
        [] => 1,
        [step] => {
            if limits.len() == 1 {
                end = field.most;
            }
            number(
                step,
                &Field {
                    least: 0,
                    most: 0,
                    names: &[],
                },
            )?
        }
        _ => return Err(format!("too many slashes: {part}")),
    };
    let (least, most) = (field.least, field.most);
    if start < least {
        return Err(format!(
            "beginning of range ({start}) below minimum ({least}): {part}"
        ));
    }
    if end > most {
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
    Ok(())
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
    fn schedules_are_understood_or_the_text_says_why() {
        for good in [
            "* * * * *",
            "*/5 1-3 1,15 * mon-fri",
            "0 0 ? JAN sun",
            "@daily",
            "@every 1h30m",
            "5/15 * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
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
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
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
