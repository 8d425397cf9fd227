//! How far a reader has come, and its text.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::entry::{Entry, EntryId};
use super::varint::{pull, push};
use crate::store::BUCKETS;

/// How far the streams of all buckets have been read, to the record. As text it is opaque, and the same for every
/// process: base64url of a version and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailPosition {
    /// The last entry that was read whole.
    pub(super) entries: [EntryId; BUCKETS],
    /// The bucket of an entry that was read in part, and how many of its records.
    partial: Option<(usize, usize)>,
}

impl TailPosition {
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
        self.entries[entry.bucket] = entry.id;
        if self.partial.is_some_and(|(bucket, _)| bucket == entry.bucket) {
            self.partial = None;
        }
    }

    /// Moves to wherever another position is further.
    pub fn join(&mut self, other: &Self) {
        let stands = |position: &Self, entries: &[EntryId; BUCKETS]| {
            position.partial.filter(|(bucket, _)| position.entries[*bucket] == entries[*bucket])
        };
        let furthest = std::array::from_fn(|bucket| self.entries[bucket].max(other.entries[bucket]));
        self.partial = stands(other, &furthest).or_else(|| stands(self, &furthest));
        self.entries = furthest;
    }

    /// The last entry of a bucket that was read whole.
    #[must_use]
    pub fn entry(&self, bucket: usize) -> EntryId {
        self.entries[bucket]
    }

    /// Moves back in a bucket: its stream is not the one that was read, or only until there.
    pub fn go_back(&mut self, bucket: usize, to: EntryId) {
        self.entries[bucket] = to;
        if self.partial.is_some_and(|(begun, _)| begun == bucket) {
            self.partial = None;
        }
    }

    /// Whether the whole of an entry lies before this position.
    #[must_use]
    pub fn is_behind(&self, entry: &Entry) -> bool {
        entry.id <= self.entries[entry.bucket]
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
        let mut bytes = vec![1];
        push(&mut bytes, latest);
        push(&mut bytes, bucket as u64);
        push(&mut bytes, records as u64);
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
        let mut rest = bytes.strip_prefix(&[1])?;
        let latest = pull(&mut rest)?;
        let (bucket, records) = (usize::try_from(pull(&mut rest)?).ok()?, usize::try_from(pull(&mut rest)?).ok()?);
        let mut entries = [EntryId::default(); BUCKETS];
        for id in &mut entries {
            *id = EntryId { millis: latest.checked_sub(pull(&mut rest)?)?, number: pull(&mut rest)? };
        }
        let partial = (records > 0).then_some((bucket, records));
        (rest.is_empty() && bucket < BUCKETS).then_some(Self { entries, partial })
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
            ids: [(u64, u64); BUCKETS],
            partial in prop::option::of((0..BUCKETS, 1..usize::MAX)),
        ) {
            let entries = ids.map(|(millis, number)| EntryId { millis, number });
            let position = TailPosition { entries, partial };
            prop_assert_eq!(TailPosition::decode(&position.encode()), Some(position));
        }

        #[test]
        fn no_text_makes_the_reader_of_positions_panic(text: String, mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let garbage = TailPosition::decode(&text);
            bytes.insert(0, 1);
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
        let mut position = TailPosition::default();
        assert_eq!(TailPosition::decode(&position.encode()), Some(position));
        for bucket in 0..BUCKETS {
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
        let mut further = one;
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
