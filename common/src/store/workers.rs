//! Heartbeats of the workers: who is alive, and what each is doing.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::future::try_join3;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, millis};
use crate::event::Timestamp;

/// How long a worker counts as alive after a heartbeat.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(15);

/// Says until when a worker is alive, and forgets those that are not any more. ARGV: the worker, milliseconds. It is Redis'
/// clock that counts: a worker's that is ahead would forget the others.
const ALIVE: &str = "local time = redis.call('TIME') \
    local now = time[1] * 1000 + math.floor(time[2] / 1000) \
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1]) \
    return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)";

/// What a worker says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heartbeat {
    /// Its name, one for each process.
    pub member: String,
    /// The partitions it reads.
    pub partitions: Vec<i32>,
    /// Events it has stored since its start.
    pub stored: u64,
    /// Records that it has dead-lettered since its start, by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Its consumer group.
    pub group: String,
    /// The partitions that the topic has, where it knows.
    pub topic_partitions: Option<usize>,
    /// How far it is behind in each of its partitions.
    pub lags: Vec<PartitionLag>,
}

/// How far a worker is behind in a partition. What it does not know is absent, and never zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionLag {
    /// The partition.
    #[serde(rename = "p")]
    pub partition: i32,
    /// Offsets between what is stored and the end of the log.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<i64>,
    /// Age of the first record that is not stored, in seconds; 0 when all are.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Offsets a second that were added to the log lately.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<f64>,
    /// Offsets a second that were stored lately.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<f64>,
}

/// A heartbeat, and when it was.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveWorker {
    /// What the worker said.
    pub heartbeat: Heartbeat,
    /// When it said so.
    pub seen: Timestamp,
}

impl Store {
    /// Says that a worker is alive.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn beat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let (now, key) = (self.now().millis(), self.names.worker(&heartbeat.member));
        let partitions: Vec<String> = heartbeat.partitions.iter().map(ToString::to_string).collect();
        let mut own = redis::pipe();
        own.atomic();
        own.cmd("HSET").arg(&key).arg("partitions").arg(partitions.join(","));
        own.arg("stored").arg(heartbeat.stored).arg("seen").arg(now).arg("group").arg(&heartbeat.group);
        own.arg("topic_partitions").arg(heartbeat.topic_partitions.unwrap_or_default());
        // Numbers, names and absences always have a form in JSON.
        own.arg("dead_letters").arg(serde_json::to_string(&heartbeat.dead_letters).unwrap_or_default());
        own.arg("lags").arg(serde_json::to_string(&heartbeat.lags).unwrap_or_default()).ignore();
        own.cmd("PEXPIRE").arg(&key).arg(millis(HEARTBEAT_TTL)).ignore();
        let mut all = redis::cmd("EVAL");
        all.arg(ALIVE).arg(1).arg(self.names.workers()).arg(&heartbeat.member).arg(millis(HEARTBEAT_TTL));
        // The keys lie on different nodes of a Cluster.
        try_join3(self.read.pipeline(&own), self.read.command::<usize>(&all), self.keep_positions())
            .await
            .map(|((), ..)| ())
    }

    /// Takes back a worker's heartbeat: it has left.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn leave(&self, member: &str) -> Result<(), StoreError> {
        let (mut own, mut all) = (redis::cmd("DEL"), redis::cmd("ZREM"));
        own.arg(self.names.worker(member));
        all.arg(self.names.workers()).arg(member);
        self.read.scatter::<usize>([own, all]).await.map(drop)
    }

    /// The names of the workers whose heartbeat is alive.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn workers(&self) -> Result<Vec<String>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.names.workers()).arg(format!("({}", self.now().millis())).arg("+inf").arg("BYSCORE");
        self.read.command(&command).await
    }

    /// What the workers said whose heartbeat is alive, by name.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn live_workers(&self) -> Result<Vec<LiveWorker>, StoreError> {
        let mut members = self.workers().await?;
        if members.is_empty() {
            return Ok(Vec::new());
        }
        members.sort();
        let looks = members.iter().map(|member| {
            let mut look = redis::cmd("HGETALL");
            look.arg(self.names.worker(member));
            look
        });
        let found: Vec<HashMap<String, String>> = self.read.scatter(looks).await?;
        Ok(members.into_iter().zip(found).filter_map(|(member, fields)| live_worker(member, &fields)).collect())
    }
}

/// `None` for one that has just gone. What another version of the worker says differently counts as not said.
fn live_worker(member: String, fields: &HashMap<String, String>) -> Option<LiveWorker> {
    let number = |name: &str| fields.get(name).and_then(|value| value.parse::<i64>().ok());
    let partitions = fields.get("partitions").map(|list| list.split(',').filter_map(|p| p.parse().ok()).collect());
    let heartbeat = Heartbeat {
        member,
        partitions: partitions.unwrap_or_default(),
        stored: number("stored").and_then(|stored| stored.try_into().ok()).unwrap_or_default(),
        dead_letters: fields.get("dead_letters").and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default(),
        group: fields.get("group").cloned().unwrap_or_default(),
        topic_partitions: number("topic_partitions").filter(|n| *n > 0).and_then(|n| n.try_into().ok()),
        lags: fields.get("lags").and_then(|lags| serde_json::from_str(lags).ok()).unwrap_or_default(),
    };
    Some(LiveWorker { heartbeat, seen: Timestamp::from_millis(number("seen")?)? })
}
