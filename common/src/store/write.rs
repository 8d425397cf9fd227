//! The atomic write: one transaction per bucket and batch, all of them under way at once.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use redis::{FromRedisValue, Pipeline, Value};

use super::bodies::SMALL;
use super::layout::{Layout, StoredId, bucket_at, has_one_score, hash_of};
use super::life::expiry_of;
use super::positions::{GUARD_MS, PositionScope};
use super::spread::Spread;
use super::tail::{MAX_ENTRIES, Records, trim_tail};
use super::trim::{STEP, TRIM_USER};
use super::{Store, StoreError, score_of};
use crate::event::{EventId, EventType, Timestamp, UserEvent, UserId};
use crate::mutation::{Mutation, active};

/// Bytes of what a command has beside a key and a body, about; a command that knows its size allocates once.
const SMALL_ARGUMENTS: usize = 40;

/// One in so many entries of a user's index also trims it.
const TRIM_ONE_IN: i64 = 64;
/// Records of one entry of the tail, at most.
const MOST_ANNOUNCED: usize = 500;
/// One in so many events, of those of a partition, also trims the tail.
const TRIM_TAIL_ONE_IN: i64 = 16;

/// Stores events whose ids may come again with another timestamp, as those of an `Idempotency-Key` do. One whose earlier
/// body is gone is listed at its new place; an entry that is left of the earlier one would keep it at the old place. ARGV:
/// what the names of bodies begin with, then id, body, expiry and score, and so on. Replies with 1 or 0 for each: new, or
/// stored before.
const STORE: &str = "local new = {} \
    for i = 2, #ARGV, 4 do \
      local id, score = ARGV[i], ARGV[i + 3] \
      if redis.call('SET', ARGV[1] .. id, ARGV[i + 1], 'NX', 'PXAT', ARGV[i + 2]) then \
        redis.call('ZADD', KEYS[1], score, id) new[#new + 1] = 1 \
      else redis.call('ZADD', KEYS[1], 'NX', score, id) new[#new + 1] = 0 end \
    end \
    return new";

/// The entries of the same events in the index of a user, which may be in another bucket than the bodies. An entry beyond
/// the retention is of a body that is gone. ARGV: retention in milliseconds, then score and id, and so on.
const LIST_FOR_USER: &str = "local now = redis.call('TIME') \
    local oldest = (now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]) * 1024 \
    for i = 2, #ARGV, 2 do \
      local held = redis.call('ZSCORE', KEYS[1], ARGV[i + 1]) \
      if not held or tonumber(held) < oldest then redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end \
    end";

/// Looks whether positions stand where the caller left them, and if not, changes the key that the caller watches, so that
/// the transaction behind does not happen. A Redis that is full refuses `INCR`, but not in a script that has written
/// something before, and `PERSIST` takes no memory. ARGV: field, from, and so on, then the life of the key. Replies with 1 or 0 for each.
const CHECK: &str = "local fields, stand, all = {}, {}, redis.call('EXISTS', KEYS[2]) == 1 \
    for i = 1, #ARGV - 1, 2 do fields[#fields + 1] = ARGV[i] end \
    for i, held in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do \
      stand[i] = held == ARGV[2 * i] and 1 or 0 \
      all = all and stand[i] == 1 \
    end \
    if not all then redis.call('PERSIST', KEYS[2]) redis.call('INCR', KEYS[2]) redis.call('PEXPIRE', KEYS[2], ARGV[#ARGV]) end \
    return stand";

/// Moves positions, those that still stand where the caller left them: another worker may have placed a partition since
/// the check. ARGV: field, from, to, and so on. Replies with 1 or 0 for each.
const COMPARE_AND_SET: &str = "local fields, moves, moved = {}, {}, {} \
    for i = 1, #ARGV, 3 do fields[#fields + 1] = ARGV[i] end \
    for i, held in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do \
      moved[i] = held == ARGV[3 * i - 1] and 1 or 0 \
      if moved[i] == 1 then moves[#moves + 1] = fields[i] moves[#moves + 1] = ARGV[3 * i] end \
    end \
    if #moves > 0 then redis.call('HSET', KEYS[1], unpack(moves)) end \
    return moved";

/// What the mutation `no-compare` runs instead.
const MOVE_ANYWAY: &str = "local moved = {} \
    for i = 1, #ARGV, 3 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) moved[#moved + 1] = 1 end \
    return moved";

/// Bytes of an origin without the worker's name, about.
const ORIGIN_NUMBERS: usize = 40;

