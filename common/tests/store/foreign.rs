//! What stands under our names and can't be read: it is skipped and counted, on one server and on a Cluster.

use std::time::Duration;

use common::store::{Entry, Order, Query, TailPosition, score_of};

use crate::BUCKETS;
use crate::support::event_json;
use crate::world::{TIMEOUT, World, ago, bucket_of, stored};

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_skipped_and_counted_and_hides_nothing_behind_it() {
    let world = World::new();
    let one = |offset| stored(&event_json("one", "u", ago(Duration::ZERO), "{}"), offset);
    let after = async |position: &TailPosition| world.store.tail_after(position, 100).await.unwrap();
    let bucket = bucket_of("one");
    world.write(vec![one(0)]).await;
    let key = world.bucket_key("tl", bucket, "");
    for (field, value) in [("foreign", "entry"), ("group|topic", "\u{7f}\u{1}")] {
        world.command::<String>(&["XADD", &key, "*", field, value]);
    }
    world.write(vec![one(1)]).await;
    assert_eq!(world.store.skipped(), 0);
    let readers = world.store.tail_readers(&TailPosition::before_all(BUCKETS));
    let of = readers.into_iter().find(|buckets| buckets.contains(&bucket)).unwrap();
    let next = world.store.tail_next(of, &TailPosition::default(), TIMEOUT / 2).await.unwrap();
    let offsets = |entries: &[Entry]| {
        entries.iter().flat_map(|entry| &entry.records).map(|record| record.offset).collect::<Vec<_>>()
    };
    assert_eq!((offsets(&next), world.store.skipped()), (vec![0, 1], 2));
    let (end, _) = world.store.tail_end().await.unwrap();
    assert_eq!(after(&end).await, [], "all is passed");
    assert_eq!(offsets(&after(&TailPosition::default()).await), [0, 1]);
}

#[tokio::test]
async fn a_member_of_an_index_that_is_no_id_is_left_out_and_hides_nothing() {
    let world = World::new();
    let at = |n: u64| ago(Duration::from_secs(60 - n));
    let jsons: Vec<String> = (0..60).map(|n| event_json(&format!("e-{n}"), "u", at(n), "{}")).collect();
    world.write(jsons.iter().map(|json| stored(json, 1)).collect()).await;
    let foreign = |bucket: usize, nth: usize| [vec![0xff; 3], vec![bucket as u8, nth as u8]].concat();
    for bucket in 0..BUCKETS {
        let mut add = redis::cmd("ZADD");
        add.arg(world.bucket_key("ix", bucket, ""));
        // More than are asked of a bucket at a time.
        (0..40).for_each(|nth| _ = add.arg(score_of(ago(Duration::from_secs(30)), "x")).arg(foreign(bucket, nth)));
        world.query::<usize>(&add);
    }
    let query = Query { order: Order::Ascending, ..Query::default() };
    for found in [world.paged(&query, 7).await, world.walked(&query, true).await] {
        assert_eq!(found, jsons);
    }
    assert!(world.store.skipped() >= (BUCKETS * 40) as u64);
}
