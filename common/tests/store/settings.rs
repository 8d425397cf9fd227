//! Settings that all processes must share: a difference is refused or said, and no list lacks anything in silence.

use std::time::Duration;

use common::event::Timestamp;
use common::store::{Batch, Query, UserIndex};

use crate::support::event_json;
use crate::world::{TIMEOUT, World, ago, of_user, stored};

impl World {
    /// Whether a process with these settings refuses to work on what is stored, or says which setting is another one.
    async fn objects(&self, setting: &str) -> bool {
        let Ok(()) = self.store.check().await else { return true };
        self.store.inspect().await.map_or(true, |warnings| warnings.iter().any(|warning| warning.contains(setting)))
    }
}

/// Nothing in the store says since when the users' indexes are whole (C13).
#[tokio::test]
#[should_panic(expected = "a user's list lacks nothing in silence")]
async fn expected_to_fail_c13_what_was_stored_without_user_index_is_not_missed_in_silence() {
    let world = World::new();
    let without = world.without_user_index();
    without.store.check().await.unwrap();
    let json = event_json("e", "u", Timestamp::now(), "{}");
    let batch = Batch { events: vec![stored(&json, 1)], ..Batch::default() };
    without.store.write(&world.scope, &batch, UserIndex::Off).await.unwrap();
    assert_eq!(without.paged(&of_user("u"), 10).await, [json.as_str()]);

    let objects = world.objects("USER_INDEX").await;
    let listed = world.paged(&of_user("u"), 10).await;
    assert!(objects || listed == [json], "a user's list lacks nothing in silence: {listed:?}");
}

/// Nothing in the store says how long events are kept, and whoever has partition 0 trims by a setting of its own (C13).
#[tokio::test]
#[should_panic(expected = "nobody trims what others still list")]
async fn expected_to_fail_c13_a_worker_with_a_shorter_retention_takes_nothing_out_of_the_lists() {
    let world = World::new();
    world.store.check().await.unwrap();
    let json = event_json("e", "u", ago(Duration::from_hours(2)), "{}");
    world.write(vec![stored(&json, 1)]).await;

    let short = world.again(TIMEOUT, Duration::from_hours(1));
    // What a worker does in turn; a warning alone would not save what is trimmed.
    if short.store.check().await.is_ok() {
        short.store.trim().await.unwrap();
    }
    let listed = world.paged(&Query::default(), 10).await;
    assert_eq!(listed, [json], "nobody trims what others still list");
}
