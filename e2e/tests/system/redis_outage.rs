//! Redis away: posts go on, reads say so, the worker waits as a member, nothing becomes poison.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{eventually, oracle::Journal, redis_server::RedisServer, service::Service, throughout, world::World};
use serde_json::Value;

/// How long a world waits for a Redis that does not answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Time enough for every part to meet the outage, and to try again.
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
        Self::of(world, redis).await
    }

    /// The same, which does not wait for Redis for longer than [`TIMEOUT`].
    async fn impatient() -> Self {
        let redis = RedisServer::start().await;
        let world = World::on_redis(&redis.url());
        Self::of(world.with("REDIS_TIMEOUT", format!("{}s", TIMEOUT.as_secs())), redis).await
    }

    async fn of(world: World, redis: RedisServer) -> Self {
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
        api.ready().await;
        api.check("/livez", 200).await.unwrap();
        eventually("health names the store", async || {
            let health: Value = api.client.get("/health").await?.with_status(503)?.parse()?;
            ensure!(health["store"] == "disconnected", "{health}");
            Ok(())
        })
        .await;
        assert_eq!(world.kafka().members(&world.group).unwrap(), members, "no rebalance");
        // Who goes without a word stays a member until its session ends: it is still the same one.
        let metrics = worker.client.get("/metrics").await.unwrap().ok().unwrap().text();
        assert!(metrics.contains("user_activity_assigned_partitions 6\n"), "{metrics}");
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
    let mut setting = Setting::impatient().await;
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
    let Setting { redis, api, worker, journal, .. } = &setting;
    redis.command_line::<String>("CONFIG SET maxmemory 1").await;
    let listed = api.client.list().await.unwrap().len();
    journal.must_post(&api.client, "first", 0).await.unwrap();
    eventually("the worker has met the refusal", async || {
        let metrics = worker.client.get("/metrics").await?.ok()?.text();
        ensure!(!metrics.contains("user_activity_store_failures_total 0\n"), "{metrics}");
        Ok(())
    })
    .await;
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
    let setting = Setting::impatient().await;
    setting.redis.freeze();
    let client = &setting.api.client;
    eventually("a read is answered", async || {
        let started = Instant::now();
        client.get("/events/processed").await?.unavailable()?;
        let took = started.elapsed();
        assert!(took < 10 * TIMEOUT, "it took {took:?}, and not about {TIMEOUT:?}");
        Ok(())
    })
    .await;
    setting.redis.thaw();
}
