//! Connections: time-outs, limits and the end, over TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::App;
use common::event::UserEvent;
use common::kafka::{Delivered, Published, Publisher};
use common::shutdown::Shutdown;
use common::testing::FakePublisher;
use futures::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::support::{EVENT, app, app_on, problem};

/// Ends a hang; what is waited for is there much sooner.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time for something that must not happen.
const MOMENT: Duration = Duration::from_millis(300);
/// What either end of a connection holds, about: little, so that much need not be sent to send more.
const BUFFER: u32 = 64 * 1024;

struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<usize>,
}

impl Server {
    async fn start(app: Arc<App>) -> Self {
        Self::on(listener(), app)
    }

    fn on(listener: TcpListener, app: Arc<App>) -> Self {
        let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let serving = tokio::spawn(api::server::serve(app, listener, shutdown.clone()));
        Self { address, shutdown, serving }
    }

    async fn connect(&self) -> Connection {
        Connection::to(self.address).await
    }

    /// Sends a request on a connection of its own and gives the reply.
    async fn reply(&self, request: &str) -> Reply {
        let mut connection = self.connect().await;
        connection.send(request).await;
        connection.reply().await
    }

    /// The number of connections that were left when the drain was over.
    async fn ended(self) -> usize {
        timeout(PATIENCE, self.serving).await.unwrap().unwrap()
    }
}

/// On a free port; nobody accepts yet.
fn listener() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket.listen(64).unwrap()
}

struct Connection(TcpStream);

impl Connection {
    async fn to(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(BUFFER).unwrap();
        Self(socket.connect(address).await.unwrap())
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// All that comes until the server closes the connection.
    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut text)).await.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }

    /// The next reply; the server may keep the connection open.
    async fn reply(&mut self) -> Reply {
        timeout(PATIENCE, self.next_reply()).await.unwrap()
    }

    async fn next_reply(&mut self) -> Reply {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let reply = Reply { head: String::from_utf8(head).unwrap(), body: Vec::new() };
        let mut body = vec![0; reply.header("content-length").parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        Reply { body, ..reply }
    }
}

