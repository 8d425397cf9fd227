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
    /// The bucket of an entry that was read in part, and how many of its records.
    partial: Option<(usize, usize)>,
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

    fn set(&mut self, bucket: usize, entry: EntryId) {
        if bucket >= self.entries.len() {
            self.entries.resize(bucket + 1, EntryId::default());
        }
        self.entries[bucket] = entry;
    }

    /// Moves behind the record of this number, from 0, of an entry.
    pub fn pass(&mut self, entry: &Entry, number: usize) {
        if number + 1 < entry.records.len() {
            self.partial = Some((entry.bucket, number + 1));
        } else {
            self.pass_all(entry);
        }
    }

    /// Moves behind an entry.
    pub fn pass_all(&mut self, entry: &Entry) {
        self.set(entry.bucket, entry.id);
        if self.partial.is_some_and(|(bucket, _)| bucket == entry.bucket) {
            self.partial = None;
        }
    }

    /// Moves to wherever another position is further.
    pub fn join(&mut self, other: &Self) {
        let furthest = |one: &Self, than: &Self| one.partial.filter(|(bucket, _)| one.at(*bucket) >= than.at(*bucket));
        self.partial = furthest(other, self).or_else(|| furthest(self, other));
        let all = self.entries.len().max(other.entries.len());
        self.entries = (0..all).map(|bucket| self.at(bucket).max(other.at(bucket))).collect();
    }

    /// Moves back in a bucket: its stream is not the one that was read, or only until there.
    pub fn go_back(&mut self, bucket: usize, to: EntryId) {
        self.set(bucket, to);
        if self.partial.is_some_and(|(begun, _)| begun == bucket) {
            self.partial = None;
        }
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
            Some((bucket, records)) if bucket == entry.bucket => records,
            _ => 0,
        }
    }

    /// The position as text for an `id:` line.
    #[must_use]
    pub fn encode(&self) -> String {
        let latest = self.entries.iter().map(|id| id.millis).max().unwrap_or_default();
        let (bucket, records) = self.partial.unwrap_or_default();
        let mut bytes = vec![VERSION];
        for number in [self.entries.len() as u64, latest, bucket as u64, records as u64] {
            push(&mut bytes, number);
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
        let (bucket, records) = (usize::try_from(pull(&mut rest)?).ok()?, usize::try_from(pull(&mut rest)?).ok()?);
        // Ends where the bytes do, whatever the number says.
        let entry = |_| Some(EntryId { millis: latest.checked_sub(pull(&mut rest)?)?, number: pull(&mut rest)? });
        let entries = (0..buckets).map(entry).collect::<Option<SmallVec<_>>>()?;
        let partial = (records > 0).then_some((bucket, records));
        let position = Self { entries, partial };
        (rest.is_empty() && position.buckets().contains(&bucket)).then_some(position)
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
            partial: Option<(usize, usize)>,
        ) {
            let entries: SmallVec<_> = ids.into_iter().map(|(millis, number)| EntryId { millis, number }).collect();
            let partial = partial.map(|(bucket, records)| (bucket % entries.len(), records.max(1)));
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
