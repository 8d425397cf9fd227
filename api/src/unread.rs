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
pub(crate) struct Guarded {
    body: Option<Incoming>,
    /// Whether the client waits to be told to send; who begins to read tells it.
    is_held_back: bool,
}

impl Guarded {
    /// The same request.
    pub(crate) fn request(request: Request<Incoming>) -> Request<Self> {
        let expected = request.headers().get(EXPECT);
        // Any other expectation, hyper does not wait for.
        let is_held_back = expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        request.map(|body| Self { body: Some(body), is_held_back })
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_held_back = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let left = self.body.take().filter(|body| !body.is_end_stream() && !self.is_held_back);
        // Outside of the runtime the process is ending.
        if let (Some(left), Ok(runtime)) = (left, Handle::try_current()) {
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
