//! Heartbeats of the workers: who is alive, and what each is doing.

use std::time::Duration;

use super::{Store, StoreError, millis};
use crate::event::Timestamp;

/// How long a worker counts as alive after a heartbeat.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(15);

/// What a worker says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its name, one for each process.
    pub member: String,
    /// The partitions it reads.
    pub partitions: Vec<i32>,
    /// Events it has stored since its start.
    pub stored: u64,
}

impl Store {
    /// Says that a worker is alive.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn beat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let (now, key) = (Timestamp::now().millis(), self.layout.worker(&heartbeat.member));
        let partitions: Vec<String> = heartbeat.partitions.iter().map(ToString::to_string).collect();
        let mut pipeline = redis::pipe();
        pipeline.cmd("HSET").arg(&key).arg("partitions").arg(partitions.join(","));
        pipeline.arg("stored").arg(heartbeat.stored).arg("seen").arg(now).ignore();
        pipeline.cmd("PEXPIRE").arg(&key).arg(millis(HEARTBEAT_TTL)).ignore();
        pipeline
            .cmd("ZADD")
            .arg(self.layout.workers())
            .arg(now + millis(HEARTBEAT_TTL))
            .arg(&heartbeat.member)
            .ignore();
        pipeline.cmd("ZREMRANGEBYSCORE").arg(self.layout.workers()).arg("-inf").arg(now).ignore();
        self.read.pipeline(&pipeline).await
    }

    /// Takes back a worker's heartbeat: it has left.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn leave(&self, member: &str) -> Result<(), StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(self.layout.worker(member)).ignore();
        pipeline.cmd("ZREM").arg(self.layout.workers()).arg(member).ignore();
        self.read.pipeline(&pipeline).await
    }

    /// The names of the workers whose heartbeat is alive.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn workers(&self) -> Result<Vec<String>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.layout.workers()).arg(format!("({}", Timestamp::now().millis())).arg("+inf").arg("BYSCORE");
        self.read.command(&command).await
    }
}
