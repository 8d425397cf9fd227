//! Batches on their way: dead letters first, then Redis.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use common::mutation::{Mutation, active};
use common::store::{Batch, PositionScope, Receipt, Store, StoreError, StoredEvent, UserIndex};

use super::Consumer;
use crate::commit::{NextOffset, Ticket};
use crate::dead_letter::{self, DeadLetter};
use crate::recorder::Pending;
use crate::traces::BatchSpan;

/// Batches on their way to Redis at a time.
const MOST_IN_FLIGHT: usize = 4;

/// A batch, and what Redis said.
pub(super) type Written = (Ticket, Vec<StoredEvent>, Result<Receipt, StoreError>);
/// A batch, and what became of its dead letters.
pub(super) type Buried = (Pending, dead_letter::Buried);

impl Consumer {
    /// Whether something of what is pending could go on its way.
    pub(super) fn can_dispatch(&self) -> bool {
        self.writes.len() < MOST_IN_FLIGHT
            && self.guard.has_room()
            && (self.burying.is_none() || {
                let waiting = self.waiting();
                self.pending.ends.keys().any(|partition| !waiting.contains(partition))
            })
    }

    /// Partitions that must wait for a burial to end: those it is of, and those that need one themselves.
    fn waiting(&self) -> BTreeSet<i32> {
        self.pending.lettered().union(&self.in_burial).copied().collect()
    }

    /// Sends what is pending on its way: partitions without dead letters to Redis at once, the others first to the
    /// dead-letter topic.
    pub(super) fn dispatch(&mut self) {
        let waiting = self.waiting();
        let mut batch = std::mem::take(&mut self.pending);
        let aside = batch.split_off(&waiting);
        self.write(batch);
        if self.burying.is_some() {
            self.pending = aside;
        } else if !aside.letters.is_empty() {
            self.bury(aside);
        }
    }

    fn bury(&mut self, batch: Pending) {
        let (letters, store) = (Arc::clone(&self.letters), Arc::clone(&self.store));
        if active(Mutation::DeadLetterNotAwaited) {
            let unawaited = batch.letters.clone();
            tokio::spawn(async move { letters.publish(&unawaited).await });
            return self.write(batch);
        }
        self.in_burial = batch.lettered();
        self.burying = Some(Box::pin(async move {
            let buried = letters.publish(&batch.letters).await;
            let done = batch.letters.iter().filter(|letter| !buried.failures.contains_key(&letter.partition()));
            let known: Vec<_> = done.filter_map(DeadLetter::event_id_and_reason).collect();
            // For those who ask what became of their event; nothing rests on it.
            if let Err(error) = store.note_dead_letters(&known).await {
                log::debug!("dead letters are not noted: {error}");
            }
            (batch, buried)
        }));
    }

    /// What could be buried goes on to Redis. A partition goes no further than its first letter that could not, and
    /// is then displaced, so that it is read again from there.
    pub(super) fn on_buried(&mut self, (mut batch, buried): Buried) {
        let dead_letter::Buried { failures, truncated } = buried;
        self.in_burial.clear();
        self.status.counters.truncated.add(truncated);
        // Those behind a failure are read again, and counted then.
        let is_done = |letter: &&DeadLetter| {
            failures.get(&letter.partition()).is_none_or(|(first_failed, _)| letter.offset() < *first_failed)
        };
        let counted = &self.status.counters.dead_lettered;
        batch.letters.iter().filter(is_done).for_each(|letter| counted.add_one(letter.reason()));
        let mut waiting = Vec::new();
        for (partition, (offset, error)) in &failures {
            log::error!(partition, offset = offset.0;
                "partition {partition} waits at offset {}: its dead letter can't be published: {error}; the topic {} must exist, \
                 be writable, and take records of some size",
                offset.0, self.config.kafka.topics.dead_letters);
            let why = format!("partition {partition} can't publish the dead letter of offset {}: {error}", offset.0);
            waiting.extend(batch.ends.get(partition).map(|(slot, _)| (*slot, why)));
            batch.cut(*partition, *offset);
        }
        for partition in batch.ends.keys().filter(|partition| !failures.contains_key(partition)) {
            self.backoffs.remove(partition);
        }
        for partition in batch.ends.keys().filter(|partition| self.ledger.current(**partition).is_none()) {
            // Taken away meanwhile, and forgotten before these came.
            self.letters.forget(*partition, NextOffset(i64::MAX));
        }
        self.failed += failures.len();
        self.write(batch);
        for (slot, why) in waiting {
            self.backoffs.entry(slot.partition).or_default().lengthen(Instant::now(), why);
            self.displace(slot);
        }
    }

