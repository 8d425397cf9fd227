//! A Redis Cluster that moves a slot, or loses a primary, under load: nothing is lost and nothing is doubled.
//!
//! Each test says how long the pipeline waited: `scripts/test integration -- cluster --nocapture` shows it.

#![allow(clippy::print_stderr, reason = "what was measured")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::{
    client::Client,
    eventually, eventually_within,
    load::Load,
    oracle::{Attempt, Journal, Outcome},
    redis_cluster::RedisCluster,
    sample::record,
    service::Service,
    world::World,
};
use futures::future::join_all;
use serde_json::Value;

/// Events that are posted together to see when the last one appears: so many that each of the sixteen buckets has some.
const PROBES: u64 = 200;

/// A system on a Cluster of its own, with some processed events in it.
struct Setting {
    cluster: RedisCluster,
    world: World,
    api: Service,
    _worker: Service,
    journal: Journal,
}

impl Setting {
    async fn with_processed_events(cluster: RedisCluster, count: usize) -> Self {
        // The product's own time-out, which an outage of a node is to meet.
        let world = World::on_redis(&cluster.url()).with("REDIS_TIMEOUT", "3s");
        let (api, worker) = world.start().await;
        let journal = Journal::default();
        let load = Load::start(&[&api.client], &journal);
        journal.grows_by(count).await;
        load.stop().await;
        journal.holds(&api.client).await;
        Self { cluster, world, api, _worker: worker, journal }
    }

    /// Posts events and waits until all of them can be read.
    async fn freshness(&self) -> Duration {
        freshness(&self.api.client, &self.journal).await
    }
}

async fn freshness(client: &Client, journal: &Journal) -> Duration {
    let user = format!("probe-{}", uuid::Uuid::now_v7());
    let start = Instant::now();
    let probes = (0..PROBES).map(async |number| {
        let outcome = journal.post(client, Attempt::new(&format!("{user}-{number}"), 0)).await.unwrap();
        let Outcome::Acknowledged(promise) = outcome else { panic!("Kafka is well, and the post was {outcome:?}") };
        let path = format!("/events/{}", promise.id);
        eventually(&format!("{path} is there"), async || client.get(&path).await?.ok()).await;
        start.elapsed()
    });
    join_all(probes).await.into_iter().max().unwrap()
}

