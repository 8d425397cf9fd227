//! `GET /health`, the view of the whole system, and `GET /livez`, `GET /readyz` for orchestrators.
//!
//! Liveness depends on neither Kafka nor Redis: restarting the process would mend neither. Readiness is whether a post
//! can succeed: Kafka, and not draining. The store and the workers are not part of it; posts are taken without them.

use std::sync::Arc;

use common::health::Condition;
use serde::Serialize;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::App;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    producer: &'static str,
    store: &'static str,
    consumer: &'static str,
    version: &'static str,
    checks: Parts,
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

pub(super) fn routes(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<> {
    let health = warp::path!("health").and(super::get()).and(super::with(app)).map(|app: Arc<App>| health(&app));
    let ready = warp::path!("readyz").and(super::get()).and(super::with(app)).map(|app: Arc<App>| ready(&app));
    let live = warp::path!("livez").and(super::get()).map(|| with_status(true, &serde_json::json!({"status": "ok"})));
    health.or(ready).unify().or(live).unify()
}

fn health(app: &App) -> Response {
    let checks = Parts {
        producer: app.checks.producer.get(),
        store: app.checks.store.get(),
        consumer: app.checks.consumer.get(),
    };
    let word = |condition: &Condition| if condition.ok { "connected" } else { "disconnected" };
    let ok = checks.producer.ok && checks.store.ok && checks.consumer.ok;
    let health = Health {
        status: if ok { "ok" } else { "degraded" },
        producer: word(&checks.producer),
        store: word(&checks.store),
        consumer: word(&checks.consumer),
        version: env!("CARGO_PKG_VERSION"),
        checks,
    };
    with_status(ok, &health)
}

fn ready(app: &App) -> Response {
    let (producer, draining) = (app.checks.producer.get(), app.checks.draining.is_cancelled());
    let ok = producer.ok && !draining;
    with_status(ok, &Ready { status: if ok { "ok" } else { "not ready" }, producer, draining })
}

fn with_status(ok: bool, body: &impl Serialize) -> Response {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    warp::reply::with_status(warp::reply::json(body), status).into_response()
}
