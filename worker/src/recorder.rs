//! A batch: what was read and is not yet on its way to Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::time::{Duration, Instant};

use common::store::StoredEvent;

use crate::commit::{NextOffset, Offset, Slot};
use crate::dead_letter::DeadLetter;
use crate::decode::Decoded;

/// Records of a batch that goes on its way as soon as there is a turn for it.
const ENOUGH: usize = 500;
/// Most records of a batch. It grows beyond what is enough only while all turns are taken, so when the worker is behind:
/// larger batches cost Redis less for each event, and hold up its other clients for longer.
const MOST_RECORDS: usize = 4_000;
/// Most bytes of a batch, give or take its last record.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// How long a batch waits for company while others are on their way: small ones cost Redis and this worker many times the
/// work per event.
const LINGER: Duration = Duration::from_millis(8);
/// The same while none are: then there is time.
const IDLE_LINGER: Duration = Duration::from_millis(1);

/// Records in the order they were read. Time comes in as an argument.
#[derive(Debug, Default)]
pub struct Pending {
    /// Those that are events.
    pub events: Vec<StoredEvent>,
    /// Those that can't be.
    pub letters: Vec<DeadLetter>,
    /// How far it goes in each partition.
    pub ends: BTreeMap<i32, (Slot, NextOffset)>,
    bytes: usize,
    since: Option<Instant>,
}

impl Pending {
    /// Adds a record; `end` is the offset behind it.
    pub fn add(&mut self, slot: Slot, end: NextOffset, record: Decoded, now: Instant) {
        match record {
            Decoded::Event(event) => {
                self.bytes += event.size();
                self.events.push(event);
            }
            Decoded::Poison(letter) => {
                self.bytes += letter.size();
                self.letters.push(letter);
            }
        }
        self.ends.insert(slot.partition, (slot, end));
        self.since.get_or_insert(now);
    }

    /// A partition was displaced or revoked: nothing of it goes on its way, whoever reads it next does all of it. An event
    /// that went on alone could overtake those before it, which may never have been stored.
    pub fn forget(&mut self, partition: i32) {
        self.ends.remove(&partition);
        self.events.retain(|event| event.partition() != partition);
        self.letters.retain(|letter| letter.partition() != partition);
        self.measure();
    }

    /// Takes everything of these partitions out, into a batch of its own.
    #[must_use]
    pub fn split_off(&mut self, partitions: &BTreeSet<i32>) -> Self {
        if partitions.is_empty() {
            return Self::default();
        }
        let (events, kept_events) =
            take(&mut self.events).into_iter().partition(|e| partitions.contains(&e.partition()));
        let (letters, kept_letters) =
            take(&mut self.letters).into_iter().partition(|l| partitions.contains(&l.partition()));
        let (ends, kept_ends) = take(&mut self.ends).into_iter().partition(|(p, _)| partitions.contains(p));
        let mut split = Self { events, letters, ends, bytes: 0, since: self.since };
        *self = Self { events: kept_events, letters: kept_letters, ends: kept_ends, bytes: 0, since: self.since };
        split.measure();
        self.measure();
        split
    }

    /// The partitions that have dead letters in it.
    #[must_use]
    pub fn lettered(&self) -> BTreeSet<i32> {
        self.letters.iter().map(DeadLetter::partition).collect()
    }

    /// A partition goes no further than the record at `offset`: this one has to be read again, and all behind it.
    pub fn cut(&mut self, partition: i32, offset: Offset) {
        if let Some((_, end)) = self.ends.get_mut(&partition) {
            *end = NextOffset(offset.0);
        }
        self.events.retain(|event| event.partition() != partition || event.offset() < offset.0);
        self.letters.retain(|letter| letter.partition() != partition || letter.offset() < offset);
        self.measure();
    }

    fn measure(&mut self) {
        let letters = self.letters.iter().map(DeadLetter::size);
        self.bytes = self.events.iter().map(StoredEvent::size).chain(letters).sum();
        if self.events.is_empty() && self.letters.is_empty() {
            self.since = None;
        }
    }

    /// Whether nothing is gained by waiting for further records.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.events.len() + self.letters.len() >= ENOUGH || self.bytes >= MOST_BYTES
    }

    /// Bytes of what is in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no further record belongs in it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.events.len() + self.letters.len() >= MOST_RECORDS || self.bytes >= MOST_BYTES
    }

    /// When it should go, also if it is not full; `None` while it is empty. `idle`: no other batch is on its way.
    #[must_use]
    pub fn due(&self, idle: bool) -> Option<Instant> {
        self.since.map(|since| since + if idle { IDLE_LINGER } else { LINGER })
    }
}

