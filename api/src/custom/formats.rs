//! The string formats that upstream checks; all others are taken as they come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use base64::Engine;
use regex::Regex;

use crate::names;

/// Formats that are regular expressions.
const PATTERNS: &[(&str, &str)] = &[
    ("bsonobjectid", "^[0-9a-fA-F]{24}$"),
    (
        "uuid",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
    ),
    (
        "uuid3",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
    ),
    (
        "uuid4",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$",
    ),
    (
        "uuid5",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$",
    ),
    ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
    ("hexcolor", "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
    (
        "rgbcolor",
        r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$",
    ),
    ("email", r"^[^@\s<>]+@[^@\s<>]+$"),
    (
        "mac",
        "^([0-9a-fA-F]{2}[:-]){5}([0-9a-fA-F]{2})$|^([0-9a-fA-F]{2}[:-]){7}([0-9a-fA-F]{2})$|^([0-9a-fA-F]{4}\\.){2}[0-9a-fA-F]{4}$",
    ),
    (
        "hostname",
        r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$",
    ),
    ("date", r"^\d{4}-\d{2}-\d{2}$"),
];

/// Whether a text has a format. One that nobody checks always holds.
pub(super) fn holds(format: &str, text: &str) -> bool {
    let format = format.replace('-', "");
    match format.as_str() {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "uri" => is_uri(text),
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .is_ok(),
        "date" => matches("date", text) && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => text.to_uppercase().contains('T') && text.parse::<jiff::Timestamp>().is_ok(),
        "duration" => is_duration(text),
        "creditcard" => is_credit_card(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "k8sshortname" => names::dns_label(text).is_empty(),
        "k8slongname" => names::dns_subdomain(text).is_empty(),
        "hostname" => text.len() <= 255 && matches("hostname", text),
        other => matches(other, text),
    }
}

fn matches(format: &str, text: &str) -> bool {
    static COMPILED: OnceLock<Vec<(&str, Regex)>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        let compile = |pattern| Regex::new(pattern).expect("the patterns above are tested");
        PATTERNS
            .iter()
            .map(|(name, pattern)| (*name, compile(pattern)))
            .collect()
    });
    compiled
        .iter()
        .find(|(name, _)| *name == format)
        .is_none_or(|(_, regex)| regex.is_match(text))
}

/// `ADDRESS/BITS`
pub(super) fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let max = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.starts_with('+') && bits.parse::<u8>().is_ok_and(|bits| bits <= max)
}

/// An absolute URI or an absolute path.
pub(super) fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.contains(char::is_whitespace) || text.contains(char::is_control) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(good)
        && !rest.is_empty()
}

/// Go's durations, and words such as `5 minutes`.
fn is_duration(text: &str) -> bool {
    static DURATION: OnceLock<Regex> = OnceLock::new();
    let regex = DURATION.get_or_init(|| {
        Regex::new(r"(?i)^[-+]?(0|((\d+(\.\d*)?|\.\d+)\s*(ns|nanos?|nanoseconds?|us|µs|μs|micros?|microseconds?|ms|millis?|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wks?|weeks?)\s*)+)$")
            .expect("a constant pattern")
    });
    regex.is_match(text)
}

fn digits(text: &str) -> Vec<u32> {
    text.chars()
        .filter(|c| !matches!(c, ' ' | '-'))
        .map(|c| match c {
            'X' | 'x' => 10,
            c => c.to_digit(10).unwrap_or(99),
        })
        .collect()
}

fn is_credit_card(text: &str) -> bool {
    let digits = digits(text);
    if !(13..=19).contains(&digits.len()) || digits.iter().any(|digit| *digit > 9) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_isbn10(text: &str) -> bool {
    let digits = digits(text);
    let weights = (1..=10).rev();
    digits.len() == 10
        && digits[..9].iter().all(|digit| *digit < 10)
        && digits[9] <= 10
        && digits
            .iter()
            .zip(weights)
            .map(|(d, w)| d * w)
            .sum::<u32>()
            .is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let digits = digits(text);
    let weights = [1, 3].into_iter().cycle();
    digits.len() == 13
        && digits.iter().all(|digit| *digit < 10)
        && digits
            .iter()
            .zip(weights)
            .map(|(d, w)| d * w)
            .sum::<u32>()
            .is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_hold_for_what_they_name() {
        for (format, good, bad) in [
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uri", "http://a/b", "a b"),
            ("byte", "YQ==", "%"),
            ("date", "2026-01-31", "2026-02-31"),
            ("date-time", "2026-01-31T10:00:00Z", "2026-01-31"),
            ("duration", "1h30m", "1x"),
            ("uuid", "00000000-0000-0000-0000-000000000000", "0"),
            ("email", "a@b", "a"),
            ("hostname", "a.example.com", "-a"),
            ("isbn10", "0-306-40615-2", "0-306-40615-3"),
            ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("hexcolor", "#fff", "#ff"),
            ("rgbcolor", "rgb(1,2,3)", "rgb(1,2,300)"),
            ("ssn", "123-45-6789", "1"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("k8s-short-name", "a-b", "a.b"),
        ] {
            assert!(holds(format, good), "case: {format} {good}");
            assert!(!holds(format, bad), "case: {format} {bad}");
        }
        assert!(holds("whatever", "anything"));
    }
}
