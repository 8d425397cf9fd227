//! Where partitions start: assigned, displaced, placed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::mutation::{Mutation, active};
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::Consumer;
use crate::commit::{NextOffset, Offset, Slot};
use crate::gaps::Lost;
use crate::group::{Change, Stranded};
use crate::placement::{Attempt, PlaceError, Placed, Placer};

/// Between attempts to place partitions.
const PLACE_RETRY: Duration = Duration::from_millis(250);
const SHORTEST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// How long a partition waits before its dead letter is tried again, and why, for people.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    until: Option<Instant>,
    wait: Duration,
    why: String,
}

impl Backoff {
    /// Doubles the wait, from one second up to thirty.
    pub(super) fn lengthen(&mut self, now: Instant, why: String) {
        self.why = why;
        self.wait = (self.wait * 2).clamp(SHORTEST_BACKOFF, LONGEST_BACKOFF);
        self.until = Some(now + self.wait);
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

impl Consumer {
    pub(super) fn on_change(&mut self, change: Change) -> Result<(), Stranded> {
        match change {
            Change::Assigned(partitions) => {
                let now = Instant::now();
                if self.ledger.assigned().is_empty() {
                    self.status.note_commit(now);
                }
                for partition in partitions {
                    self.ledger.assign(partition);
                    self.lags.assign(partition, now);
                    self.breakers.assign(partition, now);
                }
                (self.place_after, self.measure_after) = (now, now);
            }
            Change::Revoked(partitions) => {
                for partition in partitions.into_iter().filter(|_| !active(Mutation::KeepRevokedState)) {
                    self.ledger.revoke(partition);
                    self.lags.revoke(partition);
                    self.breakers.revoke(partition, Instant::now());
                    self.holds.revoke(partition);
                    self.backoffs.remove(&partition);
                    self.letters.forget(partition, NextOffset(i64::MAX));
                    self.pending.forget(partition);
                    self.traces.iter_mut().for_each(|traces| traces.forget(partition));
                }
            }
            Change::Looked(look) => {
                self.on_look(look);
                return Ok(());
            }
            Change::Stranded => {
                // Whatever the group still thinks: nothing of them is read any more.
                self.on_change(Change::Revoked(self.ledger.assigned()))?;
                return Err(Stranded);
            }
        }
        self.tell_partitions();
        self.tell_lags(Instant::now());
        Ok(())
    }

    pub(super) fn displace(&mut self, slot: Slot) {
        if self.ledger.displace(slot) {
            self.after_displacement(slot.partition);
        }
    }

    pub(super) fn after_displacement(&mut self, partition: i32) {
        self.status.counters.replacements.add(1);
        self.pending.forget(partition);
        self.traces.iter_mut().for_each(|traces| traces.forget(partition));
        self.breakers.rewind(partition);
        self.lags.displace(partition);
        self.pause(partition);
        self.tell_partitions();
    }

    pub(super) fn pause(&self, partition: i32) {
        if let Err(error) = self.kafka.pause(&self.list(partition, KafkaOffset::Invalid)) {
            log::debug!("partition {partition}: can't be paused, its records are dropped instead: {error}");
        }
    }

    pub(super) fn start_placing(&mut self, now: Instant) {
        if self.guard.is_stuck(now) {
            return;
        }
        let mut vacancies = self.ledger.unplaced();
        vacancies.retain(|vacancy| {
            let partition = vacancy.slot.partition;
            !self.in_placing.contains(&partition)
                && self.backoffs.get(&partition).is_none_or(|backoff| backoff.is_over(now))
                && self.breakers.may_place(partition, now)
        });
        if vacancies.is_empty() {
            return;
        }
        self.place_after = now + PLACE_RETRY;
        self.in_placing.extend(vacancies.iter().map(|vacancy| vacancy.slot.partition));
        let placer = Placer {
            kafka: Arc::downgrade(&self.kafka),
            store: Arc::clone(&self.store),
            scope: self.scope.clone(),
            topic: self.config.kafka.topics.events.clone(),
        };
        self.placing.push(placer.place(vacancies, self.look.leaders.clone()));
    }

    pub(super) fn on_placed(&mut self, Attempt { partitions, result }: Attempt) -> anyhow::Result<()> {
        self.place_after = Instant::now() + PLACE_RETRY;
        self.in_placing.retain(|partition| !partitions.contains(partition));
        match result {
            Ok(mut placed) => {
                self.status.store.up("Redis answers");
                self.hold_on(&mut placed);
                self.resume(placed);
            }
            Err(PlaceError::Store(error)) if error.is_final() => return Err(error.into()),
            Err(PlaceError::Store(error)) => self.status.store.down(&error.to_string()),
            Err(error @ PlaceError::Kafka(_)) => self.status.kafka.down(&error.to_string()),
        }
        self.tell_partitions();
        Ok(())
    }

    /// Lets the records come. The partitions were paused since before their read positions were moved.
    fn resume(&mut self, mut placed: Vec<Placed>) {
        placed.retain(|place| self.ledger.place(place.slot, place.start, place.committed, place.buckets));
        if placed.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(placed.len());
        for Placed { slot, .. } in &placed {
            list.add_partition(&self.config.kafka.topics.events, slot.partition);
        }
        let resumed = self.kafka.resume(&list);
        let resumed = resumed.and_then(|()| list.elements().iter().try_for_each(|element| element.error()));
        if let Err(error) = resumed {
            log::debug!("partitions are not placed yet: {error}");
            for Placed { slot, .. } in placed {
                self.ledger.displace(slot);
                self.pause(slot.partition);
            }
            return;
        }
        placed.into_iter().for_each(|placed| self.on_resumed(placed));
    }

    fn on_resumed(&mut self, Placed { slot, start, end, missing, .. }: Placed) {
        let partition = slot.partition;
        self.lags.place(partition, start);
        self.breakers.resumed(partition, end, Instant::now());
        log::info!(partition, offset = start.0; "partition {partition}: reading from offset {}", start.0);
        if let Some(count) = usize::try_from(missing).ok().filter(|count| *count > 0) {
            self.lose(Lost { partition, count, before: Offset(start.0) });
        }
    }

    pub(super) fn tell_partitions(&self) {
        let (assigned, unplaced) = (self.ledger.assigned().len(), self.ledger.unplaced());
        let (partitions, held) = (&self.status.partitions, self.breakers.reasons(Instant::now()));
        match (assigned, unplaced.len()) {
            _ if !held.is_empty() => partitions.down(&held.join("; ")),
            (0, _) => partitions.up("none assigned: more workers than partitions, or joining"),
            (_, 0) => partitions.up(&format!("{assigned} assigned")),
            (_, waiting) => {
                let backoffs = unplaced.iter().filter_map(|vacancy| self.backoffs.get(&vacancy.slot.partition));
                let mut whys: Vec<&str> = backoffs.map(|backoff| backoff.why.as_str()).collect();
                if self.guard.is_full_for_long(Instant::now()) {
                    whys.push("there is no room in Redis (REDIS_MEMORY_GUARD)");
                } else if whys.len() < waiting {
                    whys.push("see store and kafka");
                }
                partitions.down(&format!("{waiting} of {assigned} wait for their place; {}", whys.join("; ")));
            }
        }
    }

    pub(super) fn list(&self, partition: i32, offset: KafkaOffset) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        // It refuses offsets below zero only.
        drop(list.add_partition_offset(&self.config.kafka.topics.events, partition, offset));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_half_a_minute() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert!(backoff.is_over(now));
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoff.lengthen(now, String::new());
            waits.push(backoff.wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert!(!backoff.is_over(now + Duration::from_secs(29)));
        assert!(backoff.is_over(now + Duration::from_secs(30)));
    }
}
