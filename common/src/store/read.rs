//! Reading back: one event, and lists in one total order, by score, then id.
//!
//! A list is a merge of the buckets' indexes. A row may be given out only when no bucket can still hold a row before it, so
//! a bucket whose buffered rows are used up is asked again before the merge goes on. An index that is read alone needs no
//! merge, and mostly no scores.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use redis::{FromRedisValue, Value};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::task::JoinHandle;

use super::bodies::{Sizes, whole};
use super::connection::Lane;
use super::layout::StoredId;
use super::query::Row;
use super::{Cursor, Members, Order, Origin, Query, Store, StoreError};

/// Entries that one page may look at. A filter that admits few of them gets a short page, and a cursor to go on with.
const SCAN_BUDGET: usize = 10_000;
/// Rows that a page asks of the indexes at a time, at least, where its own number of them was not enough.
const SCAN_STEP: usize = 500;
/// Bytes of bodies that a page has, unless its first event alone has more.
const PAGE_BYTES: usize = 1024 * 1024;
/// Pages that are read at a time.
pub(super) const PAGES: usize = 16;
/// Rows that a [`ReadAhead`] takes from the indexes at a time: their entries come in less than 64 KiB, which is what Redis
/// writes to a connection before it executes what else has come over it. Behind larger replies it goes on to execute and
/// stops to write, and then has nothing to do while we read all that at once.
const ROWS_AHEAD: usize = 500;
/// Steps of it whose bodies are fetched at a time, so that Redis has work while those before are given out.
const BODIES_AHEAD: usize = 2;
/// Rows of such a step, at most: of a full list, two steps may be on their way.
const STEP_ROWS: usize = 128;
/// Bytes of bodies that such a step aims at, for the same reason as [`ROWS_AHEAD`], and those that it keeps.
const STEP_BYTES: usize = 48 * 1024;
const STEP_ROOM: usize = 2 * STEP_BYTES;
/// More bytes than an origin has with the zero byte before it: three numbers and the name of a worker, which has up to 64.
const LONGEST_ORIGIN: i32 = 200;

/// A page of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// The events' JSON, in order.
    pub events: Vec<Bytes>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
}

/// What is stored of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Which record it was stored from; `None` when it has no body.
    pub origin: Option<Origin>,
    /// Whether lists show it.
    pub listed: bool,
}

/// An entry of an index, as it is given out.
#[derive(Debug)]
struct Entry {
    /// `None` where it was not asked for.
    score: Option<i64>,
    id: StoredId,
}

impl From<Row> for Entry {
    fn from(Row { score, id }: Row) -> Self {
        Self { score: Some(score), id }
    }
}

/// One index's part of a walk.
#[derive(Debug, Clone)]
struct Head {
    index: String,
    /// Exists while the index may name bodies that are not small.
    large: String,
    buffered: VecDeque<Row>,
    last: Option<Row>,
    exhausted: bool,
}

/// Members of an index with their scores, as Redis gives them.
type Scored = Vec<(Vec<u8>, f64)>;

/// What is asked for, and over which connection.
struct List {
    store: Arc<Store>,
    lane: Arc<Lane>,
    query: Query,
    /// Whether an entry that was read may name a body that is not small.
    has_large: AtomicBool,
    /// Whether bodies decide what is given out, beyond what the index says.
    filtered: bool,
    /// Whether a user's index is read.
    of_a_user: bool,
}

impl List {
    /// The index covers the time. An entry of a user may be the id of somebody else's event that came first, or of one
    /// that was there with another timestamp.
    fn admits(&self, row: &Entry, json: &[u8]) -> bool {
        let is_its_own = || row.score.is_some_and(|score| Members::of(json).is_some_and(|event| event.is_at(score)));
        !self.filtered || (self.query.admits(json) && (!self.of_a_user || is_its_own()))
    }

