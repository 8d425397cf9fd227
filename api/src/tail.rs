//! The live tail of one process: what the workers store is read once, encoded once, and handed to every reader.
//!
//! Redis is read only while somebody wants to know: readers of the stream, or requests that wait for one event. A reader
//! that is too slow is told so and dropped, rather than buffered for without end.

mod generations;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::store::{Announced, Entry, EntryId, Members, Origin, Query, Seen, Store, StoreError, TailPosition};
use futures::future::join_all;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, broadcast, oneshot, watch};

use self::generations::Generations;
use crate::format::push_line;

/// How far a reader may fall behind, in slots. A frame takes one for each [`SLOT`] bytes, so that this bounds bytes.
const SLOTS: usize = 4096;
const SLOT: usize = 4096;
/// Records whose events are in memory at a time, about, on their way to readers.
pub(crate) const PORTION: usize = 64;
/// Readers that catch up at a time: each holds what it knows of some thousand records meanwhile.
const MOST_CATCHING_UP: usize = 16;
/// Entries of a bucket that are remembered: more than are added in the second that a Redis may lose.
const PASSED: usize = 1024;
/// How long Redis is asked to wait for something new; shorter than any sensible `REDIS_TIMEOUT`.
const WAIT: Duration = Duration::from_millis(500);
/// After a failed exchange.
const RETRY: Duration = Duration::from_millis(200);
/// How long Redis is read on after nobody wants to know any more: who comes back soon finds nothing missing.
const LINGER: Duration = Duration::from_secs(30);
/// How long a reader waits for the tail to begin until it asks whether Redis answers at all, and how often.
const BEGIN_PATIENCE: Duration = Duration::from_secs(3);
const BEGIN_TRIES: usize = 5;
/// While the tail is not read, who waits for an event looks for it after this time, and then after twice the time before.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(4);

/// What a reader is handed.
#[derive(Debug)]
pub(crate) enum Frame {
    /// An event.
    Event {
        /// The entry that announced it.
        entry: Arc<Entry>,
        /// Which of its records it is.
        number: usize,
        /// The oldest generation of readers that it is for: earlier ones have got it.
        generation: u64,
        /// Where a reader stands that has got it.
        position: TailPosition,
        /// The event.
        event: Shared,
    },
    /// Something may be missing here; the reader goes on there, as one of this generation.
    Gap(TailPosition, u64),
    /// Streams have lost their ends.
    Loss(Loss),
    /// Takes the place of a large frame's bytes.
    Filler,
}

/// What streams have lost. Readers go on with them where they have not, or at their beginnings.
#[derive(Debug)]
pub(crate) struct Loss {
    /// Which buckets'.
    pub(crate) buckets: Vec<usize>,
    /// Where the reading of all stood.
    pub(crate) from: TailPosition,
    /// Where it goes on.
    pub(crate) to: TailPosition,
    /// The generation of readers that comes behind the loss.
    pub(crate) generation: u64,
    /// The oldest one of which it is remembered what was announced to it.
    pub(crate) oldest: u64,
}

/// An event on its way to many readers. What they need of it is made by the first who does, and once.
#[derive(Debug)]
pub(crate) struct Shared {
    json: Bytes,
    text: OnceLock<Bytes>,
    members: OnceLock<Option<Members>>,
}

impl Shared {
    fn new(json: Bytes) -> Self {
        Self { json, text: OnceLock::new(), members: OnceLock::new() }
    }

    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }

    /// Whether it is one of those that are asked for.
    pub(crate) fn is_asked_for(&self, query: &Query) -> bool {
        query.is_open() || query.admits_members_of(self.members.get_or_init(|| Members::of(&self.json)).as_ref())
    }

    /// The frame on the wire, for a reader that stands at the frame's position.
    pub(crate) fn text(&self, position: &TailPosition) -> Bytes {
        self.text.get_or_init(|| frame(position, &self.json)).clone()
    }
}

/// What a new reader is given.
pub(crate) struct Subscription {
    /// Where its frames begin.
    pub(crate) position: TailPosition,
    /// Which of the [`Frame::Event`]s are for it: those of its generation and of earlier ones.
    pub(crate) generation: u64,
    /// Its frames.
    pub(crate) frames: broadcast::Receiver<Arc<Frame>>,
}

