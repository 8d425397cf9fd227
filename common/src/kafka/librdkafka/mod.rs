//! Publishing through librdkafka.

mod group_commit;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, ready};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, FutureRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::mpsc::{self, error::SendError};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use self::group_commit::{Group, Waiting};
use super::client::LogContext;
use super::publisher::{Delivered, KafkaBackend, Load, PublishError, Published, Publisher, Unflushed};
use super::room::{Place, Room};
use super::topics::largest_record;
use crate::event::UserEvent;
use crate::health::Check;
use crate::mutation::{Mutation, active};
use crate::traces;

/// A producer is not replaced sooner: each new one connects and logs in to the brokers.
const SHORTEST_TURN: Duration = Duration::from_secs(1);

/// How long the topic's limit for a record counts as known.
const LIMIT_LASTS: Duration = Duration::from_secs(10);

/// The longest delivery time-out that can be set.
const LONGEST_DELIVERY: Duration = Duration::from_mins(5);

type Client = ThreadedProducer<LogContext>;
type Record<'a> = BaseRecord<'a, [u8], [u8], Box<Ticket>>;

/// Publishes through librdkafka. A producer that has failed for good is replaced by a new one at the next use: after a
/// fatal error (one after which it refuses every record), or when it has lost all brokers
/// ([`NoBrokers`](super::client::NoBrokers)).
pub struct KafkaPublisher {
    current: Arc<Current>,
    /// Where a record goes that is not alone.
    groups: Option<mpsc::UnboundedSender<Waiting>>,
    room: Arc<Room>,
}

impl KafkaPublisher {
    /// A publisher to `topic`; connects in the background. Each record goes as the settings say.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let room = Room::new(queue_bytes(&config));
        let current = Arc::new(Current::new(config, topic)?);
        Ok(Self { current, groups: None, room })
    }

    /// As [`KafkaPublisher::new`], for settings without a linger: events that come while others are under way wait
    /// for most of those, and go together. Their order is that of the calls.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn with_group_commit(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let mut publisher = Self::new(config, topic)?;
        let (groups, waiting) = mpsc::unbounded_channel();
        tokio::spawn(group_commit::run(Arc::clone(&publisher.current), waiting));
        publisher.groups = Some(groups);
        Ok(publisher)
    }

    /// Hands over one record at once and waits for the acknowledgement.
    pub fn send(&self, record: FutureRecord<'_, [u8], [u8]>) -> Published {
        let FutureRecord { topic, partition, payload, key, timestamp, headers } = record;
        let (place, _) = match self.room.take(key.unwrap_or_default(), payload.unwrap_or_default()) {
            Ok(taken) => taken,
            Err(refused) => return Box::pin(ready(Err(refused))),
        };
        let (ticket, published) = self.ticket(place);
        let delivery_opaque = Box::new(ticket);
        self.current.hand_over(Record { topic, partition, payload, key, timestamp, headers, delivery_opaque });
        published
    }

    fn ticket(&self, place: Place) -> (Ticket, Published) {
        let (answer, answered) = oneshot::channel();
        let current = Arc::clone(&self.current);
        let published = async move {
            if active(Mutation::ReplyBeforeAck) {
                return Ok(Delivered { partition: -1, offset: -1 });
            }
            let closed = |_| Err(PublishError::Unknown("the producer was closed".into()));
            let result = answered.await.unwrap_or_else(closed);
            if result.is_err() {
                current.replace_if_failed();
            }
            match result {
                Err(PublishError::TooLarge { reason, .. }) => {
                    Err(PublishError::TooLarge { reason, limit: current.largest_record().await })
                }
                result => result,
            }
        };
        (Ticket { answer, place, group: None }, Box::pin(published))
    }
}

impl Publisher for KafkaPublisher {
    fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published {
        let (key, timestamp) = (event.user_id.as_str().as_bytes(), event.timestamp.millis());
        let (place, before) = match self.room.take(key, json) {
            Ok(taken) => taken,
            Err(refused) => return Box::pin(ready(Err(refused))),
        };
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "event-id", value: Some(event.event_id.as_str()) })
            .insert(Header { key: "event-type", value: Some(event.event_type.as_str()) });
        let headers = traces::inject(headers);
        let (ticket, published) = self.ticket(place);
        match &self.groups {
            Some(groups) if before > 0 => {
                let waiting = Waiting { key: key.into(), payload: json.into(), timestamp, headers, ticket };
                if let Err(SendError(waiting)) = groups.send(waiting) {
                    waiting.ticket.answer(Err(PublishError::NotAccepted("the publisher has ended".into())));
                }
            }
            _ => {
                let record = Record::with_opaque_to(&self.current.topic, Box::new(ticket)).key(key).payload(json);
                self.current.hand_over(record.timestamp(timestamp).headers(headers));
            }
        }
        published
    }

    fn load(&self) -> Load {
        self.room.load()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.room.fits(bytes)
    }
}

