//! When something happened.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::value::RawValue;

use super::Violation;
use super::members::string;

/// How far in the future a record's timestamp may lie before it can't be an event.
pub const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::hours(24);

/// The last millisecond that RFC 3339 has a text for: 9999-12-31T23:59:59.999Z.
const LATEST: i64 = 253_402_300_799_999;

/// Milliseconds since 1970-01-01T00:00:00Z, never negative and never after the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub(super) i64);

impl Timestamp {
    /// The current time.
    #[must_use]
    pub fn now() -> Self {
        Self(Utc::now().timestamp_millis())
    }

    /// `None` for a time before 1970. One after the year 9999 becomes the last of that year, or its text would not read
    /// back.
    #[must_use]
    pub fn from_millis(millis: i64) -> Option<Self> {
        (millis >= 0).then_some(Self(millis.min(LATEST)))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0
    }

    /// Takes any RFC 3339 time from 1970 on, else `None`. What is finer than a millisecond is cut off.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_millis(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis())
    }

    pub(super) fn from_member(raw: Option<&RawValue>, now: Self) -> Result<Self, Violation> {
        let wrong = |code, detail| Violation::new("/timestamp", code, detail);
        let text =
            raw.and_then(string).ok_or_else(|| wrong("required", "timestamp is required and must be a string"))?;
        let parsed = Self::parse(&text)
            .ok_or_else(|| wrong("type", "timestamp must be an RFC 3339 date and time, 1970 or later"))?;
        if parsed.0 > now.0 + MAX_CLOCK_SKEW.num_milliseconds() {
            return Err(wrong("range", "timestamp must not lie more than 24 hours in the future"));
        }
        Ok(parsed)
    }
}

/// RFC 3339 in UTC with milliseconds: `2026-02-17T10:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::<Utc>::from_timestamp_millis(self.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_reads_back_from_its_text() {
        for (text, shown) in [
            ("2026-02-17T10:00:00.1239Z", "2026-02-17T10:00:00.123Z"),
            ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
            // In UTC these are of the year 10000.
            ("9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59.999Z"),
            ("9999-12-31T00:00:00-23:59", "9999-12-31T23:59:00.000Z"),
        ] {
            let time = Timestamp::parse(text).unwrap();
            assert_eq!((&*time.to_string(), Timestamp::parse(shown)), (shown, Some(time)), "{text}");
        }
        let last = Timestamp::from_millis(i64::MAX).unwrap();
        assert_eq!(Timestamp::parse(&last.to_string()), Some(last));
    }
}
