//! The live tail: what is stored is announced by the transaction that stores it, and a reader can tell what it missed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::event::Timestamp;
use common::store::{
    Announced, Batch, Entry, EntryId, Move, Placement, PositionScope, Seen, StoredEvent, TailPosition, UserIndex,
};

use crate::BUCKETS;
use crate::support::event_json;
use crate::world::{RETENTION, TIMEOUT, World, bucket_of, stored};

const PARTITION: i32 = 3;

/// Events of these offsets, whose ids say them.
fn events(offsets: std::ops::Range<i64>) -> Vec<StoredEvent> {
    offsets.map(|offset| event_of(&format!("e-{offset}"), offset)).collect()
}

pub(crate) fn event_of(id: &str, offset: i64) -> StoredEvent {
    stored(&event_json(id, "u", Timestamp::now(), "{}"), offset)
}

/// The first id of the form `e-N` in each bucket.
pub(crate) fn one_id_a_bucket() -> Vec<String> {
    let first = |bucket| (0..).map(|n| format!("e-{n}")).find(|id| bucket_of(id) == bucket).unwrap();
    (0..BUCKETS).map(first).collect()
}

fn records(entries: &[Entry]) -> impl Iterator<Item = &Announced> {
    entries.iter().flat_map(|entry| &entry.records)
}

/// An entry of that bucket, of nothing.
fn entry(scope: &str, bucket: usize) -> Entry {
    Entry { bucket, id: EntryId::default(), scope: scope.into(), since: 0, records: Vec::new(), ends: Vec::new() }
}

fn behind(entries: &[Entry]) -> TailPosition {
    let mut position = TailPosition::before_all(BUCKETS);
    entries.iter().for_each(|entry| position.pass_all(entry));
    position
}

impl World {
    pub(crate) async fn after(&self, position: &TailPosition) -> Vec<Entry> {
        self.store.tail_after(position, 100).await.unwrap()
    }

    pub(crate) async fn holds(&self, position: &TailPosition) -> bool {
        self.store.tail_holds(position).await.unwrap()
    }

    /// The partition is to be read from the beginning of its log, which ends there.
    async fn place_at_beginning(&self, end: i64) {
        let placement = Placement { partition: PARTITION, start: 0, beginning: Some(end) };
        assert_eq!(self.store.place(&self.scope, &[placement]).await.unwrap(), [0; 0]);
    }

    /// Takes all but the last `left` entries of a bucket out, as the cap does.
    pub(crate) fn trim(&self, bucket: usize, left: usize) {
        self.command::<usize>(&["XTRIM", &self.bucket_key("tl", bucket, ""), "MAXLEN", "=", &left.to_string()]);
    }
}

#[tokio::test]
async fn every_record_of_a_batch_is_announced_with_its_place_and_its_id() {
    let world = World::new();
    world.write(events(0..200)).await;
    let entries = world.after(&TailPosition::default()).await;
    assert!(
        entries
            .iter()
            .all(|entry| records(std::slice::from_ref(entry)).all(|r| bucket_of(&r.event_id) == entry.bucket))
    );
    assert!(entries.iter().all(|entry| entry.records.is_sorted_by_key(|record| record.offset)), "in their order");
    assert!((Timestamp::now().millis() - entries[0].id.millis()).abs() < 60_000, "when, by Redis' clock");
    let announced: BTreeMap<i64, &str> = records(&entries).map(|record| (record.offset, &*record.event_id)).collect();
    assert!(records(&entries).all(|record| record.partition == PARTITION));
    assert_eq!((records(&entries).count(), announced.len()), (200, 200));
    assert!(announced.iter().all(|(offset, id)| *id == format!("e-{offset}")));
}