/// The limit of librdkafka's own queue. It weighs a record as less than [`Room`] does, which is therefore full first.
fn queue_bytes(config: &ClientConfig) -> usize {
    let kbytes = config.get("queue.buffering.max.kbytes").and_then(|kbytes| kbytes.parse::<usize>().ok());
    kbytes.map_or(usize::MAX, |kbytes| kbytes.saturating_mul(1024))
}

/// What comes back with a record's delivery report.
pub struct Ticket {
    answer: oneshot::Sender<Result<Delivered, PublishError>>,
    place: Place,
    group: Option<Arc<Group>>,
}

impl Ticket {
    fn answer(self, result: Result<Delivered, PublishError>) {
        let Self { answer, place, group } = self;
        // Before the answer: what its receiver sends next may be alone.
        place.end(result.is_ok());
        // Nobody waits for it where a client has gone.
        drop(answer.send(result));
        if let Some(group) = group {
            group.answered();
        }
    }
}

impl ProducerContext for LogContext {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, report: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        ticket.answer(match report {
            Ok(at) => Ok(Delivered { partition: at.partition(), offset: at.offset() }),
            Err((error, _)) => Err(classify(error, Stage::Sent)),
        });
    }
}

/// The producer in use, what a new one is made of, and where it publishes to.
struct Current {
    config: ClientConfig,
    topic: String,
    /// The topic's limit for a record, as last heard.
    largest: AsyncMutex<Option<(Instant, Option<usize>)>>,
    client: RwLock<Arc<Client>>,
    replaced: Mutex<Option<Instant>>,
}

impl Current {
    fn new(config: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let client = RwLock::new(Arc::new(config.create_with_context(LogContext::default())?));
        let (largest, replaced) = Default::default();
        Ok(Self { config, topic: topic.to_owned(), largest, client, replaced })
    }

    /// The topic's limit for a record. Asked for once in a while: clients must not be able to ask the brokers all the time.
    async fn largest_record(&self) -> Option<usize> {
        let mut known = self.largest.lock().await;
        if let Some((at, limit)) = *known
            && at.elapsed() < LIMIT_LASTS
        {
            return limit;
        }
        // In a task of its own, and noted at once: a client that goes away must not make the next one ask again.
        let asked = tokio::spawn(largest_record(self.config.clone(), self.topic.clone()));
        *known = Some((Instant::now(), None));
        let limit = asked.await.ok().flatten();
        *known = Some((Instant::now(), limit));
        limit
    }

    fn get(&self) -> Arc<Client> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The producer for what comes now. One without brokers answers with time-outs only, so it is replaced before it gets
    /// records.
    fn for_use(&self) -> Arc<Client> {
        let client = self.get();
        if !client.context().no_brokers.for_good() {
            return client;
        }
        self.replace_if_failed();
        self.get()
    }

    /// The delivery report answers; or this does, if librdkafka does not take the record.
    fn hand_over(&self, record: Record<'_>) {
        if let Err((error, record)) = self.for_use().send(record) {
            record.delivery_opaque.answer(Err(classify(&error, Stage::Enqueue)));
        }
    }

    /// Puts a new producer in the place of one that has failed for good, unless somebody else is at it. Where the next one
    /// fails as fast, as without the right to write, records are not accepted until its turn is over.
    fn replace_if_failed(&self) {
        if failure(&self.get()).is_none() {
            return;
        }
        let Ok(mut replaced) = self.replaced.try_lock() else { return };
        let Some(failure) = failure(&self.get()) else { return };
        if replaced.is_some_and(|at| at.elapsed() < SHORTEST_TURN) {
            return;
        }
        *replaced = Some(Instant::now());
        match self.config.create_with_context(LogContext::default()) {
            Ok(new) => {
                log::warn!("a new producer takes over: {failure}");
                let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
                let failed = std::mem::replace(&mut *client, Arc::new(new));
                drop(client);
                std::thread::spawn(move || retire(&failed));
            }
            // The same settings made a producer before; the next record tries again.
            Err(error) => log::error!("no new producer yet, {error}: {failure}"),
        }
    }
}

impl KafkaBackend for KafkaPublisher {
    fn watch<'a>(&'a self, check: &'a Check, period: Duration) -> BoxFuture<'a, String> {
        Box::pin(async move {
            loop {
                let (client, topic) = (self.current.for_use(), self.current.topic.clone());
                let refusal = client.context().refusal.clone();
                let asked = tokio::task::spawn_blocking(move || reachable(&client, &topic)).await;
                match asked.unwrap_or_else(|e| Err(e.to_string())) {
                    Ok(()) => check.up("the brokers answer and the topic has leaders"),
                    Err(why) => check.down(&format!("{why}{}", refusal.suffix())),
                }
                tokio::time::sleep(period).await;
            }
        })
    }

    fn flush(&self, timeout: Duration) -> Result<(), Unflushed> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.current.get().flush(left).map_err(|e| Unflushed(e.to_string()))?;
            // Those that wait for their group are not with librdkafka yet.
            match self.room.load().records {
                0 => return Ok(()),
                records if left.is_zero() => return Err(Unflushed(format!("{records} records are left"))),
                _ => std::thread::park_timeout(Duration::from_millis(1)),
            }
        }
    }
}

