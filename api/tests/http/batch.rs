//! `POST /events/batch`: a result for each item, whatever its neighbours are.

use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use common::kafka::PublishError;
use common::testing::FakePublisher;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use warp::http::Response;
use warp::test::RequestBuilder;

use crate::support::{EVENT, app, problem, routes};

type Reply = Response<bytes::Bytes>;

fn batch(body: impl AsRef<[u8]>) -> RequestBuilder {
    warp::test::request().method("POST").path("/events/batch").body(body)
}

fn ndjson(lines: &[&str]) -> RequestBuilder {
    batch(lines.join("\n")).header("content-type", "application/x-ndjson")
}

/// The reply, and how many events were published.
async fn sent(request: RequestBuilder, flags: &[&str]) -> (Reply, usize) {
    let publisher = FakePublisher::default();
    let reply = request.reply(&routes(&app(publisher.clone(), flags))).await;
    (reply, publisher.published().len())
}

fn body(reply: &Reply) -> Value {
    assert_eq!(reply.status(), 200, "{reply:?}");
    serde_json::from_slice(reply.body()).unwrap()
}

fn statuses(summary: &Value) -> Vec<u64> {
    let results = summary["results"].as_array().unwrap();
    assert!(results.iter().enumerate().all(|(nth, result)| result["index"] == nth), "in order: {summary}");
    results.iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

fn refused(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status(), status, "{reply:?}");
    problem(status, reply.headers()["content-type"].to_str().unwrap(), reply.body())
}

#[tokio::test]
async fn good_items_are_published_whatever_their_neighbours_are() {
    let bad = r#"{"userId":" ","eventType":"NOPE"}"#;
    for request in [batch(format!("[{EVENT},{bad},7,{EVENT}]")), ndjson(&[EVENT, "", bad, "7", EVENT, "  "])] {
        let (reply, published) = sent(request, &[]).await;
        let summary = body(&reply);
        assert_eq!((statuses(&summary), published), (vec![201, 400, 400, 201], 2));
        assert_eq!((summary["accepted"].as_u64(), summary["rejected"].as_u64()), (Some(2), Some(2)));
        assert_eq!(summary["results"][1]["violations"][0]["pointer"], "/userId", "{summary}");
        assert_eq!(summary["results"][1]["errors"].as_array().unwrap().len(), 2);
        assert_ne!(summary["results"][0]["eventId"], summary["results"][3]["eventId"]);
    }
}

#[tokio::test]
async fn a_batch_that_is_no_batch_publishes_nothing() {
    let cut = format!("[{EVENT},{EVENT},{{\"userId\":");
    for (text, kind) in
        [(cut.as_str(), "invalid-payload"), ("{}", "invalid-payload"), ("[]", "empty-batch"), ("", "invalid-payload")]
    {
        let (reply, published) = sent(batch(text), &[]).await;
        let problem = refused(&reply, 400);
        assert_eq!(problem["type"], format!("/docs/problems#{kind}"), "{text}");
        assert_eq!(published, 0);
    }
    let (reply, _) = sent(ndjson(&["", " "]), &[]).await;
    assert_eq!(refused(&reply, 400)["type"], "/docs/problems#empty-batch");
    let (reply, _) = sent(batch(EVENT).header("content-type", "text/csv"), &[]).await;
    assert!(refused(&reply, 415)["detail"].as_str().unwrap().contains("application/x-ndjson"));
}

