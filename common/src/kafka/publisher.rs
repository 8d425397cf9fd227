//! Publishing: a record is handed over, and the answer comes when the brokers have it.
//!
//! An error is classified here, at the edge that knows its cause; whoever publishes reads only the class.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;

use super::client::LogContext;
use crate::event::UserEvent;
use crate::health::Check;
use crate::mutation::{Mutation, active};
use crate::traces;

/// Where a record ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// The partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// Why a record has no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The brokers, or the client on their behalf, will never take this record; the same one need not be tried again.
    #[error("the brokers refused the record: {0}")]
    Refused(String),
    /// They will never take it with this timestamp; with another one they may.
    #[error("the brokers refused the record's timestamp: {0}")]
    RefusedTimestamp(String),
    /// It was never sent: the local queue is full, or the process is draining.
    #[error("the record was not accepted: {0}")]
    NotAccepted(String),
    /// It may or may not arrive; the time for an acknowledgement is over.
    #[error("the brokers did not acknowledge the record in time: {0}")]
    Unknown(String),
}

/// The answer to a record that was handed over, when it comes.
pub type Published = BoxFuture<'static, Result<Delivered, PublishError>>;

/// What a record is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// A request of its own.
    Alone,
    /// A request of many, which stay in their order.
    Many,
}

/// Where the API's events go.
pub trait Publisher: Send + Sync + 'static {
    /// Hands over one event, `json` being its serialised form. The future ends with the acknowledgement of all in-sync
    /// replicas, or the class of what went wrong.
    fn publish(&self, event: &UserEvent<'_>, json: &[u8], company: Company) -> Published;
}

/// A [`Publisher`] to real brokers, as the process that owns it sees it.
pub trait KafkaBackend: Publisher {
    /// Notes on `check`, every `period`, whether the brokers answer and have the topic. Ends only when this backend can
    /// never publish to these brokers, with the reason for the operator.
    fn watch<'a>(&'a self, check: &'a Check, period: Duration) -> BoxFuture<'a, String>;

    /// Waits until every record handed over so far is delivered or given up. Blocks.
    ///
    /// # Errors
    /// When records are left after `timeout`.
    fn flush(&self, timeout: Duration) -> Result<(), Unflushed>;
}

/// Records are left that no broker has acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unflushed(pub(super) String);

type Client = FutureProducer<LogContext>;

/// Records under way from which on it is worth to gather.
const BUSY_FROM: usize = 8;
/// How long the busy one of two producers gathers. An idempotent librdkafka sends nothing of a partition while five of its
/// records or more are under way, and without a linger its thread spins as long as others wait for them: up to a whole
/// core, which is worth a third of all requests. A record without company would have to wait a millisecond for it,
/// the unit of its timers.
const BUSY_LINGER_MS: &str = "0.2";

/// Publishes through librdkafka. A producer that met a fatal error (one after which it refuses every record) is
/// replaced by a new one at the next use.
pub struct KafkaPublisher {
    topic: String,
    /// Sends as its settings say.
    usual: Arc<Current>,
    /// Takes the records instead while there are many.
    busy: Option<Arc<Current>>,
    under_way: Arc<AtomicUsize>,
}

/// One of the records under way.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The producer in use, and what a new one is made of.
struct Current {
    config: ClientConfig,
    context: LogContext,
    client: RwLock<Client>,
}

impl KafkaPublisher {
    /// A publisher to `topic`; connects in the background.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let usual = Arc::new(Current::new(config, LogContext::default())?);
        Ok(Self { topic: topic.to_owned(), usual, busy: None, under_way: Arc::default() })
    }

    /// As [`KafkaPublisher::new`], with a second producer that gathers records for a moment. A record goes at once while
    /// there are few; those of a request of many, and all while there are many, are gathered. So of two records alone the
    /// second may come first, unless the first was acknowledged before.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn adaptive(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let mut gathering = config.clone();
        gathering.set("linger.ms", BUSY_LINGER_MS);
        let mut publisher = Self::new(config, topic)?;
        publisher.busy = Some(Arc::new(Current::new(gathering, publisher.usual.context.clone())?));
        Ok(publisher)
    }

    fn producer(&self, company: Company) -> &Arc<Current> {
        let many = company == Company::Many || self.under_way.load(Ordering::Relaxed) >= BUSY_FROM;
        self.busy.as_ref().filter(|_| many).unwrap_or(&self.usual)
    }

    /// Hands over one record and waits for the acknowledgement.
    pub fn send(&self, record: FutureRecord<'_, [u8], [u8]>, company: Company) -> Published {
        let current = self.producer(company);
        let client = current.get();
        let delivery = match client.send_result(record) {
            Ok(delivery) => delivery,
            Err((error, _)) => {
                current.replace_if_fatal(&client);
                return Box::pin(std::future::ready(Err(classify(&error, Stage::Enqueue))));
            }
        };
        if active(Mutation::ReplyBeforeAck) {
            return Box::pin(std::future::ready(Ok(Delivered { partition: -1, offset: -1 })));
        }
        let (current, under_way) = (Arc::clone(current), UnderWay::begin(&self.under_way));
        Box::pin(async move {
            let _under_way = under_way;
            match delivery.await {
                Ok(Ok(at)) => Ok(Delivered { partition: at.partition, offset: at.offset }),
                Ok(Err((error, _))) => {
                    current.replace_if_fatal(&client);
                    Err(classify(&error, Stage::Sent))
                }
                Err(_) => Err(PublishError::Unknown("the producer was closed".into())),
            }
        })
    }
}

