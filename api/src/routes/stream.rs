//! `GET /events/stream`: what is processed from now on, or from `Last-Event-ID` on, as server-sent events.
//!
//! A frame's `id:` is a position in the tail that every replica understands. A reader that comes back with one gets what
//! it has missed from Redis, as long as Redis still holds it, then joins the frames that this process shares among its
//! readers.
//!
//! An `EventSource` gives up for good at every status but 200 (HTML standard, section 9.2.3). It is told what would pass by
//! itself in a stream that ends, and comes back; what it can't mend itself, such as an id of another version, in its stream.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::store::{Entry, Query, Seen, StoreError, TailPosition};
use futures::stream::poll_fn;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{SemaphorePermit, broadcast, mpsc};
use warp::Reply;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::http::{HeaderMap, StatusCode};

use crate::App;
use crate::format::wants_event_stream;
use crate::keys::Shown;
use crate::problem::Problem;
use crate::query::Parameters;
use crate::tail::{self, Events, Frame, Loss, PORTION, Subscription, Tail, events_of, frame};

/// A comment with the present position is sent so often: it keeps proxies from closing a quiet connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes that a reader is sent at a time, about, and that it is read while it catches up, or one event. Of what it takes slowly little is on its way when the process ends.
const PIECE: usize = 64 * 1024;
/// The same for a reader of what is processed now. There may be thousands of them, and each holds a few.
const LIVE_PIECE: usize = 8 * 1024;
/// Frames of so many bytes are sent as they are, and not copied together.
const SMALL: usize = 4 * 1024;
/// Entries of a bucket that a reader which catches up holds at a time; each announces up to 500 records.
const ENTRIES: usize = 25;
/// How long a client is waited for that is to be told why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// What a client waits before it comes back, in milliseconds.
const RETRY: u32 = 1000;
/// What an `EventSource` that can't be served now waits at least before it comes back, in seconds.
const LEAST_PAUSE: u64 = 5;

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client has gone")]
    Gone,
    #[error("this process is ending; another one goes on")]
    Draining,
    #[error("too slow: events come faster than they are read")]
    Slow,
    #[error("the key that opened it is not in force any more")]
    Shut,
    #[error("the store can't be read at the moment")]
    Store(#[source] StoreError),
}

pub(super) async fn open(app: &Arc<App>, query: &str, headers: &HeaderMap) -> Result<warp::reply::Response, Problem> {
    let begun = begin(app, query, headers).await;
    begun.or_else(|problem| instead(&problem, headers).ok_or(problem))
}

async fn begin(app: &Arc<App>, query: &str, headers: &HeaderMap) -> Result<warp::reply::Response, Problem> {
    let query = Parameters::parse(query, &["userId", "eventType", "from", "to"], &["eventType"])?.query(&app.types)?;
    let start = Start::of(headers)?;
    // Kept as long as the body, and so about as long as the connection.
    let turn = Arc::clone(&app.streams).try_acquire_owned().map_err(|_| Problem::TooManyStreams)?;
    let begun = app.tail.subscribe().await.map_err(Problem::Store)?;
    let start = start.in_the_store_of(&begun.position, headers)?;
    let (out, mut body) = mpsc::channel(1);
    let (app, key) = (Arc::clone(app), Shown::in_headers(headers));
    let Subscription { position, generation, frames } = begun;
    let reader = Reader { app, query, key, position, generation, joined: None, frames, out, period: HEARTBEAT };
    tokio::spawn(reader.read(start));
    let next = poll_fn(move |context| {
        let _held = &turn;
        body.poll_recv(context)
    });
    Ok(as_stream(warp::reply::stream(next).into_response()))
}

fn as_stream(mut response: warp::reply::Response) -> warp::reply::Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Some proxies hold responses back unless they are told.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// What an `EventSource` gets instead of a problem that passes by itself: a stream that says it, ends, and is to be opened
/// again later. It has no `id`, so that the client keeps its place. `None` for other clients and other problems.
pub(crate) fn instead(problem: &Problem, headers: &HeaderMap) -> Option<warp::reply::Response> {
    let passes = matches!(problem.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
    if !passes || !wants_event_stream(headers) {
        return None;
    }
    problem.log();
    let after = problem.reply().headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let pause = after.unwrap_or(LEAST_PAUSE).max(LEAST_PAUSE) * 1000;
    let data = serde_json::json!({"reason": problem.json()["detail"]});
    Some(as_stream(warp::reply::Response::new(format!("retry: {pause}\nevent: end\ndata: {data}\n\n").into())))
}

/// Where a reader begins.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// With what is processed from now on.
    Now,
    /// Behind what it has.
    Behind(Box<TailPosition>),
    /// With what is processed from now on; its id says nothing any more, and what it has missed can't be told.
    Lost,
}

