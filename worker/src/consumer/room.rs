//! Room in Redis, where `REDIS_MEMORY_GUARD` is set: whoever has partition 0 trims, and everybody else waits for it. A
//! worker sends no more between two looks than a part of what is left, so that they can't outrun the guard together.
//!
//! A short wait is just not reading. A long one would cost the membership in the group, which wants to be polled, and each
//! rebalance would wait for it: then the partitions are displaced, and placed anew once there is room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::store::{Memory, Room, StoreError};

use super::Consumer;
use crate::commit::Slot;

/// Between looks, at the latest.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// The same while there is no room.
const FULL_PERIOD: Duration = Duration::from_millis(50);
/// How long the owner of partition 0 is waited for.
const OWNER_PATIENCE: Duration = Duration::from_secs(2);
/// How long the client is left unread while there is no room.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// A worker takes one in so many bytes of what is left between two looks: an event takes more than twice its size there, and
/// several workers look at the same time.
const SHARE: u64 = 16;

/// What was found, after anything that had to be trimmed was.
pub(super) type Looked = Result<(Option<Memory>, Option<Room>), StoreError>;

/// Whether there is room.
#[derive(Debug)]
pub(super) struct Guard {
    /// In percent; `None`: nobody guards.
    percent: Option<u64>,
    /// Since when there has been no room.
    full: Option<Instant>,
    /// Since when nothing may go on its way.
    waits: Option<Instant>,
    /// Bytes that may be sent before the next look.
    left: u64,
    /// The look under way trims, which may take long.
    trims: bool,
    pub(super) look_after: Instant,
}

impl Guard {
    pub(super) fn new(percent: Option<u64>, now: Instant) -> Self {
        Self { percent, full: None, waits: percent.map(|_| now), left: 0, trims: false, look_after: now }
    }

    /// Whether a batch may go on its way.
    pub(super) fn has_room(&self) -> bool {
        self.percent.is_none() || (self.full.is_none() && self.left > 0)
    }

    /// Whether a batch may have more than so many bytes.
    pub(super) fn has_room_beyond(&self, bytes: usize) -> bool {
        self.percent.is_none() || self.left > bytes as u64
    }

    /// Whether it is for this worker to trim: whoever has partition 0 does, and anybody does for whom that takes too long.
    /// It may have no owner, and nobody gets it while all wait and read nothing.
    fn trims(&self, owns_first: bool, now: Instant) -> bool {
        owns_first || self.full.is_some_and(|since| now >= since + OWNER_PATIENCE)
    }

    /// So many bytes are on their way.
    pub(super) fn sent(&mut self, bytes: usize, now: Instant) {
        self.left = self.left.saturating_sub(bytes as u64);
        if self.left == 0 {
            self.look_after = self.look_after.min(now);
        }
        self.wait_or_not(now);
    }

    /// Whether there has been no room for so long that the partitions have to wait without a place.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.percent.is_some() && !self.trims && self.waits.is_some_and(|since| now >= since + READ_PATIENCE)
    }

    /// Whether Redis has said that it is full, and for so long.
    pub(super) fn is_full_for_long(&self, now: Instant) -> bool {
        self.is_stuck(now) && self.full.is_some()
    }

    fn wait_or_not(&mut self, now: Instant) {
        self.waits = if self.has_room() { None } else { self.waits.or(Some(now)) };
    }

    /// From now on nobody guards: what is left to do is done.
    pub(super) fn lift(&mut self) {
        self.percent = None;
    }

    fn found(&mut self, memory: Option<Memory>, percent: u64, now: Instant) {
        let full = memory.is_some_and(|memory| memory.percent() >= percent);
        self.full = full.then(|| self.full.unwrap_or(now));
        self.left = memory.map_or(u64::MAX, |memory| memory.max.saturating_sub(memory.used) / SHARE);
        self.look_after = now + if full { FULL_PERIOD } else { LOOK_PERIOD };
        self.wait_or_not(now);
    }
}

impl Consumer {
    pub(super) fn start_looking_for_room(&mut self, now: Instant) {
        let Some(percent) = self.guard.percent else { return };
        self.guard.look_after = now + LOOK_PERIOD;
        let (store, trims) = (Arc::clone(&self.store), self.guard.trims(self.ledger.current(0).is_some(), now));
        self.guard.trims = trims && self.guard.full.is_some();
        self.looking_for_room = Some(Box::pin(async move {
            let room = if trims { store.make_room(percent).await? } else { None };
            Ok((store.memory().await?, room))
        }));
    }

    pub(super) fn on_room(&mut self, looked: Looked) {
        self.guard.trims = false;
        let Some(percent) = self.guard.percent else { return };
        match looked {
            Ok((memory, room)) => {
                if let Some(Room { removed, before }) = room {
                    log::warn!(removed, before:% = before;
                        "Redis has reached {percent} % of its memory (REDIS_MEMORY_GUARD): {removed} events trimmed early, all before {before}");
                }
                self.guard.found(memory, percent, Instant::now());
                let nothing_left = room.is_none() && self.ledger.current(0).is_some();
                if self.guard.full.is_some() && nothing_left {
                    self.status.store.down(&format!(
                        "Redis uses {percent} % of its maxmemory or more (REDIS_MEMORY_GUARD), and no event is left to trim: raise maxmemory"
                    ));
                }
            }
            Err(error) => self.status.store.down(&error.to_string()),
        }
    }

