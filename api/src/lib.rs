//! The API: HTTP in, Kafka out, and the read side of the store. In the order a request passes it:
//!
//! 1. [`server`], `descriptors`, `unfinished`: connections, their limits and their end;
//! 2. [`route`]: what a request is for; `request`: whether it is let in, and what every reply has; [`rate_limit`], [`keys`],
//!    `cors`: how often a client may come, who may call, and the pages that may; `request_id`: what a request is called;
//!    `compress`: which replies are packed; `throttle`: lines that clients can cause at will;
//! 3. [`routes`]: what answers, one file a resource;
//! 4. `body`: a request's body, within its limits; `unread`: what nobody read of it; [`memory`]: what large ones may hold
//!    together; `header`: lists and quoted strings in headers; [`budget`]: what may wait for the brokers;
//! 5. `idempotency`: what makes a repeated request the same event;
//! 6. `query`, `format`: which events a list is of, and the forms it comes in;
//! 7. [`tail`]: what is processed now, for all readers of the stream;
//! 8. [`problem`]: every reply that is not a success;
//! 9. `metrics`, `traces`: what is counted of all that, and how one request is followed;
//! 10. [`openapi`]: the description of all this.

mod body;
pub mod budget;
mod compress;
mod config;
mod cors;
mod descriptors;
mod format;
pub mod hash_key;
mod header;
mod idempotency;
pub mod keys;
pub mod memory;
mod metrics;
pub mod openapi;
pub mod problem;
mod query;
pub mod rate_limit;
mod request;
mod request_id;
pub mod route;
pub mod routes;
pub mod server;
pub mod tail;
mod throttle;
mod traces;
mod unfinished;
mod unread;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use common::event::{EventTypes, Timestamp};
use common::health::Check;
use common::kafka::{
    Answer, KafkaBackend, KafkaPublisher, KafkaRustPublisher, PublishError, Publisher, TopicError, create_topics,
    producer_config,
};
use common::shutdown::Shutdown;
use common::store::{LiveWorker, Origin, Store};
use common::traces::Traces;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use warp::http::HeaderValue;

use crate::budget::Budget;
pub use crate::config::{Cli, Command, Config, KafkaClient};
use crate::keys::{Keys, Scope, Shown};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::tail::Tail;

const NAME: &str = "user-activity-api";
/// How often the brokers and the store are asked how they are.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// What the routes work with.
pub struct App {
    /// Where events go.
    pub publisher: Budget,
    /// What large bodies may hold.
    pub memory: Arc<Memory>,
    /// Where events are read.
    pub store: Arc<Store>,
    /// What is processed now.
    pub tail: Tail,
    /// The event types that are taken.
    pub types: EventTypes,
    /// How the parts are.
    pub checks: Checks,
    /// Turns at streaming a full list: more at a time would hurt the other readers.
    pub exports: Arc<Semaphore>,
    /// Each that waits for such a turn holds one.
    waiting: Arc<()>,
    /// Places for connections.
    pub(crate) connections: Arc<Semaphore>,
    /// Places for readers of the stream, who stay: half of all connections, so that others can be served.
    pub streams: Arc<Semaphore>,
    /// Places for requests that wait for an event to be processed: half of all connections as well.
    pub waits: Semaphore,
    /// The time before which events were trimmed early, as last heard.
    trimmed: Mutex<Option<Timestamp>>,
    /// The workers, as last heard, and when; `None` when Redis did not say.
    workers: Mutex<Option<(Instant, Vec<LiveWorker>)>>,
    metrics: Metrics,
    /// `None`: nothing is traced.
    traces: Option<Traces>,
    /// Who may call; `None`: everybody.
    pub keys: Option<Arc<Keys>>,
    /// Limits and time-outs.
    pub config: Config,
}

/// The longest that a request may wait for an event to be processed.
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// Full lists that are streamed at a time.
const MOST_EXPORTS: usize = 2;

impl App {
    /// An application of these parts, about which nothing is known yet.
    #[must_use]
    pub fn new(publisher: Arc<dyn Publisher>, store: Store, config: Config, draining: Shutdown) -> Self {
        let (store, metrics) = (Arc::new(store), Metrics::new());
        Self {
            publisher: Budget::new(publisher, metrics.publishing()),
            memory: Memory::new(config.body_memory, config.max_body, config.largest_body()),
            tail: Tail::new(&store),
            store,
            types: EventTypes::default(),
            checks: Checks::new(draining),
            exports: Arc::new(Semaphore::new(MOST_EXPORTS)),
            waiting: Arc::default(),
            connections: Arc::new(Semaphore::new(config.max_connections)),
            streams: Arc::new(Semaphore::new((config.max_connections / 2).max(1))),
            waits: Semaphore::new((config.max_connections / 2).max(1)),
            trimmed: Mutex::default(),
            workers: Mutex::default(),
            metrics,
            traces: None,
            keys: config.api_keys.clone().map(|file| Arc::new(Keys::new(file))),
            config,
        }
    }
}

