//! The ledger: for each partition what was read, what is on its way to Redis, what is stored, and so how far its
//! positions in Redis and the group's commit may move. Pure: no clock, no I/O.
//!
//! What it promises:
//!
//! - A position is moved only from the value this worker wrote last, and only together with everything before the new
//!   value that belongs to its bucket.
//! - A commit never passes what Redis has acknowledged.
//! - After any doubt (an unanswered write, a mismatch, a position that fell) the partition is *displaced*: everything in
//!   flight for it is forgotten, and it is read again from where Redis says. An epoch, new with each displacement, keeps
//!   late answers of an earlier life from counting.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use common::store::Move;

/// The offset of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offset(pub i64);

impl Offset {
    /// What comes after it: the form in which commits and positions are kept.
    #[must_use]
    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

/// The offset of the first record that is **not** yet done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextOffset(pub i64);

/// One life of a partition in this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The partition.
    pub partition: i32,
    /// Which of its lives.
    pub epoch: u64,
}

/// A partition that waits for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacancy {
    /// Which life of it.
    pub slot: Slot,
    /// It must not start after this: the log was seen to go back to here, so what Redis says of later offsets is about
    /// records that are not there any more.
    pub ceiling: Option<NextOffset>,
}

/// What a delivered record is to its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The expected one, or the first after a gap of so many offsets without a record.
    Accepted {
        /// Which life it belongs to.
        slot: Slot,
        /// How many offsets before it are missing.
        missing: i64,
    },
    /// Left over from before a displacement or revocation: to be dropped.
    Stale,
    /// Before where the partition was placed, or before what was read already: the partition has been displaced.
    Displaced,
}

/// What was handed to the store together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    ends: Vec<(Slot, NextOffset)>,
    /// Of each bucket, whether its transaction is part of it.
    touched: Vec<bool>,
}

impl Ticket {
    /// The partitions it is about.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.ends.iter().map(|(slot, _)| *slot)
    }

    /// How far it goes in each.
    pub fn ends(&self) -> impl Iterator<Item = (i32, NextOffset)> + '_ {
        self.ends.iter().map(|(slot, end)| (slot.partition, *end))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Live {
    /// The next record to come.
    expected: NextOffset,
    /// Everything before it has been handed to the store.
    dispatched: NextOffset,
    /// Everything before it is in the store.
    stored: NextOffset,
    committed: Option<NextOffset>,
    buckets: Vec<Position>,
}

/// What was last sent as a bucket's position, and what of it Redis has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Position {
    sent: NextOffset,
    acked: NextOffset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Partition {
    epoch: u64,
    live: Option<Live>,
    /// See [`Vacancy`].
    ceiling: Option<NextOffset>,
}

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// How many the store has; none before the first partition has its place.
    buckets: usize,
    epochs: u64,
    partitions: BTreeMap<i32, Partition>,
}

/// Without the epochs: two ledgers that differ in nothing else behave alike, and the model check counts them as one.
impl Hash for Ledger {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for (partition, Partition { epoch: _, live, ceiling }) in &self.partitions {
            (partition, live, ceiling).hash(hasher);
        }
    }
}

impl Ledger {
    /// A partition has been assigned; it waits for its place.
    pub fn assign(&mut self, partition: i32) {
        self.epochs += 1;
        let state = Partition { epoch: self.epochs, live: None, ceiling: None };
        self.partitions.insert(partition, state);
    }

