//! `GET /events/processed`: the list of what has been processed. Whole and streamed without `limit` and `cursor`, in
//! pages with one of them.

use std::sync::Arc;
use std::time::Duration;

use common::store::{Cursor, Page, Query, ReadAhead, StoreError, Walk};
use futures::stream::poll_fn;
use tokio::sync::mpsc;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LINK, VARY};
use warp::http::{HeaderMap, Response};
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::format::{Format, Writer};
use crate::problem::Problem;
use crate::query::{DEFAULT_LIMIT, Parameters, page_query};
use crate::request_id::current;

/// The parameters of a list.
pub(super) const PARAMETERS: [&str; 7] = ["userId", "eventType", "from", "to", "order", "limit", "cursor"];
/// Rows of a full list that are read before it has its turn: whoever waits for one holds them.
const FIRST_STEP: usize = 50;
/// Rows of one step of the full list, at most; half a dozen steps are in memory at a time.
const STEP: usize = 500;
/// Bytes of events that a step is kept to. With what is stored beside them they come in the 64 KiB that Redis writes to a
/// connection before it executes the next step.
const STEP_BYTES: usize = 48 * 1024;
/// How long a client may take none of a full list before it is cut off.
const READER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a full list waits for its turn.
const EXPORT_PATIENCE: Duration = Duration::from_secs(5);

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

/// What a list is asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) query: Query,
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<Cursor>,
}

impl Request {
    /// Reads the parameters of a list.
    ///
    /// # Errors
    /// The first that is wrong.
    pub(super) fn parse(app: &App, query: &str) -> Result<Self, Problem> {
        let parameters = Parameters::parse(query, &PARAMETERS, &["eventType"])?;
        let query = parameters.query(&app.types)?;
        Ok(Self { limit: parameters.limit()?, cursor: parameters.cursor(&query)?, query })
    }

    /// Reads one page of it, with the rows that a page has.
    ///
    /// # Errors
    /// When the store has no answer.
    pub(super) async fn page(&self, app: &App) -> Result<(Page, usize), Problem> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        let page = app.store.page(&self.query, self.cursor.as_ref(), limit).await.map_err(Problem::Store)?;
        Ok((page, limit))
    }

    /// The `Link` header (RFC 8288) of such a page at `path`.
    pub(super) fn links(&self, path: &str, page: &Page, limit: usize) -> Option<HeaderValue> {
        let link = |cursor, rel| format!("<{path}?{}>; rel=\"{rel}\"", page_query(&self.query, limit, cursor));
        let next = page.next.as_ref().map(|next| link(Some(next), "next") + ", ").unwrap_or_default();
        // Percent-encoded, so always visible ASCII.
        HeaderValue::try_from(next + &link(None, "first")).ok()
    }
}

pub(super) fn route(
    app: &Arc<App>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    warp::path!("events" / "processed")
        .and(super::get())
        .and(super::query())
        .and(warp::header::headers_cloned())
        .and(super::with(app))
        .then(async |query: String, headers, app: Arc<App>| {
            list(&app, &query, &headers).await.unwrap_or_else(Reply::into_response)
        })
}

async fn list(app: &Arc<App>, query: &str, headers: &HeaderMap) -> Result<warp::reply::Response, Problem> {
    let (request, format) = (Request::parse(app, query)?, Format::of(headers)?);
    let mut response = match (request.limit, &request.cursor) {
        (None, None) => everything(app, &request.query, format).await?,
        _ => page(app, &request, format).await?,
    };
    let headers = response.headers_mut();
    if let Some(before) = app.trimmed() {
        headers.insert("trimmed-before", before);
    }
    headers.insert(CONTENT_TYPE, format.content_type());
    headers.append(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

async fn page(app: &App, request: &Request, format: Format) -> Result<warp::reply::Response, Problem> {
    let (page, limit) = request.page(app).await?;
    let mut response = Response::new(Writer::whole(format, &page.events)).into_response();
    if let Some(links) = request.links("/events/processed", &page, limit) {
        response.headers_mut().insert(LINK, links);
    }
    Ok(response)
}

/// The first steps are read before anything is sent, so that a store that is away is still a 503, and a short list is one
/// piece. A failure after that breaks the transfer: a list that looks complete is complete.
async fn everything(app: &Arc<App>, query: &Query, format: Format) -> Result<warp::reply::Response, Problem> {
    let mut walk = Walk::new(&app.store, query, None, true);
    let first = walk.step(FIRST_STEP).await.map_err(Problem::Store)?.unwrap_or_default();
    let whole = |events: &[_]| Ok(Response::new(Writer::whole(format, events)).into_response());
    if walk.is_at_end() {
        return whole(&first);
    }
    let exports = Arc::clone(&app.exports);
    let turn = tokio::time::timeout(EXPORT_PATIENCE, exports.acquire_owned()).await;
    // The semaphore is never closed.
    let turn = turn.ok().and_then(Result::ok).ok_or(Problem::TooManyExports)?;
    let mut list = ReadAhead::from(walk);
    let Some(second) = list
        .step(rows_of_step(first.len(), first.iter().map(bytes::Bytes::len).sum()))
        .await
        .map_err(Problem::Store)?
    else {
        return whole(&first);
    };
    let (steps, mut streamed) = mpsc::channel(1);
    let request_id = current();
    tokio::spawn(async move {
        let begun = [first, second].concat();
        if let Err(error) = stream(begun, list, Writer::new(format), &steps).await {
            log::warn!(requestId = request_id; "a full list broke off: {error}");
            // Nobody to tell when the client has gone as well.
            drop(steps.try_send(Err(error)));
        }
        drop(turn);
    });
    Ok(warp::reply::stream(poll_fn(move |context| streamed.poll_recv(context))).into_response())
}

/// How many rows fit, if so many events have so many bytes; with no event to go by, few.
fn rows_of_step(events: usize, bytes: usize) -> usize {
    (STEP_BYTES * events).checked_div(bytes).unwrap_or(FIRST_STEP).clamp(1, STEP)
}

async fn stream(
    begun: Vec<bytes::Bytes>,
    mut list: ReadAhead,
    mut writer: Writer,
    steps: &mpsc::Sender<Result<Vec<u8>, ExportError>>,
) -> Result<(), ExportError> {
    let (mut next, mut rows) = (Some(begun), FIRST_STEP);
    while let Some(events) = next {
        if !events.is_empty() {
            let step = writer.some(&events);
            rows = rows_of_step(events.len(), step.len());
            send(steps, step).await?;
        } else if steps.is_closed() {
            return Err(ExportError::Gone);
        }
        next = list.step(rows).await?;
    }
    send(steps, writer.end()).await
}

/// Hands over a step once the client has taken the one before.
async fn send(steps: &mpsc::Sender<Result<Vec<u8>, ExportError>>, step: Vec<u8>) -> Result<(), ExportError> {
    match tokio::time::timeout(READER_PATIENCE, steps.send(Ok(step))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ExportError::Gone),
        Err(_) => Err(ExportError::Stalled),
    }
}
