//! `POST /events/batch`: many events in one request, each with a result of its own, in order.
//!
//! A JSON array is read whole before anything is published; NDJSON is published as it arrives. With
//! `Accept: application/x-ndjson` the results go back while the request is still being read.

mod items;

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use common::event::{EventId, Timestamp, UserEvent, Violation};
use common::kafka::{PublishError, Published};
use futures::StreamExt;
use futures::stream::{self, BoxStream, poll_fn};
use http_body_util::BodyDataStream;
use hyper::body::Body;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, spawn_blocking, yield_now};
use tokio::time::Instant;
use warp::Reply;
use warp::http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};

use self::items::{Item, array, lines};
use crate::body::{self, Kind, Limits};
use crate::format::Format;
use crate::idempotency::{IdempotencyKey, nth};
use crate::keys::Caller;
use crate::memory::{Full, Share};
use crate::problem::Problem;
use crate::query::validate_only;
use crate::{App, request_id, too_late, traces};

/// Items that wait for the brokers at a time.
const WINDOW: usize = 1000;
/// Items that are handed over together, and waited for together.
const GROUP: usize = 100;
/// Results that are sent in one piece of a streamed reply.
const RESULTS: usize = 64;
/// Bytes of items that are parsed before the thread may do something else.
const PORTION: usize = 64 * 1024;
/// How often to look for room while there is none for an item.
const ROOM_PERIOD: Duration = Duration::from_millis(5);

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

/// What all items of a request have in common.
struct Context {
    app: Arc<App>,
    caller: Caller,
    key: Option<IdempotencyKey>,
    validate_only: bool,
    /// Of the items so far that have a key.
    keyed: Mutex<Keyed>,
    /// An item has waited for room for the whole of `HTTP_REQUEST_TIMEOUT`: the items behind it don't wait.
    out_of_patience: AtomicBool,
    /// The results so far hold all the memory that they may: no further item is looked at.
    full: Arc<AtomicBool>,
    /// Of an array, which is kept whole.
    array: Option<Share>,
}

#[derive(Default)]
struct Keyed {
    /// How many items of each id there were.
    equal: HashMap<EventId, u64>,
    /// The time of the last one. Times ascend, so that a user's events keep their order within a millisecond, too.
    last: Option<Timestamp>,
}

impl Context {
    /// Gives an item of the key its id and its time.
    fn name(&self, key: &IdempotencyKey, event: &mut UserEvent<'_>) {
        let id = key.item_id(&self.caller, event);
        let mut keyed = self.keyed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = keyed.equal.entry(id.clone()).or_default();
        // Equal items of one request are different events.
        event.event_id = nth(id, *before);
        *before += 1;
        event.timestamp = Timestamp::now_after(keyed.last);
        keyed.last = Some(event.timestamp);
    }
}

pub(super) async fn batch<B>(
    app: &Arc<App>,
    query: &str,
    caller: &Caller,
    headers: &HeaderMap,
    body: B,
) -> Result<warp::reply::Response, Problem>
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    // Cheap checks come before the body is read.
    let kind = Kind::of(headers, &[Kind::Json, Kind::Ndjson])?;
    let streamed = Format::of_batch(headers)? == Format::Ndjson;
    let (key, validate_only) = (IdempotencyKey::of(headers)?, validate_only(query)?);
    let limits = Limits { size: app.config.max_batch_body, time: app.config.read_timeout };
    let most = app.config.max_batch_items;
    let (keyed, out_of_patience, full) = Default::default();
    let (caller, app, headers) = (caller.clone(), Arc::clone(app), headers.clone());
    let mut context = Context { app, caller, key, validate_only, keyed, out_of_patience, full, array: None };
    // A task of its own reads it: what was read is published whether or not the client still waits, which may go before
    // anybody here has seen the end of what it has sent.
    let work = async move {
        let app = Arc::clone(&context.app);
        let items = match kind {
            Kind::Json => {
                let (body, share) = body::read(&headers, body, limits, &app.memory).await?;
                context.array = Some(share);
                parsed(body, most).await?
            }
            Kind::Ndjson => {
                let pieces = body::pieces(&headers, BodyDataStream::new(body), limits, &app.memory)?;
                lines(pieces, limits, app.config.max_body, most, &app.memory, app.checks.draining.clone())
            }
        };
        let (share, full) = (app.memory.share(), Arc::clone(&context.full));
        let results = results(context, items);
        if streamed { stream_results(results).await } else { summary(results, share, &full).await }
    };
    tokio::spawn(request_id::kept(traces::kept(work))).await.map_err(|error| lost(&error))?
}

