//! Room: what happens before a Redis is full, and when it is.

use std::time::Duration;

use common::event::Timestamp;
use common::store::{Query, StoreError, UserIndex};

use crate::support::event_json;
use crate::world::{RETENTION, Server, World, ago, bucket_of, stored, stored_now};

const EVENTS: u64 = 4_000;

/// Stores events of about a kilobyte, a second apart, the youngest now.
async fn fill(world: &World) {
    let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(900));
    let event = |n: u64| stored(&event_json(&format!("e-{n}"), "u", ago(Duration::from_secs(EVENTS - n)), &payload), 1);
    for first in (0..EVENTS).step_by(500) {
        world.write((first..first + 500).map(event).collect()).await;
    }
}

async fn percent(world: &World) -> u64 {
    world.store.memory().await.unwrap().unwrap().percent()
}

#[tokio::test]
async fn the_guard_trims_the_oldest_events_and_says_up_to_where() {
    let server = Server::start(&["--maxmemory", "12mb", "--maxmemory-policy", "noeviction"]).await;
    let world = World::on(&server.url());
    fill(&world).await;
    let before = percent(&world).await;
    assert!((45..85).contains(&before), "{before} %");
    assert_eq!(world.store.make_room(99).await.unwrap(), None, "there is room");
    assert_eq!(world.store.trimmed().await.unwrap(), None);

    let limit = before - 10;
    let room = world.store.make_room(limit).await.unwrap().unwrap();
    assert!(percent(&world).await < limit);
    assert!(room.removed > 0 && room.removed < 2_000, "{room:?}");
    assert_eq!(world.store.trimmed().await.unwrap(), Some(room.before));
    let left = world.paged(&Query::default(), 1_000).await;
    assert_eq!(left.len() as u64 + room.removed as u64, EVENTS);
    let oldest: serde_json::Value = serde_json::from_slice(&left[0]).unwrap();
    assert!(Timestamp::parse(oldest["timestamp"].as_str().unwrap()).unwrap() >= room.before);
    assert_eq!(world.store.event("e-0").await.unwrap(), None, "the body is gone as well");
    let of_the_user: usize = world.command(&["ZCARD", &world.bucket_key("ux", bucket_of("u"), ":u")]);
    assert_eq!(of_the_user, left.len(), "so is the entry in the user's index");
}

/// A log is read anew when a Redis has lost everything, and may be older than what lists show.
#[tokio::test]
async fn the_guard_takes_what_no_list_shows_before_what_lists_show() {
    let server = Server::start(&["--maxmemory", "24mb", "--maxmemory-policy", "noeviction"]).await;
    let world = World::on(&server.url());
    let (payload, long_ago) = (format!(r#"{{"text":"{}"}}"#, "x".repeat(900)), ago(RETENTION * 2));
    let json = |n: u64| event_json(&format!("old-{n}"), "u", long_ago, &payload);
    for first in (0..EVENTS).step_by(500) {
        let jsons: Vec<String> = (first..first + 500).map(json).collect();
        let expired = world.write(jsons.iter().map(|json| stored(json, 1)).collect()).await.expired;
        assert_eq!(expired.len(), 500, "what has expired takes no memory");
        world.write(jsons.iter().map(|json| stored_now(json)).collect()).await;
    }
    world.store.trim().await.unwrap();
    fill(&world).await;

    let limit = percent(&world).await - 10;
    world.store.make_room(limit).await.unwrap().unwrap();
    assert!(percent(&world).await < limit);
    let left = world.paged(&Query::default(), 1_000).await.len() as u64;
    assert_eq!(left, EVENTS, "what no list shows goes first");
}

#[tokio::test]
async fn a_redis_that_is_full_takes_events_again_once_the_guard_has_been_there() {
    let server = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "noeviction"]).await;
    let world = World::on(&server.url());
    fill(&world).await;
    let used = world.store.memory().await.unwrap().unwrap().used;
    // Full also once Redis has taken back what the connections needed until now, which it does by and by.
    world.command::<()>(&["CONFIG", "SET", "maxmemory", &(used / 10 * 9).to_string()]);
    let batch = || common::store::Batch {
        events: vec![stored(&event_json("new", "u", Timestamp::now(), "{}"), 2)],
        ..Default::default()
    };
    let refused = world.store.write(&world.scope, &batch(), UserIndex::On).await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    World::on(&server.url()).store.check().await.unwrap_err();
    // So far beyond it that no step makes room for a write: what is trimmed is marked nevertheless.
    world.command::<()>(&["CONFIG", "SET", "maxmemory", &(used / 2).to_string()]);
    world.store.check().await.unwrap();
    let room = world.store.make_room(95).await.unwrap().unwrap();
    assert_eq!(world.store.trimmed().await.unwrap(), Some(room.before));
    world.store.write(&world.scope, &batch(), UserIndex::On).await.unwrap();
    assert!(world.store.event("new").await.unwrap().is_some());
}

#[tokio::test]
async fn a_redis_without_a_limit_has_room() {
    let world = World::new();
    assert_eq!(world.store.memory().await.unwrap(), None);
    assert_eq!(world.store.make_room(10).await.unwrap(), None);
}