    fn write(&mut self, mut batch: Pending) {
        // What is not ours any more, or waits for a new place, is read again; without its position it is not written.
        let present = |partition| batch.ends.get(&partition).is_some_and(|(slot, _)| self.ledger.is_live(*slot));
        batch.events.retain(|event| present(event.partition()));
        if batch.ends.is_empty() && batch.events.is_empty() {
            return;
        }
        let events = Batch { events: batch.events, ..Batch::default() };
        let touched = events.touches(self.config.redis.user_index, self.ledger.buckets());
        let span = self.traces.as_mut().filter(|_| !events.events.is_empty()).map(|traces| {
            let ends = batch.ends.iter().map(|(partition, (_, end))| (*partition, *end));
            traces.begin(ends, events.events.len())
        });
        let (ticket, moves) = self.ledger.dispatch(batch.ends.into_values(), touched);
        self.send(ticket, Batch { moves, ..events }, span);
    }

    /// Brings the positions of buckets without events up to date.
    pub(super) fn settle(&mut self) -> bool {
        let lagging = self.ledger.settle();
        let found = lagging.is_some();
        if let Some((ticket, moves)) = lagging {
            self.send(ticket, Batch { moves, ..Batch::default() }, None);
        }
        found
    }

    fn send(&mut self, ticket: Ticket, batch: Batch, span: Option<BatchSpan>) {
        let (store, scope, user_index) = (Arc::clone(&self.store), self.scope.clone(), self.config.redis.user_index);
        let status = Arc::clone(&self.status);
        self.guard.sent(batch.events.iter().map(StoredEvent::size).sum(), Instant::now());
        self.writes.push_back(Box::pin(async move {
            if active(Mutation::PositionsAhead) {
                let result = positions_first(&store, &scope, batch, user_index).await;
                return (ticket, Vec::new(), result);
            }
            let since = Instant::now();
            let result = store.write(&scope, &batch, user_index).await;
            status.metrics.wrote(result.is_ok().then_some(batch.events.len()), since.elapsed());
            span.into_iter().for_each(|span| span.ended(&result));
            (ticket, batch.events, result)
        }));
    }

    pub(super) fn on_written(&mut self, (ticket, events, result): Written) {
        match result {
            Ok(receipt) => {
                self.status.store.up("Redis answers");
                self.count(&events, &receipt);
                let ignored = active(Mutation::IgnoreMismatch);
                for slot in ticket.slots().filter(|slot| !ignored && receipt.unmoved.contains(&slot.partition)) {
                    if receipt.mismatches.contains(&slot.partition) {
                        log::warn!(partition = slot.partition;
                            "partition {}: its position in Redis is not where this worker left it; placing it anew", slot.partition);
                    }
                    self.displace(slot);
                }
                self.ledger.acknowledge(&ticket);
                for slot in ticket.slots() {
                    if let Some(stored) = self.ledger.stored(slot) {
                        self.lags.store(slot.partition, stored, Instant::now());
                        // A partition that was displaced comes by its letters again.
                        self.letters.forget(slot.partition, stored);
                    }
                }
            }
            Err(error) => {
                self.failed += 1;
                self.status.store.down(&error.to_string());
                ticket.slots().for_each(|slot| self.displace(slot));
            }
        }
    }

    fn count(&mut self, events: &[StoredEvent], receipt: &Receipt) {
        let counters = &self.status.counters;
        let absent = receipt.unwritten.len() + receipt.expired.len();
        counters.new.add(events.len() - receipt.duplicates.len() - absent);
        counters.duplicates.add(receipt.duplicates.len());
        counters.expired.add(receipt.expired.len());
        for (nth, event) in events.iter().enumerate() {
            let among = |some: &[usize]| some.binary_search(&nth).is_ok();
            if among(&receipt.unwritten) || among(&receipt.expired) {
                continue;
            }
            let duplicate = among(&receipt.duplicates);
            if !self.log.admits(duplicate) {
                continue;
            }
            let (id, user, kind) = (event.id().as_str(), event.user_id().as_str(), event.event_type().as_str());
            let what = if duplicate { "skipped duplicate event" } else { "processed event" };
            log::info!(eventId = id, userId = user, eventType = kind; "{what}");
        }
    }
}

