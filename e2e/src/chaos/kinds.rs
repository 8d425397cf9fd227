//! The kinds of stages: each is about something that the usual one never meets.

use std::{fmt, time::Duration};

use clap::ValueEnum;
use serde::Serialize;

use super::schedule::{Fault, Way};

/// How often the faults that a stage is there for come for each of the others.
const OWN: usize = 3;

/// By how many seconds clocks are wrong: more than a heartbeat lives, and almost a day, since an event that is a whole day
/// ahead of a worker's clock is dead-lettered.
const SOME: i64 = 20;
const DAY: i64 = 24 * 3_600 - 60;

/// What runs, how it is set, and what is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One Redis, the usual settings.
    #[default]
    Standalone,
    /// Readers of the stream go away and come back. `REDIS_BUCKETS=16`: many buckets on one Redis.
    Readers,
    /// A Redis Cluster whose nodes fail over and whose slots move.
    Cluster,
    /// `EVENT_RETENTION=60s`, and users that repeat an `Idempotency-Key` when its event has gone.
    Retention,
    /// `REDIS_MEMORY_GUARD` is on, and Redis gets really full.
    Guard,
    /// One API and two workers have a wrong clock, by 20 s and by a day.
    Clocks,
    /// Somebody writes to the topic in transactions, and aborts some of them.
    Transactions,
    /// The topic gets more partitions.
    Partitions,
    /// APIs and workers go on with another topic and the same store, or with one that was deleted and made anew.
    Topics,
}

impl Kind {
    /// The faults that this stage can have, its own ones more than once.
    #[must_use]
    pub fn faults(self) -> Vec<Fault> {
        Fault::all().filter(|fault| self.has(*fault)).flat_map(|fault| vec![fault; self.share(fault)]).collect()
    }

    /// Whether its one Redis loses anything.
    #[must_use]
    pub fn loses(self) -> bool {
        // What is lost is read again from the topic, if that is still there.
        ![Self::Cluster, Self::Topics].contains(&self)
    }

    /// Whether it can have this fault.
    #[must_use]
    pub fn has(self, fault: Fault) -> bool {
        match fault {
            Fault::Cluster(_) => self == Self::Cluster,
            Fault::RedisSqueeze => self == Self::Guard,
            Fault::PartitionsAdded => self == Self::Partitions,
            Fault::TopicChange | Fault::TopicAnew => self == Self::Topics,
            Fault::RedisKill | Fault::RedisFreeze | Fault::RedisFull => self != Self::Cluster,
            Fault::RedisLoss(..) => self.loses(),
            // The nodes of a Cluster say themselves where they are.
            Fault::Network(Way::ApiToRedis | Way::WorkerToRedis, _) => self != Self::Cluster,
            _ => true,
        }
    }

    fn share(self, fault: Fault) -> usize {
        match fault {
            Fault::RedisSqueeze | Fault::PartitionsAdded | Fault::TopicChange | Fault::TopicAnew => OWN,
            _ => 1,
        }
    }

    /// For how long lists show an event, where that is shorter than a run.
    #[must_use]
    pub fn retention(self) -> Option<Duration> {
        (self == Self::Retention).then_some(Duration::from_mins(1))
    }

    /// What the programs are told beyond the usual.
    #[must_use]
    pub fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Readers => &[("REDIS_BUCKETS", "16")],
            Self::Retention => &[("EVENT_RETENTION", "60s")],
            Self::Guard => &[("REDIS_MEMORY_GUARD", "90")],
            _ => &[],
        }
    }

    /// By how many seconds the clock of the n-th API is wrong. Not a day ahead: the brokers refuse such events.
    #[must_use]
    pub fn api_clock(self, number: usize, seed: u64) -> Option<i64> {
        (self == Self::Clocks && number == 1).then(|| [SOME, -SOME, -DAY][cycle(seed, 3)])
    }

    /// The same of the n-th worker.
    #[must_use]
    pub fn worker_clock(self, number: usize, seed: u64) -> Option<i64> {
        let clocks = [[-SOME, DAY], [SOME, -DAY]][cycle(seed, 2)];
        clocks.get(number).copied().filter(|_| self == Self::Clocks)
    }

    /// Whether a user's events keep their order when they go through one API and then through another: not where these
    /// don't have the same time.
    #[must_use]
    pub fn apis_agree(self) -> bool {
        self != Self::Clocks
    }

    /// Whether a record for a user is always behind those before it: not once there are more partitions to choose from. Where
    /// it is not, nothing is repeated: either record could come to be the first.
    #[must_use]
    pub fn users_stay(self) -> bool {
        self != Self::Partitions
    }
}

fn cycle(seed: u64, length: u64) -> usize {
    usize::try_from(seed % length).unwrap_or_default()
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| formatter.pad(value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_stage_and_the_own_ones_of_a_stage_come_most() {
        let faults: Vec<Vec<Fault>> = Kind::value_variants().iter().map(|kind| kind.faults()).collect();
        assert!(Fault::all().all(|fault| faults.iter().flatten().any(|found| *found == fault)));
        let count = |kind: Kind, fault| kind.faults().into_iter().filter(|found| *found == fault).count();
        assert_eq!(count(Kind::Topics, Fault::TopicChange), OWN);
        assert_eq!(count(Kind::Standalone, Fault::TopicChange), 0);
        assert_eq!(count(Kind::Cluster, Fault::RedisKill), 0);
    }

    #[test]
    fn only_the_stage_of_clocks_has_wrong_ones() {
        assert_eq!((Kind::Clocks.api_clock(1, 5), Kind::Clocks.worker_clock(0, 5)), (Some(-DAY), Some(SOME)));
        assert_eq!((Kind::Clocks.api_clock(0, 3), Kind::Clocks.worker_clock(2, 3)), (None, None));
        assert_eq!((Kind::Guard.api_clock(1, 3), Kind::Guard.worker_clock(0, 3)), (None, None));
    }
}
