//! Settings of the Kafka clients and topics. The names are those of the Node services where these had one.

use std::time::Duration;

use clap::Args;

use super::values::one_of;
use super::{Checks, KafkaSecurity, KafkaSecurityArgs, range, text};

const HEADING: &str = "Kafka";

/// The Kafka part of a command line.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = HEADING)]
pub struct KafkaArgs {
    /// Brokers to start from, host:port separated by commas [also: KAFKA_BROKER]
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092", value_name = "LIST")]
    pub kafka_brokers: String,
    /// Topic of the events
    #[arg(long, env = "KAFKA_TOPIC", default_value = "user-activity-events", value_name = "NAME")]
    pub kafka_topic: String,
    /// Topic of the dead letters
    #[arg(long, env = "KAFKA_DLQ_TOPIC", default_value = "user-activity-events-dlq", value_name = "NAME")]
    pub kafka_dlq_topic: String,
    /// Name shown in the brokers' logs and metrics; the binary's own when absent
    #[arg(long, env = "KAFKA_CLIENT_ID", value_name = "NAME")]
    pub kafka_client_id: Option<String>,
    /// Partitions of a topic that has to be created
    #[arg(long, env = "KAFKA_TOPIC_PARTITIONS", default_value = "6", value_name = "N")]
    pub kafka_topic_partitions: String,
    /// Replicas of a topic that has to be created, -1 for the broker's default
    #[arg(
        long,
        env = "KAFKA_TOPIC_REPLICATION_FACTOR",
        default_value = "-1",
        value_name = "N",
        allow_hyphen_values = true
    )]
    pub kafka_topic_replication_factor: String,
    /// Longest time to set up a connection, in milliseconds
    #[arg(long, env = "KAFKA_CONNECTION_TIMEOUT_MS", default_value = "10000", value_name = "MS")]
    pub kafka_connection_timeout_ms: String,
    /// Longest time for one request, in milliseconds; cut to the producer's time-out
    #[arg(long, env = "KAFKA_REQUEST_TIMEOUT_MS", default_value = "30000", value_name = "MS")]
    pub kafka_request_timeout_ms: String,
    /// Longest time until a record is acknowledged, retries included, in milliseconds
    #[arg(long, env = "KAFKA_PRODUCER_TIMEOUT_MS", default_value = "5000", value_name = "MS")]
    pub kafka_producer_timeout_ms: String,
    /// Retries of one record, 1 to 2147483647; as many as the time-out allows when absent
    #[arg(long, env = "KAFKA_PRODUCER_RETRIES", value_name = "N")]
    pub kafka_producer_retries: Option<String>,
    /// Wait before a retry, in milliseconds
    #[arg(long, env = "KAFKA_PRODUCER_RETRY_BACKOFF_MS", default_value = "100", value_name = "MS")]
    pub kafka_producer_retry_backoff_ms: String,
    /// How long a record waits for others before it is sent, in milliseconds; 0: a lone record is sent at once, and records
    /// that arrive while others are in flight are sent together
    #[arg(long, env = "KAFKA_LINGER_MS", default_value = "0", value_name = "MS")]
    pub kafka_linger_ms: String,
    /// Compression of produced records: none, gzip, snappy or lz4
    #[arg(long, env = "KAFKA_COMPRESSION", default_value = "none", value_name = "CODEC")]
    pub kafka_compression: String,
    /// KiB of records that may wait for the brokers before new ones are refused
    #[arg(long, env = "KAFKA_QUEUE_KBYTES", default_value = "65536", value_name = "KIB")]
    pub kafka_queue_kbytes: String,
    /// Encryption and login.
    #[command(flatten)]
    pub security: KafkaSecurityArgs,
}

/// Names and shape of the two topics.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    /// Topic of the events.
    pub events: String,
    /// Topic of the dead letters.
    pub dead_letters: String,
    /// Partitions to create a topic with.
    pub partitions: i32,
    /// Replicas to create a topic with, -1 for the broker's default.
    pub replication_factor: i32,
}

/// The Kafka part of a configuration.
#[derive(Debug, Clone, Default)]
pub struct KafkaSettings {
    /// Bootstrap list.
    pub brokers: String,
    /// `None`: the binary's own name.
    pub client_id: Option<String>,
    /// Names and shape of the topics.
    pub topics: Topics,
    /// To set up a connection.
    pub connection_timeout: Duration,
    /// For one request.
    pub request_timeout: Duration,
    /// From enqueueing a record to its acknowledgement.
    pub delivery_timeout: Duration,
    /// `None`: as many as the delivery time-out allows.
    pub retries: Option<u32>,
    /// Before a retry.
    pub retry_backoff: Duration,
    /// Wait for more records, milliseconds; 0: as the load has it.
    pub linger_ms: u32,
    /// Codec name.
    pub compression: &'static str,
    /// Byte budget of records in flight, KiB.
    pub queue_kbytes: u32,
    /// Encryption and login.
    pub security: KafkaSecurity,
}

