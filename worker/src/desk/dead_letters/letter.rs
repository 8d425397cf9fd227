//! A record of the dead-letter topic: what was dead-lettered, and what its headers say about it.
//!
//! Anything may lie on that topic. What a header does not say, or says unreadably, is unknown; no record is an error.

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::event::Timestamp;
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

/// Counts how often a record was dead-lettered; the only one of our headers that a redriven record keeps.
pub const ATTEMPTS: &str = "dead-letter-attempts";

const TOPIC: [&str; 2] = ["__connect.errors.topic", "kafka_dlt-original-topic"];
const PARTITION: [&str; 2] = ["__connect.errors.partition", "kafka_dlt-original-partition"];
const OFFSET: [&str; 2] = ["__connect.errors.offset", "kafka_dlt-original-offset"];
const MESSAGE: [&str; 2] = ["__connect.errors.exception.message", "kafka_dlt-exception-message"];
const TIMESTAMP: &str = "kafka_dlt-original-timestamp";
const REASON: &str = "dead-letter-reason";
const WORKER: &str = "dead-letter-worker";

/// What dead-lettering added, apart from [`ATTEMPTS`].
const ADDED: [&str; 16] = [
    TOPIC[0],
    PARTITION[0],
    OFFSET[0],
    "__connect.errors.stage",
    "__connect.errors.exception.class.name",
    MESSAGE[0],
    TOPIC[1],
    PARTITION[1],
    OFFSET[1],
    TIMESTAMP,
    "kafka_dlt-original-timestamp-type",
    "kafka_dlt-original-consumer-group",
    "kafka_dlt-exception-fqcn",
    MESSAGE[1],
    REASON,
    WORKER,
];

type HeaderPair = (String, Option<Vec<u8>>);

/// One dead letter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Letter {
    /// Its partition of the dead-letter topic.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// When the original was written, by its own timestamp. A dead letter keeps it.
    pub timestamp: Option<Timestamp>,
    /// Where the original was read.
    pub original: Original,
    /// The first violation's word, such as `json`.
    pub reason: Option<String>,
    /// All that is wrong with it.
    pub message: Option<String>,
    /// How often it was dead-lettered.
    pub attempts: Option<u32>,
    /// Who dead-lettered it.
    pub worker: Option<String>,
    /// The original's key.
    pub key: Option<Vec<u8>>,
    /// The original's value.
    pub value: Option<Vec<u8>>,
    /// All headers in order, those of the original first; `None` when a name is not UTF-8.
    pub headers: Option<Vec<HeaderPair>>,
}

/// The coordinates of the record that was dead-lettered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Original {
    /// Topic.
    pub topic: Option<String>,
    /// Partition.
    pub partition: Option<i32>,
    /// Offset.
    pub offset: Option<i64>,
}

impl Letter {
    /// Reads a record of the dead-letter topic.
    #[must_use]
    pub fn of<M: Message>(record: &M) -> Self {
        let headers = record.headers().map_or_else(|| Some(Vec::new()), readable);
        let found = Found(headers.as_deref().unwrap_or_default());
        let original = Original {
            topic: TOPIC.into_iter().find_map(|name| found.text(name)),
            partition: found.number(PARTITION[0]).or_else(|| found.bytes(PARTITION[1]).map(i32::from_be_bytes)),
            offset: found.number(OFFSET[0]).or_else(|| found.bytes(OFFSET[1]).map(i64::from_be_bytes)),
        };
        let noted = found.bytes(TIMESTAMP).map(i64::from_be_bytes).and_then(Timestamp::from_millis);
        Self {
            partition: record.partition(),
            offset: record.offset(),
            timestamp: noted.or_else(|| record.timestamp().to_millis().and_then(Timestamp::from_millis)),
            original,
            reason: found.text(REASON),
            message: MESSAGE.into_iter().find_map(|name| found.text(name)),
            attempts: found.number(ATTEMPTS),
            worker: found.text(WORKER),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            headers,
        }
    }

    /// The reason, `unknown` without one.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or("unknown")
    }

    /// The key as text, whatever can't be replaced.
    #[must_use]
    pub fn key_lossy(&self) -> Option<String> {
        self.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned())
    }

    /// The headers it had before it was dead-lettered, and how often it was.
    #[must_use]
    pub fn redriven_headers(&self) -> OwnedHeaders {
        let kept = self.headers.iter().flatten().filter(|(name, _)| !ADDED.contains(&name.as_str()));
        kept.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }))
    }
}

