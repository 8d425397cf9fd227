//! `POST /events/batch`: a result for each item, whatever its neighbours are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_compression::Level;
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use common::event::{EventTypes, Timestamp, UserEvent};
use common::kafka::{PublishError, Published, Publisher};
use common::store::score_of;
use common::testing::FakePublisher;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
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
async fn a_batch_ends_where_its_results_have_no_room() {
    let limits = ["--http-max-body", "32KiB", "--http-max-batch-body", "32KiB", "--http-body-memory", "1MiB"];
    let mut lines = vec!["{}"; 9999];
    lines[0] = EVENT;
    lines.push(EVENT);
    for request in [ndjson(&lines), batch(format!("[{}]", lines.join(",")))] {
        let (reply, published) = sent(request, &limits).await;
        let summary = body(&reply);
        let (statuses, results) = (statuses(&summary), summary["results"].as_array().unwrap());
        let (last, before) = statuses.split_last().unwrap();
        assert_eq!((before[0], *last, published), (201, 503, 1), "what is behind is not published");
        assert!((1000..9999).contains(&before.len()) && before[1..].iter().all(|status| *status == 400));
        let end = &results[before.len()];
        assert!(end["errors"][0].as_str().unwrap().contains("HTTP_BODY_MEMORY"), "{end}");
        assert_eq!(end["outcome"], "not accepted");
        let said_why = |at: usize| results[at].get("errors").is_some();
        assert!(said_why(1) && !said_why(before.len() - 1), "the results of what was on its way are short");
        assert_eq!(reply.headers()["connection"], "close");
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

async fn ids_of_keyed(text: String) -> Vec<String> {
    let (reply, _) = sent(batch(text).header("idempotency-key", "k"), &[]).await;
    let summary = body(&reply);
    let results = summary["results"].as_array().unwrap();
    results.iter().map(|result| result["eventId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_key_gives_each_item_an_id_of_its_own_that_a_retry_gives_again() {
    let other = r#"{"userId":"u","eventType":"LOGOUT"}"#;
    let first = ids_of_keyed(format!("[{EVENT},{EVENT},{other}]")).await;
    assert!(first[0] != first[1] && first[1] != first[2], "equal items are different events: {first:?}");
    assert!(first.iter().all(|id| id.as_bytes()[14] == b'8'), "made of a digest: {first:?}");
    assert_eq!(ids_of_keyed(format!("[{EVENT},{EVENT},{other}]")).await, first, "a retry");
    let of_a_part = ids_of_keyed(format!("[{other},{EVENT}]")).await;
    assert_eq!(of_a_part, [first[2].clone(), first[0].clone()], "whatever its place");
}

#[tokio::test]
async fn an_item_that_is_only_printed_otherwise_is_the_same_event() {
    let items = [
        r#"{"userId":"u","eventType":"LOGIN","payload":{"a":1,"b":[{"d":"é","c":1e400}]}}"#,
        r#"{ "payload": {"b":[{"c":1e400,"\u0064":"\u00e9"} ],"a":1}, "sentAt":7,"eventType":"LOGIN", "userId":"\u0075"}"#,
    ];
    let [first, second] = items.map(|item| format!("[{item}]"));
    assert_eq!(ids_of_keyed(first.clone()).await, ids_of_keyed(second).await);
    // And where both come in one batch, there are two.
    let both = ids_of_keyed(format!("[{},{}]", items[0], items[1])).await;
    assert!(both[0] != both[1]);
    assert_eq!(ids_of_keyed(format!("[{},{}]", items[1], items[0])).await, both);
    let others = ["1e401", "1e0400", "10000"].map(|number| first.replace("1e400", number));
    for other in others {
        assert_ne!(ids_of_keyed(other.clone()).await, [both[0].clone()], "{other}: numbers are not rounded");
    }
}

/// Where the store puts each published event.
fn scores(publisher: &FakePublisher) -> Vec<i64> {
    let types = EventTypes::default();
    let score = |record: &Vec<u8>| {
        let event = UserEvent::from_record(record, &types, Timestamp::now()).unwrap();
        score_of(event.timestamp, event.event_id.as_str())
    };
    publisher.published().iter().map(score).collect()
}

#[tokio::test]
async fn items_with_a_key_keep_their_order_however_many_come_within_a_millisecond() {
    let item = |nth: usize| format!(r#"{{"userId":"u","eventType":"LOGIN","payload":{{"n":{nth}}}}}"#);
    let items: Vec<String> = (0..5_000).map(item).collect();
    let array = batch(format!("[{}]", items.join(",")));
    let lines = batch(items.join("\n")).header("content-type", "application/x-ndjson");
    for request in [array, lines] {
        let publisher = FakePublisher::default();
        let request = request.header("idempotency-key", "k");
        assert_eq!(request.reply(&routes(&app(publisher.clone(), &[]))).await.status(), 200);
        let scores = scores(&publisher);
        assert_eq!(scores.len(), 5_000);
        assert!(scores.is_sorted_by(|one, next| one < next));
        let millis = |score: &i64| score / 1024;
        assert!(scores.windows(2).any(|pair| millis(&pair[0]) == millis(&pair[1])), "some come in one millisecond");
    }
}

#[tokio::test]
async fn single_events_with_a_key_keep_their_order_too() {
    let publisher = FakePublisher::default();
    let routes = crate::support::routes(&app(publisher.clone(), &[]));
    for nth in 0..50 {
        let post = warp::test::request().method("POST").path("/events/generate").body(EVENT);
        let reply = post.header("idempotency-key", format!("k{nth}")).reply(&routes).await;
        let reply: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(reply["event"]["timestamp"].as_str().unwrap().len(), "2026-02-17T10:00:00.000Z".len(), "{reply}");
    }
    let scores = scores(&publisher);
    assert!(scores.is_sorted_by(|one, next| one < next), "{scores:?}");
}

/// A publisher whose answers wait at a gate, and which has room for so many records while it is closed.
#[derive(Clone)]
struct Gated {
    inner: FakePublisher,
    gate: watch::Sender<bool>,
    room: usize,
}

impl Gated {
    fn new(room: usize) -> Self {
        Self { inner: FakePublisher::default(), gate: watch::Sender::new(false), room }
    }

    /// Waits until it has been given so many events.
    async fn has(&self, count: usize) {
        let all = async {
            while self.inner.published().len() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_mins(1), all).await;
        assert!(in_time.is_ok(), "{} of {count}", self.inner.published().len());
    }
}

impl Publisher for Gated {
    fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published {
        let (answer, mut gate) = (self.inner.publish(event, json), self.gate.subscribe());
        Box::pin(async move {
            gate.wait_for(|open| *open).await.unwrap();
            answer.await
        })
    }

    fn has_room(&self, _: usize) -> bool {
        *self.gate.borrow() || self.inner.published().len() < self.room
    }
}

#[tokio::test]
async fn what_was_read_is_published_also_when_the_client_has_gone() {
    const ALL: usize = 2_500;
    for form in ["application/json", "application/x-ndjson"] {
        let publisher = Gated::new(usize::MAX);
        let routes = crate::support::routes(&app(publisher.clone(), &["--http-request-timeout", "1h"]));
        let request = ndjson(&[EVENT; ALL]).header("accept", form);
        let client = tokio::spawn(async move { request.reply(&routes).await });
        // As many as may wait for the brokers; the others are still to come.
        publisher.has(1_000).await;
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        publisher.gate.send_replace(true);
        publisher.has(ALL).await;
    }
}

#[tokio::test]
async fn a_batch_waits_for_room_instead_of_being_refused() {
    let publisher = Gated::new(2);
    let routes = crate::support::routes(&app(publisher.clone(), &[]));
    let request = ndjson(&[EVENT; 250]);
    let client = tokio::spawn(async move { request.reply(&routes).await });
    publisher.has(2).await;
    publisher.gate.send_replace(true);
    let summary = body(&client.await.unwrap());
    assert_eq!(summary["accepted"], 250, "{summary}");
}

#[tokio::test]
async fn a_batch_for_which_there_never_is_room_waits_once_and_not_with_each_hundred_of_items() {
    const ALL: usize = 8_000;
    /// A second for each hundred would be longer.
    const HANGS: Duration = Duration::from_secs(40);
    let never = Never(FakePublisher::failing(PublishError::NotAccepted("KAFKA_QUEUE_KBYTES".into())));
    let flags = ["--http-request-timeout", "1s", "--kafka-producer-timeout-ms", "500"];
    let routes = routes(&app(never, &flags));
    let reply = tokio::time::timeout(HANGS, ndjson(&[EVENT; ALL]).reply(&routes)).await.unwrap();
    let summary = body(&reply);
    assert_eq!(summary["rejected"], ALL);
    assert!(summary["results"].as_array().unwrap().iter().all(|result| result["outcome"] == "not accepted"));
}

/// Never has room.
struct Never(FakePublisher);

impl Publisher for Never {
    fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published {
        self.0.publish(event, json)
    }

    fn has_room(&self, _: usize) -> bool {
        false
    }
}

#[tokio::test]
async fn a_large_batch_leaves_its_thread_to_others_in_between() {
    let items = vec![EVENT; 10_000];
    for request in [batch(format!("[{}]", items.join(","))), ndjson(&items)] {
        let routes = crate::support::routes(&app(FakePublisher::default(), &[]));
        let request = request.path("/events/batch?validateOnly=true");
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(body(&request.reply(&routes).await)["accepted"], 10_000);
        other.abort();
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns >= 100, "{turns}: at least once for each hundred of items");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_head_is_said_before_the_body_is_looked_at() {
    for path in ["/events/generate", "/events/batch"] {
        let post = || warp::test::request().method("POST").path(path).body("no event");
        let (reply, _) = sent(post().path(&format!("{path}?validateOnly=maybe")), &[]).await;
        assert_eq!(refused(&reply, 400)["type"], "/docs/problems#invalid-parameter");
        let (reply, _) = sent(post().header("idempotency-key", ""), &[]).await;
        assert_eq!(refused(&reply, 400)["type"], "/docs/problems#invalid-header");
    }
}

#[tokio::test]
async fn ndjson_has_many_names_and_is_recognised_under_a_wrong_one() {
    for name in ["x-ndjson", "ndjson", "jsonl", "jsonlines", "json-lines"].map(|name| format!("application/{name}")) {
        let (reply, published) = sent(batch([EVENT, EVENT].join("\n")).header("content-type", name), &[]).await;
        assert_eq!((statuses(&body(&reply)), published), (vec![201, 201], 2));
    }
    for name in ["text/ndjson", "TEXT/x-ndjson; charset=UTF-8"] {
        let (reply, published) = sent(batch([EVENT, EVENT].join("\n")).header("content-type", name), &[]).await;
        assert_eq!((statuses(&body(&reply)), published), (vec![201, 201], 2));
    }
    let (reply, published) =
        sent(batch([EVENT, EVENT].join("\n")).header("content-type", "application/json"), &[]).await;
    let detail = refused(&reply, 400)["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("this looks like NDJSON: send application/x-ndjson"), "{detail}");
    assert_eq!(published, 0);
    let (reply, _) = sent(batch(EVENT), &[]).await;
    let detail = refused(&reply, 400)["detail"].as_str().unwrap().to_owned();
    assert!(!detail.contains("NDJSON"), "one object may as well be a single event: {detail}");
}

#[tokio::test]
async fn another_charset_than_utf_8_is_refused_by_name() {
    for (kind, status) in [
        ("application/json; charset=utf-8", 201),
        ("application/json;charset=\"UTF-8\"", 201),
        ("application/json; a=\"; charset=latin1\"; charset=US-ASCII", 201),
        ("application/json; charset=iso-8859-1", 415),
        ("application/json; CHARSET=\"UTF-16\"", 415),
    ] {
        let post = warp::test::request().method("POST").path("/events/generate").body(EVENT);
        let (reply, _) = sent(post.header("content-type", kind), &[]).await;
        assert_eq!(reply.status(), status, "{kind}");
        if status == 415 {
            let detail = refused(&reply, 415)["detail"].as_str().unwrap().to_owned();
            let named = ["iso-8859-1", "UTF-16"].iter().any(|charset| detail.contains(&format!("{charset:?}")));
            assert!(named && detail.contains("send JSON in utf-8"), "{detail}");
        }
    }
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
    // Brotli has no parts; what follows is not dropped in silence either.
    for (coding, parts_are_allowed) in [("gzip", true), ("zstd", true), ("br", false)] {
        let first = packed(coding, format!("{EVENT}\n").as_bytes()).await;
        let send = |body: Vec<u8>| {
            batch(body).header("content-type", "application/x-ndjson").header("content-encoding", coding)
        };
        let (reply, published) = sent(send(first.clone()), &[]).await;
        assert_eq!((statuses(&body(&reply)), published), (vec![201], 1), "{coding}");
        let (reply, published) = sent(send([&first[..], &first].concat()), &[]).await;
        let (said, taken) = if parts_are_allowed { (vec![201, 201], 2) } else { (vec![201, 400], 1) };
        assert_eq!((statuses(&body(&reply)), published), (said, taken), "{coding}: nothing is left out");
        let (reply, published) = sent(send([&first[..], b"no more of it"].concat()), &[]).await;
        assert_eq!((statuses(&body(&reply)), published), (vec![201, 400], 1), "{coding}: what follows is not ours");
    }
}

#[tokio::test]
async fn a_window_of_zstd_has_at_most_eight_mebibytes() {
    for (log, status) in [(23, 200), (24, 400)] {
        let (text, mut packed) = (format!("[{EVENT}]"), Vec::new());
        let window = [CParameter::window_log(log)];
        let mut encoder = ZstdEncoder::with_quality_and_params(text.as_bytes(), Level::Default, &window);
        encoder.read_to_end(&mut packed).await.unwrap();
        let (reply, _) = sent(batch(packed).header("content-encoding", "zstd"), &[]).await;
        assert_eq!(reply.status(), status, "2^{log} bytes: {reply:?}");
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
