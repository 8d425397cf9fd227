//! `GET /events/stream`: what is processed, as it is processed; nothing left out and nothing twice.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::ensure;
use chrono::{TimeDelta, Utc};
use e2e::{
    PATIENCE,
    client::{Client, Event, Reply},
    eventually,
    kafka::Record,
    load::Load,
    oracle::Journal,
    redis_cluster::RedisCluster,
    redis_server::RedisServer,
    sample::{record, rfc3339, text},
    service::Service,
    sse::Sse,
    world::World,
};
use futures::future::join_all;
use reqwest::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::rolling_restart::settles;

/// For a reader to get all there is, thousands of events at once, on a busy machine.
const LONG: Duration = PATIENCE.saturating_mul(4);

/// Of a reader that does not leave by itself.
const STEADY: usize = usize::MAX / 2;

async fn open(client: &Client) -> Sse {
    Sse::open(client, "", None).await.unwrap()
}

async fn take(stream: &mut Sse, count: usize) -> Vec<Event> {
    let mut events = Vec::with_capacity(count);
    while events.len() < count {
        events
            .push(stream.event().await.unwrap_or_else(|error| panic!("after {} of {count}: {error:#}", events.len())));
    }
    events
}

/// Posts an event and gives its id.
async fn post(client: &Client, body: impl Into<String>) -> String {
    let reply = client.publish(body.into()).await.unwrap().with_status(201).unwrap();
    reply.parse::<Value>().unwrap()["eventId"].as_str().unwrap().to_owned()
}

/// Nothing comes before the next event.
async fn is_silent(api: &Client, stream: &mut Sse) {
    let id = post(api, r#"{"userId":"next","eventType":"LOGIN"}"#).await;
    assert_eq!(stream.event().await.unwrap().event_id, id, "nothing comes before the next event");
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| &*event.event_id).collect()
}

