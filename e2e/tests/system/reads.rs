//! What can be asked of the processed events: filters, forms, codings, the older path, and waiting for one of them.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use e2e::{
    PATIENCE,
    chaos::admin::Admin,
    client::{Client, Event, Reply},
    env, eventually, eventually_within,
    kafka::Record,
    process::Signal,
    redis_server::RedisServer,
    sample::{event, record, rfc3339, text},
    service::Service,
    world::World,
};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::in_flight;

/// For a hundred megabytes on a busy machine.
const LONG: Duration = PATIENCE.saturating_mul(4);

/// The longest that a request may wait for an event. Who does not end a wait when it is over takes this long.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A payload that a line-based form must take care of.
const ODD: &str = "{ \"quote\" : \"say \\\"hi\\\", \\n twice\",\r\n\t\"a\":1.0e+2,\n \"b\" : [ \"x,y\", \"\u{e9}\" ] }";

fn begin() -> DateTime<Utc> {
    Utc::now() - TimeDelta::minutes(30)
}

/// `count` records of three users and three types; twelve at a time share a timestamp, one second after those before.
fn mixture(count: usize, begin: DateTime<Utc>) -> Vec<Record> {
    let nth = |n: usize| {
        let kind = ["\"LOGIN\"", "\"LOGOUT\"", "\"PRODUCT_VIEW\""][n / 3 % 3];
        let timestamp = format!("\"{}\"", rfc3339(begin + TimeDelta::seconds((n / 12) as i64)));
        record(&format!("user {}", n % 3), &[("eventType", kind), ("timestamp", &timestamp), ("payload", ODD)])
    };
    (0..count).map(nth).collect()
}

