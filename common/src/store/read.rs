//! Reading back: one event, and lists in one total order, by score, then id.
//!
//! A list is a merge of the sixteen buckets' indexes. A row may be given out only when no bucket can still hold a row
//! before it, so a bucket whose buffered rows are used up is asked again before the merge goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::connection::Lane;
use super::{BUCKETS, Origin, Store, StoreError, bucket_of};
use crate::event::Timestamp;

/// Direction of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

/// An entry of the index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    score: i64,
    id: String,
}

/// The row after which a page begins. As text it is opaque: base64url of version, score and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Row);

impl Cursor {
    /// Reads what [`Cursor::encode`] wrote.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut fields = std::str::from_utf8(&bytes).ok()?.splitn(3, '|');
        let ("1", score, id) = (fields.next()?, fields.next()?, fields.next()?) else { return None };
        let score = score.parse().ok().filter(|score: &i64| *score >= 0)?;
        crate::event::EventId::parse(id).map(|id| Self(Row { score, id: id.as_str().to_owned() }))
    }

    /// The cursor as text for a URL.
    #[must_use]
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("1|{}|{}", self.0.score, self.0.id))
    }
}

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

/// One bucket's part of a walk.
#[derive(Debug, Clone, Default)]
struct Head {
    buffered: VecDeque<Row>,
    last: Option<Row>,
    exhausted: bool,
}

/// A walk over a list, a few rows at a time. Every row that was there at its start is visited once; one that is inserted
/// meanwhile is visited if it lies beyond what has been fetched of its bucket.
pub struct Walk {
    store: Arc<Store>,
    full: bool,
    order: Order,
    horizon: i64,
    heads: [Head; BUCKETS],
}

impl Walk {
    /// A walk over everything that the retention still shows, after `cursor`. `full` uses the connection for exports.
    #[must_use]
    pub fn new(store: &Arc<Store>, order: Order, cursor: Option<&Cursor>, full: bool) -> Self {
        let head = Head { last: cursor.map(|cursor| cursor.0.clone()), ..Head::default() };
        let horizon = store.horizon(Timestamp::now()) * 1024;
        Self { store: Arc::clone(store), full, order, horizon, heads: std::array::from_fn(|_| head.clone()) }
    }

    /// The JSON of up to `limit` events, and the row of the last; empty at the end of the list only.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn next(&mut self, limit: usize) -> Result<(Vec<Bytes>, Option<Cursor>), StoreError> {
        loop {
            let rows = self.next_rows(limit).await?;
            let Some(last) = rows.last().cloned() else { return Ok((Vec::new(), None)) };
            let events = self.store.bodies(self.lane(), &rows).await?;
            // A body may expire a moment before its entry is trimmed; a whole step of these is not the end.
            if !events.is_empty() {
                return Ok((events, Some(Cursor(last))));
            }
        }
    }

    /// Whether anything comes after what was given out. Moves on by one row.
    async fn has_more(&mut self) -> Result<bool, StoreError> {
        Ok(!self.next_rows(1).await?.is_empty())
    }

    fn lane(&self) -> &Lane {
        if self.full { &self.store.export } else { &self.store.read }
    }

    async fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::with_capacity(limit.min(1024));
        while rows.len() < limit {
            self.refill(2 * (limit - rows.len()) / BUCKETS + 4).await?;
            let Some(first) = self.first_bucket() else { break };
            // Until the winner runs dry its rows can be taken without asking anyone.
            while rows.len() < limit && self.first_bucket() == Some(first) {
                rows.extend(self.heads[first].buffered.pop_front());
            }
        }
        Ok(rows)
    }

    /// The bucket whose next row comes first; `None` when all are used up.
    fn first_bucket(&self) -> Option<usize> {
        let heads = self.heads.iter().enumerate().filter_map(|(bucket, head)| Some((head.buffered.front()?, bucket)));
        match self.order {
            Order::Ascending => heads.min(),
            Order::Descending => heads.max(),
        }
        .map(|(_, bucket)| bucket)
    }

    /// Asks every bucket whose buffer is empty for more, in one exchange, until each has a row or has ended.
    async fn refill(&mut self, wanted: usize) -> Result<(), StoreError> {
        let mut wanted = wanted;
        loop {
            let dry = |head: &Head| head.buffered.is_empty() && !head.exhausted;
            let asked: Vec<usize> = (0..BUCKETS).filter(|bucket| dry(&self.heads[*bucket])).collect();
            if asked.is_empty() {
                return Ok(());
            }
            let ranges = asked.iter().map(|bucket| self.range(*bucket, wanted));
            let answers: Vec<Vec<(String, f64)>> = self.lane().scatter(ranges).await?;
            for (bucket, answer) in asked.into_iter().zip(answers) {
                self.heads[bucket].take(answer, wanted, self.order);
            }
            // Only where a whole answer shared the last row's score and lay before it.
            wanted = wanted.saturating_mul(4);
        }
    }

    fn range(&self, bucket: usize, wanted: usize) -> redis::Cmd {
        let last = self.heads[bucket].last.as_ref().map(|row| row.score);
        let mut range = redis::cmd("ZRANGE");
        range.arg(self.store.layout.index(bucket));
        match self.order {
            Order::Ascending => range.arg(last.unwrap_or(0).max(self.horizon)).arg("+inf").arg("BYSCORE"),
            Order::Descending => range
                .arg(last.map_or("+inf".into(), |score| score.to_string()))
                .arg(self.horizon)
                .arg("BYSCORE")
                .arg("REV"),
        };
        range.arg("LIMIT").arg(0).arg(wanted).arg("WITHSCORES");
        range
    }
}

