//! What both roles count, how far behind they say they are, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{
    PATIENCE, eventually, eventually_within, kafka::Record, redis_server::RedisServer, sample::event, service::Service,
    world::World,
};
use serde_json::Value;

/// For what begins only after half a minute: the worker's patience with a partition, and the longest wait between two
/// tries of a dead letter.
const LONG: Duration = PATIENCE.saturating_mul(4);

/// A metric: its type and the names of its labels.
type Kinds = BTreeMap<String, (String, BTreeSet<String>)>;

/// One scrape: every sample by its name with labels, and the kinds of all metrics.
struct Scrape {
    samples: BTreeMap<String, f64>,
    kinds: Kinds,
}

impl Scrape {
    async fn of(service: &Service) -> Result<Self> {
        let reply = service.client.get("/metrics").await?.ok()?;
        ensure!(reply.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", reply.headers);
        Self::parse(&reply.text())
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut samples, mut kinds) = (BTreeMap::new(), Kinds::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("a type has a name")?;
                let before = kinds.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
                ensure!(before.is_none(), "{name} is described twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').context("a sample has a value")?;
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
                let base = base.filter(|base| kinds.get(*base).is_some_and(|kind| kind.0 == "histogram"));
                let kind = kinds.get_mut(base.unwrap_or(name)).with_context(|| format!("{name} has no type"))?;
                let names =
                    labels.trim_end_matches('}').split("\",").filter_map(|label| Some(label.split_once('=')?.0));
                kind.1.extend(names.filter(|name| *name != "le").map(str::to_owned));
                samples.insert(series.to_owned(), value.parse()?);
            }
        }
        Ok(Self { samples, kinds })
    }

    fn value(&self, series: &str) -> Result<f64> {
        self.samples.get(series).copied().with_context(|| format!("no {series} in {:?}", self.samples.keys()))
    }

    /// The values of a metric by the partition they are of.
    fn by_partition(&self, name: &str) -> BTreeMap<i32, f64> {
        let partition =
            |series: &str| series.strip_prefix(name)?.strip_prefix("{partition=\"")?.strip_suffix("\"}")?.parse().ok();
        self.samples.iter().filter_map(|(series, value)| Some((partition(series)?, *value))).collect()
    }
}

/// The table of docs/METRICS.md, as far as it is about a role.
fn documented(role: &str) -> Kinds {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').map(str::trim).collect());
    let rows = rows.filter(|cells: &Vec<&str>| cells[2] == role || cells[2] == "both");
    let names = |cell: &str| {
        cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()).filter(|n| !n.is_empty()).collect()
    };
    let row = |cells: Vec<&str>| (cells[1].trim_matches('`').to_owned(), (cells[3].to_owned(), names(cells[4])));
    rows.map(row).collect()
}

