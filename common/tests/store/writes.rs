//! What a batch leaves in Redis, once or more often.

use std::time::Duration;

use bytes::Bytes;
use common::event::{EventId, Timestamp};
use common::store::{Batch, Found, Order, Query, Receipt, StoreError, StoredEvent, UserIndex, score_of};
use uuid::Uuid;

use crate::support::{event, event_json};
use crate::world::{
    RETENTION, TIMEOUT, World, ago, bucket_of, eventually, of_user, origin, origin_now, stored, stored_now,
};

/// A spelling that no serialiser would choose.
const PAYLOAD: &str = "{ \"b\" : 1.0e+2,\n\t\"a\":[1e400, -0, 12345678901234567890123],\"é\":\"\\u00e9\" }";

#[tokio::test]
async fn a_batch_is_read_back_in_order_and_byte_for_byte() {
    let world = World::new();
    let json = |n: u64| event_json(&format!("e-{n}"), "u", ago(Duration::from_mins(300 - n)), PAYLOAD);
    let jsons: Vec<String> = (0..300).map(json).collect();
    // 7 and 300 have no common divisor: every event, in another order.
    let batch = (0..300).map(|n| stored(&jsons[n * 7 % 300], n as i64)).collect();
    assert_eq!(world.write(batch).await, Receipt::default());

    let mut expected: Vec<Bytes> = jsons.into_iter().map(Bytes::from).collect();
    assert_eq!(world.store.page(&Query::default(), None, 1000).await.unwrap().events, expected);
    assert_eq!(world.walked(&Query::default(), false).await, expected);
    assert_eq!(world.walked(&Query::default(), true).await, expected);
    assert_eq!(world.paged(&Query::default(), 100).await, expected);
    expected.reverse();
    assert_eq!(world.walked(&Query::all(Order::Descending), false).await, expected);
    assert_eq!(world.paged(&Query::all(Order::Descending), 64).await, expected);
}

#[tokio::test]
async fn an_event_is_read_with_where_it_came_from_and_an_unknown_one_is_none() {
    let world = World::new();
    let json = event_json("e", "u", Timestamp::now(), PAYLOAD);
    world.write(vec![stored(&json, 42)]).await;
    assert_eq!(world.store.event("e").await.unwrap(), Some((json.into(), origin(42))));
    assert_eq!(world.store.event("another").await.unwrap(), None);
}

