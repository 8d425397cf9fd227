//! A request's body: its type, its coding, and its limits in size and time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyDataStream, BodyExt};
use hyper::body::Body;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_util::io::{ReaderStream, StreamReader};
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN};

use crate::header;
use crate::memory::{Memory, Share};
use crate::problem::Problem;

/// How much larger than what was sent a body may be once it is unpacked; a bomb is a thousand times larger.
const MAX_RATIO: usize = 100;
/// Below this many unpacked bytes the ratio does not matter.
const RATIO_COUNTS_FROM: usize = 1024 * 1024;
/// Windows of zstd may have 8 MiB as a content coding (RFC 9659); the decoder itself takes sixteen times as much.
const ZSTD_WINDOW_LOG: u32 = 23;
/// RFC 1951, section 2.
const GZIP_WINDOW: usize = 32 * 1024;
/// RFC 7932, section 9.1.
const BROTLI_WINDOW: usize = 16 * 1024 * 1024;
/// What a decoder may keep beside the body that it unpacks, at most.
pub(crate) const WIDEST_WINDOW: usize = BROTLI_WINDOW;
/// Bytes that a decoder gives at a time.
const UNPACKED_PIECE: usize = 16 * 1024;
/// What a decoder takes beside its window, about.
const DECODER: usize = 80 * 1024;
/// What a connection takes while its body is incomplete, about: it reads ahead.
const UNREAD: usize = 16 * 1024;
/// Both, for a body that is allowed.
pub(crate) const BESIDE_A_BODY: usize = DECODER + UNREAD;

/// A body as it comes, unpacked.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Problem>> + Send>>;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes, unpacked.
    pub(crate) size: usize,
    /// From one piece to the next, or for all of a body that is read whole.
    pub(crate) time: Duration,
}

/// The forms in which events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One JSON value.
    Json,
    /// One JSON value a line.
    Ndjson,
}

impl Kind {
    /// What `Content-Type` says; JSON when it is absent, but not from a page in a browser: any page may send such a request
    /// without asking first (the Fetch standard, section 3.2.2), and it is not to post on behalf of who looks at it.
    ///
    /// # Errors
    /// When it is neither of `accepted`.
    pub(crate) fn of(headers: &HeaderMap, accepted: &[Self]) -> Result<Self, Problem> {
        let Some(value) = headers.get(CONTENT_TYPE) else {
            let why = "there is an Origin but no Content-Type; send application/json";
            return if headers.contains_key(ORIGIN) {
                Err(Problem::UnsupportedMediaType(why.into()))
            } else {
                Ok(Self::Json)
            };
        };
        let text = value.to_str().unwrap_or("?");
        let mut parts = header::split(text, ';');
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let kind = match &*essence {
            "application/json" => Some(Self::Json),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/jsonlines"
            | "application/json-lines"
            | "text/x-ndjson"
            | "text/ndjson" => Some(Self::Ndjson),
            other if other.starts_with("application/") && other.ends_with("+json") => Some(Self::Json),
            _ => None,
        };
        let kind = kind.filter(|kind| accepted.contains(kind)).ok_or_else(|| {
            let names: Vec<&str> = accepted.iter().map(|kind| kind.name()).collect();
            Problem::UnsupportedMediaType(format!("the Content-Type is {text:?}; send {}", names.join(" or ")))
        })?;
        let mut charsets = parts.map(header::named).filter(|(name, _)| name.eq_ignore_ascii_case("charset"));
        match charsets.find(|(_, charset)| !is_utf8(charset)) {
            Some((_, charset)) => Err(Problem::UnsupportedMediaType(format!(
                "the charset of the Content-Type is {charset:?}; send JSON in utf-8, which needs no charset"
            ))),
            _ => Ok(kind),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
        }
    }
}

/// Whether every text of a charset is UTF-8.
fn is_utf8(charset: &str) -> bool {
    ["utf-8", "utf8", "us-ascii", "ascii"].iter().any(|name| charset.eq_ignore_ascii_case(name))
}

/// Refuses a body that says that it is too large, before any of it is read.
fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), Problem> {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) { Err(Problem::BodyTooLarge(limit)) } else { Ok(()) }
}

/// The body unpacked, piece by piece. After a problem nothing more comes.
///
/// # Errors
/// When it is too large by its own account, or its coding is not one of ours.
pub(crate) fn pieces<B: Buf, E>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, E>> + Send + 'static,
    limits: Limits,
    memory: &Arc<Memory>,
) -> Result<Pieces, Problem> {
    check_length(headers, limits.size)?;
    let packed = body.map(|piece| piece.map(|mut piece| piece.copy_to_bytes(piece.remaining())).map_err(|_| ()));
    // Several lines are one list (RFC 9110, section 5.3).
    let lines = headers.get_all(CONTENT_ENCODING).iter().map(|coding| coding.to_str().unwrap_or("?").trim());
    let coding = lines.map(str::to_ascii_lowercase).reduce(|all, next| format!("{all}, {next}"));
    let decoder = || {
        let mut share = memory.share();
        share.hold(DECODER).map(|()| share).map_err(Problem::NoRoom)
    };
    Ok(match coding.as_deref() {
        None | Some("identity" | "") => within(limits.size, packed.map_err(|()| Problem::BodyBroken)),
        // Several members or frames one after the other are one body (RFC 1952, section 2.2; RFC 8878, section 3.1).
        Some("gzip" | "x-gzip") => within(
            limits.size,
            unpack(packed, ("gzip", GZIP_WINDOW), decoder()?, |packed| {
                let mut decoder = GzipDecoder::new(packed);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }),
        ),
        Some("zstd") => within(
            limits.size,
            unpack(packed, ("zstd", 1 << ZSTD_WINDOW_LOG), decoder()?, |packed| {
                let mut decoder = ZstdDecoder::with_params(packed, &[DParameter::window_log_max(ZSTD_WINDOW_LOG)]);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }),
        ),
        Some("br") => within(
            limits.size,
            unpack(packed, ("br", BROTLI_WINDOW), decoder()?, |packed| Box::pin(OneBrotli(BrotliDecoder::new(packed)))),
        ),
        Some(other) => {
            return Err(Problem::UnsupportedCoding(format!(
                "the Content-Encoding is {other:?}; send gzip, zstd or br, one of them, or none"
            )));
        }
    })
}

