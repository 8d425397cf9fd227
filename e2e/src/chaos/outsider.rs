//! Somebody who writes to the topic past the API: what can't be an event, and events once more
//! with another body.

use std::time::Duration;

use fastrand::Rng;
use rdkafka::{
    ClientConfig,
    error::KafkaResult,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::traffic::Gate;
use crate::{oracle::Journal, sample};

/// Between two records. Two poison records a second are far below what a breaker holds back.
const PACE: Duration = Duration::from_millis(250);

/// How long a record is tried.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The header that tells poison from what the product writes, its value being the record's mark.
pub const POISON: &str = "chaos-poison";

/// What an outsider has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The marks of the poison records that the broker has acknowledged.
    #[serde(skip)]
    pub poison: Vec<String>,
    /// Acknowledged records with the id of an event and another body.
    pub duplicates: usize,
    /// Records of either kind without an acknowledgement.
    pub unknown: usize,
}

/// The task that writes, until stopped.
#[derive(Debug)]
pub struct Outsider {
    stop: CancellationToken,
    task: JoinHandle<Written>,
}

impl Outsider {
    /// Starts to write poison, and duplicates of what `journal` says was acknowledged.
    ///
    /// # Errors
    /// When there is no producer to be had.
    pub fn start(brokers: &str, topic: &str, seed: u64, journal: &Journal, gate: &Gate) -> KafkaResult<Self> {
        let stop = CancellationToken::new();
        let writer = Writer {
            producer: ClientConfig::new()
                .set("bootstrap.servers", brokers)
                .set("acks", "all")
                .set("enable.idempotence", "true")
                .set("partitioner", "murmur2_random")
                .set("message.timeout.ms", TIMEOUT.as_millis().to_string())
                .set("log_level", "0")
                .create()?,
            topic: topic.to_owned(),
            journal: journal.clone(),
            rng: Rng::with_seed(seed),
            written: Written::default(),
        };
        let task = tokio::spawn(writer.write_until(stop.clone(), gate.clone()));
        Ok(Self { stop, task })
    }

    /// Finishes the record under way and says what was written.
    ///
    /// # Errors
    /// When the task has panicked.
    pub async fn stop(self) -> anyhow::Result<Written> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

struct Writer {
    producer: FutureProducer,
    topic: String,
    journal: Journal,
    rng: Rng,
    written: Written,
}

impl Writer {
    async fn write_until(mut self, stop: CancellationToken, gate: Gate) -> Written {
        while !stop.is_cancelled() {
            gate.pass(self.poison()).await;
            tokio::time::sleep(PACE).await;
            gate.pass(self.duplicate()).await;
            tokio::time::sleep(PACE).await;
        }
        self.written
    }

    async fn poison(&mut self) {
        let mark = Uuid::now_v7().to_string();
        let value = poison(&mut self.rng, &mark);
        let headers = OwnedHeaders::new().insert(Header { key: POISON, value: Some(&mark) });
        let record = FutureRecord::to(&self.topic).key(mark.as_bytes()).headers(headers);
        let record = FutureRecord { payload: value.as_deref(), ..record };
        match self.producer.send(record, TIMEOUT).await {
            Ok(_) => self.written.poison.push(mark),
            Err(_) => self.written.unknown += 1,
        }
    }

    /// The id of an acknowledged event, for the same user and so behind it in the same partition.
    async fn duplicate(&mut self) {
        let Some((attempt, id)) = self.journal.latest_acknowledged() else { return };
        let payload = format!(r#"{{"mark":"{}","forged":true}}"#, attempt.mark);
        let value = sample::event(&[
            ("eventId", &format!("\"{id}\"")),
            ("userId", &format!("\"{}\"", attempt.user)),
            ("payload", &payload),
        ]);
        let record = FutureRecord::to(&self.topic).key(attempt.user.as_bytes()).payload(&value);
        match self.producer.send(record, TIMEOUT).await {
            Ok(_) => self.written.duplicates += 1,
            Err(_) => self.written.unknown += 1,
        }
    }
}

/// A value that can't be an event, of one kind or another.
fn poison(rng: &mut Rng, mark: &str) -> Option<Vec<u8>> {
    match rng.u8(..5) {
        0 => None,
        1 => Some([b"\xff\xfe ", mark.as_bytes()].concat()),
        2 => Some(format!(r#"{{"eventId":"{mark}","userId":"#).into_bytes()),
        3 => Some(sample::event(&[("userId", "\" \""), ("payload", &format!(r#"{{"mark":"{mark}"}}"#))])),
        _ => Some(sample::event(&[("eventType", &format!("\"{mark}\""))])),
    }
}
