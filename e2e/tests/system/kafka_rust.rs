//! The API with `KAFKA_CLIENT=kafka-rust`. The worker is the same as ever: it takes all it needs from a record's value,
//! because this client writes no headers and no timestamps.

use anyhow::ensure;
use e2e::{
    PATIENCE,
    broker::Broker,
    env, eventually,
    load::Load,
    oracle::{Attempt, Journal},
    world::World,
};

const OLDER_LINE: &str = "3.9.1";

fn world(brokers: &str) -> World {
    World::on_kafka(brokers).with("KAFKA_CLIENT", "kafka-rust")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_rust_publishes_is_processed_once_and_listed() {
    let world = world(&env::kafka_3_brokers());
    let (mut api, _worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(200).await;
    load.stop().await;
    journal.holds(&api.client).await;
    let records = world.kafka().read(&world.topic).unwrap();
    assert!(records.iter().all(|at| at.record.headers.is_empty()), "this was not written by kafka-rust");
    assert_eq!(api.process.terminate(PATIENCE).await.code(), Some(0), "{}", api.process.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_killed_and_returns_needs_no_restart_of_kafka_rust() {
    let mut broker = Broker::reserve().await.of_version(OLDER_LINE);
    let world = world(&broker.address()).with("KAFKA_PRODUCER_TIMEOUT_MS", "5000").with_short_session();
    let mut api = world.spawn_api();
    // A broker that is not there yet is no reason to end.
    api.answers("/readyz", 503).await;
    broker.up().await;
    api.ready().await;
    let mut worker = world.start_worker().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(100).await;
    broker.kill().await;
    api.answers("/readyz", 503).await;
    api.check("/livez", 200).await.unwrap();
    eventually("posts are refused", async || {
        let reply = api.client.publish(Attempt::new("outage", 0).body()).await?;
        let problem = reply.unavailable()?;
        let outcome = problem["outcome"].as_str().unwrap_or_default();
        ensure!(["not accepted", "unknown"].contains(&outcome), "{problem}");
        Ok(())
    })
    .await;

    broker.up().await;
    api.ready().await;
    worker.ready().await;
    journal.grows_by(100).await;
    load.stop().await;
    eventually("every acknowledged event is listed", async || {
        let mut list = api.client.list().await?;
        // The posts that only asked for the refusal are not in the journal.
        list.retain(|event| event.user_id != "outage");
        let verdict = journal.judge(&list);
        assert!(verdict.wrong.is_empty(), "wrong: {:#?}", verdict.wrong);
        ensure!(verdict.missing.is_empty(), "{} missing", verdict.missing.len());
        Ok(())
    })
    .await;
    api.process.still_runs().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_the_protocol_versions_of_kafka_rust_is_refused_at_start() {
    let mut api = world(&env::kafka_brokers()).spawn_api();
    let status = api.process.ended_within(PATIENCE).await;
    let output = api.process.output();
    assert_eq!(status.code(), Some(1), "{output}");
    let last = output.trim_end().lines().last().unwrap_or_default();
    for part in ["ended: the broker", "Fetch 4 to", "--kafka-client rdkafka"] {
        assert!(last.contains(part), "{output}");
    }
}