/// Where a stored event came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// When it was recorded.
    pub processed_at: Timestamp,
    /// The partition of its record.
    pub partition: i32,
    /// The offset of its record.
    pub offset: i64,
    /// The worker that recorded it first.
    pub worker: Arc<str>,
}

impl Origin {
    /// Appends what follows the JSON of a body: a zero byte, then the fields separated by spaces.
    pub fn append_to(&self, json: &mut Vec<u8>) {
        let Self { processed_at, partition, offset, worker } = self;
        json.push(0);
        // Writing to a Vec can't fail.
        write!(json, "{} {partition} {offset} {worker}", processed_at.millis()).unwrap_or_default();
    }

    /// Takes a body apart: the JSON, and what follows the zero byte.
    pub(super) fn split(body: Vec<u8>) -> Option<(Bytes, Self)> {
        let end = body.iter().rposition(|byte| *byte == 0)?;
        let origin = Self::parse(&body[end + 1..])?;
        Some((Bytes::from(body).slice(..end), origin))
    }

    /// Reads what follows the zero byte.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(text).ok()?.splitn(4, ' ');
        Some(Self {
            processed_at: Timestamp::from_millis(fields.next()?.parse().ok()?)?,
            partition: fields.next()?.parse().ok()?,
            offset: fields.next()?.parse().ok()?,
            worker: fields.next()?.into(),
        })
    }
}

/// An event in the form in which it is stored.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    id: EventId,
    stored_id: StoredId,
    user_id: UserId,
    event_type: EventType,
    timestamp: Timestamp,
    /// When its record was published, in milliseconds since 1970.
    published: Option<i64>,
    /// When it was processed, likewise.
    processed: i64,
    partition: i32,
    offset: i64,
    score: i64,
    /// Whether the id may come again with another timestamp.
    may_repeat: bool,
    /// Of the id and of the user: which buckets they are in.
    hash: u8,
    user_hash: u8,
    body: Vec<u8>,
}

impl StoredEvent {
    /// Takes what is stored out of an event. `published`: when its record was, in milliseconds since 1970, if it says so.
    #[must_use]
    pub fn new(event: UserEvent<'_>, origin: &Origin, published: Option<i64>) -> Self {
        let mut body = Vec::with_capacity(event.json_len() + ORIGIN_NUMBERS + origin.worker.len());
        event.push_rest(&mut body);
        origin.append_to(&mut body);
        let id = event.event_id;
        let stored_id = StoredId::of(id.as_str());
        Self {
            may_repeat: !has_one_score(&stored_id, event.timestamp),
            published,
            processed: origin.processed_at.millis(),
            score: score_of(event.timestamp, id.as_str()),
            hash: hash_of(id.as_str()),
            user_hash: hash_of(event.user_id.as_str()),
            timestamp: event.timestamp,
            partition: origin.partition,
            offset: origin.offset,
            user_id: event.user_id,
            event_type: event.event_type,
            body,
            stored_id,
            id,
        }
    }

    /// When it expires, in milliseconds since 1970 by Redis' clock, with so many milliseconds of retention. It is `now` by
    /// that clock.
    fn expiry(&self, retention: i64, now: i64) -> i64 {
        expiry_of(self.timestamp, self.published, retention, now)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &EventId {
        &self.id
    }

    /// The partition of its record.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The offset of its record.
    #[must_use]
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Whose it is.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// What it is.
    #[must_use]
    pub fn event_type(&self) -> &EventType {
        &self.event_type
    }

    /// Bytes of its body.
    #[must_use]
    pub fn size(&self) -> usize {
        self.body.len()
    }
}

/// Whether each user's events are also listed per user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserIndex {
    /// Yes; about 5 µs of Redis and 35 bytes an event.
    #[default]
    On,
    /// No.
    Off,
}

/// A step of one partition's position in one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: i32,
    /// What the caller wrote last.
    pub from: i64,
    /// The next offset: everything before it that belongs to the bucket is stored.
    pub to: i64,
}

/// Events to store, and how far they carry each bucket's positions.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events, in the order of their records.
    pub events: Vec<StoredEvent>,
    /// Per bucket, the positions to move with its events. Empty where none move.
    pub moves: Vec<Vec<Move>>,
}

