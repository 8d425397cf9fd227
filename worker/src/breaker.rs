//! The breaker: keeps a bad deployment from shovelling good traffic into the dead-letter topic.
//!
//! Per partition. When too large a share of what is read can't be an event, the partition is *held*: it is read no
//! further, nothing of it is published. From time to time a *probe* classifies the next window without publishing; if
//! that looks well, reading goes on. After the longest hold dead-lettering goes on, slowly and with an alarm, so that
//! nothing needs a hand for ever. Pure: time comes in as an argument.
//!
//! What is read again is not counted again, and what was counted stays: however often a partition is displaced or taken away
//! and given back, a flood of poison is noticed. A worker that is told by [`Breakers::learn`] that others held a partition
//! holds it on, so that neither a rebalance nor a crash starts anew what may be dead-lettered before it is held. Only what
//! was counted of a partition that was not held yet begins from nothing on a worker that has not had it before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::commit::{NextOffset, Offset};

/// How long a probe waits for its window to fill, as a partition may have fewer records; and how long none of what is read
/// may be poison until dead-lettering beyond the longest hold ends.
const PROBE_TIME: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// When to hold a partition, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BreakerSettings {
    /// Records that are looked back on.
    pub window: usize,
    /// Poison among them, in percent, from which on the partition is held.
    pub percent: usize,
    /// So many at least, so that a few don't stop a quiet partition.
    pub at_least: usize,
    /// Poison in a row that holds in any case.
    pub in_a_row: usize,
    /// Between probes.
    pub probe_period: Duration,
    /// After this, dead-lettering goes on.
    pub longest_hold: Duration,
    /// Dead letters a second then.
    pub forced_rate: usize,
}

/// What the workers that had a partition before did with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Nobody could say it.
    Unknown,
    /// They read it, or nobody had it.
    Read,
    /// They have held it for so long.
    Held(Duration),
}

/// What to do with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Go on with it.
    Pass,
    /// Go on with it, then pause the partition until [`Breakers::due`] names it.
    PassThenPause,
    /// It was only looked at.
    Probed,
    /// Displace the partition: it is held, or its probe is over.
    Displace,
}

#[derive(Debug)]
enum Mode {
    /// Reading. The next `grace` records were probed and are let pass.
    Closed {
        grace: usize,
    },
    Held {
        since: Instant,
        probe_at: Instant,
    },
    Probing {
        since: Instant,
        /// `None` until the partition is read: to place it may take long.
        until: Option<Instant>,
        seen: usize,
        poison: usize,
    },
    /// Beyond the longest hold: so many dead letters are left in the second that `began`.
    Forced {
        since: Instant,
        began: Instant,
        left: usize,
        paused: bool,
        /// Since when it is read and none is poison; `None` while it has no place.
        well: Option<Instant>,
    },
}

#[derive(Debug)]
struct Breaker {
    mode: Mode,
    /// Everything before it was counted.
    counted: Option<NextOffset>,
    recent: VecDeque<bool>,
    poison: usize,
    in_a_row: usize,
}

/// The breakers of all partitions.
#[derive(Debug)]
pub struct Breakers {
    settings: BreakerSettings,
    partitions: BTreeMap<i32, Breaker>,
    /// Those of partitions that others have, since when, for the case that they come back.
    away: BTreeMap<i32, (Breaker, Instant)>,
    /// Assigned, and it is not known yet whether others held them.
    unheard: BTreeSet<i32>,
}

