//! Topics and publishing on a real Kafka: `scripts/test integration` names one in `TEST_KAFKA_BROKERS`. Each test has
//! topics of its own. Where a real broker can't be made to fail as needed, librdkafka's own imitation stands in.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::time::{Duration, Instant};

use common::config::{Checks, KafkaArgs, KafkaSettings};
use common::event::Timestamp;
use common::health::Check;
use common::kafka::{Delivered, KafkaPublisher, PublishError, Publisher, TopicError, create_topics, producer_config};
use futures::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use support::{event, event_json, required};
use uuid::Uuid;

const CLIENT: &str = "test";
/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:9";
const MINUTE: Duration = Duration::from_mins(1);
/// librdkafka looks for records whose time is over once a second.
const TIMEOUT_SCAN: Duration = Duration::from_millis(1_500);

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaArgs,
}

/// The defaults with topics of a test's own, and these flags.
fn settings(brokers: &str, flags: &[&str]) -> KafkaSettings {
    let topic = format!("test-{}", Uuid::now_v7());
    let dead_letters = format!("{topic}-dlq");
    let own = ["test", "--kafka-brokers", brokers, "--kafka-topic", &topic, "--kafka-dlq-topic", &dead_letters];
    let cli: Cli = common::config::parse(own.iter().chain(flags), |_| None).unwrap();
    let mut checks = Checks::default();
    let settings = cli.kafka.check(&mut checks);
    checks.finish(settings).unwrap()
}

fn publisher(settings: &KafkaSettings) -> KafkaPublisher {
    KafkaPublisher::new(producer_config(settings, CLIENT), &settings.topics.events).unwrap()
}

/// Topics on the shared Kafka, and a publisher to them.
async fn topics(flags: &[&str]) -> (KafkaSettings, KafkaPublisher) {
    let settings = settings(&required("TEST_KAFKA_BROKERS"), flags);
    create_topics(&settings, CLIENT).await.unwrap();
    let publisher = publisher(&settings);
    (settings, publisher)
}

/// Publishes an event of `user` with a string of that many bytes in its payload.
async fn publish(publisher: &KafkaPublisher, user: &str, size: usize) -> Result<Delivered, PublishError> {
    let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(size));
    let json = event_json(&Uuid::now_v7().to_string(), user, Timestamp::now(), &payload);
    publisher.publish(&event(&json), json.as_bytes()).await
}

fn admin(settings: &KafkaSettings) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &settings.brokers).create().unwrap()
}

/// Number of partitions; 0 for a topic that does not exist.
fn partitions(settings: &KafkaSettings, topic: &str) -> usize {
    let metadata = admin(settings).inner().fetch_metadata(Some(topic), MINUTE).unwrap();
    metadata.topics()[0].partitions().len()
}

async fn config_of(settings: &KafkaSettings, topic: &str) -> ConfigResource {
    let resource = ResourceSpecifier::Topic(topic);
    admin(settings).describe_configs([&resource], &AdminOptions::new()).await.unwrap().remove(0).unwrap()
}

async fn create(settings: &KafkaSettings, topic: NewTopic<'_>) {
    admin(settings).create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
}

/// The record that was delivered there.
async fn read(settings: &KafkaSettings, at: Delivered) -> OwnedMessage {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", &settings.topics.events)
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&settings.topics.events, at.partition, Offset::Offset(at.offset)).unwrap();
    consumer.assign(&place).unwrap();
    tokio::time::timeout(MINUTE, consumer.recv()).await.unwrap().unwrap().detach()
}

#[tokio::test]
async fn both_topics_are_created_with_their_shape_and_left_alone_afterwards() {
    let settings = settings(&required("TEST_KAFKA_BROKERS"), &["--kafka-topic-partitions", "3"]);
    // As the API and two workers do when they start together.
    for created in join_all((0..3).map(|_| create_topics(&settings, CLIENT))).await {
        created.unwrap();
    }
    let mut more = settings.clone();
    more.topics.partitions = 5;
    create_topics(&more, CLIENT).await.unwrap();

    for topic in [&settings.topics.events, &settings.topics.dead_letters] {
        assert_eq!(partitions(&settings, topic), 3, "{topic}");
    }
    let value = |config: &ConfigResource, name| config.get(name).unwrap().value.clone().unwrap();
    let events = config_of(&settings, &settings.topics.events).await;
    let dead_letters = config_of(&settings, &settings.topics.dead_letters).await;
    assert_eq!(value(&dead_letters, "retention.ms"), "-1");
    let [main, dead] = [&events, &dead_letters].map(|c| value(c, "max.message.bytes").parse::<usize>().unwrap());
    assert_eq!(dead, main + 64 * 1024);
}

