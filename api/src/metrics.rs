//! What is counted of requests and of publishing. docs/METRICS.md lists it; a test holds the two together.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::kafka::{Delivered, PublishError};
use common::metrics::{DURATIONS, Described, Exporter};
use hyper::Request;
use metrics::{Counter, Gauge, Histogram};
use warp::http::{Method, StatusCode};

use crate::route::Route;
use crate::{App, MOST_EXPORTS};

const REQUESTS: Described = Described("user_activity_http_requests_total", "Requests that were answered.");
const REQUEST_DURATION: Described = Described(
    "user_activity_http_request_duration_seconds",
    "From a request's head to the head of its reply; without those that ask to wait.",
);
const REQUESTS_IN_FLIGHT: Described =
    Described("user_activity_http_requests_in_flight", "Requests that wait for the head of their reply.");
const PUBLISHED: Described =
    Described("user_activity_publish_total", "Events handed to Kafka, by what became of them.");
const PUBLISH_DURATION: Described =
    Described("user_activity_publish_duration_seconds", "From handing an event to the Kafka client to its answer.");
const BYTES_IN_FLIGHT: Described =
    Described("user_activity_publish_in_flight_bytes", "Bytes of the events that wait for Kafka's answer.");
const RECORDS_IN_FLIGHT: Described =
    Described("user_activity_publish_in_flight_records", "Events that wait for Kafka's answer.");
const READERS: Described = Described("user_activity_stream_readers", "Open readers of /events/stream.");
const CONNECTIONS: Described =
    Described("user_activity_http_connections", "Open connections, of those that HTTP_MAX_CONNECTIONS allows.");
const OVER_LIMIT: Described = Described(
    "user_activity_http_connections_over_limit_total",
    "Connections that were told to come back, because HTTP_MAX_CONNECTIONS were in use.",
);
const UNREADABLE: Described = Described(
    "user_activity_store_unreadable_total",
    "Entries of the tail and of indexes that were skipped because they can't be read, as often as they were met.",
);
const EXPORTS: Described = Described("user_activity_exports_in_flight", "Full lists that are being streamed.");

const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::HEAD, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
/// A method that is in no list: a client must not be able to make series.
const OTHER: &str = "other";
const STATUSES: std::ops::Range<u16> = 200..600;

/// The counters of one path and method, by status; each is made when it first counts.
type ByStatus = Box<[OnceLock<Counter>]>;