/// The tail of a process.
pub struct Tail {
    store: Arc<Store>,
    frames: broadcast::Sender<Arc<Frame>>,
    state: Mutex<State>,
    wake: Notify,
    running: watch::Sender<bool>,
    catching_up: Semaphore,
}

struct State {
    position: TailPosition,
    /// The last entries of each bucket that were read whole.
    passed: Vec<VecDeque<EntryId>>,
    /// The furthest entry of each bucket that was ever read, or stood in the stream when reading began. An entry up to it
    /// that comes again says nothing new about where logs end.
    furthest: Vec<EntryId>,
    /// How often streams turned out not to be the ones that were read: what was read before of them does not count.
    losses: u64,
    generations: Generations,
    waiting: HashMap<String, Vec<oneshot::Sender<()>>>,
    wanted: Instant,
}

impl State {
    /// An entry was read whole.
    fn pass_all(&mut self, entry: &Entry) {
        self.position.pass_all(entry);
        self.furthest.get_mut(entry.bucket).into_iter().for_each(|furthest| *furthest = entry.id.max(*furthest));
        let Some(passed) = self.passed.get_mut(entry.bucket) else { return };
        passed.push_back(entry.id);
        if passed.len() > PASSED {
            passed.pop_front();
        }
    }

    /// Before the records of an entry: what was announced before may not count any more.
    fn heed(&mut self, entry: &Entry) {
        if self.furthest.get(entry.bucket).is_none_or(|furthest| entry.id > *furthest) {
            self.generations.heed(entry);
        }
    }

    fn has_passed(&self, bucket: usize, entry: EntryId) -> bool {
        self.passed.get(bucket).is_some_and(|passed| passed.contains(&entry))
    }

    /// The entries behind that one are gone.
    fn go_back(&mut self, bucket: usize, to: EntryId) {
        self.position.go_back(bucket, to);
        self.passed.get_mut(bucket).into_iter().for_each(|passed| passed.retain(|passed| *passed <= to));
    }
}

impl Tail {
    /// A tail of this store, which nobody reads yet.
    #[must_use]
    pub fn new(store: &Arc<Store>) -> Self {
        let state = State {
            position: TailPosition::default(),
            passed: Vec::new(),
            furthest: Vec::new(),
            losses: 0,
            generations: Generations::new(Seen::default()),
            waiting: HashMap::new(),
            wanted: Instant::now(),
        };
        Self {
            store: Arc::clone(store),
            frames: broadcast::Sender::new(SLOTS),
            state: Mutex::new(state),
            wake: Notify::new(),
            running: watch::Sender::new(false),
            catching_up: Semaphore::new(MOST_CATCHING_UP),
        }
    }

