//! A world of a test's own on the real Kafka that `scripts/test integration` names: two topics and a group.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use common::event::Violation;
use common::kafka::create_topics;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Message, Offset, Timestamp, TopicPartitionList};
use uuid::Uuid;
use worker::dead_letter::{Buried, DeadLetter, DeadLetters};
use worker::{Cli, Command, Config};

const PARTITIONS: i32 = 2;
/// Ends a hang; what is waited for is there much sooner.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// For one question that is asked again: a client that meets a leader too early may wait for an answer until its time is over.
const ANSWER: Duration = Duration::from_secs(3);

/// A variable that `scripts/test integration` sets. Without it a test fails: one that skips itself proves nothing.
pub(crate) fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test integration"))
}

pub(crate) type HeaderPair = (String, Option<Vec<u8>>);

/// What a record is made of, apart from its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<HeaderPair>,
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    /// A record that can't be an event, written at that time.
    pub(crate) fn poison(key: &str, timestamp: i64) -> Self {
        let value = Some(b"not json".to_vec());
        Self { key: Some(key.into()), value, headers: Vec::new(), timestamp: Some(timestamp) }
    }

    pub(crate) fn of<M: Message>(record: &M) -> Self {
        use rdkafka::message::Headers;
        let pair = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
        Self {
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            headers: record.headers().map(|headers| headers.iter().map(pair).collect()).unwrap_or_default(),
            timestamp: record.timestamp().to_millis(),
        }
    }

    fn owned_headers(&self) -> OwnedHeaders {
        let insert = |all: OwnedHeaders, (key, value): &HeaderPair| all.insert(Header { key, value: value.as_ref() });
        self.headers.iter().fold(OwnedHeaders::new(), insert)
    }

    /// As the worker met it.
    pub(crate) fn at(&self, topic: &str, partition: i32, offset: i64) -> OwnedMessage {
        let (value, key) = (self.value.clone(), self.key.clone());
        let timestamp = self.timestamp.map_or(Timestamp::NotAvailable, Timestamp::CreateTime);
        OwnedMessage::new(value, key, topic.to_owned(), timestamp, partition, offset, Some(self.owned_headers()))
    }
}

pub(crate) struct World {
    pub(crate) config: Config,
    flags: Vec<String>,
    letters: OnceLock<DeadLetters>,
    /// Offsets are used once only: a worker does not dead-letter the same record twice.
    buried: AtomicI64,
}

impl World {
    /// With topics.
    pub(crate) async fn new() -> Self {
        let world = Self::without_topics(&required("TEST_KAFKA_BROKERS"));
        create_topics(&world.config.kafka, "test").await.unwrap();
        world.is_led().await;
        world
    }

    pub(crate) fn without_topics(brokers: &str) -> Self {
        let (id, partitions) = (Uuid::now_v7(), PARTITIONS.to_string());
        let [topic, dead_letters, group] = ["", "-dlq", "-group"].map(|end| format!("test-{id}{end}"));
        let flags: Vec<String> = ["--kafka-brokers", brokers, "--kafka-topic", &topic, "--kafka-dlq-topic", &dead_letters]
            .into_iter()
            .chain(["--kafka-consumer-group", &group, "--kafka-topic-partitions", &partitions])
            // Brokers that are well have all the time they need.
            .chain(["--kafka-producer-timeout-ms", "60000"])
            .map(str::to_owned)
            .collect();
        Self {
            config: Config::check(&parse(&flags, &[])).unwrap(),
            flags,
            letters: OnceLock::new(),
            buried: AtomicI64::new(0),
        }
    }

