//! `GET /events/processed`: whole, and page by page.

use chrono::Utc;
use e2e::{
    client::{Client, Event},
    kafka::Record,
    oracle::Journal,
    redis_server::RedisServer,
    sample::{event, rfc3339},
    world::World,
};
use uuid::{Builder, Uuid};

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_every_row_exactly_once_in_the_order_of_the_whole_list() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let journal = Journal::default();
    for sequence in 0..25 {
        journal.must_post(&api.client, &format!("user-{}", sequence % 3), sequence).await.unwrap();
    }
    journal.holds(&api.client).await;
    pages_equal_the_list(&api.client, 26).await;

    let last = api.client.get("/events/processed?limit=1000").await.unwrap().ok().unwrap();
    assert_eq!(last.next_link(), None, "no page follows a page with everything");
    assert_eq!(last.header("content-type"), "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_timestamps_have_one_order_for_every_reader() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let replica = world.start_api().await;
    let timestamp = format!(r#""{}""#, rfc3339(Utc::now()));
    let records = [(); 40].map(|()| {
        // Not version 7: nothing in the id hints at an order.
        let id = format!(r#""{}""#, Builder::from_random_bytes(Uuid::now_v7().into_bytes()).into_uuid());
        Record::of(event(&[("eventId", &id), ("timestamp", &timestamp)]))
    });
    world.kafka().write(&world.topic, None, &records).await;
    let list = pages_equal_the_list(&api.client, 40).await;
    assert_eq!(pages_equal_the_list(&replica.client, 40).await, list);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_gone_does_not_cut_the_whole_list_short() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, _worker) = world.start().await;
    let records = [(); 700].map(|()| {
        let (id, time) = (format!(r#""{}""#, Uuid::now_v7()), format!(r#""{}""#, rfc3339(Utc::now())));
        Record::of(event(&[("eventId", &id), ("timestamp", &time)]))
    });
    world.kafka().write(&world.topic, None, &records).await;
    let list = api.client.listed(700).await;
    // As the expiry of an old event does it, a moment before its entry is trimmed.
    let id = &list[3].event_id;
    redis.delete_body(id).await;
    let left = api.client.listed(699).await;
    assert!(left.iter().all(|event| event.event_id != *id));
    assert_eq!(api.client.pages(1000).await.unwrap().concat(), left);
}

/// Waits for `count` rows and compares pages of several sizes with the whole list.
async fn pages_equal_the_list(client: &Client, count: usize) -> Vec<Event> {
    let list = client.listed(count).await;
    assert!(list.is_sorted_by_key(|event| &event.timestamp));
    for limit in [1, 7, 25, 1000] {
        let pages = client.pages(limit).await.unwrap();
        assert!(pages.iter().all(|page| page.len() <= limit), "pages of at most {limit}");
        assert!(pages.len() <= count / limit + 1, "{} pages of {limit}", pages.len());
        assert_eq!(pages.concat(), list, "pages of {limit}");
    }
    list
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_is_an_empty_array() {
    let api = World::shared().start_api().await;
    for path in ["/events/processed", "/events/processed?limit=10"] {
        let reply = api.client.get(path).await.unwrap().ok().unwrap();
        assert_eq!((reply.text().as_str(), reply.next_link()), ("[]", None), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_means_nothing_is_refused() {
    let api = World::shared().start_api().await;
    let queries = [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=",
        "limit=1.5",
        "limit=99999999999999999999",
        "cursor=garbage",
        "limit=10&cursor=%00%ff",
        "unknown=1",
        "Limit=10",
    ];
    for query in queries {
        let reply = api.client.get(&format!("/events/processed?{query}")).await.unwrap();
        let problem = reply.problem(400).unwrap_or_else(|error| panic!("{query}: {error:#}"));
        let name = query.rsplit('&').next().unwrap().split('=').next().unwrap();
        assert!(problem.to_string().contains(name), "{name} is named in {problem}");
    }
}