/// The items of an array; a long one is read where it holds nobody up.
async fn parsed(body: Bytes, most: usize) -> Result<BoxStream<'static, Item>, Problem> {
    match body.len() > PORTION {
        true => spawn_blocking(move || array(&body, most)).await.map_err(|error| lost(&error))?,
        false => array(&body, most),
    }
}

/// A task has panicked, so it is unknown what became of the items.
fn lost(error: &JoinError) -> Problem {
    Problem::Publish { error: PublishError::Unknown(error.to_string()), retry_after: 1 }
}

/// An item with its number.
type Numbered = (usize, Item);

/// The results of all items, in order, as the brokers acknowledge them.
fn results(context: Context, items: BoxStream<'static, Item>) -> BoxStream<'static, ItemResult> {
    let context = Arc::new(context);
    let (app, validate_only) = (Arc::clone(&context.app), context.validate_only);
    let (mut checks, mut publications) = (Turns::default(), Turns::default());
    let items = until_full(items, Arc::clone(&context.full), app.config.body_memory);
    let groups = items.enumerate().ready_chunks(GROUP);
    let groups = groups.map(move |items| handle(Arc::clone(&context), items, checks.next(), publications.next()));
    let results = groups.buffered(WINDOW / GROUP).flat_map(stream::iter).boxed();
    if validate_only { results } else { app.publish_all(results, was_published) }
}

/// The items, until there is no room for their results: then that is the last one.
fn until_full(items: BoxStream<'static, Item>, full: Arc<AtomicBool>, limit: usize) -> BoxStream<'static, Item> {
    let next = move |items: Option<BoxStream<'static, Item>>| {
        let full = full.load(Ordering::Relaxed);
        async move {
            let mut items = items?;
            if full {
                return Some((Err(Problem::NoRoom(Full { limit })), None));
            }
            items.next().await.map(|item| (item, Some(items)))
        }
    };
    stream::unfold(Some(items), next).boxed()
}

/// Whether an item became a record; `None` for one that was never to be.
fn was_published(result: &ItemResult) -> Option<bool> {
    match result.status {
        201 => (!result.duplicate).then_some(true),
        // Only those that were handed over have one, and the last one, which says why the rest was not.
        _ => result.outcome.filter(|_| !result.broke_off).map(|_| false),
    }
}

/// The order of groups: each has its turn when the one before has had its.
#[derive(Default)]
struct Turns {
    last: Option<oneshot::Receiver<()>>,
}

/// The end of it, or of a group that is given up, is the beginning of the next one's turn.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _end: oneshot::Sender<()>,
}

impl Turns {
    fn next(&mut self) -> Turn {
        let (end, ended) = oneshot::channel();
        Turn { before: self.last.replace(ended), _end: end }
    }
}

impl Turn {
    async fn comes(&mut self) {
        if let Some(before) = &mut self.before {
            // Nothing is ever sent.
            drop(before.await);
        }
        self.before = None;
    }
}

/// Checks a group in its turn, asks the store which of them it knows, hands the others over in their turn, and waits for
/// what becomes of them.
async fn handle(context: Arc<Context>, items: Vec<Numbered>, checks: Turn, publications: Turn) -> Vec<ItemResult> {
    let checked = check_all(&context, &items, checks).await;
    let known = known(&context, &checked).await;
    let begun = publish_all(&context, checked, known, publications).await;
    answers(context.app.config.request_timeout, begun).await
}

/// An event that is to be published, or the result of an item that is not.
type Checked<'a> = (usize, Result<UserEvent<'a>, ItemResult>);

async fn check_all<'a>(context: &Context, items: &'a [Numbered], mut turn: Turn) -> Vec<Checked<'a>> {
    turn.comes().await;
    let (mut checked, mut parsed) = (Vec::with_capacity(items.len()), PORTION);
    for (index, item) in items {
        parsed += item.as_ref().map_or(0, Bytes::len);
        // Lets other tasks of this thread run in between.
        if parsed > PORTION {
            yield_now().await;
            parsed = 0;
        }
        checked.push((*index, check(context, *index, item)));
    }
    checked
}

