//! Topics and publishing on a real Kafka: `scripts/test integration` names one in `TEST_KAFKA_BROKERS`, and in
//! `TEST_KAFKA_3_BROKERS` one of the older line. Each test has topics of its own. What holds for every publisher is
//! tested over both backends, see [`over_both!`]. Where a real broker can't be made to fail as needed, librdkafka's own
//! imitation stands in.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

mod fake_broker;
mod kafka_rust;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use common::config::{Checks, KafkaArgs, KafkaSettings};
use common::event::Timestamp;
use common::health::Check;
use common::kafka::{
    Delivered, KafkaBackend, KafkaPublisher, KafkaRustPublisher, PublishError, Publisher, TopicError, create_topics,
    partition_of, producer_config,
};
use futures::future::{BoxFuture, FutureExt, join_all};
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
/// For one question that is asked again.
const ANSWER: Duration = Duration::from_secs(3);

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaArgs,
}

const TIMEOUT_FLAG: &str = "--kafka-producer-timeout-ms";

/// The defaults with topics of a test's own, and these flags. A delivery takes as long as it may, unless a flag says
/// otherwise: what must succeed is not to fail on a busy machine.
fn settings(brokers: &str, flags: &[&str]) -> KafkaSettings {
    let topic = format!("test-{}", Uuid::now_v7());
    let dead_letters = format!("{topic}-dlq");
    let own = ["test", "--kafka-brokers", brokers, "--kafka-topic", &topic, "--kafka-dlq-topic", &dead_letters];
    let patient = if flags.contains(&TIMEOUT_FLAG) { [].as_slice() } else { &[TIMEOUT_FLAG, "60000"] };
    let cli: Cli = common::config::parse(own.iter().chain(patient).chain(flags), |_| None).unwrap();
    let mut checks = Checks::default();
    let settings = cli.kafka.check(&mut checks);
    checks.finish(settings).unwrap()
}

/// What publishes, each on the newest Kafka that it can talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Rdkafka,
    KafkaRust,
}

impl Backend {
    fn brokers(self) -> String {
        required(match self {
            Self::Rdkafka => "TEST_KAFKA_BROKERS",
            Self::KafkaRust => "TEST_KAFKA_3_BROKERS",
        })
    }

    fn publisher(self, settings: &KafkaSettings) -> Box<dyn KafkaBackend> {
        match self {
            Self::Rdkafka => Box::new(rdkafka_publisher(settings)),
            Self::KafkaRust => Box::new(KafkaRustPublisher::new(settings, CLIENT).unwrap()),
        }
    }

    /// Whether `outcome` is what this backend says of a record for which no broker was there. librdkafka does not tell
    /// whether it has sent a record.
    fn says_away(self, outcome: &Outcome) -> bool {
        match self {
            Self::Rdkafka => matches!(outcome, Err(PublishError::Unknown(_))),
            Self::KafkaRust => matches!(outcome, Err(PublishError::NotAccepted(_))),
        }
    }
}

/// Makes two tests of each function.
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        mod over_rdkafka {
            $(#[tokio::test] async fn $name() { super::$name(super::Backend::Rdkafka).await; })*
        }
        mod over_kafka_rust {
            $(#[tokio::test] async fn $name() { super::$name(super::Backend::KafkaRust).await; })*
        }
    };
}

over_both!(
    a_record_carries_the_event_and_its_user,
    a_users_events_go_to_the_partition_that_java_clients_choose,
    a_users_events_keep_their_order,
    a_record_that_is_too_large_is_refused_by_client_or_broker_and_the_next_one_is_taken,
    records_that_are_too_large_only_together_are_not_refused,
    a_broker_that_is_away_is_said_in_time,
    a_record_that_finds_the_queue_full_is_not_accepted_at_once_and_flush_says_what_is_left,
    the_watch_says_whether_the_brokers_answer_and_have_the_topic,
);

fn rdkafka_publisher(settings: &KafkaSettings) -> KafkaPublisher {
    KafkaPublisher::with_group_commit(producer_config(settings, CLIENT), &settings.topics.events).unwrap()
}

/// Topics on the backend's shared Kafka, and a publisher to them.
async fn topics(backend: Backend, flags: &[&str]) -> (KafkaSettings, Box<dyn KafkaBackend>) {
    let settings = settings(&backend.brokers(), flags);
    create_topics(&settings, CLIENT).await.unwrap();
    partitions(&settings, &settings.topics.events).await;
    let publisher = backend.publisher(&settings);
    (settings, publisher)
}

type Outcome = Result<Delivered, PublishError>;

