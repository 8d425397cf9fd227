//! Each reply of each route, by `warp::test`.

use std::sync::Arc;
use std::time::Duration;

use api::App;
use bytes::Bytes;
use common::event::UserEvent;
use common::kafka::{PublishError, Published, Publisher};
use common::testing::FakePublisher;
use futures::future::pending;
use serde_json::{Value, json};
use warp::http::Response;
use warp::test::RequestBuilder;

use crate::support::{EVENT, app, problem, routes};

type Reply = Response<Bytes>;

async fn send(app: &Arc<App>, request: RequestBuilder) -> Reply {
    request.reply(&routes(app)).await
}

fn request(method: &str, path: &str) -> RequestBuilder {
    warp::test::request().method(method).path(path)
}

fn post(body: impl AsRef<[u8]>) -> RequestBuilder {
    request("POST", "/events/generate").body(body)
}

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// The problem in a reply of this status.
fn refusal(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status(), status, "{reply:?}");
    problem(status, header(reply, "content-type"), reply.body())
}

/// Posts what is to be refused before anything is published.
async fn refused(request: RequestBuilder, status: u16) -> Value {
    let publisher = FakePublisher::default();
    let reply = send(&app(publisher.clone(), &[]), request).await;
    let problem = refusal(&reply, status);
    assert!(publisher.published().is_empty(), "nothing is published");
    problem
}

