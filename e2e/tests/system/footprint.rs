//! README, promise 7: whatever clients send or ask for, an API stays below 256 MiB, and answers others meanwhile.

use std::io::Write;
use std::time::Duration;

use e2e::{PATIENCE, eventually, redis_server::RedisServer, service::Service, sse::Sse, world::World};
use flate2::{Compression, write::GzEncoder};
use futures::future::join_all;
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

const MIB: usize = 1024 * 1024;
/// What an API may have in memory, in MiB.
const MOST: u64 = 256;
/// Time for a client that is kept waiting on purpose.
const MOMENT: Duration = Duration::from_secs(2);

const EVENTS: usize = 1_000;

/// An event of 250 KiB, which can be packed to about half of that.
fn event(number: usize) -> String {
    let text: String =
        std::iter::repeat_with(|| char::from_digit(fastrand::u32(..16), 16).unwrap()).take(250_000).collect();
    format!(r#"{{"userId":"user-{}","eventType":"LOGIN","payload":{{"text":"{text}"}}}}"#, number % 9)
}

/// It has not had more memory than it may, and still takes events.
async fn is_within_bounds(api: &mut Service, after: &str) {
    let peak = api.process.peak_memory();
    assert!(peak < MOST, "{peak} MiB after {after}");
    api.process.still_runs().unwrap();
    let post = async || api.client.publish(r#"{"userId":"other","eventType":"LOGOUT"}"#).await?.with_status(201);
    eventually("an event is taken", post).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_are_read_within_256_mib_however_they_are_asked_for() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (mut api, _worker) = world.start().await;
    let begin = Sse::open(&api.client, "", None).await.unwrap().last_id().to_owned();
    for numbers in (0..EVENTS).collect::<Vec<_>>().chunks(25) {
        let batch = format!("[{}]", numbers.iter().map(|number| event(*number)).collect::<Vec<_>>().join(","));
        let request = api.client.request(Method::POST, "/events/batch").header("content-type", "application/json");
        let reply: Value = request.body(batch).send().await.unwrap().json().await.unwrap();
        assert_eq!(reply["accepted"], numbers.len(), "{reply}");
    }
    eventually("all are stored", async || {
        let stored: usize = redis.command_line("DBSIZE").await;
        anyhow::ensure!(stored > EVENTS, "{stored}");
        Ok(())
    })
    .await;
    is_within_bounds(&mut api, "posting them").await;

    for path in
        ["/events/processed?limit=1000", "/events/processed?limit=1&eventType=LOGOUT", "/api/activities?limit=1000"]
    {
        api.client.get(path).await.unwrap().ok().unwrap();
        is_within_bounds(&mut api, path).await;
    }
    let asked = (0..8).map(|_| api.client.get("/events/processed"));
    let lists = join_all(asked).await;
    let whole = lists.iter().filter(|list| list.as_ref().is_ok_and(|list| list.status == 200)).count();
    assert!(whole >= 2, "{whole} whole lists");
    is_within_bounds(&mut api, "eight full lists").await;

    let asked = (0..1_000).map(|_| api.client.get("/events/processed?limit=1000"));
    for page in join_all(asked).await {
        let status = page.unwrap().status;
        assert!(matches!(status, 200 | 503), "{status}");
    }
    is_within_bounds(&mut api, "1,000 pages at once").await;

    let silent = join_all((0..15).map(|_| resume(api.port, &begin))).await;
    tokio::time::sleep(MOMENT).await;
    is_within_bounds(&mut api, "15 readers of the stream that read nothing").await;
    drop(silent);

    let single: Vec<Value> = api.client.get("/events/processed?limit=1").await.unwrap().parse().unwrap();
    let one = format!("GET /events/{} HTTP/1.1\r\nHost: x\r\n\r\n", single[0]["eventId"].as_str().unwrap());
    let silent = join_all((0..500).map(|_| unread(api.port, one.repeat(14)))).await;
    tokio::time::sleep(MOMENT).await;
    is_within_bounds(&mut api, "500 clients that read none of 14 large events").await;
    drop(silent);

    let live = "GET /events/stream HTTP/1.1\r\nHost: x\r\n\r\n".to_owned();
    let silent = join_all((0..300).map(|_| unread(api.port, live.clone()))).await;
    for _ in 0..4 {
        let batch = format!("[{}]", (0..30).map(event).collect::<Vec<_>>().join(","));
        let request = api.client.request(Method::POST, "/events/batch").header("content-type", "application/json");
        assert_eq!(request.body(batch).send().await.unwrap().status(), 200);
    }
    tokio::time::sleep(MOMENT).await;
    is_within_bounds(&mut api, "300 readers of the stream that read nothing of what comes").await;
    drop(silent);
}

/// A client that sends this and reads nothing.
async fn unread(port: u16, requests: String) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    stream.write_all(requests.as_bytes()).await.unwrap();
    stream
}

/// A reader of the stream from far back that reads nothing.
async fn resume(port: u16, last_id: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET /events/stream HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {last_id}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Sends a request but for its last byte, as far as it is taken, and keeps the connection.
async fn unfinished(port: u16, head: String, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // It may be refused meanwhile.
    drop(tokio::time::timeout(PATIENCE, stream.write_all(&body[..body.len().saturating_sub(1)])).await);
    stream
}

fn head(path: &str, headers: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end_are_held_within_256_mib() {
    let world = World::shared().with("HTTP_READ_TIMEOUT", "60s");
    let array = {
        let mut array = format!("[{}", event(0));
        while array.len() < 8 * MIB - 300 * 1024 {
            array += ",";
            array += &event(array.len());
        }
        array + "]"
    };
    let packed = |bytes: &[u8]| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    };
    let lines = array[1..array.len() - 1].replace("},{\"userId", "}\n{\"userId").into_bytes();
    let wide = |bytes: &[u8]| {
        let mut packer = zstd::Encoder::new(Vec::new(), 1).unwrap();
        packer.window_log(23).unwrap();
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    };
    let json = "Content-Type: application/json\r\n";
    let ndjson = "Content-Type: application/x-ndjson\r\n";
    for (what, headers, body) in [
        ("100 bodies of 8 MiB", json.to_owned(), array.clone().into_bytes()),
        ("100 bodies of 8 MiB, packed", format!("{json}Content-Encoding: gzip\r\n"), packed(array.as_bytes())),
        ("100 bodies of 8 MiB, packed with a wide window", format!("{ndjson}Content-Encoding: zstd\r\n"), wide(&lines)),
    ] {
        let mut api = world.start_api().await;
        let head = head("/events/batch", &headers, body.len());
        let open = join_all((0..100).map(|_| unfinished(api.port, head.clone(), &body))).await;
        is_within_bounds(&mut api, what).await;
        drop(open);
    }

    let mut api = world.start_api().await;
    let small = packed(&array.as_bytes()[..20_000]);
    let head_of_small = head("/events/batch", &format!("{ndjson}Content-Encoding: gzip\r\n"), 100_000);
    let open = join_all((0..2_500).map(|_| unfinished(api.port, head_of_small.clone(), &small))).await;
    is_within_bounds(&mut api, "2,500 half-sent small bodies, packed").await;
    drop(open);

    let mut api = world.start_api().await;
    let nothing = packed("{\"userId\":\"\",\"eventType\":\"\",\"payload\":[]}\n".repeat(9_999).as_bytes());
    let batch = head("/events/batch", &format!("{ndjson}Content-Encoding: gzip\r\n"), nothing.len());
    let send = async || {
        let mut stream = unread(api.port, batch.clone()).await;
        stream.write_all(&nothing).await.unwrap();
        stream
    };
    let open = join_all((0..100).map(|_| send())).await;
    tokio::time::sleep(10 * MOMENT).await;
    is_within_bounds(&mut api, "100 batches of which each item is wrong").await;
    drop(open);

    let mut api = world.start_api().await;
    let half = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(45_000));
    let open = join_all((0..2_000).map(|_| unfinished(api.port, half.clone(), b""))).await;
    is_within_bounds(&mut api, "2,000 half-sent heads").await;
    drop(open);

    let mut api = world.start_api().await;
    let ones = format!("[1{}]", ",1".repeat(4 * MIB - 10));
    let refused = join_all((0..10).map(|_| {
        let request = api.client.request(Method::POST, "/events/batch").header("content-type", "application/json");
        request.body(ones.clone()).send()
    }));
    for reply in refused.await {
        let status = reply.unwrap().status().as_u16();
        assert!(matches!(status, 413 | 503), "{status}");
    }
    is_within_bounds(&mut api, "ten arrays of millions").await;
}
