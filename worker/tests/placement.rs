//! Where partitions start, on a real Redis, which `scripts/test integration` names in `TEST_REDIS_URL`. Of Kafka it is
//! librdkafka's own imitation, whose brokers can be made slow.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::kafka::consumer_config;
use common::shutdown::Shutdown;
use common::store::{PositionScope, Store};
use futures::StreamExt;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::unbounded_channel;
use uuid::Uuid;
use worker::commit::Ledger;
use worker::group::Group;
use worker::placement::{Leaders, PlaceError, Placer};
use worker::status::Status;
use worker::{Cli, Config};

const TOPIC: &str = "events";
const GROUP: &str = "group";
const PATIENCE: Duration = Duration::from_secs(60);

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn parse<'a>(flags: impl Iterator<Item = &'a str>) -> Cli {
    common::config::parse(flags, |_| None).unwrap()
}

/// A client that has been assigned all partitions, each paused.
struct World {
    kafka: Arc<StreamConsumer<Group>>,
    store: Arc<Store>,
    ledger: Ledger,
    /// Where the store is, and what its keys begin with.
    redis: String,
    prefix: String,
    /// Behind its client, which says goodbye.
    cluster: Cluster,
}

impl World {
    /// With so many brokers, which lead the partitions in turn. The first is also the group's coordinator.
    fn new(brokers: i32, partitions: i32) -> Self {
        let redis = std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is not set: run scripts/test integration");
        let cluster = MockCluster::new(brokers).unwrap();
        cluster.create_topic(TOPIC, partitions, 1).unwrap();
        for partition in 0..partitions {
            cluster.partition_leader(TOPIC, partition, Some(partition % brokers + 1)).unwrap();
        }
        cluster.coordinator(MockCoordinator::Group(GROUP.to_owned()), 1).unwrap();
        let (servers, prefix) = (cluster.bootstrap_servers(), format!("test-{}:", Uuid::now_v7()));
        let flags = ["worker", "--kafka-brokers", &servers, "--kafka-topic", TOPIC, "--kafka-consumer-group", GROUP];
        let flags = flags.into_iter().chain(["--redis-url", &redis, "--redis-key-prefix", &prefix]);
        let config = Config::check(&parse(flags)).unwrap();

        let (changes, _) = unbounded_channel();
        let group = Group::new(TOPIC, Arc::new(Status::new(Shutdown::new())), changes);
        let kafka: StreamConsumer<Group> =
            consumer_config(&config.kafka, "test", &config.consumer).create_with_context(group).unwrap();
        let mut ledger = Ledger::default();
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            ledger.assign(partition);
            list.add_partition_offset(TOPIC, partition, Offset::Offset(0)).unwrap();
        }
        kafka.assign(&list).unwrap();
        kafka.pause(&list).unwrap();
        // What it needs to know of the topic it learns while all brokers answer.
        kafka.fetch_metadata(Some(TOPIC), PATIENCE).unwrap();
        Self {
            cluster,
            kafka: Arc::new(kafka),
            store: Arc::new(Store::new(&config.redis).unwrap()),
            ledger,
            redis,
            prefix,
        }
    }

    fn placer(&self) -> Placer {
        Placer {
            kafka: Arc::downgrade(&self.kafka),
            store: Arc::clone(&self.store),
            scope: PositionScope::new(GROUP, TOPIC),
            topic: TOPIC.to_owned(),
        }
    }

    /// One command behind the store's back, and its answer.
    fn command(&self, words: &str) -> String {
        let mut redis = TcpStream::connect(self.redis.trim_start_matches("redis://")).unwrap();
        redis.write_all(format!("{words}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(redis).read_line(&mut answer).unwrap();
        answer
    }

    /// Places what has no place yet until that has succeeded: a client may not have begun with a partition. Gives how often
    /// that was tried.
    async fn place_all(&mut self) -> usize {
        for tries in 1.. {
            let mut attempts = self.placer().place(self.ledger.unplaced(), Leaders::new());
            while let Some(attempt) = attempts.next().await {
                for placed in attempt.result.unwrap() {
                    assert!(self.ledger.place(placed.slot, placed.start, placed.committed, placed.buckets));
                }
            }
            if self.ledger.unplaced().is_empty() {
                return tries;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("it is tried for ever")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_of_a_broker_are_placed_by_a_few_requests() {
    let mut world = World::new(1, 100);
    // Each partition by itself would take two answers, one after the other: 50 seconds.
    world.cluster.broker_round_trip_time(1, Duration::from_millis(250)).unwrap();
    let start = Instant::now();
    let tries = world.place_all().await;
    let took = start.elapsed();
    // So that the client comes to its end in good time.
    world.cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert!(took < PATIENCE / 2, "{tries} tries took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_does_not_answer_holds_up_no_partition_of_others() {
    let mut world = World::new(2, 6);
    world.place_all().await;
    // All of them once more, now that the client knows its brokers.
    for partition in 0..6 {
        assert!(world.ledger.displace(world.ledger.current(partition).unwrap()));
    }
    world.cluster.broker_round_trip_time(2, PATIENCE * 10).unwrap();
    let leaders = (0..6).map(|partition| (partition, partition % 2 + 1)).collect();
    let mut attempts = world.placer().place(world.ledger.unplaced(), leaders);

    let first = attempts.next().await.unwrap();
    let placed: Vec<_> = first.result.unwrap().iter().map(|placed| placed.slot.partition).collect();
    assert_eq!(first.partitions, [0, 2, 4]);
    // A seek that takes too long is made again.
    assert!(placed.iter().all(|partition| first.partitions.contains(partition)), "{placed:?}");
    let second = attempts.next().await.unwrap();
    assert_eq!(second.partitions, [1, 3, 5]);
    assert!(matches!(second.result, Err(PlaceError::Kafka(_))), "{:?}", second.result);
    assert!(attempts.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_placed_also_where_nobody_can_say_whether_they_were_held() {
    let mut world = World::new(1, 6);
    assert_eq!(world.command(&format!("SET {}held text", world.prefix)), "+OK\r\n");
    world.store.holds(&PositionScope::new(GROUP, TOPIC), &[0]).await.unwrap_err();
    world.place_all().await;
    assert!(world.ledger.unplaced().is_empty());
}
