//! The layout that a store claims, the server it asks for, and the heartbeats of the workers.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;

use common::event::Timestamp;
use common::store::{HEARTBEAT_TTL, Heartbeat, PartitionLag, StoreError};

use crate::BUCKETS;
use crate::world::{Server, World};

fn heartbeat(member: &str) -> Heartbeat {
    Heartbeat { member: member.into(), partitions: vec![0, 3], stored: 7, ..Heartbeat::default() }
}

#[tokio::test]
async fn an_empty_store_is_claimed_and_one_of_another_layout_is_refused() {
    let world = World::new();
    let key = world.key("meta:layout");
    world.store.check().await.unwrap();
    world.store.check().await.unwrap();
    assert_eq!(world.command::<String>(&["GET", &key]), format!("4|{BUCKETS}|xxh3"));

    world.command::<()>(&["SET", &key, "2|16|xxh3"]);
    let error = world.store.check().await.unwrap_err();
    assert!(matches!(error, StoreError::Layout { .. }));
    for part in [key.as_str(), "2|16|xxh3", "reads layout 4", "set another REDIS_KEY_PREFIX"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(world.command::<String>(&["GET", &key]), "2|16|xxh3", "what was found stays");
}

/// The URL of something that says this of itself, and OK to all else.
fn pretend(info: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut connection, mut request) = (listener.accept().unwrap().0, [0; 4096]);
        while let Ok(read @ 1..) = connection.read(&mut request) {
            for command in String::from_utf8_lossy(&request[..read]).split('*').skip(1) {
                let info = format!("${}\r\n{info}\r\n", info.len());
                let reply = if command.contains("\r\nINFO\r\n") { &info } else { "+OK\r\n" };
                connection.write_all(reply.as_bytes()).unwrap();
            }
        }
    });
    url
}

#[tokio::test]
async fn a_redis_that_lacks_commands_is_refused_with_its_version_and_the_one_that_is_needed() {
    let check = async |info| World::on(&pretend(info)).store.check().await.unwrap_err();
    for (info, version) in [("redis_version:6.0.16\r\n", "6.0.16"), ("os:Linux\r\nredis_version:5.0.14\r\n", "5.0.14")]
    {
        let error = check(info).await;
        assert!(matches!(error, StoreError::TooOld { .. }) && error.is_final(), "{error}");
        assert!(error.to_string().contains(version) && error.to_string().contains("6.2"), "{error}");
    }
    for info in ["redis_version:6.2.0\r\n", "redis_version:7.4.1\r\n", "redis_version:unstable\r\n", ""] {
        let error = check(info).await;
        assert!(matches!(error, StoreError::Layout { .. }), "that comes after the version: {error}");
    }
}

#[tokio::test]
async fn a_redis_that_would_throw_data_away_is_unfit_and_other_doubts_are_warnings() {
    let flags = ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--lazyfree-lazy-expire", "yes"];
    let server = Server::start(&flags).await;
    let world = World::on(&server.url());
    assert_eq!(world.store.inspect().await.unwrap(), [""; 0]);

    let warned_of = async |word: &str| {
        let warnings = world.store.inspect().await.unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{word}: {warnings:?}");
    };
    world.command::<()>(&["CONFIG", "SET", "appendonly", "no"]);
    warned_of("appendonly yes").await;
    world.command::<()>(&["CONFIG", "SET", "appendonly", "yes"]);
    world.command::<()>(&["REPLICAOF", "127.0.0.1", "9"]);
    warned_of("replica").await;
    world.command::<()>(&["REPLICAOF", "NO", "ONE"]);

    world.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let unfit = world.store.inspect().await.unwrap_err();
    assert!(matches!(&unfit, StoreError::Unfit { policy, .. } if policy == "allkeys-lru"), "{unfit}");
    // As on a managed one.
    world.command::<()>(&["ACL", "SETUSER", "default", "-config"]);
    let unfit = world.store.inspect().await.unwrap_err();
    assert!(matches!(&unfit, StoreError::Unfit { policy, .. } if policy == "allkeys-lru"), "{unfit}");
    world.command::<()>(&["ACL", "SETUSER", "default", "-info"]);
    warned_of("does not say").await;
    world.store.check().await.unwrap();
}