#[tokio::test]
async fn the_dead_letter_topic_follows_a_main_topic_that_is_there_already() {
    let settings = settings(&required("TEST_KAFKA_BROKERS"), &[]);
    let main =
        NewTopic::new(&settings.topics.events, 2, TopicReplication::Fixed(-1)).set("max.message.bytes", "5000000");
    create(&settings, main).await;
    create_topics(&settings, CLIENT).await.unwrap();
    assert_eq!(partitions(&settings, &settings.topics.dead_letters), 2);
    let config = config_of(&settings, &settings.topics.dead_letters).await;
    assert_eq!(config.get("max.message.bytes").unwrap().value.as_deref(), Some("5065536"));
}

#[tokio::test]
async fn creating_topics_says_who_did_not_answer_and_what_was_refused() {
    let away = settings(NOWHERE, &["--kafka-request-timeout-ms", "300"]);
    let unreachable = create_topics(&away, CLIENT).await.unwrap_err();
    assert!(matches!(unreachable, TopicError::Unreachable(..)), "{unreachable}");
    assert!(unreachable.to_string().contains(NOWHERE), "{unreachable}");

    let greedy = settings(&required("TEST_KAFKA_BROKERS"), &["--kafka-topic-replication-factor", "9"]);
    let refused = create_topics(&greedy, CLIENT).await.unwrap_err();
    assert!(matches!(refused, TopicError::Refused(..)), "{refused}");
    assert!(refused.to_string().contains(&greedy.topics.events), "{refused}");
}

#[tokio::test]
async fn a_record_carries_the_event_its_user_its_headers_and_its_time() {
    let (settings, publisher) = topics(&[]).await;
    let at = Timestamp::parse("2026-02-17T10:00:00.123Z").unwrap();
    let json = event_json("the-id", "käte 1", at, "{ \"n\" : 1.0e+2 }");
    let delivered = publisher.publish(&event(&json), json.as_bytes()).await.unwrap();

    let record = read(&settings, delivered).await;
    assert_eq!(record.key(), Some("käte 1".as_bytes()));
    assert_eq!(record.payload(), Some(json.as_bytes()));
    assert_eq!(record.timestamp().to_millis(), Some(at.millis()));
    assert_eq!((record.partition(), record.offset()), (delivered.partition, delivered.offset));
    let headers = record.headers().unwrap();
    let headers: Vec<_> = headers.iter().map(|header| (header.key, header.value.unwrap())).collect();
    assert_eq!(headers, [("event-id", &b"the-id"[..]), ("event-type", b"LOGIN")]);
}

