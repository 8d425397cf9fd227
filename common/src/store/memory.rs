//! Room: an alarm before Redis is full, and a guard that makes room by trimming the oldest events early.
//!
//! A full Redis with `noeviction` refuses writes, and the workers wait. The guard is for those who would rather lose the
//! oldest events than wait; it says up to where it has trimmed, so that readers can tell *trimmed* from *never stored*.

use std::collections::HashMap;

use super::{Store, StoreError};
use crate::event::Timestamp;

/// Entries of one bucket that are trimmed in one step: as many as are expected to be enough, few at the end so that not much
/// more goes than must.
const STEPS: std::ops::RangeInclusive<u64> = 20..=500;
/// Steps of one call.
const MOST_STEPS: usize = 500;
/// How far below its limit the guard goes, in percent, so that it does not act for each event.
const MARGIN: u64 = 2;

/// The last byte of a body that a userId can reach: before it comes its name, and it has 256 bytes, each of which takes at
/// most six in JSON.
const END_OF_USER: usize = 1_599;

/// Removes the oldest events up to a score, bodies first. ARGV: highest score, most entries, what the names of bodies
/// begin with, how far to read them. Replies with the ids and the beginnings of the bodies, empty where there is none.
const MAKE_ROOM: &str = "local ids = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2]) \
    local bodies = {} \
    for i, id in ipairs(ids) do \
      bodies[i] = redis.call('GETRANGE', ARGV[3] .. id, 0, ARGV[4]) \
      redis.call('DEL', ARGV[3] .. id) \
    end \
    if #ids > 0 then redis.call('ZREM', KEYS[1], unpack(ids)) end \
    return {ids, bodies}";

/// Moves a mark forward, never back. A Redis that is full refuses `SET`, but not in a script that has written something
/// before, and `PERSIST` takes no memory.
const MARK: &str = "local mark = tonumber(redis.call('GET', KEYS[1]) or '0') \
    if tonumber(ARGV[1]) > mark then \
      redis.call('PERSIST', KEYS[1]) \
      redis.call('SET', KEYS[1], ARGV[1]) \
    end \
    return 1";

/// Events that are gone: their ids as they are stored, and the beginnings of their bodies.
type Trimmed = (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// How full a Redis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use, of those that count.
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
    // What waits for replicas and for the append-only file does not count towards the limit.
    let elsewhere = number("mem_not_counted_for_evict").unwrap_or_default();
    let memory = Memory { used: number("used_memory")?.saturating_sub(elsewhere), max: number("maxmemory")? };
    (memory.max > 0).then_some(memory)
}

