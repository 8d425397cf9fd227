//! `POST /events/generate` (and `POST /api/activities`): one event in, 201 once the brokers have it.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use common::event::{EventId, Timestamp, UserEvent, push_string};
use hyper::body::Body;
use serde::Serialize;
use warp::Reply;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{HeaderMap, Response, StatusCode};

use crate::body::{Kind, Limits};
use crate::idempotency::{IdempotencyKey, earlier, same};
use crate::keys::Caller;
use crate::memory::Share;
use crate::problem::Problem;
use crate::query::validate_only;
use crate::{App, MOST_PATIENCE, body, header, timed};

const NOTHING_PUBLISHED: &str = "Event is valid; nothing was published";

/// The reply to a post that was only to be checked.
#[derive(Serialize)]
struct Valid {
    success: bool,
    valid: bool,
    message: &'static str,
}

pub(super) async fn generate<B>(
    app: &App,
    query: &str,
    caller: &Caller,
    headers: &HeaderMap,
    body: B,
) -> Result<warp::reply::Response, Problem>
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    // Cheap checks come before the body is read.
    Kind::of(headers, &[Kind::Json])?;
    let (validate_only, key, wait) = (validate_only(query)?, IdempotencyKey::of(headers)?, preferred_wait(headers));
    let limits = Limits { size: app.config.max_body, time: app.config.read_timeout };
    let (body, share) = body::read(headers, body, limits, &app.memory).await?;
    let mut event = UserEvent::from_request(&body, &app.types).map_err(Problem::InvalidPayload)?;
    if validate_only {
        return Ok(warp::reply::json(&Valid { success: true, valid: true, message: NOTHING_PUBLISHED }).into_response());
    }
    let mut record = None;
    if let Some(key) = key {
        event.event_id = key.event_id(caller, &event.user_id);
        // What few requests come to is boxed: the future of all others is moved several times.
        if let Some(first) = Box::pin(earlier(app, &event)).await? {
            let found = Found { duplicate: true, processed: wait.map(|_| true) };
            return Ok(created(&event.event_id, reply_of(&event.event_id, &found, &first), wait, share));
        }
        // Its id says nothing about the order, unlike a UUIDv7.
        event.timestamp = Timestamp::now_after(None);
        record = Some(event.to_record());
    }
    let (reply, json) =
        reply_with(&event.event_id, &Found::default(), event.json_len(), |reply| event.push_json(reply));
    let published = app.publish(&event, record.as_deref().unwrap_or(&reply[json.clone()]));
    let published = timed(app.config.request_timeout, published).await;
    published.map_err(|error| Problem::Publish { error, retry_after: app.publisher.retry_after() })?;
    let Some(patience) = wait else { return Ok(created(&event.event_id, reply, None, share)) };
    // Whatever keeps the store from saying so: the event is published.
    let stored = Box::pin(app.processed(event.event_id.as_str(), patience)).await.ok().flatten();
    let Some((stored, _)) = stored else {
        let found = Found { processed: Some(false), ..Found::default() };
        return Ok(created(&event.event_id, reply_of(&event.event_id, &found, &reply[json]), None, share));
    };
    // Another request with this key may have come first.
    same(&stored, &event)?;
    let found = Found { duplicate: stored[..] != reply[json], processed: Some(true) };
    Ok(created(&event.event_id, reply_of(&event.event_id, &found, &stored), wait, share))
}

/// `Prefer: wait=…` (RFC 7240, section 4.3): until the event is processed, up to so many seconds. Only the first one
/// counts; if it is not a number of seconds, the reply does not wait.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all("prefer").iter().filter_map(|line| line.to_str().ok());
    let preferences = lines.flat_map(|line| header::split(line, ','));
    // Behind a semicolon are parameters of the preference.
    let mut named = preferences.map(|preference| header::named(header::split(preference, ';').next().unwrap_or("")));
    let (_, seconds) = named.find(|(name, _)| name.eq_ignore_ascii_case("wait"))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()).min(MOST_PATIENCE))
}

/// What the store has said of the event.
#[derive(Default)]
struct Found {
    /// It had one of this key before.
    duplicate: bool,
    /// Whether it has the event by now, when the client wanted to wait for that.
    processed: Option<bool>,
}

