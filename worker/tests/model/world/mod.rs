//! The state: two workers with the real ledger, one partition, Redis, the group, and the commands between.

mod faults;
mod steps;

use std::hash::{Hash, Hasher};

use worker::commit::{Ledger, NextOffset, Slot, Ticket};

use crate::Rule;
use crate::guards::Guard;
use crate::redis::{BUCKETS, Bucket, Command, Records};

/// The one partition.
const PARTITION: i32 = 0;

/// What became of a bucket's part of a batch or a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Nothing to send.
    Nothing,
    Sent(Command),
    Held,
    Mismatch,
    /// Redis said no: out of memory, or the node is away.
    Refused,
}

type Parts = [Part; BUCKETS];

/// Whether the outcome of all is known. One refusal is enough, the others are not waited for.
fn is_answered(parts: &Parts) -> bool {
    let waits = parts.iter().any(|part| matches!(part, Part::Sent(_)));
    !waits || parts.contains(&Part::Refused)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    ticket: Ticket,
    pub(crate) parts: Parts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placing {
    slot: Slot,
    start: NextOffset,
    pub(crate) beginning: bool,
    pub(crate) committed: Option<i64>,
    pub(crate) parts: Parts,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Worker {
    ledger: Ledger,
    /// The next record that the client hands out.
    next: i64,
    pub(crate) in_flight: Vec<Batch>,
    pub(crate) placing: Option<Placing>,
}

/// Epochs count only as far as they tell whether something is of the present life.
impl Hash for Worker {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { ledger, next, in_flight, placing } = self;
        (ledger, next, in_flight.len(), placing.is_some()).hash(hasher);
        for Batch { ticket, parts } in in_flight {
            (self.is_present(ticket), ticket.ends().last(), parts).hash(hasher);
        }
        if let Some(Placing { slot, start, beginning, committed, parts }) = placing {
            (ledger.current(PARTITION) == Some(*slot), start, beginning, committed, parts).hash(hasher);
        }
    }
}

impl Worker {
    fn is_present(&self, ticket: &Ticket) -> bool {
        ticket.slots().any(|slot| self.ledger.current(PARTITION) == Some(slot))
    }

    /// Whether the partition waits for a place, after it had one.
    pub(crate) fn is_displaced(&self) -> bool {
        self.ledger.unplaced().first().is_some_and(|vacancy| vacancy.slot.epoch > 1)
    }

    fn displace(&mut self, slot: Slot, broken: Option<Guard>) {
        if self.ledger.displace(slot) && broken != Some(Guard::NoBarrier) {
            self.next = 0;
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct World {
    /// The bucket of the record at each offset.
    log: Vec<usize>,
    /// The offset that has no record, if there is one.
    hole: Option<usize>,
    /// So many more.
    pub(crate) faults: u8,
    pub(crate) redis: [Bucket; BUCKETS],
    /// What a rollback is going to go back to.
    saved: Option<[Bucket; BUCKETS]>,
    pub(crate) owner: usize,
    pub(crate) committed: Option<i64>,
    pub(crate) workers: [Worker; 2],
    /// Batches and placements whose sender waits no more, which may still arrive.
    late: Vec<Parts>,
    /// Everything that was ever stored.
    ever: Records,
    /// What has outlived the retention.
    expired: Records,
    commit_is_lost: bool,
    /// Whether the partition was displaced for what was delivered.
    pub(crate) doubted: bool,
    most_in_flight: usize,
    clock_jumps: bool,
    whole: bool,
}

/// The workers have no names: one is the owner.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { log, hole, faults, redis, saved, owner, committed, workers, late, ever, expired, .. } = self;
        (self.commit_is_lost, self.doubted, hole).hash(hasher);
        (log, faults, redis, saved, committed, late, ever, expired).hash(hasher);
        (&workers[*owner], &workers[1 - *owner]).hash(hasher);
    }
}

impl World {
    pub(crate) fn new(log: Vec<usize>, hole: Option<usize>, rule: &Rule) -> Self {
        let mut world = Self {
            log,
            hole,
            faults: rule.faults,
            redis: Default::default(),
            saved: None,
            owner: 0,
            committed: None,
            workers: Default::default(),
            late: Vec::new(),
            ever: Records::default(),
            expired: Records::default(),
            commit_is_lost: false,
            doubted: false,
            most_in_flight: rule.in_flight,
            clock_jumps: rule.clock_jumps,
            whole: rule.whole,
        };
        world.workers[0].ledger.assign(PARTITION);
        world
    }

    fn end(&self) -> i64 {
        i64::try_from(self.log.len()).unwrap_or(i64::MAX)
    }

    /// The records of a bucket.
    fn of(&self, bucket: usize) -> Records {
        let own = (0..).zip(&self.log).filter(|(_, of)| **of == bucket);
        let own = own.fold(Records::default(), |records, (offset, _)| records.with(Records::only(offset)));
        own.within(self.records())
    }

    /// All records of the log.
    fn records(&self) -> Records {
        let hole = self.hole.and_then(|hole| i64::try_from(hole).ok()).map_or(Records::default(), Records::only);
        Records::before(self.end()).without(hole)
    }

    /// What a reader must find.
    fn due(&self) -> Records {
        self.records().without(self.expired)
    }

    fn stored(&self) -> Records {
        self.redis.iter().fold(Records::default(), |all, bucket| all.with(bucket.stored))
    }

    /// In words: which record belongs where.
    pub(crate) fn setting(&self) -> String {
        let belongs = |(record, bucket): (usize, &usize)| match self.hole {
            Some(hole) if hole == record => format!("offset {record} has no record"),
            _ => format!("record {record} belongs to bucket {bucket}"),
        };
        self.log.iter().enumerate().map(belongs).collect::<Vec<_>>().join(", ")
    }

    /// Each bucket holds everything before its position.
    pub(crate) fn positions_are_true(&self) -> bool {
        (0..BUCKETS).all(|bucket| {
            let before = Records::before(self.redis[bucket].position.unwrap_or(0));
            let due = before.within(self.of(bucket)).within(self.due());
            due.without(self.redis[bucket].stored).is_empty()
        })
    }

    /// No bucket holds a record without all of its own before it: one that came first could be a repetition.
    pub(crate) fn nothing_overtakes(&self) -> bool {
        (0..BUCKETS).all(|bucket| {
            let stored = self.redis[bucket].stored;
            stored.begin_before(self.of(bucket).within(self.due()).without(stored))
        })
    }

    /// Everything before the commit has been stored, whatever Redis has lost since.
    pub(crate) fn commit_is_true(&self) -> bool {
        Records::before(self.committed.unwrap_or(0)).within(self.records()).without(self.ever).is_empty()
    }

    /// A reader finds everything.
    pub(crate) fn is_stored(&self) -> bool {
        self.missing().is_empty()
    }

    pub(crate) fn missing(&self) -> Records {
        self.due().without(self.stored())
    }

    /// Everything is stored, and said to be.
    pub(crate) fn is_done(&self) -> bool {
        let mut said = self.redis.iter().map(|bucket| bucket.position).chain([self.committed]);
        self.is_stored() && said.all(|next| next == Some(self.end()))
    }
}
