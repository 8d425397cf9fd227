//! Redis users that may do what SECURITY.md lists, and nothing else.

use std::collections::HashMap;

use anyhow::ensure;
use e2e::{
    client::Reply,
    eventually,
    kafka::Record,
    redis_server::RedisServer,
    sample::{event, text},
    sse::Sse,
    world::World,
};
use redis::Value;

/// The users of SECURITY.md, all with one password.
async fn add_users(redis: &RedisServer) {
    let document = include_str!("../../../SECURITY.md");
    let users: Vec<&str> = document.lines().filter(|line| line.starts_with("ACL SETUSER ")).collect();
    assert_eq!(users.len(), 2, "{users:?}");
    for user in users {
        redis.command_line::<()>(&user.replace("PASSWORD", "secret")).await;
    }
}

/// What was refused, but for what a connection says of itself, and for the one look at what only `CONFIG` says.
async fn refused(redis: &RedisServer) -> Vec<String> {
    let log: Vec<HashMap<String, Value>> = redis.command_line("ACL LOG").await;
    let said = log.into_iter().map(|entry| format!("{:?} by {:?}", entry["object"], entry["username"]));
    said.filter(|said| !(said.contains("setinfo") || said.contains("config|get"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_listed_are_enough_for_everything() {
    let redis = RedisServer::start().await;
    add_users(&redis).await;
    let of = |user: &str| format!("redis://user-activity-{user}:secret@127.0.0.1:{}", redis.port());
    let world = World::on_redis(&redis.url()).with("REDIS_KEY_PREFIX", "ua:").with("REDIS_MEMORY_GUARD", "60");
    // One poison record is enough to hold a partition, and to let it go again.
    let workers = world
        .clone()
        .with("REDIS_URL", of("worker"))
        .with("DEAD_LETTER_BREAKER_IN_A_ROW", "1")
        .with("DEAD_LETTER_BREAKER_PROBE", "1s")
        .with("DEAD_LETTER_BREAKER_HOLD", "1s");
    let api = world.clone().with("REDIS_URL", of("api")).start_api().await;
    let mut worker = workers.start_worker().await;
    let mut stream = Sse::open(&api.client, "", None).await.unwrap();

    let body = event(&[("payload", &format!(r#"{{"text":{}}}"#, text(20_000)))]);
    let first = api.client.publish(body.clone()).await.unwrap().with_status(201).unwrap();
    let first = first.parse::<serde_json::Value>().unwrap()["eventId"].as_str().unwrap().to_owned();
    for nth in 0..99 {
        let keyed = api.client.publication(body.clone()).header("idempotency-key", format!("key {nth}"));
        Reply::of(keyed).await.unwrap().with_status(201).unwrap();
    }
    let mut poison = Record::of("poison");
    poison.headers.push(("event-id".to_owned(), Some(first.clone().into_bytes())));
    world.kafka().write(&world.topic, None, &[poison]).await;
    api.client.listed(100).await;
    stream.event().await.unwrap();
    for path in ["/events/processed?limit=10", "/events/processed?userId=u&limit=10", "/health", "/lag"] {
        api.client.get(path).await.unwrap();
    }
    eventually("health is well", async || api.client.get("/health").await?.ok()).await;
    // A page that ends earlier than an API expects that has seen no event yet.
    let other = world.clone().with("REDIS_URL", of("api")).start_api().await;
    let page: Vec<serde_json::Value> = other.client.get("/events/processed?limit=100").await.unwrap().parse().unwrap();
    assert!((1..100).contains(&page.len()), "{}", page.len());
    assert!(redis.calls("zscore").await > 0);

    // The guard has something to do.
    let memory: String = redis.command_line("INFO memory").await;
    let used: u64 = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().parse().unwrap();
    redis.command_line::<String>(&format!("CONFIG SET maxmemory {}", used * 4 / 3)).await;
    eventually("the oldest event is trimmed", async || {
        ensure!(api.client.get(&format!("/events/{first}")).await?.status == 410);
        Ok(())
    })
    .await;
    eventually("the hold is over and forgotten", async || {
        ensure!(redis.calls("hdel").await > 0 && redis.command_line::<usize>("EXISTS ua:held").await == 0);
        Ok(())
    })
    .await;
    worker.process.terminate(e2e::PATIENCE).await;
    for words in [&["verify"][..], &["positions", "show"], &["positions", "set", "--to", "end"]] {
        let output = workers.worker_command().args(words).output().await.unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(refused(&redis).await, [""; 0]);
}
