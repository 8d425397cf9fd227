//! What of a request's body nobody has read when the request is answered.
//!
//! A connection that is closed while its client still sends is reset, and the client may never see the reply. So what is
//! left of a body is read and thrown away, for a moment.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use tokio::runtime::Handle;

/// Bytes of a body that are read for nothing, at most.
const MOST: usize = 16 * 1024 * 1024;
/// How long that may take.
const TIME: Duration = Duration::from_secs(2);

/// A request's body. What is left of it when it is dropped is thrown away.
pub(crate) struct Unread(Option<Incoming>);

impl Unread {
    /// The same request.
    pub(crate) fn guard(request: Request<Incoming>) -> Request<Guarded> {
        // Who asks whether to send has sent nothing yet, and would be told to.
        let asks = request.headers().contains_key(EXPECT);
        request.map(|body| if asks { Guarded::Left(body) } else { Guarded::Right(Self(Some(body))) })
    }
}

/// A request's body, guarded where that is wanted.
pub(crate) type Guarded = http_body_util::Either<Incoming, Unread>;

impl Body for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // Outside of the runtime the process is ending.
        if let (Some(left), Ok(runtime)) = (self.0.take().filter(|body| !body.is_end_stream()), Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(TIME, throw_away(left)));
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut left = MOST;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            break;
        }
    }
}