impl Start {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else { return Ok(Self::Now) };
        match value.to_str().ok().and_then(TailPosition::decode) {
            Some(position) => Ok(Self::Behind(Box::new(position))),
            None => Self::unknown(headers),
        }
    }

    /// An id from a store with another number of buckets than that of `now`, which is not known before the tail is read,
    /// says nothing.
    fn in_the_store_of(self, now: &TailPosition, headers: &HeaderMap) -> Result<Self, Problem> {
        let known = now.buckets();
        match self {
            Self::Behind(position) if !known.is_empty() && position.buckets() != known => Self::unknown(headers),
            start => Ok(start),
        }
    }

    fn unknown(headers: &HeaderMap) -> Result<Self, Problem> {
        if wants_event_stream(headers) {
            return Ok(Self::Lost);
        }
        Err(Problem::InvalidHeader {
            name: "Last-Event-ID",
            detail: "is not an id of this stream; send the last one as it came, or none".into(),
        })
    }
}

/// One client.
struct Reader {
    app: Arc<App>,
    query: Query,
    key: Shown,
    position: TailPosition,
    /// See [`Subscription`].
    generation: u64,
    /// Up to where it has caught up by itself, if it was after a loss: of what it got then the process knows nothing.
    joined: Option<TailPosition>,
    frames: broadcast::Receiver<Arc<Frame>>,
    out: mpsc::Sender<Result<Bytes, Infallible>>,
    /// Of its heartbeat.
    period: Duration,
}

impl Reader {
    /// Sends all that it is to get from `start` on. Its position is where its frames begin.
    async fn read(mut self, start: Start) {
        let end = match self.go(start).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        match &end {
            End::Gone => return,
            End::Store(error) => log::debug!("a stream ends: {error}"),
            End::Draining | End::Slow | End::Shut => log::debug!("a stream ends: {end}"),
        }
        let last = format!("event: end\ndata: {{\"reason\":\"{end}\"}}\n\n");
        // A client that reads nothing does not read this either.
        drop(tokio::time::timeout(LAST_WORD, self.out.send(Ok(last.into()))).await);
    }

