//! Reading back: one event, and lists in one total order, by score, then id.
//!
//! A list is a merge of the sixteen buckets' indexes. A row may be given out only when no bucket can still hold a row
//! before it, so a bucket whose buffered rows are used up is asked again before the merge goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::task::JoinHandle;

use super::connection::Lane;
use super::layout::StoredId;
use super::query::Row;
use super::{BUCKETS, Cursor, Order, Origin, Query, Store, StoreError, UserIndex, bucket_of};
use crate::event::Timestamp;

/// Entries that one page may look at. A filter that admits few of them gets a short page, and a cursor to go on with.
const SCAN_BUDGET: usize = 10_000;
/// Entries that are looked at in one step, at least, where a filter may drop most of them.
const SCAN_STEP: usize = 500;
/// Rows that a [`ReadAhead`] takes from the indexes at a time: their entries come in about 64 KiB, which is what Redis writes
/// to a connection before it executes what else has come over it. Behind larger replies it goes on to execute and stops
/// to write, and then has nothing to do while we read all that at once.
const ROWS_AHEAD: usize = 500;
/// Steps of it whose bodies are fetched at a time, so that Redis has work while those before are given out.
const BODIES_AHEAD: usize = 3;

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

/// One index's part of a walk.
#[derive(Debug, Clone)]
struct Head {
    index: String,
    buffered: VecDeque<Row>,
    last: Option<Row>,
    exhausted: bool,
}

/// What is asked for, and over which connection.
struct List {
    store: Arc<Store>,
    /// Whether the connection for exports is used.
    full: bool,
    query: Query,
    /// Whether bodies decide what is given out, beyond what the index says.
    filtered: bool,
}

impl List {
    /// The index covers the time; an entry of a user may be the id of somebody else's event that came first.
    fn admits(&self, json: &[u8]) -> bool {
        !self.filtered || self.query.admits(json)
    }

    /// The JSON of those events that are asked for.
    async fn events(&self, rows: &[Row]) -> Result<Vec<Bytes>, StoreError> {
        let bodies = self.store.bodies(self.lane(), rows).await?;
        Ok(bodies.into_iter().flatten().filter(|json| self.admits(json)).collect())
    }

    fn lane(&self) -> &Lane {
        if self.full { &self.store.export } else { &self.store.read }
    }
}

/// A walk over a list, a few rows at a time. Every row that was there at its start is visited once; one that is inserted
/// meanwhile is visited if it lies beyond what has been fetched of its index.
pub struct Walk {
    list: Arc<List>,
    low: i64,
    high: Option<i64>,
    /// The sixteen buckets' indexes, or that of one user.
    heads: Vec<Head>,
    /// Rows before which none can come any more, in order.
    merged: VecDeque<Row>,
}

impl Walk {
    /// A walk over what is asked for and the retention still shows, after `cursor`. `full` uses the connection for
    /// exports.
    #[must_use]
    pub fn new(store: &Arc<Store>, query: &Query, cursor: Option<&Cursor>, full: bool) -> Self {
        let user = query.user.as_ref().filter(|_| store.user_index == UserIndex::On);
        let indexes = match user {
            Some(user) => vec![store.layout.user_index(bucket_of(user.as_str()), user.as_str())],
            None => (0..BUCKETS).map(|bucket| store.layout.index(bucket)).collect(),
        };
        let last = cursor.map(|cursor| cursor.0.clone());
        let head = |index| Head { index, buffered: VecDeque::new(), last: last.clone(), exhausted: false };
        let (low, high) = query.scores(store.horizon(Timestamp::now()));
        let filtered = query.user.is_some() || !query.types.is_empty();
        let list = Arc::new(List { store: Arc::clone(store), full, query: query.clone(), filtered });
        Self { list, low, high, heads: indexes.into_iter().map(head).collect(), merged: VecDeque::new() }
    }