#[derive(Debug)]
struct Reply {
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).next().unwrap_or_default()
    }

    /// The problem in a reply of this status.
    fn refusal(&self, status: u16) -> Value {
        assert_eq!(self.status(), status, "{}", self.head);
        problem(status, self.header("content-type"), &self.body)
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn post(body: &str) -> String {
    format!("POST /events/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Answers a record each time it is allowed to.
#[derive(Clone)]
struct Held {
    allowed: Arc<Semaphore>,
    taken: Arc<Semaphore>,
}

impl Held {
    fn new() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self { allowed: none(), taken: none() }
    }

    /// Once a record was handed over.
    async fn taken(&self) {
        timeout(PATIENCE, self.taken.acquire()).await.unwrap().unwrap().forget();
    }
}

impl Publisher for Held {
    fn publish(&self, _: &UserEvent<'_>, _: &[u8]) -> Published {
        self.taken.add_permits(1);
        let allowed = Arc::clone(&self.allowed);
        Box::pin(async move {
            allowed.acquire().await.unwrap().forget();
            Ok(Delivered { partition: 0, offset: 0 })
        })
    }
}

#[tokio::test]
async fn a_slow_body_is_told_so_and_a_broken_one_is_not_published() {
    let publisher = FakePublisher::default();
    let server = Server::start(app(publisher.clone(), &["--http-read-timeout", "200ms"])).await;
    let mut slow = server.connect().await;
    slow.send(post(EVENT).strip_suffix('}').unwrap()).await;
    let reply = slow.reply().await;
    assert!(reply.refusal(408)["detail"].as_str().unwrap().contains("200ms"));
    assert_eq!(reply.header("connection"), "close");
    assert_eq!(slow.rest().await, "", "the connection is closed");

    // What has come is an event; more was announced.
    let mut broken = server.connect().await;
    broken.send(&format!("POST /events/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{EVENT}")).await;
    broken.0.shutdown().await.unwrap();
    broken.rest().await;
    assert!(publisher.published().is_empty());
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_replies_keeps_no_place() {
    let server = Server::start(app(FakePublisher::default(), &["--http-max-connections", "1"])).await;
    let mut silent = server.connect().await;
    silent.send(&get("/assets/swagger-ui-bundle.js").repeat(20)).await;
    timeout(PATIENCE, async {
        while server.reply(&post(EVENT)).await.status() != 201 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(silent);
}

#[tokio::test]
async fn a_connection_that_sends_nothing_is_closed_in_time() {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let [mut idle, mut half, mut kept] =
        [Connection::to(address).await, Connection::to(address).await, Connection::to(address).await];
    half.send("GET /livez HT").await;
    kept.send(&get("/livez")).await;
    // It finds what they send: none of that can come too late.
    let _server = Server::on(listener, app(FakePublisher::default(), &["--http-idle-timeout", "200ms"]));
    assert_eq!(kept.reply().await.status(), 200);
    for connection in [&mut idle, &mut half, &mut kept] {
        connection.rest().await;
    }
}

#[tokio::test]
async fn a_reply_does_not_wait_for_the_rest_of_what_comes_after_the_request() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let mut connection = server.connect().await;
    let head = format!("POST /events/generate HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", EVENT.len());
    connection.send(&format!("{head}{EVENT}\r\n")).await;
    assert_eq!(connection.reply().await.status(), 201);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told_the_limit_however_it_is_sent() {
    let publisher = FakePublisher::default();
    let server = Server::start(app(publisher.clone(), &["--http-max-body", "2000"])).await;
    let head = "POST /events/generate HTTP/1.1\r\nHost: x\r\n";
    let chunk = format!("3e8\r\n{}\r\n", " ".repeat(1000));
    let announced = format!("{head}Content-Length: 2001\r\n\r\n");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}1\r\n \r\n");
    for request in [announced, chunked] {
        let mut connection = server.connect().await;
        connection.send(&request).await;
        let reply = connection.reply().await;
        let detail = reply.refusal(413)["detail"].clone();
        assert!(detail.as_str().unwrap().contains("2000 bytes"), "{detail}");
        assert_eq!(connection.rest().await, "", "the connection is closed");
    }
    assert!(publisher.published().is_empty());

    let fits = format!("{head}Transfer-Encoding: chunked\r\n\r\n22\r\n{EVENT}\r\n0\r\n\r\n");
    assert_eq!(server.reply(&fits).await.status(), 201);
}

/// More than the buffers of a connection hold, and no more than a busy machine throws away in time, which is 2 s.
const LARGE: usize = 1 << 20;

#[tokio::test]
async fn who_sends_all_of_a_body_that_is_refused_unread_still_gets_the_reply() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let head = |path: &str, length| format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n");
    for (request, status, closes) in [
        (head("/events/generate", LARGE), 413, true),
        (head("/events/generate", LARGE) + "Content-Type: text/plain\r\n", 415, false),
        (head("/nowhere", LARGE), 404, false),
    ] {
        let mut connection = server.connect().await;
        connection.send(&format!("{request}\r\n")).await;
        connection.send(&" ".repeat(LARGE)).await;
        connection.reply().await.refusal(status);
        if closes {
            assert_eq!(connection.rest().await, "", "{status}");
        } else {
            connection.send(&get("/livez")).await;
            assert_eq!(connection.reply().await.status(), 200, "the connection takes the next request after {status}");
        }
    }
}

#[tokio::test]
async fn who_goes_on_sending_behind_a_refusal_is_cut_off_and_who_askedfirst_is_not_told_to_send() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let head = format!("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", LARGE * 100);
    let mut endless = server.connect().await;
    endless.send(&format!("{head}\r\n")).await;
    let cut = async { while endless.0.write_all(&[b' '; 64 * 1024]).await.is_ok() {} };
    timeout(PATIENCE, cut).await.unwrap();

    let mut asking = server.connect().await;
    asking.send(&format!("{head}Expect: 100-continue\r\n\r\n")).await;
    asking.reply().await.refusal(404);
    assert_eq!(asking.rest().await, "", "the connection is closed");
}

#[tokio::test]
async fn who_askedfirst_and_then_sends_too_much_still_gets_the_reply() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let mut asking = server.connect().await;
    let head =
        "POST /events/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    asking.send(head).await;
    let mut told = [0; 25];
    timeout(PATIENCE, asking.0.read_exact(&mut told)).await.unwrap().unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    asking.send(&format!("{LARGE:x}\r\n{}\r\n0\r\n\r\n", " ".repeat(LARGE))).await;
    asking.reply().await.refusal(413);
}

#[tokio::test]
async fn headers_that_are_too_large_are_told_the_limit() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let with = |size: usize| format!("GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(size));
    assert_eq!(server.reply(&with(30_000)).await.status(), 200);
    let detail = server.reply(&with(40_000)).await.refusal(431)["detail"].clone();
    assert!(detail.as_str().unwrap().contains("32768 bytes"), "{detail}");
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    for path in ["/livez", "/readyz", "/health", "/events/processed", "/events/some-id", "/nope"] {
        let got = server.reply(&get(path)).await;
        let mut connection = server.connect().await;
        let head = get(path).replace("GET", "HEAD").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        connection.send(&head).await;
        let reply = connection.rest().await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {} ", got.status())), "{path}: {reply}");
        assert!(reply.ends_with("\r\n\r\n"), "{path}: {reply}");
        assert!(reply.contains(&format!("content-type: {}\r\n", got.header("content-type"))), "{path}: {reply}");
    }
}

#[tokio::test]
async fn a_connection_takes_one_request_after_the_other_also_behind_a_refused_one() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let mut connection = server.connect().await;
    for (body, status) in [(EVENT, 201), ("{}", 400), (EVENT, 201)] {
        connection.send(&post(body)).await;
        assert_eq!(connection.reply().await.status(), status);
    }
}

