//! What readers are told of events that can't be shown.

use anyhow::ensure;
use e2e::{
    eventually,
    kafka::Record,
    redis_server::RedisServer,
    sample::{event, record, text},
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

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_that_has_lost_its_positions_is_found_out() {
    let redis = RedisServer::start().await;
    let worker = World::on_redis(&redis.url()).start_worker().await;
    // A worker is ready before it has a partition to place.
    let positions = eventually("the positions are there", async || {
        let positions = redis.try_command_line::<Vec<String>>("KEYS *at:*").await?;
        ensure!(positions.len() == 1, "{positions:?}");
        Ok(positions)
    })
    .await;
    let _: String = redis.command_line("CONFIG SET maxmemory 1").await;
    redis.try_command_line::<String>("SET full 1").await.unwrap_err();
    assert_eq!(redis.command_line::<usize>(&format!("DEL {}", positions.join(" "))).await, 1);
    let found_out = || worker.process.output().contains("Redis has lost positions");
    // Each heartbeat asks for it, before anything that may be refused.
    let begun = redis.calls("role").await;
    eventually("it is found out, or a heartbeat that began after the loss has ended", async || {
        let heartbeats = redis.calls("role").await - begun;
        ensure!(found_out() || heartbeats > 2, "{heartbeats}");
        Ok(())
    })
    .await;
    assert!(found_out(), "a full Redis is looked at, too: {}", worker.process.output());
}

/// Nothing needs memory to free memory, and the workers wait while the guard makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_with_a_guard_is_never_full_however_much_there_is_to_store() {
    const RECORDS: u64 = 20_000;
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url()).with("REDIS_MEMORY_GUARD", "60");
    world.start_worker().await.process.terminate(e2e::PATIENCE).await;
    // More than there is room for; what is on its way at a time fits between the guard's limit and that of Redis.
    let payload = format!(r#"{{"text":{}}}"#, text(2_000));
    let records: Vec<Record> = (0..RECORDS).map(|n| record(&n.to_string(), &[("payload", &payload)])).collect();
    world.kafka().write(&world.topic, None, &records).await;
    let _: String = redis.command_line("CONFIG SET maxmemory 16mb").await;

    let worker = world.spawn_worker();
    let refused = eventually("all is stored, or Redis is full", async || {
        let refused = redis.command_line::<String>("INFO errorstats").await.contains("errorstat_OOM");
        let ready: serde_json::Value = worker.client.get("/readyz").await?.parse()?;
        let stored = ready["stored"].as_u64().unwrap_or_default();
        ensure!(refused || stored >= RECORDS, "{stored}");
        Ok(refused)
    })
    .await;
    assert!(!refused, "the guard is not outrun");
}

/// A rebalance waits for each member that does not poll, for up to `max.poll.interval.ms`, before the group throws it out.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_room_in_redis_takes_part_in_rebalances() {
    const RECORDS: usize = 5_000;
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url()).with("REDIS_MEMORY_GUARD", "60");
    let kafka = world.kafka();
    let worker = world.start_worker().await;
    eventually("all partitions have their place", async || {
        let ready = worker.client.get("/readyz").await?.ok()?.text();
        ensure!(ready.contains("6 assigned"), "{ready}");
        Ok(())
    })
    .await;
    // Nothing is stored, so nothing can be trimmed.
    let _: String = redis.command_line("CONFIG SET maxmemory 1").await;
    eventually("the worker has looked", async || {
        let unready = worker.client.get("/readyz").await?.with_status(503)?.text();
        ensure!(unready.contains("no event is left to trim"), "{unready}");
        Ok(())
    })
    .await;
    let records: Vec<Record> = (0..RECORDS).map(|_| Record::of(event(&[]))).collect();
    kafka.write(&world.topic, None, &records).await;
    eventually("it has waited for long", async || {
        let said = worker.process.output();
        ensure!(said.contains("the partitions wait for it"), "{said}");
        Ok(())
    })
    .await;
    let _other = world.spawn_worker();
    eventually("each worker has partitions", async || {
        let shares = kafka.members(&world.group)?;
        ensure!(shares.len() == 2 && shares.values().all(|share| share.len() == 3), "{shares:?}");
        Ok(())
    })
    .await;
    let _: String = redis.command_line("CONFIG SET maxmemory 0").await;
    world.start_api().await.client.listed(RECORDS).await;
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
