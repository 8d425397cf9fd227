//! What a client is told about a body that is not an event: everything, at once, word for word.

use e2e::{client::Reply, world::World};

const OBJECT: &str = "Request body must be a JSON object";
const USER: &str = "userId is required and must be a non-empty string";
const TYPE: &str = "eventType is required and must be a string";
const KNOWN_TYPE: &str = "eventType must be one of: LOGIN, LOGOUT, PRODUCT_VIEW";
const PAYLOAD: &str = "payload must be a JSON object when provided";

/// Bodies and exactly the messages each one gets.
const CASES: [(&str, &[&str]); 29] = [
    ("", &[OBJECT]),
    ("not json", &[OBJECT]),
    (r#"{"userId":"u","eventType":"LOGIN""#, &[OBJECT]),
    (r#"{"userId":"u","eventType":"LOGIN"} x"#, &[OBJECT]),
    (r#"{"userId":"u","eventType":"LOGIN",}"#, &[OBJECT]),
    ("[]", &[OBJECT]),
    (r#"[{"userId":"u","eventType":"LOGIN"}]"#, &[OBJECT]),
    (r#""text""#, &[OBJECT]),
    ("null", &[OBJECT]),
    ("42", &[OBJECT]),
    ("{}", &[USER, TYPE]),
    (r#"{"userId":"","eventType":""}"#, &[USER, TYPE]),
    (r#"{"userId":null,"eventType":null,"payload":null}"#, &[USER, TYPE, PAYLOAD]),
    (r#"{"userId":1,"eventType":2,"payload":3}"#, &[USER, TYPE, PAYLOAD]),
    (r#"{"userId":{},"eventType":[],"payload":[]}"#, &[USER, TYPE, PAYLOAD]),
    (r#"{"userId":" \t\n ","eventType":"LOGIN"}"#, &[USER]),
    (r#"{"eventType":"LOGIN"}"#, &[USER]),
    (r#"{"userid":"u","eventType":"LOGIN"}"#, &[USER]),
    (r#"{"userId":"u"}"#, &[TYPE]),
    (r#"{"userId":"u","eventType":true}"#, &[TYPE]),
    (r#"{"userId":"u","eventType":"SIGNUP"}"#, &[KNOWN_TYPE]),
    (r#"{"userId":"u","eventType":"login"}"#, &[KNOWN_TYPE]),
    (r#"{"userId":"u","eventType":" LOGIN"}"#, &[KNOWN_TYPE]),
    (r#"{"userId":"","eventType":"SIGNUP","payload":"x"}"#, &[USER, KNOWN_TYPE, PAYLOAD]),
    (r#"{"userId":"u","eventType":"LOGIN","payload":null}"#, &[PAYLOAD]),
    (r#"{"userId":"u","eventType":"LOGIN","payload":[]}"#, &[PAYLOAD]),
    (r#"{"userId":"u","eventType":"LOGIN","payload":"{}"}"#, &[PAYLOAD]),
    (r#"{"userId":"u","eventType":"LOGIN","payload":1}"#, &[PAYLOAD]),
    (r#"{"userId":"u","eventType":"LOGIN","payload":false}"#, &[PAYLOAD]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_body_is_named_at_once_and_nothing_is_published() {
    let world = World::shared();
    let api = world.start_api().await;
    for (body, expected) in CASES {
        let reply = api.client.publish(body).await.unwrap();
        let problem = reply.problem(400).unwrap_or_else(|error| panic!("{body}: {error:#}"));
        assert_eq!(problem["message"], "Invalid request payload", "{body}");
        assert_eq!(problem["errors"], serde_json::json!(expected), "{body}");
        let violations = problem["violations"].as_array().expect("violations");
        assert_eq!(violations.len(), expected.len(), "{body}: {violations:?}");
        for (violation, message) in violations.iter().zip(expected) {
            assert_eq!(violation["detail"], *message, "{body}");
            assert_eq!(violation["pointer"], pointer_of(message), "{body}");
            assert!(violation["code"].as_str().is_some_and(|code| !code.is_empty()), "{body}");
        }
    }
    let ends = world.kafka().end_offsets(&world.topic).unwrap();
    assert_eq!(ends.values().sum::<i64>(), 0);
}

/// The JSON pointer (RFC 6901) to what a message is about.
fn pointer_of(message: &str) -> String {
    match message.split(' ').next() {
        Some(field) if message != OBJECT => format!("/{field}"),
        _ => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_type_or_encoding_is_refused() {
    let api = World::shared().start_api().await;
    let body = r#"{"userId":"u","eventType":"LOGIN"}"#;
    let headers = [
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-type", "application/xml"),
        ("content-type", "nonsense"),
        ("content-encoding", "compress"),
        ("content-encoding", "rot13"),
    ];
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (name, value) in headers {
        let mut request = api.client.publication(body).build().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        let request = reqwest::RequestBuilder::from_parts(http.clone(), request);
        let reply = Reply::of(request).await.unwrap();
        reply.problem(415).unwrap_or_else(|error| panic!("{name}: {value}: {error:#}"));
    }
}