impl KafkaArgs {
    /// Types the settings.
    pub fn check(&self, checks: &mut Checks) -> KafkaSettings {
        // The bounds are those of the client library, which would refuse other values one at a time.
        let up_to_five_minutes = |from: u64| move |raw: &str| range(from..=300_000)(raw).map(Duration::from_millis);
        let delivery_timeout =
            checks.take("KAFKA_PRODUCER_TIMEOUT_MS", &self.kafka_producer_timeout_ms, up_to_five_minutes(100));
        let request_timeout =
            checks.take("KAFKA_REQUEST_TIMEOUT_MS", &self.kafka_request_timeout_ms, up_to_five_minutes(10));
        let linger_ms = checks.take("KAFKA_LINGER_MS", &self.kafka_linger_ms, range(0..=900_000));
        if !delivery_timeout.is_zero() && u128::from(linger_ms) >= delivery_timeout.as_millis() {
            checks.complain(format!(
                "KAFKA_LINGER_MS={linger_ms}: must be shorter than KAFKA_PRODUCER_TIMEOUT_MS={}",
                delivery_timeout.as_millis()
            ));
        }
        let topics = self.topics(checks);
        let client_id = self.kafka_client_id.as_deref().filter(|raw| !raw.is_empty());
        let retries = self.kafka_producer_retries.as_deref().filter(|raw| !raw.is_empty());
        KafkaSettings {
            brokers: checks.take("KAFKA_BROKERS", &self.kafka_brokers, brokers),
            client_id: client_id.map(|raw| checks.take("KAFKA_CLIENT_ID", raw, client_name)),
            topics,
            connection_timeout: checks.take(
                "KAFKA_CONNECTION_TIMEOUT_MS",
                &self.kafka_connection_timeout_ms,
                up_to_five_minutes(1000),
            ),
            request_timeout: request_timeout.min(delivery_timeout),
            delivery_timeout,
            // Idempotence rules out 0: a retry is what makes "exactly once into the log" possible.
            retries: retries.map(|raw| checks.take("KAFKA_PRODUCER_RETRIES", raw, range(1..=2_147_483_647))),
            retry_backoff: checks.take(
                "KAFKA_PRODUCER_RETRY_BACKOFF_MS",
                &self.kafka_producer_retry_backoff_ms,
                |raw| range(1..=300_000_u64)(raw).map(Duration::from_millis),
            ),
            linger_ms,
            compression: checks.take(
                "KAFKA_COMPRESSION",
                &self.kafka_compression,
                one_of(&["none", "gzip", "snappy", "lz4"].map(|codec| (codec, codec))),
            ),
            queue_kbytes: checks.take("KAFKA_QUEUE_KBYTES", &self.kafka_queue_kbytes, range(1..=2_097_151)),
            security: self.security.check(checks),
        }
    }

    fn topics(&self, checks: &mut Checks) -> Topics {
        let topics = Topics {
            events: checks.take("KAFKA_TOPIC", &self.kafka_topic, topic_name),
            dead_letters: checks.take("KAFKA_DLQ_TOPIC", &self.kafka_dlq_topic, topic_name),
            partitions: checks.take("KAFKA_TOPIC_PARTITIONS", &self.kafka_topic_partitions, range(1..=10_000)),
            replication_factor: checks.take(
                "KAFKA_TOPIC_REPLICATION_FACTOR",
                &self.kafka_topic_replication_factor,
                replication_factor,
            ),
        };
        if !topics.events.is_empty() && topics.events == topics.dead_letters {
            checks.complain(format!(
                "KAFKA_DLQ_TOPIC={:?}: must differ from KAFKA_TOPIC, or dead letters would be consumed as events",
                topics.dead_letters
            ));
        }
        topics
    }
}

fn replication_factor(raw: &str) -> Result<i32, String> {
    range(-1..=32_767)(raw).ok().filter(|n| *n != 0).ok_or_else(|| "must be -1 or a number from 1 to 32767".into())
}

/// Kafka's own rule, `org.apache.kafka.common.internals.Topic`.
fn topic_name(raw: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = (1..=249).contains(&raw.len()) && raw.chars().all(legal) && raw != "." && raw != "..";
    if good { Ok(raw.into()) } else { Err("must be 1 to 249 letters, digits, dots, underscores or hyphens".into()) }
}

/// librdkafka writes it as it is into its statistics, which are JSON.
fn client_name(raw: &str) -> Result<String, String> {
    let legal = |c: char| (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '"' | '\\');
    let good = raw.len() <= 249 && raw.chars().all(legal);
    if good {
        Ok(raw.into())
    } else {
        Err("must be 1 to 249 ASCII characters without quotation marks and backslashes".into())
    }
}

fn brokers(raw: &str) -> Result<String, String> {
    let list = text(raw)?;
    let good = |broker: &str| {
        let (host, port) = broker.trim().rsplit_once(':').unwrap_or((broker.trim(), "9092"));
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if list.split(',').all(good) { Ok(list) } else { Err("must be a list of host:port separated by commas".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_lists_and_names_are_checked() {
        assert!(brokers("a:9092, b:9093").is_ok() && brokers("a").is_ok() && brokers("[::1]:9092").is_ok());
        assert!(
            brokers("").is_err() && brokers("a:x").is_err() && brokers("a:1,,b:2").is_err() && brokers(":1").is_err()
        );
        assert!(topic_name("user-activity.events_1").is_ok());
        assert!(client_name("orders (eu) 1").is_ok());
        assert!(client_name("a\"b").is_err() && client_name("a\\b").is_err() && client_name("é").is_err());
        assert!(topic_name("a b").is_err() && topic_name("..").is_err() && topic_name(&"x".repeat(250)).is_err());
    }
}