/// The client of a Cluster keeps no order between requests, and several batches are on their way.
#[tokio::test(flavor = "multi_thread")]
async fn full_batches_on_a_healthy_cluster_do_not_overtake_each_other() {
    const EVENTS: usize = 30_000;
    let cluster = RedisCluster::start().await;
    // Its patience matters: a worker that loses its partitions, or an answer, places them anew, and then positions may
    // well have moved.
    let world = World::on_redis(&cluster.url());
    let api = world.start_api().await;
    let records = (0..EVENTS).map(|number| record(&format!("user-{}", number % 500), &[]));
    world.kafka().write(&world.topic, None, &records.collect::<Vec<_>>()).await;
    let start = Instant::now();
    let worker = world.start_worker().await;
    eventually_within(Duration::from_mins(5), "everything is stored", async || {
        let ready: Value = worker.client.get("/readyz").await?.parse()?;
        let stored = ready["stored"].as_u64().unwrap_or_default();
        ensure!(stored == EVENTS as u64, "{stored} of {EVENTS}: {ready}");
        Ok(())
    })
    .await;
    eprintln!("{EVENTS} waiting events were stored within {:?} of the worker's start", start.elapsed());
    api.client.listed(EVENTS).await;
    let overtaken = worker.process.output().matches("is not where this worker left it").count();
    assert_eq!(overtaken, 0, "positions that were not where the worker had left them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_under_load_loses_and_doubles_nothing() {
    let setting = Setting::with_processed_events(RedisCluster::start().await, 1_000).await;
    let Setting { cluster, world, api, journal, .. } = &setting;
    let (from, slot) = cluster.place_of(&format!("{}:ix:{{10}}", world.topic)).await;
    let to = (from + 1) % 3;
    let load = Load::start(&[&api.client], journal);
    journal.grows_by(50).await;
    let before = setting.freshness().await;

    cluster.begin_move(slot, from, to).await;
    let start = Instant::now();
    let moved = async {
        // In steps, with load between them, so that transactions meet each half of the slot.
        while cluster.move_keys(slot, from, to, 10).await {
            journal.grows_by(20).await;
        }
        let emptied = start.elapsed();
        cluster.end_move(slot, from, to).await;
        (emptied, start.elapsed())
    };
    let fresh = async {
        setting.freshness().await;
        start.elapsed()
    };
    let ((emptied, moved), waited) = tokio::join!(moved, fresh);
    let after = setting.freshness().await;
    load.stop().await;
    journal.holds(&api.client).await;
    eprintln!(
        "slot {slot} moved in {moved:?}: {PROBES} fresh events visible after {before:?} before, {waited:?} meanwhile \
         (which is {:?} after the move), {after:?} afterwards",
        waited.saturating_sub(moved)
    );
    // What is new in the slot has a place only when the move is over.
    assert!(waited > emptied / 2, "nothing met the slot on its way");
    let count: usize = cluster.nodes[to].command_line(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).await;
    assert!(count > 50, "the slot with {count} keys is where it was to go");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_under_load_loses_and_doubles_nothing() {
    let mut setting = Setting::with_processed_events(RedisCluster::start().await, 200).await;
    let load = Load::start(&[&setting.api.client], &setting.journal);
    setting.journal.grows_by(100).await;
    let before = setting.freshness().await;

    setting.cluster.kill(0).await;
    let start = Instant::now();
    let Setting { cluster, api, journal, .. } = &setting;
    let took_over = async {
        cluster.replica_takes_over(0).await;
        start.elapsed()
    };
    let (took_over, waited) = tokio::join!(took_over, setting.freshness());
    let after = setting.freshness().await;
    journal.grows_by(100).await;
    load.stop().await;
    journal.holds(&api.client).await;
    eprintln!(
        "failover took {took_over:?} (node time-out 3 s): {PROBES} fresh events visible after {before:?} before, \
         {waited:?} meanwhile, {after:?} afterwards"
    );
}

/// Replication is asynchronous: the last writes of a primary may die with it, and its replica knows nothing of them.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_a_failover_has_lost_are_read_from_the_topic_again_also_in_silence() {
    let mut setting = Setting::with_processed_events(RedisCluster::start().await, 200).await;
    setting.cluster.cut_off_replica_of(0).await;
    let Setting { cluster, api, journal, .. } = &mut setting;
    for sequence in 0..100 {
        journal.must_post(&api.client, "on-one-node-only", sequence).await.unwrap();
    }
    journal.holds(&api.client).await;
    // Until nothing is left to be written that would find out.
    eventually("the positions of all buckets are up to date", async || {
        let positions = cluster.hashes("*:at:*").await?;
        ensure!(positions.len() == 16 && positions.iter().all(|one| *one == positions[0]), "{positions:?}");
        Ok(())
    })
    .await;
    let keys = async |node: usize| -> i64 { cluster.nodes[node].command_line("DBSIZE").await };
    let lost = keys(0).await - keys(3).await;
    assert!(lost > 10, "{lost} keys are on the primary only");
    cluster.kill(0).await;
    cluster.replica_takes_over(0).await;

    // Nobody posts: only the heartbeat can notice.
    let start = Instant::now();
    eventually("what was lost is back", async || {
        let verdict = journal.judge(&api.client.list().await?);
        assert!(verdict.wrong.is_empty(), "{:#?}", verdict.wrong);
        ensure!(verdict.missing.is_empty(), "{} missing", verdict.missing.len());
        Ok(())
    })
    .await;
    eprintln!("{lost} keys that the failover had lost were back {:?} after it", start.elapsed());
    journal.holds(&api.client).await;
}
