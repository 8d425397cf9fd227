//! Offsets that had no record to read. Either the log had begun behind them by then: retention took their records before
//! they were read, and these are lost for good. Or they are *holes*: markers of transactions, aborted batches, records
//! that compaction has removed. Pure: the looks at the logs come in as an argument, so does time.
//!
//! A look that comes right after a gap may be older than it, and not know yet where the log begins now. So a gap that seems
//! to be a hole has a second look. A hole that falls off the topic between it being met and these looks counts as lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::commit::{NextOffset, Offset};

/// After so many looks, what is not lost is a hole.
const LOOKS: u8 = 2;
/// Gaps that wait for their looks. With more in so short a time they are marks.
const MOST: usize = 100_000;
/// Between two lines about holes.
const TELL_PERIOD: Duration = Duration::from_secs(60);

/// Offsets before a record, that were expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    partition: i32,
    from: NextOffset,
    to: Offset,
    looks: u8,
}

/// Records that nobody has read, and nobody can read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The partition.
    pub partition: i32,
    /// How many.
    pub count: usize,
    /// The first record behind them.
    pub before: Offset,
}

/// What gaps have turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Lost records, by gap.
    pub lost: Vec<Lost>,
    /// How many offsets were holes.
    pub holes: usize,
}

/// The gaps that were met. See the module.
#[derive(Debug, Default)]
pub struct Gaps {
    open: Vec<Gap>,
    untold: usize,
    told: Option<Instant>,
}

impl Gaps {
    /// The record at `to` came, and none of those that were expected before it.
    pub fn meet(&mut self, partition: i32, from: NextOffset, to: Offset) {
        let looks = if self.open.len() < MOST { 0 } else { LOOKS };
        self.open.push(Gap { partition, from, to, looks });
    }

    /// What the gaps have turned out to be, now that logs are known to begin at `starts`.
    pub fn judge(&mut self, starts: &BTreeMap<i32, NextOffset>) -> Judged {
        let mut judged = Judged::default();
        self.open.retain_mut(|gap| {
            let Gap { partition, from, to, looks } = gap;
            *looks += 1;
            let begins = starts.get(partition).map_or(from.0, |start| start.0.clamp(from.0, to.0));
            let is_over = begins > from.0 || *looks >= LOOKS;
            if is_over {
                judged.holes += count(begins, to.0);
                judged.lost.extend((begins > from.0).then(|| Lost {
                    partition: *partition,
                    count: count(from.0, begins),
                    before: *to,
                }));
            }
            !is_over
        });
        self.untold += judged.holes;
        judged
    }

    /// How many holes are to be told of now, if any: those since the last time.
    pub fn turn(&mut self, now: Instant) -> Option<usize> {
        let due = self.untold > 0 && self.told.is_none_or(|told| now.duration_since(told) >= TELL_PERIOD);
        due.then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.untold)
        })
    }
}

fn count(from: i64, to: i64) -> usize {
    usize::try_from(to - from).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(start: i64) -> BTreeMap<i32, NextOffset> {
        BTreeMap::from([(0, NextOffset(start))])
    }

    /// The gap from 10 up to 20, by looks that find these starts of the log: what is lost, and what are holes.
    fn judged(looks: &[i64]) -> (usize, usize) {
        let mut gaps = Gaps::default();
        gaps.meet(0, NextOffset(10), Offset(20));
        let all = looks.iter().map(|start| gaps.judge(&starts(*start)));
        all.fold((0, 0), |(lost, holes), judged| {
            (lost + judged.lost.iter().map(|lost| lost.count).sum::<usize>(), holes + judged.holes)
        })
    }

    #[test]
    fn what_lies_before_the_logs_start_is_lost_and_the_rest_are_holes() {
        assert_eq!(judged(&[20]), (10, 0));
        assert_eq!(judged(&[15]), (5, 5));
        assert_eq!(judged(&[25]), (10, 0));
        assert_eq!(judged(&[0, 10]), (0, 10));
    }

    #[test]
    fn a_look_that_is_older_than_the_gap_does_not_make_it_a_hole() {
        assert_eq!(judged(&[0]), (0, 0));
        assert_eq!(judged(&[0, 20]), (10, 0));
        assert_eq!(judged(&[0, 0, 20]), (0, 10), "judged once");
    }

    #[test]
    fn each_partition_has_its_own_start() {
        let mut gaps = Gaps::default();
        gaps.meet(1, NextOffset(10), Offset(20));
        assert_eq!(gaps.judge(&starts(20)), Judged::default());
        assert_eq!(gaps.judge(&starts(20)), Judged { lost: vec![], holes: 10 });
    }

    #[test]
    fn holes_are_told_of_once_a_minute_all_together() {
        let (mut gaps, now) = (Gaps::default(), Instant::now());
        assert_eq!(gaps.turn(now), None);
        let mut after = |seconds| {
            gaps.meet(0, NextOffset(10), Offset(11));
            gaps.judge(&starts(0));
            gaps.judge(&starts(0));
            gaps.turn(now + Duration::from_secs(seconds))
        };
        assert_eq!([after(0), after(1), after(59), after(60), after(61)], [Some(1), None, None, Some(3), None]);
    }
}
