//! Compression of replies.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::ACCEPT_ENCODING;
use hyper::{HeaderMap, Request, Response};
use tower_http::CompressionLevel;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::compression::{Compression, CompressionBody};
use tower_service::Service;

/// Replies below this many bytes are not worth compressing.
const SMALLEST: u16 = 1024;

/// The reply in the coding that its request prefers, if it takes any and the reply is of some size. A stream of events stays
/// as it is: its frames must not be held back.
pub(crate) async fn compressed<B: Body<Data = Bytes> + Default>(
    request: &HeaderMap,
    reply: Response<B>,
) -> Response<CompressionBody<B>> {
    let mut accepted = Request::new(());
    for coding in request.get_all(ACCEPT_ENCODING) {
        accepted.headers_mut().append(ACCEPT_ENCODING, coding.clone());
    }
    let worth_it = SizeAbove::new(SMALLEST).and(NotForContentType::const_new("text/event-stream"));
    let compression = Compression::new(Made(ready(Ok(reply)))).quality(CompressionLevel::Fastest);
    let Ok(reply) = compression.compress_when(worth_it).call(accepted).await;
    reply
}

/// A service that has its reply already.
struct Made<B>(Ready<Result<Response<B>, Infallible>>);

impl<B: Body + Default> Service<Request<()>> for Made<B> {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        // It is called once.
        std::mem::replace(&mut self.0, ready(Ok(Response::default())))
    }
}
