//! Publishing through the crate `kafka` (kafka-rust), the API's `--kafka-client kafka-rust`.
//!
//! The crate blocks, panics in places, has time-outs that can't be set and never reconnects. So it lives on a thread of
//! its own behind a bounded queue, and a second thread supervises that one: a panic starts a new one, a call that hangs
//! is left behind and a new one takes over. A client that met any error is thrown away.
//!
//! There is no idempotent producer here: when a request fails, the fate of its records is unknown. They are sent again
//! only where their leader has said that it did not take them: it is not the leader (any more), replicas are missing, or
//! they are too large together. Whoever tries an event again may double its record on the topic. That is harmless: the
//! worker stores an `eventId` once.
//!
//! The crate writes neither headers nor timestamps. The worker reads the event from the record's value alone, and brokers
//! take the age of a segment without timestamps from its file.

mod link;
mod queue;
mod versions;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use self::link::{Link, LinkSettings};
use self::queue::{Next, Queue};
use super::publisher::{KafkaBackend, Load, Published, Unflushed};
use super::{Delivered, Publisher};
use crate::config::{KafkaSettings, Protocol};
use crate::event::UserEvent;
use crate::health::Check;
use crate::mutation::{Mutation, active};

/// How often the metadata are asked for: new partitions, new leaders, and whether the brokers are there.
const REFRESH: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often the supervisor looks.
const TICK: Duration = Duration::from_millis(100);
/// Threads that may hang at a time. The crate lets each go after its own two minutes.
const MOST_HUNG: usize = 4;

/// Publishes through the crate `kafka`.
pub struct KafkaRustPublisher {
    shared: Arc<Shared>,
}

/// Why a client, or the thread that uses it, goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    /// Something failed; a new client may do better.
    Lost(String),
    /// No client of this crate can ever work with these brokers.
    Refused(String),
    /// The queue is closed, or another thread has taken over.
    Over,
}

/// How things are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Starting,
    Up,
    Down(String),
    Refused(String),
}

/// What the threads and the publisher share.
struct Shared {
    queue: Queue,
    link: LinkSettings,
    /// From taking a record to its answer; what hangs for longer helps nobody.
    delivery_timeout: Duration,
    status: Mutex<Status>,
}

impl KafkaRustPublisher {
    /// A publisher to the events' topic; connects in the background.
    ///
    /// # Errors
    /// When its thread can't be started.
    pub fn new(settings: &KafkaSettings, client_id: &str) -> io::Result<Self> {
        let delivery_timeout = settings.delivery_timeout;
        let link = LinkSettings {
            brokers: settings.brokers.split(',').map(|broker| with_port(broker.trim())).collect(),
            topic: settings.topics.events.clone(),
            client_id: settings.client_id.as_deref().unwrap_or(client_id).to_owned(),
            // Below the delivery time-out: the leader's own answer says more than our giving up.
            ack_timeout: settings.request_timeout.min(delivery_timeout * 3 / 4),
        };
        let bytes = usize::try_from(settings.queue_kbytes).unwrap_or(usize::MAX).saturating_mul(1024);
        let status = Mutex::new(Status::Starting);
        let shared = Arc::new(Shared { queue: Queue::new(bytes), link, delivery_timeout, status });
        let supervised = Arc::clone(&shared);
        Builder::new().name("kafka-rust-watch".into()).spawn(move || supervise(&supervised))?;
        Ok(Self { shared })
    }

    /// What this backend can't do of these settings, a sentence each.
    #[must_use]
    pub fn unsupported(settings: &KafkaSettings) -> Vec<String> {
        let wanted = [
            ("KAFKA_COMPRESSION", settings.compression != "none"),
            ("KAFKA_LINGER_MS", settings.linger_ms > 0),
            ("KAFKA_PRODUCER_RETRIES", settings.retries.is_some()),
            ("KAFKA_BROKERS with a security protocol", settings.brokers.contains("://")),
            ("KAFKA_SECURITY_PROTOCOL other than plaintext", settings.security.protocol != Protocol::Plaintext),
        ];
        let wanted = wanted.iter().filter(|(_, wanted)| *wanted);
        wanted
            .map(|(name, _)| format!("KAFKA_CLIENT=kafka-rust can't do {name}; take rdkafka or leave it out"))
            .collect()
    }
}

