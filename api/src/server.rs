//! Connections: accepted up to a limit, given time-outs, and drained within a deadline.
//!
//! warp's own server has no header time-out, no connection limit and no deadline for its drain, so hyper serves the
//! connections here. Every request passes [`reply_to`]: its [`Route`] is found, then all else is read off that.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::shutdown::Shutdown;
use http_body_util::Either;
use hyper::body::Body;
use hyper::header::{CACHE_CONTROL, CONNECTION, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use warp::Reply;

use crate::compress::compressed;
use crate::keys::Caller;
use crate::problem::Problem;
use crate::rate_limit::{RateLimit, Standing};
use crate::route::Route;
use crate::throttle::Throttle;
use crate::traces::RequestSpan;
use crate::unfinished::Connection;
use crate::unread::Guarded;
use crate::{App, cors, request_id, routes, traces};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's line and headers in all, in bytes.
const MAX_HEADERS: usize = 32 * 1024;
/// What hyper buffers of one request's head: more than [`MAX_HEADERS`], so that the reply to too many is mostly ours, but
/// not much more, since every connection may hold so much. Beyond it hyper answers a bare 431.
const MAX_HEAD: usize = 48 * 1024;

/// How long a client may take nothing of a reply before its connection is cut. Shorter than the default of
/// `SHUTDOWN_TIMEOUT`, so that nobody who reads nothing makes a stop unclean.
const WRITE_PATIENCE: Duration = Duration::from_secs(15);
/// How often the rate limit forgets clients that are quiet.
const FORGET_PERIOD: Duration = Duration::from_secs(60);
/// Connections beyond the limit that are answered at a time, and for how long each: enough to tell probes how the
/// process is and all others to come back.
const RESERVE: usize = 64;
const RESERVE_TIME: Duration = Duration::from_secs(1);
/// What clients can cause at will is logged no more often than this.
const SAY_PERIOD: Duration = Duration::from_secs(60);
/// After a failed accept that is not the client's doing: file descriptors are used up, mostly, and others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// Everything.
    Public,
    /// It is one more than the limit: what watches over the process is answered, all else is told to come back.
    Reserve,
    /// It came in by `API_ADMIN_PORT`: there is only what watches over the process.
    Admin,
}

/// What all connections of a listener share.
struct Server {
    app: Arc<App>,
    rate_limit: Option<RateLimit>,
    /// Of the line about requests without a key that is good for them.
    said_refused: Throttle,
}

impl Server {
    fn new(app: Arc<App>, rate_limit: Option<RateLimit>) -> Arc<Self> {
        Arc::new(Self { app, rate_limit, said_refused: Throttle::new(SAY_PERIOD) })
    }
}

/// Serves until `shutdown` is cancelled, then lets the requests in flight finish. Gives the number of connections that
/// were left at the deadline.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: Shutdown) -> usize {
    let rate_limit = RateLimit::new(&app.config.rate_limit);
    let server = Server::new(app, rate_limit);
    let (app, graceful) = (&server.app, GracefulShutdown::new());
    let doors = Doors::new(app);
    let mut forget = tokio::time::interval(FORGET_PERIOD);
    loop {
        let (stream, peer, entry, permit) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = forget.tick() => {
                server.rate_limit.iter().for_each(RateLimit::forget_quiet);
                continue;
            }
            accepted = doors.accept(&listener) => accepted,
        };
        let idle = if entry == Entry::Reserve { RESERVE_TIME } else { app.config.idle_timeout };
        let connection = graceful.watch(server.connection(stream, peer, entry, idle));
        tokio::spawn(async move {
            let ended = match entry {
                // However slowly it sends or reads: others wait for the place.
                Entry::Reserve => tokio::time::timeout(RESERVE_TIME, connection).await.unwrap_or(Ok(())),
                Entry::Public | Entry::Admin => connection.await,
            };
            if let Err(error) = ended {
                log::debug!("connection ended: {error}");
            }
            drop(permit);
        });
    }
    drop(listener);
    let open = graceful.count();
    log::info!("draining {open} connections, for at most {}", humantime::format_duration(app.config.shutdown_timeout));
    let drained = tokio::time::timeout(app.config.shutdown_timeout, graceful.shutdown()).await;
    if drained.is_ok() { 0 } else { app.open_connections() }
}

