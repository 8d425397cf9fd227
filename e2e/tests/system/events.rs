//! The life of one event, from POST to processed.

use anyhow::ensure;
use chrono::{DateTime, Duration, Utc};
use e2e::{
    client::{Event, Processed, Reply},
    eventually,
    kafka::Record,
    sample::{self, rfc3339},
    world::World,
};
use serde::Deserialize;
use uuid::Uuid;

/// The reply to a post.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Published {
    success: bool,
    message: String,
    event_id: String,
    event: Event,
}

/// Everything a re-serialisation would change: number spellings, key order, a repeated key,
/// white space, escapes, digits beyond a double.
const ODD_PAYLOAD: &str = r#"{ "z" : 1.0e+2, "a":-0.0,"a" :	12345678901234567890.10, "u":"\u00e9\/\ud83d\ude00é", "deep":[[{}]],
 "nul":"\u0000"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_posted_event_comes_back_with_every_field_equal() {
    let world = World::shared();
    let (api, worker) = world.start().await;
    let before = Utc::now();
    let body =
        format!(r#"{{"ignored":[1],"payload":{ODD_PAYLOAD},"eventType":"PRODUCT_VIEW","userId":" Zoë\u0020 "}}"#);
    let reply = api.client.publish(body).await.unwrap().with_status(201).unwrap();
    assert_eq!(reply.header("content-type"), "application/json");
    let published: Published = reply.parse().unwrap();
    let event = published.event;
    assert!(published.success);
    assert_eq!(published.message, "Event published successfully");
    assert_eq!(published.event_id, event.event_id);
    assert_eq!(reply.header("location"), format!("/events/{}", event.event_id));
    assert_eq!(
        (event.user_id.as_str(), event.event_type.as_str(), event.payload.as_str()),
        (" Zoë  ", "PRODUCT_VIEW", ODD_PAYLOAD)
    );
    assert_eq!(Uuid::parse_str(&event.event_id).unwrap().get_version_num(), 7);
    is_between(before, &event.timestamp);

    assert_eq!(api.client.listed(1).await, std::slice::from_ref(&event));

    let path = format!("/events/{}", event.event_id);
    let reply = eventually("the event is found", async || api.client.get(&path).await?.ok()).await;
    let found: Processed = reply.parse().unwrap();
    assert_eq!(found.row(), event);
    let written = &world.kafka().read(&world.topic).unwrap()[0];
    let origin = found.processing;
    assert_eq!(origin.topic, world.topic);
    assert_eq!((origin.partition, origin.offset), (written.partition, written.offset));
    is_between(before, &origin.processed_at);
    assert!(!origin.worker.is_empty());

    // What other consumers of the topic rely on.
    assert_eq!(written.record.key.as_deref(), Some(event.user_id.as_bytes()));
    assert_eq!(written.record.header("event-id"), Some(event.event_id.as_bytes()));
    assert_eq!(written.record.header("event-type"), Some(&b"PRODUCT_VIEW"[..]));

    eventually("the worker logs what it processed", async || {
        let said = worker.process.output();
        let line = said.lines().find(|line| line.contains(&event.event_id));
        ensure!(line.is_some_and(|line| line.contains("Zo") && line.contains("PRODUCT_VIEW")));
        Ok(())
    })
    .await;
}

/// Written in the one format, and between `start` and now.
fn is_between(start: DateTime<Utc>, timestamp: &str) {
    let time = DateTime::parse_from_rfc3339(timestamp).unwrap().to_utc();
    assert_eq!(rfc3339(time), timestamp);
    let tolerance = Duration::seconds(1);
    assert!(start - tolerance <= time && time <= Utc::now() + tolerance, "{timestamp}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_payload_is_an_empty_object_and_an_absent_content_type_is_json() {
    let world = World::shared();
    let api = world.start_api().await;
    let body = r#"{"userId":"u","eventType":"LOGOUT"}"#;
    let request = api.client.request(reqwest::Method::POST, "/events/generate").body(body);
    let reply = Reply::of(request).await.unwrap().with_status(201).unwrap();
    assert_eq!(reply.parse::<Published>().unwrap().event.payload, "{}");
    let request = api.client.request(reqwest::Method::POST, "/events/generate").body(body);
    let request = request.header("content-type", "application/json; charset=utf-8");
    Reply::of(request).await.unwrap().with_status(201).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_processed_is_not_found() {
    let world = World::shared();
    let api = world.start_api().await;
    let reply = api.client.get(&format!("/events/{}", Uuid::now_v7())).await.unwrap();
    reply.problem(404).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_event_id_is_stored_once_and_the_first_body_wins() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let kafka = world.kafka();
    let id = format!(r#""{}""#, Uuid::now_v7());
    let event = |user: &str, id: &str| {
        let user = format!(r#""{user}""#);
        let changes: &[_] = if id.is_empty() { &[] } else { &[("eventId", id)] };
        Record::of(sample::event(&[&[("userId", user.as_str())], changes].concat()))
    };
    kafka.write(&world.topic, Some(3), &[event("first", &id), event("second", &id)]).await;
    let users = async || -> anyhow::Result<Vec<String>> {
        Ok(api.client.list().await?.into_iter().map(|event| event.user_id).collect())
    };
    eventually("the first is listed", async || {
        ensure!(users().await? == ["first"]);
        Ok(())
    })
    .await;
    // Long after, from another partition and in the same one; a last event shows that they passed.
    for partition in [1, 3] {
        let records = [event("third", &id), event("last", "")];
        kafka.write(&world.topic, Some(partition), &records).await;
    }
    eventually("the duplicates have passed", async || {
        let users = users().await?;
        ensure!(users.iter().filter(|user| *user == "last").count() == 2, "{users:?}");
        ensure!(users.len() == 3 && users.contains(&"first".to_owned()), "{users:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_older_than_the_retention_is_recorded_but_not_listed() {
    let world = World::shared().with("EVENT_RETENTION", "1h");
    let (api, _worker) = world.start().await;
    let [(old, old_record), (new, new_record)] = [2, 0].map(|hours| {
        let timestamp = format!(r#""{}""#, rfc3339(Utc::now() - Duration::hours(hours)));
        let id = Uuid::now_v7().to_string();
        let changes = [("eventId", format!(r#""{id}""#)), ("timestamp", timestamp)];
        let value = sample::event(&changes.each_ref().map(|(name, value)| (*name, value.as_str())));
        (id, Record::of(value))
    });
    world.kafka().write(&world.topic, Some(0), &[old_record, new_record]).await;
    eventually("both are recorded", async || {
        for id in [&old, &new] {
            api.client.get(&format!("/events/{id}")).await?.ok()?;
        }
        Ok(())
    })
    .await;
    let listed = api.client.listed(1).await;
    assert_eq!(listed.iter().map(|event| &event.event_id).collect::<Vec<_>>(), [&new]);
}

/// A log may be older than what lists show, and is read anew when a Redis has lost everything.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_on_the_topic_is_not_stored() {
    let world = World::shared();
    let (api, worker) = world.start().await;
    let old = Utc::now() - Duration::days(30);
    let (id, at) = (Uuid::now_v7(), rfc3339(old));
    let changes = [("eventId", &*format!(r#""{id}""#)), ("timestamp", &*format!(r#""{at}""#))];
    let expired = Record { timestamp: Some(old.timestamp_millis()), ..Record::of(sample::event(&changes)) };
    world.kafka().write(&world.topic, Some(0), &[expired, Record::of(sample::event(&[]))]).await;
    api.client.listed(1).await;
    let status = api.client.get(&format!("/events/{id}")).await.unwrap().status;
    assert_ne!(status, 200, "what has expired when it is read is not stored");
    let ready = worker.client.get("/readyz").await.unwrap().parse::<serde_json::Value>().unwrap();
    assert_eq!(ready["expired"], 1, "{ready}");
}
