//! A Redis that loses what it had: seconds, or everything. The topic still has it, and nobody
//! has to lend a hand.

use std::time::Duration;

use anyhow::ensure;
use e2e::{
    PATIENCE, eventually, eventually_within, load::Load, oracle::Journal, redis_server::RedisServer, sample::record,
    service::Service, world::World,
};

/// For tens of thousands of events.
const LONG: Duration = PATIENCE.saturating_mul(3);

/// A system on a Redis of its own, with a hundred processed events in it.
struct Setting {
    redis: RedisServer,
    api: Service,
    _worker: Service,
    journal: Journal,
}

impl Setting {
    async fn with_processed_events() -> Self {
        let redis = RedisServer::start().await;
        let world = World::on_redis(&redis.url());
        let (api, worker) = world.start().await;
        let journal = Journal::default();
        let load = Load::start(&[&api.client], &journal);
        journal.grows_by(100).await;
        load.stop().await;
        journal.holds(&api.client).await;
        Self { redis, api, _worker: worker, journal }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restored_from_older_files_under_load_is_refilled() {
    let mut setting = Setting::with_processed_events().await;
    let Setting { redis, api, journal, .. } = &mut setting;
    let load = Load::start(&[&api.client], journal);
    journal.grows_by(100).await;
    let older = redis.copy_files();
    let copied = api.client.list().await.unwrap().len();
    eventually("much is processed after the copy", async || {
        let now = api.client.list().await?.len();
        ensure!(now > copied + 300, "{now} after {copied}");
        Ok(())
    })
    .await;
    redis.kill().await;
    redis.restore_files(&older);
    redis.up().await;
    journal.grows_by(100).await;
    load.stop().await;
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restored_from_older_files_without_load_is_refilled() {
    let mut setting = Setting::with_processed_events().await;
    let older = setting.redis.copy_files();
    let Setting { redis, api, journal, .. } = &mut setting;
    for sequence in 0..50 {
        journal.must_post(&api.client, "later", sequence).await.unwrap();
    }
    journal.holds(&api.client).await;
    redis.kill().await;
    redis.restore_files(&older);
    redis.up().await;
    is_refilled(&setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restored_from_files_of_the_fullest_flight_is_refilled() {
    const EVENTS: usize = 30_000;
    let mut redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let api = world.start_api().await;
    let records = (0..EVENTS).map(|number| record(&format!("user-{}", number % 500), &[]));
    world.kafka().write(&world.topic, None, &records.collect::<Vec<_>>()).await;
    // Large batches now, each of which touches every bucket: no bucket lags behind that could
    // hide a position that was written ahead of its data.
    let _worker = world.start_worker().await;
    are_stored(&redis, EVENTS / 3).await;
    let older = redis.copy_files();
    are_stored(&redis, EVENTS).await;
    redis.kill().await;
    redis.restore_files(&older);
    redis.up().await;
    are_stored(&redis, EVENTS).await;
    api.client.listed(EVENTS).await;
}

/// Waits for about so many events, without reading them.
async fn are_stored(redis: &RedisServer, least: usize) {
    eventually_within(LONG, &format!("{least} events are stored"), async || {
        let stored: usize = redis.try_command_line("DBSIZE").await?;
        ensure!(stored >= least, "{stored}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_killed_under_load_is_completed() {
    let mut setting = Setting::with_processed_events().await;
    let Setting { redis, api, journal, .. } = &mut setting;
    let load = Load::start(&[&api.client], journal);
    for _ in 0..3 {
        journal.grows_by(60).await;
        redis.kill().await;
        journal.grows_by(30).await;
        redis.up().await;
    }
    load.stop().await;
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_is_refilled() {
    let mut setting = Setting::with_processed_events().await;
    setting.redis.kill().await;
    setting.redis.delete_files();
    setting.redis.up().await;
    is_refilled(&setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_flushed_in_silence_is_refilled() {
    let setting = Setting::with_processed_events().await;
    assert_eq!(setting.redis.command_line::<String>("FLUSHALL").await, "OK");
    is_refilled(&setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_flushed_under_load_is_refilled() {
    let Setting { redis, api, journal, .. } = &Setting::with_processed_events().await;
    let load = Load::start(&[&api.client], journal);
    for _ in 0..3 {
        journal.grows_by(60).await;
        assert_eq!(redis.command_line::<String>("FLUSHALL").await, "OK");
    }
    journal.grows_by(60).await;
    load.stop().await;
    journal.holds(&api.client).await;
}

/// As by a new process that was first to find it empty and had another `REDIS_BUCKETS`.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_emptied_and_begun_with_another_number_of_buckets_is_refilled_once_the_programs_are_restarted() {
    const WORDS: &str = "restart this process";
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (mut api, mut worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(100).await;
    // The API has learned how many buckets there are.
    api.answers("/health", 200).await;
    let script = "redis.call('FLUSHALL') return redis.call('SET', KEYS[1], '4|4|xxh3')";
    let key = format!("{}:meta:layout", world.group);
    redis.send::<String>(redis::cmd("EVAL").arg(script).arg(1).arg(key)).await.unwrap();

    assert_eq!(worker.process.ended_within(PATIENCE).await.code(), Some(1));
    assert!(worker.process.output().contains(WORDS), "{}", worker.process.output());
    eventually("the API says so as well", async || {
        let health = api.client.get("/health").await?.with_status(503)?.text();
        ensure!(health.contains(WORDS), "{health}");
        Ok(())
    })
    .await;
    api.client.get("/events/processed").await.unwrap().unavailable().unwrap();
    let again = world.start().await;
    journal.grows_by(100).await;
    load.stop().await;
    assert_eq!(api.process.terminate(PATIENCE).await.code(), Some(0));
    journal.holds(&again.0.client).await;
    assert_eq!(redis.command_line::<Vec<String>>("KEYS *:tl:*").await.len(), 4);
}

/// Everything comes back although no event arrives: the list is looked at before a fresh one.
async fn is_refilled(setting: &Setting) {
    let Setting { api, journal, .. } = setting;
    eventually("Redis is refilled", async || {
        let verdict = journal.judge(&api.client.list().await?);
        assert!(verdict.wrong.is_empty(), "wrong: {:#?}", verdict.wrong);
        ensure!(verdict.missing.is_empty(), "{} missing", verdict.missing.len());
        Ok(())
    })
    .await;
    journal.holds(&api.client).await;
}
