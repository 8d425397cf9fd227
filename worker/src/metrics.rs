//! What is counted of the work. docs/METRICS.md lists it; a test holds the two together.
//!
//! What the status counts anyway is copied at a scrape; only what happens once a batch is counted as it happens.

use std::time::Duration;

use common::metrics::{DURATIONS, Described, Exporter, partition_gauge};
use metrics::{Counter, Gauge, Histogram};

use crate::status::Status;

const EVENTS: Described = Described(
    "user_activity_events_total",
    "Events that were read, by what became of them: new, duplicate or expired.",
);
const DEAD_LETTERS: Described =
    Described("user_activity_dead_letters_total", "Records that went to the dead-letter topic.");
const TRUNCATED: Described = Described(
    "user_activity_dead_letters_truncated_total",
    "Dead letters that were cut, because their topic refused them for their size.",
);
const LOST: Described =
    Described("user_activity_lost_offsets_total", "Offsets that fell off the topic before they were read.");
const HOLES: Described = Described("user_activity_hole_offsets_total", "Offsets that the topic has without a record.");
const BATCH_EVENTS: Described = Described("user_activity_batch_events", "Events of a batch that Redis acknowledged.");
const WRITE_DURATION: Described =
    Described("user_activity_store_write_duration_seconds", "From sending a batch to Redis to its answer or failure.");
const STORE_FAILURES: Described =
    Described("user_activity_store_failures_total", "Batches that Redis did not acknowledge.");
const REWINDS: Described = Described("user_activity_rewinds_total", "Times that a partition had to be placed anew.");
const REBALANCES: Described =
    Described("user_activity_rebalances_total", "Times that partitions were assigned to this worker or taken away.");
const ASSIGNED: Described = Described("user_activity_assigned_partitions", "Partitions that this worker reads.");
const COMMIT_AGE: Described = Described(
    "user_activity_commit_age_seconds",
    "Time since the brokers last took a commit of this worker; absent while it reads no partition.",
);
const LAG: Described =
    Described("user_activity_consumer_lag_messages", "Offsets between what is stored and the end of the log.");
const LAG_SECONDS: Described =
    Described("user_activity_consumer_lag_seconds", "Age of the first record that is not stored; 0 when all are.");
const BREAKER_OPEN: Described =
    Described("user_activity_breaker_open", "1 while too much of the partition can't be events, else 0.");

/// Upper bounds for batches: up to the most records that one may have.
const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 300.0, 500.0, 1000.0, 2000.0, 4000.0];

/// All that is counted.
pub struct Metrics {
    exporter: Exporter,
    new: Counter,
    duplicates: Counter,
    expired: Counter,
    dead_letters: Counter,
    truncated: Counter,
    lost: Counter,
    holes: Counter,
    rewinds: Counter,
    assigned: Gauge,
    batch_events: Histogram,
    write_duration: Histogram,
    store_failures: Counter,
    rebalances: Counter,
}

impl Metrics {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        let exporter =
            Exporter::new("worker", env!("CARGO_PKG_VERSION"), &[(BATCH_EVENTS, SIZES), (WRITE_DURATION, DURATIONS)]);
        Self {
            new: exporter.counter(EVENTS, &[("result", "new")]),
            duplicates: exporter.counter(EVENTS, &[("result", "duplicate")]),
            expired: exporter.counter(EVENTS, &[("result", "expired")]),
            dead_letters: exporter.counter(DEAD_LETTERS, &[]),
            lost: exporter.counter(LOST, &[]),
            holes: exporter.counter(HOLES, &[]),
            truncated: exporter.counter(TRUNCATED, &[]),
            rewinds: exporter.counter(REWINDS, &[]),
            assigned: exporter.gauge(ASSIGNED, &[]),
            batch_events: exporter.histogram(BATCH_EVENTS, &[]),
            write_duration: exporter.histogram(WRITE_DURATION, &[]),
            store_failures: exporter.counter(STORE_FAILURES, &[]),
            rebalances: exporter.counter(REBALANCES, &[]),
            exporter,
        }
    }

    /// Redis acknowledged a batch of so many events, or did not, after this time.
    pub fn wrote(&self, events: Option<usize>, took: Duration) {
        self.write_duration.record(took);
        match events {
            // Batches of nothing but positions are no batches of events.
            Some(0) => {}
            Some(events) => self.batch_events.record(events as f64),
            None => self.store_failures.increment(1),
        }
    }

    /// Partitions were assigned or taken away.
    pub fn rebalanced(&self) {
        self.rebalances.increment(1);
    }

    /// Everything as text.
    #[must_use]
    pub fn render(&self, status: &Status) -> String {
        let counters = &status.counters;
        self.new.absolute(counters.new.get());
        self.duplicates.absolute(counters.duplicates.get());
        self.expired.absolute(counters.expired.get());
        self.dead_letters.absolute(counters.dead_lettered.get());
        self.lost.absolute(counters.lost.get());
        self.holes.absolute(counters.holes.get());
        self.truncated.absolute(counters.truncated.get());
        self.rewinds.absolute(counters.replacements.get());
        let partitions = status.assignment();
        self.assigned.set(partitions.len() as f64);
        let mut text = self.exporter.render(status.is_ready());
        let lag = |state: &crate::status::PartitionState| Some((state.lag.partition, state.lag.messages? as f64));
        text += &partition_gauge(LAG, partitions.iter().filter_map(lag));
        let seconds = partitions.iter().filter_map(|state| Some((state.lag.partition, state.lag.seconds?)));
        text += &partition_gauge(LAG_SECONDS, seconds);
        let open = partitions.iter().map(|state| (state.lag.partition, f64::from(u8::from(state.held))));
        text += &partition_gauge(BREAKER_OPEN, open);
        if let Some(age) = status.commit_age().filter(|_| !partitions.is_empty()) {
            let Described(name, help) = COMMIT_AGE;
            text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {}\n\n", age.as_secs_f64());
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