/// `broker` with the default port where it names none.
fn with_port(broker: &str) -> String {
    let has_port = broker.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { broker.to_owned() } else { format!("{broker}:9092") }
}

impl Drop for KafkaRustPublisher {
    fn drop(&mut self) {
        self.shared.queue.close("the publisher is closed");
    }
}

impl Publisher for KafkaRustPublisher {
    fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published {
        let key = event.user_id.as_str().as_bytes();
        match self.shared.queue.push(key, json, Instant::now() + self.shared.delivery_timeout) {
            Ok(_) if active(Mutation::ReplyBeforeAck) => {
                Box::pin(std::future::ready(Ok(Delivered { partition: -1, offset: -1 })))
            }
            Ok(receipt) => Box::pin(receipt.outcome()),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn load(&self) -> Load {
        self.shared.queue.load()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.shared.queue.has_room(bytes)
    }
}

impl KafkaBackend for KafkaRustPublisher {
    fn watch<'a>(&'a self, check: &'a Check, period: Duration) -> BoxFuture<'a, String> {
        Box::pin(async move {
            loop {
                match self.shared.status().clone() {
                    Status::Starting => {}
                    Status::Up => check.up("the brokers answer and the topic has leaders"),
                    Status::Down(why) => check.down(&why),
                    Status::Refused(why) => {
                        check.down(&why);
                        return why;
                    }
                }
                tokio::time::sleep(period).await;
            }
        })
    }

    fn flush(&self, timeout: Duration) -> Result<(), Unflushed> {
        match self.shared.queue.empty_within(timeout) {
            true => Ok(()),
            false => Err(Unflushed("records are waiting for the brokers".into())),
        }
    }
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, status: Status) {
        *self.status() = status;
    }

    /// How long one call into the crate may take.
    fn patience(&self) -> Duration {
        self.delivery_timeout.max(Duration::from_secs(1))
    }
}

/// Starts the thread that sends, and a new one whenever it has panicked or hangs.
fn supervise(shared: &Arc<Shared>) {
    let mut hung: Vec<JoinHandle<()>> = Vec::new();
    while !shared.queue.is_closed() {
        hung.retain(|thread| !thread.is_finished());
        if hung.len() < MOST_HUNG
            && let Some(thread) = employ(shared)
        {
            hung.push(thread);
        }
        shared.queue.forget_expired();
        shared.queue.pause(LONGEST_PAUSE);
    }
}

/// Runs one sending thread until it is over, and gives it back if it hangs.
fn employ(shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let duty = Arc::new(Duty::default());
    let (ended, end) = channel();
    let started = start(shared, &duty, ended).map_err(|e| log::error!("no thread for kafka-rust: {e}"));
    let thread = started.ok()?;
    match duty.watch(&end, shared) {
        End::Over => {}
        End::Panicked => {
            log::error!("the crate kafka has panicked; its thread is started again");
            shared.set(Status::Down("the crate kafka has panicked".into()));
        }
        End::Hung => {
            log::error!("a call into the crate kafka hangs; another thread takes over");
            shared.set(Status::Down("the brokers do not answer: a call into the crate kafka hangs".into()));
            return Some(thread);
        }
    }
    None
}

fn start(shared: &Arc<Shared>, duty: &Arc<Duty>, ended: Sender<()>) -> io::Result<JoinHandle<()>> {
    let (shared, duty) = (Arc::clone(shared), Arc::clone(duty));
    Builder::new().name("kafka-rust".into()).spawn(move || {
        work(&shared, &duty);
        // Not sent by a panic: then the channel is closed without a word.
        let _ = ended.send(());
    })
}

/// How a sending thread ended.
enum End {
    Over,
    Panicked,
    Hung,
}

/// What a sending thread is at. Once it is dismissed it does nothing more, whenever it comes back.
#[derive(Default)]
struct Duty(Mutex<At>);

#[derive(Default, Clone, Copy)]
enum At {
    #[default]
    Idle,
    Call(Instant),
    Dismissed,
}

impl Duty {
    fn at(&self) -> MutexGuard<'_, At> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one call that may hang.
    fn call<T>(&self, work: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
        *self.at() = At::Call(Instant::now());
        let result = work();
        let mut at = self.at();
        if matches!(*at, At::Dismissed) {
            return Err(Stop::Over);
        }
        *at = At::Idle;
        result
    }

