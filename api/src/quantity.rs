//! `resource.Quantity`: fixed-point numbers with a suffix, e.g. `250m`, `1.5Gi`, `12e6`.
//!
//! Values are kept exactly in billionths, which is as fine as upstream goes; what is finer is rounded up, what is above
//! 2^63-1 is capped, as upstream does. Display is the canonical form. It never keeps the text as it was written.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// One, in billionths.
const ONE: i128 = 1_000_000_000;
/// The largest magnitude a quantity may have.
const MAX_NANOS: i128 = (i64::MAX as i128) * ONE;
/// Digits after the point that can matter; the rest only rounds up.
const FRACTION_DIGITS_MAX: usize = 15;

/// The suffix family a quantity prints in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// n, u, m, k, M, G, T, P, E.
    DecimalSi,
    /// Ki, Mi, Gi, Ti, Pi, Ei.
    BinarySi,
    /// e3, e6, ...
    DecimalExponent,
}

/// A quantity.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why text is no quantity; the texts are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Shape of the text.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// Digits.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// Suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Zero, printed in decimal.
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// A whole number.
    pub fn from_i64(value: i64, format: Format) -> Self {
        Quantity {
            nanos: i128::from(value) * ONE,
            format,
        }
    }

    /// Thousandths, as CPU is counted.
    pub fn from_millis(millis: i64) -> Self {
        Quantity {
            nanos: i128::from(millis) * (ONE / 1000),
            format: Format::DecimalSi,
        }
    }

    /// Reads a quantity; the same as `FromStr`.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text)
    }

    /// The value as a whole number, rounded up (away from zero).
    pub fn as_i64(&self) -> i64 {
        saturate(div_away(self.nanos, ONE))
    }

    /// The value in thousandths, rounded up (away from zero).
    pub fn as_millis(&self) -> i64 {
        saturate(div_away(self.nanos, ONE / 1000))
    }

    /// The value as a float, for ratios only.
    #[expect(
        clippy::cast_precision_loss,
        reason = "scores and ratios need no exactness"
    )]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / ONE as f64
    }

    /// Is it nothing?
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Is it below nothing?
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Is it a whole number?
    pub fn is_integer(&self) -> bool {
        self.nanos % ONE == 0
    }

    /// The suffix family.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    /// Keeps the format of the left side, unless that is zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: cap(self.nanos.saturating_add(other.nanos)),
            format,
        }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: cap(self.nanos.saturating_sub(other.nanos)),
            format,
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text)
    }
}

fn cap(nanos: i128) -> i128 {
    nanos.clamp(-MAX_NANOS, MAX_NANOS)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds away from zero.
fn div_away(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 {
        quotient
    } else {
        quotient + value.signum()
    }
}

/// Suffix as a power: `base^exponent`, where base is 2 or 10.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn parse(text: &str) -> Result<Quantity, QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        None => return Err(QuantityError::Format),
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
    };
    let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(whole_len);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        None => ("", rest),
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
    };
    let (scale, format) = parse_suffix(suffix)?;
    if whole.is_empty() && fraction.is_empty() {
        return Err(QuantityError::Numeric);
    }
    let magnitude = magnitude(whole, fraction, &scale);
    // A binary suffix on less than one would round to nothing sensible.
    let format = if format == Format::BinarySi && magnitude < ONE {
        Format::DecimalSi
    } else {
        format
    };
    Ok(Quantity {
        nanos: if negative { -magnitude } else { magnitude },
        format,
    })
}

/// The value in billionths, rounded up and capped.
fn magnitude(whole: &str, fraction: &str, scale: &Scale) -> i128 {
    let whole: i128 = whole.bytes().fold(0i128, |sum, d| {
        sum.saturating_mul(10)
            .saturating_add(i128::from(d - b'0'))
            .min(i128::MAX / 20)
    });
    let kept = &fraction[..fraction.len().min(FRACTION_DIGITS_MAX)];
    let finer = fraction[kept.len()..].bytes().any(|d| d != b'0');
    let part: i128 = kept
        .bytes()
        .fold(0, |sum, d| sum * 10 + i128::from(d - b'0'))
        * 10i128.pow(15 - digits(kept))
        + i128::from(finer);
    // `part` counts 10^-15ths now, `whole` counts ones.
    let nanos = match scale {
        Scale::Two(bits) => {
            let factor = 1i128 << bits;
            let whole = whole.checked_mul(factor * ONE).unwrap_or(MAX_NANOS);
            whole.saturating_add(div_away(part * factor, 1_000_000))
        }
        Scale::Ten(exponent) => {
            scale_ten(whole, 9 + exponent).saturating_add(scale_ten(part, exponent - 6))
        }
    };
    nanos.min(MAX_NANOS)
}

fn digits(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(15).min(15)
}