impl Breakers {
    /// All closed.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, partitions: BTreeMap::new(), away: BTreeMap::new(), unheard: BTreeSet::new() }
    }

    /// A partition has been taken away.
    pub fn revoke(&mut self, partition: i32, now: Instant) {
        self.unheard.remove(&partition);
        if let Some(breaker) = self.partitions.remove(&partition) {
            self.away.insert(partition, (breaker, now));
        }
    }

    /// A partition has been assigned. If it was held when it was taken away, it still is, and is probed at once, since others
    /// have had it.
    pub fn assign(&mut self, partition: i32, now: Instant) {
        self.unheard.insert(partition);
        if let Some((mut breaker, left)) = self.away.remove(&partition) {
            breaker.come_back(left, now);
            self.partitions.insert(partition, breaker);
        }
    }

    /// What others did with a partition; only the first word after an assignment counts. Says whether the partition has come
    /// to be held by it, and so must not be read from a place that it was given before: it is probed at once, or goes on
    /// slowly where its longest hold is over. Of two holds the longer one counts.
    pub fn learn(&mut self, partition: i32, others: Others, now: Instant) -> bool {
        let settings = self.settings;
        if others == Others::Unknown {
            return false;
        }
        let first = self.unheard.remove(&partition);
        let Others::Held(held) = others else { return false };
        if !first {
            return false;
        }
        let begun = now.checked_sub(held.min(settings.longest_hold)).unwrap_or(now);
        let breaker = self.partitions.entry(partition).or_insert_with(|| Breaker::new(Mode::Closed { grace: 0 }));
        match &mut breaker.mode {
            Mode::Closed { .. } => {
                *breaker = Breaker::new(Mode::Held { since: begun, probe_at: now });
                true
            }
            Mode::Held { since, .. } | Mode::Probing { since, .. } | Mode::Forced { since, .. } => {
                *since = begun.min(*since);
                false
            }
        }
    }

    /// The partitions that are anything but simply read, and for how long they have been: what others need for
    /// [`Breakers::learn`].
    #[must_use]
    pub fn held(&self, now: Instant) -> Vec<(i32, Duration)> {
        let since = |(partition, breaker): (&i32, &Breaker)| match breaker.mode {
            Mode::Closed { .. } => None,
            Mode::Held { since, .. } | Mode::Probing { since, .. } | Mode::Forced { since, .. } => {
                Some((*partition, now.duration_since(since)))
            }
        };
        self.partitions.iter().filter_map(since).collect()
    }

    /// A partition is read again from an earlier place.
    pub fn rewind(&mut self, partition: i32) {
        if let Some(breaker) = self.partitions.get_mut(&partition) {
            breaker.rewind();
        }
    }

    /// A record was classified.
    pub fn observe(&mut self, partition: i32, offset: Offset, poison: bool, now: Instant) -> Reaction {
        let settings = self.settings;
        let breaker = self.partitions.entry(partition).or_insert_with(|| Breaker::new(Mode::Closed { grace: 0 }));
        let again = !breaker.count(offset, poison, &settings);
        let (trips, recovered) = (breaker.trips(&settings), breaker.recovered(&settings));
        match &mut breaker.mode {
            Mode::Closed { .. } if again => Reaction::Pass,
            Mode::Closed { grace } if *grace > 0 => {
                *grace -= 1;
                Reaction::Pass
            }
            Mode::Closed { .. } if trips => {
                breaker.hold(now, now, &settings);
                Reaction::Displace
            }
            Mode::Closed { .. } => Reaction::Pass,
            Mode::Held { .. } => Reaction::Displace,
            Mode::Probing { seen, poison: bad, .. } => {
                *seen += 1;
                *bad += usize::from(poison);
                if *seen < settings.window {
                    return Reaction::Probed;
                }
                breaker.conclude(now, &settings);
                Reaction::Displace
            }
            Mode::Forced { left, paused, well, .. } if poison => {
                *well = Some(now);
                *left = left.saturating_sub(1);
                *paused = *left == 0;
                if *paused { Reaction::PassThenPause } else { Reaction::Pass }
            }
            Mode::Forced { .. } if recovered => {
                breaker.mode = Mode::Closed { grace: 0 };
                Reaction::Pass
            }
            Mode::Forced { .. } => Reaction::Pass,
        }
    }

    /// Whether a partition may be placed now: to be read, or to be probed.
    pub fn may_place(&mut self, partition: i32, now: Instant) -> bool {
        let settings = self.settings;
        let Some(breaker) = self.partitions.get_mut(&partition) else { return true };
        if let Mode::Held { since, probe_at } = breaker.mode {
            if now.duration_since(since) >= settings.longest_hold {
                let left = settings.forced_rate;
                breaker.mode = Mode::Forced { since, began: now, left, paused: false, well: None };
            } else if now >= probe_at {
                breaker.mode = Mode::Probing { since, until: None, seen: 0, poison: 0 };
            } else {
                return false;
            }
        }
        true
    }

    /// A partition is read from now on. Its log ended at `end` just before.
    pub fn resumed(&mut self, partition: i32, end: NextOffset, now: Instant) {
        let Some(breaker) = self.partitions.get_mut(&partition) else { return };
        if breaker.counted.is_some_and(|counted| counted > end) {
            // The log has gone back: what comes is not what was counted.
            breaker.counted = None;
        }
        match &mut breaker.mode {
            Mode::Probing { until, .. } => *until = Some(now + PROBE_TIME),
            Mode::Forced { well, .. } => *well = Some(now),
            _ => {}
        }
    }

    /// What time alone brings about: partitions to resume, and partitions to displace because their probe is over.
    pub fn due(&mut self, now: Instant) -> (Vec<i32>, Vec<i32>) {
        let (mut resume, mut displace) = (Vec::new(), Vec::new());
        let settings = self.settings;
        for (partition, breaker) in &mut self.partitions {
            match &mut breaker.mode {
                Mode::Forced { began, left, paused, .. } if now.duration_since(*began) >= SECOND => {
                    (*began, *left) = (now, settings.forced_rate);
                    if std::mem::take(paused) {
                        resume.push(*partition);
                    }
                }
                Mode::Probing { until: Some(until), .. } if now >= *until => {
                    breaker.conclude(now, &settings);
                    displace.push(*partition);
                }
                _ => {}
            }
            if matches!(breaker.mode, Mode::Forced { well: Some(since), .. } if now.duration_since(since) >= PROBE_TIME)
            {
                *breaker = Breaker::new(Mode::Closed { grace: 0 });
            }
        }
        (resume, displace)
    }

    /// Whether a partition is anything but simply read.
    #[must_use]
    pub fn is_open(&self, partition: i32) -> bool {
        self.partitions.get(&partition).is_some_and(|breaker| !matches!(breaker.mode, Mode::Closed { .. }))
    }

    /// A sentence for each partition that is not simply read.
    #[must_use]
    pub fn reasons(&self, now: Instant) -> Vec<String> {
        let BreakerSettings { window, percent, in_a_row, longest_hold, forced_rate, .. } = self.settings;
        let sentence = |(partition, breaker): (&i32, &Breaker)| match breaker.mode {
            Mode::Closed { .. } => None,
            Mode::Held { since, .. } | Mode::Probing { since, .. } => Some(format!(
                "partition {partition} is held for {} s: {percent} % of its last {window} records, or {in_a_row} in a row, can't be events; \
                 deploy workers that know them, or wait: after {} they are dead-lettered",
                now.duration_since(since).as_secs(),
                humantime::format_duration(longest_hold)
            )),
            Mode::Forced { .. } => Some(format!(
                "partition {partition} is dead-lettered at up to {forced_rate} a second: it was held for the longest time and is no better"
            )),
        };
        self.partitions.iter().filter_map(sentence).collect()
    }
}

