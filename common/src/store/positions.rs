//! Positions: how far each bucket holds everything of each partition. They live and die with the data, so they are
//! never ahead of it; the group's commits alone could be.

use std::collections::HashMap;

use super::tail::MAX_ENTRIES;
use super::{Store, StoreError};

/// How long a worker's guards live after its last heartbeat. One whose guard is gone is placed anew before it writes.
pub(super) const GUARD_MS: i64 = 3_600_000;

/// Writes the place where a partition starts, which is always safe when it lowers a position or when nothing of the
/// partition is left before it. The tail is told where a log ends that is read from its beginning: it may be another one
/// than before, the more so where the bucket had a position in it that was not trusted. ARGV: most entries of the tail, its
/// scope, the lives of the guard and of the positions in milliseconds, then field, start, partition, end of the log if start
/// is its beginning, and so on. Replies with 1 or 0 for each.
const PLACE: &str = "local placed, ends = {}, {ARGV[2], ''} \
    redis.call('SET', KEYS[3], 0, 'NX') \
    redis.call('PEXPIRE', KEYS[3], ARGV[3]) \
    for i = 5, #ARGV, 4 do \
      local held, beginning = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1'), ARGV[i + 3] ~= '' \
      if beginning or held >= tonumber(ARGV[i + 1]) then \
        redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) placed[#placed + 1] = 1 \
      else placed[#placed + 1] = 0 end \
      if beginning then \
        ends[#ends + 1] = ARGV[i + 2] \
        ends[#ends + 1] = ARGV[i + 3] .. (held > tonumber(ARGV[i + 1]) and ' anew' or '') \
      end \
    end \
    redis.call('PEXPIRE', KEYS[1], ARGV[4]) \
    if #ends > 2 then redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', unpack(ends)) end \
    return placed";

/// Writes positions. ARGV: their life in milliseconds, then field, offset, and so on.
const OVERWRITE: &str = "redis.call('HSET', KEYS[1], unpack(ARGV, 2)) \
    return redis.call('PEXPIRE', KEYS[1], ARGV[1])";

/// Whose positions: each consumer group has its own for each topic.
#[derive(Debug, Clone)]
pub struct PositionScope {
    prefix: String,
}

impl PositionScope {
    /// The positions of `group` in `topic`.
    #[must_use]
    pub fn new(group: &str, topic: &str) -> Self {
        Self { prefix: format!("{group}|{topic}:") }
    }

    pub(super) fn field(&self, partition: i32) -> String {
        format!("{}{partition}", self.prefix)
    }

    /// What its fields begin with, and what names it in the tail.
    pub(super) fn name(&self) -> &str {
        self.prefix.strip_suffix(':').unwrap_or(&self.prefix)
    }
}

/// The scope and the partition that a field is of.
pub(super) fn partition_of(field: &str) -> Option<(&str, i32)> {
    let (scope, partition) = field.rsplit_once(':')?;
    Some((scope, partition.parse().ok()?))
}

/// One partition's position in every bucket, `None` where there is none.
pub type Positions = Vec<Option<i64>>;

/// Where a partition is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub start: i64,
    /// If `start` is the beginning of the log, before which nothing is left to store: where the log ends.
    pub beginning: Option<i64>,
}

impl Store {
    /// The positions of the given partitions.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn positions(
        &self,
        scope: &PositionScope,
        partitions: &[i32],
    ) -> Result<HashMap<i32, Positions>, StoreError> {
        if partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let fields: Vec<String> = partitions.iter().map(|partition| scope.field(*partition)).collect();
        let layout = self.layout().await?;
        let held = layout.all().map(|bucket| {
            let mut command = redis::cmd("HMGET");
            command.arg(layout.positions(bucket)).arg(&fields);
            command
        });
        let buckets: Vec<Vec<Option<i64>>> = self.write.scatter(held).await?;
        let of = |nth: usize| buckets.iter().map(|held| held.get(nth).copied().flatten()).collect();
        Ok(partitions.iter().enumerate().map(|(nth, partition)| (*partition, of(nth))).collect())
    }

    /// Lets the positions live as long as what is stored now, which is longer than what was when they were placed. A clock
    /// that jumps ahead and expires the data expires them as well.
    pub(super) async fn keep_positions(&self) -> Result<(), StoreError> {
        let (life, layout) = (self.longest_life(), self.layout().await?);
        let commands = layout.all().flat_map(|bucket| {
            let live = |key: String, life: i64| redis::cmd("PEXPIRE").arg(key).arg(life).take();
            let guard = layout.guard(bucket, self.member());
            [live(layout.positions(bucket), life), live(guard, GUARD_MS)]
        });
        self.write.scatter::<usize>(commands).await.map(drop)
    }

    /// Writes where partitions start into every bucket. Gives those that were refused because a bucket has come to
    /// hold less than `start` in the meantime: look again.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer; placing again is safe.
    pub async fn place(&self, scope: &PositionScope, placements: &[Placement]) -> Result<Vec<i32>, StoreError> {
        if placements.is_empty() {
            return Ok(Vec::new());
        }
        let layout = self.layout().await?;
        let scripts = layout.all().map(|bucket| {
            let mut script = redis::cmd("EVAL");
            script.arg(PLACE).arg(3).arg(layout.positions(bucket)).arg(layout.tail(bucket));
            script.arg(layout.guard(bucket, self.member())).arg(MAX_ENTRIES).arg(scope.name()).arg(GUARD_MS);
            script.arg(self.longest_life());
            for Placement { partition, start, beginning } in placements {
                let end = beginning.map(|end| end.to_string()).unwrap_or_default();
                script.arg(scope.field(*partition)).arg(*start).arg(*partition).arg(end);
            }
            script
        });
        let buckets: Vec<Vec<u8>> = self.write.scatter(scripts).await?;
        // Behind that: whoever empties the store from now on takes away the places, without which nothing is written. So
        // nothing is ever written into another number of buckets than the store has.
        self.check_layout().await?;
        let refused = |nth: usize| buckets.iter().any(|placed| placed.get(nth) != Some(&1));
        Ok((0..placements.len()).filter(|nth| refused(*nth)).map(|nth| placements[nth].partition).collect())
    }

    /// Writes positions into every bucket, whatever they were. For operators, with the group stopped.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer; writing again is safe.
    pub async fn overwrite_positions(&self, scope: &PositionScope, targets: &[(i32, i64)]) -> Result<(), StoreError> {
        let layout = self.layout().await?;
        let commands = layout.all().map(|bucket| {
            let mut script = redis::cmd("EVAL");
            script.arg(OVERWRITE).arg(1).arg(layout.positions(bucket)).arg(self.longest_life());
            for (partition, offset) in targets {
                script.arg(scope.field(*partition)).arg(*offset);
            }
            script
        });
        self.write.scatter::<usize>(commands).await.map(drop)
    }
}
