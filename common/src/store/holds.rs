//! Which partitions the workers hold, and since when, for whoever has them next. Nothing rests on it.

use std::collections::HashMap;
use std::time::Duration;

use super::{PositionScope, Store, StoreError, millis};

/// Remembers partitions, then forgets others, in one command so that what is remembered always expires. ARGV: the life of
/// all of it in milliseconds, how many to forget, their fields, then field and since when, and so on.
const NOTE: &str = "local forgotten = tonumber(ARGV[2]) + 2 \
    for i = forgotten + 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end \
    redis.call('PEXPIRE', KEYS[1], ARGV[1]) \
    for i = 3, forgotten do redis.call('HDEL', KEYS[1], ARGV[i]) end \
    return 1";

impl Store {
    /// For how long each of these partitions has been held, of those that are.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn holds(&self, scope: &PositionScope, partitions: &[i32]) -> Result<HashMap<i32, Duration>, StoreError> {
        if partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let fields: Vec<String> = partitions.iter().map(|partition| scope.field(*partition)).collect();
        let mut command = redis::cmd("HMGET");
        command.arg(self.names.held()).arg(fields);
        // Where positions are read, so that it is answered if they are.
        let begun: Vec<Option<i64>> = self.write.command(&command).await?;
        let now = self.now().millis();
        // One that begins later by our clock has just begun.
        let held = |begun: i64| Duration::from_millis(u64::try_from(now.saturating_sub(begun)).unwrap_or_default());
        let found = partitions.iter().zip(begun).filter_map(|(partition, begun)| Some((*partition, held(begun?))));
        Ok(found.collect())
    }

    /// Forgets them.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn forget_holds(&self, scope: &PositionScope, partitions: &[i32]) -> Result<(), StoreError> {
        let mut command = redis::cmd("HDEL");
        command.arg(self.names.held());
        command.arg(partitions.iter().map(|partition| scope.field(*partition)).collect::<Vec<_>>());
        self.write.command::<usize>(&command).await.map(drop)
    }

    /// Remembers for how long partitions have been held, and forgets those that are not held any more. What nobody notes
    /// again is gone after `life`.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer; noting again is safe.
    pub async fn note_holds(
        &self,
        scope: &PositionScope,
        held: &[(i32, Duration)],
        closed: &[i32],
        life: Duration,
    ) -> Result<(), StoreError> {
        let now = self.now().millis();
        let mut script = redis::cmd("EVAL");
        script.arg(NOTE).arg(1).arg(self.names.held()).arg(millis(life)).arg(closed.len());
        script.arg(closed.iter().map(|partition| scope.field(*partition)).collect::<Vec<_>>());
        for (partition, held) in held {
            script.arg(scope.field(*partition)).arg(now.saturating_sub(millis(*held)));
        }
        self.read.command::<()>(&script).await
    }
}
