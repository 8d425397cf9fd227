//! Reads the dead-letter topic, partition after partition, from its beginning to where it ended at the start, so that
//! what is dead-lettered meanwhile does not make a run endless. Memory is bounded by the client's queue.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::kafka::{ConsumerSettings, LogContext, consumer_config};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::time::{Instant, timeout_at};

use super::letter::Letter;
use crate::desk::{LOOKUP_TIMEOUT, partitions_known_to};
use crate::{Config, NAME};

/// The end of a partition is announced by the brokers, so that only brokers that are away are silent for so long.
const SILENCE: Duration = Duration::from_secs(30);

/// What is left of one partition.
#[derive(Debug, Clone, Copy)]
struct Span {
    partition: i32,
    first: i64,
    next: i64,
    end: i64,
}

/// Reads dead letters in order of partition and offset.
pub struct Reader {
    consumer: StreamConsumer<LogContext>,
    brokers: String,
    topic: String,
    spans: VecDeque<Span>,
    assigned: Option<i32>,
}

impl Reader {
    /// Looks up what there is to read. It never joins `group`, whose commits only [`Self::resume`] and
    /// [`Self::commit`] touch.
    ///
    /// # Errors
    /// When no broker answers or there is no such topic.
    pub fn open(config: &Config, group: &str) -> anyhow::Result<Self> {
        let (kafka, topic) = (&config.kafka, config.kafka.topics.dead_letters.clone());
        let group = ConsumerSettings { group: group.to_owned(), ..config.consumer.clone() };
        let mut settings = consumer_config(kafka, NAME, &group);
        settings.set("enable.partition.eof", "true");
        let consumer = StreamConsumer::from_config_and_context(&settings, LogContext::default())?;
        let span = |partition: i32| {
            let (first, end) = consumer.fetch_watermarks(&topic, partition, LOOKUP_TIMEOUT)?;
            anyhow::Ok(Span { partition, first, next: first, end })
        };
        let spans = partitions_known_to(consumer.client(), &topic)
            .and_then(|partitions| partitions.into_iter().map(span).collect())
            .with_context(|| format!("looking at the topic {topic} on {} (KAFKA_BROKERS)", kafka.brokers))?;
        Ok(Self { consumer, brokers: kafka.brokers.clone(), topic, spans, assigned: None })
    }

    /// Starts at the group's commits; where there is none on the log, at the beginning.
    ///
    /// # Errors
    /// When the brokers do not tell the commits.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let mut asked = TopicPartitionList::new();
        for span in &self.spans {
            asked.add_partition(&self.topic, span.partition);
        }
        let found = self.consumer.committed_offsets(asked, LOOKUP_TIMEOUT).context("asking where the last run was")?;
        for span in &mut self.spans {
            let commit = found.find_partition(&self.topic, span.partition).and_then(|found| found.offset().to_raw());
            span.next = commit.filter(|offset| (span.first..=span.end).contains(offset)).unwrap_or(span.first);
        }
        Ok(())
    }

    /// Reads nothing but one record.
    ///
    /// # Errors
    /// When the partition does not reach there.
    pub fn only(&mut self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let Some(span) = self.spans.iter().find(|span| span.partition == partition).copied() else {
            bail!("{} has the partitions 0 to {}, not {partition}", self.topic, self.spans.len().saturating_sub(1));
        };
        ensure!(
            (span.first..span.end).contains(&offset),
            "there is no dead letter at offset {offset} of partition {partition}, which reaches from {} up to {}, \
             exclusive; `dead-letters list` shows them",
            span.first,
            span.end
        );
        self.spans = VecDeque::from([Span { next: offset, end: offset + 1, ..span }]);
        Ok(())
    }

    /// Each partition that is left, with the next offset to read.
    #[must_use]
    pub fn places(&self) -> Vec<(i32, i64)> {
        self.spans.iter().map(|span| (span.partition, span.next)).collect()
    }

    /// Makes sure that there is the topic that letters are published to.
    ///
    /// # Errors
    /// When no broker answers or there is no such topic.
    pub fn ensure_topic(&self, topic: &str) -> anyhow::Result<()> {
        partitions_known_to(self.consumer.client(), topic).map(drop)
    }

    /// The next dead letter, `None` after the last one. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the brokers refuse to give it or have gone away.
    pub async fn next(&mut self) -> anyhow::Result<Option<Letter>> {
        while let Some(span) = self.spans.front().copied() {
            let letter = if span.next < span.end { self.receive(span).await? } else { None };
            match letter.filter(|letter| letter.offset < span.end) {
                Some(letter) => {
                    self.spans[0].next = letter.offset + 1;
                    return Ok(Some(letter));
                }
                None => drop(self.spans.pop_front()),
            }
        }
        Ok(None)
    }

    /// The next record of a partition, `None` at its end.
    async fn receive(&mut self, span: Span) -> anyhow::Result<Option<Letter>> {
        if self.assigned != Some(span.partition) {
            self.consumer.assign(&self.list(&[(span.partition, span.next)])?)?;
            self.assigned = Some(span.partition);
        }
        let deadline = Instant::now() + SILENCE;
        loop {
            match timeout_at(deadline, self.consumer.recv()).await {
                Ok(Ok(record)) if record.partition() == span.partition => return Ok(Some(Letter::of(&record))),
                Ok(Err(KafkaError::PartitionEOF(partition))) if partition == span.partition => return Ok(None),
                // Of the partition before, or an outage that may pass.
                Ok(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {}
                Ok(Err(error)) if may_pass(&error) => {}
                Ok(Err(error)) => {
                    return Err(error).with_context(|| format!("reading {} partition {}", self.topic, span.partition));
                }
                Err(_) => bail!(
                    "{} partition {} is silent for {SILENCE:?} before its end; check the brokers at {}, then run it \
                     again",
                    self.topic,
                    span.partition,
                    self.brokers
                ),
            }
        }
    }

    /// Commits these next offsets for the group.
    ///
    /// # Errors
    /// When the brokers do not take them.
    pub fn commit(&self, places: &[(i32, i64)]) -> anyhow::Result<()> {
        self.consumer.commit(&self.list(places)?, CommitMode::Sync).context(
            "the progress can't be remembered; --dry-run needs no progress, and redriving again from the beginning \
             is harmless",
        )
    }

    fn list(&self, places: &[(i32, i64)]) -> anyhow::Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in places {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        Ok(list)
    }
}

/// The client itself tries again after these, for as long as we listen.
fn may_pass(error: &KafkaError) -> bool {
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
