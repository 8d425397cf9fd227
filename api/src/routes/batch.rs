//! `POST /events/batch`: many events in one request, each with a result of its own, in order.
//!
//! A JSON array is read whole before anything is published; NDJSON is published as it arrives. With
//! `Accept: application/x-ndjson` the results go back while the request is still being read.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use common::event::{UserEvent, Violation};
use common::kafka::{Company, PublishError, Published};
use futures::stream::{self, BoxStream, poll_fn};
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use warp::http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};
use warp::{Filter, Rejection, Reply};

use crate::body::{self, Kind, Limits, Pieces};
use crate::format::Format;
use crate::idempotency::IdempotencyKey;
use crate::keys::Caller;
use crate::problem::Problem;
use crate::query::validate_only;
use crate::{App, too_late};

/// Items that wait for the brokers at a time.
const WINDOW: usize = 1000;
/// Items that are handed over together, and waited for together.
const GROUP: usize = 100;
/// Results that are sent in one piece of a streamed reply.
const RESULTS: usize = 64;

/// What became of one item.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemResult {
    index: usize,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    violations: Vec<Violation>,
    /// What came behind it was not read.
    #[serde(skip)]
    broke_off: bool,
}

/// The whole reply.
#[derive(Serialize)]
struct Summary {
    accepted: usize,
    rejected: usize,
    results: Vec<ItemResult>,
}

/// An item, or why there is none and none after it.
type Item = Result<Bytes, Problem>;

/// What all items of a request have in common.
struct Context {
    app: Arc<App>,
    caller: Caller,
    key: Option<IdempotencyKey>,
    validate_only: bool,
}

pub(super) fn route(
    app: &Arc<App>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    warp::path!("events" / "batch")
        .and(warp::post())
        .and(super::query())
        .and(super::with(app))
        .and(super::caller())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(async |query: String, app: Arc<App>, caller, headers, body| {
            batch(app, &query, caller, &headers, body).await.unwrap_or_else(Reply::into_response)
        })
}

async fn batch<B: Buf, E>(
    app: Arc<App>,
    query: &str,
    caller: Caller,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, E>> + Send + 'static,
) -> Result<warp::reply::Response, Problem> {
    let kind = Kind::of(headers, &[Kind::Json, Kind::Ndjson])?;
    let streamed = Format::of_batch(headers)? == Format::Ndjson;
    let limits = Limits { size: app.config.max_batch_body, time: app.config.read_timeout };
    let pieces = body::pieces(headers, body, limits)?;
    let items = match kind {
        Kind::Json => array(&body::whole(pieces, limits).await?, app.config.max_batch_items)?,
        Kind::Ndjson => lines(pieces, limits, app.config.max_body, app.config.max_batch_items),
    };
    let context = Context { key: IdempotencyKey::of(headers)?, validate_only: validate_only(query)?, caller, app };
    let mut results = Box::pin(results(context, items).peekable());
    if results.as_mut().peek().await.is_none() {
        return Err(Problem::EmptyBatch);
    }
    Ok(if streamed { stream_results(results.boxed()) } else { summary(results.collect().await) })
}

/// The items of an array.
///
/// # Errors
/// When it is none, or has none or too many.
fn array(body: &Bytes, most: usize) -> Result<BoxStream<'static, Item>, Problem> {
    let invalid = |detail| Problem::InvalidPayload(vec![Violation::document(detail)]);
    let items: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("Request body must be a JSON array of events: {error}")))?;
    match items.len() {
        0 => Err(Problem::EmptyBatch),
        count if count > most => Err(Problem::TooManyItems(most)),
        _ => {
            let items: Vec<Item> = items.iter().map(|item| Ok(body.slice_ref(item.get().as_bytes()))).collect();
            Ok(stream::iter(items).boxed())
        }
    }
}

/// The lines of NDJSON as they arrive; blank ones are left away. A line that is too long is an item without a body. What
/// ends the request before its end, a limit or a broken connection, is the last item.
fn lines(pieces: Pieces, limits: Limits, longest: usize, most: usize) -> BoxStream<'static, Item> {
    let lines = Lines { pieces, rest: BytesMut::new(), ready: VecDeque::new(), overlong: false, ended: false, longest };
    let numbered = stream::unfold((lines, 0_usize), move |(mut lines, count)| async move {
        let item = match tokio::time::timeout(limits.time, lines.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(_))) if count == most => Err(Problem::TooManyItems(most)),
            Ok(Some(item)) => item,
            Err(_) => Err(Problem::BodyTooSlow(limits.time)),
        };
        if item.is_err() {
            lines.end();
        }
        Some((item, (lines, count + 1)))
    });
    numbered.boxed()
}

