//! An entry of a stream: what one transaction stored, as it is written and read.

use std::fmt;
use std::sync::Arc;

use super::varint::{pull, push};
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

    /// Before the first entry of a stream from which some were taken, of which the reader has been told.
    pub const BEGIN_AGAIN: Self = Self { millis: 0, number: 1 };

    /// Whether this is no entry's place but the beginning of the stream.
    pub(super) fn is_beginning(self) -> bool {
        self.millis == 0
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

/// A partition that was to be read from the beginning of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// The partition.
    pub partition: i32,
    /// Where its log ended then: whatever was announced from there on before was of another log.
    pub end: i64,
    /// Whether the log may be another one although it reaches that far: the bucket had a position in it, which nobody
    /// trusted.
    pub anew: bool,
}

/// What one transaction stored, or where logs began. Its first field is named after the scope; it has a time, and the
/// records one behind the other, as `Records` writes them. Others follow only where logs began: a partition, and its
/// log's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bucket.
    pub bucket: usize,
    /// Where it stands in the bucket's stream.
    pub id: EntryId,
    /// Group and topic of its records. Empty where the entry can't be read.
    pub scope: Arc<str>,
    /// Its events were processed then or later, in milliseconds since 1970. A body from before was stored, and announced,
    /// by an earlier transaction.
    pub since: i64,
    /// Its records, in their order.
    pub records: Vec<Announced>,
    /// Partitions that were to be read from the beginning of their logs.
    pub ends: Vec<LogEnd>,
}

/// A stream's entries as Redis gives them: id, and fields with values in turn.
pub(super) type Raw = Vec<(String, Vec<Vec<u8>>)>;

/// Behind the end of a log that may be another one.
const ANEW: &str = " anew";

/// The entries, and how many of them, or of their records, can't be read. Such an entry stands for nothing but its place:
/// a reader must get past it.
pub(super) fn entries(bucket: usize, raw: Raw) -> (Vec<Entry>, usize) {
    let (mut read, mut unreadable) = (Vec::with_capacity(raw.len()), 0);
    for (id, fields) in raw {
        // Redis makes them.
        let Some(id) = EntryId::parse(&id) else { continue };
        let mut entry = Entry { bucket, id, scope: "".into(), since: 0, records: Vec::new(), ends: Vec::new() };
        unreadable += usize::from(!fill(&mut entry, &fields));
        read.push(entry);
    }
    (read, unreadable)
}

/// Whether all of an entry can be read. Of one that has records which can't, the others are there.
fn fill(entry: &mut Entry, fields: &[Vec<u8>]) -> bool {
    let Some((scope, ends)) = scope_and_ends(fields) else { return false };
    let records = &mut fields[1].as_slice();
    (entry.scope, entry.ends) = (scope, ends);
    if records.is_empty() {
        return true;
    }
    let Some(since) = pull(records).and_then(|since| i64::try_from(since).ok()) else { return false };
    entry.since = since;
    let mut whole = true;
    while !records.is_empty() {
        match pull_record(records) {
            Some(Some(record)) => entry.records.push(record),
            Some(None) => whole = false,
            // Where the next one begins can't be told.
            None => return false,
        }
    }
    whole
}

fn scope_and_ends(fields: &[Vec<u8>]) -> Option<(Arc<str>, Vec<LogEnd>)> {
    let [scope, _, ends @ ..] = fields else { return None };
    // The name of a topic alone is what earlier versions wrote, with records of another form.
    let scope = std::str::from_utf8(scope).ok().filter(|scope| scope.contains('|'))?;
    let (ends, []) = ends.as_chunks() else { return None };
    let ends = ends.iter().map(|[partition, end]| {
        let end = std::str::from_utf8(end).ok()?;
        let (end, anew) = end.strip_suffix(ANEW).map_or((end, false), |end| (end, true));
        let partition = std::str::from_utf8(partition).ok()?.parse().ok()?;
        Some(LogEnd { partition, end: end.parse().ok()?, anew })
    });
    Some((scope.into(), ends.collect::<Option<_>>()?))
}

/// The records of an entry, as they are written.
#[derive(Debug, Default)]
pub(in crate::store) struct Records {
    /// The earliest time at which one of their events was processed.
    since: Option<i64>,
    packed: Vec<u8>,
}