/// A header's value for people: the numbers that are bytes decoded; `None` for any other header.
#[must_use]
pub fn decoded(name: &str, value: &[u8]) -> Option<String> {
    if name == PARTITION[1] {
        return value.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).to_string());
    }
    let number = i64::from_be_bytes(value.try_into().ok().filter(|_| [OFFSET[1], TIMESTAMP].contains(&name))?);
    let time = Timestamp::from_millis(number).filter(|_| name == TIMESTAMP);
    Some(time.map_or_else(|| number.to_string(), |time| format!("{number} ({time})")))
}

/// The client library panics on a header whose name is not UTF-8. Such a record is a foreign one, and no reason to end.
fn readable(headers: &impl Headers) -> Option<Vec<HeaderPair>> {
    let pair = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
    catch_unwind(AssertUnwindSafe(|| headers.iter().map(pair).collect())).ok()
}

/// Looks headers up; of several with one name the last counts.
struct Found<'a>(&'a [HeaderPair]);

impl Found<'_> {
    fn value(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().rfind(|(found, _)| found == name)?.1.as_deref()
    }

    fn text(&self, name: &str) -> Option<String> {
        self.value(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        std::str::from_utf8(self.value(name)?).ok()?.parse().ok()
    }

    fn bytes<const N: usize>(&self, name: &str) -> Option<[u8; N]> {
        self.value(name)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp as KafkaTimestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;

    fn letter(headers: &[(&str, &[u8])]) -> Letter {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let time = KafkaTimestamp::CreateTime(1_000);
        Letter::of(&OwnedMessage::new(None, None, "dlq".into(), time, 1, 7, Some(headers)))
    }

    fn time(millis: i64) -> Option<Timestamp> {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn either_family_of_headers_says_where_a_letter_came_from() {
        let expected = Original { topic: Some("t".into()), partition: Some(3), offset: Some(258) };
        let connect = letter(&[(TOPIC[0], b"t"), (PARTITION[0], b"3"), (OFFSET[0], b"258")]);
        assert_eq!((connect.original, connect.timestamp), (expected.clone(), time(1_000)));
        let (partition, offset, at) = (3_i32.to_be_bytes(), 258_i64.to_be_bytes(), 5_000_i64.to_be_bytes());
        let spring = letter(&[(TOPIC[1], b"t"), (PARTITION[1], &partition), (OFFSET[1], &offset), (TIMESTAMP, &at)]);
        assert_eq!((spring.original, spring.timestamp), (expected, time(5_000)));
    }

    #[test]
    fn what_headers_do_not_say_or_say_unreadably_is_unknown() {
        let headers: [(&str, &[u8]); 5] =
            [(PARTITION[0], b"three"), (PARTITION[1], b"\0"), (OFFSET[1], b""), (TIMESTAMP, b"now"), (ATTEMPTS, b"-1")];
        let read = letter(&headers);
        let unknown = Letter {
            partition: 1,
            offset: 7,
            timestamp: time(1_000),
            headers: Some(headers.map(|(name, value)| (name.to_owned(), Some(value.to_vec()))).into()),
            ..Letter::default()
        };
        assert_eq!(read, unknown);
        assert_eq!(read.reason(), "unknown");
        let never = letter(&[(TIMESTAMP, &(-1_i64).to_be_bytes())]);
        assert_eq!(never.timestamp, time(1_000), "the original had none");
    }

    #[test]
    fn the_last_header_of_a_name_counts() {
        let read = letter(&[(ATTEMPTS, b"1"), (ATTEMPTS, b"2"), (REASON, b"old"), (REASON, b"json")]);
        assert_eq!((read.attempts, read.reason()), (Some(2), "json"));
    }

    #[test]
    fn numbers_that_are_bytes_are_decoded() {
        assert_eq!(decoded(PARTITION[1], &3_i32.to_be_bytes()).unwrap(), "3");
        assert_eq!(decoded(OFFSET[1], &258_i64.to_be_bytes()).unwrap(), "258");
        assert_eq!(decoded(TIMESTAMP, &0_i64.to_be_bytes()).unwrap(), "0 (1970-01-01T00:00:00.000Z)");
        assert_eq!(decoded(TIMESTAMP, &(-1_i64).to_be_bytes()).unwrap(), "-1");
        assert_eq!(decoded(OFFSET[1], b"258"), None);
        assert_eq!(decoded("traceparent", &258_i64.to_be_bytes()), None);
    }

    /// As the client library behaves where the name of a header is not UTF-8.
    struct Unreadable;

    impl Headers for Unreadable {
        fn count(&self) -> usize {
            1
        }

        fn try_get(&self, _: usize) -> Option<Header<'_, &[u8]>> {
            panic!("not UTF-8")
        }
    }

    #[test]
    fn a_header_name_that_is_not_text_does_not_end_the_program() {
        assert_eq!(readable(&Unreadable), None);
    }
}