    /// Reads on, without taking anything in: see the module.
    pub(super) fn wait_for_room(&mut self, now: Instant) {
        if !self.guard.is_stuck(now) || !self.is_full() {
            return;
        }
        log::warn!(
            "Redis has had no room for {} s (REDIS_MEMORY_GUARD): the partitions wait for it",
            READ_PATIENCE.as_secs()
        );
        let slots: Vec<Slot> = self.ledger.assigned().into_iter().filter_map(|of| self.ledger.current(of)).collect();
        slots.into_iter().for_each(|slot| self.displace(slot));
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp as KafkaTimestamp;
    use rdkafka::message::OwnedMessage;

    use super::super::batches::tests::consumer_at;
    use super::*;
    use crate::commit::NextOffset;
    use crate::dead_letter::DeadLetter;
    use crate::decode::Decoded;

    fn memory(used: u64) -> Option<Memory> {
        Some(Memory { used, max: 16_000 })
    }

    #[test]
    fn nothing_is_sent_before_the_first_look_and_no_more_than_a_share_before_the_next() {
        let now = Instant::now();
        let mut guard = Guard::new(Some(60), now);
        assert!(!guard.has_room());
        guard.found(memory(8_000), 60, now);
        assert!(guard.has_room() && guard.look_after == now + LOOK_PERIOD);
        assert!(guard.has_room_beyond(499) && !guard.has_room_beyond(500));
        guard.sent(499, now);
        assert!(guard.has_room());
        guard.sent(2_000, now);
        assert!(!guard.has_room() && guard.look_after == now, "the next look is due at once");
        guard.found(memory(9_600), 60, now);
        assert!(!guard.has_room() && guard.look_after == now + FULL_PERIOD);
        guard.found(None, 60, now);
        guard.sent(1_000_000, now);
        assert!(guard.has_room(), "without a limit there is always room");
        assert!(Guard::new(None, now).has_room_beyond(usize::MAX));
    }

    #[test]
    fn who_has_waited_for_the_owner_of_partition_0_trims() {
        let now = Instant::now();
        let mut guard = Guard::new(Some(60), now);
        assert!(guard.trims(true, now) && !guard.trims(false, now + OWNER_PATIENCE));
        guard.found(memory(12_000), 60, now);
        guard.found(memory(12_000), 60, now + OWNER_PATIENCE / 2);
        assert!(!guard.trims(false, now + OWNER_PATIENCE / 2) && guard.trims(false, now + OWNER_PATIENCE));
        guard.found(memory(8_000), 60, now + OWNER_PATIENCE);
        assert!(!guard.trims(false, now + OWNER_PATIENCE * 9));
    }

    #[test]
    fn only_a_wait_without_a_break_is_a_long_one() {
        let now = Instant::now();
        let mut guard = Guard::new(Some(60), now);
        assert!(!guard.is_stuck(now) && guard.is_stuck(now + READ_PATIENCE), "nor is there an answer");
        guard.found(memory(12_000), 60, now + READ_PATIENCE / 2);
        assert!(guard.is_stuck(now + READ_PATIENCE));
        guard.found(memory(8_000), 60, now + READ_PATIENCE);
        assert!(!guard.is_stuck(now + READ_PATIENCE));
        guard.sent(2_000, now + READ_PATIENCE);
        assert!(!guard.is_stuck(now + READ_PATIENCE) && guard.is_stuck(now + READ_PATIENCE * 2));
        guard.lift();
        assert!(!guard.is_stuck(now + READ_PATIENCE * 2));
        assert!(!Guard::new(None, now).is_stuck(now + READ_PATIENCE));
    }

    #[tokio::test]
    async fn a_worker_that_waits_long_for_room_reads_on_and_places_its_partitions_once_there_is_some() {
        let (mut consumer, _) = consumer_at("127.0.0.1:9");
        let now = Instant::now();
        consumer.guard = Guard::new(Some(60), now);
        let slot = consumer.ledger.current(0).unwrap();
        for offset in 1..=500 {
            let record = OwnedMessage::new(None, None, "events".into(), KafkaTimestamp::NotAvailable, 0, offset, None);
            let letter = Decoded::Poison(DeadLetter::new(&record, &[]));
            consumer.pending.add(slot, NextOffset(offset + 1), letter, now);
        }
        consumer.wait_for_room(now);
        assert!(consumer.is_full() && !consumer.can_dispatch(), "nothing is read for now");
        let stuck = now + READ_PATIENCE;
        consumer.wait_for_room(stuck);
        assert!(!consumer.is_full(), "it is polled again");
        assert_eq!(consumer.ledger.unplaced().len(), 1, "what was read is read again");
        consumer.start_placing(stuck);
        assert!(consumer.in_placing.is_empty(), "for what is read then there is no room either");
        consumer.guard.found(memory(8_000), 60, stuck);
        consumer.start_placing(stuck);
        assert!(consumer.in_placing.contains(&0));
    }

    #[test]
    fn without_a_guard_and_in_the_end_there_is_room() {
        let now = Instant::now();
        assert!(Guard::new(None, now).has_room());
        let mut guard = Guard::new(Some(60), now);
        guard.lift();
        assert!(guard.has_room());
    }
}