/// Kafka's `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let words = data.chunks_exact(4);
    let rest = words.remainder();
    let mut h = 0x9747_b28c_u32 ^ data.len() as u32;
    for word in words {
        let k = u32::from_le_bytes(word.try_into().unwrap()).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ (k ^ (k >> 24)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        h ^= rest.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
        h = h.wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    (h ^ (h >> 15)) as i32
}

#[tokio::test]
async fn a_users_events_go_to_the_partition_that_java_clients_choose() {
    // From Kafka's UtilsTest.
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
    }
    let (_, publisher) = topics(&["--kafka-topic-partitions", "7"]).await;
    let users: Vec<String> = (0..100).map(|n| format!("üser-{n}")).chain(["21".into(), "abc".into()]).collect();
    let delivered = join_all(users.iter().map(|user| publish(&publisher, user, 1))).await;
    for (user, at) in users.iter().zip(delivered) {
        assert_eq!(at.unwrap().partition, (murmur2(user.as_bytes()) & i32::MAX) % 7, "{user}");
    }
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_by_client_or_broker_and_the_next_one_is_taken() {
    let (settings, publisher) = topics(&[]).await;
    let client = publish(&publisher, "u", 1_100_000).await;
    assert!(matches!(client, Err(PublishError::Refused(_))), "{client:?}");
    publish(&publisher, "u", 1_000).await.unwrap();

    let small = format!("{}-small", settings.topics.events);
    create(&settings, NewTopic::new(&small, 1, TopicReplication::Fixed(-1)).set("max.message.bytes", "2000")).await;
    let publisher = KafkaPublisher::new(producer_config(&settings, CLIENT), &small).unwrap();
    let broker = publish(&publisher, "u", 10_000).await;
    assert!(matches!(broker, Err(PublishError::Refused(_))), "{broker:?}");
    publish(&publisher, "u", 1_000).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_is_away_is_an_unknown_outcome_in_time() {
    let settings = settings(NOWHERE, &["--kafka-producer-timeout-ms", "500"]);
    let publisher = publisher(&settings);
    let start = Instant::now();
    let outcome = publish(&publisher, "u", 1).await;
    assert!(matches!(outcome, Err(PublishError::Unknown(_))), "{outcome:?}");
    assert!(start.elapsed() < settings.delivery_timeout + TIMEOUT_SCAN, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_record_that_finds_the_queue_full_is_not_accepted_at_once_and_flush_says_what_is_left() {
    let settings = settings(NOWHERE, &["--kafka-queue-kbytes", "64"]);
    let publisher = publisher(&settings);
    let json = event_json("e", "u", Timestamp::now(), &format!(r#"{{"text":"{}"}}"#, "x".repeat(10_000)));
    let send = || publisher.publish(&event(&json), json.as_bytes());
    // Six of 10 kB fit, and wait.
    let waiting: Vec<_> = (0..6).map(|_| send()).collect();
    let start = Instant::now();
    let refused = send().await;
    assert!(matches!(refused, Err(PublishError::NotAccepted(_))), "{refused:?}");
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    assert!(publisher.flush(Duration::from_millis(10)).is_err());
    for outcome in join_all(waiting).await {
        assert!(matches!(outcome, Err(PublishError::Unknown(_))), "{outcome:?}");
    }
    publisher.flush(Duration::from_secs(5)).unwrap();
}

#[tokio::test]
async fn a_fatal_producer_error_is_followed_by_publishes_that_succeed() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster.bootstrap_servers(), &[]);
    cluster.create_topic(&settings.topics.events, 1, 1).unwrap();
    // For a request that is alone in flight this means that client and broker disagree for good.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    let inject = || cluster.request_errors(RDKafkaApiKey::Produce, &[error]);

    let bare: FutureProducer = producer_config(&settings, CLIENT).create().unwrap();
    inject();
    let record = FutureRecord::<(), str>::to(&settings.topics.events).payload("{}");
    assert!(bare.send_result(record).unwrap().await.unwrap().is_err());
    assert!(bare.client().fatal_error().is_some(), "the injected error ends a producer with these settings");

    let publisher = publisher(&settings);
    for _ in 0..2 {
        publish(&publisher, "u", 1).await.unwrap();
        inject();
        let outcomes = join_all((0..20).map(|_| publish(&publisher, "u", 1))).await;
        assert!(outcomes.iter().any(Result::is_err), "the error reached a record");
        let refused = outcomes.iter().any(|outcome| matches!(outcome, Err(PublishError::Refused(_))));
        assert!(!refused, "nothing is wrong with the records: {outcomes:?}");
        for outcome in join_all((0..20).map(|_| publish(&publisher, "u", 1))).await {
            outcome.unwrap();
        }
    }
}

/// Waits until a check says `ok`, and gives its reason.
async fn becomes(check: &Check, ok: bool) -> String {
    let start = Instant::now();
    while check.get().ok != ok {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", check.get());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check.get().reason
}

#[tokio::test]
async fn the_watch_says_whether_the_brokers_answer_and_have_the_topic() {
    let settings = settings(&required("TEST_KAFKA_BROKERS"), &[]);
    let [here, away] = [&settings.brokers, NOWHERE]
        .map(|brokers| publisher(&KafkaSettings { brokers: brokers.to_owned(), ..settings.clone() }));
    let [present, absent] = ["present", "absent"].map(|name| Check::new(name, "not asked yet"));
    absent.up("until asked");
    let period = Duration::from_millis(50);
    let story = async {
        let asked = async || {
            while present.get().reason == "not asked yet" {
                tokio::time::sleep(period).await
            }
        };
        tokio::time::timeout(MINUTE, asked()).await.unwrap();
        let reason = present.get().reason;
        assert!(!present.get().ok && reason.contains(&settings.topics.events), "{reason}");
        create_topics(&settings, CLIENT).await.unwrap();
        becomes(&present, true).await;
        let reason = becomes(&absent, false).await;
        assert!(reason.contains("no Kafka broker answers"), "{reason}");
    };
    tokio::select! {
        () = story => {}
        () = here.watch(&present, period) => {}
        () = away.watch(&absent, period) => {}
    }
}
