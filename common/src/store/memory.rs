//! Room: an alarm before Redis is full, and a guard that makes room by trimming the oldest events early.
//!
//! A full Redis with `noeviction` refuses writes, and the workers wait. The guard is for those who would rather lose the
//! oldest events than wait; it says up to where it has trimmed, so that readers can tell *trimmed* from *never stored*.

use std::collections::HashMap;

use super::{BUCKETS, Store, StoreError, bucket_of};
use crate::event::Timestamp;

/// Entries of one bucket that are trimmed in one step, few so that not much more goes than must.
const STEP: usize = 20;
/// Steps of one call.
const MOST_STEPS: usize = 500;
/// How far below its limit the guard goes, in percent, so that it does not act for each event.
const MARGIN: u64 = 2;

/// Removes the oldest events up to a score, bodies first. ARGV: highest score, most entries, what the names of bodies
/// begin with. Replies with their number.
const MAKE_ROOM: &str = "local ids = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2]) \
    for _, id in ipairs(ids) do redis.call('DEL', ARGV[3] .. id) end \
    if #ids > 0 then redis.call('ZREM', KEYS[1], unpack(ids)) end \
    return #ids";

/// Moves a mark forward, never back.
const MARK: &str = "local mark = tonumber(redis.call('GET', KEYS[1]) or '0') \
    if tonumber(ARGV[1]) > mark then redis.call('SET', KEYS[1], ARGV[1]) end \
    return 1";

/// How full a Redis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that it may use: its `maxmemory`.
    pub max: u64,
}

impl Memory {
    /// In percent of what it may use, rounded down.
    #[must_use]
    pub fn percent(self) -> u64 {
        self.used * 100 / self.max.max(1)
    }
}

/// What the guard did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Events removed.
    pub removed: usize,
    /// All events with an earlier timestamp are gone.
    pub before: Timestamp,
}

fn parse(info: &str) -> Option<Memory> {
    let fields: HashMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
    let number = |name: &str| fields.get(name)?.trim().parse::<u64>().ok();
    let memory = Memory { used: number("used_memory")?, max: number("maxmemory")? };
    (memory.max > 0).then_some(memory)
}

impl Store {
    /// How full Redis is, or the fullest primary of a Cluster; `None` when it has no `maxmemory`, or does not say.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn memory(&self) -> Result<Option<Memory>, StoreError> {
        let answers = self.read.each_primary::<String>(redis::cmd("INFO").arg("memory")).await?;
        let memories = answers.iter().filter_map(|(_, info)| parse(info.as_ref().ok()?));
        Ok(memories.max_by_key(|memory| memory.percent()))
    }

    /// Trims the oldest events until Redis is below `percent` of its memory. Gives what was done, if anything was.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn make_room(&self, percent: u64) -> Result<Option<Room>, StoreError> {
        let full = |memory: Option<Memory>, limit| memory.is_some_and(|memory| memory.percent() >= limit);
        if !full(self.memory().await?, percent) {
            return Ok(None);
        }
        let mut room: Option<Room> = None;
        for _ in 0..MOST_STEPS {
            let Some(highest) = self.oldest_step().await? else { break };
            // Everything of this millisecond goes, so that the mark is exact.
            let before = Timestamp::from_millis(highest / 1024 + 1).unwrap_or_else(Timestamp::now);
            // First, so that nobody misses an event without being told. A Redis that is full already refuses it.
            let marked = self.mark_trimmed(before).await;
            let removed = self.trim_to(before.millis() * 1024 - 1).await?;
            if marked.is_err() {
                self.mark_trimmed(before).await?;
            }
            room = Some(Room { removed: removed + room.map_or(0, |room| room.removed), before });
            if !full(self.memory().await?, percent.saturating_sub(MARGIN)) {
                break;
            }
        }
        Ok(room)
    }

    /// The score up to which one step can trim every bucket whole; `None` when nothing is stored.
    async fn oldest_step(&self) -> Result<Option<i64>, StoreError> {
        let ranges = (0..BUCKETS).map(|bucket| {
            let mut range = redis::cmd("ZRANGE");
            range.arg(self.layout.index(bucket)).arg(0).arg(STEP - 1).arg("WITHSCORES");
            range
        });
        let buckets: Vec<Vec<(Vec<u8>, f64)>> = self.read.scatter(ranges).await?;
        Ok(buckets.iter().filter_map(|rows| rows.last()).map(|(_, score)| *score as i64).min())
    }

    async fn trim_to(&self, highest: i64) -> Result<usize, StoreError> {
        let mut removed = 0;
        loop {
            let scripts = (0..BUCKETS).map(|bucket| {
                let mut script = redis::cmd("EVAL");
                script.arg(MAKE_ROOM).arg(1).arg(self.layout.index(bucket));
                script.arg(highest).arg(STEP).arg(self.layout.events(bucket));
                script
            });
            let counts: Vec<usize> = self.read.scatter(scripts).await?;
            removed += counts.iter().sum::<usize>();
            if counts.iter().all(|count| *count < STEP) {
                return Ok(removed);
            }
        }
    }

    async fn mark_trimmed(&self, before: Timestamp) -> Result<(), StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(MARK).arg(1).arg(self.layout.trimmed()).arg(before.millis());
        self.read.command(&command).await
    }

    /// The time before which events were trimmed early; `None` when none were.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn trimmed(&self) -> Result<Option<Timestamp>, StoreError> {
        let millis: Option<i64> = self.read.command(redis::cmd("GET").arg(self.layout.trimmed())).await?;
        Ok(millis.and_then(Timestamp::from_millis))
    }

    /// Remembers for a day that an event has become a dead letter, and why.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn note_dead_letters(&self, letters: &[(String, String)]) -> Result<(), StoreError> {
        const DAY_MS: u32 = 86_400_000;
        if letters.is_empty() {
            return Ok(());
        }
        let notes = letters.iter().map(|(event_id, reason)| {
            let mut note = redis::cmd("SET");
            note.arg(self.layout.dead_letter(bucket_of(event_id), event_id)).arg(reason).arg("PX").arg(DAY_MS);
            note
        });
        self.read.scatter::<()>(notes).await.map(drop)
    }

    /// Why an event became a dead letter; `None` when it is not known to be one.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn dead_letter(&self, event_id: &str) -> Result<Option<String>, StoreError> {
        let key = self.layout.dead_letter(bucket_of(event_id), event_id);
        self.read.command(redis::cmd("GET").arg(key)).await
    }
}