/// Whose an event is, from the beginning of its body.
fn user_of(body: &[u8]) -> Option<String> {
    let value = body.strip_prefix(br#""userId":"#)?;
    serde_json::Deserializer::from_slice(value).into_iter().next()?.ok()
}

/// Entries of each of so many buckets to trim, so that Redis comes below `percent` of its memory if the oldest of its events are as
/// large as all are.
fn step(memory: Memory, percent: u64, events: u64, buckets: usize) -> u64 {
    let excess = memory.used.saturating_sub(memory.max / 100 * percent);
    let of_an_event = (memory.used / events.max(1)).max(1);
    (excess / of_an_event / buckets as u64).clamp(*STEPS.start(), *STEPS.end())
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
        let (mut room, events): (Option<Room>, _) = (None, self.entries().await?);
        for _ in 0..MOST_STEPS {
            let Some(memory) = self.memory().await? else { break };
            if !full(Some(memory), percent.saturating_sub(MARGIN)) {
                break;
            }
            let step = step(memory, percent.saturating_sub(MARGIN), events, self.layout().await?.buckets());
            let Some(highest) = self.oldest_step(step).await? else { break };
            // Everything of this millisecond goes, so that the mark is exact.
            let before = Timestamp::from_millis(highest / 1024 + 1).unwrap_or_else(Timestamp::now);
            // First, so that nobody misses an event without being told.
            self.mark_trimmed(before).await?;
            let removed = self.trim_to(before.millis() * 1024 - 1, step).await?;
            room = Some(Room { removed: removed + room.map_or(0, |room| room.removed), before });
        }
        Ok(room)
    }

    /// The score up to which one step can trim every bucket whole; `None` when nothing is stored.
    async fn oldest_step(&self, step: u64) -> Result<Option<i64>, StoreError> {
        let layout = self.layout().await?;
        let ranges = layout.all().map(|bucket| {
            let mut range = redis::cmd("ZRANGE");
            range.arg(layout.index(bucket)).arg(0).arg(step - 1).arg("WITHSCORES");
            range
        });
        let buckets: Vec<Vec<(Vec<u8>, f64)>> = self.read.scatter(ranges).await?;
        Ok(buckets.iter().filter_map(|rows| rows.last()).map(|(_, score)| *score as i64).min())
    }

    /// Events in all indexes.
    async fn entries(&self) -> Result<u64, StoreError> {
        let layout = self.layout().await?;
        let counts = layout.all().map(|bucket| redis::cmd("ZCARD").arg(layout.index(bucket)).take());
        self.read.scatter::<u64>(counts).await.map(|counts| counts.into_iter().sum())
    }

    async fn trim_to(&self, highest: i64, step: u64) -> Result<usize, StoreError> {
        let (layout, mut removed) = (self.layout().await?, 0);
        loop {
            let scripts = layout.all().map(|bucket| {
                let mut script = redis::cmd("EVAL");
                script.arg(MAKE_ROOM).arg(1).arg(layout.index(bucket));
                script.arg(highest).arg(step).arg(layout.events(bucket)).arg(END_OF_USER);
                script
            });
            let steps: Vec<Trimmed> = self.read.scatter(scripts).await?;
            self.trim_users(&steps).await?;
            removed += steps.iter().map(|(ids, _)| ids.len()).sum::<usize>();
            if steps.iter().all(|(ids, _)| (ids.len() as u64) < step) {
                return Ok(removed);
            }
        }
    }

    /// Takes events that are gone out of their users' indexes, which would otherwise be all that is left in the end.
    async fn trim_users(&self, steps: &[Trimmed]) -> Result<(), StoreError> {
        let mut users: HashMap<String, Vec<&[u8]>> = HashMap::new();
        for (id, body) in steps.iter().flat_map(|(ids, bodies)| ids.iter().zip(bodies)) {
            if let Some(user) = user_of(body) {
                users.entry(user).or_default().push(id);
            }
        }
        if users.is_empty() {
            return Ok(());
        }
        let layout = self.layout().await?;
        let removals = users.into_iter().map(|(user, ids)| {
            let mut removal = redis::cmd("ZREM");
            removal.arg(layout.user_index(layout.bucket_of(&user), &user)).arg(ids);
            removal
        });
        self.read.scatter::<usize>(removals).await.map(drop)
    }

    async fn mark_trimmed(&self, before: Timestamp) -> Result<(), StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(MARK).arg(1).arg(self.names.trimmed()).arg(before.millis());
        self.read.command(&command).await
    }

    /// The time before which events were trimmed early; `None` when none were.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn trimmed(&self) -> Result<Option<Timestamp>, StoreError> {
        let millis: Option<i64> = self.read.command(redis::cmd("GET").arg(self.names.trimmed())).await?;
        Ok(millis.and_then(Timestamp::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_replicas_does_not_count() {
        let info = "# Memory\r\nused_memory:900\r\nmem_not_counted_for_evict:400\r\nmaxmemory:1000\r\n";
        assert_eq!(parse(info).unwrap().percent(), 50);
        assert_eq!(parse("used_memory:900\r\nmaxmemory:0"), None);
    }

    #[test]
    fn as_much_is_trimmed_at_a_time_as_is_too_much() {
        let memory = |used| Memory { used, max: 100_000_000 };
        assert_eq!(step(memory(72_000_000), 70, 72_000, 16), 2_000 / 16);
        assert_eq!(step(memory(70_300_000), 70, 70_300, 1), 300);
        assert_eq!(step(memory(90_000_000), 70, 90_000, 16), 500, "no step blocks Redis for long");
        assert_eq!(step(memory(70_100_000), 70, 70_100, 16), 20, "few at the end");
        assert_eq!(step(memory(60_000_000), 70, 0, 16), 20);
    }

    #[test]
    fn the_user_is_read_from_the_beginning_of_a_body() {
        let body = |user: &str| {
            let json = serde_json::json!({"userId": user, "x": "x".repeat(200)}).to_string();
            json.into_bytes().split_off("{".len())
        };
        let user = "\u{1}".repeat(256);
        assert_eq!(user_of(&body(&user)[..END_OF_USER]), Some(user));
        assert_eq!(user_of(&body("a\"é")), Some("a\"é".to_owned()));
        assert_eq!(user_of(b""), None);
        assert_eq!(user_of(br#""userId":"cut"#), None);
    }
}
