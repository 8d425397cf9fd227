//! The live tail: one stream per bucket with the ids of what was stored last. A batch's ids are added by the transaction
//! that stores them, so an entry is never seen before its events can be read.
//!
//! An entry says what a transaction wrote, not what was new: a record that is delivered again is announced again, with
//! the same scope, partition and offset. Who reads tells by [`Seen`], and by the time in the event's body.
//!
//! A stream holds what was announced within the last minute, and 500 entries at least. So a reader that reads on at once
//! still finds the entry at which it stands, and with it everything behind; one that does not has been away for long, or
//! the stream is not the one that it has read: Redis has lost something, or another server with another clock has taken
//! over. No clock decides which.

mod entry;
mod position;
mod seen;
mod varint;

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

pub(super) use self::entry::Records;
pub use self::entry::{Announced, Entry, EntryId, LogEnd};
use self::entry::{Raw, entries};
pub use self::position::TailPosition;
use self::seen::Place;
pub use self::seen::Seen;
use super::layout::{Layout, StoredId};
use super::positions::partition_of;
use super::spread::Spread;
use super::{Origin, Store, StoreError};

/// The most entries that a stream holds, about, each of up to 500 records.
pub(super) const MAX_ENTRIES: usize = 50_000;
/// How long an entry is held at least, unless there are [`MAX_ENTRIES`]: longer than a client needs to come back.
const WINDOW: Duration = Duration::from_secs(60);
/// So many entries are held however old they are: more than are read at a time, so that the last one that was read is
/// trimmed only behind the back of who has not read on.
const KEPT: usize = 500;
/// Trims what is older than the window by Redis' clock. ARGV: window in milliseconds, entries to keep.
const TRIM_TAIL: &str = "local excess = redis.call('XLEN', KEYS[1]) - ARGV[2] \
    if excess > 0 then \
      local now = redis.call('TIME') \
      local oldest = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]) \
      redis.call('XTRIM', KEYS[1], 'MINID', '~', oldest, 'LIMIT', excess) \
    end";
/// Entries of one bucket that are read at a time by the reader of all.
const READ: usize = 100;
/// Entries of one bucket that tell what was announced before.
const LOOK_BACK: usize = 64;

/// Keys of streams with their entries.
type Streams = Vec<(String, Raw)>;

/// Trims a stream by time.
pub(super) fn trim_tail(key: &str) -> redis::Cmd {
    redis::cmd("EVAL").arg(TRIM_TAIL).arg(1).arg(key).arg(super::millis(WINDOW)).arg(KEPT).take()
}