/// Whether the store knows each of the events.
async fn known(context: &Context, checked: &[Checked<'_>]) -> Vec<bool> {
    if context.key.is_none() || context.validate_only {
        return Vec::new();
    }
    let events = checked.iter().filter_map(|(_, event)| event.as_ref().ok());
    let ids: Vec<&str> = events.map(|event| event.event_id.as_str()).collect();
    crate::idempotency::known(&context.app, &ids).await
}

/// How far an item has come.
enum Begun {
    Done(ItemResult),
    Sent { index: usize, event_id: String, published: Published },
}

async fn publish_all(context: &Context, checked: Vec<Checked<'_>>, known: Vec<bool>, mut turn: Turn) -> Vec<Begun> {
    turn.comes().await;
    let give_up = Instant::now() + context.app.config.request_timeout;
    let (mut begun, mut known) = (Vec::with_capacity(checked.len()), known.into_iter());
    for (index, event) in checked {
        let next = match event {
            Err(result) => Begun::Done(result),
            // Its value is part of the id, so the first one had the same.
            Ok(event) if known.next() == Some(true) => {
                Begun::Done(ItemResult { duplicate: true, ..accepted(index, event.event_id.as_str().to_owned()) })
            }
            Ok(event) => {
                let json = event.to_record();
                wait_for_room(context, event.user_id.as_str().len() + json.len(), give_up).await;
                let published = Box::pin(context.app.publisher.publish(&event, &json));
                Begun::Sent { index, event_id: event.event_id.as_str().to_owned(), published }
            }
        };
        begun.push(next);
    }
    begun
}

/// Waits until the brokers have taken enough of what waits for them, so that a batch is read more slowly instead of being
/// refused item by item. Once `give_up` has passed, the rest of the batch does not wait any more.
async fn wait_for_room(context: &Context, bytes: usize, give_up: Instant) {
    while !context.app.publisher.has_room(bytes) && !context.out_of_patience.load(Ordering::Relaxed) {
        if Instant::now() >= give_up {
            context.out_of_patience.store(true, Ordering::Relaxed);
        }
        tokio::time::sleep(ROOM_PERIOD).await;
    }
}

/// The event of an item.
///
/// # Errors
/// The result of one that is not to be published.
fn check<'a>(context: &Context, index: usize, item: &'a Item) -> Result<UserEvent<'a>, ItemResult> {
    let app = &context.app;
    let broke_off = |problem: &Problem| {
        let outcome = problem.outcome_word();
        ItemResult { broke_off: true, outcome, ..refused(index, problem) }
    };
    let json = item.as_ref().map_err(broke_off)?;
    if json.is_empty() || json.len() > app.config.max_body {
        return Err(refused(index, &Problem::BodyTooLarge(app.config.max_body)));
    }
    let mut event = UserEvent::from_request(json, &app.types).map_err(|violations| invalid(index, violations))?;
    if context.validate_only {
        return Err(ItemResult { index, status: 200, ..ItemResult::default() });
    }
    if let Some(key) = &context.key {
        context.name(key, &mut event);
    }
    Ok(event)
}

