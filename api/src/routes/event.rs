//! `GET /events/{eventId}`: one event, and how it was processed. With `wait`, as soon as it is.

use std::time::Duration;

use common::event::EventId;
use common::store::{Origin, StoreError};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use warp::http::header::{CONTENT_TYPE, HeaderValue};

use crate::problem::Problem;
use crate::query::Parameters;
use crate::{App, MOST_PATIENCE};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Processing<'a> {
    processed_at: String,
    topic: &'a str,
    partition: i32,
    offset: i64,
    worker: &'a str,
}

pub(super) async fn show(app: &App, id: &str, query: &str) -> Result<warp::reply::Response, Problem> {
    let id = percent_decode_str(id).decode_utf8().map_err(|_| Problem::UnknownEvent)?;
    let wait = Parameters::parse(query, &["wait"], &[])?.one("wait", wait)?;
    // What can't be an id is not waited for.
    let id = EventId::parse(&id).ok_or(Problem::UnknownEvent)?;
    let found = match wait {
        Some(wait) => app.processed(id.as_str(), wait).await,
        None => app.store.event(id.as_str()).await.map_err(Problem::Store),
    };
    match found? {
        Some((json, origin)) => described(app, &json, &origin),
        None => Err(what_became_of(app, &id).await.map_err(Problem::Store)?),
    }
}

/// Why an event can't be shown. An id of the service's own making says how old it is.
async fn what_became_of(app: &App, id: &EventId) -> Result<Problem, StoreError> {
    if let Some(reason) = app.store.dead_letter(id.as_str()).await? {
        return Ok(Problem::DeadLettered(reason));
    }
    let made = id.made_at();
    let trimmed = app.store.trimmed().await?.filter(|before| made.is_some_and(|made| made < *before));
    Ok(trimmed.map_or(Problem::UnknownEvent, Problem::Trimmed))
}

fn wait(text: &str) -> Result<Duration, String> {
    let allowed =
        || format!("must be a duration with a unit, at most {} s, such as 500ms or 2s", MOST_PATIENCE.as_secs());
    common::config::duration(text).ok().filter(|wait| *wait <= MOST_PATIENCE).ok_or_else(allowed)
}

fn described(app: &App, json: &[u8], origin: &Origin) -> Result<warp::reply::Response, Problem> {
    let Origin { processed_at, partition, offset, worker } = origin;
    let (partition, offset) = (*partition, *offset);
    let topic = app.config.kafka.topics.events.as_str();
    let processing = Processing { processed_at: processed_at.to_string(), topic, partition, offset, worker };
    // Behind the five members of the stored object, which stay as they are.
    let mut reply = Vec::with_capacity(json.len() + 192);
    reply.extend_from_slice(json.strip_suffix(b"}").unwrap_or(json));
    reply.extend_from_slice(br#","processing":"#);
    // Strings and numbers always serialise.
    serde_json::to_writer(&mut reply, &processing).unwrap_or_default();
    reply.push(b'}');
    let mut response = super::processed::whole(app, reply)?;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
