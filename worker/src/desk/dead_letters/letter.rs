//! A record of the dead-letter topic: what was dead-lettered, and what its headers say about it.
//!
//! Anything may lie on that topic. What a header does not say, or says unreadably, is unknown; no record is an error.

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::event::Timestamp;
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

use super::lineage::{LINEAGE, lineage};
use crate::dead_letter::{ATTEMPTS, MESSAGE, OFFSET, PARTITION, REASON, TIMESTAMP, TOPIC, TRUNCATED, WORKER, is_added};

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
    /// Which lineage it belongs to, if it was redriven and came back.
    pub lineage: Option<String>,
    /// The original's key.
    pub key: Option<Vec<u8>>,
    /// The original's value.
    pub value: Option<Vec<u8>>,
    /// All headers in order, those of the original first, but for those whose name is not UTF-8.
    pub headers: Vec<HeaderPair>,
    /// How many these are.
    pub unreadable_headers: usize,
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
        let (headers, unreadable_headers) = record.headers().map(readable).unwrap_or_default();
        let found = Found(&headers);
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
            lineage: found.text(LINEAGE),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            headers,
            unreadable_headers,
        }
    }

    /// The reason, `unknown` without one.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or("unknown")
    }

    /// Whether it is only a stub, so that the original can't be made of it.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        Found(&self.headers).value(TRUNCATED).is_some()
    }

    /// The key as text, whatever can't be replaced.
    #[must_use]
    pub fn key_lossy(&self) -> Option<String> {
        self.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned())
    }

    /// The headers it had before it was dead-lettered, as far as their names can be written, how often it was, and its
    /// lineage.
    #[must_use]
    pub fn redriven_headers(&self) -> OwnedHeaders {
        let kept = self.headers.iter().filter(|(name, _)| name == ATTEMPTS || !is_added(name) && name != LINEAGE);
        let kept = kept
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }));
        let lineage = lineage(self);
        lineage.iter().fold(kept, |headers, lineage| headers.insert(Header { key: LINEAGE, value: Some(lineage) }))
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

/// All headers that have a name, and how many have not: the client library panics where it is not UTF-8. The worker
/// dead-letters a record with such a header as any other, with its own ones behind it.
fn readable(headers: &impl Headers) -> (Vec<HeaderPair>, usize) {
    let pair = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
    let read = |nth| catch_unwind(AssertUnwindSafe(|| headers.try_get(nth).map(pair))).ok().flatten();
    let pairs: Vec<HeaderPair> = (0..headers.count()).filter_map(read).collect();
    let unreadable = headers.count() - pairs.len();
    (pairs, unreadable)
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
            headers: headers.map(|(name, value)| (name.to_owned(), Some(value.to_vec()))).into(),
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

    /// As the client library gives headers of which the first has a name that is not UTF-8.
    struct Unreadable(OwnedHeaders);

    impl Headers for Unreadable {
        fn count(&self) -> usize {
            1 + self.0.count()
        }

        fn try_get(&self, nth: usize) -> Option<Header<'_, &[u8]>> {
            self.0.try_get(nth.checked_sub(1).expect("UTF-8"))
        }
    }

    #[test]
    fn a_header_name_that_is_not_text_hides_no_other_header() {
        let names = ["event-id", TOPIC[0], ATTEMPTS];
        let others = names.iter().fold(OwnedHeaders::new(), |all, key| all.insert(Header { key, value: Some("7") }));
        let (headers, unreadable_headers) = readable(&Unreadable(others));
        assert_eq!(headers, names.map(|name| (name.to_owned(), Some(b"7".to_vec()))));
        assert_eq!(unreadable_headers, 1);
    }

    #[test]
    fn of_what_dead_lettering_added_a_redriven_record_keeps_the_attempts() {
        let dead = letter(&[("event-id", b"7"), (TOPIC[0], b"t"), (REASON, b"json"), (ATTEMPTS, b"2")]);
        let redriven = dead.redriven_headers();
        assert_eq!(redriven.iter().map(|header| header.key).collect::<Vec<_>>(), ["event-id", ATTEMPTS]);
    }

    #[test]
    fn a_redriven_record_says_which_lineage_it_is_of() {
        let origin: [(&str, &[u8]); 3] = [(TOPIC[0], b"t"), (PARTITION[0], b"3"), (OFFSET[0], b"258")];
        let of = |letter: Letter| {
            let headers = letter.redriven_headers();
            let lineages = headers.iter().filter(|header| header.key == LINEAGE);
            lineages.map(|header| String::from_utf8(header.value.unwrap().into()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of(letter(&origin)), ["t-3@258@1000"]);
        assert_eq!(of(letter(&[&[(LINEAGE, &b"t-0@1@5"[..])], &origin[..]].concat())), ["t-0@1@5"]);
    }
}
