//! The live tail: one stream per bucket with the ids of what was stored last. A batch's ids are added by the transaction
//! that stores them, so an entry is never seen before its events can be read.
//!
//! An entry says what a transaction wrote, not what was new: a record that is delivered again is announced again, with
//! the same partition and offset. Who reads tells by [`Seen`].

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::layout::StoredId;
use super::positions::partition_of;
use super::{BUCKETS, Origin, Store, StoreError};

/// About how many entries a stream holds, each of up to a batch's share of records.
pub(super) const MAX_ENTRIES: usize = 500;
/// The one field of an entry: its records one behind the other, as [`push_record`] writes them.
pub(super) const RECORDS: &str = "r";
/// Entries of one bucket that are read at a time.
const READ: usize = 100;
/// Entries of one bucket that tell what was announced before.
const LOOK_BACK: usize = 64;
/// Offsets of one bucket and partition that are remembered one by one: more than batches under way together have.
const REMEMBERED: usize = 1024;

/// Where an entry stands in its stream: milliseconds, and a number within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EntryId {
    millis: u64,
    number: u64,
}

impl EntryId {
    /// When it was added, by Redis' clock, in milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        i64::try_from(self.millis).unwrap_or(i64::MAX)
    }

    fn parse(text: &str) -> Option<Self> {
        let (millis, number) = text.split_once('-')?;
        Some(Self { millis: millis.parse().ok()?, number: number.parse().ok()? })
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

/// What one transaction stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bucket.
    pub bucket: usize,
    /// Where it stands in the bucket's stream.
    pub id: EntryId,
    /// Its records, in their order.
    pub records: Vec<Announced>,
}

