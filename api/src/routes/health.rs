//! `GET /health`, the view of the whole system, and `GET /livez`, `GET /readyz` for orchestrators.
//!
//! Liveness depends on neither Kafka nor Redis: restarting the process would mend neither. Readiness is whether a post
//! can succeed: Kafka, and not draining. The store and the workers are not part of it; posts are taken without them.

use std::collections::BTreeMap;

use common::health::Condition;
use common::store::{Heartbeat, LiveWorker};
use serde::Serialize;
use warp::Reply;
use warp::http::StatusCode;
use warp::reply::Response;

use crate::App;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    producer: &'static str,
    store: &'static str,
    consumer: &'static str,
    version: &'static str,
    checks: Parts,
    /// `null` when Redis does not say.
    workers: Option<Vec<Worker>>,
    /// What they have dead-lettered since they were started, by reason; `null` when Redis does not say.
    #[serde(rename = "deadLetters")]
    dead_letters: Option<BTreeMap<String, u64>>,
}

/// A worker whose heartbeat is alive.
#[derive(Serialize)]
struct Worker {
    name: String,
    partitions: Vec<i32>,
    stored: u64,
    /// `null` while it is unknown for one of its partitions.
    lag: Option<i64>,
    seen: String,
}

impl From<LiveWorker> for Worker {
    fn from(LiveWorker { heartbeat, seen }: LiveWorker) -> Self {
        let known = heartbeat.lags.len() == heartbeat.partitions.len();
        let lag = known.then(|| heartbeat.lags.iter().map(|lag| lag.messages).sum()).flatten();
        let Heartbeat { member, partitions, stored, .. } = heartbeat;
        Self { name: member, partitions, stored, lag, seen: seen.to_string() }
    }
}

#[derive(Serialize)]
struct Parts {
    producer: Condition,
    store: Condition,
    consumer: Condition,
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    producer: Condition,
    draining: bool,
}

/// `GET /livez`: it answers, so it lives.
pub(super) fn live() -> Response {
    with_status(true, &serde_json::json!({"status": "ok"}))
}

pub(super) fn health(app: &App) -> Response {
    let checks = Parts {
        producer: app.checks.producer.get(),
        store: app.checks.store.get(),
        consumer: app.checks.consumer.get(),
    };
    let word = |condition: &Condition| if condition.ok { "connected" } else { "disconnected" };
    let ok = checks.producer.ok && checks.store.ok && checks.consumer.ok;
    let workers = app.workers();
    let health = Health {
        status: if ok { "ok" } else { "degraded" },
        producer: word(&checks.producer),
        store: word(&checks.store),
        consumer: word(&checks.consumer),
        version: env!("CARGO_PKG_VERSION"),
        checks,
        dead_letters: workers.as_deref().map(dead_letters),
        workers: workers.map(|workers| workers.into_iter().map(Worker::from).collect()),
    };
    with_status(ok, &health)
}

/// Added up over the workers.
fn dead_letters(workers: &[LiveWorker]) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (reason, count) in workers.iter().flat_map(|worker| &worker.heartbeat.dead_letters) {
        *sums.entry(reason.clone()).or_default() += count;
    }
    sums
}

pub(super) fn ready(app: &App) -> Response {
    let (producer, draining) = (app.checks.producer.get(), app.checks.draining.is_cancelled());
    let ok = app.is_ready();
    with_status(ok, &Ready { status: if ok { "ok" } else { "not ready" }, producer, draining })
}

fn with_status(ok: bool, body: &impl Serialize) -> Response {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    warp::reply::with_status(warp::reply::json(body), status).into_response()
}
