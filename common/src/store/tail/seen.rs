//! What is new of what is announced.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::entry::{Announced, Entry};

/// Offsets that are remembered one by one, of all buckets and partitions together: some 4 MB.
const TOGETHER: usize = 128 * 1024;
/// The same of one bucket and partition. Batches under way together have about as many of all partitions.
const MOST: usize = 4096;
const LEAST: usize = 64;

/// What was announced of each bucket and partition, by group and topic: another group or another topic is another matter.
/// Redelivery, and the refill of a store that has lost something, announce it again. A topic that was deleted and made anew
/// announces other records of the same offsets: an entry says where its logs end, and who has seen more of them has seen
/// others. It also says where a log may be another one although it is as long; then only what is remembered with its id
/// is known.
///
/// The highest offset alone would not do: of batches under way together an early one may be lost, with a Redis that is
/// emptied for example, and come again behind a later one.
#[derive(Debug, Clone, Default)]
pub struct Seen(HashMap<Place, Offsets>);

/// A scope, a bucket and a partition.
pub(super) type Place = (Arc<str>, usize, i32);

/// What was announced of one place.
#[derive(Debug, Clone)]
struct Offsets {
    /// Everything up to this one.
    floor: i64,
    /// And these, [`MOST`] at most, fewer where there are many places, each with a digest of its event's id.
    beyond: BTreeMap<i64, u32>,
    /// Whether this is everything since the log began, so that nothing else is to be taken for announced.
    whole: bool,
}

impl Default for Offsets {
    fn default() -> Self {
        Self { floor: -1, beyond: BTreeMap::new(), whole: false }
    }
}

impl Offsets {
    fn raise(&mut self, floor: i64) {
        if floor > self.floor {
            self.floor = floor;
            self.beyond = self.beyond.split_off(&(floor + 1));
        }
    }

    fn lowest(&self) -> Option<i64> {
        self.beyond.first_key_value().map(|(offset, _)| *offset)
    }

    fn highest(&self) -> i64 {
        self.beyond.last_key_value().map_or(self.floor, |(offset, _)| *offset)
    }

    fn knows(&self, record: &Announced) -> bool {
        record.offset <= self.floor || self.beyond.get(&record.offset) == Some(&digest(record))
    }
}

impl Seen {
    /// Whether a record of an entry is announced for the first time; not any more afterwards.
    pub fn is_new(&mut self, entry: &Entry, record: &Announced) -> bool {
        let most = (TOGETHER / self.0.len().max(1)).clamp(LEAST, MOST);
        let offsets = self.0.entry(place(entry, record.partition)).or_default();
        let new = !offsets.knows(record);
        if new {
            offsets.beyond.insert(record.offset, digest(record));
        }
        while offsets.beyond.len() > most
            && let Some((lowest, _)) = offsets.beyond.pop_first()
        {
            offsets.floor = offsets.floor.max(lowest);
        }
        new
    }

    /// Whether a record of an entry was announced before.
    #[must_use]
    pub fn knows(&self, entry: &Entry, record: &Announced) -> bool {
        self.0.get(&place(entry, record.partition)).is_some_and(|offsets| offsets.knows(record))
    }

    /// Forgets what may have been announced of other logs than those that an entry says the ends of. For each entry,
    /// before its records, and once: a stream that is read again says it again, of the same log.
    pub fn heed(&mut self, entry: &Entry) {
        for log in &entry.ends {
            let offsets = self.0.entry(place(entry, log.partition)).or_default();
            let highest = offsets.highest();
            if log.anew || highest < 0 || highest >= log.end {
                // What lies beyond the end is of another log for sure, and of the rest the ids tell.
                drop(offsets.beyond.split_off(&log.end));
                (offsets.floor, offsets.whole) = (-1, true);
            }
        }
    }

    /// Takes note of whole entries, in the order in which they were stored.
    pub fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.heed(entry);
            for record in &entry.records {
                self.is_new(entry, record);
            }
        }
    }

    /// Takes everything up to an offset of a place for announced.
    pub(super) fn raise(&mut self, place: Place, offset: i64) {
        let offsets = self.0.entry(place).or_default();
        if !offsets.whole {
            offsets.raise(offset);
        }
    }

    /// Takes everything before what is known for announced.
    pub(super) fn close_below(&mut self) {
        for offsets in self.0.values_mut().filter(|offsets| !offsets.whole) {
            offsets.lowest().into_iter().for_each(|lowest| offsets.raise(lowest));
        }
    }
}

fn place(entry: &Entry, partition: i32) -> Place {
    (Arc::clone(&entry.scope), entry.bucket, partition)
}