/// How far the streams of all buckets have been read, to the record. As text it is opaque, and the same for every
/// process: base64url of a version and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailPosition {
    /// The last entry that was read whole.
    entries: [EntryId; BUCKETS],
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

    /// How many records of an entry lie before this position.
    #[must_use]
    pub fn passed(&self, entry: &Entry) -> usize {
        match self.partial {
            _ if entry.id <= self.entries[entry.bucket] => entry.records.len(),
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

/// A number in groups of seven bits, the lowest first (LEB128).
fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn pull(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// What was announced of each bucket and partition. Redelivery, and the refill of a store that has lost something,
/// announce it again.
///
/// The highest offset alone would not do: of batches under way together an early one may be lost, with a Redis that is
/// emptied for example, and come again behind a later one.
#[derive(Debug, Clone, Default)]
pub struct Seen(HashMap<(usize, i32), Offsets>);

/// What was announced of one bucket and partition.
#[derive(Debug, Clone)]
struct Offsets {
    /// Everything up to this one.
    floor: i64,
    /// And these, [`REMEMBERED`] at most.
    beyond: BTreeSet<i64>,
}

impl Default for Offsets {
    fn default() -> Self {
        Self { floor: -1, beyond: BTreeSet::new() }
    }
}

impl Offsets {
    fn raise(&mut self, floor: i64) {
        if floor > self.floor {
            self.floor = floor;
            self.beyond = self.beyond.split_off(&(floor + 1));
        }
    }
}

impl Seen {
    /// Whether a record is announced for the first time; not any more afterwards.
    pub fn is_new(&mut self, bucket: usize, record: &Announced) -> bool {
        let offsets = self.0.entry((bucket, record.partition)).or_default();
        let new = record.offset > offsets.floor && offsets.beyond.insert(record.offset);
        if offsets.beyond.len() > REMEMBERED
            && let Some(lowest) = offsets.beyond.first().copied()
        {
            offsets.raise(lowest);
        }
        new
    }

    /// Whether a record was announced before.
    #[must_use]
    pub fn knows(&self, bucket: usize, record: &Announced) -> bool {
        let offsets = self.0.get(&(bucket, record.partition));
        offsets.is_some_and(|offsets| record.offset <= offsets.floor || offsets.beyond.contains(&record.offset))
    }

    /// Takes note of whole entries.
    pub fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            for record in &entry.records {
                self.is_new(entry.bucket, record);
            }
        }
    }

    /// Takes everything before what is known for announced.
    fn close_below(&mut self) {
        for offsets in self.0.values_mut() {
            let lowest = offsets.beyond.first().copied();
            lowest.into_iter().for_each(|lowest| offsets.raise(lowest));
        }
    }
}

/// A stream's entries as Redis gives them: id, and fields with values in turn.
type Raw = Vec<(String, Vec<Vec<u8>>)>;
/// Keys of streams with their entries.
type Streams = Vec<(String, Raw)>;

impl Store {
    /// Where the streams end, and what was announced last.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_end(&self) -> Result<(TailPosition, Seen), StoreError> {
        // Before the end is read: everything before a position was announced by then.
        let stored = self.announced_by_positions().await?;
        let (end, mut seen) = self.tail_before(None).await?;
        for (place, offset) in stored {
            seen.0.entry(place).or_default().raise(offset);
        }
        Ok((end, seen))
    }

    /// The last offset of each bucket and partition before its position. Positions know of a partition that has been
    /// quiet for long, too.
    async fn announced_by_positions(&self) -> Result<HashMap<(usize, i32), i64>, StoreError> {
        let asked = (0..BUCKETS).map(|bucket| {
            let mut all = redis::cmd("HGETALL");
            all.arg(self.layout.positions(bucket));
            all
        });
        let buckets: Vec<HashMap<String, i64>> = self.read.scatter(asked).await?;
        let mut last = HashMap::new();
        for (bucket, positions) in buckets.into_iter().enumerate() {
            for (field, next) in positions {
                if let Some(partition) = partition_of(&field) {
                    let offset = last.entry((bucket, partition)).or_insert(-1);
                    *offset = (next - 1).max(*offset);
                }
            }
        }
        Ok(last)
    }

    /// What was announced last before a position: how a reader that goes on there tells what is new.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_seen(&self, position: &TailPosition) -> Result<Seen, StoreError> {
        self.tail_before(Some(position)).await.map(|(_, seen)| seen)
    }

    async fn tail_before(&self, position: Option<&TailPosition>) -> Result<(TailPosition, Seen), StoreError> {
        let ranges = (0..BUCKETS).map(|bucket| {
            let last = position.map_or_else(|| "+".into(), |position| position.entries[bucket].to_string());
            let mut range = redis::cmd("XREVRANGE");
            range.arg(self.layout.tail(bucket)).arg(last).arg("-").arg("COUNT").arg(LOOK_BACK);
            range
        });
        let streams: Vec<Raw> = self.read.scatter(ranges).await?;
        let (mut end, mut seen) = (TailPosition::default(), Seen::default());
        for (bucket, raw) in streams.into_iter().enumerate() {
            let entries = entries(bucket, raw)?;
            entries.first().into_iter().for_each(|last| end.pass_all(last));
            seen.note(&entries);
        }
        seen.close_below();
        Ok((end, seen))
    }

    /// Whether the streams still hold everything behind a position.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_holds(&self, position: &TailPosition) -> Result<bool, StoreError> {
        let ranges = (0..BUCKETS).map(|bucket| {
            let mut range = redis::cmd("XRANGE");
            range.arg(self.layout.tail(bucket)).arg("-").arg("+").arg("COUNT").arg(1);
            range
        });
        let firsts: Vec<Raw> = self.read.scatter(ranges).await?;
        let mut cut = Vec::new();
        for (bucket, raw) in firsts.into_iter().enumerate() {
            let (first, at) = (entries(bucket, raw)?.pop(), position.entries[bucket]);
            match first {
                Some(first) if at >= first.id => {}
                // Nothing had been stored in this bucket then: fine, if the first entry ever is still there.
                Some(_) if at == EntryId::default() => cut.push(bucket),
                None if at == EntryId::default() => {}
                _ => return Ok(false),
            }
        }
        self.never_trimmed(&cut).await
    }

    async fn never_trimmed(&self, buckets: &[usize]) -> Result<bool, StoreError> {
        if buckets.is_empty() {
            return Ok(true);
        }
        let asked = buckets.iter().map(|bucket| {
            let mut info = redis::cmd("XINFO");
            info.arg("STREAM").arg(self.layout.tail(*bucket));
            info
        });
        let infos: Vec<HashMap<String, redis::Value>> = self.read.scatter(asked).await?;
        Ok(infos.iter().all(|info| info.get("entries-added") == info.get("length")))
    }

    /// The groups of buckets whose streams can be waited for together: all of one server, each by itself on a Cluster.
    #[must_use]
    pub fn tail_readers(&self) -> Vec<Range<usize>> {
        let size = BUCKETS / self.tail.len();
        (0..BUCKETS).step_by(size).map(|first| first..first + size).collect()
    }

    /// What the streams of one of [`Store::tail_readers`] hold behind a position, up to a hundred entries of each, in the
    /// order in which they were stored. Waits until there is something, at most for `wait`.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_next(
        &self,
        buckets: Range<usize>,
        position: &TailPosition,
        wait: Duration,
    ) -> Result<Vec<Entry>, StoreError> {
        let lane = &self.tail[buckets.start * self.tail.len() / BUCKETS];
        let streams: Option<Streams> = lane.command(&self.tail_command(buckets, position, Some(wait))).await?;
        self.entries_of(streams.into_iter().flatten())
    }

    /// What all streams hold behind a position, up to a hundred entries of each, in the order in which they were stored.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_after(&self, position: &TailPosition) -> Result<Vec<Entry>, StoreError> {
        let commands = self.tail_readers().into_iter().map(|buckets| self.tail_command(buckets, position, None));
        let streams: Vec<Option<Streams>> = self.read.scatter(commands).await?;
        self.entries_of(streams.into_iter().flatten().flatten())
    }

    fn tail_command(&self, buckets: Range<usize>, position: &TailPosition, wait: Option<Duration>) -> redis::Cmd {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(READ);
        if let Some(wait) = wait {
            command.arg("BLOCK").arg(super::millis(wait));
        }
        command.arg("STREAMS");
        for bucket in buckets.clone() {
            command.arg(self.layout.tail(bucket));
        }
        for bucket in buckets {
            command.arg(position.entries[bucket].to_string());
        }
        command
    }

    fn entries_of(&self, streams: impl Iterator<Item = (String, Raw)>) -> Result<Vec<Entry>, StoreError> {
        let mut found = Vec::new();
        for (key, raw) in streams {
            if let Some(bucket) = (0..BUCKETS).find(|bucket| self.layout.tail(*bucket) == key) {
                found.extend(entries(bucket, raw)?);
            }
        }
        found.sort_by_key(|entry| entry.id);
        Ok(found)
    }

    /// The JSON of these events and where each came from, in order; `None` of one that is not stored any more.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn announced(&self, records: &[&Announced]) -> Result<Vec<Option<(Bytes, Origin)>>, StoreError> {
        let ids: Vec<StoredId> = records.iter().map(|record| StoredId::of(&record.event_id)).collect();
        let ids: Vec<&StoredId> = ids.iter().collect();
        let bodies = if ids.is_empty() { Vec::new() } else { self.whole_bodies(&self.read, &ids).await? };
        Ok(bodies.into_iter().map(|body| Origin::split(body?)).collect())
    }
}

