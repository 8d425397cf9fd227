//! `GET /events/stream`: what is processed from now on, or from `Last-Event-ID` on, as server-sent events.
//!
//! A frame's `id:` is a position in the tail that every replica understands. A reader that comes back with one gets what
//! it has missed from Redis, as long as Redis still holds it, then joins the frames that this process shares among its
//! readers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::store::{Entry, Query, Seen, StoreError, TailPosition};
use futures::stream::poll_fn;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use warp::http::HeaderMap;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::problem::Problem;
use crate::query::Parameters;
use crate::tail::{Frame, events_of, frame, portions};

/// A comment with the present position is sent so often: it keeps proxies from closing a quiet connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes that a reader who catches up is sent at a time, about.
const PIECE: usize = 256 * 1024;
/// What a client waits before it comes back, in milliseconds.
const RETRY: u32 = 1000;

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client has gone")]
    Gone,
    #[error("this process is ending; another one goes on")]
    Draining,
    #[error("too slow: events come faster than they are read")]
    Slow,
    #[error("the store can't be read at the moment")]
    Store(#[source] StoreError),
}

pub(super) fn route(
    app: &Arc<App>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    warp::path!("events" / "stream")
        .and(warp::get())
        .and(super::query())
        .and(warp::header::headers_cloned())
        .and(super::with(app))
        .then(async |query: String, headers, app: Arc<App>| {
            open(&app, &query, &headers).await.unwrap_or_else(Reply::into_response)
        })
}

async fn open(app: &Arc<App>, query: &str, headers: &HeaderMap) -> Result<warp::reply::Response, Problem> {
    let query = Parameters::parse(query, &["userId", "eventType", "from", "to"], &["eventType"])?.query(&app.types)?;
    let resumed = last_event_id(headers)?;
    let (now, frames) = app.tail.subscribe().await.map_err(Problem::Store)?;
    let (out, mut body) = mpsc::channel(4);
    let reader = Reader { app: Arc::clone(app), query, position: resumed.unwrap_or(now), frames, out };
    tokio::spawn(reader.read(resumed.is_some(), now));
    let mut response = warp::reply::stream(poll_fn(move |context| body.poll_recv(context))).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Some proxies hold responses back unless they are told.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<TailPosition>, Problem> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else { return Ok(None) };
    let position = value.to_str().ok().and_then(TailPosition::decode);
    position.map(Some).ok_or_else(|| Problem::InvalidHeader {
        name: "Last-Event-ID",
        detail: "is not an id of this stream; send the last one as it came, or none".into(),
    })
}

/// One client.
struct Reader {
    app: Arc<App>,
    query: Query,
    position: TailPosition,
    frames: broadcast::Receiver<Arc<Frame>>,
    out: mpsc::Sender<Result<Bytes, Infallible>>,
}

impl Reader {
    async fn read(mut self, resumed: bool, now: TailPosition) {
        let end = match self.go(resumed, now).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        match &end {
            End::Gone => return,
            End::Store(error) => log::debug!("a stream ends: {error}"),
            End::Draining | End::Slow => log::debug!("a stream ends: {end}"),
        }
        let last = format!("event: end\ndata: {{\"reason\":\"{end}\"}}\n\n");
        // A client that reads nothing does not read this either.
        drop(self.out.try_send(Ok(last.into())));
    }