    /// Waits until each partition has a leader that answers, and groups have a coordinator: a broker that has created a
    /// topic says so before it leads it.
    async fn is_led(&self) {
        // Each time by a new client: one that has heard that there is no such topic does not ask again for long.
        for topic in [self.events(), self.dlq()] {
            for partition in 0..PARTITIONS {
                let is_led = async || self.consumer().fetch_watermarks(topic, partition, ANSWER).is_ok();
                until("each partition is led", is_led).await;
            }
        }
        let mut some = TopicPartitionList::new();
        some.add_partition(self.dlq(), 0);
        let is_coordinated = async || self.consumer().committed_offsets(some.clone(), ANSWER).is_ok();
        until("groups are coordinated", is_coordinated).await;
    }

    /// The subcommand that these words mean.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        parse(&self.flags, words).command.expect("a subcommand")
    }

    /// The binary in this world.
    pub(crate) fn binary(&self, words: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_user-activity-worker"));
        command.args(&self.flags).args(words).env_clear().kill_on_drop(true);
        command
    }

    pub(crate) fn events(&self) -> &str {
        &self.config.kafka.topics.events
    }

    pub(crate) fn dlq(&self) -> &str {
        &self.config.kafka.topics.dead_letters
    }

    /// Dead-letters records as the worker does, each with the reason it is given. They come from this partition, from
    /// offset 0 on.
    pub(crate) async fn bury(&self, partition: i32, records: &[(&Record, &'static str)]) {
        // One by one: letters of different keys are otherwise in no certain order.
        for (record, reason) in records {
            let offset = self.buried.fetch_add(1, Ordering::Relaxed);
            self.bury_one(&record.at(self.events(), partition, offset), reason).await;
        }
    }

    pub(crate) async fn bury_one(&self, record: &OwnedMessage, reason: &'static str) {
        let buried = self.try_to_bury(std::slice::from_ref(record), reason).await;
        assert!(buried.failures.is_empty(), "{buried:?}");
    }

    pub(crate) async fn try_to_bury(&self, records: &[OwnedMessage], reason: &'static str) -> Buried {
        let violation = Violation { pointer: "".into(), code: reason, detail: format!("it is {reason}").into() };
        let letters = self.letters.get_or_init(|| {
            DeadLetters::new(&self.config.kafka, "test", &self.config.consumer.group, "worker-1").unwrap()
        });
        let all: Vec<_> =
            records.iter().map(|record| DeadLetter::new(record, std::slice::from_ref(&violation))).collect();
        letters.publish(&all).await
    }

    /// Writes a record as it is.
    pub(crate) async fn write(&self, topic: &str, record: &Record) {
        let producer: FutureProducer = self.client().create().unwrap();
        send(&producer, topic, record).await;
    }

    pub(crate) async fn write_in_transaction(&self, topic: &str, record: &Record) {
        let producer: FutureProducer = self.client().set("transactional.id", topic).create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let (partition, offset) = send(&producer, topic, record).await;
        producer.commit_transaction(PATIENCE).unwrap();
        // The mark of its end is written by and by, behind the record.
        let end = || self.consumer().fetch_watermarks(topic, partition, ANSWER);
        until("the mark is there", async || end().is_ok_and(|(_, end)| end >= offset + 2)).await;
    }

    /// As retention does.
    pub(crate) async fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        self.admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    /// All records of a topic, partition after partition.
    pub(crate) fn read(&self, topic: &str) -> Vec<Record> {
        let (mut places, mut count) = (TopicPartitionList::new(), 0);
        for partition in 0..PARTITIONS {
            let (low, high) = asked(|| self.consumer().fetch_watermarks(topic, partition, ANSWER));
            if low < high {
                places.add_partition_offset(topic, partition, Offset::Offset(low)).unwrap();
                count += high - low;
            }
        }
        let mut records = asked(|| {
            let consumer = self.consumer();
            consumer.assign(&places)?;
            (0..count).map(|_| poll(&consumer)).collect::<KafkaResult<Vec<(i32, Record)>>>()
        });
        records.sort_by_key(|(partition, _)| *partition);
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// The commits of a group on the dead-letter topic; `None` where there is none.
    pub(crate) fn commits(&self, group: &str) -> Vec<Option<i64>> {
        let consumer = || self.client().set("group.id", group).create::<BaseConsumer>();
        let mut list = TopicPartitionList::new();
        list.add_partition_range(self.dlq(), 0, PARTITIONS - 1);
        let found = asked(|| consumer()?.committed_offsets(list.clone(), ANSWER));
        found.elements().iter().map(|element| element.offset().to_raw().filter(|offset| *offset >= 0)).collect()
    }

    /// Sets how large a record of a topic may be, and waits until each log of it goes by that: the broker says yes before.
    /// Records like `probe` tell, each of which then fits or does not. Those that were taken stay.
    pub(crate) async fn limit_records(&self, topic: &str, most: usize, probe: &[u8]) {
        let (limit, fits) = (most.to_string(), probe.len() < most);
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &limit);
        self.admin().alter_configs([&change], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let producer: FutureProducer = self.client().create().unwrap();
        for partition in 0..PARTITIONS {
            let record = || FutureRecord::<[u8], [u8]>::to(topic).partition(partition).payload(probe);
            until("the limit is in force", async || match producer.send(record(), PATIENCE).await {
                Ok(_) => fits,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => !fits,
                Err((error, _)) => panic!("{error}"),
            })
            .await;
        }
    }

    /// Makes a topic refuse records that are more than a year old, and waits until each log of it does.
    pub(crate) async fn refuse_old_records(&self, topic: &str) {
        let year = (365 * 86_400_000_i64).to_string();
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("message.timestamp.before.max.ms", &year);
        self.admin().alter_configs([&change], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let producer: FutureProducer = self.client().create().unwrap();
        for partition in 0..PARTITIONS {
            let record = || FutureRecord::<[u8], [u8]>::to(topic).partition(partition).payload(b"probe").timestamp(1);
            until("the bound is in force", async || match producer.send(record(), PATIENCE).await {
                Ok(_) => false,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::InvalidTimestamp), _)) => true,
                Err((error, _)) => panic!("{error}"),
            })
            .await;
        }
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.config.kafka.brokers).set("partitioner", "murmur2_random");
        config
    }

    fn consumer(&self) -> BaseConsumer {
        self.client().set("group.id", "unused").create().unwrap()
    }
}

