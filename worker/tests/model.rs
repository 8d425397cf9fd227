//! The rule of start, move and commit against a model of Redis: many short lives of two workers under drawn faults, at
//! whose end everything on the log must be stored. No I/O; a failure names its seed, with which it comes again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::store::{BUCKETS, Move, Positions};
use fastrand::Rng;
use worker::commit::{Ledger, NextOffset, Offset, Ticket, Verdict, has_fallen};
use worker::placement::{Log, decide};

/// One partition; an event's bucket is drawn when it is written.
#[derive(Clone, Default)]
struct Redis {
    stored: BTreeSet<i64>,
    positions: Positions,
}

impl Redis {
    /// One bucket's transaction: its events, then the compare-and-set.
    fn apply(&mut self, bucket: usize, events: &[i64], step: Option<Move>) -> bool {
        self.stored.extend(events);
        let Some(Move { from, to, .. }) = step else { return true };
        let held = self.positions[bucket] == Some(from);
        if held {
            self.positions[bucket] = Some(to);
        }
        held
    }

    fn place(&mut self, start: i64, beginning: bool) -> bool {
        let mut placed = true;
        for position in &mut self.positions {
            let lowers = beginning || position.is_some_and(|held| held >= start);
            if lowers {
                *position = Some(start);
            }
            placed &= lowers;
        }
        placed
    }
}

struct Batch {
    ticket: Ticket,
    events: [Vec<i64>; BUCKETS],
    moves: [Vec<Move>; BUCKETS],
}

#[derive(Default)]
struct Worker {
    ledger: Ledger,
    read: Vec<i64>,
    next: i64,
    in_flight: VecDeque<Batch>,
}

struct World {
    draw: Rng,
    /// No more faults.
    calm: bool,
    /// The bucket of the event at each offset.
    log: Vec<usize>,
    redis: Redis,
    snapshots: Vec<Redis>,
    committed: Option<i64>,
    workers: [Worker; 2],
    owner: usize,
    /// What a killed worker had sent: it may still arrive, its answers reach nobody.
    orphans: VecDeque<Batch>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            draw: Rng::with_seed(seed),
            calm: false,
            log: Vec::new(),
            redis: Redis::default(),
            snapshots: vec![Redis::default()],
            committed: None,
            workers: Default::default(),
            owner: 0,
            orphans: VecDeque::new(),
        };
        world.workers[0].ledger.assign(0);
        world
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.draw.u32(0..n) == 0
    }

    fn fails_once_in(&mut self, n: u32) -> bool {
        !self.calm && self.one_in(n)
    }

    fn produce(&mut self) {
        for _ in 0..self.draw.usize(0..6) {
            let bucket = self.draw.usize(0..BUCKETS);
            self.log.push(bucket);
        }
    }

    /// What the owner does next; the other one may still have batches in flight, as a zombie has.
    fn work(&mut self) {
        let owner = self.owner;
        self.place(owner);
        let take = self.draw.usize(0..8);
        let worker = &mut self.workers[owner];
        for _ in 0..take {
            if worker.next >= self.log.len() as i64 {
                break;
            }
            if matches!(worker.ledger.deliver(0, Offset(worker.next)), Verdict::Accepted { .. }) {
                worker.read.push(worker.next);
                worker.next += 1;
            }
        }
        if !self.workers[owner].read.is_empty() && !self.one_in(3) {
            let worker = &mut self.workers[owner];
            let mut events: [Vec<i64>; BUCKETS] = Default::default();
            worker.read.iter().for_each(|offset| events[self.log[*offset as usize]].push(*offset));
            let end = NextOffset(worker.next);
            worker.read.clear();
            let Some(slot) = worker.ledger.current(0) else { return };
            let touched = std::array::from_fn(|bucket| !events[bucket].is_empty());
            let (ticket, moves) = worker.ledger.dispatch([(slot, end)], touched);
            worker.in_flight.push_back(Batch { ticket, events, moves });
        }
        if self.one_in(4) {
            let worker = &mut self.workers[owner];
            if let Some((ticket, moves)) = worker.ledger.settle() {
                worker.in_flight.push_back(Batch { ticket, events: Default::default(), moves });
            }
        }
    }

    fn place(&mut self, owner: usize) {
        let Some(vacancy) = self.workers[owner].ledger.unplaced().first().copied() else { return };
        let log = Log { low: 0, high: self.log.len() as i64, committed: self.committed };
        let (start, beginning, _) = decide(log, &self.redis.positions);
        // The store may lose something between the look and the writing.
        if self.fails_once_in(10) {
            self.lose();
        }
        if self.redis.place(start.0, beginning) {
            let worker = &mut self.workers[owner];
            worker.ledger.place(vacancy.slot, start, self.committed.map(NextOffset));
            (worker.next, worker.read) = (start.0, Vec::new());
        }
    }

    fn deliver_orphan(&mut self) {
        let Some(batch) = self.orphans.pop_front() else { return };
        for bucket in 0..BUCKETS {
            self.redis.apply(bucket, &batch.events[bucket], batch.moves[bucket].first().copied());
        }
    }

    /// The oldest batch in flight of a worker arrives, whole, in part, unanswered, or never.
    fn deliver(&mut self, of: usize) {
        let Some(batch) = self.workers[of].in_flight.pop_front() else { return };
        let (lost, unanswered) = (self.fails_once_in(25), self.fails_once_in(25));
        let mut held = true;
        for bucket in 0..BUCKETS {
            // A refusal is per transaction: out of memory, a node of a Cluster that is away.
            if lost || self.fails_once_in(200) {
                held = false;
                continue;
            }
            held &= self.redis.apply(bucket, &batch.events[bucket], batch.moves[bucket].first().copied());
        }
        let ledger = &mut self.workers[of].ledger;
        if held && !unanswered {
            ledger.acknowledge(&batch.ticket);
        } else {
            let slots: Vec<_> = batch.ticket.slots().collect();
            for slot in slots {
                ledger.displace(slot);
            }
        }
    }

    /// The store goes back to what it was, or to nothing.
    fn lose(&mut self) {
        let back = self.draw.usize(0..self.snapshots.len());
        self.redis = self.snapshots[back].clone();
        self.snapshots.truncate(back + 1);
    }

    fn fault(&mut self) {
        match self.draw.usize(0..12) {
            0 => self.lose(),
            1..=3 => self.snapshots.push(self.redis.clone()),
            // The partition moves; the old owner may not notice, and what it had in flight may still arrive.
            4 => {
                let (old, new) = (self.owner, 1 - self.owner);
                if self.one_in(2) {
                    self.workers[old].ledger.revoke(0);
                }
                self.workers[new].ledger.assign(0);
                self.owner = new;
            }
            // SIGKILL.
            5 => {
                let killed = std::mem::take(&mut self.workers[self.owner]);
                self.orphans.extend(killed.in_flight);
                self.workers[self.owner].ledger.assign(0);
            }
            6..=8 => {
                let commits = self.workers[self.owner].ledger.take_commits();
                commits.into_iter().for_each(|(_, next)| self.committed = Some(next.0));
            }
            _ => self.look(),
        }
    }

    /// The heartbeat's comparison.
    fn look(&mut self) {
        let ledger = &mut self.workers[self.owner].ledger;
        for (slot, acked) in ledger.acknowledged() {
            if has_fallen(&acked, &self.redis.positions) {
                ledger.displace(slot);
            }
        }
    }

    fn missing(&self) -> Vec<i64> {
        (0..self.log.len() as i64).filter(|offset| !self.redis.stored.contains(offset)).collect()
    }

    /// No more faults: what is in flight arrives, the heartbeat looks, and the owner works until it has seen the end.
    fn settle(&mut self) {
        self.calm = true;
        for _ in 0..1_000 {
            self.deliver_orphan();
            for worker in [0, 0, 1, 1] {
                self.deliver(worker);
            }
            self.look();
            self.work();
        }
    }
}