    /// Takes the first of these rows, of those that fit into `room` bytes: each with the JSON of its event, if it is asked for.
    async fn fetch(&self, rows: &mut VecDeque<Entry>, room: usize) -> Result<Vec<Fetched>, StoreError> {
        let ids: Vec<&StoredId> = rows.iter().map(|row| &row.id).collect();
        let bodies = self.store.fitting_bodies(&self.lane, &ids, room, self.sizes()).await?;
        let asked_for = |(row, json): (Entry, Option<Bytes>)| {
            let json = json.filter(|json| self.admits(&row, json));
            (row, json)
        };
        Ok(rows.drain(..bodies.len().min(rows.len())).zip(bodies).map(asked_for).collect())
    }

    /// As [`List::fetch`] for a step of a walk: the JSON alone, and the rows that did not fit.
    async fn step(&self, mut rows: VecDeque<Entry>) -> Result<Step, StoreError> {
        let events = self.fetch(&mut rows, STEP_ROOM).await?.into_iter().filter_map(|(_, json)| json).collect();
        Ok((events, rows))
    }

    /// How many rows are a step.
    fn step_rows(&self) -> usize {
        self.within(STEP_BYTES).min(STEP_ROWS)
    }

    /// How many rows to ask for whose bodies probably have so many bytes.
    fn within(&self, bytes: usize) -> usize {
        self.store.bodies.within(bytes, self.sizes())
    }

    /// How large the bodies may be of the entries that were read.
    fn sizes(&self) -> Sizes {
        if self.has_large.load(Relaxed) { Sizes::Any } else { Sizes::Small }
    }

    /// Takes note of what a mark said behind some entries.
    fn note(&self, large: bool) {
        self.has_large.fetch_or(large, Relaxed);
    }
}

