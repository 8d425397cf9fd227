//! Requests meant to break a server: each a clear refusal, no panic, nothing published.

use std::time::Duration;

use e2e::{
    eventually, raw,
    sample::{nested, text},
    service::Service,
    world::World,
};

const LIMIT: usize = 256 * 1024;

/// An event's body with this text as its payload.
fn with_payload(payload: &str) -> Vec<u8> {
    format!(r#"{{"userId":"u","eventType":"LOGIN","payload":{payload}}}"#).into_bytes()
}

/// The same with one byte of a string replaced by `byte`.
fn with_byte_in_a_string(byte: u8) -> Vec<u8> {
    let body = with_payload(r#"{"text":"a#b"}"#);
    body.into_iter().map(|one| if one == b'#' { byte } else { one }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bodies_are_refused_and_nothing_is_published() {
    let world = World::shared();
    let mut api = world.start_api().await;
    let cases: [(&str, Vec<u8>); 14] = [
        ("10,000 brackets", "[".repeat(10_000).into()),
        ("10,000 pairs of brackets", format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).into()),
        ("10,000 opened objects", r#"{"a":"#.repeat(10_000).into()),
        ("a payload of depth 10,000", with_payload(&nested(10_000))),
        ("a payload of depth 129", with_payload(&nested(129))),
        (
            "an ignored member of depth 10,000",
            format!(r#"{{"userId":"u","eventType":"LOGIN","other":{}}}"#, nested(10_000)).into(),
        ),
        ("invalid UTF-8 in a string", with_byte_in_a_string(0xff)),
        ("invalid UTF-8 outside", b"\xff\xfe{}".to_vec()),
        ("a NUL byte in a string", with_byte_in_a_string(0)),
        ("NUL bytes", vec![0; 100]),
        ("a second userId", br#"{"userId":"a","userId":"b","eventType":"LOGIN"}"#.to_vec()),
        ("a second payload", br#"{"userId":"a","eventType":"LOGIN","payload":{},"payload":{}}"#.to_vec()),
        ("half a surrogate pair", br#"{"userId":"\ud83d","eventType":"LOGIN"}"#.to_vec()),
        ("a userId of 257 bytes", format!(r#"{{"userId":{},"eventType":"LOGIN"}}"#, text(257)).into()),
    ];
    for (what, body) in cases {
        let reply = api.client.publish(body).await.unwrap();
        let problem = reply.problem(400).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(problem["message"], "Invalid request payload", "{what}");
        assert!(problem["errors"].as_array().is_some_and(|all| !all.is_empty()), "{what}: {problem}");
    }
    let large = |length| with_payload(&format!(r#"{{"text":{}}}"#, text(length)));
    for length in [LIMIT, 1 << 20] {
        let problem = api.client.publish(large(length)).await.unwrap().problem(413).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("256 KiB") || detail.contains(&LIMIT.to_string()), "{detail}");
    }
    // The limit holds for a body that does not say its length, too.
    let chunks = futures::stream::iter((0..64).map(|_| anyhow::Ok(vec![b' '; 8192])));
    let chunked = reqwest::Body::wrap_stream(chunks);
    api.client.publish(chunked).await.unwrap().problem(413).unwrap();
    let ends = world.kafka().end_offsets(&world.topic).unwrap();
    assert_eq!(ends.values().sum::<i64>(), 0, "nothing was published");

    // Just inside the limits.
    for body in [with_payload(&nested(128)), large(LIMIT - 64)] {
        takes(&api, body).await;
    }
    survived(&mut api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_larger_than_the_topic_takes_is_told_the_topics_limit() {
    let world = World::shared().with("HTTP_MAX_BODY", "2MiB");
    let api = world.start_api().await;
    let large = format!(r#"{{"userId":"u","eventType":"LOGIN","payload":{{"text":"{}"}}}}"#, "x".repeat(1_500_000));
    let problem = api.client.publish(large).await.unwrap().problem(413).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("max.message.bytes is 1048588"), "{problem}");
    assert!(!api.process.output().contains("ERROR"), "a client's mistake is nobody's alarm: {}", api.process.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_header_is_refused() {
    let mut api = World::shared().start_api().await;
    let request = |length| {
        format!("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Huge: {}\r\n\r\n", "x".repeat(length))
    };
    let exchange = async |length| raw::exchange(api.port, request(length).as_bytes(), Duration::from_secs(30)).await;
    let reply = exchange(40 * 1024).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply:?}");
    assert!(reply.contains("application/problem+json"), "{reply:?}");
    let reply = exchange(64 * 1024).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply:?}");
    // So much that the server may well hang up on us before we can read its answer.
    let reply = exchange(4 << 20).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431 "), "{reply:?}");
    survived(&mut api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_refused_after_a_while() {
    let mut api = World::shared().with("HTTP_READ_TIMEOUT", "2s").start_api().await;
    let request = "POST /events/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Content-Length: 100\r\nConnection: close\r\n\r\n{\"userId\":";
    let reply = raw::exchange(api.port, request.as_bytes(), Duration::from_secs(45)).await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply:?}");
    assert!(reply.to_lowercase().contains("content-type: application/problem+json"), "{reply}");
    assert!(reply.contains(r#""success":false"#), "{reply}");
    survived(&mut api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_header_does_not_hold_a_connection_for_ever() {
    let mut api = World::shared().with("HTTP_IDLE_TIMEOUT", "3s").start_api().await;
    let exchange = raw::exchange(api.port, b"GET /livez HTTP/1.1\r\nHost:", e2e::PATIENCE);
    let closed = tokio::time::timeout(Duration::from_secs(30), exchange).await;
    assert!(closed.is_ok(), "the server closes the connection");
    survived(&mut api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_refused() {
    let mut api = World::shared().start_api().await;
    for nonsense in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"HELO there\r\n\r\n", b"\0\0\0\0\r\n\r\n"] {
        let exchange = raw::exchange(api.port, nonsense, e2e::PATIENCE);
        let reply = tokio::time::timeout(Duration::from_secs(30), exchange).await.expect("the server hangs up");
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 400 "), "{nonsense:?}: {reply:?}");
    }
    survived(&mut api).await;
}

/// Waits until the API has taken an event: brokers that are busy may acknowledge one too late.
async fn takes(api: &Service, body: Vec<u8>) {
    eventually("the event is taken", async || api.client.publish(body.clone()).await?.with_status(201)).await;
}

/// The process runs, takes events, and has not panicked.
async fn survived(api: &mut Service) {
    api.process.still_runs().unwrap();
    takes(api, br#"{"userId":"u","eventType":"LOGIN"}"#.to_vec()).await;
    let said = api.process.output();
    assert!(!said.contains("panicked"), "{said}");
}