/// The pieces up to a size.
fn within(limit: usize, pieces: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static) -> Pieces {
    let mut size = 0;
    Box::pin(pieces.map(move |piece| {
        let piece = piece?;
        size += piece.len();
        if size > limit { Err(Problem::BodyTooLarge(limit)) } else { Ok(piece) }
    }))
}

/// A brotli stream and nothing behind it: the format has no members, and what the decoder leaves unread must not be
/// dropped in silence.
struct OneBrotli<R>(BrotliDecoder<R>);

impl<R: AsyncBufRead + Unpin> AsyncRead for OneBrotli<R> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (decoder, before) = (&mut self.get_mut().0, into.filled().len());
        ready!(Pin::new(&mut *decoder).poll_read(context, into))?;
        if into.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        let behind = ready!(Pin::new(decoder.get_mut()).poll_fill_buf(context))?;
        Poll::Ready(if behind.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) })
    }
}

type Packed = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;
type Unpacker = Pin<Box<dyn AsyncRead + Send>>;

/// Unpacks. A decoder keeps the last bytes that it gave, up to its window, which takes a `share` of the memory.
fn unpack(
    packed: impl Stream<Item = Result<Bytes, ()>> + Send + 'static,
    (coding, window): (&'static str, usize),
    mut share: Share,
    unpacker: impl FnOnce(StreamReader<Packed, Bytes>) -> Unpacker,
) -> impl Stream<Item = Result<Bytes, Problem>> + Send + 'static {
    let (sent, mut got) = (Arc::new(AtomicUsize::new(0)), 0);
    let counted = Arc::clone(&sent);
    let packed: Packed = Box::pin(packed.map(move |piece| match piece {
        Ok(piece) => {
            counted.fetch_add(piece.len(), Ordering::Relaxed);
            Ok(piece)
        }
        // No decoder gives these kinds of its own.
        Err(()) => Err(io::ErrorKind::ConnectionAborted.into()),
    }));
    let unpacked = ReaderStream::with_capacity(unpacker(StreamReader::new(packed)), UNPACKED_PIECE);
    unpacked.map(move |piece| {
        let piece = piece.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionAborted => Problem::BodyBroken,
            _ => Problem::BadCoding(coding),
        })?;
        got += piece.len();
        share.hold(DECODER + got.min(window)).map_err(Problem::NoRoom)?;
        let bomb = got > RATIO_COUNTS_FROM && got / MAX_RATIO > sent.load(Ordering::Relaxed);
        if bomb { Err(Problem::RatioTooLarge(MAX_RATIO)) } else { Ok(piece) }
    })
}

/// Reads the whole body of a request, with its share of the memory, to be kept for as long as the body is.
///
/// # Errors
/// When it is too large or too slow, breaks off, finds no room, or is not what its coding says.
pub(crate) async fn read<B>(
    headers: &HeaderMap,
    mut body: B,
    limits: Limits,
    memory: &Arc<Memory>,
) -> Result<(Bytes, Share), Problem>
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    check_length(headers, limits.size)?;
    let deadline = Instant::now() + limits.time;
    // Most bodies are not packed and come in one piece, which is looked for before anything is built for the others.
    let mut first = None;
    if !headers.contains_key(CONTENT_ENCODING) && !body.is_end_stream() {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| Problem::BodyTooSlow(limits.time))?;
        let frame = frame.transpose().map_err(|_| Problem::BodyBroken)?;
        let piece = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
        if body.is_end_stream() {
            let mut share = memory.share();
            share.hold(piece.len()).map_err(Problem::NoRoom)?;
            return if piece.len() > limits.size {
                Err(Problem::BodyTooLarge(limits.size))
            } else {
                Ok((piece, share))
            };
        }
        first = Some(Ok(piece));
    }
    let body = stream::iter(first).chain(BodyDataStream::new(body));
    Box::pin(whole(pieces(headers, body, limits, memory)?, limits, deadline, memory)).await
}

/// Puts the pieces together, if all are there by `deadline`.
pub(crate) async fn whole(
    mut pieces: Pieces,
    limits: Limits,
    deadline: Instant,
    memory: &Arc<Memory>,
) -> Result<(Bytes, Share), Problem> {
    let mut share = memory.share();
    let whole = async {
        // Most bodies come in one piece, which then need not be copied. Further ones are, since a piece of a few bytes
        // holds the connection's whole read buffer.
        let first = pieces.next().await.transpose()?.unwrap_or_default();
        share.hold(first.len()).map_err(Problem::NoRoom)?;
        let Some(second) = pieces.next().await.transpose()? else { return Ok(first) };
        let (mut all, mut next) = (BytesMut::from(first), Some(second));
        while let Some(piece) = next {
            share.hold(all.len() + piece.len() + UNREAD).map_err(Problem::NoRoom)?;
            all.extend_from_slice(&piece);
            next = pieces.next().await.transpose()?;
        }
        share.hold(all.len()).map_err(Problem::NoRoom)?;
        Ok(all.freeze())
    };
    let whole = timeout_at(deadline, whole).await;
    whole.unwrap_or(Err(Problem::BodyTooSlow(limits.time))).map(|body| (body, share))
}