/// Publishes an event of `user` with a string of that many bytes in its payload. It is handed over before this returns.
fn publish(publisher: &dyn Publisher, user: &str, size: usize) -> BoxFuture<'static, Outcome> {
    let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(size));
    let json = event_json(&Uuid::now_v7().to_string(), user, Timestamp::now(), &payload);
    publisher.publish(&event(&json), json.as_bytes())
}

fn admin(settings: &KafkaSettings) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &settings.brokers).create().unwrap()
}

/// Number of partitions. A broker that has just created a topic may need a moment to list it, and to lead it.
async fn partitions(settings: &KafkaSettings, topic: &str) -> usize {
    let start = Instant::now();
    loop {
        // Each time by a new client: one that has heard that there is no such topic does not ask again for long.
        let admin = admin(settings);
        if let Ok(metadata) = admin.inner().fetch_metadata(Some(topic), ANSWER) {
            let partitions = metadata.topics()[0].partitions();
            let is_led = |id| admin.inner().fetch_watermarks(topic, id, ANSWER).is_ok();
            if !partitions.is_empty() && partitions.iter().all(|partition| is_led(partition.id())) {
                return partitions.len();
            }
        }
        assert!(start.elapsed() < MINUTE, "{topic} is not there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn config_of(settings: &KafkaSettings, topic: &str) -> ConfigResource {
    let resource = ResourceSpecifier::Topic(topic);
    admin(settings).describe_configs([&resource], &AdminOptions::new()).await.unwrap().remove(0).unwrap()
}

async fn create(settings: &KafkaSettings, topic: NewTopic<'_>) {
    admin(settings).create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    partitions(settings, topic.name).await;
}

/// The records from that place on, so many.
async fn read(settings: &KafkaSettings, at: Delivered, count: usize) -> Vec<OwnedMessage> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", &settings.topics.events)
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&settings.topics.events, at.partition, Offset::Offset(at.offset)).unwrap();
    consumer.assign(&place).unwrap();
    let mut records = Vec::with_capacity(count);
    let all = async {
        while records.len() < count {
            // An error may pass.
            records.extend(consumer.recv().await.map(|record| record.detach()));
        }
    };
    tokio::time::timeout(MINUTE, all).await.unwrap();
    records
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
        assert_eq!(partitions(&settings, topic).await, 3, "{topic}");
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
    assert_eq!(partitions(&settings, &settings.topics.dead_letters).await, 2);
    let config = config_of(&settings, &settings.topics.dead_letters).await;
    assert_eq!(config.get("max.message.bytes").unwrap().value.as_deref(), Some("5065536"));
}

#[tokio::test]
async fn creating_topics_says_who_did_not_answer_and_what_was_refused() {
    let away = settings(NOWHERE, &["--kafka-request-timeout-ms", "300"]);
    let unreachable = create_topics(&away, CLIENT).await.unwrap_err();
    assert!(matches!(unreachable, TopicError::Unreachable { .. }), "{unreachable}");
    assert!(unreachable.to_string().contains(NOWHERE), "{unreachable}");

    let greedy = settings(&required("TEST_KAFKA_BROKERS"), &["--kafka-topic-replication-factor", "9"]);
    let refused = create_topics(&greedy, CLIENT).await.unwrap_err();
    assert!(matches!(refused, TopicError::Refused(..)), "{refused}");
    assert!(refused.to_string().contains(&greedy.topics.events), "{refused}");
}

async fn a_record_carries_the_event_and_its_user(backend: Backend) {
    let (settings, publisher) = topics(backend, &[]).await;
    let at = Timestamp::parse("2026-02-17T10:00:00.123Z").unwrap();
    let json = event_json("the-id", "käte 1", at, "{ \"n\" : 1.0e+2 }");
    let delivered = publisher.publish(&event(&json), json.as_bytes()).await.unwrap();

    let record = read(&settings, delivered, 1).await.remove(0);
    assert_eq!(record.key(), Some("käte 1".as_bytes()));
    assert_eq!(record.payload(), Some(json.as_bytes()));
    assert_eq!((record.partition(), record.offset()), (delivered.partition, delivered.offset));
    // The crate `kafka` can write neither; nothing reads them but people and their tools.
    if backend == Backend::Rdkafka {
        assert_eq!(record.timestamp().to_millis(), Some(at.millis()));
        let headers = record.headers().unwrap();
        let headers: Vec<_> = headers.iter().map(|header| (header.key, header.value.unwrap())).collect();
        assert_eq!(headers, [("event-id", &b"the-id"[..]), ("event-type", b"LOGIN")]);
    }
}

