//! Kafka as an outsider: writes any bytes, reads topics whole, looks at groups.
//!
//! The calls block for as long as a broker round trip takes; tests run on a multi-threaded
//! runtime and can afford that.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::{Header, Headers, OwnedHeaders},
    metadata::Metadata,
    producer::{FutureProducer, FutureRecord},
};
use tokio::task::block_in_place;

use crate::{PATIENCE, POLL_INTERVAL, eventually};

/// For one question to a broker.
const TIMEOUT: Duration = Duration::from_secs(30);

/// For one that is asked again: a client that meets a leader too early may wait for an answer until its time is over.
const ANSWER: Duration = Duration::from_secs(3);

/// A cluster, by its bootstrap address.
#[derive(Debug, Clone)]
pub struct Kafka {
    brokers: String,
}

/// What a record consists of, apart from its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The key's bytes.
    pub key: Option<Vec<u8>>,
    /// The value's bytes; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and bytes, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970; `None` lets the producer choose.
    pub timestamp: Option<i64>,
}

impl Record {
    /// A record with this value and nothing else.
    pub fn of(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// The last header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|(key, _)| key == name)?.1.as_deref()
    }
}

/// A record and where the broker put it.
#[derive(Debug, Clone)]
pub struct Located {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The record.
    pub record: Record,
}

impl Kafka {
    /// The cluster at `host:port`.
    #[must_use]
    pub fn new(brokers: &str) -> Self {
        Self { brokers: brokers.to_owned() }
    }

    /// Whether a broker answers.
    ///
    /// # Errors
    /// When none does.
    pub fn answers(&self) -> Result<()> {
        let metadata =
            block_in_place(|| self.reader()?.fetch_metadata(None, Duration::from_secs(2)).context("metadata"))?;
        ensure!(!metadata.brokers().is_empty(), "no broker");
        Ok(())
    }

    /// Writes records to one partition, or to the one their key chooses; there they keep this order.
    ///
    /// # Panics
    /// When the broker does not acknowledge one of them.
    pub async fn write(&self, topic: &str, partition: Option<i32>, records: &[Record]) -> Vec<Located> {
        let mut settings = self.settings();
        settings.set("enable.idempotence", "true").set("partitioner", "murmur2_random");
        // Records as large as a broker takes: the test decides, not its client.
        settings.set("message.max.bytes", "8000000");
        let producer: FutureProducer = settings.create().expect("a producer");
        let written = records.iter().map(async |record| {
            let message = message(topic, partition, record);
            let place = producer.send(message, TIMEOUT).await.expect("an acknowledgement");
            Located { partition: place.partition, offset: place.offset, record: record.clone() }
        });
        join_all(written).await
    }

    /// Every record of a topic, in the order of partitions and offsets. Empty when there is no
    /// such topic.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub fn read(&self, topic: &str) -> Result<Vec<Located>> {
        // Not every offset has a record that is shown: some are of markers, or of transactions that were aborted.
        let reader: BaseConsumer = self.reader_settings().set("enable.partition.eof", "true").create()?;
        let mut open: BTreeSet<i32> = self.end_offsets(topic)?.into_keys().collect();
        let mut assignment = TopicPartitionList::new();
        for partition in &open {
            assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        reader.assign(&assignment)?;
        let (mut records, started) = (Vec::new(), Instant::now());
        while !open.is_empty() {
            match block_in_place(|| reader.poll(TIMEOUT)).context("no more records")? {
                Ok(message) => records.push(located(&message)),
                Err(KafkaError::PartitionEOF(partition)) => drop(open.remove(&partition)),
                // It may pass.
                Err(error) => ensure!(started.elapsed() < PATIENCE, error),
            }
        }
        records.sort_by_key(|found| (found.partition, found.offset));
        Ok(records)
    }

