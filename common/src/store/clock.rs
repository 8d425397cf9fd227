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

    /// Whether the clocks agree well enough to remove something by them.
    #[must_use]
    pub fn trusts_clock(&self) -> bool {
        self.clock.load(Ordering::Relaxed).abs() < MOST_TRUSTED_MS
    }
}
