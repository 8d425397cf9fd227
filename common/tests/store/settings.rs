//! Settings that all processes must share: a difference is refused or said, and no list lacks anything in silence.

use std::sync::Arc;
use std::time::Duration;

use common::event::Timestamp;
use common::store::{Batch, Heartbeat, Query, Store, StoreError, UserIndex, score_of};

use crate::support::event_json;
use crate::world::{RETENTION, TIMEOUT, World, ago, of_user, stored};

impl World {
    /// A worker on the same keys, with settings of its own.
    fn worker(&self, member: &str, retention: Duration, user_index: UserIndex) -> Arc<Store> {
        Arc::new(Store::of_worker(&self.settings_with(retention, user_index), member).unwrap())
    }

    async fn store_by(&self, store: &Store, json: &str) {
        let batch = Batch { events: vec![stored(json, 1)], ..Batch::default() };
        store.write(&self.scope, &batch, store.user_index()).await.unwrap();
    }
}

async fn live(store: &Store, member: &str) {
    store.beat(&Heartbeat { member: member.into(), ..Heartbeat::default() }).await.unwrap();
}

#[tokio::test]
async fn what_was_stored_without_user_index_is_not_missed_in_silence() {
    let world = World::new();
    let without = world.worker("a", RETENTION, UserIndex::Off);
    without.check().await.unwrap();
    let first = event_json("first", "u", ago(Duration::from_mins(1)), "{}");
    world.store_by(&without, &first).await;
    assert_eq!(world.paged(&of_user("u"), 10).await, [first.as_str()], "a reader goes by what the store says");
    let warning = world.store.settings_warning().unwrap();
    assert!(warning.contains("USER_INDEX=on here and off in the store"), "{warning}");

    live(&without, "a").await;
    let with = world.worker("b", RETENTION, UserIndex::On);
    let refused = with.check().await.unwrap_err();
    assert!(matches!(refused, StoreError::Settings { others: 1, .. }) && refused.is_final(), "{refused}");
    without.leave("a").await.unwrap();
    with.check().await.unwrap();
    without.check().await.unwrap_err();
    let second = event_json("second", "u", Timestamp::now(), "{}");
    world.store_by(&with, &second).await;
    world.store.check().await.unwrap();
    assert_eq!(world.store.settings_warning(), None);
    assert_eq!(world.paged(&of_user("u"), 10).await, [first, second], "the index is not whole yet");
}

#[tokio::test]
async fn a_worker_with_a_shorter_retention_takes_nothing_out_of_the_lists() {
    let world = World::new();
    let worker = world.worker("a", RETENTION, UserIndex::On);
    worker.check().await.unwrap();
    live(&worker, "a").await;
    let json = event_json("e", "u", ago(Duration::from_hours(2)), "{}");
    world.store_by(&worker, &json).await;

    let hour = Duration::from_hours(1);
    let refused = world.worker("b", hour, UserIndex::On).check().await.unwrap_err();
    assert!(refused.to_string().contains("EVENT_RETENTION=1h here and 7days in the store"), "{refused}");
    let reader = world.again(TIMEOUT, hour);
    reader.store.check().await.unwrap();
    assert_eq!(reader.store.kept_for(), RETENTION);
    assert_eq!(reader.paged(&Query::default(), 10).await, [json.as_str()], "a reader goes by what the store says");

    // Alone, a worker changes it, for lists at once. What has a body keeps its entry.
    worker.leave("a").await.unwrap();
    world.worker("b", hour, UserIndex::On).check().await.unwrap();
    world.store.check().await.unwrap();
    assert_eq!(world.store.trim().await.unwrap(), 0);
    assert!(world.paged(&Query::default(), 10).await.is_empty());
}

/// More entries than one call looks at, whose bodies live on by the retention that was: what comes behind them is reached.
#[tokio::test]
async fn trimming_goes_on_where_it_has_stopped_and_begins_again_at_the_end() {
    const ADD: &str = "for n = ARGV[3], ARGV[4] do \
        redis.call('SET', ARGV[1] .. n, '') \
        redis.call('ZADD', KEYS[1], ARGV[2] + n, n) \
      end";
    let world = World::new();
    let (index, bodies) = (world.bucket_key("ix", 0, ""), world.bucket_key("ev", 0, ":"));
    let oldest = score_of(ago(RETENTION * 2), "").to_string();
    world.command::<()>(&["EVAL", ADD, "1", &index, &bodies, &oldest, "1", "30000"]);
    let expire = |n: &str| assert_eq!(world.command::<usize>(&["DEL", &format!("{bodies}{n}")]), 1);
    expire("30000");
    assert_eq!(world.store.trim().await.unwrap(), 0, "it has not come that far");
    expire("1");
    assert_eq!(world.store.trim().await.unwrap(), 1, "the last one");
    assert_eq!(world.store.trim().await.unwrap(), 1, "what has expired behind it meanwhile");
    let left: Vec<String> = world.command(&["ZRANGE", &index, "0", "0"]);
    assert_eq!((left, world.command::<usize>(&["ZCARD", &index])), (vec!["2".to_owned()], 29_998));
}

#[tokio::test]
async fn a_store_that_was_emptied_has_the_settings_of_its_workers_again() {
    let world = World::new();
    let worker = world.worker("a", RETENTION, UserIndex::Off);
    worker.check().await.unwrap();
    for key in ["meta:layout", "meta:settings"] {
        assert_eq!(world.command::<i32>(&["DEL", &world.key(key)]), 1);
    }
    worker.check().await.unwrap();
    world.store.check().await.unwrap();
    assert_eq!(world.store.user_index(), UserIndex::Off);
}