#[tokio::test]
async fn limits_name_themselves() {
    let three = format!("[{EVENT},{EVENT},{EVENT}]");
    let (reply, published) = sent(batch(&three), &["--http-max-batch-items", "2"]).await;
    assert!(refused(&reply, 413)["detail"].as_str().unwrap().contains("limit of 2 items"));
    assert_eq!(published, 0, "an array is read whole first");
    // What came before the limit is published and reported, and the limit is the last result.
    let (reply, published) = sent(ndjson(&[EVENT, EVENT, EVENT, EVENT]), &["--http-max-batch-items", "2"]).await;
    let summary = body(&reply);
    assert_eq!((statuses(&summary), published), (vec![201, 201, 413], 2), "{summary}");
    assert!(summary["results"][2]["errors"][0].as_str().unwrap().contains("limit of 2 items"));
    assert_eq!(reply.headers()["connection"], "close", "the rest is not taken for the next request");

    let large = "x".repeat(2048);
    let (reply, _) = sent(batch(format!("[\"{large}\"]")), &["--http-max-batch-body", "1KiB"]).await;
    assert!(refused(&reply, 413)["detail"].as_str().unwrap().contains("1024 bytes"));
    let long = format!(r#"{{"userId":"u","eventType":"LOGIN","payload":{{"a":"{large}"}}}}"#);
    for request in [ndjson(&[EVENT, &long, EVENT]), batch(format!("[{EVENT},{long},{EVENT}]"))] {
        let (reply, published) = sent(request, &["--http-max-body", "1KiB"]).await;
        assert_eq!((statuses(&body(&reply)), published), (vec![201, 413, 201], 2), "an item's own limit");
    }
}

#[tokio::test]
async fn results_come_as_ndjson_for_who_asks() {
    let (reply, _) = sent(ndjson(&[EVENT, "7"]).header("accept", "application/x-ndjson"), &[]).await;
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let lines: Vec<Value> = reply
        .body()
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines.iter().map(|line| line["status"].as_u64().unwrap()).collect::<Vec<_>>(), [201, 400]);
}

#[tokio::test]
async fn what_the_brokers_say_stands_with_each_item() {
    let failing = FakePublisher::failing(PublishError::Unknown("late".into()));
    let reply = batch(format!("[{EVENT},7]")).reply(&routes(&app(failing, &[]))).await;
    let summary = body(&reply);
    assert_eq!(statuses(&summary), [503, 400]);
    assert_eq!((&summary["results"][0]["outcome"], &summary["accepted"]), (&json!("unknown"), &json!(0)));
}

