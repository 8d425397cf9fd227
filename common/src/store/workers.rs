//! Heartbeats of the workers: who is alive, and what each is doing.

use std::time::Duration;

use futures::future::try_join;

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
        let mut own = redis::pipe();
        own.cmd("HSET").arg(&key).arg("partitions").arg(partitions.join(","));
        own.arg("stored").arg(heartbeat.stored).arg("seen").arg(now).ignore();
        own.cmd("PEXPIRE").arg(&key).arg(millis(HEARTBEAT_TTL)).ignore();
        let mut all = redis::pipe();
        let (set, expiry) = (self.layout.workers(), now + millis(HEARTBEAT_TTL));
        all.cmd("ZADD").arg(&set).arg(expiry).arg(&heartbeat.member).ignore();
        all.cmd("ZREMRANGEBYSCORE").arg(&set).arg("-inf").arg(now).ignore();
        // The two keys lie on different nodes of a Cluster.
        try_join(self.read.pipeline(&own), self.read.pipeline(&all)).await.map(|((), ())| ())
    }

    /// Takes back a worker's heartbeat: it has left.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn leave(&self, member: &str) -> Result<(), StoreError> {
        let (mut own, mut all) = (redis::cmd("DEL"), redis::cmd("ZREM"));
        own.arg(self.layout.worker(member));
        all.arg(self.layout.workers()).arg(member);
        self.read.scatter::<usize>([own, all]).await.map(drop)
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
