//! Reads a topic, partition after partition, from its beginning or some other place to where it ended at the start, so
//! that what is written meanwhile does not make a run endless. Memory is bounded by the client's queue.
//!
//! The brokers announce the end of a partition: its last offset may be the mark of a transaction, or compacted away, and
//! no record then ever comes from there.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::event::Timestamp;
use common::kafka::{ConsumerSettings, LogContext, consumer_config};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::time::{Instant, timeout_at};

use super::{LOOKUP_TIMEOUT, ask, may_pass, partitions_known_to};
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

/// Reads records in order of partition and offset.
pub struct Reader {
    consumer: StreamConsumer<LogContext>,
    brokers: String,
    topic: String,
    spans: VecDeque<Span>,
    assigned: Option<i32>,
}

impl Reader {
    /// Looks up what there is to read on a topic. It never joins `group`, whose commits only [`Self::resume`] and
    /// [`Self::commit`] touch.
    ///
    /// # Errors
    /// When no broker answers or there is no such topic.
    pub fn open(config: &Config, topic: &str, group: &str) -> anyhow::Result<Self> {
        let kafka = &config.kafka;
        let group = ConsumerSettings { group: group.to_owned(), ..config.consumer.clone() };
        let mut settings = consumer_config(kafka, NAME, &group);
        settings.set("enable.partition.eof", "true");
        let consumer = StreamConsumer::from_config_and_context(&settings, LogContext::default())?;
        let span = |partition: i32| {
            let (first, end) = ask(|| consumer.fetch_watermarks(topic, partition, LOOKUP_TIMEOUT))?;
            anyhow::Ok(Span { partition, first, next: first, end })
        };
        let spans = partitions_known_to(consumer.client(), topic)
            .and_then(|partitions| partitions.into_iter().map(span).collect())
            .with_context(|| format!("looking at the topic {topic} on {} (KAFKA_BROKERS)", kafka.brokers))?;
        Ok(Self { consumer, brokers: kafka.brokers.clone(), topic: topic.to_owned(), spans, assigned: None })
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
        let found = ask(|| self.consumer.committed_offsets(asked.clone(), LOOKUP_TIMEOUT))
            .context("asking where the last run was")?;
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

    /// Reads nothing before the first record of each partition with a timestamp from `from` on, and nothing from the first
    /// one on with a timestamp from `to` on.
    ///
    /// # Errors
    /// When the brokers do not tell where that is.
    pub fn only_between(&mut self, from: Option<Timestamp>, to: Option<Timestamp>) -> anyhow::Result<()> {
        let (nexts, ends) = (self.offsets_at(from)?, self.offsets_at(to)?);
        for span in &mut self.spans {
            span.end = ends.get(&span.partition).copied().unwrap_or(span.end);
            // One whose last record is before `from` has nothing to read.
            let none = if from.is_some() { span.end } else { span.next };
            span.next = nexts.get(&span.partition).copied().unwrap_or(none).min(span.end);
        }
        Ok(())
    }

    /// Reads nothing before the first record of each partition with a timestamp from `from` on. Where the brokers know of
    /// none, it has been quiet since, or its records have no timestamps: then all of it.
    ///
    /// # Errors
    /// When the brokers do not tell where that is.
    pub fn only_since(&mut self, from: Option<Timestamp>) -> anyhow::Result<()> {
        let nexts = self.offsets_at(from)?;
        for span in &mut self.spans {
            span.next = nexts.get(&span.partition).copied().unwrap_or(span.next);
        }
        Ok(())
    }

    /// Reads each partition up to this place only, exclusive, if it has one.
    pub fn only_before(&mut self, end: &BTreeMap<i32, i64>) {
        for span in &mut self.spans {
            span.end = end.get(&span.partition).copied().unwrap_or(span.end).min(span.end);
        }
    }

    /// The first offset at or after a time in each partition that has one.
    fn offsets_at(&self, time: Option<Timestamp>) -> anyhow::Result<BTreeMap<i32, i64>> {
        let Some(time) = time else { return Ok(BTreeMap::new()) };
        let asked: Vec<(i32, i64)> = self.spans.iter().map(|span| (span.partition, time.millis())).collect();
        let found =
            self.consumer.offsets_for_times(self.list(&asked)?, LOOKUP_TIMEOUT).context("asking where a time is")?;
        let mut offsets = BTreeMap::new();
        for element in found.elements() {
            match element.offset() {
                Offset::Offset(offset) => drop(offsets.insert(element.partition(), offset)),
                Offset::End => {}
                other => {
                    bail!("{} partition {}: where {time} is can't be told: {other:?}", self.topic, element.partition())
                }
            }
        }
        Ok(offsets)
    }

    /// Reads in each partition from the one place up to the other, exclusive, and nothing of those without both.
    pub fn go_on(&mut self, next: &BTreeMap<i32, i64>, end: &BTreeMap<i32, i64>) {
        for span in &mut self.spans {
            span.end = end.get(&span.partition).copied().unwrap_or(span.first);
            span.next = next.get(&span.partition).copied().unwrap_or(span.end);
        }
    }

    /// Each partition that is left, with the next offset to read.
    #[must_use]
    pub fn places(&self) -> Vec<(i32, i64)> {
        self.spans.iter().map(|span| (span.partition, span.next)).collect()
    }

    /// Each partition that is left, with the offset before which reading ends.
    #[must_use]
    pub fn ends(&self) -> Vec<(i32, i64)> {
        self.spans.iter().map(|span| (span.partition, span.end)).collect()
    }

    /// Makes sure that there is the topic that letters are published to.
    ///
    /// # Errors
    /// When no broker answers or there is no such topic.
    pub fn ensure_topic(&self, topic: &str) -> anyhow::Result<()> {
        partitions_known_to(self.consumer.client(), topic).map(drop)
    }

    /// What `read` makes of the next record, `None` after the last one. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the brokers refuse to give it or have gone away.
    pub async fn next<T>(&mut self, read: impl Fn(&BorrowedMessage<'_>) -> T) -> anyhow::Result<Option<T>> {
        while let Some(span) = self.spans.front().copied() {
            let record = if span.next < span.end { self.receive(span, &read).await? } else { None };
            match record.filter(|(offset, _)| *offset < span.end) {
                Some((offset, record)) => {
                    self.spans[0].next = offset + 1;
                    return Ok(Some(record));
                }
                None => drop(self.spans.pop_front()),
            }
        }
        Ok(None)
    }

    /// The next record of a partition with its offset, `None` at its end.
    async fn receive<T>(
        &mut self,
        span: Span,
        read: &impl Fn(&BorrowedMessage<'_>) -> T,
    ) -> anyhow::Result<Option<(i64, T)>> {
        if self.assigned != Some(span.partition) {
            self.consumer.assign(&self.list(&[(span.partition, span.next)])?)?;
            self.assigned = Some(span.partition);
        }
        let deadline = Instant::now() + SILENCE;
        loop {
            match timeout_at(deadline, self.consumer.recv()).await {
                Ok(Ok(record)) if record.partition() == span.partition => {
                    return Ok(Some((record.offset(), read(&record))));
                }
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
