//! `GET /events/processed`: the list of what has been processed, oldest first. Whole and streamed without parameters,
//! in pages with `limit` or `cursor`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::config::range;
use common::store::{Cursor, Order, StoreError, Walk};
use futures::stream::poll_fn;
use tokio::sync::mpsc;
use warp::http::Response;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LINK};
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::problem::Problem;

const MAX_LIMIT: usize = 1000;
const DEFAULT_LIMIT: usize = 100;
/// Rows of one step of the full list; three steps are in memory at a time.
const STEP: usize = 500;
/// Bytes that a step is kept to, once bodies turn out to be large.
const STEP_BYTES: usize = 2 * 1024 * 1024;
/// How long a client may take none of a full list before it is cut off.
const READER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a full list waits for its turn.
const EXPORT_PATIENCE: Duration = Duration::from_secs(5);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why a full list broke off.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the client has gone")]
    Gone,
    #[error("the client took nothing for {} s", READER_PATIENCE.as_secs())]
    Stalled,
}

/// What the query asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Everything,
    Page { limit: usize, cursor: Option<Cursor> },
}

pub(super) fn route(
    app: &Arc<App>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path!("events" / "processed")
        .and(super::get())
        .and(query)
        .and(super::with(app))
        .then(async |query: String, app: Arc<App>| list(&app, &query).await.unwrap_or_else(Reply::into_response))
}

async fn list(app: &Arc<App>, query: &str) -> Result<warp::reply::Response, Problem> {
    match parse(query)? {
        Request::Everything => everything(app).await,
        Request::Page { limit, cursor } => page(app, limit, cursor.as_ref()).await,
    }
}

fn parse(query: &str) -> Result<Request, Problem> {
    let (mut limit, mut cursor) = (None, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let wrong = |detail: String| Problem::InvalidParameter { name: name.to_string(), detail };
        let repeated = match &*name {
            "limit" => {
                let number = range(1..=MAX_LIMIT)(&value).map_err(|why| wrong(format!("is {value:?}: {why}")))?;
                limit.replace(number).is_some()
            }
            "cursor" => {
                let from_link = || wrong("is not a cursor of this list; take it from a Link header as it is".into());
                cursor.replace(Cursor::decode(&value).ok_or_else(from_link)?).is_some()
            }
            _ => return Err(wrong("is unknown; this list takes limit and cursor".into())),
        };
        if repeated {
            return Err(wrong("must be given at most once".into()));
        }
    }
    Ok(match (limit, cursor) {
        (None, None) => Request::Everything,
        (limit, cursor) => Request::Page { limit: limit.unwrap_or(DEFAULT_LIMIT), cursor },
    })
}

async fn page(app: &App, limit: usize, cursor: Option<&Cursor>) -> Result<warp::reply::Response, Problem> {
    let page = app.store.page(Order::Ascending, cursor, limit).await.map_err(Problem::Store)?;
    let mut response = Response::new(join(b"[", &page.events, b"]")).into_response();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    // The alphabet of a cursor is that of URLs.
    let link =
        page.next.map(|next| format!("</events/processed?limit={limit}&cursor={}>; rel=\"next\"", next.encode()));
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

/// Two steps are read before anything is sent, so that a store that is away is still a 503, and a short list is one
/// piece. A failure after that breaks the transfer: a list that looks complete is complete.
async fn everything(app: &Arc<App>) -> Result<warp::reply::Response, Problem> {
    let mut walk = Walk::new(&app.store, Order::Ascending, None, true);
    let (first, _) = walk.next(STEP).await.map_err(Problem::Store)?;
    let (second, _) = walk.next(STEP).await.map_err(Problem::Store)?;
    if second.is_empty() {
        let mut response = Response::new(join(b"[", &first, b"]")).into_response();
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        return Ok(response);
    }
    let exports = Arc::clone(&app.exports);
    let turn = tokio::time::timeout(EXPORT_PATIENCE, exports.acquire_owned()).await;
    // The semaphore is never closed.
    let turn = turn.ok().and_then(Result::ok).ok_or(Problem::TooManyExports)?;
    let (steps, mut streamed) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = stream([first, second], walk, &steps).await {
            log::warn!("a full list broke off: {error}");
            // Nobody to tell when the client has gone as well.
            drop(steps.try_send(Err(error)));
        }
        drop(turn);
    });
    let mut response = warp::reply::stream(poll_fn(move |context| streamed.poll_recv(context))).into_response();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    Ok(response)
}

async fn stream(
    first: [Vec<Bytes>; 2],
    mut walk: Walk,
    steps: &mpsc::Sender<Result<Vec<u8>, ExportError>>,
) -> Result<(), ExportError> {
    let mut opening: &[u8] = b"[";
    for events in first {
        send(steps, join(opening, &events, b"")).await?;
        opening = b",";
    }
    let mut rows = STEP;
    loop {
        let (events, _) = walk.next(rows).await?;
        if events.is_empty() {
            return send(steps, b"]".to_vec()).await;
        }
        let step = join(b",", &events, b"");
        // Large bodies come in fewer rows, so that a step stays within its bytes.
        rows = (STEP_BYTES * events.len() / step.len()).clamp(1, STEP);
        send(steps, step).await?;
    }
}

/// Hands over a step once the client has taken the one before.
async fn send(steps: &mpsc::Sender<Result<Vec<u8>, ExportError>>, step: Vec<u8>) -> Result<(), ExportError> {
    match tokio::time::timeout(READER_PATIENCE, steps.send(Ok(step))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ExportError::Gone),
        Err(_) => Err(ExportError::Stalled),
    }
}

/// The events separated by commas, between `opening` and `closing`.
fn join(opening: &[u8], events: &[Bytes], closing: &[u8]) -> Vec<u8> {
    let size = events.iter().map(|event| event.len() + 1).sum::<usize>();
    let mut joined = Vec::with_capacity(opening.len() + size + closing.len());
    joined.extend_from_slice(opening);
    for (nth, event) in events.iter().enumerate() {
        if nth > 0 {
            joined.push(b',');
        }
        joined.extend_from_slice(event);
    }
    joined.extend_from_slice(closing);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(query: &str) -> String {
        match parse(query) {
            Err(Problem::InvalidParameter { name, detail }) => format!("{name} {detail}"),
            other => panic!("{query}: {other:?}"),
        }
    }

    #[test]
    fn without_parameters_everything_is_asked_for() {
        assert_eq!(parse("").unwrap(), Request::Everything);
        assert_eq!(parse("limit=1000").unwrap(), Request::Page { limit: 1000, cursor: None });
    }

    #[test]
    fn parameters_out_of_range_repeated_or_unknown_are_named() {
        for limit in ["0", "1001", "-1", "ten", ""] {
            assert!(complaint(&format!("limit={limit}")).contains("from 1 to 1000"), "{limit}");
        }
        assert!(complaint("limit=1&limit=1").contains("at most once"));
        assert!(complaint("cursor=forged").contains("Link header"));
        assert!(complaint("userID=u").starts_with("userID is unknown"));
    }

    #[test]
    fn events_are_joined_by_single_commas() {
        let events = ["{}", "{\"a\":1}"].map(Bytes::from);
        assert_eq!(join(b"[", &events, b"]"), b"[{},{\"a\":1}]");
        assert_eq!(join(b"[", &[], b"]"), b"[]");
    }
}
