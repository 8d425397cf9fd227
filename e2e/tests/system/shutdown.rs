//! Stopping: clean when everything answers, in time when nothing does.

use std::time::Duration;

use anyhow::ensure;
use e2e::{
    PATIENCE,
    broker::Broker,
    chaos::admin::Admin,
    eventually,
    load::{Load, USERS},
    oracle::{Attempt, Journal},
    process::Signal,
    redis_server::RedisServer,
    service::Service,
    world::{World, free_port},
};

use crate::in_flight;

/// What these tests set as `SHUTDOWN_TIMEOUT`, and the longest that a stop may take then on a busy machine: many times as
/// long, but less than without the setting.
const TIMEOUT: &str = "1s";
const LONGEST: Duration = Duration::from_secs(18);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_is_a_clean_stop_and_keeps_every_acknowledged_event() {
    let world = World::shared();
    let (mut api, mut worker) = world.start().await;
    let replica = world.start_api().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client, &replica.client], &journal);
    journal.grows_by(100).await;
    let status = worker.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "the worker");
    journal.grows_by(50).await;
    let status = api.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "the API");
    journal.grows_by(50).await;
    load.stop().await;
    let _worker = world.start_worker().await;
    journal.holds(&replica.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_log_nothing_run_until_they_are_told_to_stop() {
    let world = World::shared().with("LOG_LEVEL", "off");
    let (mut api, mut worker) = world.start().await;
    let journal = Journal::default();
    journal.must_post(&api.client, "u", 0).await.unwrap();
    journal.holds(&api.client).await;
    for process in [&mut worker.process, &mut api.process] {
        assert_eq!(process.terminate(PATIENCE).await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_killed_under_load_has_promised_nothing_that_is_not_kept() {
    let world = World::shared();
    let (mut api, _worker) = world.start().await;
    let replica = world.start_api().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client, &replica.client], &journal);
    journal.grows_by(100).await;
    api.process.kill().await;
    journal.grows_by(50).await;
    load.stop().await;
    journal.holds(&replica.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stopped_cleanly_has_committed_everything_it_stored() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(300).await;
    load.stop().await;
    journal.holds(&api.client).await;
    assert_eq!(worker.process.terminate(PATIENCE).await.code(), Some(0));
    let ends = world.kafka().end_offsets(&world.topic).unwrap();
    let admin = Admin::new(&e2e::env::kafka_brokers());
    let lag = eventually("the commits are told", async || admin.lag(&world.group, &ends, &world.topic)).await;
    assert!(lag.values().all(|lag| *lag == 0), "{lag:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_stops_cleanly_too_and_an_idle_system_stops_at_once() {
    // Who waits for that does not stop in time for us.
    let world = World::shared().with("SHUTDOWN_TIMEOUT", "5m");
    let (mut api, mut worker) = world.start().await;
    for service in [&mut api, &mut worker] {
        service.process.signal(Signal::SIGINT);
        let status = service.process.ended_within(PATIENCE).await;
        assert_eq!(status.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_in_time_while_kafka_is_dead() {
    let mut broker = Broker::start().await;
    let world = World::on_kafka(&broker.address()).with("SHUTDOWN_TIMEOUT", TIMEOUT);
    // For longer than a stop may take, no post is given up.
    let world = world.with("KAFKA_PRODUCER_TIMEOUT_MS", "30000");
    let (api, worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(50).await;
    // With posts in flight, and offsets that were never committed.
    broker.kill().await;
    in_flight(&api, USERS).await;
    let [api, _] = end_in_time([api, worker]).await;
    assert_ne!(api, 0, "posts were left without an answer");
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_in_time_where_neither_kafka_nor_redis_ever_answered() {
    let redis_url = format!("redis://127.0.0.1:{}", free_port());
    let brokers = format!("127.0.0.1:{}", free_port());
    let world = World::on(&brokers, &redis_url).with("SHUTDOWN_TIMEOUT", TIMEOUT);
    let world = world.with("KAFKA_PRODUCER_TIMEOUT_MS", "30000");
    let (mut api, mut worker) = (world.spawn_api(), world.spawn_worker());
    api.answers("/livez", 200).await;
    worker.answers("/livez", 200).await;
    let client = api.client.clone();
    let post = tokio::spawn(async move { client.publish(Attempt::new("u", 0).body()).await });
    in_flight(&api, 1).await;
    assert!(
        matches!(end_in_time([api, worker]).await, [1, 0]),
        "the post was left without an answer, and nothing else"
    );
    let _ = post.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_in_time_while_redis_hangs() {
    let redis = RedisServer::start().await;
    // What waits for Redis does so until the end, which may come before the worker has left the group.
    let world = World::on_redis(&redis.url()).with("SHUTDOWN_TIMEOUT", TIMEOUT).with("REDIS_TIMEOUT", "10m");
    let world = world.with_short_session();
    let world = world.with("KAFKA_PRODUCER_TIMEOUT_MS", "30000");
    let (api, worker) = world.start().await;
    let journal = Journal::default();
    // Each partition has its place by then, or at least this one.
    journal.must_post(&api.client, "u", 0).await.unwrap();
    journal.holds(&api.client).await;
    redis.freeze();
    // Events in the worker's hands that it cannot store, and a reader that waits.
    for sequence in 1..=20 {
        journal.must_post(&api.client, "u", sequence).await.unwrap();
    }
    eventually("the worker has read what it cannot store", async || {
        let metrics = worker.client.get("/metrics").await?.ok()?.text();
        let mut ages = metrics.lines().filter(|line| line.starts_with("user_activity_consumer_lag_seconds"));
        ensure!(ages.any(|line| !line.ends_with(" 0")), "{metrics}");
        Ok(())
    })
    .await;
    // Last: the client waits for less long.
    let client = api.client.clone();
    let read = tokio::spawn(async move { client.list().await });
    in_flight(&api, 1).await;
    assert_eq!(end_in_time([api, worker]).await, [1, 1], "both left something unfinished");
    let _ = read.await.expect("no panic");

    redis.thaw();
    let (api, _worker) = world.start().await;
    journal.holds(&api.client).await;
}

/// SIGTERM to both; both end by themselves within the longest time. Gives their exit codes.
async fn end_in_time(services: [Service; 2]) -> [i32; 2] {
    for service in &services {
        service.process.signal(Signal::SIGTERM);
    }
    let ends = services.map(async |mut service| {
        let status = service.process.ended_within(LONGEST).await;
        assert!(!service.process.output().contains("panicked"));
        status.code().unwrap_or_else(|| panic!("it did not end by itself: {status}"))
    });
    futures::future::join_all(ends).await.try_into().expect("two")
}