/// Cuts what arrives into lines.
struct Lines {
    pieces: Pieces,
    rest: BytesMut,
    ready: VecDeque<Bytes>,
    /// The present line is longer than an item may be; the rest of it is skipped.
    overlong: bool,
    ended: bool,
    longest: usize,
}

impl Lines {
    async fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(Ok(line));
            }
            if self.ended {
                return None;
            }
            match self.pieces.next().await {
                Some(Ok(piece)) => self.take(&piece),
                Some(Err(problem)) => return Some(Err(problem)),
                None => {
                    self.ended = true;
                    self.finish_line();
                }
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        let mut parts = piece.split(|byte| *byte == b'\n');
        self.extend(parts.next().unwrap_or_default());
        for part in parts {
            self.finish_line();
            self.extend(part);
        }
    }

    fn extend(&mut self, part: &[u8]) {
        self.overlong |= self.rest.len() + part.len() > self.longest;
        if !self.overlong {
            self.rest.extend_from_slice(part);
        }
    }

    fn finish_line(&mut self) {
        let line = self.rest.split().freeze();
        // An empty line says that there was one that is too long.
        match std::mem::take(&mut self.overlong) {
            true => self.ready.push_back(Bytes::new()),
            false if line.iter().all(u8::is_ascii_whitespace) => {}
            false => self.ready.push_back(line),
        }
    }

    /// Nothing more is read.
    fn end(&mut self) {
        self.ended = true;
        self.ready.clear();
        self.pieces = stream::empty().boxed();
    }
}

/// An item with its number, and how many equal ones came before it.
struct Numbered {
    index: usize,
    item: Item,
    ordinal: usize,
}

/// The results of all items, in order, as the brokers acknowledge them.
fn results(context: Context, items: BoxStream<'static, Item>) -> BoxStream<'static, ItemResult> {
    let (context, mut ordinals) = (Arc::new(context), HashMap::new());
    let (app, validate_only) = (Arc::clone(&context.app), context.validate_only);
    let has_key = context.key.is_some();
    let numbered = items.enumerate().map(move |(index, item)| {
        // Equal items of one request are different events.
        let ordinal = item.as_ref().ok().filter(|_| has_key).map_or(0, |json| count(&mut ordinals, json));
        Numbered { index, item, ordinal }
    });
    let groups = numbered.ready_chunks(GROUP).map(move |items| handle(Arc::clone(&context), items));
    let results = groups.buffered(WINDOW / GROUP).flat_map(stream::iter).boxed();
    if validate_only { results } else { app.publish_all(results, was_published) }
}

/// Whether an item became a record; `None` for one that was never to be.
fn was_published(result: &ItemResult) -> Option<bool> {
    match result.status {
        201 => (!result.duplicate).then_some(true),
        // Only those that were handed over have one.
        _ => result.outcome.map(|_| false),
    }
}

fn count(ordinals: &mut HashMap<Bytes, usize>, json: &Bytes) -> usize {
    let seen = ordinals.entry(json.clone()).or_default();
    *seen += 1;
    *seen - 1
}

/// Hands a group over at once, in the order of the calls, unless the store is to be asked first. The future is its
/// results.
fn handle(context: Arc<Context>, items: Vec<Numbered>) -> impl Future<Output = Vec<ItemResult>> + Send + 'static {
    let begun = context.key.is_none().then(|| begin(&context, &items));
    async move {
        let begun = match begun {
            Some(begun) => begun,
            None => begin_new(&context, &items).await,
        };
        answers(context.app.config.request_timeout, begun).await
    }
}

/// How far an item has come.
enum Begun {
    Done(ItemResult),
    Sent { index: usize, event_id: String, published: Published },
}

fn begin(context: &Context, items: &[Numbered]) -> Vec<Begun> {
    let publish = |item: &Numbered| match check(context, item) {
        Ok(event) => publish(context, item.index, &event),
        Err(result) => Begun::Done(result),
    };
    items.iter().map(publish).collect()
}