fn entries(bucket: usize, raw: Raw) -> Result<Vec<Entry>, StoreError> {
    let corrupt = || StoreError::Corrupt(format!("an entry of the tail of bucket {bucket} can't be read"));
    raw.into_iter().map(|(id, fields)| entry(bucket, &id, &fields).ok_or_else(corrupt)).collect()
}

fn entry(bucket: usize, id: &str, fields: &[Vec<u8>]) -> Option<Entry> {
    let [_, records] = fields else { return None };
    let (mut rest, mut records) = (records.as_slice(), Vec::new());
    while !rest.is_empty() {
        records.push(pull_record(&mut rest)?);
    }
    Some(Entry { bucket, id: EntryId::parse(id)?, records })
}

/// Appends a record to the field of an entry: partition, offset, length of the id, and the id as it is stored.
pub(super) fn push_record(records: &mut Vec<u8>, partition: i32, offset: i64, id: &StoredId) {
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
            let read = entry(3, "5-1", &[b"r".to_vec(), packed]).unwrap();
            let expected = records.into_iter().map(|(partition, offset, event_id)| Announced { partition, offset, event_id });
            prop_assert_eq!(read.records, expected.collect::<Vec<_>>());
            // Whatever is there instead: an answer, not a panic.
            drop(entry(3, "5-1", &[b"r".to_vec(), garbage]));
        }

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
        Entry { bucket, id: EntryId { millis, number: 3 }, records: (0..records).map(record).collect() }
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

    fn record(partition: i32, offset: i64) -> Announced {
        Announced { partition, offset, event_id: "e".into() }
    }

    #[test]
    fn what_is_announced_again_is_not_new_and_what_comes_late_is() {
        let mut seen = Seen::default();
        assert!(!seen.knows(0, &record(0, 5)));
        assert!(seen.is_new(0, &record(0, 5)) && seen.knows(0, &record(0, 5)));
        assert!(!seen.is_new(0, &record(0, 5)));
        assert!(seen.is_new(0, &record(0, 4)), "its batch was lost at first");
        assert!(!seen.is_new(0, &record(0, 4)));
        assert!(seen.is_new(1, &record(0, 5)) && seen.is_new(0, &record(1, 4)) && seen.is_new(0, &record(0, 6)));
    }

    #[test]
    fn what_was_announced_long_ago_is_known_without_being_remembered() {
        let mut seen = Seen::default();
        assert!((0..5_000).all(|n| seen.is_new(3, &record(0, n * 2))));
        assert!((0..5_000).all(|n| !seen.is_new(3, &record(0, n * 2))));
        assert!(seen.0[&(3, 0)].beyond.len() <= REMEMBERED);
        assert!(!seen.is_new(3, &record(0, 1)) && seen.is_new(3, &record(0, 9_997)));
        let mut resumed = Seen::default();
        resumed.is_new(3, &record(0, 50));
        resumed.close_below();
        assert!(resumed.knows(3, &record(0, 49)) && resumed.is_new(3, &record(0, 51)));
    }
}