#[tokio::test]
async fn a_key_gives_each_item_an_id_of_its_own_that_a_retry_gives_again() {
    let other = r#"{"userId":"u","eventType":"LOGOUT"}"#;
    let ids = async |text: String| {
        let (reply, _) = sent(batch(text).header("idempotency-key", "k"), &[]).await;
        let summary = body(&reply);
        let ids =
            summary["results"].as_array().unwrap().iter().map(|result| result["eventId"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    let first = ids(format!("[{EVENT},{EVENT},{other}]")).await;
    assert!(first[0] != first[1] && first[1] != first[2], "equal items are different events: {first:?}");
    assert_eq!(ids(format!("[{EVENT},{EVENT},{other}]")).await, first, "a retry");
    assert_eq!(ids(format!("[{other},{EVENT}]")).await, [first[2].clone(), first[0].clone()], "whatever its place");
}

#[tokio::test]
async fn validation_only_publishes_nothing() {
    let text = format!("[{EVENT},7]");
    let (reply, published) = sent(batch(text).path("/events/batch?validateOnly=true"), &[]).await;
    assert_eq!((statuses(&body(&reply)), published), (vec![200, 400], 0));
    let single = warp::test::request().method("POST").path("/events/generate?validateOnly=true").body(EVENT);
    let (reply, published) = sent(single, &[]).await;
    assert_eq!((body(&reply)["valid"].as_bool(), published), (Some(true), 0));
    let (reply, _) = sent(batch("[]").path("/events/batch?validateOnly=maybe"), &[]).await;
    assert_eq!(reply.status(), 400);
}

async fn packed(coding: &str, text: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let read = match coding {
        "gzip" => GzipEncoder::new(text).read_to_end(&mut packed).await,
        "zstd" => ZstdEncoder::new(text).read_to_end(&mut packed).await,
        _ => BrotliEncoder::new(text).read_to_end(&mut packed).await,
    };
    read.unwrap();
    packed
}

#[tokio::test]
async fn bodies_come_in_each_coding_and_in_several_parts() {
    for (coding, parts_are_allowed) in [("gzip", true), ("zstd", true), ("br", false)] {
        let first = packed(coding, format!("{EVENT}\n").as_bytes()).await;
        let send = |body: Vec<u8>| {
            batch(body).header("content-type", "application/x-ndjson").header("content-encoding", coding)
        };
        let (reply, published) = sent(send(first.clone()), &[]).await;
        assert_eq!((statuses(&body(&reply)), published), (vec![201], 1), "{coding}");
        if parts_are_allowed {
            let (reply, published) = sent(send([&first[..], &first].concat()), &[]).await;
            assert_eq!((statuses(&body(&reply)), published), (vec![201, 201], 2), "{coding}: nothing is left out");
            let (reply, published) = sent(send([&first[..], b"no more of it"].concat()), &[]).await;
            assert_eq!((statuses(&body(&reply)), published), (vec![201, 400], 1), "{coding}: what follows is not ours");
        }
    }
}

#[tokio::test]
async fn packed_bodies_are_unpacked_within_their_limits() {
    let text = format!("[{EVENT},{EVENT}]");
    let gzip = async |text: &[u8]| batch(packed("gzip", text).await).header("content-encoding", "gzip");
    let (reply, published) = sent(gzip(text.as_bytes()).await, &[]).await;
    assert_eq!((statuses(&body(&reply)), published), (vec![201, 201], 2));

    let (reply, _) = sent(batch(&text).header("content-encoding", "gzip"), &[]).await;
    assert_eq!(refused(&reply, 400)["type"], "/docs/problems#bad-content-encoding");
    let (reply, _) = sent(batch(&text).header("content-encoding", "compress"), &[]).await;
    assert!(refused(&reply, 415)["detail"].as_str().unwrap().contains("gzip, zstd or br"));
    assert_eq!(reply.headers()["accept-encoding"], "gzip, zstd, br");

    // A megabyte of blanks packs into a kilobyte.
    let bomb = vec![b' '; 100 << 20];
    let (reply, _) = sent(gzip(&bomb).await, &[]).await;
    assert_eq!(refused(&reply, 413)["type"], "/docs/problems#body-too-large");
    let (reply, _) = sent(gzip(&bomb[..4 << 20]).await, &[]).await;
    assert_eq!(refused(&reply, 413)["type"], "/docs/problems#ratio-too-large");
    let (reply, _) = sent(gzip(&bomb[..1 << 20]).await.path("/events/generate"), &[]).await;
    assert!(refused(&reply, 413)["detail"].as_str().unwrap().contains("262144 bytes"), "the unpacked size counts");
}

#[tokio::test]
async fn ten_thousand_bad_items_have_a_bounded_reply() {
    /// Bytes of a result, as README.md has it.
    const MOST: usize = 1536;
    // All that can be wrong, and the longest that is said of what the client has written itself.
    let (wrong, name) = (r#"{"userId":"","eventType":"","payload":[]}"#, r"\u0001".repeat(64));
    let twice = format!(r#"{{"{name}":1,"{name}":1}}"#);
    for item in [wrong, "7", &twice] {
        let (reply, _) = sent(batch(format!("[{}]", vec![item; 10_000].join(","))), &[]).await;
        assert_eq!(body(&reply)["rejected"], 10_000);
        let each = reply.body().len() / 10_000;
        assert!(each < MOST, "{each} bytes for an item");
        let (streamed, _) = sent(ndjson(&[item; 10_000]).header("accept", "application/x-ndjson"), &[]).await;
        assert!(streamed.body().len() <= reply.body().len(), "{} bytes", streamed.body().len());
    }
}