/// Each row of the list, without its line breaks, and nothing else or twice.
fn equals(mut seen: Vec<Event>, list: &[Event]) {
    let mut expected = list.to_vec();
    expected.iter_mut().for_each(|event| event.payload.retain(|letter| !matches!(letter, '\n' | '\r')));
    for events in [&mut seen, &mut expected] {
        events.sort_by(|one, other| one.event_id.cmp(&other.event_id));
    }
    let unique: HashSet<&str> = ids(&seen).into_iter().collect();
    assert_eq!(seen.len(), unique.len(), "nothing twice");
    let missing = expected.iter().filter(|event| !unique.contains(&*event.event_id)).count();
    assert_eq!(missing, 0, "of {} are missing; {} were seen", expected.len(), seen.len());
    assert!(seen == expected, "what is seen is what is listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_processed_arrives_once_at_every_reader_with_its_payload_intact() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let replica = world.start_api().await;
    let mut readers = [open(&api.client).await, open(&replica.client).await, open(&replica.client).await];
    let odd = "{ \"z\" : 1.0e+2,\n \"a\":-0.0,\"a\" :\t12345678901234567890.10, \"u\":\"\\u00e9\\n\u{e9}\"}";
    post(&api.client, format!(r#"{{"userId":"odd","eventType":"LOGOUT","payload":{odd}}}"#)).await;
    let journal = Journal::default();
    for sequence in 0..60 {
        let client = if sequence % 2 == 0 { &api.client } else { &replica.client };
        journal.must_post(client, &format!("user-{}", sequence % 5), sequence).await.unwrap();
    }
    let mut seen = Vec::new();
    for reader in &mut readers {
        seen.push(take(reader, 61).await);
    }
    let list = api.client.list().await.unwrap();
    assert_eq!(list.len(), 61);
    seen.into_iter().for_each(|seen| equals(seen, &list));
    let next = post(&api.client, r#"{"userId":"next","eventType":"LOGIN"}"#).await;
    for reader in &mut readers {
        assert_eq!(reader.event().await.unwrap().event_id, next, "nothing comes before the next event");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_seen_within_a_moment_and_frames_are_never_compressed() {
    const ONE_BY_ONE: usize = 5;
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let client = &api.client;
    let request = client.request(Method::GET, "/events/stream").header("accept-encoding", "gzip, zstd");
    let mut response = request.timeout(LONG).send().await.unwrap();
    assert_eq!(response.headers().get("content-encoding"), None);
    assert_eq!(response.headers().get("cache-control").unwrap(), "no-store");
    let mut stream = open(client).await;
    let mut plain = String::new();
    for _ in 0..ONE_BY_ONE {
        let id = post(client, r#"{"userId":"u","eventType":"LOGIN"}"#).await;
        assert_eq!(stream.event().await.unwrap().event_id, id);
        while !plain.contains(&id) {
            plain += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
    }
    assert!(plain.starts_with("retry: "), "{plain}");
    // Held back, each would have come with the next of these.
    assert!(plain.matches(": heartbeat").count() < ONE_BY_ONE - 1, "{plain}");
}

/// A browser's `EventSource` gives up for good at any status but 200.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_with_an_id_that_nobody_knows_is_told_to_reset_and_gets_what_comes_next() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let request = || api.client.request(Method::GET, "/events/stream").header("last-event-id", "of-another-version");
    let problem = Reply::of(request()).await.unwrap().with_status(400).unwrap().parse::<Value>().unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("Last-Event-ID"), "{problem}");
    let mut response = request().header("accept", "text/event-stream").timeout(LONG).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let id = post(&api.client, r#"{"userId":"u","eventType":"LOGIN"}"#).await;
    let mut text = String::new();
    while !text.contains(&id) {
        text += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
    }
    let (reset, event) = (text.find("event: reset\n").expect("a reset"), text.find(&id).unwrap());
    assert!(reset < event, "{text}");
}

/// Proxies close a connection on which nothing is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_says_every_fifteen_seconds_that_it_lives_and_where_to_go_on() {
    const PERIOD: Duration = Duration::from_secs(15);
    // Many proxies close what is silent for a minute.
    const MARGIN: Duration = Duration::from_secs(5);
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let mut all = open(&api.client).await;
    let opened = Instant::now();
    let mut quiet = Sse::open(&api.client, "?userId=nobody", None).await.unwrap();
    let began = quiet.last_id().to_owned();
    is_silent(&api.client, &mut all).await;

    // Its reader, to whom nothing is shown, gets past what it is not shown, which may come a moment after the first.
    for _ in 0..3 {
        let comment = tokio::time::timeout(4 * PERIOD - MARGIN, quiet.comment()).await.expect("a heartbeat in time");
        assert_eq!(comment.unwrap(), "heartbeat");
        if quiet.last_id() != began {
            break;
        }
    }
    assert_ne!(quiet.last_id(), began);
    let after = opened.elapsed();
    assert!(after > Duration::from_secs(10), "no more often than it must: after {after:?}");
    let mut resumed = Sse::open(&api.client, "", Some(quiet.last_id())).await.unwrap();
    is_silent(&api.client, &mut resumed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_lets_through_what_it_names_and_nothing_else() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let begin = Utc::now() - TimeDelta::minutes(10);
    let at = |seconds: i64| format!("\"{}\"", rfc3339(begin + TimeDelta::seconds(seconds)));
    let bounds =
        format!("?from={}&to={}", rfc3339(begin + TimeDelta::seconds(2)), rfc3339(begin + TimeDelta::seconds(4)));
    let queries =
        ["?userId=a%20%2B1", "?eventType=LOGOUT&eventType=PRODUCT_VIEW", &*bounds, "?userId=b&eventType=LOGOUT"];
    let mut readers = Vec::new();
    for query in queries {
        readers.push(Sse::open(&api.client, query, None).await.unwrap());
    }
    let mut records = Vec::new();
    for (user, kind) in [("a +1", "LOGIN"), ("b", "LOGIN"), ("b", "LOGOUT"), ("c", "PRODUCT_VIEW"), ("a +1", "LOGOUT")]
    {
        for second in 0..6 {
            records.push(record(user, &[("eventType", &format!("\"{kind}\"")), ("timestamp", &at(second))]));
        }
    }
    world.kafka().write(&world.topic, None, &records).await;
    let list = api.client.listed(records.len()).await;
    for (query, reader) in queries.iter().zip(&mut readers) {
        let expected: Vec<Event> = api.client.get(&format!("/events/processed{query}")).await.unwrap().parse().unwrap();
        assert!(!expected.is_empty() && expected.len() < list.len(), "{query}");
        equals(take(reader, expected.len()).await, &expected);
    }
    // All filters let this one through but the last, which lets the other one.
    let both = [("a +1", "LOGOUT"), ("b", "LOGOUT")];
    let kinds = both.map(|(user, kind)| record(user, &[("eventType", &format!("\"{kind}\"")), ("timestamp", &at(3))]));
    world.kafka().write(&world.topic, None, &kinds).await;
    for reader in &mut readers {
        let next = reader.event().await.unwrap();
        assert!(next.event_type == "LOGOUT" && next.timestamp == rfc3339(begin + TimeDelta::seconds(3)), "{next:?}");
    }
}

/// A reader that has begun, leaves after some events, `longest` at most, and comes back over the other replica, until
/// it has as many as it is told there are.
async fn restless(
    clients: [&Client; 2],
    total: &watch::Receiver<Option<usize>>,
    longest: usize,
) -> JoinHandle<Vec<Event>> {
    let (clients, total) = (clients.map(Client::clone), total.clone());
    let mut stream = open(&clients[0]).await;
    tokio::spawn(async move {
        let mut seen = Vec::new();
        for client in clients.iter().cycle().skip(1) {
            let stay = seen.len() + fastrand::usize(1..=longest);
            while seen.len() < stay {
                if total.borrow().is_some_and(|total| seen.len() >= total) {
                    return seen;
                }
                let next = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
                let Ok(message) = next else { continue };
                let Some(message) = message.unwrap() else { break };
                match &*message.event {
                    "message" => seen.push(serde_json::from_str(&message.data).unwrap()),
                    "end" => {}
                    other => panic!("{other} after {}: {}", seen.len(), message.data),
                }
            }
            let last_id = stream.last_id().to_owned();
            stream = Sse::open(client, "", Some(&last_id)).await.unwrap();
        }
        unreachable!("the replicas never run out")
    })
}

/// Posts `count` events, and more, over two replicas. Readers that come and go between these, one for each of the
/// `longest` stays, see all of them and none twice.
async fn restless_readers_miss_nothing(world: &World, count: usize, longest: &[usize]) {
    let (api, _worker) = world.start().await;
    let replica = world.start_api().await;
    let (told, total) = watch::channel(None);
    let mut readers = Vec::new();
    for longest in longest {
        readers.push(restless([&api.client, &replica.client], &total, *longest).await);
    }
    let journal = Journal::default();
    let load = Load::start(&[&api.client, &replica.client], &journal);
    journal.grows_by(count).await;
    load.stop().await;
    journal.holds(&api.client).await;
    let list = api.client.list().await.unwrap();
    told.send_replace(Some(list.len()));
    for reader in readers {
        let seen = tokio::time::timeout(LONG, reader).await.expect("all are seen").unwrap();
        equals(seen, &list);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_come_back_over_another_replica_miss_nothing_and_see_nothing_twice() {
    restless_readers_miss_nothing(&World::shared(), 600, &[3, 10, 40, STEADY]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_twice_hides_nothing_that_comes_behind_it() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let mut stream = open(&api.client).await;
    let again = async |key: &str| {
        let request = api.client.publication(r#"{"userId":"u","eventType":"LOGIN"}"#).header("idempotency-key", key);
        let reply = Reply::of(request).await.unwrap().with_status(201).unwrap();
        reply.parse::<Value>().unwrap()["eventId"].as_str().unwrap().to_owned()
    };
    // Sooner or later two ids in a row are of one bucket.
    for round in 0..100 {
        let key = format!("round-{round}");
        let (id, same) = tokio::join!(again(&key), again(&key));
        let seen = stream.event().await.unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        assert_eq!((&seen.event_id, &same), (&id, &id), "round {round}");
    }
    is_silent(&api.client, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_and_die_leave_no_gap() {
    // Only those that are killed are to be missed soon.
    let world = World::shared();
    let mortal = world.clone().with_short_session();
    let api = world.start_api().await;
    let mut first = mortal.start_worker().await;
    let second = mortal.start_worker().await;
    let (told, total) = watch::channel(None);
    let reader = restless([&api.client; 2], &total, STEADY).await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(200).await;
    first.process.kill().await;
    journal.grows_by(200).await;
    let mut third = world.start_worker().await;
    journal.grows_by(200).await;
    // While partitions are shared out it could not commit.
    settles(&world, 2).await;
    assert_eq!(third.process.terminate(PATIENCE).await.code(), Some(0));
    let _fourth = world.start_worker().await;
    journal.grows_by(200).await;
    drop(second);
    load.stop().await;
    journal.holds(&api.client).await;
    let list = api.client.list().await.unwrap();
    told.send_replace(Some(list.len()));
    equals(tokio::time::timeout(LONG, reader).await.expect("all are seen").unwrap(), &list);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_reaches_a_reader_that_comes_back_when_it_is_told_to() {
    const EVENTS: usize = 20_000;
    let world = World::shared();
    let api = world.start_api().await;
    let records: Vec<Record> = (0..EVENTS).map(|number| record(&format!("user-{}", number % 100), &[])).collect();
    world.kafka().write(&world.topic, None, &records).await;
    let (told, total) = watch::channel(Some(EVENTS));
    let reader = restless([&api.client; 2], &total, STEADY).await;
    let mut stream = open(&api.client).await;
    let _worker = world.start_worker().await;
    stream.event().await.unwrap();
    let seen = tokio::time::timeout(LONG, reader).await.expect("all are seen").unwrap();
    drop(told);
    equals(seen, &api.client.list().await.unwrap());
}

/// A system on a Redis of its own.
struct Own {
    redis: RedisServer,
    api: Service,
    _worker: Service,
    journal: Journal,
}

impl Own {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let (api, worker) = World::on_redis(&redis.url()).start().await;
        Self { redis, api, _worker: worker, journal: Journal::default() }
    }

    async fn post(&self, count: u64) {
        for sequence in 0..count {
            let user = format!("user-{}-of-{}", sequence % 7, self.journal.acknowledged());
            self.journal.must_post(&self.api.client, &user, sequence).await.unwrap();
        }
        self.journal.holds(&self.api.client).await;
    }

    async fn flush(&self) {
        assert_eq!(self.redis.command_line::<String>("FLUSHALL").await, "OK");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_and_refilled_says_nothing_again() {
    let own = Own::start().await;
    let client = &own.api.client;
    own.post(100).await;
    let mut stream = open(client).await;
    own.post(50).await;
    let live = take(&mut stream, 51).await;
    for _ in 0..2 {
        own.flush().await;
        client.listed(own.journal.acknowledged()).await;
    }
    is_silent(client, &mut stream).await;
    let unique: HashSet<&str> = ids(&live).into_iter().collect();
    assert_eq!(unique.len(), 51);
}

/// As after a Redis that has lost its last second.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_lose_their_last_entries_are_read_on_and_say_nothing_again() {
    const TAKE_LAST: &str = "local taken = 0 \
        for _, key in ipairs(redis.call('KEYS', '*tl:*')) do \
          local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 4) \
          if #last == 4 then taken = taken + redis.call('XDEL', key, last[1][1]) end \
        end \
        return taken";
    let own = Own::start().await;
    let client = &own.api.client;
    let (mut stream, mut seen) = (open(client).await, Vec::new());
    for _ in 0..3 {
        // Each waits for the one before it: several entries in most streams.
        for _ in 0..6 {
            own.post(20).await;
            seen.extend(take(&mut stream, 21).await);
        }
        let taken: usize = own.redis.send(redis::cmd("EVAL").arg(TAKE_LAST).arg(0)).await.unwrap();
        assert!(taken > 0);
    }
    let list = client.list().await.unwrap();
    is_silent(client, &mut stream).await;
    equals(seen, &list);
}

/// The API reads the stream again from its beginning then, and there, that the log began: long before it was started.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_falls_back_behind_the_start_of_an_api_says_nothing_again() {
    // More entries than an API looks at when it starts.
    const ENTRIES: usize = 80;
    const FALL_BACK: &str = "local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][2] \
        redis.call('RESTORE', KEYS[1], 0, ARGV[1], 'REPLACE') \
        redis.call('XADD', KEYS[1], '*', unpack(last)) \
        return 1";
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, _worker) = world.start().await;
    let key = eventually("the stream begins", async || {
        post(&api.client, r#"{"userId":"early","eventType":"LOGIN"}"#).await;
        let keys: Vec<String> = redis.command_line("KEYS *tl:*").await;
        keys.into_iter().next().ok_or_else(|| anyhow::anyhow!("no stream"))
    })
    .await;
    eventually("the stream is long", async || {
        post(&api.client, r#"{"userId":"early","eventType":"LOGIN"}"#).await;
        let entries: usize = redis.command_line(&format!("XLEN {key}")).await;
        ensure!(entries > ENTRIES, "{entries}");
        Ok(())
    })
    .await;
    let last = post(&api.client, r#"{"userId":"early","eventType":"LOGIN"}"#).await;
    eventually("all is announced", async || api.client.get(&format!("/events/{last}")).await?.ok()).await;
    let dump: Vec<u8> = redis.send(redis::cmd("DUMP").arg(&key)).await.unwrap();

    let late = world.start_api().await;
    let mut stream = open(&late.client).await;
    is_silent(&late.client, &mut stream).await;
    let _: usize = redis.send(redis::cmd("EVAL").arg(FALL_BACK).arg(1).arg(&key).arg(dump)).await.unwrap();
    is_silent(&late.client, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_under_load_leaves_no_gap_and_repeats_nothing() {
    let own = Own::start().await;
    let client = &own.api.client;
    let (told, total) = watch::channel(None);
    let reader = restless([client; 2], &total, STEADY).await;
    let load = Load::start(&[client], &own.journal);
    // An API remembers what it announced before each of these; behind more of them a reader is told that it may lack some.
    for _ in 0..3 {
        own.journal.grows_by(100).await;
        own.flush().await;
    }
    own.journal.grows_by(100).await;
    load.stop().await;
    own.journal.holds(client).await;
    let list = client.list().await.unwrap();
    told.send_replace(Some(list.len()));
    equals(tokio::time::timeout(LONG, reader).await.expect("all are seen").unwrap(), &list);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_redis_no_longer_holds_is_answered_with_a_reset_and_then_with_what_comes() {
    let own = Own::start().await;
    let client = &own.api.client;
    let mut stream = open(client).await;
    // Each waits for the one before it: several transactions.
    for _ in 0..3 {
        own.post(30).await;
    }
    take(&mut stream, 5).await;
    let last_id = stream.last_id().to_owned();
    // As more than a thousand transactions do it.
    for key in own.redis.command_line::<Vec<String>>("KEYS *tl:*").await {
        own.redis.command_line::<i64>(&format!("XTRIM {key} MAXLEN 1")).await;
    }
    let mut resumed = Sse::open(client, "", Some(&last_id)).await.unwrap();
    let reset = resumed.next().await.unwrap().unwrap();
    assert_eq!(reset.event, "reset", "{reset:?}");
    assert_ne!(reset.id, last_id);
    is_silent(client, &mut resumed).await;
    // What the reset says is a place to go on from.
    let mut again = Sse::open(client, "", Some(&reset.id)).await.unwrap();
    assert_eq!(again.event().await.unwrap().user_id, "next");
    is_silent(client, &mut again).await;
}

/// More than the buffers of a [`stalled`] connection hold, in events of this many bytes.
const LARGE: (usize, usize) = (100, 200_000);

impl Own {
    /// A reader that has missed [`LARGE`] events.
    async fn far_behind(&self) -> String {
        self.post(1).await;
        let last_id = open(&self.api.client).await.last_id().to_owned();
        let (count, size) = LARGE;
        let payload = text(size);
        for number in 0..count {
            let body = format!(r#"{{"userId":"far-{number}","eventType":"LOGIN","payload":{{"b":{payload}}}}}"#);
            post(&self.api.client, body).await;
        }
        self.api.client.listed(count + self.journal.acknowledged()).await;
        last_id
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_come_back_from_far_behind_and_read_nothing_hold_little() {
    const READERS: usize = 15;
    let own = Own::start().await;
    let last_id = own.far_behind().await;
    let memory = own.api.process.memory_watch();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        // Who is sent the first event has been read all that is read ahead.
        readers.push(stalled(own.api.port, &format!("Last-Event-ID: {last_id}\r\n"), "data: ").await);
    }
    let grown = memory.growth();
    assert!(grown < 60, "{grown} MiB for {READERS} readers");
    drop(readers);
    // All of them have had their turn.
    let mut last = Sse::open(&own.api.client, "", Some(&last_id)).await.unwrap();
    take(&mut last, LARGE.0).await;
    is_silent(&own.api.client, &mut last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_overtaken_by_the_end_of_what_redis_holds_while_it_catches_up_is_told() {
    const LATE: usize = 60;
    /// Entries that are read at a time, most of them of one event here.
    const READ: usize = 25;
    const RESET: &[u8] = b"event: reset";
    let own = Own::start().await;
    let client = &own.api.client;
    let last_id = own.far_behind().await;
    // It takes nothing for now, so that it has not caught up yet when more comes and goes.
    let (mut stream, begun) = stalled(own.api.port, &format!("Last-Event-ID: {last_id}\r\n"), "data: ").await;
    // All at once, and none of the large ones is looked at: who takes nothing is cut off in the end.
    join_all((0..LATE).map(|_| post(client, r#"{"userId":"late","eventType":"LOGIN"}"#))).await;
    eventually("what is late is stored", async || {
        let late: Vec<Event> = client.get("/events/processed?userId=late&limit=100").await?.ok()?.parse()?;
        ensure!(late.len() == LATE, "{}", late.len());
        Ok(())
    })
    .await;
    for key in own.redis.command_line::<Vec<String>>("KEYS *tl:*").await {
        own.redis.command_line::<i64>(&format!("XTRIM {key} MAXLEN 1")).await;
    }
    let (mut read, mut some, mut searched) = (begun.into_bytes(), vec![0; 256 * 1024], 0);
    let until_reset = async {
        while !read[searched..].windows(RESET.len()).any(|text| text == RESET) {
            searched = read.len().saturating_sub(RESET.len());
            let length = stream.read(&mut some).await.unwrap();
            assert!(length > 0, "it goes on until it is told");
            read.extend_from_slice(&some[..length]);
        }
    };
    tokio::time::timeout(LONG, until_reset).await.expect("a reset");
    let read = String::from_utf8_lossy(&read);
    let (before, _) = read.split_once("event: reset").unwrap();
    let count = |user: &str| before.matches(&format!("\"userId\":\"{user}")).count();
    assert!(count("far") >= READ && count("late") == 0, "{} events, {} of them late", count(""), count("late"));
    let begins = (0..count("far")).all(|number| before.contains(&format!("\"userId\":\"far-{number}\"")));
    assert!(begins, "the gap is told where it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_trimmed_unread_are_told_however_young_they_are() {
    let own = Own::start().await;
    let client = &own.api.client;
    let mut stream = open(client).await;
    own.post(1).await;
    take(&mut stream, 2).await;
    // Entries that announce nothing, in one step: only the gap is news.
    let again = "local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][2] \
        for i = 1, 700 do redis.call('XADD', KEYS[1], 'MAXLEN', '~', 500, '*', last[1], '') end";
    let mut streams = Vec::new();
    for key in own.redis.command_line::<Vec<String>>("KEYS *tl:*").await {
        let last: Vec<(String, Vec<Vec<u8>>)> = own.redis.command_line(&format!("XREVRANGE {key} + - COUNT 1")).await;
        streams.push((last[0].0.clone(), key));
    }
    let (_, key) = streams.into_iter().max().unwrap();
    own.redis.send::<()>(redis::cmd("EVAL").arg(again).arg(1).arg(key)).await.unwrap();
    let reset = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a reset").unwrap().unwrap();
    assert_eq!(reset.event, "reset", "{reset:?}");
    is_silent(client, &mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_is_streamed_from_its_beginning_and_so_is_another_one() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let (client, kafka) = (&api.client, world.kafka());
    let write = async |topic: &str, user: &str, count: usize| {
        let records: Vec<Record> = (0..count).map(|_| record(user, &[])).collect();
        kafka.write(topic, Some(0), &records).await;
    };
    write(&world.topic, "old", 20).await;
    client.listed(20).await;
    let mut stream = open(client).await;
    let last_id = stream.last_id().to_owned();

    worker.process.terminate(PATIENCE).await;
    kafka.delete_topic(&world.topic).await.unwrap();
    let mut worker = world.start_worker().await;
    write(&world.topic, "anew", 5).await;
    let mut resumed = Sse::open(client, "", Some(&last_id)).await.unwrap();
    for stream in [&mut stream, &mut resumed] {
        let seen = take(stream, 5).await;
        assert!(seen.iter().all(|event| event.user_id == "anew"), "{seen:?}");
    }

    worker.process.terminate(PATIENCE).await;
    let other = format!("{}-v2", world.topic);
    let _worker = world.clone().with("KAFKA_TOPIC", &other).start_worker().await;
    write(&other, "other", 3).await;
    for stream in [&mut stream, &mut resumed] {
        let seen = take(stream, 3).await;
        assert!(seen.iter().all(|event| event.user_id == "other"), "{seen:?}");
    }
}

/// A replica has taken over whose clock is behind: its streams go on below what readers have passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_beyond_the_end_of_its_streams_is_told() {
    let own = Own::start().await;
    let client = &own.api.client;
    let mut stream = open(client).await;
    own.post(1).await;
    take(&mut stream, 2).await;
    let mut older: Vec<(String, Vec<u8>)> = Vec::new();
    for key in own.redis.command_line::<Vec<String>>("KEYS *tl:*").await {
        let dump = own.redis.send(redis::cmd("DUMP").arg(&key)).await.unwrap();
        older.push((key, dump));
    }
    assert_eq!(older.len(), 1);
    // What was announced last, an hour ahead: only where it stands is news.
    let ahead = "local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][2] \
        return redis.call('XADD', KEYS[1], ARGV[1], unpack(last))";
    let hour = (Utc::now() + TimeDelta::hours(1)).timestamp_millis();
    for (key, _) in &older {
        own.redis.send::<String>(redis::cmd("EVAL").arg(ahead).arg(1).arg(key).arg(hour)).await.unwrap();
    }
    let id = post(client, r#"{"userId":"ahead","eventType":"LOGIN"}"#).await;
    assert_eq!(stream.event().await.unwrap().event_id, id);
    for (key, dump) in &older {
        own.redis.send::<()>(redis::cmd("RESTORE").arg(key).arg(0).arg(dump).arg("REPLACE")).await.unwrap();
    }

    let id = post(client, r#"{"userId":"behind","eventType":"LOGIN"}"#).await;
    eventually("it is stored", async || client.get(&format!("/events/{id}")).await?.ok()).await;
    let begun = own.redis.calls("xread").await;
    let told = eventually("the reader is told, or Redis was asked in vain", async || {
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(50), stream.next()).await {
            return message;
        }
        let asked = own.redis.calls("xread").await - begun;
        ensure!(asked > 5, "{asked}");
        Ok(None)
    })
    .await;
    assert!(told.is_some(), "a reader misses nothing in silence");
}

/// What is stored again after a loss was announced to this reader, and an API does not remember that for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_lived_through_many_losses_is_told_before_it_is_told_again() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, _worker) = world.start().await;
    let mut stream = open(&api.client).await;
    let (mut seen, mut resets) = (HashSet::new(), 0);
    for loss in 0..7 {
        let id = post(&api.client, r#"{"userId":"u","eventType":"LOGIN"}"#).await;
        loop {
            let message = stream.next().await.unwrap().expect("the stream goes on");
            if message.event == "reset" {
                resets += 1;
                seen.clear();
                continue;
            }
            let event: Event = serde_json::from_str(&message.data).unwrap();
            assert!(seen.insert(event.event_id.clone()), "after {loss} losses and {resets} resets, again: {event:?}");
            if event.event_id == id {
                break;
            }
        }
        api.client.listed(loss + 1).await;
        redis.command_line::<String>("FLUSHALL").await;
        api.client.listed(loss + 1).await;
    }
    assert!((1..4).contains(&resets), "{resets}");
}

/// The end of the new log lies further than that of the old one by the time a worker comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_and_longer_than_before_is_streamed_whole() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let (client, kafka) = (&api.client, world.kafka());
    let write = async |user: &str, count: usize| {
        let records: Vec<Record> = (0..count).map(|_| record(user, &[])).collect();
        kafka.write(&world.topic, Some(0), &records).await;
    };
    write("old", 20).await;
    client.listed(20).await;
    worker.process.terminate(PATIENCE).await;
    // Some time after its topic, the group's commits would go by themselves.
    eventually("the group is gone", async || kafka.delete_group(&world.group).await).await;
    // As what comes behind it does, so that only positions say what was announced.
    for key in redis.command_line::<Vec<String>>("KEYS *tl:*").await {
        redis.command_line::<i64>(&format!("XTRIM {key} MAXLEN 0")).await;
    }
    let mut stream = open(client).await;

    kafka.delete_topic(&world.topic).await.unwrap();
    eventually("it is made anew", async || {
        // The API may come first.
        drop(kafka.create_topic(&world.topic, 6, ("retention.ms", "-1")).await);
        let partitions = kafka.partitions(&world.topic)?.len();
        ensure!(partitions == 6, "{partitions} of 6");
        Ok(())
    })
    .await;
    write("anew", 30).await;
    let _worker = world.start_worker().await;
    client.listed(50).await;
    write("last", 1).await;
    let mut seen = 0;
    while stream.event().await.unwrap().user_id == "anew" {
        seen += 1;
    }
    assert_eq!(seen, 30, "all of the new log is news");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_given_is_refused_with_the_reason() {
    let api = World::shared().start_api().await;
    for bad in ["0", "x".repeat(300).as_str(), "AQ"] {
        let request = api.client.request(Method::GET, "/events/stream").header("last-event-id", bad);
        let problem = Reply::of(request).await.unwrap().problem(400).unwrap();
        assert!(problem["detail"].as_str().unwrap().contains("Last-Event-ID"), "{problem}");
    }
    for (query, name) in
        [("limit=1", "limit"), ("order=asc", "order"), ("eventType=x", "eventType"), ("from=x", "from")]
    {
        let problem = api.client.get(&format!("/events/stream?{query}")).await.unwrap().problem(400).unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(&format!("\"{name}\"")), "{problem}");
    }
    let away = World::on_redis("redis://127.0.0.1:9").start_api().await;
    away.client.get("/events/stream").await.unwrap().unavailable().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_every_stream_with_a_word_and_the_process_in_time() {
    let world = World::shared();
    let (mut api, _worker) = world.start().await;
    let mut streams = [open(&api.client).await, open(&api.client).await];
    is_silent(&api.client, &mut streams[0]).await;
    assert_eq!(streams[1].event().await.unwrap().user_id, "next");
    let status = api.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "a clean end");
    for stream in &mut streams {
        let end = stream.next().await.unwrap().expect("a last word");
        assert_eq!(end.event, "end");
        assert!(end.data.contains("this process is ending"), "{}", end.data);
        assert_eq!(stream.next().await.unwrap(), None, "then the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_a_reader_that_catches_up_slowly() {
    let mut own = Own::start().await;
    let last_id = own.far_behind().await;
    let (mut slow, _) = stalled(own.api.port, &format!("Last-Event-ID: {last_id}\r\n"), "id: ").await;
    let reading = tokio::spawn(async move {
        let mut some = vec![0; 64 * 1024];
        // At this rate all of it takes more than a minute.
        while matches!(slow.read(&mut some).await, Ok(1..)) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let status = own.api.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "a clean end");
    reading.abort();
}

/// A client that opens a stream, with these headers besides, and reads only its beginning, up to these words. With what it
/// has read.
async fn stalled(port: u16, headers: &str, words: &str) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let head = format!("GET /events/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut begun = String::new();
    while !begun.contains(words) {
        let mut some = [0; 1024];
        let length = stream.read(&mut some).await.unwrap();
        assert!(length > 0, "it begins: {begun}");
        begun += &String::from_utf8_lossy(&some[..length]);
    }
    (stream, begun)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_reads_nothing_is_dropped_and_memory_stays_bounded() {
    const EVENTS: usize = 800;
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let start = Instant::now();
    let (mut stalled, _) = stalled(api.port, "", "id: ").await;
    let (_told, total) = watch::channel(Some(EVENTS));
    let reader = restless([&api.client; 2], &total, STEADY).await;
    let memory = api.process.memory_watch();
    let payload = format!(r#"{{"blob":{}}}"#, text(200_000));
    for _ in 0..EVENTS / 50 {
        let records: Vec<Record> = (0..50).map(|n| record(&format!("user-{n}"), &[("payload", &payload)])).collect();
        world.kafka().write(&world.topic, None, &records).await;
    }
    let seen = tokio::time::timeout(LONG, reader).await.expect("the others get everything").unwrap();
    let unique: HashSet<&str> = ids(&seen).into_iter().collect();
    assert_eq!((seen.len(), unique.len()), (EVENTS, EVENTS));
    let grown = memory.growth();
    assert!(grown < 120, "{grown} MiB more for {} MiB of events", EVENTS * 200_000 / 1024 / 1024);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stalled.read_to_end(&mut rest)).await;
    ended.expect("the connection is closed").ok();
    let late = start.elapsed() > Duration::from_secs(15);
    let last = String::from_utf8_lossy(&rest[rest.len().saturating_sub(300)..]).into_owned();
    // On a busy machine it has taken nothing for so long that it was cut off before it could be told.
    assert!(late || last.contains("event: end") && last.contains("too slow"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_missed_many_large_events_gets_them_within_bounded_memory() {
    const EVENTS: usize = 800;
    let own = Own::start().await;
    let client = &own.api.client;
    own.post(1).await;
    let last_id = open(client).await.last_id().to_owned();
    let payload = text(200_000);
    // Many at a time: however long it takes, the stream holds its last five hundred entries.
    for user in 0..EVENTS / 20 {
        let line = format!("{{\"userId\":\"{user}\",\"eventType\":\"LOGIN\",\"payload\":{{\"b\":{payload}}}}}\n");
        let batch = client.request(Method::POST, "/events/batch").header("content-type", "application/x-ndjson");
        Reply::of(batch.body(line.repeat(20))).await.unwrap().with_status(200).unwrap();
    }
    eventually("all are stored", async || {
        let stored = own.redis.command_line::<usize>("DBSIZE").await;
        ensure!(stored > EVENTS, "{stored}");
        Ok(())
    })
    .await;
    let memory = own.api.process.memory_watch();
    let mut resumed = Sse::open(client, "", Some(&last_id)).await.unwrap();
    let seen = take(&mut resumed, EVENTS).await;
    let unique: HashSet<&str> = ids(&seen).into_iter().collect();
    assert_eq!(unique.len(), EVENTS);
    let grown = memory.growth();
    assert!(grown < 120, "{grown} MiB more for {} MiB of events", EVENTS * 200_000 / 1024 / 1024);
}

/// Each bucket is on one of three nodes, and is waited for by itself.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_cluster_readers_see_everything_once_wherever_they_come_back() {
    let cluster = RedisCluster::start().await;
    restless_readers_miss_nothing(&World::on_redis(&cluster.url()), 500, &[5, 40, STEADY]).await;
}

/// Each bucket is waited for by itself, and they stop being read together: when nobody has read for half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_cluster_a_reader_that_comes_as_reading_ends_misses_nothing() {
    let cluster = RedisCluster::start().await;
    let (api, _worker) = World::on_redis(&cluster.url()).start().await;
    let mut last = open(&api.client).await;
    // One by one: the waits for the buckets begin at different times.
    for _ in 0..40 {
        is_silent(&api.client, &mut last).await;
    }
    drop(last);
    // The moment itself is what this is about.
    tokio::time::sleep(Duration::from_millis(30_250)).await;
    let mut stream = open(&api.client).await;
    for _ in 0..60 {
        let id = post(&api.client, r#"{"userId":"next","eventType":"LOGIN"}"#).await;
        let next = tokio::time::timeout(PATIENCE, async {
            loop {
                let message = stream.next().await.unwrap().expect("the stream goes on");
                // If it was late after all, that is said.
                if message.event != "reset" {
                    return message;
                }
            }
        });
        assert!(next.await.expect("an event of any bucket comes").data.contains(&id));
    }
}

/// What is stored again after a loss was announced before, but not to who reads the list meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_before_a_lost_redis_is_refilled_misses_nothing() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let client = &api.client;
    let (mut stays, mut leaves) = (open(client).await, open(client).await);
    let lost = post(client, r#"{"userId":"lost","eventType":"LOGIN"}"#).await;
    for stream in [&mut stays, &mut leaves] {
        assert_eq!(stream.event().await.unwrap().event_id, lost);
    }
    let last_id = leaves.last_id().to_owned();
    drop(leaves);
    worker.process.terminate(PATIENCE).await;
    assert_eq!(redis.command_line::<String>("FLUSHALL").await, "OK");

    let mut back = Sse::open(client, "", Some(&last_id)).await.unwrap();
    assert_eq!(back.next().await.unwrap().unwrap().event, "reset");
    let mut comes = open(client).await;
    client.listed(0).await;
    let _worker = world.start_worker().await;
    client.listed(1).await;
    let next = post(client, r#"{"userId":"next","eventType":"LOGIN"}"#).await;
    for stream in [&mut back, &mut comes] {
        let mut seen = take(stream, 1).await;
        if seen[0].event_id != next {
            seen.extend(take(stream, 1).await);
        }
        assert_eq!(ids(&seen), [&lost, &next], "who was told reset sees what the list did not have yet");
    }
    assert_eq!(stays.event().await.unwrap().event_id, next, "who was there is told nothing twice");
}

/// Another group stores nothing that is stored, and announces all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_reads_everything_again_tells_no_reader_anything_twice() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let client = &api.client;
    let mut stream = open(client).await;
    for user in 0..30 {
        post(client, format!(r#"{{"userId":"{user}","eventType":"LOGIN"}}"#)).await;
    }
    take(&mut stream, 30).await;
    worker.process.terminate(PATIENCE).await;
    let other = format!("{}-other", world.group);
    let mut worker = world.clone().with("KAFKA_CONSUMER_GROUP", &other).start_worker().await;
    // Sooner or later it has read what was there before, in each partition.
    for _ in 0..5 {
        is_silent(client, &mut stream).await;
    }
    worker.process.terminate(PATIENCE).await;
}