#[tokio::test]
async fn a_post_is_answered_with_the_event_in_the_very_bytes_that_were_published() {
    let publisher = FakePublisher::default();
    let app = app(publisher.clone(), &[]);
    let payload = "{ \"b\" : 1.0e+2,\n\"a\":[1E4, -0, 12345678901234567890123],\"é\":\"\\u00e9\" }";
    let body = format!(r#"{{"payload":{payload},"ignored":1,"userId":"käte \" 1","eventType":"PRODUCT_VIEW"}}"#);
    let reply = send(&app, post(body)).await;
    assert_eq!((reply.status().as_u16(), header(&reply, "content-type")), (201, "application/json"));

    let published = publisher.published();
    assert_eq!(published.len(), 1);
    let event: Value = serde_json::from_slice(&published[0]).unwrap();
    let id = event["eventId"].as_str().unwrap();
    let opening = format!(r#"{{"success":true,"message":"Event published successfully","eventId":"{id}","event":"#);
    assert_eq!(reply.body(), &[opening.as_bytes(), &published[0], b"}"].concat());
    assert_eq!(header(&reply, "location"), format!("/events/{id}"));
    let timestamp = event["timestamp"].as_str().unwrap();
    let five = format!(
        r#"{{"eventId":"{id}","userId":"käte \" 1","eventType":"PRODUCT_VIEW","timestamp":"{timestamp}","payload":{payload}}}"#
    );
    assert_eq!(published[0], five.as_bytes());
    assert!((id.len(), id.as_bytes()[14], timestamp.len()) == (36, b'7', 24), "{id} {timestamp}");
}

#[tokio::test]
async fn every_post_is_an_event_of_its_own_and_an_absent_payload_is_empty() {
    let publisher = FakePublisher::default();
    let app = app(publisher.clone(), &[]);
    for _ in 0..2 {
        assert_eq!(send(&app, post(EVENT)).await.status(), 201);
    }
    let events: Vec<Value> = publisher.published().iter().map(|json| serde_json::from_slice(json).unwrap()).collect();
    assert_ne!(events[0]["eventId"], events[1]["eventId"]);
    assert_eq!(events[0]["payload"], json!({}));
}

#[tokio::test]
async fn everything_that_is_wrong_with_an_event_is_said_at_once() {
    const USER: &str = "userId is required and must be a non-empty string";
    const TYPE: &str = "eventType is required and must be a string";
    const ONE_OF: &str = "eventType must be one of: LOGIN, LOGOUT, PRODUCT_VIEW";
    const PAYLOAD: &str = "payload must be a JSON object when provided";
    const OBJECT: &str = "Request body must be a JSON object";
    for (body, errors) in [
        ("", &[OBJECT][..]),
        ("not json", &[OBJECT]),
        ("[]", &[OBJECT]),
        ("null", &[OBJECT]),
        ("{}", &[USER, TYPE]),
        (r#"{"userId":7,"eventType":8,"payload":[]}"#, &[USER, TYPE, PAYLOAD]),
        (r#"{"userId":"  ","eventType":""}"#, &[USER, TYPE]),
        (r#"{"userId":"u","eventType":"login","payload":null}"#, &[ONE_OF, PAYLOAD]),
    ] {
        let problem = refused(post(body), 400).await;
        assert_eq!(problem["message"], "Invalid request payload", "{body}");
        assert_eq!(problem["errors"], json!(errors), "{body}");
        let details: Vec<&Value> = problem["violations"].as_array().unwrap().iter().map(|v| &v["detail"]).collect();
        assert_eq!(json!(details), json!(errors), "{body}");
    }
    let problem = refused(post(r#"{"eventType":"login"}"#), 400).await;
    let found = problem["violations"].as_array().unwrap().iter().map(|v| (&v["pointer"], &v["code"]));
    let expected = [(json!("/userId"), json!("required")), (json!("/eventType"), json!("enum"))];
    assert!(found.eq(expected.iter().map(|(pointer, code)| (pointer, code))), "{problem}");
}

#[tokio::test]
async fn json_and_bodies_that_do_not_say_what_they_are_are_taken_and_others_are_not() {
    let app = app(FakePublisher::default(), &[]);
    assert_eq!(send(&app, post(EVENT)).await.status(), 201);
    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.event+json"] {
        assert_eq!(send(&app, post(EVENT).header("content-type", kind)).await.status(), 201, "{kind}");
    }
    assert_eq!(send(&app, post(EVENT).header("content-encoding", "identity")).await.status(), 201);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let problem = refused(post(EVENT).header("content-type", kind), 415).await;
        assert!(problem["detail"].as_str().unwrap().contains("application/json"), "{problem}");
    }
    let problem = refused(post(EVENT).header("content-encoding", "compress"), 415).await;
    assert!(problem["detail"].as_str().unwrap().contains("gzip"), "{problem}");
}

#[tokio::test]
async fn a_body_up_to_the_limit_is_taken_and_a_larger_one_is_told_the_limit() {
    let body = |size: usize| format!("{EVENT}{}", " ".repeat(size - EVENT.len()));
    let app = app(FakePublisher::default(), &["--http-max-body", "2000"]);
    assert_eq!(send(&app, post(body(2000))).await.status(), 201);
    let reply = send(&app, post(body(2001))).await;
    let problem = refusal(&reply, 413);
    assert!(problem["detail"].as_str().unwrap().contains("2000 bytes"), "{problem}");
    // What else it sends would be taken for its next request.
    assert_eq!(header(&reply, "connection"), "close");
}

#[tokio::test]
async fn unknown_paths_are_404_and_other_methods_405_with_those_that_are_allowed() {
    for path in ["/assets", "/events", "/events/a/b", "/nope", "/health/x"] {
        refused(request("GET", path), 404).await;
        refused(request("POST", path).body(EVENT), 404).await;
    }
    let app = app(FakePublisher::default(), &[]);
    for (method, path, allowed) in [
        ("GET", "/events/generate", "POST"),
        ("HEAD", "/events/generate", "POST"),
        ("PUT", "/events/generate", "POST"),
        ("POST", "/events/processed", "GET, HEAD"),
        ("DELETE", "/events/some-id", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/readyz", "GET, HEAD"),
        ("PATCH", "/livez", "GET, HEAD"),
    ] {
        let reply = send(&app, request(method, path).body(EVENT)).await;
        refusal(&reply, 405);
        assert_eq!(header(&reply, "allow"), allowed, "{method} {path}");
    }
}

#[tokio::test]
async fn a_record_that_the_brokers_refuse_is_a_500_without_their_words() {
    let publisher = FakePublisher::failing(PublishError::Refused("internal words".into()));
    let reply = send(&app(publisher, &[]), post(EVENT)).await;
    let problem = refusal(&reply, 500);
    assert_eq!(problem["message"], "Failed to publish event");
    assert_eq!(problem.get("outcome"), None);
    assert!(!problem.to_string().contains("internal words"), "{problem}");
}

#[tokio::test]
async fn an_event_that_is_too_large_for_the_topic_is_a_413_that_names_its_limit() {
    for (limit, said) in [(Some(2_000), "max.message.bytes is 2000"), (None, "max.message.bytes")] {
        let publisher = FakePublisher::failing(PublishError::TooLarge { reason: "internal words".into(), limit });
        let app = app(publisher, &[]);
        let reply = send(&app, post(EVENT)).await;
        let problem = refusal(&reply, 413);
        assert_eq!(problem["message"], "Failed to publish event");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{problem}");
        assert!(!problem.to_string().contains("internal words"), "{problem}");
        let reply = send(&app, request("GET", "/metrics")).await;
        let metrics = String::from_utf8_lossy(reply.body()).into_owned();
        for counted in ["{outcome=\"too_large\"} 1\n", "{outcome=\"refused\"} 0\n"] {
            assert!(metrics.contains(counted), "somebody's alert must not depend on what clients send: {metrics}");
        }
    }
}

#[tokio::test]
async fn a_record_without_acknowledgement_is_a_503_that_says_where_it_may_be() {
    for (error, outcome) in [
        (PublishError::NotAccepted("internal words".into()), "not accepted"),
        (PublishError::Unknown("internal words".into()), "unknown"),
    ] {
        let reply = send(&app(FakePublisher::failing(error), &[]), post(EVENT)).await;
        let problem = refusal(&reply, 503);
        assert_eq!(problem["message"], "Failed to publish event");
        assert_eq!(problem["outcome"], outcome);
        assert_eq!(header(&reply, "retry-after"), "1");
        assert!(!problem.to_string().contains("internal words"), "{problem}");
    }
}

/// Never hears from a broker.
struct Silent;

impl Publisher for Silent {
    fn publish(&self, _: &UserEvent<'_>, _: &[u8]) -> Published {
        Box::pin(pending())
    }
}

#[tokio::test]
async fn a_post_is_answered_within_the_request_time_out_with_an_unknown_outcome() {
    let app = app(Silent, &["--kafka-producer-timeout-ms", "100", "--http-request-timeout", "200ms"]);
    // Without the setting it would be 10 s.
    let reply = tokio::time::timeout(Duration::from_secs(9), send(&app, post(EVENT))).await.unwrap();
    assert_eq!(refusal(&reply, 503)["outcome"], "unknown");
}

#[tokio::test]
async fn reads_are_503_while_the_store_is_away_and_posts_are_not() {
    let app = app(FakePublisher::default(), &[]);
    for path in ["/events/processed", "/events/processed?limit=10", "/events/some-id"] {
        let reply = send(&app, request("GET", path)).await;
        let problem = refusal(&reply, 503);
        assert_eq!(header(&reply, "retry-after"), "1", "{path}");
        assert_eq!(problem.get("outcome"), None, "{path}");
        assert!(!problem.to_string().contains("127.0.0.1"), "addresses are not shown: {problem}");
    }
    assert_eq!(send(&app, post(EVENT)).await.status(), 201);
}

#[tokio::test]
async fn examples_that_no_type_checks_are_what_is_answered() {
    let app = app(FakePublisher::default(), &[]);
    let reply = send(&app, request("GET", "/openapi.json")).await;
    let description: Value = serde_json::from_slice(reply.body()).unwrap();
    let checked = send(&app, request("POST", "/events/generate?validateOnly=true").body(EVENT)).await;
    let checked: Value = serde_json::from_slice(checked.body()).unwrap();
    for path in ["/events/generate", "/api/activities"] {
        let described = &description["paths"][path]["post"]["responses"]["200"]["content"]["application/json"];
        assert_eq!(described["example"], checked, "{path}");
    }
    let metrics = &description["paths"]["/metrics"]["get"]["responses"]["200"]["content"]["text/plain"]["example"];
    let name = metrics.as_str().unwrap().split(' ').nth(2).unwrap();
    assert!(include_str!("../../../docs/METRICS.md").contains(&format!("| `{name}` |")), "{name}");
}

#[tokio::test]
async fn half_of_the_connections_may_wait_for_events_and_a_post_that_finds_no_place_does_not_wait() {
    let app = app(FakePublisher::default(), &["--http-max-connections", "4"]);
    let _all = app.waits.try_acquire_many(2).unwrap();
    let reply = send(&app, request("GET", "/events/some-id?wait=1s")).await;
    assert_eq!(refusal(&reply, 429)["type"], "/docs/problems#too-many-waits");
    assert_eq!(header(&reply, "retry-after"), "1");
    let reply = send(&app, post(EVENT).header("prefer", "wait=30")).await;
    assert_eq!((reply.status().as_u16(), header(&reply, "preference-applied")), (201, ""));
    assert_eq!(serde_json::from_slice::<Value>(reply.body()).unwrap()["processed"], false);
}

#[tokio::test]
async fn parameters_of_the_list_that_are_wrong_are_named_before_the_store_is_asked() {
    for (query, part) in [
        ("limit=0", "from 1 to 1000"),
        ("limit=1001", "from 1 to 1000"),
        ("limit=5&limit=6", "at most once"),
        ("cursor=forged", "Link header"),
        ("userid=u", "userid"),
        ("raw=true", "text/csv"),
    ] {
        let problem = refused(request("GET", &format!("/events/processed?{query}")), 400).await;
        assert!(problem["detail"].as_str().unwrap().contains(part), "{query}: {problem}");
    }
}

#[tokio::test]
async fn an_api_is_ready_once_kafka_is_known_to_answer_and_until_it_drains() {
    let app = app(FakePublisher::default(), &[]);
    let status = async |path| send(&app, request("GET", path)).await.status().as_u16();
    assert_eq!([status("/livez").await, status("/readyz").await], [200, 503], "at first");
    app.checks.producer.up("fine");
    assert_eq!(status("/readyz").await, 200, "neither the store nor a worker is needed");
    app.checks.producer.down("gone");
    assert_eq!(status("/readyz").await, 503, "without Kafka");
    app.checks.producer.up("fine");
    app.checks.draining.cancel();
    assert_eq!([status("/livez").await, status("/readyz").await], [200, 503], "when draining");
}

#[tokio::test]
async fn health_names_each_part_and_is_ok_only_when_all_are() {
    let app = app(FakePublisher::default(), &[]);
    let parts = [("producer", &app.checks.producer), ("store", &app.checks.store), ("consumer", &app.checks.consumer)];
    parts.iter().for_each(|(_, check)| check.up("fine"));
    let health = async || {
        let reply = send(&app, request("GET", "/health")).await;
        (reply.status().as_u16(), serde_json::from_slice::<Value>(reply.body()).unwrap())
    };
    let (status, body) = health().await;
    assert_eq!((status, &body["status"]), (200, &json!("ok")));
    for (name, check) in parts {
        assert_eq!(body[name], "connected");
        check.down("the reason");
        let (status, body) = health().await;
        assert_eq!((status, &body["status"]), (503, &json!("degraded")));
        assert_eq!(body[name], "disconnected");
        assert_eq!(body["checks"][name]["reason"], "the reason");
        check.up("fine");
    }
}

#[tokio::test]
async fn a_key_that_is_none_is_refused_also_when_nothing_is_to_be_published() {
    let checked = request("POST", "/events/generate?validateOnly=true").body(EVENT).header("idempotency-key", "\"open");
    assert!(refused(checked, 400).await["detail"].as_str().unwrap().contains("Idempotency-Key"));
}
