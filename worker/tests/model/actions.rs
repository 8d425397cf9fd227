//! What can happen, and what can go wrong, in the model's world and in words.

use std::fmt;

use crate::redis::BUCKETS;

/// Which buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    One(usize),
    Both,
}

impl Which {
    pub(crate) const ALL: [Self; 3] = [Self::One(0), Self::One(1), Self::Both];

    pub(crate) fn buckets(self) -> impl Iterator<Item = usize> {
        (0..BUCKETS).filter(move |bucket| self == Self::Both || self == Self::One(*bucket))
    }

    /// Does it in each of the buckets. Says whether it could in any.
    pub(crate) fn any(self, act: impl FnMut(usize) -> bool) -> bool {
        self.buckets().map(act).fold(false, |any, could| any | could)
    }
}

/// Something that goes wrong. A run has only so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// Redis refuses the oldest transaction of a worker in a bucket.
    Refuse(usize, usize),
    /// The oldest transaction of a worker in a bucket is done, but its answer is lost.
    LoseAnswer(usize, usize),
    /// The oldest batch of a worker gets no answer. What has not reached Redis yet may still do so.
    Silence(usize),
    /// The same of a placement.
    SilencePlacing(usize),
    /// A Cluster's client sends the oldest transaction again, because the answer to the first was lost.
    Resend(usize, usize),
    /// Of the oldest batch of a worker, only the part in one bucket arrives now.
    Part(usize, usize),
    /// The same of a placement.
    PartPlacing(usize, usize),
    /// The next commit does not reach the brokers.
    LoseCommit,
    /// SIGKILL to a worker; the partition goes to `heir`.
    Crash { worker: usize, heir: usize },
    /// The partition goes to the other worker. This one is a zombie until it learns that, which may be at once.
    Revoke,
    /// Redis writes what it holds to its disk, the last time before it goes back to that.
    Save,
    /// Redis, or the node of a bucket, loses everything.
    Flush(Which),
    /// A zombie reads a record and sends it.
    ZombieSends,
    /// A zombie that was displaced starts a new life, which mostly ends one of the owner.
    ZombieLooks,
    /// The oldest record has outlived the retention.
    Expire,
    /// Redis' clock jumps: all records have expired, and the positions that cover them.
    ClockJump,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// What its sender has given up arrives after all.
    Late(usize, Which),
    /// The oldest batch of a worker arrives, or its part in one bucket.
    Apply(usize, Which),
    ApplyPlacing(usize, Which),
    /// A worker learns that its oldest batch, or a part of it, has failed.
    Answer(usize),
    /// A zombie learns that the partition is not its own any more.
    Notice(usize),
    Heartbeat(usize),
    Look(usize),
    /// A worker reads so many offsets and sends their records as a batch.
    Send(usize, i64),
    Settle(usize),
    /// Redis, or the node of a bucket, goes back to what it was at [`Fault::Save`].
    Rollback(Which),
    Fault(Fault),
}

/// One letter for each worker.
struct Name(usize);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == 0 { "A" } else { "B" })
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(bucket) => write!(f, "bucket {bucket}"),
            Self::Both => f.write_str("Redis"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Refuse(worker, bucket) => write!(f, "bucket {bucket} refuses the oldest write of {}", Name(worker)),
            Self::LoseAnswer(worker, bucket) => {
                write!(f, "the oldest write of {} reaches bucket {bucket}, but the answer is lost", Name(worker))
            }
            Self::Silence(worker) => write!(f, "{} gets no answer to its oldest batch", Name(worker)),
            Self::SilencePlacing(worker) => write!(f, "{} gets no answer to its placement", Name(worker)),
            Self::Resend(worker, bucket) => {
                write!(f, "the oldest write of {} reaches bucket {bucket} twice", Name(worker))
            }
            Self::Part(worker, bucket) => {
                write!(f, "of the oldest write of {}, only the part of bucket {bucket} arrives now", Name(worker))
            }
            Self::PartPlacing(worker, bucket) => {
                write!(f, "of the placement of {}, only the part of bucket {bucket} arrives now", Name(worker))
            }
            Self::LoseCommit => f.write_str("the next commit does not reach the brokers"),
            Self::Crash { worker, heir } => {
                write!(f, "{} is killed; the partition is assigned to {}", Name(worker), Name(heir))
            }
            Self::Revoke => f.write_str("the partition moves to the other worker; the old one does not know yet"),
            Self::Save => f.write_str("Redis saves what it holds, for the last time before it goes back to that"),
            Self::Flush(which) => write!(f, "{which} loses everything"),
            Self::ZombieSends => f.write_str("the zombie reads a record and sends it"),
            Self::ZombieLooks => f.write_str("the zombie reads positions and commit, and sends a placement"),
            Self::Expire => f.write_str("record 0 expires"),
            Self::ClockJump => f.write_str("the clock of Redis jumps: every record expires"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Late(_, which) => write!(f, "a write whose sender has given up reaches {which}"),
            Self::Apply(worker, which) => write!(f, "the oldest write of {} reaches {which}", Name(worker)),
            Self::ApplyPlacing(worker, which) => write!(f, "the placement of {} reaches {which}", Name(worker)),
            Self::Answer(worker) => write!(f, "{} learns that its oldest batch has failed", Name(worker)),
            Self::Notice(worker) => write!(f, "{} learns that the partition has moved", Name(worker)),
            Self::Heartbeat(worker) => write!(f, "{} finds in its heartbeat that positions have fallen", Name(worker)),
            Self::Look(worker) => write!(f, "{} reads positions and commit, and sends its placement", Name(worker)),
            Self::Send(worker, 1) => write!(f, "{} reads a record and sends it", Name(worker)),
            Self::Send(worker, records) => {
                write!(f, "{} reads {records} records and sends them as a batch", Name(worker))
            }
            Self::Settle(worker) => write!(f, "{} sends the positions of quiet buckets", Name(worker)),
            Self::Rollback(which) => write!(f, "**{which} goes back to what was last saved**"),
            Self::Fault(fault) => write!(f, "**{fault}**"),
        }
    }
}
