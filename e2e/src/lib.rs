//! The system seen from outside: what the black-box tests stand on.
//!
//! Nothing here links the product. The real binaries run as processes, and the tests speak HTTP,
//! Kafka and Redis to them the way any third party would. In the order a test meets them:
//!
//! - [`mod@env`]: where the binaries and the shared engines are (set by `scripts/test integration`);
//! - [`world`]: a test's own topic, group, key prefix and settings, and the processes it starts;
//! - [`process`]: one child process, its signals, its exit and its output;
//! - [`service`], [`client`], [`sse`], [`raw`]: an API or a worker and its HTTP, politely and impolitely;
//! - [`kafka`], [`broker`], [`redis_server`], [`redis_cluster`]: the engines, as an outsider and as an owner who may kill them;
//! - [`sample`]: events as they stand on the topic;
//! - [`load`], [`oracle`]: posts under way, and the judgement over what became of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic, and so does its harness"
)]
#![allow(clippy::print_stderr, reason = "what a failed test shows")]

pub mod broker;
pub mod chaos;
pub mod client;
pub mod env;
pub mod kafka;
pub mod load;
pub mod oracle;
pub mod process;
pub mod raw;
pub mod redis_cluster;
pub mod redis_server;
pub mod sample;
pub mod service;
pub mod sse;
pub mod world;

use std::time::{Duration, Instant};

use anyhow::Result;

/// How long anything may take that should happen "soon". Generous, so that a busy machine does
/// not turn a test red; a passing test never waits for it.
///
/// More than the minute that librdkafka gives a request to a broker which was held up, after which it sends it again.
pub const PATIENCE: Duration = Duration::from_secs(120);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Polls `probe` until it is `Ok` and returns its value.
///
/// # Panics
/// When [`PATIENCE`] has passed, with `what` and the last error of the probe.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T>) -> T {
    eventually_within(PATIENCE, what, probe).await
}

/// [`eventually`] with a limit of its own.
///
/// # Panics
/// When `limit` has passed, with `what` and the last error of the probe.
pub async fn eventually_within<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> T {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(error) if started.elapsed() > limit => {
                panic!("not within {limit:?}: {what}: {error:#}")
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Polls `probe` for the whole of `period`: the opposite of [`eventually`], for what must not change.
///
/// # Panics
/// At the first error of the probe.
pub async fn throughout(period: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<()>) {
    let started = Instant::now();
    while started.elapsed() < period {
        if let Err(error) = probe().await {
            panic!("did not hold after {:?}: {what}: {error:#}", started.elapsed());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
