//! The system's promises, kept by the real binaries on a real Kafka and a real Redis.
//!
//! One test binary: its tests share two cores and one link step. `scripts/test integration` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod bad_input;
mod batch;
mod cluster;
mod configuration;
mod dead_letters;
mod desk;
mod events;
mod fatal_producer;
mod footprint;
mod group;
mod health;
mod idempotency;
mod kafka_outage;
mod kafka_rust;
mod kafka_security;
mod lists;
mod log_table;
mod logs;
mod memory;
mod metrics;
mod reads;
mod redis_loss;
mod redis_outage;
mod redis_security;
mod rolling_restart;
mod scripts;
mod shutdown;
mod startup;
mod stream;
mod traces;
mod upgrade;
mod validation;

use anyhow::ensure;
use e2e::{eventually, service::Service};

/// Waits until an API has so many requests in flight besides this look.
async fn in_flight(api: &Service, count: usize) {
    let wanted = format!("user_activity_http_requests_in_flight {}\n", count + 1);
    eventually(&format!("{count} requests are in flight"), async || {
        let metrics = api.client.get("/metrics").await?.ok()?.text();
        ensure!(metrics.contains(&wanted), "{metrics}");
        Ok(())
    })
    .await;
}
