//! An entry of a stream: what one transaction stored, as it is written and read.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::varint::{pull, push};
use crate::store::StoreError;
use crate::store::layout::StoredId;

/// Where an entry stands in its stream: milliseconds, and a number within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    pub(super) millis: u64,
    pub(super) number: u64,
}

impl EntryId {
    /// The place of the entry with this number (from 0 on) among those of a millisecond since 1970.
    #[must_use]
    pub fn new(millis: u64, number: u64) -> Self {
        Self { millis, number }
    }

    /// When it was added, by Redis' clock, in milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        i64::try_from(self.millis).unwrap_or(i64::MAX)
    }

    fn parse(text: &str) -> Option<Self> {
        let (millis, number) = text.split_once('-')?;
        Some(Self::new(millis.parse().ok()?, number.parse().ok()?))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

/// A record whose event was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its event.
    pub event_id: String,
}

/// What one transaction stored, or where logs began. Its first field has the name of the topic, and the records one behind
/// the other, as `push_record` writes them. Others follow only where logs began: a partition, and its log's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bucket.
    pub bucket: usize,
    /// Where it stands in the bucket's stream.
    pub id: EntryId,
    /// The topic of its records.
    pub topic: Arc<str>,
    /// Its records, in their order.
    pub records: Vec<Announced>,
    /// Partitions that were to be read from the beginning of their logs, and where these ended then: whatever was
    /// announced from there on before this entry was of another log.
    pub ends: Vec<(i32, i64)>,
}

/// A stream's entries as Redis gives them: id, and fields with values in turn.
pub(super) type Raw = Vec<(String, Vec<Vec<u8>>)>;

pub(super) fn entries(bucket: usize, raw: Raw) -> Result<Vec<Entry>, StoreError> {
    let corrupt = || StoreError::Corrupt(format!("an entry of the tail of bucket {bucket} can't be read"));
    raw.into_iter().map(|(id, fields)| entry(bucket, &id, &fields).ok_or_else(corrupt)).collect()
}

fn entry(bucket: usize, id: &str, fields: &[Vec<u8>]) -> Option<Entry> {
    let [topic, records, ends @ ..] = fields else { return None };
    let (ends, []) = ends.as_chunks() else { return None };
    let ends = ends.iter().map(|[partition, end]| Some((number(partition)?, number(end)?)));
    let (mut rest, mut records) = (records.as_slice(), Vec::new());
    while !rest.is_empty() {
        records.push(pull_record(&mut rest)?);
    }
    let topic = std::str::from_utf8(topic).ok()?.into();
    Some(Entry { bucket, id: EntryId::parse(id)?, topic, records, ends: ends.collect::<Option<_>>()? })
}

fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends a record to the field of an entry: partition, offset, length of the id, and the id as it is stored.
pub(in crate::store) fn push_record(records: &mut Vec<u8>, partition: i32, offset: i64, id: &StoredId) {
    push(records, u64::from(partition.unsigned_abs()));
    push(records, offset.unsigned_abs());
    push(records, id.as_bytes().len() as u64);
    records.extend_from_slice(id.as_bytes());
}

fn pull_record(records: &mut &[u8]) -> Option<Announced> {
    let (partition, offset) = (i32::try_from(pull(records)?).ok()?, i64::try_from(pull(records)?).ok()?);
    let length = usize::try_from(pull(records)?).ok()?;
    let (id, rest) = records.split_at_checked(length)?;
    *records = rest;
    Some(Announced { partition, offset, event_id: StoredId::read(id.to_vec())?.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn records_of_an_entry_read_back(
            records in prop::collection::vec((0..i32::MAX, 0..i64::MAX, "\\PC{1,16}"), 1..5),
            garbage: Vec<u8>,
        ) {
            let mut packed = Vec::new();
            for (partition, offset, id) in &records {
                push_record(&mut packed, *partition, *offset, &StoredId::of(id));
            }
            let read = entry(3, "5-1", &[b"topic".to_vec(), packed]).unwrap();
            let expected = records.into_iter().map(|(partition, offset, event_id)| Announced { partition, offset, event_id });
            prop_assert_eq!(read.records, expected.collect::<Vec<_>>());
            // Whatever is there instead: an answer, not a panic.
            drop(entry(3, "5-1", &[b"topic".to_vec(), garbage]));
        }
    }

    #[test]
    fn where_logs_ended_reads_back() {
        let read = |fields: &[&str]| {
            let fields: Vec<Vec<u8>> = fields.iter().map(|field| field.as_bytes().to_vec()).collect();
            entry(3, "5-1", &fields)
        };
        let marker = read(&["topic", "", "0", "7", "5", "0"]).unwrap();
        assert_eq!((&*marker.topic, marker.records.len(), marker.ends), ("topic", 0, vec![(0, 7), (5, 0)]));
        for wrong in [&["topic", "", "0"][..], &["topic", "", "0", "x"], &["topic"]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