    /// The end of each partition. Empty when there is no such topic.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub fn end_offsets(&self, topic: &str) -> Result<BTreeMap<i32, i64>> {
        // Both in one question: a topic may be deleted between the two.
        self.ask(|reader| {
            let partitions = partitions_of(&reader.fetch_metadata(Some(topic), ANSWER)?);
            let end = |partition| Ok((partition, reader.fetch_watermarks(topic, partition, ANSWER)?.1));
            partitions.into_iter().map(end).collect()
        })
    }

    /// The partitions of a topic. Empty when there is no such topic.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub fn partitions(&self, topic: &str) -> Result<Vec<i32>> {
        self.ask(|reader| Ok(partitions_of(&reader.fetch_metadata(Some(topic), ANSWER)?)))
    }

    /// Creates a topic with one setting that is not the broker's default, and waits until it is in use: a log is made
    /// with its topic's settings.
    ///
    /// # Errors
    /// When the broker does not create it.
    pub async fn create_topic(&self, topic: &str, partitions: i32, (name, value): (&str, &str)) -> Result<()> {
        let admin: AdminClient<_> = self.settings().create()?;
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set(name, value);
        let answers = admin.create_topics([&new], &AdminOptions::new()).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|(_, error)| anyhow::Error::from(error)))?;
        self.has_logs(topic, usize::try_from(partitions)?).await;
        Ok(())
    }

    /// Waits until a topic has so many partitions, each with a leader that answers: a broker that has taken on a change
    /// of topics goes about it later.
    async fn has_logs(&self, topic: &str, partitions: usize) {
        eventually(&format!("{topic} has {partitions} partitions"), async || {
            let found = self.end_offsets(topic)?.len();
            ensure!(found == partitions, "{found} of {partitions}");
            Ok(())
        })
        .await;
    }

    /// Gives all settings of a topic their default back.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn reset_topic_settings(&self, topic: &str) -> Result<()> {
        let admin: AdminClient<_> = self.settings().create()?;
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let answers = admin.alter_configs([&change], &AdminOptions::new()).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|(_, error)| error.into()))
    }

    /// Deletes the records of a partition before an offset, as the retention does.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) -> Result<()> {
        let admin: AdminClient<_> = self.settings().create()?;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before))?;
        let answers = admin.delete_records(&offsets, &AdminOptions::new()).await?;
        answers.elements().iter().try_for_each(|answer| answer.error().map_err(anyhow::Error::from))
    }

    /// Deletes a topic, and waits until the broker knows nothing of it, or of its records where somebody has made it
    /// anew.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        let admin: AdminClient<_> = self.settings().create()?;
        let had_records = self.end_offsets(topic)?.values().any(|end| *end > 0);
        let answers = admin.delete_topics(&[topic], &AdminOptions::new()).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|(_, error)| anyhow::Error::from(error)))?;
        eventually("the topic is gone", async || {
            let left = self.end_offsets(topic)?;
            let is_new = had_records && left.values().all(|end| *end == 0);
            ensure!(left.is_empty() || is_new, "{left:?}");
            Ok(())
        })
        .await;
        Ok(())
    }

    /// Deletes a group without members, with its commits.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let admin: AdminClient<_> = self.settings().create()?;
        let answers = admin.delete_groups(&[group], &AdminOptions::new()).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|(_, error)| error.into()))
    }

    /// Gives a topic so many partitions in all, and waits until they are in use.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn add_partitions(&self, topic: &str, all: usize) -> Result<()> {
        let admin: AdminClient<_> = self.settings().create()?;
        let answers = admin.create_partitions([&NewPartitions::new(topic, all)], &AdminOptions::new()).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|(_, error)| anyhow::Error::from(error)))?;
        self.has_logs(topic, all).await;
        Ok(())
    }

    /// The value of one setting of a topic.
    ///
    /// # Errors
    /// When the broker cannot be asked or knows no such topic or setting.
    pub async fn topic_setting(&self, topic: &str, name: &str) -> Result<String> {
        let admin: AdminClient<_> = self.settings().create()?;
        let topics = [ResourceSpecifier::Topic(topic)];
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let mut answers = admin.describe_configs(&topics, &options).await?;
        let answer = answers.pop().context("an answer")?.map_err(anyhow::Error::msg)?;
        let entry = answer.get(name).with_context(|| format!("{name} of {topic}"))?;
        entry.value.clone().context("a value")
    }

    /// The members of a group and the partitions that each one has.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub fn members(&self, group: &str) -> Result<BTreeMap<String, Vec<i32>>> {
        let groups = self.ask(|reader| reader.fetch_group_list(Some(group), TIMEOUT))?;
        let members = groups.groups().iter().flat_map(|found| found.members());
        members
            .map(|member| {
                let assignment = member.assignment().unwrap_or_default();
                let partitions = assigned_partitions(assignment).context("an assignment")?;
                Ok((member.id().to_owned(), partitions))
            })
            .collect()
    }

    /// Asks until there is an answer: a leader is told of before it answers, and a client may fail at a question for a moment
    /// on a busy machine. Each time by a new one: who has heard that there is no such topic does not ask again for long.
    fn ask<T>(&self, question: impl Fn(&BaseConsumer) -> KafkaResult<T>) -> Result<T> {
        let started = Instant::now();
        block_in_place(|| {
            loop {
                match self.reader().and_then(|reader| question(&reader)) {
                    Err(_) if started.elapsed() < PATIENCE => std::thread::park_timeout(POLL_INTERVAL),
                    answer => return Ok(answer?),
                }
            }
        })
    }

    fn settings(&self) -> ClientConfig {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", &self.brokers).set("log_level", "0");
        settings
    }

    fn reader(&self) -> KafkaResult<BaseConsumer> {
        self.reader_settings().create()
    }

    fn reader_settings(&self) -> ClientConfig {
        let mut settings = self.settings();
        settings.set("group.id", "e2e-reader").set("enable.auto.commit", "false");
        settings.set("fetch.message.max.bytes", "8000000");
        settings
    }
}