/// As [`begin`], without those that the store knows already.
async fn begin_new(context: &Context, items: &[Numbered]) -> Vec<Begun> {
    let checked: Vec<_> = items.iter().map(|item| check(context, item)).collect();
    let ids: Vec<&str> = checked.iter().flatten().map(|event| event.event_id.as_str()).collect();
    let mut known = crate::idempotency::known(&context.app, &ids).await.into_iter();
    let publish = |(item, checked): (&Numbered, Result<UserEvent<'_>, ItemResult>)| match checked {
        // The body is part of the id, so the first one had the same.
        Ok(event) if known.next() == Some(true) => {
            Begun::Done(ItemResult { duplicate: true, ..accepted(item.index, event.event_id.as_str().to_owned()) })
        }
        Ok(event) => publish(context, item.index, &event),
        Err(result) => Begun::Done(result),
    };
    items.iter().zip(checked).map(publish).collect()
}

/// The event of an item.
///
/// # Errors
/// The result of one that is not to be published.
fn check<'a>(context: &Context, numbered: &'a Numbered) -> Result<UserEvent<'a>, ItemResult> {
    let (index, app) = (numbered.index, &context.app);
    let json = numbered.item.as_ref().map_err(|problem| ItemResult { broke_off: true, ..refused(index, problem) })?;
    if json.is_empty() || json.len() > app.config.max_body {
        return Err(refused(index, &Problem::BodyTooLarge(app.config.max_body)));
    }
    let mut event = UserEvent::from_request(json, &app.types).map_err(|violations| invalid(index, violations))?;
    if context.validate_only {
        return Err(ItemResult { index, status: 200, ..ItemResult::default() });
    }
    if let Some(key) = &context.key {
        event.event_id = key.item_id(&context.caller, &event.user_id, json, numbered.ordinal);
    }
    Ok(event)
}

fn publish(context: &Context, index: usize, event: &UserEvent<'_>) -> Begun {
    let published = context.app.publisher.publish(event, &event.to_json(), Company::Many);
    Begun::Sent { index, event_id: event.event_id.as_str().to_owned(), published }
}

/// The results of a group, each waiting no longer than `limit`.
async fn answers(limit: Duration, begun: Vec<Begun>) -> Vec<ItemResult> {
    let mut late = pin!(tokio::time::sleep(limit));
    let mut results = Vec::with_capacity(begun.len());
    for item in begun {
        results.push(match item {
            Begun::Done(result) => result,
            Begun::Sent { index, event_id, published } => {
                let answer = tokio::select! {
                    biased;
                    answer = published => answer.map(drop),
                    () = &mut late => Err(too_late()),
                };
                answer.map_or_else(|error| failed(index, &error), |()| accepted(index, event_id))
            }
        });
    }
    results
}

fn accepted(index: usize, event_id: String) -> ItemResult {
    ItemResult { index, status: 201, event_id: Some(event_id), ..ItemResult::default() }
}

fn invalid(index: usize, violations: Vec<Violation>) -> ItemResult {
    let errors = violations.iter().map(|violation| violation.detail.to_string()).collect();
    ItemResult { index, status: StatusCode::BAD_REQUEST.as_u16(), errors, violations, ..ItemResult::default() }
}

fn refused(index: usize, problem: &Problem) -> ItemResult {
    let errors = vec![problem.detail().into_owned()];
    ItemResult { index, status: problem.status().as_u16(), errors, ..ItemResult::default() }
}

fn failed(index: usize, error: &PublishError) -> ItemResult {
    let problem = Problem::Publish { error: error.clone(), retry_after: 1 };
    problem.log();
    ItemResult { outcome: problem.outcome_word(), ..refused(index, &problem) }
}

