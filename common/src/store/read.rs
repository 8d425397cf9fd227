//! Reading back: one event, and lists in one total order, by score, then id.
//!
//! A list is a merge of the buckets' indexes. A row may be given out only when no bucket can still hold a row
//! before it, so a bucket whose buffered rows are used up is asked again before the merge goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::task::JoinHandle;

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
/// Bodies that are fetched in one exchange, at most.
const MOST_BODIES: usize = 500;
/// Rows that a [`ReadAhead`] takes from the indexes at a time: their entries come in about 64 KiB, which is what Redis writes
/// to a connection before it executes what else has come over it. Behind larger replies it goes on to execute and stops
/// to write, and then has nothing to do while we read all that at once.
const ROWS_AHEAD: usize = 500;
/// Steps of it whose bodies are fetched at a time, so that Redis has work while those before are given out.
const BODIES_AHEAD: usize = 3;
/// More bytes than an origin has with the zero byte before it: three numbers and the name of a worker, which has up to 64.
const LONGEST_ORIGIN: i32 = 200;
/// Bytes of events that such a step is kept to. With what is stored beside them they come in the 64 KiB that Redis writes
/// to a connection before it executes the next step.
const STEP_BYTES: usize = 48 * 1024;

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
    /// Whether a user's index is read.
    of_a_user: bool,
}

impl List {
    /// The index covers the time. An entry of a user may be the id of somebody else's event that came first, or of one
    /// that was there with another timestamp.
    fn admits(&self, row: &Row, json: &[u8]) -> bool {
        !self.filtered
            || (self.query.admits(json) && (!self.of_a_user || Members::of(json).is_some_and(|event| event.is_at(row))))
    }

    /// The JSON of those events that are asked for.
    async fn events(&self, rows: &[Row]) -> Result<Vec<Bytes>, StoreError> {
        let bodies = self.store.bodies(self.lane(), rows).await?;
        let found = rows.iter().zip(bodies).filter_map(|(row, body)| Some((row, body?)));
        Ok(found.filter(|(row, json)| self.admits(row, json)).map(|(_, json)| json).collect())
    }

    fn lane(&self) -> &Lane {
        if self.full { &self.store.export } else { &self.store.read }
    }
}

/// How many of these bodies, of so many bytes each, fit into `room`; one at least, if there is any.
fn fitting<'a>(sizes: impl Iterator<Item = &'a usize>, room: usize) -> usize {
    let mut bytes = 0;
    let fits = |size: &&usize| {
        let first = bytes == 0;
        bytes += (**size).max(1);
        first || bytes <= room
    };
    sizes.take(MOST_BODIES).take_while(fits).count()
}

/// A walk over a list, a few rows at a time. Every row that was there at its start is visited once; one that is inserted
/// meanwhile is visited if it lies beyond what has been fetched of its index, the end of which is looked for once.
pub struct Walk {
    list: Arc<List>,
    low: i64,
    high: Option<i64>,
    /// The buckets' indexes, or that of one user.
    heads: Vec<Head>,
    /// Rows before which none can come any more, in order.
    merged: VecDeque<Row>,
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
        let indexes = match user {
            Some(user) => vec![layout.user_index(layout.bucket_of(user.as_str()), user.as_str())],
            None => layout.all().map(|bucket| layout.index(bucket)).collect(),
        };
        let last = cursor.map(|cursor| cursor.0.clone());
        let head = |index| Head { index, buffered: VecDeque::new(), last: last.clone(), exhausted: false };
        let filtered = query.user.is_some() || !query.types.is_empty();
        let list = Arc::new(List {
            store: Arc::clone(store),
            full,
            query: query.clone(),
            filtered,
            of_a_user: user.is_some(),
        });
        Ok(Self { list, low, high, heads: indexes.into_iter().map(head).collect(), merged: VecDeque::new() })
    }

    /// Looks at up to `limit` rows and gives the JSON of those events that are asked for, which may be none of them;
    /// `None` at the end of the list.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn step(&mut self, limit: usize) -> Result<Option<Vec<Bytes>>, StoreError> {
        let rows = self.next_rows(limit).await?;
        if rows.is_empty() { Ok(None) } else { Ok(Some(self.list.events(&rows).await?)) }
    }

    async fn has_ended(&mut self) -> Result<bool, StoreError> {
        self.fill(1).await?;
        Ok(self.merged.is_empty())
    }

    fn all_is_merged(&self) -> bool {
        self.heads.iter().all(|head| head.exhausted && head.buffered.is_empty())
    }

    async fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, StoreError> {
        self.fill(limit).await?;
        Ok(self.take(limit))
    }

    async fn next_sized_rows(&mut self, limit: usize) -> Result<Vec<SizedRow>, StoreError> {
        let rows = self.next_rows(limit).await?;
        let sizes = self.list.store.sizes(self.list.lane(), rows.iter()).await?;
        Ok(rows.into_iter().zip(sizes).collect())
    }

    /// Reads the indexes until so many rows are at hand, if there are so many.
    async fn fill(&mut self, wanted: usize) -> Result<(), StoreError> {
        let share = match self.heads.len() {
            // The last row given out comes again, and one more tells whether the list goes on.
            1 => wanted + 2,
            // A bucket's share of the rows varies: four standard deviations are hardly ever too little.
            buckets => wanted / buckets + 4 * (wanted / buckets).isqrt() + 4,
        };
        while self.merged.len() < wanted && !self.all_is_merged() {
            self.refill(share).await?;
            self.merge();
        }
        Ok(())
    }

    /// Up to `limit` of the rows that are at hand.
    fn take(&mut self, limit: usize) -> Vec<Row> {
        self.merged.drain(..limit.min(self.merged.len())).collect()
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
                let head = &mut self.heads[head];
                let foreign = head.take(answer, wanted, self.list.query.order);
                self.list.store.foreign.skip(foreign, &head.index);
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
    merged: mpsc::Receiver<Result<Vec<SizedRow>, StoreError>>,
    rows: VecDeque<SizedRow>,
    /// No rows come any more.
    ended: bool,
    steps: VecDeque<JoinHandle<Result<Vec<Bytes>, StoreError>>>,
}

