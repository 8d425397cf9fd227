//! The loop: everything that happens to this worker happens here, one thing at a time.
//!
//! What it does on failure is always the same. A batch that Redis did not acknowledge, a position that was not where it
//! was left, a dead letter without an acknowledgement, a store that has lost something: the partitions concerned are
//! *displaced*, that is paused, their records in flight forgotten, and placed anew from what Redis then says. As long
//! as Redis or Kafka are away, placing them fails and is tried again; meanwhile the loop keeps polling, so that the
//! membership in the group stays alive.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use common::event::{EventTypes, Timestamp};
use common::kafka::{PublishError, consumer_config};
use common::shutdown::Shutdown;
use common::store::{BUCKETS, Batch, Heartbeat, PositionScope, Positions, Receipt, Store, StoreError, StoredEvent};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout, timeout_at};

use crate::breaker::{Breakers, Reaction};
use crate::commit::{Ledger, NextOffset, Offset, Slot, Ticket, Verdict, has_fallen};
use crate::dead_letter::DeadLetters;
use crate::decode::{Decoded, decode};
use crate::event_log::EventLog;
use crate::group::{Change, Group};
use crate::placement::{PlaceError, Placed, place};
use crate::recorder::Pending;
use crate::status::Status;
use crate::{Config, NAME};

/// Batches on their way to Redis at a time.
const MOST_IN_FLIGHT: usize = 4;
/// Housekeeping: commits, the log's window, retries.
const TICK: Duration = Duration::from_millis(100);
/// How long a bucket without events may lag behind.
const SETTLE_PERIOD: Duration = Duration::from_secs(1);
/// How often Redis is told that this worker lives, and asked for the positions it holds.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(3);
/// Between attempts to place partitions.
const PLACE_RETRY: Duration = Duration::from_millis(250);
/// For moving the read position, which happens inside the client.
const SEEK_TIMEOUT: Duration = Duration::from_millis(500);

type Written = (Ticket, Vec<StoredEvent>, Result<Receipt, StoreError>);
type Buried = (Pending, Result<(), PublishError>);
/// What was acknowledged before the look, and what the look found: what is wrong with the server, and the positions.
type Beaten = (Vec<(Slot, [NextOffset; BUCKETS])>, Result<(Vec<String>, HashMap<i32, Positions>), StoreError>);

/// A member of the group, with all it is doing.
pub struct Consumer {
    config: Config,
    status: Arc<Status>,
    kafka: Arc<StreamConsumer<Group>>,
    changes: UnboundedReceiver<Change>,
    store: Arc<Store>,
    scope: PositionScope,
    letters: Arc<DeadLetters>,
    types: EventTypes,
    ledger: Ledger,
    breakers: Breakers,
    log: EventLog,
    /// Read, not yet on its way.
    pending: Pending,
    /// Waiting for its dead letters; nothing overtakes it.
    burying: Option<BoxFuture<'static, Buried>>,
    /// On their way to Redis, in order.
    writes: FuturesOrdered<BoxFuture<'static, Written>>,
    placing: Option<BoxFuture<'static, Result<Vec<Placed>, PlaceError>>>,
    beating: Option<BoxFuture<'static, Beaten>>,
    /// What is wrong with the Redis server, as last said.
    warnings: Vec<String>,
    place_after: Instant,
    beat_after: Instant,
    settle_after: Instant,
    /// Batches that found no home, while draining.
    failed: usize,
}

impl Consumer {
    /// A consumer that has not joined yet.
    ///
    /// # Errors
    /// When the client settings are refused.
    pub fn new(config: &Config, status: Arc<Status>) -> anyhow::Result<Self> {
        let (sender, changes) = unbounded_channel();
        let topic = &config.kafka.topics.events;
        let group = Group::new(topic, Arc::clone(&status), sender);
        let kafka: StreamConsumer<Group> =
            consumer_config(&config.kafka, NAME, &config.consumer).create_with_context(group)?;
        let letters = DeadLetters::new(&config.kafka, NAME, &config.consumer.group, &config.name)?;
        let now = Instant::now();
        Ok(Self {
            status,
            kafka: Arc::new(kafka),
            changes,
            store: Arc::new(Store::new(&config.redis)?),
            scope: PositionScope::new(&config.consumer.group, topic),
            letters: Arc::new(letters),
            types: EventTypes::default(),
            ledger: Ledger::default(),
            breakers: Breakers::new(config.breaker),
            log: EventLog::new(config.event_log, now),
            pending: Pending::default(),
            burying: None,
            writes: FuturesOrdered::new(),
            placing: None,
            beating: None,
            warnings: Vec::new(),
            place_after: now,
            beat_after: now,
            settle_after: now + SETTLE_PERIOD,
            failed: 0,
            config: config.clone(),
        })
    }

