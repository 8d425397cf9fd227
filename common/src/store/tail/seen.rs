//! What is new of what is announced.

use std::collections::{BTreeSet, HashMap};

use super::entry::{Announced, Entry};

/// Offsets of one bucket and partition that are remembered one by one: more than batches under way together have.
const REMEMBERED: usize = 1024;

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

    /// Takes everything up to an offset of a bucket and partition for announced.
    pub(super) fn raise(&mut self, place: (usize, i32), offset: i64) {
        self.0.entry(place).or_default().raise(offset);
    }

    /// Takes everything before what is known for announced.
    pub(super) fn close_below(&mut self) {
        for offsets in self.0.values_mut() {
            let lowest = offsets.beyond.first().copied();
            lowest.into_iter().for_each(|lowest| offsets.raise(lowest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
