//! A world of a test's own: names that no other test uses, the settings that go with them, and
//! the processes started in it.

use std::collections::BTreeMap;

use tokio::process::Command;
use uuid::Uuid;

use crate::{env, kafka::Kafka, process, service::Service};

#[path = "../../common/tests/support/ports.rs"]
mod ports;

/// What the processes of one test are told.
#[derive(Debug, Clone)]
pub struct World {
    /// The main topic. The system creates it.
    pub topic: String,
    /// Where its dead letters go.
    pub dead_letter_topic: String,
    /// The consumer group of its workers.
    pub group: String,
    brokers: String,
    settings: BTreeMap<&'static str, String>,
}

impl World {
    /// A new world on the shared Kafka and the shared Redis, which nobody stops.
    #[must_use]
    pub fn shared() -> Self {
        Self::on(&env::kafka_brokers(), &env::redis_url())
    }

    /// A new world on the shared Kafka and a Redis of the test's own.
    #[must_use]
    pub fn on_redis(redis_url: &str) -> Self {
        Self::on(&env::kafka_brokers(), redis_url)
    }

    /// A new world on a Kafka of the test's own and the shared Redis.
    #[must_use]
    pub fn on_kafka(brokers: &str) -> Self {
        Self::on(brokers, &env::redis_url())
    }

    /// A new world on these engines. Its parts bear with each other and with the engines for longer than a busy machine
    /// holds one of them up: what works slowly is no outage.
    #[must_use]
    pub fn on(brokers: &str, redis_url: &str) -> Self {
        let name = format!("e2e-{}", Uuid::now_v7().simple());
        let dead_letter_topic = format!("{name}-dlq");
        let settings = [
            ("BIND_ADDRESS", "127.0.0.1"),
            ("KAFKA_BROKERS", brokers),
            ("KAFKA_TOPIC", &name),
            ("KAFKA_DLQ_TOPIC", &dead_letter_topic),
            ("KAFKA_CONSUMER_GROUP", &name),
            ("KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "60000"),
            ("KAFKA_PRODUCER_TIMEOUT_MS", "30000"),
            ("REDIS_URL", redis_url),
            ("REDIS_TIMEOUT", "30s"),
            ("REDIS_KEY_PREFIX", &format!("{name}:")),
            ("LOG_LEVEL", "info"),
        ];
        let settings = settings.map(|(key, value)| (key, value.to_owned())).into();
        Self { topic: name.clone(), dead_letter_topic, group: name, brokers: brokers.to_owned(), settings }
    }

    /// The same world, whose workers are soon missed by the group: for those that are killed or frozen. The shortest session
    /// that brokers accept.
    #[must_use]
    pub fn with_short_session(self) -> Self {
        self.with("KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "6000")
    }

    /// The same world with one setting changed, for both binaries.
    #[must_use]
    pub fn with(mut self, setting: &'static str, value: impl Into<String>) -> Self {
        self.settings.insert(setting, value.into());
        self
    }

    /// The same world with another topic for events: the same group, dead letters and store.
    #[must_use]
    pub fn with_topic(self, topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..self.with("KAFKA_TOPIC", topic) }
    }

    /// This world's Kafka, as an outsider.
    #[must_use]
    pub fn kafka(&self) -> Kafka {
        Kafka::new(&self.brokers)
    }

    /// Starts an API and a worker and waits until both are ready.
    pub async fn start(&self) -> (Service, Service) {
        let (mut api, mut worker) = (self.spawn_api(), self.spawn_worker());
        api.ready().await;
        worker.ready().await;
        (api, worker)
    }

    /// Starts an API and waits until it is ready.
    pub async fn start_api(&self) -> Service {
        let mut api = self.spawn_api();
        api.ready().await;
        api
    }

    /// Starts a worker and waits until it is ready.
    pub async fn start_worker(&self) -> Service {
        let mut worker = self.spawn_worker();
        worker.ready().await;
        worker
    }

    /// Starts an API without waiting for anything.
    #[must_use]
    pub fn spawn_api(&self) -> Service {
        let port = free_port();
        let mut command = self.api_command();
        command.env("PORT", port.to_string());
        Service::spawn("api", port, command)
    }

    /// Starts a worker without waiting for anything.
    #[must_use]
    pub fn spawn_worker(&self) -> Service {
        let port = free_port();
        let mut command = self.worker_command();
        command.env("ADMIN_PORT", port.to_string());
        Service::spawn("worker", port, command)
    }

    /// The API's command with this world's settings but without a port.
    #[must_use]
    pub fn api_command(&self) -> Command {
        let mut command = self.command("user-activity-api");
        if !self.settings.contains_key("API_ADMIN_PORT") {
            command.env("API_ADMIN_PORT", "0");
        }
        command
    }

    /// The worker's command with this world's settings but without a port.
    #[must_use]
    pub fn worker_command(&self) -> Command {
        self.command("user-activity-worker")
    }

    fn command(&self, binary: &str) -> Command {
        let mut command = process::command(env::bin_dir().join(binary));
        command.envs(&self.settings);
        command
    }
}

/// A TCP port of 127.0.0.1 that is free together with the one above it (a broker wants two), and that nobody else gets: see
/// the file that holds it, which the tests of the crates share.
///
/// # Panics
/// When no port is free.
#[must_use]
pub fn free_port() -> u16 {
    ports::free_port()
}
