//! The operators' subcommands, and what happens to a topic behind the workers' back.

use std::{process::Output, time::Duration};

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use e2e::{
    client::{Client, Event},
    eventually, eventually_within,
    kafka::Record,
    oracle::Journal,
    process::Signal,
    redis_server::RedisServer,
    sample::{event, rfc3339},
    service::Service,
    world::World,
};
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord, Producer},
};
use serde_json::Value;
use uuid::Uuid;

async fn desk(world: &World, words: &[&str]) -> Output {
    world.worker_command().args(words).output().await.unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// Posts events of many users and waits until they are listed.
async fn posted(client: &Client, count: usize) -> Vec<Event> {
    let journal = Journal::default();
    for sequence in (0..).take(count) {
        journal.must_post(client, &format!("user-{sequence}"), sequence).await.unwrap();
    }
    client.listed(count).await
}

async fn counter(worker: &mut Service, name: &str) -> u64 {
    let reply: Value = worker.answers("/readyz", 200).await.parse().unwrap();
    reply[name].as_u64().unwrap()
}

/// Waits until the worker has met all `count` records of the topic that were stored before.
async fn read_again(worker: &mut Service, count: u64) {
    eventually("all of it is read again", async || {
        let again = counter(worker, "duplicates").await;
        ensure!(again >= count, "{again} of {count}");
        Ok(())
    })
    .await;
}

/// Stops the only worker, and waits until the brokers have noticed that it has left.
async fn stopped(world: &World, worker: &mut Service) {
    worker.process.terminate(e2e::PATIENCE).await;
    eventually("the group is empty", async || {
        let members = world.kafka().members(&world.group)?;
        ensure!(members.is_empty(), "{members:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_whether_something_is_missing() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let list = posted(&api.client, 30).await;
    stopped(&world, &mut worker).await;

    let whole = desk(&world, &["verify", "--json"]).await;
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!((&report["counts"]["records"], &report["counts"]["stored"]), (&30.into(), &30.into()), "{report}");

    // A body, and of another event only its place in the index.
    redis.delete_body(&list[0].event_id).await;
    redis.unlist(&list[1].event_id).await;
    let broken = desk(&world, &["verify"]).await;
    assert_eq!(broken.status.code(), Some(1), "{}", said(&broken));
    for id in [&list[0].event_id, &list[1].event_id] {
        assert!(said(&broken).contains(id), "{}", said(&broken));
    }
}

/// What `verify` reports, which must end with this exit code.
async fn verified(world: &World, code: i32) -> Value {
    let output = desk(world, &["verify", "--json"]).await;
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A world whose topics are there, with positions, and no worker.
async fn at_rest() -> World {
    let world = World::shared();
    let mut worker = world.start_worker().await;
    // It is ready before it has partitions.
    eventually("all partitions have their place", async || {
        let ready = worker.client.get("/readyz").await?.text();
        ensure!(ready.contains("6 assigned"), "{ready}");
        Ok(())
    })
    .await;
    stopped(&world, &mut worker).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_that_a_dead_letter_is_missing() {
    let world = World::shared();
    let mut worker = world.start_worker().await;
    let kafka = world.kafka();
    kafka.write(&world.topic, Some(0), &[Record::of("not json")]).await;
    let letter = eventually("it is dead-lettered", async || {
        kafka.read(&world.dead_letter_topic)?.pop().context("no dead letter")
    })
    .await;
    worker.process.terminate(e2e::PATIENCE).await;
    assert_eq!(verified(&world, 0).await["counts"]["deadLettered"], 1);

    kafka.delete_records(&world.dead_letter_topic, letter.partition, letter.offset + 1).await.unwrap();
    let report = verified(&world, 1).await;
    assert_eq!(report["counts"]["missing"], 1, "{report}");
    assert_eq!(report["examples"][0], "partition 0 offset 0 has no dead letter", "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_accounts_for_a_record_that_would_be_an_event_by_now() {
    let world = at_rest().await;
    let kafka = world.kafka();
    kafka.write(&world.topic, Some(1), &[Record::of(event(&[]))]).await;
    assert_eq!(verified(&world, 0).await["counts"]["inFlight"], 1);
    // As if a worker had been there to which it was none.
    assert_eq!(desk(&world, &["positions", "set", "--to", "end"]).await.status.code(), Some(0));
    assert_eq!(verified(&world, 1).await["counts"]["missing"], 1);
    let origin = [("topic", world.topic.as_str()), ("partition", "1"), ("offset", "0")];
    let headers = origin.map(|(name, value)| (format!("__connect.errors.{name}"), Some(value.into()))).into();
    kafka.write(&world.dead_letter_topic, None, &[Record { headers, ..Record::default() }]).await;
    assert_eq!(verified(&world, 0).await["counts"]["deadLettered"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_equation_holds_after_redrives_and_each_leaves_one_letter_more() {
    let world = at_rest().await;
    let (kafka, value) = (world.kafka(), event(&[]));
    kafka.write(&world.topic, Some(1), &[Record::of(&*value)]).await;
    // As if a worker had been there to which it was no event, as it is to those of today.
    assert_eq!(desk(&world, &["positions", "set", "--to", "end"]).await.status.code(), Some(0));
    let origin = [("topic", world.topic.as_str()), ("partition", "1"), ("offset", "0")];
    let headers = origin.map(|(name, value)| (format!("__connect.errors.{name}"), Some(value.into()))).into();
    kafka.write(&world.dead_letter_topic, None, &[Record { headers, ..Record::of(value) }]).await;
    kafka.write(&world.topic, Some(0), &[Record::of("not json")]).await;

    let (api, mut worker) = world.start().await;
    for letters in 2..=5 {
        eventually("what stays poison is dead-lettered, once", async || {
            let found = kafka.read(&world.dead_letter_topic)?.len();
            ensure!(found == letters, "{found} of {letters}");
            Ok(())
        })
        .await;
        let output = desk(&world, &["dead-letters", "redrive"]).await;
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        // The one that is an event again, and the last letter of the other.
        assert!(said(&output).contains("redriven 2;"), "{}", said(&output));
    }
    api.client.listed(1).await;
    eventually("all is processed", async || {
        let found = kafka.read(&world.dead_letter_topic)?.len();
        ensure!(found == 6, "{found}");
        Ok(())
    })
    .await;
    stopped(&world, &mut worker).await;
    let report = verified(&world, 0).await;
    let counts = ["records", "stored", "duplicates", "deadLettered"].map(|name| report["counts"][name].as_u64());
    assert_eq!(counts, [10, 1, 4, 5].map(Some), "{report}");
}

/// Writes an event to partition 0 in each of so many transactions, which are committed or aborted.
async fn write_and_end(world: &World, count: usize, commit: bool) {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", e2e::env::kafka_brokers()).set("transactional.id", &world.topic);
    let producer: FutureProducer = settings.create().unwrap();
    producer.init_transactions(e2e::PATIENCE).unwrap();
    for _ in 0..count {
        producer.begin_transaction().unwrap();
        let value = event(&[]);
        let record = FutureRecord::<(), _>::to(&world.topic).partition(0).payload(&value);
        producer.send(record, e2e::PATIENCE).await.unwrap();
        if commit {
            producer.commit_transaction(e2e::PATIENCE).unwrap();
        } else {
            producer.abort_transaction(e2e::PATIENCE).unwrap();
        }
    }
}

async fn write_in_transactions(world: &World, count: usize) {
    write_and_end(world, count, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_reaches_the_end_of_a_log_that_is_no_record() {
    let world = at_rest().await;
    // The mark is written after that.
    let ends_at = async |wanted| {
        eventually("there are the record and the mark", async || {
            let end = world.kafka().end_offsets(&world.topic)?[&0];
            ensure!(end == wanted, "{end}");
            Ok(())
        })
        .await;
    };
    write_in_transactions(&world, 1).await;
    ends_at(2).await;
    assert_eq!(verified(&world, 0).await["counts"]["records"], 1);
    write_and_end(&world, 2, false).await;
    ends_at(6).await;
    assert_eq!(verified(&world, 0).await["counts"]["records"], 1, "what was aborted is no record");
    // As where the oldest were compacted away.
    world.kafka().delete_records(&world.topic, 0, 2).await.unwrap();
    assert_eq!(verified(&world, 2).await["counts"]["records"], 0, "nothing is left to be said of");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_goes_on_where_it_was_and_stays_within_its_times() {
    let world = at_rest().await;
    let at = |minute: i64| Record { timestamp: Some(1_771_322_400_000 + minute * 60_000), ..Record::of("not json") };
    world.kafka().write(&world.topic, Some(0), &(0..4).map(at).collect::<Vec<_>>()).await;
    world.kafka().write(&world.topic, Some(1), &[at(0)]).await;
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("progress").display().to_string();
    let span = ["--from", "2026-02-17T10:01:00Z", "--to", "2026-02-17T10:03:00Z"];
    let verify = async |more: &[&str]| {
        let output = desk(&world, &[&["verify", "--json", "--resume", &file], more].concat()).await;
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
    };
    let report = verify(&span).await;
    assert_eq!((&report["counts"]["records"], &report["counts"]["inFlight"]), (&2.into(), &2.into()), "{report}");
    assert_eq!(verify(&[]).await, report, "it was at its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_missing_in_each_run_that_goes_on() {
    let world = at_rest().await;
    world.kafka().write(&world.topic, Some(0), &[Record::of("not json")]).await;
    // As if a worker had been there.
    assert_eq!(desk(&world, &["positions", "set", "--to", "end"]).await.status.code(), Some(0));
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("progress").display().to_string();
    for _ in 0..2 {
        let output = desk(&world, &["verify", "--json", "--resume", &file]).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_flight_is_looked_at_again_by_a_run_that_goes_on() {
    let world = at_rest().await;
    let records = [event(&[]), b"not json".to_vec(), event(&[])].map(Record::of);
    world.kafka().write(&world.topic, Some(0), &records).await;
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("progress").display().to_string();
    let counts = async || {
        let output = desk(&world, &["verify", "--json", "--resume", &file]).await;
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        ["records", "stored", "deadLettered", "inFlight"].map(|name| report["counts"][name].as_u64().unwrap())
    };
    assert_eq!(counts().await, [3, 0, 0, 3]);
    let (api, mut worker) = world.start().await;
    api.client.listed(2).await;
    stopped(&world, &mut worker).await;
    assert_eq!(counts().await, [3, 2, 1, 0]);
    // Whoever was there is remembered.
    assert_eq!(counts().await, [3, 2, 1, 0]);
}

/// An event with this id and time, in minutes before now, in a record that was written at that time.
fn minutes_ago(id: &str, minutes: i64) -> Record {
    let time = Utc::now() - TimeDelta::minutes(minutes);
    let (id, text) = (format!("\"{id}\""), format!("\"{}\"", rfc3339(time)));
    let value = event(&[("eventId", &id), ("timestamp", &text)]);
    Record { timestamp: Some(time.timestamp_millis()), ..Record::of(value) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_a_moment_ago_by_another_clock_is_not_missing() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let id = Uuid::now_v7().to_string();
    let record = minutes_ago(&id, 30);
    let written = DateTime::from_timestamp_millis(record.timestamp.unwrap()).unwrap();
    world.kafka().write(&world.topic, None, &[record]).await;
    api.client.listed(1).await;
    stopped(&world, &mut worker).await;
    // As a Redis does whose clock is ahead of the verifier's by less than a minute, or more.
    redis.delete_body(&id).await;
    redis.unlist(&id).await;
    let expires_in = async |seconds| redis.keep_for(Utc::now() - written + TimeDelta::seconds(seconds)).await;
    expires_in(50).await;
    let report = verified(&world, 0).await;
    assert_eq!(report["counts"]["expired"], 1, "clocks may differ: {report}");
    expires_in(300).await;
    assert_eq!(verified(&world, 1).await["counts"]["missing"], 1, "but not by that much");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_of_what_has_expired_is_not_missing() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    let id = Uuid::now_v7().to_string();
    world.kafka().write(&world.topic, Some(0), &[minutes_ago(&id, 50), minutes_ago(&id, 25)]).await;
    api.client.listed(1).await;
    stopped(&world, &mut worker).await;
    redis.delete_body(&id).await;
    redis.unlist(&id).await;
    redis.keep_for(TimeDelta::minutes(40)).await;
    let counts = async |more: &[&str], code| {
        let output = desk(&world, &[&["verify", "--json"], more].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        ["records", "expired", "duplicates", "missing"].map(|name| report["counts"][name].as_u64().unwrap())
    };
    assert_eq!(counts(&[], 0).await, [2, 1, 1, 0], "it is as good as its first record");
    let recent = rfc3339(Utc::now() - TimeDelta::minutes(30));
    assert_eq!(counts(&["--from", &recent], 0).await, [1, 0, 1, 0], "also where that is not asked for");
    // With a retention in which the first one is still owed.
    redis.keep_for(TimeDelta::days(7)).await;
    assert_eq!(verified(&world, 1).await["counts"]["missing"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_does_not_hold_on_a_redis_without_positions() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (api, mut worker) = world.start().await;
    posted(&api.client, 10).await;
    stopped(&world, &mut worker).await;
    assert_eq!(redis.command_line::<String>("FLUSHALL").await, "OK");
    let output = desk(&world, &["verify"]).await;
    assert_eq!(output.status.code(), Some(2), "nothing is said to hold without positions: {}", said(&output));
    for words in ["NOBODY CAN SAY", "no positions for 10 records", "0 are running", "no worker is running"] {
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
    }
    // With a worker it can be said again.
    let _worker = world.start_worker().await;
    api.client.listed(10).await;
    assert_eq!(verified(&world, 0).await["workers"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_apart_from_what_is_missing_that_it_could_not_look() {
    let world = at_rest().await;
    let mut complaints = Vec::new();
    let mut ends_with = async |world: &World, words: &[&str], code: i32| {
        let output = desk(world, &[&["verify"], words].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        complaints.push(said(&output));
    };
    ends_with(&world, &[], 2).await;
    world.kafka().write(&world.topic, Some(0), &[Record::of("not json")]).await;
    ends_with(&world, &[], 0).await;
    ends_with(&world.clone().with("REDIS_URL", "redis://127.0.0.1:9"), &[], 2).await;
    ends_with(&world.clone().with("KAFKA_BROKERS", "127.0.0.1:9"), &[], 2).await;
    ends_with(&world.clone().with_topic("of-nobody"), &[], 2).await;
    let redis = RedisServer::start().await;
    redis.freeze();
    let frozen = world.clone().with("REDIS_URL", redis.url()).with("REDIS_TIMEOUT", "1s");
    ends_with(&frozen, &[], 2).await;
    redis.thaw();
    let file = tempfile::NamedTempFile::new().unwrap();
    ends_with(&world, &["--resume", &file.path().display().to_string()], 2).await;
    ends_with(&world, &["--resume", "/no/such/folder/file"], 2).await;
    ends_with(&world, &["--from", "yesterday"], 64).await;
    let said = ["nothing to verify", "holds", "127.0.0.1:9", "KAFKA_BROKERS", "of-nobody", "does not answer"];
    for (complaint, words) in complaints.iter().zip(said) {
        assert!(complaint.contains(words), "{words}: {complaint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_fetches_no_bodies() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url());
    let (mut api, mut worker) = world.start().await;
    let payload = format!(r#"{{"text":{}}}"#, e2e::sample::text(500_000));
    let record = e2e::sample::record("u", &[("payload", &payload)]);
    world.kafka().write(&world.topic, None, &[record]).await;
    api.client.listed(1).await;
    // Nobody else is to ask Redis meanwhile, however long it takes.
    for process in [&mut worker.process, &mut api.process] {
        process.terminate(e2e::PATIENCE).await;
    }
    let sent = async || {
        let stats: String = redis.command_line("INFO stats").await;
        let bytes = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap();
        bytes.parse::<u64>().unwrap()
    };
    let before = sent().await;
    assert_eq!(verified(&world, 0).await["counts"]["stored"], 1);
    let bytes = sent().await - before;
    assert!(bytes < 250_000, "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_are_shown_and_moved_only_while_no_worker_runs() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    posted(&api.client, 30).await;
    let refused = desk(&world, &["positions", "set", "--to", "beginning"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("1 members; stop all workers first"), "{}", said(&refused));
    stopped(&world, &mut worker).await;

    let to_read = async || {
        let shown = desk(&world, &["positions", "show", "--json"]).await;
        let rows = String::from_utf8(shown.stdout).unwrap();
        rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap()["toRead"].as_i64().unwrap()).sum::<i64>()
    };
    assert_eq!(to_read().await, 0);
    assert_eq!(desk(&world, &["positions", "set", "--to", "beginning"]).await.status.code(), Some(0));
    assert_eq!(to_read().await, 30);
    let mut worker = world.start_worker().await;
    read_again(&mut worker, 30).await;
    // And stored once.
    api.client.listed(30).await;
}

/// A worker that has stored what was left when it came, and has met that the retention took 15 records before.
async fn robbed_by_the_retention() -> Service {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    posted(&api.client, 20).await;
    worker.process.terminate(e2e::PATIENCE).await;
    let journal = Journal::default();
    for sequence in 0..20 {
        journal.must_post(&api.client, "one-user", sequence).await.unwrap();
    }
    let kafka = world.kafka();
    let (partition, end) = kafka.end_offsets(&world.topic).unwrap().into_iter().max_by_key(|(_, end)| *end).unwrap();
    kafka.delete_records(&world.topic, partition, end - 5).await.unwrap();
    let worker = world.start_worker().await;
    api.client.listed(25).await;
    worker
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_retention_took_are_counted_and_the_rest_is_processed() {
    assert_eq!(counter(&mut robbed_by_the_retention().await, "skippedOffsets").await, 15);
}

/// A counter in the worker's metrics.
async fn metric(worker: &Service, name: &str) -> anyhow::Result<u64> {
    let metrics = worker.client.get("/metrics").await?.text();
    let found = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(found.with_context(|| format!("no {name} in {metrics}"))?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_retention_took_are_a_metric() {
    let worker = robbed_by_the_retention().await;
    assert_eq!(metric(&worker, "user_activity_lost_offsets_total").await.unwrap(), 15, "a metric counts what is lost");
}

/// Where it was going to read next, there is nothing any more: it learns that from the record that comes instead.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_retention_takes_from_under_a_worker_are_lost_as_well() {
    let world = World::shared();
    let (api, worker) = world.start().await;
    let journal = Journal::default();
    posted_by_one_user(&api.client, &journal, 5, 5).await;
    worker.process.signal(Signal::SIGSTOP);
    for sequence in 5..25 {
        journal.must_post(&api.client, "one-user", sequence).await.unwrap();
    }
    let kafka = world.kafka();
    let (partition, end) = kafka.end_offsets(&world.topic).unwrap().into_iter().max_by_key(|(_, end)| *end).unwrap();
    kafka.delete_records(&world.topic, partition, end - 5).await.unwrap();
    worker.process.signal(Signal::SIGCONT);
    eventually("each of them is stored or counted", async || {
        let lost = metric(&worker, "user_activity_lost_offsets_total").await?;
        let listed = api.client.list().await?.len() as u64;
        // Some may have been on their way to the worker.
        ensure!((1..=15).contains(&lost) && listed + lost == 25, "{lost} lost, {listed} listed");
        Ok(())
    })
    .await;
    assert!(worker.process.output().contains("fell off the topic"));
}

/// The mark that ends a transaction has an offset of its own.
#[tokio::test(flavor = "multi_thread")]
async fn marks_of_transactions_are_not_counted_as_lost() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    write_in_transactions(&world, 3).await;
    api.client.listed(3).await;
    // Between the three records; the mark at the end is met with the next record.
    eventually("the marks are counted as holes", async || {
        let holes = metric(&worker, "user_activity_hole_offsets_total").await?;
        ensure!(holes == 2, "{holes}");
        Ok(())
    })
    .await;
    assert_eq!(counter(&mut worker, "skippedOffsets").await, 0, "marks are no loss");
    assert!(!worker.process.output().contains("fell off the topic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_are_read() {
    let world = World::shared();
    let (api, _worker) = world.start().await;
    posted(&api.client, 10).await;
    let kafka = world.kafka();
    kafka.add_partitions(&world.topic, 8).await.unwrap();
    // The worker looks every 30 seconds.
    eventually_within(Duration::from_mins(3), "the new partitions are assigned", async || {
        let assigned: usize = kafka.members(&world.group)?.values().map(Vec::len).sum();
        ensure!(assigned == 8, "{assigned} of 8");
        Ok(())
    })
    .await;
    let record = Record::of(event(&[]));
    kafka.write(&world.topic, Some(7), &[record]).await;
    api.client.listed(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_where_a_worker_begins_does_not_displace_the_partition() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    write_in_transactions(&world, 1).await;
    api.client.listed(1).await;
    stopped(&world, &mut worker).await;
    let mut worker = world.start_worker().await;
    write_in_transactions(&world, 1).await;
    api.client.listed(2).await;
    let replacements = counter(&mut worker, "replacements").await;
    assert_eq!(replacements, 0, "a mark is no reason to place a partition anew");
}

/// Posts events of one user, which are all in one partition, and waits until so many are listed.
async fn posted_by_one_user(client: &Client, journal: &Journal, count: usize, in_all: usize) {
    for sequence in (journal.acknowledged() as u64..).take(count) {
        journal.must_post(client, "one-user", sequence).await.unwrap();
    }
    client.listed(in_all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_commits_are_gone_loses_and_doubles_nothing() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let journal = Journal::default();
    posted_by_one_user(&api.client, &journal, 30, 30).await;
    stopped(&world, &mut worker).await;
    world.kafka().delete_group(&world.group).await.unwrap();
    let mut worker = world.start_worker().await;
    // A commit that is missing counts as the beginning, whatever Redis knows.
    read_again(&mut worker, 30).await;
    posted_by_one_user(&api.client, &journal, 5, 35).await;
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
    let world = World::shared();
    let (mut api, mut worker) = world.start().await;
    let journal = Journal::default();
    posted_by_one_user(&api.client, &journal, 30, 30).await;
    for process in [&mut worker.process, &mut api.process] {
        process.terminate(e2e::PATIENCE).await;
    }
    world.kafka().delete_topic(&world.topic).await.unwrap();
    // What Redis remembers lies beyond the end of the new log.
    let (api, _worker) = world.start().await;
    posted_by_one_user(&api.client, &journal, 5, 35).await;
    journal.holds(&api.client).await;
}
