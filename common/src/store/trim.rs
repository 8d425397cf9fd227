//! Trimming: entries of events whose body has expired leave the index, a few at a time.

use super::{BUCKETS, Store, StoreError};
use crate::event::Timestamp;

/// Entries that one bucket gives up in one step, so that no step blocks Redis for long.
const STEP: usize = 500;
/// Steps of one call.
const MOST_STEPS: usize = 50;

/// Removes the oldest entries below a score. Replies with their number.
const TRIM: &str = "local ids = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2]) \
    if #ids > 0 then redis.call('ZREM', KEYS[1], unpack(ids)) end \
    return #ids";

impl Store {
    /// Removes from the indexes what is older than the retention. Gives the number of entries removed; where much has
    /// piled up, the next call goes on.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        let before = format!("({}", self.horizon(now) * 1024);
        let mut removed = 0;
        for _ in 0..MOST_STEPS {
            let scripts = (0..BUCKETS).map(|bucket| {
                let mut script = redis::cmd("EVAL");
                script.arg(TRIM).arg(1).arg(self.layout.index(bucket)).arg(&before).arg(STEP);
                script
            });
            let counts: Vec<usize> = self.read.scatter(scripts).await?;
            removed += counts.iter().sum::<usize>();
            if counts.iter().all(|count| *count < STEP) {
                break;
            }
        }
        Ok(removed)
    }
}
