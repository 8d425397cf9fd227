//! A request that is sent again with its `Idempotency-Key` makes one event.

use anyhow::ensure;
use e2e::{
    client::{Client, Event, Reply},
    eventually,
    world::World,
};
use serde_json::{Value, json};

async fn post(client: &Client, key: &str, body: &Value) -> Reply {
    Reply::of(client.publication(body.to_string()).header("idempotency-key", key)).await.unwrap()
}

async fn published(client: &Client, key: &str, body: &Value) -> Value {
    post(client, key, body).await.with_status(201).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_makes_one_event_through_any_replica_before_and_after_it_is_processed() {
    let world = World::shared();
    let (api, replica) = (world.start_api().await, world.start_api().await);
    let body = json!({"userId": "u", "eventType": "LOGIN", "payload": {"n": 1}});
    let first = published(&api.client, "\"key 1\"", &body).await;
    assert_eq!(first["duplicate"], Value::Null, "nothing is processed yet: {first}");
    let second = published(&replica.client, "key 1", &body).await;
    assert_eq!(second["eventId"], first["eventId"], "a retry through a replica");
    let other = json!({"userId": "v", "eventType": "LOGIN"});
    assert_ne!(published(&api.client, "key 1", &other).await["eventId"], first["eventId"], "keys are each user's own");

    let _worker = world.start_worker().await;
    api.client.listed(2).await;
    // A store that is slow to say what it has is not waited for.
    let third = eventually("the first one is known", async || {
        let third = published(&replica.client, "key 1", &body).await;
        ensure!(third["duplicate"] == true, "{third}");
        Ok(third)
    })
    .await;
    assert_eq!((&third["eventId"], &third["event"]), (&first["eventId"], &first["event"]), "the first one's data");

    let list = api.client.listed(2).await;
    assert!(list.iter().any(|event| first["event"]["timestamp"] == event.timestamp.as_str()), "the first one wins");
    for changed in [
        json!({"userId": "u", "eventType": "LOGOUT", "payload": {"n": 1}}),
        json!({"userId": "u", "eventType": "LOGIN", "payload": {"n": 2}}),
    ] {
        let problem =
            eventually("the change is seen", async || post(&api.client, "key 1", &changed).await.problem(422)).await;
        assert_eq!(problem["type"], "/docs/problems#idempotency-key-reused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_shown_what_was_stored_and_not_what_came_second() {
    let world = World::shared();
    let api = world.start_api().await;
    let body = json!({"userId": "u", "eventType": "LOGIN", "payload": {"n": 1, "m": 2}});
    let first = published(&api.client, "k", &body).await;
    // Nothing is stored yet, so both of these go to the topic behind the first one.
    let waiting = |body: String| {
        let request = api.client.publication(body).header("idempotency-key", "k").header("prefer", "wait=30");
        tokio::spawn(Reply::of(request))
    };
    let equal = waiting(r#"{"payload":{"m":2, "n":1},"eventType":"LOGIN","userId":"u"}"#.to_owned());
    let other = waiting(json!({"userId": "u", "eventType": "LOGIN", "payload": {"n": 2}}).to_string());
    eventually("all three are on the topic", async || {
        let records: i64 = world.kafka().end_offsets(&world.topic)?.values().sum();
        ensure!(records == 3, "{records}");
        Ok(())
    })
    .await;
    let _worker = world.start_worker().await;
    let equal: Value = equal.await.unwrap().unwrap().with_status(201).unwrap().parse().unwrap();
    assert_eq!((&equal["processed"], &equal["duplicate"]), (&json!(true), &json!(true)), "{equal}");
    assert_eq!(equal["event"], first["event"]);
    let problem = other.await.unwrap().unwrap().problem(422).unwrap();
    assert_eq!(problem["type"], "/docs/problems#idempotency-key-reused");
    api.client.listed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_value_printed_otherwise_is_the_same_request() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let first =
        published(&api.client, "k", &json!({"userId": "u", "eventType": "LOGIN", "payload": {"a": 1, "b": "é"}})).await;
    api.client.listed(1).await;
    let again = r#"{ "payload" : {"b":"\u00e9" , "a":1}, "userId":"u","eventType":"LOGIN"}"#;
    let again = eventually("the first one is known", async || {
        let request = api.client.publication(again).header("idempotency-key", "k");
        let again: Value = Reply::of(request).await?.with_status(201)?.parse()?;
        ensure!(again["duplicate"] == true, "{again}");
        Ok(again)
    })
    .await;
    assert_eq!(again["event"], first["event"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_taken_without_a_store_and_a_bad_one_is_refused() {
    let world = World::on_redis("redis://127.0.0.1:9");
    let api = world.start_api().await;
    let body = json!({"userId": "u", "eventType": "LOGIN"});
    published(&api.client, "k", &body).await;
    let problem = post(&api.client, &"k".repeat(256), &body).await.problem(400).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("Idempotency-Key must be of 1 to 255 bytes"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_again_after_the_retention_makes_an_event_that_is_listed() {
    // Long enough to see the first event, whatever the machine does.
    let (api, _worker) = World::shared().with("EVENT_RETENTION", "30s").start().await;
    let body = json!({"userId": "u", "eventType": "LOGIN", "payload": {}});
    let first = published(&api.client, "k", &body).await;
    let path = format!("/events/{}", first["eventId"].as_str().unwrap());
    eventually("it is stored", async || api.client.get(&path).await?.ok()).await;
    eventually("it expires", async || api.client.get(&path).await?.with_status(404)).await;

    let again = published(&api.client, "k", &body).await;
    assert_eq!(again["duplicate"], Value::Null, "after the retention a key stands for a new event: {again}");
    assert_eq!(again["eventId"], first["eventId"]);
    let listed = api.client.listed(1).await;
    assert_eq!(again["event"]["timestamp"], listed[0].timestamp);
    let of_the_user: Vec<Event> = api.client.get("/events/processed?userId=u").await.unwrap().parse().unwrap();
    assert_eq!(of_the_user, listed);
}