    /// Works until `shutdown` is cancelled, then drains.
    ///
    /// # Errors
    /// When the client has failed for good, the store's data is of another layout, or the drain left something behind.
    pub async fn run(mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        self.kafka.subscribe(&[&self.config.kafka.topics.events])?;
        let kafka = Arc::clone(&self.kafka);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_what_is_due();
            // In this order: the end; changes of the assignment, which make records stale; answers, which free room;
            // time; and only then new records.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(change) = self.changes.recv() => self.on_change(change),
                Some(written) = self.writes.next() => self.on_written(written),
                buried = finished(&mut self.burying) => self.on_buried(buried),
                placed = finished(&mut self.placing) => self.on_placed(placed)?,
                beaten = finished(&mut self.beating) => self.on_beaten(beaten)?,
                _ = tick.tick() => self.on_tick(),
                () = when(self.pending.due()), if self.has_room() => self.dispatch(),
                record = kafka.recv(), if !self.pending.is_full() => self.on_records(&kafka, record)?,
            }
        }
        drop(kafka);
        self.drain().await
    }

    fn has_room(&self) -> bool {
        self.writes.len() < MOST_IN_FLIGHT && self.burying.is_none()
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.pending.is_full() && self.has_room() {
            self.dispatch();
        }
        if self.placing.is_none() && now >= self.place_after {
            self.start_placing();
        }
        if self.beating.is_none() && now >= self.beat_after {
            self.start_beating(now);
        }
    }

    // ---- Records -----------------------------------------------------------------------------------------------

    /// Takes a record and those that wait behind it, until the batch is full.
    fn on_records(
        &mut self,
        kafka: &StreamConsumer<Group>,
        first: Result<BorrowedMessage<'_>, KafkaError>,
    ) -> anyhow::Result<()> {
        let (now, clock) = (Timestamp::now(), Instant::now());
        let mut next = Some(first);
        while let Some(record) = next {
            match record {
                Ok(record) => self.on_record(&record, now, clock),
                Err(error @ (KafkaError::MessageConsumptionFatal(_) | KafkaError::ClientConfig(..))) => {
                    return Err(error).context("the Kafka consumer has failed for good; a restart makes a new one");
                }
                Err(error) => log::warn!("reading from Kafka: {error}"),
            }
            // A change of the assignment may have come with it; it is first in line.
            let more = !self.pending.is_full() && self.changes.is_empty();
            next = if more { kafka.recv().now_or_never() } else { None };
        }
        Ok(())
    }

    fn on_record(&mut self, record: &BorrowedMessage<'_>, now: Timestamp, clock: Instant) {
        let (partition, offset) = (record.partition(), Offset(record.offset()));
        match self.ledger.deliver(partition, offset) {
            Verdict::Accepted { slot, missing } => {
                if missing > 0 {
                    self.count_missing(partition, missing, offset);
                }
                let decoded = decode(record, &self.types, &self.config.name, now);
                match self.breakers.observe(partition, matches!(decoded, Decoded::Poison(_)), clock) {
                    Reaction::Pass => self.pending.add(slot, offset.next(), decoded, clock),
                    Reaction::PassThenPause => {
                        self.pending.add(slot, offset.next(), decoded, clock);
                        self.pause(partition);
                    }
                    Reaction::Probed => {}
                    Reaction::Displace => self.displace(slot),
                }
            }
            Verdict::Stale => {}
            Verdict::Displaced => {
                log::info!(partition, offset = offset.0; "partition {partition}: offset {} is not where it was placed; placing it anew", offset.0);
                self.after_displacement(partition);
            }
        }
    }

    fn count_missing(&self, partition: i32, missing: i64, before: Offset) {
        self.status.counters.skipped_offsets.add(usize::try_from(missing).unwrap_or(usize::MAX));
        log::warn!(partition, missing, before = before.0;
            "partition {partition}: {missing} offsets before {} are not on the topic any more (retention, compaction or transaction markers)", before.0);
    }

    // ---- Batches -----------------------------------------------------------------------------------------------

    /// Sends what is pending on its way: first its dead letters, then to Redis.
    fn dispatch(&mut self) {
        let batch = std::mem::take(&mut self.pending);
        if batch.letters.is_empty() {
            self.write(batch);
            return;
        }
        let letters = Arc::clone(&self.letters);
        self.burying = Some(Box::pin(async move {
            let result = letters.publish(&batch.letters).await;
            (batch, result)
        }));
    }

    fn on_buried(&mut self, (batch, result): Buried) {
        match result {
            Ok(()) => {
                self.status.counters.dead_lettered.add(batch.letters.len());
                self.write(batch);
            }
            Err(error) => {
                self.failed += 1;
                log::error!(
                    "{} dead letters can't be published, their partitions wait: {error}; check the topic {} (it must exist, allow max.message.bytes above that of the events, and be writable)",
                    batch.letters.len(),
                    self.config.kafka.topics.dead_letters
                );
                batch.ends.into_values().for_each(|(slot, _)| self.displace(slot));
            }
        }
    }

    fn write(&mut self, batch: Pending) {
        let events = Batch { events: batch.events, ..Batch::default() };
        let touched = events.touches(self.config.user_index);
        let (ticket, moves) = self.ledger.dispatch(batch.ends.into_values(), touched);
        self.send(ticket, Batch { moves, ..events });
    }

    fn send(&mut self, ticket: Ticket, batch: Batch) {
        let (store, scope, user_index) = (Arc::clone(&self.store), self.scope.clone(), self.config.user_index);
        self.writes.push_back(Box::pin(async move {
            let result = store.write(&scope, &batch, user_index).await;
            (ticket, batch.events, result)
        }));
    }

    fn on_written(&mut self, (ticket, events, result): Written) {
        match result {
            Ok(receipt) => {
                self.status.store.up("Redis answers");
                self.count(&events, &receipt);
                for slot in ticket.slots().filter(|slot| receipt.mismatches.contains(&slot.partition)) {
                    log::warn!(partition = slot.partition; "partition {}: its position in Redis is not where this worker left it; placing it anew", slot.partition);
                    self.displace(slot);
                }
                self.ledger.acknowledge(&ticket);
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
        counters.new.add(events.len() - receipt.duplicates.len());
        counters.duplicates.add(receipt.duplicates.len());
        let mut duplicates = receipt.duplicates.iter().peekable();
        for (nth, event) in events.iter().enumerate() {
            let duplicate = duplicates.next_if_eq(&&nth).is_some();
            if !self.log.admits(duplicate) {
                continue;
            }
            let (id, user, kind) = (event.id().as_str(), event.user_id().as_str(), event.event_type().as_str());
            let what = if duplicate { "skipped duplicate event" } else { "processed event" };
            log::info!(eventId = id, userId = user, eventType = kind; "{what}");
        }
    }

    // ---- Places ------------------------------------------------------------------------------------------------

    fn on_change(&mut self, change: Change) {
        match change {
            Change::Assigned(partitions) => {
                partitions.iter().for_each(|partition| self.ledger.assign(*partition));
                self.place_after = Instant::now();
            }
            Change::Revoked(partitions) => {
                for partition in partitions {
                    self.ledger.revoke(partition);
                    self.breakers.revoke(partition);
                    self.pending.forget(partition);
                }
            }
        }
        self.tell_partitions();
    }

    fn displace(&mut self, slot: Slot) {
        if self.ledger.displace(slot) {
            self.after_displacement(slot.partition);
        }
    }

    fn after_displacement(&mut self, partition: i32) {
        self.status.counters.replacements.add(1);
        self.pending.forget(partition);
        self.breakers.rewind(partition);
        self.pause(partition);
        self.tell_partitions();
    }

    fn pause(&self, partition: i32) {
        if let Err(error) = self.kafka.pause(&self.list([(partition, KafkaOffset::Invalid)])) {
            log::debug!("partition {partition}: can't be paused, its records are dropped instead: {error}");
        }
    }

    fn start_placing(&mut self) {
        let now = Instant::now();
        let mut slots = self.ledger.unplaced();
        slots.retain(|slot| self.breakers.may_place(slot.partition, now));
        if slots.is_empty() {
            return;
        }
        let (kafka, store, scope) = (Arc::clone(&self.kafka), Arc::clone(&self.store), self.scope.clone());
        let topic = self.config.kafka.topics.events.clone();
        self.placing = Some(Box::pin(place(kafka, store, scope, topic, slots)));
    }

    fn on_placed(&mut self, placed: Result<Vec<Placed>, PlaceError>) -> anyhow::Result<()> {
        self.place_after = Instant::now() + PLACE_RETRY;
        match placed {
            Ok(placed) => {
                self.status.store.up("Redis answers");
                placed.into_iter().for_each(|placed| self.resume(placed));
            }
            Err(PlaceError::Store(error @ StoreError::Layout { .. })) => return Err(error.into()),
            Err(PlaceError::Store(error)) => self.status.store.down(&error.to_string()),
            Err(error @ PlaceError::Kafka(_)) => self.status.kafka.down(&error.to_string()),
        }
        self.tell_partitions();
        Ok(())
    }

    /// Moves the read position and lets the records come. Nothing else can touch the partition in between.
    fn resume(&mut self, Placed { slot, start, committed, missing }: Placed) {
        if !self.ledger.place(slot, start, committed) {
            return;
        }
        let partition = slot.partition;
        let at = self.list([(partition, KafkaOffset::Offset(start.0))]);
        let sought = tokio::task::block_in_place(|| self.kafka.seek_partitions(at, SEEK_TIMEOUT));
        let sought = sought.and_then(|list| list.elements().iter().try_for_each(|element| element.error()));
        if let Err(error) = sought.and_then(|()| self.kafka.resume(&self.list([(partition, KafkaOffset::Invalid)]))) {
            // Right after an assignment the client may not have begun with the partition yet.
            log::debug!("partition {partition}: not placed yet: {error}");
            self.ledger.displace(slot);
            return;
        }
        log::info!(partition, offset = start.0; "partition {partition}: reading from offset {}", start.0);
        if missing > 0 {
            self.count_missing(partition, missing, Offset(start.0));
        }
    }

    fn tell_partitions(&self) {
        let (assigned, unplaced) = (self.ledger.assigned().len(), self.ledger.unplaced().len());
        let (partitions, held) = (&self.status.partitions, self.breakers.reasons(Instant::now()));
        match (assigned, unplaced) {
            _ if !held.is_empty() => partitions.down(&held.join("; ")),
            (0, _) => partitions.up("none assigned: more workers than partitions, or joining"),
            (_, 0) => partitions.up(&format!("{assigned} assigned")),
            (_, _) => partitions.down(&format!("{unplaced} of {assigned} wait for their place; see store and kafka")),
        }
    }

    // ---- Time --------------------------------------------------------------------------------------------------

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.commit();
        if let Some(summary) = self.log.turn(now) {
            log::info!(new = summary.new, duplicates = summary.duplicates;
                "processed {} more events in the last second, {} of them duplicates", summary.new + summary.duplicates, summary.duplicates);
        }
        self.turn_breakers(now);
        if now >= self.settle_after && self.has_room() {
            self.settle_after = now + SETTLE_PERIOD;
            self.settle();
        }
    }

    fn turn_breakers(&mut self, now: Instant) {
        let (resume, displace) = self.breakers.due(now);
        for partition in resume {
            if let Err(error) = self.kafka.resume(&self.list([(partition, KafkaOffset::Invalid)])) {
                log::warn!("partition {partition}: can't be resumed: {error}");
            }
        }
        for partition in displace {
            if let Some(slot) = self.ledger.current(partition) {
                self.displace(slot);
            }
        }
        if !self.breakers.reasons(now).is_empty() {
            self.tell_partitions();
        }
    }

    fn settle(&mut self) {
        if let Some((ticket, moves)) = self.ledger.settle() {
            self.send(ticket, Batch { moves, ..Batch::default() });
        }
    }

    fn commit(&mut self) {
        let commits = self.take_commits();
        if commits.is_empty() {
            return;
        }
        let group = self.kafka.context();
        if let Err(error) = self.kafka.commit(&group.commit_list(&commits), CommitMode::Async) {
            log::debug!("commit not sent, the next one makes up for it: {error}");
        }
    }

    /// What is to be committed now, also by a revocation that comes before the next time.
    fn take_commits(&mut self) -> Vec<(i32, NextOffset)> {
        let commits = self.ledger.take_commits();
        self.kafka.context().note_stored(&commits);
        commits
    }

    /// Tells Redis that this worker lives and compares the positions it holds with those that were acknowledged: the
    /// one way to notice in silence that it has lost something.
    fn start_beating(&mut self, now: Instant) {
        self.beat_after = now + HEARTBEAT_PERIOD;
        let (store, scope) = (Arc::clone(&self.store), self.scope.clone());
        let acknowledged = self.ledger.acknowledged();
        let heartbeat = Heartbeat {
            member: self.config.name.clone(),
            partitions: self.ledger.assigned(),
            stored: self.status.counters.new.get(),
        };
        self.beating = Some(Box::pin(async move {
            let partitions: Vec<i32> = acknowledged.iter().map(|(slot, _)| slot.partition).collect();
            let found = async {
                store.check().await?;
                let warnings = store.inspect().await?;
                store.beat(&heartbeat).await?;
                Ok((warnings, store.positions(&scope, &partitions).await?))
            };
            let found = found.await;
            (acknowledged, found)
        }));
    }

    fn on_beaten(&mut self, (acknowledged, found): Beaten) -> anyhow::Result<()> {
        let (warnings, found) = match found {
            Ok(found) => found,
            Err(error @ (StoreError::Layout { .. } | StoreError::Unfit { .. })) => return Err(error.into()),
            Err(error) => {
                self.status.store.down(&error.to_string());
                return Ok(());
            }
        };
        self.status.store.up("Redis answers");
        if self.warnings != warnings {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
            self.warnings = warnings;
        }
        for (slot, acked) in acknowledged {
            if found.get(&slot.partition).is_some_and(|found| has_fallen(&acked, found)) {
                log::warn!(partition = slot.partition; "partition {}: Redis has lost positions, and so perhaps data; placing it anew", slot.partition);
                self.displace(slot);
            }
        }
        Ok(())
    }

    fn list(&self, offsets: impl IntoIterator<Item = (i32, KafkaOffset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            // It refuses offsets below zero only.
            drop(list.add_partition_offset(&self.config.kafka.topics.events, partition, offset));
        }
        list
    }

    // ---- The end -----------------------------------------------------------------------------------------------

    /// Finishes what is in flight, commits and leaves the group, each within what is left of the shutdown time.
    async fn drain(mut self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + self.config.shutdown_timeout;
        self.failed = 0;
        let finished = timeout_at(deadline, self.finish()).await;
        let commits = self.take_commits();
        let (kafka, name) = (self.kafka, self.config.name.clone());
        let left = timeout(Duration::from_secs(1), self.store.leave(&name)).await;
        if !matches!(left, Ok(Ok(()))) {
            log::debug!("the heartbeat could not be taken back; it expires by itself");
        }
        let committed = within(deadline, move || {
            let list = kafka.context().commit_list(&commits);
            let result = if commits.is_empty() { Ok(()) } else { kafka.commit(&list, CommitMode::Sync) };
            // Leaves the group, so that others take over at once.
            drop(kafka);
            result
        });
        let committed = committed.await;
        ensure!(finished.is_ok(), "drain ended by its deadline with batches in flight; they will be read again");
        ensure!(self.failed == 0, "drain: {} batches were not stored; they will be read again", self.failed);
        match committed {
            Some(result) => result.context("drain: the last commit failed; what it covers will be read again"),
            None => bail!(
                "drain ended by its deadline while leaving the group; others take over after the session time-out"
            ),
        }
    }

    async fn finish(&mut self) {
        loop {
            if self.pending.due().is_some() && self.has_room() {
                self.dispatch();
            }
            tokio::select! {
                biased;
                Some(written) = self.writes.next() => self.on_written(written),
                buried = finished(&mut self.burying), if self.burying.is_some() => self.on_buried(buried),
                else => match self.ledger.settle() {
                    Some((ticket, moves)) => self.send(ticket, Batch { moves, ..Batch::default() }),
                    None => break,
                },
            }
        }
    }
}

/// The result of a task that may not be there; never, while it is not.
async fn finished<T>(task: &mut Option<BoxFuture<'static, T>>) -> T {
    match task {
        Some(running) => {
            let result = running.await;
            *task = None;
            result
        }
        None => pending().await,
    }
}

async fn when(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// Runs something that may block for longer than there is time: on a thread of its own, which is then left behind.
async fn within<T: Send + 'static>(
    deadline: tokio::time::Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    timeout_at(deadline, receiver).await.ok()?.ok()
}