impl Batch {
    /// Whether the transaction of each of so many buckets would hold events.
    #[must_use]
    pub fn touches(&self, user_index: UserIndex, buckets: usize) -> Vec<bool> {
        let mut touched = vec![false; buckets];
        for event in &self.events {
            touched[bucket_at(event.hash, buckets)] = true;
            touched[bucket_at(event.user_hash, buckets)] |= user_index == UserIndex::On;
        }
        touched
    }

    /// Whether the indexes of the bucket, with those of its users or without, get entries of bodies that are not small.
    fn names_large(&self, bucket: usize, buckets: usize, with_users: bool, unusual: &Unusual<'_>) -> bool {
        let large = |(nth, event): &(usize, &StoredEvent)| event.size() > SMALL && !unusual.has_expired(*nth);
        self.events.iter().enumerate().filter(large).any(|(_, event)| {
            let of_user = with_users && bucket_at(event.user_hash, buckets) == bucket;
            of_user || bucket_at(event.hash, buckets) == bucket
        })
    }

    fn moves_of(&self, bucket: usize) -> &[Move] {
        self.moves.get(bucket).map_or(&[], Vec::as_slice)
    }
}

/// What of a batch is not written as the rest is.
struct Unusual<'a> {
    /// Indexes of the events that have expired.
    expired: Vec<usize>,
    /// The ids of events that may come again with another timestamp. The first of an id wins, so all events of it are to be
    /// stored in the same way, one behind the other, also those that alone could not.
    repeatable: HashSet<&'a StoredId>,
}

impl<'a> Unusual<'a> {
    fn of(batch: &'a Batch, expired: Vec<usize>) -> Self {
        let repeatable = batch.events.iter().filter(|event| event.may_repeat).map(|event| &event.stored_id).collect();
        Self { expired, repeatable }
    }

    fn has_expired(&self, nth: usize) -> bool {
        self.expired.binary_search(&nth).is_ok()
    }

    fn may_repeat(&self, event: &StoredEvent) -> bool {
        self.repeatable.contains(&event.stored_id)
    }
}

/// What a write did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Indexes into [`Batch::events`] of those that were stored before.
    pub duplicates: Vec<usize>,
    /// Indexes of those that had expired, by Redis' clock, and are not stored.
    pub expired: Vec<usize>,
    /// Indexes of those that were not written, because a position of their transaction was not where it was left.
    pub unwritten: Vec<usize>,
    /// Partitions whose position did not stand where the caller left it, in at least one bucket.
    pub mismatches: Vec<i32>,
    /// Partitions whose position has not moved in each bucket as asked: those, and others of the same transaction.
    pub unmoved: Vec<i32>,
}

impl Store {
    /// Stores a batch: per bucket one transaction with bodies, index entries and positions. Where a position is not where
    /// it was left, nothing of the transaction is written.
    ///
    /// # Errors
    /// [`StoreError`] when any transaction has no good answer; each of them may or may not have happened.
    pub async fn write(
        &self,
        scope: &PositionScope,
        batch: &Batch,
        user_index: UserIndex,
    ) -> Result<Receipt, StoreError> {
        let Spread { layout, turns, .. } = self.spread().await?;
        let touched = batch.touches(user_index, layout.buckets());
        let (retention, now) = (self.retention(), self.now().millis());
        let has_expired = |nth: &usize| batch.events[*nth].expiry(retention, now) <= now;
        let expired: Vec<usize> = (0..batch.events.len()).filter(has_expired).collect();
        if let Some(error) = self.doubt_of(expired.iter().map(|nth| batch.events[*nth].expiry(retention, now))) {
            return Err(error);
        }
        let unusual = Unusual::of(batch, expired);
        let needed = layout.all().filter(|bucket| touched[*bucket] || !batch.moves_of(*bucket).is_empty());
        let written = needed.map(|bucket| {
            let transaction = Transaction::new(self, layout, scope, batch, bucket, user_index, &unusual);
            async move {
                let replies: Vec<Value> = self.write.in_turn(&turns[bucket], &transaction.commands).await?;
                transaction.read(replies, batch.moves_of(bucket))
            }
        });
        let mut receipt = Receipt { expired: unusual.expired.clone(), ..Receipt::default() };
        for part in try_join_all(written).await? {
            receipt.duplicates.extend(part.duplicates);
            receipt.unwritten.extend(part.unwritten);
            receipt.mismatches.extend(part.mismatches);
            receipt.unmoved.extend(part.unmoved);
        }
        receipt.duplicates.sort_unstable();
        receipt.unwritten.sort_unstable();
        for partitions in [&mut receipt.mismatches, &mut receipt.unmoved] {
            partitions.sort_unstable();
            partitions.dedup();
        }
        if active(Mutation::IndexOnlyNew) {
            self.index_new(layout, batch, &receipt).await?;
        }
        if active(Mutation::UserIndexOutside) || active(Mutation::TailOutside) {
            self.write_outside(layout, scope, batch, user_index);
        }
        Ok(receipt)
    }
}

