//! What is broken when: a pure function of the seed, so that a run can be repeated.

use std::{fmt, time::Duration};

use fastrand::Rng;
use serde::{Serialize, Serializer};

use super::proxy::Trouble;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to a worker, and a new one.
    WorkerKill,
    /// SIGTERM to a worker, and a new one.
    WorkerTerm,
    /// SIGSTOP to a worker for longer than the group waits for it, then SIGCONT.
    WorkerFreeze,
    /// Two more workers join and leave in quick succession.
    Scale,
    /// SIGKILL to an API, and a new one on the same port.
    ApiKill,
    /// SIGSTOP to an API, then SIGCONT.
    ApiFreeze,
    /// SIGKILL to the broker, and a restart on its files.
    KafkaKill,
    /// SIGSTOP to the broker, then SIGCONT.
    KafkaFreeze,
    /// The events' topic gets one more partition.
    PartitionsAdded,
    /// APIs and workers go on with another topic, and the same store.
    TopicChange,
    /// The events' topic is deleted under running programs, and made anew.
    TopicAnew,
    /// The dead-letter topic takes no record.
    DeadLettersRefused,
    /// Redis loses nothing, but is away: SIGKILL, and a restart on its files.
    RedisKill,
    /// SIGSTOP to Redis, for longer than anyone waits for its answers, then SIGCONT: what was sent meanwhile happens late.
    RedisFreeze,
    /// Redis' memory is full: it refuses writes.
    RedisFull,
    /// Redis is allowed less memory than it uses, until its guard has made room and fresh events pass.
    RedisSqueeze,
    /// Redis loses what it was told last.
    RedisLoss(Loss, When),
    /// Something with the nodes of a Redis Cluster.
    Cluster(NodeFault),
    /// The network between two parts.
    Network(Way, Trouble),
}

/// What happens to a Redis Cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFault {
    /// SIGKILL to a primary. Its replica takes over, with what it has by then; the node comes back as the replica.
    Kill,
    /// SIGSTOP to a primary until its replica has taken over, then SIGCONT.
    Freeze,
    /// A replica takes over as it is asked to.
    Failover,
    /// FLUSHALL on one primary: its part of the data is gone, and no other.
    Flush,
    /// A slot with data moves to another primary, half of it for a while.
    SlotMove,
}

/// How much Redis loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It restarts on its files of so many seconds ago.
    Rollback(u64),
    /// It restarts on files whose last bytes are missing.
    Torn,
    /// It restarts without files.
    Empty,
    /// FLUSHALL; it keeps running, and no connection breaks.
    Flush,
}

/// What goes on while Redis loses something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Events come and are processed.
    UnderLoad,
    /// Events come, but no worker runs.
    NoWorker,
    /// No event comes before everything is restored.
    Silence,
}

/// From whom to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The APIs to the broker.
    ApiToKafka,
    /// The workers to the broker.
    WorkerToKafka,
    /// The APIs to Redis.
    ApiToRedis,
    /// The workers to Redis.
    WorkerToRedis,
}