impl Breaker {
    fn new(mode: Mode) -> Self {
        Self { mode, counted: None, recent: VecDeque::new(), poison: 0, in_a_row: 0 }
    }

    fn rewind(&mut self) {
        match &mut self.mode {
            Mode::Probing { until, seen, poison, .. } => (*until, *seen, *poison) = (None, 0, 0),
            // It is read on when it has a place again, and not before.
            Mode::Forced { well, paused, .. } => (*well, *paused) = (None, false),
            _ => {}
        }
    }

    /// The time away is no time of holding. A probe begins anew, as does a second beyond the longest hold.
    fn come_back(&mut self, left: Instant, now: Instant) {
        self.rewind();
        match &mut self.mode {
            Mode::Held { since, probe_at } => (*since, *probe_at) = (*since + now.duration_since(left), now),
            Mode::Probing { since, .. } => *since += now.duration_since(left),
            Mode::Forced { since, .. } => *since += now.duration_since(left),
            Mode::Closed { .. } => {}
        }
    }

    /// Says whether it is the first time.
    fn count(&mut self, offset: Offset, poison: bool, settings: &BreakerSettings) -> bool {
        if self.counted.is_some_and(|counted| offset.next() <= counted) {
            return false;
        }
        self.counted = Some(offset.next());
        self.recent.push_back(poison);
        self.poison += usize::from(poison);
        if self.recent.len() > settings.window {
            self.poison -= usize::from(self.recent.pop_front() == Some(true));
        }
        self.in_a_row = if poison { self.in_a_row + 1 } else { 0 };
        true
    }

    fn trips(&self, settings: &BreakerSettings) -> bool {
        let many = self.poison >= settings.at_least && self.poison * 100 >= self.recent.len() * settings.percent;
        many || self.in_a_row >= settings.in_a_row
    }

    fn recovered(&self, settings: &BreakerSettings) -> bool {
        self.recent.len() >= settings.window && !self.trips(settings)
    }

