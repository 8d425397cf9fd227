//! How far each assigned partition is behind: in offsets, in seconds, and which way it is going. Pure: time comes in as
//! an argument, so do the ends of the logs.
//!
//! What is not known is `None` and never zero. The age of the first record that is not stored is its own timestamp where
//! it has been read; where it has not, as while Redis is away, it is at least the time since the log's end was first
//! seen beyond it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use common::store::PartitionLag;

use crate::commit::{NextOffset, Offset};

/// What rates are taken over.
const RATE_WINDOW: Duration = Duration::from_secs(30);
/// How long the last known end of a log counts.
const END_LIFE: Duration = Duration::from_secs(15);
/// How long a partition with records to store may stand still.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ends that are remembered while none of their records is stored; then every second one is forgotten.
const MOST_ENDS: usize = 256;

/// What a partition was like at some time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    end: i64,
    stored: i64,
}

#[derive(Debug)]
struct Partition {
    /// Everything before it is stored.
    stored: Option<NextOffset>,
    /// Whether the client reads on from what is stored.
    placed: bool,
    /// Read and not yet stored: offsets and timestamps in milliseconds.
    read: VecDeque<(Offset, Option<i64>)>,
    /// The client has handed over everything there is before it; behind the last record may be control records.
    drained: Option<NextOffset>,
    /// The end of the log, and when it was last looked at.
    end: Option<(NextOffset, Instant)>,
    /// When the end was first seen there: of ends beyond what is stored, and the last one before.
    ends: VecDeque<(Instant, NextOffset)>,
    samples: VecDeque<Sample>,
    /// When it last moved, or had no reason to.
    moved: Instant,
}

/// The partitions of a worker.
#[derive(Debug, Default)]
pub struct Lags {
    partitions: BTreeMap<i32, Partition>,
}

impl Lags {
    /// A partition has been assigned.
    pub fn assign(&mut self, partition: i32, now: Instant) {
        self.partitions.insert(partition, Partition::new(now));
    }

    /// A partition has been taken away.
    pub fn revoke(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// A partition is read from `start` on.
    pub fn place(&mut self, partition: i32, start: NextOffset) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            (partition.stored, partition.drained, partition.placed) = (Some(start), None, true);
            partition.read.clear();
            partition.samples.clear();
        }
    }

    /// A partition waits for a new place: what the client hands over of it until then is dropped.
    pub fn displace(&mut self, partition: i32) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            (partition.drained, partition.placed) = (None, false);
        }
    }

    /// A record has been read; `timestamp` in milliseconds.
    pub fn read(&mut self, partition: i32, offset: Offset, timestamp: Option<i64>) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.read.push_back((offset, timestamp));
        }
    }

    /// Everything before `next` is stored.
    pub fn store(&mut self, partition: i32, next: NextOffset, now: Instant) {
        let Some(partition) = self.partitions.get_mut(&partition) else { return };
        while partition.read.front().is_some_and(|(offset, _)| offset.next() <= next) {
            partition.read.pop_front();
        }
        if partition.stored.is_none_or(|stored| stored < next) {
            (partition.stored, partition.moved) = (Some(next), now);
        }
    }

    /// The client has handed over all that there is of a partition before `next`.
    pub fn drained(&mut self, partition: i32, next: NextOffset) {
        if let Some(partition) = self.partitions.get_mut(&partition).filter(|partition| partition.placed) {
            partition.drained = Some(next);
        }
    }

    /// The ends of the logs, as just found.
    pub fn ends(&mut self, found: impl IntoIterator<Item = (i32, NextOffset)>, now: Instant) {
        for (partition, end) in found {
            if let Some(partition) = self.partitions.get_mut(&partition) {
                partition.see_end(end, now);
            }
        }
    }

    /// Time that does not count against these partitions: none can move while an engine is away, nor one that is held.
    pub fn excuse(&mut self, now: Instant, excused: impl Fn(i32) -> bool) {
        self.partitions
            .iter_mut()
            .filter(|(partition, _)| excused(**partition))
            .for_each(|(_, state)| state.moved = now);
    }

    /// How it is; `clock` in milliseconds since 1970.
    #[must_use]
    pub fn report(&self, now: Instant, clock: i64) -> Vec<PartitionLag> {
        let report = |(partition, state): (&i32, &Partition)| {
            let (arrival, drain) = state.rates(now).unzip();
            PartitionLag {
                partition: *partition,
                messages: state.lag(now),
                seconds: state.seconds(now, clock),
                arrival,
                drain,
            }
        };
        self.partitions.iter().map(report).collect()
    }

    /// The partitions that stand still although there is something to store: since when, and how much waits.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> Vec<(i32, Duration, i64)> {
        let stuck = |(partition, state): (&i32, &Partition)| {
            let (still, lag) = (now.duration_since(state.moved), state.lag(now)?);
            (lag > 0 && still >= PATIENCE).then_some((*partition, still, lag))
        };
        self.partitions.iter().filter_map(stuck).collect()
    }
}

