//! Dead letters: what can't be an event goes to its own topic, byte for byte, with where it came from and why.
//!
//! Only permanent failures come here; an outage is never one. The publish is awaited before the offset moves on, so a
//! dead letter may be written twice after a crash, with the same coordinates, but is never lost. The headers come in
//! the spellings that existing tools read: Kafka Connect's (text), Spring Kafka's (numbers as big-endian bytes), and
//! ours.
//!
//! What the topic refuses for its size, compressed and alone, it would refuse for ever: then `stub` cuts it.

mod stub;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use common::config::KafkaSettings;
use common::event::{EventId, Violation};
use common::kafka::{KafkaPublisher, PublishError, dead_letter_producer_config};
use futures::future::join_all;
use rdkafka::Message;
use rdkafka::Timestamp;
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedHeaders, Header, Headers, OwnedHeaders};
use rdkafka::producer::FutureRecord;

use self::stub::{EDGES, Stub, may_fit};
pub use self::stub::{KEY_SIZE, TRUNCATED, VALUE_HEAD, VALUE_SHA256, VALUE_SIZE};
use crate::commit::{NextOffset, Offset};

/// How the failure is named where tools expect a class.
const EXCEPTION: &str = "user_activity.InvalidEvent";
const EVENT_ID_HEADER: &str = "event-id";
/// The longest explanation in a header, so that the headers stay within their headroom.
const LONGEST_MESSAGE: usize = 1024;
/// More than a letter is larger than its record on the wire: the added headers, and what the format takes around each part.
const OVERHEAD: usize = 8 * 1024;

/// The original's topic, in the spelling of Kafka Connect and in that of Spring Kafka, as the next three.
pub const TOPIC: [&str; 2] = ["__connect.errors.topic", "kafka_dlt-original-topic"];
/// Its partition.
pub const PARTITION: [&str; 2] = ["__connect.errors.partition", "kafka_dlt-original-partition"];
/// Its offset.
pub const OFFSET: [&str; 2] = ["__connect.errors.offset", "kafka_dlt-original-offset"];
/// All that is wrong with it.
pub const MESSAGE: [&str; 2] = ["__connect.errors.exception.message", "kafka_dlt-exception-message"];
/// Its timestamp.
pub const TIMESTAMP: &str = "kafka_dlt-original-timestamp";
/// The first violation's word.
pub const REASON: &str = "dead-letter-reason";
/// Who dead-lettered it.
pub const WORKER: &str = "dead-letter-worker";
/// How often it was dead-lettered; the only one of these that a redriven record keeps.
pub const ATTEMPTS: &str = "dead-letter-attempts";

type Saying = fn(&Burial<'_>) -> Vec<u8>;

/// The headers that dead-lettering adds, in this order, and what each says.
const ADDED: [(&str, Saying); 17] = [
    (TOPIC[0], |burial| burial.letter.topic.as_bytes().into()),
    (PARTITION[0], |burial| burial.letter.partition.to_string().into()),
    (OFFSET[0], |burial| burial.letter.offset.to_string().into()),
    ("__connect.errors.stage", |_| b"VALUE_CONVERTER".into()),
    ("__connect.errors.exception.class.name", |_| EXCEPTION.into()),
    (MESSAGE[0], |burial| burial.letter.message.as_bytes().into()),
    (TOPIC[1], |burial| burial.letter.topic.as_bytes().into()),
    (PARTITION[1], |burial| burial.letter.partition.to_be_bytes().into()),
    (OFFSET[1], |burial| burial.letter.offset.to_be_bytes().into()),
    (TIMESTAMP, |burial| burial.letter.timestamp.to_millis().unwrap_or(-1).to_be_bytes().into()),
    ("kafka_dlt-original-timestamp-type", |burial| burial.letter.timestamp_type().into()),
    ("kafka_dlt-original-consumer-group", |burial| burial.group.into()),
    ("kafka_dlt-exception-fqcn", |_| EXCEPTION.into()),
    (MESSAGE[1], |burial| burial.letter.message.as_bytes().into()),
    (REASON, |burial| burial.letter.reason.into()),
    (WORKER, |burial| burial.worker.into()),
    (ATTEMPTS, |burial| burial.attempts.to_string().into()),
];

/// What the added headers speak of.
struct Burial<'a> {
    letter: &'a DeadLetter,
    group: &'a str,
    worker: &'a str,
    attempts: u32,
}