impl Store {
    /// What the mutation `index-only-new` does.
    async fn index_new(&self, layout: &Layout, batch: &Batch, receipt: &Receipt) -> Result<(), StoreError> {
        let old = |nth: &usize| receipt.duplicates.contains(nth) || receipt.unwritten.contains(nth);
        let new = batch.events.iter().enumerate().filter(|(nth, _)| !old(nth));
        let commands = new.map(|(_, event)| {
            let mut command = redis::cmd("ZADD");
            command
                .arg(layout.index(bucket_at(event.hash, layout.buckets())))
                .arg("NX")
                .arg(event.score)
                .arg(event.stored_id.as_bytes());
            command
        });
        self.write.scatter::<usize>(commands).await.map(drop)
    }

    /// What the mutations `user-index-outside-positions` and `tail-outside-transaction` do, while the batch counts as
    /// written. The gap is longer than a quiet bucket's position may lag: the records would be read again from there, and
    /// the hole be hidden.
    fn write_outside(&self, layout: &Layout, scope: &PositionScope, batch: &Batch, user_index: UserIndex) {
        let mut commands = redis::pipe();
        for bucket in layout.all() {
            if active(Mutation::TailOutside) {
                let own = batch.events.iter().filter(|event| bucket_at(event.hash, layout.buckets()) == bucket);
                announce(&mut commands, layout, scope, bucket, own);
            } else if user_index == UserIndex::On {
                add_user_entries(&mut commands, self, layout, batch, bucket, &Unusual::of(batch, Vec::new()));
            }
        }
        let lane = Arc::clone(&self.write);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if !commands.is_empty() {
                lane.pipeline::<()>(&commands).await.unwrap_or_default();
            }
        });
    }
}

/// One bucket's share of a batch: `WATCH`, the check of its positions, and the transaction, sent as one. They reach Redis
/// one behind the other, but others may come between. If the check changes the key that is watched, or a Redis that is
/// emptied takes it away, the transaction does not happen.
struct Transaction {
    commands: Pipeline,
    checked: bool,
    /// Indexes of its events: those that have a `SET` each, the replies to which come first, and those of [`STORE`].
    plain: Vec<usize>,
    scripted: Vec<usize>,
}

impl Transaction {
    fn new(
        store: &Store,
        layout: &Layout,
        scope: &PositionScope,
        batch: &Batch,
        bucket: usize,
        user_index: UserIndex,
        unusual: &Unusual<'_>,
    ) -> Self {
        let is_own = |nth: &usize| bucket_at(batch.events[*nth].hash, layout.buckets()) == bucket;
        let events: Vec<usize> =
            (0..batch.events.len()).filter(|nth| is_own(nth) && !unusual.has_expired(*nth)).collect();
        let unguarded = active(Mutation::ClaimWithoutNx) || active(Mutation::IndexOnlyNew);
        let may_repeat = |nth: &usize| !unguarded && unusual.may_repeat(&batch.events[*nth]);
        let (scripted, plain) = events.iter().copied().partition(may_repeat);
        let moves = batch.moves_of(bucket);
        let checked = !(moves.is_empty() || active(Mutation::NoCompare) || active(Mutation::WriteAnyway));
        let mut commands = redis::Pipeline::with_capacity(events.len() + 8);
        if checked {
            check(&mut commands, store, layout, scope, bucket, moves);
        }
        commands.cmd("MULTI").ignore();
        let mut share = Self { commands, checked, plain, scripted };
        share.store_events(store, layout, batch, bucket);
        let commands = &mut share.commands;
        if !active(Mutation::TailOutside) {
            announce(commands, layout, scope, bucket, events.iter().map(|nth| &batch.events[*nth]));
        }
        let with_users = user_index == UserIndex::On && !active(Mutation::UserIndexOutside);
        if batch.names_large(bucket, layout.buckets(), with_users, unusual) {
            commands.cmd("SET").arg(layout.large(bucket)).arg(1).arg("PX").arg(store.longest_life()).ignore();
        }
        if with_users {
            add_user_entries(commands, store, layout, batch, bucket, unusual);
        }
        if !moves.is_empty() {
            let script = if active(Mutation::NoCompare) { MOVE_ANYWAY } else { COMPARE_AND_SET };
            let script = commands.cmd("EVAL").arg(script).arg(1).arg(layout.positions(bucket));
            for step in moves {
                script.arg(scope.field(step.partition)).arg(step.from).arg(step.to);
            }
            commands.ignore();
        }
        commands.cmd("EXEC");
        share
    }