#[tokio::test]
async fn a_position_inside_an_entry_is_held_while_that_entry_is() {
    let world = World::new();
    world.write(events(0..200)).await;
    let entries = world.after(&TailPosition::default()).await;
    let begun = entries.iter().find(|entry| entry.records.len() > 1).unwrap();
    let mut position = world.store.tail_end().await.unwrap().0;
    position.go_back(begun.bucket, EntryId::default());
    position.pass(begun, 0);
    assert!(world.holds(&position).await);
    let key = world.bucket_key("tl", begun.bucket, "");
    assert_eq!(world.command::<usize>(&["XDEL", &key, &begun.id.to_string()]), 1);
    assert!(!world.holds(&position).await, "another entry may come in its place");
}

/// Readers hold some entries at a time.
#[tokio::test]
async fn however_large_a_batch_is_no_entry_has_more_than_some_hundred_records() {
    let world = World::new();
    world.write(events(0..9_000)).await;
    let entries = world.after(&TailPosition::default()).await;
    assert!(entries.iter().all(|entry| entry.records.len() <= 500));
    assert_eq!(records(&entries).map(|record| record.offset).collect::<BTreeSet<_>>().len(), 9_000);
}

#[tokio::test]
async fn an_event_can_be_read_as_soon_as_it_is_announced() {
    let world = World::new();
    let writer = async {
        for n in 0..100 {
            world.write(events(n * 20..n * 20 + 20)).await;
        }
    };
    let reader = async {
        let (mut position, mut read) = (TailPosition::default(), 0);
        while read < 2_000 {
            let entries = world.store.tail_next(0..BUCKETS, &position, Duration::from_secs(1)).await.unwrap();
            entries.iter().for_each(|entry| position.pass_all(entry));
            let announced: Vec<&Announced> = records(&entries).collect();
            let bytes = world.store.announced_bytes(&announced).await.unwrap();
            assert!(bytes.iter().all(|bytes| *bytes > 100), "{bytes:?}");
            for (record, found) in announced.iter().zip(world.store.announced(&announced).await.unwrap()) {
                let (json, origin) = found.unwrap_or_else(|| panic!("{record:?} has no body"));
                assert_eq!((origin.partition, origin.offset), (record.partition, record.offset));
                assert!(String::from_utf8_lossy(&json).contains(&record.event_id));
            }
            read += announced.len();
        }
        assert_eq!(read, 2_000, "each once");
    };
    tokio::join!(writer, reader);
}

#[tokio::test]
async fn what_is_stored_after_the_end_is_waited_for_and_comes_alone() {
    let world = World::new().again(2 * TIMEOUT, RETENTION);
    let (start, _) = world.store.tail_end().await.unwrap();
    assert_eq!(start, TailPosition::before_all(BUCKETS), "an empty store");
    world.write(events(0..50)).await;
    let (end, _) = world.store.tail_end().await.unwrap();
    assert_eq!(end, behind(&world.after(&start).await));
    assert_eq!(world.after(&end).await, []);
    let begun = Instant::now();
    let (entries, ()) = tokio::join!(world.store.tail_next(0..BUCKETS, &end, TIMEOUT), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.write(vec![event_of("new", 50)]).await;
    });
    assert!(begun.elapsed() < TIMEOUT / 2, "as soon as it is there: {:?}", begun.elapsed());
    let entries = entries.unwrap();
    assert_eq!(records(&entries).map(|record| &*record.event_id).collect::<Vec<_>>(), ["new"]);
    let nothing = world.store.tail_next(0..BUCKETS, &behind(&entries), Duration::from_millis(50)).await;
    assert_eq!(nothing.unwrap().iter().filter(|entry| entries.contains(entry)).count(), 0);
}

#[tokio::test]
async fn a_body_that_is_gone_or_came_with_an_earlier_record_can_be_told() {
    let world = World::new();
    world.write(vec![event_of("gone", 1), event_of("twice", 2), event_of("twice", 3)]).await;
    world.command::<usize>(&["DEL", &world.bucket_key("ev", bucket_of("gone"), ":gone")]);
    let entries = world.after(&TailPosition::default()).await;
    let mut all: Vec<&Announced> = records(&entries).collect();
    all.sort_by_key(|record| record.offset);
    let found = world.store.announced(&all).await.unwrap();
    assert!(found[0].is_none(), "expired");
    let origins: Vec<i64> = found[1..].iter().map(|found| found.as_ref().unwrap().1.offset).collect();
    assert_eq!(origins, [2, 2], "the third record's event is the second's");
}

