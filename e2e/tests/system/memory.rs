//! What readers are told of events that can't be shown.

use anyhow::ensure;
use e2e::{
    eventually,
    kafka::Record,
    redis_server::RedisServer,
    sample::{event, text},
    world::World,
};
use serde_json::json;
use tokio::process::Command;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_gone_with_its_reason_and_an_unknown_event_is_unknown() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let id = Uuid::now_v7().to_string();
    let mut poison = Record::of(event(&[("eventType", r#""PURCHASE""#)]));
    poison.headers.push(("event-id".to_owned(), Some(id.clone().into_bytes())));
    world.kafka().write(&world.topic, None, &[poison]).await;
    eventually("the API knows that it is a dead letter", async || {
        let problem = api.client.get(&format!("/events/{id}?wait=1s")).await?.problem(410)?;
        ensure!(problem["state"] == "dead-lettered", "{problem}");
        ensure!(problem["detail"].as_str().is_some_and(|detail| detail.contains("eventType")), "{problem}");
        Ok(())
    })
    .await;
    let unknown = api.client.get("/events/nobody-has-this").await.unwrap().problem(404).unwrap();
    assert_eq!(unknown["state"], "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guard_has_trimmed_is_called_trimmed_by_lists_single_reads_and_verify() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url()).with("REDIS_MEMORY_GUARD", "60");
    let (api, worker) = world.start().await;
    let body = json!({"userId": "u", "eventType": "LOGIN", "payload": {"text": text(20_000)}}).to_string();
    let mut ids = Vec::new();
    for _ in 0..200 {
        let reply = api.client.publish(body.clone()).await.unwrap().with_status(201).unwrap();
        ids.push(reply.parse::<serde_json::Value>().unwrap()["eventId"].as_str().unwrap().to_owned());
    }
    api.client.listed(ids.len()).await;
    // What is used now is too much from now on, even if a little of it is gone soon, such as a buffer.
    let _: String = redis.command_line(&format!("CONFIG SET maxmemory {}", used(&redis).await * 4 / 3)).await;

    let first = eventually("the oldest event is trimmed", async || {
        api.client.get(&format!("/events/{}", ids[0])).await?.problem(410)
    })
    .await;
    assert_eq!(first["state"], "trimmed", "{first}");
    eventually("lists say so", async || {
        let list = api.client.get("/events/processed").await?.ok()?;
        ensure!(!list.header("trimmed-before").is_empty() && list.parse::<Vec<serde_json::Value>>()?.len() < ids.len());
        Ok(())
    })
    .await;
    api.client.get(&format!("/events/{}", ids[199])).await.unwrap().ok().unwrap();
    let verified = verify(world.worker_command()).await;
    assert!(verified["holds"] == true && verified["counts"]["trimmed"].as_u64() > Some(0), "{verified}");
    eventually("the worker says so", async || {
        ensure!(worker.process.output().contains("(REDIS_MEMORY_GUARD): "));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_full_is_trimmed_by_a_worker_that_starts_on_it_and_takes_events_again() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url()).with("REDIS_MEMORY_GUARD", "60");
    let (api, mut worker) = world.start().await;
    let body = json!({"userId": "u", "eventType": "LOGIN", "payload": {"text": text(20_000)}}).to_string();
    for _ in 0..200 {
        api.client.publish(body.clone()).await.unwrap().with_status(201).unwrap();
    }
    api.client.listed(200).await;
    // Not by SIGKILL: what is read again then, all of it at once, is more than there will be room for.
    worker.process.terminate(e2e::PATIENCE).await;
    let _: String = redis.command_line(&format!("CONFIG SET maxmemory {}", used(&redis).await * 4 / 5)).await;
    redis.try_command_line::<String>("SET full 1").await.unwrap_err();

    let _worker = world.start_worker().await;
    let reply = api.client.publish(body).await.unwrap().with_status(201).unwrap();
    let id = reply.parse::<serde_json::Value>().unwrap()["eventId"].as_str().unwrap().to_owned();
    eventually("the new event is stored", async || api.client.get(&format!("/events/{id}")).await?.ok()).await;
}

/// Bytes that Redis has in use, of those that count towards its limit: not what waits for its file.
async fn used(redis: &RedisServer) -> u64 {
    let memory: String = redis.command_line("INFO memory").await;
    let number = |name: &str| -> u64 {
        memory.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    number("used_memory:") - number("mem_not_counted_for_evict:")
}

async fn verify(mut command: Command) -> serde_json::Value {
    let output = command.args(["verify", "--json"]).output().await.unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}