    /// Their bodies, and their entries in the bucket's index.
    fn store_events(&mut self, store: &Store, layout: &Layout, batch: &Batch, bucket: usize) {
        let (retention, now, mut key) = (store.retention(), store.now().millis(), Vec::new());
        for event in self.plain.iter().map(|nth| &batch.events[*nth]) {
            layout.put_event(&mut key, bucket, &event.stored_id);
            let mut set = redis::Cmd::with_capacity(6, key.len() + event.body.len() + SMALL_ARGUMENTS);
            set.arg("SET").arg(key.as_slice()).arg(&event.body);
            if !active(Mutation::ClaimWithoutNx) {
                set.arg("NX");
            }
            set.arg("PXAT").arg(event.expiry(retention, now));
            self.commands.add_command(set).ignore();
        }
        if !self.plain.is_empty() && !active(Mutation::IndexOnlyNew) {
            let count = self.plain.len();
            let mut index = redis::Cmd::with_capacity(3 + 2 * count, SMALL_ARGUMENTS * (1 + count));
            index.arg("ZADD").arg(layout.index(bucket)).arg("NX");
            for event in self.plain.iter().map(|nth| &batch.events[*nth]) {
                index.arg(event.score).arg(event.stored_id.as_bytes());
            }
            self.commands.add_command(index).ignore();
        }
        if !self.scripted.is_empty() {
            let script = self.commands.cmd("EVAL").arg(STORE).arg(1).arg(layout.index(bucket));
            script.arg(layout.events(bucket));
            for event in self.scripted.iter().map(|nth| &batch.events[*nth]) {
                script
                    .arg(event.stored_id.as_bytes())
                    .arg(&event.body)
                    .arg(event.expiry(retention, now))
                    .arg(event.score);
            }
            script.ignore();
        }
    }

    /// Takes the replies to the check, if there was one, and to `EXEC`: to each `SET`, what else the transaction has, and
    /// to the script that moves the positions.
    fn read(self, mut replies: Vec<Value>, moves: &[Move]) -> Result<Receipt, StoreError> {
        let unexpected = || StoreError::Corrupt("a transaction has an answer of another form".into());
        let partitions = |stand: Vec<u8>| -> Vec<i32> {
            moves.iter().zip(stand).filter(|(_, stands)| *stands == 0).map(|(step, _)| step.partition).collect()
        };
        match replies.pop() {
            Some(Value::Array(done)) => {
                let duplicates = self.duplicates(&done).ok_or_else(unexpected)??;
                let moved = done.last().filter(|_| !moves.is_empty());
                let unmoved = partitions(moved.map_or(Ok(Vec::new()), bytes)?);
                Ok(Receipt { duplicates, mismatches: unmoved.clone(), unmoved, ..Receipt::default() })
            }
            Some(Value::Nil) if self.checked => {
                let mismatches = partitions(bytes(&replies.pop().ok_or_else(unexpected)?)?);
                let unmoved = moves.iter().map(|step| step.partition).collect();
                let unwritten = [self.plain, self.scripted].concat();
                Ok(Receipt { unwritten, mismatches, unmoved, ..Receipt::default() })
            }
            _ => Err(unexpected()),
        }
    }

    /// Which of its events were stored before, from what its commands answered.
    fn duplicates(&self, done: &[Value]) -> Option<Result<Vec<usize>, StoreError>> {
        let (set, rest) = done.split_at_checked(self.plain.len())?;
        let present = self.plain.iter().zip(set).filter(|(_, reply)| **reply == Value::Nil);
        let mut duplicates: Vec<usize> = present.map(|(nth, _)| *nth).collect();
        if !self.scripted.is_empty() {
            // Behind that to the `ZADD` of the others.
            let new = rest.get(usize::from(!self.plain.is_empty()))?;
            let new = match bytes(new) {
                Ok(new) => new,
                Err(error) => return Some(Err(error)),
            };
            duplicates.extend(self.scripted.iter().zip(new).filter(|(_, new)| *new == 0).map(|(nth, _)| *nth));
        }
        Some(Ok(duplicates))
    }
}