/// Takes one reply of several kinds.
fn read_as<T: FromRedisValue>(reply: Option<Value>) -> Result<T, StoreError> {
    T::from_redis_value(reply.unwrap_or(Value::Nil)).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// An entry with the JSON of its event, if it is asked for.
type Fetched = (Entry, Option<Bytes>);

/// Events, and rows that come before all others.
type Step = (Vec<Bytes>, VecDeque<Entry>);

/// Takes up to so many off the front.
fn take(rows: &mut VecDeque<Entry>, limit: usize) -> VecDeque<Entry> {
    let rest = rows.split_off(limit.min(rows.len()));
    std::mem::replace(rows, rest)
}

/// Puts back what [`take`] took.
fn put_back(rows: &mut VecDeque<Entry>, mut first: VecDeque<Entry>) {
    if !first.is_empty() {
        first.append(rows);
        *rows = first;
    }
}

/// A walk over a list, a few rows at a time. Every row that was there at its start is visited once; one that is inserted
/// meanwhile is visited if it lies beyond what has been fetched of its index, the end of which is looked for once.
pub struct Walk {
    list: Arc<List>,
    low: i64,
    high: Option<i64>,
    /// The buckets' indexes, or that of one user.
    heads: Vec<Head>,
    /// Whether each row comes with its score.
    scored: bool,
    /// Rows before which none can come any more, in order.
    merged: VecDeque<Entry>,
}

impl Walk {
    /// A walk over what is asked for and the retention still shows, after `cursor`. `full` uses the connection for
    /// exports.
    ///
    /// # Errors
    /// [`StoreError`] when Redis does not say how the store is laid out.
    pub async fn new(
        store: &Arc<Store>,
        query: &Query,
        cursor: Option<&Cursor>,
        full: bool,
    ) -> Result<Self, StoreError> {
        let layout = store.layout().await?;
        let (low, high) = query.scores(store.horizon());
        let user = query.user.as_ref().filter(|_| store.index_is_whole_since(low / 1024));
        let last = cursor.map(|cursor| cursor.0.clone());
        let head = |index, bucket| {
            let (buffered, last) = (VecDeque::new(), last.clone());
            Head { index, large: layout.large(bucket), buffered, last, exhausted: false }
        };
        let heads: Vec<Head> = match user {
            Some(user) => {
                let bucket = layout.bucket_of(user.as_str());
                vec![head(layout.user_index(bucket, user.as_str()), bucket)]
            }
            None => layout.all().map(|bucket| head(layout.index(bucket), bucket)).collect(),
        };
        let filtered = query.user.is_some() || !query.types.is_empty();
        let list = Arc::new(List {
            store: Arc::clone(store),
            lane: if full { Arc::clone(&store.export) } else { store.page_lane() },
            query: query.clone(),
            has_large: AtomicBool::default(),
            filtered,
            of_a_user: user.is_some(),
        });
        let scored = heads.len() > 1 || list.of_a_user;
        Ok(Self { list, low, high, heads, scored, merged: VecDeque::new() })
    }

    /// A page of up to `limit` events; `None` if it ends at a row whose score is needed and not known.
    async fn page(mut self, limit: usize) -> Result<Option<Page>, StoreError> {
        let (mut events, mut scanned, mut bytes, mut last) = (Vec::new(), 0, 0, None);
        while events.len() < limit && bytes < PAGE_BYTES && scanned < SCAN_BUDGET {
            let missing = limit - events.len();
            // The last one at hand is there to tell that the list goes on.
            if self.merged.len() <= 1 {
                self.fill(1 + if scanned == 0 { limit } else { missing.max(SCAN_STEP) }).await?;
            }
            // As many as are missing, if as few of them are left away as of those before.
            let wanted = missing * scanned.max(1) / events.len().max(1);
            let room = PAGE_BYTES - bytes;
            let rows = take(&mut self.merged, wanted.min(self.list.within(room)));
            if rows.is_empty() {
                break;
            }
            let (found, left) = self.fetch(rows, room).await?;
            let mut found = found.into_iter();
            scanned += found.len();
            while events.len() < limit
                && let Some((row, json)) = found.next()
            {
                bytes += json.as_ref().map_or(0, Bytes::len);
                events.extend(json);
                last = Some(row);
            }
            put_back(&mut self.merged, found.map(|(row, _)| row).chain(left).collect());
        }
        if self.has_ended().await? {
            return Ok(Some(Page { events, next: None }));
        }
        let Some(Entry { score, id }) = last else { return Ok(None) };
        let score = if score.is_some() { score } else { self.score_of(&id).await? };
        Ok(score.map(|score| Page { events, next: Some(Cursor(Row { score, id })) }))
    }

    /// As [`List::fetch`], with the rows that did not fit. What was asked for comes also when nobody waits for it any more, and
    /// keeps its place among the bodies on their way until then.
    async fn fetch(
        &self,
        mut rows: VecDeque<Entry>,
        room: usize,
    ) -> Result<(Vec<Fetched>, VecDeque<Entry>), StoreError> {
        let list = Arc::clone(&self.list);
        let fetched = tokio::spawn(async move {
            let found = list.fetch(&mut rows, room).await?;
            Ok((found, rows))
        });
        fetched.await.map_err(|error| StoreError::Corrupt(error.to_string()))?
    }

    /// The score of an entry of the only index that is read; `None` if it has left, or moved beyond what was read.
    async fn score_of(&self, id: &StoredId) -> Result<Option<i64>, StoreError> {
        let [head] = self.heads.as_slice() else { return Ok(None) };
        let mut asked = redis::cmd("ZSCORE");
        asked.arg(&head.index).arg(id.as_bytes());
        let score = self.list.lane.command::<Option<f64>>(&asked).await?.map(|score| score as i64);
        let is_before = |end: &Row, score: i64| match self.list.query.order {
            Order::Ascending => score <= end.score,
            Order::Descending => score >= end.score,
        };
        Ok(score.filter(|score| head.last.as_ref().is_some_and(|end| is_before(end, *score))))
    }

    async fn has_ended(&mut self) -> Result<bool, StoreError> {
        self.fill(1).await?;
        Ok(self.merged.is_empty())
    }

    fn all_is_merged(&self) -> bool {
        self.heads.iter().all(|head| head.exhausted && head.buffered.is_empty())
    }

    /// Reads the indexes until so many rows are at hand, if there are so many.
    async fn fill(&mut self, wanted: usize) -> Result<(), StoreError> {
        // A bucket's share of the rows varies: three standard deviations are hardly ever too little. The last row given out
        // comes again.
        let mean = wanted.div_ceil(self.heads.len());
        let share = if self.heads.len() == 1 { wanted + 1 } else { mean + (9 * mean).isqrt() + 2 };
        while self.merged.len() < wanted && !self.all_is_merged() {
            if self.scored || !self.go_on(wanted.max(2)).await? {
                self.refill(share).await?;
                self.merge();
            }
        }
        Ok(())
    }

    /// Takes the next rows of the only index, without their scores: Redis takes longer to write these than for all else.
    /// But the last one's, where the walk goes on, and that of the one before, where a page ends that has asked for one row
    /// more. Gives whether it did: it can't where other rows come before the next ones, or have come in between.
    async fn go_on(&mut self, wanted: usize) -> Result<bool, StoreError> {
        let [head] = self.heads.as_slice() else { return Ok(false) };
        let passed = usize::from(head.last.is_some());
        let before_ends = passed + wanted - 2;
        let mut both = redis::pipe();
        both.add_command(self.range(head, 0, passed + wanted));
        both.add_command(self.range(head, before_ends, 2)).arg("WITHSCORES");
        both.cmd("EXISTS").arg(&head.large);
        let (ids, ends, large): (Vec<Vec<u8>>, Scored, bool) = self.list.lane.pipeline(&both).await?;
        self.list.note(large);
        let [head] = self.heads.as_mut_slice() else { return Ok(false) };
        let follows = head.last.as_ref().is_none_or(|last| ids.first().is_some_and(|id| *id == last.id.as_bytes()));
        let exhausted = ids.len() < passed + wanted;
        let end =
            ends.last().and_then(|(id, score)| Some(Row { score: *score as i64, id: StoredId::read(id.clone())? }));
        let fits = ids.iter().skip(before_ends).eq(ends.iter().map(|(id, _)| id)) && (exhausted || end.is_some());
        if !(follows && fits) {
            return Ok(false);
        }
        (head.exhausted, head.last) = (exhausted, end);
        let scores =
            std::iter::repeat_n(None, before_ends).chain(ends.into_iter().map(|(_, score)| Some(score as i64)));
        let mut foreign = 0;
        for (id, score) in ids.into_iter().zip(scores).skip(passed) {
            match StoredId::read(id) {
                Some(id) => self.merged.push_back(Entry { score, id }),
                None => foreign += 1,
            }
        }
        self.list.store.foreign.skip(foreign, &head.index);
        Ok(true)
    }

    /// Takes the rows up to the one behind which some bucket has not been read.
    fn merge(&mut self) {
        let order = self.list.query.order;
        let unread = self.heads.iter().filter(|head| !head.exhausted).filter_map(|head| head.buffered.back());
        let last = unread.min_by(|one, other| order.of(one, other)).cloned();
        let mut rows = Vec::new();
        for head in &mut self.heads {
            let end = last
                .as_ref()
                .map_or(head.buffered.len(), |last| head.buffered.partition_point(|row| order.of(row, last).is_le()));
            rows.extend(head.buffered.drain(..end));
        }
        // Made for what consists of sorted runs.
        rows.sort_by(|one, other| order.of(one, other));
        // The names of a bucket's keys may be those that another one had while the store had another number of them.
        rows.dedup();
        self.merged.extend(rows.into_iter().map(Entry::from));
    }

    /// Asks for more where a buffer is empty, in one exchange, until each has a row or has ended.
    async fn refill(&mut self, wanted: usize) -> Result<(), StoreError> {
        let mut wanted = wanted;
        while self.heads.iter().any(|head| head.buffered.is_empty() && !head.exhausted) {
            // Those that are nearly used up come along, so that they need no exchange of their own in a moment.
            let short = |head: &Head| head.buffered.len() <= wanted / 2 && !head.exhausted;
            let asked: Vec<usize> = (0..self.heads.len()).filter(|head| short(&self.heads[*head])).collect();
            let looks = asked.iter().map(|head| &self.heads[*head]).flat_map(|head| {
                let (mut range, mut large) = (self.range(head, 0, wanted), redis::cmd("EXISTS"));
                range.arg("WITHSCORES");
                large.arg(&head.large);
                [range, large]
            });
            let mut answers = self.list.lane.scatter::<Value>(looks).await?.into_iter();
            for head in asked {
                let head = &mut self.heads[head];
                let (rows, large) = (answers.next(), answers.next());
                let foreign = head.take(read_as(rows)?, wanted, self.list.query.order);
                self.list.note(read_as(large)?);
                self.list.store.foreign.skip(foreign, &head.index);
            }
            // Only where a whole answer shared the last row's score and lay before it.
            wanted = wanted.saturating_mul(4);
        }
        Ok(())
    }

    fn range(&self, head: &Head, offset: usize, wanted: usize) -> redis::Cmd {
        let last = head.last.as_ref().map(|row| row.score);
        let end = self.high.map_or("+inf".into(), |high| high.to_string());
        let mut range = redis::cmd("ZRANGE");
        range.arg(&head.index);
        match self.list.query.order {
            Order::Ascending => range.arg(last.unwrap_or(0).max(self.low)).arg(end).arg("BYSCORE"),
            Order::Descending => {
                let begin = last.map_or(end, |last| self.high.map_or(last, |high| high.min(last)).to_string());
                range.arg(begin).arg(self.low).arg("BYSCORE").arg("REV")
            }
        };
        range.arg("LIMIT").arg(offset).arg(wanted);
        range
    }
}

/// What a [`Walk`] gives, read before it is asked for: the indexes by a task, and the bodies of some steps at a time.
pub struct ReadAhead {
    list: Arc<List>,
    merged: mpsc::Receiver<Result<VecDeque<Entry>, StoreError>>,
    rows: VecDeque<Entry>,
    /// No rows come any more.
    ended: bool,
    steps: VecDeque<JoinHandle<Result<Step, StoreError>>>,
    /// Rows before those of the steps, that did not fit.
    left: VecDeque<Entry>,
}

impl From<Walk> for ReadAhead {
    fn from(walk: Walk) -> Self {
        let (sender, merged) = mpsc::channel(1);
        let list = Arc::clone(&walk.list);
        tokio::spawn(merge_ahead(walk, sender));
        Self::of(list, merged)
    }
}

/// Ends with a failure, when nobody reads on, or with the list: then no rows are the last that is sent.
async fn merge_ahead(mut walk: Walk, merged: mpsc::Sender<Result<VecDeque<Entry>, StoreError>>) {
    loop {
        let rows = walk.fill(ROWS_AHEAD).await.map(|()| take(&mut walk.merged, ROWS_AHEAD));
        let goes_on = rows.as_ref().is_ok_and(|rows| !rows.is_empty());
        if merged.send(rows).await.is_err() || !goes_on {
            return;
        }
    }
}

impl ReadAhead {
    fn of(list: Arc<List>, merged: mpsc::Receiver<Result<VecDeque<Entry>, StoreError>>) -> Self {
        let (rows, steps, left) = Default::default();
        Self { list, merged, rows, ended: false, steps, left }
    }

    /// Looks at the next rows and gives the JSON of those events that are asked for, which may be none of them; `None` at
    /// the end of the list.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn step(&mut self) -> Result<Option<Vec<Bytes>>, StoreError> {
        if !self.left.is_empty() {
            let rows = take(&mut self.left, self.list.step_rows());
            let (events, rest) = self.list.step(rows).await?;
            put_back(&mut self.left, rest);
            return Ok(Some(events));
        }
        while self.steps.len() < BODIES_AHEAD {
            while self.rows.len() < STEP_ROWS && !self.ended && self.take_rows().await? {}
            let rows = take(&mut self.rows, self.list.step_rows());
            if rows.is_empty() {
                break;
            }
            let list = Arc::clone(&self.list);
            self.steps.push_back(tokio::spawn(async move { list.step(rows).await }));
        }
        let Some(first) = self.steps.pop_front() else { return Ok(None) };
        let (events, left) = first.await.map_err(|error| StoreError::Corrupt(error.to_string()))??;
        self.left = left;
        Ok(Some(events))
    }

    /// Whether rows came. Only who has nothing else to give out waits for them.
    async fn take_rows(&mut self) -> Result<bool, StoreError> {
        let broke_off = || StoreError::Corrupt("the walk over the indexes broke off".into());
        let rows = match self.merged.try_recv() {
            Ok(rows) => rows?,
            Err(TryRecvError::Empty) if !(self.steps.is_empty() && self.rows.is_empty()) => return Ok(false),
            Err(_) => self.merged.recv().await.ok_or_else(broke_off)??,
        };
        self.ended = rows.is_empty();
        self.rows.extend(rows);
        Ok(true)
    }
}

