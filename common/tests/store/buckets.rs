//! How many buckets a store has: whoever begins it chooses, everybody else goes by it.

use std::time::Duration;

use common::event::Timestamp;
use common::store::{Batch, Entry, EntryId, Move, Placement, Query, Receipt, StoreError, UserIndex};
use futures::future::join_all;

use crate::BUCKETS;
use crate::support::event_json;
use crate::tail::{event_of, one_id_a_bucket};
use crate::world::{Server, World, ago, stored};

impl World {
    /// What the store says of itself.
    fn mark(&self) -> String {
        self.command(&["GET", &self.key("meta:layout")])
    }

    /// How many buckets the store of this process has.
    async fn buckets(&self) -> usize {
        self.store.tail_end().await.unwrap().0.buckets().len()
    }
}

#[tokio::test]
async fn a_store_on_one_server_has_one_bucket_unless_another_number_is_asked_for() {
    for (asked, buckets) in [(None, 1), (Some(4), 4), (Some(256), 256)] {
        let world = World::new().asking_for(asked);
        let jsons: Vec<String> = (0..300)
            .map(|n| event_json(&format!("e-{n}"), &format!("u-{n}"), ago(Duration::from_secs(300 - n)), "{}"))
            .collect();
        world.write(jsons.iter().map(|json| stored(json, 1)).collect()).await;
        assert_eq!((world.mark(), world.buckets().await), (format!("4|{buckets}|xxh3"), buckets));
        let indexes: Vec<String> = world.command(&["KEYS", &world.key("ix:*")]);
        assert!((buckets / 2..=buckets).contains(&indexes.len()), "{indexes:?}");
        assert_eq!(world.paged(&Query::default(), 70).await, jsons);
    }
}

#[tokio::test]
async fn in_a_store_of_one_bucket_a_batch_is_one_transaction() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url()).asking_for(None);
    world.store.place(&world.scope, &[Placement { partition: 0, start: 0, beginning: Some(0) }]).await.unwrap();
    world.calls([]);
    let json = |n: i64| event_json(&format!("e-{n}"), &format!("u-{n}"), Timestamp::now(), "{}");
    let events = (0..100).map(|n| stored(&json(n), n)).collect();
    let batch = Batch { events, moves: vec![vec![Move { partition: 0, from: 0, to: 100 }]] };
    assert_eq!(world.store.write(&world.scope, &batch, UserIndex::On).await.unwrap(), Receipt::default());
    assert_eq!(world.calls(["watch", "multi", "exec", "xadd"]), [1; 4]);
}

#[tokio::test]
async fn whoever_comes_later_goes_by_the_number_that_the_store_has() {
    let first = World::new().asking_for(Some(4));
    let json = event_json("e", "u", Timestamp::now(), "{}");
    first.write(vec![stored(&json, 1)]).await;
    for asked in [None, Some(16), Some(4)] {
        let later = first.asking_for(asked);
        // Whether it asks for its settings first or for an event.
        assert!(later.store.event("e").await.unwrap().is_some());
        assert_eq!((later.buckets().await, later.mark()), (4, "4|4|xxh3".into()));
        assert_eq!(later.paged(&Query::default(), 10).await, [json.as_str()]);
    }
}

#[tokio::test]
async fn of_many_that_begin_a_store_one_chooses() {
    let world = World::new();
    let all: Vec<World> = (0..9).map(|power| world.asking_for(Some(1 << power))).collect();
    let numbers = join_all(all.iter().map(World::buckets)).await;
    let chosen: usize = world.mark().split('|').nth(1).unwrap().parse().unwrap();
    assert!(numbers.iter().all(|number| *number == chosen), "{numbers:?}");
}

/// As an operator might, who has forgotten that positions say what is in a bucket.
#[tokio::test]
async fn who_begins_a_store_over_what_another_number_of_buckets_has_left_reads_everything_again() {
    let world = World::new();
    let start = Placement { partition: 0, start: 7, beginning: Some(7) };
    assert_eq!(world.store.place(&world.scope, &[start]).await.unwrap(), [0; 0]);
    world.command::<()>(&["DEL", &world.key("meta:layout")]);
    for buckets in [1, 4, 256] {
        let other = world.asking_for(Some(buckets));
        assert_eq!(other.store.positions(&other.scope, &[0]).await.unwrap()[&0], vec![None; buckets]);
        world.command::<()>(&["DEL", &world.key("meta:layout")]);
    }
    assert_eq!(world.store.positions(&world.scope, &[0]).await.unwrap()[&0], [Some(7); BUCKETS]);
}

/// The names of one bucket's keys are among those of sixteen.
#[tokio::test]
async fn what_another_number_of_buckets_has_left_is_listed_once() {
    let world = World::new();
    let jsons: Vec<String> = (0..40).map(|n| event_json(&format!("e-{n}"), "u", Timestamp::now(), "{}")).collect();
    for buckets in [1, 16] {
        world.command::<usize>(&["DEL", &world.key("meta:layout")]);
        let spread = world.asking_for(Some(buckets));
        spread.write(jsons.iter().map(|json| stored(json, 1)).collect()).await;
        assert_eq!(spread.paged(&Query::default(), 7).await.len(), jsons.len(), "{buckets}");
    }
}