    async fn go(&mut self, start: Start) -> Result<Infallible, End> {
        let now = self.position.clone();
        if let Start::Behind(position) = &start {
            self.position.clone_from(position);
        }
        self.send(format!("retry: {RETRY}\nid: {}\n\n", self.position.encode()).into()).await?;
        match start {
            Start::Now => {}
            Start::Behind(_) => {
                self.joined = (self.generation > 0).then(|| now.clone());
                self.catch_up(now).await?;
            }
            Start::Lost => self.send(self.reset()).await?,
        }
        let mut heartbeat = tokio::time::interval(self.period);
        heartbeat.tick().await;
        let draining = self.app.checks.draining.clone();
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled() => return Err(End::Draining),
                () = self.out.closed() => return Err(End::Gone),
                // Before the frames, which may never cease.
                _ = heartbeat.tick() => self.beat().await?,
                frame = self.frames.recv() => self.pass_on(frame).await?,
            }
        }
    }

    fn check_key(&self) -> Result<(), End> {
        if self.app.may_read(&self.key) { Ok(()) } else { Err(End::Shut) }
    }

    /// Says that the stream lives, if it may.
    async fn beat(&self) -> Result<(), End> {
        self.check_key()?;
        self.send(format!(": heartbeat\nid: {}\n\n", self.position.encode()).into()).await
    }

    /// Sends a frame, and those that have come with it. Small ones are copied together; a larger one goes as it is, in the
    /// bytes that all readers share: there may be thousands of readers, and each may take none of what it is sent.
    async fn pass_on(&mut self, first: Result<Arc<Frame>, RecvError>) -> Result<(), End> {
        const MOST: usize = 64;
        let (mut small, mut seen, mut next) = (Vec::new(), 0, first.map_err(|_| End::Slow)?);
        loop {
            match self.text(&next) {
                Some(text) if text.len() >= SMALL => {
                    if !small.is_empty() {
                        self.send(small.into()).await?;
                    }
                    return self.send(text).await;
                }
                Some(text) => small.extend_from_slice(&text),
                None => {}
            }
            seen += 1;
            // Others have something to do on this thread, too, and the heartbeat is due at times.
            if small.len() >= LIVE_PIECE || seen >= MOST {
                break;
            }
            next = match self.frames.try_recv() {
                Ok(frame) => frame,
                Err(broadcast::error::TryRecvError::Empty) => break,
                Err(_) => return Err(End::Slow),
            };
        }
        if small.is_empty() { Ok(()) } else { self.send(small.into()).await }
    }

    /// What a frame is for this reader.
    fn text(&mut self, frame: &Frame) -> Option<Bytes> {
        match frame {
            Frame::Event { entry, number, generation, position, event } => {
                if *number < self.position.passed(entry) {
                    return None;
                }
                self.position.join(position);
                if *generation > self.generation || !event.is_asked_for(&self.query) {
                    return None;
                }
                let own = self.position != *position;
                Some(if own { tail::frame(&self.position, event.json()) } else { event.text(position) })
            }
            Frame::Gap(position, generation) => {
                (self.position, self.generation, self.joined) = (position.clone(), *generation, None);
                Some(self.reset())
            }
            Frame::Loss(loss) => self.meet(loss),
            Frame::Filler => None,
        }
    }

    /// Goes back to where streams have lost something. What this reader has read by itself is remembered nowhere, and what
    /// was announced to it many losses ago no longer is: where it would meet that again it is told that it stands behind a
    /// gap.
    fn meet(&mut self, loss: &Loss) -> Option<Bytes> {
        let alone = |bucket: &usize| {
            let own = self.position.at(*bucket) > loss.from.at(*bucket);
            own || self.joined.as_ref().is_some_and(|joined| loss.to.at(*bucket) < joined.at(*bucket))
        };
        if self.generation < loss.oldest || loss.buckets.iter().any(alone) {
            (self.position, self.generation, self.joined) = (loss.to.clone(), loss.generation, None);
            return Some(self.reset());
        }
        loss.buckets.iter().for_each(|bucket| self.position.go_back(*bucket, loss.to.at(*bucket)));
        None
    }

    /// Says that it stands behind a gap.
    fn reset(&self) -> Bytes {
        let id = self.position.encode();
        let reason = "events are missing here; read the list for them";
        format!("event: reset\nid: {id}\ndata: {{\"reason\":\"{reason}\"}}\n\n").into()
    }

    /// Goes on with what is processed from now on, behind a gap. The list that the client is told to read may lack
    /// something by now that it did not lack when this reader came.
    async fn start_over(&mut self) -> Result<(), End> {
        let Subscription { position, generation, frames } = self.app.tail.subscribe().await.map_err(End::Store)?;
        (self.position, self.generation, self.frames, self.joined) = (position, generation, frames, None);
        self.send(self.reset()).await
    }

    /// Waits for a turn at catching up, as a quiet stream.
    async fn turn<'a>(&self, tail: &'a Tail) -> Result<Option<SemaphorePermit<'a>>, End> {
        let (mut turn, mut heartbeat) = (pin!(tail.turn()), tokio::time::interval(self.period));
        heartbeat.tick().await;
        loop {
            tokio::select! {
                biased;
                () = self.app.checks.draining.cancelled() => return Err(End::Draining),
                () = self.out.closed() => return Err(End::Gone),
                turn = &mut turn => return Ok(turn),
                _ = heartbeat.tick() => self.beat().await?,
            }
        }
    }

    /// Sends what Redis holds between this reader's position and where the shared frames began for it.
    async fn catch_up(&mut self, now: TailPosition) -> Result<(), End> {
        let (app, store) = (Arc::clone(&self.app), Arc::clone(&self.app.store));
        let _turn = self.turn(&app.tail).await?;
        let mut seen = store.tail_seen(&self.position).await.map_err(End::Store)?;
        loop {
            let mut entries = store.tail_after(&self.position, ENTRIES).await.map_err(End::Store)?;
            // Behind the read: only what was trimmed before it is missing. A slow reader meets this at any turn.
            if !store.tail_holds(&self.position).await.map_err(End::Store)? {
                return self.start_over().await;
            }
            // A position stands inside one entry at most, so that one is finished before another is begun. It need not be
            // the earliest: each bucket of a Cluster is read at its own pace.
            let begun = |entry: &Entry| (1..entry.records.len()).contains(&self.position.passed(entry));
            if let Some(begun) = entries.iter().position(begun) {
                entries[..=begun].rotate_right(1);
            }
            // What lies behind `now` comes as a frame, too; the position tells. It must not stand inside an entry then,
            // or frames of others would move it back to that entry's beginning.
            let last = !entries.iter().any(|entry| now.is_behind(entry));
            self.send_entries(&entries, &mut seen).await?;
            if last {
                // What the process had read was lost meanwhile, and won't be announced again to this reader's generation.
                return if self.position.falls_short_of(&now) { self.start_over().await } else { Ok(()) };
            }
        }
    }

    async fn send_entries(&mut self, entries: &[Entry], seen: &mut Seen) -> Result<(), End> {
        let mut position = self.position.clone();
        let records = entries.iter().flat_map(|entry| {
            let passed = position.passed(entry);
            position.pass_all(entry);
            (passed..entry.records.len()).map(move |number| (entry, number))
        });
        let records: Vec<_> = records.collect();
        let (mut ahead, mut read, mut events) = (&records[..], 0, Events::new());
        let mut text = Vec::new();
        for entry in entries {
            seen.heed(entry);
            for number in self.position.passed(entry)..entry.records.len() {
                if read == 0 {
                    // Before more is read: a client that takes nothing holds no more than this.
                    events.clear();
                    self.send_some(std::mem::take(&mut text)).await?;
                    self.check_key()?;
                    read = self.fitting(ahead).await?;
                    events = events_of(&self.app.store, &ahead[..read]).await.map_err(End::Store)?;
                    ahead = &ahead[read..];
                }
                read -= 1;
                let new = seen.is_new(entry, &entry.records[number]);
                self.position.pass(entry, number);
                let event = events.get(&(entry.bucket, entry.id, number)).and_then(Option::as_ref);
                if let Some(json) = event.filter(|json| new && self.query.admits(json)) {
                    text.extend_from_slice(&frame(&self.position, json));
                }
            }
            self.position.pass_all(entry);
        }
        self.send_some(text).await
    }

    /// How many of these records have [`PIECE`] bytes of events together: one at least.
    async fn fitting(&self, records: &[(&Entry, usize)]) -> Result<usize, End> {
        let asked: Vec<_> = records.iter().take(PORTION).map(|(entry, number)| &entry.records[*number]).collect();
        let bytes = self.app.store.announced_bytes(&asked).await.map_err(End::Store)?;
        Ok(first_within(PIECE, &bytes))
    }

    async fn send_some(&self, text: Vec<u8>) -> Result<(), End> {
        if text.is_empty() { Ok(()) } else { self.send(text.into()).await }
    }

    /// Waits for the client, but not for longer than the process is to live.
    async fn send(&self, text: Bytes) -> Result<(), End> {
        tokio::select! {
            biased;
            () = self.app.checks.draining.cancelled() => Err(End::Draining),
            sent = self.out.send(Ok(text)) => sent.map_err(|_| End::Gone),
        }
    }
}