    /// A partition has been taken away.
    pub fn revoke(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// Forgets what is in flight for this life of a partition, which then waits for a new place. Says whether the life
    /// was the current one and under way.
    pub fn displace(&mut self, slot: Slot) -> bool {
        let next = self.epochs + 1;
        match self.partitions.get_mut(&slot.partition) {
            Some(partition) if partition.epoch == slot.epoch && partition.live.is_some() => {
                (partition.epoch, partition.live) = (next, None);
                self.epochs = next;
                true
            }
            _ => false,
        }
    }

    /// The present life of a partition.
    #[must_use]
    pub fn current(&self, partition: i32) -> Option<Slot> {
        self.partitions.get(&partition).map(|state| Slot { partition, epoch: state.epoch })
    }

    /// Whether this life of a partition is the present one, and has its place.
    #[must_use]
    pub fn is_live(&self, slot: Slot) -> bool {
        self.partitions.get(&slot.partition).is_some_and(|state| state.epoch == slot.epoch && state.live.is_some())
    }

    /// The partitions that wait for a place.
    #[must_use]
    pub fn unplaced(&self) -> Vec<Vacancy> {
        let waiting = self.partitions.iter().filter(|(_, p)| p.live.is_none());
        let vacancy = |(partition, p): (&i32, &Partition)| Vacancy {
            slot: Slot { partition: *partition, epoch: p.epoch },
            ceiling: p.ceiling,
        };
        waiting.map(vacancy).collect()
    }

    /// All assigned partitions.
    #[must_use]
    pub fn assigned(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    /// The number of buckets for which partitions were placed.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    /// A partition has its place: `start` is written in every one of so many buckets. Says whether that life is still the
    /// current one.
    pub fn place(&mut self, slot: Slot, start: NextOffset, committed: Option<NextOffset>, buckets: usize) -> bool {
        match self.partitions.get_mut(&slot.partition) {
            Some(partition) if partition.epoch == slot.epoch && partition.live.is_none() => {
                self.buckets = buckets;
                partition.ceiling = None;
                partition.live = Some(Live {
                    expected: start,
                    dispatched: start,
                    stored: start,
                    committed,
                    buckets: vec![Position { sent: start, acked: start }; buckets],
                });
                true
            }
            _ => false,
        }
    }

    /// A record has been delivered.
    ///
    /// A gap is believed: the log has no record there that could be read. Right after a placement, too, because it starts
    /// no earlier than the log, and because the client hands out nothing that it had fetched before the seek: a seek outdates
    /// that (`rd_kafka_toppar_op_seek` raises the version that the consumer queue compares).
    pub fn deliver(&mut self, partition: i32, offset: Offset) -> Verdict {
        let Some(state) = self.partitions.get_mut(&partition) else { return Verdict::Stale };
        let slot = Slot { partition, epoch: state.epoch };
        let Some(live) = &mut state.live else { return Verdict::Stale };
        let missing = offset.0 - live.expected.0;
        if missing < 0 {
            state.ceiling = Some(NextOffset(offset.0));
            self.displace(slot);
            return Verdict::Displaced;
        }
        live.expected = offset.next();
        Verdict::Accepted { slot, missing }
    }

    /// Everything before `ends` goes to the store, with events in the `touched` of [`Ledger::buckets`]. Gives the positions
    /// to move in the same transactions.
    pub fn dispatch(
        &mut self,
        ends: impl IntoIterator<Item = (Slot, NextOffset)>,
        touched: Vec<bool>,
    ) -> (Ticket, Vec<Vec<Move>>) {
        let mut moves = vec![Vec::new(); touched.len()];
        let mut current = Vec::new();
        for (slot, to) in ends {
            let Some(live) = self.live(slot) else { continue };
            live.dispatched = to;
            for bucket in (0..touched.len()).filter(|bucket| touched[*bucket]) {
                let from = std::mem::replace(&mut live.buckets[bucket].sent, to);
                if from != to {
                    moves[bucket].push(Move { partition: slot.partition, from: from.0, to: to.0 });
                }
            }
            current.push((slot, to));
        }
        (Ticket { ends: current, touched }, moves)
    }

    /// Brings the positions of buckets that got no event up to what was dispatched; `None` when none lags. True without
    /// waiting: what a bucket holds of the records before, it was given in earlier transactions of the same order.
    pub fn settle(&mut self) -> Option<(Ticket, Vec<Vec<Move>>)> {
        let lagging = |live: &Live| live.buckets.iter().any(|position| position.sent != live.dispatched);
        let ends: Vec<_> = self
            .partitions
            .iter()
            .filter_map(|(partition, state)| {
                let live = state.live.as_ref().filter(|live| lagging(live))?;
                Some((Slot { partition: *partition, epoch: state.epoch }, live.dispatched))
            })
            .collect();
        (!ends.is_empty()).then(|| self.dispatch(ends, vec![true; self.buckets]))
    }

    /// The store has all of it. Tickets are acknowledged in the order of their dispatch.
    pub fn acknowledge(&mut self, ticket: &Ticket) {
        for (slot, to) in &ticket.ends {
            let Some(live) = self.live(*slot) else { continue };
            live.stored = *to;
            for bucket in (0..ticket.touched.len()).filter(|bucket| ticket.touched[*bucket]) {
                live.buckets[bucket].acked = *to;
            }
        }
    }

    /// How far this life of a partition is stored; `None` when it is over.
    pub fn stored(&mut self, slot: Slot) -> Option<NextOffset> {
        self.live(slot).map(|live| live.stored)
    }

    /// What may be committed and is not yet; from now on it counts as committed.
    pub fn take_commits(&mut self) -> Vec<(i32, NextOffset)> {
        let live = self.partitions.iter_mut().filter_map(|(partition, p)| Some((*partition, p.live.as_mut()?)));
        live.filter(|(_, live)| live.committed != Some(live.stored))
            .map(|(partition, live)| {
                live.committed = Some(live.stored);
                (partition, live.stored)
            })
            .collect()
    }

    /// Any commit may have been lost on its way: all of them are to be made again.
    pub fn doubt_commits(&mut self) {
        self.partitions.values_mut().filter_map(|state| state.live.as_mut()).for_each(|live| live.committed = None);
    }

    /// What Redis has acknowledged of each position, to compare with what it says later.
    #[must_use]
    pub fn acknowledged(&self) -> Vec<(Slot, Vec<NextOffset>)> {
        let live = |(partition, state): (&i32, &Partition)| {
            let acked = state.live.as_ref()?.buckets.iter().map(|position| position.acked).collect();
            Some((Slot { partition: *partition, epoch: state.epoch }, acked))
        };
        self.partitions.iter().filter_map(live).collect()
    }

    fn live(&mut self, slot: Slot) -> Option<&mut Live> {
        self.partitions.get_mut(&slot.partition).filter(|p| p.epoch == slot.epoch)?.live.as_mut()
    }
}

/// Whether the store has lost something: a position is missing or lower than it was acknowledged before the look.
#[must_use]
pub fn has_fallen(acknowledged: &[NextOffset], found: &[Option<i64>]) -> bool {
    acknowledged.iter().zip(found).any(|(acked, found)| found.is_none_or(|found| found < acked.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: usize = 4;

    fn all() -> Vec<bool> {
        vec![true; BUCKETS]
    }

    fn only(bucket: usize) -> Vec<bool> {
        (0..BUCKETS).map(|b| b == bucket).collect()
    }

    /// A ledger with partition 0 placed at `start`.
    fn placed(start: i64) -> (Ledger, Slot) {
        let mut ledger = Ledger::default();
        ledger.assign(0);
        let slot = ledger.unplaced()[0].slot;
        assert!(ledger.place(slot, NextOffset(start), Some(NextOffset(start)), BUCKETS));
        (ledger, slot)
    }

    fn read(ledger: &mut Ledger, offsets: std::ops::Range<i64>) -> NextOffset {
        let end = NextOffset(offsets.end);
        for offset in offsets {
            assert!(matches!(ledger.deliver(0, Offset(offset)), Verdict::Accepted { missing: 0, .. }), "{offset}");
        }
        end
    }

    #[test]
    fn a_commit_never_passes_what_the_store_has_acknowledged() {
        let (mut ledger, slot) = placed(10);
        let end = read(&mut ledger, 10..15);
        let (ticket, _) = ledger.dispatch([(slot, end)], all());
        assert_eq!(ledger.take_commits(), []);
        ledger.acknowledge(&ticket);
        assert_eq!(ledger.take_commits(), [(0, NextOffset(15))]);
        assert_eq!(ledger.take_commits(), []);
    }

    #[test]
    fn a_position_moves_from_what_was_sent_last_and_only_in_touched_buckets() {
        let (mut ledger, slot) = placed(10);
        let end = read(&mut ledger, 10..12);
        let (_, moves) = ledger.dispatch([(slot, end)], only(3));
        assert_eq!(moves[3], [Move { partition: 0, from: 10, to: 12 }]);
        assert!(moves.iter().enumerate().all(|(bucket, moves)| bucket == 3 || moves.is_empty()));
        // The next batch is sent before the first is answered: it continues the chain.
        let end = read(&mut ledger, 12..13);
        let (_, moves) = ledger.dispatch([(slot, end)], all());
        assert_eq!(moves[3], [Move { partition: 0, from: 12, to: 13 }]);
        assert_eq!(moves[0], [Move { partition: 0, from: 10, to: 13 }]);
    }

    #[test]
    fn lagging_buckets_are_brought_up_to_what_was_dispatched_and_not_to_what_was_read() {
        let (mut ledger, slot) = placed(10);
        assert_eq!(ledger.settle(), None);
        let end = read(&mut ledger, 10..12);
        ledger.dispatch([(slot, end)], only(3));
        read(&mut ledger, 12..20);
        let (_, moves) = ledger.settle().unwrap();
        assert_eq!(moves[0], [Move { partition: 0, from: 10, to: 12 }]);
        assert_eq!(moves[3], []);
        assert_eq!(ledger.settle(), None);
    }

    #[test]
    fn answers_of_an_earlier_life_do_not_count() {
        let (mut ledger, slot) = placed(10);
        let end = read(&mut ledger, 10..15);
        let (ticket, _) = ledger.dispatch([(slot, end)], all());
        assert!(ledger.displace(slot));
        assert!(!ledger.displace(slot), "a second doubt about the same life changes nothing");
        assert_eq!(ledger.deliver(0, Offset(15)), Verdict::Stale);
        let again = ledger.unplaced()[0].slot;
        assert!(!ledger.place(slot, NextOffset(10), None, BUCKETS), "a placement of the earlier life is too late");
        assert!(ledger.place(again, NextOffset(10), Some(NextOffset(10)), BUCKETS));
        ledger.acknowledge(&ticket);
        assert_eq!(ledger.take_commits(), []);
        assert_eq!(ledger.dispatch([(slot, end)], all()).0.slots().count(), 0);
    }

    #[test]
    fn a_revoked_partition_is_forgotten_and_a_new_assignment_is_a_new_life() {
        let (mut ledger, slot) = placed(10);
        ledger.revoke(0);
        assert_eq!(ledger.deliver(0, Offset(10)), Verdict::Stale);
        ledger.assign(0);
        assert_ne!(ledger.unplaced()[0].slot, slot);
        assert_eq!(ledger.assigned(), [0]);
    }

    #[test]
    fn a_gap_is_believed_also_right_after_a_placement() {
        let (mut ledger, slot) = placed(10);
        assert_eq!(ledger.deliver(0, Offset(12)), Verdict::Accepted { slot, missing: 2 });
        assert_eq!(ledger.deliver(0, Offset(14)), Verdict::Accepted { slot, missing: 1 });
    }

    #[test]
    fn a_record_before_what_was_read_displaces() {
        let (mut ledger, _) = placed(10);
        read(&mut ledger, 10..13);
        assert_eq!(ledger.deliver(0, Offset(2)), Verdict::Displaced);
        assert_eq!(ledger.unplaced().len(), 1);
    }

    #[test]
    fn a_log_that_went_back_is_read_again_from_where_it_went_back_to() {
        let (mut ledger, _) = placed(10);
        read(&mut ledger, 10..13);
        ledger.deliver(0, Offset(7));
        let Vacancy { slot, ceiling } = ledger.unplaced()[0];
        assert_eq!(ceiling, Some(NextOffset(7)));
        ledger.place(slot, NextOffset(7), None, BUCKETS);
        ledger.displace(slot);
        assert_eq!(ledger.unplaced()[0].ceiling, None, "it counts once");
    }

    #[test]
    fn a_commit_in_doubt_is_made_again() {
        let (mut ledger, slot) = placed(10);
        let end = read(&mut ledger, 10..12);
        let (ticket, _) = ledger.dispatch([(slot, end)], all());
        ledger.acknowledge(&ticket);
        assert_eq!(ledger.take_commits().len(), 1);
        ledger.doubt_commits();
        assert_eq!(ledger.take_commits(), [(0, NextOffset(12))]);
    }

    #[test]
    fn a_missing_commit_is_made_up_for_at_the_placement() {
        let mut ledger = Ledger::default();
        ledger.assign(0);
        let slot = ledger.unplaced()[0].slot;
        ledger.place(slot, NextOffset(0), None, BUCKETS);
        assert_eq!(ledger.take_commits(), [(0, NextOffset(0))]);
    }

    #[test]
    fn a_store_has_lost_something_when_any_position_is_missing_or_lower() {
        let acked = [NextOffset(10); BUCKETS];
        let mut found = [Some(10); BUCKETS];
        assert!(!has_fallen(&acked, &found));
        found[2] = Some(11);
        assert!(!has_fallen(&acked, &found), "a position that was sent but not acknowledged at the look");
        found[2] = Some(9);
        assert!(has_fallen(&acked, &found));
        found[2] = None;
        assert!(has_fallen(&acked, &found));
    }

    #[test]
    fn what_was_acknowledged_is_what_the_look_is_compared_with() {
        let (mut ledger, slot) = placed(10);
        let end = read(&mut ledger, 10..12);
        let (ticket, _) = ledger.dispatch([(slot, end)], only(3));
        assert_eq!(ledger.acknowledged()[0].1, [NextOffset(10); BUCKETS]);
        ledger.acknowledge(&ticket);
        let acked = ledger.acknowledged().remove(0).1;
        assert_eq!((acked[3], acked[0]), (NextOffset(12), NextOffset(10)));
    }
}
