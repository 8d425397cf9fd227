//! How the worker is, for its health routes and its heartbeats.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::health::Check;
use common::shutdown::Shutdown;
use common::store::PartitionLag;

use crate::metrics::Metrics;

/// How the parts are, and what was done since the start.
pub struct Status {
    /// The brokers and the membership in the group.
    pub kafka: Check,
    /// Redis.
    pub store: Check,
    /// The partitions.
    pub partitions: Check,
    /// Whether what there is to store is being stored.
    pub progress: Check,
    /// Cancelled once the process is ending.
    pub draining: Shutdown,
    /// What was done.
    pub counters: Counters,
    /// What is counted for Prometheus.
    pub metrics: Metrics,
    assignment: Mutex<Vec<PartitionState>>,
    committed: Mutex<Option<Instant>>,
}

/// How an assigned partition is.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionState {
    /// How far it is behind.
    pub lag: PartitionLag,
    /// Whether the breaker keeps it from being simply read.
    pub held: bool,
}

/// What was done since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events stored for the first time.
    pub new: Counter,
    /// Events that were stored before.
    pub duplicates: Counter,
    /// Events that had expired before they were read, and were not stored.
    pub expired: Counter,
    /// Records that went to the dead-letter topic.
    pub dead_lettered: Tally,
    /// Dead letters of which only a stub fitted into their topic.
    pub truncated: Counter,
    /// Offsets that fell off the topic before they were read.
    pub lost: Counter,
    /// Offsets that the topic has without a record.
    pub holes: Counter,
    /// Times a partition had to be placed anew.
    pub replacements: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Reads it.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers that only grow, by name.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    /// Counts one.
    pub fn add_one(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }

    /// All of them together.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Each by itself.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }
}

impl Status {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(draining: Shutdown) -> Self {
        Self {
            kafka: Check::new("kafka", "not joined yet"),
            store: Check::new("store", "not asked yet"),
            partitions: Check::new("partitions", "none assigned yet"),
            progress: Check::new("progress", "nothing was to be stored yet"),
            draining,
            counters: Counters::default(),
            metrics: Metrics::new(),
            assignment: Mutex::default(),
            committed: Mutex::default(),
        }
    }

    /// Whether it can work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let checks = [&self.kafka, &self.store, &self.partitions, &self.progress];
        checks.iter().all(|check| check.get().ok) && !self.draining.is_cancelled()
    }

    /// Says which partitions this worker reads now, and how they are.
    pub fn assign(&self, partitions: Vec<PartitionState>) {
        *self.assignment.lock().unwrap_or_else(PoisonError::into_inner) = partitions;
    }

    /// The partitions that this worker reads.
    #[must_use]
    pub fn assignment(&self) -> Vec<PartitionState> {
        self.assignment.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The brokers have taken a commit, or from now on one is to be expected.
    pub fn note_commit(&self, now: Instant) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Time since [`Status::note_commit`].
    #[must_use]
    pub fn commit_age(&self) -> Option<Duration> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }
}
