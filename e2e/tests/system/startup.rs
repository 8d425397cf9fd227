//! Starting in any order.

use anyhow::ensure;
use e2e::{broker::Broker, eventually, oracle::Journal, redis_server::RedisServer, service::Service, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn both_start_before_kafka_and_redis_exist_and_become_ready_by_themselves() {
    let mut broker = Broker::reserve().await;
    let mut redis = RedisServer::reserve();
    // A service says what it waits for when its first question is given up.
    let world = World::on(&broker.address(), &redis.url()).with("KAFKA_REQUEST_TIMEOUT_MS", "3000");
    let (mut api, mut worker) = (world.spawn_api(), world.spawn_worker());
    for service in [&mut api, &mut worker] {
        service.answers("/livez", 200).await;
        service.answers("/readyz", 503).await;
    }
    let health = api.answers("/health", 503).await.parse::<serde_json::Value>().unwrap();
    assert_eq!(health["status"], "degraded");
    for part in ["producer", "store", "consumer"] {
        assert_ne!(health[part], "connected", "{part}");
    }
    api.client.get("/events/processed").await.unwrap().unavailable().unwrap();
    for service in [&api, &worker] {
        warns_of("kafka", service).await;
    }

    broker.up().await;
    api.ready().await;
    warns_of("redis", &worker).await;
    worker.check("/readyz", 503).await.unwrap();
    redis.up().await;
    worker.ready().await;
    Journal::default().holds(&api.client).await;
    api.answers("/health", 200).await;
}

/// Waits until the service says that it waits for `dependency`.
async fn warns_of(dependency: &str, service: &Service) {
    eventually(&format!("it says that it waits for {dependency}"), async || {
        let said = service.process.output().to_lowercase();
        let mut warnings = said.lines().filter(|line| line.contains("warn") || line.contains("error"));
        ensure!(warnings.any(|line| line.contains(dependency)), "{said}");
        Ok(())
    })
    .await;
}