#[tokio::test]
async fn a_position_is_held_until_the_first_entry_behind_it_is_trimmed() {
    let world = World::new();
    let ids = one_id_a_bucket();
    for offset in 0..5 {
        world.write(ids.iter().map(|id| event_of(id, offset)).collect()).await;
    }
    let entries = world.after(&TailPosition::default()).await;
    let (first, second) = (behind(&entries[..BUCKETS]), behind(&entries[..2 * BUCKETS]));
    let (end, _) = world.store.tail_end().await.unwrap();
    for position in [&TailPosition::default(), &first, &second, &end] {
        assert!(world.holds(position).await, "nothing was trimmed");
    }
    world.trim(BUCKETS - 1, 4);
    assert!(!world.holds(&TailPosition::default()).await, "the first entry of one bucket is gone");
    assert!(world.holds(&second).await && world.holds(&end).await);
    world.trim(BUCKETS - 1, 2);
    assert!(!world.holds(&second).await && world.holds(&end).await);
}

#[tokio::test]
async fn a_position_from_before_an_emptied_store_is_not_held() {
    let world = World::new();
    world.write(events(0..100)).await;
    let (end, _) = world.store.tail_end().await.unwrap();
    for bucket in 0..BUCKETS {
        world.command::<usize>(&["DEL", &world.bucket_key("tl", bucket, "")]);
    }
    assert!(!world.holds(&end).await, "emptied");
    world.write(events(0..100)).await;
    assert!(!world.holds(&end).await, "and filled again");
    assert!(world.holds(&TailPosition::default()).await, "the beginning of a stream that was never trimmed");
}

#[tokio::test]
async fn a_position_of_an_empty_store_is_held_while_nothing_is_trimmed() {
    let world = World::new();
    let (start, _) = world.store.tail_end().await.unwrap();
    assert!(world.holds(&start).await, "still empty");
    world.write(vec![event_of("one", 0)]).await;
    assert!(world.holds(&start).await, "some streams begin");
    world.write(vec![event_of("one", 0)]).await;
    world.trim(bucket_of("one"), 1);
    assert!(!world.holds(&start).await);
}

#[tokio::test]
async fn what_is_stored_again_is_announced_again_and_is_not_new() {
    let world = World::new();
    world.write(events(0..100)).await;
    let (end, mut seen) = world.store.tail_end().await.unwrap();
    world.write(events(50..120)).await;
    let entries = world.after(&end).await;
    assert_eq!(records(&entries).count(), 70, "redelivery says everything again");
    let resumed = world.store.tail_seen(&end).await.unwrap();
    for mut seen in [seen.clone(), resumed] {
        assert_eq!(new(&mut seen, &entries), (100..120).collect::<Vec<_>>());
    }
    seen.note(&entries);
    assert_eq!(new(&mut seen, &entries), [0; 0]);
}

/// The offsets that are announced for the first time, in order.
fn new(seen: &mut Seen, entries: &[Entry]) -> Vec<i64> {
    let mut new = Vec::new();
    for entry in entries {
        seen.heed(entry);
        new.extend(entry.records.iter().filter(|record| seen.is_new(entry, record)).map(|record| record.offset));
    }
    new.sort_unstable();
    new
}

#[tokio::test]
async fn what_another_topic_announced_says_nothing_about_this_one() {
    let mut world = World::new();
    world.scope = PositionScope::new("group", "old");
    let mut moves = vec![Vec::new(); BUCKETS];
    moves.iter_mut().for_each(|moves| moves.push(Move { partition: PARTITION, from: 0, to: 1_000_000 }));
    world.place_at_beginning(0).await;
    let batch = Batch { moves, events: events(999_900..1_000_000) };
    world.store.write(&world.scope, &batch, UserIndex::On).await.unwrap();
    let (end, live) = world.store.tail_end().await.unwrap();
    let resumed = world.store.tail_seen(&end).await.unwrap();

    world.scope = PositionScope::new("group", "new");
    world.place_at_beginning(0).await;
    world.write(events(0..100)).await;
    let entries = world.after(&end).await;
    for mut seen in [live, resumed] {
        assert_eq!(new(&mut seen, &entries), (0..100).collect::<Vec<_>>());
        assert!(!seen.is_new(&entry("group|old", bucket_of("e-999950")), &announced("e-999950", 999_950)));
    }
}

