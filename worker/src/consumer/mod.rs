//! The loop: everything that happens to this worker happens here, one thing at a time.
//!
//! What it does on failure is always the same. A batch that Redis did not acknowledge, a position that was not where it
//! was left, a dead letter without an acknowledgement, a store that has lost something: the partitions concerned are
//! *displaced*, that is paused, their records in flight forgotten, and placed anew from what Redis then says. As long
//! as Redis or Kafka are away, placing them fails and is tried again; meanwhile the loop keeps polling, so that the
//! membership in the group stays alive.
//!
//! The loop and the records are here; `batches` sends them on their way, `places` says where partitions start,
//! `heartbeat`, `lags` and `room` look after what time brings, `holds` tells the next owner of a partition that it is held,
//! `drain` ends it all.

mod batches;
mod drain;
mod heartbeat;
mod holds;
mod lags;
mod places;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::event::{EventTypes, Timestamp};
use common::kafka::consumer_config;
use common::shutdown::Shutdown;
use common::store::{PositionScope, Store};
use common::traces::Traces;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, SelectAll, StreamExt};
use rdkafka::Message;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use self::batches::{Buried, Written};
use self::heartbeat::Beaten;
use self::holds::{Holds, Noted};
use self::lags::Measured;
use self::places::Backoff;
use self::room::{Guard, Looked};
use crate::breaker::{Breakers, Reaction};
use crate::commit::{Ledger, NextOffset, Offset, Verdict};
use crate::dead_letter::DeadLetters;
use crate::decode::{Decoded, decode};
use crate::event_log::EventLog;
use crate::gaps::Gaps;
use crate::group::{Change, Group, Look, Stranded};
use crate::lag::Lags;
use crate::placement::Attempt;
use crate::recorder::Pending;
use crate::status::Status;
use crate::traces::BatchTraces;
use crate::{Config, NAME};

/// Housekeeping: commits, the log's window, retries.
const TICK: Duration = Duration::from_millis(100);

/// A member of the group, with all it is doing.
pub struct Consumer {
    config: Config,
    /// Of each event that it stores.
    name: Arc<str>,
    status: Arc<Status>,
    kafka: Arc<StreamConsumer<Group>>,
    changes: UnboundedReceiver<Change>,
    store: Arc<Store>,
    scope: PositionScope,
    letters: Arc<DeadLetters>,
    types: EventTypes,
    ledger: Ledger,
    breakers: Breakers,
    holds: Holds,
    noting_holds: Option<BoxFuture<'static, Noted>>,
    lags: Lags,
    gaps: Gaps,
    /// What the client last said of the topic.
    look: Look,
    log: EventLog,
    /// `None`: nothing is traced.
    traces: Option<BatchTraces>,
    /// Read, not yet on its way.
    pending: Pending,
    /// Waiting for their dead letters, with the partitions they are of; nothing of these overtakes them.
    burying: Option<BoxFuture<'static, Buried>>,
    in_burial: BTreeSet<i32>,
    /// On their way to Redis, in order.
    writes: FuturesOrdered<BoxFuture<'static, Written>>,
    /// Attempts to place partitions, and the partitions that these are about.
    placing: SelectAll<BoxStream<'static, Attempt>>,
    in_placing: BTreeSet<i32>,
    /// Partitions whose dead letters can't be published.
    backoffs: BTreeMap<i32, Backoff>,
    beating: Option<BoxFuture<'static, Beaten>>,
    measuring: Option<BoxFuture<'static, Measured>>,
    guard: Guard,
    looking_for_room: Option<BoxFuture<'static, Looked>>,
    /// What is wrong with the Redis server, as last said.
    warnings: Vec<String>,
    place_after: Instant,
    beat_after: Instant,
    measure_after: Instant,
    settle_after: Instant,
    /// Batches that found no home, while draining.
    failed: usize,
}

