//! Positions never get ahead of the data, whatever happens to either.

use std::sync::Arc;

use common::event::Timestamp;
use common::store::{Batch, Move, Placement, PositionScope, Positions, Query, Receipt, StoreError, UserIndex};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesOrdered;

use crate::BUCKETS;
use crate::support::event_json;
use crate::world::{RETENTION, Server, World, bucket_of, of_user, stored};

/// The bucket in which something is different.
const LAST: usize = BUCKETS - 1;

fn step(partition: i32, from: i64, to: i64) -> Move {
    Move { partition, from, to }
}

fn start(partition: i32, start: i64) -> Placement {
    Placement { partition, start, beginning: None }
}

fn beginning(partition: i32, start: i64) -> Placement {
    Placement { partition, start, beginning: Some(start) }
}

/// A batch of one event that makes the same moves in every bucket.
fn batch(id: &str, moves: &[Move]) -> Batch {
    let events = vec![stored(&event_json(id, "u", Timestamp::now(), "{}"), 1)];
    Batch { events, moves: vec![moves.to_vec(); BUCKETS] }
}

fn moving_nothing() -> Batch {
    Batch { moves: vec![Vec::new(); BUCKETS], ..Batch::default() }
}

impl World {
    /// The refused partitions.
    async fn place(&self, placements: &[Placement]) -> Vec<i32> {
        self.store.place(&self.scope, placements).await.unwrap()
    }

    /// The partitions that did not stand where `batch` expects them.
    async fn moved(&self, batch: &Batch) -> Vec<i32> {
        self.store.write(&self.scope, batch, UserIndex::On).await.unwrap().mismatches
    }

    async fn position(&self, partition: i32) -> Positions {
        self.store.positions(&self.scope, &[partition]).await.unwrap()[&partition].clone()
    }
}

#[tokio::test]
async fn a_position_moves_only_from_where_the_caller_left_it() {
    let world = World::new();
    assert_eq!(world.place(&[beginning(0, 5), beginning(1, 5)]).await, [0; 0]);
    assert!(world.moved(&batch("a", &[step(0, 5, 9), step(1, 5, 7)])).await.is_empty());
    assert_eq!(world.position(0).await, [Some(9); BUCKETS]);

    // Too low, too high: a zombie, or a rollback. The other partition of the batch does not move either.
    let both = batch("b", &[step(0, 5, 20), step(1, 7, 8)]);
    let receipt = world.store.write(&world.scope, &both, UserIndex::On).await.unwrap();
    let expected = Receipt { unwritten: vec![0], mismatches: vec![0], unmoved: vec![0, 1], ..Receipt::default() };
    assert_eq!(receipt, expected);
    assert_eq!(world.moved(&batch("c", &[step(0, 10, 20)])).await, [0]);
    assert_eq!(world.position(0).await, [Some(9); BUCKETS]);
    assert_eq!(world.position(1).await, [Some(7); BUCKETS]);
    let stored = join_all(["a", "b", "c"].map(|id| world.store.event(id))).await;
    let stored: Vec<_> = stored.into_iter().map(|event| event.unwrap().is_some()).collect();
    assert_eq!(stored, [true, false, false], "nothing is written behind a position that is somewhere else");
    assert!(world.paged(&of_user("u"), 10).await.len() == 1);
}

#[tokio::test]
async fn a_partition_without_a_position_does_not_move() {
    let world = World::new();
    assert_eq!(world.moved(&batch("a", &[step(0, 0, 1)])).await, [0]);
    assert_eq!(world.position(0).await, [None; BUCKETS]);
}

#[tokio::test]
async fn a_mismatch_in_one_bucket_is_reported_and_stops_that_bucket_only() {
    let world = World::new();
    world.place(&[beginning(0, 5)]).await;
    let deleted: i32 = world.command(&["HDEL", &world.bucket_key("at", LAST, &format!(":{BUCKETS}")), "group|topic:0"]);
    assert_eq!(deleted, 1, "the position of one bucket is lost");
    assert_eq!(world.moved(&batch("a", &[step(0, 5, 6)])).await, [0]);
    assert_eq!(world.position(0).await, (0..BUCKETS).map(|bucket| (bucket != LAST).then_some(6)).collect::<Vec<_>>());
}

