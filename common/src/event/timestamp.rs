//! When something happened.

use std::fmt;

use chrono::{DateTime, Datelike, SecondsFormat, TimeDelta, Timelike, Utc};
use serde_json::value::RawValue;

use super::Violation;
use super::members::string;

/// How far in the future a record's timestamp may lie before it can't be an event.
pub const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::hours(24);

/// The last millisecond that RFC 3339 has a text for: 9999-12-31T23:59:59.999Z.
const LATEST: i64 = 253_402_300_799_999;

/// Milliseconds since 1970-01-01T00:00:00Z, never negative and never after the year 9999. That of a record may have
/// microseconds as well: they decide the order of events within one millisecond, and no reply shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    millis: i64,
    /// Within the millisecond.
    micros: Option<u16>,
}

impl Timestamp {
    /// The current time.
    #[must_use]
    pub fn now() -> Self {
        Self::of(Utc::now().timestamp_millis())
    }

    /// The current time with its microseconds, but later than `last`.
    #[must_use]
    pub fn now_after(last: Option<Self>) -> Self {
        let last = last.map_or(0, |last| last.millis * 1000 + i64::from(last.micros.unwrap_or(0)));
        Self::of_micros(Utc::now().timestamp_micros().max(last + 1))
    }

    pub(super) const fn of(millis: i64) -> Self {
        Self { millis, micros: None }
    }

    fn of_micros(micros: i64) -> Self {
        Self { millis: micros.div_euclid(1000), micros: u16::try_from(micros.rem_euclid(1000)).ok() }
    }

    /// `None` for a time before 1970. One after the year 9999 becomes the last of that year, or its text would not read
    /// back.
    #[must_use]
    pub fn from_millis(millis: i64) -> Option<Self> {
        (millis >= 0).then_some(Self::of(millis.min(LATEST)))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.millis
    }

    /// Microseconds within the millisecond, 0 to 999, where they are known.
    #[must_use]
    pub fn micros(self) -> Option<u16> {
        self.micros
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
        let parsed = DateTime::parse_from_rfc3339(&text).ok().filter(|time| time.timestamp_millis() >= 0);
        let parsed =
            parsed.ok_or_else(|| wrong("type", "timestamp must be an RFC 3339 date and time, 1970 or later"))?;
        if parsed.timestamp_millis() > now.millis + MAX_CLOCK_SKEW.num_milliseconds() {
            return Err(wrong("range", "timestamp must not lie more than 24 hours in the future"));
        }
        let digits = text.split_once('.').map_or(0, |(_, rest)| rest.bytes().take_while(u8::is_ascii_digit).count());
        Ok(if digits > 3 { Self::of_micros(parsed.timestamp_micros()) } else { Self::of(parsed.timestamp_millis()) })
    }

    /// Appends it as [`fmt::Display`] shows it.
    pub(super) fn push(self, json: &mut Vec<u8>) {
        let time = DateTime::<Utc>::from_timestamp_millis(self.millis).unwrap_or_default();
        let Some(year) = u32::try_from(time.year()).ok().filter(|year| *year < 10_000) else {
            return json.extend_from_slice(time.to_rfc3339_opts(SecondsFormat::Millis, true).as_bytes());
        };
        let millis = (self.millis % 1000).unsigned_abs() as u32;
        for (number, digits, end) in [
            (year, 4, b'-'),
            (time.month(), 2, b'-'),
            (time.day(), 2, b'T'),
            (time.hour(), 2, b':'),
            (time.minute(), 2, b':'),
            (time.second(), 2, b'.'),
            (millis, 3, b'Z'),
        ] {
            push_digits(json, number, digits);
            json.push(end);
        }
    }

    /// The same, but with the microseconds, where they are known.
    pub(super) fn push_to_record(self, json: &mut Vec<u8>) {
        self.push(json);
        if let Some(micros) = self.micros {
            // Before the `Z`.
            json.pop();
            push_digits(json, micros.into(), 3);
            json.push(b'Z');
        }
    }
}

/// Appends the last `digits` digits of a number.
fn push_digits(json: &mut Vec<u8>, number: u32, digits: u32) {
    json.extend((0..digits).rev().map(|place| b'0' + (number / 10_u32.pow(place) % 10) as u8));
}

/// RFC 3339 in UTC with milliseconds: `2026-02-17T10:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(24);
        self.push(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_chrono_writes_it() {
        for millis in
            [0, 1, 999, 951_782_399_999, 951_868_800_000, 1_771_322_400_007, 253_402_300_799_999, 253_402_300_800_000]
        {
            let time = DateTime::<Utc>::from_timestamp_millis(millis).unwrap();
            assert_eq!(Timestamp::of(millis).to_string(), time.to_rfc3339_opts(SecondsFormat::Millis, true));
        }
    }

    #[test]
    fn times_of_one_process_ascend_by_microseconds_whatever_its_clock_does() {
        let far = Timestamp::parse("2247-12-31T23:59:59.999Z").unwrap();
        let mut last = Timestamp::now_after(Some(far));
        assert_eq!((last.millis(), last.micros()), (far.millis(), Some(1)), "the clock is behind");
        for _ in 0..2_000 {
            let next = Timestamp::now_after(Some(last));
            assert!(next > last);
            last = next;
        }
        assert_eq!((last.millis(), last.micros()), (far.millis() + 2, Some(1)));
        assert!(
            Timestamp::now_after(None).millis() - Timestamp::now().millis() <= 0,
            "and is followed where it is not"
        );
    }

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
