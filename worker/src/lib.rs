//! The worker: records on the topic become stored events, once. In the order a record passes it:
//!
//! 1. [`group`]: membership in the consumer group;
//! 2. [`placement`]: where a partition starts;
//! 3. [`consumer`]: the loop, the only `select!`;
//! 4. [`decode`]: a record is an event, or a dead letter;
//! 5. [`dead_letter`]: what can't be an event goes to its topic, unless the [`breaker`] holds it back;
//! 6. [`recorder`]: a batch on its way to Redis;
//! 7. [`commit`]: the ledger: what is stored, how far positions and commits may move.
//!
//! [`admin`], [`status`], [`metrics`], [`gaps`] and [`lag`] say how it is, [`event_log`] and [`traces`] what it did;
//! [`desk`] is for operators.

pub mod admin;
pub mod breaker;
pub mod commit;
mod config;
pub mod consumer;
pub mod dead_letter;
pub mod decode;
pub mod desk;
pub mod event_log;
pub mod gaps;
pub mod group;
pub mod lag;
pub mod metrics;
pub mod placement;
pub mod recorder;
pub mod status;
pub mod traces;

use std::sync::Arc;
use std::time::Duration;

use common::kafka::{TopicError, create_topics, topic_retention};
use common::shutdown::Shutdown;
use common::traces::Traces;
use tokio::net::TcpListener;

pub use crate::config::{Cli, Command, Config};
use crate::consumer::Consumer;
use crate::group::Stranded;
use crate::status::Status;

const NAME: &str = "user-activity-worker";
const TOPIC_RETRY: Duration = Duration::from_secs(1);

/// Takes the port of the admin interface.
///
/// # Errors
/// When a port that was asked for can't be had, with the address and what to do.
pub async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    config.admin_port.bind(config.bind_address).await.map_err(anyhow::Error::msg)
}

/// Works until `shutdown` is cancelled, then finishes what is in flight and leaves the group. Kafka and Redis need not
/// be there yet.
///
/// # Errors
/// When the client settings are refused, the store can't be used as it is, the Kafka client has failed for good,
/// or something was left unfinished at the end of the shutdown time.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    log::info!("settings: {config:?}");
    log::info!("health at http://{}", listener.local_addr()?);
    let traces = config.traces.as_ref().map(|settings| Traces::start(settings, NAME)).transpose()?;
    let status = Arc::new(Status::new(shutdown.clone()));
    let admin = tokio::spawn(admin::serve(listener, Arc::clone(&status)));
    let result = Box::pin(work(&config, &status, traces.clone(), &shutdown)).await;
    admin.abort();
    if let Some(traces) = traces {
        traces.flush().await;
    }
    result
}

async fn topics(config: &Config, status: &Status) -> Result<(), TopicError> {
    loop {
        match create_topics(&config.kafka, NAME).await {
            Err(error @ TopicError::Settings(_)) => return Err(error),
            Err(error) => status.kafka.down(&error.to_string()),
            Ok(()) => break,
        }
        tokio::time::sleep(TOPIC_RETRY).await;
    }
    if let Some(kept) = topic_retention(&config.kafka, NAME).await.filter(|kept| *kept > config.redis.retention) {
        log::warn!(
            "EVENT_RETENTION={} is shorter than the topic's retention.ms={} ({}): after a loss of Redis, workers also read what \
             has expired, and store nothing of it; make them equal",
            humantime::format_duration(config.redis.retention),
            kept.as_millis(),
            humantime::format_duration(kept)
        );
    }
    Ok(())
}

async fn work(
    config: &Config,
    status: &Arc<Status>,
    traces: Option<Traces>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    // A member of a group whose topic does not exist would learn of it only with its next look at the metadata.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        created = topics(config, status) => created?,
    }
    loop {
        // On the heap: it is as large as all that a consumer holds.
        match Box::pin(Consumer::new(config, Arc::clone(status), traces.clone())?.run(shutdown)).await {
            Err(error) if error.is::<Stranded>() && !shutdown.is_cancelled() => {
                log::warn!("a new consumer joins the group: {error}")
            }
            result => return result,
        }
    }
}