fn scale_ten(value: i128, exponent: i32) -> i128 {
    let power = 10i128.checked_pow(exponent.unsigned_abs());
    match (value, exponent >= 0, power) {
        (0, _, _) => 0,
        (_, true, Some(power)) => value.checked_mul(power).unwrap_or(MAX_NANOS),
        (_, true, None) => MAX_NANOS,
        (_, false, Some(power)) => div_away(value, power),
        (_, false, None) => 1,
    }
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    use Format::{BinarySi, DecimalExponent, DecimalSi};
    let known = match suffix {
        "" => (Scale::Ten(0), DecimalSi),
        "n" => (Scale::Ten(-9), DecimalSi),
        "u" => (Scale::Ten(-6), DecimalSi),
        "m" => (Scale::Ten(-3), DecimalSi),
        "k" => (Scale::Ten(3), DecimalSi),
        "M" => (Scale::Ten(6), DecimalSi),
        "G" => (Scale::Ten(9), DecimalSi),
        "T" => (Scale::Ten(12), DecimalSi),
        "P" => (Scale::Ten(15), DecimalSi),
        "E" => (Scale::Ten(18), DecimalSi),
        "Ki" => (Scale::Two(10), BinarySi),
        "Mi" => (Scale::Two(20), BinarySi),
        "Gi" => (Scale::Two(30), BinarySi),
        "Ti" => (Scale::Two(40), BinarySi),
        "Pi" => (Scale::Two(50), BinarySi),
        "Ei" => (Scale::Two(60), BinarySi),
        _ => {
            let letters = suffix
                .bytes()
                .take_while(|b| b"eEinumkKMGTP".contains(b))
                .count();
            let (letters, number) = suffix.split_at(letters);
            let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
            if !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(QuantityError::Format);
            }
            if letters != "e" && letters != "E" || digits.is_empty() {
                return Err(QuantityError::Suffix);
            }
            let exponent: i32 = number.parse().map_err(|_| QuantityError::Suffix)?;
            // Beyond this every value is capped or rounded up to the smallest one anyway.
            (Scale::Ten(exponent.clamp(-60, 60)), DecimalExponent)
        }
    };
    Ok(known)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary = self.format == Format::BinarySi && self.nanos.abs() >= 1024 * ONE;
        if binary {
            self.fmt_binary(f)
        } else {
            self.fmt_decimal(f)
        }
    }
}

impl Quantity {
    fn fmt_binary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = div_away(self.nanos, ONE);
        let (mut value, mut at) = (whole, 0);
        while at < 6 && value % 1024 == 0 {
            value /= 1024;
            at += 1;
        }
        if at == 0 {
            // Without a suffix it reads as decimal, so it is written as decimal: what is stored stays what it is.
            let decimal = Quantity {
                nanos: whole * ONE,
                format: Format::DecimalSi,
            };
            return decimal.fmt_decimal(f);
        }
        write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][at])
    }

    fn fmt_decimal(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.nanos;
        let mut thousands = 0usize;
        while thousands < 9 && value % 1000 == 0 {
            value /= 1000;
            thousands += 1;
        }
        if self.format == Format::DecimalExponent {
            let exponent = i32::try_from(thousands).unwrap_or(0) * 3 - 9;
            return if exponent == 0 {
                write!(f, "{value}")
            } else {
                write!(f, "{value}e{exponent}")
            };
        }
        write!(
            f,
            "{value}{}",
            ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][thousands]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (input, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("0Gi", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("2048Mi", "2Gi"),
            ("1500Mi", "1500Mi"),
            ("1023Ki", "1023Ki"),
            ("512", "512"),
            ("100e1", "1e3"),
            ("12e6", "12e6"),
            ("1e-3", "1e-3"),
            ("123456", "123456"),
            ("1.3Ki", "1332"),
            ("69.3350Ki", "71k"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-1.5", "-1500m"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("10E", "9223372036854775807"),
            (
                "100000000000000000000000000000000000000000000",
                "9223372036854775807",
            ),
            ("1e100", "9223372036854775807e0"),
            ("0.0000000000000000000000001", "1n"),
            ("0.5Mi", "512Ki"),
            ("0.25Ki", "256"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
        ] {
            let expected = expected.strip_suffix("e0").unwrap_or(expected);
            assert_eq!(
                Quantity::parse(input).unwrap().to_string(),
                expected,
                "{input}"
            );
        }
    }

    #[test]
    fn bad_text_is_refused_with_upstreams_reason() {
        for (input, error) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1..2", QuantityError::Format),
            ("Mi", QuantityError::Numeric),
            (".", QuantityError::Numeric),
            ("1kk", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(input), Err(error), "{input:?}");
        }
    }

    #[test]
    fn numbers_round_up_and_compare_by_value() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert_eq!(
            (
                q("1.1").as_i64(),
                q("1100u").as_millis(),
                q("-1.1").as_i64()
            ),
            (2, 2, -2)
        );
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + q("512Mi")).to_string(), "512Mi");
        assert_eq!((q("2") - q("500m")).to_string(), "1500m");
    }
}