#[tokio::test]
async fn beyond_the_limit_of_connections_probes_are_answered_and_all_others_told_to_come_back() {
    let publisher = FakePublisher::default();
    let server = Server::start(app(publisher.clone(), &["--http-max-connections", "2"])).await;
    let mut open = [server.connect().await, server.connect().await];
    for connection in &mut open {
        connection.send(&get("/livez")).await;
        assert_eq!(connection.reply().await.status(), 200);
    }
    let full = server.reply(&post(EVENT)).await;
    assert_eq!((full.header("retry-after"), full.header("connection")), ("1", "close"));
    let refused = full.refusal(503);
    assert_eq!(refused["type"], "/docs/problems#too-many-connections");
    assert!(refused["detail"].as_str().unwrap().contains("all 2 connections (HTTP_MAX_CONNECTIONS)"), "{refused}");
    assert!(publisher.published().is_empty());
    assert_eq!(server.reply(&get("/livez")).await.status(), 200);
    let metrics = server.reply(&get("/metrics")).await;
    let text = String::from_utf8(metrics.body).unwrap();
    assert!(text.contains("user_activity_http_connections 2\n"), "{text}");
    assert!(text.contains("user_activity_http_connections_over_limit_total 3\n"), "{text}");
    // One that says nothing does not keep its place.
    assert_eq!(server.connect().await.rest().await, "");
    drop(open);
    let again = async { while server.reply(&post(EVENT)).await.status() != 201 {} };
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn the_admin_port_has_what_watches_over_the_process_and_nothing_else() {
    let (app, _file) = guarded(&FakePublisher::default(), &["--rate-limit", "1"]);
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(api::server::serve_admin(app, listener));
    let reply = async |request: &str| {
        let mut connection = Connection::to(address).await;
        connection.send(request).await;
        connection.reply().await
    };
    for path in ["/livez", "/metrics", "/livez/"] {
        assert_eq!(reply(&get(path)).await.status(), 200, "{path}");
    }
    assert_eq!(reply(&get("/readyz")).await.status(), 503, "nothing is known of Kafka here");
    reply(&post(EVENT)).await.refusal(404);
    reply(&get("/events/processed")).await.refusal(404);
    // However many say nothing, they don't keep their places.
    let _silent = join_all((0..100).map(|_| Connection::to(address))).await;
    assert_eq!(reply(&get("/livez")).await.status(), 200);
    serving.abort();
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    for hosts in ["", "Host: a\r\nHost: b\r\n"] {
        let refused = server.reply(&format!("GET /livez HTTP/1.1\r\n{hosts}\r\n")).await.refusal(400);
        assert!(refused["detail"].as_str().unwrap().contains("Host"), "{refused}");
    }
    assert_eq!(server.reply("GET /livez HTTP/1.0\r\n\r\n").await.status(), 200);
}

#[tokio::test]
async fn replies_are_kept_by_no_cache_but_the_files_of_the_program_as_they_say() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    for request in [get("/events/some-id"), get("/nope"), get("/health"), post(EVENT), post("no event")] {
        assert_eq!(server.reply(&request).await.header("cache-control"), "no-store", "{request}");
    }
    assert_eq!(server.reply(&get("/assets/swagger-ui.css")).await.header("cache-control"), "max-age=3600");
}

