//! The operators' desk: subcommands that look at, check and repair what the workers do.

pub mod dead_letters;
pub mod positions;
pub mod reader;
pub mod verify;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::event::Timestamp;

use common::kafka::{LogContext, consumer_config};
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::{Config, NAME};

/// For one look-up at the brokers.
pub(crate) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that knows the group but does not join it.
pub(crate) type Observer = BaseConsumer<LogContext>;

/// Makes an [`Observer`]; it connects in the background.
pub(crate) fn observer(config: &Config) -> Result<Observer, KafkaError> {
    consumer_config(&config.kafka, NAME, &config.consumer).create_with_context(LogContext::default())
}

/// A time on the command line.
pub(crate) fn time(raw: &str) -> Result<Timestamp, String> {
    Timestamp::parse(raw).ok_or_else(|| "must be an RFC 3339 date and time, such as 2026-02-17T10:00:00Z".into())
}

/// # Errors
/// When nothing lies between the two.
pub(crate) fn check_span(from: Option<Timestamp>, to: Option<Timestamp>) -> anyhow::Result<()> {
    if let (Some(from), Some(to)) = (from, to) {
        ensure!(from < to, "--from {from} must be earlier than --to {to}: correct one of them");
    }
    Ok(())
}

/// The partitions of a topic, in order.
pub(crate) fn partitions(consumer: &Observer, topic: &str) -> anyhow::Result<Vec<i32>> {
    partitions_known_to(consumer.client(), topic)
}

/// As [`partitions`], for any client.
pub(crate) fn partitions_known_to(client: &Client<LogContext>, topic: &str) -> anyhow::Result<Vec<i32>> {
    let metadata = ask(|| client.fetch_metadata(Some(topic), LOOKUP_TIMEOUT))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let mut partitions: Vec<i32> =
        found.map(|topic| topic.partitions().iter().map(|p| p.id()).collect()).unwrap_or_default();
    anyhow::ensure!(
        !partitions.is_empty(),
        "the topic {topic} does not exist; check KAFKA_TOPIC, KAFKA_DLQ_TOPIC and KAFKA_BROKERS"
    );
    partitions.sort_unstable();
    Ok(partitions)
}

/// How many workers are in a group.
pub(crate) fn members(consumer: &Observer, group: &str) -> anyhow::Result<usize> {
    let groups =
        ask(|| consumer.fetch_group_list(Some(group), LOOKUP_TIMEOUT)).context("asking who is in the group")?;
    Ok(groups.groups().iter().find(|found| found.name() == group).map_or(0, |found| found.members().len()))
}

/// Asks the brokers something, and again for as long as one look-up may take where they are out of reach or elect a leader
/// at the moment.
pub(crate) fn ask<T>(question: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    const PAUSE: Duration = Duration::from_millis(100);
    let start = Instant::now();
    loop {
        match question() {
            Err(error) if may_pass(&error) && start.elapsed() < LOOKUP_TIMEOUT => std::thread::park_timeout(PAUSE),
            answer => return answer,
        }
    }
}

/// The client itself tries again after these, for as long as we listen.
pub(crate) fn may_pass(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
        )
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A question that fails twice with this code: the answer, and how often it was asked.
    fn asked(code: RDKafkaErrorCode) -> (KafkaResult<()>, u32) {
        let times = Cell::new(0);
        let answer = ask(|| {
            times.set(times.get() + 1);
            if times.get() > 2 { Ok(()) } else { Err(KafkaError::MetadataFetch(code)) }
        });
        (answer, times.get())
    }

    #[test]
    fn what_fails_for_a_moment_is_asked_again_and_what_is_refused_is_not() {
        let (answer, times) = asked(RDKafkaErrorCode::AllBrokersDown);
        answer.unwrap();
        assert_eq!(times, 3);
        let (answer, times) = asked(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert_eq!(answer.unwrap_err().rdkafka_error_code(), Some(RDKafkaErrorCode::TopicAuthorizationFailed));
        assert_eq!(times, 1);
    }
}