impl Records {
    /// Appends partition, offset, length of the id, and the id as it is stored.
    pub(in crate::store) fn push(&mut self, processed: i64, partition: i32, offset: i64, id: &StoredId) {
        self.since = Some(self.since.map_or(processed, |since| since.min(processed)));
        push(&mut self.packed, u64::from(partition.unsigned_abs()));
        push(&mut self.packed, offset.unsigned_abs());
        push(&mut self.packed, id.as_bytes().len() as u64);
        self.packed.extend_from_slice(id.as_bytes());
    }

    /// What stands in the entry.
    pub(in crate::store) fn packed(self) -> Vec<u8> {
        let mut packed = Vec::with_capacity(self.packed.len() + 8);
        push(&mut packed, self.since.unwrap_or_default().unsigned_abs());
        packed.extend_from_slice(&self.packed);
        packed
    }
}

/// Takes a record off the front: `None` if it is cut off, and `Some(None)` of one whose id is none.
fn pull_record(records: &mut &[u8]) -> Option<Option<Announced>> {
    let (partition, offset) = (i32::try_from(pull(records)?).ok()?, i64::try_from(pull(records)?).ok()?);
    let length = usize::try_from(pull(records)?).ok()?;
    let (id, rest) = records.split_at_checked(length)?;
    *records = rest;
    Some(StoredId::read(id.to_vec()).map(|id| Announced { partition, offset, event_id: id.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(fields: &[&[u8]]) -> (Entry, usize) {
        let fields = fields.iter().map(|field| field.to_vec()).collect();
        let (mut read, unreadable) = entries(3, vec![("5-1".into(), fields)]);
        (read.pop().unwrap(), unreadable)
    }

    fn packed(records: &[(i32, i64, String)]) -> Vec<u8> {
        let mut packed = Records::default();
        records
            .iter()
            .for_each(|(partition, offset, id)| packed.push(7 + offset, *partition, *offset, &StoredId::of(id)));
        packed.packed()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn records_of_an_entry_read_back(
            records in prop::collection::vec((0..i32::MAX, 0..i64::MAX / 2, "\\PC{1,16}"), 1..5),
            garbage: Vec<u8>,
        ) {
            let (entry, unreadable) = read(&[b"group|topic", &packed(&records)]);
            let earliest = records.iter().map(|(_, offset, _)| 7 + offset).min();
            let expected = records.into_iter().map(|(partition, offset, event_id)| Announced { partition, offset, event_id });
            prop_assert_eq!((entry.records, unreadable), (expected.collect::<Vec<_>>(), 0));
            prop_assert_eq!(Some(entry.since), earliest);
            // Whatever is there instead: an answer, not a panic.
            drop(read(&[b"group|topic", &garbage]));
        }
    }

    #[test]
    fn where_logs_ended_reads_back() {
        let marker = read(&[b"group|topic", b"", b"0", b"7", b"5", b"0 anew"]).0;
        assert_eq!((&*marker.scope, marker.records.len()), ("group|topic", 0));
        let end = |partition, end, anew| LogEnd { partition, end, anew };
        assert_eq!(marker.ends, [end(0, 7, false), end(5, 0, true)]);
    }

    #[test]
    fn of_what_cannot_be_read_the_place_is_left_and_the_rest_of_its_records() {
        let whole = packed(&[(0, 1, "one".into()), (0, 2, "two".into())]);
        for wrong in [
            &[&b"group|topic"[..], b"", b"0"][..],
            &[b"group|topic", b"", b"0", b"x"],
            &[b"group|topic"],
            &[b"topic", &whole],
            &[b"\xff|", &whole],
            &[b"foreign|", b"\xff\xff"],
        ] {
            let (entry, unreadable) = read(wrong);
            assert_eq!((entry.id, entry.records.len(), unreadable), (EntryId::new(5, 1), 0, 1), "{wrong:?}");
        }
        let offsets = |packed: &[u8]| {
            let (entry, unreadable) = read(&[b"group|topic", packed]);
            (entry.records.iter().map(|record| record.offset).collect::<Vec<_>>(), unreadable)
        };
        assert_eq!(offsets(&whole[..whole.len() - 1]), (vec![1], 1), "cut off");
        let mut foreign = whole;
        foreign[4] = 0xc3;
        assert_eq!(offsets(&foreign), (vec![2], 1), "no id");
    }
}