    fn hold(&mut self, since: Instant, now: Instant, settings: &BreakerSettings) {
        *self = Self::new(Mode::Held { since, probe_at: now + settings.probe_period });
    }

    /// The probe is over: read on, or hold on.
    fn conclude(&mut self, now: Instant, settings: &BreakerSettings) {
        let Mode::Probing { since, seen, poison, .. } = self.mode else { return };
        if seen > 0 && poison * 100 < seen * settings.percent {
            *self = Self::new(Mode::Closed { grace: seen });
        } else {
            self.hold(since, now, settings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings {
        window: 1000,
        percent: 50,
        at_least: 100,
        in_a_row: 500,
        probe_period: Duration::from_secs(10),
        longest_hold: Duration::from_secs(300),
        forced_rate: 10,
    };

    /// The end of a log that has not gone back.
    const END: NextOffset = NextOffset(i64::MAX);

    /// Feeds the records that come next until a reaction other than `Pass`; gives it with the number of records it took.
    fn feed(breakers: &mut Breakers, records: impl IntoIterator<Item = bool>, now: Instant) -> (usize, Reaction) {
        let counted = breakers.partitions.get(&0).and_then(|breaker| breaker.counted);
        feed_from(breakers, counted.map_or(0, |counted| counted.0), records, now)
    }

    fn feed_from(
        breakers: &mut Breakers,
        from: i64,
        records: impl IntoIterator<Item = bool>,
        now: Instant,
    ) -> (usize, Reaction) {
        let mut taken = 0;
        for (offset, poison) in (from..).zip(records) {
            taken += 1;
            let reaction = breakers.observe(0, Offset(offset), poison, now);
            if !matches!(reaction, Reaction::Pass | Reaction::Probed) {
                return (taken, reaction);
            }
        }
        (taken, Reaction::Pass)
    }

    fn held() -> (Breakers, Instant) {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        assert_eq!(feed(&mut breakers, [true; 200], now), (100, Reaction::Displace));
        (breakers, now)
    }

    #[test]
    fn a_few_bad_records_do_not_stop_a_quiet_partition() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        assert_eq!(feed(&mut breakers, [true; 99], now), (99, Reaction::Pass));
        assert!(breakers.reasons(now).is_empty());
    }

    #[test]
    fn half_of_the_last_thousand_holds_and_less_does_not() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        let third = (0..10_000).map(|n| n % 3 == 0);
        assert_eq!(feed(&mut breakers, third, now), (10_000, Reaction::Pass));
        let (_, reaction) = feed(&mut breakers, (0..10_000).map(|n| n % 3 != 0), now);
        assert_eq!(reaction, Reaction::Displace);
        assert!(breakers.reasons(now)[0].starts_with("partition 0 is held"));
    }

    #[test]
    fn five_hundred_in_a_row_hold_also_where_the_share_is_small() {
        let (mut breakers, now) = (Breakers::new(BreakerSettings { percent: 100, ..SETTINGS }), Instant::now());
        feed(&mut breakers, [false; 1000], now);
        assert_eq!(feed(&mut breakers, [true; 600], now), (500, Reaction::Displace));
    }

    #[test]
    fn only_the_partition_itself_is_held() {
        let (mut breakers, now) = held();
        assert!(!breakers.may_place(0, now));
        assert!(breakers.may_place(1, now));
        assert_eq!(breakers.observe(1, Offset(0), true, now), Reaction::Pass);
    }

    #[test]
    fn a_probe_that_looks_well_lets_the_same_records_pass() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.probe_period;
        assert!(breakers.may_place(0, later));
        // 150 bad ones, then good ones: a burst, no bad deployment.
        let burst = || (0..1000).map(|n| n < 150);
        assert_eq!(feed(&mut breakers, burst(), later), (1000, Reaction::Displace));
        assert!(breakers.may_place(0, later));
        assert_eq!(feed(&mut breakers, burst(), later), (1000, Reaction::Pass));
        assert!(breakers.reasons(later).is_empty());
    }