async fn get(client: &Client, path: &str, header: (&str, &str)) -> Reply {
    Reply::of(client.request(Method::GET, path).header(header.0, header.1)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_through_the_pages_of_a_filtered_list_to_its_end_and_back_to_the_first() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let replica = world.start_api().await;
    let begin = begin();
    world.kafka().write(&world.topic, None, &mixture(120, begin)).await;
    let list = api.client.listed(120).await;
    let at = |seconds| rfc3339(begin + TimeDelta::seconds(seconds));
    let (from, to) = (at(2), at(7));
    let between = |event: &Event| from <= event.timestamp && event.timestamp < to;
    type Admits<'a> = Box<dyn Fn(&Event) -> bool + 'a>;
    let cases: [(String, Admits<'_>); 6] = [
        ("userId=user%201".into(), Box::new(|event| event.user_id == "user 1")),
        ("eventType=LOGOUT".into(), Box::new(|event| event.event_type == "LOGOUT")),
        ("eventType=LOGOUT&eventType=LOGIN".into(), Box::new(|event| event.event_type != "PRODUCT_VIEW")),
        (format!("from={from}&to={to}"), Box::new(between)),
        (format!("to={to}&userId=user+2"), Box::new(|event| event.timestamp < to && event.user_id == "user 2")),
        (
            format!("userId=user+0&eventType=LOGIN&from={from}&to={to}"),
            Box::new(|event| between(event) && event.user_id == "user 0" && event.event_type == "LOGIN"),
        ),
    ];
    for (filter, admits) in &cases {
        for order in ["asc", "desc"] {
            let mut expected: Vec<Event> = list.iter().filter(|event| admits(event)).cloned().collect();
            assert!(!expected.is_empty(), "{filter}");
            if order == "desc" {
                expected.reverse();
            }
            let path = format!("/events/processed?{filter}&order={order}");
            let whole: Vec<Event> = api.client.get(&path).await.unwrap().ok().unwrap().parse().unwrap();
            assert_eq!(whole, expected, "{path}");
            let (mut paged, mut next, mut first) = (Vec::new(), Some(format!("{path}&limit=5")), None);
            // Any replica continues what another one began.
            for client in [&api.client, &replica.client].into_iter().cycle() {
                let Some(target) = next else { break };
                let reply = client.get(&target).await.unwrap().ok().unwrap();
                let rows: Vec<Event> = reply.parse().unwrap();
                assert!(rows.len() <= 5, "{target}");
                next = reply.link("next");
                let said = reply.link("first").expect("a way back");
                assert_eq!(*first.get_or_insert_with(|| said.clone()), said, "one first page");
                paged.extend(rows);
            }
            assert_eq!(paged, expected, "{path} in pages");
            let again: Vec<Event> = api.client.get(&first.unwrap()).await.unwrap().ok().unwrap().parse().unwrap();
            assert_eq!(again, expected[..expected.len().min(5)], "the first page");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_list_or_of_none_is_refused_and_says_so() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    world.kafka().write(&world.topic, None, &mixture(30, begin())).await;
    api.client.listed(30).await;
    let page = api.client.get("/events/processed?limit=3&userId=user+1").await.unwrap().ok().unwrap();
    let next = page.link("next").unwrap();
    let cursor = next.split_once("cursor=").unwrap().1.to_owned();
    api.client.get(&format!("/events/processed?userId=user%201&cursor={cursor}")).await.unwrap().ok().unwrap();
    let others = [
        "",
        "userId=user+2",
        "userId=user+1&order=desc",
        "userId=user+1&eventType=LOGIN",
        "userId=user+1&from=2026-01-01T00:00:00Z",
    ];
    for other in others {
        for path in ["/events/processed", "/api/activities"] {
            let reply = api.client.get(&format!("{path}?limit=3&{other}&cursor={cursor}")).await.unwrap();
            let problem = reply.problem(400).unwrap();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("other filters or another order"), "{other}: {detail}");
        }
    }
    let flipped = cursor.replacen(|letter: char| letter.is_ascii_lowercase(), "_", 1);
    for forged in [&cursor[..cursor.len() - 40], &cursor[4..], &flipped, &format!("{cursor}!"), "AAAA", ""] {
        let reply = api.client.get(&format!("/events/processed?userId=user+1&cursor={forged}")).await.unwrap();
        let detail = reply.problem(400).unwrap()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("\"cursor\"") && detail.contains("is not a cursor of this list"), "{forged}: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_parameter_is_refused_by_name_with_its_value_and_what_is_allowed() {
    let api = World::shared().start_api().await;
    let cases = [
        ("limit=0", "limit", "\"0\"", "from 1 to 1000"),
        ("limit=1001", "limit", "\"1001\"", "from 1 to 1000"),
        ("limit=-1", "limit", "\"-1\"", "from 1 to 1000"),
        ("limit=ten", "limit", "\"ten\"", "from 1 to 1000"),
        ("limit=", "limit", "\"\"", "from 1 to 1000"),
        ("limit=1&limit=2", "limit", "\"2\"", "at most once"),
        ("order=up", "order", "\"up\"", "asc (oldest first) or desc"),
        ("eventType=SIGNUP", "eventType", "\"SIGNUP\"", "LOGIN, LOGOUT, PRODUCT_VIEW"),
        ("eventType=LOGIN&eventType=", "eventType", "\"\"", "LOGIN, LOGOUT, PRODUCT_VIEW"),
        ("userId=", "userId", "\"\"", "required"),
        ("userId=%20", "userId", "\" \"", "required"),
        ("userId=a&userId=a", "userId", "\"a\"", "at most once"),
        ("userId=%f", "userId", "\"%f\"", "percent-encoded UTF-8"),
        ("userId=%ff", "userId", "\"%ff\"", "percent-encoded UTF-8"),
        ("from=yesterday", "from", "\"yesterday\"", "RFC 3339"),
        ("to=2026-02-30T00:00:00Z", "to", "\"2026-02-30T00:00:00Z\"", "RFC 3339"),
        ("from=2026-02-17T12:00:00+01:00", "from", "2026-02-17T12:00:00 01:00", "%2B"),
        ("to=1969-12-31T23:59:59Z", "to", "1969-12-31", "1970 or later"),
        ("from=2026-02-17T10:00:01Z&to=2026-02-17T10:00:00Z", "from", "10:00:01", "not be later than to"),
        ("cursor=forged", "cursor", "\"forged\"", "Link header or a nextCursor"),
        ("userID=a", "userID", "\"a\"", "takes userId, eventType, from, to, order, limit"),
        ("wait=1s", "wait", "\"1s\"", "takes userId, eventType, from, to, order, limit"),
    ];
    for (query, name, value, allowed) in cases {
        for path in ["/events/processed", "/api/activities"] {
            let reply = api.client.get(&format!("{path}?{query}")).await.unwrap();
            let problem = reply.problem(400).unwrap_or_else(|error| panic!("{query}: {error:#}"));
            assert_eq!(problem["type"], "/docs/problems#invalid-parameter");
            let detail = problem["detail"].as_str().unwrap();
            for part in [&format!("{name:?}"), value, allowed] {
                assert!(detail.contains(part), "{part} is missing for {query}: {detail}");
            }
        }
    }
    // Of CSV only, which the one route does not have, and the other only for who asks for it.
    for (path, why) in [("/api/activities", "no such parameter"), ("/events/processed", "Accept: text/csv")] {
        let problem = api.client.get(&format!("{path}?raw=true")).await.unwrap().problem(400).unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
}

/// A row as CSV has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    event_id: String,
    user_id: String,
    event_type: String,
    timestamp: String,
    payload: String,
}

fn from_csv(body: &[u8]) -> Vec<Event> {
    let rows = csv::Reader::from_reader(body).into_deserialize().map(|line| {
        let Line { event_id, user_id, event_type, timestamp, payload } = line.unwrap();
        Event { event_id, user_id, event_type, timestamp, payload }
    });
    rows.collect()
}

/// Payloads without the line breaks between their tokens.
fn in_lines(mut events: Vec<Event>) -> Vec<Event> {
    events.iter_mut().for_each(|event| event.payload.retain(|letter| !matches!(letter, '\n' | '\r')));
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_list_holds_the_same_rows_whole_and_in_pages() {
    const EVENTS: usize = 1_300;
    let world = World::shared();
    let (api, _worker) = world.start().await;
    world.kafka().write(&world.topic, None, &mixture(EVENTS, begin())).await;
    let list = api.client.listed(EVENTS).await;
    assert!(list.iter().all(|event| event.payload == ODD), "verbatim");
    for query in ["", "?limit=1000", "?limit=7&order=desc", "?userId=user+1&eventType=LOGOUT"] {
        let path = format!("/events/processed{query}");
        let rows: Vec<Event> = api.client.get(&path).await.unwrap().ok().unwrap().parse().unwrap();
        assert!(!query.is_empty() || rows == list);
        let ndjson = get(&api.client, &path, ("accept", "application/x-ndjson")).await.ok().unwrap();
        assert_eq!(ndjson.header("content-type"), "application/x-ndjson");
        assert!(ndjson.body.ends_with(b"\n"));
        let lines: Vec<Event> = ndjson.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, in_lines(rows.clone()), "{path} as NDJSON");
        let csv = get(&api.client, &path, ("accept", "text/csv")).await.ok().unwrap();
        assert!(csv.header("content-type").starts_with("text/csv"), "{}", csv.header("content-type"));
        assert_eq!(from_csv(&csv.body), rows, "{path} as CSV");
        let raw = format!("{path}{}raw=true", if query.is_empty() { '?' } else { '&' });
        let raw = get(&api.client, &raw, ("accept", "text/csv")).await.ok().unwrap();
        assert!(raw.body == csv.body, "no cell here begins as a formula does");
        assert!(raw.link("first").is_none_or(|first| first.ends_with("&raw=true")), "its pages are raw, too");
        for reply in [&ndjson, &csv] {
            assert_eq!(reply.link("next").is_some(), query.contains("limit"), "{path}");
            assert!(reply.headers.get_all("vary").iter().any(|vary| vary == "accept"), "caches tell forms apart");
        }
    }
    for accept in ["text/html", "application/xml", "application/json;q=0", "nonsense"] {
        let problem = get(&api.client, "/events/processed", ("accept", accept)).await.problem(406).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("application/x-ndjson") && detail.contains("text/csv"), "{detail}");
    }
    let nothing = "/events/processed?userId=nobody";
    assert_eq!(get(&api.client, nothing, ("accept", "application/x-ndjson")).await.text(), "");
    let empty = get(&api.client, nothing, ("accept", "text/csv")).await;
    assert_eq!(empty.text(), "eventId,userId,eventType,timestamp,payload\r\n");
    equal_when_unpacked(&api.client).await;
}

/// Compressed replies hold the same bytes, and only clients that ask for them get them.
async fn equal_when_unpacked(client: &Client) {
    for (path, accept) in [
        ("/events/processed", "application/json"),
        ("/events/processed", "text/csv"),
        ("/events/processed?limit=1000", "application/x-ndjson"),
        ("/api/activities?limit=500", "application/json"),
    ] {
        let plain = get(client, path, ("accept", accept)).await.ok().unwrap();
        assert_eq!(plain.header("content-encoding"), "");
        for coding in ["gzip", "zstd"] {
            let request = client.request(Method::GET, path).header("accept", accept).header("accept-encoding", coding);
            let packed = Reply::of(request).await.unwrap().ok().unwrap();
            assert_eq!(packed.header("content-encoding"), coding, "{path} as {accept}");
            assert!(packed.body.len() < plain.body.len() / 2, "{} of {}", packed.body.len(), plain.body.len());
            let mut unpacked = Vec::new();
            match coding {
                "gzip" => flate2::read::MultiGzDecoder::new(&*packed.body).read_to_end(&mut unpacked),
                _ => zstd::Decoder::new(&*packed.body).unwrap().read_to_end(&mut unpacked),
            }
            .unwrap();
            assert!(unpacked == plain.body, "{coding} of {path} as {accept}");
        }
        let other = get(client, path, ("accept-encoding", "identity, br")).await;
        assert_eq!(other.header("content-encoding"), "");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    data: Vec<Event>,
    pagination: Pagination,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pagination {
    limit: usize,
    next_cursor: Option<String>,
    has_more: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn activities_are_posted_and_listed_in_an_envelope_whose_cursor_leads_to_the_end() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let body = json!({"userId": "u", "eventType": "LOGIN", "payload": {"n": 1}});
    let request = api.client.request(Method::POST, "/api/activities").body(body.to_string());
    let posted = Reply::of(request).await.unwrap().with_status(201).unwrap();
    let posted: Value = posted.parse().unwrap();
    assert_eq!((&posted["success"], &posted["event"]["userId"]), (&json!(true), &json!("u")));
    world.kafka().write(&world.topic, None, &mixture(120, begin())).await;
    let list = api.client.listed(121).await;
    assert!(list.iter().any(|event| posted["eventId"] == *event.event_id));

    for (query, limit, pages) in [("", 100, 2), ("limit=50", 50, 3), ("limit=121", 121, 1), ("limit=1000", 1000, 1)] {
        let (mut all, mut cursor, mut number) = (Vec::new(), None::<String>, 0);
        loop {
            let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let reply = api.client.get(&format!("/api/activities?{query}{after}")).await.unwrap().ok().unwrap();
            let Envelope { data, pagination } = reply.parse().unwrap();
            number += 1;
            assert_eq!(pagination.limit, limit, "{query}");
            assert_eq!(pagination.has_more, pagination.next_cursor.is_some(), "{query}");
            assert_eq!(reply.link("next").is_some(), pagination.has_more, "{query}");
            all.extend(data);
            cursor = pagination.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!((all == list, number), (true, pages), "{query}");
    }
    let reply = api.client.get("/api/activities?order=desc&limit=1&eventType=LOGIN").await.unwrap().ok().unwrap();
    assert_eq!(
        reply.parse::<Envelope>().unwrap().data[0].event_id,
        posted["eventId"].as_str().unwrap(),
        "newest first"
    );
}

async fn preferring(client: &Client, prefer: &str, body: &Value) -> (Reply, Value, Duration) {
    let begun = Instant::now();
    let reply = Reply::of(client.publication(body.to_string()).header("prefer", prefer)).await.unwrap();
    let reply = reply.with_status(201).unwrap();
    let parsed = reply.parse().unwrap();
    (reply, parsed, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_posted_can_be_read_through_another_replica_as_soon_as_it_is_processed() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    let replica = world.start_api().await;
    let body = json!({"userId": "u", "eventType": "LOGIN"});
    for round in 0..20 {
        let posted: Value = api.client.publish(body.to_string()).await.unwrap().parse().unwrap();
        let id = posted["eventId"].as_str().unwrap();
        let begun = Instant::now();
        let read = replica.client.get(&format!("/events/{id}?wait=30s")).await.unwrap().ok().unwrap();
        assert!(begun.elapsed() < LONGEST_WAIT, "round {round}: it waited to the end");
        assert_eq!(read.parse::<Value>().unwrap()["eventId"], id);
        // What one replica has shown, all others show.
        api.client.get(&format!("/events/{id}")).await.unwrap().ok().unwrap();
        assert!(replica.client.list().await.unwrap().iter().any(|event| event.event_id == id), "it is listed as well");
    }
    for prefer in ["wait=30", "respond-async, wait=30", "Wait=\"30\""] {
        let (reply, posted, took) = preferring(&replica.client, prefer, &body).await;
        assert_eq!((reply.header("preference-applied"), &posted["processed"]), ("wait=30", &json!(true)), "{prefer}");
        assert!(took < LONGEST_WAIT, "{prefer}: it waited to the end");
        api.client.get(reply.header("location")).await.unwrap().ok().unwrap();
    }
    for nonsense in ["wait", "wait=", "wait=-1", "wait=soon", "waits=2", "return=minimal", "=;,"] {
        let (reply, posted, _) = preferring(&api.client, nonsense, &body).await;
        assert_eq!((reply.header("preference-applied"), &posted["processed"]), ("", &Value::Null), "{nonsense}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_what_is_not_processed_ends_in_time_and_says_so() {
    let (api, worker) = World::shared().start().await;
    // It is a member, and does nothing for now.
    worker.process.signal(Signal::SIGSTOP);
    let body = json!({"userId": "u", "eventType": "LOGIN"});
    let (reply, posted, took) = preferring(&api.client, "wait=1", &body).await;
    assert_eq!((reply.header("preference-applied"), &posted["processed"]), ("", &json!(false)));
    assert!((Duration::from_secs(1)..LONGEST_WAIT).contains(&took), "{took:?}");
    let id = posted["eventId"].as_str().unwrap();
    let begun = Instant::now();
    api.client.get(&format!("/events/{id}?wait=700ms")).await.unwrap().problem(404).unwrap();
    let took = begun.elapsed();
    assert!((Duration::from_millis(700)..LONGEST_WAIT).contains(&took), "{took:?}");
    for wait in ["31s", "-1s", "", "2", "soon", "1h"] {
        let problem = api.client.get(&format!("/events/{id}?wait={wait}")).await.unwrap().problem(400).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("\"wait\"") && detail.contains("at most 30 s"), "{wait}: {detail}");
    }
    api.client.get(&format!("/events/{id}?wait=1s&wait=1s")).await.unwrap().problem(400).unwrap();
    api.client.get(&format!("/events/{id}?limit=1")).await.unwrap().problem(400).unwrap();
    let begun = Instant::now();
    api.client.get(&format!("/events/{}?wait=30s", "x".repeat(65))).await.unwrap().problem(404).unwrap();
    assert!(begun.elapsed() < LONGEST_WAIT, "no id is that long");

    // Who already waits when it is processed is told then.
    let waiting = api.client.clone();
    let path = format!("/events/{id}?wait=30s");
    let waiter = tokio::spawn(async move { waiting.get(&path).await.unwrap().status });
    in_flight(&api, 1).await;
    worker.process.signal(Signal::SIGCONT);
    assert_eq!(waiter.await.unwrap(), 200);
}

/// One Redis serves all that wait at all replicas, be the ids that they wait for ever so unknown.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_event_asks_redis_only_at_the_beginning_and_at_the_end() {
    const WAITERS: usize = 50;
    let redis = RedisServer::start().await;
    let (api, _worker) = World::on_redis(&redis.url()).start().await;
    let looks = async || {
        let stats: String = redis.command_line("INFO commandstats").await;
        let calls = |line: &str| line.strip_prefix("cmdstat_get:calls=")?.split(',').next()?.parse::<usize>().ok();
        stats.lines().find_map(calls).unwrap_or_default()
    };
    let wait = async |number: usize| {
        api.client.get(&format!("/events/nobody-{number}?wait=4s")).await.unwrap().problem(404).unwrap()
    };
    wait(0).await;
    let before = looks().await;
    futures::future::join_all((0..WAITERS).map(wait)).await;
    let each = (looks().await - before) as f64 / WAITERS as f64;
    // Every half second would be eight.
    assert!((2.0..7.0).contains(&each), "{each}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_does_not_hold_a_stop_up() {
    let mut api = World::shared().start_api().await;
    let waiting = api.client.clone();
    let waiter = tokio::spawn(async move { waiting.get("/events/nothing?wait=30s").await });
    in_flight(&api, 1).await;
    // To wait for its end would take longer than a stop may, which would not be clean then.
    let status = api.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0));
    if let Ok(reply) = waiter.await.unwrap() {
        reply.problem(404).unwrap();
    }
}

/// A system that has stored so many events with 20,000 bytes of payload each.
async fn with_large_events(count: usize) -> (Service, Service) {
    with_events_of(20_000, &World::shared(), count).await
}

async fn with_events_of(bytes: usize, world: &World, count: usize) -> (Service, Service) {
    let (api, worker) = world.start().await;
    let payload = format!(r#"{{"blob":{}}}"#, text(bytes));
    let records: Vec<Record> = (0..count).map(|_| Record::of(event(&[("payload", &payload)]))).collect();
    world.kafka().write(&world.topic, None, &records).await;
    // What is committed is stored; to look at all of it again and again would keep it from being.
    let ends = world.kafka().end_offsets(&world.topic).unwrap();
    eventually_within(LONG, "all are stored", async || {
        let lag = Admin::new(&env::kafka_brokers()).lag(&world.group, &ends, &world.topic)?;
        ensure!(lag.values().all(|lag| *lag == 0), "{lag:?}");
        Ok(())
    })
    .await;
    assert_eq!(api.client.pages(1_000).await.unwrap().concat().len(), count);
    (api, worker)
}

/// The full list, however long it takes.
async fn full_list(client: &Client) -> Result<Reply> {
    Reply::of(client.request(Method::GET, "/events/processed").timeout(LONG)).await
}

/// A reader of the full list that takes enough of it to keep its turn, and so little that it is at it for minutes, until
/// it is to hurry.
async fn steady(client: &Client, hurry: &CancellationToken) -> JoinHandle<Vec<u8>> {
    const PORTION: usize = 512 * 1024;
    let request = client.request(Method::GET, "/events/processed").timeout(LONG);
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let hurry = hurry.clone();
    tokio::spawn(async move {
        let (mut body, mut paid) = (Vec::<u8>::new(), 0);
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() >= paid + PORTION {
                paid = body.len();
                // Over as soon as it is to hurry.
                let _ = tokio::time::timeout(Duration::from_secs(1), hurry.cancelled()).await;
            }
        }
        body
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_full_list_at_a_time_is_told_to_come_back_and_gets_its_turn_then() {
    const EVENTS: usize = 3_000;
    let (api, _worker) = with_large_events(EVENTS).await;
    let hurry = CancellationToken::new();
    let (first, second) = (steady(&api.client, &hurry).await, steady(&api.client, &hurry).await);
    let third = api.client.get("/events/processed").await.unwrap();
    let problem = third.problem(429).unwrap();
    assert_eq!(problem["type"], "/docs/problems#too-many-exports");
    assert_eq!(third.header("retry-after"), "1");
    api.client.get("/events/processed?limit=1").await.unwrap().ok().unwrap();
    let head = Reply::of(api.client.request(Method::HEAD, "/events/processed")).await.unwrap().ok().unwrap();
    assert_eq!((head.header("content-type"), head.header("content-length")), ("application/json", ""));
    first.abort();
    let rows: Vec<Event> =
        eventually("the third has its turn", async || full_list(&api.client).await?.ok()?.parse()).await;
    hurry.cancel();
    let late: Vec<Event> = serde_json::from_slice(&second.await.unwrap()).unwrap();
    assert_eq!(late.len(), EVENTS);
    assert!(late == rows, "who was slow has it all as well");
    let output = api.process.output();
    assert!(!output.contains("broke off"), "a client that goes is worth no warning: {output}");
}

/// A client that has asked for the full list and read of it that it is a 200: few buffers hold the rest.
async fn begun(api: &Service, header: &str) -> TcpStream {
    begun_with(api, "/events/processed", header).await
}

async fn begun_with(api: &Service, path: &str, header: &str) -> TcpStream {
    begun_by("HTTP/1.1", api, path, header).await
}

async fn begun_by(version: &str, api: &Service, path: &str, header: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut client = socket.connect(([127, 0, 0, 1], api.port).into()).await.unwrap();
    let head = format!("GET {path} {version}\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut begun = [0; 1024];
    client.read_exact(&mut begun).await.unwrap();
    assert!(begun.starts_with(format!("{version} 200 ").as_bytes()));
    client
}

/// A client that asks for the same page again and again on one connection, and reads none of them: what the kernel does not
/// take is held by the API.
async fn stalled(api: &Service, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut client = socket.connect(([127, 0, 0, 1], api.port).into()).await.unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(20).as_bytes()).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_nobody_takes_have_a_limit_together() {
    const PAGE: &str = "/events/processed?limit=1000";
    // A page ends at 1 MiB: two fit beside the quarter that is kept for single events.
    let world = World::shared().with("HTTP_MAX_BATCH_BODY", "1MiB").with("HTTP_BODY_MEMORY", "3MiB");
    let (api, _worker) = with_events_of(20_000, &world, 500).await;
    let silent = [stalled(&api, PAGE).await, stalled(&api, PAGE).await];
    let refused = eventually("there is no room", async || {
        let page = api.client.get(PAGE).await?;
        page.problem(503)?;
        Ok(page)
    })
    .await;
    api.client.get("/api/activities?limit=1000").await.unwrap().problem(503).unwrap();
    let problem = refused.problem(503).unwrap();
    assert_eq!(problem["type"], "/docs/problems#no-room");
    assert!(
        problem["outcome"].is_null() && problem["detail"].as_str().unwrap().contains("HTTP_BODY_MEMORY"),
        "{problem}"
    );
    assert_eq!(refused.header("retry-after"), "1");
    api.client.get("/events/processed?limit=1").await.unwrap().ok().unwrap();
    drop(silent);
    eventually("there is room again", async || api.client.get(PAGE).await?.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_redis_dies_halfway_breaks_off_and_never_looks_complete() {
    const EVENTS: usize = 90;
    const BYTES: usize = 900_000;
    let mut redis = RedisServer::start().await;
    let (api, _worker) = with_events_of(BYTES, &World::on_redis(&redis.url()), EVENTS).await;
    let mut reader = begun(&api, "accept: application/x-ndjson").await;
    let mut old = begun_by("HTTP/1.0", &api, "/events/processed", "accept: application/x-ndjson").await;
    redis.kill().await;
    let old = tokio::spawn(async move { old.read_to_end(&mut Vec::new()).await });
    let (mut rest, mut some) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(count @ 1..) = reader.read(&mut some).await {
        rest.extend_from_slice(&some[..count]);
        // Slow enough for what follows a failure to find the list's buffers full.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(rest.len() < EVENTS * BYTES, "all was on its way before Redis died");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{} bytes look like all", rest.len());
    // Its list ends where the connection does.
    let old = old.await.unwrap().map_err(|error| error.kind());
    assert_eq!(old, Err(std::io::ErrorKind::ConnectionReset), "a client of HTTP/1.0 can tell as well");
    is_said(&api, "a full list broke off: Redis at").await;
}

/// Waits until the log has this.
async fn is_said(api: &Service, words: &str) {
    eventually(&format!("it says {words:?}"), async || {
        ensure!(api.process.output().contains(words));
        Ok(())
    })
    .await;
}

/// A reply of this much is larger than all buffers between the two programs.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_of_a_large_reply_is_cut_off_in_time_and_held_in_no_memory() {
    const EVENTS: usize = 4_000;
    let (api, _worker) = with_large_events(EVENTS).await;
    let whole = full_list(&api.client).await.unwrap().ok().unwrap().body.len();
    let memory = api.process.memory_watch();
    let start = Instant::now();
    let mut stalled = begun(&api, "accept: */*").await;

    eventually_within(LONG, "its turn is given back", async || {
        let metrics = api.client.get("/metrics").await?.ok()?.text();
        ensure!(metrics.contains("user_activity_exports_in_flight 0\n"));
        Ok(())
    })
    .await;
    let after = start.elapsed();
    assert!(after > Duration::from_secs(10), "who reads slowly is not cut: after {after:?}");
    let grown = memory.growth();
    assert!(grown < 20, "{grown} MiB more for a list of {} MiB", whole / 1024 / 1024);
    let mut rest = Vec::new();
    stalled.read_to_end(&mut rest).await.ok();
    assert!(rest.len() < whole / 2 && !rest.ends_with(b"0\r\n\r\n"), "{} of {whole} bytes came", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_readers_that_trickle_lose_a_turn_to_who_waits_for_it() {
    const EVENTS: usize = 1_500;
    let (api, _worker) = with_large_events(EVENTS).await;
    let trickling = [begun(&api, "accept: */*").await, begun(&api, "accept: */*").await].map(|mut reader| {
        tokio::spawn(async move {
            let mut some = [0; 2 * 1024];
            while let Ok(1..) = reader.read(&mut some).await {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    });
    // Each gives up for a moment now and then; one of the two always waits.
    let waits = async |late: Duration| -> Vec<Event> {
        tokio::time::sleep(late).await;
        let list = async || full_list(&api.client).await?.ok()?.parse();
        eventually_within(LONG, "who waits has a turn", list).await
    };
    let (third, fourth) = tokio::join!(waits(Duration::ZERO), waits(Duration::from_millis(2_500)));
    assert_eq!((third.len(), fourth.len()), (EVENTS, EVENTS));
    is_said(&api, "others waited, and the client took less than 64 KiB/s").await;
    trickling.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_those_who_wait_for_a_full_list_hold_little_however_large_the_events() {
    const EVENTS: usize = 400;
    const BYTES: usize = 250_000;
    let world = World::shared();
    let _services = with_events_of(BYTES, &world, EVENTS).await;
    // One whose memory did not grow before.
    let api = world.start_api().await;
    let memory = api.process.memory_watch();
    for path in ["/events/processed?limit=1000", "/api/activities?limit=1000"] {
        let page = api.client.get(path).await.unwrap().ok().unwrap();
        assert!(page.body.len() < 5 * 1024 * 1024 && page.next_link().is_some(), "{path}: {}", page.body.len());
    }
    let grown = memory.growth();
    assert!(grown < 40, "{grown} MiB for pages of 4 MiB");

    let hurry = CancellationToken::new();
    let _readers = [steady(&api.client, &hurry).await, steady(&api.client, &hurry).await];
    let memory = api.process.memory_watch();
    let waiting = [(); 20].map(|()| {
        let client = api.client.clone();
        tokio::spawn(async move { client.get("/events/processed").await.unwrap().status })
    });
    for status in waiting {
        assert_eq!(status.await.unwrap(), 429);
    }
    let grown = memory.growth();
    assert!(grown < 40, "{grown} MiB for twenty who wait");
}
