//! `GET /livez` and `GET /readyz` of the worker.
//!
//! Liveness depends on neither Kafka nor Redis: restarting the process would mend neither. Readiness is whether it can
//! work: the brokers answer and it is in the group, Redis answers, its partitions have their place, it is not ending.

use std::sync::Arc;

use common::health::Condition;
use serde::Serialize;
use tokio::net::TcpListener;
use warp::http::StatusCode;
use warp::{Filter, Reply};

use crate::status::Status;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    status: &'static str,
    draining: bool,
    kafka: Condition,
    store: Condition,
    partitions: Condition,
    stored: u64,
    duplicates: u64,
    dead_lettered: u64,
    skipped_offsets: u64,
    replacements: u64,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let live = warp::path!("livez").map(|| warp::reply::json(&serde_json::json!({"status": "ok"})));
    let ready = warp::path!("readyz").map(move || ready(&status));
    warp::serve(warp::get().or(warp::head()).unify().and(live.or(ready))).incoming(listener).run().await;
}

fn ready(status: &Status) -> impl Reply + use<> {
    let (kafka, store, partitions) = (status.kafka.get(), status.store.get(), status.partitions.get());
    let draining = status.draining.is_cancelled();
    let ok = kafka.ok && store.ok && partitions.ok && !draining;
    let counters = &status.counters;
    let body = Ready {
        status: if ok { "ok" } else { "not ready" },
        draining,
        kafka,
        store,
        partitions,
        stored: counters.new.get(),
        duplicates: counters.duplicates.get(),
        dead_lettered: counters.dead_lettered.get(),
        skipped_offsets: counters.skipped_offsets.get(),
        replacements: counters.replacements.get(),
    };
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    warp::reply::with_status(warp::reply::json(&body), code)
}
