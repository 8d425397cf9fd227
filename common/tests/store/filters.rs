//! Filters: exactly the rows that are asked for, in the one order, however they are read.

use std::time::Duration;

use bytes::Bytes;
use common::event::{EventTypes, Timestamp, UserId};
use common::store::{Order, Query, score_of};

use crate::support::event_json;
use crate::world::{Server, World, ago, bucket_of, stored};

/// An event of a test, and what a filter sees of it.
#[derive(Debug, Clone)]
struct Sample {
    id: String,
    user: &'static str,
    kind: &'static str,
    at: Timestamp,
}

impl Sample {
    fn json(&self) -> String {
        event_json(&self.id, self.user, self.at, "{}").replace("LOGIN", self.kind)
    }
}

impl World {
    async fn fill(&self, samples: &[Sample]) {
        for some in samples.chunks(500) {
            self.write(some.iter().map(|sample| stored(&sample.json(), 1)).collect()).await;
        }
    }

    /// All ways of reading, with the user's index and without it, give these rows in the order of the query and of no
    /// other.
    async fn gives(&self, query: &Query, samples: &[Sample]) {
        let expected = expected(query, samples);
        for (index, world) in [("on", self), ("off", &self.without_user_index())] {
            for limit in [3, 1_000] {
                assert_eq!(world.paged(query, limit).await, expected, "{query:?} in pages of {limit}, index {index}");
            }
            assert_eq!(world.walked(query, true).await, expected, "{query:?} by a walk, index {index}");
        }
    }
}

/// What a query must give, told by the samples alone.
fn expected(query: &Query, samples: &[Sample]) -> Vec<Bytes> {
    let admitted = |sample: &&Sample| {
        query.user.as_ref().is_none_or(|user| user.as_str() == sample.user)
            && (query.types.is_empty() || query.types.iter().any(|kind| kind.as_str() == sample.kind))
            && query.from.is_none_or(|from| sample.at >= from)
            && query.to.is_none_or(|to| sample.at < to)
    };
    let mut rows: Vec<&Sample> = samples.iter().filter(admitted).collect();
    rows.sort_by_key(|sample| (score_of(sample.at, &sample.id), sample.id.clone()));
    if query.order == Order::Descending {
        rows.reverse();
    }
    rows.into_iter().map(|sample| sample.json().into()).collect()
}

/// `count` events of three users and three types; twelve at a time share a timestamp, one second after those before.
fn mixture(count: usize) -> Vec<Sample> {
    let begin = ago(Duration::from_mins(30)).millis();
    let sample = |n: usize| Sample {
        id: format!("e-{n}"),
        user: ["a", "b", "c"][n % 3],
        kind: ["LOGIN", "LOGOUT", "PRODUCT_VIEW"][n / 3 % 3],
        at: Timestamp::from_millis(begin + (n / 12) as i64 * 1_000).unwrap(),
    };
    (0..count).map(sample).collect()
}

fn user(id: &str) -> Option<UserId> {
    Some(UserId::parse(id).unwrap())
}

fn of_types(names: &[&str]) -> Query {
    let types = EventTypes::default();
    Query { types: names.iter().map(|name| types.parse(name).unwrap()).collect(), ..Query::default() }
}

fn in_both_orders(query: &Query) -> [Query; 2] {
    [Order::Ascending, Order::Descending].map(|order| Query { order, ..query.clone() })
}

#[tokio::test]
async fn each_filter_alone_and_all_together_give_the_rows_they_name_in_both_orders() {
    let world = World::new();
    let samples = mixture(240);
    world.fill(&samples).await;
    let (fifth, sixth, tenth) = (samples[60].at, samples[72].at, samples[120].at);
    let between = Query { from: Some(fifth), to: Some(tenth), ..Query::default() };
    for query in [
        Query::default(),
        Query { user: user("b"), ..Query::default() },
        Query { user: user("nobody"), ..Query::default() },
        of_types(&["LOGOUT"]),
        of_types(&["LOGIN", "PRODUCT_VIEW"]),
        Query { from: Some(tenth), ..Query::default() },
        Query { to: Some(fifth), ..Query::default() },
        between.clone(),
        Query { from: Some(fifth), to: Some(sixth), ..Query::default() },
        Query { from: Some(fifth), to: Some(fifth), ..Query::default() },
        Query { user: user("c"), ..of_types(&["LOGIN"]) },
        Query { user: user("a"), types: of_types(&["LOGIN", "LOGOUT"]).types, ..between },
    ] {
        for query in in_both_orders(&query) {
            world.gives(&query, &samples).await;
        }
    }
}

#[tokio::test]
async fn an_interval_holds_all_rows_of_its_first_timestamp_and_none_of_its_end() {
    let world = World::new();
    let samples = mixture(60);
    world.fill(&samples).await;
    let (from, to) = (samples[12].at, samples[36].at);
    for query in in_both_orders(&Query { from: Some(from), to: Some(to), ..Query::default() }) {
        let rows = world.paged(&query, 5).await;
        assert_eq!(rows.len(), 24, "two timestamps with twelve rows each");
        assert_eq!(rows, expected(&query, &samples));
    }
}

