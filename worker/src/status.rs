//! How the worker is, for its health routes and its heartbeats.

use std::sync::atomic::{AtomicU64, Ordering};

use common::health::Check;
use common::shutdown::Shutdown;

/// How the parts are, and what was done since the start.
pub struct Status {
    /// The brokers and the membership in the group.
    pub kafka: Check,
    /// Redis.
    pub store: Check,
    /// The partitions.
    pub partitions: Check,
    /// Cancelled once the process is ending.
    pub draining: Shutdown,
    /// What was done.
    pub counters: Counters,
}

/// What was done since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events stored for the first time.
    pub new: Counter,
    /// Events that were stored before.
    pub duplicates: Counter,
    /// Records that went to the dead-letter topic.
    pub dead_lettered: Counter,
    /// Offsets that were not there to be read.
    pub skipped_offsets: Counter,
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

impl Status {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(draining: Shutdown) -> Self {
        Self {
            kafka: Check::new("kafka", "not joined yet"),
            store: Check::new("store", "not asked yet"),
            partitions: Check::new("partitions", "none assigned yet"),
            draining,
            counters: Counters::default(),
        }
    }
}