const NAMES: [(&str, Fault); 46] = {
    use Fault::{Cluster, Network, RedisLoss};
    use Loss::{Empty, Flush, Rollback, Torn};
    use Trouble::{Blackhole, Cut, Delay};
    use Way::{ApiToKafka, ApiToRedis, WorkerToKafka, WorkerToRedis};
    use When::{NoWorker, Silence, UnderLoad};
    [
        ("worker-kill", Fault::WorkerKill),
        ("worker-term", Fault::WorkerTerm),
        ("worker-freeze", Fault::WorkerFreeze),
        ("scale", Fault::Scale),
        ("api-kill", Fault::ApiKill),
        ("api-freeze", Fault::ApiFreeze),
        ("kafka-kill", Fault::KafkaKill),
        ("kafka-freeze", Fault::KafkaFreeze),
        ("partitions-added", Fault::PartitionsAdded),
        ("topic-change", Fault::TopicChange),
        ("topic-anew", Fault::TopicAnew),
        ("dead-letters-refused", Fault::DeadLettersRefused),
        ("redis-kill", Fault::RedisKill),
        ("redis-freeze", Fault::RedisFreeze),
        ("redis-full", Fault::RedisFull),
        ("redis-squeeze", Fault::RedisSqueeze),
        ("redis-rollback-1s", RedisLoss(Rollback(1), UnderLoad)),
        ("redis-rollback-1s-no-worker", RedisLoss(Rollback(1), NoWorker)),
        ("redis-rollback-1s-silence", RedisLoss(Rollback(1), Silence)),
        ("redis-rollback-10s", RedisLoss(Rollback(10), UnderLoad)),
        ("redis-rollback-10s-no-worker", RedisLoss(Rollback(10), NoWorker)),
        ("redis-rollback-10s-silence", RedisLoss(Rollback(10), Silence)),
        ("redis-torn", RedisLoss(Torn, UnderLoad)),
        ("redis-torn-no-worker", RedisLoss(Torn, NoWorker)),
        ("redis-empty", RedisLoss(Empty, UnderLoad)),
        ("redis-empty-no-worker", RedisLoss(Empty, NoWorker)),
        ("redis-empty-silence", RedisLoss(Empty, Silence)),
        ("redis-flushall", RedisLoss(Flush, UnderLoad)),
        ("redis-flushall-silence", RedisLoss(Flush, Silence)),
        ("node-kill", Cluster(NodeFault::Kill)),
        ("node-freeze", Cluster(NodeFault::Freeze)),
        ("node-failover", Cluster(NodeFault::Failover)),
        ("node-flushall", Cluster(NodeFault::Flush)),
        ("slot-move", Cluster(NodeFault::SlotMove)),
        ("api-kafka-cut", Network(ApiToKafka, Cut)),
        ("api-kafka-delay", Network(ApiToKafka, Delay)),
        ("api-kafka-blackhole", Network(ApiToKafka, Blackhole)),
        ("worker-kafka-cut", Network(WorkerToKafka, Cut)),
        ("worker-kafka-delay", Network(WorkerToKafka, Delay)),
        ("worker-kafka-blackhole", Network(WorkerToKafka, Blackhole)),
        ("api-redis-cut", Network(ApiToRedis, Cut)),
        ("api-redis-delay", Network(ApiToRedis, Delay)),
        ("api-redis-blackhole", Network(ApiToRedis, Blackhole)),
        ("worker-redis-cut", Network(WorkerToRedis, Cut)),
        ("worker-redis-delay", Network(WorkerToRedis, Delay)),
        ("worker-redis-blackhole", Network(WorkerToRedis, Blackhole)),
    ]
};

