//! The one clock: Redis' own. Bodies expire by it, so whatever is shown, trimmed or not stored any more goes by it too.

use std::sync::atomic::Ordering;

use super::{Store, StoreError};
use crate::event::Timestamp;

/// A clock that is off by as much is mentioned.
const MENTIONED_MS: i64 = 1_000;
/// By one that is off by as much nothing is trimmed.
const MOST_TRUSTED_MS: i64 = 60_000;

impl Store {
    /// The time by Redis' clock, as it was found by the last [`Store::check`]; before the first one, by our own.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let own = Timestamp::now();
        Timestamp::from_millis(own.millis().saturating_add(self.clock.load(Ordering::Relaxed))).unwrap_or(own)
    }

    /// Compares the clocks. Of a Cluster, that of the primary that is furthest behind counts: what has expired there has
    /// expired everywhere.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub(super) async fn compare_clocks(&self) -> Result<(), StoreError> {
        let begun = Timestamp::now().millis();
        let answers = self.read.each_primary::<(i64, i64)>(&redis::cmd("TIME")).await?;
        let own = i64::midpoint(begun, Timestamp::now().millis());
        let times = answers.into_iter().filter_map(|(_, time)| time.ok());
        let ahead = times.map(|(seconds, micros)| seconds * 1000 + micros / 1000 - own).min();
        self.clock.store(ahead.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    /// What is wrong with the clocks, in words that stay the same while it lasts.
    pub(super) fn clock_warning(&self) -> Option<String> {
        let ahead = self.clock.load(Ordering::Relaxed);
        let which = if ahead > 0 { "ahead of" } else { "behind" };
        let seconds = ahead.unsigned_abs() / 1000;
        let consequence = if self.trusts_clock() { "" } else { "; nothing is trimmed until they agree" };
        (ahead.abs() >= MENTIONED_MS).then(|| {
            format!("the clock of Redis is {seconds} s {which} that of this machine; set both by NTP{consequence}")
        })
    }

    /// What keeps events from being taken for expired at these times, of which Redis' clock says that they are over. Where
    /// ours does not, and is far from it, one of the two is wrong, and the events may be needed.
    pub(super) fn doubt_of(&self, mut expiries: impl Iterator<Item = i64>) -> Option<StoreError> {
        let own = Timestamp::now().millis();
        let in_doubt = !self.trusts_clock() && expiries.any(|expiry| expiry > own);
        in_doubt.then(|| StoreError::Clock { ahead: self.clock.load(Ordering::Relaxed) / 1000 })
    }

    /// Whether the clocks agree well enough to remove something by them.
    #[must_use]
    pub fn trusts_clock(&self) -> bool {
        self.clock.load(Ordering::Relaxed).abs() < MOST_TRUSTED_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RedisSettings;

    #[test]
    fn what_has_expired_by_a_clock_that_is_far_ahead_is_not_given_up() {
        let nowhere = RedisSettings { url: "redis://127.0.0.1:1".into(), ..RedisSettings::default() };
        let store = Store::new(&nowhere).unwrap();
        let own = Timestamp::now().millis();
        let doubts = |ahead: i64, expiry: i64| {
            store.clock.store(ahead, Ordering::Relaxed);
            store.doubt_of([expiry].into_iter()).is_some()
        };
        let day = 86_400_000;
        assert!(doubts(2 * day, own + day));
        assert!(!doubts(2 * day, own - 1), "it has by both");
        assert!(!doubts(MOST_TRUSTED_MS - 1, own + MOST_TRUSTED_MS / 2), "clocks differ a little");
        assert_eq!(store.clock_warning().unwrap().matches("ahead of").count(), 1);
    }
}
