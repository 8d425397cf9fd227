//! Kafka away: posts are refused honestly, and everything works again without a restart.

use anyhow::ensure;
use e2e::{
    broker::Broker,
    eventually,
    load::Load,
    oracle::{Attempt, Journal, Outcome},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_killed_and_returns_needs_no_restart_of_ours() {
    let mut broker = Broker::start().await;
    let world = World::on_kafka(&broker.address());
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
    let health = api.answers("/health", 503).await.parse::<serde_json::Value>().unwrap();
    assert_ne!(health["producer"], "connected", "{health}");
    assert_eq!(health["store"], "connected", "{health}");
    // Reads do not need Kafka.
    api.check("/events/processed", 200).await.unwrap();

    broker.up().await;
    api.ready().await;
    worker.ready().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_meets_a_short_outage_is_answered_within_the_delivery_timeout() {
    let mut broker = Broker::start().await;
    let world = World::on_kafka(&broker.address()).with("KAFKA_PRODUCER_TIMEOUT_MS", "2000");
    let api = world.start_api().await;
    broker.kill().await;
    let started = std::time::Instant::now();
    let reply = api.client.publish(Attempt::new("u", 0).body()).await;
    let took = started.elapsed();
    let outcome = Outcome::of(&reply).unwrap();
    assert_eq!(outcome, Outcome::Unknown, "a delivery time-out: {reply:?}");
    assert!(reply.is_ok(), "there is a reply: {reply:?}");
    assert!(took.as_secs_f64() < 5.0, "KAFKA_PRODUCER_TIMEOUT_MS is 2 s, it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_deleted_are_made_again_while_the_api_runs() {
    let world = World::shared();
    let mut api = world.start_api().await;
    let post = async || api.client.publish(Attempt::new("u", 0).body()).await?.with_status(201);
    post().await.unwrap();
    // The events' topic last: it is the one whose absence is noticed.
    for topic in [format!("{}-dlq", world.topic), world.topic.clone()] {
        world.kafka().delete_topic(&topic).await.unwrap();
    }
    eventually("the topics are made again", async || {
        let made = api.process.output().matches("created the topic").count();
        ensure!(made == 4, "{made}");
        Ok(())
    })
    .await;
    eventually("posts succeed again", post).await;
    api.answers("/readyz", 200).await;
}
