//! Settings, the command line, and what an operator is told when they are wrong.

use std::{net::TcpListener, process::ExitStatus};

use anyhow::{Context, ensure};
use e2e::{
    PATIENCE,
    client::Client,
    eventually,
    oracle::Journal,
    process::Process,
    redis_server::RedisServer,
    world::{World, free_port},
};
use tokio::process::Command;
use uuid::Uuid;

/// `EX_USAGE` of sysexits.h.
const USAGE: i32 = 64;

/// A world whose engines nobody asks.
fn nowhere() -> World {
    World::on("127.0.0.1:9", "redis://127.0.0.1:9")
}

/// Runs a command to its end.
async fn run(mut command: Command, arguments: &[&str]) -> (ExitStatus, String) {
    command.args(arguments);
    let mut process = Process::spawn("a command", command);
    let status = process.ended_within(PATIENCE).await;
    (status, process.output())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_configuration_errors_are_reported_in_one_run() {
    let world = nowhere()
        .with("EVENT_RETENTION", "never")
        .with("SHUTDOWN_TIMEOUT", "-1s")
        .with("REDIS_URL", "not a url")
        .with("REDIS_BUCKETS", "12")
        .with("LOG_FORMAT", "yaml")
        .with("KAFKA_TOPIC", "not a name!");
    let shared = ["EVENT_RETENTION", "SHUTDOWN_TIMEOUT", "REDIS_URL", "REDIS_BUCKETS", "LOG_FORMAT", "KAFKA_TOPIC"];
    let api = world.clone().with("PORT", "65536").with("KAFKA_PRODUCER_TIMEOUT_MS", "soon");
    reports(api.api_command(), &shared, &["PORT", "KAFKA_PRODUCER_TIMEOUT_MS"]).await;
    let worker = world.with("ADMIN_PORT", "x").with("KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "0");
    let own = ["ADMIN_PORT", "KAFKA_CONSUMER_SESSION_TIMEOUT_MS"];
    reports(worker.worker_command(), &shared, &own).await;
}

async fn reports(command: Command, shared: &[&str], own: &[&str]) {
    let (status, said) = run(command, &[]).await;
    assert_eq!(status.code(), Some(USAGE), "{said}");
    for setting in shared.iter().chain(own) {
        let flag = format!("--{}", setting.to_lowercase().replace('_', "-"));
        assert!(said.contains(setting) || said.contains(&flag), "{setting} is named in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_timeout_longer_than_the_http_timeout_is_refused() {
    let world = nowhere().with("HTTP_REQUEST_TIMEOUT", "3s").with("KAFKA_PRODUCER_TIMEOUT_MS", "5000");
    reports(world.api_command(), &["HTTP_REQUEST_TIMEOUT"], &["KAFKA_PRODUCER_TIMEOUT_MS"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_flag_is_a_usage_error() {
    for command in [nowhere().api_command(), nowhere().worker_command()] {
        let (status, said) = run(command, &["--no-such-flag"]).await;
        assert_eq!(status.code(), Some(USAGE), "{said}");
        assert!(said.contains("--no-such-flag"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_one_clear_line_and_a_failure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let world = nowhere().with("PORT", &port).with("ADMIN_PORT", &port);
    for command in [world.api_command(), world.worker_command()] {
        let (status, said) = run(command, &[]).await;
        assert!(status.code().is_some_and(|code| code > 0), "{status}: {said}");
        let lines = said.lines().filter(|line| line.contains(&port) && line.contains("in use"));
        assert_eq!(lines.count(), 1, "one line with the port and why:\n{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_zero_takes_a_free_one_and_says_which() {
    let world = nowhere().with("PORT", "0").with("ADMIN_PORT", "0");
    for command in [world.api_command(), world.worker_command()] {
        let process = Process::spawn("a service on any port", command);
        eventually("it says its port, and answers there", async || {
            let said = process.output();
            let ports = said.split("127.0.0.1:").skip(1).filter_map(|rest| {
                rest.split(|character: char| !character.is_ascii_digit()).next()?.parse::<u16>().ok()
            });
            let port = ports.filter(|port| *port > 9).min().context("a port")?;
            Client::new(port).get("/livez").await?.ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn help_and_version_are_there_without_any_engine() {
    for (command, port) in
        [(World::api_command as fn(&World) -> Command, "PORT"), (World::worker_command, "ADMIN_PORT")]
    {
        let (status, help) = run(command(&nowhere()), &["--help"]).await;
        assert_eq!(status.code(), Some(0), "{help}");
        let settings = ["KAFKA_BROKERS", "REDIS_URL", "EVENT_RETENTION", "SHUTDOWN_TIMEOUT", "healthcheck", port];
        for setting in settings {
            assert!(help.contains(setting), "{setting} in:\n{help}");
        }
        let (status, version) = run(command(&nowhere()), &["--version"]).await;
        assert_eq!(status.code(), Some(0));
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_wins_over_its_environment_variable() {
    let port = free_port();
    let mut command = nowhere().with("PORT", "1").api_command();
    command.args(["--port", &port.to_string()]);
    e2e::service::Service::spawn("api", port, command).answers("/livez", 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_healthcheck_subcommand_tells_a_living_service_from_none() {
    let (world, admin_port) = (World::shared(), free_port());
    let worker = world.start_worker().await;
    let _api = world.clone().with("API_ADMIN_PORT", admin_port.to_string()).start_api().await;
    let other = world.start_api().await;
    let healthcheck = async |world: World, is_api: bool| {
        let command = if is_api { world.api_command() } else { world.worker_command() };
        run(command, &["healthcheck"]).await
    };
    for (is_api, setting, port) in
        [(true, "API_ADMIN_PORT", admin_port), (true, "PORT", other.port), (false, "ADMIN_PORT", worker.port)]
    {
        eventually("the living one is healthy", async || {
            let (status, said) = healthcheck(world.clone().with(setting, port.to_string()), is_api).await;
            ensure!(status.code() == Some(0), "{status}: {said}");
            Ok(())
        })
        .await;
        let nobody = free_port().to_string();
        let (status, said) = healthcheck(world.clone().with(setting, nobody), is_api).await;
        assert!(status.code().is_some_and(|code| code > 0), "{status}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_payloads_are_never_logged() {
    let (secret, payload) = (Uuid::now_v7().simple().to_string(), Uuid::now_v7().to_string());
    let redis = RedisServer::start_with_password(&secret).await;
    let world = World::on_redis(&redis.url()).with("LOG_LEVEL", "debug");
    let (mut api, mut worker) = world.start().await;
    let body = format!(r#"{{"userId":"u","eventType":"LOGIN","payload":{{"card":"{payload}"}}}}"#);
    api.client.publish(body).await.unwrap().with_status(201).unwrap();
    api.client.listed(1).await;
    // Errors are where secrets slip out: another password, and nobody there at all.
    let wrong = redis.url().replace(&secret, &format!("{secret}x"));
    let denied = World::on_redis(&wrong).spawn_worker();
    eventually("the wrong password was tried", async || {
        let said = denied.client.get("/readyz").await?.with_status(503)?.text();
        ensure!(!said.contains("not asked yet"), "{said}");
        Ok(())
    })
    .await;
    drop(redis);
    worker.answers("/readyz", 503).await;
    api.answers("/health", 503).await;
    for service in [&api, &worker, &denied] {
        let said = service.process.output();
        assert!(!said.is_empty());
        assert!(!said.contains(&secret) && !said.contains(&payload), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_are_one_object_a_line() {
    let world = World::shared().with("LOG_FORMAT", "json");
    let (api, worker) = world.start().await;
    Journal::default().holds(&api.client).await;
    for mut service in [api, worker] {
        service.process.terminate(PATIENCE).await;
        let said = service.process.output();
        for line in said.lines() {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(entry.is_object(), "{line}");
        }
        assert!(said.lines().count() > 1, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_one_redis_has_one_bucket_or_as_many_as_it_was_begun_with() {
    let redis = RedisServer::start().await;
    for (asked, buckets) in [("", 1), ("4", 4)] {
        let world = World::on_redis(&redis.url());
        let journal = Journal::default();
        let has = async || {
            let mark: String = redis.command_line(&format!("GET {}:meta:layout", world.group)).await;
            let streams: Vec<String> = redis.command_line(&format!("KEYS {}:tl:*", world.group)).await;
            assert_eq!((mark, streams.len()), (format!("4|{buckets}|xxh3"), buckets));
        };
        let (mut api, mut worker) = world.clone().with("REDIS_BUCKETS", asked).start().await;
        for sequence in 0..40 {
            journal.must_post(&api.client, "first", sequence).await.unwrap();
        }
        journal.holds(&api.client).await;
        has().await;
        for service in [&mut api, &mut worker] {
            assert_eq!(service.process.terminate(PATIENCE).await.code(), Some(0));
        }

        let (api, _worker) = world.start().await;
        journal.holds(&api.client).await;
        has().await;
        let other = world.clone().with("REDIS_BUCKETS", "8").start_worker().await;
        let beats = redis.calls("role").await;
        eventually("several heartbeats have passed", async || {
            let passed = redis.calls("role").await - beats;
            ensure!(passed > 6, "{passed}");
            Ok(())
        })
        .await;
        let (said, warning) = (other.process.output(), format!("the store has {buckets} buckets, and not the 8"));
        assert_eq!(said.matches(&warning).count(), 1, "{said}");
        journal.holds(&api.client).await;
        has().await;
    }
}