/// The results of a group, each waiting no longer than `limit`.
async fn answers(limit: Duration, begun: Vec<Begun>) -> Vec<ItemResult> {
    let mut late = pin!(tokio::time::sleep(limit));
    let mut results = Vec::with_capacity(begun.len());
    for item in begun {
        results.push(match item {
            Begun::Done(result) => result,
            Begun::Sent { index, event_id, mut published } => {
                let answer = tokio::select! {
                    biased;
                    answer = &mut published => answer.map(drop),
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

/// Appends a result. Strings, numbers and lists of them always serialise.
fn push_json(json: &mut Vec<u8>, result: &ItemResult) {
    serde_json::to_writer(json, result).unwrap_or_default();
}

/// All results in one reply.
async fn summary(
    results: BoxStream<'static, ItemResult>,
    share: Share,
    full: &AtomicBool,
) -> Result<warp::reply::Response, Problem> {
    let Whole { accepted, rejected, mut results, broke_off, share } = whole(results, share, full).await;
    if accepted + rejected == 0 {
        return Err(Problem::EmptyBatch);
    }
    let begin = format!(r#"{{"accepted":{accepted},"rejected":{rejected},"results":["#);
    // In place of the last of the blanks that are kept for it.
    let start = BEGIN - begin.len();
    results[start..BEGIN].copy_from_slice(begin.as_bytes());
    results.extend_from_slice(b"]}");
    let body = share.keep(results).slice(start..);
    let mut response = warp::http::Response::new(body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if broke_off {
        // What the client is still sending would be taken for its next request.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Blanks for what a reply begins with: its counts are known in the end.
const BEGIN: usize = 96;

/// What a reply tells of all items.
struct Whole {
    accepted: usize,
    rejected: usize,
    /// The results as JSON, with commas, behind [`BEGIN`] blanks.
    results: Vec<u8>,
    broke_off: bool,
    share: Share,
}

async fn whole(mut results: BoxStream<'static, ItemResult>, share: Share, full: &AtomicBool) -> Whole {
    let mut whole = Whole { accepted: 0, rejected: 0, results: vec![b' '; BEGIN], broke_off: false, share };
    while let Some(mut result) = results.next().await {
        if whole.results.len() > BEGIN {
            whole.results.push(b',');
        }
        if full.load(Ordering::Relaxed) && !result.broke_off {
            // Of what was on its way, only what became of it.
            (result.errors, result.violations) = Default::default();
        }
        push_json(&mut whole.results, &result);
        if whole.share.hold(whole.results.len()).is_err() {
            full.store(true, Ordering::Relaxed);
        }
        *(if result.status < 300 { &mut whole.accepted } else { &mut whole.rejected }) += 1;
        whole.broke_off |= result.broke_off;
    }
    whole
}

/// The results as NDJSON, while they come. Items that were read are published whether or not the client still listens.
async fn stream_results(results: BoxStream<'static, ItemResult>) -> Result<warp::reply::Response, Problem> {
    let (sender, mut receiver) = mpsc::channel(4);
    tokio::spawn(request_id::kept(async move {
        let mut chunks = results.ready_chunks(RESULTS);
        while let Some(chunk) = chunks.next().await {
            let mut piece = Vec::with_capacity(chunk.len() * 80);
            for result in chunk {
                push_json(&mut piece, &result);
                piece.push(b'\n');
            }
            drop(sender.send(piece).await);
        }
    }));
    let first = receiver.recv().await.ok_or(Problem::EmptyBatch)?;
    let pieces = stream::iter([first]).chain(poll_fn(move |context| receiver.poll_recv(context)));
    let mut response = warp::reply::stream(pieces.map(Ok::<_, Infallible>)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use futures::future::{FutureExt, join_all};

    use super::*;

    #[test]
    fn groups_have_their_turns_in_order_and_one_that_is_given_up_holds_none_up() {
        let mut turns = Turns::default();
        let [mut first, mut second, mut third] = [turns.next(), turns.next(), turns.next()];
        assert!(second.comes().now_or_never().is_none() && third.comes().now_or_never().is_none());
        assert!(first.comes().now_or_never().is_some());
        assert!(second.comes().now_or_never().is_none(), "the first one is not over");
        drop(first);
        assert!(third.comes().now_or_never().is_none());
        drop(second);
        assert!(third.comes().now_or_never().is_some());
    }

    #[tokio::test]
    async fn whichever_is_looked_up_first_they_are_handed_over_in_order() {
        let (mut turns, handed_over) = (Turns::default(), std::sync::Mutex::default());
        let groups =
            (0..20_u64).map(|nth| (nth, turns.next())).collect::<Vec<_>>().into_iter().map(|(nth, mut turn)| {
                let handed_over: &std::sync::Mutex<Vec<u64>> = &handed_over;
                async move {
                    tokio::time::sleep(Duration::from_millis((7 * nth) % 20)).await;
                    turn.comes().await;
                    handed_over.lock().unwrap().push(nth);
                }
            });
        join_all(groups).await;
        assert_eq!(handed_over.into_inner().unwrap(), (0..20).collect::<Vec<_>>());
    }
}