/// The partitions of the one topic that was asked for; none when there is no such topic.
fn partitions_of(metadata: &Metadata) -> Vec<i32> {
    let topics = metadata.topics().iter().filter(|found| found.error().is_none());
    topics.flat_map(|found| found.partitions().iter().map(|partition| partition.id())).collect()
}

fn message<'a>(topic: &'a str, partition: Option<i32>, record: &'a Record) -> FutureRecord<'a, [u8], [u8]> {
    let headers = record
        .headers
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }));
    FutureRecord {
        topic,
        partition,
        payload: record.value.as_deref(),
        key: record.key.as_deref(),
        timestamp: record.timestamp,
        headers: Some(headers),
    }
}

fn located(message: &impl Message) -> Located {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Located {
        partition: message.partition(),
        offset: message.offset(),
        record: Record {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            timestamp: message.timestamp().to_millis(),
        },
    }
}

/// The partitions in a member's assignment, whatever their topic.
///
/// Kafka's `ConsumerProtocolAssignment`: version (int16), then an array of topic name (string)
/// and partitions (array of int32), all big-endian with int32 array and int16 string lengths.
fn assigned_partitions(assignment: &[u8]) -> Option<Vec<i32>> {
    if assignment.is_empty() {
        return Some(Vec::new());
    }
    let mut bytes = assignment.get(2..)?;
    let mut partitions = Vec::new();
    for _ in 0..take_i32(&mut bytes)? {
        let (length, rest) = bytes.split_first_chunk()?;
        bytes = rest.get(usize::try_from(i16::from_be_bytes(*length)).ok()?..)?;
        for _ in 0..take_i32(&mut bytes)? {
            partitions.push(take_i32(&mut bytes)?);
        }
    }
    Some(partitions)
}

fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(i32::from_be_bytes(*number))
}
