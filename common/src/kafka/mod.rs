//! Kafka: the clients' settings, the topics, and publishing.

mod client;
mod publisher;
mod topics;

pub use self::client::{
    ConsumerSettings, LogContext, consumer_config, dead_letter_producer_config, log_line, producer_config,
};
pub use self::publisher::{Delivered, KafkaPublisher, PublishError, Publisher};
pub use self::topics::{TopicError, create_topics, topic_retention};
