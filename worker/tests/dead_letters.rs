//! The desk for dead letters on a real Kafka: `scripts/test integration` names one in `TEST_KAFKA_BROKERS`. Each test
//! has topics and a group of its own. Where a real broker can't be made to fail as needed, librdkafka's own imitation
//! stands in.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::kafka::PublishError;
use common::shutdown::Shutdown;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use support::{PATIENCE, Record, World, until};
use tokio::sync::Notify;
use worker::Command;
use worker::dead_letter::ATTEMPTS;
use worker::desk::dead_letters::letter::{Letter, Original};
use worker::desk::dead_letters::lineage::LINEAGE;
use worker::desk::dead_letters::list::{self, Counts};
use worker::desk::dead_letters::outcome::{self, End, Outcome, Tally, Verdict};
use worker::desk::dead_letters::redrive;
use worker::desk::dead_letters::show;
use worker::desk::dead_letters::{DeadLettersCommand, DeadLettersCommand as Desk};

/// 2026-02-17T10:00:00Z.
const TEN: i64 = 1_771_322_400_000;
const MINUTE: i64 = 60_000;

fn desk(world: &World, words: &[&str]) -> DeadLettersCommand {
    let words: Vec<&str> = ["dead-letters"].iter().chain(words).copied().collect();
    let Command::DeadLetters(command) = world.command(&words) else { panic!("another command") };
    command
}

async fn list(world: &World, flags: &[&str]) -> (Vec<Letter>, Counts) {
    let words: Vec<&str> = ["list"].iter().chain(flags).copied().collect();
    let Desk::List(request) = desk(world, &words) else { panic!("another command") };
    let mut letters = Vec::new();
    let each = |letter: &Letter| {
        letters.push(letter.clone());
        Ok(())
    };
    let counts = list::list(&world.config, &request, each).await.unwrap();
    (letters, counts)
}

async fn show(world: &World, partition: i32, offset: i64) -> anyhow::Result<Letter> {
    let (partition, offset) = (partition.to_string(), offset.to_string());
    let Desk::Show(request) = desk(world, &["show", &partition, &offset]) else { panic!("another command") };
    show::show(&world.config, &request).await
}

async fn redrive_until(
    world: &World,
    flags: &[&str],
    shutdown: &Shutdown,
    told: impl FnMut(&Letter, &Verdict),
) -> anyhow::Result<Outcome> {
    // As fast as it may be, unless the test says otherwise.
    let rate: &[&str] = if flags.contains(&"--rate") { &[] } else { &["--rate", "1000"] };
    let words: Vec<&str> = ["redrive"].iter().chain(rate).chain(flags).copied().collect();
    let Desk::Redrive(request) = desk(world, &words) else { panic!("another command") };
    redrive::redrive(&world.config, &request, shutdown, told).await
}

async fn redrive(world: &World, flags: &[&str]) -> Outcome {
    redrive_until(world, flags, &Shutdown::new(), |_, _| {}).await.unwrap()
}

fn tally(redriven: u64) -> Tally {
    Tally { redriven, ..Tally::default() }
}