    fn dismissed_after(&self, patience: Duration) -> bool {
        let mut at = self.at();
        let hangs = matches!(*at, At::Call(since) if since.elapsed() > patience);
        if hangs {
            *at = At::Dismissed;
        }
        hangs
    }

    fn watch(&self, end: &Receiver<()>, shared: &Shared) -> End {
        loop {
            match end.recv_timeout(TICK) {
                Ok(()) => return End::Over,
                Err(RecvTimeoutError::Disconnected) => return End::Panicked,
                Err(RecvTimeoutError::Timeout) if self.dismissed_after(shared.patience()) => return End::Hung,
                Err(RecvTimeoutError::Timeout) => shared.queue.forget_expired(),
            }
        }
    }
}

/// The sending thread: one client after the other.
fn work(shared: &Shared, duty: &Duty) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match use_one_client(shared, duty, &mut pause) {
            Stop::Over => return,
            Stop::Refused(why) => {
                shared.set(Status::Refused(why.clone()));
                return shared.queue.close(&why);
            }
            Stop::Lost(why) => {
                log::debug!("kafka-rust: {why}");
                shared.set(Status::Down(why));
            }
        }
        shared.queue.pause(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Sends until something goes wrong, and says what. `pause` goes back to the shortest when something went well.
fn use_one_client(shared: &Shared, duty: &Duty, pause: &mut Duration) -> Stop {
    let mut link = match connect(shared, duty) {
        Ok(link) => link,
        Err(stop) => return stop,
    };
    let mut refreshed = Instant::now();
    loop {
        shared.set(link.complaint().map_or(Status::Up, Status::Down));
        let done = match shared.queue.next(refreshed + REFRESH) {
            Next::Closed => Err(Stop::Over),
            Next::Batch(batch) => duty.call(|| link.send(batch)),
            Next::Due => {
                refreshed = Instant::now();
                duty.call(|| link.refresh())
            }
        };
        match done {
            Ok(()) => *pause = SHORTEST_PAUSE,
            Err(stop) => return stop,
        }
    }
}

/// A client that starts from the first broker that answers. The look at its versions comes first, also because it has
/// time-outs that can be set: the crate is let near brokers only that were there a moment ago.
fn connect(shared: &Shared, duty: &Duty) -> Result<Link, Stop> {
    let mut result = Err(Stop::Lost("no broker is configured".into()));
    for broker in &shared.link.brokers {
        // It has three steps.
        result = duty.call(|| versions::check(broker, shared.patience() / 4));
        match result {
            Ok(()) => return duty.call(|| Link::connect(&shared.link, broker)),
            Err(Stop::Lost(_)) => {}
            Err(stop) => return Err(stop),
        }
    }
    result.and(Err(Stop::Over))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_it_can_not_honour_are_named() {
        let none = KafkaSettings { compression: "none", ..KafkaSettings::default() };
        assert_eq!(KafkaRustPublisher::unsupported(&none), Vec::<String>::new());
        let brokers = "ssl://b:9093".to_owned();
        let all = KafkaSettings { compression: "lz4", linger_ms: 5, retries: Some(3), brokers, ..none };
        let said = KafkaRustPublisher::unsupported(&all).join("\n");
        for name in ["KAFKA_COMPRESSION", "KAFKA_LINGER_MS", "KAFKA_PRODUCER_RETRIES", "KAFKA_BROKERS"] {
            assert!(said.contains(name), "{said}");
        }
    }

    #[test]
    fn a_broker_without_a_port_has_kafkas() {
        assert_eq!(["a", "a:1", "[::1]", "[::1]:2"].map(with_port), ["a:9092", "a:1", "[::1]:9092", "[::1]:2"]);
    }
}
