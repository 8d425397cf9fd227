//! `GET /events/processed`: the list of what has been processed. Whole and streamed without `limit` and `cursor`, in
//! pages with one of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::store::{Cursor, Page, Query, ReadAhead, StoreError, Walk};
use futures::stream::{Stream, try_unfold};
use log::Level;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use warp::Reply;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LINK, VARY};
use warp::http::{HeaderMap, Method, Response};

use crate::App;
use crate::format::{Format, Writer};
use crate::keys::Shown;
use crate::problem::Problem;
use crate::query::{DEFAULT_LIMIT, Parameters, page_query, wrong};
use crate::request_id::current;

/// The parameters of a list; the last one only where it may come as CSV.
const PARAMETERS: [&str; 8] = ["userId", "eventType", "from", "to", "order", "limit", "cursor", "raw"];
/// A full list of so many rows needs no turn.
const SHORT: usize = 50;
/// How long a client may take none of a full list before it is cut off.
const READER_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second, before compression, that a reader takes of a full list to keep its turn while somebody waits for it.
const PACE: u64 = 64 * 1024;
/// How far a reader may fall behind that pace: buffers in between make it take much at once.
const SLACK: Duration = Duration::from_secs(10);
/// How often it is looked at, while it takes nothing, whether somebody waits.
const LOOK: Duration = Duration::from_secs(1);
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
    #[error("others waited, and the client took less than {} KiB/s", PACE / 1024)]
    TooSlow,
    #[error("the key that opened it is not in force any more")]
    Shut,
    #[error("the list broke off")]
    BrokeOff,
}

/// A part of a full list's body.
enum Piece {
    Some(Vec<u8>),
    /// Nothing is missing once the client has this.
    Last(Vec<u8>),
}

/// What a list is asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) query: Query,
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<Cursor>,
    /// Whether cells of CSV are to be as they are stored, if it says.
    raw: Option<bool>,
}

impl Request {
    /// Reads the parameters of a list that comes as JSON.
    ///
    /// # Errors
    /// The first that is wrong.
    pub(super) fn parse(app: &App, query: &str) -> Result<Self, Problem> {
        Self::parse_known(app, query, &PARAMETERS[..PARAMETERS.len() - 1])
    }

    /// Reads the parameters of a list that comes in the form that `Accept` asks for, and which form that is.
    ///
    /// # Errors
    /// The first that is wrong.
    fn parse_with_form(app: &App, query: &str, headers: &HeaderMap) -> Result<(Self, Format), Problem> {
        let (request, format) = (Self::parse_known(app, query, &PARAMETERS)?, Format::of(headers)?);
        match (request.raw, format) {
            (Some(raw), Format::Csv) => Ok((request, if raw { Format::RawCsv } else { Format::Csv })),
            (Some(raw), _) => {
                Err(wrong("raw", &raw.to_string(), "is for CSV only; leave it out, or send Accept: text/csv"))
            }
            (None, format) => Ok((request, format)),
        }
    }

