//! Membership in the consumer group: what the client library calls back with.
//!
//! The callbacks run inside `recv`, so they stay short: a newly assigned partition is paused at once and the loop is
//! told; it finds the partition's place and resumes it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use common::kafka::{NoBrokers, Refusal, log_line};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::{Statistics, Topic};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::mpsc::UnboundedSender;

use crate::commit::NextOffset;
use crate::status::Status;

/// A change of what this worker reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These were added; they are paused.
    Assigned(Vec<i32>),
    /// These were taken away.
    Revoked(Vec<i32>),
    /// How far the client is, every few seconds.
    Looked(Look),
    /// The client has lost all brokers, for good.
    Stranded,
}

/// The client of a consumer has no brokers left and never finds any again; see [`NoBrokers`].
#[derive(Debug, thiserror::Error)]
#[error("the Kafka client has lost all brokers, after one said that there are none")]
pub struct Stranded;

/// What the client knows of the topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// How many partitions it has.
    pub partitions: usize,
    /// Those that have a leader, and which broker that is.
    pub leaders: BTreeMap<i32, i32>,
    /// Where the logs begin, as of the last fetch from each.
    pub starts: BTreeMap<i32, NextOffset>,
    /// Before these everything that can be read has been handed over.
    pub drained: Vec<(i32, NextOffset)>,
}

impl Look {
    /// What matters of librdkafka's statistics (its STATISTICS.md).
    fn of(topic: &Topic) -> Self {
        let known = || topic.partitions.values().filter(|partition| partition.partition >= 0 && !partition.unknown);
        let drained = known().filter(|partition| {
            partition.fetch_state == "active" && partition.fetchq_cnt == 0 && partition.next_offset >= 0
        });
        Self {
            partitions: known().count(),
            leaders: known()
                .filter(|partition| partition.leader >= 0)
                .map(|partition| (partition.partition, partition.leader))
                .collect(),
            starts: known()
                .filter(|partition| partition.lo_offset >= 0)
                .map(|partition| (partition.partition, NextOffset(partition.lo_offset)))
                .collect(),
            drained: drained.map(|partition| (partition.partition, NextOffset(partition.next_offset))).collect(),
        }
    }
}

/// The context of the consumer.
pub struct Group {
    topic: String,
    status: Arc<Status>,
    changes: UnboundedSender<Change>,
    /// What may be committed of each partition, for the moment it is taken away.
    stored: Mutex<BTreeMap<i32, NextOffset>>,
    /// Why no connection comes about.
    refusal: Refusal,
    no_brokers: NoBrokers,
    retired: AtomicBool,
}

impl Group {
    /// A context that reports to `changes` and `status`.
    #[must_use]
    pub fn new(topic: &str, status: Arc<Status>, changes: UnboundedSender<Change>) -> Self {
        Self {
            topic: topic.to_owned(),
            status,
            changes,
            stored: Mutex::default(),
            refusal: Refusal::default(),
            no_brokers: NoBrokers::default(),
            retired: AtomicBool::default(),
        }
    }

    /// Notes what may be committed.
    pub fn note_stored(&self, commits: &[(i32, NextOffset)]) {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).extend(commits.iter().copied());
    }

    /// What its client does from now on is of no interest: another has taken its place.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Commits as offsets of this group's topic.
    #[must_use]
    pub fn commit_list(&self, commits: &[(i32, NextOffset)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(commits.len());
        for (partition, next) in commits {
            // It refuses offsets below zero only, and a next offset is none.
            drop(list.add_partition_offset(&self.topic, *partition, KafkaOffset::Offset(next.0)));
        }
        list
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> KafkaResult<()> {
        // Any number will do: it is paused before it fetches, and sought before it is resumed. Without one the client
        // would ask for the group's commit, only for us to overrule it.
        list.set_all_offsets(KafkaOffset::Offset(0))?;
        consumer.incremental_assign(list)?;
        consumer.pause(list)
    }

    /// The new owner starts at the commit, so it is made now; that it arrives is not needed.
    fn commit_revoked(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let commits: Vec<_> = partitions.iter().filter_map(|p| Some((*p, stored.remove(p)?))).collect();
        drop(stored);
        if commits.is_empty() || consumer.assignment_lost() {
            return;
        }
        if let Err(error) = consumer.commit(&self.commit_list(&commits), CommitMode::Async) {
            log::debug!("no commit on revocation: {error}");
        }
    }

    fn no_broker(&self) {
        let why = self.refusal.suffix();
        self.status.kafka.down(&format!("no Kafka broker answers; check KAFKA_BROKERS and the brokers{why}"));
    }

    fn tell(&self, change: Change) {
        // The loop that listens ends after the consumer only while the process ends.
        drop(self.changes.send(change));
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.refusal.note(facility, message);
        log_line(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        if self.is_retired() {
            return;
        }
        self.no_brokers.note(&statistics);
        if self.no_brokers.for_good() {
            self.tell(Change::Stranded);
        }
        let up = statistics.brokers.values().any(|broker| broker.source == "learned" && broker.state == "UP");
        if let Some(topic) = statistics.topics.get(&self.topic) {
            self.tell(Change::Looked(Look::of(topic)));
        }
        let joined = statistics.cgrp.is_some_and(|group| group.join_state == "steady");
        match (up, joined) {
            (true, true) => self.status.kafka.up("in the group"),
            (true, false) => self.status.kafka.down("joining the group"),
            (false, _) => self.no_broker(),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) && !self.is_retired() {
            self.no_broker();
        }
        log::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.is_retired() {
            drop(consumer.unassign());
            return;
        }
        let named = partitions(list);
        self.status.metrics.rebalanced();
        let done = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                log::info!(partitions:? = named; "assigned {named:?}");
                self.status.kafka.up("in the group");
                let done = self.assign(consumer, list);
                self.tell(Change::Assigned(named));
                done
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                log::info!(partitions:? = named; "revoked {named:?}");
                self.commit_revoked(consumer, &named);
                self.tell(Change::Revoked(named));
                consumer.incremental_unassign(list)
            }
            other => {
                log::error!("rebalance failed: {}", RDKafkaErrorCode::from(other));
                self.tell(Change::Revoked(named));
                consumer.unassign()
            }
        };
        if let Err(error) = done {
            log::error!("rebalance: the client refused the assignment: {error}");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(()) => self.status.note_commit(Instant::now()),
            Err(error) => log::debug!("commit failed, it is repeated with the next heartbeat: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::shutdown::Shutdown;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn a_client_that_has_lost_its_brokers_is_told_and_one_that_was_replaced_tells_nothing() {
        let status = Arc::new(Status::new(Shutdown::default()));
        let (sender, mut changes) = unbounded_channel();
        let group = Group::new("events", Arc::clone(&status), sender);
        group.stats(Statistics::default());
        assert!(changes.try_recv().is_err(), "one look proves nothing");
        group.stats(Statistics::default());
        assert_eq!(changes.try_recv(), Ok(Change::Stranded));

        status.kafka.up("another one is in the group");
        group.retire();
        group.stats(Statistics::default());
        group.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "");
        assert!(changes.try_recv().is_err() && status.kafka.get().ok);
    }
}
