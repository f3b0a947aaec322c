//! Scalars with a format of their own: times, durations and base64, in their canonical text.

use std::time::Duration;

use base64::Engine;
use jiff::Timestamp;

/// Canonical `metav1.Time`: UTC, whole seconds; none for Go's zero time, which is null there.
pub(super) fn time(text: &str) -> Result<Option<String>, String> {
    if is_plain_utc(text) {
        return Ok((text != "0001-01-01T00:00:00Z").then(|| text.to_owned()));
    }
    let at = parse_time(text, "2006-01-02T15:04:05Z07:00")?;
    Ok(keep_non_zero(crate::meta::format_time(at)))
}

/// Canonical `metav1.MicroTime`: UTC, six digits of a second.
pub(super) fn micro_time(text: &str) -> Result<Option<String>, String> {
    let at = parse_time(text, "2006-01-02T15:04:05.000000Z07:00")?;
    Ok(keep_non_zero(crate::meta::format_micro_time(at)))
}

fn keep_non_zero(text: String) -> Option<String> {
    (!text.starts_with("0001-01-01T00:00:00")).then_some(text)
}

fn parse_time(text: &str, layout: &str) -> Result<Timestamp, String> {
    let malformed = || {
        format!(
            "parsing time {} as {}: cannot parse {} as \"2006\"",
            crate::text::quote(text),
            crate::text::quote(layout),
            crate::text::quote(text)
        )
    };
    // jiff takes more forms than RFC 3339 has: a space for the T, a missing time.
    let bytes = text.as_bytes();
    if bytes.len() < 20
        || bytes[10] != b'T'
        || !matches!(bytes[bytes.len() - 1], b'Z' | b'0'..=b'9')
    {
        return Err(malformed());
    }
    text.parse().map_err(|_| malformed())
}

/// `2006-01-02T15:04:05Z` exactly, with fields in range: already canonical, no need to parse and print it.
fn is_plain_utc(text: &str) -> bool {
    let b = text.as_bytes();
    let shape = b.len() == 20
        && b[4] == b'-'
        && b[7] == b'-'
        && b[10] == b'T'
        && b[13] == b':'
        && b[16] == b':'
        && b[19] == b'Z';
    if !shape {
        return false;
    }
    let two = |at: usize| match (b[at], b[at + 1]) {
        (tens @ b'0'..=b'9', ones @ b'0'..=b'9') => Some((tens - b'0') * 10 + (ones - b'0')),
        _ => None,
    };
    let within = |at: usize, low: u8, high: u8| two(at).is_some_and(|v| (low..=high).contains(&v));
    // Day 29 and later depend on the month: those go the long way.
    within(0, 0, 99)
        && within(2, 0, 99)
        && within(5, 1, 12)
        && within(8, 1, 28)
        && within(11, 0, 23)
        && within(14, 0, 59)
        && within(17, 0, 59)
}

/// Checks standard base64 and answers its canonical text.
pub(super) fn base64_text(text: String) -> Result<String, String> {
    use base64::engine::general_purpose::STANDARD;
    match STANDARD.decode(&text) {
        Ok(_) => Ok(text),
        Err(_) if text.contains(['\r', '\n']) => {
            let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            base64_text(joined)
        }
        Err(
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _),
        ) => Err(format!("illegal base64 data at input byte {at}")),
        Err(_) => Err(format!(
            "illegal base64 data at input byte {}",
            text.len() / 4 * 4
        )),
    }
}

/// Canonical Go duration text, e.g. `1h30m0s`.
pub(super) fn duration(text: &str) -> Result<String, String> {
    let nanos = duration_nanos(text)
        .ok_or_else(|| format!("time: invalid duration {}", crate::text::quote(text)))?;
    Ok(format_duration(nanos))
}

/// A length of time as Go writes it, such as `1h30m`, without a sign.
#[must_use]
pub fn go_duration(text: &str) -> Option<Duration> {
    let nanos = duration_nanos(text).filter(|_| !text.starts_with(['+', '-']))?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// A Go duration in nanoseconds.
pub(crate) fn duration_nanos(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail
            .bytes()
            .take_while(|b| !b.is_ascii_digit() && *b != b'.')
            .count();
        let (unit, tail) = tail.split_at(unit_len);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
            return None;
        }
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        let kept = &fraction[..fraction.len().min(18)];
        let part: i128 = if kept.is_empty() {
            0
        } else {
            kept.parse().ok()?
        };
        total += whole * scale + part * scale / 10i128.pow(u32::try_from(kept.len()).ok()?);
        if total > i128::from(i64::MAX) {
            return None;
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    if n < 1_000_000_000 {
        let (scale, unit) = if n < 1_000 {
            (1, "ns")
        } else if n < 1_000_000 {
            (1_000, "µs")
        } else {
            (1_000_000, "ms")
        };
        return format!("{sign}{}{unit}", decimal(n, scale));
    }
    let (hours, minutes) = (n / 3_600_000_000_000, n / 60_000_000_000 % 60);
    let seconds = decimal(n % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / scale` without trailing zeros.
fn decimal(value: u64, scale: u64) -> String {
    let (whole, part) = (value / scale, value % scale);
    if part == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let digits = format!("{part:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_utc_with_whole_seconds() {
        for (input, expected) in [
            ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
            ("2024-01-31T03:04:05Z", "2024-01-31T03:04:05Z"),
            ("2024-01-02T03:04:05.999Z", "2024-01-02T03:04:05Z"),
            ("2024-01-02T03:04:05+02:00", "2024-01-02T01:04:05Z"),
        ] {
            assert_eq!(time(input).unwrap().unwrap(), expected);
        }
        assert_eq!(time("0001-01-01T00:00:00Z"), Ok(None));
        assert_eq!(
            micro_time("2024-01-02T03:04:05Z").unwrap().unwrap(),
            "2024-01-02T03:04:05.000000Z"
        );
        for bad in [
            "",
            "yesterday",
            "2024-13-02T03:04:05Z",
            "2024-02-31T03:04:05Z",
            "2024-01-02 03:04:05Z",
            "2024-01-02",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_printed_as_go_does() {
        for (input, expected) in [
            ("0", "0s"),
            ("90s", "1m30s"),
            ("1h", "1h0m0s"),
            ("1.5s", "1.5s"),
            ("100ms", "100ms"),
            ("-2m", "-2m0s"),
            ("1h15m30.918s", "1h15m30.918s"),
            ("10us", "10µs"),
        ] {
            assert_eq!(duration(input).unwrap(), expected);
        }
        for bad in ["", "1", "h", "1x", "99999999999h", "."] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_is_checked() {
        assert_eq!(base64_text("aGk=".into()).unwrap(), "aGk=");
        assert_eq!(base64_text("aG\nk=".into()).unwrap(), "aGk=");
        assert_eq!(
            base64_text("a!k=".into()).unwrap_err(),
            "illegal base64 data at input byte 1"
        );
        assert!(base64_text("aGk".into()).is_err());
    }
}