impl Head {
    /// Takes the rows beyond the last one. Gives how many entries are none, as their members are no eventIds.
    fn take(&mut self, answer: Scored, wanted: usize, order: Order) -> usize {
        self.exhausted = answer.len() < wanted;
        let (last, mut foreign) = (self.last.take(), 0);
        for (stored, score) in answer {
            let Some(id) = StoredId::read(stored) else {
                foreign += 1;
                continue;
            };
            let row = Row { score: score as i64, id };
            let is_beyond = last.as_ref().is_none_or(|last| order.of(&row, last).is_gt());
            self.buffered.extend(is_beyond.then_some(row));
        }
        self.last = self.buffered.back().cloned().or(last);
        foreign
    }
}

impl Store {
    /// One page of a list. It may be short, or even empty, and still have a next one: the events are large then, or the
    /// filters admit few of the many that were looked at.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn page(
        self: &Arc<Self>,
        query: &Query,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        // The semaphore is never closed.
        let _turn = self.pages.acquire().await;
        self.settle().await?;
        let walk = async |scored| {
            let mut walk = Walk::new(self, query, cursor, false).await?;
            walk.scored |= scored;
            walk.page(limit).await
        };
        // It may end at any row then.
        let scored = query.user.is_some() || !query.types.is_empty() || !self.bodies.are_within(PAGE_BYTES, limit);
        match walk(scored).await? {
            Some(page) => Ok(page),
            None => walk(true).await.map(Option::unwrap_or_default),
        }
    }

    /// One event's JSON and where it came from; `None` when it is not stored (yet, or any more).
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn event(&self, event_id: &str) -> Result<Option<(Bytes, Origin)>, StoreError> {
        let layout = self.layout().await?;
        let id = StoredId::of(event_id);
        let key = layout.event(layout.bucket_of(event_id), &id);
        let Some(stored) = self.read.command::<Option<Vec<u8>>>(redis::cmd("GET").arg(key)).await? else {
            return Ok(None);
        };
        let corrupt = || StoreError::Corrupt(format!("the body of {event_id} has no origin behind its JSON"));
        Origin::split(whole(&id, &stored)).map(Some).ok_or_else(corrupt)
    }

    /// Which of these events are stored.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn knows(&self, event_ids: &[&str]) -> Result<Vec<bool>, StoreError> {
        let layout = self.layout().await?;
        let commands = event_ids.iter().map(|id| {
            let mut exists = redis::cmd("EXISTS");
            exists.arg(layout.event(layout.bucket_of(id), &StoredId::of(id)));
            exists
        });
        self.read.scatter(commands).await
    }

    /// What is stored of each of these events.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn look_up(&self, ids: &[&str]) -> Result<Vec<Found>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let layout = self.layout().await?;
        let commands = ids.iter().flat_map(|id| {
            let (mut body, mut score) = (redis::cmd("GETRANGE"), redis::cmd("ZSCORE"));
            let (bucket, id) = (layout.bucket_of(id), StoredId::of(id));
            // Only what is behind the JSON: it is of any size. What is not there has an empty end.
            body.arg(layout.event(bucket, &id)).arg(-LONGEST_ORIGIN).arg(-1);
            score.arg(layout.index(bucket)).arg(id.as_bytes());
            [body, score]
        });
        let replies: Vec<Option<Vec<u8>>> = self.export.scatter(commands).await?;
        let origin = |body: &Vec<u8>| Origin::parse(&body[body.iter().position(|byte| *byte == 0)? + 1..]);
        let found = |pair: &[Option<Vec<u8>>]| match pair {
            [body, score] => Found { origin: body.as_ref().and_then(origin), listed: score.is_some() },
            _ => Found::default(),
        };
        Ok(replies.chunks(2).map(found).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RedisSettings;
    use crate::event::Timestamp;

    #[tokio::test]
    async fn a_walk_that_breaks_off_is_no_end_of_the_list() {
        let nowhere = RedisSettings { url: "redis://127.0.0.1:1".into(), ..RedisSettings::default() };
        let store = Arc::new(Store::new(&nowhere).unwrap());
        let list = || {
            let (store, query) = (Arc::clone(&store), Query::default());
            let (lane, has_large) = (Arc::clone(&store.export), AtomicBool::default());
            Arc::new(List { store, lane, query, has_large, filtered: false, of_a_user: false })
        };
        let (sender, merged) = mpsc::channel(1);
        sender.send(Ok(VecDeque::new())).await.unwrap();
        assert_eq!(ReadAhead::of(list(), merged).step().await.unwrap(), None, "no rows stand for the end");
        let (gone, merged) = mpsc::channel(1);
        drop(gone);
        let broken = ReadAhead::of(list(), merged).step().await;
        assert!(matches!(broken, Err(StoreError::Corrupt(_))), "{broken:?}");
    }

    #[test]
    fn the_longest_origin_is_looked_up_whole() {
        let (processed_at, worker) = (Timestamp::parse("9999-12-31T23:59:59.999Z").unwrap(), "w".repeat(64).into());
        let longest = Origin { processed_at, partition: i32::MAX, offset: i64::MAX, worker };
        let mut text = Vec::new();
        longest.append_to(&mut text);
        assert!(text.len() <= LONGEST_ORIGIN as usize);
    }

    #[test]
    fn rows_up_to_the_last_one_given_out_are_left_away() {
        let row = |score, id: &str| Row { score, id: StoredId::of(id) };
        let head = || {
            let (index, large, buffered) = Default::default();
            Head { index, large, buffered, last: Some(row(5, "b")), exhausted: false }
        };
        let mut forth = head();
        let answer = |ids: &[(&str, f64)]| ids.iter().map(|(id, score)| (id.as_bytes().to_vec(), *score)).collect();
        forth.take(answer(&[("a", 5.0), ("b", 5.0)]), 2, Order::Ascending);
        assert!(forth.buffered.is_empty() && !forth.exhausted);
        assert_eq!(forth.last, Some(row(5, "b")));
        forth.take(answer(&[("a", 5.0), ("b", 5.0), ("c", 5.0), ("a", 6.0)]), 8, Order::Ascending);
        assert_eq!(forth.buffered, [row(5, "c"), row(6, "a")]);
        assert!(forth.exhausted);
        let mut back = head();
        back.take(answer(&[("c", 5.0), ("b", 5.0), ("a", 5.0)]), 3, Order::Descending);
        assert_eq!(back.buffered, [row(5, "a")]);
    }
}