/// Whether dead-lettering adds a header of this name.
#[must_use]
pub fn is_added(name: &str) -> bool {
    ADDED.iter().any(|(added, _)| *added == name) || stub::NAMES.contains(&name)
}

/// A record that can't be an event.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    topic: String,
    partition: i32,
    offset: i64,
    timestamp: Timestamp,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Originals,
    reason: &'static str,
    message: String,
}

/// Headers that can be copied without reading their names.
pub trait CopyHeaders: Headers {
    /// The copy.
    fn copy(&self) -> OwnedHeaders;
}

impl CopyHeaders for BorrowedHeaders {
    fn copy(&self) -> OwnedHeaders {
        self.detach()
    }
}

impl CopyHeaders for OwnedHeaders {
    fn copy(&self) -> OwnedHeaders {
        self.clone()
    }
}

type HeaderPair = (String, Option<Vec<u8>>);

/// The headers that a record came with.
#[derive(Debug, Clone)]
enum Originals {
    Readable(Vec<HeaderPair>),
    /// A name is not UTF-8, on which the client library panics: kept as they are.
    Unreadable(OwnedHeaders),
}

impl Originals {
    fn of(headers: &impl CopyHeaders) -> Self {
        let pair = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
        let pairs = catch_unwind(AssertUnwindSafe(|| headers.iter().map(pair).collect()));
        pairs.map_or_else(|_| Self::Unreadable(headers.copy()), Self::Readable)
    }

    fn pairs(&self) -> &[HeaderPair] {
        match self {
            Self::Readable(pairs) => pairs,
            Self::Unreadable(_) => &[],
        }
    }
}

impl DeadLetter {
    /// Takes a record with everything that is wrong with it.
    #[must_use]
    pub fn new<M: Message<Headers: CopyHeaders>>(record: &M, violations: &[Violation]) -> Self {
        let mut message = violations.iter().map(|v| &*v.detail).collect::<Vec<_>>().join("; ");
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        Self {
            topic: record.topic().to_owned(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp: record.timestamp(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            headers: record.headers().map_or_else(|| Originals::Readable(Vec::new()), Originals::of),
            reason: violations.first().map_or("unknown", |v| v.code),
            message,
        }
    }

    /// The partition it was read from.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The offset it was read from.
    #[must_use]
    pub fn offset(&self) -> Offset {
        Offset(self.offset)
    }

    /// Why it is one, in a word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The eventId that the API gives every record in a header, and why the record is no event all the same.
    #[must_use]
    pub fn event_id_and_reason(&self) -> Option<(String, String)> {
        let header = self.headers.pairs().iter().find(|(key, _)| key == EVENT_ID_HEADER)?;
        let id = std::str::from_utf8(header.1.as_deref()?).ok().and_then(EventId::parse)?;
        Some((id.as_str().to_owned(), self.message.clone()))
    }

    /// Bytes of its key, value and headers.
    #[must_use]
    pub fn size(&self) -> usize {
        let bytes = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.pairs().iter().map(|(key, value)| key.len() + bytes(value));
        bytes(&self.key) + bytes(&self.value) + headers.sum::<usize>()
    }

    /// Tells it from another record at the same place.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.timestamp.to_millis(), &self.key, &self.value).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether a topic with this limit for a record, if that is known, has no reason to refuse it.
    fn surely_fits(&self, limit: Option<usize>) -> bool {
        let known = matches!(self.headers, Originals::Readable(_));
        limit.is_some_and(|limit| known && self.size() + 16 * self.headers.pairs().len() + OVERHEAD <= limit)
    }

    /// The original's headers, as given, then ours. Those of an earlier dead-lettering give way to the new ones, counted on.
    fn headers(&self, originals: &Originals, group: &str, worker: &str) -> OwnedHeaders {
        let attempts =
            self.headers.pairs().iter().rfind(|(key, _)| key == ATTEMPTS).and_then(|(_, value)| value.as_deref());
        let attempts = attempts.and_then(|value| std::str::from_utf8(value).ok()?.parse::<u32>().ok()).unwrap_or(0);
        let burial = Burial { letter: self, group, worker, attempts: attempts + 1 };
        let headers = match originals {
            Originals::Unreadable(headers) => headers.clone(),
            Originals::Readable(pairs) => {
                let kept = pairs.iter().filter(|(key, _)| !is_added(key));
                let room = OwnedHeaders::new_with_capacity(pairs.len() + ADDED.len());
                kept.fold(room, |all, (key, value)| all.insert(Header { key, value: value.as_ref() }))
            }
        };
        ADDED.iter().fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(&value(&burial)) }))
    }

    fn timestamp_type(&self) -> &'static str {
        match self.timestamp {
            Timestamp::NotAvailable => "NoTimestampType",
            Timestamp::CreateTime(_) => "CreateTime",
            Timestamp::LogAppendTime(_) => "LogAppendTime",
        }
    }
}