#[tokio::test]
async fn positions_move_without_events_and_only_in_the_buckets_that_are_asked() {
    let world = World::new();
    world.place(&[beginning(0, 0)]).await;
    let mut lagging = moving_nothing();
    lagging.moves[LAST] = vec![step(0, 0, 100)];
    assert!(world.moved(&lagging).await.is_empty());
    assert_eq!(
        world.position(0).await,
        (0..BUCKETS).map(|bucket| Some(if bucket == LAST { 100 } else { 0 })).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn batches_in_flight_move_in_the_order_in_which_they_were_sent() {
    /// As many as a worker has on their way.
    const IN_FLIGHT: usize = 4;
    let world = World::new();
    world.place(&[beginning(0, 0)]).await;
    let batches: Vec<Batch> = (0..100).map(|n| batch(&format!("e-{n}"), &[step(0, n, n + 1)])).collect();
    for batches in batches.chunks(IN_FLIGHT) {
        let in_flight: FuturesOrdered<_> = batches.iter().map(|batch| world.moved(batch)).collect();
        let mismatches: Vec<Vec<i32>> = in_flight.collect().await;
        assert!(mismatches.iter().all(Vec::is_empty), "{mismatches:?}");
    }
    assert_eq!(world.position(0).await, [Some(100); BUCKETS]);
    assert_eq!(world.walked(&Query::default(), false).await.len(), 100);
}

#[tokio::test]
async fn each_group_and_topic_has_positions_of_its_own() {
    let world = World::new();
    world.place(&[beginning(0, 5)]).await;
    for other in [PositionScope::new("other", "topic"), PositionScope::new("group", "other")] {
        assert_eq!(world.store.positions(&other, &[0]).await.unwrap()[&0], [None; BUCKETS]);
    }
    assert_eq!(world.position(1).await, [None; BUCKETS]);
}

#[tokio::test]
async fn placing_lowers_a_position_and_never_raises_it() {
    let world = World::new();
    assert_eq!(world.place(&[beginning(0, 50), beginning(1, 10)]).await, [0; 0]);
    assert_eq!(world.place(&[start(0, 40), start(1, 11)]).await, [1]);
    assert_eq!(world.position(0).await, [Some(40); BUCKETS]);
    assert_eq!(world.position(1).await, [Some(10); BUCKETS]);
    assert_eq!(world.place(&[start(1, 10)]).await, [0; 0], "the same place is no rise");
}

#[tokio::test]
async fn one_bucket_that_holds_less_refuses_the_start() {
    let world = World::new();
    world.place(&[beginning(0, 50)]).await;
    world.command::<()>(&["HSET", &world.bucket_key("at", LAST, &format!(":{BUCKETS}")), "group|topic:0", "10"]);
    assert_eq!(world.place(&[start(0, 40)]).await, [0]);
    assert_eq!(world.position(0).await[LAST], Some(10));
    assert_eq!(world.place(&[start(0, 10)]).await, [0; 0]);
    assert_eq!(world.position(0).await, [Some(10); BUCKETS]);
}

#[tokio::test]
async fn the_beginning_of_the_log_may_raise_a_position_nothing_is_left_before_it() {
    let world = World::new();
    world.place(&[beginning(0, 5)]).await;
    assert_eq!(world.place(&[beginning(0, 1_000)]).await, [0; 0]);
    assert_eq!(world.position(0).await, [Some(1_000); BUCKETS]);
}

#[tokio::test]
async fn an_operator_overwrites_the_positions_of_every_bucket_and_of_no_other_partition() {
    let world = World::new();
    world.place(&[beginning(0, 50), beginning(1, 50), beginning(2, 50)]).await;
    world.store.overwrite_positions(&world.scope, &[(0, 7), (1, 90)]).await.unwrap();
    assert_eq!(world.position(0).await, [Some(7); BUCKETS]);
    assert_eq!(world.position(1).await, [Some(90); BUCKETS]);
    assert_eq!(world.position(2).await, [Some(50); BUCKETS]);
}

/// Without a heartbeat, which comes later and may fail.
#[tokio::test]
async fn positions_have_an_end_from_the_moment_they_are_written() {
    let world = World::new();
    let keys = (0..BUCKETS).map(|bucket| world.bucket_key("at", bucket, &format!(":{BUCKETS}"))).collect::<Vec<_>>();
    // An event may be dated a day ahead.
    let longest = RETENTION.as_millis() as i64 + 24 * 3_600_000;
    let all_end = || {
        let lives: Vec<i64> = keys.iter().map(|key| world.command(&["PTTL", key])).collect();
        assert!(lives.iter().all(|life| (longest - 600_000..=longest).contains(life)), "{lives:?} and not {longest}");
        keys.iter().for_each(|key| assert_eq!(world.command::<usize>(&["PERSIST", key]), 1));
    };
    world.place(&[beginning(0, 50)]).await;
    all_end();
    assert_eq!(world.place(&[start(0, 60)]).await, [0], "refused");
    all_end();
    world.store.overwrite_positions(&world.scope, &[(0, 7)]).await.unwrap();
    all_end();
}

#[tokio::test]
async fn a_store_that_was_emptied_after_a_look_at_it_refuses_the_start() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    world.place(&[beginning(0, 5)]).await;
    assert_eq!(world.position(0).await, [Some(5); BUCKETS]);

    world.command::<()>(&["FLUSHALL"]);
    assert_eq!(world.place(&[start(0, 5)]).await, [0]);
    assert_eq!(world.position(0).await, [None; BUCKETS]);
    assert_eq!(world.place(&[beginning(0, 0)]).await, [0; 0]);
    assert_eq!(world.position(0).await, [Some(0); BUCKETS]);
}

#[tokio::test]
async fn a_redis_without_memory_refuses_and_moves_nothing() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]).await;
    let world = World::on(&server.url());
    world.place(&[beginning(0, 0)]).await;
    let with_event = batch("e", &[step(0, 0, 1)]);
    let mut only_moves = moving_nothing();
    only_moves.moves[bucket_of("u")] = vec![step(0, 0, 1)];

    world.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    for batch in [&with_event, &only_moves] {
        let refused = world.store.write(&world.scope, batch, UserIndex::On).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Refused { .. }), "{refused:?}");
        assert!(refused.to_string().contains("OOM"), "the words of Redis are passed on: {refused}");
    }
    assert!(world.store.place(&world.scope, &[start(0, 0)]).await.is_err());
    assert_eq!(world.position(0).await, [Some(0); BUCKETS]);

    world.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(world.moved(&with_event).await.is_empty());
    assert_eq!(world.position(0).await, [Some(1); BUCKETS]);
}