/// Why a producer will never publish again.
fn failure(client: &Client) -> Option<String> {
    match client.client().fatal_error() {
        Some((_, reason)) => Some(format!("fatal producer error: {reason}")),
        None if client.context().no_brokers.for_good() => {
            Some("the producer has lost all brokers, after one said that there are none".into())
        }
        None => None,
    }
}

/// Lives on until the records of a producer that was replaced have their answers. Blocks.
fn retire(failed: &Client) {
    if failed.context().no_brokers.for_good() {
        // They would only wait for their time-out.
        failed.purge(PurgeConfig::default().queue().inflight());
    }
    if let Err(error) = failed.flush(LONGEST_DELIVERY) {
        log::debug!("a producer that was replaced is dropped with records in it: {error}");
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
///
/// A record that librdkafka has taken is [`PublishError::Unknown`] unless it was refused for its own sake. What a leader
/// does not take because it is none (any more), or because replicas are missing, librdkafka sends again by itself until the
/// time-out, and its report names the last try only. Whether an earlier one was written is told by
/// `rd_kafka_message_status`, which the crate does not offer.
fn classify(error: &KafkaError, stage: Stage) -> PublishError {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    let text = error.to_string();
    match (code, stage) {
        (Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge), _) => {
            PublishError::TooLarge { reason: text, limit: None }
        }
        (Some(Code::InvalidTimestamp), _) => PublishError::RefusedTimestamp(text),
        (
            Some(
                Code::InvalidMessage
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
    use futures::FutureExt;
    use rdkafka::client::ClientContext;
    use rdkafka::statistics::Statistics;

    use super::*;
    use crate::event::EventTypes;

    #[test]
    fn a_full_queue_was_not_accepted_and_a_time_out_is_unknown() {
        let class = |code, stage| classify(&KafkaError::MessageProduction(code), stage);
        assert!(matches!(class(RDKafkaErrorCode::QueueFull, Stage::Enqueue), PublishError::NotAccepted(_)));
        assert!(matches!(class(RDKafkaErrorCode::MessageTimedOut, Stage::Sent), PublishError::Unknown(_)));
        assert!(matches!(class(RDKafkaErrorCode::PurgeQueue, Stage::Sent), PublishError::Unknown(_)));
        // Of the last try; what was said of those before nobody knows.
        for last in [RDKafkaErrorCode::NotLeaderForPartition, RDKafkaErrorCode::NotEnoughReplicas] {
            assert!(matches!(class(last, Stage::Sent), PublishError::Unknown(_)));
        }
    }

    #[tokio::test]
    async fn a_producer_that_has_lost_its_brokers_is_replaced_and_what_it_holds_is_answered_at_once() {
        // Far away, and without statistics of its own.
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:9").set("message.timeout.ms", "300000");
        let publisher = KafkaPublisher::new(config, "events").unwrap();
        let record = || publisher.send(FutureRecord::to("events").key(b"key".as_slice()).payload(b"value".as_slice()));
        let lost = publisher.current.get();
        let held = record();
        lost.context().stats(Statistics::default());
        assert!(Arc::ptr_eq(&publisher.current.for_use(), &lost), "one look proves nothing");
        lost.context().stats(Statistics::default());
        let sent = record();
        assert!(!Arc::ptr_eq(&publisher.current.get(), &lost));
        let answer = tokio::time::timeout(Duration::from_mins(1), held).await.expect("not only by its time-out");
        assert!(matches!(answer, Err(PublishError::Unknown(_))), "{answer:?}");
        drop(sent);
    }

    #[tokio::test]
    async fn a_record_is_held_until_librdkafka_gives_it_up_whether_or_not_its_client_waits() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:9").set("message.timeout.ms", "1000");
        config.set("queue.buffering.max.kbytes", "1");
        let publisher = KafkaPublisher::with_group_commit(config, "events").unwrap();
        let event = UserEvent::from_request(br#"{"userId":"u","eventType":"LOGIN"}"#, &EventTypes::default()).unwrap();
        let publish = || publisher.publish(&event, &[b' '; 500]);
        drop(publish());
        let held = publisher.load();
        assert!(held.records == 1 && held.bytes > 500, "{held:?}");
        let refused = publish().now_or_never().unwrap();
        assert!(matches!(refused, Err(PublishError::NotAccepted(_))), "{refused:?}");
        while publisher.load() != Load::default() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn what_will_never_fit_is_refused_wherever_it_is_found_out() {
        for stage in [Stage::Enqueue, Stage::Sent] {
            let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
            assert!(matches!(classify(&error, stage), PublishError::TooLarge { .. }));
            let error = KafkaError::MessageProduction(RDKafkaErrorCode::InvalidRecord);
            assert!(matches!(classify(&error, stage), PublishError::Refused(_)));
        }
    }
}