/// How many of these sizes, from the first on, stay within a sum: one at least.
fn first_within(most: usize, sizes: &[usize]) -> usize {
    let sums = sizes.iter().scan(0_usize, |sum, size| {
        *sum = sum.saturating_add(*size);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= most).count().max(1)
}

#[cfg(test)]
mod tests {
    use common::store::{Announced, EntryId};

    use super::*;
    use crate::routes::testing::{self, KEY, SOON};

    #[test]
    fn what_is_read_at_a_time_is_bounded_by_bytes_and_never_nothing() {
        for (sizes, count) in [(&[10, 10, 10][..], 3), (&[10, 80, 11], 2), (&[101, 1], 1), (&[0, 0, 100, 0, 1], 4)] {
            assert_eq!(first_within(100, sizes), count, "{sizes:?}");
        }
    }

    /// The headers of a client that says which reply it wants, and where it was.
    fn sent(accept: &'static str, last_id: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static(accept));
        headers.insert("last-event-id", HeaderValue::from_static(last_id));
        headers
    }

    const EVENT_SOURCE: &str = "text/event-stream";

    #[tokio::test]
    async fn an_event_source_is_never_answered_with_a_status_at_which_it_gives_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let app = testing::app(&file, KEY);
        // The store is away.
        let away = open(&app, "", &sent("*/*", "")).await.unwrap_err();
        assert_eq!(away.status(), StatusCode::SERVICE_UNAVAILABLE);
        let _all = app.streams.try_acquire_many(u32::try_from(app.streams.available_permits()).unwrap()).unwrap();
        assert!(matches!(open(&app, "", &sent("*/*", "")).await, Err(Problem::TooManyStreams)));
        let limited = Problem::RateLimited { retry_after: 7 };
        for (reply, pause, reason) in [
            (instead(&away, &sent(EVENT_SOURCE, "")).unwrap(), 5000, "store can't be read"),
            (open(&app, "", &sent(EVENT_SOURCE, "")).await.unwrap(), 5000, "HTTP_MAX_CONNECTIONS"),
            (instead(&limited, &sent(EVENT_SOURCE, "")).unwrap(), 7000, "RATE_LIMIT"),
        ] {
            assert_eq!(
                (reply.status().as_u16(), &reply.headers()[CONTENT_TYPE]),
                (200, &HeaderValue::from_static(EVENT_SOURCE))
            );
            let body = http_body_util::BodyExt::collect(reply.into_body()).await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.starts_with(&format!("retry: {pause}\nevent: end\ndata: {{\"reason\":\"")), "{text}");
            assert!(text.ends_with("\n\n") && text.contains(reason) && !text.contains("id: "), "{text}");
        }
        // What it does wrong stays wrong.
        assert!(matches!(open(&app, "a=b", &sent(EVENT_SOURCE, "")).await, Err(Problem::InvalidParameter { .. })));
    }

    #[tokio::test]
    async fn an_id_that_says_nothing_is_a_reset_for_an_event_source() {
        for id in ["garbage", "Ag"] {
            assert_eq!(Start::of(&sent(EVENT_SOURCE, id)).unwrap(), Start::Lost, "{id}");
            assert!(matches!(Start::of(&sent("*/*", id)), Err(Problem::InvalidHeader { .. })), "{id}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let app = testing::app(&file, KEY);
        let ((_tail, frames), (out, mut body)) = (broadcast::channel(1), mpsc::channel(1));
        let (position, period) = (TailPosition::default(), HEARTBEAT);
        let reader = Reader {
            app,
            query: Query::default(),
            key: Shown::in_headers(&HeaderMap::new()),
            position,
            generation: 0,
            joined: None,
            frames,
            out,
            period,
        };
        let id = reader.position.encode();
        tokio::spawn(reader.read(Start::Lost));
        for begins in [format!("retry: 1000\nid: {id}\n\n"), format!("event: reset\nid: {id}\ndata: {{\"reason\":")] {
            let piece = tokio::time::timeout(Duration::from_secs(60), body.recv()).await.unwrap().unwrap().unwrap();
            assert!(piece.starts_with(begins.as_bytes()), "{piece:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_key_is_taken_away_and_not_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (app, key) = (testing::app(&file, KEY), Shown::in_headers(&testing::headers_with(KEY)));
        let (position, (_tail, frames), (out, mut body)) =
            (TailPosition::default(), broadcast::channel(1), mpsc::channel(1));
        let reader = Reader {
            app,
            query: Query::default(),
            key,
            position,
            generation: 0,
            joined: None,
            frames,
            out,
            period: SOON,
        };
        tokio::spawn(reader.read(Start::Now));
        let mut next = async || {
            let piece = tokio::time::timeout(Duration::from_secs(60), body.recv()).await.unwrap();
            piece.map(|piece| String::from_utf8(piece.unwrap().to_vec()).unwrap())
        };
        assert!(next().await.unwrap().starts_with("retry"));
        for _ in 0..5 {
            assert!(next().await.unwrap().starts_with(": heartbeat"));
        }
        // The same id, but not the same key.
        testing::put_in_force(&file, "another-key-of-a-reader");
        let last = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let piece = next().await.unwrap();
                if !piece.starts_with(": heartbeat") {
                    return piece;
                }
            }
        });
        let last = last.await.expect("an end");
        assert!(last.starts_with("event: end\n") && last.contains("not in force any more"), "{last}");
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_stream_that_catches_up_reads_no_more_once_its_key_is_taken_away() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let app = testing::app(&file, KEY);
        let records = vec![Announced { partition: 0, offset: 0, event_id: "an-event".into() }];
        let (id, scope) = (EntryId::new(1, 0), "group|events".into());
        let entry = Entry { bucket: 0, id, scope, since: 0, records, ends: Vec::new() };
        for (key, is_in_force) in [(KEY, true), ("another-key-of-a-reader", false)] {
            let key = Shown::in_headers(&testing::headers_with(key));
            let (app, (_tail, frames), (out, _body)) = (Arc::clone(&app), broadcast::channel(1), mpsc::channel(1));
            let (query, position, period) = (Query::default(), TailPosition::default(), HEARTBEAT);
            let mut reader = Reader { app, query, key, position, generation: 0, joined: None, frames, out, period };
            let end = reader.send_entries(std::slice::from_ref(&entry), &mut Seen::default()).await.unwrap_err();
            // The store is away.
            let asked = matches!(end, End::Store(_));
            assert!(asked == is_in_force && (asked || matches!(end, End::Shut)), "{end:?}");
        }
    }
}
