//! How long what is stored lives.

use super::Store;
use crate::event::{MAX_CLOCK_SKEW, Timestamp};

/// How long an event lives that was older than the retention already when it was published: whoever did so can still read
/// that it was stored.
const GRACE_MS: i64 = 3_600_000;

/// When the body of an event expires, in milliseconds since 1970. `published`: the timestamp of its record, if that has one.
/// `now`: the time by Redis' clock at which it is written, so that it was published by then, whatever the timestamp says, which
/// its producer chooses. An event is dated [`MAX_CLOCK_SKEW`] ahead at most, so no body lives longer from `now` on than that
/// and the retention.
#[must_use]
pub fn expiry_of(timestamp: Timestamp, published: Option<i64>, retention: i64, now: i64) -> i64 {
    const { assert!(GRACE_MS <= MAX_CLOCK_SKEW.num_milliseconds()) };
    let end = timestamp.millis().saturating_add(retention);
    match published.map(|published| published.min(now)) {
        Some(published) if published >= end => published.saturating_add(GRACE_MS),
        _ => end,
    }
}

impl Store {
    /// How long what is stored now lives at most, in milliseconds: an event may be dated a day ahead.
    pub(super) fn longest_life(&self) -> i64 {
        self.retention() + MAX_CLOCK_SKEW.num_milliseconds()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 20_000 * DAY;

    #[test]
    fn no_body_lives_longer_than_the_retention_and_a_day_whatever_the_timestamp_of_its_record() {
        for retention in [1, HOUR, 7 * DAY] {
            let longest = NOW + retention + MAX_CLOCK_SKEW.num_milliseconds();
            for timestamp in [0, NOW - 8 * DAY, NOW - retention, NOW, NOW + DAY] {
                let timestamp = Timestamp::from_millis(timestamp).unwrap();
                let published = [None, Some(-1), Some(NOW), Some(NOW + 100 * DAY), Some(i64::MAX)];
                for expiry in published.map(|published| expiry_of(timestamp, published, retention, NOW)) {
                    assert!(expiry <= longest, "{timestamp} {retention}: {expiry}");
                    assert!(expiry >= timestamp.millis() + retention, "{timestamp} {retention}: {expiry}");
                }
            }
        }
    }

    #[test]
    fn a_record_is_published_by_the_time_at_which_it_is_read() {
        let old = Timestamp::from_millis(NOW - 8 * DAY).unwrap();
        let of = |published| expiry_of(old, published, 7 * DAY, NOW);
        assert_eq!([None, Some(NOW - 2 * DAY)].map(of), [NOW - DAY; 2]);
        assert_eq!(of(Some(NOW - HOUR / 2)), NOW + HOUR / 2);
        assert_eq!([NOW, NOW + 1, NOW + 100 * DAY].map(|published| of(Some(published))), [NOW + HOUR; 3]);
    }
}
