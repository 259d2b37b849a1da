//! The values that a configuration holds, each with its own words about what is
//! expected.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

/// Where a repository is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Source {
    /// `http://` or `https://`.
    Url(String),
    /// An absolute path: a directory, or where a stick is mounted.
    Directory(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "http://, https://, file:/// or an absolute path is expected";
        if let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) {
            let host = rest.split('/').next().unwrap_or_default();
            if host.is_empty() || text.contains(char::is_whitespace) {
                return Err(format!("{text:?} is not a URL with a host"));
            }
            return Ok(Self::Url(text.trim_end_matches('/').to_owned()));
        }
        let path = match text.strip_prefix("file://") {
            Some(path) => path,
            None if text.contains("://") => {
                return Err(format!("{text:?} is of no known kind of source: {expected}"));
            }
            None => text,
        };
        if !path.starts_with('/') {
            return Err(format!("{text:?} is not a source: {expected}"));
        }
        Ok(Self::Directory(PathBuf::from(path)))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A number of bytes: `67108864` or `"64 MiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

const SIZES: [(&str, u64); 9] = [
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let scale = SIZES.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name));
        number
            .zip(scale)
            .and_then(|(number, (_, scale))| scaled(number, *scale))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not understood: {SIZE} is expected"))
    }
}

const SIZE: &str = "a number of bytes, or text such as \"64 MiB\" or \"1.5 GB\"";

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Amount { expecting: SIZE }).map(Self)
    }
}

/// A span of time: `90` or `"90s"`, `"2 min"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seconds(pub Duration);

const TIMES: [(&str, u64); 5] =
    [("s", 1_000), ("sec", 1_000), ("ms", 1), ("min", 60_000), ("h", 3_600_000)];
const TIME: &str = "a number of seconds, or text such as \"90s\" or \"2 min\"";

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let milliseconds = deserializer.deserialize_any(Amount { expecting: TIME })?;
        if milliseconds == 0 {
            return Err(D::Error::custom("a time of zero lets nothing finish"));
        }
        Ok(Self(Duration::from_millis(milliseconds)))
    }
}

fn number_and_unit(text: &str) -> (Option<f64>, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (text[..end].parse().ok(), text[end..].trim())
}

fn scaled(number: f64, scale: u64) -> Option<u64> {
    let value = number * scale as f64;
    (value.is_finite() && value <= 2f64.powi(60)).then_some(value as u64)
}

/// Takes an integer in the base unit, or text with a unit.
struct Amount {
    expecting: &'static str,
}

impl Visitor<'_> for Amount {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        let value = u64::try_from(value).map_err(|_| {
            E::custom(format!("{value} is negative: {} is expected", self.expecting))
        })?;
        if self.expecting == TIME { Ok(value.saturating_mul(1000)) } else { Ok(value) }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let (number, unit) = number_and_unit(text);
        let units: &[(&str, u64)] = if self.expecting == TIME { &TIMES } else { &SIZES };
        let scale = units.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name));
        number.zip(scale).and_then(|(number, (_, scale))| scaled(number, *scale)).ok_or_else(|| {
            E::custom(format!("{text:?} is not understood: {} is expected", self.expecting))
        })
    }
}

pub(super) fn in_range<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: std::ops::RangeInclusive<i64>,
    why: &str,
) -> Result<i64, D::Error> {
    let value = i64::deserialize(deserializer)?;
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (range.start(), range.end());
    Err(D::Error::custom(format!("{value} is out of range: {low} to {high} is expected ({why})")))
}

pub(super) fn layers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    in_range(deserializer, 2..=200, "a base and what lies over it").map(|value| value as u32)
}

pub(super) fn keep<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    in_range(deserializer, 2..=1000, "the latest and the previous are always kept")
        .map(|value| value as u32)
}

pub(super) fn tries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    in_range(deserializer, 1..=9, "each is one boot").map(|value| value as u8)
}

pub(super) fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let command = Vec::<String>::deserialize(deserializer)?;
    if command.first().is_none_or(|program| program.is_empty()) {
        return Err(D::Error::custom(
            "the command is empty: [\"program\", \"argument\", …] is expected",
        ));
    }
    Ok(command)
}