    /// Looks at up to `limit` rows and gives the JSON of those events that are asked for, which may be none of them;
    /// `None` at the end of the list.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn step(&mut self, limit: usize) -> Result<Option<Vec<Bytes>>, StoreError> {
        let rows = self.next_rows(limit).await?;
        if rows.is_empty() { Ok(None) } else { self.list.events(&rows).await.map(Some) }
    }

    /// Whether it is known without asking that nothing comes after what was given out.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.merged.is_empty() && self.all_is_merged()
    }

    fn all_is_merged(&self) -> bool {
        self.heads.iter().all(|head| head.exhausted && head.buffered.is_empty())
    }

    /// Whether anything comes after what was given out. Moves on by one row.
    async fn has_more(&mut self) -> Result<bool, StoreError> {
        Ok(!self.next_rows(1).await?.is_empty())
    }

    async fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, StoreError> {
        while self.merged.len() < limit && !self.all_is_merged() {
            // A bucket's share of the rows varies; half as much again is seldom too little.
            let share = if self.heads.len() == 1 { limit } else { 2 * limit / BUCKETS + 4 };
            self.refill(share).await?;
            self.merge();
        }
        Ok(self.merged.drain(..limit.min(self.merged.len())).collect())
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
        self.merged.extend(rows);
    }

    /// Asks for more where a buffer is empty, in one exchange, until each has a row or has ended.
    async fn refill(&mut self, wanted: usize) -> Result<(), StoreError> {
        let mut wanted = wanted;
        while self.heads.iter().any(|head| head.buffered.is_empty() && !head.exhausted) {
            // Those that are nearly used up come along, so that they need no exchange of their own in a moment.
            let short = |head: &Head| head.buffered.len() <= wanted / 2 && !head.exhausted;
            let asked: Vec<usize> = (0..self.heads.len()).filter(|head| short(&self.heads[*head])).collect();
            let ranges = asked.iter().map(|head| self.range(&self.heads[*head], wanted));
            let answers: Vec<Vec<(Vec<u8>, f64)>> = self.list.lane().scatter(ranges).await?;
            for (head, answer) in asked.into_iter().zip(answers) {
                self.heads[head].take(answer, wanted, self.list.query.order)?;
            }
            // Only where a whole answer shared the last row's score and lay before it.
            wanted = wanted.saturating_mul(4);
        }
        Ok(())
    }

    fn range(&self, head: &Head, wanted: usize) -> redis::Cmd {
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
        range.arg("LIMIT").arg(0).arg(wanted).arg("WITHSCORES");
        range
    }
}

/// The rest of a [`Walk`], read before it is asked for: the indexes by a task, and the bodies of some steps at a time.
pub struct ReadAhead {
    list: Arc<List>,
    merged: mpsc::Receiver<Result<Vec<Row>, StoreError>>,
    rows: VecDeque<Row>,
    /// No rows come any more.
    ended: bool,
    steps: VecDeque<JoinHandle<Result<Vec<Bytes>, StoreError>>>,
}

impl From<Walk> for ReadAhead {
    fn from(walk: Walk) -> Self {
        let (sender, merged) = mpsc::channel(1);
        let list = Arc::clone(&walk.list);
        tokio::spawn(merge_ahead(walk, sender));
        Self { list, merged, rows: VecDeque::new(), ended: false, steps: VecDeque::new() }
    }
}

/// Ends with the list, for which no rows stand, with a failure, or when nobody reads on.
async fn merge_ahead(mut walk: Walk, merged: mpsc::Sender<Result<Vec<Row>, StoreError>>) {
    loop {
        let rows = walk.next_rows(ROWS_AHEAD).await;
        let goes_on = rows.as_ref().is_ok_and(|rows| !rows.is_empty());
        if merged.send(rows).await.is_err() || !goes_on {
            return;
        }
    }
}

impl ReadAhead {
    /// As [`Walk::step`].
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn step(&mut self, limit: usize) -> Result<Option<Vec<Bytes>>, StoreError> {
        while self.steps.len() < BODIES_AHEAD {
            if self.rows.is_empty() && !self.ended {
                self.take_rows().await?;
            }
            let rows: Vec<Row> = self.rows.drain(..limit.min(self.rows.len())).collect();
            if rows.is_empty() {
                break;
            }
            let list = Arc::clone(&self.list);
            self.steps.push_back(tokio::spawn(async move { list.events(&rows).await }));
        }
        let Some(first) = self.steps.pop_front() else { return Ok(None) };
        first.await.map_err(|error| StoreError::Corrupt(error.to_string()))?.map(Some)
    }

    /// Only who has nothing else to give out waits for rows.
    async fn take_rows(&mut self) -> Result<(), StoreError> {
        let broke_off = || StoreError::Corrupt("the walk over the indexes broke off".into());
        let rows = match self.merged.try_recv() {
            Ok(rows) => rows?,
            Err(TryRecvError::Empty) if !self.steps.is_empty() => return Ok(()),
            Err(_) => self.merged.recv().await.ok_or_else(broke_off)??,
        };
        self.ended = rows.is_empty();
        self.rows.extend(rows);
        Ok(())
    }
}

impl Head {
    fn take(&mut self, answer: Vec<(Vec<u8>, f64)>, wanted: usize, order: Order) -> Result<(), StoreError> {
        self.exhausted = answer.len() < wanted;
        let last = self.last.take();
        for (stored, score) in answer {
            let no_id = || StoreError::Corrupt(format!("{} has an entry that is no eventId", self.index));
            let row = Row { score: score as i64, id: StoredId::read(stored).ok_or_else(no_id)? };
            let is_beyond = last.as_ref().is_none_or(|last| order.of(&row, last).is_gt());
            self.buffered.extend(is_beyond.then_some(row));
        }
        self.last = self.buffered.back().cloned().or(last);
        Ok(())
    }
}