/// Publishes dead letters.
pub struct DeadLetters {
    publisher: KafkaPublisher,
    topic: String,
    group: String,
    worker: String,
    /// Those that the brokers have, and whose partition has not come past them yet: read again, they are not
    /// published again. With their fingerprints: where a log has gone back, the same place has another record.
    acknowledged: Mutex<BTreeMap<(i32, Offset), u64>>,
}

impl DeadLetters {
    /// Connects in the background.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(settings: &KafkaSettings, client_id: &str, group: &str, worker: &str) -> KafkaResult<Self> {
        let config = dead_letter_producer_config(settings, client_id);
        let topic = settings.topics.dead_letters.clone();
        let publisher = KafkaPublisher::new(config, &topic)?;
        Ok(Self {
            publisher,
            topic,
            group: group.to_owned(),
            worker: worker.to_owned(),
            acknowledged: Mutex::default(),
        })
    }

    /// Publishes all of them and waits until the brokers have each.
    pub async fn publish(&self, letters: &[DeadLetter]) -> Buried {
        let results = join_all(letters.iter().map(|letter| self.publish_once(letter))).await;
        let mut buried = Buried::default();
        for (letter, result) in letters.iter().zip(results) {
            let result = match result {
                // The partition is read again from its first failure on.
                Err(_) if buried.failures.contains_key(&letter.partition) => continue,
                Err(PublishError::TooLarge { .. }) => self.publish_alone(letter, &mut buried).await,
                result => result,
            };
            if let Err(error) = result {
                buried.failures.insert(letter.partition, (letter.offset(), error));
            }
        }
        buried
    }

    /// A partition has come past everything before `end`, or is not ours any more.
    pub fn forget(&self, partition: i32, end: NextOffset) {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        if !acknowledged.is_empty() {
            acknowledged.retain(|(of, offset), _| *of != partition || offset.next() > end);
        }
    }

    fn is_acknowledged(&self, letter: &DeadLetter) -> bool {
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        acknowledged.get(&(letter.partition, letter.offset())).is_some_and(|known| *known == letter.fingerprint())
    }

    fn acknowledge(&self, letter: &DeadLetter) {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        acknowledged.insert((letter.partition, letter.offset()), letter.fingerprint());
    }

    async fn publish_once(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        if self.is_acknowledged(letter) {
            log::debug!(
                "partition {}: the dead letter of offset {} is published already",
                letter.partition,
                letter.offset
            );
            return Ok(());
        }
        self.send(letter, None).await?;
        self.acknowledge(letter);
        let DeadLetter { topic, partition, offset, reason, message, .. } = letter;
        log::warn!(topic, partition, offset, reason; "dead letter: {topic}-{partition} offset {offset}: {message}");
        Ok(())
    }

    /// Publishes a letter that was refused for its size: whole, since what was refused may have been too large only
    /// together with others in its batch; otherwise the largest stub of it that the topic takes.
    async fn publish_alone(&self, letter: &DeadLetter, buried: &mut Buried) -> Result<(), PublishError> {
        let (mut refused, limit) = match self.publish_once(letter).await {
            Err(refused @ PublishError::TooLarge { limit, .. }) if !letter.surely_fits(limit) => (refused, limit),
            result => return result,
        };
        for edge in EDGES.into_iter().filter(|edge| may_fit(*edge, limit)) {
            match self.send(letter, Some(Stub::of(letter, edge))).await {
                Err(again @ PublishError::TooLarge { .. }) => refused = again,
                result => return result.map(|()| self.truncated(letter, edge, buried)),
            }
        }
        Err(refused)
    }

    fn truncated(&self, letter: &DeadLetter, edge: usize, buried: &mut Buried) {
        self.acknowledge(letter);
        buried.truncated += 1;
        let (DeadLetter { topic, partition, offset, reason, .. }, size) = (letter, letter.size());
        log::error!(topic, partition, offset, reason, size;
            "dead letter cut short: {topic}-{partition} offset {offset} has {size} bytes, more than the topic {} takes; of its \
             value, the first and the last {edge} bytes are kept; raise max.message.bytes there", self.topic);
    }

    async fn send(&self, letter: &DeadLetter, stub: Option<Stub>) -> Result<(), PublishError> {
        match self.send_at(letter, stub.as_ref(), letter.timestamp.to_millis()).await {
            // The dead-letter topic may have narrower bounds for timestamps; a header holds the original one.
            Err(PublishError::RefusedTimestamp(_)) => self.send_at(letter, stub.as_ref(), None).await,
            result => result,
        }
    }

    async fn send_at(
        &self,
        letter: &DeadLetter,
        stub: Option<&Stub>,
        timestamp: Option<i64>,
    ) -> Result<(), PublishError> {
        let (key, value) = stub.map_or((&letter.key, &letter.value), |stub| (&stub.key, &stub.value));
        let kept = stub.map(|stub| Originals::Readable(stub.originals.clone()));
        let headers = letter.headers(kept.as_ref().unwrap_or(&letter.headers), &self.group, &self.worker);
        let said = stub.into_iter().flat_map(|stub| &stub.said);
        let headers = said.fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(value) }));
        let record = FutureRecord {
            topic: &self.topic,
            partition: None,
            payload: value.as_deref(),
            key: key.as_deref(),
            timestamp,
            headers: Some(headers),
        };
        self.publisher.send(record).await.map(drop)
    }
}

