//! Sizes, spans and rates as people write them, e.g. `256 MiB`, `1GB`, `500ms`, `7d` or `200 Mbit/s`.
//!
//! Invariant: the printed form of a value parses back to the same value.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that is not a number with a known unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value `{text}`: write {what}")]
pub struct ParseUnitError {
    text: String,
    what: &'static str,
}

/// Splits a text such as `12.5 MiB` into its number and its unit.
fn split<'a>(text: &'a str, what: &'static str) -> Result<(f64, &'a str), ParseUnitError> {
    let error = || ParseUnitError { text: text.into(), what };
    let trimmed = text.trim();
    let cut = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let number: f64 = trimmed[..cut].parse().map_err(|_| error())?;
    Ok((number, trimmed[cut..].trim()))
}

fn scaled(number: f64, factor: u64) -> Option<u64> {
    let value = number * factor as f64;
    // 2^53. Above it a float cannot represent every integer.
    (0.0..=9_007_199_254_740_992.0).contains(&value).then_some(value.round() as u64)
}

macro_rules! unit_type {
    ($name:ident, $what:literal, $visit:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        u64::try_from(number).map_err(E::custom).and_then(|number| self.visit_u64(number))
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        $name::$visit(number).ok_or_else(|| E::custom(concat!("a bare number is not ", $what)))
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

/// A number of bytes. A bare number means bytes. `k`, `M`, `G` and `T` are powers of 1000, and with `i` powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 17] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Gi", 1 << 30),
];

impl FromStr for ByteSize {
    type Err = ParseUnitError;
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let what = "a size such as `256 MiB` or `1GB`";
        let (number, unit) = split(text, what)?;
        let factor = SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let bytes = factor.and_then(|factor| scaled(number, factor));
        bytes.map(Self).ok_or_else(|| ParseUnitError { text: text.into(), what })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = SIZES[..5].iter().find(|(_, factor)| self.0 >= *factor).unwrap_or(&("B", 1));
        if self.0.is_multiple_of(*factor) { write!(f, "{} {name}", self.0 / factor) } else { write!(f, "{} B", self.0) }
    }
}

impl ByteSize {
    fn from_number(number: u64) -> Option<Self> {
        Some(Self(number))
    }

    /// Returns the size rounded for people, e.g. `1.4 GiB`.
    pub fn rounded(self) -> String {
        let found = SIZES[..4].iter().find(|(_, factor)| self.0 >= *factor);
        found.map_or_else(
            || format!("{} B", self.0),
            |(name, factor)| format!("{:.1} {name}", self.0 as f64 / *factor as f64),
        )
    }
}

unit_type!(ByteSize, "a size such as `256 MiB` or `1GB`", from_number);

/// A rate in bytes/s. People write it in bits, e.g. `200 Mbit/s` or `10Gbit`, in bytes, e.g. `25 MB/s`, or as
/// `unlimited`. A bare number means Mbit/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

const RATES: [(&str, f64); 9] = [
    ("Gbit", 125_000_000.0),
    ("Mbit", 125_000.0),
    ("kbit", 125.0),
    ("bit", 0.125),
    ("", 125_000.0),
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
];

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self(u64::MAX);

    fn from_number(number: u64) -> Option<Self> {
        number.checked_mul(125_000).map(Self)
    }
}

impl FromStr for Rate {
    type Err = ParseUnitError;
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        if text.trim() == "unlimited" {
            return Ok(Self::UNLIMITED);
        }
        let what = "a rate such as `200 Mbit/s`, `10Gbit`, `25 MB/s` or `unlimited`";
        let (number, unit) = split(text, what)?;
        let unit = unit.strip_suffix("/s").unwrap_or(unit);
        let factor = RATES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let bytes = factor.map(|factor| number * factor).filter(|bytes| (0.0..=1e15).contains(bytes));
        bytes.map(|bytes| Self(bytes.round() as u64)).ok_or_else(|| ParseUnitError { text: text.into(), what })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::UNLIMITED {
            return f.write_str("unlimited");
        }
        let fits = |factor: f64| self.0 as f64 >= factor && self.0.is_multiple_of(factor as u64);
        match RATES[..3].iter().find(|(_, factor)| fits(*factor)) {
            Some((name, factor)) => write!(f, "{} {name}/s", self.0 / *factor as u64),
            None => write!(f, "{} B/s", self.0),
        }
    }
}

unit_type!(Rate, "a rate such as `200 Mbit/s`, `10Gbit`, `25 MB/s` or `unlimited`", from_number);

/// A span of time, e.g. `250ms`, `2s`, `5m`, `12h` or `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Units in microseconds.
const SPANS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

impl FromStr for Span {
    type Err = ParseUnitError;
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let what = "a span such as `500ms`, `2s`, `5m`, `12h` or `7d`";
        let (number, unit) = split(text, what)?;
        let factor = SPANS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let micros = factor.and_then(|factor| scaled(number, factor));
        micros.map(|us| Self(Duration::from_micros(us))).ok_or_else(|| ParseUnitError { text: text.into(), what })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros() as u64;
        let fits = |factor: u64| micros >= factor && micros.is_multiple_of(factor);
        let (name, factor) = SPANS.iter().find(|(_, factor)| fits(*factor)).unwrap_or(&("ms", 1_000));
        write!(f, "{}{name}", micros / factor)
    }
}

impl Span {
    fn from_number(_: u64) -> Option<Self> {
        None
    }

    /// Returns a span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

unit_type!(Span, "a span such as `500ms`, `2s`, `5m`, `12h` or `7d`", from_number);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        let table =
            [("0", 0), ("17", 17), ("1 KiB", 1024), ("1.5MiB", 3 << 19), ("2GB", 2_000_000_000), ("3 TiB", 3 << 40)];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "MiB", "-1", "1 XB", "1e30", "99999999 TiB", "1..2"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 1 << 20, (1 << 20) + 1, 5 << 30, 123_456_789] {
            let size = ByteSize(bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for millis in [0, 1, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000 * 7] {
            let span = Span(Duration::from_millis(millis));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
    }

    #[test]
    fn rates_are_in_bits_unless_they_say_bytes() {
        let table = [
            ("200", 25_000_000),
            ("200 Mbit/s", 25_000_000),
            ("10Gbit", 1_250_000_000),
            ("25 MB/s", 25_000_000),
            ("0", 0),
            ("unlimited", u64::MAX),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Rate(bytes)), "{text}");
        }
        for rate in [0, 1, 125, 1000, 125_000, 25_000_000, 1_250_000_001, u64::MAX].map(Rate) {
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        for bad in ["fast", "1 Mb", "-1", "1e30"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_need_a_unit() {
        assert_eq!("1.5s".parse(), Ok(Span(Duration::from_millis(1500))));
        assert_eq!("0.2ms".parse(), Ok(Span(Duration::from_micros(200))));
        for bad in ["5", "s", "1 week", "-1s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