/// Not every system has a limit of the address space to tell.
const OPTIONAL: &str = "process_virtual_memory_max_bytes";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_what_is_documented() {
    let world = World::shared();
    let (api, worker) = world.start().await;
    assert_eq!(api.client.publish(event(&[])).await.unwrap().status, 201);
    world.kafka().write(&world.topic, Some(0), &[Record::of("poison")]).await;
    eventually("all series are there", async || {
        let (mut of_api, mut of_worker) = (Scrape::of(&api).await?, Scrape::of(&worker).await?);
        ensure!(of_worker.value("user_activity_events_total{result=\"new\"}")? >= 1.0, "not stored yet");
        ensure!(of_worker.value("user_activity_dead_letters_total")? >= 1.0, "not dead-lettered yet");
        for (role, found) in [("api", &mut of_api.kinds), ("worker", &mut of_worker.kinds)] {
            let mut documented = documented(role);
            ensure!(documented.len() > 10, "the table is not read: {documented:?}");
            if !found.contains_key(OPTIONAL) {
                documented.remove(OPTIONAL);
            }
            let difference: Vec<_> = documented.iter().filter(|row| found.get(row.0) != Some(row.1)).collect();
            ensure!(difference.is_empty(), "{role} does not export as documented: {difference:?}; but {found:?}");
            let difference: Vec<_> = found.keys().filter(|name| !documented.contains_key(*name)).collect();
            ensure!(difference.is_empty(), "{role} exports what is not documented: {difference:?}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_events_are_counted_by_pattern_and_outcome() {
    let world = World::shared();
    let (api, worker) = world.start().await;
    let posted = |status: u16| {
        format!("user_activity_http_requests_total{{route=\"/events/generate\",method=\"POST\",status=\"{status}\"}}")
    };
    for _ in 0..3 {
        api.client.publish(event(&[])).await.unwrap().with_status(201).unwrap();
    }
    api.client.publish("{}").await.unwrap().with_status(400).unwrap();
    for path in ["/nothing", "/nothing/at/all", "/events/one", "/events/another"] {
        api.client.get(path).await.unwrap().with_status(404).unwrap();
    }
    let expected = [
        // Brokers that are slow to answer make it unready for a moment.
        ("user_activity_ready".into(), 1.0),
        (posted(201), 3.0),
        (posted(400), 1.0),
        ("user_activity_http_requests_total{route=\"other\",method=\"GET\",status=\"404\"}".into(), 2.0),
        ("user_activity_http_requests_total{route=\"/events/{eventId}\",method=\"GET\",status=\"404\"}".into(), 2.0),
        ("user_activity_http_request_duration_seconds_count{route=\"/events/generate\"}".into(), 4.0),
        ("user_activity_http_requests_in_flight".into(), 1.0),
        ("user_activity_publish_total{outcome=\"acknowledged\"}".into(), 3.0),
        ("user_activity_publish_total{outcome=\"unknown\"}".into(), 0.0),
        ("user_activity_publish_duration_seconds_count".into(), 3.0),
        ("user_activity_publish_in_flight_records".into(), 0.0),
        ("user_activity_publish_in_flight_bytes".into(), 0.0),
    ];
    // What is said of a request may come a moment after its reply.
    eventually("the API has counted them", async || {
        let scrape = Scrape::of(&api).await?;
        for (series, value) in &expected {
            let counted = scrape.value(series)?;
            ensure!(counted == *value, "{series} {counted} instead of {value}");
        }
        ensure!(scrape.samples.keys().all(|series| !series.contains("nothing") && !series.contains("another")));
        Ok(())
    })
    .await;

    eventually("the worker has counted them", async || {
        let scrape = Scrape::of(&worker).await?;
        ensure!(scrape.value("user_activity_events_total{result=\"new\"}")? == 3.0);
        ensure!(scrape.value("user_activity_batch_events_sum")? == 3.0);
        ensure!(scrape.value("user_activity_store_write_duration_seconds_count")? >= 1.0);
        ensure!(scrape.value("user_activity_commit_age_seconds")? < 10.0);
        ensure!(scrape.value("user_activity_rebalances_total")? >= 1.0);
        let lag = scrape.by_partition("user_activity_consumer_lag_messages");
        ensure!(lag.len() == 6 && lag.values().all(|lag| *lag == 0.0), "{lag:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn series_of_a_partition_leave_with_it() {
    let world = World::shared();
    let worker = world.start_worker().await;
    const NAMES: [&str; 3] =
        ["user_activity_consumer_lag_messages", "user_activity_consumer_lag_seconds", "user_activity_breaker_open"];
    let partitions = async |worker: &Service| {
        let scrape = Scrape::of(worker).await?;
        let of = NAMES.map(|name| scrape.by_partition(name).into_keys().collect::<BTreeSet<i32>>());
        ensure!(of[0] == of[1] && of[0] == of[2], "{of:?}");
        ensure!(scrape.value("user_activity_assigned_partitions")? == of[0].len() as f64);
        let [of, ..] = of;
        Ok(of)
    };
    eventually("one worker has all", async || {
        ensure!(partitions(&worker).await?.len() == 6);
        Ok(())
    })
    .await;
    let other = world.start_worker().await;
    eventually("each of two workers has its own", async || {
        let (one, two) = (partitions(&worker).await?, partitions(&other).await?);
        ensure!(one.len() == 3 && two.len() == 3 && one.is_disjoint(&two), "{one:?} {two:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_grows_while_redis_is_away_and_is_zero_when_all_is_stored() {
    let mut redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let lag = async || {
        let scrape = Scrape::of(&worker).await?;
        let sum = |name| scrape.by_partition(name).into_values().sum::<f64>();
        ensure!(scrape.by_partition("user_activity_consumer_lag_messages").len() == 6, "not all known");
        Ok((sum("user_activity_consumer_lag_messages"), sum("user_activity_consumer_lag_seconds"), scrape))
    };
    eventually("nothing is to be done", async || {
        let (messages, seconds, _) = lag().await?;
        ensure!((messages, seconds) == (0.0, 0.0));
        Ok(())
    })
    .await;
    redis.kill().await;
    for _ in 0..20 {
        api.client.publish(event(&[])).await.unwrap().with_status(201).unwrap();
    }
    eventually("the lag is seen", async || {
        let (messages, seconds, scrape) = lag().await?;
        ensure!(messages == 20.0 && seconds > 2.0, "{messages} {seconds}");
        ensure!(scrape.value("user_activity_store_failures_total")? > 0.0);
        ensure!(scrape.value("user_activity_rewinds_total")? > 0.0);
        ensure!(scrape.value("user_activity_ready")? == 0.0);
        Ok(())
    })
    .await;
    api.client.get("/lag").await.unwrap().unavailable().unwrap();
    redis.up().await;
    eventually("all is stored", async || {
        let (messages, seconds, _) = lag().await?;
        ensure!((messages, seconds) == (0.0, 0.0), "{messages} {seconds}");
        Ok(())
    })
    .await;
    worker.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_still_is_named_by_lag_and_readiness_and_idle_ones_are_not() {
    let world = World::shared();
    let kafka = world.kafka();
    // It takes nothing at all: the partition must wait.
    kafka.create_topic(&world.dead_letter_topic, 6, ("max.message.bytes", "1")).await.unwrap();
    let (api, mut worker) = world.start().await;
    let good = || Record::of(event(&[]));
    kafka.write(&world.topic, Some(4), &[Record::of("poison".repeat(100)), good(), good()]).await;
    let report = async || api.client.get("/lag").await?.ok()?.parse::<Value>();
    let behind = eventually("the partition is behind", async || {
        let report = report().await?;
        ensure!(report["totalLag"] == 3 && report["lagSeconds"].as_f64().is_some_and(|age| age > 3.0), "{report}");
        Ok(report)
    })
    .await;
    assert_eq!((&behind["group"], &behind["topic"]), (&world.group.as_str().into(), &world.topic.as_str().into()));
    let partitions = behind["partitions"].as_array().unwrap();
    let lags: Vec<i64> = partitions.iter().map(|partition| partition["lag"].as_i64().unwrap()).collect();
    assert_eq!(lags, [0, 0, 0, 0, 3, 0]);
    eventually("health knows who has it", async || {
        let health: Value = api.client.get("/health").await?.parse()?;
        let member = &health["workers"][0];
        ensure!(member["name"] == partitions[4]["worker"], "{health}");
        ensure!(member["partitions"].as_array().is_some_and(|all| all.len() == 6), "{health}");
        Ok(())
    })
    .await;

    eventually_within(LONG, "readiness names it", async || {
        let ready: Value = worker.client.get("/readyz").await?.with_status(503)?.parse()?;
        let progress = &ready["progress"];
        ensure!(progress["ok"] == false && progress["reason"].as_str().unwrap().contains("partition 4 "), "{ready}");
        ensure!(!progress["reason"].as_str().unwrap().contains("partition 3"), "{ready}");
        let lines = ready["checks"].as_array().unwrap();
        let line = lines.iter().find(|line| line["check"] == "progress").unwrap();
        ensure!(line["do"].is_string() && line["since"].is_string(), "{ready}");
        Ok(())
    })
    .await;
    worker.check("/livez", 200).await.unwrap();
    kafka.reset_topic_settings(&world.dead_letter_topic).await.unwrap();
    eventually_within(LONG, "nothing is left", async || {
        let report = report().await?;
        ensure!(report["totalLag"] == 0 && report["lagSeconds"] == 0.0 && report["secondsToDrain"] == 0.0, "{report}");
        ensure!(report["recommendedReplicas"] == 1 && report["unknownPartitions"] == serde_json::json!([]), "{report}");
        Ok(())
    })
    .await;
    worker.ready().await;
    worker.process.kill().await;
    eventually("what nobody tells is unknown", async || {
        let report = report().await?;
        ensure!(report["totalLag"].is_null() && report["lagSeconds"].is_null(), "{report}");
        ensure!(report["unknownPartitions"].as_array().unwrap().len() == 6, "{report}");
        Ok(())
    })
    .await;
}