impl Fault {
    /// Every fault there is.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.into_iter().map(|(_, fault)| fault)
    }

    /// Whether Redis may forget what it was told. One that is killed has its files, but it may have been about to write; a
    /// replica that takes over may lack what its primary was told last.
    #[must_use]
    pub fn may_lose(self) -> bool {
        let failover = [NodeFault::Kill, NodeFault::Freeze, NodeFault::Flush].map(Self::Cluster);
        matches!(self, Self::RedisKill | Self::RedisLoss(..)) || failover.contains(&self)
    }

    /// The fault of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        NAMES.into_iter().find_map(|(known, fault)| (known == name).then_some(fault))
    }

    /// What it is called in commands and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.into_iter().find_map(|(name, fault)| (fault == self).then_some(name)).unwrap_or("unnamed")
    }

    /// The shortest and the longest time it lasts, in milliseconds.
    fn span(self) -> (u64, u64) {
        match self {
            Self::WorkerKill | Self::WorkerTerm | Self::ApiKill | Self::KafkaKill => (0, 1_500),
            // Beyond the session time-out of 6 s.
            Self::WorkerFreeze => (7_000, 11_000),
            // On both sides of the time that an event is tried for, of 5 s.
            Self::ApiFreeze | Self::KafkaFreeze => (2_000, 11_000),
            // On both sides of the time-out for an answer, of 3 s.
            Self::RedisFreeze => (2_000, 8_000),
            Self::PartitionsAdded | Self::TopicChange | Self::TopicAnew | Self::RedisSqueeze | Self::Cluster(_) => {
                (1_000, 3_000)
            }
            Self::Scale => (2_000, 5_000),
            Self::DeadLettersRefused | Self::RedisFull => (2_000, 5_000),
            Self::RedisKill | Self::RedisLoss(..) => (0, 2_000),
            Self::Network(_, Trouble::Blackhole) => (3_000, 9_000),
            Self::Network(..) => (1_000, 5_000),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One fault of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Undisturbed time before it.
    pub after: Duration,
    /// What happens.
    pub fault: Fault,
    /// How long until it is mended.
    pub hold: Duration,
    /// Chooses among several of a kind, and whatever else is to be chosen.
    pub choice: usize,
}

/// The faults of a run of `length`, enough of them to fill it even if nothing needed time to recover. Each of `faults`
/// comes once, in any order, before one comes again.
#[must_use]
pub fn schedule(seed: u64, length: Duration, faults: &[Fault]) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    let (mut steps, mut planned, mut bag) = (Vec::new(), Duration::ZERO, Vec::new());
    while planned < length && !faults.is_empty() {
        if bag.is_empty() {
            bag = faults.to_vec();
            rng.shuffle(&mut bag);
        }
        let step = bag.pop().map(|fault| draw(&mut rng, fault));
        planned += step.map_or(length, |step| step.after + step.hold);
        steps.extend(step);
    }
    steps
}

fn draw(rng: &mut Rng, fault: Fault) -> Step {
    let (shortest, longest) = fault.span();
    Step {
        after: Duration::from_millis(rng.u64(500..3_000)),
        fault,
        hold: Duration::from_millis(rng.u64(shortest..=longest)),
        choice: rng.usize(..1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn all() -> Vec<Fault> {
        Fault::all().collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_each_time_and_another_seed_others() {
        assert_eq!(schedule(7, 5 * MINUTE, &all()), schedule(7, 5 * MINUTE, &all()));
        assert_ne!(schedule(7, 5 * MINUTE, &all()), schedule(8, 5 * MINUTE, &all()));
    }

    #[test]
    fn a_longer_run_begins_like_a_shorter_one() {
        let (short, long) = (schedule(7, MINUTE, &all()), schedule(7, 5 * MINUTE, &all()));
        assert!(short.len() < long.len());
        assert!(long.starts_with(&short));
    }

    #[test]
    fn every_fault_comes_before_one_comes_again() {
        let steps = schedule(3, 60 * MINUTE, &all());
        let first = &steps[..NAMES.len()];
        assert!(all().iter().all(|fault| first.iter().any(|step| step.fault == *fault)));
    }

    #[test]
    fn only_the_faults_that_were_asked_for_come() {
        let steps = schedule(1, MINUTE, &[Fault::ApiKill]);
        assert!(!steps.is_empty() && steps.iter().all(|step| step.fault == Fault::ApiKill));
        assert_eq!(schedule(1, MINUTE, &[]), []);
    }

    #[test]
    fn a_frozen_worker_sleeps_longer_than_the_group_waits() {
        let steps = schedule(1, 10 * MINUTE, &[Fault::WorkerFreeze]);
        assert!(steps.iter().all(|step| step.hold > Duration::from_secs(6)));
    }

    #[test]
    fn names_are_unique_and_read_back() {
        assert!(NAMES.iter().all(|(name, fault)| Fault::named(name) == Some(*fault) && fault.name() == *name));
        assert_eq!(Fault::named("nonsense"), None);
    }
}