impl Store {
    /// One page of a list. It may be short, or even empty, and still have a next one: the filters then admit few of the
    /// many events that were looked at.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn page(
        self: &Arc<Self>,
        query: &Query,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut walk = Walk::new(self, query, cursor, false);
        let by_user_index = walk.heads.len() == 1;
        let selective = !query.types.is_empty() || (query.user.is_some() && !by_user_index);
        let (mut page, mut scanned) = (Page::default(), 0);
        while page.events.len() < limit && scanned < SCAN_BUDGET {
            let missing = limit - page.events.len();
            let rows = walk.next_rows(if selective { missing.max(SCAN_STEP) } else { missing }).await?;
            if rows.is_empty() {
                page.next = None;
                return Ok(page);
            }
            scanned += rows.len();
            let bodies = self.bodies(&self.read, &rows).await?;
            for (row, json) in rows.into_iter().zip(bodies) {
                if page.events.len() == limit {
                    return Ok(page);
                }
                page.events.extend(json.filter(|json| walk.list.admits(json)));
                page.next = Some(Cursor(row));
            }
        }
        if !walk.has_more().await? {
            page.next = None;
        }
        Ok(page)
    }

    /// One event's JSON and where it came from; `None` when it is not stored (yet, or any more).
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn event(&self, event_id: &str) -> Result<Option<(Bytes, Origin)>, StoreError> {
        let key = self.layout.event(bucket_of(event_id), &StoredId::of(event_id));
        let Some(body) = self.read.command::<Option<Vec<u8>>>(redis::cmd("GET").arg(key)).await? else {
            return Ok(None);
        };
        let corrupt = || StoreError::Corrupt(format!("the body of {event_id} has no origin behind its JSON"));
        Origin::split(body).map(Some).ok_or_else(corrupt)
    }

    /// Which of these events are stored.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn knows(&self, event_ids: &[&str]) -> Result<Vec<bool>, StoreError> {
        let commands = event_ids.iter().map(|id| {
            let mut exists = redis::cmd("EXISTS");
            exists.arg(self.layout.event(bucket_of(id), &StoredId::of(id)));
            exists
        });
        self.read.scatter(commands).await
    }

    /// What is stored of each of these events.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn look_up(&self, ids: &[&str]) -> Result<Vec<Found>, StoreError> {
        let commands = ids.iter().flat_map(|id| {
            let (mut body, mut score) = (redis::cmd("GET"), redis::cmd("ZSCORE"));
            let (bucket, id) = (bucket_of(id), StoredId::of(id));
            body.arg(self.layout.event(bucket, &id));
            score.arg(self.layout.index(bucket)).arg(id.as_bytes());
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

    /// The JSON of each row, in order; `None` of one whose body has expired a moment before its entry is trimmed.
    async fn bodies(&self, lane: &Lane, rows: &[Row]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let ids: Vec<&StoredId> = rows.iter().map(|row| &row.id).collect();
        let json = |mut body: Vec<u8>| {
            body.truncate(body.iter().position(|byte| *byte == 0).unwrap_or(body.len()));
            Bytes::from(body)
        };
        Ok(self.whole_bodies(lane, &ids).await?.into_iter().map(|body| body.map(json)).collect())
    }

    /// What is stored under these ids, JSON and origin, in order.
    pub(super) async fn whole_bodies(
        &self,
        lane: &Lane,
        ids: &[&StoredId],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut asked: [Vec<usize>; BUCKETS] = Default::default();
        ids.iter().enumerate().for_each(|(nth, id)| asked[id.bucket()].push(nth));
        let commands = asked.iter().enumerate().filter(|(_, nths)| !nths.is_empty()).map(|(bucket, nths)| {
            let mut command = redis::cmd("MGET");
            nths.iter().for_each(|nth| {
                command.arg(self.layout.event(bucket, ids[*nth]));
            });
            command
        });
        let answers: Vec<Vec<Option<Vec<u8>>>> = lane.scatter(commands).await?;
        let mut bodies = vec![None; ids.len()];
        let nths = asked.iter().filter(|nths| !nths.is_empty());
        for (nth, body) in nths.zip(answers).flat_map(|(nths, answer)| nths.iter().zip(answer)) {
            bodies[*nth] = body;
        }
        Ok(bodies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_up_to_the_last_one_given_out_are_left_away() {
        let row = |score, id: &str| Row { score, id: StoredId::of(id) };
        let head =
            || Head { index: String::new(), buffered: VecDeque::new(), last: Some(row(5, "b")), exhausted: false };
        let mut forth = head();
        let answer = |ids: &[(&str, f64)]| ids.iter().map(|(id, score)| (id.as_bytes().to_vec(), *score)).collect();
        forth.take(answer(&[("a", 5.0), ("b", 5.0)]), 2, Order::Ascending).unwrap();
        assert!(forth.buffered.is_empty() && !forth.exhausted);
        assert_eq!(forth.last, Some(row(5, "b")));
        forth.take(answer(&[("a", 5.0), ("b", 5.0), ("c", 5.0), ("a", 6.0)]), 8, Order::Ascending).unwrap();
        assert_eq!(forth.buffered, [row(5, "c"), row(6, "a")]);
        assert!(forth.exhausted);
        let mut back = head();
        back.take(answer(&[("c", 5.0), ("b", 5.0), ("a", 5.0)]), 3, Order::Descending).unwrap();
        assert_eq!(back.buffered, [row(5, "a")]);
    }
}
