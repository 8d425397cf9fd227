//! `POST /events/generate` (and `POST /api/activities`): one event in, 201 once the brokers have it.

use std::time::Duration;

use bytes::Buf;
use common::event::{EventId, UserEvent, push_string};
use futures::Stream;
use serde::Serialize;
use warp::Reply;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{HeaderMap, Response, StatusCode};

use crate::body::{Kind, Limits};
use crate::idempotency::{IdempotencyKey, earlier};
use crate::keys::Caller;
use crate::problem::Problem;
use crate::query::validate_only;
use crate::{App, MOST_PATIENCE, body, timed};

const NOTHING_PUBLISHED: &str = "Event is valid; nothing was published";

/// The reply to a post that was only to be checked.
#[derive(Serialize)]
struct Valid {
    success: bool,
    valid: bool,
    message: &'static str,
}

pub(super) async fn generate<B: Buf, E>(
    app: &App,
    query: &str,
    caller: &Caller,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, E>> + Send + 'static,
) -> Result<warp::reply::Response, Problem> {
    Kind::of(headers, &[Kind::Json])?;
    let limits = Limits { size: app.config.max_body, time: app.config.read_timeout };
    let (body, _share) = body::whole(body::pieces(headers, body, limits)?, limits, &app.memory).await?;
    let mut event = UserEvent::from_request(&body, &app.types).map_err(Problem::InvalidPayload)?;
    let (validate_only, key) = (validate_only(query)?, IdempotencyKey::of(headers)?);
    if validate_only {
        return Ok(warp::reply::json(&Valid { success: true, valid: true, message: NOTHING_PUBLISHED }).into_response());
    }
    if let Some(key) = key {
        event.event_id = key.event_id(caller, &event.user_id);
        if let Some(first) = earlier(app, &event).await? {
            return Ok(created(&event.event_id, &first, true, preferred_wait(headers).map(|wait| (wait, true))));
        }
    }
    let json = event.to_json();
    let published = timed(app.config.request_timeout, app.publish(&event, &json)).await;
    published.map_err(|error| Problem::Publish { error, retry_after: app.publisher.retry_after() })?;
    let Some(wait) = preferred_wait(headers) else { return Ok(created(&event.event_id, &json, false, None)) };
    // Whatever keeps the store from saying so: the event is published.
    let processed = app.processed(event.event_id.as_str(), wait).await.is_ok_and(|found| found.is_some());
    Ok(created(&event.event_id, &json, false, Some((wait, processed))))
}

/// `Prefer: wait=…` (RFC 7240, section 4.3): until the event is processed, up to so many seconds. A preference that
/// means nothing counts as absent.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all("prefer").iter().filter_map(|line| line.to_str().ok());
    let mut preferences = lines.flat_map(|line| line.split([',', ';']));
    let seconds = preferences.find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("wait").then(|| value.parse::<u32>().ok()).flatten()
    })?;
    Some(Duration::from_secs(seconds.into()).min(MOST_PATIENCE))
}

/// The reply holds the event in the very bytes that were published. `waited` is for how long the client wanted to wait
/// for the event to be processed, and whether it was in that time.
fn created(id: &EventId, json: &[u8], duplicate: bool, waited: Option<(Duration, bool)>) -> warp::reply::Response {
    let mut reply = Vec::with_capacity(json.len() + 160);
    reply.extend_from_slice(br#"{"success":true,"message":"Event published successfully","eventId":"#);
    push_string(&mut reply, id.as_str());
    if duplicate {
        reply.extend_from_slice(br#","duplicate":true"#);
    }
    if let Some((_, processed)) = waited {
        reply.extend_from_slice(if processed { &br#","processed":true"#[..] } else { br#","processed":false"# });
    }
    reply.extend_from_slice(br#","event":"#);
    reply.extend_from_slice(json);
    reply.push(b'}');
    let mut response = Response::new(reply).into_response();
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // An id of the service's own making is a UUID.
    if let Ok(location) = HeaderValue::try_from(format!("/events/{}", id.as_str())) {
        headers.insert(LOCATION, location);
    }
    if let Some((wait, true)) = waited
        && let Ok(applied) = HeaderValue::try_from(format!("wait={}", wait.as_secs()))
    {
        headers.insert("preference-applied", applied);
    }
    response
}
