//! How far a redrive is, per partition of the dead-letter topic, so that the next one can go on there.
//!
//! It is kept as the commits of a consumer group that nobody joins. A place stays before the first letter that failed,
//! so that going on tries that one again; what was redriven after it is redriven twice, which is harmless.

use std::collections::{BTreeMap, BTreeSet};

/// The places to commit.
#[derive(Debug, Default)]
pub struct Progress {
    next: BTreeMap<i32, i64>,
    held: BTreeSet<i32>,
}

impl Progress {
    /// Before the first letter. Partitions that are at their end belong to it too: a run that begins anew takes back
    /// what an earlier one had reached.
    #[must_use]
    pub fn new(places: &[(i32, i64)]) -> Self {
        Self { next: places.iter().copied().collect(), held: BTreeSet::new() }
    }

    /// A letter is done with.
    pub fn pass(&mut self, partition: i32, offset: i64) {
        if !self.held.contains(&partition) {
            self.next.insert(partition, offset + 1);
        }
    }

    /// A letter failed.
    pub fn hold(&mut self, partition: i32) {
        self.held.insert(partition);
    }

    /// Partitions with the next offset of each.
    #[must_use]
    pub fn places(&self) -> Vec<(i32, i64)> {
        self.next.iter().map(|(partition, next)| (*partition, *next)).collect()
    }
}

/// The group that a redrive's progress is kept in, one for each set of filters: what a filter leaves out is not done.
#[must_use]
pub fn group(workers: &str, filter: &str) -> String {
    format!("{workers}-redrive{filter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_stays_before_the_first_failure_of_its_partition() {
        let mut progress = Progress::new(&[(0, 10), (1, 20), (2, 5)]);
        progress.pass(0, 12);
        progress.hold(0);
        progress.pass(0, 14);
        progress.pass(1, 20);
        assert_eq!(progress.places(), [(0, 13), (1, 21), (2, 5)]);
    }
}