fn summary(results: Vec<ItemResult>) -> warp::reply::Response {
    let accepted = results.iter().filter(|result| result.status < 300).count();
    let broke_off = results.last().is_some_and(|result| result.broke_off);
    let summary = Summary { accepted, rejected: results.len() - accepted, results };
    let mut response = warp::reply::json(&summary).into_response();
    if broke_off {
        // What the client is still sending would be taken for its next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The results as NDJSON, while they come.
fn stream_results(results: BoxStream<'static, ItemResult>) -> warp::reply::Response {
    let (sender, mut receiver) = mpsc::channel::<Result<Vec<u8>, Infallible>>(4);
    tokio::spawn(async move {
        let mut chunks = results.ready_chunks(RESULTS);
        while let Some(chunk) = chunks.next().await {
            let mut piece = Vec::with_capacity(chunk.len() * 80);
            for result in chunk {
                // Strings, numbers and lists of them always serialise.
                serde_json::to_writer(&mut piece, &result).unwrap_or_default();
                piece.push(b'\n');
            }
            // Items that were read are published whether or not the client still listens.
            drop(sender.send(Ok(piece)).await);
        }
    });
    let mut response = warp::reply::stream(poll_fn(move |context| receiver.poll_recv(context))).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { size: 1 << 20, time: Duration::from_secs(10) };
    /// Of a line, in bytes.
    const LONGEST: usize = 12;

    /// An item, or the status of what ended the batch.
    type Read = Result<Vec<u8>, u16>;

    fn read(items: BoxStream<'static, Item>) -> Vec<Read> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let items: Vec<Item> = runtime.block_on(items.collect());
        items.into_iter().map(|item| item.map(|json| json.to_vec()).map_err(|p| p.status().as_u16())).collect()
    }

    /// A body in pieces that end at `cuts`; a broken one ends with a problem.
    fn pieces(body: &[u8], cuts: &[prop::sample::Index], broken: bool) -> Pieces {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        ends.sort_unstable();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let ends = ends.iter().copied().chain(std::iter::once(body.len()));
        let cut = starts.zip(ends).map(|(start, end)| Ok(Bytes::copy_from_slice(&body[start..end])));
        let cut: Vec<Result<Bytes, Problem>> = cut.chain(broken.then_some(Err(Problem::BodyBroken))).collect();
        stream::iter(cut).boxed()
    }

    /// What lines are said to be, for a body that is there at once.
    fn expected(body: &[u8], broken: bool, most: usize) -> Vec<Read> {
        let mut lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
        if broken {
            lines.pop();
        }
        let item = |line: &[u8]| match line.len() > LONGEST {
            true => Some(Ok(Vec::new())),
            false => (!line.iter().all(u8::is_ascii_whitespace)).then(|| Ok(line.to_vec())),
        };
        let mut items: Vec<Read> = lines.into_iter().filter_map(item).collect();
        if items.len() > most {
            items.truncate(most);
            items.push(Err(413));
        } else if broken {
            items.push(Err(400));
        }
        items
    }

    /// Lines and what is nearly lines: fragments in any order.
    fn nearly_lines() -> impl Strategy<Value = Vec<u8>> {
        const FRAGMENTS: &[&[u8]] = &[b"\n", b"\n", b"\r\n", b" ", b"{}", b"\"a\\n\"", b"0123456789ab", b"\0", b"\xff"];
        prop::collection::vec(prop::sample::select(FRAGMENTS), 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn lines_are_the_same_however_a_body_is_cut(
            body in nearly_lines(), cuts: Vec<prop::sample::Index>, broken: bool, most in 1_usize..20,
        ) {
            let found = read(lines(pieces(&body, &cuts, broken), LIMITS, LONGEST, most));
            prop_assert_eq!(found, expected(&body, broken, most));
        }

        #[test]
        fn an_array_is_the_same_however_a_body_is_cut(
            bodies in prop::collection::vec(prop::sample::select(&["7", "{\"a\" : [1, 2]}", "\",]\"", "null"][..]), 0..12),
            blank in "[ \\n]{0,2}", cuts: Vec<prop::sample::Index>, most in 1_usize..12,
        ) {
            let body = format!("{blank}[{blank}{}{blank}]{blank}", bodies.join(&format!("{blank},{blank}")));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let whole = runtime.block_on(body::whole(pieces(body.as_bytes(), &cuts, false), LIMITS)).unwrap();
            match array(&whole, most) {
                Ok(items) => {
                    let items: Vec<Read> = read(items);
                    let given: Vec<Read> = bodies.iter().map(|item| Ok(item.as_bytes().to_vec())).collect();
                    prop_assert!((1..=most).contains(&items.len()));
                    prop_assert_eq!(items, given, "as they were written");
                }
                Err(Problem::EmptyBatch) => prop_assert!(bodies.is_empty()),
                Err(problem) => prop_assert!(bodies.len() > most, "{problem:?}"),
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(body: Vec<u8>, cuts: Vec<prop::sample::Index>, broken: bool) {
            let items = read(lines(pieces(&body, &cuts, broken), LIMITS, LONGEST, 20));
            prop_assert!(items.iter().all(|item| item.as_ref().is_ok_and(|json| json.len() <= LONGEST) || item.is_err()));
            drop(array(&body.into(), 20));
        }
    }
}