/// Serves `API_ADMIN_PORT`, also while the process drains, until dropped.
pub async fn serve_admin(app: Arc<App>, listener: TcpListener) {
    let server = Server::new(app, None);
    let places = Arc::new(Semaphore::new(RESERVE));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = accept(&listener).await;
        let connection = server.connection(stream, peer, Entry::Admin, server.app.config.idle_timeout);
        tokio::spawn(async move {
            // The error is that of whoever watches.
            drop(connection.await);
            drop(permit);
        });
    }
}

/// Places for connections.
struct Doors {
    app: Arc<App>,
    reserve: Arc<Semaphore>,
    said_full: Throttle,
}

impl Doors {
    fn new(app: &Arc<App>) -> Self {
        Self { app: Arc::clone(app), reserve: Arc::new(Semaphore::new(RESERVE)), said_full: Throttle::new(SAY_PERIOD) }
    }

    /// The next connection, with its place. With no place left, none is accepted.
    async fn accept(&self, listener: &TcpListener) -> (TimeoutStream<TcpStream>, IpAddr, Entry, OwnedSemaphorePermit) {
        let (connections, reserve) = (Arc::clone(&self.app.connections), Arc::clone(&self.reserve));
        let (entry, permit) = tokio::select! {
            biased;
            Ok(permit) = connections.acquire_owned() => (Entry::Public, permit),
            Ok(permit) = reserve.acquire_owned() => (Entry::Reserve, permit),
            // The semaphores are never closed.
            else => std::future::pending().await,
        };
        let (stream, peer) = accept(listener).await;
        if entry == Entry::Public {
            return (stream, peer, entry, permit);
        }
        // One may have ended while nobody came.
        if let Ok(permit) = Arc::clone(&self.app.connections).try_acquire_owned() {
            return (stream, peer, Entry::Public, permit);
        }
        self.say_full();
        (stream, peer, entry, permit)
    }

    fn say_full(&self) {
        self.app.metrics.over_limit();
        if let Some(more) = self.said_full.pass() {
            let limit = self.app.config.max_connections;
            log::warn!(
                "all {limit} connections (HTTP_MAX_CONNECTIONS) are in use; further clients are told to come back, probes \
                 are answered ({more} more since the last such line)"
            );
        }
    }
}

/// The next client. Errors are waited out: those of a client that has gone at once, others for a moment.
async fn accept(listener: &TcpListener) -> (TimeoutStream<TcpStream>, IpAddr) {
    let mut said = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // The client may have gone already; reading says so.
                drop(stream.set_nodelay(true));
                let mut stream = TimeoutStream::new(stream);
                // For reads hyper has its own, which leaves those alone who wait for a reply.
                stream.set_write_timeout(Some(WRITE_PATIENCE));
                return (stream, peer.ip());
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    log::warn!("can't accept a connection: {error}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Server {
    fn connection(
        self: &Arc<Self>,
        stream: TimeoutStream<TcpStream>,
        peer: IpAddr,
        entry: Entry,
        idle: Duration,
    ) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + use<> {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(MAX_HEAD);
        let (stream, unfinished) = Connection::new(stream);
        let server = Arc::clone(self);
        let service = service_fn(move |request| {
            let (server, watch) = (Arc::clone(&server), unfinished.of(&request));
            async move {
                let reply = reply_to(&server, entry, peer, Guarded::request(request)).await;
                Ok::<_, Infallible>(watch.over(reply))
            }
        });
        http.serve_connection(TokioIo::new(stream), service)
    }
}

/// Answers a request, and counts.
async fn reply_to(
    server: &Server,
    entry: Entry,
    peer: IpAddr,
    request: Request<Guarded>,
) -> Response<impl Body<Data = Bytes, Error = BoxError> + Send + use<>> {
    let (app, route) = (&server.app, Route::of(request.method(), request.uri().path()));
    let id = request_id::of(request.headers());
    let counted = app.metrics.begin(route, &request);
    let span = app.traces.as_ref().and_then(|traces| RequestSpan::begin(traces, route, &request));
    let (head, body) = request.into_parts();
    let answered = request_id::scope(id.clone(), server.answer(route, entry, peer, &head, body));
    let mut response = traces::within(span.as_ref(), answered).await;
    let headers = response.headers_mut();
    headers.insert(request_id::HEADER, id);
    if !route.is_cacheable() && !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if entry == Entry::Reserve {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    counted.answered(response.status());
    if let Some(span) = span {
        span.answered(response.status());
    }
    if route.is_compressible() {
        compressed(&head.headers, response).await.map(Either::Left)
    } else {
        response.map(Either::Right)
    }
}

/// A request that is let in: who sent it, and how its client stands with the rate limit.
struct Admitted {
    caller: Caller,
    standing: Option<Standing>,
}

/// A request that is not.
struct Refusal {
    problem: Problem,
    standing: Option<Standing>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, standing: None }
    }
}

