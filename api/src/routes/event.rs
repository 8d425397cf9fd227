//! `GET /events/{eventId}`: one event, and how it was processed.

use std::sync::Arc;

use common::store::Origin;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use warp::http::Response;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::problem::Problem;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Processing<'a> {
    processed_at: String,
    topic: &'a str,
    partition: i32,
    offset: i64,
    worker: &'a str,
}

pub(super) fn route(
    app: &Arc<App>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    warp::path!("events" / String)
        // A path that has a resource of its own is not an eventId, whatever the method.
        .and_then(async |id: String| match &*id {
            "generate" | "processed" => Err(warp::reject::not_found()),
            _ => Ok(id),
        })
        .and(super::get())
        .and(super::with(app))
        .then(async |id: String, app: Arc<App>| show(&app, &id).await.unwrap_or_else(Reply::into_response))
}

async fn show(app: &App, id: &str) -> Result<warp::reply::Response, Problem> {
    let id = percent_decode_str(id).decode_utf8().map_err(|_| Problem::UnknownEvent)?;
    let (json, Origin { processed_at, partition, offset, worker }) =
        app.store.event(&id).await.map_err(Problem::Store)?.ok_or(Problem::UnknownEvent)?;
    let topic = app.config.kafka.topics.events.as_str();
    let processing = Processing { processed_at: processed_at.to_string(), topic, partition, offset, worker: &worker };
    // Behind the five members of the stored object, which stay as they are.
    let mut reply = Vec::with_capacity(json.len() + 192);
    reply.extend_from_slice(json.strip_suffix(b"}").unwrap_or(&json));
    reply.extend_from_slice(br#","processing":"#);
    // Strings and numbers always serialise.
    serde_json::to_writer(&mut reply, &processing).unwrap_or_default();
    reply.push(b'}');
    let mut response = Response::new(reply).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
