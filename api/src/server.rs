//! Connections: accepted up to a limit, given time-outs, and drained within a deadline.
//!
//! warp's own server has no header time-out, no connection limit and no deadline for its drain, so the routes are served
//! by hyper itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use common::shutdown::Shutdown;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use warp::Reply;

use crate::problem::Problem;
use crate::{App, routes};

/// Headers of one request in all, in bytes.
const MAX_HEADERS: usize = 32 * 1024;
/// What hyper buffers of one request's head: more than [`MAX_HEADERS`], so that the reply to too many is ours. Beyond
/// it hyper answers a bare 431.
const MAX_HEAD: usize = 256 * 1024;

/// Serves until `shutdown` is cancelled, then lets the requests in flight finish. Gives the number of connections that
/// were left at the deadline.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: Shutdown) -> usize {
    let service = TowerToHyperService::new(warp::service(routes::all(&app)));
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
        let guarded = service_fn(move |request| answer(service.clone(), request));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), guarded));
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
) -> std::io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let permit = Arc::clone(limit).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

async fn answer<S, B>(service: S, request: Request<Incoming>) -> Result<Response<B>, Infallible>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    warp::reply::Response: Into<Response<B>>,
{
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if headers + request.uri().path().len() > MAX_HEADERS {
        return Ok(Problem::HeadersTooLarge(MAX_HEADERS).into_response().into());
    }
    service.call(request).await
}
