//! Somebody who writes to the topic past the API, in transactions or without: what can't be an event, and events once more
//! with another body.

use std::time::Duration;

use fastrand::Rng;
use rdkafka::{
    ClientConfig,
    error::KafkaResult,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{JoinHandle, block_in_place},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{kinds::Kind, stage::Stage, traffic::Gate};
use crate::{oracle::Journal, sample};

/// Between two records: poison that is met by every outage, and yet far below what a breaker holds back.
const PACE: Duration = Duration::from_millis(80);

/// Poison records for each duplicate.
const POISON_RECORDS: usize = 3;

/// How long a record is tried.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One transaction in so many is aborted.
const ABORTED_ONE_IN: u8 = 4;

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
    /// Records in transactions that were aborted.
    pub aborted: usize,
    /// Records of any kind without an acknowledgement.
    pub unknown: usize,
}

/// The task that writes, until stopped.
#[derive(Debug)]
pub struct Outsider {
    stop: CancellationToken,
    task: JoinHandle<Written>,
}

impl Outsider {
    /// Starts to write poison, and duplicates of what `journal` says was acknowledged, to the stage's latest topic.
    #[must_use]
    pub fn start(stage: &Stage, seed: u64, journal: &Journal, gate: &Gate) -> Self {
        let stop = CancellationToken::new();
        let writer = Writer {
            kind: stage.kind,
            brokers: stage.broker.address(),
            producer: None,
            topics: stage.topics.subscribe(),
            journal: journal.clone(),
            rng: Rng::with_seed(seed),
            written: Written::default(),
        };
        let task = tokio::spawn(writer.write_until(stop.clone(), gate.clone()));
        Self { stop, task }
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
    kind: Kind,
    brokers: String,
    /// None before the first record and after a failure: a new one has no past.
    producer: Option<FutureProducer>,
    topics: watch::Receiver<Vec<String>>,
    journal: Journal,
    rng: Rng,
    written: Written,
}

/// What became of a record.
enum Fate {
    Kept,
    Aborted,
    Unknown,
}

impl Writer {
    async fn write_until(mut self, stop: CancellationToken, gate: Gate) -> Written {
        while !stop.is_cancelled() {
            for _ in 0..POISON_RECORDS {
                gate.pass(self.poison()).await;
                tokio::time::sleep(PACE).await;
            }
            // Behind its event only while a user stays in one partition.
            if self.kind.users_stay() {
                gate.pass(self.duplicate()).await;
            }
            tokio::time::sleep(PACE).await;
        }
        self.written
    }

    /// Where events come, too: a partition with poison alone would be held.
    async fn poison(&mut self) {
        let Some((attempt, _)) = self.journal.latest_acknowledged() else { return };
        let mark = Uuid::now_v7().to_string();
        let value = poison(&mut self.rng, &mark);
        let headers = OwnedHeaders::new().insert(Header { key: POISON, value: Some(&mark) });
        match self.send(&attempt.user, value.as_deref(), headers).await {
            Fate::Kept => self.written.poison.push(mark),
            Fate::Aborted => self.written.aborted += 1,
            Fate::Unknown => self.written.unknown += 1,
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
        match self.send(&attempt.user, Some(&value), OwnedHeaders::new()).await {
            Fate::Kept => self.written.duplicates += 1,
            Fate::Aborted => self.written.aborted += 1,
            Fate::Unknown => self.written.unknown += 1,
        }
    }

    async fn send(&mut self, key: &str, value: Option<&[u8]>, headers: OwnedHeaders) -> Fate {
        match self.try_send(key, value, headers).await {
            Ok(true) => Fate::Kept,
            Ok(false) => Fate::Aborted,
            Err(_) => {
                self.producer = None;
                Fate::Unknown
            }
        }
    }

    /// Whether the record was kept, and not aborted.
    async fn try_send(&mut self, key: &str, value: Option<&[u8]>, headers: OwnedHeaders) -> KafkaResult<bool> {
        let (topic, transactional) = (self.topics.borrow().last().cloned().unwrap_or_default(), self.transactional());
        let producer = match &self.producer {
            Some(producer) => producer,
            None => self.producer.insert(producer(&self.brokers, transactional)?),
        };
        let keep = !transactional || self.rng.u8(..ABORTED_ONE_IN) > 0;
        if transactional {
            producer.begin_transaction()?;
        }
        let record = FutureRecord::to(&topic).key(key.as_bytes()).headers(headers);
        let sent = producer.send(FutureRecord { payload: value, ..record }, TIMEOUT).await;
        sent.map_err(|(error, _)| error)?;
        match (transactional, keep) {
            (false, _) => {}
            (true, true) => block_in_place(|| producer.commit_transaction(TIMEOUT))?,
            (true, false) => block_in_place(|| producer.abort_transaction(TIMEOUT))?,
        }
        Ok(keep)
    }

    fn transactional(&self) -> bool {
        self.kind == Kind::Transactions
    }
}

/// A producer; one of transactions fences the one before.
fn producer(brokers: &str, transactional: bool) -> KafkaResult<FutureProducer> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("acks", "all").set("enable.idempotence", "true");
    settings.set("partitioner", "murmur2_random").set("log_level", "0");
    settings.set("message.timeout.ms", TIMEOUT.as_millis().to_string());
    if !transactional {
        return settings.create();
    }
    settings.set("transactional.id", "outsider").set("transaction.timeout.ms", TIMEOUT.as_millis().to_string());
    let producer: FutureProducer = settings.create()?;
    block_in_place(|| producer.init_transactions(TIMEOUT))?;
    Ok(producer)
}

/// Leaves a transaction that is aborted, and so nothing that anybody sees, at the end of each partition.
///
/// # Errors
/// When the broker does not take part.
pub async fn end_in_transactions(brokers: &str, topic: &str, partitions: usize) -> anyhow::Result<()> {
    let producer = producer(brokers, true)?;
    producer.begin_transaction()?;
    for partition in 0..i32::try_from(partitions)? {
        let record =
            FutureRecord::<[u8], _> { partition: Some(partition), ..FutureRecord::to(topic).payload("aborted") };
        producer.send(record, TIMEOUT).await.map_err(|(error, _)| error)?;
    }
    block_in_place(|| producer.abort_transaction(TIMEOUT))?;
    Ok(())
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