/// A bucket that has much must not be overtaken by one that has little.
#[tokio::test]
async fn however_little_is_read_at_a_time_it_comes_in_the_order_in_which_it_was_stored() {
    let world = World::new();
    for first in (0..60).step_by(3) {
        world.write(events(first..first + 3)).await;
    }
    let all = world.after(&TailPosition::default()).await;
    let ids = |entries: &[Entry]| entries.iter().map(|entry| (entry.id, entry.bucket)).collect::<Vec<_>>();
    for most in [1, 2, 3] {
        let (mut position, mut read) = (TailPosition::default(), Vec::new());
        loop {
            let some = world.store.tail_after(&position, most).await.unwrap();
            if some.is_empty() {
                break;
            }
            some.iter().for_each(|entry| position.pass_all(entry));
            read.extend(some);
        }
        let (mut read, mut all) = (ids(&read), ids(&all));
        assert!(read.is_sorted_by_key(|(id, _)| *id), "{most}: {read:?}");
        // What has one id may come in any order.
        read.sort_unstable();
        all.sort_unstable();
        assert_eq!(read, all, "{most}");
    }
}

fn announced(id: &str, offset: i64) -> Announced {
    Announced { partition: PARTITION, offset, event_id: id.into() }
}

#[tokio::test]
async fn a_log_that_was_made_anew_is_new_and_one_that_is_read_again_is_not() {
    let world = World::new();
    world.place_at_beginning(0).await;
    world.write(events(0..100)).await;
    let (end, live) = world.store.tail_end().await.unwrap();
    let resumed = world.store.tail_seen(&end).await.unwrap();
    // Something was lost.
    world.place_at_beginning(100).await;
    world.write(events(0..100)).await;
    let again = world.after(&end).await;
    let anew = behind(&again);
    // The topic was deleted: what is beyond its end now was announced before.
    world.place_at_beginning(20).await;
    world.write((0..20).map(|offset| event_of(&format!("anew-{offset}"), offset)).collect()).await;
    let entries = world.after(&anew).await;
    for mut seen in [live, resumed] {
        assert_eq!(new(&mut seen, &again), [0; 0]);
        assert_eq!(new(&mut seen, &entries), (0..20).collect::<Vec<_>>());
        assert_eq!(new(&mut seen, &entries), [0; 0], "once");
    }
    // Who begins now knows only what the new log has announced.
    let (_, mut seen) = world.store.tail_end().await.unwrap();
    assert!(!seen.is_new(&entry("group|topic", bucket_of("anew-3")), &announced("anew-3", 3)));
    assert_eq!(new(&mut seen, &[Entry { records: vec![announced("x", 20)], ..entry("group|topic", 0) }]), [20]);
}

#[tokio::test]
async fn what_a_quiet_partition_announced_long_ago_is_not_new_either() {
    const QUIET: i32 = 5;
    let world = World::new();
    let bucket = bucket_of("quiet");
    world.store.place(&world.scope, &[Placement { partition: QUIET, start: 0, beginning: Some(10) }]).await.unwrap();
    let mut moves = vec![Vec::new(); BUCKETS];
    moves[bucket].push(Move { partition: QUIET, from: 0, to: 10 });
    world.store.write(&world.scope, &Batch { moves, ..Batch::default() }, UserIndex::On).await.unwrap();
    // More than a look back from the end reaches.
    for offset in 0..200 {
        world.write(vec![event_of("quiet", offset)]).await;
    }
    let (_, mut seen) = world.store.tail_end().await.unwrap();
    let record = |offset| Announced { partition: QUIET, offset, event_id: "quiet".into() };
    let entry = entry("group|topic", bucket);
    assert!(!seen.is_new(&entry, &record(3)) && !seen.is_new(&entry, &record(9)), "a refill says them again");
    assert!(seen.is_new(&entry, &record(10)));
}

