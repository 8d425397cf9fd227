//! Replies that end where the connection ends: those of unknown length to HTTP/1.0, as nginx speaks by default. A client can
//! tell one that broke off from a whole one only if the connection is reset, and not closed in order (RFC 9112, section 8).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use hyper::{Method, Request, Response, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;

/// Whether a reply is being sent whose end is that of the connection, and which is not whole yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unfinished(Arc<AtomicBool>);

impl Unfinished {
    /// What the reply to this request is to be given to.
    pub(crate) fn of<B>(&self, request: &Request<B>) -> Watch {
        // hyper does not read the body of a reply to HEAD.
        let watched = request.version() == Version::HTTP_10 && request.method() != Method::HEAD;
        Watch(watched.then(|| self.clone()))
    }

    fn set(&self, unfinished: bool) {
        self.0.store(unfinished, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Watches over a reply, if its end is that of the connection.
pub(crate) struct Watch(Option<Unfinished>);

impl Watch {
    pub(crate) fn over<B: Body>(self, response: Response<B>) -> Response<Watched<B>> {
        response.map(|body| {
            let unfinished = self.0.filter(|_| body.size_hint().exact().is_none());
            unfinished.iter().for_each(|unfinished| unfinished.set(true));
            Watched { body, unfinished }
        })
    }
}

/// A body that says when it is whole.
pub(crate) struct Watched<B> {
    body: B,
    unfinished: Option<Unfinished>,
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || (frame.as_ref().is_some_and(Result::is_ok) && self.body.is_end_stream()) {
            self.unfinished.take().into_iter().for_each(|unfinished| unfinished.set(false));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that is reset however it ends while a reply is unfinished, also when the process is killed.
pub(crate) struct Connection {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    unfinished: Unfinished,
    /// What the socket was told last.
    resets: bool,
}

impl Connection {
    pub(crate) fn new(stream: TimeoutStream<TcpStream>) -> (Self, Unfinished) {
        let unfinished = Unfinished::default();
        (Self { stream: Box::pin(stream), unfinished: unfinished.clone(), resets: false }, unfinished)
    }

    /// Tells the socket how it is to end. Every piece of a reply, and its end, pass here.
    fn settle(&mut self) -> io::Result<()> {
        let unfinished = self.unfinished.get();
        if unfinished != self.resets {
            let socket = self.stream.as_ref().get_ref().get_ref();
            #[allow(deprecated, reason = "none at all, the default, never blocks")]
            if unfinished { socket.set_zero_linger() } else { socket.set_linger(None) }?;
            self.resets = unfinished;
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.settle()?;
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.settle()?;
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settle()?;
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settle()?;
        // That would be the end in order which there is not to be.
        if self.resets { Poll::Ready(Ok(())) } else { self.stream.as_mut().poll_shutdown(cx) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures::stream::{self, StreamExt};
    use http_body_util::StreamBody;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const PIECES: usize = 100;

    /// What a client of this version gets of a list that breaks off, or of a whole one, until the connection ends.
    async fn read(method: &str, version: &str, breaks_off: bool) -> (String, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (connection, unfinished) = Connection::new(TimeoutStream::new(listener.accept().await.unwrap().0));
        let service = service_fn(move |request| {
            let watch = unfinished.of(&request);
            let sent = (0..PIECES).map(|_| Ok(Bytes::from_static(&[b'x'; 1000])));
            let end = breaks_off.then(|| Err(io::Error::other("the store is away")));
            let pieces = stream::iter(sent.chain(end)).map(|piece| piece.map(Frame::data));
            async move { Ok::<_, std::convert::Infallible>(watch.over(Response::new(StreamBody::new(pieces)))) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
        let request = format!("{method} / {version}\r\nHost: x\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut text)).await.unwrap();
        (String::from_utf8(text).unwrap(), ended.map(drop))
    }

    #[tokio::test]
    async fn a_reply_that_breaks_off_can_be_told_from_a_whole_one_by_a_client_of_http_1_0() {
        let (text, ended) = read("GET", "HTTP/1.0", true).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{text}");
        let (text, ended) = read("GET", "HTTP/1.0", false).await;
        assert!(ended.is_ok() && text.ends_with(&"x".repeat(1000 * PIECES)), "{ended:?}");
    }

    #[tokio::test]
    async fn no_other_reply_ends_with_a_reset() {
        let (text, ended) = read("HEAD", "HTTP/1.0", true).await;
        assert!(ended.is_ok() && text.ends_with("\r\n\r\n"), "{ended:?} {text}");
        // The last chunk tells a whole one.
        for breaks_off in [true, false] {
            let (text, ended) = read("GET", "HTTP/1.1", breaks_off).await;
            assert!(ended.is_ok() && text.ends_with("\r\n0\r\n\r\n") != breaks_off, "{ended:?}");
        }
    }
}
