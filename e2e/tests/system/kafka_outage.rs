//! Kafka away: posts are refused honestly, and everything works again without a restart.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{
    broker::Broker,
    eventually, eventually_within,
    kafka::Record,
    load::Load,
    oracle::{Attempt, Journal, Outcome},
    process::Signal,
    sample::record,
    world::World,
};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_killed_and_returns_needs_no_restart_of_ours() {
    let mut broker = Broker::start().await;
    // The product's default: refusals are waited for here.
    let world = World::on_kafka(&broker.address()).with("KAFKA_PRODUCER_TIMEOUT_MS", "5000").with_short_session();
    let (mut api, mut worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(100).await;
    broker.kill().await;

    eventually("posts are refused", async || {
        let reply = api.client.publish(Attempt::new("outage", 0).body()).await?;
        let problem = reply.unavailable()?;
        ensure!(problem["message"] == "Failed to publish event", "{problem}");
        let outcome = problem["outcome"].as_str().unwrap_or_default();
        ensure!(["not accepted", "unknown"].contains(&outcome), "{problem}");
        Ok(())
    })
    .await;
    api.answers("/readyz", 503).await;
    worker.answers("/readyz", 503).await;
    api.check("/livez", 200).await.unwrap();
    worker.check("/livez", 200).await.unwrap();
    eventually("only Kafka is away", async || {
        let health: serde_json::Value = api.client.get("/health").await?.with_status(503)?.parse()?;
        ensure!(health["producer"] != "connected" && health["store"] == "connected", "{health}");
        Ok(())
    })
    .await;
    // Reads do not need Kafka.
    api.answers("/events/processed", 200).await;

    broker.up().await;
    api.ready().await;
    worker.ready().await;
    let said = worker.process.output();
    assert!(!said.contains("AllBrokersDown"), "it says so with each attempt to connect: {said}");
    journal.grows_by(100).await;
    load.stop().await;
    // The posts that only asked for the refusal are not in the journal: judge without them.
    let list = eventually("every acknowledged event is listed", async || {
        let mut list = api.client.list().await?;
        list.retain(|event| event.user_id != "outage");
        let verdict = journal.judge(&list);
        assert!(verdict.wrong.is_empty(), "wrong: {:#?}", verdict.wrong);
        ensure!(verdict.missing.is_empty(), "{} missing", verdict.missing.len());
        Ok(list)
    })
    .await;
    assert!(list.len() >= 200);
    let dead = world.kafka().read(&world.dead_letter_topic).unwrap();
    assert!(dead.is_empty(), "an outage is never poison: {dead:?}");
    api.answers("/health", 200).await;
}

/// What a broker says that its controller has fenced, as after a pause of the machine: that there are no brokers. On that
/// the client library may forget all that it knows, for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_knows_of_no_brokers_for_a_moment_needs_no_restart_of_ours() {
    let mut broker = Broker::start().await;
    // A member whose client is lost can't leave the group: it knows no coordinator.
    let world = World::on_kafka(&broker.address()).with_short_session();
    let (mut api, mut worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(50).await;

    // It is fenced again and again, whenever its last heartbeat is old. Not each time a client is lost.
    broker.kill().await;
    broker.set_properties("broker.session.timeout.ms=200\nbroker.heartbeat.interval.ms=500\n");
    broker.up().await;
    eventually_within(Duration::from_mins(5), "it was met a few times", async || {
        let said = api.process.output();
        let times = said.matches("have no leader").count() + said.matches("has lost all brokers").count();
        ensure!(times >= 3, "{times} times");
        Ok(())
    })
    .await;

    broker.kill().await;
    broker.set_properties("");
    broker.up().await;
    api.ready().await;
    worker.ready().await;
    journal.grows_by(50).await;
    load.stop().await;
    journal.holds(&api.client).await;
    for service in [&mut api, &mut worker] {
        service.process.still_runs().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_meets_a_short_outage_is_answered_within_the_delivery_timeout() {
    let mut broker = Broker::start().await;
    let world = World::on_kafka(&broker.address()).with("KAFKA_PRODUCER_TIMEOUT_MS", "2000");
    // Later than our client gives up.
    let api = world.with("HTTP_REQUEST_TIMEOUT", "10m").start_api().await;
    broker.kill().await;
    let started = Instant::now();
    let reply = api.client.publish(Attempt::new("u", 0).body()).await;
    let took = started.elapsed();
    assert!(reply.is_ok(), "there is a reply: {reply:?}");
    let outcome = Outcome::of(&reply).unwrap();
    assert_eq!(outcome, Outcome::Unknown, "a delivery time-out: {reply:?}");
    assert!(took < Duration::from_secs(20), "it took {took:?} of 2 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_deleted_are_made_again_while_the_api_runs() {
    let world = World::shared();
    let kafka = world.kafka();
    let topics = [&world.topic, &world.dead_letter_topic];
    let made = async || -> Result<()> {
        let found: Vec<usize> = topics.iter().map(|topic| Ok(kafka.partitions(topic)?.len())).collect::<Result<_>>()?;
        ensure!(found == [6, 6], "{found:?}");
        Ok(())
    };
    let mut api = world.start_api().await;
    let post = async || api.client.publish(Attempt::new("u", 0).body()).await?.with_status(201);
    eventually("the topics are made", &made).await;
    eventually("posts succeed", &post).await;
    // It is held still until they are gone from all eyes.
    api.process.signal(Signal::SIGSTOP);
    for topic in topics {
        kafka.delete_topic(topic).await.unwrap();
    }
    api.process.signal(Signal::SIGCONT);
    eventually("the topics are made again", &made).await;
    eventually("posts succeed again", &post).await;
    api.answers("/readyz", 200).await;
}

/// The log of a topic that is made anew begins with leader epoch 0. A restart of the broker has given the old one a later
/// epoch, and what librdkafka hears of the new one is stale for it (C19).
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "the worker reads a topic that was made anew")]
async fn expected_to_fail_c19_a_topic_that_is_made_anew_after_a_restart_of_its_broker_is_read() {
    let mut broker = Broker::start().await;
    let world = World::on_kafka(&broker.address()).with_short_session();
    let (api, worker) = world.start().await;
    let kafka = world.kafka();
    broker.kill().await;
    broker.up().await;
    let write = async |user: &str, count: usize| {
        let records: Vec<Record> = (0..count).map(|_| record(user, &[])).collect();
        kafka.write(&world.topic, Some(0), &records).await;
    };
    write("before", 3).await;
    api.client.listed(3).await;

    kafka.delete_topic(&world.topic).await.unwrap();
    eventually("it is made anew", async || {
        // The API may come first.
        drop(kafka.create_topic(&world.topic, 6, ("retention.ms", "-1")).await);
        ensure!(kafka.partitions(&world.topic)?.len() == 6, "it has not all partitions");
        Ok(())
    })
    .await;
    write("behind", 10).await;
    let read = eventually("the worker reads it, or is not ready", async || {
        let (read, said) = (api.client.list().await?.len() > 3, worker.client.get("/readyz").await?.text());
        ensure!(read || said.contains("has not moved"), "{said}");
        Ok(read)
    })
    .await;
    // What cures it may begin only now.
    let read = read || timeout(Duration::from_secs(20), api.client.listed(13)).await.is_ok();
    assert!(read, "the worker reads a topic that was made anew");
}
