//! The settings of every Kafka client, in one place. Each value was measured or guards against a known fault; a test
//! pins the exact set, so that none drifts unseen. Names: librdkafka's CONFIGURATION.md.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::statistics::{Broker, Statistics};

use crate::config::{KafkaSecurity, KafkaSettings, Protocol};

/// What a group member has beyond [`KafkaSettings`].
#[derive(Debug, Clone, Default)]
pub struct ConsumerSettings {
    /// `group.id`.
    pub group: String,
    /// How long the group waits for a silent member.
    pub session_timeout: Duration,
}

fn client_config(settings: &KafkaSettings, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", settings.client_id.as_deref().unwrap_or(client_id))
        // The first success after a broker came back: 0.06 s with these two, 2.5 s with the defaults.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("socket.keepalive.enable", "true")
        .set("socket.connection.setup.timeout.ms", settings.connection_timeout.as_millis().to_string())
        // Topics are created explicitly, with a stated number of partitions.
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Warning);
    secure(&mut config, &settings.security);
    config
}

/// Encryption and login. That a broker's certificate is for its host name is librdkafka's default, and stays.
fn secure(config: &mut ClientConfig, security: &KafkaSecurity) {
    if security.protocol == Protocol::Plaintext {
        return;
    }
    config.set("security.protocol", security.protocol.name());
    if let Some(file) = &security.ca_file {
        config.set("ssl.ca.location", file);
    }
    if let Some(certificate) = &security.certificate {
        config.set("ssl.certificate.location", &certificate.certificate_file);
        config.set("ssl.key.location", &certificate.key_file);
        if let Some(password) = &certificate.key_password {
            config.set("ssl.key.password", password.expose());
        }
    }
    if let Some(sasl) = &security.sasl {
        config
            .set("sasl.mechanism", sasl.mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", sasl.password.expose());
    }
}

/// The producer of events: idempotent, acknowledged by all in-sync replicas, partitions as the Java clients choose.
#[must_use]
pub fn producer_config(settings: &KafkaSettings, client_id: &str) -> ClientConfig {
    let mut config = client_config(settings, client_id);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", settings.linger_ms.to_string())
        .set("message.timeout.ms", settings.delivery_timeout.as_millis().to_string())
        .set("request.timeout.ms", settings.request_timeout.as_millis().to_string())
        .set("socket.timeout.ms", settings.request_timeout.as_millis().max(10).to_string())
        .set("retry.backoff.ms", settings.retry_backoff.as_millis().max(1).to_string())
        .set("compression.type", settings.compression)
        // The API and the topic have the last word on sizes.
        .set("message.max.bytes", "1000000000")
        // A topic's max.message.bytes is for the whole batch, and all records of one that is too large are refused for
        // good. The default of 1 MB is too much for a topic whose limit was lowered; more than this makes nothing faster.
        .set("batch.size", "131072")
        .set("queue.buffering.max.kbytes", settings.queue_kbytes.to_string())
        // For `NoBrokers`.
        .set("statistics.interval.ms", "1000");
    if let Some(retries) = settings.retries {
        config.set("retries", retries.to_string());
    }
    config
}

/// As [`producer_config`], with librdkafka's largest queue: a batch of dead letters must find room in it. It always
/// compresses, whatever `KAFKA_COMPRESSION` says: a topic's `max.message.bytes` is for what is sent, so a record that was
/// small on its topic because its producer compressed it must be as small once more. zstd leaves the least.
#[must_use]
pub fn dead_letter_producer_config(settings: &KafkaSettings, client_id: &str) -> ClientConfig {
    let mut config = producer_config(settings, client_id);
    // A worker waits for its dead letters, and must not wait so long that the group takes it for dead.
    let timeout = settings.delivery_timeout.min(Duration::from_secs(10)).as_millis().to_string();
    config
        .set("queue.buffering.max.kbytes", "1048576")
        .set("message.timeout.ms", timeout)
        .set("compression.type", "zstd");
    config
}

/// A member of the consumer group that commits by itself and decides itself where to start.
#[must_use]
pub fn consumer_config(settings: &KafkaSettings, client_id: &str, consumer: &ConsumerSettings) -> ClientConfig {
    let mut config = client_config(settings, client_id);
    config
        .set("group.id", &consumer.group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", consumer.session_timeout.as_millis().to_string())
        // Members learn of a rebalance with their next heartbeat, twice in a cooperative one: at 3 s, the usual third of
        // the session time-out, partitions stood still for up to 5 s whenever a worker joined.
        .set("heartbeat.interval.ms", "500")
        .set("max.poll.interval.ms", "120000")
        // Its default of a second, waited whenever the local queue is full, halves the rate.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "16384")
        .set("statistics.interval.ms", "5000")
        .set("topic.metadata.refresh.interval.ms", "30000");
    config
}

/// Sends librdkafka's own log lines to the `log` crate at the levels they have there, except that a broker that is
/// away is said once by us, not once per attempt by it.
#[derive(Debug, Clone, Default)]
pub struct LogContext {
    /// Why no connection comes about, where it is a matter of encryption or login.
    pub refusal: Refusal,
    /// Whether it will ever connect again.
    pub no_brokers: NoBrokers,
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.refusal.note(facility, message);
        log_line(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        log::debug!(target: "librdkafka", "{error}: {reason}");
    }

    fn stats(&self, statistics: Statistics) {
        self.no_brokers.note(&statistics);
    }
}

impl rdkafka::consumer::ConsumerContext for LogContext {}

/// Notices a client that has no broker left to connect to and never finds one again: only a new client helps.
///
/// A broker that its controller has fenced, as after a pause of the machine, answers that there are no brokers. librdkafka
/// since 2.10 then forgets them all, those of `bootstrap.servers` as well, and may never try them again
/// (confluentinc/librdkafka issue 5301). What is left are entries of its own, such as the coordinator's, and sometimes one of a
/// broker that it has forgotten but can't drop, because something still refers to it. It never connects to that one again.
#[derive(Debug, Clone, Default)]
pub struct NoBrokers(Arc<AtomicUsize>);

impl NoBrokers {
    /// One look proves nothing: a client that starts over has no broker for a moment.
    const LOOKS: usize = 2;
    /// A client without any connection tries one of its brokers at least once a second.
    const SILENCE: Duration = Duration::from_secs(30);

    /// Takes in what the client says of itself from time to time.
    pub fn note(&self, statistics: &Statistics) {
        let brokers = || statistics.brokers.values();
        let connected = brokers().any(|broker| broker.source != "internal" && broker.state == "UP");
        let any = brokers().any(|broker| is_of_a_cluster(broker) && (connected || !is_given_up(broker)));
        let looks = if any { 0 } else { self.0.load(Ordering::Relaxed) + 1 };
        self.0.store(looks, Ordering::Relaxed);
    }

    /// Whether it is so for good.
    #[must_use]
    pub fn for_good(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::LOOKS
    }
}

/// Whether an entry is of a broker, and not one of the client's own.
fn is_of_a_cluster(broker: &Broker) -> bool {
    matches!(broker.source.as_str(), "configured" | "learned")
}

/// Whether the client has not tried to connect to it for long.
fn is_given_up(broker: &Broker) -> bool {
    let silent = u64::try_from(broker.stateage).map(Duration::from_micros).is_ok_and(|age| age > NoBrokers::SILENCE);
    silent && matches!(broker.state.as_str(), "INIT" | "DOWN" | "TRY_CONNECT")
}

/// Why a client's latest connection failed, if encryption or login was the cause. librdkafka says so in its log only: the
/// calls that wait for a connection just time out.
#[derive(Debug, Clone, Default)]
pub struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    /// Takes in a log line. It never holds a secret: librdkafka writes none, brokers know better than to repeat one.
    pub fn note(&self, facility: &str, message: &str) {
        if facility != "FAIL" {
            return;
        }
        // Any other failure since then is the newer truth.
        let cause = ["SASL", "SSL handshake", "security.protocol", "certificate"];
        // The line begins with the thread's name in brackets, which nobody needs.
        let message = message.split_once("]: ").map_or(message, |(_, rest)| rest);
        let refusal = cause.iter().any(|word| message.contains(word)).then(|| message.to_owned());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// The cause in the end of a sentence, empty where there is none.
    #[must_use]
    pub fn suffix(&self) -> String {
        let refusal = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        refusal.map_or_else(String::new, |why| format!("; connections are refused: {why}"))
    }
}

/// One log line of librdkafka.
pub fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let level = match (level, facility) {
        // Connection attempts: repeated for as long as a broker is away, which the checks report once.
        // Commits that met a rebalance: they are made again.
        (_, "FAIL" | "ERROR" | "COMMITFAIL") => log::Level::Debug,
        (RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error, _) => {
            log::Level::Error
        }
        (RDKafkaLogLevel::Warning, _) => log::Level::Warn,
        (RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info, _) => log::Level::Info,
        (RDKafkaLogLevel::Debug, _) => log::Level::Debug,
    };
    log::log!(target: "librdkafka", level, "{facility}: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Checks, ClientCertificate, KafkaArgs, Sasl};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        kafka: KafkaArgs,
    }

    fn defaults() -> KafkaSettings {
        let cli: Cli = crate::config::parse(["test"], |_| None).unwrap();
        let mut checks = Checks::default();
        let settings = cli.kafka.check(&mut checks);
        checks.finish(settings).unwrap()
    }

    fn pairs(config: &ClientConfig) -> Vec<String> {
        let mut pairs: Vec<_> = config.config_map().iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.sort();
        pairs
    }

    #[test]
    fn the_producers_settings_are_pinned() {
        assert_eq!(
            pairs(&producer_config(&defaults(), "api")),
            [
                "acks=all",
                "allow.auto.create.topics=false",
                "batch.size=131072",
                "bootstrap.servers=localhost:9092",
                "client.id=api",
                "compression.type=none",
                "enable.idempotence=true",
                "linger.ms=0",
                "message.max.bytes=1000000000",
                "message.timeout.ms=5000",
                "partitioner=murmur2_random",
                "queue.buffering.max.kbytes=65536",
                "reconnect.backoff.max.ms=500",
                "reconnect.backoff.ms=50",
                "request.timeout.ms=5000",
                "retry.backoff.ms=100",
                "socket.connection.setup.timeout.ms=10000",
                "socket.keepalive.enable=true",
                "socket.timeout.ms=5000",
                "statistics.interval.ms=1000",
            ]
        );
        let retries = KafkaSettings { retries: Some(3), ..defaults() };
        assert!(pairs(&producer_config(&retries, "api")).contains(&"retries=3".to_owned()));
    }

    #[test]
    fn the_consumers_settings_are_pinned() {
        let consumer = ConsumerSettings { group: "g".into(), session_timeout: Duration::from_secs(10) };
        assert_eq!(
            pairs(&consumer_config(&defaults(), "worker", &consumer)),
            [
                "allow.auto.create.topics=false",
                "auto.offset.reset=earliest",
                "bootstrap.servers=localhost:9092",
                "client.id=worker",
                "enable.auto.commit=false",
                "enable.auto.offset.store=false",
                "fetch.queue.backoff.ms=5",
                "fetch.wait.max.ms=100",
                "group.id=g",
                "heartbeat.interval.ms=500",
                "max.poll.interval.ms=120000",
                "partition.assignment.strategy=cooperative-sticky",
                "queued.max.messages.kbytes=16384",
                "reconnect.backoff.max.ms=500",
                "reconnect.backoff.ms=50",
                "session.timeout.ms=10000",
                "socket.connection.setup.timeout.ms=10000",
                "socket.keepalive.enable=true",
                "statistics.interval.ms=5000",
                "topic.metadata.refresh.interval.ms=30000",
            ]
        );
    }

    #[test]
    fn dead_letters_are_compressed_whatever_events_are() {
        for compression in ["none", "gzip"] {
            let config = dead_letter_producer_config(&KafkaSettings { compression, ..defaults() }, "worker");
            assert_eq!(config.get("compression.type"), Some("zstd"), "with {compression}");
        }
    }

    #[test]
    fn encryption_and_login_are_part_of_every_client() {
        let certificate = ClientCertificate {
            certificate_file: "c.pem".into(),
            key_file: "k.pem".into(),
            key_password: Some("kp".into()),
        };
        let sasl = Sasl { mechanism: "PLAIN", username: "u".into(), password: "p".into() };
        let security = KafkaSecurity {
            protocol: Protocol::SaslSsl,
            ca_file: Some("ca.pem".into()),
            certificate: Some(certificate),
            sasl: Some(sasl),
        };
        let settings = KafkaSettings { security, ..defaults() };
        let group = ConsumerSettings::default();
        let clients = [
            producer_config(&settings, "a"),
            dead_letter_producer_config(&settings, "a"),
            consumer_config(&settings, "a", &group),
        ];
        for client in clients {
            let is = |name, value| assert_eq!(client.get(name), Some(value), "{name}");
            is("security.protocol", "sasl_ssl");
            is("ssl.ca.location", "ca.pem");
            is("ssl.certificate.location", "c.pem");
            is("ssl.key.location", "k.pem");
            is("ssl.key.password", "kp");
            is("sasl.mechanism", "PLAIN");
            is("sasl.username", "u");
            is("sasl.password", "p");
        }
    }

    #[test]
    fn a_refusal_is_the_latest_failure_if_that_is_one() {
        let refusal = Refusal::default();
        refusal.note("FAIL", "[thrd:b]: b: SASL authentication error: Authentication failed");
        assert_eq!(refusal.suffix(), "; connections are refused: b: SASL authentication error: Authentication failed");
        refusal.note("REQTMOUT", "[thrd:b]: timed out");
        assert!(!refusal.suffix().is_empty());
        refusal.note("FAIL", "[thrd:b]: b: Connect to b failed: Connection refused");
        assert_eq!(refusal.suffix(), "");
    }

    #[test]
    fn a_client_without_brokers_is_lost_once_that_was_so_twice_in_a_row() {
        let statistics = |sources: &[&str]| {
            let named = |source: &&str| {
                (
                    format!("a {source} one"),
                    rdkafka::statistics::Broker { source: (*source).to_owned(), ..Default::default() },
                )
            };
            Statistics { brokers: sources.iter().map(named).collect(), ..Default::default() }
        };
        let (none, some) = (statistics(&["internal", "logical"]), statistics(&["logical", "configured"]));
        let no_brokers = NoBrokers::default();
        for (look, lost) in [(&none, false), (&some, false), (&none, false), (&none, true)] {
            no_brokers.note(look);
            assert_eq!(no_brokers.for_good(), lost);
        }
        no_brokers.note(&statistics(&["learned"]));
        assert!(!no_brokers.for_good());
    }

    #[test]
    fn a_client_that_tries_none_of_its_brokers_any_more_is_lost() {
        let lost = |brokers: &[(&str, &str, i64)]| {
            let named = brokers.iter().map(|(source, state, seconds)| {
                let stateage = seconds * 1_000_000;
                let (source, state) = ((*source).to_owned(), (*state).to_owned());
                (source.clone(), Broker { source, state, stateage, ..Default::default() })
            });
            let statistics = Statistics { brokers: named.collect(), ..Default::default() };
            let no_brokers = NoBrokers::default();
            no_brokers.note(&statistics);
            no_brokers.note(&statistics);
            no_brokers.for_good()
        };
        let given_up = ("learned", "TRY_CONNECT", 31);
        for (brokers, is_lost) in [
            (vec![given_up, ("logical", "TRY_CONNECT", 1), ("internal", "UP", 90)], true),
            (vec![("configured", "INIT", 31)], true),
            (vec![("learned", "TRY_CONNECT", 29)], false),
            (vec![given_up, ("configured", "CONNECT", 60)], false),
            (vec![given_up, ("configured", "UP", 3600)], false),
            // It may belong to a group and have nothing to read.
            (vec![given_up, ("logical", "UP", 3600)], false),
        ] {
            assert_eq!(lost(&brokers), is_lost, "{brokers:?}");
        }
    }

    #[test]
    fn librdkafka_accepts_all_sets() {
        let consumer = ConsumerSettings { group: "g".into(), session_timeout: Duration::from_secs(10) };
        producer_config(&defaults(), "api").create_native_config().unwrap();
        dead_letter_producer_config(&defaults(), "worker").create_native_config().unwrap();
        consumer_config(&defaults(), "worker", &consumer).create_native_config().unwrap();
    }
}