impl Current {
    fn new(config: ClientConfig, context: LogContext) -> KafkaResult<Self> {
        let client = RwLock::new(config.create_with_context(context.clone())?);
        Ok(Self { config, context, client })
    }

    fn get(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new producer in the place of one that has failed for good, unless somebody else was faster. The old one
    /// lives on until its records in flight have their answers.
    fn replace_if_fatal(&self, used: &Client) {
        let Some((_, reason)) = used.client().fatal_error() else { return };
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if client.client().native_ptr() != used.client().native_ptr() {
            return;
        }
        match self.config.create_with_context(self.context.clone()) {
            Ok(new) => {
                log::error!("fatal producer error: {reason}; a new producer takes over");
                *client = new;
            }
            // The same settings made a producer before; the next record tries again.
            Err(error) => log::error!("fatal producer error: {reason}; no new producer yet: {error}"),
        }
    }
}

impl Publisher for KafkaPublisher {
    fn publish(&self, event: &UserEvent<'_>, json: &[u8], company: Company) -> Published {
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "event-id", value: Some(event.event_id.as_str()) })
            .insert(Header { key: "event-type", value: Some(event.event_type.as_str()) });
        let record = FutureRecord::to(&self.topic).key(event.user_id.as_str().as_bytes()).payload(json);
        let headers = traces::inject(headers);
        self.send(record.timestamp(event.timestamp.millis()).headers(headers), company)
    }
}

impl KafkaBackend for KafkaPublisher {
    fn watch<'a>(&'a self, check: &'a Check, period: Duration) -> BoxFuture<'a, String> {
        Box::pin(async move {
            loop {
                let (client, topic) = (self.usual.get(), self.topic.clone());
                let asked = tokio::task::spawn_blocking(move || reachable(&client, &topic)).await;
                match asked.unwrap_or_else(|e| Err(e.to_string())) {
                    Ok(()) => check.up("the brokers answer and the topic has leaders"),
                    Err(why) => check.down(&format!("{why}{}", self.usual.context.refusal.suffix())),
                }
                tokio::time::sleep(period).await;
            }
        })
    }

    fn flush(&self, timeout: Duration) -> Result<(), Unflushed> {
        let deadline = Instant::now() + timeout;
        for producer in [Some(&self.usual), self.busy.as_ref()].into_iter().flatten() {
            let left = deadline.saturating_duration_since(Instant::now());
            producer.get().flush(left).map_err(|e| Unflushed(e.to_string()))?;
        }
        Ok(())
    }
}

fn reachable(client: &Client, topic: &str) -> Result<(), String> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let metadata = client
        .client()
        .fetch_metadata(Some(topic), TIMEOUT)
        .map_err(|e| format!("no Kafka broker answers: {e}; check KAFKA_BROKERS and the brokers"))?;
    let found = metadata.topics().iter().find(|t| t.name() == topic && !t.partitions().is_empty());
    let partitions = found.map(|t| t.partitions()).ok_or_else(|| format!("the topic {topic} does not exist (yet)"))?;
    match partitions.iter().filter(|p| p.leader() < 0).count() {
        0 => Ok(()),
        n => Err(format!("{n} of {} partitions of {topic} have no leader", partitions.len())),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Enqueue,
    Sent,
}

/// The one place where a Kafka error becomes a class.
fn classify(error: &KafkaError, stage: Stage) -> PublishError {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    let text = error.to_string();
    match (code, stage) {
        (Some(Code::InvalidTimestamp), _) => PublishError::RefusedTimestamp(text),
        (
            Some(
                Code::MessageSizeTooLarge
                | Code::MessageBatchTooLarge
                | Code::InvalidMessage
                | Code::InvalidMessageSize
                | Code::InvalidRecord
                | Code::InvalidRequest
                | Code::InvalidTopic
                | Code::UnsupportedForMessageFormat
                | Code::PolicyViolation
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed,
            ),
            _,
        ) => PublishError::Refused(text),
        (_, Stage::Enqueue) => PublishError::NotAccepted(text),
        (_, Stage::Sent) => PublishError::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_was_not_accepted_and_a_time_out_is_unknown() {
        let class = |code, stage| classify(&KafkaError::MessageProduction(code), stage);
        assert!(matches!(class(RDKafkaErrorCode::QueueFull, Stage::Enqueue), PublishError::NotAccepted(_)));
        assert!(matches!(class(RDKafkaErrorCode::MessageTimedOut, Stage::Sent), PublishError::Unknown(_)));
        assert!(matches!(class(RDKafkaErrorCode::PurgeQueue, Stage::Sent), PublishError::Unknown(_)));
    }

    #[test]
    fn what_will_never_fit_is_refused_wherever_it_is_found_out() {
        for stage in [Stage::Enqueue, Stage::Sent] {
            let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
            assert!(matches!(classify(&error, stage), PublishError::Refused(_)));
        }
    }
}
