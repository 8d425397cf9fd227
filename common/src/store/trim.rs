//! Trimming: entries of events whose body has expired leave the index, a few at a time.

use super::{Store, StoreError};

/// Entries that one index gives up in one step, so that no step blocks Redis for long.
pub(super) const STEP: usize = 500;
/// Entries that one call looks at, of all indexes together: more than one Redis takes in between two calls.
const MOST_ENTRIES: usize = 400_000;
/// Steps of one call at least. Where there are many buckets, there are many nodes.
const LEAST_STEPS: usize = 50;

/// Looks at entries that are beyond the retention, the oldest first, and removes those whose body is gone. It is Redis'
/// clock that counts, which the bodies expire by. ARGV: retention in milliseconds, most entries, the score to begin behind,
/// what the names of bodies begin with. Replies with how many it has looked at and removed, and the last one's score.
const TRIM: &str = "local now = redis.call('TIME') \
    local oldest = (now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]) * 1024 \
    local before = string.format('(%.0f', oldest) \
    local rows = redis.call('ZRANGE', KEYS[1], ARGV[3], before, 'BYSCORE', 'LIMIT', 0, ARGV[2], 'WITHSCORES') \
    local gone = {} \
    for i = 1, #rows, 2 do \
      if redis.call('EXISTS', ARGV[4] .. rows[i]) == 0 then gone[#gone + 1] = rows[i] end \
    end \
    if #gone > 0 then redis.call('ZREM', KEYS[1], unpack(gone)) end \
    return {#rows / 2, #gone, rows[#rows] or ''}";

/// Removes the oldest entries of a user that are beyond the retention, whose bodies may be in another bucket. ARGV:
/// retention in milliseconds, most entries.
pub(super) const TRIM_USER: &str = "local now = redis.call('TIME') \
    local oldest = (now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]) * 1024 \
    local before = string.format('(%.0f', oldest) \
    local ids = redis.call('ZRANGE', KEYS[1], '-inf', before, 'BYSCORE', 'LIMIT', 0, ARGV[2]) \
    if #ids > 0 then redis.call('ZREM', KEYS[1], unpack(ids)) end \
    return #ids";

impl Store {
    /// Removes from the indexes what is older than the retention and has expired. Gives the number of entries removed;
    /// where much has piled up, the next call goes on.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn trim(&self) -> Result<usize, StoreError> {
        let (layout, mut removed) = (self.layout().await?, 0);
        let mut from: Vec<String> = vec!["-inf".into(); layout.buckets()];
        for _ in 0..(MOST_ENTRIES / STEP / layout.buckets()).max(LEAST_STEPS) {
            let scripts = from.iter().enumerate().map(|(bucket, from)| {
                let mut script = redis::cmd("EVAL");
                script.arg(TRIM).arg(1).arg(layout.index(bucket)).arg(self.retention()).arg(STEP);
                script.arg(from).arg(layout.events(bucket));
                script
            });
            let steps: Vec<(usize, usize, String)> = self.read.scatter(scripts).await?;
            removed += steps.iter().map(|(_, removed, _)| removed).sum::<usize>();
            if steps.iter().all(|(looked_at, ..)| *looked_at < STEP) {
                break;
            }
            for (from, (_, _, last)) in from.iter_mut().zip(steps).filter(|(_, (.., last))| !last.is_empty()) {
                *from = format!("({last}");
            }
        }
        Ok(removed)
    }
}