impl Store {
    /// Where the streams end, and what was announced last.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_end(&self) -> Result<(TailPosition, Seen), StoreError> {
        // Before the end is read: everything before a position was announced by then.
        let stored = self.announced_by_positions().await?;
        let (end, mut seen) = self.tail_before(None).await?;
        for (place, offset) in stored {
            seen.raise(place, offset);
        }
        Ok((end, seen))
    }

    /// The last offset of each place before its position. Positions know of a partition that has been quiet for long, too.
    async fn announced_by_positions(&self) -> Result<HashMap<Place, i64>, StoreError> {
        let layout = self.layout().await?;
        let asked = layout.all().map(|bucket| {
            let mut all = redis::cmd("HGETALL");
            all.arg(layout.positions(bucket));
            all
        });
        let buckets: Vec<HashMap<String, i64>> = self.read.scatter(asked).await?;
        let mut last = HashMap::new();
        for (bucket, positions) in buckets.into_iter().enumerate() {
            for (field, next) in positions {
                if let Some((scope, partition)) = partition_of(&field) {
                    last.insert((scope.into(), bucket, partition), next - 1);
                }
            }
        }
        Ok(last)
    }

    /// What was announced last before a position: how a reader that goes on there tells what is new.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_seen(&self, position: &TailPosition) -> Result<Seen, StoreError> {
        self.tail_before(Some(position)).await.map(|(_, seen)| seen)
    }

    async fn tail_before(&self, position: Option<&TailPosition>) -> Result<(TailPosition, Seen), StoreError> {
        let layout = self.layout().await?;
        let ranges = layout.all().map(|bucket| {
            let last = position.map_or_else(|| "+".into(), |position| position.at(bucket).to_string());
            let mut range = redis::cmd("XREVRANGE");
            range.arg(layout.tail(bucket)).arg(last).arg("-").arg("COUNT").arg(LOOK_BACK);
            range
        });
        let streams: Vec<Raw> = self.read.scatter(ranges).await?;
        let (mut end, mut seen) = (TailPosition::before_all(layout.buckets()), Seen::default());
        for (bucket, raw) in streams.into_iter().enumerate() {
            let mut entries = self.readable(layout, bucket, raw);
            entries.reverse();
            entries.last().into_iter().for_each(|last| end.pass_all(last));
            seen.note(&entries);
        }
        seen.close_below();
        Ok((end, seen))
    }

    /// Whether the streams still hold everything behind a position.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_holds(&self, position: &TailPosition) -> Result<bool, StoreError> {
        let all = self.layout().await?.all();
        let unread: Vec<usize> = all.clone().filter(|bucket| position.stands_at(*bucket).is_beginning()).collect();
        let gone = self.places_gone(all, position).await?;
        Ok(gone.is_empty() && self.never_trimmed(&unread).await?)
    }

    /// Which of these buckets' streams don't hold the entry at which a position stands, and the last entry before that
    /// which each of them holds.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_gone(
        &self,
        buckets: Range<usize>,
        position: &TailPosition,
    ) -> Result<Vec<(usize, Option<EntryId>)>, StoreError> {
        let buckets = self.places_gone(buckets, position).await?;
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let layout = self.layout().await?;
        let before = |bucket: &usize| {
            let (key, last) = (layout.tail(*bucket), position.at(*bucket).to_string());
            redis::cmd("XREVRANGE").arg(key).arg(last).arg("-").arg("COUNT").arg(1).take()
        };
        let found: Vec<Raw> = self.read.scatter(buckets.iter().map(before)).await?;
        let last = |(bucket, raw)| (bucket, self.readable(layout, bucket, raw).last().map(|entry| entry.id));
        Ok(buckets.into_iter().zip(found).map(last).collect())
    }

    /// Whether any of these buckets' streams lacks its first entries.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_trimmed(&self, buckets: &[usize]) -> Result<bool, StoreError> {
        self.never_trimmed(buckets).await.map(|never| !never)
    }

    /// Whether entries may be gone that stood before these, which were read from the beginnings of streams: only where
    /// as many came as are read at a time.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_skipped(&self, position: &TailPosition, entries: &[Entry]) -> Result<bool, StoreError> {
        let read = |bucket: usize| entries.iter().filter(|entry| entry.bucket == bucket).count();
        let full = |bucket: &usize| position.at(*bucket) == EntryId::default() && read(*bucket) >= READ;
        Ok(!self.never_trimmed(&self.layout().await?.all().filter(full).collect::<Vec<_>>()).await?)
    }

    /// Entries have ids of their own, in rising order: where the one is that was read last, nothing behind it was trimmed,
    /// and nothing was added before it. Redis gives entries whole, though the id alone would do: a script could leave the
    /// rest away, but who only reads may run none.
    async fn places_gone(&self, buckets: Range<usize>, position: &TailPosition) -> Result<Vec<usize>, StoreError> {
        let layout = self.layout().await?;
        let read: Vec<usize> = buckets.filter(|bucket| !position.stands_at(*bucket).is_beginning()).collect();
        let ranges = read.iter().map(|bucket| {
            let at = position.stands_at(*bucket).to_string();
            redis::cmd("XRANGE").arg(layout.tail(*bucket)).arg(&at).arg(&at).take()
        });
        if read.is_empty() {
            return Ok(Vec::new());
        }
        let found: Vec<Raw> = self.read.scatter(ranges).await?;
        Ok(read.into_iter().zip(found).filter(|(_, found)| found.is_empty()).map(|(bucket, _)| bucket).collect())
    }

    /// Whether these streams still have their first entries, or have none.
    async fn never_trimmed(&self, buckets: &[usize]) -> Result<bool, StoreError> {
        if buckets.is_empty() {
            return Ok(true);
        }
        let layout = self.layout().await?;
        let length = |bucket: &usize| redis::cmd("XLEN").arg(layout.tail(*bucket)).take();
        let lengths: Vec<usize> = self.read.scatter(buckets.iter().map(length)).await?;
        let filled = buckets.iter().zip(lengths).filter(|(_, length)| *length > 0).map(|(bucket, _)| *bucket);
        let asked: Vec<redis::Cmd> =
            filled.map(|bucket| redis::cmd("XINFO").arg("STREAM").arg(layout.tail(bucket)).take()).collect();
        if asked.is_empty() {
            return Ok(true);
        }
        let infos: Vec<HashMap<String, redis::Value>> = self.read.scatter(asked).await?;
        Ok(infos.iter().all(|info| info.get("entries-added") == info.get("length")))
    }

    /// The groups of buckets whose streams can be waited for together: all of one server, each by itself on a Cluster. Of
    /// the store in which a position is.
    #[must_use]
    pub fn tail_readers(&self, position: &TailPosition) -> Vec<Range<usize>> {
        self.shares(position.buckets().len()).collect()
    }

    /// What the streams of one of [`Store::tail_readers`] hold behind a position, up to a hundred entries of each, in the
    /// order in which they were stored. Waits until there is something, at most for `wait`.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_next(
        &self,
        buckets: Range<usize>,
        position: &TailPosition,
        wait: Duration,
    ) -> Result<Vec<Entry>, StoreError> {
        let Spread { layout, tail, .. } = self.spread().await?;
        let lane = &tail[buckets.start * tail.len() / layout.buckets()];
        let streams: Option<Streams> = lane.command(&tail_command(layout, buckets, position, READ, Some(wait))).await?;
        Ok(self.entries_of(layout, streams.into_iter().flatten()))
    }

    /// What all streams hold behind a position, up to `most` entries of each, in the order in which they were stored.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn tail_after(&self, position: &TailPosition, most: usize) -> Result<Vec<Entry>, StoreError> {
        let layout = self.layout().await?;
        let shares = self.shares(layout.buckets());
        let commands = shares.map(|buckets| tail_command(layout, buckets, position, most, None));
        let streams: Vec<Option<Streams>> = self.read.scatter(commands).await?;
        let mut found = self.entries_of(layout, streams.into_iter().flatten().flatten());
        // Behind the end of a bucket that may hold more, others would overtake what is not read yet. An entry that was
        // begun comes all the same: it is to be finished first.
        let full = layout.all().filter_map(|bucket| {
            let mut own = found.iter().filter(|entry| entry.bucket == bucket);
            own.nth(most.checked_sub(1)?).map(|last| last.id)
        });
        if let Some(end) = full.min() {
            let begun = found.iter().find(|entry| (1..entry.records.len()).contains(&position.passed(entry)));
            let begun = begun.map(|entry| (entry.bucket, entry.id));
            found.retain(|entry| entry.id <= end || Some((entry.bucket, entry.id)) == begun);
        }
        Ok(found)
    }

    fn entries_of(&self, layout: &Layout, streams: impl Iterator<Item = (String, Raw)>) -> Vec<Entry> {
        let buckets: HashMap<String, usize> = layout.all().map(|bucket| (layout.tail(bucket), bucket)).collect();
        let mut found = Vec::new();
        for (key, raw) in streams {
            if let Some(bucket) = buckets.get(&key) {
                found.extend(self.readable(layout, *bucket, raw));
            }
        }
        found.sort_by_key(|entry| entry.id);
        found
    }

    fn readable(&self, layout: &Layout, bucket: usize, raw: Raw) -> Vec<Entry> {
        let (entries, unreadable) = entries(bucket, raw);
        self.foreign.skip(unreadable, layout.tail(bucket));
        entries
    }

    /// How many bytes each of these events has as it is stored, in order; none when it is not stored any more.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn announced_bytes(&self, records: &[&Announced]) -> Result<Vec<usize>, StoreError> {
        let layout = self.layout().await?;
        let asked = records.iter().map(|record| {
            let id = StoredId::of(&record.event_id);
            let mut length = redis::cmd("STRLEN");
            length.arg(layout.event(layout.bucket_of_stored(&id), &id));
            length
        });
        self.read.scatter(asked).await
    }

    /// The JSON of these events and where each came from, in order; `None` of one that is not stored any more.
    ///
    /// # Errors
    /// [`StoreError`] when Redis has no good answer.
    pub async fn announced(&self, records: &[&Announced]) -> Result<Vec<Option<(Bytes, Origin)>>, StoreError> {
        let ids: Vec<StoredId> = records.iter().map(|record| StoredId::of(&record.event_id)).collect();
        let ids: Vec<&StoredId> = ids.iter().collect();
        let bodies = self.whole_bodies(&self.read, &ids).await?;
        Ok(bodies.into_iter().map(|body| Origin::split(body?)).collect())
    }
}

fn tail_command(
    layout: &Layout,
    buckets: Range<usize>,
    position: &TailPosition,
    most: usize,
    wait: Option<Duration>,
) -> redis::Cmd {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(most);
    if let Some(wait) = wait {
        command.arg("BLOCK").arg(super::millis(wait));
    }
    command.arg("STREAMS");
    for bucket in buckets.clone() {
        command.arg(layout.tail(bucket));
    }
    for bucket in buckets {
        command.arg(position.at(bucket).to_string());
    }
    command
}