/// What became of letters that were to be published.
#[derive(Debug, Default)]
pub struct Buried {
    /// For every partition with a failure, the offset of its first and why.
    pub failures: BTreeMap<i32, (Offset, PublishError)>,
    /// Of how many only a stub could be published.
    pub truncated: usize,
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedMessage;

    use super::*;

    impl DeadLetters {
        /// Whether letters of a partition are remembered.
        pub(crate) fn remembers(&self, partition: i32) -> bool {
            self.acknowledged.lock().unwrap().keys().any(|(of, _)| *of == partition)
        }
    }

    fn letter(headers: OwnedHeaders) -> DeadLetter {
        let record = OwnedMessage::new(
            Some(b"\xff".to_vec()),
            Some(b"key".to_vec()),
            "events".into(),
            Timestamp::CreateTime(1_771_322_400_000),
            3,
            258,
            Some(headers),
        );
        let violation = Violation { pointer: "".into(), code: "json", detail: "x".repeat(5000).into() };
        DeadLetter::new(&record, &[violation])
    }

    fn value<'a>(headers: &'a OwnedHeaders, key: &str) -> Vec<Option<&'a [u8]>> {
        headers.iter().filter(|header| header.key == key).map(|header| header.value).collect()
    }

    #[test]
    fn both_families_of_headers_are_added_to_the_originals() {
        let original =
            OwnedHeaders::new()
                .insert(Header { key: "traceparent", value: Some("00-1") })
                .insert(Header::<&str> { key: "empty", value: None });
        let letter = letter(original);
        let headers = letter.headers(&letter.headers, "group", "w1");
        assert_eq!(value(&headers, "traceparent"), [Some(&b"00-1"[..])]);
        assert_eq!(value(&headers, "empty"), [None]);
        assert_eq!(value(&headers, "__connect.errors.offset"), [Some(&b"258"[..])]);
        assert_eq!(value(&headers, "kafka_dlt-original-partition"), [Some(&[0, 0, 0, 3][..])]);
        assert_eq!(value(&headers, "kafka_dlt-original-offset"), [Some(&[0, 0, 0, 0, 0, 0, 1, 2][..])]);
        assert_eq!(value(&headers, "kafka_dlt-original-timestamp-type"), [Some(&b"CreateTime"[..])]);
        assert_eq!(value(&headers, "dead-letter-reason"), [Some(&b"json"[..])]);
        assert_eq!(value(&headers, "kafka_dlt-exception-message")[0].unwrap().len(), LONGEST_MESSAGE);
    }

    #[test]
    fn a_letter_that_died_before_counts_on() {
        let redriven = OwnedHeaders::new()
            .insert(Header { key: ATTEMPTS, value: Some("2") })
            .insert(Header { key: "dead-letter-reason", value: Some("old") });
        let letter = letter(redriven);
        let headers = letter.headers(&letter.headers, "group", "w1");
        assert_eq!(value(&headers, ATTEMPTS), [Some(&b"3"[..])]);
        assert_eq!(value(&headers, "dead-letter-reason"), [Some(&b"json"[..])]);
    }
}
