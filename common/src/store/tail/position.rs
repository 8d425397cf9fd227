//! How far a reader has come, and its text.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::{SmallVec, smallvec};

use super::entry::{Entry, EntryId};
use super::varint::{pull, push};

/// What the text of a position begins with.
const VERSION: u8 = 2;

/// How far the streams of all buckets have been read, to the record. As text it is opaque, and the same for every
/// process: base64url of a version and numbers. The default is of a store that nobody has asked yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TailPosition {
    /// The last entry of each bucket that was read whole. Each event on its way to readers has a position: up to the usual
    /// number on a Cluster it takes no memory of its own.
    entries: SmallVec<[EntryId; 16]>,
    partial: Option<Begun>,
}

/// An entry that was read in part. Its place must be known as well: after a loss another one may be the next of its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begun {
    bucket: usize,
    entry: EntryId,
    /// How many of its records were read, one at least.
    records: usize,
}

impl TailPosition {
    /// Before the first entry of each of so many buckets.
    #[must_use]
    pub fn before_all(buckets: usize) -> Self {
        Self { entries: smallvec![EntryId::default(); buckets], partial: None }
    }

    /// The buckets of its store.
    #[must_use]
    pub fn buckets(&self) -> Range<usize> {
        0..self.entries.len()
    }

    /// The last entry of a bucket that was read whole.
    #[must_use]
    pub fn at(&self, bucket: usize) -> EntryId {
        self.entries.get(bucket).copied().unwrap_or_default()
    }

    /// The entry of a bucket at which it stands: one that was begun, or the last one that was read whole.
    pub(super) fn stands_at(&self, bucket: usize) -> EntryId {
        self.partial.filter(|begun| begun.bucket == bucket).map_or_else(|| self.at(bucket), |begun| begun.entry)
    }

    fn set(&mut self, bucket: usize, entry: EntryId) {
        if bucket >= self.entries.len() {
            self.entries.resize(bucket + 1, EntryId::default());
        }
        self.entries[bucket] = entry;
    }

    /// Moves behind the record of this number, from 0, of an entry.
    pub fn pass(&mut self, entry: &Entry, number: usize) {
        if number + 1 < entry.records.len() {
            self.partial = Some(Begun { bucket: entry.bucket, entry: entry.id, records: number + 1 });
        } else {
            self.pass_all(entry);
        }
    }

    /// Moves behind an entry.
    pub fn pass_all(&mut self, entry: &Entry) {
        self.go_back(entry.bucket, entry.id);
    }

    /// Moves to wherever another position is further.
    pub fn join(&mut self, other: &Self) {
        let furthest =
            |one: &Self, than: &Self| one.partial.filter(|begun| one.at(begun.bucket) >= than.at(begun.bucket));
        self.partial = furthest(other, self).or_else(|| furthest(self, other));
        let all = self.entries.len().max(other.entries.len());
        self.entries = (0..all).map(|bucket| self.at(bucket).max(other.at(bucket))).collect();
    }

    /// Moves back in a bucket: its stream is not the one that was read, or only until there.
    pub fn go_back(&mut self, bucket: usize, to: EntryId) {
        self.set(bucket, to);
        if self.partial.is_some_and(|begun| begun.bucket == bucket) {
            self.partial = None;
        }
    }

    /// Whether it has not come as far as another one in some bucket, the stream of which that one has read.
    #[must_use]
    pub fn falls_short_of(&self, other: &Self) -> bool {
        other.buckets().any(|bucket| !other.at(bucket).is_beginning() && self.at(bucket) < other.at(bucket))
    }

    /// Whether the whole of an entry lies before this position.
    #[must_use]
    pub fn is_behind(&self, entry: &Entry) -> bool {
        entry.id <= self.at(entry.bucket)
    }

    /// How many records of an entry lie before this position.
    #[must_use]
    pub fn passed(&self, entry: &Entry) -> usize {
        match self.partial {
            _ if self.is_behind(entry) => entry.records.len(),
            Some(begun) if (begun.bucket, begun.entry) == (entry.bucket, entry.id) => begun.records,
            _ => 0,
        }
    }

