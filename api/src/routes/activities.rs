//! `/api/activities`, the paths of an older service: `POST` is the same as `POST /events/generate`, `GET` a page of the
//! same list in an envelope.

use serde::Serialize;
use serde_json::value::RawValue;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LINK};

use super::processed::{Request, whole};
use crate::App;
use crate::problem::Problem;

#[derive(Serialize)]
struct Envelope<'a> {
    data: Vec<&'a RawValue>,
    pagination: Pagination,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pagination {
    limit: usize,
    next_cursor: Option<String>,
    has_more: bool,
}

pub(super) async fn page(app: &App, query: &str) -> Result<warp::reply::Response, Problem> {
    let request = Request::parse(app, query)?;
    let (page, limit) = request.page(app).await?;
    let next_cursor = page.next.as_ref().map(|next| next.encode(&request.query));
    // What is stored is JSON; a body that somebody else has broken is left away.
    let data = page.events.iter().filter_map(|json| serde_json::from_slice(json).ok()).collect();
    let envelope = Envelope { data, pagination: Pagination { limit, has_more: next_cursor.is_some(), next_cursor } };
    // Strings, numbers and lists of them always serialise.
    let mut response = whole(app, serde_json::to_vec(&envelope).unwrap_or_default())?;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(links) = request.links(&page, limit) {
        response.headers_mut().insert(LINK, links);
    }
    Ok(response)
}