    /// Reads for as long as somebody wants to know, and never ends.
    pub async fn run(&self) {
        loop {
            self.wake.notified().await;
            while self.is_wanted() {
                let readers = match self.store.tail_end().await {
                    Ok((position, seen)) => {
                        let readers = self.store.tail_readers(&position);
                        let mut state = self.lock();
                        (state.position, state.generations) = (position, Generations::new(seen));
                        state.passed = vec![VecDeque::new(); state.position.buckets().len()];
                        state.furthest = state.position.buckets().map(|bucket| state.position.at(bucket)).collect();
                        // Nobody reads yet, unless it stopped just as somebody came.
                        if self.frames.receiver_count() > 0 {
                            self.say_gap(&mut state);
                        }
                        readers
                    }
                    Err(error) => {
                        log::debug!("the live tail can't begin: {error}");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                self.running.send_replace(true);
                let following = join_all(readers.into_iter().map(|buckets| self.follow(buckets)));
                // All of them end together: who comes meanwhile must not find some buckets read and others not.
                tokio::select! {
                    _never = following => {}
                    () = self.unwanted() => {}
                }
                self.running.send_replace(false);
            }
        }
    }

    /// How many read the stream.
    pub(crate) fn readers(&self) -> usize {
        self.frames.receiver_count()
    }

    /// Waits for a turn at catching up, kept until it is dropped.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed, so always there.
        self.catching_up.acquire().await.ok()
    }

    /// Until nobody wants to know any more.
    async fn unwanted(&self) {
        while self.is_wanted() {
            tokio::time::sleep(WAIT).await;
        }
    }

    async fn follow(&self, buckets: Range<usize>) -> Infallible {
        loop {
            if let Err(error) = self.read_on(buckets.clone()).await {
                log::debug!("the live tail is interrupted: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Reads what there is, or waits for it, and hands it on.
    async fn read_on(&self, buckets: Range<usize>) -> Result<(), StoreError> {
        let (position, losses) = self.stands();
        let entries = self.store.tail_next(buckets.clone(), &position, WAIT).await?;
        // Behind the read: what it has found comes behind that entry only if the entry is still there.
        if self.meets_loss(buckets, &position, losses).await? {
            return Ok(());
        }
        if self.store.tail_skipped(&position, &entries).await? {
            self.say_gap(&mut self.lock());
        }
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        self.take(&entries, losses).await
    }

    fn stands(&self) -> (TailPosition, u64) {
        let state = self.lock();
        (state.position.clone(), state.losses)
    }

    /// Whether a Redis has lost the ends of these streams since they were read. They are read on behind the last entry that
    /// was read and is still there, or from their beginnings, which other streams may have. Who comes from now on may have
    /// read lists that lack what will be stored again.
    async fn meets_loss(
        &self,
        buckets: Range<usize>,
        position: &TailPosition,
        losses: u64,
    ) -> Result<bool, StoreError> {
        let gone = self.store.tail_gone(buckets, position).await?;
        if gone.is_empty() {
            return Ok(false);
        }
        let (mut to, mut unread) = (position.clone(), Vec::new());
        for (bucket, last) in &gone {
            let last = last.filter(|last| self.lock().has_passed(*bucket, *last));
            to.go_back(*bucket, last.unwrap_or(EntryId::BEGIN_AGAIN));
            unread.extend(last.is_none().then_some(*bucket));
        }
        let trimmed = self.store.tail_trimmed(&unread).await?;
        self.go_back(gone.into_iter().map(|(bucket, _)| bucket).collect(), &to, trimmed, losses);
        Ok(true)
    }

    /// Goes on there with these buckets, unless somebody has just seen to it.
    fn go_back(&self, buckets: Vec<usize>, to: &TailPosition, trimmed: bool, losses: u64) {
        let mut state = self.lock();
        if state.losses != losses {
            return;
        }
        state.losses += 1;
        state.generations.begin();
        let from = state.position.clone();
        for bucket in &buckets {
            state.go_back(*bucket, to.at(*bucket));
        }
        if trimmed {
            self.say_gap(&mut state);
        } else {
            let (to, generations) = (state.position.clone(), &state.generations);
            let (generation, oldest) = (generations.latest(), generations.oldest());
            drop(self.frames.send(Arc::new(Frame::Loss(Loss { buckets, from, to, generation, oldest }))));
        }
    }

    /// Tells all readers that something may be missing.
    fn say_gap(&self, state: &mut State) {
        drop(self.frames.send(Arc::new(Frame::Gap(state.position.clone(), state.generations.latest()))));
        // What they wait for may have been announced in the gap.
        let waiters = state.waiting.drain().flat_map(|(_, waiters)| waiters);
        waiters.for_each(|waiter| waiter.send(()).unwrap_or_default());
    }

    /// Hands entries on. What was not handed on when an error came is read again.
    async fn take(&self, entries: &[Arc<Entry>], losses: u64) -> Result<(), StoreError> {
        // Behind an entry that says where logs end, what was announced before may not count any more.
        for run in entries.chunk_by(|_, next| next.ends.is_empty()) {
            self.lock().heed(&run[0]);
            for portion in portions(run) {
                self.hand_on(portion, losses).await?;
            }
        }
        Ok(())
    }

    async fn hand_on(&self, entries: &[Arc<Entry>], losses: u64) -> Result<(), StoreError> {
        let mut watched = self.frames.receiver_count() > 0;
        loop {
            let events = if watched { self.new_events(entries).await? } else { HashMap::new() };
            let mut state = self.lock();
            if state.losses != losses {
                return Ok(());
            }
            // Who came while nothing was read for anybody is to get these.
            if watched || self.frames.receiver_count() == 0 {
                entries.iter().for_each(|entry| self.publish(&mut state, entry, watched, &events));
                return Ok(());
            }
            watched = true;
        }
    }

    /// Hands one entry on to who waits and, if there are `events` for who reads, to them.
    fn publish(&self, state: &mut State, entry: &Arc<Entry>, watched: bool, events: &Events) {
        let mut sent = Vec::new();
        for (number, record) in entry.records.iter().enumerate() {
            for waiter in state.waiting.remove(&record.event_id).into_iter().flatten() {
                // It may have gone.
                waiter.send(()).unwrap_or_default();
            }
            let event = events.get(&(entry.bucket, entry.id, number));
            // One that has gone since was lost with the store, and is new when it is announced again.
            if (event.is_some() || !watched)
                && let Some(generation) = state.generations.announce(entry, record)
                && let Some(Some(json)) = event
            {
                sent.push((number, generation, json));
            }
        }
        for (nth, (number, generation, json)) in sent.iter().enumerate() {
            // Behind the last one nothing is left of the entry, whatever else it announces.
            let last = nth + 1 == sent.len();
            if last {
                state.position.pass_all(entry)
            } else {
                state.position.pass(entry, *number)
            }
            self.send(entry, *number, *generation, &state.position, json);
        }
        state.pass_all(entry);
    }

    /// The events of those records that are announced for the first time.
    async fn new_events(&self, entries: &[Arc<Entry>]) -> Result<Events, StoreError> {
        let new: Vec<(&Entry, usize)> = {
            let state = self.lock();
            numbered(entries)
                .filter(|(entry, number)| !state.generations.know(entry, &entry.records[*number]))
                .collect()
        };
        events_of(&self.store, &new).await
    }

    fn send(&self, entry: &Arc<Entry>, number: usize, generation: u64, position: &TailPosition, json: &Bytes) {
        let fillers = json.len() / SLOT;
        let (entry, position, event) = (Arc::clone(entry), position.clone(), Shared::new(json.clone()));
        // Nobody may be listening.
        drop(self.frames.send(Arc::new(Frame::Event { entry, number, generation, position, event })));
        (0..fillers).for_each(|_| drop(self.frames.send(Arc::new(Frame::Filler))));
    }

    fn is_wanted(&self) -> bool {
        let mut state = self.lock();
        if self.frames.receiver_count() > 0 || !state.waiting.is_empty() {
            state.wanted = Instant::now();
        }
        state.wanted.elapsed() < LINGER
    }

    /// Makes sure that the tail is read.
    async fn begin(&self) -> Result<(), StoreError> {
        let mut running = self.running.subscribe();
        // Where Redis answers, the reading is only late, on a busy machine. In the end the reader is better told to reset.
        for _ in 0..BEGIN_TRIES {
            self.lock().wanted = Instant::now();
            self.wake.notify_one();
            // The sender lives as long as self does.
            if tokio::time::timeout(BEGIN_PATIENCE, running.wait_for(|running| *running)).await.is_ok() {
                break;
            }
            self.store.check().await?;
        }
        Ok(())
    }

    /// Everything from now on.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub(crate) async fn subscribe(&self) -> Result<Subscription, StoreError> {
        self.begin().await?;
        loop {
            // A loss may not have been noticed yet, and who comes now may read a list that lacks what was lost.
            let (position, losses) = self.stands();
            if self.meets_loss(position.buckets(), &position, losses).await? {
                continue;
            }
            let state = self.lock();
            if state.losses == losses {
                let (position, generation) = (state.position.clone(), state.generations.latest());
                return Ok(Subscription { position, generation, frames: self.frames.subscribe() });
            }
        }
    }

    /// An event that may be on its way: its JSON and where it came from, as soon as it is stored, or `None` when it is
    /// not after `patience`.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub(crate) async fn processed(
        &self,
        event_id: &str,
        patience: Duration,
    ) -> Result<Option<(Bytes, Origin)>, StoreError> {
        let deadline = Instant::now() + patience;
        // Before the look, so that nothing is stored unseen between the two.
        let mut waiter = self.wait_for(event_id);
        if let Some(found) = self.store.event(event_id).await? {
            return Ok(Some(found));
        }
        self.wake.notify_one();
        if !*self.running.borrow() {
            // The tail begins behind what is stored until then. Without it there are still the looks below.
            drop(tokio::time::timeout(patience.min(BEGIN_PATIENCE), self.begin()).await);
            if let Some(found) = self.store.event(event_id).await? {
                return Ok(Some(found));
            }
        }
        let (mut running, mut pause) = (self.running.subscribe(), FIRST_LOOK);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // The tail says when there is something to see, as long as it is read.
            let longest = if *running.borrow_and_update() { left } else { pause.min(left) };
            pause = (pause * 2).min(LONGEST_LOOK);
            tokio::select! {
                said = tokio::time::timeout(longest, &mut waiter.said) => if said.is_ok() {
                    waiter = self.wait_for(event_id);
                },
                // What was stored until it is read again is not announced. The sender lives as long as self does.
                _ = running.changed() => {}
            }
            if let Some(found) = self.store.event(event_id).await? {
                return Ok(Some(found));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    fn wait_for(&self, event_id: &str) -> Waiter<'_> {
        let (waiter, said) = oneshot::channel();
        let mut state = self.lock();
        state.wanted = Instant::now();
        state.waiting.entry(event_id.to_owned()).or_default().push(waiter);
        Waiter { tail: self, event_id: event_id.to_owned(), said }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for an event.
struct Waiter<'a> {
    tail: &'a Tail,
    event_id: String,
    said: oneshot::Receiver<()>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.said.close();
        let mut state = self.tail.lock();
        if let Some(others) = state.waiting.get_mut(&self.event_id) {
            others.retain(|waiter| !waiter.is_closed());
            if others.is_empty() {
                state.waiting.remove(&self.event_id);
            }
        }
    }
}

/// Events by bucket and entry, and the numbers of their records in these.
pub(crate) type Events = HashMap<(usize, EntryId, usize), Option<Bytes>>;

/// The records of entries: each entry as often as it has records, with their numbers.
fn numbered(entries: &[Arc<Entry>]) -> impl Iterator<Item = (&Entry, usize)> {
    entries.iter().flat_map(|entry| (0..entry.records.len()).map(move |number| (&**entry, number)))
}

/// The events of these records, of those that are still stored. `None` of one that was stored before its entry, by the same
/// record or an earlier one with the same id: it was announced then.
pub(crate) async fn events_of(store: &Store, records: &[(&Entry, usize)]) -> Result<Events, StoreError> {
    let asked: Vec<&Announced> = records.iter().map(|(entry, number)| &entry.records[*number]).collect();
    let found = store.announced(&asked).await?;
    let events = records.iter().zip(asked).zip(found).filter_map(|(((entry, number), record), found)| {
        let (json, origin) = found?;
        let own = (origin.partition, origin.offset) == (record.partition, record.offset)
            && origin.processed_at.millis() >= entry.since;
        Some(((entry.bucket, entry.id, *number), own.then_some(json)))
    });
    Ok(events.collect())
}

/// Entries in portions of about [`PORTION`] records.
fn portions(mut entries: &[Arc<Entry>]) -> impl Iterator<Item = &[Arc<Entry>]> {
    std::iter::from_fn(move || {
        let mut records = 0;
        let fits = |entry: &&Arc<Entry>| {
            let first = records == 0;
            records += entry.records.len();
            first || records <= PORTION
        };
        let (portion, rest) = entries.split_at(entries.iter().take_while(fits).count());
        entries = rest;
        (!portion.is_empty()).then_some(portion)
    })
}

/// An event on the wire (HTML standard, section 9.2.6), and where its reader then stands.
pub(crate) fn frame(position: &TailPosition, json: &[u8]) -> Bytes {
    let id = position.encode();
    let mut text = Vec::with_capacity(json.len() + id.len() + 16);
    text.extend_from_slice(b"id: ");
    text.extend_from_slice(id.as_bytes());
    text.extend_from_slice(b"\ndata: ");
    push_line(&mut text, json);
    text.extend_from_slice(b"\n\n");
    text.into()
}