impl App {
    /// Connections that are open, without those of the reserve.
    fn open_connections(&self) -> usize {
        self.config.max_connections.saturating_sub(self.connections.available_permits())
    }

    /// Whether a post can succeed.
    fn is_ready(&self) -> bool {
        self.checks.producer.get().ok && !self.checks.draining.is_cancelled()
    }

    /// Whether a client may go on reading: a key that was taken away opens nothing any more.
    fn may_read(&self, shown: &Shown) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.admit_shown(Scope::Read, shown).is_ok())
    }

    /// The workers, as last heard.
    fn workers(&self) -> Option<Vec<LiveWorker>> {
        self.workers_within(Duration::MAX)
    }

    /// The same, if that was no longer ago: a Redis that hangs says nothing new until its time-out.
    fn workers_within(&self, age: Duration) -> Option<Vec<LiveWorker>> {
        let heard = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        heard.as_ref().filter(|(at, _)| at.elapsed() <= age).map(|(_, workers)| workers.clone())
    }

    /// The header of a list from whose beginning events are missing, because the store was full.
    fn trimmed(&self) -> Option<HeaderValue> {
        let before = *self.trimmed.lock().unwrap_or_else(PoisonError::into_inner);
        HeaderValue::try_from(before?.to_string()).ok()
    }

    /// An event that may be on its way, as [`Tail::processed`], but no longer than this process is to live.
    ///
    /// # Errors
    /// When too many wait already, or the store has no answer.
    async fn processed(&self, event_id: &str, patience: Duration) -> Result<Option<(Bytes, Origin)>, Problem> {
        let _place = self.waits.try_acquire().map_err(|_| Problem::TooManyWaits)?;
        let found = tokio::select! {
            biased;
            () = self.checks.draining.cancelled() => self.store.event(event_id).await,
            found = self.tail.processed(event_id, patience) => found,
        };
        found.map_err(Problem::Store)
    }
}

/// Waits for an acknowledgement for as long as a request may take.
async fn timed(limit: Duration, published: impl Future<Output = Answer>) -> Result<(), PublishError> {
    tokio::time::timeout(limit, published).await.unwrap_or_else(|_| Err(too_late())).map(drop)
}

/// There is no acknowledgement in the time that a request may take.
fn too_late() -> PublishError {
    PublishError::Unknown("HTTP_REQUEST_TIMEOUT".into())
}

/// How the parts are.
pub struct Checks {
    /// The brokers and the topic.
    pub producer: Check,
    /// Redis.
    pub store: Check,
    /// The workers.
    pub consumer: Check,
    /// Cancelled once the process is ending.
    pub draining: Shutdown,
}

impl Checks {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(draining: Shutdown) -> Self {
        let check = |name| Check::new(name, "not asked yet");
        Self { producer: check("producer"), store: check("store"), consumer: check("consumer"), draining }
    }
}

/// Takes the configured port.
///
/// # Errors
/// When it can't be had, with the address and what to do.
pub async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    TcpListener::bind((config.bind_address, config.port)).await.with_context(|| {
        format!("can't listen on {}:{}; set PORT to a free port or 0", config.bind_address, config.port)
    })
}

/// Serves until `shutdown` is cancelled, then finishes what is in flight. Kafka and Redis need not be there yet.
///
/// # Errors
/// When the client settings are refused, the Kafka client can't ever work with these brokers, or something was left
/// unfinished at the end of the shutdown time.
pub async fn run(mut config: Config, listener: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    log::info!("settings: {config:?}");
    let admin = config.admin_port.bind(config.bind_address).await.map_err(anyhow::Error::msg)?;
    log::info!("health at http://{}", admin.local_addr()?);
    log::info!("listening on http://{address}");
    config.max_connections = descriptors::connections(config.max_connections);
    let publisher = connect(&config)?;
    let store = Store::new(&config.redis)?;
    let traces = config.traces.as_ref().map(|settings| Traces::start(settings, NAME)).transpose()?;
    let app = App::new(Arc::clone(&publisher) as Arc<dyn Publisher>, store, config, shutdown.clone());
    let app = Arc::new(App { traces: traces.clone(), ..app });
    let mut background = background(&app, admin);
    let mut watching_kafka = tokio::spawn(watch_kafka(Arc::clone(&app), Arc::clone(&publisher)));
    let deadline = deadline(&app.config, shutdown.clone());
    let mut serving =
        pin!(futures::future::join(server::serve(Arc::clone(&app), listener, shutdown.clone()), deadline));
    let (left, deadline) = tokio::select! {
        served = &mut serving => served,
        refused = &mut watching_kafka => {
            shutdown.cancel();
            serving.await;
            anyhow::bail!(refused?);
        }
        Some(ended) = background.join_next() => {
            shutdown.cancel();
            serving.await;
            anyhow::bail!("a part of this process ended that never does: {ended:?}");
        }
    };
    watching_kafka.abort();
    // Every request waits for its own acknowledgement, so this waits only for those whose client has gone.
    let patience = deadline.saturating_duration_since(Instant::now());
    let flushed = tokio::task::spawn_blocking(move || publisher.flush(patience)).await;
    if let Some(traces) = traces {
        // What is late is lost, and the traces say so themselves.
        drop(tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), traces.flush()).await);
    }
    anyhow::ensure!(left == 0, "drain ended by its deadline: {left} connections were cut");
    flushed?.context("drain ended with records that no broker has acknowledged; their clients were not told 201")?;
    log::info!("drained: every request was answered");
    Ok(())
}

