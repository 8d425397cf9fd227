//! Trimming: entries of events whose body has expired leave the index, a few at a time.

use super::{BUCKETS, Store, StoreError, millis};

/// Entries that one index gives up in one step, so that no step blocks Redis for long.
pub(super) const STEP: usize = 500;
/// Steps of one call.
const MOST_STEPS: usize = 50;

/// Removes the oldest entries that are beyond the retention. ARGV: retention in milliseconds, most entries. Replies with
/// their number. It is Redis' clock that counts: a worker's that is ahead would remove what lists still have to show.
pub(super) const TRIM: &str = "local now = redis.call('TIME') \
    local oldest = (now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]) * 1024 \
    local before = string.format('(%.0f', oldest) \
    local ids = redis.call('ZRANGE', KEYS[1], '-inf', before, 'BYSCORE', 'LIMIT', 0, ARGV[2]) \
    if #ids > 0 then redis.call('ZREM', KEYS[1], unpack(ids)) end \
    return #ids";

impl Store {
    /// Removes from the indexes what is older than the retention. Gives the number of entries removed; where much has
    /// piled up, the next call goes on.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn trim(&self) -> Result<usize, StoreError> {
        let mut removed = 0;
        for _ in 0..MOST_STEPS {
            let scripts = (0..BUCKETS).map(|bucket| {
                let mut script = redis::cmd("EVAL");
                script.arg(TRIM).arg(1).arg(self.layout.index(bucket)).arg(millis(self.retention)).arg(STEP);
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