impl Consumer {
    /// A consumer that has not joined yet.
    ///
    /// # Errors
    /// When the client settings are refused.
    pub fn new(config: &Config, status: Arc<Status>, traces: Option<Traces>) -> anyhow::Result<Self> {
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
            store: Arc::new(Store::of_worker(&config.redis, &config.name)?),
            scope: PositionScope::new(&config.consumer.group, topic),
            letters: Arc::new(letters),
            types: EventTypes::default(),
            ledger: Ledger::default(),
            breakers: Breakers::new(config.breaker),
            holds: Holds::new(now),
            noting_holds: None,
            lags: Lags::default(),
            gaps: Gaps::default(),
            look: Look::default(),
            log: EventLog::new(config.event_log, now),
            traces: traces.map(|traces| BatchTraces::new(traces, topic, &config.consumer.group)),
            pending: Pending::default(),
            burying: None,
            in_burial: BTreeSet::new(),
            writes: FuturesOrdered::new(),
            placing: SelectAll::new(),
            in_placing: BTreeSet::new(),
            backoffs: BTreeMap::new(),
            beating: None,
            measuring: None,
            guard: Guard::new(config.memory_guard, now),
            looking_for_room: None,
            warnings: Vec::new(),
            place_after: now,
            beat_after: now,
            measure_after: now,
            settle_after: now,
            failed: 0,
            name: config.name.as_str().into(),
            config: config.clone(),
        })
    }

    /// Works until `shutdown` is cancelled, then drains.
    ///
    /// # Errors
    /// When the client has failed for good, the store can't be used as it is, or the drain left something behind.
    pub async fn run(mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        self.kafka.subscribe(&[&self.config.kafka.topics.events])?;
        match self.work(shutdown).await {
            Ok(()) => self.drain().await,
            Err(error) if error.is::<Stranded>() => {
                self.abandon();
                Err(error)
            }
            Err(error) => {
                self.leave_at_once().await;
                Err(error)
            }
        }
    }

    async fn work(&mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let kafka = Arc::clone(&self.kafka);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_what_is_due();
            let due = self.pending.due(self.writes.is_empty());
            // In this order: the end; changes of the assignment, which make records stale; answers, which free room;
            // time; and only then new records.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(change) = self.changes.recv() => self.on_change(change)?,
                Some(written) = self.writes.next() => self.on_written(written),
                buried = finished(&mut self.burying) => self.on_buried(buried),
                Some(placed) = self.placing.next() => self.on_placed(placed)?,
                beaten = finished(&mut self.beating) => self.on_beaten(beaten)?,
                measured = finished(&mut self.measuring) => self.on_measured(measured),
                noted = finished(&mut self.noting_holds) => self.on_holds_noted(noted),
                looked = finished(&mut self.looking_for_room) => self.on_room(looked),
                _ = tick.tick() => self.on_tick(),
                () = when(due), if self.can_dispatch() => self.dispatch(),
                record = kafka.recv(), if !self.is_full() => self.on_records(&kafka, record)?,
            }
        }
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.pending.is_enough() && self.can_dispatch() {
            self.dispatch();
        }
        if now >= self.place_after {
            self.start_placing(now);
        }
        if self.beating.is_none() && now >= self.beat_after {
            self.start_beating(now);
        }
        if self.looking_for_room.is_none() && now >= self.guard.look_after {
            self.start_looking_for_room(now);
        }
        if self.measuring.is_none() && now >= self.measure_after {
            self.start_measuring(now);
        }
    }

    /// Whether the batch is not to grow any more: what all batches take together must not outrun the guard.
    fn is_full(&self) -> bool {
        self.pending.is_full() || (self.pending.is_enough() && !self.guard.has_room_beyond(self.pending.bytes()))
    }

    /// Takes a record and those that wait behind it, until the batch goes on its way or is full.
    fn on_records(
        &mut self,
        kafka: &StreamConsumer<Group>,
        first: Result<BorrowedMessage<'_>, KafkaError>,
    ) -> anyhow::Result<()> {
        let (now, clock) = (Timestamp::now(), Instant::now());
        // It changes by nothing that happens here.
        let (mut next, can_dispatch) = (Some(first), self.can_dispatch());
        while let Some(record) = next {
            match record {
                Ok(record) => self.on_record(&record, now, clock),
                Err(error) => on_read_error(error)?,
            }
            // A change of the assignment may have come with it; it is first in line.
            let goes = self.is_full() || (self.pending.is_enough() && can_dispatch);
            let more = !goes && self.changes.is_empty();
            next = if more { kafka.recv().now_or_never() } else { None };
        }
        Ok(())
    }

    fn on_record(&mut self, record: &BorrowedMessage<'_>, now: Timestamp, clock: Instant) {
        let (partition, offset) = (record.partition(), Offset(record.offset()));
        match self.ledger.deliver(partition, offset) {
            Verdict::Accepted { slot, missing } => {
                if missing > 0 {
                    self.gaps.meet(partition, NextOffset(offset.0 - missing), offset);
                }
                self.lags.read(partition, offset, record.timestamp().to_millis());
                let decoded = decode(record, &self.types, &self.name, now);
                if let (Some(traces), Decoded::Event(_)) = (&mut self.traces, &decoded) {
                    traces.read(record);
                }
                match self.breakers.observe(partition, offset, matches!(decoded, Decoded::Poison(_)), clock) {
                    Reaction::Pass => self.pending.add(slot, offset.next(), decoded, clock),
                    Reaction::PassThenPause => {
                        self.pending.add(slot, offset.next(), decoded, clock);
                        self.pause(partition);
                    }
                    Reaction::Probed => {}
                    Reaction::Displace => {
                        self.displace(slot);
                        self.start_noting_holds(clock);
                    }
                }
            }
            Verdict::Stale => {}
            Verdict::Displaced => {
                log::warn!(partition, offset = offset.0;
                    "partition {partition}: offset {} came instead of the expected one; placing it anew", offset.0);
                self.after_displacement(partition);
            }
        }
    }
}

fn on_read_error(error: KafkaError) -> anyhow::Result<()> {
    match error {
        KafkaError::MessageConsumptionFatal(_) => {
            return Err(error).context("the Kafka consumer has failed for good; a restart makes a new one");
        }
        // It comes with each attempt to connect, for as long as the brokers are away; the check says it once.
        KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown) => {}
        error => log::warn!("reading from Kafka: {error}"),
    }
    Ok(())
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