    async fn go(&mut self, resumed: bool, now: TailPosition) -> Result<Infallible, End> {
        self.send(format!("retry: {RETRY}\nid: {}\n\n", self.position.encode()).into()).await?;
        if resumed {
            self.catch_up(now).await?;
        }
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.tick().await;
        let draining = self.app.checks.draining.clone();
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled() => return Err(End::Draining),
                frame = self.frames.recv() => self.pass_on(frame).await?,
                _ = heartbeat.tick() => {
                    self.send(format!(": heartbeat\nid: {}\n\n", self.position.encode()).into()).await?;
                }
            }
        }
    }

    /// Sends a frame, and all that have come with it.
    async fn pass_on(&mut self, first: Result<Arc<Frame>, RecvError>) -> Result<(), End> {
        const MOST: usize = 64;
        let mut text = Vec::new();
        self.add(&mut text, &*first.map_err(|_| End::Slow)?);
        for _ in 0..MOST {
            match self.frames.try_recv() {
                Ok(frame) => self.add(&mut text, &frame),
                Err(broadcast::error::TryRecvError::Empty) => break,
                Err(_) => return Err(End::Slow),
            }
        }
        if text.is_empty() { Ok(()) } else { self.send(text.concat().into()).await }
    }

    fn add(&mut self, text: &mut Vec<Bytes>, frame: &Frame) {
        match frame {
            Frame::Event { entry, number, position, json, text: shared } => {
                if *number < self.position.passed(entry) {
                    return;
                }
                self.position.join(position);
                if self.query.admits(json) {
                    let own = self.position != *position;
                    text.push(if own { crate::tail::frame(&self.position, json) } else { shared.clone() });
                }
            }
            Frame::Gap(position) => {
                self.position.join(position);
                text.push(self.reset());
            }
            Frame::Filler => {}
        }
    }

    fn reset(&self) -> Bytes {
        let id = self.position.encode();
        let reason = "events are missing here; read the list for them";
        format!("event: reset\nid: {id}\ndata: {{\"reason\":\"{reason}\"}}\n\n").into()
    }

    /// Sends what Redis holds between this reader's position and where the shared frames began for it.
    async fn catch_up(&mut self, now: TailPosition) -> Result<(), End> {
        let store = Arc::clone(&self.app.store);
        if !store.tail_holds(&self.position).await.map_err(End::Store)? {
            self.position = now;
            let reset = self.reset();
            return self.send(reset).await;
        }
        let mut seen = store.tail_seen(&self.position).await.map_err(End::Store)?;
        loop {
            let mut entries = store.tail_after(&self.position).await.map_err(End::Store)?;
            // A position stands inside one entry at most, so that one is finished before another is begun. It need not be
            // the earliest: each bucket of a Cluster is read at its own pace.
            let begun = |entry: &Entry| (1..entry.records.len()).contains(&self.position.passed(entry));
            if let Some(begun) = entries.iter().position(begun) {
                entries[..=begun].rotate_right(1);
            }
            // What lies behind `now` comes as a frame, too; the position tells. It must not stand inside an entry then,
            // or frames of others would move it back to that entry's beginning.
            let last = entries.iter().all(|entry| now.passed(entry) == 0);
            for portion in portions(&entries) {
                self.send_entries(portion, &mut seen).await?;
            }
            if last {
                return Ok(());
            }
        }
    }

    async fn send_entries(&mut self, entries: &[Entry], seen: &mut Seen) -> Result<(), End> {
        let records = entries.iter().flat_map(|entry| entry.records.iter().map(move |record| (entry.bucket, record)));
        let records: Vec<_> = records.collect();
        let events = events_of(&self.app.store, &records).await.map_err(End::Store)?;
        let mut text = Vec::new();
        for entry in entries {
            for number in self.position.passed(entry)..entry.records.len() {
                let record = &entry.records[number];
                let new = seen.is_new(entry.bucket, record);
                self.position.pass(entry, number);
                let event = events.get(&(entry.bucket, record.partition, record.offset)).and_then(Option::as_ref);
                if let Some(json) = event.filter(|json| new && self.query.admits(json)) {
                    text.extend_from_slice(&frame(&self.position, json));
                }
                if text.len() >= PIECE {
                    self.send(std::mem::take(&mut text).into()).await?;
                }
            }
            self.position.pass_all(entry);
        }
        if text.is_empty() { Ok(()) } else { self.send(text.into()).await }
    }

    async fn send(&self, text: Bytes) -> Result<(), End> {
        self.out.send(Ok(text)).await.map_err(|_| End::Gone)
    }
}