#[tokio::test]
async fn thousands_of_rows_of_one_timestamp_are_each_given_once_by_every_filter() {
    let world = World::new();
    let at = ago(Duration::from_mins(1));
    let samples: Vec<Sample> = mixture(3_000).into_iter().map(|sample| Sample { at, ..sample }).collect();
    world.fill(&samples).await;
    let later = Timestamp::from_millis(at.millis() + 1);
    for query in [
        Query { user: user("a"), ..Query::default() },
        of_types(&["LOGOUT"]),
        Query { user: user("b"), from: Some(at), to: later, ..of_types(&["LOGIN"]) },
    ] {
        for query in in_both_orders(&query) {
            let expected = expected(&query, &samples);
            assert!(expected.len() >= 333, "{}", expected.len());
            for world in [&world, &world.without_user_index()] {
                assert_eq!(world.paged(&query, 100).await, expected, "{query:?}");
                assert_eq!(world.walked(&query, false).await, expected, "{query:?}");
            }
        }
    }
}

#[tokio::test]
async fn filtered_pages_and_walks_give_each_row_once_while_others_are_inserted_all_around() {
    let world = World::new();
    let samples = mixture(3_600);
    world.fill(&samples).await;
    let (first, last) = (samples[0].at.millis(), samples[3_599].at.millis());
    for query in [Query { user: user("a"), ..Query::default() }, of_types(&["LOGIN"])] {
        for query in in_both_orders(&query) {
            let mut inserted = 0_i64;
            let mut insert = async || {
                inserted += 1;
                let at = Timestamp::from_millis(first + inserted * 3_777 % (last - first)).unwrap();
                let id = format!("inserted-{:?}-{inserted}", query.order);
                world.fill(&[Sample { id, user: "a", kind: "LOGIN", at }]).await;
            };
            let (mut paged, mut cursor) = (Vec::new(), None);
            loop {
                let page = world.store.page(&query, cursor.as_ref(), 70).await.unwrap();
                paged.extend(page.events);
                insert().await;
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            let (mut walked, mut walk) = (Vec::new(), world.walk(&query, false).await);
            while let Some(events) = walk.step().await.unwrap() {
                walked.extend(events);
                insert().await;
            }
            for mut seen in [paged, walked] {
                let expected = expected(&query, &samples);
                assert!(expected.iter().all(|row| seen.contains(row)), "{query:?}: everything that was there");
                let number = seen.len();
                seen.sort();
                seen.dedup();
                assert_eq!(seen.len(), number, "{query:?}: nothing twice");
            }
        }
    }
}

#[tokio::test]
async fn a_filter_that_admits_few_of_many_rows_gives_a_short_page_and_still_all_of_them_in_the_end() {
    const MANY: usize = 10_600;
    let world = World::new();
    let begin = ago(Duration::from_hours(5)).millis();
    let rare = [0, 1, 2, 5_000, MANY - 2, MANY - 1];
    let sample = |n: usize| Sample {
        id: format!("e-{n}"),
        user: "a",
        kind: if rare.contains(&n) { "LOGOUT" } else { "LOGIN" },
        at: Timestamp::from_millis(begin + n as i64).unwrap(),
    };
    let samples: Vec<Sample> = (0..MANY).map(sample).collect();
    world.fill(&samples).await;
    for query in in_both_orders(&of_types(&["LOGOUT"])) {
        let expected = expected(&query, &samples);
        let first = world.store.page(&query, None, 10).await.unwrap();
        assert!(first.events.len() < rare.len() && expected.starts_with(&first.events), "{}", first.events.len());
        let rest = world.store.page(&query, first.next.as_ref(), 10).await.unwrap();
        assert!(rest.next.is_none(), "nothing is left");
        assert_eq!([first.events, rest.events].concat(), expected);
        assert_eq!(world.walked(&query, true).await, expected);
    }
    let nothing = world.store.page(&of_types(&["PRODUCT_VIEW"]), None, 10).await.unwrap();
    assert!(nothing.events.is_empty() && nothing.next.is_some(), "empty, and not the end");
    assert!(world.paged(&of_types(&["PRODUCT_VIEW"]), 10).await.is_empty());
}

#[tokio::test]
async fn a_user_is_looked_for_in_large_steps_where_users_have_no_index() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url()).without_user_index();
    let mut samples = mixture(3_000);
    samples.push(Sample { id: "last".into(), user: "z", kind: "LOGIN", at: Timestamp::now() });
    world.fill(&samples).await;
    world.calls([]);
    let query = Query { user: user("z"), ..Query::default() };
    let page = world.store.page(&query, None, 1).await.unwrap();
    assert_eq!(page.events, expected(&query, &samples));
    let [indexes, bodies] = world.calls(["zrange", "mget"]);
    assert!(indexes + bodies < 500, "{indexes} of the indexes and {bodies} of bodies for a page of one row");
}

#[tokio::test]
async fn an_entry_of_a_user_whose_body_is_of_somebody_else_is_left_away() {
    let world = World::new();
    let (earlier, now) = (ago(Duration::from_secs(9)), Timestamp::now());
    let [first, second, own] =
        [("x", "a"), ("x", "b"), ("y", "b")].map(|(id, user)| event_json(id, user, earlier, "{}"));
    // The second event of an id is not stored, but its user's index has an entry.
    world.write(vec![stored(&first, 1), stored(&second, 2), stored(&own, 3)]).await;
    let index = world.bucket_key("ux", bucket_of("b"), ":b");
    assert_eq!(world.command::<usize>(&["ZCARD", &index]), 2);
    let of = |id: &str| Query { user: user(id), to: Timestamp::from_millis(now.millis() + 1), ..Query::default() };
    assert_eq!(world.paged(&of("b"), 1).await, [own.as_str()]);
    assert_eq!(world.walked(&of("b"), true).await, [own.as_str()]);
    assert_eq!(world.paged(&of("a"), 1).await, [first.as_str()]);
    assert_eq!(world.paged(&Query::default(), 1).await.len(), 2);
}
