//! The two topics: created explicitly, with a stated shape, by whichever process comes first.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::types::RDKafkaErrorCode;

use super::client::{LogContext, producer_config};
use crate::config::{KafkaSettings, Topics};

/// What a dead letter may be larger than the record it was: room for the headers that say where it came from and why.
const DEAD_LETTER_HEADROOM: usize = 64 * 1024;
/// The broker's default of `max.message.bytes`, for brokers that can't be asked.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// Why the topics are not there yet.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// No broker answered.
    #[error("no Kafka broker at {brokers} answers ({error}){refusal}")]
    Unreachable {
        /// Where they should be.
        brokers: String,
        /// What the client says.
        error: KafkaError,
        /// What the connections failed for, if it is known.
        refusal: String,
    },
    /// The client library refuses the settings; trying again is no use.
    #[error("the Kafka settings can't be used: {0}")]
    Settings(KafkaError),
    /// The brokers refused.
    #[error("the brokers refused to create the topic {0}: {1}")]
    Refused(String, RDKafkaErrorCode),
}

/// Makes sure that both topics exist; those that do are left as they are.
///
/// # Errors
/// [`TopicError`]; trying again later is always safe.
pub async fn create_topics(settings: &KafkaSettings, client_id: &str) -> Result<(), TopicError> {
    let context = LogContext::default();
    let refusal = context.refusal.clone();
    let unreachable =
        |error| TopicError::Unreachable { brokers: settings.brokers.clone(), error, refusal: refusal.suffix() };
    // Not the admin client: what the library says about connections reaches only those who poll for it, and it does not.
    let asking: FutureProducer<LogContext> =
        producer_config(settings, client_id).create_with_context(context).map_err(TopicError::Settings)?;
    let topics = settings.topics.clone();
    let timeout = settings.request_timeout;
    let partitions = tokio::task::spawn_blocking(move || partition_counts(asking.client(), &topics, timeout))
        .await
        // The closure neither panics nor is it cancelled.
        .map_err(|_| unreachable(KafkaError::Canceled))?;
    let partitions = partitions.map_err(unreachable)?;
    let admin: AdminClient<LogContext> = producer_config(settings, client_id)
        .create_with_context(LogContext::default())
        .map_err(TopicError::Settings)?;
    let created = create_missing(&admin, settings, &partitions).await;
    // Waits for a thread of the client.
    drop(tokio::task::spawn_blocking(move || drop(admin)));
    created
}

async fn create_missing(
    admin: &AdminClient<LogContext>,
    settings: &KafkaSettings,
    partitions: &HashMap<String, i32>,
) -> Result<(), TopicError> {
    let Topics { events, dead_letters, .. } = &settings.topics;
    let replication = || TopicReplication::Fixed(settings.topics.replication_factor);
    if !partitions.contains_key(events) {
        create(admin, settings, NewTopic::new(events, settings.topics.partitions, replication())).await?;
    }
    if !partitions.contains_key(dead_letters) {
        let like_main = partitions.get(events).copied().unwrap_or(settings.topics.partitions);
        let size = (max_message_bytes(settings, admin).await + DEAD_LETTER_HEADROOM).to_string();
        let topic = NewTopic::new(dead_letters, like_main, replication())
            .set("retention.ms", "-1")
            .set("max.message.bytes", &size);
        create(admin, settings, topic).await?;
    }
    Ok(())
}

/// `max.message.bytes` of the events' topic.
async fn max_message_bytes(settings: &KafkaSettings, admin: &AdminClient<LogContext>) -> usize {
    let value = topic_setting(admin, &settings.topics.events, "max.message.bytes", settings.request_timeout).await;
    value.and_then(|bytes| bytes.parse().ok()).unwrap_or(DEFAULT_MAX_MESSAGE_BYTES)
}

/// `max.message.bytes` of a topic, asked for with the settings of any client; `None` where the brokers don't tell.
pub(super) async fn largest_record(config: ClientConfig, topic: String) -> Option<usize> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let admin: AdminClient<LogContext> = config.create_with_context(LogContext::default()).ok()?;
    let value = topic_setting(&admin, &topic, "max.message.bytes", TIMEOUT).await;
    // Waits for a thread of the client.
    drop(tokio::task::spawn_blocking(move || drop(admin)));
    value?.parse().ok()
}

/// How long the events' topic keeps its records; `None` for ever, or where it can't be asked.
pub async fn topic_retention(settings: &KafkaSettings, client_id: &str) -> Option<Duration> {
    let admin: AdminClient<LogContext> =
        producer_config(settings, client_id).create_with_context(LogContext::default()).ok()?;
    let value = topic_setting(&admin, &settings.topics.events, "retention.ms", settings.request_timeout).await;
    let millis: i64 = value?.parse().ok()?;
    u64::try_from(millis).ok().map(Duration::from_millis)
}

async fn topic_setting(admin: &AdminClient<LogContext>, topic: &str, name: &str, timeout: Duration) -> Option<String> {
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let answer = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await.ok()?;
    answer.into_iter().next()?.ok()?.get(name)?.value.clone()
}

async fn create(
    admin: &AdminClient<LogContext>,
    settings: &KafkaSettings,
    topic: NewTopic<'_>,
) -> Result<(), TopicError> {
    let options = AdminOptions::new()
        .request_timeout(Some(settings.request_timeout))
        .operation_timeout(Some(settings.request_timeout));
    let results = admin.create_topics([&topic], &options).await;
    let unreachable =
        |error| TopicError::Unreachable { brokers: settings.brokers.clone(), error, refusal: String::new() };
    for result in results.map_err(unreachable)? {
        match result {
            Ok(name) => log::info!(topic = name, partitions = topic.num_partitions; "created the topic {name}"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(TopicError::Refused(name, code)),
        }
    }
    Ok(())
}

/// How many partitions those topics have that exist. Blocks for up to `timeout` per topic.
fn partition_counts(
    client: &Client<impl ClientContext>,
    topics: &Topics,
    timeout: Duration,
) -> Result<HashMap<String, i32>, KafkaError> {
    let mut found = HashMap::new();
    for name in [&topics.events, &topics.dead_letters] {
        let metadata = client.fetch_metadata(Some(name), timeout)?;
        let partitions = metadata.topics().iter().find(|t| t.name() == name).map_or(0, |t| t.partitions().len());
        if let Some(count) = i32::try_from(partitions).ok().filter(|count| *count > 0) {
            found.insert(name.clone(), count);
        }
    }
    Ok(found)
}
