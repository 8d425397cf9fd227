//! Lists: each row once, in one order, however they are read and whatever happens meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use common::event::{EventTypes, Timestamp, UserId};
use common::store::{Order, Query, score_of};

use crate::BUCKETS;
use crate::support::event_json;
use crate::world::{RETENTION, Server, TIMEOUT, World, ago, bucket_of, stored};

impl World {
    /// Stores events of these ids, one second apart, the last one now.
    async fn seconds_apart(&self, ids: &[String]) -> Vec<Bytes> {
        let at = |nth: usize| ago(Duration::from_secs((ids.len() - nth) as u64));
        let jsons: Vec<String> = ids.iter().enumerate().map(|(n, id)| event_json(id, "u", at(n), "{}")).collect();
        self.write(jsons.iter().map(|json| stored(json, 1)).collect()).await;
        jsons.into_iter().map(Bytes::from).collect()
    }

    /// Writes index entries and bodies of one timestamp and score, which real ids share only by accident. Gives the
    /// bodies in the order of the ids.
    fn collide(&self, mut ids: Vec<String>) -> Vec<Bytes> {
        let score = score_of(ago(Duration::from_mins(1)), "x");
        for bucket in (0..BUCKETS).filter(|bucket| ids.iter().any(|id| bucket_of(id) == *bucket)) {
            let (mut index, mut bodies) = (redis::cmd("ZADD"), redis::cmd("MSET"));
            index.arg(self.bucket_key("ix", bucket, ""));
            for id in ids.iter().filter(|id| bucket_of(id) == bucket) {
                index.arg(score).arg(id);
                bodies.arg(self.bucket_key("ev", bucket, &format!(":{id}"))).arg(id);
            }
            self.query::<()>(&index);
            self.query::<()>(&bodies);
        }
        ids.sort();
        // Behind the id, which the store adds, comes what is stored.
        ids.into_iter().map(|id| format!(r#"{{"eventId":"{id}",{id}"#).into()).collect()
    }

    /// How often the server, which is the test's own, was sent these commands since it was asked last.
    pub(crate) fn calls<const N: usize>(&self, commands: [&str; N]) -> [usize; N] {
        let stats: String = self.command(&["INFO", "commandstats"]);
        self.command::<()>(&["CONFIG", "RESETSTAT"]);
        commands.map(|command| {
            let name = format!("cmdstat_{command}:calls=");
            let calls = stats.lines().find_map(|line| line.strip_prefix(&name)?.split(',').next());
            calls.map_or(0, |calls| calls.parse().unwrap())
        })
    }

    /// Stores events of these types and bytes of payload in this order. Gives their JSON.
    async fn of_sizes(&self, events: &[(&str, usize)]) -> Vec<Bytes> {
        let begin = ago(Duration::from_hours(1)).millis();
        let json = |(n, (kind, bytes)): (usize, &(&str, usize))| {
            let at = Timestamp::from_millis(begin + n as i64).unwrap();
            let payload = format!(r#"{{"x":"{}"}}"#, "x".repeat(*bytes));
            event_json(&format!("e-{n}"), "u", at, &payload).replace("LOGIN", kind)
        };
        let jsons: Vec<String> = events.iter().enumerate().map(json).collect();
        for some in jsons.chunks(20) {
            self.write(some.iter().map(|json| stored(json, 1)).collect()).await;
        }
        jsons.into_iter().map(Bytes::from).collect()
    }
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("e-{n}")).collect()
}

/// `count` ids of one bucket.
fn ids_in(bucket: usize, count: usize) -> Vec<String> {
    (0..).map(|n| format!("e-{n}")).filter(|id| bucket_of(id) == bucket).take(count).collect()
}

fn reversed(rows: &[Bytes]) -> Vec<Bytes> {
    rows.iter().rev().cloned().collect()
}

#[tokio::test]
async fn a_page_holds_up_to_its_limit_and_the_last_one_has_no_next() {
    let world = World::new();
    assert!(world.store.page(&Query::default(), None, 10).await.unwrap().next.is_none(), "an empty store");
    let all = world.seconds_apart(&ids(20)).await;
    for (limit, pages) in [(1, 20), (7, 3), (10, 2), (20, 1), (21, 1)] {
        let (mut cursor, mut sizes) = (None, Vec::new());
        loop {
            let page = world.store.page(&Query::default(), cursor.as_ref(), limit).await.unwrap();
            sizes.push(page.events.len());
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!((sizes.len(), sizes.iter().sum()), (pages, all.len()), "limit {limit}: {sizes:?}");
        assert!(sizes[..pages - 1].iter().all(|size| *size == limit), "limit {limit}: {sizes:?}");
    }
}

#[tokio::test]
async fn equal_timestamps_have_one_order_for_every_reader_and_both_directions() {
    let world = World::new();
    let at = ago(Duration::from_mins(1));
    let mut rows: Vec<(i64, String)> = (0..500).map(|n| format!("e-{n}")).map(|id| (score_of(at, &id), id)).collect();
    world.write(rows.iter().map(|(_, id)| stored(&event_json(id, "u", at, "{}"), 1)).collect()).await;
    rows.sort();
    let expected: Vec<Bytes> = rows.iter().map(|(_, id)| event_json(id, "u", at, "{}").into()).collect();

    let other = world.again(TIMEOUT, RETENTION);
    assert_eq!(world.paged(&Query::default(), 33).await, expected);
    assert_eq!(other.walked(&Query::default(), true).await, expected);
    assert_eq!(other.paged(&Query::all(Order::Descending), 50).await, reversed(&expected));
}

#[tokio::test]
async fn thousands_of_rows_of_one_score_in_one_bucket_are_each_listed_once() {
    let world = World::new();
    let all = world.collide(ids_in(BUCKETS - 1, 3_000));
    assert_eq!(world.paged(&Query::default(), 100).await, all);
    assert_eq!(world.paged(&Query::all(Order::Descending), 100).await, reversed(&all));
    assert_eq!(world.walked(&Query::default(), true).await, all);
    assert_eq!(world.walked(&Query::all(Order::Descending), true).await, reversed(&all));
}

#[tokio::test]
async fn rows_of_one_score_in_all_buckets_are_each_listed_once_between_rows_of_others() {
    let world = World::new();
    let (earlier, later) = (ago(Duration::from_mins(2)), Timestamp::now());
    let edges = [("first", earlier), ("last", later)].map(|(id, at)| event_json(id, "u", at, "{}"));
    world.write(edges.iter().map(|json| stored(json, 1)).collect()).await;
    let mut all = world.collide(ids(2_000));
    all.insert(0, edges[0].clone().into());
    all.push(edges[1].clone().into());
    for limit in [1_000, 77] {
        assert_eq!(world.paged(&Query::default(), limit).await, all);
        assert_eq!(world.paged(&Query::all(Order::Descending), limit).await, reversed(&all));
    }
}

#[tokio::test]
async fn rows_inserted_between_two_pages_are_seen_before_the_cursor_and_not_behind_it() {
    let world = World::new();
    let all = world.seconds_apart(&ids(40)).await;
    let behind = event_json("behind", "u", ago(Duration::from_secs(39)), "{}");
    let before = event_json("before", "u", ago(Duration::from_secs(2)), "{}");
    for order in [Order::Ascending, Order::Descending] {
        let world = world.again(TIMEOUT, RETENTION);
        let first = world.store.page(&Query::all(order), None, 20).await.unwrap();
        // What lies ahead of one direction lies behind the other.
        let (ahead, passed) = if order == Order::Ascending { (&before, &behind) } else { (&behind, &before) };
        world.write(vec![stored(&behind, 1), stored(&before, 1)]).await;
        let second = world.store.page(&Query::all(order), first.next.as_ref(), 100).await.unwrap();

        let seen: Vec<&Bytes> = first.events.iter().chain(&second.events).collect();
        assert!(seen.iter().any(|row| *row == ahead), "{order:?}");
        assert!(!seen.iter().any(|row| *row == passed), "{order:?}");
        for row in &all {
            assert_eq!(seen.iter().filter(|one| **one == row).count(), 1, "{order:?}: {row:?}");
        }
        for id in ["behind", "before"] {
            world.command::<()>(&["ZREM", &world.bucket_key("ix", bucket_of(id), ""), id]);
        }
    }
}

#[tokio::test]
async fn a_walk_gives_each_row_once_while_others_are_inserted_all_around() {
    let world = World::new();
    // Many times what is read ahead.
    let all = world.seconds_apart(&ids(5_000)).await;
    let (mut walk, mut seen) = (world.walk(&Query::default(), false).await, Vec::new());
    for n in 0.. {
        let at = ago(Duration::from_secs((n * 777) % 5_000));
        world.write(vec![stored(&event_json(&format!("inserted-{n}"), "u", at, "{}"), 1)]).await;
        let Some(events) = walk.step().await.unwrap() else { break };
        seen.extend(events);
        assert!(n < 100, "the walk ends");
    }
    let number = seen.len();
    let seen: BTreeSet<Bytes> = seen.into_iter().collect();
    assert_eq!(seen.len(), number, "nothing comes twice");
    assert!(all.iter().all(|row| seen.contains(row)), "everything that was there is given");
}

#[tokio::test]
async fn rows_whose_body_has_expired_are_skipped_and_do_not_end_the_list() {
    let world = World::new();
    let all = world.seconds_apart(&ids(1_000)).await;
    let expired = |n: usize| (100..600).contains(&n) || n >= 900;
    for id in (0..1_000).filter(|n| expired(*n)).map(|n| format!("e-{n}")) {
        assert_eq!(world.command::<i32>(&["DEL", &world.bucket_key("ev", bucket_of(&id), &format!(":{id}"))]), 1);
    }
    let left: Vec<Bytes> = (0..1_000).filter(|n| !expired(*n)).map(|n| all[n].clone()).collect();
    // It meets whole steps of nothing.
    assert_eq!(world.walked(&Query::default(), false).await, left);
    assert_eq!(world.paged(&Query::default(), 10).await, left);
    assert_eq!(world.paged(&Query::all(Order::Descending), 7).await, reversed(&left));
    let page = world.store.page(&Query::default(), None, 300).await.unwrap();
    assert_eq!(page.events, left[..300], "a page is filled");
}

#[tokio::test]
async fn what_is_older_than_the_retention_is_not_listed() {
    let world = World::new();
    let hour = Duration::from_hours(1);
    let [old, young] = [("old", hour * 2), ("young", hour / 2)].map(|(id, age)| event_json(id, "u", ago(age), "{}"));
    world.write(vec![stored(&old, 1), stored(&young, 1)]).await;
    assert_eq!(world.paged(&Query::default(), 10).await, [old.clone(), young.clone()]);

    let short = world.again(TIMEOUT, hour);
    for order in [Order::Ascending, Order::Descending] {
        assert_eq!(short.paged(&Query::all(order), 1).await, [young.as_str()]);
        assert_eq!(short.walked(&Query::all(order), true).await, [young.as_str()]);
    }
    // A cursor from the time before it does not open the past again.
    let cursor = world.store.page(&Query::all(Order::Descending), None, 1).await.unwrap().next;
    assert!(cursor.is_some());
    assert!(short.store.page(&Query::all(Order::Descending), cursor.as_ref(), 10).await.unwrap().events.is_empty());
    assert!(short.store.event("old").await.unwrap().is_some(), "it is recorded like any other");
}

#[tokio::test]
async fn a_page_ends_with_1_mib_of_events_and_the_next_one_goes_on() {
    const BYTES: usize = 256 * 1024;
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    let all = world.of_sizes(&[("LOGIN", BYTES); 100]).await;
    // Both for who knows nothing of their size yet and for who has seen small ones only.
    for order in [Order::Ascending, Order::Descending] {
        let world = world.again(TIMEOUT, RETENTION);
        let (mut paged, mut cursor) = (Vec::new(), None);
        loop {
            let page = world.store.page(&Query::all(order), cursor.as_ref(), 1_000).await.unwrap();
            let bytes: usize = page.events.iter().map(Bytes::len).sum();
            assert!(bytes < 1024 * 1024 + BYTES, "{bytes} bytes");
            paged.extend(page.events);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert!(paged == if order == Order::Ascending { all.clone() } else { reversed(&all) }, "{order:?}");
    }
    world.calls([]);
    assert!(world.paged(&Query::default(), 1_000).await == all);
    let [bodies] = world.calls(["mget"]);
    assert!(bodies >= all.len() / 4, "{bodies} exchanges for bodies, each of which holds megabytes");
}

#[tokio::test]
async fn a_page_takes_one_exchange_with_the_indexes_and_one_for_bodies() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    let all = world.of_sizes(&[("LOGIN", 20); 600]).await;
    for user in [None, Some(UserId::parse("u").unwrap())] {
        // An index that is read alone, without scores, is asked for the last ones as well.
        let indexes = if user.is_some() { 1 } else { BUCKETS.max(2) };
        let query = Query { user, ..Query::default() };
        let (mut next, pages) = (None, all.chunks(100));
        world.store.page(&query, None, 1).await.unwrap();
        for (nth, expected) in pages.enumerate() {
            world.calls([]);
            let page = world.store.page(&query, next.as_ref(), 100).await.unwrap();
            assert_eq!(page.events, expected);
            assert_eq!(world.calls(["mget", "strlen", "zrange"]), [1, 0, indexes], "{query:?}, page {nth}");
            next = page.next;
        }
        assert_eq!(next, None, "the last page is full, and known to be the last");
    }
}

#[tokio::test]
async fn pages_are_the_list_however_the_rows_are_spread_over_the_buckets() {
    let mut random = 20_250_217_u32;
    let mut below = |end: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % end
    };
    let of: Vec<Vec<String>> = (0..BUCKETS).map(|bucket| ids_in(bucket, 1_200)).collect();
    for _ in 0..6 {
        let world = World::new();
        // Runs of one bucket, of which a page asks for more than its share.
        let runs: Vec<(usize, usize)> = (0..40).map(|_| (below(BUCKETS as u32) as usize, below(30) as usize)).collect();
        let (mut of, mut ids) = (of.iter().map(|ids| ids.iter().cloned()).collect::<Vec<_>>(), Vec::new());
        runs.iter().for_each(|(bucket, run)| ids.extend(of[*bucket].by_ref().take(*run)));
        let all = world.seconds_apart(&ids).await;
        let limit = 1 + below(120) as usize;
        assert_eq!(world.paged(&Query::default(), limit).await, all, "{runs:?} in pages of {limit}");
        assert_eq!(world.paged(&Query::all(Order::Descending), limit).await, reversed(&all), "{runs:?}, {limit}");
        assert_eq!(world.walked(&Query::default(), true).await, all, "{runs:?} by a walk");
    }
}

#[tokio::test]
async fn large_events_behind_small_ones_are_held_a_few_at_a_time_and_listed_in_their_order() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    let all = world.of_sizes(&[[("LOGIN", 20); 400].as_slice(), &[("LOGIN", 200_000); 60]].concat()).await;
    let (mut walk, mut seen) = (world.walk(&Query::default(), true).await, Vec::new());
    while let Some(events) = walk.step().await.unwrap() {
        let bytes: usize = events.iter().map(Bytes::len).sum();
        assert!(bytes < 100_000 || events.len() == 1, "{} events of {bytes} bytes in a step", events.len());
        seen.extend(events);
    }
    assert!(seen == all);
    for order in [Order::Ascending, Order::Descending] {
        // As one that has seen nothing large yet.
        let world = world.again(TIMEOUT, RETENTION);
        assert!(world.paged(&Query::default(), 100).await == all);
        world.store.page(&Query::default(), None, 300).await.unwrap();
        let expected = if order == Order::Ascending { all.clone() } else { reversed(&all) };
        assert!(world.paged(&Query::all(order), 1_000).await == expected, "{order:?}");
    }
}

#[tokio::test]
async fn a_page_asks_for_all_bodies_at_once_and_for_few_at_a_time_where_the_index_may_name_large_ones() {
    const MOST: usize = 128;
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    let mark = |id: &str| world.bucket_key("lg", bucket_of(id), "");
    let mut all = world.of_sizes(&[("LOGIN", 20); 600]).await;
    let lists = [None, Some(UserId::parse("u").unwrap())].map(|user| Query { user, ..Query::default() });
    // How large they are is learned from the first page.
    world.store.page(&lists[0], None, 1_000).await.unwrap();
    for query in &lists {
        world.calls([]);
        assert_eq!(world.store.page(query, None, 1_000).await.unwrap().events, all);
        assert_eq!(world.calls(["mget"]), [1], "{query:?}");
    }
    let large_at = |age| event_json("large", "u", ago(age), &format!(r#"{{"x":"{}"}}"#, "x".repeat(16 * 1024)));
    world.write(vec![stored(&large_at(2 * RETENTION), 1)]).await;
    assert!(!world.command::<bool>(&["EXISTS", &mark("large")]), "one that has expired is not listed");

    let large = large_at(Duration::ZERO);
    world.write(vec![stored(&large, 1)]).await;
    all.push(large.into());
    for key in [mark("large"), mark("u")] {
        let life = Duration::from_millis(world.command(&["PTTL", &key]));
        assert!(life > RETENTION, "{life:?} of {key}: a body may live as long");
    }
    for query in &lists {
        world.calls([]);
        assert_eq!(world.store.page(query, None, 1_000).await.unwrap().events, all);
        let [asked] = world.calls(["mget"]);
        assert!(asked >= all.len().div_ceil(MOST), "{asked} exchanges, {query:?}");
    }
}

#[tokio::test]
async fn a_page_goes_on_behind_a_row_that_has_left_the_index_and_behind_one_that_has_moved() {
    let world = World::new();
    let all = world.seconds_apart(&ids(60)).await;
    let bucket = |n: usize| world.bucket_key("ix", bucket_of(&format!("e-{n}")), "");
    let next = async |limit| world.store.page(&Query::default(), None, limit).await.unwrap().next;
    let (gone, moved) = (next(20).await, next(30).await);
    assert_eq!(world.command::<usize>(&["ZREM", &bucket(19), "e-19"]), 1);
    let end = score_of(Timestamp::now(), "x").to_string();
    world.command::<()>(&["ZADD", &bucket(29), &end, "e-29"]);
    let after = async |cursor| world.store.page(&Query::default(), cursor, 25).await.unwrap().events;
    let left: Vec<Bytes> = (20..60).filter(|n| *n != 29).chain([29]).map(|n| all[n].clone()).collect();
    assert_eq!(after(gone.as_ref()).await, left[..25]);
    assert_eq!(after(moved.as_ref()).await, left[9..34]);
}

#[tokio::test]
async fn a_large_hole_takes_few_exchanges_however_small_the_page() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    let all = world.of_sizes(&[("LOGIN", 20); 3_000]).await;
    for n in 0..2_999 {
        let id = format!("e-{n}");
        world.command::<()>(&["DEL", &world.bucket_key("ev", bucket_of(&id), &format!(":{id}"))]);
    }
    world.calls([]);
    let page = world.store.page(&Query::default(), None, 1).await.unwrap();
    assert_eq!((page.events, page.next), (vec![all[2_999].clone()], None));
    let [asked] = world.calls(["mget"]);
    assert!(asked < 40, "{asked} exchanges");
}

#[tokio::test]
async fn steps_are_sized_by_what_is_fetched_and_not_by_what_a_filter_admits_of_it() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url());
    let kinds = EventTypes::default();
    let of = |kind| Query { types: vec![kinds.parse(kind).unwrap()], ..Query::default() };
    let all = world.of_sizes(&[("LOGIN", 20), ("LOGOUT", 100_000)].repeat(100)).await;
    world.calls([]);
    let small: Vec<Bytes> = all.iter().step_by(2).cloned().collect();
    assert!(world.walked(&of("LOGIN"), true).await == small);
    let [steps] = world.calls(["mget"]);
    assert!(steps > 100, "{steps} steps, each of which holds megabytes");

    let world = World::on(&server.url());
    world.of_sizes(&[("LOGIN", 20); 3_000]).await;
    world.calls([]);
    assert!(world.walked(&of("LOGOUT"), true).await.is_empty());
    let [steps] = world.calls(["mget"]);
    assert!(steps < 3_000 / 100, "{steps} small steps although nothing large was seen");
}
