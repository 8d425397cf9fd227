//! How far this worker is behind: the looks at the logs' ends, and who is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::event::Timestamp;
use common::store::PartitionLag;
use rdkafka::Offset as KafkaOffset;
use rdkafka::error::{KafkaError, KafkaResult};

use super::Consumer;
use crate::commit::NextOffset;
use crate::gaps::Lost;
use crate::group::Look;
use crate::placement::edges;
use crate::status::PartitionState;

/// How often the brokers are asked for the ends of the logs: one small request to each.
const MEASURE_PERIOD: Duration = Duration::from_secs(3);
/// For one such look; it must not hold up the end of the process.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(1);

/// The ends of the logs.
pub(super) type Measured = KafkaResult<HashMap<i32, NextOffset>>;

impl Consumer {
    /// Asks the brokers, because the client itself learns of an end only by fetching: not of a paused partition's, which
    /// is just when the lag grows.
    pub(super) fn start_measuring(&mut self, now: Instant) {
        self.measure_after = now + MEASURE_PERIOD;
        let mut partitions = self.ledger.assigned();
        // One without a leader would hold up the answer about the others until the time-out.
        partitions.retain(|partition| self.look.partitions == 0 || self.look.leaders.contains_key(partition));
        if partitions.is_empty() {
            return;
        }
        let (kafka, topic) = (Arc::downgrade(&self.kafka), self.config.kafka.topics.events.clone());
        self.measuring = Some(Box::pin(async move {
            let ends = move || {
                let kafka = kafka.upgrade().ok_or(KafkaError::Canceled)?;
                edges(&kafka, &topic, &partitions, KafkaOffset::End, MEASURE_TIMEOUT)
            };
            let look = tokio::task::spawn_blocking(ends).await;
            // The closure neither panics nor is it cancelled.
            look.unwrap_or(Err(KafkaError::Canceled))
        }));
    }

    pub(super) fn on_measured(&mut self, measured: Measured) {
        match measured {
            Ok(ends) => self.lags.ends(ends, Instant::now()),
            Err(error) => log::debug!("the brokers don't say where partitions end: {error}"),
        }
    }

    pub(super) fn on_look(&mut self, look: Look) {
        look.drained.iter().for_each(|(partition, next)| self.lags.drained(*partition, *next));
        let judged = self.gaps.judge(&look.starts);
        self.status.counters.holes.add(judged.holes);
        judged.lost.into_iter().for_each(|lost| self.lose(lost));
        self.look = look;
    }

    /// Says that records are lost. This is the one place where an acknowledged event is: everything else is read again.
    pub(super) fn lose(&self, Lost { partition, count: lost, before }: Lost) {
        self.status.counters.lost.add(lost);
        log::error!(partition, lost, before = before.0;
            "partition {partition}: {lost} offsets before {} fell off the topic before they were read; their events are lost",
            before.0);
    }

    pub(super) fn tell_holes(&mut self, now: Instant) {
        if let Some(holes) = self.gaps.turn(now) {
            log::info!(holes; "{holes} offsets had no record: marks of transactions, aborted ones, or compaction");
        }
    }

    /// Tells the metrics how the partitions are, and the health check whether they move.
    pub(super) fn tell_lags(&mut self, now: Instant) {
        let away = !self.status.store.get().ok || !self.status.kafka.get().ok;
        // Of a held partition the check of the partitions tells.
        self.lags.excuse(now, |partition| away || self.breakers.is_open(partition));
        let lags = self.lags.report(now, Timestamp::now().millis());
        let state = |lag: PartitionLag| PartitionState { held: self.breakers.is_open(lag.partition), lag };
        self.status.assign(lags.into_iter().map(state).collect());
        let stuck = self.lags.stuck(now);
        let sentence = |(partition, still, lag): &(i32, Duration, i64)| {
            format!("partition {partition} has not moved for {} s with {lag} records to store", still.as_secs())
        };
        if stuck.is_empty() {
            self.status.progress.up("what there is to store is being stored");
        } else {
            self.status.progress.down(&stuck.iter().map(sentence).collect::<Vec<_>>().join("; "));
        }
    }
}
