//! Text to typed values, with complaints that say what is allowed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// Every complaint about a configuration; its text is a page for the operator.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors(pub(super) Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: the configuration can't be used:")?;
        self.0.iter().try_for_each(|error| writeln!(f, "  - {error}"))?;
        writeln!(f, "Correct these settings; --help lists all of them with their defaults.")
    }
}

/// Turns settings into typed values and remembers what was wrong with each.
#[derive(Debug, Default)]
pub struct Checks(Vec<String>);

impl Checks {
    /// Parses one setting; where that fails notes the complaint and gives the type's default to go on with.
    pub fn take<T: Default>(&mut self, name: &str, raw: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        parse(raw).unwrap_or_else(|why| {
            self.complain(format!("{name}={raw:?}: {why}"));
            T::default()
        })
    }

    /// As [`Checks::take`], without showing the value.
    pub fn take_secret<T>(
        &mut self,
        name: &str,
        raw: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(raw).map_err(|why| self.complain(format!("{name}: {why}"))).ok()
    }

    /// Parses an IP address; any address where that fails.
    pub fn address(&mut self, name: &str, raw: &str) -> IpAddr {
        raw.trim().parse().unwrap_or_else(|_| {
            self.complain(format!("{name}={raw:?}: must be an IP address"));
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        })
    }

    /// Notes a complaint, for instance about two settings that don't go together.
    pub fn complain(&mut self, complaint: String) {
        self.0.push(complaint);
    }

    /// How many complaints there are so far.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The configuration, if there was nothing to complain about.
    ///
    /// # Errors
    /// All the complaints.
    pub fn finish<T>(self, config: T) -> Result<T, ConfigErrors> {
        if self.0.is_empty() { Ok(config) } else { Err(ConfigErrors(self.0)) }
    }
}

/// A value that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a value.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, for the client that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A whole number within bounds.
///
/// # Errors
/// What is allowed.
pub fn range<T>(allowed: RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    move |raw| {
        let number = raw.trim().parse::<T>().ok().filter(|number| allowed.contains(number));
        number.ok_or_else(|| format!("must be a whole number from {} to {}", allowed.start(), allowed.end()))
    }
}

/// A duration in milliseconds, at least one.
///
/// # Errors
/// What is allowed.
pub fn millis(raw: &str) -> Result<Duration, String> {
    range(1..=86_400_000_u64)(raw).map(Duration::from_millis)
}

/// A duration with a unit: `500ms`, `3s`, `10m`, `2h`, `7d`.
///
/// # Errors
/// What is allowed.
pub fn duration(raw: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(raw.trim()).ok().filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| "must be a duration with a unit, such as 500ms, 3s, 10m, 2h or 7d".into())
}

/// Text that is not empty.
///
/// # Errors
/// What is allowed.
pub fn text(raw: &str) -> Result<String, String> {
    if raw.trim().is_empty() { Err("must not be empty".into()) } else { Ok(raw.trim().to_owned()) }
}

/// One of a few words.
///
/// # Errors
/// The words.
pub fn one_of<T: Clone>(words: &[(&str, T)]) -> impl FnOnce(&str) -> Result<T, String> {
    move |raw| {
        let found = words.iter().find(|(word, _)| *word == raw).map(|(_, value)| value.clone());
        found.ok_or_else(|| {
            format!("must be one of: {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "))
        })
    }
}

/// A number of bytes, plain or with `KiB` or `MiB`.
///
/// # Errors
/// What is allowed.
pub fn bytes(allowed: RangeInclusive<usize>) -> impl FnOnce(&str) -> Result<usize, String> {
    move |raw| {
        let raw = raw.trim();
        let (digits, unit) = raw.split_at(raw.find(|c: char| !c.is_ascii_digit()).unwrap_or(raw.len()));
        let factor = match unit.trim() {
            "" | "B" => Some(1),
            "KiB" => Some(1024),
            "MiB" => Some(1024 * 1024),
            "GiB" => Some(1024 * 1024 * 1024),
            _ => None,
        };
        let number = digits.parse::<usize>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
        number.filter(|n| allowed.contains(n)).ok_or_else(|| {
            format!("must be a size such as 65536, 256KiB or 8MiB, from {} to {} bytes", allowed.start(), allowed.end())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_up_to_and_including_their_bounds() {
        assert_eq!(range(1..=3)("3"), Ok(3));
        assert_eq!(range(1..=3)("4"), Err("must be a whole number from 1 to 3".into()));
        assert!(range(1..=3)("-1").is_err() && range(1..=3)("x").is_err() && range(1..=3)("").is_err());
    }

    #[test]
    fn durations_need_a_unit_and_are_not_zero() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("5").is_err() && duration("0s").is_err() && duration("").is_err());
        assert_eq!(millis("1500"), Ok(Duration::from_millis(1500)));
        assert!(millis("0").is_err());
    }

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!(bytes(1..=1 << 20)("256KiB"), Ok(262_144));
        assert_eq!(bytes(1..=1 << 20)("1MiB"), Ok(1 << 20));
        assert!(bytes(1..=10)("11").is_err() && bytes(1..=10)("1GB").is_err() && bytes(1..=10)("").is_err());
    }

    #[test]
    fn words_are_listed_where_none_fits() {
        assert_eq!(one_of(&[("on", true), ("off", false)])("yes"), Err("must be one of: on, off".into()));
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "[redacted]");
    }
}
