//! The operators' subcommands, and what happens to a topic behind the workers' back.

use std::process::Output;

use anyhow::ensure;
use e2e::{
    client::{Client, Event},
    eventually,
    oracle::Journal,
    redis_server::RedisServer,
    service::Service,
    world::World,
};
use serde_json::Value;

async fn desk(world: &World, words: &[&str]) -> Output {
    world.worker_command().args(words).output().await.unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// Posts events of many users and waits until they are listed.
async fn posted(client: &Client, count: usize) -> Vec<Event> {
    let journal = Journal::default();
    for sequence in (0..).take(count) {
        journal.must_post(client, &format!("user-{sequence}"), sequence).await.unwrap();
    }
    client.listed(count).await
}

async fn counter(worker: &mut Service, name: &str) -> u64 {
    let reply: Value = worker.answers("/readyz", 200).await.parse().unwrap();
    reply[name].as_u64().unwrap()
}

/// Waits until the worker has met all `count` records of the topic that were stored before.
async fn read_again(worker: &mut Service, count: u64) {
    eventually("all of it is read again", async || {
        let again = counter(worker, "duplicates").await;
        ensure!(again == count, "{again} of {count}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_whether_something_is_missing() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let list = posted(&api.client, 30).await;
    worker.process.terminate(e2e::PATIENCE).await;

    let whole = desk(&world, &["verify", "--json"]).await;
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!((&report["counts"]["records"], &report["counts"]["stored"]), (&30.into(), &30.into()), "{report}");

    // A body, and of another event only its place in the index.
    redis.delete_body(&list[0].event_id).await;
    redis.unlist(&list[1].event_id).await;
    let broken = desk(&world, &["verify"]).await;
    assert_eq!(broken.status.code(), Some(1), "{}", said(&broken));
    for id in [&list[0].event_id, &list[1].event_id] {
        assert!(said(&broken).contains(id), "{}", said(&broken));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_are_shown_and_moved_only_while_no_worker_runs() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    posted(&api.client, 30).await;
    let refused = desk(&world, &["positions", "set", "--to", "beginning"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("1 members; stop all workers first"), "{}", said(&refused));
    worker.process.terminate(e2e::PATIENCE).await;

    let to_read = async || {
        let shown = desk(&world, &["positions", "show", "--json"]).await;
        let rows = String::from_utf8(shown.stdout).unwrap();
        rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap()["toRead"].as_i64().unwrap()).sum::<i64>()
    };
    assert_eq!(to_read().await, 0);
    assert_eq!(desk(&world, &["positions", "set", "--to", "beginning"]).await.status.code(), Some(0));
    assert_eq!(to_read().await, 30);
    let mut worker = world.start_worker().await;
    read_again(&mut worker, 30).await;
    // And stored once.
    api.client.listed(30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_retention_took_are_counted_and_the_rest_is_processed() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    posted(&api.client, 20).await;
    worker.process.terminate(e2e::PATIENCE).await;
    let journal = Journal::default();
    for sequence in 0..20 {
        journal.must_post(&api.client, "one-user", sequence).await.unwrap();
    }
    let kafka = world.kafka();
    let (partition, end) = kafka.end_offsets(&world.topic).unwrap().into_iter().max_by_key(|(_, end)| *end).unwrap();
    kafka.delete_records(&world.topic, partition, end - 5).await.unwrap();
    let mut worker = world.start_worker().await;
    api.client.listed(25).await;
    assert_eq!(counter(&mut worker, "skippedOffsets").await, 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_are_read() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    posted(&api.client, 10).await;
    let kafka = world.kafka();
    kafka.add_partitions(&world.topic, 8).await.unwrap();
    eventually("the new partitions are assigned", async || {
        let assigned: usize = kafka.members(&world.group)?.values().map(Vec::len).sum();
        ensure!(assigned == 8, "{assigned} of 8");
        Ok(())
    })
    .await;
    let record = e2e::kafka::Record::of(e2e::sample::event(&[]));
    kafka.write(&world.topic, Some(7), &[record]).await;
    api.client.listed(11).await;
}

/// Posts events of one user, which are all in one partition, and waits until so many are listed.
async fn posted_by_one_user(client: &Client, journal: &Journal, count: usize, in_all: usize) {
    for sequence in (journal.acknowledged() as u64..).take(count) {
        journal.must_post(client, "one-user", sequence).await.unwrap();
    }
    client.listed(in_all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_commits_are_gone_loses_and_doubles_nothing() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let journal = Journal::default();
    posted_by_one_user(&api.client, &journal, 30, 30).await;
    worker.process.terminate(e2e::PATIENCE).await;
    world.kafka().delete_group(&world.group).await.unwrap();
    let mut worker = world.start_worker().await;
    // A commit that is missing counts as the beginning, whatever Redis knows.
    read_again(&mut worker, 30).await;
    posted_by_one_user(&api.client, &journal, 5, 35).await;
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
    let world = World::shared();
    let (mut api, mut worker) = world.start().await;
    let journal = Journal::default();
    posted_by_one_user(&api.client, &journal, 30, 30).await;
    for process in [&mut worker.process, &mut api.process] {
        process.terminate(e2e::PATIENCE).await;
    }
    world.kafka().delete_topic(&world.topic).await.unwrap();
    // What Redis remembers lies beyond the end of the new log.
    let (api, _worker) = world.start().await;
    posted_by_one_user(&api.client, &journal, 5, 35).await;
    journal.holds(&api.client).await;
}