/// Moves each bucket of four from 0 on.
fn batch() -> Batch {
    let events = vec![stored(&event_json("e", "u", Timestamp::now(), "{}"), 1)];
    Batch { events, moves: vec![vec![Move { partition: 0, from: 0, to: 2 }]; 4] }
}

#[tokio::test]
async fn a_store_that_was_emptied_has_the_number_of_its_process_again() {
    let server = Server::start(&[]).await;

    let world = World::on(&server.url()).asking_for(Some(4));
    world.store.check().await.unwrap();
    let later = world.asking_for(None);
    later.store.check().await.unwrap();
    world.command::<()>(&["FLUSHALL"]);
    later.store.check().await.unwrap();
    assert_eq!((later.mark(), later.buckets().await), ("4|4|xxh3".into(), 4));
}

#[tokio::test]
async fn who_goes_by_another_number_than_the_store_has_now_writes_nothing_and_is_to_be_restarted() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url()).asking_for(Some(4));
    let start = Placement { partition: 0, start: 0, beginning: Some(0) };
    world.store.check().await.unwrap();
    assert_eq!(world.store.place(&world.scope, &[start]).await.unwrap(), [0; 0]);
    world.command::<()>(&["FLUSHALL"]);
    world.asking_for(None).store.check().await.unwrap();

    // What is on its way does not find the place that it had.
    let written = world.store.write(&world.scope, &batch(), UserIndex::On).await.unwrap();
    let nothing = Receipt { unwritten: vec![0], mismatches: vec![0], unmoved: vec![0], ..Receipt::default() };
    assert_eq!(written, nothing);
    let refused = world.store.place(&world.scope, &[start]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Buckets { found: 1, own: 4 }) && refused.is_final(), "{refused}");
    assert!(refused.to_string().contains("restart this process"), "{refused}");
    // From now on it does not even ask.
    world.store.write(&world.scope, &batch(), UserIndex::On).await.unwrap_err();
    world.store.event("e").await.unwrap_err();
    world.store.page(&Query::default(), None, 10).await.unwrap_err();
    assert_eq!(world.command::<Vec<String>>(&["KEYS", &world.key("ev:*")]), [""; 0]);
    // Until the store has its number again.
    world.command::<()>(&["SET", &world.key("meta:layout"), "4|4|xxh3"]);
    world.store.check().await.unwrap();
    assert_eq!(world.store.event("e").await.unwrap(), None);
    world.command::<()>(&["SET", &world.key("meta:layout"), "2|16|xxh3"]);
    assert!(matches!(world.store.check().await.unwrap_err(), StoreError::Layout { .. }));
}

#[tokio::test]
async fn where_a_stream_is_not_the_one_that_was_read_readers_are_told_what_it_has_of_it() {
    let world = World::new();
    world.write(one_id_a_bucket().iter().map(|id| event_of(id, 0)).collect()).await;
    let (end, _) = world.store.tail_end().await.unwrap();
    let gone = async || world.store.tail_gone(0..BUCKETS, &end).await.unwrap();
    assert_eq!(gone().await, []);
    world.command::<usize>(&["DEL", &world.bucket_key("tl", 7, "")]);
    assert_eq!(gone().await, [(7, None)], "what was in it will come again");
    world.write(one_id_a_bucket().iter().map(|id| event_of(id, 1)).collect()).await;
    assert_eq!(gone().await, [(7, None)]);
    assert!(!world.store.tail_trimmed(&[3, 7]).await.unwrap());
    world.trim(3, 1);
    assert_eq!(gone().await, [(3, None), (7, None)]);
    assert!(world.store.tail_trimmed(&[3, 7]).await.unwrap());
    let (mut again, whole) = (end.clone(), world.store.tail_end().await.unwrap().0);
    [3, 7].into_iter().for_each(|bucket| again.go_back(bucket, EntryId::BEGIN_AGAIN));
    assert_eq!(world.store.tail_gone(0..BUCKETS, &again).await.unwrap(), []);
    let bucket = |entry: &Entry| entry.bucket;
    let read = world.after(&again).await;
    assert_eq!(read.iter().map(bucket).filter(|bucket| [3, 7].contains(bucket)).count(), 2);
    assert!(!world.holds(&again).await, "a client that comes back there may have missed something");
    // A Redis that has lost its last second has the entries before.
    let (key, last) = (world.bucket_key("tl", 5, ""), whole.at(5).to_string());
    assert_eq!(world.command::<usize>(&["XDEL", &key, &last]), 1);
    assert_eq!(world.store.tail_gone(0..BUCKETS, &whole).await.unwrap(), [(5, Some(end.at(5)))]);
}
