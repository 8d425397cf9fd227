//! `POST /events/batch` with what breaks off, is too large, or comes twice: what is defined of each, in the real programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    time::Duration,
};

use anyhow::ensure;
use e2e::{
    PATIENCE,
    client::{Client, Event, Reply},
    eventually,
    sample::text,
    service::Service,
    world::World,
};
use flate2::{Compression, write::GzEncoder};
use reqwest::{Body, Method, RequestBuilder};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpStream};

const MIB: usize = 1024 * 1024;

/// What the last result says when the process ends before the batch does.
const ENDING: &str = r#""this process is ending; send the rest again""#;

/// For the largest body to be sent and read, on a machine that does much else.
const LONG: Duration = Duration::from_mins(4);

fn item(user: &str) -> String {
    format!(r#"{{"userId":"{user}","eventType":"LOGIN"}}"#)
}

fn lines(users: impl Iterator<Item = String>) -> String {
    users.map(|user| item(&user) + "\n").collect()
}

fn batch(client: &Client, kind: &str, body: impl Into<Body>) -> RequestBuilder {
    client.request(Method::POST, "/events/batch").header("content-type", kind).body(body)
}

fn ndjson(client: &Client, body: impl Into<Body>) -> RequestBuilder {
    batch(client, "application/x-ndjson", body)
}

async fn results(request: RequestBuilder) -> Vec<Value> {
    let reply: Value = Reply::of(request).await.unwrap().ok().unwrap().parse().unwrap();
    reply["results"].as_array().unwrap().clone()
}

fn statuses(results: &[Value]) -> Vec<u64> {
    results.iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

/// How many records the topic has.
fn published(world: &World) -> i64 {
    world.kafka().end_offsets(&world.topic).unwrap().values().sum()
}

/// A body that does not say its length.
fn unannounced(text: String) -> Body {
    let pieces: Vec<_> = text.into_bytes().chunks(64 * 1024).map(|piece| anyhow::Ok(piece.to_vec())).collect();
    Body::wrap_stream(futures::stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_has_published_what_was_read_and_may_send_all_again() {
    const ALL: usize = 2_000;
    const SENT: usize = 1_200;
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let body = lines((0..ALL).map(|number| format!("user-{number}")));
    let sent: usize = body.split_inclusive('\n').take(SENT).map(str::len).sum();
    let mut leaving = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    let head = format!(
        "POST /events/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nIdempotency-Key: import\r\n\
        Content-Length: {}\r\n\r\n",
        body.len()
    );
    // And half of the next line, which must not become an event.
    leaving.write_all(format!("{head}{}", &body[..sent + 12]).as_bytes()).await.unwrap();
    drop(leaving);
    api.client.listed(SENT).await;
    assert_eq!(published(&world), SENT as i64);

    let send_again = async || results(ndjson(&api.client, body.clone()).header("idempotency-key", "import")).await;
    let again = send_again().await;
    assert_eq!(statuses(&again), vec![201; ALL]);
    assert!(again[SENT..].iter().all(|result| result["duplicate"].is_null()), "what is new is told from what is known");
    let list = api.client.listed(ALL).await;
    let by_user: BTreeMap<&str, &str> = list.iter().map(|event| (&*event.user_id, &*event.event_id)).collect();
    assert_eq!(by_user.len(), ALL, "each once");
    let same_ids = |results: &[Value]| {
        for (number, result) in results.iter().enumerate() {
            assert_eq!(by_user.get(&*format!("user-{number}")), Some(&result["eventId"].as_str().unwrap()), "{result}");
        }
    };
    same_ids(&again);
    // A store that is slow to say so leaves some unmarked, which are published once more.
    let mut known = vec![false; ALL];
    eventually("what was processed is known", async || {
        let all = send_again().await;
        same_ids(&all);
        known.iter_mut().zip(&all).for_each(|(known, result)| *known |= result["duplicate"] == true);
        let unmarked = known.iter().filter(|known| !**known).count();
        ensure!(unmarked == 0, "{unmarked} of {ALL}");
        Ok(())
    })
    .await;
    // Each still once.
    api.client.listed(ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_with_a_key_are_listed_in_the_order_of_their_batch() {
    const ALL: usize = 300;
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let body: String = (0..ALL)
        .map(|nth| format!("{{\"userId\":\"u\",\"eventType\":\"LOGIN\",\"payload\":{{\"n\":{nth}}}}}\n"))
        .collect();
    results(ndjson(&api.client, body).header("idempotency-key", "k")).await;
    let list = api.client.listed(ALL).await;
    let millis: BTreeSet<&str> = list.iter().map(|event| &*event.timestamp).collect();
    assert!(millis.len() < ALL, "some have the same timestamp");
    let wanted: Vec<String> = (0..ALL).map(|nth| format!("{{\"n\":{nth}}}")).collect();
    let payloads = |list: &[Event]| list.iter().map(|event| event.payload.clone()).collect::<Vec<_>>();
    assert_eq!(payloads(&list), wanted);
    let of_user: Vec<Event> =
        api.client.get("/events/processed?userId=u").await.unwrap().ok().unwrap().parse().unwrap();
    assert_eq!(payloads(&of_user), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_trickles_ends_with_its_process_and_is_told_what_was_taken() {
    for form in ["application/json", "application/x-ndjson"] {
        let world = World::shared();
        let (mut api, _worker) = world.start().await;
        let (lines, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let body = Body::wrap_stream(futures::stream::poll_fn(move |context| sent.poll_recv(context)));
        let upload = tokio::spawn(Reply::of(ndjson(&api.client, body).header("accept", form)));
        // One line after the other, for as long as anybody takes them.
        let trickle = tokio::spawn(async move {
            let mut count = 0;
            while lines.send(anyhow::Ok(item(&format!("user-{count}")) + "\n")).is_ok() {
                count += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        eventually("some lines are published", async || {
            ensure!(published(&world) >= 3);
            Ok(())
        })
        .await;
        let status = api.process.terminate(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "{}", api.process.output());
        let reply = upload.await.unwrap().unwrap().ok().unwrap();
        let results: Vec<Value> = match form {
            "application/json" => reply.parse::<Value>().unwrap()["results"].as_array().unwrap().clone(),
            _ => reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        };
        let (last, taken) = results.split_last().unwrap();
        assert_eq!((last["status"].as_u64(), &*last["errors"][0].to_string()), (Some(503), ENDING));
        assert!(taken.iter().all(|result| result["status"] == 201), "{taken:?}");
        assert_eq!(taken.len() as i64, published(&world), "all that was taken has its result");
        trickle.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_array_that_breaks_off_is_refused_and_none_of_it_is_published() {
    let world = World::shared();
    let mut api = world.start_api().await;
    let all = format!("[{}]", vec![item("u"); 10_000].join(","));
    let half = 1 + 5_000 * (item("u").len() + 1);
    let problem = Reply::of(batch(&api.client, "application/json", all[..half].to_owned())).await.unwrap();
    let problem = problem.problem(400).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("EOF"), "{problem}");
    assert_eq!(published(&world), 0);
    survived(&mut api).await;
    assert_eq!(statuses(&results(batch(&api.client, "application/json", all)).await), vec![201; 10_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_nine_megabytes_is_refused_alone_where_it_fits_and_ends_the_batch_where_it_does_not() {
    let with_line = |length: usize| {
        let line = format!(r#"{{"userId":"long","eventType":"LOGIN","payload":{{"a":{}}}}}"#, text(length));
        format!("{}\n{line}\n{}", item("before"), item("behind"))
    };
    let body = with_line(9_000_000);
    let world = World::shared().with("HTTP_READ_TIMEOUT", format!("{}s", LONG.as_secs()));
    let mut api = world.start_api().await;
    // Who says how much will come is told at once.
    let problem = Reply::of(ndjson(&api.client, body.clone())).await.unwrap().problem(413).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("8388608 bytes"), "{problem}");
    assert_eq!(published(&world), 0);
    let ended = results(ndjson(&api.client, unannounced(body.clone()))).await;
    assert_eq!(statuses(&ended), [201, 413], "what came before is published, the limit is the last result");
    assert!(ended[1]["errors"][0].as_str().unwrap().contains("8388608 bytes"), "{ended:?}");
    survived(&mut api).await;

    let mut api = world.with("HTTP_MAX_BATCH_BODY", "100MiB").start_api().await;
    let memory = api.process.memory_watch();
    // The second one, so large that it would be seen if it were kept.
    for body in [body, with_line(60_000_000)] {
        let alone = results(ndjson(&api.client, unannounced(body)).timeout(LONG)).await;
        assert_eq!(statuses(&alone), [201, 413, 201], "an item's own limit");
        assert!(alone[1]["errors"][0].as_str().unwrap().contains("262144 bytes"), "{alone:?}");
    }
    let grown = memory.growth();
    assert!(grown < 32, "{grown} MiB more for a line of 60 MB");
    survived(&mut api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_is_refused_before_it_fills_the_memory() {
    let mut api = World::shared().start_api().await;
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..256 {
        packed.write_all(&vec![b'\n'; MIB]).unwrap();
    }
    let bomb = packed.finish().unwrap();
    assert!(bomb.len() < 2 * MIB);
    let memory = api.process.memory_watch();
    let send = |kind| batch(&api.client, kind, bomb.clone()).header("content-encoding", "gzip");
    Reply::of(send("application/json")).await.unwrap().problem(413).unwrap();
    assert_eq!(statuses(&results(send("application/x-ndjson")).await), [413]);
    let grown = memory.growth();
    assert!(grown < 32, "{grown} MiB more for 256 MiB");
    survived(&mut api).await;
}

/// The process runs, and takes events.
async fn survived(api: &mut Service) {
    api.process.still_runs().unwrap();
    eventually("an event is taken", async || api.client.publish(item("u")).await?.with_status(201)).await;
    let said = api.process.output();
    assert!(!said.contains("panicked"), "{said}");
}