async fn a_users_events_go_to_the_partition_that_java_clients_choose(backend: Backend) {
    let (settings, publisher) = topics(backend, &["--kafka-topic-partitions", "7"]).await;
    let users: Vec<String> = (0..100).map(|n| format!("üser-{n}")).chain(["21".into(), "abc".into()]).collect();
    let delivered = join_all(users.iter().map(|user| publish(&*publisher, user, 1))).await;
    for (user, at) in users.iter().zip(delivered) {
        assert_eq!(at.unwrap().partition, partition_of(user.as_bytes(), 7), "{user}");
    }
    // The other backend on the same broker, where there is one for both.
    let other = rdkafka_publisher(&settings);
    for user in &users[..20] {
        assert_eq!(publish(&other, user, 1).await.unwrap().partition, partition_of(user.as_bytes(), 7), "{user}");
    }
}

async fn a_users_events_keep_their_order(backend: Backend) {
    let (settings, publisher) = topics(backend, &[]).await;
    let call = |number: usize| event_json(&format!("call-{number}"), "u", Timestamp::now(), "{}");
    let calls: Vec<String> = (0..2_000).map(call).collect();
    let delivered = join_all(calls.iter().map(|json| publisher.publish(&event(json), json.as_bytes()))).await;
    let delivered: Vec<Delivered> = delivered.into_iter().map(Result::unwrap).collect();
    for (number, record) in read(&settings, delivered[0], calls.len()).await.iter().enumerate() {
        let value = String::from_utf8_lossy(record.payload().unwrap());
        assert_eq!(value, calls[number], "the topic's order is the order of the calls");
        assert_eq!(record.offset(), delivered[number].offset, "where the publisher says that it is");
    }
}

async fn a_record_that_is_too_large_is_refused_by_client_or_broker_and_the_next_one_is_taken(backend: Backend) {
    // The crate `kafka` can't ask for the topic's limit.
    let is_told = |outcome: Outcome, max| {
        let told = (backend == Backend::Rdkafka).then_some(max);
        matches!(outcome, Err(PublishError::TooLarge { limit, .. }) if limit == told)
    };
    let (settings, publisher) = topics(backend, &[]).await;
    let large = publish(&*publisher, "u", 1_100_000).await;
    assert!(is_told(large, 1_048_588), "with the broker's default");
    publish(&*publisher, "u", 1_000).await.unwrap();

    let mut small = settings.clone();
    small.topics.events = format!("{}-small", settings.topics.events);
    let topic = NewTopic::new(&small.topics.events, 1, TopicReplication::Fixed(-1)).set("max.message.bytes", "2000");
    create(&settings, topic).await;
    let publisher = backend.publisher(&small);
    let broker = publish(&*publisher, "u", 10_000).await;
    assert!(is_told(broker, 2_000));
    publish(&*publisher, "u", 1_000).await.unwrap();
}

async fn records_that_are_too_large_only_together_are_not_refused(backend: Backend) {
    let settings = settings(&backend.brokers(), &[]);
    let topic =
        NewTopic::new(&settings.topics.events, 1, TopicReplication::Fixed(-1)).set("max.message.bytes", "150000");
    create(&settings, topic).await;
    let publisher = backend.publisher(&settings);
    for outcome in join_all((0..2_000).map(|_| publish(&*publisher, "u", 500))).await {
        outcome.unwrap();
    }
}

async fn a_broker_that_is_away_is_said_in_time(backend: Backend) {
    let settings = settings(NOWHERE, &[TIMEOUT_FLAG, "500"]);
    let publisher = backend.publisher(&settings);
    let start = Instant::now();
    let outcome = publish(&*publisher, "u", 1).await;
    assert!(backend.says_away(&outcome), "{outcome:?}");
    // Without a time-out of ours it were librdkafka's, five minutes, or the crate's two.
    assert!(start.elapsed() < MINUTE, "{:?}", start.elapsed());
}

