//! The CRI log format: `TIME STREAM TAG TEXT\n`, where TAG is `F` for the end of a line and `P` for a part of one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A longer line is written in parts of this length, as other runtimes do.
pub(crate) const PART_BYTES_MAX: usize = 16 << 10;

/// Which output of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Cuts one stream of one instance into lines.
#[derive(Debug)]
pub(crate) struct Framer {
    stream: Stream,
    partial: Vec<u8>,
}

impl Framer {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            partial: Vec::new(),
        }
    }

    /// Appends the finished lines of `bytes` to `out` and keeps the rest.
    pub(crate) fn push(&mut self, mut bytes: &[u8], now: SystemTime, out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.fill(&bytes[..end], now, out);
            self.emit(b'F', now, out);
            bytes = &bytes[end + 1..];
        }
        self.fill(bytes, now, out);
    }

    /// Writes what waits for its newline: the stream has ended. It is a part, as other runtimes say: whoever reads the log gets the
    /// bytes that were written, and no newline more.
    pub(crate) fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(b'P', now, out);
        }
        self.partial = Vec::new();
    }

    /// Adds `bytes`, without a newline in them, to the line; full parts go out.
    fn fill(&mut self, mut bytes: &[u8], now: SystemTime, out: &mut Vec<u8>) {
        while self.partial.len() + bytes.len() > PART_BYTES_MAX {
            let (part, rest) = bytes.split_at(PART_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(part);
            self.emit(b'P', now, out);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn emit(&mut self, tag: u8, now: SystemTime, out: &mut Vec<u8>) {
        timestamp(now, out);
        out.push(b' ');
        out.extend_from_slice(self.stream.name());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

/// RFC 3339 with nanoseconds, always nine digits, in UTC.
fn timestamp(now: SystemTime, out: &mut Vec<u8>) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, secs) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let text = format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        secs / 3600,
        secs / 60 % 60,
        secs % 60,
        since.subsec_nanos()
    );
    out.extend_from_slice(text.as_bytes());
}

/// Year, month and day of a day number since 1970, in the proleptic Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted in 400-year cycles from 0000-03-01, so that the leap day is the last day of a year.
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (
        cycle * 400 + year_of_cycle + u64::from(month <= 2),
        month,
        day,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(secs, nanos)
    }

    #[test]
    fn times() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_795_250_000, "2026-11-21T08:33:20.000000007Z"),
            (4_102_444_799, "2099-12-31T23:59:59.000000007Z"),
        ] {
            let mut out = Vec::new();
            timestamp(at(secs, 7), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn lines_parts_and_ends() {
        let long = "x".repeat(PART_BYTES_MAX + 1);
        type Case<'a> = (&'a str, &'a [&'a str], Vec<(&'a str, &'a str)>);
        let cases: [Case<'_>; 5] = [
            (
                "a line in two writes",
                &["he", "llo\n"],
                vec![("F", "hello")],
            ),
            (
                "two lines in one write",
                &["a\nb\n"],
                vec![("F", "a"), ("F", "b")],
            ),
            ("an empty line", &["\n"], vec![("F", "")]),
            (
                "no newline before the end",
                &["a\nb"],
                vec![("F", "a"), ("P", "b")],
            ),
            (
                "a long line",
                &[&long, "\n"],
                vec![("P", &long[1..]), ("F", "x")],
            ),
        ];
        for (case, writes, expected) in cases {
            let (mut framer, mut out) = (Framer::new(Stream::Stderr), Vec::new());
            for write in writes {
                framer.push(write.as_bytes(), at(0, 0), &mut out);
            }
            framer.finish(at(0, 0), &mut out);
            let out = String::from_utf8(out).unwrap();
            let lines: Vec<(&str, &str)> = out
                .lines()
                .map(|line| {
                    line.strip_prefix("1970-01-01T00:00:00.000000000Z stderr ")
                        .unwrap()
                        .split_once(' ')
                        .unwrap()
                })
                .collect();
            assert_eq!(lines, expected, "case: {case}");
        }
    }
}