/// Gives the partition and the offset.
async fn send(producer: &FutureProducer, topic: &str, record: &Record) -> (i32, i64) {
    let record = FutureRecord {
        topic,
        partition: None,
        payload: record.value.as_deref(),
        key: record.key.as_deref(),
        timestamp: record.timestamp,
        headers: Some(record.owned_headers()),
    };
    let delivered = producer.send::<[u8], [u8], _>(record, PATIENCE).await.unwrap();
    (delivered.partition, delivered.offset)
}

/// The answer to a question that a client may fail at for a moment, on a busy machine.
fn asked<T>(question: impl Fn() -> KafkaResult<T>) -> T {
    let start = Instant::now();
    loop {
        match question() {
            Ok(answer) => return answer,
            Err(error) => assert!(start.elapsed() < PATIENCE, "no answer in time: {error}"),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Waits until it is so, for whoever has to notice or to do something first.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The next record, with its partition. The client may wake up without one, or with an error that passes. It is given up
/// so early that others can be tried within [`PATIENCE`].
fn poll(consumer: &BaseConsumer) -> KafkaResult<(i32, Record)> {
    let (start, mut last) = (Instant::now(), KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
    while start.elapsed() < PATIENCE / 5 {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => return Ok((record.partition(), Record::of(&record))),
            Some(Err(error)) => last = error,
            None => {}
        }
    }
    Err(last)
}

fn parse(flags: &[String], words: &[&str]) -> Cli {
    let all = ["user-activity-worker"].into_iter().chain(flags.iter().map(String::as_str)).chain(words.iter().copied());
    common::config::parse(all, |_| None).unwrap()
}