/// All that is counted.
pub(crate) struct Metrics {
    exporter: Exporter,
    /// By path and method, the last of each being any other.
    requests: Vec<[OnceLock<ByStatus>; METHODS.len() + 1]>,
    durations: Vec<Histogram>,
    in_flight: Gauge,
    connections: Gauge,
    over_limit: Counter,
    readers: Gauge,
    exports: Gauge,
    unreadable: Counter,
    bytes: Gauge,
    records: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let bounds = [(REQUEST_DURATION, DURATIONS), (PUBLISH_DURATION, DURATIONS)];
        let exporter = Exporter::new("api", env!("CARGO_PKG_VERSION"), &bounds);
        let durations =
            (0..Route::COUNT).map(|path| exporter.histogram(REQUEST_DURATION, &[("route", Route::label(path))]));
        Self {
            requests: (0..Route::COUNT).map(|_| std::array::from_fn(|_| OnceLock::new())).collect(),
            durations: durations.collect(),
            in_flight: exporter.gauge(REQUESTS_IN_FLIGHT, &[]),
            connections: exporter.gauge(CONNECTIONS, &[]),
            over_limit: exporter.counter(OVER_LIMIT, &[]),
            readers: exporter.gauge(READERS, &[]),
            exports: exporter.gauge(EXPORTS, &[]),
            unreadable: exporter.counter(UNREADABLE, &[]),
            bytes: exporter.gauge(BYTES_IN_FLIGHT, &[]),
            records: exporter.gauge(RECORDS_IN_FLIGHT, &[]),
            exporter,
        }
    }

    /// What a publisher counts.
    pub(crate) fn publishing(&self) -> Publishing {
        Publishing::new(&self.exporter)
    }

    /// A request has come.
    pub(crate) fn begin<B>(&self, route: Route, request: &Request<B>) -> UnderWay<'_> {
        self.in_flight.increment(1);
        let method = METHODS.iter().position(|known| known == request.method()).unwrap_or(METHODS.len());
        UnderWay { metrics: self, path: route.index(), method, since: (!asks_to_wait(request)).then(Instant::now) }
    }

    fn count(&self, path: usize, method: usize, status: StatusCode) {
        let by_status = self.requests[path][method].get_or_init(|| STATUSES.map(|_| OnceLock::new()).collect());
        // Informational replies are not the service's to give.
        let Some(counter) = by_status.get(usize::from(status.as_u16().wrapping_sub(STATUSES.start))) else { return };
        let method = METHODS.get(method).map_or(OTHER, Method::as_str);
        let make = || {
            self.exporter
                .counter(REQUESTS, &[("route", Route::label(path)), ("method", method), ("status", status.as_str())])
        };
        counter.get_or_init(make).increment(1);
    }

    /// A connection has come that is one too many.
    pub(crate) fn over_limit(&self) {
        self.over_limit.increment(1);
    }

    /// Everything as text.
    pub(crate) fn render(&self, app: &App) -> String {
        self.bytes.set(app.publisher.in_flight() as f64);
        self.records.set(app.publisher.records() as f64);
        self.connections.set(app.open_connections() as f64);
        self.readers.set(app.tail.readers() as f64);
        self.exports.set(MOST_EXPORTS.saturating_sub(app.exports.available_permits()) as f64);
        self.unreadable.absolute(app.store.skipped());
        self.exporter.render(app.is_ready())
    }
}

/// Whether the client wants its reply late (`?wait=`, `Prefer: wait=`).
fn asks_to_wait<B>(request: &Request<B>) -> bool {
    request.uri().query().is_some_and(|query| query.contains("wait=")) || request.headers().contains_key("prefer")
}

/// A request under way. One whose client goes away is dropped without having been answered.
pub(crate) struct UnderWay<'a> {
    metrics: &'a Metrics,
    path: usize,
    method: usize,
    /// `None` if its duration is the client's wish.
    since: Option<Instant>,
}

impl UnderWay<'_> {
    /// The head of the reply is there.
    pub(crate) fn answered(self, status: StatusCode) {
        self.metrics.count(self.path, self.method, status);
        if let Some(since) = self.since {
            self.metrics.durations[self.path].record(since.elapsed());
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.decrement(1);
    }
}

/// What is counted of publishing as it goes on.
pub(crate) struct Publishing {
    acknowledged: Counter,
    refused: Counter,
    too_large: Counter,
    not_accepted: Counter,
    unknown: Counter,
    abandoned: Counter,
    duration: Histogram,
}

impl Publishing {
    fn new(exporter: &Exporter) -> Self {
        let outcome = |outcome| exporter.counter(PUBLISHED, &[("outcome", outcome)]);
        Self {
            acknowledged: outcome("acknowledged"),
            refused: outcome("refused"),
            too_large: outcome("too_large"),
            not_accepted: outcome("not_accepted"),
            unknown: outcome("unknown"),
            abandoned: outcome("abandoned"),
            duration: exporter.histogram(PUBLISH_DURATION, &[]),
        }
    }

    /// A record has its answer.
    pub(crate) fn answered(&self, result: &Result<Delivered, PublishError>, after: Duration) {
        self.duration.record(after);
        let outcome = match result {
            Ok(_) => &self.acknowledged,
            Err(PublishError::Refused(_) | PublishError::RefusedTimestamp(_)) => &self.refused,
            Err(PublishError::TooLarge { .. }) => &self.too_large,
            Err(PublishError::NotAccepted(_)) => &self.not_accepted,
            Err(PublishError::Unknown(_)) => &self.unknown,
        };
        outcome.increment(1);
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn abandoned(&self, after: Duration) {
        self.duration.record(after);
        self.abandoned.increment(1);
    }
}