/// Positions stay, also those of a group that is gone in a log that is gone.
#[tokio::test]
async fn a_group_that_is_gone_says_nothing_about_a_log_that_was_made_anew() {
    let mut world = World::new();
    world.scope = PositionScope::new("old group", "topic");
    world.store.overwrite_positions(&world.scope, &[(PARTITION, 1_000_000)]).await.unwrap();
    world.scope = PositionScope::new("new group", "topic");
    world.place_at_beginning(0).await;
    // More than a look back from the end reaches.
    for offset in 0..200 {
        world.write(vec![event_of("one", offset)]).await;
    }
    let (end, mut seen) = world.store.tail_end().await.unwrap();
    world.write(vec![event_of("one", 200)]).await;
    let entries = world.after(&end).await;
    assert_eq!(records(&entries).count(), 1);
    assert_eq!(new(&mut seen, &entries), [200], "an old group silences nobody");
}

/// A replica has taken over whose clock is behind, so that its streams go on below what readers have passed.
#[tokio::test]
async fn a_position_beyond_the_end_of_its_stream_is_not_held() {
    let world = World::new();
    world.write(vec![event_of("one", 0)]).await;
    let (mut position, _) = world.store.tail_end().await.unwrap();
    assert!(world.holds(&position).await);
    let hour = Timestamp::now().millis().unsigned_abs() + 3_600_000;
    position.pass_all(&Entry { id: EntryId::new(hour, 0), ..entry("group|topic", bucket_of("one")) });

    world.write(vec![event_of("one", 1)]).await;
    assert_eq!(world.after(&position).await, [], "who goes on there misses what comes");
    assert!(!world.holds(&position).await, "what lies beyond the end of its stream is not held");
}

/// A second of much traffic is hundreds of entries, and it takes longer to come back.
#[tokio::test]
async fn a_position_of_a_moment_ago_is_held_however_much_came_behind_it() {
    let world = World::new();
    world.write(vec![event_of("one", 0)]).await;
    let (position, _) = world.store.tail_end().await.unwrap();
    assert!(world.holds(&position).await);
    for offset in 1..1_000 {
        world.write(vec![event_of("one", offset)]).await;
    }
    assert!(world.holds(&position).await, "the last minute is held");
}

/// Adds entries as if they had been added in 1970.
fn age(world: &World, bucket: usize, count: usize) {
    let add = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], i .. '-1', 'group|topic', '') end";
    let key = world.bucket_key("tl", bucket, "");
    world.query::<()>(redis::cmd("EVAL").arg(add).arg(1).arg(key).arg(count));
}

#[tokio::test]
async fn what_is_older_than_a_minute_is_trimmed_but_for_the_last_few_hundred_entries() {
    let world = World::new();
    let bucket = bucket_of("one");
    age(&world, bucket, 2_000);
    for offset in 0..400 {
        world.write(vec![event_of("one", offset)]).await;
    }
    let left = |count: usize| world.after_beginning(bucket, count);
    // Whole nodes of a hundred, and only now and then.
    let length = left(3_000);
    assert!((500..700).contains(&length), "{length}");
    for offset in 400..800 {
        world.write(vec![event_of("one", offset)]).await;
    }
    let length = left(3_000);
    assert!((800..910).contains(&length), "of the last minute all are there: {length}");
}

impl World {
    /// How many entries a stream has, up to so many.
    fn after_beginning(&self, bucket: usize, most: usize) -> usize {
        let key = self.bucket_key("tl", bucket, "");
        let entries: Vec<redis::Value> = self.command(&["XRANGE", &key, "-", "+", "COUNT", &most.to_string()]);
        entries.len()
    }
}