/// A row and the bytes of its body.
type SizedRow = (Row, usize);

impl From<Walk> for ReadAhead {
    fn from(walk: Walk) -> Self {
        let (sender, merged) = mpsc::channel(1);
        let list = Arc::clone(&walk.list);
        tokio::spawn(merge_ahead(walk, sender));
        Self { list, merged, rows: VecDeque::new(), ended: false, steps: VecDeque::new() }
    }
}

/// Ends with a failure, when nobody reads on, or with the list: then no rows are the last that is sent.
async fn merge_ahead(mut walk: Walk, merged: mpsc::Sender<Result<Vec<SizedRow>, StoreError>>) {
    loop {
        let rows = walk.next_sized_rows(ROWS_AHEAD).await;
        let goes_on = rows.as_ref().is_ok_and(|rows| !rows.is_empty());
        if merged.send(rows).await.is_err() || !goes_on {
            return;
        }
    }
}

impl ReadAhead {
    /// As [`Walk::step`], of as many rows as fit a step.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn step(&mut self) -> Result<Option<Vec<Bytes>>, StoreError> {
        while self.steps.len() < BODIES_AHEAD {
            while self.rows.len() < MOST_BODIES && !self.ended && self.take_rows().await? {}
            let count = fitting(self.rows.iter().map(|(_, size)| size), STEP_BYTES);
            let rows: Vec<Row> = self.rows.drain(..count).map(|(row, _)| row).collect();
            if rows.is_empty() {
                break;
            }
            let list = Arc::clone(&self.list);
            self.steps.push_back(tokio::spawn(async move { list.events(&rows).await }));
        }
        let Some(first) = self.steps.pop_front() else { return Ok(None) };
        first.await.map_err(|error| StoreError::Corrupt(error.to_string()))?.map(Some)
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
    fn take(&mut self, answer: Vec<(Vec<u8>, f64)>, wanted: usize, order: Order) -> usize {
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
        let mut walk = Walk::new(self, query, cursor, false).await?;
        let (mut page, mut scanned, mut bytes) = (Page::default(), 0, 0);
        // Of the first of the rows that are at hand.
        let mut sizes = VecDeque::new();
        while page.events.len() < limit && bytes < PAGE_BYTES && scanned < SCAN_BUDGET {
            let (admitted, missing) = (page.events.len(), limit - page.events.len());
            if walk.merged.is_empty() {
                walk.fill(if scanned == 0 { limit } else { missing.max(SCAN_STEP) }).await?;
            }
            // As many as are missing, if as few of them are left away as of those before.
            let wanted = (missing * scanned.max(1) / admitted.max(1)).min(MOST_BODIES);
            // The size of a single one does not matter: it is fetched in any case.
            if wanted > 1 && sizes.len() < wanted {
                let unknown = walk.merged.iter().take(wanted).skip(sizes.len());
                sizes.extend(self.sizes(&self.read, unknown).await?);
            }
            let rows = walk.take(if wanted > 1 { fitting(sizes.iter().take(wanted), PAGE_BYTES - bytes) } else { 1 });
            sizes.drain(..rows.len().min(sizes.len()));
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
                let json = json.filter(|json| walk.list.admits(&row, json));
                bytes += json.as_ref().map_or(0, Bytes::len);
                page.events.extend(json);
                page.next = Some(Cursor(row));
            }
        }
        if walk.has_ended().await? {
            page.next = None;
        }
        Ok(page)
    }

    /// One event's JSON and where it came from; `None` when it is not stored (yet, or any more).
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn event(&self, event_id: &str) -> Result<Option<(Bytes, Origin)>, StoreError> {
        let layout = self.layout().await?;
        let key = layout.event(layout.bucket_of(event_id), &StoredId::of(event_id));
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

    /// How many bytes are stored of each row, in order; 0 of one that has no body.
    async fn sizes(&self, lane: &Lane, rows: impl Iterator<Item = &Row>) -> Result<Vec<usize>, StoreError> {
        let layout = self.layout().await?;
        // One pipeline, where one server has all buckets.
        let parts = if lane.is_cluster() { layout.buckets() } else { 1 };
        let mut asked: Vec<(Vec<usize>, redis::Pipeline)> = vec![Default::default(); parts];
        let mut count = 0;
        for (nth, row) in rows.enumerate() {
            let bucket = layout.bucket_of_stored(&row.id);
            let (nths, pipeline) = &mut asked[bucket % parts];
            nths.push(nth);
            pipeline.cmd("STRLEN").arg(layout.event(bucket, &row.id));
            count += 1;
        }
        let (nths, pipelines): (Vec<_>, Vec<_>) = asked.into_iter().filter(|(nths, _)| !nths.is_empty()).unzip();
        let answers = try_join_all(pipelines.iter().map(|pipeline| lane.pipeline::<Vec<usize>>(pipeline))).await?;
        let mut sizes = vec![0; count];
        for (nth, size) in nths.into_iter().zip(answers).flat_map(|(nths, answer)| nths.into_iter().zip(answer)) {
            sizes[nth] = size;
        }
        Ok(sizes)
    }

    /// The JSON of each row, in order; `None` of one whose body has expired a moment before its entry is trimmed.
    async fn bodies(&self, lane: &Lane, rows: &[Row]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let ids: Vec<&StoredId> = rows.iter().map(|row| &row.id).collect();
        let json = |mut body: Vec<u8>| {
            // The origin is the shorter part by far.
            body.truncate(body.iter().rposition(|byte| *byte == 0).unwrap_or(body.len()));
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
        let layout = self.layout().await?;
        // One command, where one server has all buckets.
        let parts = if lane.is_cluster() { layout.buckets() } else { 1 };
        let mut asked: Vec<(Vec<usize>, redis::Cmd)> = vec![(Vec::new(), redis::cmd("MGET")); parts];
        for (nth, id) in ids.iter().enumerate() {
            let bucket = layout.bucket_of_stored(id);
            let (nths, command) = &mut asked[bucket % parts];
            nths.push(nth);
            command.arg(layout.event(bucket, id));
        }
        let (nths, commands): (Vec<_>, Vec<_>) = asked.into_iter().filter(|(nths, _)| !nths.is_empty()).unzip();
        let answers: Vec<Vec<Option<Vec<u8>>>> = lane.scatter(commands).await?;
        let mut bodies = vec![None; ids.len()];
        for (nth, body) in nths.into_iter().zip(answers).flat_map(|(nths, answer)| nths.into_iter().zip(answer)) {
            bodies[nth] = body;
        }
        Ok(bodies)
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
            Arc::new(List { store, full: true, query, filtered: false, of_a_user: false })
        };
        let ahead = |merged| {
            let (rows, steps) = (VecDeque::new(), VecDeque::new());
            ReadAhead { list: list(), merged, rows, ended: false, steps }
        };
        let (sender, merged) = mpsc::channel(1);
        sender.send(Ok(Vec::new())).await.unwrap();
        assert_eq!(ahead(merged).step().await.unwrap(), None, "no rows stand for the end");
        let (gone, merged) = mpsc::channel(1);
        drop(gone);
        let broken = ahead(merged).step().await;
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
    fn as_many_bodies_are_fetched_as_fit_and_one_at_least() {
        assert_eq!(fitting([10, 10, 10].iter(), 20), 2);
        assert_eq!(fitting([30, 10].iter(), 20), 1, "too large by itself");
        assert_eq!(fitting([0, 30].iter(), 20), 1, "no body, and then one that is too large");
        assert_eq!(fitting([].iter(), 20), 0);
        assert_eq!(fitting([1; 2 * MOST_BODIES].iter(), usize::MAX), MOST_BODIES);
    }

    #[test]
    fn rows_up_to_the_last_one_given_out_are_left_away() {
        let row = |score, id: &str| Row { score, id: StoredId::of(id) };
        let head =
            || Head { index: String::new(), buffered: VecDeque::new(), last: Some(row(5, "b")), exhausted: false };
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
