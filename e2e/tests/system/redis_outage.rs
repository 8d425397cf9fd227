//! Redis away: posts go on, reads say so, the worker waits as a member, nothing becomes poison.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{eventually, oracle::Journal, redis_server::RedisServer, service::Service, throughout, world::World};

/// Longer than the session time-out of these worlds: a member that is not alive loses its place.
const OUTAGE: Duration = Duration::from_secs(8);

/// A system on a Redis of its own.
struct Setting {
    redis: RedisServer,
    world: World,
    api: Service,
    worker: Service,
    journal: Journal,
}

impl Setting {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let world = World::on_redis(&redis.url());
        let (api, worker) = world.start().await;
        let journal = Journal::default();
        journal.must_post(&api.client, "before", 0).await.unwrap();
        journal.holds(&api.client).await;
        Self { redis, world, api, worker, journal }
    }

    /// What must hold while Redis is away, beginning now.
    async fn waits(&mut self) {
        let Self { world, api, worker, journal, .. } = self;
        let members = world.kafka().members(&world.group).unwrap();
        let mut sequence = 0;
        throughout(OUTAGE, "posts are taken", async || {
            sequence += 1;
            journal.must_post(&api.client, "during", sequence).await?;
            Ok(())
        })
        .await;
        for path in ["/events/processed", "/events/processed?limit=5", "/events/some-event"] {
            let reply = api.client.get(path).await.unwrap();
            reply.unavailable().unwrap_or_else(|error| panic!("{path}: {error:#}"));
        }
        worker.answers("/readyz", 503).await;
        worker.check("/livez", 200).await.unwrap();
        api.check("/readyz", 200).await.unwrap();
        api.check("/livez", 200).await.unwrap();
        let health = api.answers("/health", 503).await;
        assert_ne!(health.parse::<serde_json::Value>().unwrap()["store"], "connected");
        assert_eq!(world.kafka().members(&world.group).unwrap(), members, "no rebalance");
    }

    /// What must come true once Redis is back.
    async fn recovers(mut self) -> Result<()> {
        self.journal.holds(&self.api.client).await;
        self.worker.ready().await;
        self.api.answers("/health", 200).await;
        let dead = self.world.kafka().read(&self.world.dead_letter_topic)?;
        ensure!(dead.is_empty(), "an outage is never poison: {dead:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_is_waited_for() {
    let mut setting = Setting::start().await;
    setting.redis.freeze();
    setting.waits().await;
    setting.redis.thaw();
    setting.recovers().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_gone_is_waited_for() {
    let mut setting = Setting::start().await;
    setting.redis.kill().await;
    setting.waits().await;
    setting.redis.up().await;
    setting.recovers().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_is_an_outage_not_poison() {
    let setting = Setting::start().await;
    let Setting { redis, api, journal, .. } = &setting;
    redis.command_line::<String>("CONFIG SET maxmemory 1").await;
    let listed = api.client.list().await.unwrap().len();
    let mut sequence = 0;
    throughout(Duration::from_secs(3), "posts are taken, none is stored", async || {
        sequence += 1;
        journal.must_post(&api.client, "during", sequence).await?;
        ensure!(api.client.list().await?.len() == listed, "Redis refuses every write");
        Ok(())
    })
    .await;
    redis.command_line::<String>("CONFIG SET maxmemory 0").await;
    setting.recovers().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_redis_is_answered_soon() {
    let setting = Setting::start().await;
    setting.redis.freeze();
    let client = &setting.api.client;
    eventually("each read is answered within eight seconds", async || {
        let started = std::time::Instant::now();
        let reply = client.get("/events/processed").await?;
        reply.unavailable()?;
        let took = started.elapsed();
        assert!(took < Duration::from_secs(8), "it took {took:?}");
        Ok(())
    })
    .await;
    setting.redis.thaw();
}