/// Bytes of every kind, none of which may get lost on the way.
fn awkward() -> Vec<Record> {
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    let headers = vec![
        header("event-id", Some(b"7")),
        header("trace", Some(b"\x00\xff")),
        header("trace", None),
        header("trace", Some(b"")),
        header("kafka_dlt-exception-stacktrace", Some(b"of another tool")),
    ];
    let full = Record { key: Some(b"\xffkey\0".to_vec()), headers, ..Record::poison("", TEN) };
    vec![
        Record { value: Some(b"\xff\xfe\x00".to_vec()), ..full.clone() },
        Record { value: None, timestamp: Some(TEN + 1), ..full.clone() },
        Record { value: Some(Vec::new()), timestamp: Some(TEN + 2), ..full.clone() },
        Record { value: Some(vec![b'x'; 500_000]), timestamp: Some(TEN + 3), ..full },
        Record { key: None, value: Some(b"[]".to_vec()), headers: Vec::new(), timestamp: Some(TEN + 4) },
        Record { key: Some(Vec::new()), timestamp: Some(1), ..Record::poison("", 0) },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_says_where_each_letter_came_from_and_why() {
    let world = World::new().await;
    let (a, b) = (Record::poison("a", TEN), Record::poison("b", TEN + 1));
    world.bury(1, &[(&a, "json"), (&a, "enum")]).await;
    world.bury(0, &[(&b, "json")]).await;

    let (letters, counts) = list(&world, &[]).await;
    assert!(letters.is_sorted_by_key(|letter| (letter.partition, letter.offset)), "{letters:?}");
    assert_eq!(counts.to_string(), "3 dead letters: enum 1, json 2");
    let found = letters.iter().find(|letter| letter.reason() == "enum").unwrap();
    let topic = Some(world.events().to_owned());
    assert_eq!(found.original, Original { topic, partition: Some(1), offset: Some(1) });
    assert_eq!(found.message.as_deref(), Some("it is enum"));
    assert_eq!((found.attempts, found.worker.as_deref()), (Some(1), Some("worker-1")));
    assert_eq!(found.timestamp.map(|time| time.to_string()).as_deref(), Some("2026-02-17T10:00:00.000Z"));
    assert_eq!((found.key_lossy().as_deref(), found.value.as_deref()), (Some("a"), a.value.as_deref()));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_by_reason_original_partition_and_time() {
    let world = World::new().await;
    let at = |minute: i64| Record::poison(&minute.to_string(), TEN + minute * MINUTE);
    let records: Vec<Record> = (0..4).map(at).collect();
    world.bury(1, &[(&records[0], "json"), (&records[1], "enum"), (&records[2], "type")]).await;
    world.bury(0, &[(&records[3], "json")]).await;
    let keys = async |flags: &[&str]| {
        let mut keys: Vec<_> = list(&world, flags).await.0.iter().filter_map(Letter::key_lossy).collect();
        keys.sort();
        keys.join(" ")
    };
    assert_eq!(keys(&[]).await, "0 1 2 3");
    assert_eq!(keys(&["--reason", "json"]).await, "0 3");
    assert_eq!(keys(&["--reason", "type", "--reason", "enum"]).await, "1 2");
    assert_eq!(keys(&["--partition", "1"]).await, "0 1 2");
    assert_eq!(keys(&["--from", "2026-02-17T10:01:00Z", "--to", "2026-02-17T11:03:00+01:00"]).await, "1 2");
    assert_eq!(keys(&["--reason", "json", "--partition", "0"]).await, "3");
    assert_eq!(keys(&["--reason", "nesting"]).await, "");

    let (letters, counts) = list(&world, &["--limit", "2"]).await;
    assert_eq!((letters.len(), counts.letters, counts.limited), (2, 2, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_records_are_listed_with_what_is_unknown_left_open() {
    let world = World::new().await;
    world.bury(0, &[(&Record::poison("ours", TEN), "json")]).await;
    let bare = Record { headers: Vec::new(), ..Record::poison("bare", TEN) };
    let odd = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    let headers = vec![
        odd("__connect.errors.partition", b"\xff"),
        odd("kafka_dlt-original-offset", b"short"),
        ("dead-letter-reason".to_owned(), None),
    ];
    let nothing = Record { key: None, value: None, headers, timestamp: Some(TEN) };
    world.write(world.dlq(), &bare).await;
    world.write(world.dlq(), &nothing).await;

    let (letters, counts) = list(&world, &[]).await;
    assert_eq!(counts.to_string(), "3 dead letters: json 1, unknown 2");
    for letter in letters.iter().filter(|letter| letter.reason() == "unknown") {
        assert_eq!((&letter.original, letter.attempts, &letter.worker), (&Original::default(), None, &None));
        assert!(!list::line(letter, true).is_empty() && !list::line(letter, false).is_empty());
        let shown = show(&world, letter.partition, letter.offset).await.unwrap();
        assert!(show::page(&shown, world.dlq()).contains("original     unknown"));
    }
    assert_eq!(list(&world, &["--reason", "unknown"]).await.0.len(), 2);

    let outcome = redrive(&world, &[]).await;
    assert_eq!(outcome.tally, Tally { foreign: 2, ..tally(1) });
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_joins_no_group_and_commits_nothing() {
    let world = World::new().await;
    world.bury(0, &[(&Record::poison("a", TEN), "json")]).await;
    list(&world, &[]).await;
    redrive(&world, &["--dry-run"]).await;
    let group = &world.config.consumer.group;
    let known: BaseConsumer = world.client().create().unwrap();
    let groups = known.fetch_group_list(None, PATIENCE).unwrap();
    let found: Vec<_> = groups.groups().iter().map(|found| found.name()).filter(|name| name.contains(group)).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(world.read(world.events()).is_empty(), "a dry run publishes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_lettered_after_the_start_is_left_for_the_next_time() {
    let world = World::new().await;
    world.bury(0, &[(&Record::poison("a", TEN), "json")]).await;
    // Its end is a mark, not a record: the next record lies beyond it.
    world.write_in_transaction(world.dlq(), &Record::poison("a", TEN)).await;
    let Desk::List(request) = desk(&world, &["list"]) else { panic!("another command") };
    let each = |_: &Letter| {
        let more = Record::poison("a", TEN);
        let bury = async { world.bury(0, &[(&more, "json")]).await };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(bury));
        Ok(())
    };
    let counts = list::list(&world.config, &request, each).await.unwrap();
    assert_eq!(counts.letters, 2);
    assert_eq!(list(&world, &[]).await.0.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_gaps_is_read_to_its_end() {
    let world = World::new().await;
    let records: Vec<Record> = (0..3).map(|n| Record::poison("a", TEN + n)).collect();
    world.bury(0, &records.iter().map(|record| (record, "json")).collect::<Vec<_>>()).await;
    // The mark of the transaction's end takes the last offset and is no record.
    world.write_in_transaction(world.dlq(), &records[0]).await;
    let (letters, _) = list(&world, &[]).await;
    assert_eq!(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let (partition, mark) = (letters[0].partition, letters[3].offset + 1);
    let error = show(&world, partition, mark).await.unwrap_err().to_string();
    assert!(error.contains("no record at offset 4"), "{error}");

    assert_eq!(redrive(&world, &["--limit", "1"]).await.tally, tally(1));
    world.delete_before(world.dlq(), partition, 2).await;
    assert_eq!(redrive(&world, &["--resume"]).await.tally, Tally { foreign: 1, ..tally(1) });
    let error = show(&world, partition, 1).await.unwrap_err().to_string();
    assert!(error.contains("from 2 up to 5"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_letter_is_shown_in_full() {
    let world = World::new().await;
    let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    let headers = vec![header("traceparent", b"00-1"), header("binary", b"\xff\x00")];
    let value = Some("{\"text\":\"grüße\"}".into());
    let record = Record { value, headers, ..Record::poison("käte", TEN) };
    let binary = Record { key: Some(b"\xff".to_vec()), value: Some(b"\x1b[2J".to_vec()), ..record.clone() };
    world.bury(1, &[(&record, "json"), (&binary, "enum")]).await;

    let letters = list(&world, &[]).await.0;
    let page = async |reason| {
        let listed = letters.iter().find(|letter| letter.reason() == reason).unwrap();
        let letter = show(&world, listed.partition, listed.offset).await.unwrap();
        assert_eq!(&letter, listed);
        show::page(&letter, world.dlq())
    };
    let text = page("json").await;
    for line in [
        &*format!("original     {}-1@0", world.events()),
        "timestamp    2026-02-17T10:00:00.000Z",
        "explanation  it is json",
        "attempts     1",
        "headers: 19",
        "  traceparent = 00-1",
        "  binary = ff00 (hexadecimal)",
        "  kafka_dlt-original-partition = 1",
        "  kafka_dlt-original-offset = 0",
        "  kafka_dlt-original-timestamp = 1771322400000 (2026-02-17T10:00:00.000Z)",
        "key: 5 bytes, text",
        "käte",
        "value: 18 bytes, text",
        "{\"text\":\"grüße\"}",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }
    let bytes = page("enum").await;
    for line in ["key: 1 bytes, hexadecimal", "ff", "value: 4 bytes, hexadecimal", "1b5b324a"] {
        assert!(bytes.lines().any(|found| found == line), "{line}\nis not in\n{bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_without_a_letter_is_answered_with_what_there_is() {
    let world = World::new().await;
    world.bury(0, &[(&Record::poison("a", TEN), "json")]).await;
    let there = list(&world, &[]).await.0[0].partition;
    let error = show(&world, there, 1).await.unwrap_err().to_string();
    assert!(error.contains("from 0 up to 1"), "{error}");
    let error = show(&world, 9, 0).await.unwrap_err().to_string();
    assert!(error.contains("partitions 0 to 1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_record_is_the_original_byte_for_byte() {
    let world = World::new().await;
    let originals = awkward();
    let letters: Vec<_> = originals.iter().map(|record| (record, "json")).collect();
    world.bury(1, &letters).await;

    assert_eq!(redrive(&world, &["--dry-run"]).await.tally, tally(6));
    assert!(world.read(world.events()).is_empty());
    let outcome = redrive(&world, &[]).await;
    assert_eq!(outcome.tally, tally(6));
    assert!(matches!(outcome.end, End::Reached));

    let mut back = world.read(world.events());
    back.sort_by_key(|record| record.timestamp);
    let originals_at: Vec<_> = originals.iter().map(|record| record.timestamp).collect();
    let mut expected = originals;
    expected.sort_by_key(|record| record.timestamp);
    for record in &mut expected {
        // The header that stays, which the worker counts on; the one that comes, which it keeps.
        record.headers.push((ATTEMPTS.to_owned(), Some(b"1".to_vec())));
        let nth = originals_at.iter().position(|timestamp| *timestamp == record.timestamp).unwrap();
        let lineage = format!("{}-1@{nth}@{}", world.events(), record.timestamp.unwrap());
        record.headers.push((LINEAGE.to_owned(), Some(lineage.into_bytes())));
    }
    assert!(back == expected, "{:?}", back.iter().map(|record| (&record.key, &record.headers)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_key_come_back_in_their_order() {
    let world = World::new().await;
    let records: Vec<Record> = (0..50).map(|n| Record::poison(["a", "b", "c"][n % 3], TEN + n as i64)).collect();
    world.bury(0, &records.iter().map(|record| (record, "json")).collect::<Vec<_>>()).await;
    redrive(&world, &[]).await;
    let back = world.read(world.events());
    for key in ["a", "b", "c"] {
        let times: Vec<_> =
            back.iter().filter(|r| r.key.as_deref() == Some(key.as_bytes())).map(|r| r.timestamp).collect();
        assert!(times.len() >= 16 && times.is_sorted(), "{key}: {times:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_letters_that_the_filters_mean_come_back() {
    let world = World::new().await;
    let (a, b) = (Record::poison("a", TEN), Record::poison("b", TEN));
    world.bury(0, &[(&a, "enum"), (&b, "json"), (&b, "json")]).await;
    assert_eq!(redrive(&world, &["--reason", "enum"]).await.tally, Tally { filtered: 2, ..tally(1) });
    assert_eq!(world.read(world.events())[0].key, a.key);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_another_topic_are_left_alone() {
    let world = World::new().await;
    let elsewhere = Record::poison("a", TEN).at("another-topic", 0, 0);
    world.bury_one(&elsewhere, "json").await;
    let mut verdicts = Vec::new();
    let outcome =
        redrive_until(&world, &[], &Shutdown::new(), |_, verdict| verdicts.push(verdict.clone())).await.unwrap();
    assert_eq!(outcome.tally, Tally { foreign: 1, ..tally(0) });
    assert_eq!(verdicts, [Verdict::Foreign]);
    assert!(world.read(world.events()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_fails_again_and_again_is_left_alone_at_the_limit() {
    let world = World::new().await;
    world.bury(0, &[(&Record::poison("a", TEN), "json")]).await;
    for attempts in 1..=3 {
        let letters = list(&world, &[]).await.0;
        assert_eq!(letters.last().unwrap().attempts, Some(attempts));
        let outcome = redrive(&world, &["--max-attempts", "3", "--resume"]).await;
        let again = world.read(world.events());
        if attempts == 3 {
            assert_eq!(outcome.tally, Tally { exhausted: 1, ..tally(0) });
            assert_eq!(again.len(), 2);
        } else {
            assert_eq!(outcome.tally, tally(1));
            // As the worker does when it meets the record again.
            world.bury(0, &[(again.last().unwrap(), "json")]).await;
        }
    }
    let again = redrive(&world, &["--max-attempts", "4", "--dry-run"]).await;
    assert_eq!(again.tally, Tally { superseded: 2, ..tally(1) }, "only the last one");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_redrive_of_what_stays_poison_leaves_one_letter_more() {
    let world = World::new().await;
    // One of them in any partition.
    let records = [Record::poison("a", TEN), Record { key: None, ..Record::poison("", TEN + 1) }];
    world.bury(0, &records.each_ref().map(|record| (record, "json"))).await;
    for run in 1..=10 {
        let outcome = redrive(&world, &["--max-attempts", "100"]).await;
        assert_eq!(outcome.tally, Tally { superseded: 2 * (run - 1), ..tally(2) }, "run {run}");
        let all = world.read(world.events());
        assert_eq!(all.len() as u64, 2 * run);
        // As the worker does when it meets them again.
        let attempts = (ATTEMPTS.to_owned(), Some(run.to_string().into_bytes()));
        let new: Vec<_> =
            all.iter().filter(|record| record.headers.contains(&attempts)).map(|record| (record, "json")).collect();
        world.bury(1, &new).await;
    }
    let (letters, _) = list(&world, &[]).await;
    assert_eq!(letters.len(), 22);
    // Those of each lineage but the last are left alone however they are chosen.
    let outcome = redrive(&world, &["--partition", "0", "--dry-run"]).await;
    assert_eq!(outcome.tally, Tally { filtered: 20, superseded: 2, ..tally(0) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_that_the_topic_does_not_take_any_more_is_left_out() {
    let world = World::new().await;
    let old = Record { value: Some(b"old".to_vec()), ..Record::poison("a", 1) };
    world.bury(0, &[(&old, "json"), (&Record::poison("a", 2), "json")]).await;
    world.refuse_old_records(world.events()).await;

    let outcome = redrive(&world, &["--limit", "1"]).await;
    assert_eq!((outcome.tally, outcome.stopped_at.map(|(_, offset)| offset)), (tally(1), Some(1)));
    let back = world.read(world.events()).into_iter().find(|record| record.value == old.value).unwrap();
    assert!(back.timestamp > Some(TEN), "{back:?}");
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(1), "its partition goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_goes_on_where_the_last_one_with_the_same_filters_was() {
    let world = World::new().await;
    let records: Vec<Record> = (0..10).map(|n| Record::poison(&format!("key {n}"), TEN + n)).collect();
    let letters: Vec<_> =
        records.iter().enumerate().map(|(n, record)| (record, if n % 2 == 0 { "enum" } else { "json" })).collect();
    world.bury(0, &letters).await;

    // Nothing is remembered yet: from the beginning.
    let first = redrive(&world, &["--resume", "--limit", "4"]).await;
    assert_eq!(first.tally, tally(4));
    assert!(matches!(first.end, End::Limited) && first.stopped_at.is_some());
    let other = redrive(&world, &["--resume", "--reason", "json", "--reason", "enum", "--limit", "3"]).await;
    assert_eq!(other.tally, tally(3), "its progress is its own");
    let dry = redrive(&world, &["--resume", "--dry-run"]).await;
    assert_eq!(dry.tally, tally(6), "a dry run goes on there too");
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(6), "and leaves no trace");
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(0));
    let other = redrive(&world, &["--resume", "--reason", "enum", "--reason", "json"]).await;
    assert_eq!(other.tally, tally(7), "whatever the order of its words");

    // One that begins anew takes the place back, of partitions too that it has not reached.
    assert_eq!(redrive(&world, &["--limit", "1"]).await.tally, tally(1));
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(9));
    assert_eq!(world.read(world.events()).len(), 30);
    assert!(world.commits(&world.config.consumer.group).iter().all(Option::is_none), "the workers' commits are theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_after_the_letter_in_flight_and_says_where() {
    let world = World::new().await;
    let records: Vec<Record> = (0..10).map(|n| Record::poison("a", TEN + n)).collect();
    world.bury(0, &records.iter().map(|record| (record, "json")).collect::<Vec<_>>()).await;
    let (shutdown, mut seen) = (Shutdown::new(), 0);
    let outcome = redrive_until(&world, &[], &shutdown, |_, _| {
        seen += 1;
        if seen == 4 {
            shutdown.cancel();
        }
    });
    let outcome = outcome.await.unwrap();
    assert_eq!((outcome.tally, outcome.stopped_at.map(|(_, offset)| offset)), (tally(4), Some(4)));
    assert!(matches!(outcome.end, End::Interrupted));
    assert!(outcome.into_result().is_err());
    let dry = redrive_until(&world, &["--dry-run"], &shutdown, |_, _| {}).await.unwrap();
    assert!(matches!(dry.end, End::Interrupted) && dry.tally == tally(0), "also while it reads: {dry}");
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(6));
    assert_eq!(world.read(world.events()).len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_a_cap() {
    let world = World::new().await;
    let record = Record::poison("a", TEN);
    world.bury(0, &[[(&record, "json"); 11].as_slice(), &[(&record, "enum"); 80]].concat()).await;
    let start = Instant::now();
    let outcome = redrive(&world, &["--rate", "10", "--reason", "json"]).await;
    assert_eq!(outcome.tally, Tally { filtered: 80, ..tally(11) });
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // At this rate they would take a minute and a half.
    let start = Instant::now();
    assert_eq!(redrive(&world, &["--rate", "1", "--reason", "type"]).await.tally.filtered, 91);
    assert!(start.elapsed() < PATIENCE, "what is skipped costs nothing: {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_the_brokers_refuse_is_counted_and_tried_again_by_the_next_run() {
    let world = World::new().await;
    let small = |n| Record::poison("a", TEN + n);
    let large = Record { value: Some(random(10_000)), ..small(1) };
    let as_large = vec![b'y'; 10_000];
    world.bury(0, &[(&small(0), "json"), (&large, "json"), (&small(2), "json")]).await;
    world.limit_records(world.events(), 5_000, &as_large).await;

    let (shutdown, mut failed) = (Shutdown::new(), Vec::new());
    let outcome = redrive_until(&world, &[], &shutdown, |letter, verdict| {
        if let Verdict::Failed(error) = verdict {
            failed.push((letter.offset, error.clone()));
        }
    });
    let outcome = outcome.await.unwrap();
    assert_eq!(outcome.tally, Tally { failed: 1, ..tally(2) });
    assert!(matches!(failed[..], [(1, PublishError::TooLarge { .. })]), "{failed:?}");
    assert!(outcome.into_result().is_err());

    world.limit_records(world.events(), 50_000, &as_large).await;
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(2), "the refused one and what came after it");
    assert!(world.read(world.events()).iter().any(|record| record.value == large.value));
}

/// Bytes that don't get fewer when they are compressed.
fn random(count: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(count).collect()
}

/// The records of the dead-letter topic that are not those which asked for its limit.
fn letters(world: &World) -> Vec<Record> {
    world.read(world.dlq()).into_iter().filter(|record| !record.headers.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_is_as_large_as_its_topic_takes_and_is_not_redriven() {
    let large = Record { value: Some(random(30_000)), ..Record::poison("a", TEN) };
    for (limit, edge) in [(20_000, 4_096), (6_000, 1_024), (1_500, 0)] {
        let world = World::new().await;
        world.limit_records(world.dlq(), limit, &random(30_000)).await;
        world.bury(0, &[(&large, "json")]).await;
        let stubs = letters(&world);
        let sizes: Vec<_> = stubs.iter().map(|stub| (&stub.key, stub.value.as_ref().map(Vec::len))).collect();
        assert_eq!(sizes, [(&large.key, Some(2 * edge))], "{limit}");

        let mut told = Vec::new();
        let tell = |letter: &Letter, verdict: &Verdict| told.extend(outcome::line(letter, verdict, false));
        let outcome = redrive_until(&world, &[], &Shutdown::new(), tell).await.unwrap();
        let Tally { truncated, redriven, failed, .. } = outcome.tally;
        assert_eq!((truncated, redriven, failed), (1, 0, 0));
        assert!(told.len() == 1 && told[0].contains("it was cut short"), "{told:?}");
        assert!(world.read(world.events()).is_empty());
    }
}

/// The client sends them together, and a topic's limit is for what is sent together.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_are_too_large_only_together_are_not_cut() {
    let world = World::new().await;
    world.limit_records(world.dlq(), 10_000, &random(20_000)).await;
    let record = |n| Record { value: Some(random(3_000)), ..Record::poison("a", TEN + n) };
    let records: Vec<_> = (0..20).map(record).collect();
    let met: Vec<_> = (0..).zip(&records).map(|(offset, record)| record.at(world.events(), 0, offset)).collect();
    let buried = world.try_to_bury(&met, "json").await;
    assert!(buried.failures.is_empty() && buried.truncated == 0, "{buried:?}");
    let mut values: Vec<_> = letters(&world).into_iter().map(|letter| letter.value).collect();
    let mut expected: Vec<_> = records.into_iter().map(|record| record.value).collect();
    values.sort();
    expected.sort();
    assert!(values == expected);
}

/// A topic that takes nothing at all is an outage; once that is over, nothing was cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_not_cut_for_a_topic_that_takes_none() {
    let world = World::new().await;
    let letter = Record::poison("a", TEN);
    let record = [letter.at(world.events(), 0, 7)];
    world.limit_records(world.dlq(), 60, &random(1_000)).await;
    let refused = world.try_to_bury(&record, "json").await;
    assert!(matches!(refused.failures[&0], (_, PublishError::TooLarge { limit: Some(60), .. })), "{refused:?}");
    world.limit_records(world.dlq(), 5_000, &random(1_000)).await;
    let buried = world.try_to_bury(&record, "json").await;
    assert!(buried.failures.is_empty() && buried.truncated == 0, "{buried:?}");
    let values: Vec<_> = letters(&world).into_iter().map(|letter| letter.value).collect();
    assert_eq!(values, [letter.value]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_ends_it_and_is_not_taken_for_a_letters_fault() {
    let cluster = MockCluster::new(1).unwrap();
    let mut world = World::without_topics(&cluster.bootstrap_servers());
    for topic in [world.events(), world.dlq()] {
        cluster.create_topic(topic, 2, 1).unwrap();
    }
    let record = Record::poison("a", TEN);
    world.bury(0, &[(&record, "json"), (&record, "json")]).await;

    let away = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 100];
    cluster.request_errors(RDKafkaApiKey::Produce, &away);
    let short = Duration::from_secs(3);
    let patient = std::mem::replace(&mut world.config.kafka.delivery_timeout, short);
    let outcome = redrive(&world, &[]).await;
    assert_eq!((outcome.tally, outcome.stopped_at.map(|(_, at)| at)), (Tally { failed: 1, ..tally(0) }, Some(0)));
    let error = format!("{:#}", outcome.into_result().unwrap_err());
    assert!(error.contains("--resume") && error.contains("brokers"), "{error}");

    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    world.config.kafka.delivery_timeout = patient;
    assert_eq!(redrive(&world, &["--resume"]).await.tally, tally(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_go_away_for_a_moment_are_waited_for() {
    let cluster = MockCluster::new(1).unwrap();
    let world = World::without_topics(&cluster.bootstrap_servers());
    cluster.create_topic(world.dlq(), 2, 1).unwrap();
    let records: Vec<Record> = (0..10).map(|key| Record::poison(&key.to_string(), TEN)).collect();
    world.bury(0, &records.iter().map(|record| (record, "json")).collect::<Vec<_>>()).await;
    let Desk::List(request) = desk(&world, &["list"]) else { panic!("another command") };

    let (gone, mut partitions) = (Notify::new(), BTreeSet::new());
    let each = |letter: &Letter| {
        // Before the other partition is asked for.
        if partitions.insert(letter.partition) && partitions.len() == 1 {
            cluster.broker_down(1).unwrap();
            gone.notify_one();
        }
        Ok(())
    };
    let outage = async {
        gone.notified().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.broker_up(1).unwrap();
    };
    let (counts, ()) = tokio::join!(list::list(&world.config, &request, each), outage);
    assert_eq!((counts.unwrap().letters, partitions.len()), (10, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_does_not_exist_is_named_with_its_setting() {
    let world = World::without_topics(&support::required("TEST_KAFKA_BROKERS"));
    let error = format!("{:#}", show(&world, 0, 0).await.unwrap_err());
    assert!(error.contains(world.dlq()) && error.contains("KAFKA_DLQ_TOPIC"), "{error}");
    let output = world.binary(&["dead-letters", "redrive"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_away_are_named() {
    let world = World::without_topics("127.0.0.1:9");
    let output = world.binary(&["dead-letters", "list"]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("127.0.0.1:9 (KAFKA_BROKERS)"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_make_no_sense_are_refused() {
    let world = World::without_topics("127.0.0.1:9");
    for words in [
        &["list", "--from", "yesterday"][..],
        &["list", "--limit", "0"],
        &["show", "0"],
        &["redrive", "--rate", "0"],
        &["redrive", "--rate", "1001"],
        &["list", "--from", "2026-02-17T10:00:00Z", "--to", "2026-02-17T10:00:00Z"],
    ] {
        let words: Vec<&str> = ["dead-letters"].iter().chain(words).copied().collect();
        let output = world.binary(&words).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_prints_json_lines_and_counts_apart_from_them() {
    let world = World::new().await;
    let record = Record::poison("a", TEN);
    world.bury(1, &[(&record, "json"), (&record, "enum")]).await;

    let output = world.binary(&["dead-letters", "list", "--json"]).output().await.unwrap();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = serde_json::json!({
        "partition": lines[0]["partition"], "offset": 0, "timestamp": "2026-02-17T10:00:00.000Z",
        "originalTopic": world.events(), "originalPartition": 1, "originalOffset": 0,
        "reason": "json", "message": "it is json", "attempts": 1, "worker": "worker-1", "key": "a", "valueBytes": 8,
    });
    assert_eq!((lines.len(), &lines[0]), (2, &first));
    assert!(String::from_utf8(output.stderr).unwrap().contains("2 dead letters: enum 1, json 1"));
    assert!(output.status.success());

    let table = world.binary(&["dead-letters", "list"]).output().await.unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("partition ") && table.lines().count() == 3, "{table}");

    let partition = lines[0]["partition"].to_string();
    let page = world.binary(&["dead-letters", "show", &partition, "1"]).output().await.unwrap();
    assert!(String::from_utf8(page.stdout).unwrap().contains("\nreason       enum\n"));

    let output = world.binary(&["dead-letters", "redrive", "--dry-run"]).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.matches("would redrive partition").count(), 2, "{said}");
    assert!(said.contains("would redrive 2; skipped 0 by filter"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_early_is_no_failure() {
    let world = World::new().await;
    let record = Record::poison("a", TEN);
    world.bury(0, &[(&record, "json"); 3]).await;
    let mut list = world.binary(&["dead-letters", "list"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(list.stdout.take());
    assert!(list.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_the_binary_ends_it_where_the_next_one_goes_on() {
    let world = World::new().await;
    let record = Record::poison("a", TEN);
    world.bury(0, &vec![(&record, "json"); 60]).await;
    // Slow: a signal that comes a minute late finds it done.
    let redrive = ["dead-letters", "redrive", "--rate", "1", "--resume"];
    let child = world.binary(&redrive).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the first one is redriven", async || !world.read(world.events()).is_empty()).await;
    let id = child.id().unwrap().to_string();
    assert!(tokio::process::Command::new("kill").args(["-INT", &id]).status().await.unwrap().success());
    let output = child.wait_with_output().await.unwrap();
    let [said, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(said.contains("stopped before partition") && error.contains("--resume"), "{said}{error}");
    assert_eq!(output.status.code(), Some(1), "{said}{error}");

    let before = world.read(world.events()).len();
    assert!((1..60).contains(&before), "{before}");
    let output = world.binary(&["dead-letters", "redrive", "--rate", "1000", "--resume"]).output().await.unwrap();
    assert!(output.status.success());
    assert_eq!(world.read(world.events()).len(), 60, "none twice, none left out");
}
