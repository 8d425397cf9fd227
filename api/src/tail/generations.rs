//! What was announced before, to whom.
//!
//! When Redis has lost something, it is stored and announced again. Readers who were there before have got it and are
//! spared it. Those who come after the loss may have read a list without it, so they are to get it: they are a generation
//! of their own, for which nothing was announced before the loss.

use common::store::{Announced, Entry, Seen};

/// Generations that are told apart. Each remembers some megabytes of records. Readers of earlier ones are told that they
/// stand behind a gap, and belong to the latest from then on: nobody remembers what they have got.
const MOST: usize = 4;

/// The generations of readers, each with its number: that of the first loss which it came after.
#[derive(Debug)]
pub(super) struct Generations {
    all: Vec<(u64, Seen)>,
    latest: u64,
    /// Whether anything was announced to the latest.
    used: bool,
}

impl Generations {
    /// One, to which so much was announced.
    pub(super) fn new(seen: Seen) -> Self {
        Self { all: vec![(0, seen)], latest: 0, used: true }
    }

    /// That of a reader who comes now.
    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// The oldest that is remembered.
    pub(super) fn oldest(&self) -> u64 {
        self.all.first().map_or(self.latest, |(oldest, _)| *oldest)
    }

    /// Begins another one, behind a loss.
    pub(super) fn begin(&mut self) {
        if !self.used {
            return;
        }
        self.latest += 1;
        self.all.push((self.latest, Seen::default()));
        self.used = false;
        if self.all.len() > MOST {
            self.all.remove(0);
        }
    }

    /// For each entry, before its records.
    pub(super) fn heed(&mut self, entry: &Entry) {
        self.all.iter_mut().for_each(|(_, seen)| seen.heed(entry));
    }

    /// Whether a record was announced to every generation before.
    pub(super) fn know(&self, entry: &Entry, record: &Announced) -> bool {
        self.all.iter().all(|(_, seen)| seen.knows(entry, record))
    }

    /// Takes note of a record. Gives the oldest generation to which it is announced for the first time, as it is to later
    /// ones; `None` when all know it.
    pub(super) fn announce(&mut self, entry: &Entry, record: &Announced) -> Option<u64> {
        self.used = true;
        let mut oldest = None;
        // Each of them takes note.
        for (generation, seen) in &mut self.all {
            if seen.is_new(entry, record) {
                oldest = oldest.or(Some(*generation));
            }
        }
        oldest
    }
}

#[cfg(test)]
mod tests {
    use common::store::EntryId;

    use super::*;

    fn entry() -> Entry {
        let (id, scope) = (EntryId::default(), "group|topic".into());
        Entry { bucket: 0, id, scope, since: 0, records: Vec::new(), ends: Vec::new() }
    }

    fn record(offset: i64) -> Announced {
        Announced { partition: 0, offset, event_id: offset.to_string() }
    }

    fn announce(generations: &mut Generations, offset: i64) -> Option<u64> {
        generations.announce(&entry(), &record(offset))
    }

    #[test]
    fn what_is_stored_again_is_new_to_who_came_after_the_loss_and_to_nobody_else() {
        let mut all = Generations::new(Seen::default());
        assert_eq!((announce(&mut all, 1), announce(&mut all, 1)), (Some(0), None));
        all.begin();
        assert!(!all.know(&entry(), &record(1)));
        assert_eq!((announce(&mut all, 1), announce(&mut all, 2)), (Some(1), Some(0)));
        assert!(all.know(&entry(), &record(1)));
        assert_eq!((announce(&mut all, 1), announce(&mut all, 2)), (None, None));
    }

    #[test]
    fn a_loss_that_is_noticed_twice_begins_one_generation() {
        let mut all = Generations::new(Seen::default());
        all.begin();
        all.begin();
        assert_eq!((all.latest(), all.all.len()), (1, 2));
        announce(&mut all, 1);
        all.begin();
        assert_eq!(all.latest(), 2);
    }

    #[test]
    fn of_many_generations_the_oldest_are_forgotten() {
        let mut all = Generations::new(Seen::default());
        assert_eq!(all.oldest(), 0);
        for nth in 0..10 {
            announce(&mut all, nth);
            all.begin();
        }
        assert_eq!((all.all.len(), all.oldest(), all.latest()), (MOST, 7, 10));
        assert_eq!((announce(&mut all, 8), announce(&mut all, 3)), (Some(9), Some(7)));
    }
}