/// A life under faults; the truth of the positions holds at every moment, and everything is stored at the end.
fn live(seed: u64) {
    let mut world = World::new(seed);
    for step in 0..300 {
        world.produce();
        world.work();
        for worker in [0, 1] {
            if world.one_in(2) {
                world.deliver(worker);
            }
        }
        if world.one_in(4) {
            world.deliver_orphan();
        }
        if world.one_in(3) {
            world.fault();
        }
        for (bucket, position) in world.redis.positions.iter().enumerate() {
            let before = (0..position.unwrap_or(0)).filter(|offset| world.log[*offset as usize] == bucket);
            let hole = before.into_iter().find(|offset| !world.redis.stored.contains(offset));
            assert_eq!(hole, None, "seed {seed}, step {step}: the position of bucket {bucket} is ahead of its data");
        }
    }
    world.settle();
    let missing = world.missing();
    assert!(missing.is_empty(), "seed {seed}: not stored: {missing:?}");
}

#[test]
fn whatever_is_lost_killed_or_late_a_position_is_true_and_everything_is_stored_in_the_end() {
    (0..600).for_each(live);
}

#[test]
fn the_model_meets_what_it_is_there_for() {
    let mut met = BTreeMap::new();
    for seed in 0..50 {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.produce();
            world.work();
            world.deliver(0);
            world.deliver(1);
            let (before, lives) = (world.redis.stored.len(), world.workers[world.owner].ledger.current(0));
            world.fault();
            *met.entry("losses").or_insert(0) += usize::from(world.redis.stored.len() < before);
            *met.entry("displacements").or_insert(0) +=
                usize::from(world.workers[world.owner].ledger.current(0) != lives);
        }
    }
    assert!(met.values().all(|times| *times > 100), "{met:?}");
}
