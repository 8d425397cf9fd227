//! Trimming: entries of events whose body has expired leave the index, a few at a time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout::Layout;
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

/// Where looking has stopped in each bucket's index: behind this score. A bucket that is not in it is looked at from its
/// beginning. Entries whose body lives on stay, and there may be more of them than one call looks at: those of a retention
/// that was lowered. So the next call does not begin with them again.
#[derive(Debug, Default)]
pub(super) struct Cursors(Mutex<HashMap<usize, String>>);

impl Cursors {
    /// The next step in a bucket.
    fn script(&self, layout: &Layout, bucket: usize, retention: i64) -> redis::Cmd {
        let from = self.lock().get(&bucket).map_or_else(|| "-inf".to_owned(), |last| format!("({last}"));
        let mut script = redis::cmd("EVAL");
        script.arg(TRIM).arg(1).arg(layout.index(bucket)).arg(retention).arg(STEP).arg(from);
        script.arg(layout.events(bucket));
        script
    }

    /// Moves behind a step. Says whether more comes behind it; else the next step begins a new round, which finds what
    /// has expired since the last one was there.
    fn pass(&self, bucket: usize, looked_at: usize, last: String) -> bool {
        let more = looked_at == STEP;
        let mut cursors = self.lock();
        if more {
            cursors.insert(bucket, last);
        } else {
            cursors.remove(&bucket);
        }
        more
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, String>> {
        // Nothing panics while it is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Removes from the indexes what is older than the retention and has expired. Gives the number of entries removed;
    /// where much has piled up, the next call goes on.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn trim(&self) -> Result<usize, StoreError> {
        let (layout, retention, mut removed) = (self.layout().await?, self.retention(), 0);
        let mut unfinished: Vec<usize> = layout.all().collect();
        for _ in 0..(MOST_ENTRIES / STEP / layout.buckets()).max(LEAST_STEPS) {
            let scripts = unfinished.iter().map(|bucket| self.trimming.script(layout, *bucket, retention));
            let mut steps = self.read.scatter::<(usize, usize, String)>(scripts).await?.into_iter();
            unfinished.retain(|bucket| {
                let Some((looked_at, gone, last)) = steps.next() else { return false };
                removed += gone;
                self.trimming.pass(*bucket, looked_at, last)
            });
            if unfinished.is_empty() {
                break;
            }
        }
        Ok(removed)
    }
}
