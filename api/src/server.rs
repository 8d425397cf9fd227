//! Connections: accepted up to a limit, given time-outs, and drained within a deadline.
//!
//! warp's own server has no header time-out, no connection limit and no deadline for its drain, so hyper serves the
//! connections here.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use common::shutdown::Shutdown;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use crate::App;
use crate::rate_limit::RateLimit;
use crate::request::{Entry, MAX_HEADERS, Requests};
use crate::throttle::Throttle;
use crate::unfinished::Connection;
use crate::unread::Guarded;

/// What hyper buffers of one request's head: more than [`MAX_HEADERS`], so that the reply to too many is mostly ours, but
/// not much more, since every connection may hold so much. Beyond it hyper answers a bare 431.
const MAX_HEAD: usize = MAX_HEADERS + 16 * 1024;

/// How long a client may take nothing of a reply before its connection is cut. Shorter than the default of
/// `SHUTDOWN_TIMEOUT`, so that nobody who reads nothing makes a stop unclean.
const WRITE_PATIENCE: Duration = Duration::from_secs(15);
/// How often the rate limit forgets clients that are quiet.
const FORGET_PERIOD: Duration = Duration::from_secs(60);
/// Connections beyond the limit that are answered at a time, and for how long each: enough to tell probes how the
/// process is and all others to come back.
const RESERVE: usize = 64;
const RESERVE_TIME: Duration = Duration::from_secs(1);
/// After a failed accept that is not the client's doing: file descriptors are used up, mostly, and others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is cancelled, then lets the requests in flight finish. Gives the number of connections that
/// were left at the deadline.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: Shutdown) -> usize {
    let rate_limit = RateLimit::new(&app.config.rate_limit);
    let requests = Requests::new(app, rate_limit);
    let (app, graceful) = (&requests.app, GracefulShutdown::new());
    let doors = Doors::new(app);
    let mut forget = tokio::time::interval(FORGET_PERIOD);
    loop {
        let (stream, peer, entry, permit) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = forget.tick() => {
                requests.rate_limit.iter().for_each(RateLimit::forget_quiet);
                continue;
            }
            accepted = doors.accept(&listener) => accepted,
        };
        let idle = if entry == Entry::Reserve { RESERVE_TIME } else { app.config.idle_timeout };
        let connection = graceful.watch(connection(&requests, stream, peer, entry, idle));
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

/// Serves `API_ADMIN_PORT`, also while the process drains, until dropped. Who says nothing for a moment loses its place.
pub async fn serve_admin(app: Arc<App>, listener: TcpListener) {
    let requests = Requests::new(app, None);
    let places = Arc::new(Semaphore::new(RESERVE));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = accept(&listener).await;
        let connection = connection(&requests, stream, peer, Entry::Admin, RESERVE_TIME);
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
        Self { app: Arc::clone(app), reserve: Arc::new(Semaphore::new(RESERVE)), said_full: Throttle::default() }
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

/// Serves one connection, which may be `idle` for so long.
fn connection(
    requests: &Arc<Requests>,
    stream: TimeoutStream<TcpStream>,
    peer: IpAddr,
    entry: Entry,
    idle: Duration,
) -> impl GracefulConnection<Error = hyper::Error> + Send + use<> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(MAX_HEAD);
    let (stream, unfinished) = Connection::new(stream);
    let requests = Arc::clone(requests);
    let service = service_fn(move |request| {
        let (requests, watch) = (Arc::clone(&requests), unfinished.of(&request));
        async move {
            let reply = requests.reply(entry, peer, Guarded::request(request)).await;
            Ok::<_, Infallible>(watch.over(reply))
        }
    });
    http.serve_connection(TokioIo::new(stream), service)
}