fn bytes(reply: &Value) -> Result<Vec<u8>, StoreError> {
    Vec::from_redis_value_ref(reply).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn check(
    commands: &mut Pipeline,
    store: &Store,
    layout: &Layout,
    scope: &PositionScope,
    bucket: usize,
    moves: &[Move],
) {
    let guard = layout.guard(bucket, store.member());
    commands.cmd("WATCH").arg(&guard).ignore();
    let script = commands.cmd("EVAL").arg(CHECK).arg(2).arg(layout.positions(bucket)).arg(guard);
    for step in moves {
        script.arg(scope.field(step.partition)).arg(step.from);
    }
    script.arg(GUARD_MS);
}

/// Announces a bucket's events on its tail. Readers hold whole entries, so these are no larger than those of a usual batch.
fn announce<'a>(
    commands: &mut Pipeline,
    layout: &Layout,
    scope: &PositionScope,
    bucket: usize,
    events: impl Iterator<Item = &'a StoredEvent>,
) {
    let (tail, events) = (layout.tail(bucket), events.collect::<Vec<_>>());
    for events in events.chunks(MOST_ANNOUNCED) {
        let mut records = Records::default();
        for event in events {
            records.push(event.processed, event.partition, event.offset, &event.stored_id);
        }
        let entry = commands.cmd("XADD").arg(&tail).arg("MAXLEN").arg("~").arg(MAX_ENTRIES).arg("*");
        entry.arg(scope.name()).arg(records.packed()).ignore();
    }
    if events.iter().any(|event| event.offset % TRIM_TAIL_ONE_IN == 0) {
        commands.add_command(trim_tail(&tail)).ignore();
    }
}

/// The entries of users whose bucket this is; they ride in its transaction, so that its position covers them.
fn add_user_entries(
    commands: &mut Pipeline,
    store: &Store,
    layout: &Layout,
    batch: &Batch,
    bucket: usize,
    unusual: &Unusual<'_>,
) {
    let life = store.longest_life();
    let mut users: HashMap<&str, Vec<&StoredEvent>> = HashMap::new();
    for (nth, event) in batch.events.iter().enumerate() {
        if bucket_at(event.user_hash, layout.buckets()) == bucket && !unusual.has_expired(nth) {
            users.entry(event.user_id.as_str()).or_default().push(event);
        }
    }
    for (user, events) in users {
        let key = layout.user_index(bucket, user);
        let (scripted, plain): (Vec<&StoredEvent>, Vec<_>) = events.iter().partition(|event| unusual.may_repeat(event));
        if !plain.is_empty() {
            let count = plain.len();
            let mut entries = redis::Cmd::with_capacity(3 + 2 * count, key.len() + SMALL_ARGUMENTS * (1 + count));
            entries.arg("ZADD").arg(&key).arg("NX");
            plain.iter().for_each(|event| _ = entries.arg(event.score).arg(event.stored_id.as_bytes()));
            commands.add_command(entries).ignore();
        }
        if !scripted.is_empty() {
            let entries = commands.cmd("EVAL").arg(LIST_FOR_USER).arg(1).arg(&key).arg(store.retention());
            scripted.iter().for_each(|event| _ = entries.arg(event.score).arg(event.stored_id.as_bytes()));
            entries.ignore();
        }
        let mut expire = redis::Cmd::with_capacity(3, key.len() + SMALL_ARGUMENTS);
        expire.arg("PEXPIRE").arg(&key).arg(life);
        commands.add_command(expire).ignore();
        if events.iter().any(|event| event.score % TRIM_ONE_IN == 0) {
            commands.cmd("EVAL").arg(TRIM_USER).arg(1).arg(&key).arg(store.retention()).arg(STEP).ignore();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_reads_back_and_leaves_the_json_alone() {
        let origin = Origin {
            processed_at: Timestamp::from_millis(1_771_322_400_123).unwrap(),
            partition: 3,
            offset: 1_234_567,
            worker: "worker 1".into(),
        };
        let mut body = b"{}".to_vec();
        origin.append_to(&mut body);
        let (json, rest) = body.split_at(2);
        assert_eq!((json, rest[0]), (&b"{}"[..], 0));
        assert_eq!(Origin::parse(&rest[1..]), Some(origin));
        assert_eq!(Origin::parse(b"1 2"), None);
        assert_eq!(Origin::parse(b"x 2 3 w"), None);
    }
}