impl Server {
    /// The reply, with the headers of CORS where a page of another origin may see it.
    async fn answer(
        &self,
        route: Route,
        entry: Entry,
        peer: IpAddr,
        head: &Parts,
        body: Guarded,
    ) -> warp::reply::Response {
        let Some(cors) = &self.app.config.cors else {
            return self.answer_once_admitted(route, entry, peer, head, body).await;
        };
        // Before the key is asked for: browsers send none with these.
        if let Some(headers) = cors.preflight(&head.method, &head.headers, route.methods_for_pages()) {
            let mut response = warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response();
            response.headers_mut().extend(headers);
            return response;
        }
        let mut response = self.answer_once_admitted(route, entry, peer, head, body).await;
        cors::add(response.headers_mut(), &cors.headers(&head.headers));
        response
    }

    async fn answer_once_admitted(
        &self,
        route: Route,
        entry: Entry,
        peer: IpAddr,
        head: &Parts,
        body: Guarded,
    ) -> warp::reply::Response {
        let (mut response, standing) = match self.admit(route, entry, peer, head) {
            Ok(Admitted { caller, standing }) => {
                (routes::answer(&self.app, route, &caller, head, body).await, standing)
            }
            Err(Refusal { problem, standing }) => (routes::refuse(route, &head.headers, problem), standing),
        };
        if let Some(standing) = standing {
            standing.tell(response.headers_mut());
        }
        response
    }

    /// Whether a request is let in.
    ///
    /// # Errors
    /// When its connection is not for it, its head is too large or names no host, it has no key that opens its route, or its
    /// client makes too many requests.
    fn admit(&self, route: Route, entry: Entry, peer: IpAddr, head: &Parts) -> Result<Admitted, Refusal> {
        match entry {
            Entry::Reserve if !route.is_watch() => {
                return Err(Problem::TooManyConnections(self.app.config.max_connections).into());
            }
            Entry::Admin if !route.is_watch() => return Err(Problem::NotFound.into()),
            Entry::Public | Entry::Reserve | Entry::Admin => {}
        }
        check_head(head)?;
        // Whoever watches over the process must not be turned away.
        let limit = self.rate_limit.as_ref().filter(|_| !route.is_watch());
        let keys = self.app.keys.as_ref().zip(route.scope());
        let caller = keys.map(|(keys, scope)| keys.admit(scope, &head.headers)).transpose();
        // Before a key is refused: keys are not to be tried out for free.
        let known = caller.as_ref().ok().and_then(Option::as_ref);
        let counted = limit.map(|limit| limit.count(&head.headers, peer, known)).transpose();
        let standing = counted.map_err(|standing| Refusal {
            problem: Problem::RateLimited { retry_after: standing.retry_after },
            standing: Some(standing),
        })?;
        let caller = caller.map_err(|problem| {
            self.say_refused(peer, &problem);
            Refusal { problem, standing }
        })?;
        Ok(Admitted { caller: caller.unwrap_or_default(), standing })
    }
}

impl Server {
    /// Whoever tries keys out, or has lost the right one, is to be found in the log.
    fn say_refused(&self, peer: IpAddr, problem: &Problem) {
        if let Some(more) = self.said_refused.pass() {
            let (peer, detail) = (peer.to_canonical().to_string(), problem.detail());
            log::warn!(peer; "a request was refused: {detail} ({more} more since the last such line)");
        }
    }
}

/// # Errors
/// When a head is too large, or does not name one host (RFC 9112, section 3.2).
fn check_head(head: &Parts) -> Result<(), Problem> {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if fields + target > MAX_HEADERS {
        return Err(Problem::HeadersTooLarge(MAX_HEADERS));
    }
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && head.version == Version::HTTP_11) {
        return Err(Problem::InvalidHeader { name: "Host", detail: "must be given once".into() });
    }
    Ok(())
}