    #[test]
    fn a_probe_that_looks_bad_holds_on_until_the_next() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.probe_period;
        assert!(breakers.may_place(0, later));
        assert_eq!(feed(&mut breakers, [true; 1000], later), (1000, Reaction::Displace));
        assert!(!breakers.may_place(0, later));
        assert!(breakers.may_place(0, later + SETTINGS.probe_period));
    }

    #[test]
    fn a_probe_that_finds_no_more_records_ends_by_time() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.probe_period;
        assert!(breakers.may_place(0, later));
        breakers.resumed(0, END, later);
        assert_eq!(feed(&mut breakers, [true, false, false], later).1, Reaction::Pass);
        assert_eq!(breakers.due(later), (vec![], vec![]));
        assert_eq!(breakers.due(later + PROBE_TIME), (vec![], vec![0]));
        assert!(breakers.may_place(0, later), "one in three is fine");
    }

    #[test]
    fn the_time_of_a_probe_begins_once_the_partition_is_read() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.probe_period;
        assert!(breakers.may_place(0, later));
        let placed = later + PROBE_TIME * 3;
        assert_eq!(breakers.due(placed), (vec![], vec![]));
        breakers.resumed(0, END, placed);
        assert_eq!(feed(&mut breakers, [true; 100], placed).1, Reaction::Pass);
        // Displaced for another reason: placed anew, it looks at the same records.
        breakers.rewind(0);
        assert_eq!(breakers.due(placed + PROBE_TIME), (vec![], vec![]));
        breakers.resumed(0, END, placed);
        assert_eq!(feed(&mut breakers, [true; 1000], placed), (1000, Reaction::Displace));
        assert!(!breakers.may_place(0, placed));
    }

    #[test]
    fn no_record_of_a_held_partition_is_passed_over() {
        let (mut breakers, now) = held();
        assert_eq!(breakers.observe(0, Offset(0), false, now), Reaction::Displace);
    }

    #[test]
    fn after_the_longest_hold_dead_lettering_goes_on_slowly_until_it_is_well_again() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.longest_hold;
        assert!(breakers.may_place(0, later));
        assert_eq!(feed(&mut breakers, [true; 100], later), (10, Reaction::PassThenPause));
        assert_eq!(breakers.due(later), (vec![], vec![]));
        assert_eq!(breakers.due(later + SECOND), (vec![0], vec![]));
        assert_eq!(feed(&mut breakers, [true; 100], later), (10, Reaction::PassThenPause));
        assert!(breakers.reasons(later)[0].contains("at up to 10 a second"));
        breakers.due(later + SECOND * 2);
        feed(&mut breakers, [false; 1001], later);
        assert!(breakers.reasons(later).is_empty());
    }

    #[test]
    fn a_paused_partition_that_is_displaced_is_resumed_by_its_placement_alone() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.longest_hold;
        assert!(breakers.may_place(0, later));
        assert_eq!(feed(&mut breakers, [true; 100], later), (10, Reaction::PassThenPause));
        breakers.rewind(0);
        assert_eq!(breakers.due(later + SECOND), (vec![], vec![]));
    }

    #[test]
    fn a_quiet_partition_is_well_again_once_no_poison_has_come_for_a_while() {
        let (mut breakers, start) = held();
        let later = start + SETTINGS.longest_hold;
        assert!(breakers.may_place(0, later));
        let read = later + PROBE_TIME * 3;
        breakers.due(read);
        assert!(breakers.is_open(0), "it has no place yet");
        breakers.resumed(0, END, read);
        assert_eq!(feed(&mut breakers, [true; 100], read + SECOND), (10, Reaction::PassThenPause));
        assert_eq!(breakers.due(read + SECOND), (vec![0], vec![]));
        breakers.due(read + PROBE_TIME);
        assert!(breakers.is_open(0), "the last poison was a second later");
        breakers.due(read + SECOND + PROBE_TIME);
        assert!(!breakers.is_open(0));
    }

    #[test]
    fn records_that_are_read_again_do_not_count_twice() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        for _ in 0..10 {
            assert_eq!(feed_from(&mut breakers, 0, [true; 60], now), (60, Reaction::Pass));
            breakers.rewind(0);
        }
    }

    #[test]
    fn constant_displacements_do_not_hide_a_flood_of_poison() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        // Each time half of what was read is read again.
        let trips = (0..10).map(|nth| {
            breakers.rewind(0);
            feed_from(&mut breakers, nth * 30, [true; 60], now)
        });
        assert_eq!(
            trips.take_while(|(_, reaction)| *reaction == Reaction::Pass).count(),
            2,
            "100 are within the third"
        );
    }

    #[test]
    fn a_log_that_went_back_is_counted_from_where_it_begins_again() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        feed_from(&mut breakers, 500, [false; 50], now);
        breakers.rewind(0);
        breakers.resumed(0, NextOffset(200), now);
        assert_eq!(feed_from(&mut breakers, 0, [true; 200], now), (100, Reaction::Displace));
    }

    #[test]
    fn a_held_partition_that_comes_back_is_still_held_and_probed_at_once() {
        let (mut breakers, start) = held();
        breakers.revoke(0, start);
        assert!(breakers.reasons(start).is_empty() && breakers.due(start).0.is_empty(), "others have it");
        let back = start + SETTINGS.longest_hold * 2;
        breakers.assign(0, back);
        assert!(breakers.reasons(back)[0].starts_with("partition 0 is held for 0 s"));
        // To be probed: nothing of it is published.
        assert!(breakers.may_place(0, back));
        assert_eq!(feed(&mut breakers, [true; 1000], back), (1000, Reaction::Displace));
        assert!(!breakers.may_place(0, back));
    }

    #[test]
    fn what_was_counted_before_a_partition_was_taken_away_still_counts() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        feed(&mut breakers, [true; 99], now);
        breakers.revoke(0, now);
        breakers.assign(0, now);
        assert_eq!(feed(&mut breakers, [true; 99], now), (1, Reaction::Displace));
    }

    /// The worker that gets a partition which another one has held for so long, and had a place for it meanwhile.
    fn heir(held: Duration, now: Instant) -> Breakers {
        let mut heir = Breakers::new(SETTINGS);
        heir.assign(0, now);
        assert!(heir.may_place(0, now), "it does not know yet");
        assert!(heir.learn(0, Others::Held(held), now), "that place is not to be read from");
        heir
    }

    #[test]
    fn a_partition_that_others_held_is_held_since_then_and_probed_at_once() {
        let (old, start) = held();
        let now = start + SECOND * 60;
        assert_eq!(old.held(now), [(0, SECOND * 60)]);
        let mut heir = heir(old.held(now)[0].1, now);
        assert!(heir.reasons(now)[0].starts_with("partition 0 is held for 60 s"));
        assert!(heir.may_place(0, now));
        assert_eq!(feed(&mut heir, [true; 1000], now), (1000, Reaction::Displace), "none of them passes");
        assert!(!heir.may_place(0, now));
        assert!(heir.may_place(0, start + SETTINGS.longest_hold), "the longest hold goes on");
        assert_eq!(feed(&mut heir, [true; 100], now), (10, Reaction::PassThenPause));
    }

    #[test]
    fn whoever_gets_a_partition_beyond_its_longest_hold_goes_on_slowly() {
        let (mut old, start) = held();
        let forced = start + SETTINGS.longest_hold;
        assert!(old.may_place(0, forced));
        let now = forced + SECOND;
        assert_eq!(old.held(now), [(0, SETTINGS.longest_hold + SECOND)]);
        let mut heir = heir(old.held(now)[0].1, now);
        assert!(heir.may_place(0, now));
        assert_eq!(feed(&mut heir, [true; 100], now), (10, Reaction::PassThenPause));
        assert_eq!(heir.held(now), [(0, SETTINGS.longest_hold)], "which is all that the next one needs to know");
    }

    #[test]
    fn only_the_first_word_after_an_assignment_counts() {
        let (mut breakers, now) = (Breakers::new(SETTINGS), Instant::now());
        assert!(!breakers.learn(0, Others::Held(SECOND), now), "it is not ours");
        breakers.assign(0, now);
        assert!(!breakers.learn(0, Others::Unknown, now), "which is no word");
        assert!(!breakers.learn(0, Others::Read, now));
        assert!(!breakers.learn(0, Others::Held(SECOND), now), "what is said now is what was said by us");
        assert!(breakers.held(now).is_empty());
        breakers.revoke(0, now);
        breakers.assign(0, now);
        assert!(breakers.learn(0, Others::Held(SECOND), now));
        assert!(!breakers.learn(0, Others::Held(SECOND), now), "else it would never be probed");
    }

    #[test]
    fn a_held_partition_that_comes_back_has_been_held_by_the_others_as_well() {
        let (mut breakers, start) = held();
        breakers.revoke(0, start + SECOND);
        let back = start + SECOND * 30;
        breakers.assign(0, back);
        assert_eq!(breakers.held(back), [(0, SECOND)]);
        assert!(breakers.may_place(0, back));
        assert!(!breakers.learn(0, Others::Held(SECOND * 30), back), "its probe goes on");
        assert_eq!(breakers.held(back), [(0, SECOND * 30)]);
    }
}