/// What goes on beside the requests, until the process ends. None of it ends by itself.
fn background(app: &Arc<App>, admin: TcpListener) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(server::serve_admin(Arc::clone(app), admin));
    tasks.spawn(watch_store(Arc::clone(app)));
    tasks.spawn(read_tail(Arc::clone(app)));
    tasks.spawn(measure_publishing(Arc::clone(app)));
    match &app.keys {
        Some(keys) => drop(tasks.spawn(Arc::clone(keys).follow(keys::LOOK))),
        None => {
            log::info!("API keys are off: whoever reaches this port may post and read; API_KEYS_FILE turns them on")
        }
    }
    tasks
}

/// When everything must be over, once `shutdown` is cancelled.
async fn deadline(config: &Config, shutdown: Shutdown) -> Instant {
    shutdown.cancelled().await;
    Instant::now() + config.shutdown_timeout
}

/// The publisher that is configured; it connects in the background.
fn connect(config: &Config) -> anyhow::Result<Arc<dyn KafkaBackend>> {
    Ok(match config.kafka_client {
        KafkaClient::Rdkafka => {
            let (producer, topic) = (producer_config(&config.kafka, NAME), &config.kafka.topics.events);
            match config.kafka.linger_ms {
                0 => Arc::new(KafkaPublisher::with_group_commit(producer, topic)?),
                _ => Arc::new(KafkaPublisher::new(producer, topic)?),
            }
        }
        KafkaClient::KafkaRust => Arc::new(KafkaRustPublisher::new(&config.kafka, NAME)?),
    })
}

/// Keeps asking how things are. Ends only when the client can never publish to these brokers, with the reason.
async fn watch_kafka(app: Arc<App>, publisher: Arc<dyn KafkaBackend>) -> String {
    tokio::select! {
        refused = publisher.watch(&app.checks.producer, WATCH_PERIOD) => refused,
        never = keep_topics(&app) => match never {},
    }
}

/// Creates the topics as soon as a broker answers, and again when posts can't succeed any more: somebody may have deleted
/// them. Whether posts can succeed is another question: the right to create topics is not needed for that.
async fn keep_topics(app: &App) -> Infallible {
    let mut said = None;
    loop {
        let failed = create_topics(&app.config.kafka, NAME).await.err();
        // Brokers that are away are said by the check.
        let failed = failed.filter(|error| !matches!(error, TopicError::Unreachable { .. })).map(|e| e.to_string());
        if let Some(error) = failed.as_ref().filter(|_| failed != said) {
            log::warn!("the topics can't be looked after: {error}");
        }
        said = failed;
        tokio::time::sleep(WATCH_PERIOD).await;
        while app.checks.producer.get().ok {
            tokio::time::sleep(WATCH_PERIOD).await;
        }
    }
}

async fn read_tail(app: Arc<App>) {
    app.tail.run().await;
}

async fn measure_publishing(app: Arc<App>) {
    app.publisher.measure().await;
}

async fn watch_store(app: Arc<App>) {
    let mut said = None;
    loop {
        match app.store.check().await {
            Ok(()) => app.checks.store.up("Redis answers"),
            Err(error) => app.checks.store.down(&error.to_string()),
        }
        let warning = app.store.settings_warning();
        if said != warning {
            warning.iter().for_each(|warning| log::warn!("{warning}"));
            said = warning;
        }
        if let Ok(before) = app.store.trimmed().await {
            *app.trimmed.lock().unwrap_or_else(PoisonError::into_inner) = before;
        }
        let workers = app.store.live_workers().await;
        let heard = workers.as_ref().ok().map(|workers| (Instant::now(), workers.clone()));
        *app.workers.lock().unwrap_or_else(PoisonError::into_inner) = heard;
        match workers {
            Ok(workers) if workers.is_empty() => {
                app.checks.consumer.down("no worker has sent a heartbeat for 15 s; start user-activity-worker");
            }
            Ok(workers) => app.checks.consumer.up(&format!("workers that are alive: {}", workers.len())),
            Err(error) => app.checks.consumer.down(&format!("unknown: {error}")),
        }
        tokio::time::sleep(WATCH_PERIOD).await;
    }
}
