//! `POST /events/generate`: one event in, 201 once the brokers have it.

use std::sync::Arc;

use bytes::Buf;
use common::event::{EventId, UserEvent, push_string};
use common::kafka::PublishError;
use futures::Stream;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{HeaderMap, Response, StatusCode};
use warp::{Filter, Rejection, Reply};

use crate::idempotency::{IdempotencyKey, earlier};
use crate::problem::Problem;
use crate::{App, body};

pub(super) fn route(
    app: &Arc<App>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    warp::path!("events" / "generate")
        .and(warp::post())
        .and(super::with(app))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(async |app: Arc<App>, headers, body| {
            generate(&app, &headers, body).await.unwrap_or_else(Reply::into_response)
        })
}

async fn generate<B: Buf, E>(
    app: &App,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, E>>,
) -> Result<warp::reply::Response, Problem> {
    body::check_headers(headers, app.config.max_body)?;
    let body = body::read(body, &app.config).await?;
    let mut event = UserEvent::from_request(&body, &app.types).map_err(Problem::InvalidPayload)?;
    if let Some(key) = IdempotencyKey::of(headers)? {
        event.event_id = key.event_id(&event.user_id);
        if let Some(first) = earlier(app, &event).await? {
            return Ok(created(&event.event_id, &first, true));
        }
    }
    let json = event.to_json();
    let published = app.publisher.publish(&event, &json);
    let answer = tokio::time::timeout(app.config.request_timeout, published).await;
    answer.unwrap_or_else(|_| Err(PublishError::Unknown("HTTP_REQUEST_TIMEOUT".into()))).map_err(Problem::Publish)?;
    Ok(created(&event.event_id, &json, false))
}

/// The reply holds the event in the very bytes that were published.
fn created(id: &EventId, json: &[u8], duplicate: bool) -> warp::reply::Response {
    let mut reply = Vec::with_capacity(json.len() + 160);
    reply.extend_from_slice(br#"{"success":true,"message":"Event published successfully","eventId":"#);
    push_string(&mut reply, id.as_str());
    if duplicate {
        reply.extend_from_slice(br#","duplicate":true"#);
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
    response
}