#[tokio::test]
async fn an_event_is_stored_without_its_id_and_read_back_with_it() {
    let world = World::new();
    let ((id, at), mut jsons) = (EventId::now(), Vec::new());
    for id in [id.as_str(), "sixteen-bytes-id", r#"a "quoted" \ id"#, "é"] {
        let escaped = serde_json::to_string(id).unwrap();
        let json = event_json(escaped.trim_matches('"'), "u", at, PAYLOAD);
        world.write(vec![stored(&json, 1)]).await;
        let key = world.bucket_key("ev", bucket_of(id), ":").into_bytes();
        let name = Uuid::parse_str(id).map_or(id.as_bytes().to_vec(), |uuid| uuid.as_bytes().to_vec());
        let name = if id.len() == 16 { [&[0xff], id.as_bytes()].concat() } else { name };
        let body: Vec<u8> = world.query(redis::cmd("GET").arg([key, name].concat()));
        assert!(body.starts_with(br#""userId":"u","eventType""#), "{id}: {}", body.escape_ascii());
        assert_eq!(world.store.event(id).await.unwrap(), Some((json.clone().into(), origin(1))));
        jsons.push(Bytes::from(json));
    }
    let mut listed = world.paged(&Query::default(), 10).await;
    listed.sort_unstable();
    jsons.sort_unstable();
    assert_eq!(listed, jsons);
}

#[tokio::test]
async fn a_batch_written_again_changes_nothing_and_its_duplicates_are_named() {
    let world = World::new();
    let at = Timestamp::now();
    let batch = |names: &[&str], payload: &str, offset| {
        names.iter().map(|name| stored(&event_json(name, "u", at, payload), offset)).collect()
    };
    world.write(batch(&["a", "b", "c"], r#"{"first":1}"#, 1)).await;
    let before = world.walked(&Query::default(), false).await;

    let again = world.write(batch(&["b", "new", "a", "c"], r#"{"second":2}"#, 9)).await;
    assert_eq!(again, Receipt { duplicates: vec![0, 2, 3], ..Receipt::default() });
    assert_eq!(world.walked(&Query::default(), false).await.len(), 4);
    let (json, origin) = world.store.event("a").await.unwrap().unwrap();
    assert!(before.contains(&json), "the first body wins: {json:?}");
    assert_eq!(origin.offset, 1);
}

#[tokio::test]
async fn an_event_that_comes_twice_in_a_batch_is_stored_once() {
    let world = World::new();
    let json = event_json("twice", "u", Timestamp::now(), "{}");
    let receipt = world.write(vec![stored(&json, 1), stored(&json, 2)]).await;
    assert_eq!(receipt.duplicates, [1]);
    assert_eq!(world.walked(&Query::default(), false).await, [json]);
}

#[tokio::test]
async fn the_first_of_an_id_wins_also_where_the_second_is_the_one_of_the_ids_own_time() {
    let world = World::new();
    let (id, at) = EventId::now();
    let json = |at, payload| event_json(id.as_str(), "u", at, payload);
    let [first, second] = [json(ago(Duration::from_mins(5)), r#"{"nth":1}"#), json(at, r#"{"nth":2}"#)];
    assert_eq!(world.write(vec![stored(&first, 1), stored(&second, 2)]).await.duplicates, [1]);
    assert_eq!(world.paged(&Query::default(), 10).await, [first.as_str()]);
    assert_eq!(world.paged(&of_user("u"), 10).await, [first]);
}

#[tokio::test]
async fn redelivery_completes_a_write_of_which_a_half_was_lost() {
    let world = World::new();
    let (json, bucket) = (event_json("e", "u", Timestamp::now(), "{}"), bucket_of("e"));

    world.write(vec![stored(&json, 1)]).await;
    assert_eq!(world.command::<i32>(&["ZREM", &world.bucket_key("ix", bucket, ""), "e"]), 1);
    assert!(world.walked(&Query::default(), false).await.is_empty());
    assert_eq!(world.write(vec![stored(&json, 1)]).await.duplicates, [0]);
    assert_eq!(world.walked(&Query::default(), false).await, [json.as_str()]);

    assert_eq!(world.command::<i32>(&["DEL", &world.bucket_key("ev", bucket, ":e")]), 1);
    assert_eq!(world.store.event("e").await.unwrap(), None);
    assert_eq!(world.write(vec![stored(&json, 1)]).await, Receipt::default());
    assert_eq!(world.walked(&Query::default(), false).await, [json]);
}

#[tokio::test]
async fn what_is_stored_of_an_event_is_found_with_its_halves() {
    let world = World::new();
    let json = |id| event_json(id, "u", Timestamp::now(), "{}");
    world.write(["whole", "unlisted", "bodiless"].map(|id| stored(&json(id), 1)).into()).await;
    let key = |kind, id: &str, rest: &str| world.bucket_key(kind, bucket_of(id), rest);
    world.command::<()>(&["ZREM", &key("ix", "unlisted", ""), "unlisted"]);
    world.command::<()>(&["DEL", &key("ev", "bodiless", ":bodiless")]);

    let found = world.store.look_up(&["bodiless", "whole", "unknown", "unlisted"]).await.unwrap();
    let expected = [(None, true), (Some(origin(1)), true), (None, false), (Some(origin(1)), false)];
    assert_eq!(found, expected.map(|(origin, listed)| Found { origin, listed }));
}

#[tokio::test]
async fn a_body_lives_for_its_retention_or_for_an_hour_if_that_is_over_already() {
    let world = World::new();
    let recent = ago(Duration::from_hours(48));
    let old = ago(RETENTION * 2);
    let events = [("recent", recent), ("old", old)].map(|(id, at)| event_json(id, "u", at, "{}"));
    let begun = Timestamp::now().millis();
    world.write(events.iter().map(|json| stored_now(json)).collect()).await;
    let ended = Timestamp::now().millis();

    let expiry = |id: &str| -> i64 {
        world.command(&["PEXPIRETIME", &world.bucket_key("ev", bucket_of(id), &format!(":{id}"))])
    };
    assert_eq!(expiry("recent"), recent.millis() + RETENTION.as_millis() as i64);
    let hour = 3_600_000;
    assert!((begun + hour..=ended + hour).contains(&expiry("old")), "{} is not {hour} from {begun}", expiry("old"));

    // A record's timestamp is its producer's, and may be anything.
    let published =
        |id, at, millis| StoredEvent::new(event(&event_json(id, "u", at, "{}")), &origin_now(), Some(millis));
    let far = 100 * RETENTION.as_millis() as i64;
    let begun = Timestamp::now().millis();
    world.write(vec![published("fresh", recent, begun + far), published("older", old, begun + far)]).await;
    let ended = Timestamp::now().millis();
    assert_eq!(expiry("fresh"), recent.millis() + RETENTION.as_millis() as i64);
    assert!((begun + hour..=ended + hour).contains(&expiry("older")), "{} is not {hour} from {begun}", expiry("older"));
}

#[tokio::test]
async fn a_users_events_are_indexed_in_the_bucket_of_the_user_where_that_is_on() {
    let world = World::new();
    let at = Timestamp::now();
    let key = |user: &str| world.bucket_key("ux", bucket_of(user), &format!(":{user}"));
    let entries =
        |user: &str| -> Vec<(String, i64)> { world.command(&["ZRANGE", &key(user), "0", "-1", "WITHSCORES"]) };
    let of = |user: &str| (0..20).map(|n| stored(&event_json(&format!("{user}-{n}"), user, at, "{}"), n)).collect();

    let begun = Timestamp::now().millis();
    world.write(of("on")).await;
    let ended = Timestamp::now().millis();
    let mut expected: Vec<_> = (0..20).map(|n| format!("on-{n}")).map(|id| (score_of(at, &id), id)).collect();
    expected.sort();
    assert_eq!(entries("on"), expected.into_iter().map(|(score, id)| (id, score)).collect::<Vec<_>>());
    // An event may be dated a day ahead.
    let life = RETENTION.as_millis() as i64 + 24 * 3_600_000;
    let expiry: i64 = world.command(&["PEXPIRETIME", &key("on")]);
    assert!((begun + life..=ended + life).contains(&expiry), "{expiry} is not {life} from {begun}");

    let batch = Batch { events: of("off"), ..Batch::default() };
    world.store.write(&world.scope, &batch, UserIndex::Off).await.unwrap();
    assert!(entries("off").is_empty());
    assert_eq!(world.walked(&Query::default(), false).await.len(), 40);
}

#[tokio::test]
async fn events_of_one_process_are_listed_in_the_order_of_their_making() {
    let world = World::new();
    let jsons: Vec<String> =
        (0..300).map(|_| EventId::now()).map(|(id, at)| event_json(id.as_str(), "u", at, "{}")).collect();
    world.write(jsons.iter().rev().map(|json| stored(json, 1)).collect()).await;
    assert_eq!(world.paged(&Query::default(), 100).await, jsons);
}

#[tokio::test]
async fn what_is_beyond_the_retention_leaves_the_indexes_and_nothing_else_does() {
    let world = World::new();
    let (old, fresh) = (ago(RETENTION + Duration::from_secs(1)), ago(RETENTION - Duration::from_mins(1)));
    let event = |id: &str, at| stored(&event_json(id, "u", at, "{}"), 1);
    let users =
        || -> Vec<String> { world.command(&["ZRANGE", &world.bucket_key("ux", bucket_of("u"), ":u"), "0", "-1"]) };
    // One in 64 entries trims the user's index, those before it included.
    let trims = |id: &String| score_of(fresh, id) % 64 == 0;
    let quiet = (0..).map(|n| format!("quiet-{n}")).find(|id| !trims(id)).unwrap();
    let old = event_json("old", "u", old, "{}");
    world.write(vec![stored_now(&old), event(&quiet, fresh)]).await;
    assert_eq!(users().len(), 2);
    assert_eq!(world.store.trim().await.unwrap(), 0, "its body is still there");
    world.command::<()>(&["DEL", &world.bucket_key("ev", bucket_of("old"), ":old")]);
    assert_eq!(world.store.trim().await.unwrap(), 1);
    assert_eq!(world.store.trim().await.unwrap(), 0);
    let listed =
        |id: &str| -> Option<i64> { world.command(&["ZSCORE", &world.bucket_key("ix", bucket_of(id), ""), id]) };
    assert!(listed("old").is_none() && listed(&quiet).is_some());

    let trimming = (0..).map(|n| format!("trimming-{n}")).find(trims).unwrap();
    world.write(vec![event(&trimming, fresh)]).await;
    let mut left = users();
    left.sort();
    assert_eq!(left, [quiet, trimming]);
}

/// An id of an `Idempotency-Key`, which comes again with each request that has the key.
fn of_a_key() -> EventId {
    EventId::of_names(&[b"anonymous", b"u", b"a weekly job"])
}

/// A weekly job repeats its keys. The body of the first event has expired by then, and its entries may still be there.
#[tokio::test]
async fn an_index_entry_follows_its_body() {
    let world = World::new().again(TIMEOUT, Duration::from_secs(2));
    let id = of_a_key();
    let old = event_json(id.as_str(), "u", Timestamp::now(), "{}");
    world.write(vec![stored(&old, 1)]).await;
    expired(&world, id.as_str()).await;

    // So far ahead that they don't expire while the test looks at them.
    let json = |id: &str, minutes| event_json(id, "u", ahead(Duration::from_mins(minutes)), "{}");
    let [between, new] = [json("between", 30), json(id.as_str(), 60)];
    assert_eq!(world.write(vec![stored(&between, 2), stored(&new, 3)]).await, Receipt::default(), "it is a new one");
    let expected = [between, new].map(Bytes::from);
    let lists = async || [world.paged(&Query::default(), 10).await, world.paged(&of_user("u"), 10).await];
    assert_eq!(lists().await, [&expected, &expected]);
    world.store.trim().await.unwrap();
    assert_eq!(lists().await, [&expected, &expected], "it does not go with what was there before");

    // Whoever repeats it now, or reads the record again, changes nothing.
    let again = event_json(id.as_str(), "u", ahead(Duration::from_mins(15)), "{}");
    assert_eq!(world.write(vec![stored(&again, 4)]).await.duplicates, [0]);
    assert_eq!(lists().await, [&expected, &expected]);
}

/// An event that was older than the retention when it was published is stored for an hour, and never listed. What has its
/// id meanwhile is a duplicate, in both lists.
#[tokio::test]
async fn an_id_that_comes_again_while_its_body_is_there_is_listed_nowhere_else() {
    let world = World::new();
    let id = of_a_key();
    let old = event_json(id.as_str(), "u", ago(RETENTION + Duration::from_mins(1)), "{}");
    world.write(vec![stored_now(&old)]).await;
    world.store.trim().await.unwrap();

    let again = event_json(id.as_str(), "u", Timestamp::now(), "{}");
    assert_eq!(world.write(vec![stored(&again, 2)]).await.duplicates, [0]);
    let lists = [world.paged(&Query::default(), 10).await, world.paged(&of_user("u"), 10).await];
    assert!(lists.iter().all(Vec::is_empty), "{lists:?}");
}

#[tokio::test]
async fn what_is_expired_when_it_is_read_is_not_stored() {
    let world = World::new();
    let (hour, second) = (Duration::from_hours(1), Duration::from_secs(1));
    let event = |id: &str, age, published: Duration| {
        StoredEvent::new(event(&event_json(id, "u", ago(age), "{}")), &origin_now(), Some(ago(published).millis()))
    };
    let batch = vec![
        event("expired", RETENTION + second, RETENTION + second),
        event("stored", RETENTION - hour, RETENTION - hour),
        event("published just now", RETENTION + second, Duration::ZERO),
        event("published long ago", RETENTION * 2, hour + second),
    ];
    assert_eq!(world.write(batch).await, Receipt { expired: vec![0, 3], ..Receipt::default() });
    let ids = ["expired", "stored", "published just now", "published long ago"];
    assert_eq!(world.store.knows(&ids).await.unwrap(), [false, true, true, false]);
    assert_eq!(world.paged(&Query::default(), 10).await.len(), 1);
}

async fn expired(world: &World, id: &str) {
    eventually(async || match world.store.event(id).await? {
        None => Ok(()),
        Some(_) => Err(StoreError::Corrupt(format!("{id} is still there"))),
    })
    .await;
}

fn ahead(time: Duration) -> Timestamp {
    Timestamp::from_millis(Timestamp::now().millis() + i64::try_from(time.as_millis()).unwrap()).unwrap()
}
