//! Connections: accepted up to a limit, given time-outs, and drained within a deadline.
//!
//! warp's own server has no header time-out, no connection limit and no deadline for its drain, so the routes are served
//! by hyper itself.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use common::shutdown::Shutdown;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower_http::CompressionLevel;
use tower_http::compression::Compression;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use warp::Reply;

use crate::problem::Problem;
use crate::rate_limit::{RateLimit, Standing};
use crate::traces::RequestSpan;
use crate::unread::Guarded;
use crate::{App, cors, request_id, routes, traces};

/// Headers of one request in all, in bytes.
const MAX_HEADERS: usize = 32 * 1024;
/// What hyper buffers of one request's head: more than [`MAX_HEADERS`], so that the reply to too many is ours. Beyond
/// it hyper answers a bare 431.
const MAX_HEAD: usize = 256 * 1024;

/// How long a client may take nothing of a reply before its connection is cut. Shorter than the default of
/// `SHUTDOWN_TIMEOUT`, so that nobody who reads nothing makes a stop unclean.
const WRITE_PATIENCE: Duration = Duration::from_secs(15);
/// How often the rate limit forgets clients that are quiet.
const FORGET_PERIOD: Duration = Duration::from_secs(60);
/// Replies below this many bytes are not worth compressing.
const SMALLEST_COMPRESSED: u16 = 1024;

/// Serves until `shutdown` is cancelled, then lets the requests in flight finish. Gives the number of connections that
/// were left at the deadline.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: Shutdown) -> usize {
    let service = TowerToHyperService::new(compressed(warp::service(routes::all(&app))));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.config.idle_timeout).max_buf_size(MAX_HEAD);
    let graceful = GracefulShutdown::new();
    let limit = Arc::new(Semaphore::new(app.config.max_connections));
    let rate_limit = Arc::new(RateLimit::new(&app.config.rate_limit));
    let mut forget = tokio::time::interval(FORGET_PERIOD);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = forget.tick() => {
                rate_limit.iter().for_each(RateLimit::forget_quiet);
                continue;
            }
            accepted = accept(&listener, &limit) => accepted,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: others must end before one more can be taken.
                log::warn!("can't accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (app, service, rate_limit) = (Arc::clone(&app), service.clone(), Arc::clone(&rate_limit));
        let guarded = service_fn(move |mut request| {
            let admitted = admit(&app, rate_limit.as_ref().as_ref(), &mut request, peer);
            guard(Arc::clone(&app), service.clone(), Guarded::request(request), admitted, Reply::into_response)
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), guarded));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("connection ended: {error}");
            }
            drop(permit);
        });
    }
    drop(listener);
    let open = graceful.count();
    log::info!("draining {open} connections, for at most {}", humantime::format_duration(app.config.shutdown_timeout));
    let drained = tokio::time::timeout(app.config.shutdown_timeout, graceful.shutdown()).await;
    if drained.is_ok() { 0 } else { app.config.max_connections - limit.available_permits() }
}

async fn accept(
    listener: &TcpListener,
    limit: &Arc<Semaphore>,
) -> std::io::Result<(TimeoutStream<TcpStream>, IpAddr, OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let permit = Arc::clone(limit).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut stream = TimeoutStream::new(stream);
    // For reads hyper has its own, which leaves those alone who wait for a reply.
    stream.set_write_timeout(Some(WRITE_PATIENCE));
    Ok((stream, peer.ip(), permit))
}

/// Replies of some size in the coding that the client prefers, if it takes any; not streams of events, whose frames must
/// not be held back.
fn compressed<S>(service: S) -> Compression<S, impl Predicate> {
    let worth_it = SizeAbove::new(SMALLEST_COMPRESSED).and(NotForContentType::const_new("text/event-stream"));
    Compression::new(service).quality(CompressionLevel::Fastest).compress_when(worth_it)
}

/// Whether a request is let in, and how its client then stands.
///
/// # Errors
/// When its headers are too large, it has no key that opens its route, or its client makes too many requests.
fn admit(
    app: &App,
    rate_limit: Option<&RateLimit>,
    request: &mut Request<Incoming>,
    peer: IpAddr,
) -> Result<Option<Standing>, Refusal> {
    let (path, headers) = (request.uri().path(), request.headers());
    let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if size + path.len() > MAX_HEADERS {
        return Err(Refusal { problem: Problem::HeadersTooLarge(MAX_HEADERS), standing: None });
    }
    let caller = app.keys.as_ref().map_or(Ok(None), |keys| keys.admit(request.method(), path, headers));
    // Before a key is refused: keys are not to be tried out for free.
    let known = caller.as_ref().ok().and_then(Option::as_ref);
    let counted = rate_limit.map_or(Ok(None), |limit| limit.count(path, headers, peer, known));
    let standing = counted.map_err(|standing| Refusal {
        problem: Problem::RateLimited { retry_after: standing.retry_after },
        standing: Some(standing),
    })?;
    let caller = caller.map_err(|problem| Refusal { problem, standing })?;
    caller.into_iter().for_each(|caller| drop(request.extensions_mut().insert(caller)));
    Ok(standing)
}

/// A request that is not let in.
struct Refusal {
    problem: Problem,
    standing: Option<Standing>,
}

/// Calls the service, unless CORS has the answer already.
async fn guard<S, B, P>(
    app: Arc<App>,
    service: S,
    request: Request<Guarded>,
    admitted: Result<Option<Standing>, Refusal>,
    reply: impl FnOnce(Problem) -> Response<P>,
) -> Result<Response<Either<B, P>>, Infallible>
where
    S: Service<Request<Guarded>, Response = Response<B>, Error = Infallible>,
    P: Default,
{
    let Some(cors) = app.config.cors.as_ref() else { return answer(&app, service, request, admitted, reply).await };
    // Before the key is asked for: browsers send none with these.
    if let Some(headers) = cors.preflight(request.method(), request.headers()) {
        let mut response = Response::new(Either::Right(P::default()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().extend(headers);
        return Ok(response);
    }
    let headers = cors.headers(request.headers());
    let mut response = answer(&app, service, request, admitted, reply).await?;
    cors::add(response.headers_mut(), &headers);
    Ok(response)
}

/// Calls the service for a request that was let in, and counts. The type of a problem's body can't be named.
async fn answer<S, B, P>(
    app: &App,
    service: S,
    request: Request<Guarded>,
    admitted: Result<Option<Standing>, Refusal>,
    reply: impl FnOnce(Problem) -> Response<P>,
) -> Result<Response<Either<B, P>>, Infallible>
where
    S: Service<Request<Guarded>, Response = Response<B>, Error = Infallible>,
{
    let id = request_id::of(request.headers());
    let counted = app.metrics.begin(&request);
    let span = app.traces.as_ref().and_then(|traces| RequestSpan::begin(traces, &request));
    let answered = request_id::scope(id.clone(), async {
        match admitted {
            Ok(standing) => service.call(request).await.map(|response| (response.map(Either::Left), standing)),
            Err(Refusal { problem, standing }) => Ok((reply(problem).map(Either::Right), standing)),
        }
    });
    let (mut response, standing) = traces::within(span.as_ref(), answered).await?;
    response.headers_mut().insert(request_id::HEADER, id);
    standing.into_iter().for_each(|standing| standing.tell(response.headers_mut()));
    counted.answered(response.status());
    span.into_iter().for_each(|span| span.answered(response.status()));
    Ok(response)
}