    /// The position as text for an `id:` line.
    #[must_use]
    pub fn encode(&self) -> String {
        let latest = self.entries.iter().map(|id| id.millis).max().unwrap_or_default();
        let mut bytes = vec![VERSION];
        push(&mut bytes, self.entries.len() as u64);
        push(&mut bytes, latest);
        match self.partial {
            Some(Begun { bucket, entry, records }) => {
                [records as u64, bucket as u64, entry.millis, entry.number]
                    .into_iter()
                    .for_each(|n| push(&mut bytes, n));
            }
            None => push(&mut bytes, 0),
        }
        for id in &self.entries {
            push(&mut bytes, latest - id.millis);
            push(&mut bytes, id.number);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`TailPosition::encode`] wrote.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let (buckets, latest) = (pull(&mut rest)?, pull(&mut rest)?);
        let partial = match usize::try_from(pull(&mut rest)?).ok()? {
            0 => None,
            records => {
                let bucket = usize::try_from(pull(&mut rest)?).ok()?;
                let entry = EntryId { millis: pull(&mut rest)?, number: pull(&mut rest)? };
                Some(Begun { bucket, entry, records })
            }
        };
        // Ends where the bytes do, whatever the number says.
        let entry = |_| Some(EntryId { millis: latest.checked_sub(pull(&mut rest)?)?, number: pull(&mut rest)? });
        let entries = (0..buckets).map(entry).collect::<Option<SmallVec<_>>>()?;
        let position = Self { entries, partial };
        let exists = |bucket: usize| bucket < position.entries.len();
        (rest.is_empty() && exists(partial.map_or(0, |begun| begun.bucket))).then_some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Announced;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_position_reads_back(
            ids in prop::collection::vec(any::<(u64, u64)>(), 1..40),
            partial: Option<(usize, (u64, u64), usize)>,
        ) {
            let entries: SmallVec<_> = ids.into_iter().map(|(millis, number)| EntryId { millis, number }).collect();
            let partial = partial.map(|(bucket, (millis, number), records)| Begun {
                bucket: bucket % entries.len(),
                entry: EntryId { millis, number },
                records: records.max(1),
            });
            let position = TailPosition { entries, partial };
            prop_assert_eq!(TailPosition::decode(&position.encode()), Some(position));
        }

        #[test]
        fn no_text_makes_the_reader_of_positions_panic(text: String, mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let garbage = TailPosition::decode(&text);
            bytes.insert(0, VERSION);
            for position in [garbage, TailPosition::decode(&URL_SAFE_NO_PAD.encode(&bytes))].into_iter().flatten() {
                prop_assert_eq!(TailPosition::decode(&position.encode()), Some(position));
            }
        }
    }

    fn entry_of(bucket: usize, millis: u64, records: usize) -> Entry {
        let record = |n: usize| Announced { partition: 0, offset: n as i64, event_id: n.to_string() };
        let (id, records) = (EntryId { millis, number: 3 }, (0..records).map(record).collect());
        Entry { bucket, id, scope: "group|topic".into(), since: 0, records, ends: Vec::new() }
    }

    #[test]
    fn a_position_reads_back_and_a_forged_one_does_not() {
        let mut position = TailPosition::before_all(16);
        assert_eq!(TailPosition::decode(&position.encode()), Some(position.clone()));
        for bucket in 0..16 {
            position.pass_all(&entry_of(bucket, 1_795_000_000_000 + bucket as u64, 1));
        }
        position.pass(&entry_of(7, 1_795_000_000_100, 5), 2);
        let text = position.encode();
        assert_eq!(TailPosition::decode(&text), Some(position));
        assert!(text.len() < 100, "{text}");
        for forged in ["", "x", "AQ", "Ag", &text[..text.len() - 2], &format!("{text}AA"), "____________________"] {
            assert_eq!(TailPosition::decode(forged), None, "{forged}");
        }
    }

    #[test]
    fn records_before_a_position_are_passed_and_no_others() {
        let (first, second) = (entry_of(2, 10, 3), entry_of(2, 11, 3));
        let mut position = TailPosition::default();
        assert_eq!((position.passed(&first), position.passed(&second)), (0, 0));
        position.pass(&first, 0);
        assert_eq!((position.passed(&first), position.passed(&entry_of(3, 10, 3))), (1, 0));
        position.pass(&first, 2);
        assert_eq!((position.passed(&first), position.passed(&second)), (3, 0));
    }

    #[test]
    fn of_an_entry_that_takes_the_place_of_one_that_was_begun_nothing_is_passed() {
        let mut position = TailPosition::default();
        position.pass(&entry_of(2, 10, 3), 1);
        assert_eq!((position.passed(&entry_of(2, 10, 3)), position.passed(&entry_of(2, 11, 3))), (2, 0));
        assert_eq!(position.stands_at(2), entry_of(2, 10, 3).id);
    }

    #[test]
    fn a_position_falls_short_where_it_is_behind_what_was_read_and_not_where_nothing_was() {
        let (mut position, mut other) = (TailPosition::before_all(2), TailPosition::before_all(2));
        other.go_back(0, EntryId::BEGIN_AGAIN);
        other.pass_all(&entry_of(1, 10, 1));
        assert!(position.falls_short_of(&other));
        position.pass_all(&entry_of(1, 10, 1));
        assert!(!position.falls_short_of(&other));
    }

    #[test]
    fn a_joined_position_is_the_further_one_in_each_bucket() {
        let (mut one, mut other) = (TailPosition::default(), TailPosition::default());
        one.pass_all(&entry_of(0, 10, 1));
        other.pass_all(&entry_of(0, 9, 1));
        other.pass(&entry_of(1, 5, 4), 1);
        one.join(&other);
        assert_eq!(one.passed(&entry_of(0, 10, 1)), 1);
        assert_eq!(one.passed(&entry_of(1, 5, 4)), 2);
        let mut further = one.clone();
        further.pass_all(&entry_of(1, 5, 4));
        one.join(&further);
        assert_eq!(one, further);
    }

    #[test]
    fn a_stream_that_is_read_again_has_no_entry_that_was_passed_or_begun() {
        let mut position = TailPosition::default();
        position.pass_all(&entry_of(0, 10, 1));
        position.pass_all(&entry_of(1, 4, 1));
        position.pass(&entry_of(1, 5, 4), 1);
        position.go_back(1, EntryId::BEGIN_AGAIN);
        assert_eq!((position.passed(&entry_of(1, 5, 4)), position.passed(&entry_of(1, 4, 1))), (0, 0));
        assert_eq!(position.passed(&entry_of(0, 10, 1)), 1);
    }
}
