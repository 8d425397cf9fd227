//! What time brings: commits, positions of quiet buckets, and the heartbeat, which is also the look whether Redis still
//! holds what it has acknowledged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::event::Timestamp;
use common::mutation::{Mutation, active};
use common::store::{Heartbeat, Memory, Positions, Store, StoreError};
use rdkafka::Offset as KafkaOffset;
use rdkafka::consumer::{CommitMode, Consumer as _};

use super::Consumer;
use crate::commit::{NextOffset, Slot, has_fallen};

/// How long a bucket without events may lag behind.
const SETTLE_PERIOD: Duration = Duration::from_secs(1);
/// How often Redis is told that this worker lives, and asked for the positions it holds.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(3);

/// What was acknowledged before a heartbeat, and what came of it.
pub(super) struct Beaten {
    acknowledged: Vec<(Slot, Vec<NextOffset>)>,
    found: Result<HashMap<i32, Positions>, StoreError>,
    /// What is wrong with the servers.
    warnings: Result<Vec<String>, StoreError>,
    /// Of what else there was to do.
    done: Result<(), StoreError>,
}

impl Consumer {
    pub(super) fn on_tick(&mut self) {
        let now = Instant::now();
        self.commit();
        if let Some(summary) = self.log.turn(now) {
            log::info!(new = summary.new, duplicates = summary.duplicates;
                "processed {} more events in the last second, {} of them duplicates",
                summary.new + summary.duplicates, summary.duplicates);
        }
        self.turn_breakers(now);
        self.start_noting_holds(now);
        self.wait_for_room(now);
        if now >= self.settle_after {
            self.settle_after = now + SETTLE_PERIOD;
            self.settle();
            self.tell_partitions();
            self.tell_lags(now);
            self.tell_holes(now);
        }
    }

    fn turn_breakers(&mut self, now: Instant) {
        let (resume, displace) = self.breakers.due(now);
        for partition in resume {
            // One that waits for its place is resumed by that.
            if !self.ledger.current(partition).is_some_and(|slot| self.ledger.is_live(slot)) {
                continue;
            }
            if let Err(error) = self.kafka.resume(&self.list(partition, KafkaOffset::Invalid)) {
                log::warn!("partition {partition}: can't be resumed: {error}");
            }
        }
        for partition in displace {
            if let Some(slot) = self.ledger.current(partition) {
                self.displace(slot);
            }
        }
    }

    fn commit(&mut self) {
        let commits = self.take_commits();
        if commits.is_empty() {
            return;
        }
        if let Err(error) = self.kafka.commit(&self.kafka.context().commit_list(&commits), CommitMode::Async) {
            log::debug!("commit not sent, it is repeated with the next heartbeat: {error}");
        }
    }

    /// What is to be committed now, also by a revocation that comes before the next time.
    pub(super) fn take_commits(&mut self) -> Vec<(i32, NextOffset)> {
        let commits = self.ledger.take_commits();
        self.kafka.context().note_stored(&commits);
        commits
    }

    /// Tells Redis that this worker lives and compares the positions it holds with those that were acknowledged: the
    /// one way to notice in silence that it has lost something. The owner of partition 0 also trims.
    pub(super) fn start_beating(&mut self, now: Instant) {
        self.beat_after = now + HEARTBEAT_PERIOD;
        // A commit that met a rebalance is gone, and in silence no other would follow it.
        self.ledger.doubt_commits();
        let (store, scope) = (Arc::clone(&self.store), self.scope.clone());
        let alarm = Some(self.config.memory_alarm);
        let acknowledged = self.ledger.acknowledged();
        let heartbeat = Heartbeat {
            member: self.config.name.clone(),
            partitions: self.ledger.assigned(),
            stored: self.status.counters.new.get(),
            dead_letters: self.status.counters.dead_lettered.by_name(),
            group: self.config.consumer.group.clone(),
            topic_partitions: Some(self.look.partitions).filter(|known| *known > 0),
            lags: self.lags.report(now, Timestamp::now().millis()),
        };
        self.beating = Some(Box::pin(async move {
            let partitions: Vec<i32> = acknowledged.iter().map(|(slot, _)| slot.partition).collect();
            // Each by itself: what a Redis that is full refuses must keep nobody from the look, nor from trimming.
            let checked = store.check().await;
            let found = store.positions(&scope, &partitions).await;
            let trims = heartbeat.partitions.first() == Some(&0);
            let warnings = inspect(&store, alarm.filter(|_| trims)).await;
            let beaten = store.beat(&heartbeat).await;
            let trimmed = if trims && store.trusts_clock() { store.trim().await.map(drop) } else { Ok(()) };
            let done = checked.and(beaten).and(trimmed);
            Beaten { acknowledged, found, warnings, done }
        }));
    }

    pub(super) fn on_beaten(&mut self, beaten: Beaten) -> anyhow::Result<()> {
        let Beaten { acknowledged, found, warnings, done } = beaten;
        let failures = [found.as_ref().err(), warnings.as_ref().err(), done.as_ref().err()];
        if let Some(last) = failures.iter().flatten().find(|error| error.is_final()) {
            return Err(StoreError::clone(last).into());
        }
        match failures.into_iter().flatten().next() {
            None => self.status.store.up("Redis answers"),
            Some(first) => self.status.store.down(&first.to_string()),
        }
        if let Ok(warnings) = warnings
            && self.warnings != warnings
        {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
            self.warnings = warnings;
        }
        if let Ok(found) = found {
            self.compare(acknowledged, &found);
        }
        Ok(())
    }

    fn compare(&mut self, acknowledged: Vec<(Slot, Vec<NextOffset>)>, found: &HashMap<i32, Positions>) {
        let ignored = active(Mutation::NoHeartbeatCheck) || active(Mutation::IgnoreMismatch);
        for (slot, acked) in acknowledged.into_iter().filter(|_| !ignored) {
            if found.get(&slot.partition).is_some_and(|found| has_fallen(&acked, found)) {
                log::warn!(partition = slot.partition;
                    "partition {}: Redis has lost positions, and so perhaps data; placing it anew", slot.partition);
                self.displace(slot);
            }
        }
    }
}

async fn inspect(store: &Store, alarm: Option<u64>) -> Result<Vec<String>, StoreError> {
    let mut warnings = store.inspect().await?;
    if let Some(alarm) = alarm {
        warnings.extend(alarm_of(store.memory().await?, alarm));
    }
    Ok(warnings)
}

/// In words that stay the same while it lasts, so that it is logged once.
fn alarm_of(memory: Option<Memory>, alarm: u64) -> Option<String> {
    let Memory { max, .. } = memory.filter(|memory| memory.percent() >= alarm)?;
    Some(format!(
        "Redis uses more than {alarm} % of its maxmemory of {} MiB, and takes no event any more when that is full: \
         raise maxmemory, shorten EVENT_RETENTION, or set REDIS_MEMORY_GUARD to trim the oldest events early",
        max / (1024 * 1024)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_begins_at_its_percentage() {
        let memory = |used| Some(Memory { used, max: 1_000 });
        assert!(alarm_of(None, 80).is_none() && alarm_of(memory(799), 80).is_none());
        assert!(alarm_of(memory(800), 80).unwrap().contains("REDIS_MEMORY_GUARD"));
    }
}