#[cfg(test)]
mod tests {
    use common::event::{EventTypes, Timestamp};
    use rdkafka::message::OwnedMessage;

    use super::*;
    use crate::decode::decode;

    fn record(value: &[u8], partition: i32, offset: i64) -> OwnedMessage {
        let time = rdkafka::Timestamp::NotAvailable;
        OwnedMessage::new(Some(value.to_vec()), None, "events".into(), time, partition, offset, None)
    }

    fn add(pending: &mut Pending, value: &[u8], partition: i32, offset: i64, now: Instant) {
        let decoded = decode(&record(value, partition, offset), &EventTypes::default(), &"w".into(), Timestamp::now());
        pending.add(Slot { partition, epoch: 1 }, NextOffset(offset + 1), decoded, now);
    }

    const GOOD: &[u8] = br#"{"eventId":"e","userId":"u","eventType":"LOGIN","timestamp":"2026-02-17T10:00:00Z"}"#;

    #[test]
    fn a_batch_is_due_a_moment_after_its_first_record() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        assert_eq!(pending.due(false), None);
        add(&mut pending, GOOD, 0, 5, now);
        add(&mut pending, GOOD, 0, 6, now + LINGER);
        assert_eq!(pending.due(false), Some(now + LINGER));
        assert_eq!(pending.due(true), Some(now + IDLE_LINGER), "nothing is gained by waiting");
        assert_eq!(pending.ends[&0], (Slot { partition: 0, epoch: 1 }, NextOffset(7)));
    }

    #[test]
    fn a_batch_is_full_by_number_or_by_size() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for offset in 0..MOST_RECORDS as i64 - 1 {
            assert_eq!((pending.is_enough(), pending.is_full()), (offset >= ENOUGH as i64, false), "{offset}");
            add(&mut pending, b"poison", 0, offset, now);
        }
        add(&mut pending, GOOD, 0, MOST_RECORDS as i64, now);
        assert!(pending.is_full());
        let mut large = Pending::default();
        add(&mut large, &vec![b' '; MOST_BYTES], 0, 0, now);
        assert!(large.is_enough() && large.is_full());
    }

    #[test]
    fn partitions_can_be_taken_out_of_a_batch() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        add(&mut pending, GOOD, 0, 1, now);
        add(&mut pending, b"poison", 1, 1, now);
        add(&mut pending, GOOD, 1, 2, now);
        assert_eq!(pending.lettered(), BTreeSet::from([1]));
        let aside = pending.split_off(&BTreeSet::from([1]));
        assert_eq!((pending.events.len(), pending.letters.len(), pending.ends.len()), (1, 0, 1));
        assert_eq!((aside.events.len(), aside.letters.len(), aside.ends.len()), (1, 1, 1));
        assert_eq!(aside.due(true), pending.due(true));
        assert_eq!(pending.split_off(&BTreeSet::from([0])).events.len(), 1);
        assert_eq!(pending.due(true), None);
    }

    #[test]
    fn a_partition_that_is_cut_keeps_what_comes_before_and_nothing_else() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for (value, partition, offset) in
            [(GOOD, 0, 1), (GOOD, 1, 1), (b"poison", 1, 2), (b"poison", 1, 3), (GOOD, 1, 4)]
        {
            add(&mut pending, value, partition, offset, now);
        }
        pending.cut(1, Offset(3));
        assert_eq!(pending.ends[&1].1, NextOffset(3));
        let events: Vec<_> = pending.events.iter().map(|event| (event.partition(), event.offset())).collect();
        assert_eq!(events, [(0, 1), (1, 1)], "an event does not overtake a dead letter");
        assert_eq!(pending.letters.iter().map(DeadLetter::offset).collect::<Vec<_>>(), [Offset(2)]);
    }

    #[test]
    fn nothing_of_a_forgotten_partition_is_left() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        add(&mut pending, &vec![b' '; MOST_BYTES], 0, 1, now);
        add(&mut pending, GOOD, 0, 2, now);
        add(&mut pending, b"poison", 1, 1, now);
        add(&mut pending, GOOD, 1, 2, now);
        pending.forget(0);
        assert_eq!(pending.events.iter().map(StoredEvent::partition).collect::<Vec<_>>(), [1]);
        assert_eq!(pending.letters.iter().map(DeadLetter::partition).collect::<Vec<_>>(), [1]);
        assert_eq!(pending.ends.keys().collect::<Vec<_>>(), [&1]);
        assert!(!pending.is_full());
        pending.forget(1);
        assert_eq!(pending.due(true), None);
    }
}