#[tokio::test]
async fn a_slash_behind_a_path_asks_for_the_same_key() {
    let (app, _file) = guarded(&FakePublisher::default(), &[]);
    let server = Server::start(app).await;
    for path in ["/events/generate", "/events/generate/"] {
        let request = with(&post(EVENT), &format!("X-Api-Key: {KEY}3")).replace("/events/generate", path);
        server.reply(&request).await.refusal(403);
    }
}

#[tokio::test]
async fn files_are_sent_as_they_were_packed_and_not_packed_anew_for_each_request() {
    let server = Server::start(app(FakePublisher::default(), &[])).await;
    let get = |accept: &str, more: &str| {
        format!("GET /assets/swagger-ui.css HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n{more}\r\n")
    };
    let packed = server.reply(&get("gzip", "")).await;
    assert_eq!((packed.status(), packed.header("content-encoding")), (200, "gzip"));
    // Nothing is kept in other codings.
    let plain = server.reply(&get("zstd", "")).await;
    assert_eq!((plain.header("content-encoding"), plain.header("etag")), ("", packed.header("etag")));
    assert!(plain.body.len() > 4 * packed.body.len());
    let known = format!("If-None-Match: {}\r\n", packed.header("etag"));
    let mut connection = server.connect().await;
    connection.send(&get("gzip", &format!("{known}Connection: close\r\n"))).await;
    let reply = connection.rest().await;
    assert!(reply.starts_with("HTTP/1.1 304 ") && reply.ends_with("\r\n\r\n"), "{reply}");
}

#[tokio::test]
async fn streams_take_half_of_the_connections_and_no_more() {
    // Each waits for a tail that nobody reads here, and then for a store that says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = format!("redis://{}", silent.local_addr().unwrap());
    let flags = ["--http-max-connections", "4", "--redis-timeout", "5m"];
    let server = Server::start(app_on(&store, FakePublisher::default(), &flags)).await;
    let mut streams = [server.connect().await, server.connect().await, server.connect().await];
    for stream in &mut streams {
        stream.send(&get("/events/stream")).await;
    }
    let [first, second, third] = &mut streams;
    let refused = [first.reply(), second.reply(), third.reply()].map(Box::pin);
    let (reply, which, others) = futures::future::select_all(refused).await;
    assert_eq!(reply.refusal(429)["type"], "/docs/problems#too-many-streams", "{which}");
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(server.reply(&get("/livez")).await.status(), 200, "there is room for others");
    // Now it is away, which they are told.
    drop(silent);
    for reply in futures::future::join_all(others).await {
        reply.refusal(503);
    }
    // A place that was left is free again.
    server.reply(&get("/events/stream")).await.refusal(503);
}

