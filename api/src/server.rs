//! Connections: accepted up to a limit, given time-outs, and drained within a deadline.
//!
//! warp's own server has no header time-out, no connection limit and no deadline for its drain, so the routes are served
//! by hyper itself.

use std::convert::Infallible;
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
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower_http::CompressionLevel;
use tower_http::compression::Compression;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use warp::Reply;

use crate::problem::Problem;
use crate::{App, cors, routes};

/// Headers of one request in all, in bytes.
const MAX_HEADERS: usize = 32 * 1024;
/// What hyper buffers of one request's head: more than [`MAX_HEADERS`], so that the reply to too many is ours. Beyond
/// it hyper answers a bare 431.
const MAX_HEAD: usize = 256 * 1024;

/// How long a client may take nothing of a reply before its connection is cut.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
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
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &limit) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: others must end before one more can be taken.
                log::warn!("can't accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service.clone();
        let app = Arc::clone(&app);
        let guarded =
            service_fn(move |request| guard(Arc::clone(&app), service.clone(), request, Reply::into_response));
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
) -> std::io::Result<(TimeoutStream<TcpStream>, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let permit = Arc::clone(limit).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut stream = TimeoutStream::new(stream);
    // For reads hyper has its own, which leaves those alone who wait for a reply.
    stream.set_write_timeout(Some(WRITE_PATIENCE));
    Ok((stream, permit))
}

/// Replies of some size in the coding that the client prefers, if it takes any; not streams of events, whose frames must
/// not be held back.
fn compressed<S>(service: S) -> Compression<S, impl Predicate> {
    let worth_it = SizeAbove::new(SMALLEST_COMPRESSED).and(NotForContentType::const_new("text/event-stream"));
    Compression::new(service).quality(CompressionLevel::Fastest).compress_when(worth_it)
}

/// Calls the service, unless CORS has the answer already.
async fn guard<S, B, P>(
    app: Arc<App>,
    service: S,
    request: Request<Incoming>,
    problem: impl FnOnce(Problem) -> Response<P>,
) -> Result<Response<Either<B, P>>, Infallible>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    P: Default,
{
    let Some(cors) = app.config.cors.as_ref() else { return answer(&app, service, request, problem).await };
    // Before the key is asked for: browsers send none with these.
    if let Some(headers) = cors.preflight(request.method(), request.headers()) {
        let mut response = Response::new(Either::Right(P::default()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().extend(headers);
        return Ok(response);
    }
    let headers = cors.headers(request.headers());
    let mut response = answer(&app, service, request, problem).await?;
    cors::add(response.headers_mut(), &headers);
    Ok(response)
}

/// Calls the service, unless the headers are too large or it is not for the caller. The type of a problem's body can't be
/// named.
async fn answer<S, B, P>(
    app: &App,
    service: S,
    mut request: Request<Incoming>,
    problem: impl FnOnce(Problem) -> Response<P>,
) -> Result<Response<Either<B, P>>, Infallible>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
{
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if headers + request.uri().path().len() > MAX_HEADERS {
        return Ok(problem(Problem::HeadersTooLarge(MAX_HEADERS)).map(Either::Right));
    }
    if let Some(keys) = &app.keys {
        match keys.admit(request.method(), request.uri().path(), request.headers()) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(refusal) => return Ok(problem(refusal).map(Either::Right)),
        }
    }
    service.call(request).await.map(|response| response.map(Either::Left))
}