/// Tells one record of an offset from another log's.
fn digest(record: &Announced) -> u32 {
    xxh3_64(record.event_id.as_bytes()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{EntryId, LogEnd};

    fn record(partition: i32, offset: i64) -> Announced {
        Announced { partition, offset, event_id: "e".into() }
    }

    /// What another log has at the same place.
    fn other(offset: i64) -> Announced {
        Announced { event_id: "other".into(), ..record(0, offset) }
    }

    fn of(scope: &str, bucket: usize) -> Entry {
        Entry { bucket, id: EntryId::default(), scope: scope.into(), since: 0, records: Vec::new(), ends: Vec::new() }
    }

    /// Says that the log of partition 0 ended there when it was to be read from its beginning.
    fn begun(at: u64, bucket: usize, end: i64) -> Entry {
        Entry { id: EntryId::new(at, 0), ends: vec![LogEnd { partition: 0, end, anew: false }], ..of("t", bucket) }
    }

    #[test]
    fn what_is_announced_again_is_not_new_and_what_comes_late_is() {
        let mut seen = Seen::default();
        assert!(!seen.knows(&of("t", 0), &record(0, 5)));
        assert!(seen.is_new(&of("t", 0), &record(0, 5)) && seen.knows(&of("t", 0), &record(0, 5)));
        assert!(!seen.is_new(&of("t", 0), &record(0, 5)));
        assert!(seen.is_new(&of("t", 0), &record(0, 4)), "its batch was lost at first");
        assert!(!seen.is_new(&of("t", 0), &record(0, 4)));
        assert!(
            seen.is_new(&of("t", 1), &record(0, 5))
                && seen.is_new(&of("t", 0), &record(1, 4))
                && seen.is_new(&of("t", 0), &record(0, 6))
        );
    }

    #[test]
    fn what_was_announced_long_ago_is_known_without_being_remembered() {
        let mut seen = Seen::default();
        assert!((0..5_000).all(|n| seen.is_new(&of("t", 3), &record(0, n * 2))));
        assert!((0..5_000).all(|n| !seen.is_new(&of("t", 3), &record(0, n * 2))));
        assert!(seen.0[&("t".into(), 3, 0)].beyond.len() <= MOST);
        assert!(!seen.is_new(&of("t", 3), &record(0, 1)) && seen.is_new(&of("t", 3), &record(0, 9_997)));
        (0..1_000).for_each(|bucket| _ = seen.is_new(&of("t", bucket), &record(7, 0)));
        (10_000..20_000).for_each(|n| assert!(seen.is_new(&of("t", 3), &record(0, n))));
        assert!(seen.0[&("t".into(), 3, 0)].beyond.len() <= TOGETHER / 1_000, "of many places less is remembered");
        let mut resumed = Seen::default();
        resumed.is_new(&of("t", 3), &record(0, 50));
        resumed.close_below();
        assert!(resumed.knows(&of("t", 3), &record(0, 49)) && resumed.is_new(&of("t", 3), &record(0, 51)));
    }

    #[test]
    fn each_scope_has_offsets_of_its_own() {
        let mut seen = Seen::default();
        assert!(seen.is_new(&of("old", 0), &record(0, 1_000_000)));
        seen.raise(("old".into(), 0, 0), 1_000_000);
        assert!(seen.is_new(&of("new", 0), &record(0, 3)) && !seen.is_new(&of("old", 0), &record(0, 3)));
    }

    #[test]
    fn what_was_announced_beyond_the_end_of_a_log_was_of_another_one() {
        let mut seen = Seen::default();
        for offset in 0..30 {
            seen.is_new(&of("t", 0), &record(0, offset));
            seen.is_new(&of("t", 1), &record(0, offset));
        }
        // A store that has lost something is filled again from the same log.
        seen.heed(&begun(1, 0, 30));
        assert!(seen.knows(&of("t", 0), &record(0, 4)));
        seen.heed(&begun(2, 0, 5));
        assert!(seen.is_new(&of("t", 0), &other(4)) && seen.knows(&of("t", 1), &record(0, 4)));
        assert!(!seen.is_new(&of("t", 0), &other(4)));
        assert!(seen.is_new(&of("t", 0), &record(0, 5)), "beyond the end");
    }

    #[test]
    fn of_a_log_that_may_be_another_one_only_what_is_remembered_with_its_id_is_known() {
        let mut seen = Seen::default();
        seen.raise(("t".into(), 0, 0), 9);
        (10..20).for_each(|offset| _ = seen.is_new(&of("t", 0), &record(0, offset)));
        let anew = Entry { ends: vec![LogEnd { partition: 0, end: 30, anew: true }], ..begun(1, 0, 30) };
        seen.heed(&anew);
        assert!(seen.is_new(&of("t", 0), &record(0, 3)) && seen.is_new(&of("t", 0), &other(12)));
        assert!(!seen.is_new(&of("t", 0), &record(0, 13)), "the same log after all");
    }

    #[test]
    fn since_a_log_began_nothing_is_announced_but_what_was_seen() {
        let mut seen = Seen::default();
        seen.note(&[Entry { records: vec![record(0, 20)], ..of("t", 0) }, begun(2, 0, 5)]);
        seen.note(&[Entry { records: vec![record(0, 3)], ..of("t", 0) }]);
        seen.close_below();
        // A position that was read before the log began.
        seen.raise(("t".into(), 0, 0), 20);
        assert!(seen.knows(&of("t", 0), &record(0, 3)) && seen.is_new(&of("t", 0), &record(0, 2)));
    }
}