    fn parse_known(app: &App, query: &str, known: &[&str]) -> Result<Self, Problem> {
        let parameters = Parameters::parse(query, known, &["eventType"])?;
        let query = parameters.query(&app.types)?;
        Ok(Self { limit: parameters.limit()?, cursor: parameters.cursor(&query)?, raw: parameters.flag("raw")?, query })
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

    /// The `Link` header (RFC 8288) of such a page. Its targets are relative to the request, and so right behind a proxy that
    /// has the API under another path.
    pub(super) fn links(&self, page: &Page, limit: usize) -> Option<HeaderValue> {
        let raw = self.raw.map(|raw| format!("&raw={raw}")).unwrap_or_default();
        let link = |cursor, rel| format!("<?{}{raw}>; rel=\"{rel}\"", page_query(&self.query, limit, cursor));
        let next = page.next.as_ref().map(|next| link(Some(next), "next") + ", ").unwrap_or_default();
        // Percent-encoded, so always visible ASCII.
        HeaderValue::try_from(next + &link(None, "first")).ok()
    }
}

pub(super) async fn list(
    app: &Arc<App>,
    method: &Method,
    query: &str,
    headers: &HeaderMap,
) -> Result<warp::reply::Response, Problem> {
    let (request, format) = Request::parse_with_form(app, query, headers)?;
    let mut response = match (request.limit, &request.cursor) {
        (None, None) => everything(app, method, &request.query, headers, format).await?,
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
    let mut response = whole(app, Writer::whole(format, &page.events))?;
    if let Some(links) = request.links(&page, limit) {
        response.headers_mut().insert(LINK, links);
    }
    Ok(response)
}

/// A reply in one piece.
pub(super) fn whole(app: &App, body: Vec<u8>) -> Result<warp::reply::Response, Problem> {
    app.memory.body(body).map(|body| Response::new(body).into_response()).map_err(Problem::NoRoomForReply)
}

/// A short list is one piece. Of a longer one the first step is read before anything is sent, so that a store that is away
/// is still a 503. A failure after that breaks the transfer: a list that looks complete is complete.
async fn everything(
    app: &Arc<App>,
    method: &Method,
    query: &Query,
    headers: &HeaderMap,
    format: Format,
) -> Result<warp::reply::Response, Problem> {
    let short = app.store.page(query, None, SHORT).await.map_err(Problem::Store)?;
    if short.next.is_none() {
        return whole(app, Writer::whole(format, &short.events));
    }
    drop(short);
    if method == Method::HEAD {
        return Ok(warp::reply().into_response());
    }
    let turn = turn(app).await?;
    let mut list = ReadAhead::from(Walk::new(&app.store, query, None, true).await.map_err(Problem::Store)?);
    let first = list.step().await.map_err(Problem::Store)?;
    let (pieces, written) = mpsc::channel(1);
    let (app, key) = (Arc::clone(app), Shown::in_headers(headers));
    let mut reader = Reader { pieces, key, behind: Duration::ZERO, app };
    let request_id = current();
    tokio::spawn(async move {
        if let Err(error) = stream(first, list, Writer::new(format), &mut reader).await {
            let level = if matches!(error, ExportError::Gone) { Level::Debug } else { Level::Warn };
            log::log!(level, requestId = request_id; "a full list broke off: {error}");
        }
        drop(turn);
    });
    Ok(warp::reply::stream(body(written)).into_response())
}

/// Waits for a turn, holding no more than a few rows.
async fn turn(app: &App) -> Result<OwnedSemaphorePermit, Problem> {
    let _waiting = Arc::clone(&app.waiting);
    let turn = tokio::time::timeout(EXPORT_PATIENCE, Arc::clone(&app.exports).acquire_owned()).await;
    // The semaphore is never closed.
    turn.ok().and_then(Result::ok).ok_or(Problem::TooManyExports)
}

/// The body of these pieces. Whatever ends them before the last one, a panic as well, is an error, by which hyper breaks
/// the transfer off: the forms of lines could not be told from a whole list otherwise.
fn body(pieces: mpsc::Receiver<Piece>) -> impl Stream<Item = Result<Vec<u8>, ExportError>> {
    try_unfold(Some(pieces), async |pieces| {
        let Some(mut pieces) = pieces else { return Ok(None) };
        match pieces.recv().await.ok_or(ExportError::BrokeOff)? {
            Piece::Some(bytes) => Ok(Some((bytes, Some(pieces)))),
            Piece::Last(bytes) => Ok(Some((bytes, None))),
        }
    })
}

async fn stream(
    first: Option<Vec<Bytes>>,
    mut list: ReadAhead,
    mut writer: Writer,
    reader: &mut Reader,
) -> Result<(), ExportError> {
    let mut next = first;
    while let Some(events) = next {
        if !events.is_empty() {
            let step = writer.some(&events);
            reader.take(step.len(), Piece::Some(step)).await?;
        } else if reader.pieces.is_closed() {
            return Err(ExportError::Gone);
        }
        next = list.step().await?;
    }
    reader.take(0, Piece::Last(writer.end())).await
}

/// Who takes a full list.
struct Reader {
    pieces: mpsc::Sender<Piece>,
    key: Shown,
    /// How much longer it has made us wait than one that keeps the pace would have, lately.
    behind: Duration,
    app: Arc<App>,
}

impl Reader {
    /// Hands over a piece of so many bytes once the client has taken the one before.
    async fn take(&mut self, bytes: usize, piece: Piece) -> Result<(), ExportError> {
        let begun = Instant::now();
        let slot = loop {
            if !self.app.may_read(&self.key) {
                return Err(ExportError::Shut);
            }
            match tokio::time::timeout(LOOK, self.pieces.reserve()).await {
                Ok(slot) => break slot.map_err(|_| ExportError::Gone)?,
                Err(_) if begun.elapsed() >= READER_PATIENCE => return Err(ExportError::Stalled),
                Err(_) if self.behind + begun.elapsed() > SLACK && self.is_waited_for() => {
                    return Err(ExportError::TooSlow);
                }
                Err(_) => {}
            }
        };
        slot.send(piece);
        let paid = Duration::from_millis(bytes as u64 * 1000 / PACE);
        self.behind = (self.behind + begun.elapsed()).saturating_sub(paid);
        Ok(())
    }

    fn is_waited_for(&self) -> bool {
        Arc::strong_count(&self.app.waiting) > 1
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::routes::testing::{self, KEY};

    #[test]
    fn links_are_relative_to_the_request_and_say_all_that_it_said() {
        let request = Request { query: Query::default(), limit: Some(5), cursor: None, raw: Some(true) };
        let page = Page { events: Vec::new(), next: None };
        assert_eq!(request.links(&page, 5).unwrap(), "<?limit=5&raw=true>; rel=\"first\"");
        let request = Request { raw: None, ..request };
        assert_eq!(request.links(&page, 5).unwrap(), "<?limit=5>; rel=\"first\"");
    }

    #[tokio::test]
    async fn a_list_ends_when_its_key_is_taken_away_and_not_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let app = testing::app(&file, KEY);
        let (pieces, mut written) = mpsc::channel(1);
        let key = Shown::in_headers(&testing::headers_with(KEY));
        let mut reader = Reader { pieces, key, behind: Duration::ZERO, app };
        for _ in 0..5 {
            reader.take(1, Piece::Some(vec![b'x'])).await.unwrap();
            written.recv().await.unwrap();
        }
        testing::put_in_force(&file, "another-key-of-a-reader");
        let ended = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                if let Err(error) = reader.take(1, Piece::Some(vec![b'x'])).await {
                    return error;
                }
                written.recv().await.unwrap();
                tokio::time::sleep(testing::SOON).await;
            }
        });
        let ended = ended.await.expect("an end");
        assert!(matches!(ended, ExportError::Shut), "{ended}");
    }

    #[tokio::test]
    async fn a_list_that_ends_before_its_last_piece_is_broken_and_not_whole() {
        for (pieces, whole) in [
            (vec![Piece::Some(b"a".to_vec()), Piece::Last(b"b".to_vec())], true),
            (vec![Piece::Last(Vec::new())], true),
            (vec![Piece::Some(b"a".to_vec())], false),
            (vec![], false),
        ] {
            let (sender, receiver) = mpsc::channel(2);
            for piece in pieces {
                sender.send(piece).await.unwrap();
            }
            drop(sender);
            let read: Result<Vec<Vec<u8>>, ExportError> = body(receiver).try_collect().await;
            assert_eq!(read.is_ok(), whole, "{read:?}");
        }
    }
}