/// The body of a 201 around an event's JSON.
fn reply_of(id: &EventId, found: &Found, json: &[u8]) -> Vec<u8> {
    reply_with(id, found, json.len(), |reply| reply.extend_from_slice(json)).0
}

/// The same, where the JSON is written in place; with where it stands.
fn reply_with(
    id: &EventId,
    found: &Found,
    json_len: usize,
    push_json: impl FnOnce(&mut Vec<u8>),
) -> (Vec<u8>, Range<usize>) {
    const BEGIN: &[u8] = br#"{"success":true,"message":"Event published successfully","eventId":"#;
    const EVENT: &[u8] = br#","event":"#;
    let flags: &[u8] = match found {
        Found { duplicate: false, processed: None } => b"",
        Found { duplicate: true, processed: None } => br#","duplicate":true"#,
        Found { duplicate: false, processed: Some(false) } => br#","processed":false"#,
        Found { duplicate: false, processed: Some(true) } => br#","processed":true"#,
        Found { duplicate: true, processed: Some(true) } => br#","duplicate":true,"processed":true"#,
        Found { duplicate: true, processed: Some(false) } => br#","duplicate":true,"processed":false"#,
    };
    let quotes_and_brace = 3;
    let size = BEGIN.len() + id.as_str().len() + flags.len() + EVENT.len() + json_len + quotes_and_brace;
    let mut reply = Vec::with_capacity(size);
    reply.extend_from_slice(BEGIN);
    push_string(&mut reply, id.as_str());
    reply.extend_from_slice(flags);
    reply.extend_from_slice(EVENT);
    let start = reply.len();
    push_json(&mut reply);
    let end = reply.len();
    reply.push(b'}');
    (reply, start..end)
}

/// `applied` is for how long the client wanted to wait, if the event was processed in that time.
fn created(id: &EventId, reply: Vec<u8>, applied: Option<Duration>, share: Share) -> warp::reply::Response {
    let mut response = Response::new(share.keep(reply)).into_response();
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // An id of the service's own making is a UUID.
    if let Ok(location) = HeaderValue::from_maybe_shared(Bytes::from(["/events/", id.as_str()].concat())) {
        headers.insert(LOCATION, location);
    }
    if let Some(wait) = applied
        && let Ok(applied) = HeaderValue::try_from(format!("wait={}", wait.as_secs()))
    {
        headers.insert("preference-applied", applied);
    }
    response
}

#[cfg(test)]
mod tests {
    use common::event::EventTypes;

    use super::*;

    fn wait(lines: &[&'static str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("prefer", HeaderValue::from_static(line));
        }
        preferred_wait(&headers).map(|wait| wait.as_secs())
    }

    #[test]
    fn the_first_wait_counts_and_what_belongs_to_another_preference_does_not() {
        for (lines, seconds) in [
            (&["wait=2"][..], Some(2)),
            (&["respond-async, WAIT = \"3\" ; x=1"], Some(3)),
            (&["handling=lenient; wait=10"], None),
            (&["x=\"a, wait=1\", wait=4"], Some(4)),
            (&["wait=soon, wait=2"], None),
            (&["handling=lenient", "wait=5, wait=1"], Some(5)),
            (&["wait=86400"], Some(30)),
            (&["wait"], None),
            (&["waiting=1"], None),
            (&[], None),
        ] {
            assert_eq!(wait(lines), seconds, "{lines:?}");
        }
    }

    #[test]
    fn a_reply_has_exactly_the_room_that_it_needs() {
        for found in [
            Found::default(),
            Found { duplicate: true, processed: None },
            Found { duplicate: true, processed: Some(true) },
            Found { duplicate: false, processed: Some(false) },
        ] {
            let event =
                UserEvent::from_request(br#"{"userId":"u","eventType":"LOGIN"}"#, &EventTypes::default()).unwrap();
            let (reply, json) = reply_with(&event.event_id, &found, event.json_len(), |reply| event.push_json(reply));
            assert_eq!((reply.capacity(), &reply[json]), (reply.len(), &*event.to_json()));
            let reply: serde_json::Value = serde_json::from_slice(&reply).unwrap();
            assert_eq!(reply["processed"].as_bool(), found.processed);
            assert_eq!(reply["duplicate"].as_bool(), found.duplicate.then_some(true));
        }
    }
}
