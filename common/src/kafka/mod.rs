//! Kafka: the clients' settings, the topics, and publishing, through `rdkafka` or the crate `kafka`.

mod client;
mod kafka_rust;
mod librdkafka;
mod murmur2;
mod publisher;
mod room;
mod topics;

pub use self::client::{
    ConsumerSettings, LogContext, NoBrokers, Refusal, consumer_config, dead_letter_producer_config, log_line,
    producer_config,
};
pub use self::kafka_rust::KafkaRustPublisher;
pub use self::librdkafka::KafkaPublisher;
pub use self::murmur2::partition_of;
pub use self::publisher::{Answer, Delivered, KafkaBackend, Load, PublishError, Published, Publisher, Unflushed};
pub use self::topics::{TopicError, create_topics, topic_retention};