#[tokio::test]
async fn a_redis_that_stands_still_while_a_large_index_expires_is_warned_of_where_there_are_such() {
    let server = Server::start(&["--appendonly", "yes", "--maxmemory-policy", "noeviction"]).await;
    let world = World::on(&server.url());
    let inspected = async || world.store.inspect().await.unwrap();
    let warnings = inspected().await;
    assert!(warnings.len() == 1 && warnings[0].contains("set lazyfree-lazy-expire yes"), "{warnings:?}");
    assert_eq!(world.without_user_index().store.inspect().await.unwrap(), [""; 0], "no index is that large");
    world.command::<()>(&["CONFIG", "SET", "lazyfree-lazy-expire", "yes"]);
    assert_eq!(inspected().await, [""; 0]);

    // As on a managed one: nobody is told what can't be known, and the server is not asked again and again.
    world.command::<()>(&["CONFIG", "SET", "lazyfree-lazy-expire", "no"]);
    world.command::<()>(&["ACL", "SETUSER", "default", "-config"]);
    for _ in 0..2 {
        assert_eq!(inspected().await, [""; 0]);
    }
    let stats: String = world.command(&["INFO", "commandstats"]);
    assert!(stats.lines().any(|line| line.contains("config|get") && line.contains("rejected_calls=1,")), "{stats}");
}

#[tokio::test]
async fn a_worker_is_alive_from_its_first_heartbeat_until_it_leaves() {
    let world = World::new();
    assert!(world.store.workers().await.unwrap().is_empty());
    for member in ["a", "b", "a"] {
        world.store.beat(&heartbeat(member)).await.unwrap();
    }
    let mut alive = world.store.workers().await.unwrap();
    alive.sort();
    assert_eq!(alive, ["a", "b"]);
    let said: HashMap<String, String> = world.command(&["HGETALL", &world.key("wk:a")]);
    assert_eq!((said["partitions"].as_str(), said["stored"].as_str()), ("0,3", "7"));
    let left: u64 = world.command(&["PTTL", &world.key("wk:a")]);
    assert!((1..=HEARTBEAT_TTL.as_millis() as u64).contains(&left), "{left}");

    world.store.leave("a").await.unwrap();
    assert_eq!(world.store.workers().await.unwrap(), ["b"]);
    assert_eq!(world.command::<i32>(&["EXISTS", &world.key("wk:a")]), 0);
}

#[tokio::test]
async fn a_worker_that_has_fallen_silent_is_not_alive_and_is_forgotten_in_time() {
    let world = World::new();
    let past = (Timestamp::now().millis() - 1).to_string();
    world.command::<()>(&["ZADD", &world.key("workers"), &past, "silent"]);
    assert!(world.store.workers().await.unwrap().is_empty());
    world.store.beat(&heartbeat("alive")).await.unwrap();
    assert_eq!(world.command::<Vec<String>>(&["ZRANGE", &world.key("workers"), "0", "-1"]), ["alive"]);
}

#[tokio::test]
async fn what_a_worker_says_of_itself_is_read_as_it_was_said_and_absent_is_not_zero() {
    let world = World::new();
    let known =
        PartitionLag { partition: 0, messages: Some(12), seconds: Some(0.5), arrival: Some(3.0), drain: Some(0.0) };
    let unknown = PartitionLag { partition: 3, ..PartitionLag::default() };
    let dead_letters = [("json".to_owned(), 2), ("enum".to_owned(), 1)].into();
    let said = Heartbeat {
        group: "g".into(),
        topic_partitions: Some(6),
        lags: vec![known, unknown],
        dead_letters,
        ..heartbeat("a")
    };
    world.store.beat(&said).await.unwrap();
    world.store.beat(&heartbeat("b")).await.unwrap();
    let live = world.store.live_workers().await.unwrap();
    assert!(live.iter().all(|worker| (Timestamp::now().millis() - worker.seen.millis()).abs() < 60_000), "{live:?}");
    let heartbeats: Vec<Heartbeat> = live.into_iter().map(|worker| worker.heartbeat).collect();
    assert_eq!(heartbeats, [said, heartbeat("b")]);
}

/// A machine can't be given another clock here, but a store that was told of one can be looked at.
#[tokio::test]
async fn times_are_those_of_redis() {
    let world = World::new();
    let before = Timestamp::now().millis();
    world.store.check().await.unwrap();
    let ours = world.store.now().millis();
    let (seconds, micros): (i64, i64) = world.command(&["TIME"]);
    let redis = seconds * 1000 + micros / 1000;
    let took = Timestamp::now().millis() - before;
    assert!((ours - redis).abs() <= 2 * took + 1, "{ours} and {redis}");
    assert!(world.store.trusts_clock());
}