#[tokio::test]
async fn a_repetition_on_its_way_while_redis_is_emptied_does_not_win() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    repeat_behind(&world, async |first| {
        assert!(world.moved(first).await.is_empty());
        world.command::<()>(&["FLUSHALL"]);
    })
    .await;
}

/// The same behind a transaction that Redis refuses, as for want of memory.
#[tokio::test]
async fn a_repetition_on_its_way_while_redis_refuses_does_not_win() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    repeat_behind(&world, async |first| {
        world.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
        world.store.write(&world.scope, first, UserIndex::On).await.unwrap_err();
        world.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    })
    .await;
}

/// A batch takes a moment to arrive, and Redis does other things meanwhile. Whether it is emptied before the batch, within it,
/// or behind it: nothing of the batch is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_while_a_batch_arrives_has_nothing_of_it() {
    let server = Server::start(&[]).await;
    let world = Arc::new(World::on(&server.url()));
    let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(20_000));
    for round in 0..20 {
        world.place(&[beginning(0, 0)]).await;
        let json = |nth| event_json(&format!("{round}-{nth}"), "u", Timestamp::now(), &payload);
        let events = (0..300).map(|nth| stored(&json(nth), nth)).collect();
        let batch = Batch { events, moves: vec![vec![step(0, 0, 300)]; BUCKETS] };
        let flushing = Arc::clone(&world);
        let flushed = tokio::task::spawn_blocking(move || {
            // With each round the last one comes a little later.
            (0..=round).for_each(|_| flushing.command::<()>(&["FLUSHALL"]));
        });
        world.store.write(&world.scope, &batch, UserIndex::On).await.unwrap();
        flushed.await.unwrap();
        let left: Vec<String> = world.command(&["KEYS", &world.key("ev:*")]);
        assert_eq!(left.len(), 0, "round {round}");
    }
}

/// `lose` writes the first record, and Redis does not keep it. Then its repetition arrives, which was on its way meanwhile. The
/// worker reads both again, and the first must be stored.
async fn repeat_behind(world: &World, lose: impl AsyncFnOnce(&Batch)) {
    world.place(&[beginning(0, 0)]).await;
    let record = |payload, offset: i64| Batch {
        events: vec![stored(&event_json("a", "u", Timestamp::now(), payload), offset)],
        moves: vec![vec![step(0, offset, offset + 1)]; BUCKETS],
    };
    let (first, repeated) = (record(r#"{"nth":1}"#, 0), record(r#"{"nth":2}"#, 1));
    lose(&first).await;
    assert_eq!(world.moved(&repeated).await, [0]);

    world.place(&[beginning(0, 0)]).await;
    for batch in [&first, &repeated] {
        assert!(world.moved(batch).await.is_empty());
    }
    let (body, _) = world.store.event("a").await.unwrap().unwrap();
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains(r#""nth":1"#), "the first record of an id wins: {body}");
}
