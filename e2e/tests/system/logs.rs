//! Finding a request in the logs, and seeing more of them without a restart.

use std::process::Stdio;

use anyhow::{Result, ensure};
use e2e::{
    PATIENCE, client::Reply, eventually, kafka::Record, raw, redis_server::RedisServer, sample::event,
    service::Service, world::World,
};
use reqwest::Method;
use serde_json::Value;
use tempfile::NamedTempFile;

async fn get(api: &Service, path: &str, id: &str) -> Reply {
    Reply::of(api.client.request(Method::GET, path).header("x-request-id", id)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reply_says_what_its_request_is_called_and_so_do_log_lines_of_failures() {
    let mut redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url()).with("LOG_LEVEL", "info,api=debug").with("LOG_FORMAT", "json");
    let api = world.start_api().await;
    for path in ["/health", "/nothing", "/events/processed", "/livez"] {
        assert_eq!(get(&api, path, "trace:abc/1").await.header("x-request-id"), "trace:abc/1", "{path}");
    }
    let made = get(&api, "/livez", "not a sane {id}").await.header("x-request-id").to_owned();
    assert_eq!(uuid::Uuid::parse_str(&made).unwrap().get_version_num(), 4);
    assert_ne!(get(&api, "/livez", "not a sane {id}").await.header("x-request-id"), made);

    redis.kill().await;
    let refused = get(&api, "/events/some-event", "the-failed-one").await;
    refused.unavailable().unwrap();
    eventually("the failure can be found by its id", async || {
        let output = api.process.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.into_iter().find(|line| line["requestId"] == "the-failed-one");
        ensure!(
            line.is_some_and(|line| line["message"].as_str().is_some_and(|said| said.contains("Redis"))),
            "no line"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_of_a_worker_changes_while_it_runs() {
    let world = World::shared().with("LOG_LEVEL", "error");
    let worker = world.start_worker().await;
    let put = async |level: &str| -> Result<Reply> {
        Reply::of(worker.client.request(Method::PUT, "/log-level").body(level.to_owned())).await
    };
    let write = async |stored: usize| {
        world.kafka().write(&world.topic, Some(0), &[Record::of(event(&[]))]).await;
        let metric = format!("user_activity_events_total{{result=\"new\"}} {stored}\n");
        eventually("the event is stored", async || {
            ensure!(worker.client.get("/metrics").await?.ok()?.text().contains(&metric), "{metric}");
            Ok(())
        })
        .await;
    };
    write(1).await;
    assert_eq!(worker.process.output(), "", "nothing is an error");
    let refused = put("loud").await.unwrap().with_status(400).unwrap();
    assert!(refused.text().contains("must be a level"), "{}", refused.text());
    put(&"x".repeat(2000)).await.unwrap().with_status(413).unwrap();
    assert_eq!(worker.process.output(), "", "nothing was changed");
    let changed: Value = put("info\n").await.unwrap().ok().unwrap().parse().unwrap();
    assert_eq!(changed["level"], "info");
    write(2).await;
    eventually("what happens is written", async || {
        ensure!(worker.process.output().contains("INFO"));
        Ok(())
    })
    .await;
    // Lines come in their order: once this one is here, so are all that were written before it.
    let all_is_read = async |times: usize| {
        put("warn").await.unwrap().ok().unwrap();
        eventually("the change is written", async || {
            ensure!(worker.process.output().matches("the log level is now warn").count() == times);
            Ok(())
        })
        .await;
    };
    all_is_read(1).await;
    let before = worker.process.output().matches("INFO").count();
    put("error").await.unwrap().ok().unwrap();
    write(3).await;
    all_is_read(2).await;
    assert_eq!(worker.process.output().matches("INFO").count(), before);
}

/// An API that lets in who has the key, with these scopes; the file of keys is its until it is dropped.
async fn start_api_with_key(world: World, scopes: &str) -> (Service, String, NamedTempFile) {
    let mut command = world.api_command();
    command.args(["hash-key", "--generate", "--scopes", scopes]).stdin(Stdio::null());
    let made = command.output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    let said = String::from_utf8(made.stderr).unwrap();
    let key = said.split_whitespace().last().unwrap().to_owned();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), made.stdout).unwrap();
    let api = world.with("API_KEYS_FILE", file.path().to_str().unwrap()).start_api().await;
    (api, key, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_keys_out_is_in_the_log_once_in_a_while() {
    let world = World::shared().with("LOG_LEVEL", "warn");
    let (api, _key, _file) = start_api_with_key(world, "read").await;
    for _ in 0..20 {
        let request =
            api.client.request(Method::GET, "/events/processed").header("x-api-key", "a-key-that-is-tried-out");
        Reply::of(request).await.unwrap().problem(401).unwrap();
    }
    eventually("it is written", async || {
        let output = api.process.output();
        let lines: Vec<&str> = output.lines().filter(|line| line.contains("a request was refused")).collect();
        ensure!(lines.len() == 1 && lines[0].contains("peer=127.0.0.1"), "{lines:?}");
        ensure!(!output.contains("tried-out"), "keys are not written: {output}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_of_an_api_changes_while_it_runs_for_who_has_the_scope() {
    let world = World::shared().with("LOG_LEVEL", "error");
    let (api, key, _file) = start_api_with_key(world, "admin,read").await;
    let put = async |level: &'static str, key: &str| {
        let request = api.client.request(Method::PUT, "/log-level").header("x-api-key", key).body(level);
        Reply::of(request).await.unwrap()
    };
    // A connection that breaks is told at debug, perhaps a moment after it broke: so each kind is told apart.
    let [early, late] = [&b"not HTTP\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n"];
    let late_ones = || api.process.output().matches("connection ended: invalid HTTP version").count();
    // It shows each problem, none of which has happened.
    api.client.get("/openapi.json").await.unwrap().ok().unwrap();
    put("debug", "a-key-that-is-not-known").await.problem(401).unwrap();
    raw::exchange(api.port, early, PATIENCE).await;
    assert_eq!(api.process.output(), "", "nothing was changed, and nothing is an error");
    put("info,api=debug", &key).await.ok().unwrap();
    raw::exchange(api.port, late, PATIENCE).await;
    eventually("what happens is written", async || {
        ensure!(late_ones() == 1);
        Ok(())
    })
    .await;
    put("error", &key).await.ok().unwrap();
    raw::exchange(api.port, late, PATIENCE).await;
    put("warn", &key).await.ok().unwrap();
    eventually("the next change is written", async || {
        ensure!(api.process.output().contains("the log level is now warn"));
        Ok(())
    })
    .await;
    assert_eq!(late_ones(), 1, "{}", api.process.output());
}
