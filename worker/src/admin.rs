//! `GET /livez`, `GET /readyz`, `GET /metrics` and `PUT /log-level` of the worker.
//!
//! Liveness depends on neither Kafka nor Redis: restarting the process would mend neither. Readiness is whether it can
//! work: the brokers answer and it is in the group, Redis answers, its partitions have their place and move while
//! there is something to store, it is not ending.

use std::net::SocketAddr;
use std::sync::Arc;

use common::health::Condition;
use common::metrics::CONTENT_TYPE;
use common::telemetry::{LONGEST_LEVEL, set_level};
use serde::Serialize;
use tokio::net::TcpListener;
use warp::http::StatusCode;
use warp::hyper::body::Bytes;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::status::Status;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    status: &'static str,
    draining: bool,
    kafka: Condition,
    store: Condition,
    partitions: Condition,
    progress: Condition,
    checks: [CheckLine; 4],
    stored: u64,
    duplicates: u64,
    expired: u64,
    dead_lettered: u64,
    /// Those that fell off the topic before they were read.
    skipped_offsets: u64,
    replacements: u64,
}

/// A check: what is the case, since when, and what to do.
#[derive(Serialize)]
struct CheckLine {
    check: &'static str,
    ok: bool,
    what: String,
    since: String,
    #[serde(rename = "do")]
    advice: Option<&'static str>,
}

impl CheckLine {
    fn new(check: &'static str, condition: &Condition, advice: &'static str) -> Self {
        let Condition { ok, reason, since } = condition.clone();
        Self { check, ok, what: reason, since, advice: (!ok).then_some(advice) }
    }
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let live = warp::path!("livez").map(|| warp::reply::json(&serde_json::json!({"status": "ok"})));
    let counted = Arc::clone(&status);
    let metrics = warp::path!("metrics")
        .map(move || warp::reply::with_header(counted.metrics.render(&counted), "content-type", CONTENT_TYPE));
    let ready = warp::path!("readyz").map(move || ready(&status));
    warp::serve(warp::get().or(warp::head()).unify().and(live.or(ready).or(metrics)).or(level()))
        .incoming(listener)
        .run()
        .await;
}

/// `PUT /log-level`: the body is what `LOG_LEVEL` takes. The port has no login, and whoever reaches it could have every
/// event logged, so this is for clients on the same machine, or in the same pod.
fn level() -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("log-level")
        .and(warp::put())
        .and(warp::body::content_length_limit(LONGEST_LEVEL as u64))
        .and(warp::body::bytes())
        .and(warp::addr::remote())
        .map(|body: Bytes, client: Option<SocketAddr>| {
            if !client.is_some_and(|client| client.ip().to_canonical().is_loopback()) {
                let why = "the worker's log level can be changed from its own machine or pod only: ask 127.0.0.1 there";
                return refusal(StatusCode::FORBIDDEN, why);
            }
            match set_level(&body) {
                Ok(level) => warp::reply::json(&level).into_response(),
                Err(error) => refusal(StatusCode::BAD_REQUEST, &error),
            }
        })
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let refusal = warp::reply::json(&serde_json::json!({"success": false, "message": message}));
    warp::reply::with_status(refusal, status).into_response()
}

fn ready(status: &Status) -> impl Reply + use<> {
    let (kafka, store, partitions) = (status.kafka.get(), status.store.get(), status.partitions.get());
    let (progress, draining) = (status.progress.get(), status.draining.is_cancelled());
    let ok = status.is_ready();
    let checks = [
        CheckLine::new(
            "kafka",
            &kafka,
            "see that the brokers run and KAFKA_BROKERS names them; it joins again by itself",
        ),
        CheckLine::new(
            "store",
            &store,
            "see that Redis runs, has memory left and REDIS_URL names it; nothing is lost meanwhile",
        ),
        CheckLine::new(
            "partitions",
            &partitions,
            "mend kafka and store first; a held partition needs a worker that knows its events, one that waits for its \
             dead letter a topic that takes it, one that waits for room more maxmemory",
        ),
        CheckLine::new(
            "progress",
            &progress,
            "look at the log lines about that partition, then restart this worker: nothing is lost by it",
        ),
    ];
    let counters = &status.counters;
    let body = Ready {
        status: if ok { "ok" } else { "not ready" },
        draining,
        kafka,
        store,
        partitions,
        progress,
        checks,
        stored: counters.new.get(),
        duplicates: counters.duplicates.get(),
        expired: counters.expired.get(),
        dead_lettered: counters.dead_lettered.get(),
        skipped_offsets: counters.lost.get(),
        replacements: counters.replacements.get(),
    };
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    warp::reply::with_status(warp::reply::json(&body), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_log_level_is_changed_from_the_own_machine_only() {
        let from = async |client: &str| {
            let request = warp::test::request().method("PUT").path("/log-level").body("no level at all, nor a filter=");
            request.remote_addr(client.parse().unwrap()).reply(&level()).await.status()
        };
        assert_eq!(from("127.0.0.1:5").await, 400);
        assert_eq!(from("[::1]:5").await, 400);
        assert_eq!(from("[::ffff:127.0.0.1]:5").await, 400);
        assert_eq!(from("10.0.0.1:5").await, 403);
        assert_eq!(from("[fd00::1]:5").await, 403);
    }
}