/// What the mutation `positions-ahead` does. The gap is longer than a quiet bucket's position may lag, which would hide
/// the hole.
async fn positions_first(
    store: &Store,
    scope: &PositionScope,
    batch: Batch,
    user_index: UserIndex,
) -> Result<Receipt, StoreError> {
    let Batch { events, moves } = batch;
    let receipt = store.write(scope, &Batch { moves, ..Batch::default() }, user_index).await?;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    store.write(scope, &Batch { events, ..Batch::default() }, user_index).await?;
    Ok(receipt)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use common::shutdown::Shutdown;
    use rdkafka::Timestamp;
    use rdkafka::consumer::Consumer as _;
    use rdkafka::message::OwnedMessage;
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::commit::{Offset, Slot, Verdict};
    use crate::decode::Decoded;
    use crate::group::Change;
    use crate::status::Status;
    use crate::{Cli, Config};

    /// A consumer without brokers and Redis, that has read offset 0 of partition 0, and the ticket of that batch.
    fn consumer() -> (Consumer, Ticket) {
        consumer_at("127.0.0.1:9")
    }

    pub(in crate::consumer) fn consumer_at(brokers: &str) -> (Consumer, Ticket) {
        let nowhere = ["worker", "--kafka-brokers", brokers, "--redis-url", "redis://127.0.0.1:9"];
        let cli: Cli = common::config::parse(nowhere, |_| None).unwrap();
        let status = Arc::new(Status::new(Shutdown::new()));
        let mut consumer = Consumer::new(&Config::check(&cli).unwrap(), status, None).unwrap();
        consumer.ledger.assign(0);
        let slot: Slot = consumer.ledger.unplaced()[0].slot;
        assert!(consumer.ledger.place(slot, NextOffset(0), Some(NextOffset(0)), 1));
        assert!(matches!(consumer.ledger.deliver(0, Offset(0)), Verdict::Accepted { .. }));
        let (ticket, _) = consumer.ledger.dispatch([(slot, NextOffset(1))], vec![true]);
        (consumer, ticket)
    }

    #[tokio::test]
    async fn an_acknowledged_batch_may_be_committed() {
        let (mut consumer, ticket) = consumer();
        consumer.on_written((ticket, Vec::new(), Ok(Receipt::default())));
        assert_eq!(consumer.ledger.take_commits(), [(0, NextOffset(1))]);
    }

    #[tokio::test]
    async fn nothing_is_remembered_of_a_partition_that_was_taken_away_while_its_letters_were_published() {
        let cluster = MockCluster::new(1).unwrap();
        let (mut consumer, _) = consumer_at(&cluster.bootstrap_servers());
        cluster.create_topic(&consumer.config.kafka.topics.dead_letters, 1, 1).unwrap();
        let value = Some(b"not json".to_vec());
        let record = OwnedMessage::new(value, None, "events".into(), Timestamp::NotAvailable, 0, 1, None);
        let slot = consumer.ledger.current(0).unwrap();
        let letter = Decoded::Poison(DeadLetter::new(&record, &[]));
        consumer.pending.add(slot, NextOffset(2), letter, Instant::now());
        consumer.dispatch();
        let burying = consumer.burying.take().unwrap();
        // The store is away: publishing ends all the same.
        let buried = burying.await;
        assert!(buried.1.failures.is_empty() && consumer.letters.remembers(0), "{:?}", buried.1);
        consumer.on_change(Change::Revoked(vec![0])).unwrap();
        assert!(!consumer.letters.remembers(0));
        // This time the partition goes first.
        let letters = Arc::clone(&consumer.letters);
        assert!(letters.publish(&buried.0.letters).await.failures.is_empty());
        consumer.on_buried(buried);
        assert!(!consumer.letters.remembers(0), "it is not ours any more");
    }

    #[tokio::test]
    async fn another_record_at_the_same_place_is_published_as_well() {
        let cluster = MockCluster::new(1).unwrap();
        let (consumer, _) = consumer_at(&cluster.bootstrap_servers());
        let topic = &consumer.config.kafka.topics.dead_letters;
        cluster.create_topic(topic, 1, 1).unwrap();
        // The second time each is known.
        for value in ["one", "one", "another", "another"] {
            let value = Some(value.into());
            let record = OwnedMessage::new(value, None, "events".into(), Timestamp::NotAvailable, 0, 1, None);
            let buried = consumer.letters.publish(&[DeadLetter::new(&record, &[])]).await;
            assert!(buried.failures.is_empty(), "{buried:?}");
        }
        let (_, end) = consumer.kafka.fetch_watermarks(topic, 0, Duration::from_secs(10)).unwrap();
        assert_eq!(end, 2);
    }

    #[tokio::test]
    async fn a_mismatch_displaces_the_partition_and_nothing_of_it_is_committed() {
        let (mut consumer, ticket) = consumer();
        let receipt = Receipt { unmoved: vec![0], ..Receipt::default() };
        consumer.on_written((ticket, Vec::new(), Ok(receipt)));
        assert_eq!(consumer.ledger.take_commits(), []);
        assert_eq!(consumer.ledger.unplaced().len(), 1);
    }

    #[tokio::test]
    async fn an_unanswered_write_displaces_the_partition_and_says_that_the_store_is_away() {
        let (mut consumer, ticket) = consumer();
        let error = StoreError::Corrupt("no answer".into());
        consumer.on_written((ticket, Vec::new(), Err(error)));
        assert_eq!(consumer.ledger.unplaced().len(), 1);
        assert!(!consumer.status.store.get().ok);
    }
}