impl Head {
    fn take(&mut self, answer: Vec<(String, f64)>, wanted: usize, order: Order) {
        self.exhausted = answer.len() < wanted;
        let rows = answer.into_iter().map(|(id, score)| Row { score: score as i64, id });
        let last = self.last.take();
        self.buffered.extend(rows.filter(|row| match (&last, order) {
            (None, _) => true,
            (Some(last), Order::Ascending) => row > last,
            (Some(last), Order::Descending) => row < last,
        }));
        self.last = self.buffered.back().cloned().or(last);
    }
}

impl Store {
    /// One page of a list.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn page(
        self: &Arc<Self>,
        order: Order,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut walk = Walk::new(self, order, cursor, false);
        let mut page = Page::default();
        while page.events.len() < limit {
            let (events, last) = walk.next(limit - page.events.len()).await?;
            let Some(last) = last else { return Ok(Page { next: None, ..page }) };
            page.events.extend(events);
            page.next = Some(last);
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
        let key = self.layout.event(bucket_of(event_id), event_id);
        let Some(body) = self.read.command::<Option<Vec<u8>>>(redis::cmd("GET").arg(&key)).await? else {
            return Ok(None);
        };
        let corrupt = || StoreError::Corrupt(format!("{key} has no origin behind its JSON"));
        let end = body.iter().position(|byte| *byte == 0).ok_or_else(corrupt)?;
        let origin = Origin::parse(&body[end + 1..]).ok_or_else(corrupt)?;
        Ok(Some((Bytes::from(body).slice(..end), origin)))
    }

    /// What is stored of each of these events.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn look_up(&self, ids: &[&str]) -> Result<Vec<Found>, StoreError> {
        let commands = ids.iter().flat_map(|id| {
            let (mut body, mut score, bucket) = (redis::cmd("GET"), redis::cmd("ZSCORE"), bucket_of(id));
            body.arg(self.layout.event(bucket, id));
            score.arg(self.layout.index(bucket)).arg(id);
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

    /// The JSON of those rows that still have a body, in order.
    async fn bodies(&self, lane: &Lane, rows: &[Row]) -> Result<Vec<Bytes>, StoreError> {
        let mut asked: [Vec<usize>; BUCKETS] = Default::default();
        rows.iter().enumerate().for_each(|(nth, row)| asked[bucket_of(&row.id)].push(nth));
        let commands = asked.iter().enumerate().filter(|(_, nths)| !nths.is_empty()).map(|(bucket, nths)| {
            let mut command = redis::cmd("MGET");
            nths.iter().for_each(|nth| {
                command.arg(self.layout.event(bucket, &rows[*nth].id));
            });
            command
        });
        let answers: Vec<Vec<Option<Vec<u8>>>> = lane.scatter(commands).await?;
        let mut bodies: Vec<Option<Bytes>> = vec![None; rows.len()];
        let nths = asked.iter().filter(|nths| !nths.is_empty());
        for (nth, body) in nths.zip(answers).flat_map(|(nths, answer)| nths.iter().zip(answer)) {
            bodies[*nth] = body.map(|mut body| {
                body.truncate(body.iter().position(|byte| *byte == 0).unwrap_or(body.len()));
                Bytes::from(body)
            });
        }
        Ok(bodies.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_a_forged_one_does_not() {
        for id in ["01976a5e-7a3c-7fff-8000-000000000000", "a|b", "é"] {
            let cursor = Cursor(Row { score: 1_813_478_400_000_512, id: id.into() });
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        for forged in ["", "x", "MXwxfA", "MnwxfGE", "MXwtMXxh", "MXx4fGE", "====", "\u{e9}"] {
            assert_eq!(Cursor::decode(forged), None, "{forged}");
        }
    }

    #[test]
    fn rows_up_to_the_last_one_given_out_are_left_away() {
        let row = |score, id: &str| Row { score, id: id.into() };
        let mut head = Head { last: Some(row(5, "b")), ..Head::default() };
        let answer = |ids: &[(&str, f64)]| ids.iter().map(|(id, score)| ((*id).to_owned(), *score)).collect::<Vec<_>>();
        head.take(answer(&[("a", 5.0), ("b", 5.0)]), 2, Order::Ascending);
        assert!(head.buffered.is_empty() && !head.exhausted);
        assert_eq!(head.last, Some(row(5, "b")));
        head.take(answer(&[("a", 5.0), ("b", 5.0), ("c", 5.0), ("a", 6.0)]), 8, Order::Ascending);
        assert_eq!(head.buffered, [row(5, "c"), row(6, "a")]);
        assert!(head.exhausted);
        let mut back = Head { last: Some(row(5, "b")), ..Head::default() };
        back.take(answer(&[("c", 5.0), ("b", 5.0), ("a", 5.0)]), 3, Order::Descending);
        assert_eq!(back.buffered, [row(5, "a")]);
    }
}