#[tokio::test]
async fn a_drain_answers_what_is_in_flight_closes_what_is_idle_and_takes_nothing_new() {
    let publisher = Held::new();
    let server = Server::start(app(publisher.clone(), &[])).await;
    let (mut idle, mut busy) = (server.connect().await, server.connect().await);
    idle.send(&get("/livez")).await;
    assert_eq!(idle.reply().await.status(), 200);
    busy.send(&post(EVENT)).await;
    publisher.taken().await;

    server.shutdown.cancel();
    assert_eq!(idle.rest().await, "", "closed at once");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    sleep(MOMENT).await;
    assert!(!server.serving.is_finished(), "it waits for the post");
    publisher.allowed.add_permits(1);
    assert_eq!(busy.reply().await.status(), 201);
    assert_eq!(busy.rest().await, "");
    assert_eq!(server.ended().await, 0);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_and_counts_what_was_left() {
    let publisher = Held::new();
    let server = Server::start(app(publisher.clone(), &["--shutdown-timeout", "200ms"])).await;
    let mut busy = [server.connect().await, server.connect().await, server.connect().await];
    for connection in &mut busy {
        connection.send(&post(EVENT)).await;
        publisher.taken().await;
    }
    publisher.allowed.add_permits(1);
    assert_eq!(busy[0].reply().await.status(), 201);
    server.shutdown.cancel();
    assert_eq!(server.ended().await, 2);
}

const KEY: &str = "a-key-of-a-test";
/// The SHA-256 of that, and of the same with 2 or 3 at its end.
const FILE: &str = "\
shop FIRST write
desk SECOND write,read
boss THIRD admin
";

/// The API with three keys: [`KEY`] may write, the one with a 2 at its end may also read, the one with a 3 may neither
/// and change settings.
fn guarded(publisher: &FakePublisher, flags: &[&str]) -> (Arc<App>, tempfile::NamedTempFile) {
    let sum = |key: &str| {
        let hash = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = FILE.replace("FIRST", &sum(KEY)).replace("SECOND", &sum(&format!("{KEY}2")));
    let text = text.replace("THIRD", &sum(&format!("{KEY}3")));
    std::fs::write(file.path(), text).unwrap();
    let keys = ["--api-keys-file", file.path().to_str().unwrap()];
    (app(publisher.clone(), &[&keys, flags].concat()), file)
}

fn with(request: &str, header: &str) -> String {
    request.replacen("\r\n", &format!("\r\n{header}\r\n"), 1)
}

#[tokio::test]
async fn without_a_key_nothing_is_posted_or_read_and_a_key_does_what_its_scopes_say() {
    let publisher = FakePublisher::default();
    let (app, _file) = guarded(&publisher, &[]);
    let server = Server::start(app).await;
    for (header, challenge) in [
        ("X-Nothing: x", "Bearer realm=\"user-activity\""),
        ("X-Api-Key: another", "Bearer realm=\"user-activity\", error=\"invalid_token\""),
    ] {
        for request in [post(EVENT), get("/events/processed"), get("/anything")] {
            let reply = server.reply(&with(&request, header)).await;
            assert_eq!(reply.header("www-authenticate"), challenge);
            assert_eq!(reply.refusal(401)["type"], "/docs/problems#unauthorized");
        }
    }
    let bearer = format!("Authorization: Bearer {KEY}");
    let read = server.reply(&with(&get("/events/processed"), &bearer)).await.refusal(403);
    assert!(read["detail"].as_str().unwrap().contains("scope read"), "{read}");
    assert!(publisher.published().is_empty());

    assert_eq!(server.reply(&with(&post(EVENT), &bearer)).await.status(), 201);
    assert_eq!(server.reply(&with(&post(EVENT), &format!("X-Api-Key: {KEY}2"))).await.status(), 201);
    assert_eq!(publisher.published().len(), 2);
    // The store is away, so much about it is said to who may read.
    server.reply(&with(&get("/events/x"), &format!("X-Api-Key: {KEY}2"))).await.refusal(503);
    assert_eq!(server.reply(&get("/livez")).await.status(), 200);
}

#[tokio::test]
async fn trying_keys_out_counts_and_so_does_no_key_but_not_for_who_has_one() {
    let publisher = FakePublisher::default();
    let (app, _file) = guarded(&publisher, &["--rate-limit", "1", "--rate-limit-burst", "60"]);
    let server = Server::start(app).await;
    let with_key = async |key: &str| server.reply(&with(&post(EVENT), &format!("X-Api-Key: {key}"))).await;
    let left = |reply: &Reply| {
        let remaining = reply.header("ratelimit").strip_prefix("\"client\";r=").and_then(|rest| rest.split(';').next());
        remaining.unwrap().parse::<u32>().unwrap()
    };
    // Each second there is room for one more, however few requests this machine can make in it.
    let refused = timeout(PATIENCE, async {
        loop {
            let reply = with_key("another").await;
            if reply.status() != 401 {
                return reply;
            }
        }
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.header("ratelimit-policy"), "\"client\";q=60;w=60", "{}", refused.head);
    assert_eq!(refused.refusal(429)["type"], "/docs/problems#rate-limited");
    let open = server.reply(&get("/openapi.json")).await;
    assert!(left(&open) < 30, "of the same address: {}", open.head);
    let known = with_key(KEY).await;
    assert!(known.status() == 201 && left(&known) > 30, "{}", known.head);
}

#[tokio::test]
async fn an_event_source_that_makes_too_many_requests_is_told_in_a_stream_when_to_come_back() {
    let server = Server::start(app(FakePublisher::default(), &["--rate-limit", "1", "--rate-limit-burst", "1"])).await;
    // Each second there is room for one more, which is not a stream either while the store is away.
    let refused = timeout(PATIENCE, async {
        loop {
            let reply = server.reply(&with(&get("/events/stream?no=parameter"), "Accept: text/event-stream")).await;
            if reply.status() == 200 {
                return reply;
            }
        }
    });
    let refused = refused.await.unwrap();
    let text = String::from_utf8_lossy(&refused.body);
    assert_eq!(refused.header("content-type"), "text/event-stream");
    assert!(text.starts_with("retry: 5000\nevent: end\n") && text.contains("RATE_LIMIT"), "{text}");
    let other = timeout(PATIENCE, async {
        loop {
            let reply = server.reply(&with(&get("/events/x?no=parameter"), "Accept: text/event-stream")).await;
            if reply.status() == 429 {
                return;
            }
        }
    });
    other.await.unwrap();
}

/// A post that has sent this much of its body and not all.
async fn unfinished(server: &Server, path: &str, kind: &str, bytes: usize) -> Connection {
    let mut connection = server.connect().await;
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", bytes + 1);
    connection.send(&(head + &" ".repeat(bytes))).await;
    connection
}

#[tokio::test]
async fn large_bodies_have_a_limit_together_and_small_ones_pass() {
    let limits = ["--http-max-body", "50KiB", "--http-max-batch-body", "50KiB", "--http-body-memory", "200KiB"];
    // What is unfinished stays so until the test is done with it.
    let patient = ["--http-read-timeout", "5m"];
    let app = app(FakePublisher::default(), &[&limits[..], &patient].concat());
    let server = Server::start(Arc::clone(&app)).await;
    let forms = [("/events/generate", "application/json"), ("/events/batch", "application/json")];
    for (path, kind) in forms.into_iter().chain([("/events/batch", "application/x-ndjson")]) {
        let mut open = Vec::new();
        let refused = loop {
            let mut next = unfinished(&server, path, kind, 45_000).await;
            // One that is not refused is not answered at all.
            match timeout(MOMENT, next.next_reply()).await {
                Ok(reply) => break reply,
                Err(_) => open.push(next),
            }
            assert!(open.len() < 20, "no limit for {path}");
        };
        assert!(open.len() >= 2 && app.memory.held() >= 90_000, "{} of {path}", open.len());
        if kind == "application/json" {
            assert_eq!((refused.header("retry-after"), refused.header("connection")), ("1", "close"), "{path}");
            let problem = refused.refusal(503);
            let type_and_outcome = (&problem["type"], &problem["outcome"]);
            assert_eq!(type_and_outcome, (&"/docs/problems#no-room".into(), &"not accepted".into()));
            assert!(problem["detail"].as_str().unwrap().contains("HTTP_BODY_MEMORY"), "{problem}");
        } else {
            let summary: Value = serde_json::from_slice(&refused.body).unwrap();
            assert_eq!(
                (&summary["results"][0]["status"], &summary["results"][0]["outcome"]),
                (&503.into(), &"not accepted".into())
            );
        }
        assert_eq!(server.reply(&post(EVENT)).await.status(), 201, "{path}");
        drop(open);
        let given_back = async {
            while app.memory.held() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, given_back).await.unwrap();
    }
}

#[tokio::test]
async fn a_batch_that_is_complete_is_published_although_its_client_goes_at_once() {
    const ALL: usize = 6_000;
    let array = format!("[{}]", vec![EVENT; ALL].join(","));
    for (kind, form) in [("application/json", "application/json"), ("application/json", "application/x-ndjson")] {
        let publisher = FakePublisher::default();
        let server = Server::start(app(publisher.clone(), &[])).await;
        let mut connection = server.connect().await;
        let head = format!(
            "POST /events/batch HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nAccept: {form}\r\nContent-Length: {}\r\n\r\n",
            array.len()
        );
        connection.send(&(head + &array)).await;
        drop(connection);
        let all = async {
            while publisher.published().len() < ALL {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{} of {ALL}, {form}", publisher.published().len()));
    }
}

fn put_level(level: &str) -> String {
    format!("PUT /log-level HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{level}", level.len())
}

#[tokio::test]
async fn the_log_level_is_changed_by_who_may_do_that_and_by_nobody_while_keys_are_off() {
    let open = Server::start(app(FakePublisher::default(), &[])).await;
    let closed = open.reply(&put_level("off")).await.refusal(403);
    assert_eq!(closed["type"], "/docs/problems#keys-needed");
    assert!(closed["detail"].as_str().unwrap().contains("API_KEYS_FILE"), "{closed}");

    let (app, _file) = guarded(&FakePublisher::default(), &[]);
    let server = Server::start(app).await;
    server.reply(&put_level("off")).await.refusal(401);
    let other = server.reply(&with(&put_level("off"), &format!("X-Api-Key: {KEY}2"))).await.refusal(403);
    assert!(other["detail"].as_str().unwrap().contains("scope admin"), "{other}");

    let put = async |level: &str| server.reply(&with(&put_level(level), &format!("X-Api-Key: {KEY}3"))).await;
    let wrong = put("loud").await.refusal(400);
    assert!(wrong["detail"].as_str().unwrap().contains("must be a level"), "{wrong}");
    put(&format!("info,{}=off", "x".repeat(1024))).await.refusal(413);
    let changed = put("off,api=error\n").await;
    assert_eq!((changed.status(), &*changed.body), (200, &br#"{"level":"off,api=error"}"#[..]));
}

#[tokio::test]
async fn the_same_idempotency_key_of_two_callers_makes_two_events() {
    let publisher = FakePublisher::default();
    let (app, _file) = guarded(&publisher, &[]);
    let server = Server::start(app).await;
    let posted = async |key: &str| {
        let request = with(&with(&post(EVENT), "Idempotency-Key: \"k\""), &format!("X-Api-Key: {key}"));
        let reply = server.reply(&request).await;
        assert_eq!(reply.status(), 201, "{}", reply.head);
        reply.header("location").to_owned()
    };
    let (first, again, other) = (posted(KEY).await, posted(KEY).await, posted(&format!("{KEY}2")).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[tokio::test]
async fn a_browser_may_ask_without_a_key_and_only_known_origins_may_call() {
    let publisher = FakePublisher::default();
    let (app, _file) = guarded(&publisher, &["--cors-allowed-origins", "https://desk.example"]);
    let server = Server::start(app).await;
    let asks = "OPTIONS /events/generate HTTP/1.1\r\nHost: x\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    let mut connection = server.connect().await;
    connection.send(&with(&with(asks, "Origin: https://desk.example"), "Connection: close")).await;
    let reply = connection.rest().await;
    assert!(reply.starts_with("HTTP/1.1 204"), "{reply}");
    assert!(reply.contains("access-control-allow-origin: https://desk.example\r\n"), "{reply}");
    assert!(reply.contains("idempotency-key"), "{reply}");
    // Refusals as well: a page could not tell what is wrong otherwise.
    let reply = server.reply(&with(&post(EVENT), "Origin: https://desk.example")).await;
    assert_eq!((reply.status(), reply.header("access-control-allow-origin")), (401, "https://desk.example"));
    let reply = server.reply(&with(&get("/livez"), "Origin: https://other.example")).await;
    assert_eq!((reply.status(), reply.header("access-control-allow-origin")), (200, ""));
    assert_eq!(reply.header("vary"), "origin", "or a cache would show it to others");
}

#[tokio::test]
async fn without_settings_there_is_neither_cors_nor_a_key() {
    let publisher = FakePublisher::default();
    let server = Server::start(app(publisher.clone(), &[])).await;
    // A browser sends this for any page, without asking first.
    let from_a_page = with(&post(EVENT), "Origin: https://desk.example");
    let refused = server.reply(&from_a_page).await.refusal(415);
    assert!(refused["detail"].as_str().unwrap().contains("Origin"), "{refused}");
    assert!(publisher.published().is_empty());
    // And this only to an origin that lets it: here it would have asked, and got no leave.
    let reply = server.reply(&with(&from_a_page, "Content-Type: application/json")).await;
    assert_eq!((reply.status(), reply.header("access-control-allow-origin")), (201, ""));
}