async fn a_record_that_finds_the_queue_full_is_not_accepted_at_once_and_flush_says_what_is_left(backend: Backend) {
    let settings = settings(NOWHERE, &["--kafka-queue-kbytes", "64", TIMEOUT_FLAG, "10000"]);
    let publisher = backend.publisher(&settings);
    let json = event_json("e", "u", Timestamp::now(), &format!(r#"{{"text":"{}"}}"#, "x".repeat(10_000)));
    let send = || publisher.publish(&event(&json), json.as_bytes()).map(|outcome| (outcome, Instant::now()));
    // Six of 10 kB fit, and wait.
    let waiting: Vec<_> = (0..6).map(|_| tokio::spawn(send())).collect();
    let (refused, refused_at) = send().await;
    assert!(matches!(refused, Err(PublishError::NotAccepted(_))), "{refused:?}");
    assert!(publisher.flush(Duration::from_millis(10)).is_err());
    for waited in join_all(waiting).await {
        let (outcome, answered_at) = waited.unwrap();
        assert!(backend.says_away(&outcome), "{outcome:?}");
        assert!(refused_at < answered_at, "it had to wait for a place");
    }
    publisher.flush(MINUTE).unwrap();
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

    let publisher = rdkafka_publisher(&settings);
    for _ in 0..2 {
        publish(&publisher, "u", 1).await.unwrap();
        inject();
        let outcomes = join_all((0..20).map(|_| publish(&publisher, "u", 1))).await;
        assert!(outcomes.iter().any(Result::is_err), "the error reached a record");
        let refused = outcomes.iter().any(|outcome| matches!(outcome, Err(PublishError::Refused(_))));
        assert!(!refused, "nothing is wrong with the records: {outcomes:?}");
        // A producer is replaced once a second at most.
        let start = Instant::now();
        while join_all((0..20).map(|_| publish(&publisher, "u", 1))).await.iter().any(Result::is_err) {
            assert!(start.elapsed() < MINUTE);
        }
    }
}

#[tokio::test]
async fn a_producer_that_may_never_write_is_not_replaced_all_the_time() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster.bootstrap_servers(), &[]);
    cluster.create_topic(&settings.topics.events, 1, 1).unwrap();
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[error; 1000]);
    let publisher = rdkafka_publisher(&settings);
    let start = Instant::now();
    // What a producer takes waits until that one has failed; what comes between two producers is not accepted.
    let (mut waited, mut not_accepted) = (0, 0);
    while not_accepted < 200 {
        match publish(&publisher, "u", 1).await {
            Err(PublishError::NotAccepted(_)) => not_accepted += 1,
            Err(_) => waited += 1,
            Ok(at) => panic!("{at:?}"),
        }
        assert!(start.elapsed() < MINUTE, "{waited} waited, {not_accepted} were not accepted");
    }
    let producers = 2 + start.elapsed().as_secs();
    assert!(waited <= producers, "one for each producer, of which there is a new one each second: {waited}");
}

#[tokio::test]
async fn a_partition_whose_leader_is_away_holds_no_other_up() {
    let cluster = MockCluster::new(2).unwrap();
    let settings = settings(&cluster.bootstrap_servers(), &[]);
    cluster.create_topic(&settings.topics.events, 2, 1).unwrap();
    let user_of =
        |partition| (0..).map(|n| n.to_string()).find(|n| partition_of(n.as_bytes(), 2) == partition).unwrap();
    let (here, away) = (user_of(0), user_of(1));
    cluster.partition_leader(&settings.topics.events, 0, Some(1)).unwrap();
    cluster.partition_leader(&settings.topics.events, 1, Some(2)).unwrap();
    let publisher = rdkafka_publisher(&settings);
    for user in [&here, &away] {
        publish(&publisher, user, 1).await.unwrap();
    }

    cluster.broker_down(2).unwrap();
    let waiting: Vec<_> = (0..100).map(|_| publish(&publisher, &away, 1)).collect();
    let start = Instant::now();
    for _ in 0..10 {
        for outcome in join_all((0..10).map(|_| publish(&publisher, &here, 1))).await {
            outcome.unwrap();
        }
    }
    assert!(start.elapsed() < settings.delivery_timeout / 2, "{:?}", start.elapsed());
    cluster.broker_up(2).unwrap();
    for outcome in join_all(waiting).await {
        outcome.unwrap();
    }
}

/// Waits until a check says `ok`, and gives its reason.
async fn becomes(check: &Check, ok: bool) -> String {
    let start = Instant::now();
    while check.get().ok != ok {
        assert!(start.elapsed() < MINUTE, "{:?}", check.get());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check.get().reason
}

async fn the_watch_says_whether_the_brokers_answer_and_have_the_topic(backend: Backend) {
    let settings = settings(&backend.brokers(), &[]);
    let [here, away] = [&settings.brokers, NOWHERE]
        .map(|brokers| backend.publisher(&KafkaSettings { brokers: brokers.to_owned(), ..settings.clone() }));
    let [present, absent] = ["present", "absent"].map(|name| Check::new(name, "not asked yet"));
    absent.up("until asked");
    let period = Duration::from_millis(50);
    let story = async {
        // Until it has met a broker, it may say that none answers.
        let topic_is_missed = async || {
            while !present.get().reason.contains(&settings.topics.events) {
                tokio::time::sleep(period).await
            }
        };
        tokio::time::timeout(MINUTE, topic_is_missed()).await.unwrap_or_else(|_| panic!("{:?}", present.get()));
        assert!(!present.get().ok, "{:?}", present.get());
        create_topics(&settings, CLIENT).await.unwrap();
        becomes(&present, true).await;
        let reason = becomes(&absent, false).await;
        assert!(reason.contains("no Kafka broker answers"), "{reason}");
    };
    tokio::select! {
        () = story => {}
        why = here.watch(&present, period) => panic!("{why}"),
        why = away.watch(&absent, period) => panic!("{why}"),
    }
}
