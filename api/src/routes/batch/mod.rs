//! `POST /events/batch`: many events in one request, each with a result of its own, in order.
//!
//! A JSON array is read whole before anything is published; NDJSON is published as it arrives. With
//! `Accept: application/x-ndjson` the results go back while the request is still being read.

mod items;

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use common::event::{UserEvent, Violation};
use common::kafka::{PublishError, Published};
use futures::stream::{self, BoxStream, poll_fn};
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use warp::Reply;
use warp::http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};

use self::items::{Item, array, lines};
use crate::body::{self, Kind, Limits};
use crate::format::Format;
use crate::idempotency::IdempotencyKey;
use crate::keys::Caller;
use crate::memory::Share;
use crate::problem::Problem;
use crate::query::validate_only;
use crate::{App, request_id, too_late};

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

/// What all items of a request have in common.
struct Context {
    app: Arc<App>,
    caller: Caller,
    key: Option<IdempotencyKey>,
    validate_only: bool,
    /// Of an array, which is kept whole.
    _share: Option<Share>,
}

pub(super) async fn batch<B: Buf, E>(
    app: &Arc<App>,
    query: &str,
    caller: &Caller,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, E>> + Send + 'static,
) -> Result<warp::reply::Response, Problem> {
    let kind = Kind::of(headers, &[Kind::Json, Kind::Ndjson])?;
    let streamed = Format::of_batch(headers)? == Format::Ndjson;
    let limits = Limits { size: app.config.max_batch_body, time: app.config.read_timeout };
    let pieces = body::pieces(headers, body, limits)?;
    let (items, share) = match kind {
        Kind::Json => {
            let (body, share) = body::whole(pieces, limits, &app.memory).await?;
            (array(&body, app.config.max_batch_items)?, Some(share))
        }
        Kind::Ndjson => {
            let (longest, most) = (app.config.max_body, app.config.max_batch_items);
            (lines(pieces, limits, longest, most, app.memory.share()), None)
        }
    };
    let (key, validate_only) = (IdempotencyKey::of(headers)?, validate_only(query)?);
    let context = Context { key, validate_only, caller: caller.clone(), app: Arc::clone(app), _share: share };
    let mut results = Box::pin(results(context, items).peekable());
    if results.as_mut().peek().await.is_none() {
        return Err(Problem::EmptyBatch);
    }
    if streamed {
        return Ok(stream_results(results.boxed()));
    }
    // Items that were read are published whether or not the client still waits.
    let all = tokio::spawn(request_id::kept(results.collect())).await;
    all.map(summary)
        .map_err(|error| Problem::Publish { error: PublishError::Unknown(error.to_string()), retry_after: 1 })
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
    let mut turns = Turns::default();
    let groups = numbered.ready_chunks(GROUP).map(move |items| handle(Arc::clone(&context), items, turns.next()));
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

/// The order of groups that are not handed over at once: each has its turn when the one before has had its.
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

/// Hands a group over at once, in the order of the calls, unless the store is to be asked first: then in its turn. The
/// future is its results.
fn handle(
    context: Arc<Context>,
    items: Vec<Numbered>,
    turn: Turn,
) -> impl Future<Output = Vec<ItemResult>> + Send + 'static {
    let begun = context.key.is_none().then(|| begin(&context, &items));
    async move {
        let begun = match begun {
            Some(begun) => begun,
            None => begin_new(&context, &items, turn).await,
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
async fn begin_new(context: &Context, items: &[Numbered], mut turn: Turn) -> Vec<Begun> {
    let checked: Vec<_> = items.iter().map(|item| check(context, item)).collect();
    let ids: Vec<&str> = checked.iter().flatten().map(|event| event.event_id.as_str()).collect();
    let mut known = crate::idempotency::known(&context.app, &ids).await.into_iter();
    turn.comes().await;
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
    let published = context.app.publisher.publish(event, &event.to_json());
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
    tokio::spawn(request_id::kept(async move {
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
    }));
    let mut response = warp::reply::stream(poll_fn(move |context| receiver.poll_recv(context))).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
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