impl Partition {
    fn new(now: Instant) -> Self {
        Self {
            stored: None,
            placed: false,
            read: VecDeque::new(),
            drained: None,
            end: None,
            ends: VecDeque::new(),
            samples: VecDeque::new(),
            moved: now,
        }
    }

    /// Everything before it is done: stored, or nothing that could be.
    fn done(&self) -> Option<NextOffset> {
        let stored = self.stored?;
        Some(if self.read.is_empty() { self.drained.map_or(stored, |drained| drained.max(stored)) } else { stored })
    }

    fn see_end(&mut self, end: NextOffset, now: Instant) {
        self.end = Some((end, now));
        if self.lag(now) == Some(0) {
            self.moved = now;
        }
        if self.ends.back().is_none_or(|(_, last)| *last != end) {
            self.ends.push_back((now, end));
        }
        let Some(done) = self.done() else { return };
        while self.ends.get(1).is_some_and(|(_, next)| *next <= done) {
            self.ends.pop_front();
        }
        if self.ends.len() > MOST_ENDS {
            let mut nth = 0;
            // The first two say how old the first record is.
            self.ends.retain(|_| {
                nth += 1;
                nth <= 2 || nth % 2 == 0
            });
        }
        self.samples.push_back(Sample { at: now, end: end.0, stored: done.0 });
        while self.samples.get(1).is_some_and(|next| now.duration_since(next.at) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    fn lag(&self, now: Instant) -> Option<i64> {
        let (end, _) = self.end.filter(|(_, at)| now.duration_since(*at) <= END_LIFE)?;
        let read = self.read.back().map_or(end, |(offset, _)| offset.next());
        Some((end.max(read).0 - self.done()?.0).max(0))
    }

    fn seconds(&self, now: Instant, clock: i64) -> Option<f64> {
        if self.lag(now)? == 0 {
            return Some(0.0);
        }
        if let Some((_, timestamp)) = self.read.front() {
            return timestamp.map(|timestamp| (clock - timestamp).max(0) as f64 / 1000.0);
        }
        let done = self.done()?;
        // The one before tells that the record had not been there yet; without it nobody knows for how long it has.
        let before = self.ends.front().is_some_and(|(_, end)| *end <= done);
        let first = self.ends.iter().find(|(_, end)| *end > done)?;
        before.then(|| now.duration_since(first.0).as_secs_f64())
    }

    /// Arrival and drain, in offsets a second.
    fn rates(&self, now: Instant) -> Option<(f64, f64)> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        let fresh = now.duration_since(last.at) <= END_LIFE;
        let rate = |from: i64, to: i64| (to - from).max(0) as f64 / seconds;
        (fresh && seconds >= 1.0).then(|| (rate(first.end, last.end), rate(first.stored, last.stored)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: i64 = 1_000_000;

    fn placed(now: Instant) -> Lags {
        let mut lags = Lags::default();
        lags.assign(0, now);
        lags.place(0, NextOffset(10));
        lags
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn one(lags: &Lags, now: Instant) -> PartitionLag {
        lags.report(now, CLOCK).remove(0)
    }

    #[test]
    fn lag_is_what_is_not_stored_and_its_age_that_of_the_first_such_record() {
        let now = Instant::now();
        let mut lags = placed(now);
        lags.ends([(0, NextOffset(13))], now);
        for (offset, age) in [(10, 5_000), (11, 4_000), (12, 3_000)] {
            lags.read(0, Offset(offset), Some(CLOCK - age));
        }
        assert_eq!((one(&lags, now).messages, one(&lags, now).seconds), (Some(3), Some(5.0)));
        lags.store(0, NextOffset(12), now);
        assert_eq!((one(&lags, now).messages, one(&lags, now).seconds), (Some(1), Some(3.0)));
        lags.store(0, NextOffset(13), now);
        assert_eq!((one(&lags, now).messages, one(&lags, now).seconds), (Some(0), Some(0.0)));
        lags.revoke(0);
        assert_eq!(lags.report(now, CLOCK), []);
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let now = Instant::now();
        let mut lags = Lags::default();
        lags.assign(0, now);
        let unknown = PartitionLag { partition: 0, ..PartitionLag::default() };
        assert_eq!(one(&lags, now), unknown);
        lags.ends([(0, NextOffset(13))], now);
        assert_eq!(one(&lags, now), unknown, "where it starts is not known yet");
        lags.place(0, NextOffset(10));
        assert_eq!(one(&lags, now).messages, Some(3));
        assert_eq!(one(&lags, now).seconds, None, "the record may be of last year");
        assert_eq!(one(&lags, now + seconds(16)), unknown, "the end was not seen for too long");
    }

    #[test]
    fn a_record_that_can_not_be_read_is_as_old_as_the_look_that_first_found_it() {
        let now = Instant::now();
        let mut lags = placed(now);
        lags.ends([(0, NextOffset(10))], now);
        for second in 3..600 {
            lags.ends([(0, NextOffset(10 + second as i64 * 100))], now + seconds(second));
        }
        assert_eq!(one(&lags, now + seconds(600)).seconds, Some(597.0));
    }

    #[test]
    fn control_records_at_the_end_are_no_lag() {
        let now = Instant::now();
        let mut lags = placed(now);
        lags.ends([(0, NextOffset(12))], now);
        lags.read(0, Offset(10), Some(CLOCK));
        lags.drained(0, NextOffset(12));
        assert_eq!(one(&lags, now).messages, Some(2), "the record before them is not stored");
        lags.store(0, NextOffset(11), now);
        assert_eq!(one(&lags, now).messages, Some(0));
        lags.displace(0);
        lags.drained(0, NextOffset(12));
        assert_eq!(one(&lags, now).messages, Some(1), "nothing can be said of it before it has its place");
    }

    #[test]
    fn rates_are_those_of_the_last_half_minute() {
        let now = Instant::now();
        let mut lags = placed(now);
        for second in 0..=60 {
            lags.store(0, NextOffset(10 + i64::min(second, 30) * 100), now + seconds(second as u64));
            lags.ends([(0, NextOffset(10 + second * 200))], now + seconds(second as u64));
        }
        let report = one(&lags, now + seconds(60));
        assert_eq!((report.arrival, report.drain), (Some(200.0), Some(0.0)));
        lags.place(0, NextOffset(10));
        assert_eq!(one(&lags, now + seconds(60)).drain, None);
    }

    #[test]
    fn standing_still_with_work_to_do_is_stuck_and_idling_or_an_outage_is_not() {
        let now = Instant::now();
        let mut lags = placed(now);
        let at = |second| now + seconds(second);
        lags.ends([(0, NextOffset(10))], at(100));
        assert_eq!(lags.stuck(at(100)), [], "idle");
        lags.ends([(0, NextOffset(15))], at(120));
        assert_eq!(lags.stuck(at(129)), []);
        assert_eq!(lags.stuck(at(130)), [(0, seconds(30), 5)]);
        lags.excuse(at(130), |partition| partition == 1);
        assert_eq!(lags.stuck(at(130)), [(0, seconds(30), 5)], "another was excused");
        lags.excuse(at(130), |_| true);
        lags.ends([(0, NextOffset(15))], at(159));
        assert_eq!(lags.stuck(at(159)), [], "the store was away");
        lags.place(0, NextOffset(10));
        assert_eq!(lags.stuck(at(160)), [(0, seconds(30), 5)], "placing it anew is no progress");
        lags.store(0, NextOffset(11), at(160));
        assert_eq!(lags.stuck(at(161)), []);
    }
}
